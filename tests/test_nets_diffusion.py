"""The diffusion part: published noise levels, its loss and steps against definitions, in-painting, own generator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import hecrl as reference
from torch import Tensor

from echelon.nets.diffusion import Diffusion, cosine_betas, sinusoids

BETAS = (0.027907, 0.075494, 0.124396, 0.17719, 0.237282, 0.309883, 0.404003, 0.536998, 0.743829, 0.999)
ALPHAS = (0.972093, 0.898706, 0.786911, 0.647478, 0.493844, 0.34081, 0.203121, 0.094046, 0.024092, 0.000024)
NOTHING = torch.tensor([False])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cosine_levels_of_ten_steps():
    assert cosine_betas(10).tolist() == pytest.approx(BETAS, abs=6e-7)
    assert Diffusion(10).alphas.tolist() == pytest.approx(ALPHAS, abs=6e-7)


@given(st.integers(1, 200))
def test_levels_equal_their_definition(steps):
    assert cosine_betas(steps).tolist() == pytest.approx(reference.betas(steps), rel=1e-9)
    assert Diffusion(steps).alphas.tolist() == pytest.approx(reference.cumulative(steps), rel=1e-9)


def test_step_embeddings_are_sines_and_cosines_from_frequency_1_to_a_ten_thousandth():
    found = sinusoids(torch.tensor([0, 3]), 4)
    assert found[0].tolist() == [0, 0, 1, 1]
    expected = [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]
    assert found[1].tolist() == pytest.approx(expected, abs=1e-6)
    assert sinusoids(torch.tensor([3]), 2)[0].tolist() == pytest.approx([math.sin(3), math.cos(3)], abs=1e-6)


def test_the_loss_counts_what_is_unknown_and_shows_what_is_known_clean():
    d, x, noise = Diffusion(10), draw(0, 4, 3, 2), draw(1, 4, 3, 2)
    t, known = torch.tensor([0, 3, 9, 5]), torch.tensor([[True], [False], [True]])
    seen: list[Tensor] = []

    def denoise(y: Tensor, step: Tensor) -> Tensor:
        seen.append(y)
        assert torch.equal(step, t)
        return torch.full_like(y, 0.5)

    loss = d.loss(denoise, x, t, noise, known)
    assert float(loss) == pytest.approx(float((0.5 - noise[:, 1]).abs().mean()), rel=1e-12)
    squared = d.loss(denoise, x, t, noise, known, norm="l2")
    assert float(squared) == pytest.approx(float((0.5 - noise[:, 1]).square().mean()), rel=1e-12)
    assert torch.equal(seen[0][:, [0, 2]], x[:, [0, 2]])
    a = torch.tensor(reference.cumulative(10), dtype=torch.float64)[t][:, None]
    torch.testing.assert_close(seen[0][:, 1], a.sqrt() * x[:, 1] + (1 - a).sqrt() * noise[:, 1])


def test_its_gradient_is_three_times_that_of_the_mean_over_three_frames_with_known_ones_overwritten():
    d, x, noise = Diffusion(10), draw(0, 4, 3, 2), draw(1, 4, 3, 2)
    t, known = torch.tensor([0, 3, 9, 5]), torch.tensor([[True], [False], [True]])
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    d.loss(lambda y, _: weight * y, x, t, noise, known).backward()
    own = float(weight.grad)
    weight.grad = None
    painted = torch.where(known, x, d.noised(x, t, noise))
    released = (torch.where(known, x, weight * painted) - noise).abs().mean()
    released.backward()
    assert own == pytest.approx(3 * float(weight.grad), rel=1e-12)


@given(st.integers(0, 9), st.integers(0, 1000))
def test_a_step_back_has_the_posterior_s_mean_and_variance(t, seed):
    """q(x_{t-1} | x_t, x_0) by Bayes' rule: the product of N(sqrt(b) x_0, 1 - b) and of the last transition."""
    d = Diffusion(10)
    clean, noise = draw(seed, 1, 5), draw(seed + 1, 1, 5)
    x = d.noised(clean, torch.tensor([t]), noise)
    mean, shifted = d.step(x, t, noise, None), d.step(x, t, noise, torch.ones_like(x))
    beta, before = reference.betas(10)[t], reference.cumulative(10)[t - 1] if t else 1.0
    if t == 0:
        torch.testing.assert_close(mean, clean)
        torch.testing.assert_close(shifted, clean)
        return
    precision = 1 / (1 - before) + (1 - beta) / beta
    expected = (math.sqrt(before) * clean / (1 - before) + math.sqrt(1 - beta) * x / beta) / precision
    torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(shifted - mean, torch.full_like(mean, math.sqrt(1 / precision)), rtol=1e-7, atol=1e-7)


def test_the_clean_sample_may_be_clipped():
    d, x = Diffusion(10), torch.full((1, 2), 50.0, dtype=torch.float64)
    nothing = torch.zeros_like(x)
    torch.testing.assert_close(d.step(x, 0, nothing, None, clip=1.0), torch.ones_like(x))
    assert float(d.step(x, 0, nothing, None).min()) > 50


def gaussian(d: Diffusion, mean: float, std: float):
    """The exact denoiser of N(mean, std^2)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a = d.alphas[t].view(-1, *(1,) * (x.dim() - 1))
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * std**2 + 1 - a)

    return denoise


def test_with_the_exact_denoiser_it_samples_the_distribution():
    d = Diffusion(100)
    x = torch.zeros(1, 1, dtype=torch.float64)
    found = d.sample(gaussian(d, 0.7, 0.3), x, NOTHING, 20_000, torch.Generator().manual_seed(0))
    assert found.shape == (1, 20_000, 1)
    assert float(found.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(found.std()) == pytest.approx(0.3, abs=0.02)


def test_known_entries_are_clean_before_every_call_and_in_the_samples():
    d, x, known = Diffusion(4), draw(0, 3, 3, 2), torch.tensor([[True], [False], [True]])
    steps: list[int] = []

    def denoise(y: Tensor, t: Tensor) -> Tensor:
        given = x.repeat_interleave(5, 0)
        assert torch.equal(y[:, [0, 2]], given[:, [0, 2]])
        steps.append(int(t[0]))
        return torch.ones_like(y)

    found = d.sample(denoise, x, known, 5, torch.Generator().manual_seed(0))
    assert steps == [3, 2, 1, 0]
    assert torch.equal(found[:, :, [0, 2]], x[:, None, [0, 2]].expand(-1, 5, -1, -1))
    assert len(found[:, :, 1].unique(dim=1)[0]) == 5


def test_samples_depend_on_the_generator_alone_and_a_row_not_on_the_others():
    d, x, known = Diffusion(4), draw(0, 3, 3, 2), torch.tensor([[True], [False], [True]])

    def run(rows: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return d.sample(lambda y, t: y * 0.1 + y[:, :1], rows, known, 2, generator)

    torch.manual_seed(5)
    first = run(x, 1)
    torch.manual_seed(6)
    assert torch.equal(first, run(x, 1)) and not torch.equal(first, run(x, 2))
    torch.testing.assert_close(first[1:2], run(x[1:2], 1))
