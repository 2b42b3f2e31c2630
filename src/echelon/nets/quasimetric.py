"""Quasimetrics: distances with d(x, x) = 0 and the triangle inequality, but without symmetry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from echelon.nets.mlp import MLP


def union_length(start: Tensor, end: Tensor) -> Tensor:
    """Length [...] of the union of the intervals [start_k, end_k] of the last axis, [..., K]; empty where end <= start.

    By left end, each interval adds what lies beyond the furthest right end before it.
    """
    start, order = start.sort(-1)
    end = torch.maximum(end.gather(-1, order), start)
    reached = torch.cat([start[..., :1], end.cummax(-1).values[..., :-1]], -1)
    return (end - torch.maximum(start, reached)).relu().sum(-1)


class IntervalQuasimetric(nn.Module):
    """d(x, y) of representations: a convex mix, learned, of the mean and the maximum over groups of intervals.

    Group c of `group` dimensions gives the length of the union of [x_k, y_k]. Source: IQE (arXiv 2211.15120).
    """

    def __init__(self, group: int = 8):
        super().__init__()
        self.group = group
        self.mix = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map x and y [..., D] to distances [...]; D is a multiple of `group`."""
        lengths = union_length(x.unflatten(-1, (-1, self.group)), y.unflatten(-1, (-1, self.group)))
        share = torch.sigmoid(self.mix)
        return share * lengths.mean(-1) + (1 - share) * lengths.amax(-1)


class QuasimetricValue(nn.Module):
    """d(s, g) = d(phi(s), phi(g)), the number of steps from s to g; one phi, an MLP with layer norm, serves both."""

    def __init__(self, observation_dim: int, hidden: Sequence[int], dim: int, group: int = 8):
        super().__init__()
        self.phi = MLP([observation_dim, *hidden, dim], layer_norm=True)
        self.distance = IntervalQuasimetric(group)

    def forward(self, observation: Tensor, goal: Tensor) -> Tensor:
        """Map s and g [..., O] to distances [...]."""
        return self.distance(self.phi(observation), self.phi(goal))
