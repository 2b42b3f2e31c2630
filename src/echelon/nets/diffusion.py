"""Denoising diffusion (DDPM): cosine noise levels, noise prediction, and sampling around what is known (in-painting).

Everything is written for arrays of any shape and any network: a denoiser takes x [B, *E] and the step t int64[B]
(0 is the least noisy) and returns its estimate of the noise in x.
Sources: DDPM (arXiv 2006.11239); cosine levels (arXiv 2102.09672).

Legend: T steps, B rows, n samples a row, E the shape of one sample, a_t the cumulative alphas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Denoiser = Callable[[Tensor, Tensor], Tensor]


def cosine_betas(steps: int, offset: float = 0.008, limit: float = 0.999) -> Tensor:
    """beta_t float64[steps] = min(1 - f(t + 1) / f(t), limit) with f(t) = cos^2(pi/2 * (t/T + offset)/(1 + offset))."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos(math.pi / 2 * (t + offset) / (1 + offset)).square()
    return (1 - level[1:] / level[:-1]).clamp(max=limit)


def sinusoids(t: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """float32[B, dim] (`dim` even): sines, then cosines, of t [B] at dim/2 frequencies from 1 to 1/`longest`."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(longest) / max(half - 1, 1)))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class Diffusion(nn.Module):
    """A noise schedule of T steps, with the loss and the sampler that belong to it."""

    betas: Tensor
    alphas: Tensor
    """Cumulative products of 1 - beta."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps
        betas = cosine_betas(steps)
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("alphas", torch.cumprod(1 - betas, 0), persistent=False)

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x [B, *E] at step t int64[B]: sqrt(a_t) x + sqrt(1 - a_t) noise."""
        a = self.alphas[t].to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
        return a.sqrt() * x + (1 - a).sqrt() * noise

    def loss(
        self, denoise: Denoiser, x: Tensor, t: Tensor, noise: Tensor, known: Tensor, norm: Literal["l1", "l2"] = "l1"
    ) -> Tensor:
        """Mean error of the predicted noise over the entries that are not `known` (bool, broadcasting against *E).

        The network sees the known entries of x [B, *E] clean, the others at step t int64[B].
        """
        error = denoise(torch.where(known, x, self.noised(x, t, noise)), t) - noise
        unknown = (~known).expand(x.shape)
        return (error.abs() if norm == "l1" else error.square()).masked_fill(~unknown, 0).sum() / unknown.sum()

    def step(self, x: Tensor, t: int, predicted: Tensor, noise: Tensor | None, clip: float | None = None) -> Tensor:
        """One step back, from x at step t to step t - 1, given the predicted noise; `noise` None takes the mean.

        The clean sample that the prediction implies may be clipped to [-`clip`, `clip`].
        """
        a, beta = float(self.alphas[t]), float(self.betas[t])
        before = float(self.alphas[t - 1]) if t else 1.0
        clean = (x - math.sqrt(1 - a) * predicted) / math.sqrt(a)
        if clip is not None:
            clean = clean.clamp(-clip, clip)
        mean = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - a)
        return mean if noise is None else mean + math.sqrt(beta * (1 - before) / (1 - a)) * noise

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoiser,
        x: Tensor,
        known: Tensor,
        n: int = 1,
        generator: torch.Generator | None = None,
        clip: float | None = None,
    ) -> Tensor:
        """n samples [B, n, *E] for each row of x [B, *E], whose `known` entries (bool, as in `loss`) stay as they are.

        All rows share the same noise, so that what is drawn for one of them does not depend on the others. Noise comes
        from `generator`, on that one's device.
        """
        place = x.device if generator is None else generator.device

        def draw() -> Tensor:
            shared = torch.randn((n, *x.shape[1:]), generator=generator, device=place, dtype=x.dtype).to(x.device)
            return shared.expand(len(x), *shared.shape).flatten(0, 1)

        given = x.repeat_interleave(n, 0)
        now = torch.where(known, given, draw())
        for t in reversed(range(self.steps)):
            predicted = denoise(now, torch.full((len(now),), t, device=x.device))
            now = torch.where(known, given, self.step(now, t, predicted, draw() if t else None, clip))
        return now.unflatten(0, (len(x), n))
