"""From the recorder's time-major buffers to a `Rollout`: packed by stream, decisions with their spans and parents.

A *cell* is row × streams + stream of a time-major column. The *timeline* of a level lists the cells in which its streams
acted, stream after stream; for a level as wide as the world it is the timeline of the items themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from echelon.hierarchy.recorder import Buffer, Carried, Closing, LevelLog, Recorder
from echelon.hierarchy.track import Track
from echelon.rollout import Begin, Decisions, End, Rollout, Streams
from echelon.spans import Spans, SpanTree


@dataclass
class Timeline:
    """The cells [M] in which a level's L streams acted, and of each stream: column, length, end and place in the record."""

    cells: np.ndarray  # int64[M]
    offsets: np.ndarray  # int64[L + 1] into cells
    column: np.ndarray  # int64[L] its column in the buffers
    end: np.ndarray  # int64[L] an `End`
    stream: np.ndarray  # int64[L] its stream in the record; of a team, that of the member that lasted longest
    place: np.ndarray  # int64[L] first item of that stream

    def items(self, at: np.ndarray) -> np.ndarray:
        """The items of timeline positions `at`; a stream's end counts as its own, not as the start of the next."""
        line = np.searchsorted(self.offsets, at, side="right") - 1
        return self.place[line] + at - self.offsets[line]


@dataclass
class Found:
    """The decisions of one level and which of them owns each of its cells."""

    decisions: Decisions
    owner: np.ndarray  # int64[rows × S], -1 where nobody acted


def assemble(
    recorder: Recorder, roles: Sequence[str], policy_ids: Sequence[str], learners: Sequence[bool], device: torch.device
) -> Rollout:
    """Build the record of the batch on `device`; `roles`, `policy_ids` and `learners` have one entry an agent of a slot."""
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
        mine = line if track.members is None else _team_timeline(table, line, track, agents)
        above = _decide(log, mine, rows, above)
        cells = line.cells if track.members is None else _cells_of(track, line.cells, recorder.streams)
        _partition(above, track, line, cells, partitions)
        decisions[track.name] = above.decisions
        for index, buffer in enumerate(log.learned):
            name = f"{track.name}.termination" + f".{index}" * (len(log.learned) > 1)
            columns["observation/" + name] = _packed(buffer, rows, torch.from_numpy(cells))
        if log.memory:
            memory[track.name] = _memory(log, mine, rows)
        log.carried = _carried(log, mine, above)
    lengths = np.diff(line.offsets)
    return _rollout(
        columns,
        stream=np.repeat(np.arange(len(lengths)), lengths),
        tick=np.arange(len(line.cells)) - np.repeat(line.offsets[:-1] - table.start_tick, lengths),
        decisions=decisions,
        streams=_streams(table, [column % agents for column in line.column.tolist()], roles, policy_ids, learners),
        spans=SpanTree(partitions),
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
        decisions={name: found.map(lambda x: x.to(device)) for name, found in decisions.items()},
        streams=_streams_to(streams, device),
        spans=spans.to(device),
        memory={name: (items.to(device), states.to(device)) for name, (items, states) in memory.items()},
    )


def _named(columns: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(kind + "/"): value for name, value in columns.items() if name.startswith(kind + "/")}


def _packed(buffer: Buffer, rows: int, perm: Tensor) -> Tensor:
    """The cells `perm` of a time-major column, in that order."""
    assert buffer.data is not None
    return buffer.data[:rows].flatten(0, 1).index_select(0, perm.to(buffer.data.device))


# ---- streams


def _sorted(closings: Sequence[Closing]) -> Closing:
    """All closings as one, with streams in order of episode, then agent; `stop` is an array in it."""
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
        stop=np.concatenate([np.full(len(closing.streams), closing.stop) for closing in closings])[order],
        start=column("start"),
        start_tick=column("start_tick"),
        episode=episode[order],
        terminated=column("terminated"),
        truncated=column("truncated"),
        final={name: value[pick.to(value.device)] for name, value in final.items()},
        labels={name: np.concatenate([closing.labels[name] for closing in closings])[order] for name in first.labels},
    )


def _timeline(table: Closing, width: int) -> Timeline:
    lengths = table.stop - table.start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    cells = np.repeat(table.start * width + table.streams, lengths) + within * width
    end = np.where(table.terminated, int(End.TERMINATED), np.where(table.truncated, int(End.TRUNCATED), int(End.OPEN)))
    return Timeline(cells, offsets, table.streams, end, np.arange(len(lengths)), offsets[:-1])


