"""Goal-conditioned values, the length-normalised goal representation, and Gaussian policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from echelon.nets.mlp import MLP, EnsembleMLP


def length_normalize(x: Tensor) -> Tensor:
    """Scale x [..., D] to Euclidean length sqrt(D)."""
    return x / x.norm(dim=-1, keepdim=True) * math.sqrt(x.shape[-1])


class GoalRepresentation(nn.Module):
    """phi([s; g]): an MLP with layer norm, then length sqrt(dim). Source: HIQL (arXiv 2307.11949)."""

    def __init__(self, observation_dim: int, hidden: Sequence[int], dim: int):
        super().__init__()
        self.mlp = MLP([2 * observation_dim, *hidden, dim], layer_norm=True)

    def forward(self, observation: Tensor, goal: Tensor) -> Tensor:
        """Map s [..., O] and g [..., O] to [..., dim]."""
        return length_normalize(self.mlp(torch.cat([observation, goal], -1)))


class GoalValue(nn.Module):
    """An ensemble of scalar functions of one input vector, e.g. V([s; g]), V([s; phi]) or Q([s; g; a])."""

    def __init__(self, input_dim: int, hidden: Sequence[int], members: int = 2):
        super().__init__()
        self.heads = EnsembleMLP(members, [input_dim, *hidden, 1], layer_norm=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate `inputs` [..., D_i] and return values [members, ...]."""
        return self.heads(torch.cat(inputs, -1)).squeeze(-1)


class GaussianPolicy(nn.Module):
    """A diagonal Gaussian whose mean is an MLP; its standard deviation is 1, or a learned vector.

    No layer norm; the last layer starts with variance scale 0.01, so that initial means are near 0.
    """

    LOG_STD_RANGE = (-5.0, 2.0)

    def __init__(self, input_dim: int, hidden: Sequence[int], action_dim: int, constant_std: bool = True):
        super().__init__()
        self.mlp = MLP([input_dim, *hidden, action_dim], final_scale=1e-2)
        self.log_std = None if constant_std else nn.Parameter(torch.zeros(action_dim))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate `inputs` [..., D_i] and return the mean action [..., A]."""
        return self.mlp(torch.cat(inputs, -1))

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """Log-density [...] of `action` [..., A] in nats under the Gaussian around `mean`."""
        # float32 even under autocast: a log-density near its maximum is a small difference of large numbers
        error, constant = action.to(mean.dtype) - mean, 0.5 * action.shape[-1] * math.log(2 * math.pi)
        if self.log_std is None:
            return -0.5 * error.square().sum(-1) - constant
        log_std = self.log_std.clamp(*self.LOG_STD_RANGE)
        return -0.5 * (error * torch.exp(-log_std)).square().sum(-1) - log_std.sum() - constant
