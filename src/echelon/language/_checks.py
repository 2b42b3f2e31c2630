"""What must hold in a record, whoever made it; errors name the episode and the call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.language import _tables
from echelon.language._tables import Use
from echelon.language.engine import End, Source

if TYPE_CHECKING:
    from echelon.language.record import Record

RESERVED = ("group", "episode", "stream", "call")  # partitions that every tree has
FAULTS = (End.ERROR, End.TIMEOUT, End.KILLED)
SLACK = 1e-4  # a log-prob may exceed 0 by rounding
_BOOL = ("terminated", "truncated", "learner", "valid", "begin")
_FLOAT = ("reward", "temperature", "started", "finished", "logp", "part", "value", "adv", "weight")


def check(record: Record) -> None:
    """Raise DataError unless the record keeps its promises."""
    _check_columns(record)
    _check_nodes(record)
    _check_sequence(record)
    _check_episodes(record)
    _check_calls(record)
    _check_items(record)
    _check_names(record)


def check_written(name: str, column: Tensor, groups: tuple[str, ...], rows: int) -> None:
    """Raise DataError unless a column may be written to a record that is collected."""
    group, _, short = name.partition(".")
    if group not in groups or not short or "/" in short:
        allowed = ", ".join(f"{known}.<name>" for known in groups)
        raise DataError(f"record: '{name}' cannot be written once it is collected; {allowed} can")
    if column.shape != (rows,) or not column.is_floating_point():
        raise DataError(f"record: '{name}' must be {rows} floats, got {column.dtype} of shape {tuple(column.shape)}")
    if group in ("adv", "weight") and not bool(column.isfinite().all()):
        row = int((~column.isfinite()).nonzero()[0])
        raise DataError(f"record: '{name}' must be finite, it is {float(column[row])} at row {row}")


def name_of_call(record: Record, call: int) -> str:
    """For messages: the call by its row, and by its number in its episode."""
    episode = record.streams.episode[record.calls.stream]
    mine = int(episode[call])
    number = call - int((episode == mine).nonzero()[0])
    return f"call {call} (number {number} of episode {int(record.episodes.uid[mine])})"


def _refuse(bad: Tensor, what: str) -> None:
    """Raise DataError with the first row where `bad` is true in the place of {}."""
    rows = bad.nonzero()[:, 0]
    if len(rows):
        raise DataError("record: " + what.format(int(rows[0])))


def _refuse_calls(record: Record, bad: Tensor, what: str) -> None:
    rows = bad.nonzero()[:, 0]
    if len(rows):
        raise DataError(f"record: {name_of_call(record, int(rows[0]))} {what}")


def _outside(reference: Tensor, size: int, none: bool = False) -> Tensor:
    return (reference < (-1 if none else 0)) | (reference >= size)


def _flat(table: Any) -> Iterator[tuple[str, str, Tensor]]:
    for name, column in _tables.columns(table).items():
        if isinstance(column, Tensor):
            yield name, name, column
        else:
            yield from ((name, f"{name}.{short}", inner) for short, inner in column.items())


def _check_columns(record: Record) -> None:
    """One length a table, and the kinds of number that the columns are meant to hold."""
    tables = {
        "node": record.nodes,
        "episode": record.episodes,
        "stream": record.streams,
        "call": record.calls,
        "item": record.items,
    }
    for table_name, table in tables.items():
        rows = len(next(_flat(table))[2])
        for name, path, column in _flat(table):
            if column.shape != (rows,):
                raise DataError(f"record: {table_name}.{path} has shape {tuple(column.shape)}, the table {rows} rows")
            kind = "bool" if name in _BOOL else "float" if name in _FLOAT else "int64"
            right = column.is_floating_point() if kind == "float" else column.dtype == getattr(torch, kind)
            if not right:
                raise DataError(f"record: {table_name}.{path} must be {kind}, got {column.dtype}")
    if record.tokens.dtype != torch.int32 or record.tokens.ndim != 1:
        raise DataError(f"record: the pool must be an int32 vector, got {record.tokens.dtype}")
    _refuse(record.tokens < 0, "the pool's token {} is negative")
    at, data = record.texts.offsets, record.texts.data
    whole = at.dtype == torch.int64 and data.dtype == torch.uint8 and len(at) > 0
    if not whole or int(at[0]) != 0 or int(at[-1]) != len(data) or bool((at[1:] < at[:-1]).any()):
        raise DataError("record: the offsets of the texts do not divide their bytes")


def _check_nodes(record: Record) -> None:
    nodes = record.nodes
    count = len(nodes.parent)
    root = nodes.parent < 0
    _refuse(
        (nodes.parent < -1) | (nodes.parent >= torch.arange(count)),
        "node {} does not come after the node it hangs from",
    )
    kept = nodes.length[nodes.parent.clamp(min=0)]
    _refuse((nodes.cut < 0) | (nodes.cut > torch.where(root, 0, kept)), "node {} keeps more than its parent has")
    inside = (nodes.start >= 0) & (nodes.length >= 0) & (nodes.start + nodes.length <= len(record.tokens))
    _refuse(~inside, "node {} lies outside of the pool")


def _check_sequence(record: Record) -> None:
    """Calls of a stream, streams of an episode, episodes of a group are contiguous, and stand in their sequence."""
    episodes, streams, calls = record.episodes, record.streams, record.calls
    group, uid = episodes.group, episodes.uid
    values, counts = uid.unique(return_counts=True)
    if len(values) < len(uid):
        raise DataError(f"record: the uid {int(values[counts > 1][0])} names several episodes")
    backward = (group[1:] < group[:-1]) | ((group[1:] == group[:-1]) & (uid[1:] < uid[:-1]))
    _refuse(backward, "episode row {} and the next are not sorted by (group, uid)")
    _refuse(_outside(streams.episode, len(uid)), "stream {} names an episode that does not exist")
    _refuse(streams.episode[1:] < streams.episode[:-1], "stream {} and the next are not sorted by episode")
    _refuse(_outside(calls.stream, len(streams.episode)), "call {} names a stream that does not exist")
    _refuse(calls.stream[1:] < calls.stream[:-1], "call {} and the next are not sorted by stream")


def _check_episodes(record: Record) -> None:
    e, s, texts = record.episodes, record.streams, len(record.texts)
    both = (e.terminated & e.truncated).nonzero()[:, 0]
    if len(both):
        uid = int(e.uid[both[0]])
        raise DataError(f"record: episode {uid} is both terminated and truncated; a terminal state is only the former")
    _refuse(_outside(e.task, texts, none=True), "episode row {} names a task text that does not exist")
    _refuse(_outside(e.kind, len(record.kinds)), "episode row {} names a kind that does not exist")
    _refuse(~torch.isin(e.fault, torch.tensor([-1, *FAULTS])), "episode row {} has an unknown fault")
    _refuse(_outside(s.agent, len(record.agents)), "stream {} names an agent that does not exist")
    calls = len(record.calls.stream)
    _refuse(_outside(s.parent_call, calls, none=True), "stream {} is opened by a call that does not exist")
    known = s.parent_call >= 0
    opener = record.calls.stream[s.parent_call[known]]
    row = torch.arange(len(s.agent))[known]
    wrong = (s.episode[opener] != s.episode[row]) | (opener == row)
    if bool(wrong.any()):
        raise DataError(f"record: stream {int(row[wrong][0])} is opened by a call of another episode, or by its own")


def _check_calls(record: Record) -> None:
    c, count = record.calls, len(record.calls.stream)
    nodes, length = len(record.nodes.parent), record.nodes.length

    def refuse(bad: Tensor, what: str) -> None:
        _refuse_calls(record, bad, what)

    refuse(_outside(c.out, nodes), "has an output node that does not exist")
    refuse(torch.bincount(c.out, minlength=nodes)[c.out] > 1, "shares its output node; outputs are never merged")
    refuse(_outside(c.given, nodes, none=True), "was sampled under a node that does not exist")
    available = torch.where(c.given < 0, 0, length[c.given.clamp(min=0)] if nodes else 0)
    refuse((c.given_cut < 0) | (c.given_cut > available), "was sampled under more tokens than the node has")
    refuse(_outside(c.parent, count, none=True), "has a parent that does not exist")
    episode = record.streams.episode[c.stream]
    refuse((c.parent >= 0) & (episode[c.parent.clamp(min=0)] != episode), "has a parent in another episode")
    refuse(c.parent == torch.arange(count), "is its own parent")
    refuse(_outside(c.use, len(Use)), "has an unknown use")
    refuse(_outside(c.end, len(End)), "has an unknown end")
    refuse(~c.reward.isfinite(), "has a reward that is not finite")
    for name in ("obs_text", "out_text", "state_text"):
        refuse(_outside(getattr(c, name), len(record.texts), none=True), f"names a text for {name} that does not exist")


def _check_items(record: Record) -> None:
    items, emitted = record.items, int(record.length.sum())
    if len(items.source) != emitted:
        raise DataError(f"record: {len(items.source)} items for the {emitted} tokens that were emitted")
    call = record.call
    for bad, what in (
        (_outside(items.source, len(Source)), "has an item of an unknown source"),
        (
            (items.source == Source.SAMPLED) & ~(items.logp.isfinite() & (items.logp <= SLACK)),
            "has a sampled item whose log-prob is not finite and <= 0",
        ),
        ((items.source != Source.SAMPLED) & ~items.logp.isnan(), "has a log-prob at an item that was not sampled"),
    ):
        rows = bad.nonzero()[:, 0]
        if len(rows):
            item = int(rows[0])
            where = f"{name_of_call(record, int(call[item]))}, token {item - int(record.first[call[item]])}"
            raise DataError(f"record: {where}: {what.removeprefix('has ')} (log-prob {float(items.logp[item])})")


def _check_names(record: Record) -> None:
    """A tree's partitions need different names."""
    names = [*RESERVED, *record.levels, *record.labels]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"record: '{name}' names two partitions of the items; a level or a label has to change")
    for name in (name for table in (record.calls, record.items) for _, name, _ in _flat(table)):
        if "/" in name or name.endswith("."):
            raise DataError(f"record: '{name}' cannot be a column's name: it ends with '.' or contains '/'")
