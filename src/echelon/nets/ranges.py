"""Numbers scaled to [-1, 1] by the lowest and the highest of each that were seen so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BEYOND = 1.1
"""How far generated actions may go beyond the middle of the data's range, in halves of it."""


class Range(nn.Module):
    """Maps vectors [..., D] so that what was seen lies in [-1, 1]; a number that never changed to 0.

    Before anything was seen it changes nothing.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("low", -torch.ones(dim))
        self.register_buffer("high", torch.ones(dim))
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Widen the range to hold the vectors x [..., D]."""
        rows, first = self._checked(x).flatten(0, -2), self.seen == 0
        low, high = rows.amin(0), rows.amax(0)
        self.low.copy_(torch.where(first, low, torch.minimum(self.low, low)))
        self.high.copy_(torch.where(first, high, torch.maximum(self.high, high)))
        self.seen.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale x [..., D]."""
        centre, half = self._parts()
        return (self._checked(x) - centre) / half

    def inverse(self, x: Tensor) -> Tensor:
        """The vector that `forward` maps to x [..., D]; a number that never changed stays within 1 of what it was."""
        centre, half = self._parts()
        return self._checked(x) * half + centre

    def action(self, x: Tensor) -> Tensor:
        """The action in [-1, 1] of generated numbers x [..., D], which are cut off a little beyond the data's range."""
        return self.inverse(x.clamp(-BEYOND, BEYOND)).clamp(-1, 1)

    def _parts(self) -> tuple[Tensor, Tensor]:
        half = (self.high - self.low) / 2
        return (self.high + self.low) / 2, torch.where(half == 0, 1.0, half)

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.low):
            raise ValueError(f"sizes differ: vectors have {x.shape[-1]} numbers, the range {len(self.low)}")
        return x
