"""Losses and their gradients against the independent references, on random packed batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from packed import Batch, batches, gradient
from reference import losses_policy as reference
from torch import Tensor
from torch.testing import assert_close

from echelon.losses.aggregate import Counts, Mode, loss_weights
from echelon.losses.kl import adapt_beta, categorical_kl, entropy, kl_estimate, kl_reward, top_entropy
from echelon.losses.sampling import (
    masked_weight,
    on_policy_mask,
    sampler_gap,
    sequence_gap,
    soft_overlong,
    truncated_weight,
)
from echelon.losses.surrogate import cispo, gspo, log_ratio, ppo_clip, reinforce, sapo
from echelon.spans import Spans

epsilon = st.floats(0, 0.9)
bound = st.none() | st.floats(1.1, 4)
MODES = st.sampled_from(
    ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
)


def rows(batch: Batch, column: Tensor) -> list[list[Any]]:
    """The column as rows[sequence][token]; masks become 0 and 1."""
    values = (column.long() if column.dtype == torch.bool else column).tolist()
    return [[values[i] for i in members] for members in batch.members()]


def column(batch: Batch, values: list[list[float]]) -> Tensor:
    """rows[sequence][token] as a float64 column of the batch."""
    out = torch.empty(batch.sequences.size, dtype=torch.float64)
    for members, row in zip(batch.members(), values, strict=True):
        out[members] = torch.tensor(row, dtype=torch.float64)
    return out


def agree(batch: Batch, loss: Callable[[Tensor], Tensor], expected: dict[str, Any], log_prob: Tensor) -> None:
    """The loss of every token and its derivative in the token's log-probability."""
    log_prob = log_prob.clone().requires_grad_()
    value = loss(log_prob)
    assert_close(value.detach(), column(batch, expected["loss"]))
    assert_close(gradient(value.sum(), log_prob)[0], column(batch, expected["grad"]))


def policies(batch: Batch) -> tuple[Tensor, Tensor, Tensor, list[Any], list[Any], list[Any]]:
    """Present and old log-probabilities and advantages, as columns and as rows."""
    now, old, advantage = batch.normal(1) - 2, batch.normal(2) - 2, batch.normal(3)
    return now, old, advantage, rows(batch, now), rows(batch, old), rows(batch, advantage)


@given(batches(), epsilon, epsilon, bound, bound, st.none() | st.floats(0.1, 3))
def test_ppo_clip(batch, low, high, dual, delta, clamp):
    now, old, a, *listed = policies(batch)
    agree(
        batch,
        lambda x: ppo_clip(log_ratio(x, old, bound=clamp), a, low=low, high=high, dual=dual, delta=delta),
        reference.ppo_clip_loss(*listed, low, high, dual, delta, clamp),
        now,
    )
    single = ppo_clip(log_ratio(now.float(), old.float()), a.float(), low=low, high=high)
    assert single.dtype == torch.float32
    assert_close(single.double(), ppo_clip(now - old, a, low=low, high=high), rtol=1e-4, atol=1e-5)


@given(batches(), epsilon, epsilon, st.none() | st.floats(0.1, 3))
def test_gspo(batch, low, high, limit):
    now, old, a, *listed = policies(batch)
    where = batch.mask(4)
    expected = reference.gspo_loss(*listed, rows(batch, where), low, high, limit)
    expected["grad"] = [  # what the aggregation leaves out has no gradient to begin with
        [g * m for g, m in zip(*pair, strict=True)] for pair in zip(expected["grad"], rows(batch, where), strict=True)
    ]
    loss = lambda x: gspo(batch.sequences, x - old, a, low=low, high=high, where=where, limit=limit)  # noqa: E731
    agree(batch, loss, expected, now)


@given(batches())
def test_gspo_of_whole_sequences(batch: Batch):
    now, old, a, *listed = policies(batch)
    a, where = batch.sequences.expand(batch.sequences.reduce(a, "first")), batch.mask(4)
    first = [float(a[members[0]]) for members in batch.members()]
    expected = reference.gspo_sequence_loss(listed[0], listed[1], first, rows(batch, where), 0.2, 0.3)
    weight = loss_weights(batch.sequences, "seq-mean-token-mean", where=where, total=Counts(1, 1), dtype=torch.float64)
    log_prob = now.clone().requires_grad_()
    loss = (weight * gspo(batch.sequences, log_prob - old, a, low=0.2, high=0.3, where=where)).sum()
    assert_close(gradient(loss, log_prob)[0], column(batch, expected["grad"]))


@given(batches(), st.floats(0, 3), epsilon)
def test_cispo(batch, high, low):
    now, old, a, *listed = policies(batch)
    agree(batch, lambda x: cispo(x, x - old, a, high=high), reference.cispo_loss(*listed, 1 + high), now)
    agree(batch, lambda x: cispo(x, x - old, a, low=low, high=high), reference.cispo_loss(*listed, high, low), now)


@given(batches(), st.floats(0.5, 2), st.floats(0.5, 2))
def test_sapo_and_reinforce(batch, tau_positive, tau_negative):
    now, old, a, *listed = policies(batch)
    agree(
        batch,
        lambda x: sapo(x - old, a, tau_positive=tau_positive, tau_negative=tau_negative),
        reference.sapo_loss(*listed, tau_positive, tau_negative),
        now,
    )
    agree(batch, lambda x: reinforce(x, a), reference.reinforce_loss(listed[0], listed[2]), now)


