"""What a verdict means, what a claim may consist of, and the success of a run."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.claims import (
    Above,
    Arm,
    AtLeast,
    Claim,
    Equivalent,
    Guard,
    NotWorse,
    Score,
    Test,
    Verdict,
    metric,
    statistic_name,
    success,
)
from echelon.errors import DataError, UsageError

YES, NO, MAYBE = Verdict.SUPPORTED, Verdict.NOT_SUPPORTED, Verdict.INCONCLUSIVE
NUMBERS = st.floats(-100, 100)


@pytest.mark.parametrize(
    ("test", "value", "low", "high", "verdict"),
    [
        (Above(15), 20, 5, 35, YES),  # the mean meets the margin, the interval excludes zero
        (Above(15), 15, 0.1, 30, YES),
        (Above(15), 20, 0, 40, MAYBE),  # zero is not excluded
        (Above(15), 14, 5, 23, MAYBE),  # the mean misses the margin, which the interval still holds
        (Above(15), 10, 6, 14.9, NO),  # better, but by less than was claimed
        (Above(15), -10, -20, -1, NO),
        (Above(0), 0, 0, 0, NO),  # exactly equal is not above
        (Above(0), 1, 0.5, 2, YES),
        (AtLeast(60), 70, 60, 80, YES),
        (AtLeast(60), 70, 59, 80, MAYBE),
        (AtLeast(60), 55, 40, 60, MAYBE),
        (AtLeast(60), 50, 40, 59.9, NO),
        (NotWorse(5), -1, -4.9, 3, YES),
        (NotWorse(5), 30, 20, 40, YES),
        (NotWorse(5), -1, -5, 3, MAYBE),
        (NotWorse(5), -9, -12, -5.1, NO),
        (Equivalent(5), 0, -5, 5, YES),
        (Equivalent(5), 3, 1, 5.1, MAYBE),
        (Equivalent(5), 8, 5.1, 11, NO),
        (Equivalent(5), -8, -11, -5.1, NO),
    ],
)
def test_verdicts(test: Test, value: float, low: float, high: float, verdict: Verdict) -> None:
    assert test.judge(value, low, high) is verdict


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.floats(0.1, 50))
def test_verdicts_agree_with_each_other(numbers: tuple[float, float, float], margin: float) -> None:
    low, value, high = sorted(numbers)
    tests = (Above(margin), NotWorse(margin), Equivalent(margin), AtLeast(margin))
    above, not_worse, equivalent, at_least = (test.judge(value, low, high) for test in tests)
    assert not (above is YES and not_worse is not YES)  # better implies not worse
    assert not (equivalent is YES and not_worse is NO)
    assert not (at_least is YES and above is not YES)  # the stricter bound
    assert not (above is NO and at_least is YES)


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.floats(0.1, 50), st.floats(0, 20))
def test_more_data_never_turns_a_verdict_round(numbers: tuple[float, float, float], margin: float, by: float) -> None:
    low, value, high = sorted(numbers)
    for test in (Above(margin), NotWorse(margin), Equivalent(margin), AtLeast(margin)):
        wide, narrow = test.judge(value, low - by, high + by), test.judge(value, low, high)
        assert wide is MAYBE or wide is narrow


@pytest.mark.parametrize("make", [lambda: Above(-1), lambda: NotWorse(0), lambda: Equivalent(-2)])
def test_margins_have_a_sign(make: Any) -> None:
    with pytest.raises(UsageError, match="margin must be"):
        make()


def other(run: Any, level: str) -> np.ndarray:
    return np.zeros(3)


ARM = Arm("ota", lambda seed: seed)


def claim(**changes: Any) -> Claim:
    fields = {"id": "beats-hiql", "text": "OTA beats HIQL", "method": Score(ARM, success), "test": Above(15)}
    return Claim(**{**fields, "source": "arXiv 2505.12737", "baseline": Score(ARM, success), **changes})


def test_a_claim_checks_itself() -> None:
    assert claim().seeds == (0, 1, 2)
    assert claim(test=AtLeast(3), baseline=None).scores == (Score(ARM, success),)
    for changes, message in (
        ({"id": "Beats HIQL"}, "it names a file"),
        ({"baseline": None}, "every other test needs one"),
        ({"test": AtLeast(3)}, "AtLeast takes no baseline"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (0, 0)}, "each once"),
    ):
        with pytest.raises(UsageError, match=message):
            claim(**changes)


def test_a_guard_and_further_scores() -> None:
    more = functools.partial(other, level="V_h")
    found = claim(also=(Score(ARM, more),), unless=Guard(success, 0.5, "too few"))
    assert found.scores == (Score(ARM, success),) * 2 and found.measured == (*found.scores, Score(ARM, more))
    assert found.statistics == (success, success, more, success)
    assert found.unless is not None and not found.unless.exceeded(0.5) and found.unless.exceeded(0.5001)
    for guard in (lambda: Guard(success, float("nan"), "x"), lambda: Guard(success, 1, "")):
        with pytest.raises(UsageError, match="a finite bound and a reason"):
            guard()
    with pytest.raises(UsageError, match="module-level function"):
        Guard(lambda run: np.zeros(1), 1, "x")


@dataclass
class Lines:
    """A run's metrics."""

    metrics: list[dict[str, Any]]


def test_a_metric_is_averaged_over_the_training() -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "train", "kl": 1.0},
        {"kind": "eval", "kl": 9.0},
        {"kind": "train"},
        {"kind": "train", "kl": 2.0},
    ]
    assert metric(Lines(lines), "kl") == 1.5
    bad: list[dict[str, Any]] = [{"kind": "train", "kl": None}, {"kind": "eval", "kl": 1.0}]
    for damaged in bad:
        with pytest.raises(DataError, match="no finite metric 'kl'"):
            metric(Lines([damaged]), "kl")


def test_statistics_have_names() -> None:
    assert statistic_name(success) == "echelon.claims:success"
    assert statistic_name(functools.partial(other, level="V_h")) == f"{__name__}:other(level='V_h')"
    for nameless in (lambda run: np.zeros(1), functools.partial(other, "x"), np.float64(3).mean):
        with pytest.raises(UsageError, match="module-level function"):
            Score(ARM, nameless)


@dataclass
class Recorded:
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    path: str = "runs/x"


def evaluation(step: int, *tasks: list[int]) -> dict[str, Any]:
    return {"step": step, "tasks": {f"task{number}": outcomes for number, outcomes in enumerate(tasks, 1)}}


def test_success_averages_the_last_three_evaluations_of_each_start() -> None:
    rows = [evaluation(1, [1, 1], [1, 1]), evaluation(2, [0, 0], [1, 0]), evaluation(3, [0, 1], [1, 0])]
    run = Recorded([*rows, evaluation(4, [0, 1], [1, 1])])
    assert success(run) == pytest.approx(np.array([[0, 200 / 3], [100, 100 / 3]]))
    assert success(Recorded(rows[:1])) == pytest.approx(np.full((2, 2), 100))


def test_success_refuses_what_it_cannot_average() -> None:
    with pytest.raises(DataError, match="runs/x: no evaluation"):
        success(Recorded())
    with pytest.raises(DataError, match="different tasks or numbers"):
        success(Recorded([evaluation(1, [1, 0]), evaluation(2, [1])]))
    with pytest.raises(DataError, match="different tasks or numbers"):
        success(Recorded([evaluation(1, [1, 0], [1])]))
