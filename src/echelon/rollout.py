"""The record of what happened: items packed stream after stream, and the decisions of every level that own spans of them.

Legend: N items (environment steps, tokens), S streams (one decision maker's time line in one episode), D decisions of one
level. The items of a stream are contiguous and in time order; `start` and `stop` of a decision are item indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.spans import Spans, SpanTree


class Begin(IntEnum):
    """How a decision's span begins in this record."""

    DECIDED = 0  # the decision was made here
    CARRIED = 1  # it was made in an earlier batch and still held when this one began


class End(IntEnum):
    """Why a decision's span ends."""

    OPEN = 0  # it does not: the batch ends first
    OPTION = 1  # its own termination fired
    TIMEOUT = 2  # its time ran out
    INTERRUPTED = 3  # something outside the hierarchy took over
    PARENT = 4  # the decision above it ended
    TERMINATED = 5  # the episode reached a terminal state: no bootstrap
    TRUNCATED = 6  # the episode was cut: bootstrap from the final observation


@dataclass(kw_only=True, eq=False)
class Ragged:
    """A column whose row r is the variable number of values in span r (at least one)."""

    values: Tensor  # [M, ...]
    spans: Spans  # M values in as many spans as the column has rows

    def __len__(self) -> int:
        return self.spans.n

    def __getitem__(self, rows: Tensor) -> Ragged:
        spans, items = self.spans.take(rows)
        return Ragged(values=self.values[items], spans=spans)

    def to(self, device: torch.device | str) -> Ragged:
        return Ragged(values=self.values.to(device), spans=self.spans.to(device))


