"""`echelon eval`: evaluate the newest checkpoint of a run again; writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from echelon.cli import runs, show
from echelon.cli.arguments import parse
from echelon.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run on its test tasks, acting as in its own evaluations."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Directory of the run."""
    episodes: int = 50
    """Episodes of each task."""
    seed: int = 0
    """Seed of what is drawn: start and goal noise, or the texts of a language agent."""
    json: bool = False
    """Print JSON."""


def run(args: list[str]) -> int:
    """Evaluate and print success by task, or returns where no success is told."""
    options = parse(Evaluate, args, "eval")
    if options.episodes < 1:
        raise UsageError(f"--episodes {options.episodes}: at least one is needed")
    runs.config_of(options.run)
    from echelon.systems import launch

    row = launch.evaluate(options.run, options.episodes, options.seed)
    if options.json:
        show.as_json({"run": str(options.run), **row})
        return 0
    if row["success"] is None:
        found = [(name, str(len(x)), show.number(sum(x) / len(x))) for name, x in row["returns"].items()]
        print(show.table(("task", "episodes", "return"), found))
    else:
        cells = [(name, f"{sum(x)}/{len(x)}", show.number(100 * sum(x) / len(x))) for name, x in row["tasks"].items()]
        cells.append(("all", "", show.number(100 * row["success"])))
        print(show.table(("task", "episodes", "success %"), cells))
    print(f"checkpoint of step {row['step']}, {row['seconds']:.1f} s")
    return 0
