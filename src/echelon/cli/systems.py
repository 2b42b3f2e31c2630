"""`echelon systems`: every system with its status; one system with its claims."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from echelon.cli import show
from echelon.cli.arguments import parse
from echelon.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Systems:
    """List the systems with their status, or describe one of them.

    Status: verified (its tests pass and all its claims are supported), runs (its tests pass), planned.
    """

    system: Positional[Annotated[str | None, arg(metavar="[SYSTEM]")]] = None
    """Describe this one: its idea, its claims and their results."""
    family: str | None = None
    """Only this family, such as offline or agents."""
    results: Path | None = None
    """Folder of results (default: results here, else that of the checkout)."""
    write: bool = False
    """Rewrite the tables in README.md and docs/systems.md of the checkout in this directory."""
    json: bool = False
    """Print JSON."""


def run(args: list[str]) -> int:
    """Print the table, one system, or rewrite the generated pages."""
    options = parse(Systems, args, "systems")
    from echelon.evidence import status

    if options.write:
        changed = [str(path) for path in status.write_pages(Path.cwd())]
        show.as_json(changed) if options.json else print(
            f"rewritten: {', '.join(changed) or 'nothing, all up to date'}"
        )
        return 0
    rows = status.table(options.results)
    if options.system is not None:
        if options.system not in [row["slug"] for row in rows]:
            raise unknown("system", options.system, [row["slug"] for row in rows])
        rows = [row for row in rows if row["slug"] == options.system]
    if options.family is not None:
        families = {row["family"] for row in rows}
        if options.family not in families:
            raise unknown("family", options.family, families)
        rows = [row for row in rows if row["family"] == options.family]
    if options.json:
        show.as_json(rows)
    elif options.system is not None:
        describe(rows[0])
    else:
        list_all(rows)
    return 0


def list_all(rows: list[dict[str, Any]]) -> None:
    """Print one line a system."""
    cells = [
        (
            row["number"] or "–",
            row["slug"],
            row["status"],
            supported(row["claims"]),
            row["family"],
            row["arxiv"],
            row["title"],
        )
        for row in rows
    ]
    print(show.table(("no.", "system", "status", "claims", "family", "arXiv", "title"), cells))
    counts = Counter(row["status"] for row in rows)
    print(f"\n{', '.join(f'{count} {status}' for status, count in counts.most_common())}; – marks baselines")


def supported(claims: list[dict[str, Any]]) -> str:
    """How many of the claims are supported by a fresh result."""
    held = sum(claim["verdict"] == "supported" and not claim["stale"] for claim in claims)
    return f"{held}/{len(claims)}" if claims else ""


def describe(row: dict[str, Any]) -> None:
    """Print what a system is and what its claims have come to."""
    from echelon.evidence.status import remark
    from echelon.systems import index

    print(f"{row['name']}: {row['title']}\narXiv {row['arxiv']}, {row['family']}, {row['status']}")
    target = index.rows()[row["slug"]].target
    if target is not None:
        module = importlib.import_module(target.partition(":")[0])
        print(f"\n{(module.__doc__ or '').strip()}")
    for claim in row["claims"]:
        estimate = " {:.3g} [{:.3g}, {:.3g}]".format(*claim["estimate"]) if claim["estimate"] else ""
        print(f"\n{claim['verdict']}{remark(claim)}: {claim['text']}{estimate}")
        print(f"  {claim['result_file'] or 'echelon reproduce ' + row['slug']}")
