"""Replay: a ring of rows to draw from, and what brings rows there in whole episodes, so that goals can be put in.

Rows are named columns, [n, ...] each (`hierarchy.transitions`), of one kind from the first `add` on: environment steps,
spans of a level, whatever one learner draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from echelon.errors import DataError, UsageError

Columns = dict[str, Tensor]
LEFT = "left"
"""Column of `WholeEpisodes`: rows that follow in the same episode, int64; they lie behind the row in the ring."""


class Replay:
    """The latest `capacity` rows. Draws come from torch's process-wide generator unless one is given."""

    def __init__(self, capacity: int):
        if capacity < 1:
            raise UsageError(f"a replay of {capacity} rows; it must hold at least one")
        self.capacity = capacity
        self.columns: Columns = {}
        self.size = 0
        """Rows that it holds."""
        self.added = 0
        """Rows that were ever added; the next one goes to place `added % capacity`."""

    def __len__(self) -> int:
        return self.size

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Append rows; the oldest make place. DataError unless columns, shapes and lengths are those of before."""
        number = _length(rows)
        if number == 0:
            return
        if not self.columns:
            self.columns = {name: row.new_empty((self.capacity, *row.shape[1:])) for name, row in rows.items()}
        self._check(rows)
        kept = min(number, self.capacity)
        first = (self.added + number - kept) % self.capacity
        end = min(first + kept, self.capacity)
        for name, row in rows.items():
            column, latest = self.columns[name], row[number - kept :]
            column[first:end] = latest[: end - first]
            if kept > end - first:
                column[: kept - (end - first)] = latest[end - first :]
        self.added += number
        self.size = min(self.size + number, self.capacity)

    def draw(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Places of `number` rows, int64, uniform with replacement. UsageError while it is empty."""
        if not self.size:
            raise UsageError("nothing can be drawn from a replay before rows were added")
        device = next(iter(self.columns.values())).device
        return torch.randint(self.size, (number,), generator=generator, device=device)

    def rows(self, places: Tensor, names: Sequence[str] | None = None) -> Columns:
        """The rows at these places, of all columns or of those named; places go round at the ring's end."""
        chosen = self.columns if names is None else {name: self.columns[name] for name in names}
        places = places % self.capacity
        return {name: column.index_select(0, places) for name, column in chosen.items()}

    def sample(self, number: int, generator: torch.Generator | None = None) -> Columns:
        """`number` rows, uniform with replacement."""
        return self.rows(self.draw(number, generator))

    def later(self, places: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """For each place one of the same episode, not earlier: uniform over the row itself and those that follow.

        The rows came through `WholeEpisodes`. A row's followers are newer than it, so that they are still there.
        """
        left = self.columns[LEFT].index_select(0, places % self.capacity)
        ahead = torch.rand(len(places), generator=generator, device=left.device, dtype=torch.float64) * (left + 1)
        return (places + ahead.to(torch.int64).minimum(left)) % self.capacity

    def state_dict(self) -> dict[str, Any]:
        """What it holds, and where it stands."""
        held = {name: column[: self.size] for name, column in self.columns.items()}
        return {"columns": held, "added": self.added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what `state_dict` of a replay of the same capacity returned."""
        self.columns, self.size = {}, 0
        self.added = state["added"]
        for name, held in state["columns"].items():
            self.size = len(held)
            self.columns[name] = held.new_empty((self.capacity, *held.shape[1:]))
            self.columns[name][: self.size] = held

    def _check(self, rows: Mapping[str, Tensor]) -> None:
        if rows.keys() != self.columns.keys():
            raise DataError(f"replay: rows have the columns {', '.join(rows)}; before {', '.join(self.columns)}")
        for name, row in rows.items():
            if row.shape[1:] != self.columns[name].shape[1:]:
                shapes = f"{list(row.shape[1:])}, not {list(self.columns[name].shape[1:])} as before"
                raise DataError(f"replay: column '{name}' has rows of shape {shapes}")


class WholeEpisodes:
    """Holds rows back until their episode is over; `add` returns those of finished ones, with the column `left`."""

    def __init__(self) -> None:
        self.waiting: Columns = {}

    def add(self, rows: Mapping[str, Tensor], key: Tensor, over: Tensor) -> Columns:
        """Rows [n] in the order of time inside each episode.

        key: int64 [n], which episode. over: bool [n], whether the row is its last. Episodes come out one after the
        other, in the order of their keys.
        """
        new = {**rows, "key": key, "over": over}
        if self.waiting:
            new = {name: torch.cat([self.waiting[name], column]) for name, column in new.items()}
        order = new["key"].argsort(stable=True)
        new = {name: column[order] for name, column in new.items()}
        _, episode, lengths = new["key"].unique_consecutive(return_inverse=True, return_counts=True)
        finished = torch.zeros(len(lengths), dtype=torch.bool, device=key.device)
        finished[episode[new["over"]]] = True
        done = finished[episode]
        self.waiting = {name: column[~done] for name, column in new.items()}
        ends = lengths.cumsum(0)
        left = ends[episode] - 1 - torch.arange(len(episode), device=key.device)
        whole = {name: column[done] for name, column in new.items() if name not in ("key", "over")}
        return whole | {LEFT: left[done]}

    def state_dict(self) -> dict[str, Any]:
        """The rows that wait."""
        return {"waiting": dict(self.waiting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.waiting = dict(state["waiting"])


def _length(rows: Mapping[str, Tensor]) -> int:
    lengths = {name: len(row) for name, row in rows.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"replay: columns have different numbers of rows: {lengths}")
    return next(iter(lengths.values()), 0)
