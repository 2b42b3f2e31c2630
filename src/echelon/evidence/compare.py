"""Several systems on several data sets, side by side: means with intervals, and who is likely to be better."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from echelon.claims import LAST_EVALUATIONS, success
from echelon.errors import DataError, UsageError, unknown
from echelon.evidence import statistics
from echelon.evidence.reproduce import measure
from echelon.evidence.run import Run
from echelon.evidence.statistics import Estimate
from echelon.evidence.train import Command, echelon_train, one_per_seed, train_all
from echelon.evidence.view.markup import Markup, tag
from echelon.evidence.view.svg import Line, line_chart
from echelon.training.config import RunConfig

RUNS = "runs/compare"
CHART = (440, 270)
SUCCESS, RETURN = "success, points 0-100", "return"
"""What runs are compared by: the return, where the environment tells no success."""


@dataclass(frozen=True)
class Cell:
    """All seeds of one label on one data set: scores [seed, task, episode] in the comparison's unit, and their mean."""

    runs: list[Run]
    scores: np.ndarray
    mean: Estimate


@dataclass(frozen=True)
class Comparison:
    """Cells by (label, env). A label is a system, with the settings that tell it from others of the same system.

    `unit` is SUCCESS or RETURN. Returns of several environments have scales of their own: nothing is averaged over them
    but the probability of being better.
    """

    labels: list[str]
    envs: list[str]
    cells: dict[tuple[str, str], Cell]
    unit: str = SUCCESS

    @property
    def one_scale(self) -> bool:
        """Whether numbers of all environments may be averaged."""
        return self.unit == SUCCESS or len(self.envs) == 1

    def overall(self, label: str) -> Estimate | None:
        """Interquartile mean over all (data set, seed, task); None unless the label has every data set on one scale."""
        strata = self._strata(label) if self.one_scale else []
        return statistics.estimate(strata, statistics.iqm) if strata else None

    def against_first(self, label: str) -> tuple[float | None, float] | None:
        """Difference of means to the first label, in the unit, and the probability that a run of this label is better.

        Both are averaged over the data sets; no difference is told where these have scales of their own. None for the
        first label itself, and unless both have every data set.
        """
        mine, first = self._strata(label), self._strata(self.labels[0])
        if label == self.labels[0] or not mine or not first:
            return None
        pairs = [(a.mean(-1), b.mean(-1)) for a, b in zip(mine, first, strict=True)]
        better = [float(statistics.probability_of_improvement(a, b)) for a, b in pairs]
        difference = float(np.mean([a.mean() - b.mean() for a, b in pairs])) if self.one_scale else None
        return difference, float(np.mean(better))

    def _strata(self, label: str) -> list[np.ndarray]:
        cells = [self.cells.get((label, env)) for env in self.envs]
        return [cell.scores for cell in cells if cell is not None] if None not in cells else []


def compare(
    systems: Sequence[str],
    envs: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    size: str = "cpu",
    changes: Mapping[str, Any] | None = None,
    jobs: int = 2,
    runs: Path | str = RUNS,
    command: Command = echelon_train,
) -> Comparison:
    """Train every system on every data set with the same budget (recipe `size`, fields changed by `changes`), compare.

    Runs that are finished below `runs` are used again. Raises UsageError for an unknown system, size or field.
    """
    from echelon.systems.launch import check, recipe

    configs = [_changed(recipe(system, env, size), changes or {}) for system in systems for env in envs]
    for config in configs:
        check(config)
    trained = train_all([c for config in configs for c in one_per_seed(config, seeds)], runs, jobs, command)
    return of_runs([run.path for run in trained.values()])


