"""The records of a run in a world: its newest evaluation, newest episodes of its training, and advantages so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from echelon.errors import DataError
from echelon.evidence.view.control import advantages, expected, timelines
from echelon.evidence.view.played import played
from echelon.evidence.view.runs import EPISODES_PER_TASK, MAZES, Curve, Episode, Run, task_name
from echelon.rollout import Rollout

EVALUATED, TRAINED = "step", "trained"
RECORDS = 12
"""Records of which advantages are told, evenly spaced over the run, the newest among them."""


def read_rollouts(run: Run, most: int) -> None:
    """Fill in the episodes of the newest records, at most `most` of each kind, the lengths of spans, and advantages."""
    recorded, learnt = (recordings(run.path / "rollouts", kind) for kind in (EVALUATED, TRAINED))
    if recorded:
        _read_evaluation(run, opened(recorded[-1]), most)
        run.rollout_step = step_of(recorded[-1])
    else:
        nothing = "no evaluation episodes were recorded (rollouts/ is empty)"
        run.missing["played"] = run.missing["spans"] = nothing
        if not run.online:
            run.missing["episodes"] = nothing
    if learnt:
        rollout = opened(learnt[-1])
        found = timelines(rollout, run.config, run.strings, most, trained=True)
        for told, one in zip(found, played(rollout, run.env, most), strict=False):
            told.path, told.subgoals = one.path, one.subgoals
        run.timelines += found
    if len(recorded) > 1 and run.online:
        run.variances = variances(run, recorded)


def recordings(folder: Path, kind: str) -> list[Path]:
    """The records `<kind>_<step>` of a folder without their suffix, in order; DataError names one of no step."""
    found = [file.with_suffix("") for file in sorted(folder.glob(f"{kind}_*.safetensors"))]
    for path in found:
        step_of(path)
    return found


def step_of(path: Path) -> int:
    """The step of a record, from its name."""
    step = path.name.partition("_")[2]
    if not step.isdecimal():
        raise DataError(f"{path}.safetensors: '{step}' is no step; records are called {EVALUATED}_000000100 and alike")
    return int(step)


def opened(path: Path) -> Rollout:
    """A record; DataError names a file that is damaged, or whose columns are not those of a rollout."""
    try:
        return Rollout.load(path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}.safetensors: not the columns of a rollout ({error!r})") from error


def variances(run: Run, recorded: list[Path]) -> dict[str, Curve]:
    """Of each level that notes values, the variance of its advantages in evaluations, against their step."""
    chosen = np.unique(np.linspace(0, len(recorded) - 1, RECORDS).round().astype(int))
    points: dict[str, list[tuple[float, float]]] = {}
    for path in reversed([recorded[k] for k in chosen]):
        rollout = opened(path)
        if all(expected(d) is None for d in rollout.decisions.values()):
            break
        for level in rollout.levels:
            if len(found := advantages(rollout, level, run.config)) > 1:
                points.setdefault(level, []).append((step_of(path), float(found.var())))
    arrays = {level: np.array(pairs[::-1], dtype=np.float64) for level, pairs in points.items()}
    return {level: Curve(pairs[:, 0], pairs[:, 1]) for level, pairs in arrays.items()}


def _read_evaluation(run: Run, rollout: Rollout, most: int) -> None:
    run.spans = {
        level: (decisions.stop - decisions.start).double().numpy() for level, decisions in rollout.decisions.items()
    }
    run.timelines = timelines(rollout, run.config, run.strings, most)
    if run.online:
        run.played, run.diagnostics = played(rollout, run.env, most), rollout.meta.get("diagnostics", {})
        for told, one in zip(run.timelines, run.played, strict=False):
            told.path, told.subgoals = one.path, one.subgoals
    elif run.env.partition("-")[0] in MAZES:
        _read_maze(run, rollout)
    else:
        run.missing["episodes"] = f"{run.env} is not a maze, so there is no path to draw"


def _check_maze(run: Run, rollout: Rollout) -> None:
    """DataError where a record of evaluation in a maze lacks what its protocol records."""
    streams = rollout.streams
    missing = [f"observation '{name}'" for name in ("observation", "goal") if name not in rollout.observation]
    missing += [f"label '{name}'" for name in ("task", "success") if name not in streams.labels]
    missing += [] if "observation" in streams.final_observation else ["final observation 'observation'"]
    if missing:
        raise DataError(
            f"{run.path / 'rollouts'}: the newest record has no {', no '.join(missing)}; is it of {run.env}?"
        )


def _read_maze(run: Run, rollout: Rollout) -> None:
    """The paths of the first episodes of each task."""
    _check_maze(run, rollout)
    observation = np.asarray(rollout.observation["observation"], dtype=np.float32)
    goal = np.asarray(rollout.observation["goal"], dtype=np.float32)
    final = np.asarray(rollout.streams.final_observation["observation"], dtype=np.float32)
    tasks, success = (rollout.streams.labels[name] for name in ("task", "success"))
    stream, tick = np.asarray(rollout.stream), np.asarray(rollout.tick)
    kept: dict[str, int] = {}
    for number in range(len(tasks)):
        name = task_name(tasks[number])
        shown = number < len(run.timelines)
        if kept.setdefault(name, 0) >= EPISODES_PER_TASK and not shown:
            continue
        kept[name] += 1
        items = np.flatnonzero(stream == number)
        items = items[np.argsort(tick[items], kind="stable")]
        path = np.concatenate([observation[items, :2], final[number : number + 1, :2]]).astype(np.float64)
        episode = Episode(name, bool(success[number]), observation[items], goal[items], path)
        run.episodes.append(episode)
        if shown:
            episode.timeline, run.timelines[number].path = run.timelines[number], path
