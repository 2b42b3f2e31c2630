"""Random episodes, packed and nested: what the tests of step rewards and set functions have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from echelon.spans import Spans


@dataclass(frozen=True)
class Turns:
    """A partition into episodes, contiguous or permuted; slots: the item at each place of the nested order."""

    episodes: Spans
    slots: list[int]

    def nest(self, column: Tensor) -> list[list[Any]]:
        """A column [N] as one list an episode."""
        flat = iter(column[self.slots].tolist())
        return [[next(flat) for _ in range(length)] for length in self.episodes.lengths.tolist()]


@st.composite
def turns(draw: st.DrawFn, longest: int = 5) -> Turns:
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=4))
    slots = draw(st.permutations(range(sum(lengths)))) if draw(st.booleans()) else list(range(sum(lengths)))
    return Turns(Spans(torch.tensor([0, *lengths]).cumsum(0), slots), slots)


def integers(draw: st.DrawFn, size: int, low: int, high: int) -> Tensor:
    return torch.tensor(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)))


def booleans(draw: st.DrawFn, size: int) -> Tensor:
    return integers(draw, size, 0, 1).bool()


def doubles(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def assert_close(a: Tensor, b: Tensor | list[Any], atol: float = 6e-7) -> None:
    torch.testing.assert_close(a.double(), torch.as_tensor(b, dtype=torch.float64), atol=atol, rtol=1e-6)
