"""Nearest-neighbour mid-points: plan through states of the data in a space where distance is time.

A mid-point between here and the goal has the smallest larger distance to the two. Halving the way a few times gives an
aim so near that the direction to it can be trusted. Source: HILP (arXiv 2402.15567).
"""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.hierarchy.planning.select import Judgement, plan


def midpoint_judge(here: Tensor, candidates: Tensor, aim: Tensor) -> Judgement:
    """Score -max(||w - here||, ||w - aim||) of points w: `candidates` [N, D] or [B, N, D], `here`, `aim` [B, D].

    Going on without a mid-point has the score -inf: there always is one, as long as there are candidates.
    """
    if candidates.dim() == 2:
        ends = torch.cdist(torch.cat([here, aim]), candidates).unflatten(0, (2, len(here)))
    else:
        ends = (candidates - torch.stack([here, aim])[:, :, None]).norm(dim=-1)
    return Judgement(-torch.maximum(ends[0], ends[1]), torch.full_like(here[:, 0], -torch.inf))


def nearest_midpoint(here: Tensor, goal: Tensor, examples: Tensor, neighbours: int, rounds: int) -> Tensor:
    """The aim [B, D] after `rounds` halvings of the way from `here` to `goal` [B, D].

    Each round the aim becomes the mean of the `neighbours` best mid-points among `examples` [N, D] (all where there are
    fewer). Without examples or rounds it is the goal. Memory grows with B * N.
    """
    if rounds == 0:
        return goal
    return plan(here, goal, lambda state, aim: examples, midpoint_judge, neighbours, rounds).aim
