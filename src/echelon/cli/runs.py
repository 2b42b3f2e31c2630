"""What the verbs on runs share: finding a run, the flags about the machine, and showing a result."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echelon.cli import show
from echelon.errors import UsageError

if TYPE_CHECKING:
    from echelon.training.agent import Agent
    from echelon.training.config import Config

CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On what and how to compute; nothing here changes what is learnt."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is float32 everywhere."""
    threads: int | None = None
    """CPU threads (default: the cores that are free)."""
    tensorboard: bool = False
    """Write TensorBoard events beside metrics.jsonl."""
    json: bool = False
    """Print the result as JSON; messages go to stderr."""


def agent_class(slug: str) -> type[Agent]:
    """The agent class of an implemented system."""
    from echelon.systems import index

    return index.load(slug)


def open_run(directory: Path) -> tuple[type[Agent], Config]:
    """The agent class and configuration of the run in `directory`; UsageError says what is there instead."""
    from echelon.training.config import read_json
    from echelon.training.run import load_config

    if not (directory / CONFIG).is_file():
        raise UsageError(f"{directory} holds no run; {hint(directory)}")
    cls = agent_class(read_json(directory / CONFIG)["system"])
    return cls, load_config(cls, directory)


def hint(directory: Path) -> str:
    """What a person may have meant by a directory that holds no run."""
    inside = sorted(str(path.parent) for path in directory.glob(f"*/{CONFIG}"))
    if inside:
        return f"it holds the runs {', '.join(inside[:4])}{', …' if len(inside) > 4 else ''}"
    known = sorted(str(path.parent) for path in Path("runs").glob(f"**/{CONFIG}"))
    near = difflib.get_close_matches(str(directory), known, n=3, cutoff=0.5) or known[:3]
    return f"did you mean {' or '.join(near)}?" if near else "train one: echelon train SYSTEM"


def speaker(as_json: bool) -> Callable[[str], None]:
    """Where messages go: stdout, or stderr when stdout carries JSON."""
    return lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def result_of(directory: Path) -> dict[str, Any]:
    """The result of a finished run, with its directory."""
    return {"run": str(directory), **json.loads((directory / "result.json").read_text())}


def show_results(results: list[dict[str, Any]], as_json: bool) -> None:
    """Print results of finished runs: success in percent, by task and over all."""
    if as_json:
        show.as_json(results)
        return
    tasks = list(results[0]["tasks"])
    rows = [
        (r["run"], show.number(100 * r["score"]), *(show.number(100 * r["tasks"][task], 0) for task in tasks))
        for r in results
    ]
    print(show.table(("run", "success %", *tasks), rows))
