"""Between numpy, torch and whatever a world or a level hands over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_array(x: Any) -> np.ndarray:
    """A numpy view of a column (a copy, if it lives on a device)."""
    if type(x) is np.ndarray:
        return x
    return x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def as_columns(observation: Any) -> Mapping[str, Tensor | np.ndarray]:
    """Columns by name from what a world shows; a bare array is called "observation"."""
    if type(observation) is dict or isinstance(observation, Mapping):
        return observation
    return {"observation": observation if isinstance(observation, Tensor) else np.asarray(observation)}


def as_tensors(columns: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
    """The same columns as tensors."""
    return {name: torch.from_numpy(x) if type(x) is np.ndarray else torch.as_tensor(x) for name, x in columns.items()}


def has_nan(x: Tensor | np.ndarray) -> bool:
    """Whether x contains NaN. The product of a vector with itself tells several times faster than a mask."""
    if not isinstance(x, np.ndarray):
        if not x.is_cpu or x.dtype is torch.bfloat16:
            return x.is_floating_point() and bool(torch.isnan(x).any())
        x = x.numpy()
    if x.dtype.kind != "f":
        return False
    flat = x.ravel()
    total = flat.dot(flat)
    return bool(total != total)


def nan_rows(x: Tensor | np.ndarray) -> np.ndarray:
    """bool[B]: which rows of x [B, ...] contain NaN."""
    return np.isnan(as_array(x)).reshape(len(x), -1).any(1)
