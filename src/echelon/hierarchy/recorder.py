"""Column buffers that the runner writes to on every tick, one row copy a column and no object a stream.

Columns of items are time-major [tick, stream, ...] with idle cells in them; decisions are packed in order of tick, then
stream. `assembly.py` turns both into a `Rollout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.level import Decision
from echelon.hierarchy.track import Track

_FIRST_ROWS = 128


class Buffer:
    """A tensor that grows along its first dimension; on the CPU it is written through numpy, which costs less a call."""

    def __init__(self) -> None:
        self.data: Tensor | None = None
        self.size = 0  # rows written, when used as a list
        self._view: np.ndarray | None = None

    def set(self, row: int, x: Tensor | np.ndarray) -> None:
        """Write row `row`."""
        if self.data is None or row >= len(self.data):
            self._reserve(row + 1, x.shape, x)
        if self._view is None:
            assert self.data is not None
            self.data[row].copy_(torch.as_tensor(x))
        else:
            self._view[row] = x.numpy() if isinstance(x, Tensor) else x

    def append(self, x: Tensor | np.ndarray) -> None:
        """Write `x` [n, ...] behind the rows written so far."""
        end = self.size + len(x)
        if self.data is None or end > len(self.data):
            self._reserve(end, x.shape[1:], x)
        if self._view is None:
            assert self.data is not None
            self.data[self.size : end].copy_(torch.as_tensor(x))
        else:
            self._view[self.size : end] = x.numpy() if isinstance(x, Tensor) else x
        self.size = end

    def _reserve(self, rows: int, shape: Sequence[int], like: Tensor | np.ndarray) -> None:
        capacity = max(rows, _FIRST_ROWS if self.data is None else 2 * len(self.data))
        like = torch.as_tensor(like)
        with torch.inference_mode(False):  # what is recorded is trained on
            grown = torch.zeros((capacity, *shape), dtype=like.dtype, device=like.device)
            if self.data is not None:
                grown[: len(self.data)] = self.data
        self.data = grown
        plain = like.device.type == "cpu" and like.dtype != torch.bfloat16
        self._view = grown.numpy() if plain else None


@dataclass
class Closing:
    """Streams that ended together, or were open when the batch ended: one row each."""

    streams: np.ndarray
    stop: int  # the row after their last item
    start: np.ndarray  # the row of their first item in the batch
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
class LevelLog:
    """What one level decided in the batch."""

    track: Track
    action: Buffer = field(default_factory=Buffer)
    log_prob: Buffer = field(default_factory=Buffer)
    values: dict[str, Buffer] = field(default_factory=dict)
    codes: Buffer = field(default_factory=Buffer)  # [tick, S]; unused by a level that decides on every tick
    learned: list[Buffer] = field(default_factory=list)  # [tick, S] probabilities of learned terminations
    empties: list[Empty] = field(default_factory=list)
    memory: list[tuple[int, np.ndarray, Tensor]] = field(default_factory=list)
    carried: Carried | None = None

    def decided(self, decision: Decision) -> None:
        """Append the decisions of one tick."""
        first = self.action.size == 0
        count = len(decision.action)
        before = self.action.size
        self.action.append(decision.action)
        if decision.log_prob is not None:
            self.log_prob.append(decision.log_prob)
        if decision.values:
            for name, value in decision.values.items():
                if first and name not in self.values:
                    self.values[name] = Buffer()
                self.values[name].append(value)
        rows = (self.log_prob.size, *(buffer.size for buffer in self.values.values()))
        if any(size not in (0, before + count) for size in rows):
            raise UsageError(f"level '{self.track.name}' gives log_prob and values with some decisions only")

    def clear(self) -> None:
        """Forget the batch, keep the storage."""
        self.action.size = self.log_prob.size = 0
        for buffer in self.values.values():
            buffer.size = 0
        self.empties, self.memory = [], []


@dataclass
class Carried:
    """The decisions that are open at a batch's end, one row a stream of the level (others hold anything)."""

    action: Tensor
    log_prob: Tensor | None
    values: dict[str, Tensor]


class Recorder:
    """All buffers of a runner. `row` is the tick of the batch that is being written."""

    def __init__(self, tracks: Sequence[Track], streams: int, record: bool | Sequence[str]):
        self.logs = [LevelLog(track) for track in tracks]
        for log in self.logs:
            log.learned = [Buffer() for _ in log.track.learned]
        self.on = record is not False  # off: rewards and labels only
        self.observations = None if record is True else tuple(record or ())  # None: all
        self.streams = streams
        self.columns: dict[str, Buffer] = {}
        self.row = 0
        self.start = np.zeros(streams, dtype=np.int64)
        self.start_tick = np.zeros(streams, dtype=np.int64)
        self.episode = np.zeros(streams, dtype=np.int64)
        self.closings: list[Closing] = []

    def write(self, name: str, x: Tensor | np.ndarray) -> None:
        """Write one column of the current tick."""
        buffer = self.columns.get(name)
        if buffer is None:
            buffer = self.columns[name] = Buffer()
        buffer.set(self.row, x)

    def observe(self, obs: Mapping[str, Tensor]) -> None:
        """Write what the levels see on the current tick."""
        for name in obs if self.observations is None else self.observations:
            self.write("observation/" + name, obs[name])

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
        final: dict[str, Tensor],
        labels: dict[str, np.ndarray],
    ) -> None:
        """End `streams` before the next row; every argument has one row a stream given."""
        start, tick, episode = self.start[streams], self.start_tick[streams], self.episode[streams]
        closing = Closing(streams, self.row, start, tick, episode, terminated, truncated, final, labels)
        self.closings.append(closing)

    def next_batch(self) -> None:
        """Begin an empty batch; streams that are open go on."""
        self.start_tick += self.row - self.start
        self.start[:] = 0
        self.row = 0
        self.closings = []
        for log in self.logs:
            log.clear()