@given(batches(), MODES, st.booleans(), st.sampled_from([0.0, 0.3, 1.0]), st.none() | st.integers(1, 40))
def test_aggregation(batch: Batch, mode: Mode, keep: bool, share: float, counts: int | None):
    loss, where = batch.normal(1), batch.mask(2, share)
    length = 4.0 if mode == "seq-mean-token-sum-norm" else None
    weight = loss_weights(
        batch.sequences,
        mode,
        where=where,
        empty="counted" if keep else "excluded",
        length=length,
        total=None if counts is None else Counts(2 * counts, counts),
        dtype=torch.float64,
    )
    expected = reference.aggregate(
        rows(batch, loss),
        rows(batch, where),
        mode,
        "keep" if keep else "exclude",
        length,
        None if counts is None else 2 * counts,
        counts,
    )
    assert math.isclose(float((weight * loss).sum()), expected, abs_tol=1e-12)


@given(batches(), st.sampled_from(["k1", "k2", "k3"]))
def test_kl_estimates(batch, estimator):
    now, old, ref = batch.normal(1) - 2, batch.normal(2) - 2, batch.normal(3) - 2
    listed = rows(batch, now), rows(batch, ref)
    agree(batch, lambda x: kl_estimate(x, ref, estimator=estimator), reference.kl_estimate(*listed, estimator), now)
    through = reference.kl_estimate(*listed, estimator + "+")
    agree(batch, lambda x: kl_estimate(x, ref, estimator=estimator, gradient="k2"), through, now)
    agree(
        batch,
        lambda x: kl_estimate(x, ref, gradient="ratio", log_ratio=x - old),
        reference.kl_estimate(*listed, "r_k3", rows(batch, old)),
        now,
    )
    far = 8 * ref
    clamped = reference.kl_estimate(listed[0], rows(batch, far), "low_var_kl")
    agree(batch, lambda x: kl_estimate(x, far, bound=20, limit=10), clamped, now)
    penalised = reference.kl_in_reward(rows(batch, old), *listed, 0.1)
    assert_close(old + kl_reward(now, ref, beta=0.1), column(batch, penalised))


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=5))
def test_exact_divergence_and_entropy(pairs):
    logits, ref = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    logits.requires_grad_()
    for ours, theirs in (
        (categorical_kl(logits, ref), reference.kl_true(logits.tolist(), ref.tolist())),
        (entropy(logits), reference.entropy(logits.tolist())),
        (entropy(logits / 0.7), reference.entropy(logits.tolist(), 0.7)),
    ):
        assert math.isclose(float(ours.detach()), theirs["value"], abs_tol=1e-12)
        assert_close(gradient(ours, logits)[0], torch.tensor(theirs["gradient"], dtype=torch.float64))


@given(st.floats(0.001, 1), st.floats(0, 1), st.integers(1, 1000), st.floats(0.01, 1))
def test_adaptive_coefficient(beta, kl, n, target):
    theirs = reference.adaptive_kl_coefficient(beta, kl, n, target, 1000.0)
    assert math.isclose(adapt_beta(beta, kl, n=n, target=target, horizon=1000), theirs)


@given(batches(), st.floats(0.05, 1))
def test_top_entropy_of_the_batch(batch, fraction):
    values, where = batch.normal(1).abs(), batch.mask(2)
    where[0] = True
    everything = Spans.from_lengths([batch.sequences.size])
    ours = top_entropy(everything, values, fraction, where=where)
    theirs = reference.top_entropy_mask(rows(batch, values), rows(batch, where), fraction)
    assert rows(batch, ours) == theirs


@given(batches(), st.floats(0, 1), st.floats(1, 4))
def test_importance_weights(batch, low, high):
    old, where = batch.normal(1), batch.mask(3)
    sampler = torch.where(batch.mask(4, 0.2), torch.nan, batch.normal(2))
    listed = rows(batch, old), rows(batch, sampler)
    token = sampler_gap(old, sampler)
    whole = sequence_gap(batch.sequences, token, where=where)
    for mode, weight in (
        ("truncate", lambda gap: truncated_weight(gap, high=high)),
        ("mask", lambda gap: masked_weight(gap, low=low, high=high)),
    ):
        assert_close(weight(token), column(batch, reference.token_importance(*listed, mode, high, low)))
        per_sequence = reference.sequence_importance(*listed, rows(batch, where), mode, high, low)
        ours = batch.sequences.reduce(weight(whole), "first")
        assert_close(ours, torch.tensor(per_sequence, dtype=torch.float64))


@given(batches(), st.floats(0.1, 1))
def test_off_policy_sequences(batch, threshold):
    now, sampler, where = batch.normal(1), batch.normal(2), batch.mask(3)
    advantage = batch.sequences.reduce(batch.normal(4), "first")
    kept = on_policy_mask(
        batch.sequences,
        log_prob=now,
        sampler_log_prob=sampler,
        advantage=batch.sequences.expand(advantage),
        threshold=threshold,
        where=where,
    )
    theirs = reference.off_policy_mask(
        rows(batch, now), rows(batch, sampler), advantage.tolist(), rows(batch, where), threshold
    )
    assert batch.sequences.reduce(kept, "first").long().tolist() == theirs


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 20), st.floats(0, 2))
def test_soft_overlong_up_to_the_limit(lengths, buffer, factor):
    ours = soft_overlong(torch.tensor(lengths, dtype=torch.float64), maximum=20, buffer=buffer, factor=factor)
    theirs = reference.soft_overlong_penalty([lengths], 20, buffer, factor)[0]
    assert_close(ours, torch.tensor(theirs, dtype=torch.float64))
