"""What tabular systems share: estimates that follow their targets, choices by them, and spaces that fit a table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from echelon.envs.spaces import Spaces
from echelon.errors import UsageError


class Table(nn.Module):
    """Estimates [...], in double precision, that move towards the targets of their entries.

    An entry's n-th target moves it by n^-power of the way, or by `floor` where that is more. The m targets that it gets
    at once count by their mean, with m times the weight, 1 at most; with power 1 it is the mean of all its targets.
    """

    def __init__(self, shape: tuple[int, ...], power: float, floor: float = 0.0):
        super().__init__()
        self.power, self.floor = power, floor
        self.values: Tensor
        self.visits: Tensor
        self.register_buffer("values", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("visits", torch.zeros(shape, dtype=torch.int64))

    def learn(self, at: tuple[Tensor, ...], target: Tensor) -> None:
        """Move entries towards targets: `at` are their places, int64[n] each, `target` [n]."""
        place = torch.zeros_like(at[0])
        for index, size in zip(at, self.values.shape, strict=True):
            place = place * size + index
        entries, which, hits = place.unique(return_inverse=True, return_counts=True)
        mean = torch.zeros(len(entries), dtype=torch.float64, device=place.device)
        mean = mean.index_add_(0, which, target.double()) / hits
        values, visits = self.values.view(-1), self.visits.view(-1)
        visits[entries] += hits
        weight = (hits * visits[entries].double().pow(-self.power).clamp(min=self.floor)).clamp(max=1.0)
        values[entries] += weight * (mean - values[entries])


def sampled(q: Tensor, epsilon: Tensor | float, generator: torch.Generator | None) -> Tensor:
    """The best of each row of q [B, K], and with probability epsilon (one, or [B]) any that is not barred by -inf."""
    weights = (q > -torch.inf).double()
    anything = torch.multinomial(weights, 1, generator=generator)[:, 0]
    explores = torch.rand(len(q), generator=generator, device=q.device) < epsilon
    return torch.where(explores, anything, q.argmax(-1))


def states_of(spaces: Spaces, system: str, name: str = "observation") -> int:
    """How many values the observation `name` has. UsageError where it is not one of so many."""
    states = spaces.discrete.get(name)
    if states is None:
        raise UsageError(f"{system} keeps tables: it needs an environment whose '{name}' is one of so many states")
    return states