def _team_timeline(table: Closing, line: Timeline, track: Track, agents: int) -> Timeline:
    """The timeline of a level above teams: each team goes by the member that lasted longest."""
    team = track.of_bottom[table.streams]
    order = np.lexsort((table.streams, -table.stop, team, table.episode))
    changes = (np.diff(table.episode[order]) != 0) | (np.diff(team[order]) != 0)
    lead = order[np.concatenate([[True], changes])]
    lengths = table.stop[lead] - table.start[lead]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    cells = np.repeat(table.start[lead] * track.streams + team[lead], lengths) + within * track.streams
    return Timeline(cells, offsets, team[lead], line.end[lead], lead, line.place[lead])


def _cells_of(track: Track, cells: np.ndarray, width: int) -> np.ndarray:
    """Of each cell of the items, the cell of a level above teams that it lies in."""
    row, column = np.divmod(cells, width)
    return row * track.streams + track.of_bottom[column]


def _trunk(table: Closing) -> dict[str, tuple[Spans, str | None]]:
    lengths = table.stop - table.start
    _, first = np.unique(table.episode, return_index=True)
    episodes = np.add.reduceat(lengths, first)
    return {
        "episode": (Spans.from_lengths(torch.from_numpy(episodes)), None),
        "stream": (Spans.from_lengths(torch.from_numpy(lengths)), "episode"),
    }


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


def _streams_to(streams: Streams, device: torch.device) -> Streams:
    return Streams(
        episode=streams.episode.to(device),
        role=streams.role,
        policy_id=streams.policy_id,
        learner=streams.learner.to(device),
        terminated=streams.terminated.to(device),
        truncated=streams.truncated.to(device),
        start_tick=streams.start_tick.to(device),
        final_observation={name: value.to(device) for name, value in streams.final_observation.items()},
        labels={name: x.to(device) if isinstance(x, Tensor) else x for name, x in streams.labels.items()},
    )


# ---- decisions


def _decide(log: LevelLog, line: Timeline, rows: int, above: Found | None) -> Found:
    """Find the decisions of a level from the ticks at which they were due."""
    track, cells, size = log.track, line.cells, len(line.cells)
    first = np.zeros(size, dtype=bool)
    first[line.offsets[:-1]] = True
    if track.always:
        codes, due = None, np.ones(size, dtype=bool)
    else:
        assert log.codes.data is not None
        codes = log.codes.data[:rows].numpy().ravel()[cells]
        due = codes != 0
    starts = due | first
    at = np.flatnonzero(starts)
    acted = np.zeros(rows * track.streams, dtype=bool)
    acted[cells[due]] = True
    source = np.cumsum(acted)[cells[at]] - 1
    lines = np.searchsorted(line.offsets, at, side="right") - 1
    carried = ~due[at]
    source[carried] = log.action.size + line.column[lines[carried]]
    owner = np.full(rows * track.streams, -1, dtype=np.int64)
    owner[cells] = np.cumsum(starts) - 1
    stop = np.append(at[1:], size)
    start_item = line.place[lines] + at - line.offsets[lines]
    parts = {
        "at": at,
        "lines": lines,
        "start": start_item,
        "stop": start_item + stop - at,
        "begin": np.where(carried, int(Begin.CARRIED), int(Begin.DECIDED)),
        "end": _ends(track, line, codes, stop, first, lines),
        "source": source,
    }
    owner = _insert_empties(log, line, rows, parts, owner)
    action, log_prob, values = _emitted(log, parts["source"])
    return Found(
        Decisions(
            stream=torch.from_numpy(line.stream[parts["lines"]]),
            start=torch.from_numpy(parts["start"]),
            stop=torch.from_numpy(parts["stop"]),
            span=torch.full((len(parts["start"]),), -1),
            begin=torch.from_numpy(parts["begin"]),
            end=torch.from_numpy(parts["end"]),
            action=action,
            log_prob=log_prob,
            parent=torch.from_numpy(_parents(track, cells[parts["at"]], above)),
            values=values,
        ),
        owner,
    )


def _ends(
    track: Track, line: Timeline, codes: np.ndarray | None, stop: np.ndarray, first: np.ndarray, lines: np.ndarray
) -> np.ndarray:
    """Why each decision ended: the code of the tick after it, or how its stream ended, or stands at the batch's end."""
    pending = np.full(len(line.column), int(End.TIMEOUT)) if track.codes is None else track.codes[line.column]
    final = np.where(line.end == int(End.OPEN), pending, line.end)[lines].astype(np.int64)
    inside = stop < len(first)
    inside[inside] = ~first[stop[inside]]
    final[inside] = int(End.TIMEOUT) if codes is None else codes[stop[inside]]
    return final


