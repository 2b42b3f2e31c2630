"""What the tests of credit compare with: float64 columns, printed digits, nested answers of references."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def doubles(*numbers: Any) -> Tensor:
    """A float64 column, or a tensor of nested numbers."""
    return torch.tensor(numbers, dtype=torch.float64)


def bools(*flags: int) -> Tensor:
    return torch.tensor(flags, dtype=torch.bool)


def printed(actual: Tensor, *expected: float, atol: float = 6e-7) -> None:
    """Assert equality to what is printed with six digits, whatever the shape."""
    torch.testing.assert_close(actual.reshape(-1), doubles(*expected), atol=atol, rtol=0)


def same(a: Any, b: Any, tolerance: float = 1e-9) -> bool:
    """Whether nested dicts, lists and tensors hold the same numbers; None stands for NaN."""
    if isinstance(a, Tensor):
        a = a.tolist()
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if b is None or math.isnan(b):
        return a is None or math.isnan(a)
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
