"""Tensors that an object computes when they are first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class lazy:
    """A tensor computed when first read; functools' cached_property takes a lock, which torch.compile cannot trace."""

    def __init__(self, compute: Callable[[Any], Tensor]):
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, holder: Any, owner: type) -> Tensor:
        with torch.inference_mode(False):  # first read in an evaluation, it still serves a loss later
            value = self.compute(holder)
        setattr(holder, self.name, value)
        return value
