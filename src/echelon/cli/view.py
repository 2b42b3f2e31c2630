"""`echelon view`: the report of runs as one self-contained HTML page."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from echelon.cli import runs, show
from echelon.cli.arguments import parse
from echelon.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class View:
    """Write the report of runs as one HTML page, and open it where there is a display."""

    what: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN")]]
    """Runs, or folders of seed-* runs; several are shown side by side."""
    out: Path | None = None
    """The file (default: report.html in the first RUN)."""
    picture: Path | None = None
    """Also draw a strip for a README or a slide to this SVG file."""
    open: bool = True
    """Open the page in a browser."""
    json: bool = False
    """Print where the files are as JSON, and open nothing."""


def run(args: list[str]) -> int:
    """Write the page, say where it is, and open it."""
    options = parse(View, args, "view")
    if not options.what:
        raise UsageError("view which run? echelon view RUN, such as runs/ota-pointmaze-medium-navigate-v0")
    for path in options.what:
        if not list(path.glob(runs.CONFIG)) and not list(path.glob(f"*/{runs.CONFIG}")):
            raise UsageError(f"{path} holds no run; {runs.hint(path)}")
    refuse_others(options.what)
    from echelon.evidence.view.page import view
    from echelon.evidence.view.picture import picture

    page = view(options.what, options.out, options.open and not options.json and has_display())
    files = {"report": str(page)}
    if options.picture is not None:
        files["picture"] = str(picture(options.what, options.picture))
    if options.json:
        show.as_json(files)
    else:
        print("\n".join(f"{name}: {file}" for name, file in files.items()))
    return 0


def refuse_others(paths: tuple[Path, ...]) -> None:
    """Say where to read on, when there is a run of another kind among `paths`."""
    from echelon.training.config import Config
    from echelon.training.language.config import LanguageConfig
    from echelon.training.online.config import OnlineConfig

    for path in paths:
        for file in (*path.glob(runs.CONFIG), *sorted(path.glob(f"*/{runs.CONFIG}"))):
            config = runs.config_of(file.parent)
            if not isinstance(config, Config | OnlineConfig | LanguageConfig):
                raise UsageError(
                    f"the page shows runs from data sets, in worlds and of language agents, and {file.parent} is a run "
                    f"of '{config.system}'; curves: echelon compare {path} --svg FILE"
                )


def has_display() -> bool:
    """Whether a browser would have a screen to open on."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
