"""Drawing samples with a denoiser: noise levels, samplers as plain functions, pinned entries, guidance, step densities.

Every sampler takes a denoiser D (see `edm`), x [B, *E] at the first of some falling levels, and returns x at the last
of them, mostly 0. The deterministic ones follow the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma; the
ancestral one puts back some of the noise that it removes, so that every step is a Gaussian with a density.
A network that was trained with the discrete steps of `diffusion` serves them all by `ddpm_denoiser`.
Sources: EDM (arXiv 2206.00364); DDIM (arXiv 2010.02502); ancestral steps (arXiv 2011.13456); guidance without a
classifier (arXiv 2207.12598).

Legend: B rows, E the shape of one sample, n steps, sigma_0 > … > sigma_n levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from echelon.nets.diffusion import Denoiser, Diffusion
from echelon.nets.edm import Denoise, per_row

Noise = Callable[[Tensor], Tensor]
"""x [B, *E] -> unit noise of its shape, new at every call."""


class Pinned(NamedTuple):
    """Entries that are known: where `mask` (bool) is true x has to equal `values`; both broadcast against x [B, *E].

    They are in place before every call of the denoiser and in the result (in-painting).
    """

    mask: Tensor
    values: Tensor


def pin(x: Tensor, pinned: Pinned | None) -> Tensor:
    """x [B, *E] with the known entries in place; None: there are none."""
    return x if pinned is None else torch.where(pinned.mask, pinned.values, x)


def unit_noise(generator: torch.Generator | None = None, shared: bool = False) -> Noise:
    """Normal noise from `generator`, on that one's device; `shared` gives all rows the same."""

    def draw(x: Tensor) -> Tensor:
        shape = (1, *x.shape[1:]) if shared else x.shape
        place = x.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=place, dtype=x.dtype).to(x.device).expand(x.shape)

    return draw


# --- levels


def exponential_levels(n: int, low: float, high: float) -> tuple[float, ...]:
    """n levels from `high` to `low` in equal ratios, then 0."""
    return (*(high * (low / high) ** r for r in _places(n, low, high)), 0.0)


def linear_levels(n: int, low: float, high: float) -> tuple[float, ...]:
    """n levels from `high` to `low` in equal steps, then 0."""
    return (*(high + r * (low - high) for r in _places(n, low, high)), 0.0)


def karras_levels(n: int, low: float, high: float, rho: float = 5.0) -> tuple[float, ...]:
    """n levels whose rho-th roots go from that of `high` to that of `low` in equal steps, then 0."""
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return (*((top + r * (bottom - top)) ** rho for r in _places(n, low, high)), 0.0)


def _places(n: int, low: float, high: float) -> list[float]:
    if n < 1 or not 0 < low <= high < math.inf:
        raise ValueError(f"levels need n >= 1 and 0 < low <= high, got n={n}, low={low}, high={high}")
    return [k / max(n - 1, 1) for k in range(n)]


# --- samplers


def ddim(denoise: Denoise, x: Tensor, levels: Sequence[float], pinned: Pinned | None = None) -> Tensor:
    """First order, one call a step: x <- (s'/s) x + (1 - s'/s) D(x, s). The same as Euler's method for the ODE."""
    x = pin(x, pinned)
    for s, after in _steps(levels):
        x = pin(_towards(x, _estimate(denoise, x, s), after / s), pinned)
    return x


def heun(denoise: Denoise, x: Tensor, levels: Sequence[float], pinned: Pinned | None = None) -> Tensor:
    """Second order, two calls a step (one for a step to 0): the mean of the slopes at both ends of Euler's step."""
    x = pin(x, pinned)
    for s, after in _steps(levels):
        clean = _estimate(denoise, x, s)
        guess = pin(_towards(x, clean, after / s), pinned)
        if after > 0:
            slope, slope_after = (x - clean) / s, (guess - _estimate(denoise, guess, after)) / after
            guess = pin(x + (after - s) / 2 * (slope + slope_after), pinned)
        x = guess
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, pinned: Pinned | None = None, eta: float = 1.0
) -> Tensor:
    """A step of `ddim` to a level below s', then new noise up to s'. `eta` 1: DDPM's posterior steps; 0: `ddim`."""
    return ancestral_chain(denoise, x, levels, noise, pinned, eta)[-1]


