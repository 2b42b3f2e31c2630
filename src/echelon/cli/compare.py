"""`echelon compare`: systems on data sets with the same budget, or runs that exist, side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from echelon.cli import runs, show
from echelon.cli.arguments import parse
from echelon.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare systems (trained with the same budget, as far as that is not done yet) or folders of runs.

    Shows mean success (or return, where no success is told) with its 95 % interval by data set, the interquartile mean
    over all, the difference to the first and the probability of being better than the first.
    """

    what: Positional[Annotated[tuple[str, ...], arg(metavar="SYSTEM|DIR")]]
    """Systems, or folders of runs."""
    envs: tuple[str, ...] = ()
    """Data sets or text worlds, for systems (default: that of the first system's configuration)."""
    seeds: str = "0-2"
    """Seeds of each system, such as 0-7."""
    size: str = "cpu"
    """Recipe: published, cpu or demo."""
    set: tuple[str, ...] = ()
    """Fields of the configuration to change for all, as FIELD=VALUE: updates=50000."""
    jobs: int = 2
    """Processes that train at a time, of one thread each."""
    runs: Path = Path("runs/compare")
    """Folder of the runs; finished ones of the same code are used again."""
    svg: Path | None = None
    """Draw the learning curves to this file."""
    json: bool = False
    """Print JSON; messages go to stderr."""


def run(args: list[str]) -> int:
    """Compare and print the table."""
    options = parse(Compare, args, "compare")
    if not options.what:
        raise UsageError("compare what? echelon compare SYSTEM SYSTEM --envs NAME, or echelon compare DIR DIR")
    folders = [Path(word).is_dir() for word in options.what]
    from echelon.systems import index

    if not all(folders):
        for word, folder in zip(options.what, folders, strict=True):
            if folder:
                raise UsageError(f"'{word}' is a folder and others are systems; compare systems or folders, not both")
            index.find(word)
    from echelon.evidence import compare
    from echelon.training.launch import parse_seeds

    if all(folders):
        comparison = compare.of_runs(options.what)
    else:
        seeds, changes = parse_seeds(options.seeds), dict(map(assignment, options.set))
        envs = options.envs or (index.load(options.what[0]).Config.env,)
        with runs.messages(options.json):
            comparison = compare.compare(options.what, envs, seeds, options.size, changes, options.jobs, options.runs)
    if options.svg is not None:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(compare.svg(comparison), encoding="utf-8")
    if options.json:
        show.as_json(compare.document(comparison))
    else:
        print(show.table(*compare.table(comparison)))
    return 0


def assignment(text: str) -> tuple[str, Any]:
    """Field and value of FIELD=VALUE; a value is read as JSON, else taken as text. Lists become tuples."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: write FIELD=VALUE, such as updates=50000")
    try:
        found = json.loads(value)
    except ValueError:
        return name, value
    return name, tuple(found) if isinstance(found, list) else found
