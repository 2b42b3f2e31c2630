"""What the losses ask of their arguments: no look at the device, so nothing here waits for it."""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.errors import DataError, UsageError


def require(holds: bool, name: str, value: object, what: str) -> None:
    """Raise a UsageError, unless `holds`: the hyper-parameter `name` must be `what`."""
    if not holds:
        raise UsageError(f"{name} must be {what}, got {value}")


def same_items(name: str, column: Tensor, other: str, reference: Tensor) -> None:
    """Raise a DataError, unless the two columns have one shape: [N, 1] with [N] would broadcast to [N, N] silently."""
    if column.shape != reference.shape:
        raise DataError(
            f"{name} has shape {tuple(column.shape)}, {other} has {tuple(reference.shape)}; one row an item"
        )


def align(name: str, column: Tensor, advantage: Tensor) -> Tensor:
    """`column` [N] with trailing dimensions of 1, so that it meets the channels of an advantage [N, C]."""
    same_items(name, column, "the advantage", advantage.select(-1, 0) if advantage.ndim > column.ndim else advantage)
    return column.reshape(column.shape + (1,) * (advantage.ndim - column.ndim))


def mask(name: str, where: Tensor | None, like: Tensor) -> Tensor:
    """`where`, bool [N]; all true if it is None."""
    if where is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    if where.dtype != torch.bool:
        raise DataError(f"{name} must be a bool column, got {where.dtype}; graded weights belong in `weight`")
    same_items(name, where, "its column", like)
    return where
