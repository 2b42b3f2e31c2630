"""Surrogates: published numbers, gradients, naive loops, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed import Batch, batches, f64, gradient
from torch.autograd import gradcheck
from torch.testing import assert_close

from echelon.errors import DataError, UsageError
from echelon.losses.aggregate import loss_weights
from echelon.losses.surrogate import (
    cispo,
    clip_fractions,
    gspo,
    log_ratio,
    ppo_clip,
    reinforce,
    sapo,
    sequence_log_ratio,
)
from echelon.spans import Spans

SEQUENCES = Spans.from_lengths([3, 2])
ADVANTAGE = f64(1, 1, 1, -1, -1)
LOG_RATIO = f64(1, 1.5, 0.5, 1.5, 0.5).log()
NAN = math.nan


# ---- published numbers


def test_ppo_clip_tokens__paper():
    assert_close(ppo_clip(LOG_RATIO, ADVANTAGE), f64(-1, -1.2, -0.5, 1.5, 0.8))


def test_ppo_clip_higher__paper():
    assert_close(ppo_clip(LOG_RATIO, ADVANTAGE, low=0.2, high=0.28), f64(-1, -1.28, -0.5, 1.5, 0.8))


def test_ppo_clip_without_dual_and_with__paper():
    log_r, advantage = f64(5).log(), f64(-1)
    assert_close(ppo_clip(log_r, advantage), f64(5))
    assert_close(ppo_clip(log_r, advantage, dual=3), f64(3))
    assert_close(ppo_clip(log_r, f64(1), dual=3), f64(-1.2))  # it bounds bad advantages only


def test_a_delta_inside_the_clip_range_leaves_the_clipped_side_its_gradient__code():
    log_r = f64(1.6).log().requires_grad_()  # delta holds one product at 1.5, the other is not clipped before 1.75
    loss = ppo_clip(log_r, f64(-1), high=0.75, delta=1.5)
    assert_close(loss, f64(1.6))
    assert_close(gradient(loss.sum(), log_r)[0], f64(1.6))


def test_ppo_clip_delta__code():
    assert_close(ppo_clip(f64(5).log(), f64(-1), delta=4), f64(4))
    assert_close(ppo_clip(f64(5).log(), f64(1), delta=4), f64(-1.2))


def test_gspo_sequence_ratios__paper():
    s = sequence_log_ratio(SEQUENCES, LOG_RATIO).exp()
    assert_close(SEQUENCES.reduce(s, "first"), f64(0.90856, 0.866025), atol=5e-6, rtol=0)


def test_ppo_clip_per_channel__code():
    advantage = torch.tensor([[0, 0], [-0.099504, 0.995037], [0.099504, -0.995037]], dtype=torch.float64)
    log_r = f64(1.2, 0.9, 1.5).log()
    per_channel = ppo_clip(log_r, advantage, low=0.3, high=0.3).mean()
    of_the_sum = ppo_clip(log_r, advantage.sum(1), low=0.3, high=0.3).mean() / 2
    assert_close(torch.stack([per_channel, of_the_sum]), f64(0.092870, 0.089553), atol=5e-7, rtol=0)


def test_cispo_one_sided_and_two_sided__code():
    log_prob, log_r = f64(-1, -1, -2), f64(0.5, 6, 1.1).log()
    advantage = f64(1, 1, -1)
    assert_close(cispo(log_prob, log_r, advantage), f64(0.5, 5, -2.2))  # TRL: at most 5
    assert_close(cispo(log_prob, log_r, advantage, low=0.2, high=0.2), f64(0.8, 1.2, -2.2))  # verl


def test_sapo__code():
    log_r = f64(1, 2, 1, 2).log()
    advantage = f64(1, 1, -1, -1)
    gate = [2, 4 / (1 + math.exp(-1)), 2 / 1.05, 4 / 1.05 / (1 + math.exp(-1.05))]
    assert_close(sapo(log_r, advantage), -advantage * f64(*gate), rtol=1e-14, atol=0)


def test_first_step_loss_is_minus_the_mean_advantage__code():
    log_prob = torch.randn(5, dtype=torch.float64)
    log_r, where = log_ratio(log_prob, log_prob.clone()), torch.tensor([True, True, False, True, True])
    weight = loss_weights(SEQUENCES, "token-mean", where=where, dtype=torch.float64)
    assert_close((weight * ppo_clip(log_r, ADVANTAGE)).sum(), -ADVANTAGE[where].mean())


# ---- ratios


def test_log_ratio_of_tokens_that_were_not_sampled_is_zero_without_gradient():
    log_prob = torch.tensor([-1.0, -2.0, -math.inf], requires_grad=True)
    d = log_ratio(log_prob, torch.tensor([-1.5, NAN, -1.0]), where=torch.tensor([True, False, False]))
    assert d.tolist() == [0.5, 0, 0]
    assert gradient(ppo_clip(d, torch.ones(3)).sum(), log_prob)[0].isfinite().all()


def test_log_ratio_bound_keeps_the_loss_finite__code():
    log_prob = torch.tensor([0.0, -200.0], requires_grad=True)
    d = log_ratio(log_prob, torch.tensor([-200.0, 0.0]), bound=20)
    assert d.tolist() == [20, -20]
    loss = ppo_clip(d, torch.tensor([-1.0, 1.0]))
    assert loss.isfinite().all() and gradient(loss.sum(), log_prob)[0].tolist() == [0, 0]


def test_old_log_probs_carry_no_gradient():
    old = torch.zeros(2, requires_grad=True)
    assert not log_ratio(torch.zeros(2), old).requires_grad


# ---- gradients


def test_all_surrogates_have_the_gradient_of_reinforce_on_fresh_samples():
    log_prob = torch.randn(5, dtype=torch.float64).requires_grad_()
    weight = loss_weights(SEQUENCES, "seq-mean-token-mean", dtype=torch.float64)
    log_r = log_ratio(log_prob, log_prob.detach())
    losses = [
        ppo_clip(log_r, ADVANTAGE, dual=3, delta=4),
        gspo(SEQUENCES, log_r, ADVANTAGE),
        cispo(log_prob, log_r, ADVANTAGE),
        sapo(log_r, ADVANTAGE),
    ]
    expected = gradient((weight * reinforce(log_prob, ADVANTAGE)).sum(), log_prob)
    for loss in losses:
        assert_close(gradient((weight * loss).sum(), log_prob), expected)


@given(batches(), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_gspo_token_form_has_the_gradient_of_the_sequence_form(batch: Batch, low: float, high: float):
    spans, where = batch.sequences, batch.mask(3, 0.8)
    advantage = spans.expand(spans.reduce(batch.normal(2), "first"))  # one a sequence
    log_r = batch.normal(1, 0.3).requires_grad_()
    token = gspo(spans, log_r, advantage, low=low, high=high, where=where)
    weight = loss_weights(spans, "seq-mean-token-mean", where=where, dtype=torch.float64)

    count = spans.reduce(where, "sum")
    s = (spans.reduce(torch.where(where, log_r, 0)) / count.clamp(min=1)).exp()
    a = spans.reduce(advantage, "first")
    whole = -torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a)[count > 0]
    value = whole.sum() / max(len(whole), 1)
    assert_close((weight * token).sum(), value)
    assert_close(gradient((weight * token).sum(), log_r), gradient(value, log_r))


@pytest.mark.parametrize("channels", [(), (2,)])
def test_gradients_against_finite_differences(channels: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    advantage = torch.randn(5, *channels, dtype=torch.float64, generator=generator)
    log_r = (0.3 * torch.randn(5, dtype=torch.float64, generator=generator)).requires_grad_()
    assert gradcheck(lambda d: ppo_clip(d, advantage, low=0.1, high=0.28, dual=3), log_r)
    assert gradcheck(lambda d: ppo_clip(d, advantage, delta=1.3), log_r)
    assert gradcheck(lambda d: sapo(d, advantage), log_r)
    assert gradcheck(lambda x: reinforce(x, advantage), log_r)
    assert gradcheck(lambda x: cispo(x, LOG_RATIO, advantage, low=0.2), log_r)


def test_clipped_items_have_no_gradient_and_are_counted():
    log_r = f64(0.5, 0.5, 1.5, 1.5, 5, 1).log().requires_grad_()
    advantage = f64(1, -1, 1, -1, -1, 1)
    grad = gradient(ppo_clip(log_r, advantage, dual=3).sum(), log_r)[0]
    assert (grad == 0).tolist() == [False, True, True, False, True, False]
    shares = clip_fractions(log_r, advantage, dual=3)
    assert {name: round(6 * float(share)) for name, share in shares.items() if name != "old_kl"} == {
        "clip_low": 1,
        "clip_high": 1,
        "clip_dual": 1,
    }
    r = log_r.detach().exp()
    assert_close(shares["old_kl"], (r - 1 - r.log()).mean())
    one = clip_fractions(log_r, advantage, where=torch.arange(6) == 1)
    assert float(one["clip_low"]) == 1 and "clip_dual" not in one


# ---- limits


def test_gspo_ratio_is_limited__code():
    spans, d = Spans.from_lengths([2]), f64(30, 10)
    assert_close(gspo(spans, d, f64(-1, -1)), torch.full((2,), math.exp(10), dtype=torch.float64))
    assert_close(gspo(spans, d, f64(-1, -1), limit=None), torch.full((2,), math.exp(20), dtype=torch.float64))


# ---- what they refuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.5}, r"low must be in \[0, 1\].*got 1.5"),
        ({"low": -0.1}, "low must be"),
        ({"low": NAN}, "low must be"),
        ({"high": -0.2}, "high must be 0 or more"),
        ({"dual": 1.0}, "dual must be above 1, got 1.0"),
        ({"delta": 0.9}, "delta must be above 1"),
    ],
)
def test_senseless_clips_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ppo_clip(LOG_RATIO, ADVANTAGE, **options)


def test_other_senseless_options_are_refused():
    with pytest.raises(UsageError, match="tau_negative must be positive, got 0"):
        sapo(LOG_RATIO, ADVANTAGE, tau_negative=0)
    with pytest.raises(UsageError, match="high must be"):
        cispo(LOG_RATIO, LOG_RATIO, ADVANTAGE, high=-1)
    with pytest.raises(UsageError, match="bound must be positive, got -20"):
        log_ratio(LOG_RATIO, LOG_RATIO, bound=-20)
    with pytest.raises(UsageError, match="low must be"):
        clip_fractions(LOG_RATIO, ADVANTAGE, low=2)


def test_a_nan_advantage_names_its_sequence():
    with pytest.raises(DataError, match=r"advantage of sequence 1 \(item 3\) is nan"):
        gspo(SEQUENCES, LOG_RATIO, f64(1, 1, 1, NAN, 1))


def test_shapes_that_would_broadcast_by_accident_are_refused():
    for surrogate in (ppo_clip, sapo, reinforce):
        with pytest.raises(DataError, match=r"has shape \(5, 1\)"):
            surrogate(LOG_RATIO[:, None], ADVANTAGE)
        with pytest.raises(DataError, match=r"has shape \(5,\), the advantage has \(4,\)"):
            surrogate(LOG_RATIO, ADVANTAGE[:4, None])
    with pytest.raises(DataError, match="log_prob has shape"):
        log_ratio(LOG_RATIO, LOG_RATIO[:1])
    with pytest.raises(DataError, match="where must be a bool column"):
        log_ratio(LOG_RATIO, LOG_RATIO, where=torch.ones(5))


def test_an_empty_batch_has_an_empty_loss():
    empty, nothing = Spans([0]), torch.zeros(0)
    assert gspo(empty, nothing, nothing).shape == (0,)
    assert float(clip_fractions(nothing, nothing)["clip_low"]) == 0
