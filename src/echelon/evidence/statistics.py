"""Aggregates and bootstrap intervals of few runs: seeds, and the episodes of each seed's tasks.

Scores are arrays [S seeds, T tasks, E episodes]. A seed is one training run, so its tasks are resampled together; tasks
are fixed strata; episodes are resampled inside their seed and task. Several arrays in one list are strata that were
trained apart (data sets): each is resampled by itself.

The seeds are drawn S - 1 at a time, not S. With S draws the bootstrap variance of a mean is (S - 1) / S of what it
should be, a third too small at the usual three seeds (J. N. K. Rao and C. F. J. Wu, JASA 83, 1988). In simulated
differences of two arms (5 tasks, 20 episodes, seeds whose true success scatters by 0, 5 or 15 points) the nominal 95 %
interval holds the truth in 100, 97 and 92 % of cases at S = 3 and in 99, 98 and 94 % at S = 8; with S draws in 99, 94
and 87 %, and 98, 96 and 92 %. Where seeds differ much more than chance among episodes explains, use more of them.

Interquartile mean, probability of improvement and the stratified bootstrap follow arXiv 2108.13264 (rliable); with
`draws=S` the intervals are rliable's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from echelon.errors import UsageError

LEVEL = 0.95
REPETITIONS = 5000
CHUNK = 2_000_000
"""Largest number of episodes gathered at once."""

Aggregate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A number and its bootstrap percentile interval at level `LEVEL`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return values.mean(-1)


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: floor(n / 4) values are cut off at each end, the rest is averaged."""
    cut = values.shape[-1] // 4
    return np.sort(values, -1)[..., cut : values.shape[-1] - cut].mean(-1)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(a run of x beats a run of y), ties one half, averaged over tasks; x [..., S, T], y [..., S', T] -> [...].

    For one task this is the Mann-Whitney statistic U / (S S').
    """
    difference = x[..., :, None, :] - y[..., None, :, :]
    return (0.5 + 0.5 * np.sign(difference)).mean((-1, -2, -3))


def resample(scores: np.ndarray, repetitions: int, rng: np.random.Generator, draws: int | None = None) -> np.ndarray:
    """Bootstrap means of runs [repetitions, draws, T]: draw seeds (S - 1, at least one, unless `draws` says how many),
    then episodes inside each drawn seed's tasks.
    """
    seeds, tasks, episodes = _checked(scores).shape
    draws = draws or max(seeds - 1, 1)
    step = max(1, CHUNK // (draws * tasks * episodes))
    means = np.empty((repetitions, draws, tasks))
    for start in range(0, repetitions, step):
        size = min(step, repetitions - start)
        seed = rng.integers(0, seeds, (size, draws, 1, 1))
        episode = rng.integers(0, episodes, (size, draws, tasks, episodes))
        means[start : start + size] = scores[seed, np.arange(tasks)[:, None], episode].mean(-1)
    return means


def estimate(
    strata: Sequence[np.ndarray],
    aggregate: Aggregate = mean,
    draws: int | None = None,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Estimate:
    """Aggregate of all (seed, task) means of the strata, each an array [S, T, E], with its interval."""
    rng = np.random.default_rng(seed)
    point = np.concatenate([_checked(s).mean(-1).ravel() for s in strata])
    samples = [resample(s, repetitions, rng, draws).reshape(repetitions, -1) for s in strata]
    return interval(float(aggregate(point)), aggregate(np.concatenate(samples, -1)))


def difference(
    method: np.ndarray,
    baseline: np.ndarray,
    paired: bool = False,
    draws: int | None = None,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Estimate:
    """Difference of the means of two arms [S, T, E] and [S', T', E'], method - baseline.

    `paired`: both statistics were taken on the same runs in the same order. Then seeds are resampled together, and
    episodes too where both arrays have the same shape (else only the runs' means are compared).
    """
    method, baseline = _checked(method), _checked(baseline)
    if not paired:
        rng = np.random.default_rng(seed)
        samples = [resample(arm, repetitions, rng, draws).mean((1, 2)) for arm in (method, baseline)]
        return interval(float(method.mean() - baseline.mean()), samples[0] - samples[1])
    if len(method) != len(baseline):
        raise UsageError(f"paired arms need the same seeds; got {len(method)} and {len(baseline)} runs")
    if method.shape != baseline.shape:
        method, baseline = (arm.mean((1, 2)).reshape(-1, 1, 1) for arm in (method, baseline))
    return estimate([method - baseline], mean, draws, repetitions, seed)


def interval(value: float, samples: np.ndarray) -> Estimate:
    """`value` with the percentile interval of its bootstrap samples [repetitions]."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _checked(scores: np.ndarray) -> np.ndarray:
    if scores.ndim != 3 or 0 in scores.shape:
        raise UsageError(f"scores must be [seed, task, episode] with one or more of each, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        seed, task, episode = np.argwhere(~np.isfinite(scores))[0]
        raise UsageError(f"score of seed {seed}, task {task}, episode {episode} is {scores[seed, task, episode]}")
    return scores