@dataclass(kw_only=True, eq=False)
class Decisions:
    """The decisions of one level, in any order."""

    stream: Tensor  # int64 [D]
    start: Tensor  # int64 [D], the first item it holds for
    stop: Tensor  # int64 [D], one past the last; start == stop is legal: it ended before anything happened
    span: Tensor  # int64 [D], its span in the partition named after the level; -1 if start == stop
    begin: Tensor  # int64 [D], `Begin`
    end: Tensor  # int64 [D], `End`
    action: Tensor  # [D, ...]
    log_prob: Tensor  # float [D], NaN where the level has none
    parent: Tensor  # int64 [D], row of the decision it serves in the next higher level's table; -1 without one
    values: dict[str, Tensor] = field(default_factory=dict)  # float [D] each

    def __len__(self) -> int:
        return len(self.start)

    def map(self, change: Callable[[Tensor], Tensor]) -> Decisions:
        """The same table with every column changed."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "values"}
        values = {name: change(column) for name, column in self.values.items()}
        return Decisions(**{name: change(column) for name, column in columns.items()}, values=values)


@dataclass(kw_only=True, eq=False)
class Streams:
    """One row a stream."""

    episode: Tensor  # int64 [S], the episode's number, unique in everything that is ever joined
    role: list[str]  # which time line of its episode: unique inside the episode
    policy_id: list[str]
    learner: Tensor  # bool [S]
    terminated: Tensor  # bool [S], the last item led to a terminal state
    truncated: Tensor  # bool [S], the episode was cut after the last item; never both: a terminal state is terminal
    start_tick: Tensor  # int64 [S], tick of the first item
    final_observation: dict[str, Tensor] = field(default_factory=dict)  # [S, ...], seen after the last item
    labels: dict[str, Tensor | list[str]] = field(default_factory=dict)  # [S] each, e.g. task, success, seed

    def __len__(self) -> int:
        return len(self.episode)


@dataclass(kw_only=True, eq=False)
class Rollout:
    """What happened, as named columns; checked when built."""

    stream: Tensor  # int64 [N], row of `streams`
    tick: Tensor  # int64 [N], time inside the episode, never decreasing along a stream
    elapsed: (
        Tensor  # float [N], time until the next item: 1; 0 inside a turn or between denoising steps; > 1 for macros
    )
    reward: dict[str, Tensor]  # float [N] a channel
    scored: dict[str, Tensor]  # bool [N] a channel: false where its reward is not known yet
    observation: dict[str, Tensor | Ragged]  # [N, ...], what the levels saw at the item
    proposed: Tensor  # [N, ...], bottom-level action as decided
    executed: Tensor  # [N, ...], as sent to the environment, after guards and clipping
    decisions: dict[str, Decisions]  # by level, top first
    streams: Streams
    spans: SpanTree  # at least 'episode', 'stream' and one partition a level
    memory: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # level → (items int64 [M], states [M, ...])
    meta: dict[str, Any] = field(default_factory=dict)  # JSON-able

    def __post_init__(self) -> None:
        _check_items(self)
        _check_streams(self)
        for level in self.decisions:
            _check_decisions(self, level)

    @property
    def size(self) -> int:
        """N, the number of items."""
        return self.spans.size

    @property
    def levels(self) -> list[str]:
        """Level names, top first."""
        return list(self.decisions)


def partition(streams: Spans, start: Tensor, stop: Tensor) -> tuple[Spans, Tensor]:
    """The partition that decisions [start, stop) of one level cut the streams into, and the span of each decision.

    streams: contiguous. Items that no decision holds form spans of their own. A decision with start == stop gets span -1.
    """
    owns = stop > start
    cuts = torch.cat([streams.starts, start[owns], stop[owns]])
    starts = torch.zeros(streams.size, dtype=torch.bool, device=streams.device)
    starts[cuts[cuts < streams.size]] = True
    spans = Spans.from_starts(starts)
    span = torch.full_like(start, -1)
    span[owns] = spans.ids[start[owns]]
    return spans, span


# ---- validation


def _check_rows(name: str, column: Tensor | Ragged | list[str], rows: int, dtype: torch.dtype | None = None) -> None:
    if len(column) != rows:
        raise DataError(f"rollout: {name} has {len(column)} rows, expected {rows}")
    if dtype is not None and isinstance(column, Tensor) and column.dtype != dtype:
        raise DataError(f"rollout: {name} must be {dtype}, got {column.dtype}")


def _check_all(bad: Tensor, message: str) -> None:
    """Raise DataError with `message`, its {} filled with the first row where `bad` is true."""
    rows = bad.nonzero()[:, 0]
    if len(rows):
        raise DataError("rollout: " + message.format(int(rows[0])))


def _check_items(rollout: Rollout) -> None:
    n, streams = rollout.size, rollout.spans["stream"]
    _check_rows("stream", rollout.stream, n, torch.int64)
    _check_rows("tick", rollout.tick, n, torch.int64)
    columns: dict[str, Tensor | Ragged] = {
        "elapsed": rollout.elapsed,
        "proposed": rollout.proposed,
        "executed": rollout.executed,
        **{f"observation '{name}'": column for name, column in rollout.observation.items()},
        **{f"reward '{name}'": column for name, column in rollout.reward.items()},
    }
    for name, column in columns.items():
        _check_rows(name, column, n)
    if rollout.reward.keys() != rollout.scored.keys():
        raise DataError(f"rollout: reward channels {list(rollout.reward)}, scored masks {list(rollout.scored)}")
    for name, scored in rollout.scored.items():
        _check_rows(f"scored '{name}'", scored, n, torch.bool)
        _check_all(
            scored & ~rollout.reward[name].isfinite(), f"reward '{name}' is marked scored but not finite at item {{}}"
        )
    if streams.order is not None:
        raise DataError("rollout: the items of a stream must be contiguous; sort the items by stream first")
    if not torch.equal(rollout.stream, streams.ids):
        raise DataError("rollout: the stream column and the partition 'stream' disagree")
    _check_all(
        ~(rollout.elapsed >= 0) | rollout.elapsed.isinf(), "elapsed must be finite and at least 0, is not at item {}"
    )
    _check_all(rollout.tick < streams.shift(rollout.tick, -1, rollout.streams.start_tick), "tick decreases at item {}")
    for level, (items, states) in rollout.memory.items():
        _check_rows(f"memory of '{level}'", states, len(items))
        _check_all((items < 0) | (items >= n), f"memory of '{level}' lies outside of the items at row {{}}")


def _check_streams(rollout: Rollout) -> None:
    table, spans = rollout.streams, rollout.spans["stream"]
    for name, dtype in (("episode", torch.int64), ("learner", torch.bool), ("terminated", torch.bool),
                        ("truncated", torch.bool), ("start_tick", torch.int64)):  # fmt: skip
        _check_rows(f"streams.{name}", getattr(table, name), spans.n, dtype)
    for name, column in {
        "role": table.role,
        "policy_id": table.policy_id,
        **table.final_observation,
        **table.labels,
    }.items():
        _check_rows(f"streams' {name}", column, spans.n)
    _check_all(
        table.terminated & table.truncated, "stream {} is terminated and truncated; a terminal state is only the former"
    )
    _check_all(
        table.start_tick != rollout.tick[spans.starts], "start_tick is not the tick of the first item in stream {}"
    )
    if len(set(zip(table.episode.tolist(), table.role, strict=True))) != len(table):
        raise DataError("rollout: two streams of one episode have the same role")
    parents = rollout.spans.within("stream", "episode")
    mixed = parents.reduce(table.episode, "min") != parents.reduce(table.episode, "max")
    if mixed.any() or len(table.episode.unique()) != parents.n:
        raise DataError("rollout: the partition 'episode' and the episode numbers of the streams disagree")


def _check_decisions(rollout: Rollout, level: str) -> None:
    d, table = rollout.decisions[level], rollout.streams
    for name in ("stream", "start", "stop", "span", "begin", "end", "parent"):
        _check_rows(f"decisions['{level}'].{name}", getattr(d, name), len(d), torch.int64)
    for name, column in {"action": d.action, "log_prob": d.log_prob, **d.values}.items():
        _check_rows(f"decisions['{level}'] {name}", column, len(d))

    def check(bad: Tensor, what: str) -> None:
        _check_all(bad, f"decision {{}} of level '{level}' {what}")

    check((d.stream < 0) | (d.stream >= len(table)), "names a stream that does not exist")
    streams = rollout.spans["stream"]
    first, last = streams.starts[d.stream], streams.ends[d.stream]
    check((d.start < first) | (d.stop > last + 1) | (d.start > d.stop), "must have start <= stop inside its stream")
    spans = rollout.spans[level]
    rollout.spans.within(level, "stream")
    owns = d.stop > d.start
    check(owns != (d.span >= 0), "must own a span if it holds any item, and only then")
    check(d.span >= spans.n, "names a span that does not exist")
    span = d.span.clamp(min=0)
    check(owns & (spans.starts[span] != d.start) | owns & (spans.ends[span] != d.stop - 1), "does not fill its span")
    check(owns & (torch.bincount(span[owns], minlength=spans.n)[span] > 1), "shares its span with another")
    check((d.begin < 0) | (d.begin >= len(Begin)), "has an unknown begin")
    check((d.end < 0) | (d.end >= len(End)), "has an unknown end")
    at_end, ended = d.stop == last + 1, (table.terminated | table.truncated)[d.stream]
    check(
        (d.end == End.TERMINATED) & ~(at_end & table.terminated[d.stream]),
        "ends as terminated, its stream does not there",
    )
    check(
        (d.end == End.TRUNCATED) & ~(at_end & table.truncated[d.stream]), "ends as truncated, its stream does not there"
    )
    check((d.end == End.OPEN) & (~at_end | ended), "is open, but not at the end of an unfinished stream")
    check((d.begin == Begin.CARRIED) & (d.start != first), "is carried, but does not start with its stream")
    for kind, rows in (("open", d.end == End.OPEN), ("carried", d.begin == Begin.CARRIED)):
        check(
            rows & (torch.bincount(d.stream[rows], minlength=len(table))[d.stream] > 1),
            f"is not the only {kind} one there",
        )
    above = rollout.levels[rollout.levels.index(level) - 1] if level != rollout.levels[0] else None
    parents = 0 if above is None else len(rollout.decisions[above])
    check((d.parent < -1) | (d.parent >= parents), f"has a parent outside of the {parents} decisions above")
