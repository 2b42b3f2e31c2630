"""The runner's state of one level: its streams, how they map to those above and below, and the decisions it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.level import Features, Level
from echelon.hierarchy.termination import Every, Learned, Running, as_codes
from echelon.rollout import End

START = 255  # the code of a stream's first decision; the others are values of `End`
PARENT = int(End.PARENT)


class Track:
    """One level as it runs. S: its streams, `width` of them in each slot of the world.

    `codes` uint8[S] says for the coming tick which decisions are due and why (0: the running one goes on); None for a
    level that decides on every tick. `rows` and `mask` are the active streams (`rows` None: all are).
    """

    def __init__(self, level: Level, width: int, slots: int, agents: int, to_bottom: np.ndarray, device: torch.device):
        self.level, self.name, self.width, self.device = level, level.name, width, device
        self.streams = slots * width
        self.parent: Track | None = None
        self.parent_rows: np.ndarray | None = None  # int64[S] into the parent's streams; None: one to one
        self.parent_index: Tensor | None = None  # the same, on the device
        self.seat: Tensor | None = None  # int64[S] my row in a parent's per-member action
        self.below: Track | None = None
        self.below_members: Tensor | None = None  # int64[S, m] streams of the level below; None: one to one
        # of each bottom stream, my stream; and of each of mine, the bottom streams it covers (None: one to one)
        self.of_bottom = (np.arange(slots)[:, None] * width + to_bottom[None, :]).ravel()
        alone = width == agents and bool((to_bottom == np.arange(agents)).all())
        self.members = None if alone else _groups(self.of_bottom)
        self._member_rows = None if self.members is None else torch.from_numpy(self.members).to(device)
        own = type(level)
        termination = level.termination
        self._asks_termination = own.ends is Level.ends
        self.always = self._asks_termination and isinstance(termination, Every) and termination.k == 1
        self.moves = own.advance is not Level.advance
        self.guards = own.guard is not Level.guard
        self.learned: tuple[Learned, ...] = termination.learned() if self._asks_termination else ()
        self.everyone = torch.ones(self.streams, dtype=torch.bool, device=device)
        self.nothing = np.zeros(self.streams, dtype=np.uint8)  # the codes of a tick on which no decision is due
        self.forget()

    def forget(self) -> None:
        """Abandon all decisions and memories."""
        self.running = Running(self.streams, self.device)
        self._held_is_mine = False  # whether `running.action` may be written in place
        self.memory: Tensor | None = None
        self.prior: Tensor | None = None  # the memory before the latest observation
        self.features: Features = None
        self.codes: np.ndarray | None = None
        self._silent = 0  # for so many ticks my termination need not be asked
        self.active = np.zeros(self.streams, dtype=bool)
        self.rows: Tensor | None = None
        self.mask = self.everyone
        for learned in self.learned:
            learned.probability = None

    # ---- what a checkpoint keeps

    def state_dict(self) -> dict[str, Any]:
        """What goes on after a batch: decisions, memory and what is due, as plain data and tensors."""
        running = self.running
        return {
            "action": running.action,
            "ticks": torch.from_numpy(running.ticks.copy()),
            "overridden": torch.from_numpy(running.was_overridden.copy()),
            "memory": self.memory,
            "prior": self.prior,
            "codes": None if self.codes is None else torch.from_numpy(self.codes.copy()),
            "silent": self._silent,
            "probability": [learned.probability for learned in self.learned],
        }

    def load_state_dict(self, state: Mapping[str, Any], active: np.ndarray) -> None:
        """Go on from `state_dict`, with the world's streams `active` (bool) acting."""
        self.forget()
        self.set_active(active)
        self.running.action = state["action"]
        self.running.ticks[:] = state["ticks"].numpy()
        self.running.was_overridden = state["overridden"].numpy()
        self.memory, self.prior, self._silent = state["memory"], state["prior"], state["silent"]
        codes = state["codes"]
        if codes is not None:
            self.codes = codes.numpy() if bool(codes.any()) else self.nothing
        for learned, probability in zip(self.learned, state["probability"], strict=True):
            learned.probability = probability

    # ---- between my streams and those of the world

    def grouped(self, x: Tensor) -> Tensor:
        """Rows of the world's streams as I see them: one a stream of mine, or [S, m, ...] over my members."""
        return x if self._member_rows is None else x[self._member_rows]

    def ungrouped(self, x: Tensor) -> Tensor:
        """The inverse of `grouped`."""
        if self._member_rows is None:
            return x
        flat = x.flatten(0, 1)
        result = torch.empty_like(flat)
        result[self._member_rows.flatten()] = flat
        return result

    def seen(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Observations as I see them."""
        return obs if self._member_rows is None else {name: value[self._member_rows] for name, value in obs.items()}

    def of(self, streams: np.ndarray) -> np.ndarray:
        """bool[S]: which of my streams have a member among the world's `streams` (bool)."""
        return streams if self.members is None else streams[self.members].any(1)

    def set_active(self, streams: np.ndarray) -> None:
        """Take over which of the world's streams act."""
        self.active = self.of(streams).copy()
        self.rows, self.mask = None, self.everyone
        if not self.active.all():
            self.mask = torch.from_numpy(self.active).to(self.device)
            self.rows = self.mask.nonzero()[:, 0]

    # ---- decisions

    def command(self) -> Tensor | None:
        """The parent's running action, one row for each of my streams."""
        if self.parent is None:
            return None
        action = self.parent.running.action
        assert action is not None
        if self.parent_index is None:
            return action
        return action[self.parent_index, self.seat] if self.parent.level.per_member else action[self.parent_index]

    def hold(self, action: Tensor, rows: Tensor | None) -> None:
        """Make `action` the running decision of the streams `rows` (None: of all)."""
        running = self.running
        if rows is None:
            running.action, self._held_is_mine = action, False
            if not self.always:
                running.ticks[:] = 0
            return
        if running.action is None:
            running.action = action.new_zeros((self.streams, *action.shape[1:]))
        elif not self._held_is_mine:
            running.action = running.action.clone()
        self._held_is_mine = True
        running.action.index_copy_(0, rows, action)
        if not self.always:
            running.ticks[rows.cpu().numpy()] = 0

    def foresee(self) -> None:
        """After decisions: find out for how long none of mine can end by itself."""
        if self._asks_termination:
            ticks = self.running.ticks
            self._silent = self.level.termination.silent(
                int(ticks.max() if self.rows is None else ticks[self.active].max())
            )

    def move(self, action: Tensor) -> None:
        """Replace the running actions by what became of them."""
        held = self.running.action
        assert held is not None
        if action.shape != held.shape:
            shapes = f"{list(action.shape)}, not {list(held.shape)}"
            raise UsageError(f"advance of level '{self.name}' returned shape {shapes}")
        self.running.action, self._held_is_mine = action, False

    def end_by_itself(self) -> None:
        """Ask my level which running decisions end; the answer is in `codes`."""
        for learned in self.learned:
            learned.probability = None
        running = self.running
        running.pass_tick()
        if running.action is None:
            self.codes = self.nothing
        elif self._silent > 0:
            self._silent -= 1
            self.codes = self.nothing
        elif self._asks_termination:
            self.codes = self.level.termination(self.features, running, self._below())
        else:
            self.codes = as_codes(self.level.ends(self.features, running, self._below()), self.streams)

    def end_with_others(self, fresh: np.ndarray | None) -> None:
        """Add to `codes` what ends with the parent's decisions and what begins in the streams `fresh` of the world."""
        parent, over = self.parent, None
        if parent is not None and parent.codes is not parent.nothing:
            over = parent.active if parent.codes is None else parent.codes != 0
            over = over if self.parent_rows is None else over[self.parent_rows]
        if self.codes is self.nothing:
            if fresh is None and (over is None or not over.any()):
                return
            self.codes = self.nothing.copy()
        codes = self.codes
        assert codes is not None
        if over is not None:
            codes[(codes == 0) & over] = PARENT
        if fresh is not None:
            codes[self.of(fresh)] = START
        if self.rows is not None:
            codes[~self.active] = 0

    def begin_anew(self) -> None:
        """All my decisions are over and due again, without being recorded as ended."""
        if not self.always:
            self.codes = np.where(self.active, np.uint8(START), np.uint8(0))

    def _below(self) -> Tensor | None:
        """bool[S] or [S, m]: whether decisions of the level below have just ended."""
        if self.below is None:
            return None
        ended = self.below.mask if self.below.codes is None else torch.from_numpy(self.below.codes != 0).to(self.device)
        return ended if self.below_members is None else ended[self.below_members]

    def reset_memory(self, fresh: np.ndarray) -> None:
        """Give the world's streams `fresh` (bool) the memory with which an episode begins."""
        start = self.level.start(self.streams)
        if start is None:
            return
        if self.memory is None:
            self.memory = start
            return
        rows = torch.from_numpy(np.flatnonzero(self.of(fresh))).to(self.device)
        self.memory = self.memory.index_copy(0, rows, start[rows])


def build_tracks(levels: Sequence[Level], slots: int, agents: int, device: torch.device) -> list[Track]:
    """Check the stack `levels` (top first) against a world and connect its levels."""
    if not levels:
        raise UsageError("a runner needs at least one level")
    names = [level.name for level in levels]
    if len({*names, "episode", "stream"}) < len(names) + 2:
        raise UsageError(f"levels need different names, none of them 'episode' or 'stream'; got {names}")
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
    child.parent, parent.below = parent, child
    if child.level.parent_of is None:
        if parent.level.per_member:
            raise UsageError(f"level '{parent.name}' is per_member, but '{child.name}' does not set parent_of")
        return
    seats = np.asarray(child.level.parent_of, dtype=np.int64)
    index = (np.arange(slots)[:, None] * parent.width + seats[None, :]).ravel()
    members = _groups(index)
    parent.below_members = torch.from_numpy(members).to(child.device)
    seat = np.empty(len(index), dtype=np.int64)
    seat[members] = np.arange(members.shape[1])[None, :]
    child.parent_rows = index
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


def probability_of_end(codes: np.ndarray, probability: Tensor | None) -> np.ndarray:
    """What a learned termination said, NaN for streams without a decision that it could end."""
    if probability is None:
        return np.full(len(codes), np.nan, dtype=np.float32)
    return np.where(codes == START, np.float32(np.nan), probability.float().cpu().numpy())


def take(features: Features, rows: Tensor) -> Any:
    """The given rows of features, whatever they are made of."""
    if isinstance(features, Tensor):
        return features[rows]
    if isinstance(features, Mapping):
        return {name: take(value, rows) for name, value in features.items()}
    if isinstance(features, tuple | list):
        return tuple(take(value, rows) for value in features)
    return features
