"""Goals and actions rewritten in hindsight, so that a high level learns from what its low level really did.

One interface: the n decisions as spans of N low-level items, candidate goals, a scorer → the goal. Legend: d size of a
state or goal, a of an action, C candidates a decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from echelon.spans import Spans


def goal_transition(goal: Tensor, state: Tensor, next_state: Tensor) -> Tensor:
    """HIRO's moving goal, a change of state that keeps its absolute target: h(s, g, s') = s + g - s', [..., d]."""
    return state + goal - next_state


def hiro_candidates(
    decisions: Spans,
    *,
    state: Tensor,
    next_state: Tensor,
    goal: Tensor,
    scale: float | Tensor,
    low: Tensor,
    high: Tensor,
    count: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Candidates for relabelling, [count + 2, n, d]: the goal itself, s_end - s_start, and draws around the latter.

    Shapes: state, next_state [N, d] of the low level; goal [n, d]; low, high [d], the box of goals, to which all are
    clipped. The draws are N(s_end - s_start, (0.5 · scale)²), scale the box's half width. Source: arXiv 1805.08296.
    """
    reached = next_state[decisions.ends] - state[decisions.starts]
    noise = torch.randn((count, *reached.shape), generator=generator, dtype=reached.dtype, device=reached.device)
    drawn = reached + 0.5 * scale * noise
    return torch.cat([goal[None], reached[None], drawn]).clamp(low, high)


def hiro_relabel(
    decisions: Spans,
    *,
    state: Tensor,
    action: Tensor,
    candidates: Tensor,
    policy: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """HIRO's off-policy correction: the candidate under which today's low level would most likely have acted so.

        argmax_g  -0.5 · Σ_i ||a_i - μ(s_i, g_i)||²,  g_{i+1} = h(s_i, g_i, s_{i+1})

    Shapes: state [N, d], action [N, a], candidates [C, n, d]; policy: (states [C, N, d], goals [C, N, d]) → means
    [C, N, a]. → (goals [n, d], their scores [C, n]). The first of equal candidates wins. The goal moves with the state:
    g_i = g + s_start - s_i, so no step depends on another. Biased: a maximum over few candidates under a deterministic
    policy stands for a posterior. Source: arXiv 1805.08296.
    """
    moved = decisions.expand(candidates.transpose(0, 1) + state[decisions.starts][:, None]).transpose(0, 1) - state
    error = (action - policy(state.expand_as(moved), moved)).square().sum(-1)
    scores = -0.5 * decisions.reduce(error.T.contiguous()).T
    best = scores.argmax(0)
    return candidates[best, torch.arange(decisions.n, device=best.device)], scores


class HindsightTransitions(NamedTuple):
    """M transitions of one level; state and next state are those of decision `source`.

    source: int64 [M].    action, goal: [M, d].    reward, discount: [M]; discount 0 where nothing follows.
    """

    source: Tensor
    action: Tensor
    goal: Tensor
    reward: Tensor
    discount: Tensor


def hindsight_draws(episodes: Spans, *, replays: int = 3, generator: torch.Generator | None = None) -> Tensor:
    """Decisions whose achieved states serve as hindsight goals, int64 [n, replays], for the n decisions of `episodes`.

    One draw serves a whole episode: `replays` - 1 uniform ones and always the last. Source: HAC's released code (3).
    """
    drawn = episodes.sample(torch.arange(episodes.n, device=episodes.device).repeat(replays - 1, 1).T, generator)
    return episodes.expand(torch.cat([drawn, episodes.ends[:, None]], -1))


def hac_transitions(
    *,
    proposed: Tensor,
    achieved: Tensor,
    goal: Tensor,
    tested: Tensor,
    hindsight: Tensor,
    threshold: float | Tensor,
    horizon: int,
    gamma: float = 0.98,
) -> HindsightTransitions:
    """The three kinds of transitions that hierarchical actor-critic stores for the n decisions of one level, in turn.

    1. hindsight action, all n: the action is what the level below achieved, or the proposal if it was reached;
    2. hindsight goals, n · K: as 1, towards states achieved in the same episode;
    3. subgoal test, where tested and missed: the proposal, reward -horizon, discount 0.
    Reward is -1 and discount gamma, both 0 where the goal is reached: achieved within `threshold` in every dimension.

    Shapes: proposed, achieved, goal [n, d]; tested bool [n]; hindsight int64 [n, K], see `hindsight_draws`; threshold a
    number or [d]. Biased towards the present low level, which 1 assumes optimal. Source: arXiv 1712.00948.
    """
    everyone = torch.arange(len(proposed), device=proposed.device)
    reached = ((achieved - proposed).abs() <= threshold).all(-1, keepdim=True)
    action, missed = torch.where(reached, proposed, achieved), (tested & ~reached[:, 0]).nonzero()[:, 0]
    source = torch.cat([everyone, everyone.repeat_interleave(hindsight.shape[1])])
    towards = torch.cat([goal, achieved[hindsight.flatten()]])
    running = ((achieved[source] - towards).abs() > threshold).any(-1).to(proposed.dtype)
    nothing = running.new_zeros(len(missed))
    return HindsightTransitions(
        torch.cat([source, missed]),
        torch.cat([action[source], proposed[missed]]),
        torch.cat([towards, goal[missed]]),
        torch.cat([-running, nothing - horizon]),
        torch.cat([gamma * running, nothing]),
    )
