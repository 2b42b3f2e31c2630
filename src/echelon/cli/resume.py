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
    cls, config = runs.open_run(options.run)
    from echelon.training.run import train

    directory = train(
        cls,
        config,
        options.run,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        tensorboard=options.tensorboard,
        say=runs.speaker(options.json),
    )
    if directory is None:
        return 130
    runs.show_results([runs.result_of(directory)], options.json)
    return 0
