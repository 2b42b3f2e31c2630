"""The status of every system, computed from code and results, and the tables that README and docs show of it.

- planned: the index names no module.
- runs: the index names a module. The test suite puts every indexed module through the conformance suite and refuses one
  without oracle tests, so a module in the index of a tree that passes its tests has passed both.
- verified: it runs, makes at least one claim, and for each claim the newest result of record is supported and fresh.

A result is of record when it covers the claim's seeds at the size of record. It is fresh while the claim still compares
the same configurations with the same test, and either no module that the numbers depend on has changed, or replays show
that the code changed and its numbers did not: the result's file holds two facts about it with equal identity, equal
digests and the result's own verdict and estimate, one of the code that made the result and one of the present code, and
no two such facts that disagree (`echelon.evidence.replay`). Systems that claim nothing stay at "runs".
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from echelon.claims import Claim, Verdict
from echelon.errors import DataError
from echelon.evidence import codehash, replay, results
from echelon.evidence.replay import Answer
from echelon.evidence.reproduce import beyond, claims_of, guarded, hashes_of, speaks_of
from echelon.systems import index
from echelon.systems.index import Row
from echelon.training.codehash import PACKAGE

PLANNED, RUNS, VERIFIED = "planned", "runs", "verified"
NOT_RUN = "not run"
BEGIN, END = "<!-- systems:begin -->", "<!-- systems:end -->"
SHOWN = 3
"""How many reasons for being stale a page names."""


def default_results() -> Path:
    """`results` in the working directory, else in the checkout that this package is imported from."""
    here = Path("results")
    return here if here.is_dir() else PACKAGE.parents[1] / "results"


def table(out: Path | str | None = None) -> list[dict[str, Any]]:
    """One row a system in the index's order, baselines last.

    A row is {number (None: baseline), slug, name, title, arxiv, family, status, claims}; its claims are {id, text,
    verdict, stale, estimate, date, result_file} (see `claim_state`).
    """
    folder = Path(out) if out is not None else default_results()
    return [_row(row, folder) for row in index.rows().values()]


def claim_state(system: str, claim: Claim, out: Path) -> dict[str, Any]:
    """What the newest result of record says of a claim.

    `verdict` is "supported", "inconclusive", "not supported" or "not run"; `stale` lists what changed since (empty:
    fresh) and `remedy` says what to do about it; `replayed`: it is fresh because replays agree, though code changed;
    `estimate` is [value, low, high]; `guard` says what the claim's guard found ("" without one), and `undecided`
    whether it kept the test from deciding; `also` are sentences on what was measured without a verdict; `result_file`
    is relative to the folder of results, None without one.
    """
    file = results.path_of(out, system, claim.id)
    entries = results.read(file)
    entry = results.newest_of_record(entries, claim.seeds)
    state: dict[str, Any] = {"id": claim.id, "text": claim.text, "verdict": NOT_RUN, "stale": [], "estimate": None}
    state |= {"date": None, "result_file": file.relative_to(out).as_posix() if entries else None}
    state |= {"replayed": False, "remedy": "", "guard": "", "undecided": False, "also": []}
    if entry is not None:
        estimate = [entry["estimate"][key] for key in ("value", "low", "high")]
        state |= {"verdict": entry["verdict"], "estimate": estimate, "date": entry["date"]}
        state["also"] = [beyond(also) for also in entry.get("also", ())]
        if "unless" in entry:
            state |= {"guard": guarded(entry["unless"]), "undecided": entry["unless"]["exceeded"]}
        state |= _freshness(system, claim, entries, entry)
    return state


def remark(claim: dict[str, Any], shown: int | None = None) -> str:
    """What to know beside a claim's verdict: "", " (replayed)", or " (stale: why; what to do)".

    At most `shown` reasons are named, all when None.
    """
    if claim["replayed"]:
        return f" ({Answer.AGREES})"
    reasons = claim["stale"][:shown]
    more = len(claim["stale"]) - len(reasons)
    listed = ", ".join([*reasons, *([f"{more} more"] if more else [])])
    return f" (stale: {listed}; {claim['remedy']})" if reasons else ""


def readme_table(rows: list[dict[str, Any]], results_link: str = "results", more: str = "docs/systems.md") -> str:
    """Markdown: how many systems stand where, and the implemented ones with their verdicts."""
    papers = Counter(row["status"] for row in rows if row["number"] is not None)
    baselines = [row["name"] for row in rows if row["number"] is None and row["status"] != PLANNED]
    counts = f"{papers[VERIFIED]} verified, {papers[RUNS]} running, {papers[PLANNED]} planned"
    also = f" Baselines: {', '.join(baselines)}." if baselines else ""
    lines = [
        f"Of {papers.total()} systems: {counts}.{also} [All systems]({more})",
        "",
        "| system | paper | status | claim | verdict |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["status"] == PLANNED or (row["number"] is None and not row["claims"]):
            continue
        head = f"| {row['name']} | {_arxiv(row)} | {row['status']} |"
        claims = [f" {_cell(c['text'])} | {_verdict(c, results_link)} |" for c in row["claims"]]
        lines += [head + claim for claim in claims or [" | |"]]
    return "\n".join(lines)


def docs_table(rows: list[dict[str, Any]], results_link: str = "../results") -> str:
    """Markdown: all systems, then every claim with its verdict."""
    lines = ["| no. | system | paper | family | status |", "|---:|---|---|---|---|"]
    for row in rows:
        title = f"{_cell(row['title'])} ({_arxiv(row)})"
        lines.append(f"| {row['number'] or 'baseline'} | {row['name']} | {title} | {row['family']} | {row['status']} |")
    claimed = [(row, claim) for row in rows for claim in row["claims"]]
    if claimed:
        lines += ["", "| system | claim | verdict | estimate [95 %] |", "|---|---|---|---|"]
    for row, claim in claimed:
        numbers = "{:.3g} [{:.3g}, {:.3g}]".format(*claim["estimate"]) if claim["estimate"] else ""
        lines.append(f"| {row['name']} | {_cell(claim['text'])} | {_verdict(claim, results_link)} | {numbers} |")
        lines += [f"| {row['name']} | {_cell(also)} | without verdict | |" for also in claim["also"]]
    return "\n".join(lines)


def pages(root: Path) -> dict[Path, str]:
    """README.md and docs/systems.md of the checkout `root` as they should read now: path -> text.

    Raises DataError when a page lacks the markers that enclose the generated part.
    """
    rows = table(root / "results")
    blocks = {root / "README.md": readme_table(rows), root / "docs" / "systems.md": docs_table(rows)}
    return {path: _replaced(path, block) for path, block in blocks.items()}


def outdated(root: Path) -> list[Path]:
    """The generated pages of the checkout `root` that are not up to date; `write_pages` mends them."""
    return [path for path, text in pages(root).items() if path.read_text(encoding="utf-8") != text]


def write_pages(root: Path) -> list[Path]:
    """Rewrite the generated parts of README.md and docs/systems.md; returns the pages that changed."""
    changed = outdated(root)
    for path, text in pages(root).items():
        if path in changed:
            path.write_text(text, encoding="utf-8")
    return changed


def _row(row: Row, out: Path) -> dict[str, Any]:
    claims = [claim_state(row.slug, claim, out) for claim in _claims(row)]
    proven = bool(claims) and all(c["verdict"] == Verdict.SUPPORTED and not c["stale"] for c in claims)
    status = PLANNED if row.module is None else VERIFIED if proven else RUNS
    facts = {key: getattr(row, key) for key in ("number", "slug", "name", "title", "arxiv", "family")}
    return {**facts, "status": status, "claims": claims}


def _freshness(system: str, claim: Claim, entries: list[results.Entry], entry: results.Entry) -> dict[str, Any]:
    modules, anew = hashes_of(claim), f"echelon reproduce {system}"
    stale = codehash.changes(entry["modules"], modules)
    if not speaks_of(entry, claim):
        return {"stale": ["the claim's configuration or test changed", *stale], "remedy": anew}
    if not stale:
        return {}
    said = replay.answer(entries, entry, modules)
    if said is Answer.AGREES:
        return {"replayed": True}
    again = " --replay" if said in (Answer.MISSING, Answer.ELSEWHERE) else ""
    return {"stale": stale, "remedy": f"{said}: {anew}{again}"}


def _claims(row: Row) -> tuple[Claim, ...]:
    return () if row.module is None else claims_of(row.slug)


def _replaced(path: Path, block: str) -> str:
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise DataError(f"{path}: the generated table goes between one '{BEGIN}' and one '{END}'")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def _verdict(claim: dict[str, Any], results_link: str) -> str:
    link = f"[{claim['verdict']}]({results_link}/{claim['result_file']})" if claim["result_file"] else claim["verdict"]
    why = f": {_cell(claim['guard'])}" if claim["undecided"] else ""
    return link + why + remark(claim, SHOWN)


def _arxiv(row: dict[str, Any]) -> str:
    return f"[{row['arxiv']}](https://arxiv.org/abs/{row['arxiv']})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
