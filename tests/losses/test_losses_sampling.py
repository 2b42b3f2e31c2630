"""Importance weights and rejections for samplers that are not the trainer, and completions cut at their limit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from packed import Batch, batches, f64
from torch.testing import assert_close

from echelon.errors import DataError, UsageError
from echelon.losses.sampling import (
    effective_sample_size,
    finished_mask,
    masked_weight,
    on_policy_mask,
    sampler_gap,
    sequence_gap,
    soft_overlong,
    truncated_weight,
)
from echelon.spans import Spans

SEQUENCES = Spans.from_lengths([3, 3])
GAP = f64(0.1, -0.2, 0.3, 1, 0.5, 0.2)
close = {"atol": 5e-7, "rtol": 0}  # the digits printed in the sources


# ---- published numbers


def test_sequence_ratios_and_mask__code():
    whole = sequence_gap(SEQUENCES, GAP)
    assert_close(whole.exp()[[0, 3]], f64(1.221403, 5.473947), **close)
    assert_close(masked_weight(whole, high=3), f64(*[1.221403] * 3, 0, 0, 0), **close)
    assert_close(truncated_weight(whole, high=3), f64(*[1.221403] * 3, 3, 3, 3), **close)


def test_token_ratios__code():
    ratio = [1.105171, 0.818731, 1.349859, 2.718282, 1.648721, 1.221403]
    assert_close(truncated_weight(GAP, high=10), f64(*ratio), **close)
    ratio[3] = 2
    assert_close(truncated_weight(GAP), f64(*ratio), **close)
    ratio[3] = 0
    assert_close(masked_weight(GAP, high=2), f64(*ratio), **close)
    ratio[1] = 0
    assert_close(masked_weight(GAP, low=1, high=2), f64(*ratio), **close)
    ratio[1], ratio[3] = 1, 2
    assert_close(truncated_weight(GAP, low=1, high=2), f64(*ratio), **close)


def test_soft_overlong_punishment__paper():
    length = torch.tensor([5, 6, 7, 8, 9, 10, 12])
    penalty = soft_overlong(length, maximum=10, buffer=4)
    assert penalty.tolist() == [0, 0, -0.25, -0.5, -0.75, -1, -1]
    assert_close(soft_overlong(length, maximum=10, buffer=4, factor=0.5), penalty / 2)


# ---- gaps


def test_tokens_that_the_sampler_did_not_draw_have_ratio_one():
    old = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    gap = sampler_gap(old, torch.tensor([-1.5, math.nan, -3.0]), where=torch.tensor([True, True, False]))
    assert gap.tolist() == [0.5, 0, 0] and not gap.requires_grad
    assert truncated_weight(gap)[1:].tolist() == [1, 1]


def test_a_nan_of_the_trainer_stays_visible():
    assert sampler_gap(torch.tensor([math.nan]), torch.tensor([-1.0])).isnan().all()


@given(batches())
def test_sequence_gaps_agree_with_a_loop(batch: Batch):
    gap, where = batch.normal(1), batch.mask(2)
    for members in batch.members():
        used = [float(gap[i]) for i in members if where[i]]
        whole = {"sum": math.fsum(used), "mean": math.fsum(used) / max(len(used), 1)}
        for how, value in whole.items():
            got = sequence_gap(batch.sequences, gap, how, where=where)[members]  # type: ignore[arg-type]
            assert got.tolist() == pytest.approx([value] * len(members), abs=1e-12)


def test_overflowing_ratios_are_capped_or_dropped():
    gap = torch.tensor([1000.0, -1000.0])
    assert truncated_weight(gap).tolist() == [2, 0]
    assert masked_weight(gap).tolist() == [0, 0]


def test_float32_stays_float32():
    gap = GAP.float()
    for column in (sampler_gap(gap, gap), sequence_gap(SEQUENCES, gap), truncated_weight(gap), masked_weight(gap)):
        assert column.dtype == torch.float32
    assert soft_overlong(torch.tensor([5]), maximum=10, buffer=4).dtype == torch.float32


# ---- sequences that went off policy


@given(batches())
def test_on_policy_mask_agrees_with_a_loop(batch: Batch):
    log_prob, sampler, where = batch.normal(1), batch.normal(2), batch.mask(3)
    sampler = torch.where(batch.mask(5, 0.2), torch.nan, sampler)
    advantage = batch.sequences.expand(batch.sequences.reduce(batch.normal(4), "first"))
    columns = {"log_prob": log_prob, "sampler_log_prob": sampler, "advantage": advantage}
    kept = on_policy_mask(batch.sequences, **columns, threshold=0.5, where=where)
    for members in batch.members():
        used = [i for i in members if where[i]]
        drift = math.fsum(float(sampler[i] - log_prob[i]) for i in used if not sampler[i].isnan())
        good = float(advantage[members[0]]) >= 0 or drift / max(len(used), 1) <= 0.5
        assert kept[members].tolist() == [good] * len(members)


def test_on_policy_mask_drops_bad_sequences_that_drifted__code():
    sampler, now = f64(-1, -1, -1, -1, -1, -1), f64(-1.1, -1, -1, -3, -3, -3)
    for advantage, second in ((-1.0, False), (1.0, True)):
        columns = {"log_prob": now, "sampler_log_prob": sampler, "advantage": f64(*[advantage] * 6)}
        assert on_policy_mask(SEQUENCES, **columns, threshold=0.5).tolist() == [True] * 3 + [second] * 3


# ---- completions cut at their limit


def test_finished_completions_end_with_a_stop_token__code():
    token, stop = torch.tensor([5, 2, 7, 4, 4, 2]), torch.tensor([2, 0])
    assert finished_mask(SEQUENCES, token, stop).tolist() == [False] * 3 + [True] * 3
    permuted = Spans([0, 3, 6], [3, 4, 5, 0, 1, 2])
    assert finished_mask(permuted, token, stop).tolist() == [False] * 3 + [True] * 3


# ---- effective sample size


def test_effective_sample_size():
    assert float(effective_sample_size(torch.full((5,), 0.3))) == pytest.approx(5)
    assert float(effective_sample_size(torch.tensor([1.0, 0.0, 0.0]))) == 1
    assert float(effective_sample_size(torch.tensor([1.0, 3.0]))) == pytest.approx(1.6)
    assert float(effective_sample_size(torch.tensor([1.0, 3.0, 9.0]), where=torch.arange(3) < 2)) == pytest.approx(1.6)
    assert float(effective_sample_size(torch.zeros(3))) == 0
    assert float(effective_sample_size(torch.zeros(0))) == 0


# ---- what they refuse


def test_senseless_options_are_refused():
    with pytest.raises(UsageError, match="high must be positive, got 0"):
        truncated_weight(GAP, high=0)
    with pytest.raises(UsageError, match=r"low must be between 0 and high, 2\.0, got 3"):
        truncated_weight(GAP, low=3)
    with pytest.raises(UsageError, match="low must be between 0 and high"):
        masked_weight(GAP, low=-0.5)
    with pytest.raises(UsageError, match="unknown reduction of a sequence 'max'"):
        sequence_gap(SEQUENCES, GAP, "max")  # type: ignore[arg-type]
    for buffer in (0, 11):
        with pytest.raises(UsageError, match="buffer must be positive and at most the maximum, 10"):
            soft_overlong(torch.tensor([5]), maximum=10, buffer=buffer)
    with pytest.raises(UsageError, match="factor must be 0 or more"):
        soft_overlong(torch.tensor([5]), maximum=10, buffer=4, factor=-1)


def test_bad_columns_are_refused():
    advantage = GAP.clone()
    advantage[4] = math.nan
    columns = {"log_prob": GAP, "sampler_log_prob": GAP}
    with pytest.raises(DataError, match=r"advantage of sequence 1 \(item 4\) is nan"):
        on_policy_mask(SEQUENCES, **columns, advantage=advantage, threshold=0.5)
    with pytest.raises(DataError, match=r"advantage has shape \(2,\)"):
        on_policy_mask(SEQUENCES, **columns, advantage=f64(1, -1), threshold=0.5)
    with pytest.raises(DataError, match="old_log_prob has shape"):
        sampler_gap(GAP, GAP[:, None])
