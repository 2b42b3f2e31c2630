"""Between numpy, torch and whatever a world or a level hands over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_array(x: Any) -> np.ndarray:
    """A numpy view of a column (a copy, if it lives on a device)."""
    if isinstance(x, np.ndarray):
        return x
    return x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def as_tensors(observation: Any) -> dict[str, Tensor]:
    """A dict of tensors from what a world shows; a bare array is called "observation"."""
    parts = observation if isinstance(observation, Mapping) else {"observation": observation}
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
        for name, value in parts.items()
    }


def has_nan(x: Tensor) -> bool:
    """Whether x contains NaN. The product of a vector with itself tells several times faster than a mask."""
    if not x.is_floating_point():
        return False
    if x.is_cpu and x.dtype is not torch.bfloat16:
        flat = x.numpy().ravel()
        total = flat.dot(flat)
        return bool(total != total)
    return bool(torch.isnan(x).any())


def nan_rows(x: Tensor) -> np.ndarray:
    """bool[B]: which rows of x [B, ...] contain NaN."""
    return torch.isnan(x).reshape(len(x), -1).any(1).cpu().numpy()
