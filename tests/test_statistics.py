"""Aggregates and bootstrap intervals: rliable's numbers, a naive reference, and what must hold of any interval.

The numbers marked "rliable" were printed by rliable 1.2.0 (with arch 7.2.0, scipy 1.17.1, numpy 2.4.6) from the tables
X and Y below: `metrics.aggregate_iqm`, `aggregate_mean`, `probability_of_improvement`, and
`library.get_interval_estimates` with 50 000 repetitions (20 000 for two arms) after `numpy.random.seed(0)`.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.errors import UsageError
from echelon.evidence import statistics
from echelon.evidence.statistics import (
    difference,
    estimate,
    iqm,
    mean,
    probability_of_improvement,
    resample,
)

# runs x tasks
X = np.array([[12, 40, 71, 93], [18, 35, 64, 90], [9, 52, 77, 99], [22, 47, 58, 85], [15, 31, 80, 96]], dtype=float)
Y = np.array([[10, 33, 71, 88], [14, 35, 55, 91], [7, 41, 60, 80]], dtype=float)

SCORES = arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)), elements=st.floats(0, 100)
)


def by_task(table: np.ndarray) -> list[np.ndarray]:
    """Each task as a stratum of its own, [run, 1, 1]: rliable resamples the runs of every task independently."""
    return [table[:, [task], None] for task in range(table.shape[1])]


def test_aggregates_are_those_of_rliable() -> None:
    assert iqm(X.ravel()) == pytest.approx(55.5, abs=1e-12)
    assert iqm(Y.ravel()) == pytest.approx(49.166666666666664, abs=1e-12)
    assert mean(X.ravel()) == pytest.approx(54.7, abs=1e-12)
    assert probability_of_improvement(X, Y) == pytest.approx(0.75, abs=1e-12)
    assert probability_of_improvement(Y, X) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize(
    ("table", "aggregate", "low", "high"),
    [
        (X, iqm, 50.6, 60.3),
        (X, mean, 51.85, 57.5),
        (Y, iqm, 45.16666667, 53.66666667),
        (Y, mean, 46.16666667, 51.41666667),
    ],
)
def test_intervals_are_those_of_rliable(
    table: np.ndarray, aggregate: statistics.Aggregate, low: float, high: float
) -> None:
    found = estimate(by_task(table), aggregate, draws=len(table), repetitions=20_000)
    assert found.low == pytest.approx(low, abs=0.2)
    assert found.high == pytest.approx(high, abs=0.2)


def test_interval_of_a_difference_is_that_of_rliable() -> None:
    rng = np.random.default_rng(0)
    arms = [np.concatenate([resample(s, 20_000, rng, len(table)) for s in by_task(table)], -1) for table in (X, Y)]
    found = statistics.interval(5.95, arms[0].mean((1, 2)) - arms[1].mean((1, 2)))
    assert (found.low, found.high) == (pytest.approx(2.06625, abs=0.2), pytest.approx(9.8, abs=0.2))
    better = statistics.interval(0.75, probability_of_improvement(*arms))
    assert (better.low, better.high) == (pytest.approx(0.56666667, abs=0.02), pytest.approx(0.90833333, abs=0.02))


def test_interquartile_mean_by_hand() -> None:
    assert iqm(np.array([0.0, 1, 2, 3, 4, 5, 6, 100])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm(np.array([7.0])) == 7
    assert iqm(np.array([1.0, 2, 9])) == pytest.approx(4)
    assert iqm(np.array([[1.0, 1, 1, 50], [4, 3, 2, 1]])) == pytest.approx([1, 2.5])


@given(
    arrays(np.int64, st.tuples(st.integers(1, 5), st.just(2)), elements=st.integers(0, 3)),
    arrays(np.int64, st.tuples(st.integers(1, 5), st.just(2)), elements=st.integers(0, 3)),
)
def test_probability_of_improvement_counts_pairs(x: np.ndarray, y: np.ndarray) -> None:
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for task in range(2) for a in x[:, task] for b in y[:, task]]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(wins))
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)


def naive_resample(scores: np.ndarray, rng: np.random.Generator) -> float:
    """One bootstrap mean, drawn in loops."""
    seeds, tasks, episodes = scores.shape
    means = []
    for seed in [rng.integers(seeds) for _ in range(max(seeds - 1, 1))]:
        for task in range(tasks):
            means.append(np.mean([scores[seed, task, rng.integers(episodes)] for _ in range(episodes)]))
    return float(np.mean(means))


def test_resampling_is_distributed_as_drawn_in_loops() -> None:
    rng = np.random.default_rng(3)
    scores = 100.0 * (rng.random((3, 2, 4)) < np.array([0.2, 0.5, 0.9])[:, None, None])
    slow = np.array([naive_resample(scores, rng) for _ in range(4000)])
    fast = resample(scores, 40_000, rng).mean((1, 2))
    assert fast.mean() == pytest.approx(slow.mean(), abs=1.5)
    assert fast.std() == pytest.approx(slow.std(), rel=0.05)
    assert np.quantile(fast, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(slow, [0.025, 0.5, 0.975]), abs=5)


def test_variance_of_seeds_without_episodes_is_unbiased() -> None:
    scores = np.array([10.0, 40, 90])[:, None, None]
    samples = resample(scores, 200_000, np.random.default_rng(0)).mean((1, 2))
    assert samples.var() == pytest.approx(np.var([10, 40, 90], ddof=1) / 3, rel=0.02)


@given(SCORES)
def test_intervals_lie_within_the_scores_and_hold_the_value(scores: np.ndarray) -> None:
    for aggregate in (mean, iqm):
        found = estimate([scores], aggregate, repetitions=50)
        assert scores.min() - 1e-9 <= found.low <= found.high <= scores.max() + 1e-9
        assert scores.min() - 1e-9 <= found.value <= scores.max() + 1e-9


@given(SCORES, st.floats(-50, 50))
def test_a_shift_of_all_scores_shifts_the_interval(scores: np.ndarray, by: float) -> None:
    one, two = estimate([scores], repetitions=50), estimate([scores + by], repetitions=50)
    assert (two.value, two.low, two.high) == pytest.approx((one.value + by, one.low + by, one.high + by), abs=1e-6)


@given(SCORES)
def test_the_same_seed_gives_the_same_interval_and_order_of_arms_its_mirror(scores: np.ndarray) -> None:
    other = scores[::-1] * 0.5
    assert difference(scores, other, repetitions=50) == difference(scores, other, repetitions=50)
    assert difference(scores, other, repetitions=50).value == pytest.approx(scores.mean() - other.mean())
    there, back = (difference(a, b, paired=True, repetitions=50) for a, b in ((scores, other), (other, scores)))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(50, 20, (5, 1, 1)) + rng.normal(0, 5, (5, 2, 20))
    paired, unpaired = difference(seeds + 3, seeds, paired=True), difference(seeds + 3, seeds)
    assert (paired.value, paired.low, paired.high) == pytest.approx((3, 3, 3))
    assert unpaired.high - unpaired.low > 10
    of_means = difference(seeds + 3, seeds[:, :, :10], paired=True)
    assert of_means.low == pytest.approx(of_means.high, abs=6)


def test_degenerate_sizes() -> None:
    one = np.full((1, 1, 1), 42.0)
    assert estimate([one]) == statistics.Estimate(42, 42, 42)
    assert difference(one, np.zeros((4, 2, 3))) == statistics.Estimate(42, 42, 42)
    assert str(statistics.Estimate(12.3456, 1, 20)) == "12.3 [1, 20]"


def test_large_arrays_are_resampled_in_chunks_with_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((4, 3, 10))
    whole = resample(scores, 3000, np.random.default_rng(1)).mean((1, 2))
    monkeypatch.setattr(statistics, "CHUNK", 1000)
    parts = resample(scores, 3000, np.random.default_rng(1)).mean((1, 2))
    assert parts.shape == whole.shape
    assert parts.std() == pytest.approx(whole.std(), rel=0.1)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((2, 3)), r"got shape \(2, 3\)"),
        (np.zeros((0, 3, 1)), r"one or more of each"),
        (np.array([[[1.0, np.nan]]]), "seed 0, task 0, episode 1 is nan"),
    ],
)
def test_scores_of_a_wrong_form_are_refused(scores: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        estimate([scores])


def test_paired_arms_need_the_same_seeds() -> None:
    with pytest.raises(UsageError, match="got 3 and 2 runs"):
        difference(np.zeros((3, 1, 1)), np.zeros((2, 1, 1)), paired=True)


def test_coverage_at_three_seeds() -> None:
    """The nominal 95 % interval of a difference holds the truth about as often as the module's docstring says."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(150):
        chance = np.clip(0.5 + 0.05 * rng.standard_normal((2, 3, 1, 1)), 0, 1)
        arms = 100.0 * (rng.random((2, 3, 5, 20)) < chance)
        found = difference(arms[0], arms[1], repetitions=300)
        held += found.low <= 0 <= found.high
    assert held / 150 > 0.88
