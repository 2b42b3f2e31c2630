"""From the recorder's time-major buffers to a `Rollout`: packed by stream, decisions with their spans and parents.

A *cell* is row × streams + stream of a time-major column. The *timeline* of a level lists the cells in which its
streams acted, stream after stream; for a level as wide as the world it is the timeline of the items themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from echelon.hierarchy.recorder import Buffer, Carried, Closing, LevelLog, Recorder
from echelon.hierarchy.track import Track
from echelon.rollout import Begin, Decisions, End, Rollout, Streams, partition
from echelon.spans import Spans, SpanTree

Record = TypeVar("Record", Decisions, Streams)


@dataclass
class Timeline:
    """The cells [M] in which a level's L streams acted; of each stream its column, end and place in the record."""

    cells: np.ndarray  # int64[M]
    line: np.ndarray  # int64[M] the stream (0..L-1) of each cell
    offsets: np.ndarray  # int64[L + 1] into cells
    column: np.ndarray  # int64[L] its column in the buffers
    end: np.ndarray  # int64[L] an `End`
    stream: np.ndarray  # int64[L] its stream in the record; of a team, that of the member that lasted longest
    place: np.ndarray  # int64[L] first item of that stream

    def items(self, at: np.ndarray) -> np.ndarray:
        """The items at which positions `at` of the timeline lie."""
        return at if self.place is self.offsets else self.place[self.line[at]] + at - self.offsets[self.line[at]]


@dataclass
class Found:
    """The decisions of one level, and which of them owns each of its cells (None if nobody asks)."""

    decisions: Decisions
    at: np.ndarray  # int64[D] where in the timeline they begin
    owner: np.ndarray | None  # int64[rows × S], -1 where nobody acted


def assemble(
    recorder: Recorder, roles: Sequence[str], policy_ids: Sequence[str], learners: Sequence[bool], device: torch.device
) -> Rollout:
    """Build the record of the batch on `device`; the other arguments have one entry an agent of a slot."""
    rows, agents = recorder.row, len(roles)
    table = _sorted(recorder.closings)
    line = _timeline(table, recorder.streams)
    perm = torch.from_numpy(line.cells)
    columns = {name: _packed(buffer, rows, perm) for name, buffer in recorder.columns.items()}
    partitions = _trunk(table)
    decisions: dict[str, Decisions] = {}
    memory: dict[str, tuple[Tensor, Tensor]] = {}
    above: Found | None = None
    for log in recorder.logs if recorder.on else ():
        track = log.track
        mine = line if track.members is None else _team_timeline(table, line, track)
        above = _decide(log, mine, rows, above, table)
        cells = line.cells if track.members is None else _cells_of(track, line.cells, recorder.streams)
        _partition(above, track, len(line.cells), partitions)
        decisions[track.name] = above.decisions
        for index, buffer in enumerate(log.learned):
            name = f"{track.name}.termination" + f".{index}" * (len(log.learned) > 1)
            columns["observation/" + name] = _packed(buffer, rows, torch.from_numpy(cells))
        if log.memory:
            memory[track.name] = _memory(log, mine, rows)
        log.carried = _carried(log, mine, above, table)
    return _rollout(
        columns,
        stream=line.line,
        tick=np.arange(len(line.cells)) - (line.offsets[:-1] - table.start_tick)[line.line],
        decisions=decisions,
        streams=_streams(table, [column % agents for column in line.column.tolist()], roles, policy_ids, learners),
        spans=SpanTree(partitions, checked=False),  # as the rollout, see below
        memory=memory,
        device=device,
    )


