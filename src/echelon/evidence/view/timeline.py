"""An episode as columns: boxes on rows of time, what is known of each, and how they travel to a page.

Legend: B boxes of an episode, T time units (environment steps, or tokens that were emitted).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
REAL = np.float64
DTYPES = {"u1": np.uint8, "i2": np.int16, "i4": np.int32, "f4": np.float32, "f8": np.float64}
WHOLE = {"u1": (0, 255), "i2": (-(2**15), 2**15 - 1), "i4": (-(2**31), 2**31 - 1)}
"""Smallest and largest whole number of a type."""


class Strings:
    """Every text once; a column holds numbers of them."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._number: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """The number of a text."""
        found = self._number.setdefault(text, len(self.all))
        if found == len(self.all):
            self.all.append(text)
        return found


@dataclass(frozen=True)
class Row:
    """A row of the graph: a level of a stream, one lane of it; `chain` says by which rule its advantages come about."""

    stream: str
    level: str
    lane: int = 0


@dataclass
class Timeline:
    """One episode. Columns of boxes have length B, sorted by (row, start); numbers of texts are those of a `Strings`.

    metrics: name → float64 [B], NaN where unknown; "advantage" is their name where there is one.
    terms: name → float64 [B], what sums to the advantage. chain: "td_error" and "decay", float64 [B]: the advantage of
    a box is td_error + decay * the advantage of the next box of its row.
    why: level → how advantages of the level come about, or why there are none.
    rewards: channel → float64 [T]. replaced: times at which what was done is not what was decided.
    observation: name → float32 [T, D] for control. said: (role, text, box) in time order, for language.
    context: of each box the numbers of the texts that it read. tokens: columns of the T tokens.
    """

    key: str
    title: str
    earned: float
    success: bool | None
    length: int
    unit: str
    span: float
    rows: list[Row]
    row: Array
    start: Array
    stop: Array
    end: Array
    ends: list[tuple[str, str]]
    parent: Array
    text: Array
    choice: Array
    metrics: dict[str, Array] = field(default_factory=dict)
    terms: dict[str, Array] = field(default_factory=dict)
    chain: dict[str, Array] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Array] = field(default_factory=dict)
    rewards: dict[str, Array] = field(default_factory=dict)
    replaced: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    observation: dict[str, Array] = field(default_factory=dict)
    said: list[tuple[str, int, int]] = field(default_factory=list)
    context: list[list[int]] = field(default_factory=list)
    tokens: dict[str, Array] = field(default_factory=dict)
    path: Array | None = None
    subgoals: Array = field(default_factory=lambda: np.zeros((0, 3)))

    def document(self) -> dict[str, Any]:
        """What a page needs of it, as JSON."""
        columns = ("row", "start", "stop", "end", "parent", "text", "choice", "replaced")
        told: dict[str, Any] = {name: packed(getattr(self, name)) for name in columns}
        for name in ("metrics", "terms", "chain", "facts", "tokens"):
            told[name] = {key: packed(column) for key, column in getattr(self, name).items()}
        told["rewards"] = {name: sparse(column) for name, column in self.rewards.items()}
        told["observation"] = {
            name: {"size": int(np.prod(column.shape[1:])), "data": packed(column.ravel())}
            for name, column in self.observation.items()
        }
        if self.context:
            lengths = np.array([len(read) for read in self.context])
            told["context"] = {
                "length": packed(lengths),
                "text": packed(np.array([*chain.from_iterable(self.context)], dtype=int)),
            }
        return told | {
            "key": self.key,
            "title": self.title,
            "earned": self.earned if math.isfinite(self.earned) else None,
            "success": self.success,
            "length": self.length,
            "unit": self.unit,
            "span": self.span,
            "rows": [[row.stream, row.level, row.lane] for row in self.rows],
            "ends": self.ends,
            "why": self.why,
            "said": self.said,
            "path": None if self.path is None else packed(self.path.astype(np.float32).ravel()),
            "subgoals": self.subgoals.round(2).tolist(),
        }


def packed(column: Array) -> dict[str, Any]:
    """A column [n] as base64 of little-endian numbers in the smallest type that keeps them; runs of equals once.

    {"t": type, "d": base64} and, where values repeat much, "r": a packed column of the lengths of the runs.
    """
    column = np.asarray(column)
    if column.dtype == bool or column.dtype.kind in "iu":
        low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
        kind = next(k for k, (least, most) in WHOLE.items() if least <= low and high <= most)
    else:
        kind = "f4" if column.dtype == np.float32 else "f8"
    column = column.astype(DTYPES[kind])
    bits = column.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[column.itemsize])
    begins = np.flatnonzero(np.concatenate([[True], bits[1:] != bits[:-1]])) if len(column) else np.zeros(0, int)
    if len(column) > 8 and 2 * len(begins) < len(column):
        lengths = np.diff(np.append(begins, len(column)))
        return {"t": kind, "d": _base64(column[begins]), "r": packed_plain(lengths)}
    return {"t": kind, "d": _base64(column)}


def packed_plain(lengths: Array) -> dict[str, Any]:
    """Lengths of runs as int32, never as runs again."""
    return {"t": "i4", "d": _base64(np.asarray(lengths, dtype=np.int32))}


def unpacked(told: Mapping[str, Any]) -> Array:
    """The column [n] that `packed` told."""
    column = np.frombuffer(base64.b64decode(told["d"]), dtype=np.dtype(DTYPES[told["t"]]).newbyteorder("<"))
    return np.repeat(column, unpacked(told["r"])) if "r" in told else column


def sparse(column: Array) -> dict[str, Any]:
    """A column [n] by the places that are not 0."""
    places = np.flatnonzero(column)
    return {"at": packed(places), "value": packed(np.asarray(column, dtype=REAL)[places])}


def lanes(start: Sequence[float] | Array, stop: Sequence[float] | Array) -> Array:
    """int [n]: the first lane that is free at the start of each box, boxes taken by start."""
    found = np.zeros(len(start), dtype=np.int64)
    free: list[float] = []
    for box in np.argsort(np.asarray(start), kind="stable"):
        lane = next((k for k, until in enumerate(free) if until <= start[box]), len(free))
        if lane == len(free):
            free.append(0.0)
        free[lane] = float(stop[box])
        found[box] = lane
    return found


def followed(row: Array, td_error: Array, decay: Array) -> Array:
    """float64 [B]: td_error + decay * what follows it in the same row, backwards; boxes sorted by (row, start)."""
    found = np.array(td_error, dtype=REAL)
    for box in range(len(found) - 2, -1, -1):
        if row[box] == row[box + 1] and decay[box] != 0:
            found[box] += decay[box] * found[box + 1]
    return found


def _base64(column: Array) -> str:
    return base64.b64encode(column.astype(column.dtype.newbyteorder("<")).tobytes()).decode("ascii")
