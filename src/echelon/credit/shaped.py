"""Shaped credit: group advantages with something added (a second baseline, the reward of each action, a life cycle of
prompts), and a reward made of distances to milestones.

Legend: N items, n episodes (completions, trajectories, built systems), G groups. Where an item is an episode the first
argument is `groups`, its partition; rules over steps take a SpanTree with `group` > `episode`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite
from echelon.credit.groups import Singleton, grpo, normalise
from echelon.spans import Spans, SpanTree


def hbpo(
    groups: Spans,
    *,
    reward: Tensor,
    budget: Tensor,
    ceiling: Tensor,
    intra_coef: float = 1.0,
    where: Tensor | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Credit:
    """HBPO: how far the samples of one budget stay below their ceiling, plus the group's GRPO advantage.

        A_ij = intra_coef · (mean_j R_ij - ceiling_i) + (R_ij - mean R) / (std R + eps),  i: budget, j: its samples

    Shapes, all [N] completions: reward; budget, int, the tokens announced to the sample; ceiling, the reward that a
    right answer at exactly its budget would have, one number a budget. `where` as in `grpo`. Needs groups.
    The first term is never positive, the same for the whole subgroup, and no baseline: it depends on the samples'
    rewards and stays where all rewards are equal, so that a prompt nobody solves is pushed down by its ceilings.
    Source: arXiv 2507.15844. Released code: adds the first term twice (intra_coef 2), with π = 3.1416; to the only
    sample of a group it adds its raw reward and, by mistake, the first term of the sample before it.
    """
    inter = grpo(groups, reward=reward, where=where, ddof=ddof, eps=eps, singleton=singleton)
    known = reward if where is None else torch.where(where, reward, 0)
    finite("completion", None, ceiling=ceiling)
    subgroups = Spans.by_key(groups.ids, budget)
    intra = intra_coef * (subgroups.siblings(known, "mean", where=where) - ceiling)
    intra = (intra if where is None else torch.where(where, intra, 0)).to(inter.advantage.dtype)
    return Credit(inter.advantage + intra, weight=inter.weight, terms={"intra": intra, "inter": inter.advantage})


def hrpo(
    tree: SpanTree,
    *,
    outcome: Tensor,
    reward: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    combine: Literal["sum", "gate"] = "sum",
    equal_beta: float | None = None,
    ddof: int = 0,
    eps: float = 1e-6,
) -> Credit:
    """HRPO: the group advantage of what was built, plus the return to go of the rewards of each edit.

        A_it = (O_i - mean O) / (std O + eps) + β_i · Σ_{k≥t} γ^(k-t) · r_ik

    Shapes: outcome O [n], of the finished system; reward r [N], of each edit, absolute: normalised in the group, its
    penalties would lose their meaning. gamma 0 pays each edit its own reward alone.
    combine: "sum", or "gate", where the edits of an episode below the group's mean get the first term only.
    equal_beta: the β of groups whose outcomes are all equal (default: beta), where edits alone would decide.
    Needs groups. The first term is biased as `grpo`; the second has no baseline. Source: MasHost, arXiv 2506.08507:
    that both kinds of reward are mixed is published, the form and the constants here are reconstructed.
    """
    episodes, groups = tree["episode"], tree.within("episode", "group")
    finite("episode", None, outcome=outcome)
    finite("episode", episodes, reward=reward)
    group = grpo(groups, reward=outcome, ddof=ddof, eps=eps).advantage
    factor = torch.full_like(group, beta)
    if equal_beta is not None:
        equal = groups.reduce(outcome, "max") == groups.reduce(outcome, "min")
        factor = torch.where(groups.expand(equal), equal_beta, factor)
    if combine == "gate":
        factor = torch.where(group >= 0, factor, 0)
    edits = episodes.expand(factor) * episodes.scan(reward, gamma)
    group = episodes.expand(group)
    return Credit(group + edits, terms={"group": group, "edits": edits})


def hrpo_split(
    tree: SpanTree,
    *,
    outcome: Tensor,
    node_reward: Tensor,
    edge_reward: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    equal_beta: float | None = None,
    ddof: int = 0,
    eps: float = 1e-6,
) -> dict[str, Credit]:
    """`hrpo` for the two factors of an edit: "node", which agent, and "edge", its connections, each with own rewards.

    Each credit belongs to its own probability ratio, clipped apart: the joint ratio of many edges soon leaves the
    clipping range. Shapes: outcome [n], node_reward and edge_reward [N]. Source: arXiv 2506.08507, reconstructed.
    """
    rewards = {"node": node_reward, "edge": edge_reward}
    return {
        name: hrpo(
            tree, outcome=outcome, reward=reward, beta=beta, gamma=gamma, equal_beta=equal_beta, ddof=ddof, eps=eps
        )
        for name, reward in rewards.items()
    }


def worldrft(
    tree: SpanTree,
    *,
    reward: Tensor,
    gamma: float = 1.0,
    ddof: int = 0,
    eps: float = 0.0,
    singleton: Singleton = "zero",
) -> Credit:
    """WorldRFT: normalise the reward over the group at every point of time, then sum from the point to the end.

        z_ij = (r_ij - mean_i r_ij) / (std_i r_ij + eps),  A_ij = Σ_{t≥j} γ^(t-j) · z_it   (trajectory i, point j)

    Shapes: reward [N] points. Points where all trajectories earn the same count 0; of trajectories of unequal length,
    those that still run are compared. Needs groups of trajectories on the same clock. Each z is biased as `grpo`; the
    sum to go leaves out what a point cannot change. Terms: "now" z, and "later". Source: arXiv 2512.19133.
    """
    episodes = tree["episode"]
    finite("episode", episodes, reward=reward)
    points = Spans.by_key(tree["group"].ids, episodes.position)
    now = normalise(points, reward, ddof=ddof, eps=eps, singleton=singleton)
    advantage = episodes.scan(now, gamma)
    return Credit(advantage, terms={"now": now, "later": advantage - now})


def uvd_reward(
    before: Tensor,
    now: Tensor,
    final: Tensor,
    *,
    alpha: float = 5.0,
    beta: float = 3.0,
    final_reward: float = 6.0,
    eps: float = 0.2,
) -> Tensor:
    """UVD's reward of a step towards milestone i of m: [N].

        R = clip(alpha (D_i(o_{t-1}) - D_i(o_t)), -alpha, alpha) + beta 1[D_i(o_t) < eps] + final 1[D_m(o_t) < eps]

    before, now: [N], D_i, the distance to the milestone that is pursued in the step, before and after it, as a share
    of that between milestones i - 1 and i; final: [N], D_m(o_t), likewise to the last milestone; `final_reward` is what
    reaching it earns. Without the clip the first term telescopes: it is the difference of a potential while a milestone
    stays. With beta 0 and the last frame as the only milestone it is the reward of a final goal.
    Source: UVD (arXiv 2310.08581), appendix.
    """
    finite("step", None, before=before, now=now, final=final)
    nearer = (alpha * (before - now)).clamp(-alpha, alpha)
    return nearer + beta * (now < eps).to(nearer.dtype) + final_reward * (final < eps).to(nearer.dtype)


class LifeCycle(NamedTuple):
    """What `de_grpo` knows about the G prompts after a visit, each [G]. `smoothed` is the state to keep by prompt."""

    smoothed: Tensor  # s, the smoothed utility
    factor: Tensor  # d: 0 removed, `decay` cooling down, 1 explored or exploited
    margin: Tensor  # M, the mean gap between two rewards
    gate: Tensor  # what multiplies the group advantage


def de_grpo(
    groups: Spans,
    *,
    reward: Tensor,
    log_prob: Tensor,
    smoothed: Tensor,
    baseline: float | Tensor = 0.0,
    first_visit: Literal["utility", "discover", "literal"] = "utility",
    ties: Literal["skip", "literal"] = "skip",
    gate_min: float = 0.0,
    remove: float = 0.2,
    cool: float = 0.8,
    smoothing: float = 0.8,
    decay: float = 0.5,
    ddof: int = 1,
    eps: float = 1e-4,
) -> tuple[Credit, LifeCycle]:
    """DE-GRPO: the group advantage times a gate that follows how useful the prompt is and how often it was used.

        u = gap(R) · gap(l),  s ← 0.8 · s + 0.2 · u,  d = 0 if s < remove, decay if s > cool, else 1
        A_i = (R_i - mean) / (std + eps) · max(gate_min, tanh(d · (M - b))),  M = mean_{i<j} |R_i - R_j|

    gap: see `geometric_gap`. Shapes: reward, log_prob l = each answer's mean token log-probability [N]; smoothed s [G],
    NaN for a prompt never visited; baseline b [G] or a number. Needs groups; the gate makes the advantage biased.
    first_visit: s starts as u ("utility"), or as 0 with d = 1 ("discover") or with d as it comes ("literal").
    Source: FaVChat, arXiv 2503.09158. Released code: first_visit "literal", with which a prompt is removed at its first
    visit unless u >= 1; ties "literal"; gate_min -1, which lets b > M turn every advantage round. Removed prompts stay
    in its batch, where only the KL term still acts: their weight stays 1 here, drop them by `factor`.
    """
    finite("completion", None, log_prob=log_prob)
    group = grpo(groups, reward=reward, ddof=ddof, eps=eps).advantage
    utility = geometric_gap(groups, reward, ties=ties) * geometric_gap(groups, log_prob, ties=ties)
    visited = ~smoothed.isnan()
    now = smoothing * torch.where(visited, smoothed, 0) + (1 - smoothing) * utility
    if first_visit == "utility":
        now = torch.where(visited, now, utility)
    factor = torch.where(now < remove, 0.0, torch.where(now > cool, decay, 1.0)).to(group.dtype)
    if first_visit == "discover":
        factor = torch.where(visited, factor, 1)
    margin = _pair_mean(groups, reward, "all", torch.abs)[0].to(group.dtype)
    gate = (factor * (margin - baseline)).tanh().clamp(min=gate_min)
    gated = group * groups.expand(gate)
    return Credit(gated, terms={"group": group, "gate": gated - group}), LifeCycle(now, factor, margin, gate)


def geometric_gap(groups: Spans, x: Tensor, *, ties: Literal["skip", "literal"] = "skip", eps: float = 1e-6) -> Tensor:
    """exp(mean_{i<j} ln(|x_i - x_j| + eps)), the geometric mean distance in each group: [N] → [G]; 0 without a pair.

    ties: "skip" leaves equal pairs out, "literal" counts them as eps, so that of binary rewards little is left: 0.01
    for two right of four. O(Σ K²) for groups of K.
    """
    mean, any_pair = _pair_mean(groups, x, "unequal" if ties == "skip" else "all", lambda gap: (gap + eps).log())
    return torch.where(any_pair, mean.exp(), 0)


def _pair_mean(
    groups: Spans, x: Tensor, which: Literal["all", "unequal"], f: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(the mean of f(|x_i - x_j|) over the pairs of each group, 0 without one; whether there is one), both [G]."""
    pairs, other = groups.take(groups.ids)  # beside every item, a copy of its group
    gap = (pairs.expand(x) - x[other]).abs()
    use = pairs.ids != other if which == "all" else gap > 0
    count = groups.reduce(pairs.reduce(use))
    total = groups.reduce(pairs.reduce(torch.where(use, f(gap), 0)))
    return total / count.clamp(min=1), count > 0
