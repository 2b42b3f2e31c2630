"""What a system claims, as code: which arms are compared, by which statistic, and what must hold of the numbers.

A claim knows nothing of training. `echelon reproduce` trains its arms, turns every run into scores by the statistic,
estimates the difference (or the method's mean) with a bootstrap interval over seeds and episodes, and asks the test.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from echelon.errors import DataError, UsageError

LAST_EVALUATIONS = 3
"""The reported score pools the last evaluations of a run, as OGBench does (arXiv 2410.20092)."""


class Verdict(StrEnum):
    """Answer of a test: the data meet the claim, are too few to tell, or contradict it."""

    SUPPORTED = "supported"
    INCONCLUSIVE = "inconclusive"
    NOT_SUPPORTED = "not supported"


class Evaluated(Protocol):
    """What a statistic may read of a run; `echelon.evidence.run.Run` also gives `config`, `path` and `agent()`."""

    @property
    def evaluations(self) -> Sequence[dict[str, Any]]:
        """One dict an evaluation, in time order: {"step": int, "tasks": {name: [0 or 1 an episode]}, …}."""


class Logged(Protocol):
    """What `metric` reads of a run."""

    @property
    def metrics(self) -> Sequence[dict[str, Any]]:
        """The lines of metrics.jsonl: {"step": int, "kind": str, name: number or None if not finite, …}."""


@dataclass(frozen=True)
class Above:
    """The method scores higher than the baseline, by `margin` or more (in the statistic's unit, 0 or more).

    For the difference d (method - baseline) with interval [low, high]: supported if d >= margin and low > 0, so the
    mean meets the margin and the interval excludes zero; not supported if high < margin or high <= 0, so the data
    exclude the claim; else inconclusive.
    """

    margin: float

    def __post_init__(self) -> None:
        _check(self.margin >= 0, f"Above: the margin must be 0 or more, got {self.margin}")

    def judge(self, value: float, low: float, high: float) -> Verdict:
        """Verdict on the difference `value` with interval [low, high]."""
        return _verdict(value >= self.margin and low > 0, high < self.margin or high <= 0)

    def __str__(self) -> str:
        return f"difference >= {self.margin:g} and its interval above 0"


@dataclass(frozen=True)
class AtLeast:
    """The method's mean score is `score` or more; there is no baseline.

    For the mean m with interval [low, high]: supported if m >= score and low >= score (there is no zero to exclude, so
    the interval has to exclude every mean below the bound); not supported if high < score; else inconclusive.
    """

    score: float

    def judge(self, value: float, low: float, high: float) -> Verdict:
        """Verdict on the mean `value` with interval [low, high]."""
        return _verdict(value >= self.score and low >= self.score, high < self.score)

    def __str__(self) -> str:
        return f"mean and its interval >= {self.score:g}"


@dataclass(frozen=True)
class NotWorse:
    """The method is worse than the baseline by less than `margin` (in the statistic's unit, positive), if at all.

    For the difference d (method - baseline) with interval [low, high]: supported if low > -margin; not supported if
    high < -margin; else inconclusive.
    """

    margin: float

    def __post_init__(self) -> None:
        _check(self.margin > 0, f"NotWorse: the margin must be positive, got {self.margin}")

    def judge(self, value: float, low: float, high: float) -> Verdict:
        """Verdict on the difference `value` with interval [low, high]."""
        return _verdict(low > -self.margin, high < -self.margin)

    def __str__(self) -> str:
        return f"interval of the difference above {-self.margin:g}"


@dataclass(frozen=True)
class Equivalent:
    """Method and baseline differ by no more than `margin` (in the statistic's unit, positive), either way.

    For the difference d (method - baseline) with interval [low, high]: supported if -margin <= low and high <= margin;
    not supported if high < -margin or low > margin; else inconclusive.
    """

    margin: float

    def __post_init__(self) -> None:
        _check(self.margin > 0, f"Equivalent: the margin must be positive, got {self.margin}")

    def judge(self, value: float, low: float, high: float) -> Verdict:
        """Verdict on the difference `value` with interval [low, high]."""
        return _verdict(-self.margin <= low and high <= self.margin, high < -self.margin or low > self.margin)

    def __str__(self) -> str:
        return f"interval of the difference within ±{self.margin:g}"


Test = Above | AtLeast | NotWorse | Equivalent
Statistic = Callable[[Any], np.ndarray]
"""Run -> float array [task, episode], [k] or []; every number counts as one observation, and higher is better."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: `config(seed)` is the resolved configuration of the run with that seed."""

    name: str
    config: Callable[[int], Any]


@dataclass(frozen=True)
class Score:
    """An arm measured by a statistic: a module-level function, or a `functools.partial` of one with keywords."""

    arm: Arm
    statistic: Statistic

    def __post_init__(self) -> None:
        statistic_name(self.statistic)


@dataclass(frozen=True)
class Guard:
    """What would leave a claim undecided: the method's runs have a mean of `statistic` above `bound`.

    `reason` says why nothing follows then, such as "too few states are met twice". Only the bound itself still decides.
    """

    statistic: Statistic
    bound: float
    reason: str

    def __post_init__(self) -> None:
        statistic_name(self.statistic)
        _check(bool(np.isfinite(self.bound)) and bool(self.reason), "a guard needs a finite bound and a reason")

    def exceeded(self, value: float) -> bool:
        """Whether the mean `value` leaves the claim undecided."""
        return value > self.bound


@dataclass(frozen=True)
class Claim:
    """One sentence that a run can refute.

    `text` is that sentence; `test` compares `method` with `baseline` (None for `AtLeast` alone); `seeds` are those of
    record; `source` says where the claim is published. Margins are in the statistic's unit (success: points, 0 to 100).
    `unless` makes the verdict inconclusive, whatever the test says; `also` is measured and recorded without a verdict.
    """

    id: str
    text: str
    method: Score
    test: Test
    source: str
    baseline: Score | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    unless: Guard | None = None
    also: tuple[Score, ...] = ()

    def __post_init__(self) -> None:
        named = re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id)
        _check(bool(named), f"claim id '{self.id}' must be lower-case words joined by '-'; it names a file")
        alone = isinstance(self.test, AtLeast)
        _check(
            alone == (self.baseline is None), f"claim {self.id}: AtLeast takes no baseline, every other test needs one"
        )
        distinct = len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds)
        _check(distinct, f"claim {self.id}: seeds must be one or more, each once; got {self.seeds}")

    @property
    def scores(self) -> tuple[Score, ...]:
        """What the test compares: method first, then the baseline if there is one."""
        return (self.method,) if self.baseline is None else (self.method, self.baseline)

    @property
    def measured(self) -> tuple[Score, ...]:
        """All that is trained and measured: what the test compares, then what is recorded without a verdict."""
        return (*self.scores, *self.also)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Every statistic that a result of this claim rests on, in the order of `measured`; the guard's last."""
        guard = () if self.unless is None else (self.unless.statistic,)
        return (*(score.statistic for score in self.measured), *guard)


def success(run: Evaluated, task: str = "") -> np.ndarray:
    """Success in points (0 to 100), [task, episode], averaged over the run's last three evaluations; of `task` alone
    if it is named.

    Evaluations of one run are not independent of each other, so the n-th episodes of the last three are one
    observation, not three. Raises DataError when there is no evaluation, no such task, or tasks or episodes differ.
    """
    last = list(run.evaluations)[-LAST_EVALUATIONS:]
    where = getattr(run, "path", "run")
    if not last:
        raise DataError(f"{where}: no evaluation to take the success from")
    sizes = [{task: len(outcomes) for task, outcomes in evaluation["tasks"].items()} for evaluation in last]
    if any(size != sizes[0] for size in sizes) or len(set(sizes[0].values())) != 1:
        raise DataError(f"{where}: evaluations with different tasks or numbers of episodes: {sizes}")
    if task and task not in sizes[0]:
        raise DataError(f"{where}: no task '{task}' was evaluated; there are {', '.join(sizes[0])}")
    chosen = [task] if task else list(sizes[0])
    return 100.0 * np.mean([[evaluation["tasks"][name] for name in chosen] for evaluation in last], axis=0)


def metric(run: Logged, name: str) -> np.ndarray:
    """The mean over the training of the metric `name`, in its own unit, []. DataError unless all its values are finite.

    A statistic by `functools.partial(metric, name="states/alone")`.
    """
    found = [row[name] for row in run.metrics if row["kind"] == "train" and name in row]
    if not found or any(value is None for value in found):
        raise DataError(f"{getattr(run, 'path', 'run')}: no finite metric '{name}' of the training to take a mean of")
    return np.array(np.mean(found))


def statistic_name(statistic: Statistic) -> str:
    """`module:function(keywords)` of a statistic. UsageError for lambdas, local functions and other callables."""
    function = statistic.func if isinstance(statistic, functools.partial) else statistic
    name = getattr(function, "__qualname__", repr(function))
    positional = isinstance(statistic, functools.partial) and statistic.args
    if not name.isidentifier() or not hasattr(function, "__module__") or positional:
        raise UsageError(
            f"statistic {name}: use a module-level function, or functools.partial of one with keywords, so that "
            "results can name what was measured"
        )
    keywords = statistic.keywords if isinstance(statistic, functools.partial) else {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in sorted(keywords.items()))
    return f"{function.__module__}:{name}" + (f"({arguments})" if arguments else "")


def _verdict(met: bool, contradicted: bool) -> Verdict:
    if met:
        return Verdict.SUPPORTED
    return Verdict.NOT_SUPPORTED if contradicted else Verdict.INCONCLUSIVE


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
