"""Weights that favour what was good, exponential in how good it was, with mean one over the data.

Source: MoCapAct (arXiv 2208.07363), which weights clones by the return of their clip (CWR), by advantages (AWR, arXiv
1910.00177) or by returns from a state on (RWR).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from echelon.losses._checks import require


def mean_one_offset(score: Tensor, temperature: float) -> Tensor:
    """The offset [], with which the mean of exp((score - offset) / temperature) over scores [N] is one."""
    require(0 < temperature < math.inf, "temperature", temperature, "positive and finite")
    return temperature * (torch.logsumexp(score / temperature, 0) - math.log(len(score)))


def exponential_weights(score: Tensor, temperature: float, cap: float | None = None) -> Tensor:
    """exp((score - offset) / temperature) [N], with mean one; then none above `cap`, so that the mean may be lower."""
    require(cap is None or 0 < cap < math.inf, "cap", cap, "positive and finite, or absent")
    weight = ((score - mean_one_offset(score, temperature)) / temperature).exp()
    return weight if cap is None else weight.clamp(max=cap)
