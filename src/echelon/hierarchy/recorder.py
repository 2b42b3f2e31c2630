"""Column buffers that the runner writes to on every tick, one row copy a column and no object a stream.

Columns of items are time-major [tick, stream, ...] with idle cells in them; decisions are packed in order of tick, then
stream. `assembly.py` turns both into a `Rollout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.errors import UsageError, unknown
from echelon.hierarchy.level import Decision
from echelon.hierarchy.track import Track

_FIRST_ROWS = 128


class Buffer:
    """A tensor that grows along its first dimension; on the CPU written through numpy, which costs less a call."""

    def __init__(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> None:
        self.data = torch.empty((0, *shape), dtype=dtype)  # of this type until something else is written
        self.size = 0  # rows written, when used as a list
        self._room = 0
        self._view: np.ndarray | None = None

    def set(self, row: int, x: Tensor | np.ndarray) -> None:
        """Write row `row`."""
        if row >= self._room:
            self._reserve(row + 1, x.shape, x)
        if self._view is None:
            self.data[row] = torch.as_tensor(x)
        else:
            self._view[row] = x if type(x) is np.ndarray else x.numpy()  # type: ignore[union-attr]

    def first(self, rows: int) -> Tensor:
        """The first rows, also of those that nobody wrote to: they are zero in a buffer that is cleared."""
        if rows > self._room:
            self._reserve(rows, self.data.shape[1:], self.data)
        return self.data[:rows]

    def append(self, x: Tensor | np.ndarray) -> None:
        """Write `x` [n, ...] behind the rows written so far."""
        start, end = self.size, self.size + x.shape[0]
        if end > self._room:
            self._reserve(end, x.shape[1:], x)
        if self._view is None:
            self.data[start:end] = torch.as_tensor(x)
        else:
            self._view[start:end] = x if type(x) is np.ndarray else x.numpy()  # type: ignore[union-attr]
        self.size = end

    def _reserve(self, rows: int, shape: Sequence[int], like: Tensor | np.ndarray) -> None:
        like = torch.as_tensor(like)
        old, self._room = self.data, max(rows, 2 * self._room, _FIRST_ROWS)
        with torch.inference_mode(False):  # what is recorded is trained on
            self.data = torch.zeros((self._room, *shape), dtype=like.dtype, device=like.device)
            if len(old):
                self.data[: len(old)] = old
        plain = like.device.type == "cpu" and like.dtype != torch.bfloat16
        self._view = self.data.numpy() if plain else None


@dataclass
class Closing:
    """Streams that ended together, or were open when the batch ended: one row each."""

    streams: np.ndarray  # int64, columns of the buffers
    start: np.ndarray  # int64, the row of the first item in the batch
    stop: np.ndarray  # int64, the row after the last
    start_tick: np.ndarray
    episode: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final: dict[str, Tensor]
    labels: dict[str, np.ndarray]


@dataclass
class Empty:
    """Decisions that took no time, made together at one tick."""

    row: int
    streams: np.ndarray
    decision: Decision


@dataclass
class Carried:
    """The decisions that are open at a batch's end, one row a stream of the level (others hold anything)."""

    action: Tensor
    log_prob: Tensor
    values: dict[str, Tensor]
    lead: np.ndarray  # int64, the stream of the world on whose time line it is entered

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {**vars(self), "lead": torch.from_numpy(self.lead)}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Carried:
        """What `state_dict` gave."""
        return cls(**{**state, "lead": state["lead"].numpy()})


