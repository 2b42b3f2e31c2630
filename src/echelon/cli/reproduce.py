"""`echelon reproduce`: train a system's claims against their baselines and record the verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from echelon.cli import runs, show
from echelon.cli.arguments import parse

if TYPE_CHECKING:
    from echelon.evidence.reproduce import Outcome


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Train what the claims of a system compare, judge them, and append the verdicts to the results.

    Stopped, the same command goes on. The exit code is 0 only if every claim is supported.
    """

    system: Positional[Annotated[str, arg(metavar="SYSTEM")]]
    """Which system."""
    seeds: str | None = None
    """Other seeds than those of record, such as 0-7; the result says so."""
    jobs: int = 2
    """Processes that train at a time, of one thread each."""
    full: bool = False
    """The published sizes instead of those of record here."""
    out: Path = Path("results")
    """Folder of results; <out>/SYSTEM/CLAIM.json grows by one entry."""
    runs: Path = Path("runs/reproduce")
    """Folder of the runs; finished ones of the same code are used again."""
    json: bool = False
    """Print the new entries as JSON; messages go to stderr."""


def run(args: list[str]) -> int:
    """Reproduce; 0 if all claims are supported, else 1."""
    options = parse(Reproduce, args, "reproduce")
    from echelon.systems import index

    index.find(options.system)
    from echelon.evidence.reproduce import reproduce
    from echelon.training.launch import parse_seeds

    with runs.messages(options.json):
        outcomes = reproduce(
            options.system,
            None if options.seeds is None else parse_seeds(options.seeds),
            jobs=options.jobs,
            full=options.full,
            out=options.out,
            runs=options.runs,
        )
    if options.json:
        show.as_json([{"claim": o.claim.id, "result_file": str(o.file), **o.entry} for o in outcomes])
    else:
        print("\n\n".join(sentence(outcome) for outcome in outcomes))
    return int(any(outcome.verdict != "supported" for outcome in outcomes))


def sentence(outcome: Outcome) -> str:
    """One claim for a person: verdict, text, numbers and where they are kept."""
    entry = outcome.entry
    arms = ", ".join(f"{arm['name']} {arm['mean']:.3g}" for arm in entry["arms"])
    what = "difference" if len(entry["arms"]) > 1 else "mean"
    seeds = f"seeds {', '.join(map(str, entry['seeds']))}" + ("" if entry["of_record"] else " (not those of record)")
    return (
        f"{str(outcome.verdict).upper()}: {outcome.claim.text}\n"
        f"  {arms}; {what} {outcome.estimate}; asked: {outcome.claim.test}; {seeds}\n"
        f"  {outcome.file}"
    )
