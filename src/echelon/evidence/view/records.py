"""The records of a language run for its page: the newest evaluation, the newest iteration that was learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from echelon.errors import DataError, EchelonError
from echelon.evidence.view.rollouts import step_of
from echelon.evidence.view.runs import Run
from echelon.evidence.view.talk import Decode, timelines
from echelon.language.record import Record

UNGROUPED = (
    "an evaluation plays each task by itself and learns nothing from it: advantages are those of the episodes that the "
    "run learnt from, which are listed with them"
)


def read_records(run: Run, most: int) -> None:
    """Fill in the timelines of a language run and how long its decisions last, in tokens."""
    played, learnt = (newest(run.path / "records", name) for name in ("step", "learnt"))
    if played is None:
        run.missing["played"] = run.missing["spans"] = "no evaluation episodes were recorded (records/ is empty)"
        return
    decode = decoder(run)
    if learnt is not None:
        why = "parts of the run's own credit rule, meaned over the tokens of the box; they sum to the advantage"
        run.timelines = timelines(opened(learnt), run.strings, decode, why, most, "learnt ")
    run.rollout_step = step_of(played)
    run.timelines += timelines(opened(played), run.strings, decode, UNGROUPED, most)
    for level in dict.fromkeys(row.level for one in run.timelines for row in one.rows):
        lengths = [one.stop[k] - one.start[k] for one in run.timelines for k, r in enumerate(one.row)
                   if one.rows[r].level == level]  # fmt: skip
        run.spans[level] = np.array(lengths, dtype=np.float64)


def opened(path: Path) -> Record:
    """A record; DataError names a file that is damaged, or whose columns are not those of a record."""
    try:
        return Record.load(path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}.safetensors: not the columns of a language record ({error!r})") from error


def newest(folder: Path, name: str) -> Path | None:
    """The newest record `<name>_<step>` of a folder, without its suffix."""
    found = sorted(folder.glob(f"{name}_*.safetensors"))
    return found[-1].with_suffix("") if found else None


def decoder(run: Run) -> Decode | None:
    """What makes text of a run's tokens: the tokenizer of its warm start, None where that is not on this machine."""
    from echelon.systems import index
    from echelon.systems.launch import config_of
    from echelon.training.language.warm import stored_tokenizer

    try:
        system: Any = index.load(run.system)
        tokenizer = stored_tokenizer(system, config_of(run.path / "config.json"))
    except EchelonError as error:
        run.missing["tokens"] = str(error)
        return None
    if tokenizer is None:
        run.missing["tokens"] = "the model that the run began with is not on this machine, so its tokens have no text"
        return None
    return lambda ids: tokenizer.decode(list(ids))
