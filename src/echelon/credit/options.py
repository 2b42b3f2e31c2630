"""Credit of options and other classic hierarchies: when to stop, what to choose next, how to act meanwhile.

An option w holds from its choice to its termination, which β(s, w) draws on arrival in a state. Tables over options are
[N, O]; a `policy` over options, π_Ω(w|s), is [N, O] too. Functions without spans take transitions (s, w, a, r, s') from
replay; `terminated`, bool, says that the episode ended in s' for good.

A termination is no sampled action: its credit is the factor of β itself, so that its loss is -(advantage · β).

Legend: N items (steps or transitions), O options, n episodes, K decisions (the spans in which an option held).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from echelon.credit.credit import Credit, finite, sum_of
from echelon.credit.returns import discounted_return, gae, n_step_return, smdp_return
from echelon.credit.segments import boundaries
from echelon.spans import Spans, SpanTree

# ---- values of options


def option_value(q: Tensor, policy: Tensor | None = None) -> Tensor:
    """V(s) = max_w Q(s, w), or Σ_w π_Ω(w|s) · Q(s, w): [N, O] → [N]."""
    return q.amax(-1) if policy is None else (policy * q).sum(-1)


def continuation_value(
    q: Tensor, termination: Tensor, *, policy: Tensor | None = None, deliberation_cost: float = 0.0
) -> Tensor:
    """U(s, w) = (1 - β) · Q(s, w) + β · (V(s) - η): the value of arriving in s with option w running, for every w.

    q, termination β(s, w): [N, O] → [N, O]; V is `option_value`; η the deliberation cost, paid to choose anew. Sources:
    Sutton, Precup & Singh 1999; η: arXiv 1709.04571.
    """
    return (1 - termination) * q + termination * (option_value(q, policy)[:, None] - deliberation_cost)


def intra_option_target(
    *,
    reward: Tensor,
    terminated: Tensor,
    next_q: Tensor,
    next_termination: Tensor,
    policy: Tensor | None = None,
    gamma: float = 0.99,
    deliberation_cost: float = 0.0,
) -> Tensor:
    """Targets of Q(s, w) from one step, for every option at once: r + γ · (1 - terminated) · U(s', w), [N, O].

    reward, terminated: [N]; next_q, next_termination: [N, O], at s'. A column counts where its option would have taken
    the action: weigh it by 1[π_w(s) = a], or by π_w(a|s) / μ(a|s) where options are stochastic. Off-policy, biased by
    next_q. Source: Sutton, Precup & Singh 1999.
    """
    finite("transition", None, reward=reward)
    after = continuation_value(next_q, next_termination, policy=policy, deliberation_cost=deliberation_cost)
    after = torch.where(terminated[:, None], 0, after)
    finite("transition", None, next_value=after)
    return reward[:, None] + gamma * after


def interruptions(decisions: Spans, *, q: Tensor, option: Tensor) -> Spans:
    """The decisions, cut wherever the running option had become worse than the best: Q(s, w) < max_w' Q(s, w').

    q: [N, O]; option: int [N], the one running. Each piece is an execution of its option too, so that targets computed
    on them value the interrupting policy, which is never worse. Source: Sutton, Precup & Singh 1999.
    """
    return boundaries(_of(q, option) < option_value(q), decisions)


def option_q_target(
    tree: SpanTree,
    *,
    reward: Tensor,
    q: Tensor,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
    policy: Tensor | None = None,
    gamma: float | Tensor = 0.99,
) -> Tensor:
    """Semi-MDP targets of Q(s, w) of every decision, R_k + γ^d · V(s after it): [K].

    tree: `episode` > `segment`, the decisions, as recorded or from `interruptions`. reward [N]; q, policy [N, O] at
    every step, V being `option_value`: Q-learning without a policy over options, else expected Sarsa. terminated, [n];
    final_value, [n], V after a truncated episode. Decisions from replay take `smdp_target`. Biased by q. Source:
    Sutton, Precup & Singh 1999.
    """
    segments, nested = tree["segment"], tree.within("segment", "episode")
    finite("episode", tree["episode"], reward=reward, q=q)
    earned, discount = smdp_return(segments, reward=reward, gamma=gamma)
    start_value = option_value(q, policy)[segments.starts]
    return n_step_return(
        nested,
        reward=earned,
        value=start_value,
        n=1,
        gamma=discount,
        terminated=terminated,
        final_value=final_value,
    )


# ---- option-critic, PPOC, DAC


def termination_credit(
    *,
    q: Tensor,
    option: Tensor,
    terminated: Tensor | None = None,
    policy: Tensor | None = None,
    cost: float = 0.01,
) -> Credit:
    """Termination gradient: the factor of β(s, w) is V(s) - Q(s, w) - cost, 0 where the episode is over.

    q, policy: [N, O] in the states where β is evaluated, in theory those entered; option: int [N], the one running. V
    is `option_value`. cost: a margin ξ or deliberation cost η that keeps options from ending at a tie. Loss: -(A · β).
    Biased by q. Sources: arXiv 1609.05140; cost: arXiv 1709.04571.
    """
    if terminated is not None:
        q = torch.where(terminated[:, None], 0, q)
    finite("transition", None, q=q)
    terms = {"best": option_value(q, policy), "option": -_of(q, option), "cost": torch.full_like(q[:, 0], -cost)}
    alive = torch.ones_like(q[:, 0]) if terminated is None else (~terminated).to(q.dtype)
    terms = {name: alive * column for name, column in terms.items()}
    return Credit(sum_of(terms), weight=alive, terms=terms)


def option_critic(
    *,
    reward: Tensor,
    option: Tensor,
    q: Tensor,
    next_q: Tensor,
    next_termination: Tensor,
    terminated: Tensor,
    termination_q: Tensor | None = None,
    policy: Tensor | None = None,
    gamma: float = 0.99,
    margin: float = 0.01,
    deliberation_cost: float = 0.0,
) -> dict[str, Credit]:
    """Option-critic: "action" A = y - Q(s, w), y = r + γ · U(s', w), and "termination", `termination_credit` in s'.

    Shapes: reward, option (int), terminated [N]; q = Q(s, .), next_q = Q(s', .), from a slow copy as released,
    next_termination β(s', .), policy [N, O]. Target: y, head "q", for Q(s, w). The deliberation cost η enters y and
    the termination, the margin ξ the latter alone.

    The released PyTorch code evaluates β in s, not in the state entered: termination_q = q then. One step, biased by
    next_q; A2OC sums n steps of `deliberation_reward` up to V or Q(s', w). Watch the options'
    entropy and durations: all may collapse to one, or to one step. Sources: arXiv 1609.05140, 1709.04571.
    """
    finite("transition", None, q=q)
    target = intra_option_target(
        reward=reward,
        terminated=terminated,
        next_q=next_q,
        next_termination=next_termination,
        policy=policy,
        gamma=gamma,
        deliberation_cost=deliberation_cost,
    )
    y, baseline = _of(target, option), _of(q, option)
    termination = termination_credit(
        q=next_q if termination_q is None else termination_q,
        option=option,
        terminated=terminated,
        policy=policy,
        cost=margin + deliberation_cost,
    )
    action = Credit(y - baseline, {"q": y}, terms={"target": y, "baseline": -baseline})
    return {"action": action, "termination": termination}


def deliberation_reward(
    episodes: Spans, *, reward: Tensor, ended: Tensor, cost: float, terminated: Tensor | None = None
) -> Tensor:
    """The rewards, [N], less the cost at steps after which the option ended, `ended`, bool [N].

    terminated: bool [n], default all; the step with which the episode is over costs nothing. Source: A2OC, arXiv
    1709.04571. The released PPOC charges that step too.
    """
    over = torch.ones_like(episodes.lengths, dtype=torch.bool) if terminated is None else terminated
    paid = ended & ~torch.zeros_like(ended).index_copy_(0, episodes.ends, over)
    return reward - cost * paid.to(reward.dtype)


def ppoc(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    option: Tensor,
    policy: Tensor,
    ended: Tensor,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
    gamma: float = 0.99,
    lam: float = 0.95,
    deliberation_cost: float = 0.0,
    baseline: Literal["policy", "option"] = "policy",
) -> dict[str, Credit]:
    """PPOC: GAE along the stream of V(s_t, w_t), across switches, and from it credit of the choices and terminations.

        "action":       A_t, `gae` of the rewards less the deliberation cost; target of V(s_t, w_t), head "value"
        "option":       A_t + V(s_t, w_t) - Σ_w π_Ω(w|s_t) · V(s_t, w), weight 1 where w_t was chosen at s_t
        "termination":  of β(s_t, w_{t-1}), `termination_credit` with π_Ω, weight 0 where an episode starts

    Shapes: value V(s_t, .), policy π_Ω(.|s_t) [N, O]; reward, option (int), ended (bool: the option ended on arrival
    in s_{t+1}) [N]; terminated, final_value V(s', w') [n]. Biased as GAE is.

    Released code: the option policy takes A_t itself (baseline "option"), whose mean given w is 0 for an exact V, at
    every step; A is whitened over the batch before it is parted by option; β is evaluated at s_t for w_t; rewards are
    divided by 10. Source: arXiv 1712.00004.
    """
    finite("episode", episodes, value=value)
    paid = deliberation_reward(episodes, reward=reward, ended=ended, cost=deliberation_cost, terminated=terminated)
    held = _of(value, option)
    action = gae(
        episodes, reward=paid, value=held, gamma=gamma, lam=lam, terminated=terminated, final_value=final_value
    )
    expected = held if baseline == "option" else option_value(value, policy)
    first = episodes.position == 0
    chosen = first | episodes.shift(ended, -1)
    terms = {**action.terms, "option": held, "baseline": -expected}
    arrived = episodes.shift(option, -1)
    return {
        "action": action,
        "option": Credit(sum_of(terms), weight=chosen, terms=terms),
        "termination": termination_credit(
            q=value, option=arrived, terminated=first, policy=policy, cost=deliberation_cost
        ),
    }


def arrival_probability(*, termination: Tensor, policy: Tensor, previous: Tensor) -> Tensor:
    """DAC: p(w | w_prev, s) = (1 - β(s, w_prev)) · 1[w = w_prev] + β(s, w_prev) · π_Ω(w|s), [N, O].

    termination β(s, w_prev), previous (int): [N]; policy: [N, O]. Where an episode starts β is 1. Keeps autograd: its
    log at the option taken is the log-probability of the high level's action. Source: arXiv 1904.12691.
    """
    same = F.one_hot(previous, policy.shape[-1]).to(policy.dtype)
    return (1 - termination)[:, None] * same + termination[:, None] * policy


def dac(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    option: Tensor,
    arrival: Tensor,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> dict[str, Credit]:
    """DAC: the same steps seen as two processes, one that chooses options and one that acts, each with its own GAE.

        "option":  of log p(w_t | w_{t-1}, s_t), with values Σ_w p(w | w_{t-1}, s_t) · V(s_t, w)
        "action":  of log π(a_t | s_t, w_t), with values V(s_t, w_t)

    Shapes: reward, option (int) [N]; value V(s_t, .), arrival (`arrival_probability`) [N, O]; terminated, final_value
    Σ_w p · V [n], one for both. Terminations need no gradient of their own: p holds β. Biased as GAE is. Released code
    whitens each over the batch (ddof 1). Source: arXiv 1904.12691.
    """
    finite("episode", episodes, value=value, arrival=arrival)
    stream = {"option": option_value(value, arrival), "action": _of(value, option)}
    return {
        level: gae(
            episodes, reward=reward, value=v, gamma=gamma, lam=lam, terminated=terminated, final_value=final_value
        )
        for level, v in stream.items()
    }


# ---- FeUdal networks


def transition_cosine(episodes: Spans, *, state: Tensor, goal: Tensor, horizon: int = 10) -> Tensor:
    """cos(s_{t+c} - s_t, g_t), [N]: whether the state went where the goal pointed; 0 where the episode ends sooner.

    state, goal: [N, d]. Differentiable in the goal alone: the manager's loss is -(advantage · cosine). Source: arXiv
    1703.01161. Released re-implementations take the last state where the episode ends sooner.
    """
    finite("episode", episodes, state=state, goal=goal)
    moved = episodes.shift(state, horizon, state[episodes.ends]).detach() - state.detach()
    inside = episodes.position + horizon < episodes.expand(episodes.lengths)
    return torch.where(inside, F.cosine_similarity(moved, goal, dim=-1), 0)


def feudal_intrinsic(episodes: Spans, *, state: Tensor, goal: Tensor, horizon: int = 10) -> Tensor:
    """The worker's intrinsic reward, (1/c) Σ_{i=1}^{c} cos(s_t - s_{t-i}, g_{t-i}), [N]; 0 for i before the start.

    state, goal: [N, d]. Source: arXiv 1703.01161, which leaves the first c steps open; the released re-implementation
    repeats the first state and goal there.
    """
    finite("episode", episodes, state=state, goal=goal)
    total = state.new_zeros(episodes.size)
    for lag in range(1, min(horizon, episodes.longest - 1) + 1):
        moved = state - episodes.shift(state, -lag)
        cosine = F.cosine_similarity(moved, episodes.shift(goal, -lag), dim=-1)
        total = total + torch.where(episodes.position >= lag, cosine, 0)
    return (total / horizon).detach()


def feudal(
    episodes: Spans,
    *,
    reward: Tensor,
    intrinsic: Tensor,
    manager_value: Tensor,
    worker_value: Tensor,
    terminated: Tensor | None = None,
    final_manager_value: Tensor | None = None,
    final_worker_value: Tensor | None = None,
    horizon: int = 10,
    alpha: float = 0.5,
    gamma: float = 0.99,
    worker_gamma: float = 0.99,
) -> dict[str, Credit]:
    """FeUdal networks: "manager" A = R_t - V^M, "worker" A = R_t + α · R^I_t - V^W; targets A + V, heads as the levels.

    Shapes: reward, intrinsic (`feudal_intrinsic`), values [N]; terminated, final values [n]. R, R^I are returns, each
    level's with its own γ. The manager's advantage multiplies `transition_cosine` in place of a log-probability, and
    has weight 0 where the episode ends within c = horizon steps. Monte-Carlo: unbiased but for final values, noisy.
    Source: arXiv 1703.01161; a released re-implementation adds α · r^I_t of the step in place of its return.
    """
    finite("episode", episodes, manager_value=manager_value, worker_value=worker_value)
    returns = discounted_return(
        episodes, reward=reward, gamma=gamma, terminated=terminated, final_value=final_manager_value
    )
    inside = episodes.position + horizon < episodes.expand(episodes.lengths)
    manager = Credit(
        returns - manager_value, {"manager": returns}, inside, {"return": returns, "value": -manager_value}
    )
    extrinsic = discounted_return(
        episodes, reward=reward, gamma=worker_gamma, terminated=terminated, final_value=final_worker_value
    )
    bonus = alpha * discounted_return(episodes, reward=intrinsic, gamma=worker_gamma)
    terms = {"return": extrinsic, "intrinsic": bonus, "value": -worker_value}
    return {"manager": manager, "worker": Credit(sum_of(terms), {"worker": extrinsic + bonus}, terms=terms)}


# ---- h-DQN, MAXQ, Director


def hdqn_target(
    decisions: Spans, *, reward: Tensor, next_q: Tensor, terminated: Tensor, gamma: float = 0.975
) -> Tensor:
    """h-DQN's targets of the meta-controller: Σ r over the goal's duration + γ · max_g Q(s', g), [K].

    reward: [N], from the environment; next_q: [K, goals], where the goal ended; terminated: bool [K]. Unlike
    `smdp_target`, no discount within the duration and one γ after it. The controller's target is the one-step one of an
    intrinsic reward 1 on reaching the goal, which terminates it. Source: arXiv 1604.06057.
    """
    finite("decision", decisions, reward=reward)
    after = torch.where(terminated, 0, option_value(next_q))
    finite("decision", None, next_value=after)
    return decisions.reduce(reward) + gamma * after


class CompletionTargets(NamedTuple):
    """What C(i, s, a) and, for choosing, its pseudo-rewarded twin C~(i, s, a) should predict, [N] each."""

    completion: Tensor
    pseudo: Tensor


def maxq_target(
    *,
    duration: Tensor,
    next_value: Tensor,
    next_completion: Tensor,
    terminated: Tensor,
    next_pseudo: Tensor | None = None,
    pseudo_reward: Tensor | None = None,
    gamma: float = 0.99,
) -> CompletionTargets:
    """MAXQ targets of the completion function, after child a of task i took `duration` = k steps to s'.

        a* = argmax_a' C~(i, s', a') + V(a', s')
        C:  γ^k · (C(i, s', a*) + V(a*, s'))        C~:  γ^k · (R~_i(s') + C~(i, s', a*) + V(a*, s'))

    MAXQ-0 has no pseudo-rewards: C~ is C, and the target γ^k · V(i, s'). Shapes: duration, pseudo_reward R~ (paid on
    entering s'), terminated (bool: task i ends in s', whose value is 0) [N]; next_value V(., s'), next_completion,
    next_pseudo [N, children]; -inf bars a child. V of a composite child is the maximum of V + C over its own.
    Off-policy, biased by the tables; gives recursive, not hierarchical, optimality. Source: arXiv cs/9905014.
    """
    guide = next_completion if next_pseudo is None else next_pseudo
    best = (guide + next_value).argmax(-1)
    discount = gamma ** duration.to(next_value.dtype)
    plain, inner = (torch.where(terminated, 0, _of(table + next_value, best)) for table in (next_completion, guide))
    bonus = torch.zeros_like(inner) if pseudo_reward is None else pseudo_reward
    finite("transition", None, next_completion=plain, next_pseudo=inner, pseudo_reward=bonus)
    return CompletionTargets(discount * plain, discount * (bonus + inner))


def director_blocks(blocks: Spans, *, reward: Tensor, cont: Tensor, next_cont: Tensor) -> tuple[Tensor, Tensor]:
    """Director's manager rewards and continues of imagined blocks, [K] each: mean_i(Π_{j≤i} cont_j · r_i), Π next_cont.

    reward [N] of step i, from s_i to s_{i+1}; cont [N] the predicted probability that s_i goes on, next_cont that
    s_{i+1} does. Source: arXiv 2206.04114 and its code.
    """
    earned = blocks.reduce(_running_product(blocks, cont) * reward, "mean")
    return earned, _running_product(blocks, next_cont)[blocks.ends]


def director_manager(
    tree: SpanTree,
    *,
    reward: Tensor,
    cont: Tensor,
    next_cont: Tensor,
    value: Tensor,
    final_value: Tensor,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> Credit:
    """Director's manager: λ-returns over the blocks of one skill, of rewards and continues from `director_blocks`.

    tree: `episode` (one imagined trajectory) > `segment` (block) over N imagined steps. reward, cont, next_cont: [N];
    value: [K], of the state where a block starts; final_value: [n], of the last state. Items are blocks. Target: the
    return, head "value"; weight: γ^k · Π cont up to the block, the chance to reach it. Biased by the world model. The
    worker: `lambda_return` within each block, whose final value is that of its last state under the block's own goal.
    Source: arXiv 2206.04114; its actor divides A by a running std of the returns.
    """
    finite("episode", tree["episode"], reward=reward, cont=cont, next_cont=next_cont)
    nested = tree.within("segment", "episode")
    earned, alive = director_blocks(tree["segment"], reward=reward, cont=cont, next_cont=next_cont)
    credit = gae(nested, reward=earned, value=value, gamma=gamma * alive, lam=lam, final_value=final_value)
    entered = nested.shift(alive, -1, cont[tree["episode"].starts])
    weight = _running_product(nested, gamma * entered) / gamma
    return Credit(credit.advantage, credit.target, weight, credit.terms)


def cosine_max(goal: Tensor, state: Tensor) -> Tensor:
    """Director's worker reward, g · s / max(|g|, |s|)²: [..., d] → [...]; unlike the cosine it wants equal lengths."""
    longest = torch.maximum(goal.norm(dim=-1), state.norm(dim=-1)) + 1e-12
    return (goal * state).sum(-1) / longest**2


def _of(table: Tensor, option: Tensor) -> Tensor:
    """[N, O], int [N] → [N]: the column of each row's option."""
    return table.gather(-1, option[:, None])[:, 0]


def _running_product(spans: Spans, x: Tensor) -> Tensor:
    """Π of x from the start of the span to the item, itself included: [N]."""
    first = torch.where(spans.position == 0, x, 0)
    return spans.scan(first, spans.shift(x, 1), reverse=False)