def _rollout(
    columns: dict[str, Tensor],
    stream: np.ndarray,
    tick: np.ndarray,
    decisions: dict[str, Decisions],
    streams: Streams,
    spans: SpanTree,
    memory: dict[str, tuple[Tensor, Tensor]],
    device: torch.device,
) -> Rollout:
    """Put the columns where they belong; `columns` are named "kind" or "kind/name"."""
    reward = {key: value.float().to(device) for key, value in _named(columns, "reward").items()}
    proposed = columns.get("proposed")
    if proposed is None and decisions:  # the bottom level decides on every tick: its decisions are the actions
        bottom = list(decisions.values())[-1]
        proposed = bottom.action if len(bottom) == len(stream) else bottom.action[bottom.span >= 0]
    if proposed is None:
        proposed = torch.zeros(len(stream), 0)
    elapsed = columns.get("elapsed")
    return Rollout(
        stream=torch.from_numpy(stream).to(device),
        tick=torch.from_numpy(tick).to(device),
        elapsed=torch.ones(len(stream), device=device) if elapsed is None else elapsed.float().to(device),
        reward=reward,
        scored={key: value.isfinite() for key, value in reward.items()},
        observation={key: value.to(device) for key, value in _named(columns, "observation").items()},
        proposed=proposed.to(device),
        executed=columns.get("executed", proposed).to(device),
        decisions={name: _moved(found, device) for name, found in decisions.items()},
        streams=_moved(streams, device),
        spans=spans if device.type == "cpu" else spans.to(device),
        memory={name: (items.to(device), states.to(device)) for name, (items, states) in memory.items()},
        checked=False,  # a twentieth of the time of a run with small networks; the tests check what comes out of here
    )


def _named(columns: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(kind + "/"): value for name, value in columns.items() if name.startswith(kind + "/")}


def _packed(buffer: Buffer, rows: int, perm: Tensor) -> Tensor:
    """The cells `perm` of a time-major column, in that order."""
    return buffer.data[:rows].flatten(0, 1).index_select(0, perm.to(buffer.data.device))


# ---- streams


def _sorted(closings: Sequence[Closing]) -> Closing:
    """All closings as one, with streams in order of episode, then agent."""
    if len(closings) == 1 and (closings[0].episode[1:] > closings[0].episode[:-1]).all():
        return closings[0]
    streams = np.concatenate([closing.streams for closing in closings])
    episode = np.concatenate([closing.episode for closing in closings])
    order = np.lexsort((streams, episode))
    pick = torch.from_numpy(order)

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(closing, name) for closing in closings])[order]

    first = closings[0]
    final = {name: torch.cat([closing.final[name] for closing in closings]) for name in first.final}
    return Closing(
        streams=streams[order],
        start=column("start"),
        stop=column("stop"),
        start_tick=column("start_tick"),
        episode=episode[order],
        terminated=column("terminated"),
        truncated=column("truncated"),
        final={name: value[pick.to(value.device)] for name, value in final.items()},
        labels={name: np.concatenate([closing.labels[name] for closing in closings])[order] for name in first.labels},
    )


def _timeline(table: Closing, width: int) -> Timeline:
    end = np.where(table.terminated, int(End.TERMINATED), np.where(table.truncated, int(End.TRUNCATED), int(End.OPEN)))
    line = _lay_out(table.start, table.stop - table.start, table.streams, width)
    return Timeline(*line, table.streams, end, np.arange(len(end)), line[2])


def _team_timeline(table: Closing, line: Timeline, track: Track) -> Timeline:
    """The timeline of a level above teams: each team goes by the member that lasted longest."""
    team = track.of_bottom[table.streams]
    order = np.lexsort((table.streams, line.end != int(End.OPEN), -table.stop, team, table.episode))
    changes = (np.diff(table.episode[order]) != 0) | (np.diff(team[order]) != 0)
    lead = order[np.concatenate([[True], changes])]
    laid = _lay_out(table.start[lead], (table.stop - table.start)[lead], team[lead], track.streams)
    return Timeline(*laid, team[lead], line.end[lead], lead, line.place[lead])


