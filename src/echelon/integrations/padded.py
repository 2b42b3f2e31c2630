"""Padded rows [B, T], as trainers of language models hold them, and packed items [M], of which spans consist.

A mask, bool [B, T], says which positions count; they are packed row after row, from left to right. Padding may stand
on either side, and gaps (masked tool output) are fine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.spans import Spans


def prefix(lengths: Tensor, width: int) -> Tensor:
    """The mask of right-padded rows: bool [B, width], true at the first `lengths[b]` positions of row b."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def rows(mask: Tensor) -> Spans:
    """The M counted positions as items, one span a row; every row needs one, since spans are not empty."""
    lengths = mask.sum(1)
    if len(lengths) and not (lengths > 0).all():
        raise DataError(f"row {int((lengths == 0).nonzero()[0])} of the mask counts no position; drop the row")
    return Spans.from_lengths(lengths)


def pack(padded: Tensor, mask: Tensor) -> Tensor:
    """Padded [B, T, ...] → packed [M, ...]: the counted positions, row after row."""
    if padded.shape[: mask.ndim] != mask.shape:
        raise DataError(f"the mask has shape {tuple(mask.shape)}, what is to be packed {tuple(padded.shape)}")
    return padded[mask]


def pad(packed: Tensor, mask: Tensor, fill: float = 0.0) -> Tensor:
    """Packed [M, ...] → padded [B, T, ...] with `fill` at the positions that do not count; the inverse of `pack`."""
    if len(packed) != (count := int(mask.sum())):
        raise DataError(f"{len(packed)} items for a mask that counts {count} positions")
    padded = packed.new_full((*mask.shape, *packed.shape[1:]), fill)
    return padded.index_put((mask,), packed)
