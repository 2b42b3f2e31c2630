"""Generate, judge, select: a planner as three choices that systems make separately.

A generator proposes candidates for the next aim (states of the data, samples of a diffusion model), a judge scores them
(distances in an embedding, a value function, a classifier), and `select` takes the best or the mean of the k best.
`plan` puts them together, several times over if wanted: each round plans on the way to the aim of the round before.

Legend: B rows (streams), N candidates a row, E the shape of one state, goal or embedding of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from echelon.errors import UsageError


class Judgement(NamedTuple):
    """`scores` [B, N] of the candidates, higher is better and -inf discards; `goal` [B], the score of no subgoal."""

    scores: Tensor
    goal: Tensor


class Choice(NamedTuple):
    """`aim` [B, *E], the goal or the mean of the candidates `chosen` int64[B, k], best first, -1 for none."""

    aim: Tensor
    chosen: Tensor


Generate = Callable[[Tensor, Tensor], Tensor]
"""(state, goal [B, *E]) -> candidates: [B, N, *E], or [N, *E] where every row has the same."""
Judge = Callable[[Tensor, Tensor, Tensor], Judgement]
"""(state [B, *E], candidates as generated, goal [B, *E]) -> their scores."""


def select(candidates: Tensor, goal: Tensor, judgement: Judgement, k: int = 1) -> Choice:
    """The mean of the `k` best candidates; the goal itself where its own score is larger than the best one's.

    `candidates` [B, N, *E] or [N, *E], `goal` [B, *E]. Discarded candidates never count, so that fewer than `k` may be
    averaged; where none is left the goal is the choice. A tie between goal and candidate goes to the candidate, of the
    best candidates the first is the one.
    """
    if k < 1:
        raise UsageError(f"k = {k}: at least one candidate has to be selected")
    shared = candidates.dim() == goal.dim()
    n = candidates.shape[0 if shared else 1]
    shape = list(judgement.scores.shape)
    if shape != [len(goal), n]:
        raise UsageError(f"{n} candidates of {len(goal)} rows need scores of that shape, got {shape}")
    if n == 0:
        return Choice(goal, torch.full((len(goal), 1), -1, device=goal.device))
    if min(k, n) == 1:  # of equal ones the first, which `topk` does not promise
        scores, index = judgement.scores.max(dim=1, keepdim=True)
    else:
        scores, index = judgement.scores.topk(min(k, n), dim=1)
    chosen = scores > -torch.inf
    chosen &= (judgement.goal <= scores[:, 0])[:, None]
    row = torch.arange(len(goal), device=goal.device)[:, None]
    picked = candidates[index] if shared else candidates[row, index]
    ones = (1,) * (goal.dim() - 1)
    counted = chosen.view(*chosen.shape, *ones)
    mean = picked.masked_fill(~counted, 0).sum(1) / counted.sum(1).clamp(min=1)
    some = chosen.any(1)
    return Choice(torch.where(some.view(-1, *ones), mean, goal), index.masked_fill(~chosen, -1))


def plan(state: Tensor, goal: Tensor, generate: Generate, judge: Judge, k: int = 1, rounds: int = 1) -> Choice:
    """What to aim for on the way from `state` to `goal` [B, *E]; a further round plans on the way to the last aim."""
    if rounds < 1:
        raise UsageError(f"rounds = {rounds}: a plan takes at least one")
    choice = Choice(goal, torch.full((len(goal), 1), -1, device=goal.device))
    for _ in range(rounds):
        candidates = generate(state, choice.aim)
        choice = select(candidates, choice.aim, judge(state, candidates, choice.aim), k)
    return choice


class ReachableThenUseful:
    """Judge by a goal-conditioned value: discard what lies too far away, then prefer what is near the goal.

    `value(s, g)` takes [M, *E] twice and returns [M]. A candidate w is discarded where V(s, w) < `reach`; its score is
    V(w, g), that of the goal itself V(s, g). Source: HECRL (arXiv 2602.02722).
    """

    def __init__(self, value: Callable[[Tensor, Tensor], Tensor], reach: float):
        self.value, self.reach = value, reach

    def __call__(self, state: Tensor, candidates: Tensor, goal: Tensor) -> Judgement:
        """Scores for `state`, `goal` [B, *E] and `candidates` [B, N, *E] or [N, *E]."""
        b = len(goal)
        own = candidates if candidates.dim() > goal.dim() else candidates.expand(b, *candidates.shape)
        n = own.shape[1]
        flat = own.flatten(0, 1)
        reached = self.value(state.repeat_interleave(n, 0), flat).view(b, n)
        useful = self.value(flat, goal.repeat_interleave(n, 0)).view(b, n)
        return Judgement(useful.masked_fill(reached < self.reach, -torch.inf), self.value(state, goal))
