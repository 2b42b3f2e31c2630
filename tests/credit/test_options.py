"""Options, feudal, completion and imagined hierarchies against the numbers of their sources and naive references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import bools, doubles
from forests import Forest, columns, forests
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.options import (
    arrival_probability,
    continuation_value,
    cosine_max,
    dac,
    director_blocks,
    director_manager,
    feudal,
    feudal_intrinsic,
    hdqn_target,
    interruptions,
    intra_option_target,
    maxq_target,
    option_critic,
    option_q_target,
    option_value,
    ppoc,
    termination_credit,
    transition_cosine,
)
from echelon.credit.returns import discounted_return, gae
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def near(actual: Tensor, *expected: float, digits: int = 6) -> None:
    torch.testing.assert_close(actual, doubles(*expected), atol=0.51 * 10.0**-digits, rtol=0)


def close(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        a = a.tolist()
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(b, list):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=2e-8)  # room for the two ways to keep a cosine finite


def one(length: int) -> Spans:
    return Spans([0, length])


def tree_of(*decisions: int) -> SpanTree:
    """One episode of decisions of these lengths."""
    return SpanTree({"episode": one(sum(decisions)), "segment": (Spans.from_lengths(decisions), "episode")})


def flags(draw: st.DrawFn, n: int) -> list[bool]:
    return draw(st.lists(st.booleans(), min_size=n, max_size=n))


def choices(draw: st.DrawFn, n: int, below: int) -> list[int]:
    return draw(st.lists(st.integers(0, below - 1), min_size=n, max_size=n))


# ---- numbers of the sources


def test_smdp_q_target__paper() -> None:
    zero = torch.zeros(3, 2, dtype=torch.float64)
    target = option_q_target(tree_of(3), reward=doubles(1, 0, 2), q=zero, final_value=doubles(4), gamma=0.9)
    near(target, 5.536)
    near(1 + 0.5 * (target - 1), 3.268)


def test_intra_option_target__paper() -> None:
    target = intra_option_target(
        reward=doubles(1), terminated=bools(0), next_q=doubles([2, 3]), next_termination=doubles([0.3, 0.3]), gamma=0.9
    )
    near(target[:, 0], 3.07)
    near(1 + 0.5 * (target[:, 0] - 1), 2.035)


TRANSITION = {
    "reward": doubles(1),
    "option": ints(0),
    "q": doubles([2, 3]),
    "next_q": doubles([1, 4]),
    "next_termination": doubles([0.25, 0.5]),
    "terminated": bools(0),
}


def test_option_critic__code() -> None:
    action = option_critic(**TRANSITION)["action"]
    near(action.target["q"], 2.7325)
    near(0.5 * (2 - action.target["q"]).square(), 0.268278)
    near(-action.advantage * -0.7 - 0.01 * 0.6, 0.50675)
    # released: β in the state left; its loss is -(advantage · β)
    x = {**TRANSITION, "termination_q": TRANSITION["q"]}
    near(-option_critic(**x)["termination"].advantage * 0.4, -0.396)
    near(-option_critic(**x, margin=0.02)["termination"].advantage * 0.4, -0.392)
    near(-option_critic(**x, margin=0.0, deliberation_cost=0.02)["termination"].advantage * 0.4, -0.392)


def test_option_critic_terminates_in_the_state_entered__paper() -> None:
    near(option_critic(**TRANSITION, margin=0.0)["termination"].advantage, 3)
    over = option_critic(**{**TRANSITION, "terminated": bools(1)})
    assert (over["termination"].advantage.item(), over["termination"].weight.item()) == (0, 0)
    near(over["action"].advantage, -1)


def test_deliberation_cost__paper() -> None:
    q, termination = doubles([1, 4]), doubles([0.25, 0.5])
    near(continuation_value(q, termination)[:, 0], 1.75)
    near(continuation_value(q, termination, deliberation_cost=0.1)[:, 0], 1.725)


def test_ppoc_stream__code() -> None:
    value = doubles([0.5, 9], [7, 0.4], [0.6, 8])
    x = {"reward": doubles(1, 1, 1), "option": ints(0, 1, 0), "policy": torch.full((3, 2), 0.5, dtype=torch.float64)}
    out = ppoc(one(3), **x, value=value, ended=bools(0, 1, 0), final_value=doubles(0.3), deliberation_cost=0.2)
    near(out["action"].advantage, 2.447382, 1.649529, 0.697)


def test_arrival_probability__paper() -> None:
    p = arrival_probability(termination=doubles(0.25), policy=doubles([0.2, 0.8]), previous=ints(0))
    near(p[0], 0.8, 0.2)


FEUDAL_STATE = doubles([0, 0], [1, 0], [1, 1], [2, 2])
FEUDAL_GOAL = doubles([1, 0], [0, 1], [0.6, 0.8], [0, 0])


def test_feudal_intrinsic_reward__paper() -> None:
    last = [feudal_intrinsic(one(4), state=FEUDAL_STATE, goal=FEUDAL_GOAL, horizon=c)[3] * c for c in (1, 2, 3)]
    near(torch.stack([last[0], last[1] - last[0], last[2] - last[1]]), 0.989949, 0.894427, 0.707107)
    near(last[2][None] / 3, 0.863828)


def test_feudal_manager__paper() -> None:
    cosine = transition_cosine(one(4), state=FEUDAL_STATE, goal=FEUDAL_GOAL, horizon=2)
    x = {"intrinsic": doubles(0, 0, 0, 0), "worker_value": doubles(0, 0, 0, 0)}
    manager = feudal(
        one(4), reward=doubles(0, 0, 0, 2), manager_value=doubles(1.5, 0, 0, 0), **x, gamma=1.0, horizon=2
    )["manager"]
    near(-(manager.advantage * cosine)[:1], -0.353553)
    assert manager.weight.tolist() == [1, 1, 0, 0]


def test_maxq_targets__paper() -> None:
    x: dict[str, Any] = {"duration": ints(3), "terminated": bools(0), "gamma": 0.9}
    plain = maxq_target(**x, next_value=doubles([2, 0]), next_completion=doubles([1, 0]))
    near(0.5 * plain.completion, 1.0935)
    assert torch.equal(plain.completion, plain.pseudo)
    guided = maxq_target(
        **x,
        next_value=doubles([2, 0]),
        next_completion=doubles([1, 9]),
        next_pseudo=doubles([1, 0]),
        pseudo_reward=doubles(-5),
    )
    near(0.5 * guided.completion, 1.0935)  # chosen by the pseudo-rewarded table: not the child worth 9
    near(0.5 * guided.pseudo, -0.729)


def test_director_blocks__code() -> None:
    cont = doubles(1, 1, 1, 0, 1)
    earned, alive = director_blocks(Spans([0, 2, 4]), reward=doubles(1, 2, 3, 4), cont=cont[:-1], next_cont=cont[1:])
    near(earned, 1.5, 1.5)
    near(torch.cat([cont[:1], alive]), 1, 1, 0)


def test_director_returns__code() -> None:
    ones = doubles(1, 1, 1)
    credit = director_manager(
        tree_of(1, 1, 1),
        reward=doubles(1, 0, 2),
        cont=ones,
        next_cont=ones,
        value=doubles(0.5, 0.6, 0.7),
        final_value=doubles(0.8),
    )
    near(credit.target["value"], 3.531925, 2.660526, 2.792)
    near(credit.weight, 1, 0.99, 0.99**2, digits=9)


def test_cosine_max__code() -> None:
    goal, state = doubles([1, 0], [1, 1], [0.3, -2]), doubles([2, 0], [1, 0], [0.3, -2])
    near(cosine_max(goal, state), 0.5, 0.5, 1)


def chain(gamma: float, allowed: slice = slice(None), sweeps: int = 400) -> float:
    """The value of state 2 of the six-state chain: left, or right with chance 1/2; 1 for ending after a visit to 6."""
    rows = []
    for visited in (0, 1):
        for s in range(2, 7):
            for action in (0, 1):
                for probability, move in ((1.0, -1),) if action == 0 or s == 6 else ((0.5, 1), (0.5, -1)):
                    seen = visited or s == 6 or s + move == 6
                    pay = (1.0 if seen else 0.01) if s + move == 1 else 0.0
                    rows.append((s + 7 * visited, action, probability, s + move + 7 * seen, pay, s + move == 1))
    state, action, probability, after, pay, over = (torch.tensor(x) for x in zip(*rows, strict=True))
    q = torch.zeros(14, 2, dtype=torch.float64)
    for _ in range(sweeps):
        # a primitive action is an option that always ends: every column of U is the maximum
        best = option_value(q[:, allowed])[after, None]
        target = intra_option_target(
            reward=pay.double(), terminated=over, next_q=best, next_termination=torch.ones_like(best), gamma=gamma
        )
        q = torch.zeros_like(q).index_put((state, action), probability * target[:, 0], accumulate=True)
    return float(option_value(q[:, allowed])[2])


def test_six_state_chain__paper() -> None:
    near(doubles(chain(1.0), chain(0.975), chain(1.0, slice(0, 1))), 0.208, 0.156222, 0.01)


# ---- decisions of many episodes


def naive_option_targets(forest: Forest, x: dict[str, Tensor], gamma: float, cut: bool) -> list[float]:
    """Index by index: the return of every piece of a decision, and V where the next piece or the end begins."""
    best, out, row = x["q"].amax(-1), [], 0
    episode, segment = forest.tree["episode"].ids, forest.tree["segment"].ids
    flat = [length for group in forest.lengths for length in group]
    for e, length in enumerate(flat):
        items = [int(i) for i in forest.slots[row : row + length]]
        row += length
        assert all(episode[i] == e for i in items)
        starts = [0]
        for t in range(1, length):
            here, before = items[t], items[t - 1]
            if segment[here] != segment[before] or (cut and x["q"][here, x["option"][here]] < best[here]):
                starts.append(t)
        for k, start in enumerate(starts):
            stop = starts[k + 1] if k + 1 < len(starts) else length
            total = sum(gamma ** (t - start) * float(x["reward"][items[t]]) for t in range(start, stop))
            after = float(best[items[stop]]) if stop < length else 0.0 if x["over"][e] else float(x["final"][e])
            out.append(total + gamma ** (stop - start) * after)
    return out


@given(forest=forests(), data=st.data(), cut=st.booleans())
def test_option_targets_with_and_without_interruption(forest: Forest, data: st.DataObject, cut: bool) -> None:
    n, episodes = forest.size, forest.tree["episode"]
    x = {
        "reward": columns(data.draw, n),
        "q": columns(data.draw, 2 * n).reshape(n, 2),
        "option": ints(*choices(data.draw, n, 2)),
        "final": columns(data.draw, episodes.n),
        "over": bools(*flags(data.draw, episodes.n)),
    }
    segments = forest.tree["segment"]
    pieces = interruptions(segments, q=x["q"], option=x["option"]) if cut else segments
    target = option_q_target(
        SpanTree({"episode": episodes, "segment": (pieces, "episode")}),
        reward=x["reward"],
        q=x["q"],
        terminated=x["over"],
        final_value=x["final"],
        gamma=0.9,
    )
    assert close(target, naive_option_targets(forest, x, 0.9, cut))


def test_a_policy_over_options_replaces_the_maximum() -> None:
    q, policy = doubles([1, 4]), doubles([0.75, 0.25])
    near(option_value(q, policy), 1.75)
    near(continuation_value(q, doubles([1, 0]), policy=policy)[0], 1.75, 4)
    credit = termination_credit(q=q, option=ints(0), policy=policy, cost=0.25)
    near(credit.advantage, 0.5)
    near(torch.stack(list(credit.terms.values())).sum(0), 0.5)


# ---- PPOC and DAC


def stream(draw: st.DrawFn, forest: Forest, options: int = 3) -> dict[str, Tensor]:
    n, episodes = forest.size, forest.tree["episode"].n
    return {
        "reward": columns(draw, n),
        "value": columns(draw, n * options).reshape(n, options),
        "option": ints(*choices(draw, n, options)),
        "terminated": bools(*flags(draw, episodes)),
        "final_value": columns(draw, episodes),
    }


@given(forest=forests(), data=st.data())
def test_ppoc_levels(forest: Forest, data: st.DataObject) -> None:
    episodes, x = forest.tree["episode"], stream(data.draw, forest)
    policy = columns(data.draw, forest.size * 3).reshape(-1, 3).softmax(-1)
    ended = bools(*flags(data.draw, forest.size))
    out = ppoc(episodes, **x, policy=policy, ended=ended, gamma=0.9, lam=0.8, deliberation_cost=0.1)
    released = ppoc(
        episodes, **x, policy=policy, ended=ended, gamma=0.9, lam=0.8, deliberation_cost=0.1, baseline="option"
    )
    assert torch.equal(released["action"].advantage, out["action"].advantage)
    torch.testing.assert_close(released["option"].advantage, out["action"].advantage)
    expected = (policy * x["value"]).sum(-1)
    torch.testing.assert_close(out["option"].advantage + expected, out["action"].target["value"])
    for row in forest.slots.tensor_split(episodes.offsets[1:-1]):
        for before, here in zip([-1, *row.tolist()], row.tolist(), strict=False):
            first = before < 0
            assert out["option"].weight[here] == float(first or bool(ended[before]))
            assert out["termination"].weight[here] == float(not first)
            gain = 0 if first else float(expected[here] - x["value"][here, x["option"][before]] - 0.1)
            assert math.isclose(out["termination"].advantage[here], gain, abs_tol=1e-12)
    for credit in out.values():
        torch.testing.assert_close(torch.stack(list(credit.terms.values())).sum(0), credit.advantage)


def test_ppoc_option_credit_knows_the_better_option() -> None:
    """With exact values the action's advantage is 0 and tells nothing of the choice; the option's credit does."""
    x = {"value": doubles([1, 3], [1, 3]), "policy": doubles([0.5, 0.5], [0.5, 0.5]), "option": ints(0, 1)}
    episodes, reward = Spans([0, 1, 2]), doubles(1, 3)
    out = ppoc(episodes, reward=reward, ended=bools(1, 1), **x)
    near(out["action"].advantage, 0, 0)
    near(out["option"].advantage, -1, 1)
    released = ppoc(episodes, reward=reward, ended=bools(1, 1), **x, baseline="option")
    near(released["option"].advantage, 0, 0)


@given(forest=forests(), data=st.data())
def test_dac_levels_are_gae_on_their_values(forest: Forest, data: st.DataObject) -> None:
    episodes, x = forest.tree["episode"], stream(data.draw, forest)
    arrival = columns(data.draw, forest.size * 3).reshape(-1, 3).softmax(-1)
    out = dac(episodes, **x, arrival=arrival, gamma=0.9, lam=0.8)
    value, option = x.pop("value"), x.pop("option")
    high = gae(episodes, **x, value=(arrival * value).sum(-1), gamma=0.9, lam=0.8)
    low = gae(episodes, **x, value=value[torch.arange(forest.size), option], gamma=0.9, lam=0.8)
    torch.testing.assert_close(out["option"].advantage, high.advantage)
    torch.testing.assert_close(out["action"].advantage, low.advantage)
    sure = dac(episodes, **x, value=value, option=option, arrival=torch.nn.functional.one_hot(option, 3).double())
    torch.testing.assert_close(sure["option"].advantage, sure["action"].advantage)


def test_arrival_keeps_autograd_and_sums_to_one() -> None:
    termination, logits = doubles(0.25, 1.0).requires_grad_(), doubles([0.1, 0.2], [1, -1]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda b, z: arrival_probability(termination=b, policy=z.softmax(-1), previous=ints(1, 0)),
        (termination, logits),
    )
    p = arrival_probability(termination=termination, policy=logits.softmax(-1), previous=ints(1, 0))
    torch.testing.assert_close(p.sum(-1), doubles(1, 1))
    torch.testing.assert_close(p[1], logits.softmax(-1)[1])  # where an episode starts, β is 1


# ---- FeUdal, MAXQ, Director


def test_feudal_worker_adds_the_return_of_the_intrinsic_reward() -> None:
    episodes = Spans([0, 3, 4])
    x = {"reward": doubles(1, 0, 2, 3), "intrinsic": doubles(0.5, 1, 0, 0.2), "worker_value": doubles(0, 1, 0, 1)}
    out = feudal(
        episodes,
        **x,
        manager_value=doubles(1, 1, 1, 1),
        terminated=bools(1, 0),
        final_manager_value=doubles(0, 5),
        final_worker_value=doubles(0, 7),
        gamma=0.9,
        worker_gamma=0.5,
        horizon=1,
    )
    manager = discounted_return(
        episodes, reward=x["reward"], gamma=0.9, terminated=bools(1, 0), final_value=doubles(0, 5)
    )
    torch.testing.assert_close(out["manager"].target["manager"], manager)
    near(out["worker"].target["worker"], 2, 1.5, 2, 6.6, digits=9)
    near(out["worker"].advantage, 2, 0.5, 2, 5.6, digits=9)
    assert out["manager"].weight.tolist() == [1, 1, 0, 0]
    for credit in out.values():
        torch.testing.assert_close(torch.stack(list(credit.terms.values())).sum(0), credit.advantage)


def test_feudal_gradient_reaches_the_goal_alone() -> None:
    state, goal = FEUDAL_STATE.clone().requires_grad_(), FEUDAL_GOAL[:3].clone()
    goal = torch.cat([goal, doubles([1, 1])]).requires_grad_()
    transition_cosine(one(4), state=state, goal=goal, horizon=2).sum().backward()
    assert state.grad is None
    assert goal.grad is not None and goal.grad.isfinite().all()
    assert (goal.grad[:2] != 0).any() and (goal.grad[2:] == 0).all()


@given(forest=forests(), data=st.data())
def test_feudal_stays_in_its_episode_in_any_order(forest: Forest, data: st.DataObject) -> None:
    episodes = forest.tree["episode"]
    state, goal = (columns(data.draw, 2 * forest.size).reshape(-1, 2) for _ in range(2))
    intrinsic = feudal_intrinsic(episodes, state=state, goal=goal, horizon=2)
    cosine = transition_cosine(episodes, state=state, goal=goal, horizon=2)
    for row in forest.slots.tensor_split(episodes.offsets[1:-1]):
        alone = one(len(row))
        x = {"state": state[row], "goal": goal[row], "horizon": 2}
        torch.testing.assert_close(intrinsic[row], feudal_intrinsic(alone, **x))
        torch.testing.assert_close(cosine[row], transition_cosine(alone, **x))


def test_maxq_bars_children_and_ends_with_the_task() -> None:
    x: dict[str, Any] = {"duration": ints(2, 2), "gamma": 0.5, "terminated": bools(0, 1)}
    target = maxq_target(
        **x, next_value=doubles([1, 9], [1, 9]), next_completion=doubles([3, -math.inf], [3, -math.inf])
    )
    near(target.completion, 1, 0)
    with pytest.raises(DataError, match="next_completion of transition 0 is -inf"):
        maxq_target(**x, next_value=doubles([1], [1]), next_completion=doubles([-math.inf], [0]))


@given(forest=forests(), data=st.data())
def test_director_manager_is_gae_on_its_blocks(forest: Forest, data: st.DataObject) -> None:
    """With certain continues: GAE of mean rewards over the blocks, in any order of the items."""
    episodes, segments = forest.tree["episode"], forest.tree["segment"]
    nested = forest.tree.within("segment", "episode")
    reward, ones = columns(data.draw, forest.size), torch.ones(forest.size, dtype=torch.float64)
    value, final = columns(data.draw, segments.n), columns(data.draw, episodes.n)
    credit = director_manager(
        forest.tree, reward=reward, cont=ones, next_cont=ones, value=value, final_value=final, gamma=0.9, lam=0.8
    )
    expected = gae(nested, reward=segments.reduce(reward, "mean"), value=value, gamma=0.9, lam=0.8, final_value=final)
    torch.testing.assert_close(credit.advantage, expected.advantage)
    torch.testing.assert_close(credit.weight, 0.9 ** nested.position.double())


# ---- errors and sizes


def test_bad_input_is_named() -> None:
    nan = doubles(0, 0, math.nan)
    zero = torch.zeros(3, 2, dtype=torch.float64)
    option = ints(0, 1, 0)
    x: dict[str, Any] = {"option": option, "q": zero, "next_q": zero, "next_termination": zero}
    with pytest.raises(DataError, match="reward of transition 2 is nan"):
        option_critic(**x, reward=nan, terminated=bools(0, 0, 1))
    unread = {**x, "next_q": torch.stack([nan, nan], -1)}
    option_critic(**unread, reward=zero[:, 0], terminated=bools(0, 0, 1))
    with pytest.raises(DataError, match="next_value of transition 2"):
        option_critic(**unread, reward=zero[:, 0], terminated=bools(0, 0, 0))
    episodes = Spans([0, 1, 3])
    y: dict[str, Any] = {"value": zero, "option": option, "policy": zero, "ended": bools(0, 0, 0)}
    with pytest.raises(DataError, match=r"reward of episode 1 \(item 2\) is nan"):
        ppoc(episodes, reward=nan, **y)
    with pytest.raises(DataError, match="episode 0 was truncated"):
        ppoc(episodes, reward=zero[:, 0], terminated=bools(0, 0), **y)
    with pytest.raises(DataError, match="value of episode 1"):
        dac(episodes, reward=zero[:, 0], value=unread["next_q"], option=option, arrival=zero)
    with pytest.raises(DataError, match="state of episode 1"):
        feudal_intrinsic(episodes, state=unread["next_q"], goal=zero)
    tree = SpanTree({"episode": episodes, "segment": (Spans([0, 1, 2, 3]), "episode")})
    with pytest.raises(DataError, match="q of episode 1"):
        option_q_target(tree, reward=zero[:, 0], q=unread["next_q"])
    with pytest.raises(DataError, match="reward of decision 1"):
        hdqn_target(episodes, reward=nan, next_q=zero[:2], terminated=bools(0, 0))
    with pytest.raises(DataError, match="cont of episode 1"):
        director_manager(tree, reward=zero[:, 0], cont=nan, next_cont=nan, value=zero[:, 0], final_value=zero[:2, 0])


def test_float32_and_empty_batches() -> None:
    small = {name: x.float() if x.is_floating_point() else x for name, x in TRANSITION.items()}
    assert all(credit.advantage.dtype == torch.float32 for credit in option_critic(**small).values())
    none, empty = Spans([0]), torch.zeros(0, 2)
    x: dict[str, Any] = {"reward": empty[:, 0], "value": empty, "option": torch.zeros(0, dtype=torch.int64)}
    levels: list[Credit] = [
        *ppoc(none, **x, policy=empty, ended=bools()).values(),
        *dac(none, **x, arrival=empty).values(),
    ]
    assert all(len(credit.advantage) == 0 for credit in levels)
    assert len(feudal_intrinsic(none, state=empty, goal=empty)) == 0
    assert len(transition_cosine(none, state=empty, goal=empty)) == 0
