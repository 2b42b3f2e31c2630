"""Model predictive path integral: a plan as the mean of sampled ones, weighted by how well a model says they end.

Legend: B rows (streams), P plans a row, H steps of a plan, D numbers of a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from echelon.errors import UsageError


def mppi(
    value: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    spread: float = 1.0,
    bound: float = 1.0,
    samples: int = 64,
    rounds: int = 5,
    temperature: float = 10.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The plan [B, H, D] after `rounds` refinements of `start` [B, H, D].

    Each round draws plans around the mean with deviation `spread`, within ±`bound`; the new mean weighs them by
    exp(temperature · (value - best value)). value: plans [B, P, H, D] → [B, P], higher is better. Sources: Williams et
    al. 2015; over skills: arXiv 1907.01657.
    """
    if samples < 1 or rounds < 0:
        raise UsageError(f"a plan needs one sample or more and 0 rounds or more, got {samples} and {rounds}")
    mean = start
    for _ in range(rounds):
        noise = torch.empty((len(mean), samples, *mean.shape[1:]), dtype=mean.dtype, device=mean.device)
        plans = (mean[:, None] + spread * noise.normal_(generator=generator)).clamp(-bound, bound)
        weight = (temperature * value(plans)).softmax(-1)
        mean = (weight[..., None, None] * plans).sum(1)
    return mean