def _lay_out(
    start: np.ndarray, lengths: np.ndarray, column: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, stream of each cell and offsets of streams that act in `lengths` rows of their column from row `start`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    line = np.repeat(np.arange(len(lengths)), lengths)
    first = start * width + column - offsets[:-1] * width
    return first[line] + np.arange(offsets[-1]) * width, line, offsets


def _cells_of(track: Track, cells: np.ndarray, width: int) -> np.ndarray:
    """Of each cell of the items, the cell of a level above teams that it lies in."""
    row, column = np.divmod(cells, width)
    return row * track.streams + track.of_bottom[column]


def _trunk(table: Closing) -> dict[str, tuple[Spans, str | None]]:
    lengths = table.stop - table.start
    first = np.flatnonzero(np.concatenate([[True], table.episode[1:] != table.episode[:-1]]))
    stream = episode = Spans.from_lengths(torch.from_numpy(lengths))
    if len(first) < len(lengths):
        episode = Spans.from_lengths(torch.from_numpy(np.add.reduceat(lengths, first)))
    return {"episode": (episode, None), "stream": (stream, "episode")}


def _streams(
    table: Closing, agent: Sequence[int], roles: Sequence[str], policy_ids: Sequence[str], learners: Sequence[bool]
) -> Streams:
    return Streams(
        episode=torch.from_numpy(table.episode),
        role=[roles[a] for a in agent],
        policy_id=[policy_ids[a] for a in agent],
        learner=torch.tensor([learners[a] for a in agent]),
        terminated=torch.from_numpy(table.terminated),
        truncated=torch.from_numpy(table.truncated & ~table.terminated),
        start_tick=torch.from_numpy(table.start_tick),
        final_observation=table.final,
        labels={name: _label(values) for name, values in table.labels.items()},
    )


def _label(values: np.ndarray) -> Tensor | list[str]:
    if values.dtype.kind not in "biuf":
        return [str(value) for value in values.tolist()]
    return torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values)


def _moved(record: Record, device: torch.device) -> Record:
    """Decisions or streams with every column on `device`."""
    if device.type == "cpu":
        return record

    def move(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: move(value) for name, value in x.items()}
        return x.to(device) if isinstance(x, Tensor) else x

    return replace(record, **{f.name: move(getattr(record, f.name)) for f in fields(record)})


# ---- decisions


def _decide(log: LevelLog, line: Timeline, rows: int, above: Found | None, table: Closing) -> Found:
    """Find the decisions of a level from the ticks at which they were due."""
    track, cells = log.track, line.cells
    codes = None if track.always else log.codes.first(rows).numpy().ravel()[cells]
    at, source, carried = _segments(log, line, rows, codes)
    stop = np.append(at[1:], len(cells))
    start = line.items(at)
    parts = {
        "at": at,
        "stream": line.stream[line.line[at]],
        "start": start,
        "stop": start + stop - at,
        "begin": np.where(carried, int(Begin.CARRIED), int(Begin.DECIDED)),
        "end": _ends(track, line, codes, at, stop),
        "source": source,
    }
    owner: np.ndarray | None = None
    if track.below is not None or track.members is not None:
        owner = np.full(rows * track.streams, -1, dtype=np.int64)
        owner[cells] = np.repeat(np.arange(len(at)), stop - at)
    if track.members is not None and log.carried is not None:
        _keep_lead(log.carried, line, table, parts)
    if log.empties:
        owner = _insert_empties(log, line, rows, parts, owner)
    action, log_prob, values = _emitted(log, parts["source"])
    decisions = Decisions(
        stream=torch.from_numpy(parts["stream"]),
        start=torch.from_numpy(parts["start"]),
        stop=torch.from_numpy(parts["stop"]),
        span=torch.full((len(parts["start"]),), -1),
        begin=torch.from_numpy(parts["begin"]),
        end=torch.from_numpy(parts["end"]),
        action=action,
        log_prob=log_prob,
        parent=torch.from_numpy(_parents(track, cells[parts["at"]], above)),
        values=values,
    )
    return Found(decisions, parts["at"], owner)


