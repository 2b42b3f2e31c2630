"""Rectified flow: straight ways from noise (tau = 0) to data (tau = 1), a network that learns their velocity.

Source: arXiv 2209.03003 and 2210.02747, in the form x = (1 - tau) noise + tau data. On the same data it is a denoiser
at the level (1 - tau) / tau: `flow_denoiser` says so, and Euler's method here takes the steps of `samplers.ddim` there.

Legend: B rows, E the shape of one sample.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from echelon.nets.edm import Denoise, counted_mean, per_row
from echelon.nets.samplers import Pinned, pin

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *E], tau [B] in [0, 1]) -> dx/dtau [B, *E]."""


def flow_point(noise: Tensor, data: Tensor, tau: Tensor) -> Tensor:
    """Where the way from `noise` to `data` [B, *E] is at tau [B]."""
    share = per_row(tau, data)
    return (1 - share) * noise + share * data


def flow_loss(velocity: Velocity, data: Tensor, tau: Tensor, noise: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean squared error of the velocity at tau [B] towards data - noise [B, *E]; `counted` as in `counted_mean`."""
    error = velocity(flow_point(noise, data, tau), tau) - (data - noise)
    return counted_mean(error.square(), counted)


def flow_sample(velocity: Velocity, noise: Tensor, steps: int, pinned: Pinned | None = None) -> Tensor:
    """Data [B, *E] from `noise`, by `steps` equal steps of Euler's method. Pinned entries are data at every tau."""
    if steps < 1:
        raise ValueError(f"a flow needs 1 step or more, got {steps}")
    x = pin(noise, pinned)
    for k in range(steps):
        x = pin(x + velocity(x, x.new_full((len(x),), k / steps)) / steps, pinned)
    return x


def flow_denoiser(velocity: Velocity) -> Denoise:
    """The denoiser of the same data: D(x, sigma) = y + (1 - tau) v(y, tau) with tau = 1 / (1 + sigma), y = tau x."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        tau = 1 / (1 + sigma)
        y = per_row(tau, x) * x
        return y + per_row(1 - tau, x) * velocity(y, tau)

    return denoise