def of_runs(paths: Sequence[Path | str]) -> Comparison:
    """Compare runs that exist: folders of runs (searched through) or single ones, in the order given.

    By success, or by return if no environment tells one. Raises UsageError when a folder holds no evaluated run, and
    for runs of which some tell success and others returns alone.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        inside = [Run(file.parent) for file in sorted(Path(path).rglob("config.json"))]
        evaluated = [run for run in inside if (run.path / "evaluations.jsonl").is_file() and run.evaluations]
        if not evaluated:
            raise UsageError(
                f"{path} holds no evaluated run; make some: echelon compare SYSTEM … or echelon train SYSTEM"
            )
        found |= {run.path: run for run in evaluated}
    labels = _labels(list(found.values()))
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run, label in zip(found.values(), labels, strict=True):
        grouped.setdefault((label, run.config["env"]), []).append(run)
    unit = _unit(list(found.values()))
    cells = {key: _cell(key[0], members, unit) for key, members in grouped.items()}
    return Comparison(list(dict.fromkeys(labels)), list(dict.fromkeys(env for _, env in cells)), cells, unit)


def returns(run: Run) -> np.ndarray:
    """Returns [task, episode], averaged over the run's last three evaluations, as `claims.success` does successes."""
    last = [list(row["returns"].values()) for row in run.evaluations[-LAST_EVALUATIONS:]]
    if len({tuple(map(len, row)) for row in last}) != 1 or len({len(episodes) for episodes in last[0]}) != 1:
        raise DataError(f"{run.path}: evaluations with different tasks or numbers of episodes")
    return np.mean(last, axis=0)


def table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows for a person: success in points, or returns, by data set, overall, and against the first row."""
    several, by_return = len(comparison.envs) > 1, comparison.unit == RETURN
    ends = (*(("all (IQM)",) if several else ()), "difference to first", "P(better than first)")
    envs = [f"{env}, return" if by_return else env for env in comparison.envs]
    number = ".4g" if by_return else ".1f"
    rows: list[tuple[str, ...]] = []
    for label in comparison.labels:
        cells = [comparison.cells.get((label, env)) for env in comparison.envs]
        shown = [f"{_told(cell.mean, number)} n={len(cell.runs)}" if cell else "–" for cell in cells]
        if several:
            shown.append(_told(comparison.overall(label), number))
        difference, better = comparison.against_first(label) or (None, None)
        shown.append("–" if difference is None else f"{difference:+{number}}")
        shown.append("–" if better is None else f"{better:.2f}")
        rows.append((label, *shown))
    return ("system", *envs, *ends), rows


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON data: by label and data set the mean with interval and each run's score; and overall."""
    systems = {}
    for label in comparison.labels:
        cells = {env: comparison.cells[label, env] for env in comparison.envs if (label, env) in comparison.cells}
        overall, against = comparison.overall(label), comparison.against_first(label)
        systems[label] = {
            "envs": {
                env: {
                    **asdict(cell.mean),
                    "runs": {str(r.path): float(s.mean()) for r, s in zip(cell.runs, cell.scores, strict=True)},
                }
                for env, cell in cells.items()
            },
            "iqm": asdict(overall) if overall else None,
            "against_first": {"difference": against[0], "improvement": against[1]} if against else None,
        }
    return {"unit": comparison.unit, "level": statistics.LEVEL, "systems": systems}


def svg(comparison: Comparison) -> str:
    """Learning curves as one SVG picture: a panel a data set, a line a system (mean of seeds; band: min to max)."""
    panels = [_panel(comparison, env, place) for place, env in enumerate(comparison.envs)]
    width, height = CHART[0] * len(panels), CHART[1] + 24
    style = tag("style", Markup(files("echelon.evidence.view").joinpath("svg.css").read_text(encoding="utf-8")))
    return tag(
        "svg",
        style,
        panels,
        xmlns="http://www.w3.org/2000/svg",
        class_="sheet",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
    )


