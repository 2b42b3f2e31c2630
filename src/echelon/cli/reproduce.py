"""`echelon reproduce`: train a system's claims against their baselines and record the verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from echelon.cli import runs, show
from echelon.cli.arguments import parse
from echelon.errors import UsageError

if TYPE_CHECKING:
    from echelon.evidence.reproduce import Outcome


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Train what the claims of a system compare, judge them, and append the verdicts to the results.

    Stopped, the same command goes on. The exit code is 0 only if every claim is supported; with --replay, only if every
    claim has a result that is not stale.
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
    replay: bool = False
    """Train nothing anew: run the first updates again, to show that changed code gives the recorded numbers."""
    json: bool = False
    """Print the new entries as JSON; messages go to stderr."""


def run(args: list[str]) -> int:
    """Reproduce; 0 if all claims are supported, else 1. With --replay: 0 if all claims have a fresh result, else 1."""
    options = parse(Reproduce, args, "reproduce")
    from echelon.systems import index

    index.find(options.system)
    return replay_results(options) if options.replay else reproduce_claims(options)


def reproduce_claims(options: Reproduce) -> int:
    """Train, judge, show the verdicts, and replay the code at once so that a later one can be compared with it."""
    from echelon.evidence import replay
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
        print("\n\n".join(sentence(outcome) for outcome in outcomes), flush=True)
    if not options.full and any(outcome.entry["of_record"] for outcome in outcomes):
        with runs.messages(options.json):
            since = {outcome.claim.id: outcome.entry["modules"] for outcome in outcomes}
            replay.record(options.system, options.out, options.jobs, since=since)
    return int(any(outcome.verdict != "supported" for outcome in outcomes))


def replay_results(options: Reproduce) -> int:
    """Replay the claims and say of each, in a line, whether its result still stands."""
    from echelon.evidence import replay
    from echelon.evidence.reproduce import claims_of
    from echelon.evidence.status import NOT_RUN, claim_state, remark

    if options.seeds is not None or options.full:
        raise UsageError("--replay is about the results of record; leave out --seeds and --full")
    with runs.messages(options.json):
        replay.record(options.system, options.out, options.jobs)
    states = [claim_state(options.system, claim, options.out) for claim in claims_of(options.system)]
    if options.json:
        show.as_json(states)
    else:
        for state in states:
            fresh = "" if state["verdict"] == NOT_RUN else " (fresh)"
            print(f"{state['id']}: {state['verdict']}{remark(state) or fresh}")
    return int(any(state["verdict"] == NOT_RUN or state["stale"] for state in states))


def sentence(outcome: Outcome) -> str:
    """One claim for a person: verdict, text, numbers and where they are kept."""
    from echelon.evidence.reproduce import begun_from, beyond, guarded

    entry = outcome.entry
    arms = ", ".join(f"{arm['name']} {arm['mean']:.3g}" for arm in entry["arms"])
    what = "difference" if len(entry["arms"]) > 1 else "mean"
    seeds = f"seeds {', '.join(map(str, entry['seeds']))}" + ("" if entry["of_record"] else " (not those of record)")
    lines = [
        f"{str(outcome.verdict).upper()}: {outcome.claim.text}",
        f"  {arms}; {what} {outcome.estimate}; asked: {outcome.claim.test}; {seeds}",
    ]
    if "unless" in entry:
        lines.append(f"  {guarded(entry['unless'])}")
    lines += [f"  without verdict: {beyond(also)}" for also in entry.get("also", ())]
    if start := begun_from(entry):
        lines.append(f"  {start}")
    return "\n".join([*lines, f"  {outcome.file}"])
