"""Language agents small enough for tests: a world of a dozen words, a tiny model, and what a run amounts to."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from colours import Colours
from small_runs import digest, untimed

from echelon.language.record import Record
from echelon.language.worlds import world
from echelon.training import checkpoint
from echelon.training.language.agent import LanguageAgent
from echelon.training.language.config import LanguageConfig
from echelon.training.metrics import read_jsonl

COLOURS = f"{Colours.__module__}:{Colours.__name__}"
"""Where the world "colours" is found."""
TIMES = {"collect_s", "learn_s"}
CLOCKS = {"call/started", "call/finished"}
SMALL: dict[str, Any] = {
    "env": "colours",
    "limit": 4,
    "updates": 3,
    "eval_every": 2,
    "eval_episodes": 2,
    "checkpoint_every": 1000,
    "layers": 1,
    "width": 32,
    "context": 256,
    "warm_episodes": 48,
    "warm_epochs": 2,
    "warm_lr": 1e-2,
    "tasks": 2,
    "group": 3,
    "max_tokens": 3,
    "lr": 1e-3,
}


def add_colours() -> None:
    """Let worlds be made by the name "colours"."""
    world._WORLDS["colours"] = COLOURS


@contextlib.contextmanager
def tiny_language(models: Path) -> Iterator[None]:
    """Within it, "colours" is a world, warm starts lie in `models`, and no write waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(world._WORLDS, "colours", COLOURS)
        patch.setenv("ECHELON_MODELS", str(models))
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def small(cls: type[LanguageAgent], **changes: Any) -> LanguageConfig:
    """The default configuration with a tiny model, budget and world."""
    return dataclasses.replace(cls.Config(), **{**SMALL, **changes})


def outcome(directory: Path) -> dict[str, Any]:
    """All that a run left behind, except for times: two runs of the same identity must have the same."""
    found = checkpoint.latest(directory)
    assert found is not None
    left: dict[str, Any] = {f"tensor {name}": digest(tensor.numpy()) for name, tensor in found.tensors.items()}
    for file in sorted((directory / "records").iterdir()):
        if file.suffix == ".txt":
            left[file.name] = file.read_text()
        elif file.suffix == ".safetensors":
            columns = Record.load(file.with_suffix("")).columns()
            kept = {name: digest(column.numpy()) for name, column in columns.items() if name not in CLOCKS}
            left[file.name] = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    left |= {f"state {name}": value for name, value in untimed(found.state).items()}
    for name in ("metrics", "evaluations"):
        rows = read_jsonl(directory / f"{name}.jsonl")
        left |= {f"{name} {k}": _plain(untimed(row)) for k, row in enumerate(rows)}
    result = directory / "result.json"
    return left | {"step": found.step, "result": untimed(json.loads(result.read_text())) if result.exists() else None}


def _plain(row: dict[str, Any]) -> str:
    """The row as text, in which nan equals nan, without the times of an iteration."""
    return json.dumps({name: value for name, value in row.items() if name not in TIMES})
