"""Rectified flow: a worked example, Gaussians in closed form, and that it is DDIM in other coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussians import COVARIANCE, MEAN, VARIANCES, affine, along_axes, denoiser, velocity
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from echelon.nets.flow import flow_denoiser, flow_loss, flow_point, flow_sample
from echelon.nets.samplers import Pinned, ddim


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_worked_example():
    """Noise -.5, data 1.5, tau .25: the point 0, the velocity 2; steps of the true velocity end at the data."""
    noise, data = t(-0.5)[:, None], t(1.5)[:, None]
    assert float(flow_point(noise, data, t(0.25))) == 0
    assert float(flow_loss(lambda x, tau: torch.full_like(x, 0.5), data, t(0.25), noise)) == pytest.approx(1.5**2)
    assert float(flow_sample(lambda x, tau: torch.full_like(x, 2.0), noise, 4)) == 1.5


def test_the_loss_is_the_mean_over_rows_and_entries_that_count():
    data, noise, tau = draw(0, 3, 2, 2), draw(1, 3, 2, 2), t(0.1, 0.5, 0.9)
    counted = torch.tensor([[1.0, 0], [1, 1], [0, 1]])[..., None]
    seen: list[Tensor] = []

    def field(x: Tensor, at: Tensor) -> Tensor:
        seen.append(x)
        assert torch.equal(at, tau)
        return x.sin()

    found = float(flow_loss(field, data, tau, noise, counted))
    expected = []
    for b, k in ((0, 0), (1, 0), (1, 1), (2, 1)):
        x = (1 - tau[b]) * noise[b, k] + tau[b] * data[b, k]
        torch.testing.assert_close(seen[0][b, k], x)
        expected += (x.sin() - (data[b, k] - noise[b, k])).square().tolist()
    assert found == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_mean_and_covariance_after_k_steps(steps):
    """Along the axes: (x - tau m) is multiplied by 1 + h (tau l - (1 - tau)) / (tau^2 l + (1 - tau)^2)."""
    factor, offset = np.ones(3), np.zeros(3)
    for k in range(steps):
        tau = k / steps
        gain = (tau * VARIANCES - (1 - tau)) / (tau**2 * VARIANCES + (1 - tau) ** 2) / steps
        factor, offset = factor * (1 + gain), along_axes(1 + gain) @ (offset - tau * MEAN) + (tau + 1 / steps) * MEAN
    matrix, shift = affine(lambda x: flow_sample(velocity, x, steps))
    np.testing.assert_allclose(matrix, along_axes(factor), atol=1e-12)
    np.testing.assert_allclose(shift, offset, atol=1e-12)
    np.testing.assert_allclose(shift, MEAN, atol=1e-12)  # the mean is right whatever the number of steps


def test_with_many_steps_noise_becomes_the_data():
    matrix, offset = affine(lambda x: flow_sample(velocity, x, 400))
    np.testing.assert_allclose(matrix @ matrix.T, COVARIANCE, atol=5e-3)
    np.testing.assert_allclose(offset, MEAN, atol=1e-9)


@given(st.floats(0.02, 20))
def test_its_denoiser_is_that_of_the_same_data(sigma):
    x, level = draw(0, 2, 3), torch.full((2,), sigma, dtype=torch.float64)
    torch.testing.assert_close(flow_denoiser(velocity)(x, level), denoiser(x, level), rtol=1e-7, atol=1e-7)


@given(st.integers(2, 20))
def test_its_steps_are_those_of_ddim(steps):
    """Of any field, on x / tau at the levels (1 - tau) / tau."""

    def field(x: Tensor, tau: Tensor) -> Tensor:
        return torch.sin(3 * x + tau[:, None])

    noise = draw(1, 4, 3)
    first = 1 / steps
    x = noise + first * field(noise, torch.zeros(4, dtype=torch.float64))  # noise alone has no level
    levels = [(1 - k / steps) / (k / steps) for k in range(1, steps)] + [0.0]
    found = ddim(flow_denoiser(field), x / first, levels)
    torch.testing.assert_close(found, flow_sample(field, noise, steps), rtol=1e-6, atol=1e-6)


def test_pinned_entries_are_data_at_every_time():
    pinned = Pinned(torch.tensor([True, False, False]), t(0.7, 0, 0))

    def field(x: Tensor, tau: Tensor) -> Tensor:
        assert bool((x[:, 0] == 0.7).all())
        return velocity(x, tau)

    assert bool((flow_sample(field, draw(0, 3, 3), 5, pinned)[:, 0] == 0.7).all())


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="1 step or more, got 0"):
        flow_sample(velocity, draw(0, 1, 3), 0)
