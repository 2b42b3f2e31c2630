"""Bilinear functions of two inputs: an inner product of two representations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from echelon.nets.mlp import EnsembleMLP


class BilinearCritic(nn.Module):
    """f(x, g) = phi(x) . psi(g) / sqrt(dim), an ensemble; phi and psi are MLPs with layer norm.

    With x = [s; a] it is the critic of contrastive RL (arXiv 2206.07568), scaled as in OGBench (arXiv 2410.20092).
    """

    def __init__(self, input_dim: int, goal_dim: int, hidden: Sequence[int], dim: int, members: int = 2):
        super().__init__()
        self.phi = EnsembleMLP(members, [input_dim, *hidden, dim], layer_norm=True)
        self.psi = EnsembleMLP(members, [goal_dim, *hidden, dim], layer_norm=True)
        self.scale = 1 / math.sqrt(dim)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        """Row by row: x [B, X] and goal [B, G] to [members, B]."""
        return (self.phi(x) * self.psi(goal)).sum(-1) * self.scale

    def pairs(self, x: Tensor, goal: Tensor) -> Tensor:
        """Every row with every goal: x [B, X] and goal [C, G] to [members, B, C]."""
        return self.phi(x) @ self.psi(goal).transpose(-1, -2) * self.scale
