"""`echelon resume`: go on with an unfinished run, exactly where its newest whole checkpoint stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from echelon.cli import runs
from echelon.cli.arguments import parse


@dataclass(frozen=True, kw_only=True)
class Resume(runs.Machine):
    """Go on with an unfinished run, bit for bit as if it had not been stopped; a finished one is left as it is."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Directory of the run."""


def run(args: list[str]) -> int:
    """Resume; exit code 130 when a signal stopped it again."""
    options = parse(Resume, args, "resume")
    return runs.train(runs.config_of(options.run), options.run, options)
