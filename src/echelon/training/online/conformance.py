"""Whether a system goes on as if it had never been stopped: what all online systems promise, to be asked of one's own.

    check_resume(MySystem, MySystem.Config(slots=2, ticks=8, updates=6, …), "somewhere")

trains once, forgets all that happened after a checkpoint, goes on from there and compares, bit for bit: what was
collected, weights, optimisers, replay, generators, episodes, and every line that was written. Where the environment's
state cannot be kept, running episodes are lost; the run then has to say so, and to lose nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echelon.data.replay import Replay
from echelon.errors import EchelonError, UsageError
from echelon.rollout import Begin, Ragged, Rollout
from echelon.training import checkpoint, run
from echelon.training.agent import Batch
from echelon.training.metrics import read_jsonl
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig
from echelon.training.online.loop import OnlineRun
from echelon.training.runtime import choose

CLOCKS = ("time_s", "collect_s", "learn_s", "steps_per_s", "seconds", "load")
"""What lines of two runs of the same identity may differ in."""
CONTINUED, RESUMED = "continued", "resumed"
"""The run that was not stopped, and the one that was, in the folder of a check."""
WRITTEN = ("metrics.jsonl", "evaluations.jsonl", "episodes.jsonl")


class ConformanceError(EchelonError):
    """A system, or the world that it is in, broke a promise that every online run makes."""


@dataclass(frozen=True)
class Resumed:
    """How a run went on. `exact`: bit for bit; else it declared that new episodes began, which held.

    `inside`: levels that held a decision for one tick or more where the run was stopped, and went on holding it.
    """

    exact: bool
    inside: tuple[str, ...]


def check_resume(
    system: type[OnlineAgent], config: OnlineConfig, directory: Path | str, stop: int | None = None
) -> Resumed:
    """Train `system` in `directory`, go on from its checkpoint of update `stop` in a copy, and compare the two.

    stop: default the middle; at least half of the updates. The configuration is taken with a checkpoint there and a
    line of metrics at every update; choose one of seconds.
    Raises ConformanceError, which names the first thing that differs, or what was lost without a word.
    """
    stop = config.updates - config.updates // 2 if stop is None else stop
    if not stop < config.updates <= 2 * stop:
        raise UsageError(f"a run of {config.updates} updates is stopped at half of them or later, not at {stop}")
    config = dataclasses.replace(config, checkpoint_every=stop, log_every=1)
    continued, resumed = Path(directory) / CONTINUED, Path(directory) / RESUMED
    before = _trained(system, config, continued)
    shutil.copytree(continued, resumed)
    forget_after(resumed, stop)
    kept = checkpoint.latest(resumed)
    if kept is None or kept.step != stop:
        raise ConformanceError(f"{system.__name__} left no checkpoint of update {stop}")
    found = _trained(system, config, resumed)
    if any(row["kind"] == "resumed" for row in read_jsonl(resumed / "metrics.jsonl")):
        _check_declared(system, config, kept, resumed, found[0])
        return Resumed(False, ())
    _check_collected(system, before[stop:], found, stop)
    _check_files(system, continued, resumed)
    _check_checkpoints(system, continued, resumed)
    return Resumed(True, _inside(kept, before[0].levels))


def forget_after(directory: Path, step: int) -> None:
    """Leave a run as if its process had been killed after `step`, for which there is a checkpoint."""
    for path in (directory / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_").partition(".")[0]) > step:
            shutil.rmtree(path)
    for name in ("result.json", "checkpoints/latest"):
        (directory / name).unlink(missing_ok=True)


# ---- what happened


@dataclass(frozen=True)
class Collected:
    """What a rollout was: a digest of each column; whether all its streams, and all decisions in it, began there."""

    levels: tuple[str, ...]
    columns: Mapping[str, str]
    anew: bool


def collected(rollout: Rollout) -> Collected:
    """A rollout in short."""
    columns: dict[str, Any] = {name: getattr(rollout, name) for name in ("tick", "elapsed", "proposed", "executed")}
    columns |= {f"reward '{name}'": column for name, column in rollout.reward.items()}
    columns |= {f"observation '{name}'": column for name, column in rollout.observation.items()}
    for level, d in rollout.decisions.items():
        parts = {name: getattr(d, name) for name in ("start", "stop", "begin", "end", "action", "log_prob")}
        columns |= {f"decisions '{level}', {name}": column for name, column in (parts | dict(d.values)).items()}
    streams = rollout.streams
    columns |= {f"streams, {name}": getattr(streams, name) for name in ("episode", "terminated", "truncated")}
    columns |= {f"final observation '{name}'": column for name, column in streams.final_observation.items()}
    carried = any(bool((d.begin == Begin.CARRIED).any()) for d in rollout.decisions.values())
    plain = {name: column.values if isinstance(column, Ragged) else column for name, column in columns.items()}
    digests = {name: _digest(column) for name, column in plain.items()}
    return Collected(tuple(rollout.levels), digests, bool((streams.start_tick == 0).all()) and not carried)


def _digest(column: Tensor) -> str:
    body = column.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{column.dtype}{list(column.shape)} {hashlib.sha256(body.numpy().tobytes()).hexdigest()}"


def _trained(system: type[OnlineAgent], config: OnlineConfig, directory: Path) -> list[Collected]:
    """Train, or go on, in `directory`; what was collected, update by update."""
    seen: list[Collected] = []

    class Watched(system):  # type: ignore[misc, valid-type]  # the system as it is, looked at while it learns
        def learn(self, rollout: Rollout) -> Iterator[Batch]:
            seen.append(collected(rollout))
            return super().learn(rollout)

    Watched.__name__ = system.__name__
    run.train(Watched, config, directory, device="cpu", precision="float32", threads=1, say=lambda line: None)
    return seen


# ---- the promises


def _check_collected(system: type[OnlineAgent], expected: list[Collected], found: list[Collected], stop: int) -> None:
    """The same was collected in every update after the stop."""
    for number, (one, other) in enumerate(zip(expected, found, strict=True), stop + 1):
        differ = [name for name in {**one.columns, **other.columns} if one.columns.get(name) != other.columns.get(name)]
        if not differ:
            continue
        if number == stop + 1 and other.anew and not one.anew:
            raise ConformanceError(
                f"{system.__name__} was restarted silently: after update {stop} its episodes began anew, and no line "
                "of the kind 'resumed' says so; a world that cannot be brought back has state_dict() None"
            )
        raise ConformanceError(
            f"{system.__name__}, resumed after update {stop}, collected something else in update {number}: "
            f"{'; '.join(differ[:3])}; does its `kept` hold all that it learns from and acts by?"
        )


def _check_files(system: type[OnlineAgent], continued: Path, resumed: Path) -> None:
    """Every line that was written is the same, but for clocks."""
    for name in WRITTEN:
        rows = [[_untimed(row) for row in read_jsonl(folder / name)] for folder in (continued, resumed)]
        for one, other in zip(*rows, strict=False):
            if one != other:
                differ = sorted(key for key in one | other if one.get(key) != other.get(key))
                first = f"'{differ[0]}' is {other.get(differ[0])}, not {one.get(differ[0])}"
                raise ConformanceError(f"{system.__name__}, resumed: {name} at step {one['step']}: {first}")
        if len(rows[0]) != len(rows[1]):
            raise ConformanceError(f"{system.__name__}, resumed: {name} has {len(rows[1])} lines, not {len(rows[0])}")


def _check_checkpoints(system: type[OnlineAgent], continued: Path, resumed: Path) -> None:
    """The last checkpoints hold the same."""
    one, other = checkpoint.latest(continued), checkpoint.latest(resumed)
    assert one is not None and other is not None
    mine, theirs = _contents(one), _contents(other)
    differ = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
    if differ:
        raise ConformanceError(
            f"{system.__name__}, resumed, ends with another checkpoint: {len(differ)} parts differ, the first is "
            f"'{differ[0]}'"
        )


def _check_declared(
    system: type[OnlineAgent], config: OnlineConfig, kept: checkpoint.Checkpoint, resumed: Path, first: Collected
) -> None:
    """New episodes began, once, with new numbers; weights, optimisers and replay are those of the checkpoint."""
    name, stop = system.__name__, kept.step
    told = [row["step"] for row in read_jsonl(resumed / "metrics.jsonl") if row["kind"] == "resumed"]
    if told != [stop]:
        raise ConformanceError(f"{name}, resumed after update {stop}, tells of it at updates {told}")
    if not first.anew:
        raise ConformanceError(f"{name} says that new episodes began, and goes on in the middle of old ones")
    numbers = [row["episode"] for row in read_jsonl(resumed / "episodes.jsonl")]
    if len(set(numbers)) != len(numbers):
        raise ConformanceError(f"{name}, resumed after update {stop}, gave episodes numbers that were taken")
    trainer = system.trainer()
    world = trainer.inputs(system, config, lambda line: None)
    again = trainer.build(system, config, resumed.with_name("restored"), choose("cpu", "float32", 1), world)
    assert isinstance(again, OnlineRun)
    again.restore(kept)
    again.save()
    found = checkpoint.latest(again.directory)
    assert found is not None
    replays = [f"kept.{part}" for part, keeper in again.agent.kept().items() if isinstance(keeper, Replay)]
    parts = ("agent.", "optimizer", *replays)
    mine, theirs = _contents(kept), _contents(found)
    lost = sorted(n for n in mine if n.startswith(parts) and mine[n] != theirs.get(n))
    if lost:
        raise ConformanceError(f"{name}, resumed after update {stop}, lost more than its episodes: '{lost[0]}'")


def _contents(found: checkpoint.Checkpoint) -> dict[str, str]:
    """All that a checkpoint holds, in short; clocks aside."""
    state = {f"state.{name}": json.dumps(value) for name, value in found.state.items() if name != "train_s"}
    return {name: _digest(tensor) for name, tensor in found.tensors.items()} | state


def _untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCKS}


def _inside(kept: checkpoint.Checkpoint, levels: tuple[str, ...]) -> tuple[str, ...]:
    """Levels with a decision that had been held for a tick or more, and was not over."""
    tracks = checkpoint.unflatten(kept.tensors, kept.state["runner"])["tracks"]
    held = [t["codes"] is not None and bool(((t["codes"] == 0) & (t["ticks"] > 0)).any()) for t in tracks]
    return tuple(name for name, inside in zip(levels, held, strict=True) if inside)
