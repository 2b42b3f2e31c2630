"""Planning tokens, entropy windows and difficulty buckets: numbers of their sources, and invariances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from checks import bools, doubles, printed
from forests import Forest, columns, forests
from hypothesis import given
from hypothesis import strategies as st

from echelon.credit.credit import Credit
from echelon.credit.groups import grpo
from echelon.credit.tokens import (
    EASY,
    HARD,
    MEDIUM,
    aepo,
    amplify,
    bucket_alpha,
    bucket_mean,
    bucket_target,
    difficulty,
    entropy_threshold,
    following_mean,
    hicra,
    hicra_code,
    high_entropy,
    partial_entropy,
    semantic_entropy,
    trigger_counts,
)
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree


def terms_sum(credit: Credit) -> None:
    torch.testing.assert_close(torch.stack(tuple(credit.terms.values())).sum(0), credit.advantage)


# ---- HICRA


def test_hicra_amplifies_success_and_dampens_failure__paper() -> None:
    base = Credit(doubles(0.8, -0.5, 0.8, -0.5))
    credit = amplify(base, bools(1, 1, 0, 0), 0.2)
    printed(credit.advantage, 0.96, -0.4, 0.8, -0.5)
    terms_sum(credit)


def test_hicra_semantic_entropy__paper() -> None:
    counts = torch.tensor([4, 2, 1, 1])
    torch.testing.assert_close(semantic_entropy(counts).item(), 1.213008, atol=5e-7, rtol=0)
    assert semantic_entropy(counts).item() / math.log(2) == pytest.approx(1.75, abs=1e-6)
    assert semantic_entropy(torch.tensor([], dtype=torch.int64)) == semantic_entropy(torch.tensor([0, 0])) == 0


def test_hicra_entropy_threshold__code() -> None:
    entropy = doubles(0.1, 0.9, 0.4, 0.2, 1.5, 0.3, 0.05, 0.6, 0.7, 0.0)
    assert high_entropy(Spans([0, 10]), entropy).nonzero()[:, 0].tolist() == [1, 4]
    assert not high_entropy(Spans([0, 10]), torch.ones(10)).any()
    assert high_entropy(Spans([0, 5]), torch.arange(5.0), top=0.8).tolist() == [False, False, True, True, True]


RIGHT_LONG = SpanTree({"group": Spans([0, 8]), "episode": (Spans.from_lengths([4, 2, 2]), "group")})
ROWS: dict[str, Any] = {
    "reward": doubles(1, 0, 1),
    "entropy": doubles(0.1, 0.2, 0.3, 0.4, 0.1, 0.9, 0.1, 0.9),
    "top": 0.5,
    "ddof": 0,
    "eps": 0,
}


def test_hicra_of_long_right_answers__code() -> None:
    a, b = math.sqrt(0.5), -math.sqrt(2)
    credit = hicra_code(RIGHT_LONG, **ROWS)
    printed(credit.advantage, a, a, a, 1.2 * a, b, b, a, a)
    terms_sum(credit)
    planning = bools(1, 0, 0, 1, 1, 0, 0, 1)
    credit = hicra_code(RIGHT_LONG, **ROWS, planning=planning)  # a token chosen twice counts once
    printed(credit.advantage, 1.2 * a, a, a, 1.2 * a, 0.8 * b, b, a, 1.2 * a)


@given(data=st.data())
def test_hicra_without_amplification_is_grpo(data: st.DataObject) -> None:
    forest = data.draw(forests())
    reward, entropy = columns(data.draw, forest.tree["episode"].n), columns(data.draw, forest.size)
    planning = columns(data.draw, forest.size) > 0
    base = grpo(forest.tree.within("episode", "group"), reward=reward).expand(forest.tree["episode"])
    nothing, none = torch.zeros_like(planning), torch.full_like(entropy, 0.1)
    for credit in (
        hicra(forest.tree, reward=reward, planning=planning, alpha=0.0),
        hicra(forest.tree, reward=reward, planning=nothing),
        hicra_code(forest.tree, reward=reward, entropy=none),
        hicra_code(forest.tree, reward=reward, entropy=entropy, planning=planning, alpha=0.0),
    ):
        torch.testing.assert_close(credit.advantage, base.advantage)
        assert credit.weight.all()


@given(data=st.data())
def test_permuting_tokens_permutes_the_result(data: st.DataObject) -> None:
    forest = data.draw(forests())
    reward, entropy = columns(data.draw, forest.tree["episode"].n), columns(data.draw, forest.size)
    planning = columns(data.draw, forest.size) > 0
    tree, slots = packed(forest), forest.slots
    there = hicra(forest.tree, reward=reward, planning=planning)
    here = hicra(tree, reward=reward, planning=planning[slots])
    torch.testing.assert_close(there.advantage[slots], here.advantage)
    terms_sum(there)
    there = hicra_code(forest.tree, reward=reward, entropy=entropy, planning=planning, top=0.5)
    here = hicra_code(tree, reward=reward, entropy=entropy[slots], planning=planning[slots], top=0.5)
    torch.testing.assert_close(there.advantage[slots], here.advantage)
    terms_sum(there)
    same = hicra_code(tree, reward=torch.full_like(reward, 0.1), entropy=entropy[slots], planning=planning[slots])
    assert not same.advantage.any()


def packed(forest: Forest) -> SpanTree:
    """The same forest with its items in the order of memory."""
    group, episode = (Spans(forest.tree[name].offsets) for name in ("group", "episode"))
    return SpanTree({"group": group, "episode": (episode, "group")})


# ---- ARES


def test_ares_entropy_of_kept_probabilities__code() -> None:
    log_prob = doubles(0.6, 0.3).log()[None]
    printed(partial_entropy(log_prob), 0.897946)
    printed(partial_entropy(log_prob, rest="none"), -0.6 * math.log(0.6) - 0.3 * math.log(0.3))
    whole = doubles(0.5, 0.25, 0.25, 0).log()[None]
    printed(partial_entropy(whole), 1.5 * math.log(2))
    assert torch.isfinite(partial_entropy(torch.full((1, 2), -0.1))).all()  # rounding may carry the sum above one


def test_ares_window_after_a_word__code() -> None:
    mean, complete = following_mean(Spans([0, 7]), doubles(0.2, 2, 1, 1, 1, 1, 0.1))
    printed(mean[1], 1.0)
    assert complete.tolist() == [True] * 3 + [False] * 4
    short = following_mean(Spans.from_lengths([4, 5]), torch.ones(9))[1]
    assert short.nonzero()[:, 0].tolist() == [4]


def test_ares_triggers__code() -> None:
    completions = Spans.from_lengths([6, 3])
    entropy = doubles(9, 2, 3, 1, 0, 9, 5, 5, 5)
    trigger = bools(1, 0, 1, 0, 0, 1, 1, 0, 0)
    found = trigger_counts(completions, entropy=entropy, trigger=trigger, threshold=2.0, width=2)
    assert found.valid.tolist() == [1, 1]
    assert found.invalid.tolist() == [1, 0]
    printed(found.cost, 0.5, 3)


@given(data=st.data())
def test_ares_windows_of_permuted_tokens(data: st.DataObject) -> None:
    forest = data.draw(forests())
    entropy, trigger = columns(data.draw, forest.size, 0, 2), columns(data.draw, forest.size) > 0
    there, here, slots = forest.tree["episode"], packed(forest)["episode"], forest.slots
    for x, y in zip(
        trigger_counts(there, entropy=entropy, trigger=trigger, threshold=1.0, width=2),
        trigger_counts(here, entropy=entropy[slots], trigger=trigger[slots], threshold=1.0, width=2),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    thresholds = [entropy_threshold(s, entropy=e, width=2) for s, e in ((there, entropy), (here, entropy[slots]))]
    torch.testing.assert_close(*thresholds, equal_nan=True)


def released_threshold(rows: list[list[float]], width: int, percent: float) -> float:
    """The released rule: at the end of a completion the mean of the windows before."""
    marks = []
    for row in rows:
        windows: list[float] = []
        for i in range(len(row)):
            full = len(row) - i - 1 >= width
            windows.append(float(np.mean(row[i + 1 : i + 1 + width] if full else windows)))
        marks.append(np.percentile(windows, percent))
    return float(np.median(marks))


@given(data=st.data())
def test_ares_threshold_is_that_of_the_release__code(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(4, 12), min_size=1, max_size=4))
    rows = [columns(data.draw, n, 0, 3).tolist() for n in lengths]
    entropy = doubles(*[x for row in rows for x in row])
    statistic = released_threshold(rows, 3, 95)
    theta = entropy_threshold(Spans.from_lengths(lengths), entropy=entropy, width=3)
    assert theta.item() == pytest.approx(statistic)
    theta = entropy_threshold(Spans.from_lengths(lengths), entropy=entropy, previous=doubles(1.0)[0], width=3)
    assert theta.item() == pytest.approx(0.99 + 0.01 * statistic)


def test_ares_threshold_without_a_window_stays__reconstructed() -> None:
    short = {"entropy": doubles(1, 2, 3, 4), "width": 4}
    assert entropy_threshold(Spans([0, 4]), **short).isnan()
    assert entropy_threshold(Spans([0, 4]), **short, previous=doubles(0.7)[0]) == 0.7
    mixed = {"entropy": doubles(9, 9, 1, 2, 3, 4), "width": 2}
    printed(entropy_threshold(Spans.from_lengths([2, 4]), **mixed), 3.425)


def test_ares_difficulty_of_a_prompt__code() -> None:
    correct = bools(1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1)
    assert difficulty(Spans.from_lengths([3, 3, 4, 1]), correct=correct).tolist() == [EASY, MEDIUM, HARD, EASY]


def test_ares_targets_and_strengths__code() -> None:
    groups = Spans.from_lengths([2, 2, 2])
    count = torch.tensor([3, 5, 4, 3, 2, 3])
    mean = bucket_mean(groups, count=count, difficulty=torch.tensor([EASY, EASY, HARD]))
    printed(mean[[EASY, HARD]].double(), 3.75, 2.5)
    assert mean[MEDIUM].isnan()
    target = bucket_target(mean, previous=torch.tensor([9.0, 7, 9]))
    assert target.tolist() == [4, 7, 2]  # halves go to the even
    alpha = torch.full((3,), 0.5)
    printed(bucket_alpha(alpha, mean=mean, target=target).double(), 0.4875, 0.5, 0.475, atol=1e-6)
    edge = bucket_alpha(torch.tensor([2.0, 2, 0]), mean=torch.tensor([9.0, 0, 9]), target=torch.tensor([1.0, 9, 1]))
    printed(edge.double(), 2, 1.55, 0, atol=1e-6)


def test_aepo_filters_groups_by_their_mean_reward__code() -> None:
    groups = Spans.from_lengths([3, 4, 3])
    reward = doubles(1, 1, -0.2, 0.4, 0.4, 0.4, 1.4, 1.2, 1.2, 0.6)
    credit = aepo(groups, reward=reward)
    assert credit.weight.tolist() == [1] * 7 + [0] * 3
    torch.testing.assert_close(credit.advantage[:7], grpo(groups, reward=reward).advantage[:7])
    assert not credit.advantage[7:].any()
    assert not aepo(groups, reward=torch.zeros(10)).weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    reward, entropy = ROWS["reward"].to(dtype), ROWS["entropy"].to(dtype)
    assert hicra_code(RIGHT_LONG, reward=reward, entropy=entropy).advantage.dtype == dtype
    assert hicra(RIGHT_LONG, reward=reward, planning=entropy > 0.2).advantage.dtype == dtype
    assert entropy_threshold(RIGHT_LONG["episode"], entropy=entropy, width=1).dtype == dtype
    assert aepo(Spans([0, 3]), reward=reward).advantage.dtype == dtype


def test_errors_name_the_place() -> None:
    bad = ROWS["entropy"].index_fill(0, torch.tensor([5]), math.nan)
    with pytest.raises(DataError, match=r"entropy of completion 1 \(item 5\)"):
        hicra_code(RIGHT_LONG, **(ROWS | {"entropy": bad}))
    with pytest.raises(DataError, match=r"entropy of completion 1 \(item 5\)"):
        following_mean(RIGHT_LONG["episode"], bad)
    with pytest.raises(DataError, match="reward of completion 1 is nan"):
        aepo(Spans([0, 2]), reward=doubles(1, math.nan))
    with pytest.raises(DataError, match="reward of completion 0 is inf"):
        hicra(RIGHT_LONG, reward=doubles(math.inf, 0, 0), planning=torch.zeros(8, dtype=torch.bool))
