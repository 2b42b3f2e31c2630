"""Random packed batches for the tests of losses: contiguous or permuted sequences, and columns over them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from echelon.spans import Spans


@dataclass(frozen=True)
class Batch:
    """Sequences of N tokens and seeded columns over them."""

    sequences: Spans
    seed: int

    def normal(self, salt: int, scale: float = 1.0) -> Tensor:
        """float64 [N], another column for every salt."""
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        return scale * torch.randn(self.sequences.size, dtype=torch.float64, generator=generator)

    def mask(self, salt: int, share: float = 0.7) -> Tensor:
        """bool [N]."""
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        return torch.rand(self.sequences.size, generator=generator) < share

    def members(self) -> list[list[int]]:
        """The items of each sequence."""
        order = torch.arange(self.sequences.size) if self.sequences.order is None else self.sequences.order
        bounds = self.sequences.offsets.tolist()
        return [order.tolist()[a:b] for a, b in pairwise(bounds)]


@st.composite
def batches(draw: st.DrawFn, largest: int = 5) -> Batch:
    lengths = draw(st.lists(st.integers(1, largest), min_size=1, max_size=5))
    order = draw(st.none() | st.permutations(range(sum(lengths))))
    return Batch(Spans(torch.tensor([0, *lengths]).cumsum(0), order), draw(st.integers(0, 10_000)))


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, inputs))