def _segments(
    log: LevelLog, line: Timeline, rows: int, codes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where in the timeline lasting decisions begin, the row of `_emitted` that holds each, and which were carried."""
    track, cells = log.track, line.cells
    acted = np.zeros(rows * track.streams, dtype=bool)
    if codes is None:
        at, carried = np.arange(len(cells)), np.zeros(len(cells), dtype=bool)
        if log.action.size == len(acted):  # nobody was idle: decisions are packed as the cells are
            return at, cells, carried
        acted[cells] = True
        return at, (np.cumsum(acted) - 1)[cells], carried
    due = codes != 0
    acted[cells[due]] = True
    starts = due.copy()
    starts[line.offsets[:-1]] = True
    at = np.flatnonzero(starts)
    carried = ~due[at]
    source = (np.cumsum(acted) - 1)[cells[at]]
    source[carried] = log.action.size + line.column[line.line[at[carried]]]
    return at, source, carried


def _ends(track: Track, line: Timeline, codes: np.ndarray | None, at: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Why each decision ended: the code of the tick after it, or how its stream ended, or stands at the batch's end."""
    following = np.minimum(stop, len(line.cells) - 1)
    ends = np.full(len(at), int(End.TIMEOUT)) if codes is None else codes[following].astype(np.int64)
    pending = int(End.TIMEOUT) if track.codes is None else track.codes[line.column].astype(np.int64)
    last = np.searchsorted(at, line.offsets[1:] - 1, side="right") - 1  # of each stream
    ends[last] = np.where(line.end == int(End.OPEN), pending, line.end)
    return ends


def _keep_lead(carried: Carried, line: Timeline, table: Closing, parts: dict[str, np.ndarray]) -> None:
    """Leave carried team decisions on the time line where they began, though its member did not last longest here."""
    rows = np.flatnonzero(parts["begin"] == int(Begin.CARRIED))
    lengths = table.stop - table.start
    stream_of = np.zeros(int(table.streams.max()) + 1, dtype=np.int64)  # of a column, what goes on in it
    going = np.flatnonzero(table.start == 0)
    stream_of[table.streams[going]] = going
    stream = stream_of[carried.lead[line.column[line.line[parts["at"][rows]]]]]
    over = table.terminated[stream] | table.truncated[stream]
    kept = ~(over & (parts["end"][rows] == int(End.OPEN)))
    rows, stream = rows[kept], stream[kept]
    first = np.cumsum(lengths) - lengths
    held = np.minimum(parts["stop"][rows] - parts["start"][rows], lengths[stream])
    parts["stream"][rows], parts["start"][rows], parts["stop"][rows] = stream, first[stream], first[stream] + held


def _parents(track: Track, cells: np.ndarray, above: Found | None) -> np.ndarray:
    if above is None or above.owner is None or track.parent is None:
        return np.full(len(cells), -1, dtype=np.int64)
    if track.parent_rows is None:
        return above.owner[cells]
    row, column = np.divmod(cells, track.streams)
    return above.owner[row * track.parent.streams + track.parent_rows[column]]


def _insert_empties(
    log: LevelLog, line: Timeline, rows: int, parts: dict[str, np.ndarray], owner: np.ndarray | None
) -> np.ndarray | None:
    """Put the decisions that took no time before those made at the same cell; return the owners renumbered."""
    where = np.full(rows * log.track.streams, -1, dtype=np.int64)
    where[line.cells] = np.arange(len(line.cells))
    at = np.concatenate([where[empty.row * log.track.streams + empty.streams] for empty in log.empties])
    kept = log.action.size + (0 if log.carried is None else log.track.streams)
    more = {
        "at": at,
        "stream": line.stream[line.line[at]],
        "start": line.items(at),
        "stop": line.items(at),
        "begin": np.full(len(at), int(Begin.DECIDED)),
        "end": np.full(len(at), int(End.OPTION)),
        "source": kept + np.arange(len(at)),
    }
    lasting = len(parts["at"])
    rank = np.concatenate([np.full(lasting, len(at)), np.arange(len(at))])  # empties in order, then the lasting one
    order = np.lexsort((rank, np.concatenate([parts["at"], at])))
    for name in parts:
        parts[name] = np.concatenate([parts[name], more[name]])[order]
    renumbered = np.empty(len(order), dtype=np.int64)
    renumbered[order] = np.arange(len(order))
    return None if owner is None else np.where(owner >= 0, renumbered[owner], -1)


def _emitted(log: LevelLog, source: np.ndarray) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Gather action, log-probability and values: rows of the buffers, then of what was carried, then of the empties."""
    carried, empties = log.carried, [empty.decision for empty in log.empties]
    rows = torch.from_numpy(source)

    def gather(buffer: Buffer, kept: Tensor | None, extra: list[Tensor]) -> Tensor:
        pieces = [*([] if kept is None else [kept]), *extra]
        if buffer.size or not pieces:  # one that nothing was ever written to has no type yet
            pieces.insert(0, buffer.data[: buffer.size])
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.index_select(0, rows.to(whole.device))

    action = gather(log.action, carried.action if carried else None, [decision.action for decision in empties])
    if log.log_prob is None:
        log_prob = torch.full((len(source),), torch.nan)
    else:
        extra = [decision.log_prob for decision in empties if decision.log_prob is not None]
        log_prob = gather(log.log_prob, carried.log_prob if carried else None, extra)
    values = {
        name: gather(buffer, carried.values[name] if carried else None, [decision.values[name] for decision in empties])
        for name, buffer in log.values.items()
    }
    return action, log_prob, values


def _partition(found: Found, track: Track, size: int, partitions: dict[str, tuple[Spans, str | None]]) -> None:
    """Add a level's partition: the segments of each stream under one of its decisions.

    A team's decision is entered on the time line of one member; there the others' streams stay whole (see `owners`).
    """
    decisions, parent = found.decisions, track.parent.name if track.parent else "stream"
    if track.members is not None:
        spans, decisions.span = partition(partitions[parent][0], decisions.start, decisions.stop)
        partitions[track.name] = (spans, parent)
        return
    lasting = decisions.stop > decisions.start
    starts, outer = decisions.start[lasting], partitions[parent][0]
    same = len(starts) == outer.n  # of two partitions, the one that refines the other has more spans, or is it
    partitions[track.name] = (outer if same else Spans(torch.cat([starts, torch.tensor([size])])), parent)
    decisions.span[lasting] = torch.arange(len(starts))


def _carried(log: LevelLog, line: Timeline, found: Found, table: Closing) -> Carried | None:
    """The decisions that are open where the batch ends, to be delivered again with the next one."""
    lines = np.flatnonzero(line.end == int(End.OPEN))
    if log.track.always or not len(lines):
        return None
    last = torch.from_numpy(np.searchsorted(found.at, line.offsets[lines + 1] - 1, side="right") - 1)
    column = torch.from_numpy(line.column[lines])
    decisions = found.decisions

    def spread(x: Tensor) -> Tensor:
        whole = x.new_zeros((log.track.streams, *x.shape[1:]))
        whole[column.to(x.device)] = x[last.to(x.device)]
        return whole

    values = {name: spread(x) for name, x in decisions.values.items()}
    lead = np.zeros(log.track.streams, dtype=np.int64)
    lead[line.column[lines]] = table.streams[decisions.stream[last].numpy()]
    return Carried(spread(decisions.action), spread(decisions.log_prob), values, lead)


def _memory(log: LevelLog, line: Timeline, rows: int) -> tuple[Tensor, Tensor]:
    """The first items of unrolls and the memory with which their observation was met."""
    where = np.full((rows + 1) * log.track.streams, -1, dtype=np.int64)  # the row after the last is not in this batch
    where[line.cells] = np.arange(len(line.cells))
    items, states = [], []
    for row, streams, memory in log.memory:
        at = where[row * log.track.streams + streams]
        items.append(line.items(at[at >= 0]))
        states.append(memory[torch.from_numpy(at >= 0)])
    return torch.from_numpy(np.concatenate(items)), torch.cat(states)
