"""The record of what happened: items packed stream after stream, and the decisions of every level, which own spans.

Legend: N items (environment steps, tokens), S streams (one decision maker's time line in one episode), D decisions of
one level. The items of a stream are contiguous and in time order; a decision's start and stop are item indexes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, fields
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from echelon import columns
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

    def __getitem__(self, rows: Tensor) -> Decisions:
        """These rows alone; `span` and `parent` still name what they named."""
        return self.map(lambda column: column[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Decisions:
        """The same table with every column changed."""
        changed = {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "values"}
        return Decisions(**changed, values={name: change(column) for name, column in self.values.items()})


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
    elapsed: Tensor  # float [N], time until the next item: 1; 0 inside a turn or a denoising chain; > 1 for macros
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
    checked: InitVar[bool] = True  # False leaves the checks out, for a producer that upholds them by construction

    def __post_init__(self, checked: bool) -> None:
        if not checked:
            return
        if {"episode", "stream"} & set(self.decisions):
            raise DataError("rollout: 'episode' and 'stream' are partitions of every rollout, not names for a level")
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

    def above(self, level: str) -> str | None:
        """The next higher level, whose rows `decisions[level].parent` names; None at the top."""
        place = self.levels.index(level)
        return self.levels[place - 1] if place else None

    def reward_sum(self, channels: str | Sequence[str] | None = None) -> Tensor:
        """The sum of one, several or (None) all reward channels, float [N]; DataError where one is not scored yet."""
        names = list(self.reward) if channels is None else [channels] if isinstance(channels, str) else list(channels)
        total = torch.zeros(self.size, device=self.stream.device)
        for name in names:
            if name not in self.reward:
                raise DataError(f"rollout: no reward channel '{name}'; there are {', '.join(self.reward) or 'none'}")
            missing = ~self.scored[name]
            if missing.any():
                item, count = int(missing.nonzero()[0]), int(missing.sum())
                raise DataError(f"rollout: reward '{name}' is not scored at {count} items, the first is {item}")
            total = total + self.reward[name]
        return total

    def episodes(self, ids: Tensor | Sequence[int]) -> Rollout:
        """The record of these episodes alone, in this order; `ids` are spans of the partition 'episode', each once."""
        from echelon._rollout_join import take_episodes

        return take_episodes(self, ids)

    @staticmethod
    def cat(rollouts: Sequence[Rollout]) -> Rollout:
        """One record of several, given in time order.

        A stream left unfinished in one batch and met again (same episode number and role) in a later one becomes one
        stream, and a decision that ends `open` there and begins `carried` here becomes one decision: begun as in the
        earlier batch, ended as in the later. Level partitions are rebuilt from the decisions; spans of any other
        partition are kept, and never joined across batches.
        """
        from echelon._rollout_join import join

        return join(rollouts)

    def to(self, device: torch.device | str) -> Rollout:
        """The same record on another device."""
        return _from_columns(_map(_columns(self), lambda column: column.to(device)), _header(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `<path>.safetensors` and `<path>.json`, each replaced atomically."""
        columns.save(path, FORMAT, _columns(self), _header(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Rollout:
        """Read what `save` wrote; DataError names a file that is missing, altered or truncated."""
        return _from_columns(*columns.load(path, FORMAT))


class Returns(NamedTuple):
    """What each decision of a level earned: the semi-Markov view of a rollout."""

    reward: Tensor  # float [D], Σ gamma^(time since its start) · reward over its span
    duration: Tensor  # float [D], time elapsed in its span
    end: Tensor  # int64 [D], `End`


def decision_returns(
    rollout: Rollout, level: str, gamma: float, channels: str | Sequence[str] | None = None
) -> Returns:
    """Per decision of `level`: discounted reward over its span, duration and end reason; 0 and 0 for an empty one.

    A carried or open decision counts what lies in this record. The value of where a decision led is discounted by
    gamma ** duration, and is due unless `end` is TERMINATED.
    """
    if level not in rollout.decisions:
        raise DataError(f"rollout: no level '{level}'; there are {', '.join(rollout.levels) or 'none'}")
    d, spans = rollout.decisions[level], rollout.spans[level]
    if spans.longest == 1 and len(d) == rollout.size and bool((d.stop > d.start).all()):  # an item a decision
        earned, elapsed = rollout.reward_sum(channels), rollout.elapsed
        return Returns(earned[d.start].to(d.log_prob.dtype), elapsed[d.start].to(d.log_prob.dtype), d.end)
    earned = spans.scan(rollout.reward_sum(channels), gamma**rollout.elapsed)
    owns = d.span >= 0
    reward, duration = torch.zeros_like(d.log_prob), torch.zeros_like(d.log_prob)
    reward[owns] = earned[d.start[owns]].to(reward.dtype)
    duration[owns] = spans.reduce(rollout.elapsed)[d.span[owns]].to(duration.dtype)
    return Returns(reward, duration, d.end)


def partition(outer: Spans, start: Tensor, stop: Tensor) -> tuple[Spans, Tensor]:
    """The partition of the items by decisions [start, stop) of one level, and the span of each decision.

    outer: contiguous, the streams or the spans of the level above; the result refines it. Items that no decision holds
    form spans of their own; decisions with start == stop get span -1.
    """
    owns = stop > start
    cuts = torch.cat([outer.starts, start[owns], stop[owns]])
    starts = torch.zeros(outer.size, dtype=torch.bool, device=outer.device)
    starts[cuts[cuts < outer.size]] = True
    spans = Spans.from_starts(starts)
    span = torch.full_like(start, -1)
    span[owns] = spans.ids[start[owns]]
    return spans, span


# ---- columns on disk

FORMAT = "echelon.rollout"
_ITEMS = ("stream", "tick", "elapsed", "proposed", "executed")
_STREAMS = ("episode", "learner", "terminated", "truncated", "start_tick")


def _columns(r: Rollout) -> dict[str, Any]:
    """Every tensor of the record, nested as in the record."""
    labels = {name: label for name, label in r.streams.labels.items() if isinstance(label, Tensor)}
    return {
        "item": {name: getattr(r, name) for name in _ITEMS},
        "reward": r.reward,
        "scored": r.scored,
        "observation": {
            name: column if isinstance(column, Tensor) else {"values": column.values, **_layout(column.spans)}
            for name, column in r.observation.items()
        },
        "decisions": {level: {f.name: getattr(d, f.name) for f in fields(d)} for level, d in r.decisions.items()},
        "streams": {
            **{name: getattr(r.streams, name) for name in _STREAMS},
            "final_observation": r.streams.final_observation,
            "labels": labels,
        },
        "spans": {name: _layout(r.spans[name]) for name in r.spans},
        "memory": {level: {"items": items, "states": states} for level, (items, states) in r.memory.items()},
    }


def _header(r: Rollout) -> dict[str, Any]:
    """What is not a tensor, and the counts and codes that a reader without this library needs."""
    return {
        "counts": {
            "items": r.size,
            "streams": len(r.streams),
            "decisions": {k: len(d) for k, d in r.decisions.items()},
        },
        "enums": {kind.__name__.lower(): {code.name.lower(): int(code) for code in kind} for kind in (Begin, End)},
        "levels": r.levels,
        "spans": {name: r.spans.parent(name) for name in r.spans},
        "role": r.streams.role,
        "policy_id": r.streams.policy_id,
        "labels": {name: label for name, label in r.streams.labels.items() if not isinstance(label, Tensor)},
        "meta": r.meta,
    }


def _from_columns(c: dict[str, Any], header: dict[str, Any]) -> Rollout:
    def ragged(column: Tensor | dict[str, Tensor]) -> Tensor | Ragged:
        return column if isinstance(column, Tensor) else Ragged(values=column["values"], spans=_spans(column))

    table = c["streams"]
    streams = Streams(
        **{name: table[name] for name in _STREAMS},
        role=header["role"],
        policy_id=header["policy_id"],
        final_observation=table.get("final_observation", {}),
        labels={**table.get("labels", {}), **header["labels"]},
    )
    return Rollout(
        **c["item"],
        reward=c.get("reward", {}),
        scored=c.get("scored", {}),
        observation={name: ragged(column) for name, column in c.get("observation", {}).items()},
        decisions={level: Decisions(**c["decisions"][level]) for level in header["levels"]},
        streams=streams,
        spans=SpanTree({name: (_spans(c["spans"][name]), parent) for name, parent in header["spans"].items()}),
        memory={level: (memory["items"], memory["states"]) for level, memory in c.get("memory", {}).items()},
        meta=header["meta"],
    )


def _layout(spans: Spans) -> dict[str, Tensor]:
    return {"offsets": spans.offsets} | ({} if spans.order is None else {"order": spans.order})


def _spans(layout: dict[str, Tensor]) -> Spans:
    return Spans(layout["offsets"], layout.get("order"))


def _map(tree: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, Tensor) else _map(value, change) for name, value in tree.items()}


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
    sized: dict[str, Tensor | Ragged] = {
        "elapsed": rollout.elapsed,
        "proposed": rollout.proposed,
        "executed": rollout.executed,
        **{f"observation '{name}'": column for name, column in rollout.observation.items()},
        **{f"reward '{name}'": column for name, column in rollout.reward.items()},
    }
    for name, column in sized.items():
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
    above = rollout.decisions.get(rollout.above(level) or "")
    parents = 0 if above is None else len(above)
    check((d.parent < -1) | (d.parent >= parents), f"has a parent outside of the {parents} decisions above")
    if above is not None and parents:
        home = table.episode[d.stream] == table.episode[above.stream[d.parent.clamp(min=0)]]
        check((d.parent >= 0) & ~home, "has a parent in another episode")
