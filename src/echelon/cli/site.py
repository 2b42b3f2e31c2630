"""`echelon site`: every system with its status, claims and evidence, as a folder of static pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from echelon.cli import show
from echelon.cli.arguments import parse
from echelon.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Site:
    """Write the site: the table of all systems, and a page for each with its claims and their results.

    The pages are plain HTML that needs no server and no network. They are generated from results and code.
    """

    out: Path = Path("site")
    """Folder for the pages: a new one, an empty one, or a site that was written before."""
    results: Path | None = None
    """Folder of results (default: results here, else that of the checkout)."""
    readme: bool = False
    """Also rewrite the tables in README.md and docs/systems.md of the checkout in this directory."""
    json: bool = False
    """Print where the files are as JSON."""


def run(args: list[str]) -> int:
    """Write the pages and say where the first one is."""
    options = parse(Site, args, "site")
    if options.readme and options.results is not None:
        raise UsageError("--readme tells of the checkout's own results; leave out --results, or --readme")
    from echelon.evidence import status
    from echelon.evidence.site.write import write_site

    first = write_site(options.out, options.results)
    rewritten = [str(path) for path in status.write_pages(Path.cwd())] if options.readme else []
    if options.json:
        show.as_json({"index": str(first), "rewritten": rewritten})
    else:
        print("\n".join([str(first), *(f"rewritten: {name}" for name in rewritten)]))
    return 0
