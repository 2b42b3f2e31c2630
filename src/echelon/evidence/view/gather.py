"""What a page shows, read from run directories."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echelon.data.store import Store, cache_dir, exists
from echelon.errors import DataError, UsageError
from echelon.evidence.view.runs import Curve, Evaluation, Group, Run
from echelon.systems import index
from echelon.training.metrics import read_jsonl

TIMELINES = 12
"""Episodes of a record that are shown level by level."""


def gather(paths: Sequence[Path]) -> list[Group]:
    """Read every run under `paths` (a run, or a folder of runs) and group the seeds of one configuration.

    UsageError when a path holds no run or one environment or system cannot be told.
    """
    runs = [read_run(path) for given in paths for path in find_runs(Path(given))]
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        settings = {name: value for name, value in run.config.items() if name != "seed"}
        grouped.setdefault(f"{run.system}\n{json.dumps(settings, sort_keys=True)}", []).append(run)
    groups = []
    for style, members in enumerate(grouped.values()):
        members.sort(key=lambda run: run.seed)
        title, sentence, defaults = describe(members[0].system)
        manifest = _manifest(members[0])
        groups.append(Group(title, members[0].system, members[0].env, sentence, members, style % 6, defaults, manifest))
    _tell_apart(groups)
    return groups


def find_runs(path: Path) -> list[Path]:
    """The run directories meant by `path`: itself, or those directly inside (`seed-0`, `seed-1`, …), in order."""
    if (path / "config.json").is_file():
        return [path]
    seeds = [file.parent for file in path.glob("*/config.json")]
    if not seeds:
        what = "no config.json, neither in it nor in its folders" if path.is_dir() else "no such folder"
        raise UsageError(f"'{path}' is not a run: {what}; give a folder that `echelon train` made")
    return sorted(seeds, key=lambda folder: (len(folder.name), folder.name))


def read_run(path: Path) -> Run:
    """Read one run directory; only config.json is required. DataError names the file that is damaged, and why."""
    document = _read_json(path / "config.json")
    config = document.get("config")
    if not isinstance(config, dict) or "system" not in document:
        raise DataError(f'{path / "config.json"}: expected {{"system": …, "config": {{…}}}}')
    evaluations = _evaluations(path / "evaluations.jsonl")
    identity, result = _read_json(path / "identity.json"), _read_json(path / "result.json")
    _require(path / "config.json", config, {"env": str, **dict.fromkeys(("seed", "updates", "slots", "ticks"), int)})
    _require(path / "result.json", result, dict.fromkeys(("train_s", "evaluation_s", "wall_s"), (int, float)))
    metrics = _metrics(path / "metrics.jsonl")
    run = Run(path, str(document["system"]), config, identity, result, evaluations, metrics)
    if not evaluations:
        run.missing["success"] = "not evaluated yet"
    elif not evaluations[-1].tasks:
        run.missing["success"] = f"{run.env} tells no success"
    if not metrics:
        run.missing["metrics"] = "no metrics.jsonl"
    if run.language:
        from echelon.evidence.view.records import read_records

        read_records(run, TIMELINES)
    else:
        from echelon.evidence.view.rollouts import read_rollouts

        read_rollouts(run, TIMELINES)
    return run


def _require(file: Path, document: dict[str, Any], kinds: dict[str, type | tuple[type, ...]]) -> None:
    """DataError where a value that is there is not of its kind."""
    for name, kind in kinds.items():
        value = document.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            wanted = "a text" if kind is str else "a whole number" if kind is int else "a number"
            raise DataError(f"{file}: {name} is {value!r}, not {wanted}")


def _evaluations(file: Path) -> list[Evaluation]:
    """The evaluations of a file that an agent wrote; DataError names the line that is none."""
    found: list[Evaluation] = []
    for number, row in enumerate(_rows(file), 1):
        if "tasks" not in row:
            continue
        try:
            tasks = {name: [float(x) for x in outcomes] for name, outcomes in row["tasks"].items()}
            told = (_lists(row.get("returns", {})), _lists(row.get("lengths", {})))
            one = Evaluation(int(row["step"]), tasks, *told)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}, line {number}: no evaluation as `echelon train` writes it ({error!r})") from error
        empty = [name for name, outcomes in tasks.items() if not outcomes]
        others = next((set(e.tasks) for e in found if e.tasks and tasks and set(e.tasks) != set(tasks)), None)
        if empty or others:
            what = (
                f"task '{empty[0]}' has no episode"
                if empty
                else f"tasks {sorted(tasks)}, before {sorted(others or ())}"
            )
            raise DataError(f"{file}, line {number}: {what}")
        found.append(one)
    return found


def _metrics(file: Path) -> dict[str, Curve]:
    """The curves of a file of metrics; DataError names the file if its lines are something else."""
    try:
        return _curves(_rows(file))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file}: no metrics as `echelon train` writes them ({error!r})") from error


def _lists(told: dict[str, Any]) -> dict[str, list[float]]:
    """The entries that tell a number of each episode; means are left out."""
    return {name: numbers for name, numbers in told.items() if isinstance(numbers, list)}


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def _curves(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        prefix = {"eval": "evaluation/", "resumed": None}.get(row.get("kind", "train"), "")
        for name, value in row.items():
            known = prefix is None or name in ("step", "time_s") or name.partition("/")[0] == "success"
            if not known and isinstance(value, int | float):
                points.setdefault(f"{prefix}{name}", []).append((float(row["step"]), float(value)))
    arrays = {name: np.array(pairs) for name, pairs in points.items()}
    return {name: Curve(pairs[:, 0], pairs[:, 1]) for name, pairs in arrays.items()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def describe(system: str) -> tuple[str, str, dict[str, Any]]:
    """(title, sentence, default configuration) of a system; the bare name when the index does not know it."""
    row = index.rows().get(system)
    if row is None:
        return system, "", {}
    if row.target is None:
        return row.name, row.title, {}
    agent = index.load(system)
    heading = (sys.modules[agent.__module__].__doc__ or row.title).strip().splitlines()[0]
    defaults = {item.name: item.default for item in dataclasses.fields(agent.Config)}
    return row.name, heading.removeprefix(f"{row.name}:").strip(), defaults


def _manifest(run: Run) -> dict[str, Any] | None:
    recorded = run.identity.get("data")
    name = store_name(run)
    return Store.open(name).manifest if name else recorded if isinstance(recorded, dict) else None


def store_name(run: Run) -> str | None:
    """Name of the data set on this machine: the one trained on, else the whole one, else any part; None without any."""
    recorded = run.identity.get("data")
    names = [str(recorded.get("name"))] if isinstance(recorded, dict) else []
    parts = sorted(folder.name for folder in cache_dir().glob(f"{run.env}@*"))
    return next((name for name in (*names, run.env, *parts) if exists(name)), None)


def _tell_apart(groups: list[Group]) -> None:
    """Add the environment, then the differing settings, to labels that would otherwise be equal."""
    if len({group.env for group in groups}) > 1:
        for group in groups:
            group.label = f"{group.label}, {group.env.removesuffix('-v0')}"
    for label in {group.label for group in groups}:
        alike = [group for group in groups if group.label == label]
        if len(alike) < 2:
            continue
        configs = [group.runs[0].config for group in alike]
        differing = [name for name in configs[0] if len({json.dumps(c.get(name)) for c in configs}) > 1]
        differing = [name for name in differing if name not in ("seed", "env")]
        for group, config in zip(alike, configs, strict=True):
            group.label = f"{label} ({', '.join(f'{name} {config.get(name)}' for name in differing[:2])})"
