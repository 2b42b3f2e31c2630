"""Aggregation weights: published numbers, a padded reference, and one gradient for every split of the batch."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed import Batch, batches, f64, gradient
from torch import Tensor
from torch.testing import assert_close

from echelon.errors import DataError, UsageError
from echelon.losses.aggregate import Counts, Mode, loss_weights, over_ranks
from echelon.losses.surrogate import log_ratio, ppo_clip
from echelon.spans import Spans

SEQUENCES = Spans.from_lengths([3, 2])
MODES: list[Mode] = [
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "token-sum",
]
every_mode = st.sampled_from(MODES)


def weights(sequences: Spans, mode: Mode, **options) -> Tensor:
    length = 4 if mode == "seq-mean-token-sum-norm" else None
    return loss_weights(sequences, mode, length=length, dtype=torch.float64, **options)


def aggregated(high: float) -> Tensor:
    """The five losses of a batch of two sequences."""
    loss = ppo_clip(f64(1, 1.5, 0.5, 1.5, 0.5).log(), f64(1, 1, 1, -1, -1), low=0.2, high=high)
    return torch.stack([(weights(SEQUENCES, mode) * loss).sum() for mode in MODES])


# ---- published numbers


def test_modes__paper():
    assert_close(aggregated(0.2), f64(-0.08, 0.125, -0.2, -0.05, -0.4))


def test_modes_with_clip_higher__paper():
    assert_close(aggregated(0.28), f64(-0.096, 0.111667, -0.24, -0.06, -0.48), atol=5e-7, rtol=0)


def test_token_mean_and_sequence_mean_pull_in_opposite_directions__paper():
    """One long good sequence, one short bad one of the same log-probability gradient."""
    spans, advantage = Spans.from_lengths([6, 1]), f64(*[1.0] * 6, -3.0)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    slope = [
        float(gradient((weights(spans, mode) * ppo_clip(theta.expand(7), advantage)).sum(), theta)[0])
        for mode in ("token-mean", "seq-mean-token-mean")
    ]
    assert slope == pytest.approx([-3 / 7, 1.0])
    assert float(aggregated(0.2)[0]) < 0 < float(aggregated(0.2)[1])


def test_masked_sequences_are_excluded_or_counted__code():
    where = torch.tensor([True, True, True, False, False])
    for mode in ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        verl, trl = (weights(SEQUENCES, mode, where=where, empty=rule) for rule in ("excluded", "counted"))
        assert_close(verl, 2 * trl)
        assert verl[3:].eq(0).all()
    assert_close(weights(SEQUENCES, "seq-mean-token-mean", where=where).sum(), f64(1)[0])


def test_nothing_divides_by_zero__code():
    nobody = torch.zeros(5, dtype=torch.bool)
    for mode in MODES:
        assert weights(SEQUENCES, mode, where=nobody).tolist() == [0] * 5
        assert weights(Spans([0]), mode).shape == (0,)


# ---- one gradient for every split


def parts(batch: Batch, cut: int) -> list[tuple[Spans, Tensor]]:
    """Two micro-batches: the first `cut` sequences and the others; every other sequence if cut is 0."""
    ids = torch.arange(batch.sequences.n)
    first = ids < cut if cut else ids % 2 == 0
    return [batch.sequences.take(ids[first]), batch.sequences.take(ids[~first])]


def step_gradient(batch: Batch, theta: Tensor, weight: Tensor, items: Tensor) -> Tensor:
    """The gradient of part of a step's loss in three shared parameters."""
    features = torch.stack([batch.normal(salt) for salt in (1, 2, 3)], 1)
    log_prob = features[items] @ theta
    loss = ppo_clip(log_ratio(log_prob, batch.normal(4, 0.1)[items]), batch.normal(5)[items])
    return gradient((weight * loss).sum(), theta)[0]


@given(batches(), every_mode, st.sampled_from(["excluded", "counted"]), st.integers(0, 5))
def test_micro_batches_add_up(batch: Batch, mode: Mode, empty, cut: int):
    spans, where, role = batch.sequences, batch.mask(6), batch.normal(7)
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    whole = weights(spans, mode, where=where, weight=role, empty=empty)
    expected = step_gradient(batch, theta, whole, torch.arange(spans.size))

    tokens = spans.reduce(where, "sum")
    counts = Counts(int(where.sum()), spans.n if empty == "counted" else int((tokens > 0).sum()))
    sliced, streamed = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for part, items in parts(batch, cut):
        sliced += step_gradient(batch, theta, whole[items], items)
        own = weights(part, mode, where=where[items], weight=role[items], empty=empty, total=counts)
        assert_close(own, whole[items])
        streamed += step_gradient(batch, theta, own, items)
    assert_close(sliced, expected)
    assert_close(streamed, expected)


