"""Samplers against Gaussians in closed form, each other and DDPM's steps; levels, in-painting, guidance, densities."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from gaussians import AXES, COVARIANCE, MEAN, VARIANCES, affine, along_axes, denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from echelon.nets.diffusion import Diffusion
from echelon.nets.samplers import (
    Pinned,
    ancestral_chain,
    ancestral_levels,
    ancestral_log_probs,
    ddim,
    ddpm_denoiser,
    ddpm_levels,
    euler_ancestral,
    exponential_levels,
    guided,
    heun,
    karras_levels,
    linear_levels,
    unit_noise,
)  # fmt: skip

SCHEDULES = {"exponential": exponential_levels, "linear": linear_levels, "karras": karras_levels}
START = 1.7
"""The first level of most tests: samples begin as N(0, START^2)."""


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- levels


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("exponential", [1, 0.316228, 0.1, 0]), ("linear", [1, 0.55, 0.1, 0]), ("karras", [1, 0.360631, 0.1, 0])],
)
def test_levels_of_the_worked_example(schedule, expected):
    assert SCHEDULES[schedule](3, 0.1, 1) == pytest.approx(expected, abs=6e-7)


@given(st.integers(1, 30), st.floats(1e-3, 0.5), st.floats(0.6, 100), st.floats(1, 9))
def test_levels_fall_evenly_in_their_own_scale(n, low, high, rho):
    for levels, scale in (
        (exponential_levels(n, low, high), math.log),
        (linear_levels(n, low, high), float),
        (karras_levels(n, low, high, rho), lambda s: s ** (1 / rho)),
    ):
        assert len(levels) == n + 1 and levels[0] == pytest.approx(high) and levels[-1] == 0
        if n > 1:
            assert levels[-2] == pytest.approx(low)
            gaps = [scale(a) - scale(b) for a, b in pairwise(levels[:-1])]
            assert gaps == pytest.approx([gaps[0]] * (n - 1), rel=1e-6, abs=1e-9) and gaps[0] > 0


@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_senseless_levels_are_refused(schedule):
    for n, low, high in ((0, 0.1, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0), (3, 0.1, math.inf)):
        with pytest.raises(ValueError, match=f"got n={n}, low={low}"):
            schedule(n, low, high)
    for levels in ([1.0], [1.0, 1.0], [0.5, 1.0], [1.0, -0.1], [1.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="levels that fall"):
            ddim(denoiser, torch.zeros(1, 3), levels)


# --- Gaussians in closed form


def euler_factors(levels: tuple[float, ...]) -> np.ndarray:
    """What the principal axes of x - m are multiplied by, from first to last level: 1 + (s' - s) s / (l + s^2)."""
    factor = np.ones(3)
    for s, after in pairwise(levels):
        factor = factor * (1 + (after - s) * s / (VARIANCES + s**2))
    return factor


def heun_factors(levels: tuple[float, ...]) -> np.ndarray:
    factor = np.ones(3)
    for s, after in pairwise(levels):
        slope, slope_after = s / (VARIANCES + s**2), after / (VARIANCES + after**2)
        euler = 1 + (after - s) * slope
        factor = factor * (euler if after == 0 else 1 + (after - s) / 2 * (slope + slope_after * euler))
    return factor


@pytest.mark.parametrize("sampler", [ddim, heun])
@pytest.mark.parametrize("schedule", SCHEDULES.values())
@pytest.mark.parametrize("n", [1, 3, 8])
def test_mean_and_covariance_after_k_steps(sampler, schedule, n):
    levels = schedule(n, 0.05, START)
    matrix, offset = affine(lambda x: sampler(denoiser, x, levels))
    expected = along_axes((euler_factors if sampler is ddim else heun_factors)(levels))
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    np.testing.assert_allclose(offset, MEAN - expected @ MEAN, atol=1e-12)  # the mean of N(0, START^2)
    np.testing.assert_allclose(matrix @ matrix.T, along_axes(np.diag(AXES.T @ expected @ AXES) ** 2), atol=1e-12)


def ancestral_map(levels: tuple[float, ...], eta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, b, N): the sample is A x + b + sum_k N_k noise_k, read off unit vectors in place of x and of each noise."""
    draws = sum(after > 0 for after in levels[1:])
    size = 3 * (1 + draws)

    def run(z: Tensor) -> Tensor:
        noises = iter(z[:, 3:].split(3, 1))
        return euler_ancestral(denoiser, z[:, :3], levels, lambda x: next(noises), eta=eta)

    matrix, offset = affine(run, size)
    return matrix[:, :3], offset, matrix[:, 3:].reshape(3, draws, 3).transpose(1, 0, 2)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("n", [2, 6])
def test_mean_and_covariance_of_ancestral_steps(n, eta):
    levels = karras_levels(n, 0.05, START)
    matrix, offset, noises = ancestral_map(levels, eta)
    mean, variance = -AXES.T @ MEAN, np.full(3, START**2)  # along the axes, relative to m
    for s, after in pairwise(levels):
        up = eta * after / s * math.sqrt(s**2 - after**2)
        down = math.sqrt(after**2 - up**2)
        factor = 1 + (down - s) * s / (VARIANCES + s**2)
        mean, variance = factor * mean, factor**2 * variance + up**2
    np.testing.assert_allclose(offset, MEAN + AXES @ mean, atol=1e-12)
    found = START**2 * matrix @ matrix.T + sum(b @ b.T for b in noises)
    np.testing.assert_allclose(found, along_axes(variance), atol=1e-12)


def test_without_new_noise_ancestral_steps_are_ddim():
    levels, x = linear_levels(5, 0.1, START), draw(0, 4, 3)
    found = euler_ancestral(denoiser, x, levels, unit_noise(torch.Generator().manual_seed(0)), eta=0.0)
    torch.testing.assert_close(found, ddim(denoiser, x, levels))


def test_ddim_of_the_worked_example_and_its_limit():
    def denoise(x: Tensor, s: Tensor) -> Tensor:
        return (0.01 * x + 0.2 * s[:, None] ** 2) / (0.01 + s[:, None] ** 2)

    x, levels = t(0.9)[:, None], exponential_levels(3, 0.1, 1)
    for k, expected in ((2, 0.426098), (3, 0.285553), (4, 0.242777)):
        assert float(ddim(denoise, x, levels[:k])) == pytest.approx(expected, abs=6e-7)
    for sampler in (ddim, heun):
        fine = sampler(denoise, x, exponential_levels(2000, 1e-3, 1))
        assert float(fine) == pytest.approx(0.269653, abs=1e-4)


def test_with_many_steps_they_reach_the_flow_s_end_ddim_by_halves_heun_by_quarters():
    """x at a level s from the one at START: principal axes times sqrt((l + s^2) / (l + START^2))."""
    exact = np.sqrt((VARIANCES + 0.05**2) / (VARIANCES + START**2))

    def error(factors, n: int) -> float:
        return float(np.abs(factors(exponential_levels(n, 0.05, START)[:-1]) - exact).max())

    for factors, power in ((euler_factors, 2), (heun_factors, 4)):  # what the samplers do, by the tests above
        assert error(factors, 400) / error(factors, 800) == pytest.approx(power, rel=0.05)
    assert error(euler_factors, 800) < 5e-3 and error(heun_factors, 800) < 1e-5
    levels = exponential_levels(30, 0.05, START)[:-1]
    matrix, _ = affine(lambda x: heun(denoiser, x, levels))
    np.testing.assert_allclose(matrix, along_axes(exact), atol=5e-3)


def test_with_many_ancestral_steps_the_data_s_covariance_comes_out():
    """Its error halves when the steps are twice as many."""
    errors = []
    for n in (50, 100):
        matrix, offset, noises = ancestral_map(exponential_levels(n, 1e-2, 10.0), 1.0)
        errors.append(np.abs(100 * matrix @ matrix.T + sum(b @ b.T for b in noises) - COVARIANCE).max())
        np.testing.assert_allclose(offset, MEAN, atol=0.02)
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1) and errors[1] < 0.04


# --- DDPM's discrete steps


def predict(x: Tensor, step: Tensor) -> Tensor:
    """Some predicted noise."""
    return torch.sin(x + step[:, None, None])


@given(st.integers(0, 9), st.integers(0, 500))
def test_an_ancestral_step_is_ddpm_s_posterior_step(step, seed):
    d = Diffusion(10)
    x, noise = draw(seed, 2, 3, 1), draw(seed + 1, 2, 3, 1)
    s, after = ddpm_levels(d)[9 - step : 11 - step]
    at = torch.full((2,), step)
    theirs = d.step(x, step, predict(x, at), noise if step else None)
    mine = euler_ancestral(ddpm_denoiser(d, predict), x / d.alphas[step].sqrt(), (s, after), lambda y: noise)
    torch.testing.assert_close(mine * (d.alphas[step - 1].sqrt() if step else 1.0), theirs, rtol=1e-7, atol=1e-7)


def test_ancestral_sampling_draws_what_ddpm_draws():
    d, known = Diffusion(10), torch.tensor([[True], [False], [False]])
    x = draw(3, 1, 3, 1)
    theirs = d.sample(predict, x, torch.zeros_like(known), 1, torch.Generator().manual_seed(5))[:, 0]
    noise = unit_noise(torch.Generator().manual_seed(5))
    start = noise(x) / d.alphas[-1].sqrt()
    mine = euler_ancestral(ddpm_denoiser(d, predict), start, ddpm_levels(d), noise)
    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-7)


# --- pinned entries, guidance, noise


@pytest.mark.parametrize("sampler", [ddim, heun, euler_ancestral])
def test_pinned_entries_are_in_place_before_every_call_and_in_the_result(sampler):
    pinned = Pinned(torch.tensor([True, False, True]), draw(7, 4, 3))
    calls = []

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        calls.append(float(s[0]))
        assert torch.equal(x[:, [0, 2]], pinned.values[:, [0, 2]])
        return denoiser(x, s)

    noise = (unit_noise(torch.Generator().manual_seed(0)),) if sampler is euler_ancestral else ()
    levels = linear_levels(3, 0.1, 1)
    found = sampler(denoise, draw(0, 4, 3), levels, *noise, pinned=pinned)
    assert torch.equal(found[:, [0, 2]], pinned.values[:, [0, 2]])
    expected = [s for k, s in enumerate(levels[:-1]) for _ in range(2 if sampler is heun and k else 1)]
    assert calls == pytest.approx(expected)


def test_a_free_entry_is_drawn_given_the_pinned_ones_if_the_denoiser_knows_them():
    """The exact denoiser of the last entry given the first two is that of a Gaussian in one dimension."""
    gain = np.linalg.solve(COVARIANCE[:2, :2], COVARIANCE[:2, 2])
    variance = COVARIANCE[2, 2] - COVARIANCE[2, :2] @ gain
    known = t(0.5, -1.0)
    mean = MEAN[2] + (known.numpy() - MEAN[:2]) @ gain

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        seen = MEAN[2] + (x[:, :2].numpy() - MEAN[:2]) @ gain
        last = seen + variance / (variance + s.numpy() ** 2) * (x[:, 2].numpy() - seen)
        return torch.cat([x[:, :2], torch.tensor(last)[:, None]], 1)

    pinned = Pinned(torch.tensor([True, True, False]), torch.cat([known, t(0.0)])[None])
    x, levels = START * draw(1, 5, 3), exponential_levels(300, 1e-4, START)
    found = heun(denoise, x, levels, pinned)[:, 2]
    expected = mean + math.sqrt(variance / (variance + START**2)) * (x[:, 2].numpy() - mean)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_guidance_of_the_worked_example():
    def say(value: float):
        return lambda x, s: torch.full_like(x, value)

    x = torch.zeros(1, 1, dtype=torch.float64)
    found = [float(guided(say(0.5), say(0.1), w)(x, t(1.0))) for w in (0, 1, 1.5, 2)]
    assert found == pytest.approx([0.1, 0.5, 0.7, 0.9])


def test_guidance_asks_for_what_it_needs_alone():
    def never(x: Tensor, s: Tensor) -> Tensor:
        raise AssertionError

    assert guided(denoiser, never, 1.0) is denoiser and guided(never, denoiser, 0.0) is denoiser


def test_noise_comes_from_its_generator_and_may_be_shared_by_rows():
    x = torch.zeros(5, 2)
    torch.manual_seed(1)
    one, two = (unit_noise(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one(x), two(x)) and not torch.equal(one(x), two(x) * 0 + two(x))
    shared = unit_noise(torch.Generator().manual_seed(3), shared=True)(x)
    assert torch.equal(shared, shared[:1].expand(5, 2)) and len(one(x).unique(dim=0)) == 5


# --- densities of the steps


def test_ancestral_levels_of_the_worked_example():
    assert ancestral_levels(1, 0.316228) == pytest.approx((0.1, 0.3), abs=1e-6)
    assert ancestral_levels(1, 0.0) == (0.0, 0.0)


@given(st.floats(0.01, 1), st.floats(1.01, 10), st.floats(0, 1))
def test_denoising_and_new_noise_together_end_at_the_next_level(share, s, eta):
    after = share * s / 1.01
    down, up = ancestral_levels(s, after, eta)
    assert down**2 + up**2 == pytest.approx(after**2) and 0 <= up <= after
    if eta == 1:
        assert down == pytest.approx(after**2 / s)


def test_the_density_of_a_step_by_hand():
    """From .9 at 1 to .316228 with D = .2: mean .1 * .9 + .9 * .2 = .27, deviation .3; x = .42 lies half of it away."""
    chain = t(0.9, 0.42, 0.3)[:, None, None]
    found = ancestral_log_probs(lambda x, s: torch.full_like(x, 0.2), chain, (1, math.sqrt(0.1), 0))
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(-0.125 - math.log(0.3) - 0.918939, abs=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.2, 1), st.booleans())
def test_densities_of_a_chain_are_those_of_its_own_draws(seed, eta, pin):
    """Sum over free entries of log N(noise; 0, 1) - log up, with the noises that were put in."""
    levels = karras_levels(4, 0.1, START)
    noises = list(draw(seed, 4, 2, 3))
    left = iter(noises)
    pinned = Pinned(torch.tensor([False, True, False]), t(0.1, 0.2, 0.3)) if pin else None
    chain = ancestral_chain(denoiser, draw(seed + 1, 2, 3), levels, lambda x: next(left), pinned, eta)
    found = ancestral_log_probs(denoiser, chain, levels, pinned, eta)
    assert chain.shape == (5, 2, 3) and found.shape == (3, 2)
    free = [0, 2] if pin else [0, 1, 2]
    for k, (s, after) in enumerate(pairwise(levels[:-1])):
        up = eta * after / s * math.sqrt(s**2 - after**2)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(noises[k][:, free]) - math.log(up)
        torch.testing.assert_close(found[k], expected.sum(1), rtol=1e-6, atol=1e-6)


def test_densities_have_gradients_to_the_denoiser_and_none_to_where_it_is_pinned():
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    levels, pinned = linear_levels(3, 0.1, 1), Pinned(torch.tensor([True, False, False]), t(0.0, 0, 0))
    with torch.no_grad():
        noise = unit_noise(torch.Generator().manual_seed(0))
        chain = ancestral_chain(denoiser, draw(0, 4, 3), levels, noise, pinned)
    ancestral_log_probs(lambda x, s: denoiser(x, s) + shift, chain, levels, pinned).sum().backward()
    assert shift.grad is not None and shift.grad[0] == 0 and bool((shift.grad[1:] != 0).all())


def test_a_single_step_to_0_has_no_density():
    chain = draw(0, 2, 4, 3)
    assert ancestral_log_probs(denoiser, chain, (1.0, 0.0)).shape == (0, 4)
