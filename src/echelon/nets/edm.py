"""Diffusion over continuous noise levels: a network becomes a denoiser, and learns at random levels.

A denoiser D takes x [B, *E] = clean + sigma * noise with the level sigma [B] and returns its estimate of `clean`; how
to draw samples with one is said in `samplers`. The network F behind it sees inputs of unit variance, and the logarithm
of the level.
Sources: EDM (arXiv 2206.00364); the law of the levels as in BESO (arXiv 2304.02532).

Legend: B rows, E the shape of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *E], sigma [B]) -> clean [B, *E]."""
Network = Callable[[Tensor, Tensor], Tensor]
"""F: (c_in x [B, *E], log(sigma) / 4 [B]) -> [B, *E]."""


class Scales(NamedTuple):
    """c_skip, c_out and c_in [B]: D(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)."""

    skip: Tensor
    out: Tensor
    into: Tensor


def scales(sigma: Tensor, data_std: float) -> Scales:
    """With them inputs and targets of F have unit variance, if data have the standard deviation `data_std`."""
    total = sigma.square() + data_std**2
    return Scales(data_std**2 / total, sigma * data_std / total.sqrt(), total.rsqrt())


def preconditioned(network: Network, data_std: float) -> Denoise:
    """The denoiser made of F."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        skip, out, into = (per_row(c, x) for c in scales(sigma, data_std))
        return skip * x + out * network(into * x, sigma.log() / 4)

    return denoise


def edm_loss(
    network: Network, clean: Tensor, sigma: Tensor, noise: Tensor, data_std: float, counted: Tensor | None = None
) -> Tensor:
    """Mean squared error of F towards (clean - c_skip x) / c_out, for x = clean + sigma noise.

    `clean`, `noise` [B, *E], `sigma` [B] > 0; `counted`: see `counted_mean`. It is the error of the denoiser, weighted
    by 1 / c_out^2.
    """
    skip, out, into = (per_row(c, clean) for c in scales(sigma, data_std))
    x = clean + per_row(sigma, clean) * noise
    error = network(into * x, sigma.log() / 4) - (clean - skip * x) / out
    return counted_mean(error.square(), counted)


def truncated_log_logistic(u: Tensor, low: float, high: float, loc: float, scale: float) -> Tensor:
    """Levels in [low, high] from uniform numbers u [...] in [0, 1): exp(`scale` * logistic + `loc`), truncated.

    `loc` is the logarithm of the median before truncation. A pure function of u, in its precision (use float64).
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"levels need 0 < low < high, got low={low}, high={high}")
    bottom, top = (1 / (1 + math.exp((loc - math.log(level)) / scale)) for level in (low, high))
    return torch.exp(scale * torch.logit(bottom + (top - bottom) * u) + loc).clamp(low, high)


def per_row(level: Tensor, x: Tensor) -> Tensor:
    """`level` [B] in the shape in which it meets x [B, *E], in x's precision."""
    return level.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))


def counted_mean(x: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of the entries of x [B, *E] that are `counted`: 0 or 1, broadcasting against x; None: of all."""
    if counted is None:
        return x.mean()
    weight = counted.to(x.dtype).expand(x.shape)
    return (x * weight).sum() / weight.sum()
