"""What every page of the site shows: the status of the systems, what is known of them, and the results behind it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from echelon import claims
from echelon.claims import Claim
from echelon.errors import DataError
from echelon.evidence import codehash, results, statistics, status
from echelon.evidence.reproduce import claims_of, hashes_of, specification
from echelon.evidence.site.facts import Told, tell
from echelon.evidence.statistics import Estimate
from echelon.systems import index

SUCCESS = "echelon.claims:success"
REPETITIONS = 1000
"""Bootstrap draws of one arm's interval, which no verdict rests on."""


@dataclass(frozen=True)
class Side:
    """One arm of a result: its score by seed, their mean with an interval, its runs' learning curves and budget."""

    role: str
    name: str
    statistic: str
    system: str
    config: Mapping[str, Any]
    mean: Estimate
    seeds: Mapping[int, float]
    curves: Sequence[Mapping[int, float]]
    results: Sequence[Mapping[str, Any]]

    @property
    def in_points(self) -> bool:
        """Whether it is scored by success, 0 to 100."""
        return self.statistic.partition("(")[0] == SUCCESS


@dataclass(frozen=True)
class Measured:
    """A claim with its state (`status.claim_state`), its newest result of record, and the hash of the code now."""

    claim: Claim
    state: dict[str, Any]
    entry: results.Entry | None
    code_hash: str

    @property
    def test(self) -> Any:
        """What the result was judged by, else what it will be judged by."""
        if self.entry is None:
            return self.claim.test
        recorded = dict(self.entry["specification"]["test"])
        kinds = {kind.__name__: kind for kind in get_args(claims.Test)}
        kind = recorded.pop("kind")
        if kind not in kinds:
            raise DataError(f"claim {self.claim.id}: a result with the unknown test '{kind}'")
        return kinds[kind](**recorded)

    @property
    def estimate(self) -> Estimate | None:
        """What the verdict rests on: the difference of means, or the method's mean."""
        return Estimate(*self.state["estimate"]) if self.state["estimate"] else None

    @property
    def sides(self) -> list[Side]:
        """The arms that were compared, method first; none without a result."""
        if self.entry is None:
            return []
        recorded = zip(self.entry["arms"], self.entry["specification"]["arms"], strict=True)
        return [_side(role, *both) for role, both in zip(("method", "baseline"), recorded, strict=False)]

    @property
    def meaning(self) -> str:
        """What the method is scored by, in the words of the statistic."""
        statistic = self.claim.method.statistic
        function = statistic.func if isinstance(statistic, functools.partial) else statistic
        return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())

    @property
    def planned(self) -> list[dict[str, Any]]:
        """The settings of the arms as the claim has them now: {"system", "config", "statistic"}."""
        return list(specification(self.claim)["arms"])


@dataclass(frozen=True)
class System:
    """One system: its row of `status.table`, what is told of it, and its claims."""

    row: Mapping[str, Any]
    told: Told
    module: str | None
    claims: Sequence[Measured]

    @property
    def slug(self) -> str:
        """Its name in commands and addresses."""
        return str(self.row["slug"])


def gather(out: Path) -> list[System]:
    """Every system in the index's order, with the results below `out`."""
    found = []
    for row in status.table(out):
        entry = index.rows()[row["slug"]]
        made = claims_of(row["slug"]) if entry.module else ()
        measured = [_measured(row["slug"], claim, state, out) for claim, state in zip(made, row["claims"], strict=True)]
        found.append(System(row, tell(entry), entry.module, measured))
    return found


def _measured(system: str, claim: Claim, state: dict[str, Any], out: Path) -> Measured:
    entries = results.read(results.path_of(out, system, claim.id))
    entry = results.newest_of_record(entries, claim.seeds)
    return Measured(claim, state, entry, codehash.digest(hashes_of(claim)))


def _side(role: str, arm: Mapping[str, Any], specified: Mapping[str, Any]) -> Side:
    scores = np.array([run["scores"] for run in arm["runs"]], dtype=float)
    curves = [dict(zip(run["curve"]["step"], run["curve"]["success"], strict=True)) for run in arm["runs"]]
    return Side(
        role,
        arm["name"],
        specified["statistic"],
        specified["system"],
        specified["config"],
        statistics.estimate([scores], repetitions=REPETITIONS),
        {run["seed"]: float(run["score"]) for run in arm["runs"]},
        curves,
        [run["result"] for run in arm["runs"]],
    )