def _panel(comparison: Comparison, env: str, place: int) -> Markup:
    lines = []
    there = [run for (_, where), cell in comparison.cells.items() if where == env for run in cell.runs]
    over_steps = all({"slots", "ticks"} <= run.config.keys() for run in there)
    for style, label in enumerate(comparison.labels):
        cell = comparison.cells.get((label, env))
        curves = [_curve(run, comparison.unit, over_steps) for run in cell.runs] if cell else []
        line = seeds_line(label, curves, style % 6)
        lines += [line] if line is not None else []
    title = tag("text", env, class_="title mid", x=CHART[0] / 2, y=16)
    if not lines:
        return tag("g", title, transform=f"translate({CHART[0] * place} 0)")
    chart = line_chart(
        lines,
        title=env,
        x_label="environment steps" if over_steps else "updates",
        y_label="return" if comparison.unit == RETURN else "",
        size=CHART,
        y_limits=None if comparison.unit == RETURN else (0.0, 100.0),
        dots=True,
        names=True,
    )
    sized = Markup(chart.replace("<svg ", f'<svg y="22" width="{CHART[0]}" height="{CHART[1]}" ', 1))
    return tag("g", title, sized, transform=f"translate({CHART[0] * place} 0)")


def seeds_line(label: str, curves: Sequence[Mapping[int, float]], style: int) -> Line | None:
    """Mean of the seeds' curves {step: value} with the band from least to most; None without a step that all have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps:
        return None
    values = np.array([[curve[step] for step in steps] for curve in curves])
    return Line(label, np.array(steps, dtype=float), values.mean(0), style, values.min(0), values.max(0))


def _curve(run: Run, unit: str, over_steps: bool) -> dict[int, float]:
    """The run's learning curve in `unit`, over environment steps or updates."""
    points = run.curve if unit == SUCCESS else [(int(row["step"]), float(row["return"])) for row in run.evaluations]
    update = run.config["slots"] * run.config["ticks"] if over_steps else 1
    return {step * update: value for step, value in points}


def _unit(runs: Sequence[Run]) -> str:
    """SUCCESS if all runs tell it, RETURN if none does. UsageError for a mix, and for what tells neither."""
    silent = [run for run in runs if not all(row["tasks"] for row in run.evaluations[-LAST_EVALUATIONS:])]
    if not silent:
        return SUCCESS
    for run in silent:
        if not all(row.get("returns") for row in run.evaluations[-LAST_EVALUATIONS:]):
            raise UsageError(f"{run.path}: its evaluations tell neither success nor return to compare")
    telling = next((run for run in runs if run not in silent), None)
    if telling is not None:
        raise UsageError(
            f"one table has one unit: {telling.path} ({telling.config['env']}) tells success, {silent[0].path} "
            f"({silent[0].config['env']}) returns alone; compare them apart"
        )
    return RETURN


def _cell(label: str, runs: list[Run], unit: str) -> Cell:
    seeds = [run.config["seed"] for run in runs]
    if len(set(seeds)) != len(seeds):
        raise UsageError(
            f"{label} on {runs[0].config['env']}: the same seed twice ({', '.join(str(r.path) for r in runs)})"
        )
    scores = measure(success if unit == SUCCESS else returns, runs)
    return Cell(runs, scores, statistics.estimate([scores]))


def _labels(runs: Sequence[Run]) -> list[str]:
    """The system's slug, and the settings by which its runs on one data set differ (seed aside)."""
    labels = []
    for run in runs:
        peers = [r.config for r in runs if (r.system, r.config["env"]) == (run.system, run.config["env"])]
        differ = sorted(
            key for key in run.config if key not in ("seed", "env") and len({json.dumps(p.get(key)) for p in peers}) > 1
        )
        labels.append(" ".join([run.system, *(f"{key}={run.config[key]}" for key in differ)]))
    return labels


def _changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    fields = {f.name for f in dataclasses.fields(config)}
    strange = [name for name in changes if name not in fields]
    if strange:
        raise unknown(f"field of {config.system}'s configuration", strange[0], fields)
    return dataclasses.replace(config, **changes)


def _told(estimate: Estimate | None, number: str) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:{number}} [{estimate.low:{number}}, {estimate.high:{number}}]"
