"""Runs as a page shows them: plain arrays and facts, nothing drawn yet.

A run that lacks something (no rollouts, not a maze, no checkpoint) keeps a sentence in `Run.missing` under the name of
the section that it leaves empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echelon.envs.maze import MazeMap
from echelon.evidence.view.played import Played
from echelon.evidence.view.timeline import Strings, Timeline

Array = NDArray[np.float64]
EPISODES_PER_TASK = 4
LAST_EVALUATIONS = 3
MAZES = ("pointmaze", "antmaze", "humanoidmaze")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: outcomes (0 or 1) of the episodes of each task; of online runs also their returns and lengths."""

    step: int
    tasks: dict[str, list[float]]
    returns: dict[str, list[float]] = field(default_factory=dict)
    lengths: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """One training metric: values [P] at steps [P]."""

    step: Array
    value: Array


@dataclass
class Episode:
    """One recorded evaluation episode: positions [T+1, 2]; the probes of the trained agent add the rest."""

    task: str
    success: bool
    observation: NDArray[np.float32]
    goal: NDArray[np.float32]
    path: Array
    subgoals: Array = field(default_factory=lambda: np.zeros((0, 3)))
    """float64[M, 3]: tick, and x, y of the subgoal chosen there."""
    values: dict[str, Array] = field(default_factory=dict)
    """Value of each named value function at every tick, float64[T]."""
    timeline: Timeline | None = None
    """The same episode level by level, where it is shown so."""


@dataclass
class Run:
    """One run directory. `fields` holds a value field [H, W] (NaN in walls) for each task and value function."""

    path: Path
    system: str
    config: dict[str, Any]
    identity: dict[str, Any]
    result: dict[str, Any]
    evaluations: list[Evaluation]
    metrics: dict[str, Curve]
    episodes: list[Episode] = field(default_factory=list)
    rollout_step: int | None = None
    spans: dict[str, Array] = field(default_factory=dict)
    fields: dict[str, dict[str, Array]] = field(default_factory=dict)
    played: list[Played] = field(default_factory=list)
    """Recorded episodes of an online run: paths and goals."""
    timelines: list[Timeline] = field(default_factory=list)
    """Recorded episodes, level by level."""
    strings: Strings = field(default_factory=Strings)
    """The texts of the timelines."""
    diagnostics: dict[str, dict[str, float]] = field(default_factory=dict)
    """What the newest record of an online run shows of each level."""
    variances: dict[str, Curve] = field(default_factory=dict)
    """Of an online run, the variance of the advantages of each level in its evaluations, by step."""
    order: dict[str, float] = field(default_factory=dict)
    """Order consistency of each value function, 0 to 1."""
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        """Whether it learned by acting in an environment."""
        return {"slots", "ticks"} <= self.config.keys()

    @property
    def language(self) -> bool:
        """Whether its agent is a language model in a text world."""
        return {"group", "warm_episodes"} <= self.config.keys()

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config.get("seed", 0))

    @property
    def wall_s(self) -> float | None:
        """Seconds of training and evaluation together; None while unfinished."""
        parts = [self.result.get(name) for name in ("train_s", "evaluation_s")]
        known = [float(part) for part in parts if part is not None]
        return float(self.result["wall_s"]) if "wall_s" in self.result else sum(known) if known else None

    @property
    def env(self) -> str:
        """Environment (and data set) of the run."""
        return str(self.config.get("env", ""))


@dataclass
class Group:
    """The seeds of one system in one environment with one configuration: one colour of the page."""

    label: str
    system: str
    env: str
    sentence: str
    runs: list[Run]
    style: int
    defaults: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] | None = None

    @property
    def maze(self) -> MazeMap | None:
        """The maze of the environment, if it is one."""
        return MazeMap.of(self.env) if self.env.partition("-")[0] in MAZES else None

    def scores(self, last: int = LAST_EVALUATIONS) -> Array | None:
        """Outcomes in percent [seed, task, episode] of each run's `last` evaluations together; None before the first.

        Seeds that have fewer episodes than others (unfinished runs) cut all to the same number.
        """
        told = [[e for e in run.evaluations[-last:] if e.tasks] for run in self.runs]
        return _scores([evaluations for evaluations in told if evaluations])

    def success(self) -> list[tuple[int, Array]]:
        """(step, outcomes in percent [seed, task, episode]) of every evaluation that all seeds have."""
        found = [(step, _scores([[one] for one in seeds])) for step, seeds in self._together() if seeds[0].tasks]
        return [(step, scores) for step, scores in found if scores is not None]

    def returns(self, name: str = "return") -> list[tuple[int, Array]]:
        """(step, returns or lengths [seed, task, episode]) of every evaluation that all seeds have; [] if untold."""
        column = {"return": "returns", "length": "lengths"}[name]
        together = [(step, [[getattr(one, column)] for one in seeds]) for step, seeds in self._together()]
        return [(step, _pooled(seeds)) for step, seeds in together if seeds[0][0]]

    def _together(self) -> list[tuple[int, list[Evaluation]]]:
        """The evaluations that all evaluated seeds have, by step."""
        by_step = [{e.step: e for e in run.evaluations} for run in self.runs if run.evaluations]
        common = sorted(set.intersection(*(set(steps) for steps in by_step))) if by_step else []
        return [(step, [steps[step] for steps in by_step]) for step in common]

    @property
    def tasks(self) -> list[str]:
        """Names of the evaluation tasks, in order."""
        return next((list(run.evaluations[-1].tasks) for run in self.runs if run.evaluations), [])

    @property
    def missing(self) -> dict[str, str]:
        """Why a section is empty, by section; from the first run that says so."""
        reasons: dict[str, str] = {}
        for run in self.runs:
            for section, reason in run.missing.items():
                reasons.setdefault(section, reason)
        return reasons


def task_name(label: object) -> str:
    """`task3` for the label 3, 3.0 or "task3"."""
    text = str(label.item()) if hasattr(label, "item") else str(label)
    return text if text.startswith("task") else f"task{int(float(text))}"


def seeds_table(curves: Iterable[Curve], points: int = 120) -> tuple[Array, Array]:
    """Common steps [P] and values [S, P] of several seeds' curves, averaged into at most `points` bins."""
    curves = [curve for curve in curves if len(curve.step)]
    shortest = min(curves, key=lambda curve: curve.step[-1])
    steps = shortest.step
    values = np.stack([np.interp(steps, curve.step, curve.value) for curve in curves])
    if len(steps) > points:
        edges = np.linspace(0, len(steps), points + 1).astype(int)[:-1]
        counts = np.diff(np.append(edges, len(steps)))
        values = np.add.reduceat(values, edges, axis=1) / counts
        steps = np.add.reduceat(steps, edges) / counts
    return steps, values


def _scores(seeds: list[list[Evaluation]]) -> Array | None:
    return 100.0 * _pooled([[e.tasks for e in evaluations] for evaluations in seeds]) if seeds else None


def _pooled(seeds: list[list[dict[str, list[float]]]]) -> Array:
    """[seed, task, episode] of each seed's evaluations together; cut to the fewest episodes."""
    tasks = list(seeds[0][-1])
    pooled = [[np.concatenate([found[name] for found in evaluations]) for name in tasks] for evaluations in seeds]
    episodes = min(len(outcomes) for run in pooled for outcomes in run)
    return np.array([[outcomes[-episodes:] for outcomes in run] for run in pooled], dtype=np.float64)
