"""What the verbs on runs share: finding a run, the flags about the machine, and showing a result."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echelon.cli import show
from echelon.errors import UsageError

if TYPE_CHECKING:
    from echelon.training.config import RunConfig

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


def config_of(directory: Path) -> RunConfig:
    """The configuration of the run in `directory`; UsageError says what is there instead."""
    if not (directory / CONFIG).is_file():
        raise UsageError(f"{directory} holds no run; {hint(directory)}")
    from echelon.systems import launch

    return launch.config_of(directory / CONFIG)


def hint(directory: Path) -> str:
    """What a person may have meant by a directory that holds no run."""
    inside = sorted(str(path.parent) for path in directory.glob(f"*/{CONFIG}"))
    if inside:
        return f"it holds the runs {', '.join(inside[:4])}{', …' if len(inside) > 4 else ''}"
    known = sorted(str(path.parent) for path in Path("runs").glob(f"**/{CONFIG}"))
    near = difflib.get_close_matches(str(directory), known, n=3, cutoff=0.5) or known[:3]
    return f"did you mean {' or '.join(near)}?" if near else "train one: echelon train SYSTEM"


def train(config: RunConfig, out: Path | None, machine: Machine) -> int:
    """Train `config` in `out`, or go on with it there, and show the result; 130 when a signal stopped it."""
    from echelon.systems import launch

    check(config, machine)
    with messages(machine.json):
        directory = launch.train(
            config,
            out,
            device=machine.device,
            precision=machine.precision,
            threads=machine.threads,
            tensorboard=machine.tensorboard,
        )
    if directory is None:
        return 130
    show_results([directory], machine.json)
    return 0


def check(config: RunConfig, machine: Machine) -> None:
    """Refuse flags that no run could start with, before data are made or anything is written."""
    from echelon.systems import launch
    from echelon.training.runtime import choose

    launch.check(config)
    choose(machine.device, machine.precision, machine.threads)


def messages(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """Where messages go within the context: stderr when stdout is to carry JSON alone, else stdout."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def show_results(directories: list[Path], as_json: bool) -> None:
    """Print the results of finished runs: success in percent, over all and by task; the return where none is told."""
    results = [{"run": str(d), **json.loads((d / "result.json").read_text())} for d in directories]
    if as_json:
        show.as_json(results)
        return
    tasks = list(results[0].get("tasks", ()))
    scale, what = (1, "return") if results[0].get("of") == "return" else (100, "success %")
    rows = [
        (r["run"], show.number(scale * r["score"]), *(show.number(100 * r["tasks"][task], 0) for task in tasks))
        for r in results
    ]
    print(show.table(("run", what, *tasks), rows))