def test_a_mean_of_micro_batch_means_is_not_the_gradient_of_the_batch():
    """What the weights are there to avoid."""
    loss, halves = f64(1, 1, 1, 5), [Spans.from_lengths([3]), Spans.from_lengths([1])]
    local = [(weights(half, "token-mean") * part).sum() for half, part in zip(halves, loss.split([3, 1]), strict=True)]
    assert float(sum(local)) / 2 == 3.0
    assert float((weights(Spans.from_lengths([3, 1]), "token-mean") * loss).sum()) == 2.0


def rank_gradient(batch: Batch, rank: int, mode: Mode) -> Tensor:
    """This rank's gradient, summed over ranks."""
    part, items = parts(batch, 1)[rank]
    where = batch.mask(6)[items]
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    weight = weights(part, mode, where=where, weight=batch.normal(7)[items], total=over_ranks)
    return over_ranks(step_gradient(batch, theta, weight, items))


def join_and_save(rank: int, folder: Path, batch: Batch) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([rank_gradient(batch, rank, mode) for mode in MODES], folder / f"{rank}.pt")
    mine = torch.tensor([1, rank])
    assert over_ranks(mine).tolist() == [2, 1] and mine.tolist() == [1, rank]
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def fork(body) -> int:
    """Start `body` in a child that ends within 60 s; return its process id."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            body()
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def test_two_processes_have_the_gradient_of_one(tmp_path: Path):
    batch = Batch(Spans.from_lengths([4, 1, 3, 2]), seed=3)
    children = [fork(partial(join_and_save, rank, tmp_path, batch)) for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    everything = torch.arange(batch.sequences.size)
    for mode, first, second in zip(MODES, torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt"), strict=True):
        whole = weights(batch.sequences, mode, where=batch.mask(6), weight=batch.normal(7))
        assert_close(first, step_gradient(batch, theta, whole, everything))
        assert_close(second, first)


# ---- weights, types, other units


def test_item_weights_multiply_and_leave_the_counts_alone():
    role = f64(2, 0, 1, 1, 3)
    for mode in MODES:
        assert_close(weights(SEQUENCES, mode, weight=role), role * weights(SEQUENCES, mode))
    assert not weights(SEQUENCES, "token-mean", weight=role.requires_grad_()).requires_grad


def test_a_masked_item_may_hold_nan():
    role = f64(1, float("nan"), 1, 1, 1)
    where = torch.arange(5) != 1
    assert weights(SEQUENCES, "token-mean", where=where, weight=role).tolist() == [0.25, 0, 0.25, 0.25, 0.25]


def test_width_of_the_weights():
    assert loss_weights(SEQUENCES, "token-mean").dtype == torch.float32
    for narrow, wanted in (
        (torch.bfloat16, torch.float32),
        (torch.bool, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert loss_weights(SEQUENCES, "token-mean", weight=torch.ones(5, dtype=narrow)).dtype == wanted
    assert loss_weights(SEQUENCES, "token-mean", weight=f64(*[1.0] * 5), dtype=torch.float32).dtype == torch.float32


def test_groups_as_units_give_every_prompt_one_vote():
    groups = Spans.by_key(torch.tensor([0, 1, 0, 0, 1]))
    assert weights(groups, "seq-mean-token-mean").tolist() == pytest.approx([1 / 6, 1 / 4, 1 / 6, 1 / 6, 1 / 4])


def test_counts_may_add_completions_without_a_token():
    assert_close(weights(SEQUENCES, "seq-mean-token-sum", total=Counts(5, 4)), f64(*[0.25] * 5))


# ---- what it refuses


def test_unknown_options_are_refused():
    with pytest.raises(UsageError, match="unknown aggregation mode 'token_mean'; did you mean token-mean"):
        loss_weights(SEQUENCES, "token_mean")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown rule for empty sequences 'exclude'; did you mean excluded"):
        loss_weights(SEQUENCES, "token-mean", empty="exclude")  # type: ignore[arg-type]
    for length in (None, 0, float("nan")):
        with pytest.raises(UsageError, match="length must be a positive number in mode seq-mean-token-sum-norm"):
            loss_weights(SEQUENCES, "seq-mean-token-sum-norm", length=length)
    with pytest.raises(UsageError, match="length must be left out in mode token-mean"):
        loss_weights(SEQUENCES, "token-mean", length=512)


def test_bad_columns_are_refused():
    with pytest.raises(DataError, match=r"weight of sequence 1 \(item 4\) is nan"):
        loss_weights(SEQUENCES, "token-mean", weight=f64(1, 1, 1, 1, float("nan")))
    with pytest.raises(DataError, match=r"where must be a bool column, got torch\.float32"):
        loss_weights(SEQUENCES, "token-mean", where=torch.ones(5))
    with pytest.raises(DataError, match=r"where has shape \(4,\)"):
        loss_weights(SEQUENCES, "token-mean", where=torch.ones(4, dtype=torch.bool))
    with pytest.raises(DataError, match=r"weight has shape \(5, 1\)"):
        loss_weights(SEQUENCES, "token-mean", weight=torch.ones(5, 1))
