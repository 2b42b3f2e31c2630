"""Training in stages (pre-train, freeze, train above; alternate), resumable at any instant.

A system's plan is a generator: it yields a `Stage`, receives its `StageResult` and yields the next one. It must be a
pure function of the configuration and the results sent in, because a resumed run replays the recorded results to get
back to the stage that was open. What a stage builds on is read from an earlier result's `path`, never kept in memory;
for that reason a stage names how to *make* its agent and source, and they are made only if the stage really runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from echelon.errors import CheckpointError, UsageError
from echelon.training.checkpoint import write_json

C = TypeVar("C")
RECORD = "stages.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Args:
        name: letters, digits, "_", "-", "."; it becomes part of the stage's directory.
        agent: makes the agent to train; called when the stage starts or resumes, not when it is replayed.
        source: makes what it trains on; likewise.
        budget: training steps.
    """

    name: str
    agent: Callable[[], Any]
    source: Callable[[], Any]
    budget: int


@dataclass(frozen=True)
class StageResult:
    """A finished stage: `path` is its directory (a run with its checkpoints), `metrics` what `execute` returned."""

    name: str
    path: Path
    metrics: dict[str, Any]


Plan = Generator[Stage, StageResult, None]


def run_stages(
    plan: Callable[[C], Plan],
    config: C,
    run_dir: Path | str,
    execute: Callable[[Stage, Path], Mapping[str, Any]],
) -> list[StageResult]:
    """Run the stages that `plan(config)` yields, skipping those that `<run_dir>/stages.json` records as finished.

    Args:
        plan: the generator function.
        config: passed to `plan`.
        run_dir: each stage gets the directory `<run_dir>/stages/<number>-<name>`.
        execute: trains a stage in its directory, resuming what it finds there, and returns plain JSON metrics. It
            raises when it stops early (an interrupt, an error); the stage then stays open.

    Returns:
        the results of all stages, in order.

    Raises:
        CheckpointError: the record is damaged, or belongs to a plan with other stages.
    """
    run_dir = Path(run_dir)
    recorded = _read(run_dir / RECORD)
    results: list[StageResult] = []
    generator = plan(config)
    stage = next(generator, None)
    while stage is not None:
        number = len(results)
        if not _NAME.fullmatch(stage.name):
            raise UsageError(f"stage name '{stage.name}': use letters, digits, '_', '-' and '.' only")
        directory = run_dir / "stages" / f"{number:02d}-{stage.name}"
        if number == len(recorded):
            metrics = execute(stage, directory)
            recorded.append({"name": stage.name, "metrics": _plain(metrics, stage.name)})
            write_json(run_dir / RECORD, recorded)
        elif recorded[number]["name"] != stage.name:
            raise CheckpointError(
                f"{run_dir / RECORD} records '{recorded[number]['name']}' as stage {number}, but the configuration "
                f"plans '{stage.name}': resume with the configuration that started the run, or start another run"
            )
        # The generator gets the recorded form in either case, so that a resumed plan sees the very same values.
        results.append(StageResult(stage.name, directory, recorded[number]["metrics"]))
        stage = _advance(generator, results[-1])
    if len(recorded) > len(results):
        raise CheckpointError(f"{run_dir / RECORD} records {len(recorded)} stages, but the plan has {len(results)}")
    return results


def _advance(generator: Plan, result: StageResult) -> Stage | None:
    try:
        return generator.send(result)
    except StopIteration:
        return None


def _plain(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metrics)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"stage '{name}' returned metrics that are not plain JSON: {error}") from error


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    good = isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("name"), str) and isinstance(row.get("metrics"), dict)
        for row in rows
    )
    if not good:
        raise CheckpointError(f'{path} is damaged: it must be a list of {{"name": …, "metrics": …}}')
    return rows