@dataclass
class LevelLog:
    """What one level decided in the batch."""

    track: Track
    action: Buffer = field(default_factory=Buffer)
    log_prob: Buffer | None = None
    values: dict[str, Buffer] = field(default_factory=dict)
    codes: Buffer = field(default_factory=Buffer)  # [tick, S]; unused by a level that decides on every tick
    learned: list[Buffer] = field(default_factory=list)  # [tick, S] probabilities of learned terminations
    empties: list[Empty] = field(default_factory=list)
    memory: list[tuple[int, np.ndarray, Tensor]] = field(default_factory=list)
    carried: Carried | None = None
    begun: bool = False

    def decided(self, decision: Decision) -> None:
        """Append the decisions of one tick."""
        log_prob, values = decision.log_prob, decision.values
        if not self.begun:
            self.begun = True
            self.log_prob = None if log_prob is None else Buffer()
            self.values = {name: Buffer() for name in values}
        if (log_prob is None) != (self.log_prob is None) or values.keys() != self.values.keys():
            raise UsageError(f"level '{self.track.name}' gives log_prob or values with some of its decisions only")
        self.action.append(decision.action)
        if log_prob is not None:
            self.log_prob.append(log_prob)  # type: ignore[union-attr]  # checked above
        for name, value in values.items():
            self.values[name].append(value)

    def resume(self, carried: Carried) -> None:
        """Go on with these decisions, which are recorded in full even in a batch where no other is made."""
        self.carried = carried
        if not self.begun:
            self.log_prob = None if bool(carried.log_prob.isnan().all()) else Buffer()
            self.values = {name: Buffer() for name in carried.values}

    def clear(self) -> None:
        """Forget the batch, keep the storage."""
        for buffer in (self.action, self.log_prob, *self.values.values()):
            if buffer is not None:
                buffer.size = 0
        self.codes.data.zero_()  # only rows on which something is due are written
        self.empties, self.memory = [], []


class Recorder:
    """All buffers of a runner. `row` is the tick of the batch that is being written."""

    def __init__(self, tracks: Sequence[Track], streams: int, record: bool | Sequence[str]):
        self.logs = [
            LevelLog(
                track,
                codes=Buffer((track.streams,), torch.uint8),
                learned=[Buffer((track.streams,)) for _ in track.learned],
            )
            for track in tracks
        ]
        self.on = record is not False  # off: rewards and labels only
        self.observations = None if record is True else tuple(record or ())  # None: all
        self.streams = streams
        self.columns: dict[str, Buffer] = {}
        self._observed: list[tuple[str, Buffer]] = []
        self.row = 0
        self.start = np.zeros(streams, dtype=np.int64)  # of each stream, the row of its first item in the batch
        self.start_tick = np.zeros(streams, dtype=np.int64)
        self.episode = np.zeros(streams, dtype=np.int64)
        self.closings: list[Closing] = []

    def write(self, name: str, x: Tensor | np.ndarray) -> None:
        """Write one column of the current tick."""
        buffer = self.columns.get(name)
        if buffer is None:
            buffer = self.columns[name] = Buffer()
        buffer.set(self.row, x)

    def observe(self, obs: Mapping[str, Tensor | np.ndarray]) -> None:
        """Write what the levels see on the current tick."""
        if not self._observed:
            names = tuple(obs) if self.observations is None else self.observations
            for name in names:
                if name not in obs:
                    raise unknown("observation", name, obs)
            self._observed = [(name, self.columns.setdefault("observation/" + name, Buffer())) for name in names]
        for name, buffer in self._observed:
            buffer.set(self.row, obs[name])

    def ticks(self, streams: np.ndarray) -> np.ndarray:
        """How long the episodes of `streams` have been going."""
        return self.start_tick[streams] + self.row - self.start[streams]

    def open(self, streams: np.ndarray, episodes: np.ndarray) -> None:
        """Begin streams whose first item is the next row."""
        self.start[streams] = self.row
        self.start_tick[streams] = 0
        self.episode[streams] = episodes

    def close(
        self,
        streams: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        final: Mapping[str, Tensor],
        labels: dict[str, np.ndarray],
    ) -> None:
        """End `streams` before the next row; `final` has a row for every stream, the others one for each given."""
        if self.on:
            names = final if self.observations is None else self.observations
            rows = torch.from_numpy(streams)
            final = {name: final[name][rows.to(final[name].device)] for name in names}
        self.closings.append(
            Closing(
                streams=streams,
                start=self.start[streams],
                stop=np.full(len(streams), self.row),
                start_tick=self.start_tick[streams],
                episode=self.episode[streams],
                terminated=terminated,
                truncated=truncated & ~terminated,
                final=dict(final) if self.on else {},
                labels=labels,
            )
        )

    def next_batch(self) -> None:
        """Begin an empty batch; streams that are open go on."""
        self.start_tick += self.row - self.start
        self.start[:] = 0
        self.row = 0
        self.closings = []
        for log in self.logs:
            log.clear()