def _parents(track: Track, cells: np.ndarray, above: Found | None) -> np.ndarray:
    if above is None or track.parent is None:
        return np.full(len(cells), -1, dtype=np.int64)
    row, column = np.divmod(cells, track.streams)
    if track.parent_index is not None:
        column = track.parent_index.cpu().numpy()[column]
    return above.owner[row * track.parent.streams + column]


def _insert_empties(
    log: LevelLog, line: Timeline, rows: int, parts: dict[str, np.ndarray], owner: np.ndarray
) -> np.ndarray:
    """Put the decisions that took no time before those made at the same cell; return the owners renumbered."""
    if not log.empties:
        return owner
    where = np.full(rows * log.track.streams, -1, dtype=np.int64)
    where[line.cells] = np.arange(len(line.cells))
    at = np.concatenate([where[empty.row * log.track.streams + empty.streams] for empty in log.empties])
    lines = np.searchsorted(line.offsets, at, side="right") - 1
    item = line.place[lines] + at - line.offsets[lines]
    kept = log.action.size + (0 if log.carried is None else log.track.streams)
    more = {
        "at": at,
        "lines": lines,
        "start": item,
        "stop": item,
        "begin": np.full(len(at), int(Begin.DECIDED)),
        "end": np.full(len(at), int(End.OPTION)),
        "source": kept + np.arange(len(at)),
    }
    count = len(parts["at"])
    rank = np.concatenate([np.full(count, len(at)), np.arange(len(at))])  # empties in order, then the lasting one
    order = np.lexsort((rank, np.concatenate([parts["at"], at])))
    for name in parts:
        parts[name] = np.concatenate([parts[name], more[name]])[order]
    renumbered = np.empty(len(order), dtype=np.int64)
    renumbered[order] = np.arange(len(order))
    return np.where(owner >= 0, renumbered[owner], -1)


def _emitted(log: LevelLog, source: np.ndarray) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Gather action, log-probability and values: rows of the buffers, then of what was carried, then of the empties."""
    carried, empties = log.carried, [empty.decision for empty in log.empties]
    rows = torch.from_numpy(source)

    def gather(buffer: Buffer, kept: Tensor | None, extra: list[Tensor]) -> Tensor:
        assert buffer.data is not None
        pieces = [buffer.data[: buffer.size], *([] if kept is None else [kept]), *extra]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.index_select(0, rows.to(whole.device))

    action = gather(log.action, carried and carried.action, [decision.action for decision in empties])
    if log.log_prob.data is None:
        log_prob = torch.full((len(source),), torch.nan)
    else:
        log_prob = gather(log.log_prob, carried and carried.log_prob, [d.log_prob for d in empties])
    values = {
        name: gather(buffer, carried and carried.values[name], [decision.values[name] for decision in empties])
        for name, buffer in log.values.items()
    }
    return action, log_prob, values


def _partition(
    found: Found, track: Track, line: Timeline, cells: np.ndarray, partitions: dict[str, tuple[Spans, str | None]]
) -> None:
    """Add a level's partition: the segments of each stream under one of its decisions.

    A level above teams also gets "<level>/joint", whose spans hold the items of all members under one decision.
    """
    owner = found.owner[cells]
    starts = np.ones(len(owner), dtype=bool)
    starts[1:] = np.diff(owner) != 0
    starts[line.offsets[:-1]] = True
    spans = Spans.from_starts(torch.from_numpy(starts))
    decisions = found.decisions
    lasting = decisions.stop > decisions.start
    decisions.span[lasting] = spans.ids[decisions.start[lasting]]
    partitions[track.name] = (spans, track.parent.name if track.parent else "stream")
    if track.members is not None:
        partitions[track.name + "/joint"] = (Spans.by_key(torch.from_numpy(owner)), "episode")


def _carried(log: LevelLog, line: Timeline, found: Found) -> Carried | None:
    """The decisions that are open where the batch ends, to be delivered again with the next one."""
    lines = np.flatnonzero(line.end == int(End.OPEN))
    if log.track.always or not len(lines):
        return None
    last = torch.from_numpy(found.owner[line.cells[line.offsets[lines + 1] - 1]])
    column = torch.from_numpy(line.column[lines])
    decisions = found.decisions

    def spread(x: Tensor) -> Tensor:
        whole = x.new_zeros((log.track.streams, *x.shape[1:]))
        whole[column.to(x.device)] = x[last.to(x.device)]
        return whole

    log_prob = None if log.log_prob.data is None else spread(decisions.log_prob)
    return Carried(spread(decisions.action), log_prob, {name: spread(x) for name, x in decisions.values.items()})


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
