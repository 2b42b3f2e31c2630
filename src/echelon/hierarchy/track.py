"""The runner's state of one level: its streams, how they map to those above and below, and the decisions it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.level import Features, Level
from echelon.hierarchy.termination import Every, Learned, Running

START = 255  # an event code: a stream's first decision; the other codes are those of `termination`
PARENT = 254  # the parent's decision ended


class Track:
    """One level as it runs. S: its streams, `width` of them in each slot of the world.

    `codes` uint8[S] says for the coming tick which decisions are due and why (0: the running one goes on); it is None for
    a level that decides on every tick. `rows` are the active streams, None when all are.
    """

    def __init__(self, level: Level, width: int, slots: int, agents: int, to_bottom: np.ndarray, device: torch.device):
        self.level, self.name, self.width = level, level.name, width
        self.streams = slots * width
        self.parent: Track | None = None
        self.parent_index: Tensor | None = None  # int64[S] into the parent's streams; None: one to one
        self.seat: Tensor | None = None  # int64[S] my row in a parent's per-member action
        self.below_members: np.ndarray | None = None  # int64[S, m] streams of the level below; None: one to one
        # of each bottom stream, my stream; and of each of mine, the bottom streams it covers
        self.of_bottom = (np.arange(slots)[:, None] * width + to_bottom[None, :]).ravel()
        self.members = None if width == agents and (to_bottom == np.arange(agents)).all() else _groups(self.of_bottom)
        self.member_rows = None if self.members is None else torch.from_numpy(self.members).to(device)
        self.running = Running(self.streams, device)
        self.held_is_mine = False  # whether `running.action` may be written in place
        self.memory: Tensor | None = None
        self.prior: Tensor | None = None  # the memory before the latest observation
        self.features: Features = None
        self.codes: np.ndarray | None = None
        self.active = np.zeros(self.streams, dtype=bool)
        self.rows: Tensor | None = None
        self.all_due = torch.ones(self.streams, dtype=torch.bool, device=device)
        self.device = device
        kind = type(level)
        self.always = kind.ends is Level.ends and isinstance(level.termination, Every) and level.termination.k == 1
        self.moves = kind.advance is not Level.advance
        self.guards = kind.guard is not Level.guard
        self.learned: tuple[Learned, ...] = level.termination.learned() if kind.ends is Level.ends else ()

    def grouped(self, x: Tensor) -> Tensor:
        """Rows of bottom streams [S_bottom, ...] as I see them: mine, or [S, m, ...] over my members."""
        return x if self.member_rows is None else x[self.member_rows]

    def ungrouped(self, x: Tensor) -> Tensor:
        """The inverse of `grouped`."""
        if self.member_rows is None:
            return x
        flat = x.flatten(0, 1)
        result = torch.empty_like(flat)
        result[self.member_rows.flatten()] = flat
        return result

    def command(self) -> Tensor | None:
        """The parent's running action, one row for each of my streams."""
        if self.parent is None:
            return None
        action = self.parent.running.action
        assert action is not None
        if self.parent_index is None:
            return action
        if self.parent.level.per_member:
            return action[self.parent_index, self.seat]
        return action[self.parent_index]

    def hold(self, action: Tensor, rows: Tensor | None, due: np.ndarray | None) -> None:
        """Make `action` the running decision of the streams `rows` (None: of all)."""
        running = self.running
        if rows is None:
            running.action, self.held_is_mine = action, False
            if due is not None:
                running.ticks[:] = 0
            return
        if running.action is None:
            running.action = action.new_zeros((self.streams, *action.shape[1:]))
        elif not self.held_is_mine:
            running.action = running.action.clone()
        self.held_is_mine = True
        running.action.index_copy_(0, rows, action)
        if due is not None:
            running.ticks[due] = 0

    def set_active(self, bottom_active: np.ndarray) -> None:
        """Recompute which of my streams are active: those with an active member."""
        self.active = bottom_active if self.members is None else bottom_active[self.members].any(1)
        self.rows = None if self.active.all() else torch.from_numpy(np.flatnonzero(self.active)).to(self.device)


def build_tracks(levels: Sequence[Level], slots: int, agents: int, device: torch.device) -> list[Track]:
    """Check the stack `levels` (top first) against a world and connect its levels."""
    if not levels:
        raise UsageError("a runner needs at least one level")
    names = [level.name for level in levels]
    if len(set(names)) < len(names):
        raise UsageError(f"levels need different names, got {names}")
    tracks: list[Track] = []
    width, to_bottom = agents, np.arange(agents)
    for below, level in zip((None, *reversed(levels)), reversed(levels), strict=False):
        if below is not None and below.parent_of is not None:
            seats = np.asarray(below.parent_of, dtype=np.int64)
            _check_parents(below, seats, width)
            width, to_bottom = int(seats.max()) + 1, seats[to_bottom]
        track = Track(level, width, slots, agents, to_bottom, device)
        if tracks:
            _connect(track, tracks[-1], slots)
        tracks.append(track)
    if levels[0].parent_of is not None:
        raise UsageError(f"level '{levels[0].name}' is at the top and has no parent, but sets parent_of")
    return tracks[::-1]


def _connect(parent: Track, child: Track, slots: int) -> None:
    child.parent = parent
    if child.level.parent_of is None:
        if parent.level.per_member:
            raise UsageError(f"level '{parent.name}' is per_member, but '{child.name}' does not set parent_of")
        return
    seats = np.asarray(child.level.parent_of, dtype=np.int64)
    index = (np.arange(slots)[:, None] * parent.width + seats[None, :]).ravel()
    parent.below_members = _groups(index)
    seat = np.empty(len(index), dtype=np.int64)
    seat[parent.below_members] = np.arange(parent.below_members.shape[1])[None, :]
    child.parent_index = torch.from_numpy(index).to(child.device)
    child.seat = torch.from_numpy(seat).to(child.device)


def _check_parents(level: Level, seats: np.ndarray, width: int) -> None:
    if seats.shape != (width,):
        raise UsageError(f"level '{level.name}' has {width} streams a slot, but parent_of names {seats.tolist()}")
    sizes = np.bincount(seats)
    if (sizes != sizes[0]).any():
        raise UsageError(f"parent_of of level '{level.name}' makes teams of sizes {sizes.tolist()}; they must be equal")


def _groups(owner: np.ndarray) -> np.ndarray:
    """int64[S, m]: the members of each of S owners of equal size."""
    return np.argsort(owner, kind="stable").reshape(int(owner.max()) + 1, -1)


def take(features: Features, rows: Tensor) -> Any:
    """The given rows of features, whatever they are made of."""
    if isinstance(features, Tensor):
        return features[rows]
    if isinstance(features, Mapping):
        return {name: take(value, rows) for name, value in features.items()}
    if isinstance(features, tuple | list):
        return tuple(take(value, rows) for value in features)
    return features
