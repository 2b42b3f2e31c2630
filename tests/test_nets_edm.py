"""Preconditioning, loss and training levels: published numbers, unit variances, how errors are weighted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from echelon.nets.edm import counted_mean, edm_loss, preconditioned, scales, truncated_log_logistic

LEVELS = st.floats(1e-3, 80)


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scales_of_the_worked_example():
    found = scales(t(0.05, 0.5, 1), 0.5)
    assert found.skip.tolist() == pytest.approx([0.990099, 0.5, 0.2], abs=6e-7)
    assert found.out.tolist() == pytest.approx([0.049752, 0.353553, 0.447214], abs=6e-7)
    assert found.into.tolist() == pytest.approx([1.990074, 1.414214, 0.894427], abs=6e-7)


@given(LEVELS, st.floats(0.05, 3))
def test_inputs_and_targets_of_the_network_have_unit_variance(sigma, std):
    """For clean data of standard deviation `std` and independent noise."""
    skip, out, into = (float(c) for c in scales(t(sigma), std))
    assert into**2 * (std**2 + sigma**2) == pytest.approx(1)
    assert ((1 - skip) ** 2 * std**2 + skip**2 * sigma**2) / out**2 == pytest.approx(1)


def test_a_regression_target_of_the_worked_example():
    """a = .3, n = -1.2, s = .5: noisy -.3, the network sees -.424264 and log(.5) / 4, its target is 1.272792."""
    seen: list[Tensor] = []

    def network(x: Tensor, level: Tensor) -> Tensor:
        seen.extend((x, level))
        return torch.zeros_like(x)

    loss = edm_loss(network, t(0.3)[:, None], t(0.5), t(-1.2)[:, None], 0.5)
    assert float(loss) == pytest.approx(1.272792**2, abs=3e-6)
    assert float(seen[0]) == pytest.approx(-0.424264, abs=6e-7)
    assert float(seen[1]) == pytest.approx(-0.173287, abs=6e-7)
    assert [round(math.log(s) / 4, 6) for s in (0.05, 0.5, 1)] == [-0.748933, -0.173287, 0]


def test_what_the_network_says_of_its_target_is_the_clean_sample():
    clean, noise, sigma = draw(0, 4, 2, 3), draw(1, 4, 2, 3), t(0.01, 0.3, 1, 40)
    x = clean + sigma[:, None, None] * noise
    skip, out, _ = (c[:, None, None] for c in scales(sigma, 0.5))
    denoise = preconditioned(lambda y, level: (clean - skip * x) / out, 0.5)
    torch.testing.assert_close(denoise(x, sigma), clean)


@given(LEVELS, st.floats(0.1, 2), st.integers(0, 1000))
def test_the_loss_is_the_denoiser_s_error_over_c_out_squared(sigma, std, seed):
    clean, noise, level = draw(seed, 3, 2), draw(seed + 1, 3, 2), t(sigma, 0.5, 2 * sigma)
    network = lambda x, c: torch.tanh(x + c[:, None])  # noqa: E731
    x = clean + level[:, None] * noise
    error = preconditioned(network, std)(x, level) - clean
    expected = (error / scales(level, std).out[:, None]).square().mean()
    assert float(edm_loss(network, clean, level, noise, std)) == pytest.approx(float(expected), rel=1e-6)


def test_entries_that_do_not_count_are_left_out():
    clean, noise, sigma = draw(0, 2, 3, 2), draw(1, 2, 3, 2), t(0.2, 0.7)
    counted = torch.tensor([[1.0, 1, 0], [1, 0, 0]])[..., None]
    network = lambda x, c: x.sin()  # noqa: E731
    kept = [(0, 0), (0, 1), (1, 0)]
    whole = [float(edm_loss(network, clean[b : b + 1, w], sigma[b : b + 1], noise[b : b + 1, w], 0.5)) for b, w in kept]
    found = float(edm_loss(network, clean, sigma, noise, 0.5, counted))
    assert found == pytest.approx(np.mean(whole))
    assert float(counted_mean(clean, None)) == pytest.approx(float(clean.mean()))


def test_training_levels_of_the_worked_example():
    found = truncated_log_logistic(t(0, 0.25, 0.5, 0.75, 1), 0.05, 1, math.log(0.5), 0.5)
    assert found.tolist() == pytest.approx([0.05, 0.255789, 0.412472, 0.615542, 1], abs=6e-7)


@given(st.floats(0, 1), st.floats(1e-3, 0.4), st.floats(0.5, 50), st.floats(-2, 1), st.floats(0.2, 2))
def test_u_is_the_share_of_the_truncated_law_below_the_level(u, low, high, loc, scale):
    def below(s: float) -> float:
        return 1 / (1 + math.exp(-(math.log(s) - loc) / scale))

    level = float(truncated_log_logistic(t(u), low, high, loc, scale))
    assert low <= level <= high
    assert (below(level) - below(low)) / (below(high) - below(low)) == pytest.approx(u, abs=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.5), (-1.0, 1.0), (0.1, math.inf), (math.nan, 1.0)])
def test_bounds_that_are_none_are_refused(low, high):
    with pytest.raises(ValueError, match=f"0 < low < high, got low={low}, high={high}"):
        truncated_log_logistic(t(0.5), low, high, 0.0, 0.5)
