"""The tables of a record, and what any of them can do: gather rows, be joined, become columns.

Legend: P pool tokens, K nodes, E episodes, S streams, C calls, N items. A reference to nothing is -1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from echelon.errors import DataError


class Use(IntEnum):
    """What a call was made for."""

    ACTED = 0  # its text went to the world, or on into the episode
    PROPOSED = 1  # a candidate that was not taken
    PROBE = 2  # asked or scored for its probability only
    TARGET = 3  # a demonstration: to be imitated, not sampled here


@dataclass(frozen=True, eq=False, kw_only=True)
class Nodes:
    """The forest of contexts and outputs; a node's text is what its parent's kept tokens lead to, then its own."""

    parent: Tensor  # int64 [K], -1 at a root; parents precede children
    cut: Tensor  # int64 [K], tokens of the parent's own that are kept: a child may hang inside its parent
    start: Tensor  # int64 [K], first token in the pool
    length: Tensor  # int64 [K]


@dataclass(frozen=True, eq=False, kw_only=True)
class Episodes:
    """Sorted by (group, uid)."""

    uid: Tensor  # int64 [E], unique in everything that is ever joined
    group: Tensor  # int64 [E], episodes to be compared: usually the same task and start
    task: Tensor  # int64 [E], index of a text, -1 without one
    kind: Tensor  # int64 [E], index of `Record.kinds`
    seed: Tensor  # int64 [E]
    terminated: Tensor  # bool [E], it reached a terminal state
    truncated: Tensor  # bool [E], it was cut; never both
    fault: Tensor  # int64 [E], `End` ERROR, TIMEOUT or KILLED where a fault closed it, else -1
    origin_uid: Tensor  # int64 [E], the episode it was restarted from, -1: from none
    origin_call: Tensor  # int64 [E], the call in which it restarts, counted inside the original episode
    origin_items: Tensor  # int64 [E], items of that call that were kept


@dataclass(frozen=True, eq=False, kw_only=True)
class Streams:
    """One decision maker's time lines: a planner, each run of an executor, a judge."""

    episode: Tensor  # int64 [S]
    agent: Tensor  # int64 [S], index of `Record.agents`
    parent_call: Tensor  # int64 [S], the call that opened it, -1: the episode did
    learner: Tensor  # bool [S]


@dataclass(frozen=True, eq=False, kw_only=True)
class Calls:
    """Sorted by (group, episode, stream, time)."""

    stream: Tensor  # int64 [C]
    out: Tensor  # int64 [C], its node: what stands above it is the context it is scored under
    given: Tensor  # int64 [C], node that ends the context it was sampled under, -1: no context
    given_cut: Tensor  # int64 [C], tokens of that node that belong to the context
    policy: Tensor  # int64 [C], version of the weights
    parent: Tensor  # int64 [C], the call it retries, expands or answers, -1
    use: Tensor  # int64 [C], `Use`
    end: Tensor  # int64 [C], `End`
    valid: Tensor  # bool [C], false where the world could not take the text
    state: Tensor  # int64 [C], key of the anchor state in which the call was made, -1
    state_text: Tensor  # int64 [C], index of the text which that key is a hash of, -1
    reward: Tensor  # float32 [C], paid by the world after the call
    temperature: Tensor  # float32 [C]
    seed: Tensor  # int64 [C]
    started: Tensor  # float64 [C], seconds; NaN: not measured
    finished: Tensor  # float64 [C], seconds
    obs_text: Tensor  # int64 [C], index of a text, -1
    out_text: Tensor  # int64 [C], index of a text, -1
    begin: dict[str, Tensor] = field(default_factory=dict)  # bool [C] a level: a span of it begins with the call
    label: dict[str, Tensor] = field(default_factory=dict)  # int64 [C] a channel, -1: none
    part: dict[str, Tensor] = field(default_factory=dict)  # float32 [C] a reward, NaN: not evaluated
    value: dict[str, Tensor] = field(default_factory=dict)  # float32 [C] a head, NaN: none


@dataclass(frozen=True, eq=False, kw_only=True)
class Items:
    """The emitted tokens, call after call; nothing that the world said is among them."""

    source: Tensor  # int64 [N], `Source`
    logp: Tensor  # float32 [N], as sampled, of the temperature-scaled distribution; NaN unless sampled
    label: dict[str, Tensor] = field(default_factory=dict)  # int64 [N] a channel, -1: none
    value: dict[str, Tensor] = field(default_factory=dict)  # float32 [N] a head, NaN: none
    adv: dict[str, Tensor] = field(default_factory=dict)  # float [N] a term of the credit
    weight: dict[str, Tensor] = field(default_factory=dict)  # float [N] a loss


Table = TypeVar("Table", Nodes, Episodes, Streams, Calls, Items)

MISSING: dict[str, Any] = {"begin": False, "label": -1, "part": float("nan"), "value": float("nan")}
"""What a row holds in a column that its record did not have when records are joined."""


def change(table: Table, how: Callable[[Tensor], Tensor]) -> Table:
    """The same table with every column changed."""
    return type(table)(**_map(columns(table), how))


def columns(table: Table) -> dict[str, Any]:
    """Its columns by name; a group of columns is a mapping again."""
    return {f.name: getattr(table, f.name) for f in fields(table)}


def stack(tables: Sequence[Table]) -> Table:
    """The rows of several tables, one table after the other; columns that some lack are filled with `MISSING`."""
    joined: dict[str, Any] = {}
    for name in columns(tables[0]):
        parts = [getattr(table, name) for table in tables]
        joined[name] = torch.cat(parts) if isinstance(parts[0], Tensor) else _stack_groups(name, parts, tables)
    return type(tables[0])(**joined)


def _stack_groups(group: str, parts: list[dict[str, Tensor]], tables: Sequence[Table]) -> dict[str, Tensor]:
    joined = {}
    for name in sorted({name for part in parts for name in part}):
        model = next(part[name] for part in parts if name in part)
        if group not in MISSING and not all(name in part for part in parts):
            raise DataError(f"record: {group}.{name} is in some of the records only, and cannot be made up")
        sizes = [len(next(iter(columns(table).values()))) for table in tables]
        missing = (model.new_full((size,), MISSING.get(group, 0)) for size in sizes)
        joined[name] = torch.cat([part.get(name, other) for part, other in zip(parts, missing, strict=True)])
    return joined


def _map(tree: dict[str, Any], how: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: how(value) if isinstance(value, Tensor) else _map(value, how) for name, value in tree.items()}


class Texts:
    """Strings, each once, as one run of UTF-8.

    offsets: int64 [T + 1]; data: uint8, text i is data[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, offsets: Tensor, data: Tensor):
        self.offsets, self.data = offsets, data

    @classmethod
    def of(cls, strings: Sequence[str]) -> Texts:
        """Encode strings."""
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        data = np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)
        return cls(torch.from_numpy(offsets), torch.from_numpy(data))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        start, stop = self.offsets[index : index + 2].tolist()
        return self.data[start:stop].numpy().tobytes().decode("utf-8", "surrogatepass")

    def strings(self) -> list[str]:
        """All of them."""
        data, offsets = self.data.numpy().tobytes(), self.offsets.tolist()
        return [data[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(offsets)]