def ancestral_chain(
    denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, pinned: Pinned | None = None, eta: float = 1.0
) -> Tensor:
    """As `euler_ancestral`, with all that lies between: x at every level [n + 1, B, *E]."""
    chain = [pin(x, pinned)]
    for s, after in _steps(levels):
        down, up = ancestral_levels(s, after, eta)
        x = _towards(chain[-1], _estimate(denoise, chain[-1], s), down / s)
        chain.append(pin(x + up * noise(x) if up > 0 else x, pinned))
    return torch.stack(chain)


def ancestral_log_probs(
    denoise: Denoise, chain: Tensor, levels: Sequence[float], pinned: Pinned | None = None, eta: float = 1.0
) -> Tensor:
    """Log-density [m, B] in nats of each of the m steps of `chain` [n + 1, B, *E] that draw noise, given its start.

    A step to 0 draws none. Pinned entries have no density. With gradients to the denoiser.
    """
    found = []
    for before, x, (s, after) in zip(chain[:-1], chain[1:], _steps(levels), strict=True):
        down, up = ancestral_levels(s, after, eta)
        if up > 0:
            mean = _towards(before, _estimate(denoise, before, s), down / s)
            density = -0.5 * ((x - mean) / up).square() - math.log(up) - 0.5 * math.log(2 * math.pi)
            if pinned is not None:
                density = density.masked_fill(pinned.mask, 0.0)
            found.append(density.flatten(1).sum(1))
    return torch.stack(found) if found else chain.new_zeros(0, chain.shape[1])


def ancestral_levels(s: float, after: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up): how far a step from s to s' denoises, and the noise that then brings it back to s'."""
    up = min(after, eta * math.sqrt(after**2 * (s**2 - after**2)) / s)
    return math.sqrt(after**2 - up**2), up


def guided(conditional: Denoise, unconditional: Denoise, weight: float) -> Denoise:
    """D_u + weight (D_c - D_u): 0 ignores the condition, 1 follows it, more exaggerates it. Velocities mix likewise."""
    if weight == 0:
        return unconditional
    if weight == 1:
        return conditional

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(unconditional(x, sigma), conditional(x, sigma), weight)

    return denoise


# --- discrete steps


def ddpm_levels(diffusion: Diffusion) -> tuple[float, ...]:
    """The levels sqrt((1 - a_t) / a_t) of its steps, noisiest first, then 0."""
    return (*((1 - diffusion.alphas) / diffusion.alphas).sqrt().flip(0).tolist(), 0.0)


def ddpm_denoiser(diffusion: Diffusion, predict: Denoiser) -> Denoise:
    """The denoiser of a network that predicts the noise in sqrt(a_t) x, at the step t whose level is nearest.

    `euler_ancestral` over `ddpm_levels` draws with it what `Diffusion.sample` draws, from unit noise / sqrt(a_T).
    """
    levels = ((1 - diffusion.alphas) / diffusion.alphas).sqrt().log()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        step = (sigma.log().to(levels)[:, None] - levels).abs().argmin(1)
        noise = predict(x * per_row(diffusion.alphas[step].sqrt(), x), step)
        return x - per_row(sigma, x) * noise

    return denoise


# --- the parts of a step


def _steps(levels: Sequence[float]) -> list[tuple[float, float]]:
    steps = list(pairwise(levels))
    if not steps or any(not s > after for s, after in steps) or levels[-1] < 0:
        raise ValueError(f"a sampler needs two or more levels that fall, the last at least 0; got {list(levels)}")
    return steps


def _estimate(denoise: Denoise, x: Tensor, level: float) -> Tensor:
    return denoise(x, x.new_full((len(x),), level))


def _towards(x: Tensor, clean: Tensor, share: float) -> Tensor:
    """`share` of the noise left: at 0 exactly `clean`."""
    return share * x + (1 - share) * clean
