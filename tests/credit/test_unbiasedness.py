"""Which rules estimate the policy gradient, which only scale it, and which follow something else: by exact sums.

A softmax policy with learnable stopping, groups of G independent episodes: all groups are listed, and
E[Σ_i Σ_t ∇ log π(a_it|s_it) · A_it] / G is compared with ∇J, in float64 to 1e-10. Two episodes of up to five turns, and
three of up to three. γ = 1 unless said. `off_course` is the sine of the angle to ∇J, what no learning rate mends.

Legend: G_t return to go, q_t chance that an episode reaches turn t, m how many of a group do, r̄_t = E[r_t | reached].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from worlds import Samples, World, off_course

from echelon.credit.critics import archer
from echelon.credit.groups import (
    dr_grpo,
    grpo,
    opo,
    pass_at_k,
    reinforce,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    whiten,
)
from echelon.credit.returns import discounted_return, gae, vtrace
from echelon.credit.shaped import hbpo, worldrft
from echelon.credit.tokens import amplify, hicra
from echelon.credit.turns import even_reward, gigpo, igpo, index_groups, rloo_to_go, rlvmr, spa, step_groups
from echelon.spans import Spans

Rule = Callable[[Samples], Tensor]

# seeds with a clear angle for every biased rule: biases of random worlds can be small by chance
SAMPLES = {
    "pairs, 5 turns": Samples.all(World.build(horizon=5, seed=1), size=2),
    "triples, 3 turns": Samples.all(World.build(horizon=3, seed=5), size=3),
}


@pytest.fixture(params=SAMPLES.values(), ids=list(SAMPLES))
def samples(request: pytest.FixtureRequest) -> Samples:
    return request.param


def same(estimate: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(estimate, expected, rtol=0, atol=1e-10)


def over(samples: Samples, advantage: Tensor) -> Tensor:
    """Credit of episodes, on each of their turns."""
    return samples.tree["episode"].expand(advantage)


def at(samples: Samples, column: Tensor) -> Tensor:
    """A column of the world's turns on the turns of the samples."""
    return column[samples.item]


def shrinkage(reached: Tensor, size: int) -> Tensor:
    """c = E[(m-1)/m], m - 1 of the G - 1 others being there with chance q each: 1 - (1 - (1-q)^G) / (G · q)."""
    return 1 - (1 - (1 - reached) ** size) / (size * reached)


