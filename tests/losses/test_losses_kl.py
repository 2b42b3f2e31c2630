"""KL estimates and their gradients by exact enumeration, entropies, and the controllers of their coefficients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed import Batch, batches, f64, gradient
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from echelon.errors import DataError, UsageError
from echelon.losses.kl import (
    adapt_beta,
    adapt_entropy_bonus,
    categorical_kl,
    entropy,
    kl_estimate,
    kl_reward,
    top_entropy,
)
from echelon.spans import Spans

REFERENCE = f64(0.25, 0.75).log()
ESTIMATORS = ("k1", "k2", "k3")
close = {"atol": 5e-7, "rtol": 0}  # the digits printed in the sources


def policy(*logits: float) -> Tensor:
    return f64(*logits).requires_grad_()


def expected(logits: Tensor, ref_logits: Tensor, old_logits: Tensor | None = None, **options) -> tuple[Tensor, Tensor]:
    """The expectation of an estimate and of its gradient in the logits, over every word that the sampler may draw."""
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    sampler = (logits if old_logits is None else old_logits).detach().softmax(-1)
    if options.get("gradient") == "ratio":
        options["log_ratio"] = log_p - sampler.log()
    value = (sampler * kl_estimate(log_p, log_q, **options)).sum()
    return value.detach(), gradient(value, logits)[0]


def true_kl(logits: Tensor, ref_logits: Tensor) -> tuple[Tensor, Tensor]:
    value = categorical_kl(logits, ref_logits)
    return value.detach(), gradient(value, logits)[0]


# ---- published numbers


def test_estimates_of_one_token__paper():
    log_p, log_q = f64(0.5).log(), f64(0.25).log()
    values = torch.cat([kl_estimate(log_p, log_q, estimator=name) for name in ESTIMATORS])
    assert_close(values, f64(0.693147, 0.240227, 0.193147), **close)


def test_expected_estimates__paper():
    values = [expected(policy(0, 0), REFERENCE, estimator=name)[0] for name in ESTIMATORS]
    assert_close(torch.stack(values), f64(0.143841, 0.161214, 0.143841), **close)
    assert_close(categorical_kl(f64(0, 0), REFERENCE), f64(0.143841)[0], **close)


def test_expected_gradients__paper():
    grads = [expected(policy(0, 0), REFERENCE, estimator=name)[1][0] for name in ESTIMATORS]
    assert_close(torch.stack(grads), f64(0, 0.274653, 0.25), **close)
    assert_close(true_kl(policy(0, 0), REFERENCE)[1][0], f64(0.274653)[0], **close)


def test_gradient_of_k3_times_ratio__code():
    assert_close(expected(policy(0, 0), REFERENCE, gradient="ratio")[1][0], f64(0.274653)[0], **close)


def test_straight_through__code():
    for name in ESTIMATORS:
        value, grad = expected(policy(0, 0), REFERENCE, estimator=name, gradient="k2")
        assert_close(value, expected(policy(0, 0), REFERENCE, estimator=name)[0])
        assert_close(grad[0], f64(0.274653)[0], **close)


def test_entropy_of_three_words__paper():
    logits = f64(2, 1, 0)
    assert_close(logits.softmax(-1), f64(0.665241, 0.244728, 0.090031), **close)
    assert_close(entropy(logits), f64(0.832396)[0], **close)
    assert_close(logits.log_softmax(-1)[0], f64(-0.407606)[0], **close)


def test_clamps_of_k3__code():
    """verl: d to ±20, then the value to ±10."""
    log_p, log_q = f64(-1, -30, 0).requires_grad_(), f64(-1, 0, -12)
    value = kl_estimate(log_p, log_q, bound=20, limit=10)
    assert_close(value, f64(0, 10, 10))
    assert gradient(value.sum(), log_p)[0].tolist() == [0, 0, 0]
    assert_close(kl_estimate(log_p, log_q, bound=20)[1], f64(math.exp(20) - 21)[0])
    through = kl_estimate(log_p, log_q, bound=20, limit=10, gradient="k2")
    assert gradient(through.sum(), log_p)[0].tolist() == [0, -30, 12]


def test_adaptive_coefficient__code():
    assert adapt_beta(0.001, 0.2, n=1000) == pytest.approx(0.001 * 1.02)  # clipped at +0.2
    assert adapt_beta(0.001, 0.01, n=1000) == pytest.approx(0.001 * 0.98)
    assert adapt_beta(0.001, 0.11, n=1000) == pytest.approx(0.001 * 1.01)
    assert adapt_beta(0.001, 0.1, n=10_000) == 0.001


def test_adaptive_entropy_bonus__code():
    assert adapt_entropy_bonus(0.01, 0.1) == pytest.approx((0.015, 0.015))
    assert adapt_entropy_bonus(0.01, 0.3) == pytest.approx((0.005, 0.0))
    assert adapt_entropy_bonus(0.0, 0.3) == (0.0, 0.0)
    assert adapt_entropy_bonus(0.999, 0.2) == (1.0, 1.0)


def test_limit_of_k1_has_two_sides():
    assert kl_estimate(f64(-30, 30), f64(0, 0), estimator="k1", limit=10).tolist() == [-10, 10]


# ---- the gradients that the module promises, for any categorical

logit = st.floats(-2, 2)
three = st.lists(logit, min_size=3, max_size=3)


@given(three, three, three)
def test_promised_expectations(logits, ref_logits, old_logits):
    p, q, old = policy(*logits), f64(*ref_logits), f64(*old_logits)
    kl, slope = true_kl(p, q)
    assert_close(expected(p, q, estimator="k1"), (kl, torch.zeros_like(slope)))
    assert_close(expected(p, q, estimator="k2")[1], slope)
    assert_close(expected(p, q, estimator="k3"), (kl, p.softmax(-1).detach() - q.softmax(-1)))
    for estimator in ("k1", "k3"):
        assert_close(expected(p, q, estimator=estimator, gradient="k2"), (kl, slope))
        assert_close(expected(p, q, old, estimator=estimator, gradient="ratio"), (kl, slope))
    # as a reward, k1 has the gradient of the true divergence
    log_p = p.log_softmax(-1)
    reward = kl_reward(log_p, q.log_softmax(-1), beta=1.0)
    assert_close(gradient((p.softmax(-1).detach() * reward * log_p).sum(), p)[0], -slope)


def test_gradients_against_finite_differences():
    log_p, log_q = f64(-0.3, -1, -2).requires_grad_(), f64(-0.5, -0.9, -3)
    for name in ESTIMATORS:
        assert gradcheck(lambda x, name=name: kl_estimate(x, log_q, estimator=name), log_p)
    assert gradcheck(lambda x: kl_estimate(x, log_q, gradient="ratio", log_ratio=x - log_q), log_p)
    logits, ref = torch.randn(4, 3, dtype=torch.float64).requires_grad_(), torch.randn(4, 3, dtype=torch.float64)
    assert gradcheck(entropy, logits)
    assert gradcheck(lambda x: categorical_kl(x, ref), logits)


def test_the_reference_carries_no_gradient():
    ref = torch.zeros(2, requires_grad=True)
    for gradient_of in ("own", "k2"):
        assert not kl_estimate(torch.zeros(2), ref, gradient=gradient_of).requires_grad  # type: ignore[arg-type]
    assert not categorical_kl(torch.zeros(2), ref).requires_grad


def test_k3_of_nearly_equal_policies_survives_float32():
    d = torch.tensor([1e-3, -1e-3])
    value = kl_estimate(d, torch.zeros(2))
    assert (value >= 0).all() and value.dtype == torch.float32
    assert_close(value, d.square() / 2, rtol=1e-2, atol=1e-8)


def test_reward_penalty_is_a_constant():
    log_p = torch.tensor([-1.0, -2.0], requires_grad=True)
    reward = kl_reward(log_p, torch.tensor([-1.5, -1.0]), beta=0.1)
    assert not reward.requires_grad
    assert_close(reward, torch.tensor([-0.05, 0.1]))
    assert_close(kl_reward(log_p, torch.tensor([-1.5, -1.0]), beta=2, estimator="k2"), torch.tensor([-0.25, -1.0]))


# ---- logits


def test_forbidden_words_and_huge_logits():
    logits = torch.tensor([[2.0, 1.0, -math.inf], [1e4, 0.0, -1e4]], requires_grad=True)
    h = entropy(logits)
    assert_close(h[0], entropy(logits[0, :2])) and float(h[1]) == 0
    assert gradient(h.sum(), logits)[0].isfinite().all()
    kl = categorical_kl(logits, torch.tensor([[0.0, 1.0, -math.inf], [1e4, 0.0, -1e4]]))
    assert_close(kl[0], categorical_kl(logits[0, :2], torch.tensor([0.0, 1.0])))
    assert gradient(kl.sum(), logits)[0].isfinite().all()
    assert float(categorical_kl(torch.zeros(2), torch.tensor([0.0, -math.inf]))) == math.inf


def test_uniform_entropy():
    assert_close(entropy(torch.full((2, 7), 3.0)), torch.full((2,), math.log(7)))


# ---- the tokens that decide


@given(batches(), st.floats(0.05, 1.0), st.sampled_from([0.5, 1.0]))
def test_top_entropy_agrees_with_a_quantile(batch: Batch, fraction: float, share: float):
    values, where = batch.normal(1).abs(), batch.mask(2, share)
    chosen = top_entropy(batch.sequences, values, fraction, where=where)
    for members in batch.members():
        pool = [i for i in members if where[i]]
        bar = torch.quantile(values[pool], 1 - fraction) if pool else None
        for i in members:
            assert bool(chosen[i]) == (i in pool and bool(values[i] >= bar - 1e-12))


def test_top_entropy_of_the_batch__code():
    values = f64(0.1, 0.9, 0.5, 0.3, 0.7)
    assert top_entropy(Spans.from_lengths([5]), values, 0.2).tolist() == [False, True, False, False, False]
    assert top_entropy(Spans.from_lengths([5]), values, 0.5).tolist() == [False, True, True, False, True]
    assert top_entropy(Spans.from_lengths([5]), values, 1.0).all()


# ---- what they refuse


def test_senseless_options_are_refused():
    d = torch.zeros(2)
    with pytest.raises(UsageError, match="unknown KL estimator 'k4'; did you mean"):
        kl_estimate(d, d, estimator="k4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown gradient 'k3'"):
        kl_estimate(d, d, gradient="k3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="log_ratio must be given for gradient 'ratio', and only then, got nothing"):
        kl_estimate(d, d, gradient="ratio")
    with pytest.raises(UsageError, match="and only then, got a tensor"):
        kl_estimate(d, d, log_ratio=d)
    with pytest.raises(UsageError, match="bound must be positive, got -1"):
        kl_estimate(d, d, bound=-1)
    with pytest.raises(UsageError, match="limit must be positive, got 0"):
        kl_estimate(d, d, limit=0)
    with pytest.raises(UsageError, match="beta must be 0 or more"):
        kl_reward(d, d, beta=-0.1)
    for fraction in (0, 1.5):
        with pytest.raises(UsageError, match=r"fraction must be in \(0, 1\]"):
            top_entropy(Spans.from_lengths([2]), d, fraction)
    with pytest.raises(UsageError, match="n must be between 1 and the horizon, 10000, got 0"):
        adapt_beta(0.1, 0.1, n=0)
    with pytest.raises(UsageError, match="kl must be finite, got nan"):
        adapt_beta(0.1, math.nan, n=1)


def test_shapes_that_would_broadcast_by_accident_are_refused():
    d = torch.zeros(2)
    for call in (kl_estimate, lambda x, y: kl_reward(x, y, beta=1.0), categorical_kl):
        with pytest.raises(DataError, match=r"has shape \(2,\)"):
            call(d, torch.zeros(2, 1))
    with pytest.raises(DataError, match="log_ratio has shape"):
        kl_estimate(d, d, gradient="ratio", log_ratio=torch.zeros(1))
