"""Policies that are sampled and asked for log-probabilities: over choices, over vectors, over bounded vectors.

All read features [..., F]. `forward` gives the distribution's parameters in one tensor, which the other methods take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.nets.mlp import MLP, Activation

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Categorical(nn.Module):
    """Choices 0, …, n - 1; parameters are logits [..., n], actions int64 [...]."""

    def __init__(self, features: int, hidden: Sequence[int], choices: int, activation: Activation = torch.tanh):
        super().__init__()
        self.choices = choices
        self.mlp = MLP([features, *hidden, choices], final_scale=1e-4, activation=activation)

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        return self.mlp(features)

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw by the largest of logits plus Gumbel noise."""
        noise = torch.empty_like(logits).exponential_(generator=generator).log_()
        return (logits - noise).argmax(-1)

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable choice."""
        return logits.argmax(-1)

    def log_prob(self, logits: Tensor, action: Tensor) -> Tensor:
        """[...] in nats."""
        return logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, logits: Tensor) -> Tensor:
        """[...] in nats."""
        logp = logits.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def judged(self, logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and `entropy`, [...] each."""
        logp = logits.log_softmax(-1)
        return logp.gather(-1, action.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1)


class Gaussian(nn.Module):
    """Vectors [..., A] around a mean by an MLP, with a learned standard deviation for each number."""

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        size: int,
        activation: Activation = torch.tanh,
        log_std: float = 0.0,
    ):
        super().__init__()
        self.mlp = MLP([features, *hidden, size], final_scale=1e-4, activation=activation)
        self.log_std = nn.Parameter(torch.full((size,), log_std))

    def forward(self, features: Tensor) -> Tensor:
        """Means."""
        return self.mlp(features)

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean plus noise."""
        noise = torch.empty_like(mean).normal_(generator=generator)
        return mean + self.log_std.exp() * noise

    def mode(self, mean: Tensor) -> Tensor:
        """The mean."""
        return mean

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """[...] in nats."""
        error = (action - mean) * torch.exp(-self.log_std)
        return (-0.5 * error.square() - self.log_std - _HALF_LOG_TWO_PI).sum(-1)

    def entropy(self, mean: Tensor) -> Tensor:
        """[...] in nats, the same everywhere."""
        return (self.log_std + 0.5 + _HALF_LOG_TWO_PI).sum().expand(mean.shape[:-1])

    def judged(self, mean: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and `entropy`, [...] each."""
        return self.log_prob(mean, action), self.entropy(mean)


class SquashedGaussian(nn.Module):
    """Vectors in (-1, 1): tanh of a Gaussian whose mean and standard deviation an MLP gives (arXiv 1812.05905)."""

    LOG_STD_RANGE = (-20.0, 2.0)

    def __init__(self, features: int, hidden: Sequence[int], size: int, activation: Activation = F.relu):
        super().__init__()
        self.mlp = MLP([features, *hidden, 2 * size], activation=activation)

    def forward(self, features: Tensor) -> Tensor:
        """Means and logarithms of standard deviations, side by side [..., 2 A]."""
        return self.mlp(features)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """An action [..., A] with gradients to the parameters, and its log-probability [...]."""
        mean, log_std = self._parts(parameters)
        noise = torch.empty_like(mean).normal_(generator=generator)
        before = mean + log_std.exp() * noise
        density = (-0.5 * noise.square() - log_std - _HALF_LOG_TWO_PI).sum(-1)
        # log(1 - tanh(x)^2) without cancellation
        squash = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before)).sum(-1)
        return torch.tanh(before), density - squash

    def mode(self, parameters: Tensor) -> Tensor:
        """tanh of the mean."""
        return torch.tanh(self._parts(parameters)[0])

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = parameters.chunk(2, -1)
        return mean, log_std.clamp(*self.LOG_STD_RANGE)