def test_world(samples: Samples) -> None:
    """The list is complete: chances sum to 1, the expected return is the value of the start, the gradient in place."""
    world = samples.world
    torch.testing.assert_close(world.chance.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(samples.chance.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close((world.chance * world.returns).sum().detach(), world.value[0])
    assert world.gradient.norm() > 0.1


# ---- unbiased


def return_to_go(samples: Samples) -> Tensor:
    return discounted_return(samples.tree["episode"], reward=samples.reward)


def constant_baseline(samples: Samples) -> Tensor:
    return over(samples, reinforce(reward=samples.outcome, baseline=0.7).advantage)


def leave_one_out(samples: Samples) -> Tensor:
    return over(samples, rloo(samples.groups, reward=samples.outcome).advantage)


def leave_one_out_to_go(samples: Samples) -> Tensor:
    """Although the others that reach a turn are fewer and fewer: who they are does not depend on what i does."""
    return rloo_to_go(samples.tree, reward=samples.reward).advantage


def gae_wrong_values(samples: Samples) -> Tensor:
    value = at(samples, samples.world.wrong)
    return gae(samples.tree["episode"], reward=samples.reward, value=value, lam=1).advantage


def gae_exact_values(samples: Samples, lam: float) -> Tensor:
    return gae(
        samples.tree["episode"], reward=samples.reward, value=at(samples, samples.world.value), lam=lam
    ).advantage


def vtrace_on_policy(samples: Samples) -> Tensor:
    value, ratio = at(samples, samples.world.wrong), torch.zeros_like(samples.reward)
    return vtrace(samples.tree["episode"], reward=samples.reward, value=value, log_ratio=ratio).advantage


def exact_q_wrong_value(samples: Samples) -> Tensor:
    after = samples.tree["episode"].shift(at(samples, samples.world.value), 1)
    return archer(q=(samples.reward + after)[:, None], value=at(samples, samples.world.wrong)[:, None]).advantage


def causal_shares(samples: Samples) -> Tensor:
    """The outcome redistributed by differences of a prediction, however wrong: no share depends on what comes later."""
    episode, predicted = samples.tree["episode"], at(samples, samples.world.wrong)
    shares = episode.shift(predicted, 1, samples.outcome) - predicted
    nothing = torch.zeros_like(shares)
    return spa(episode, attribution=shares, grounded=nothing, value=nothing, lam=1).advantage


def other_visits(samples: Samples) -> Tensor:
    """Return to go less its mean over the visits of the same state by the other episodes: those of i left out too."""
    to_go, state = return_to_go(samples), at(samples, samples.world.state)
    visits, own = step_groups(samples.tree, state=state), Spans.by_key(samples.tree["episode"].ids, state)
    both = torch.stack((to_go, torch.ones_like(to_go)), -1)
    total, count = (visits.expand(visits.reduce(both)) - own.expand(own.reduce(both))).unbind(-1)
    return to_go - total / count.clamp(min=1)


UNBIASED: dict[str, Rule] = {
    "return to go": return_to_go,
    "reinforce, constant baseline": constant_baseline,
    "rloo": leave_one_out,
    "rloo_to_go": leave_one_out_to_go,
    "gae, wrong values, lam 1": gae_wrong_values,
    "gae, exact values, lam 0": lambda samples: gae_exact_values(samples, 0.0),
    "gae, exact values, lam 0.6": lambda samples: gae_exact_values(samples, 0.6),
    "vtrace on policy, wrong values": vtrace_on_policy,
    "archer, exact q, wrong value": exact_q_wrong_value,
    "spa, causal shares": causal_shares,
    "other episodes' visits of the state": other_visits,
}


@pytest.mark.parametrize("rule", UNBIASED.values(), ids=list(UNBIASED))
def test_unbiased(samples: Samples, rule: Rule) -> None:
    """E[estimate] = ∇J."""
    same(samples.estimate(rule(samples)), samples.world.gradient)


def test_pass_at_k_follows_the_best_of_the_group(samples: Samples) -> None:
    """Without std, Σ_i ∇ log p_i · A_i estimates ∇ E[max_j R_j] (no 1/G).

    A_i is max_j R_j - max_{j≠i} R_j, the maximum less a baseline of the others.
    """
    world, size = samples.world, samples.size
    members = torch.cartesian_prod(*[torch.arange(world.episodes.n)] * size)
    objective = world.derivative((world.chance[members].prod(-1) * world.returns[members].amax(-1)).sum())
    margin = pass_at_k(samples.groups, reward=samples.outcome, eps=None).advantage
    same(size * samples.estimate(over(samples, margin)), objective)
    scaled = pass_at_k(samples.groups, reward=samples.outcome).advantage
    assert off_course(samples.estimate(over(samples, scaled)), objective) > 0.1


def test_discounted_return_needs_its_turns_weighed(samples: Samples) -> None:
    """γ < 1: Σ_t γ^t · ∇ log π · G_t is the gradient of the discounted return; without γ^t, as used, of nothing.

    No function has the latter as its gradient (arXiv 1906.07073).
    """
    world, gamma = samples.world, 0.6
    to_go = discounted_return(samples.tree["episode"], reward=samples.reward, gamma=gamma)
    weight = gamma ** world.episodes.position.double()
    objective = world.derivative((world.chance * world.episodes.reduce(weight * world.reward)).sum())
    same(samples.estimate(at(samples, weight) * to_go), objective)
    assert off_course(samples.estimate(to_go), objective) > 0.1
    assert off_course(samples.estimate(to_go), world.gradient) > 0.1


# ---- scaled: biased by one factor, which the learning rate takes up


def mean_with_oneself(samples: Samples) -> Tensor:
    return over(samples, dr_grpo(samples.groups, reward=samples.outcome).advantage)


def gigpo_episode_level(samples: Samples) -> Tensor:
    state = at(samples, samples.world.state)
    return gigpo(samples.tree, reward=samples.reward, state=state, omega=0, statistics="episodes", eps=None).advantage


def igpo_column(samples: Samples) -> Tensor:
    """All G divide every column, finished episodes counting 0: no number of terms depends on where i stops."""
    last = samples.reward[samples.tree["episode"].ends]
    return igpo(samples.tree, gain=samples.reward, outcome=last, statistics="column").advantage


SCALED: dict[str, Rule] = {
    "dr_grpo": mean_with_oneself,
    "gigpo, episode level, each once": gigpo_episode_level,
    "igpo, column": igpo_column,
}


@pytest.mark.parametrize("rule", SCALED.values(), ids=list(SCALED))
def test_mean_with_oneself_scales_by_one_factor(samples: Samples, rule: Rule) -> None:
    """E[estimate] = (G-1)/G · ∇J exactly, where everybody has the same baseline and G does not vary."""
    same(samples.estimate(rule(samples)), (1 - 1 / samples.size) * samples.world.gradient)


# ---- biased, with what is followed in place of ∇J


def test_mean_of_those_who_reach_the_turn(samples: Samples) -> None:
    """Return to go less its mean at the same turn index, oneself included: turn t of ∇J shrinks by its own c_t.

    c_t = E[(m-1)/m] falls as fewer episodes reach t, so that late turns hardly learn.
    """
    world, rows, to_go = samples.world, index_groups(samples.tree), return_to_go(samples)
    estimate = samples.estimate(to_go - rows.siblings(to_go, "mean"))
    turn = world.episodes.position
    factor = shrinkage(world.reach(world.episodes.longest).detach(), samples.size)
    same(estimate, world.expected(factor[turn] * world.episodes.scan(world.reward)))
    assert off_course(estimate, world.gradient) > 0.1
    assert (factor.diff() < 0).all()


def test_rewards_centred_at_every_turn_are_a_fine_for_going_on(samples: Samples) -> None:
    """Rewards less the others' mean at the same turn, then summed to go: ∇J - Σ_t r̄_t · P(any other there) · ∇q_t.

    How many means are subtracted is decided by where i stops, so they are no baseline: each further turn costs what it
    pays on average (verl RFC 7244). "Leave one out" alone does not help; `rloo_to_go` centres the sums to go instead.
    """
    world, rows = samples.world, index_groups(samples.tree)
    centred = samples.reward - rows.siblings(samples.reward, "loo_mean", singleton="raw")
    estimate = samples.estimate(samples.tree["episode"].scan(centred))
    reach = world.reach(world.episodes.longest)
    fine = (1 - (1 - reach.detach()) ** (samples.size - 1)) * mean_rewards(world).detach()
    same(estimate, world.gradient - world.derivative((fine * reach).sum()))
    assert off_course(estimate, world.gradient) > 0.1


def test_rewards_centred_with_oneself_make_going_on_worthless(samples: Samples) -> None:
    """The same with the mean that includes i, "per-turn normalisation" without the std: Σ_t c_t · q_t · ∇ r̄_t.

    Only what a reached turn pays is learnt. Whether to reach it is not: of ∇(q_t · r̄_t) the part r̄_t · ∇q_t is gone.
    """
    world, rows = samples.world, index_groups(samples.tree)
    estimate = samples.estimate(samples.tree["episode"].scan(samples.reward - rows.siblings(samples.reward, "mean")))
    reach = world.reach(world.episodes.longest).detach()
    same(estimate, world.derivative((shrinkage(reach, samples.size) * reach * mean_rewards(world)).sum()))
    assert off_course(estimate, world.gradient) > 0.1


def mean_rewards(world: World) -> Tensor:
    """[T], differentiable: r̄_t, the mean reward of turn t where it is reached."""
    paid = (world.episodes.expand(world.chance) * world.reward).new_zeros(world.episodes.longest)
    paid = paid.index_add(0, world.episodes.position, world.episodes.expand(world.chance) * world.reward)
    return paid / world.reach(world.episodes.longest)


def test_grpo_with_two_samples_learns_to_win() -> None:
    """G = 2: dividing by the std leaves the sign, E[estimate] = ∇ (P(win) - P(lose)) / √2 against a frozen copy.

    How much is won does not count; with more samples only the ratios of the differences do.
    """
    samples = SAMPLES["pairs, 5 turns"]
    world = samples.world
    estimate = samples.estimate(over(samples, grpo(samples.groups, reward=samples.outcome, eps=0.0).advantage))
    sign = (world.returns[:, None] - world.returns).sign()
    same(estimate, world.derivative(world.chance @ sign @ world.chance.detach()) / 2**0.5)
    assert off_course(estimate, world.gradient) > 0.1


def test_gigpo_step_groups_shrink_rare_states(samples: Samples) -> None:
    """If no episode meets a state twice, the gradient of each state shrinks by its own c_s = E[(m-1)/m].

    m - 1 others visit s, each with chance q_s: rare states learn in proportion to q_s². Every state's share keeps its
    direction, so that with logits of its own for each the fixed points stay; shared parameters, as here, go astray.
    """
    world = samples.world
    step = gigpo(
        samples.tree, reward=samples.reward, state=at(samples, world.prefix), gamma=1, eps=None, statistics="episodes"
    ).terms["step"]
    visits = Spans.by_key(world.prefix)  # a prefix comes once in an episode
    chance = visits.expand(visits.reduce(world.episodes.expand(world.chance.detach())))
    factor = shrinkage(chance, samples.size)
    same(samples.estimate(step), world.expected(factor * world.episodes.scan(world.reward)))
    assert off_course(samples.estimate(step), world.gradient) > 0.1


def test_gigpo_step_groups_with_returning_episodes() -> None:
    """Where an episode meets a state again, its own later visit is in the baseline, and depends on what it did.

    Even the direction within one state's logits changes, and leaving out the turn alone does not help; leaving out the
    whole episode does (`other_visits` above).
    """
    samples = SAMPLES["pairs, 5 turns"]
    world, to_go = samples.world, return_to_go(samples)
    visits = step_groups(samples.tree, state=at(samples, world.state))
    released = gigpo(samples.tree, reward=samples.reward, state=visits, gamma=1, eps=None).terms["step"]
    for advantage in (released, to_go - visits.siblings(to_go, "loo_mean", singleton="raw")):
        by_state = zip(samples.estimate(advantage), world.gradient, strict=True)
        assert max(off_course(estimate, gradient) for estimate, gradient in by_state) > 0.1


def test_hicra_pays_for_planning_tokens_when_nothing_can_be_learnt() -> None:
    """Rewards by the toss of a coin, so ∇J = 0; yet E[estimate] = α · E|A| · Σ_t E[∇ π(planning token|s_t)].

    The term α · |A| is never negative: a reward for emitting the token, in whatever state, right or wrong.
    """
    world = World.build(horizon=3)
    twice, item = world.episodes.take(torch.arange(world.episodes.n).repeat(2))
    heads = torch.arange(twice.n) < world.episodes.n
    reward = torch.zeros(twice.size, dtype=torch.float64).index_add(0, twice.ends, heads.double())
    coins = replace(
        world, episodes=twice, state=world.state[item], action=world.action[item], reward=reward,
        luck=torch.full_like(world.luck, 0.5).repeat(2),
    )  # fmt: skip
    samples = Samples.all(coins, 2)
    same(coins.gradient, torch.zeros_like(coins.gradient))
    credit = hicra(samples.tree, reward=samples.outcome, planning=at(samples, coins.action) == 1, alpha=0.2, eps=0.0)
    planned = (twice.expand(coins.chance.detach()) * coins.logits.softmax(-1)[coins.state, 1]).sum()
    mean_size = 0.5 * 0.5**0.5  # half of the pairs differ, and get ±1/√2
    same(samples.estimate(credit.advantage), 0.2 * mean_size * coins.derivative(planned))


# ---- biased


def group_std(samples: Samples) -> Tensor:
    return over(samples, grpo(samples.groups, reward=samples.outcome).advantage)


def length_weighted_mean(samples: Samples) -> Tensor:
    length = samples.tree["episode"].lengths
    return over(samples, opo(samples.groups, reward=samples.outcome, length=length).advantage)


def gigpo_released(samples: Samples, eps: float | None, omega: float) -> Tensor:
    state = at(samples, samples.world.state)
    return gigpo(samples.tree, reward=samples.reward, state=state, gamma=1, omega=omega, eps=eps).advantage


def meta_rewards(samples: Samples) -> Tensor:
    score, tag = over(samples, samples.outcome), at(samples, samples.world.state)
    return rlvmr(samples.tree, score=score, meta=samples.reward, tag=tag).advantage


def igpo_pool(samples: Samples) -> Tensor:
    last = samples.reward[samples.tree["episode"].ends]
    return igpo(samples.tree, gain=samples.reward, outcome=last, statistics="pool").advantage


def normalised_turns(samples: Samples) -> Tensor:
    return worldrft(samples.tree, reward=samples.reward, eps=1e-6).advantage


def budget_ceilings(samples: Samples) -> Tensor:
    """The subgroup's own mean, added: a reward for the rewards of the others with the same budget."""
    length, ceiling = samples.tree["episode"].lengths, torch.zeros_like(samples.outcome)
    return over(samples, hbpo(samples.groups, reward=samples.outcome, budget=length, ceiling=ceiling).advantage)


def even_shares(samples: Samples) -> Tensor:
    """What is already paid depends on when the episode will stop, so that dropping it loses part of the gradient."""
    episode = samples.tree["episode"]
    return discounted_return(episode, reward=even_reward(episode, outcome=samples.outcome))


def wrong_values_cut_short(samples: Samples) -> Tensor:
    value = at(samples, samples.world.wrong)
    return gae(samples.tree["episode"], reward=samples.reward, value=value, lam=0.5).advantage


def amplified(samples: Samples) -> Tensor:
    """HICRA's amplification of an unbiased advantage."""
    credit = rloo(samples.groups, reward=samples.outcome).expand(samples.tree["episode"])
    return amplify(credit, at(samples, samples.world.action) == 1, alpha=0.2).advantage


BIASED: dict[str, Rule] = {
    "grpo": group_std,
    "opo": length_weighted_mean,
    "gigpo, means only, episode level by rows": lambda samples: gigpo_released(samples, None, 0),
    "gigpo": lambda samples: gigpo_released(samples, 1e-6, 1),
    "rlvmr": meta_rewards,
    "igpo, pool": igpo_pool,
    "worldrft": normalised_turns,
    "hbpo": budget_ceilings,
    "even shares to go": even_shares,
    "gae, wrong values, lam 0.5": wrong_values_cut_short,
    "hicra's amplification": amplified,
}


@pytest.mark.parametrize("rule", BIASED.values(), ids=list(BIASED))
def test_biased(samples: Samples, rule: Rule) -> None:
    """No multiple of ∇J: at least a tenth of the estimate is at right angles to it."""
    assert off_course(samples.estimate(rule(samples)), samples.world.gradient) > 0.1


WHITENED: dict[str, Callable[[Spans, Tensor, Tensor], Tensor]] = {
    "reinforce_pp": lambda episodes, reward, value: reinforce_pp(episodes, reward=reward).advantage,
    "reinforce_pp_baseline": lambda episodes, reward, value: reinforce_pp_baseline(
        Spans([0, episodes.n]), reward=episodes.reduce(reward), length=episodes.lengths
    ).expand(episodes).advantage,
    "gae, exact values": lambda episodes, reward, value: whiten(gae(episodes, reward=reward, value=value).advantage),
}  # fmt: skip


@pytest.mark.parametrize("rule", WHITENED.values(), ids=list(WHITENED))
def test_whitening_is_biased(rule: Callable[[Spans, Tensor, Tensor], Tensor]) -> None:
    """Batch by batch: mean and std of two episodes, over turns, so that longer ones weigh more. Fades as 1/batch."""
    samples = Samples.all(World.build(horizon=3, seed=1), size=2)
    columns = torch.stack((samples.reward, at(samples, samples.world.value)), -1)
    advantage = []
    for turns, lengths in zip(
        columns.split(samples.tree["group"].lengths.tolist()), samples.tree["episode"].lengths.split(2), strict=True
    ):
        advantage.append(rule(Spans.from_lengths(lengths), *turns.unbind(-1)))
    assert off_course(samples.estimate(torch.cat(advantage)), samples.world.gradient) > 0.05
