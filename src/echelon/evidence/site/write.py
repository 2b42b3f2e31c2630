"""Building the site: all pages first, then the folder, which must be new, empty or the site of an earlier call."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from echelon.errors import EchelonError, UsageError
from echelon.evidence.site.gather import System, gather
from echelon.evidence.site.index_page import index_page
from echelon.evidence.site.system_page import system_page
from echelon.evidence.status import default_results
from echelon.evidence.view.layout import asset

MARKER = ".echelon-site"
"""The file that tells a site from other folders: the names of all that was written, as JSON."""
INDEX = "index.html"


def write_site(out: Path | str = "site", results: Path | str | None = None) -> Path:
    """Write the site of the results below `results` (default: those of the checkout) to `out`; returns its first page.

    Pages that an earlier call wrote and this one does not are removed. Raises UsageError when `out` is a file, or a
    folder with anything in it that is not such a site, and when there is no folder `results`; nothing is written then.
    """
    out, source = Path(out), Path(results) if results is not None else default_results()
    if results is not None and not source.is_dir():
        raise UsageError(f"there is no folder of results '{source}'; leave out --results to take those of the checkout")
    old = written(out)
    new = {name: text.encode() for name, text in pages(gather(source)).items()} | copies(source)
    try:
        for name, content in {**new, MARKER: json.dumps(sorted(new), indent=1).encode()}.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name in old - set(new):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise EchelonError(f"cannot write the site to {out}: {error.strerror}") from error
    return out / INDEX


def pages(systems: list[System]) -> dict[str, str]:
    """Every page and the style, by its name in the site's folder."""
    beside = [None, *systems, None]
    made = {
        f"systems/{system.slug}.html": system_page(system, before, after)
        for before, system, after in zip(beside, systems, beside[2:], strict=False)
    }
    style = "\n".join([asset("svg.css"), asset("page.css"), asset("site.css", "echelon.evidence.site")])
    return {INDEX: index_page(systems), "style.css": style, **made}


def copies(source: Path) -> dict[str, bytes]:
    """The files of results that pages link to, by their names in the site's folder."""
    return {f"results/{file.relative_to(source).as_posix()}": file.read_bytes() for file in source.glob("*/*.json")}


def written(out: Path) -> set[str]:
    """What an earlier call wrote to `out`; UsageError if something else lies there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    if not out.is_dir():
        raise UsageError(f"'{out}' is a file; give --out a folder, such as site")
    try:
        names = json.loads((out / MARKER).read_text(encoding="utf-8"))
        inside = [PurePosixPath(name) for name in names]
    except (OSError, ValueError, TypeError):
        raise UsageError(f"'{out}' is not empty and not a site of echelon's; give --out a new folder") from None
    if any(path.is_absolute() or ".." in path.parts for path in inside):
        raise UsageError(f"'{out / MARKER}' names files outside '{out}'; give --out a new folder")
    return set(names)
