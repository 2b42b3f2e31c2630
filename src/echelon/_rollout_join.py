"""Taking rollouts apart and putting them together: the work behind `Rollout.episodes` and `Rollout.cat`.

"Old" rows are those of the given rollouts, laid end to end; "new" rows are those of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.rollout import Begin, Decisions, End, Ragged, Rollout, Streams, partition
from echelon.spans import Spans, SpanTree

_NESTED = ("final_observation", "labels")
Column = Any  # Tensor, Ragged or list[str]


def take_episodes(rollout: Rollout, ids: Tensor | Sequence[int]) -> Rollout:
    """See `Rollout.episodes`."""
    ids = torch.as_tensor(ids, dtype=torch.int64, device=rollout.stream.device)
    if len(ids.unique()) != len(ids):
        raise DataError(f"each episode can be taken once, got {ids.tolist()}")
    tree, items = rollout.spans.take("episode", ids)
    kept = rollout.stream[items[tree["stream"].starts]]
    new_stream, new_item = _inverse(kept, len(rollout.streams)), _inverse(items, rollout.size)
    moved = torch.zeros_like(new_stream)
    moved[kept] = tree["stream"].starts - rollout.spans["stream"].starts[kept]

    decisions, new_row = {}, new_item[:0]
    for level, d in rollout.decisions.items():
        rows = (new_stream[d.stream] >= 0).nonzero()[:, 0]
        d = _place(d[rows], new_stream, moved)
        span = _rename(torch.where(d.span >= 0, d.start, -1), tree[level].ids)
        decisions[level] = replace(d, span=span, parent=_rename(d.parent, new_row))
        new_row = _inverse(rows, len(rollout.decisions[level]))
    memory = {}
    for level, (where, states) in rollout.memory.items():
        inside = new_item[where] >= 0
        memory[level] = (new_item[where[inside]], states[inside])
    return Rollout(
        stream=tree["stream"].ids,
        **_items([rollout], items),
        decisions=decisions,
        streams=_stream_rows(rollout.streams, kept, kept),
        spans=tree,
        memory=memory,
        meta=rollout.meta,
    )


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """See `Rollout.cat`."""
    _check_alike(rollouts)
    model = rollouts[0]
    item_at, stream_at = _offsets([r.size for r in rollouts]), _offsets([len(r.streams) for r in rollouts])
    table = _cat_streams([r.streams for r in rollouts])
    chains = _stream_chains(rollouts, table)
    items = torch.argsort(chains.ids[_cat([r.stream for r in rollouts], stream_at)], stable=True)
    new_item = _inverse(items, len(items))
    first = _cat([r.spans["stream"].starts for r in rollouts], item_at)
    streams = Spans.by_key(chains.ids[_cat([r.stream for r in rollouts], stream_at)][items])

    spans = {"stream": streams, "episode": Spans.by_key(table.episode[chains.starts][streams.ids])}
    decisions: dict[str, Decisions] = {}
    new_row = new_item[:0]
    for level in model.levels:
        d = _cat_decisions(rollouts, level, item_at, stream_at)
        parts = _decision_chains(d, level, chains)
        d = _place(d, chains.ids, new_item[first] - first)
        joined = replace(d[parts.starts], stop=d.stop[parts.ends], end=d.end[parts.ends])
        parent = model.spans.parent(level)
        spans[level], span = partition(spans[parent] if parent in decisions else streams, joined.start, joined.stop)
        decisions[level] = replace(joined, span=span, parent=_rename(joined.parent, new_row))
        new_row = parts.ids
    for name in model.spans:
        if name not in spans:
            ids = _cat([r.spans[name].ids for r in rollouts], _offsets([r.spans[name].n for r in rollouts]))
            spans[name] = Spans.by_key(ids[items])
    memory = {}
    for level in model.memory:
        where = new_item[_cat([r.memory[level][0] for r in rollouts], item_at)]
        memory[level] = (where, torch.cat([r.memory[level][1] for r in rollouts]))
    same = all(r.meta == model.meta for r in rollouts)
    return Rollout(
        stream=streams.ids,
        **_items(rollouts, items),
        decisions=decisions,
        streams=_stream_rows(table, chains.starts, chains.ends),
        spans=SpanTree({name: (spans[name], model.spans.parent(name)) for name in model.spans}),
        memory=memory,
        meta=model.meta if same else {"parts": [r.meta for r in rollouts]},
    )


# ---- which rows belong together


def _stream_chains(rollouts: Sequence[Rollout], table: Streams) -> Spans:
    """The old streams, partitioned by the new stream of which they are successive parts."""
    names = list(zip(table.episode.tolist(), table.role, strict=True))
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    chains = Spans.by_key(
        torch.tensor([number[name] for name in names], dtype=torch.int64, device=table.episode.device)
    )
    last_tick = torch.cat([r.spans["stream"].reduce(r.tick, "last") for r in rollouts])
    pause = torch.cat([r.spans["stream"].reduce(r.elapsed, "last") for r in rollouts]) > 0
    follows = chains.position > 0
    ended = follows & chains.shift(table.terminated | table.truncated, -1)
    early = follows & (table.start_tick < chains.shift(last_tick + pause, -1))
    for bad, what in ((ended, "had ended before"), (early, "goes back in time")):
        if bad.any():
            episode, role = names[int(bad.nonzero()[0])]
            raise DataError(
                f"stream '{role}' of episode {episode} is met again but {what}: give the rollouts in time order, and "
                "different episodes different numbers"
            )
    return chains


def _decision_chains(d: Decisions, level: str, chains: Spans) -> Spans:
    """The old decisions of a level, partitioned by the new decision of which they are successive parts."""
    streams = torch.arange(chains.size, device=chains.device)
    before, after = chains.shift(streams, -1, fill=-1), chains.shift(streams, 1, fill=-1)
    row = torch.arange(len(d), device=chains.device)
    is_open = (d.end == End.OPEN) & (after[d.stream] >= 0)
    is_carried = (d.begin == Begin.CARRIED) & (before[d.stream] >= 0)
    open_row = torch.full_like(streams, -1)
    open_row[d.stream[is_open]] = row[is_open]
    whole = row.clone()  # the row at which each decision began
    whole[is_carried] = open_row[before[d.stream[is_carried]]]
    if int(is_open.sum()) != int(is_carried.sum()) or (whole < 0).any():
        raise DataError(f"level '{level}' leaves decisions open that the next batch does not carry, or the reverse")
    while not torch.equal(whole[whole], whole):
        whole = whole[whole]
    return Spans.by_key(whole)


# ---- columns


def _items(rollouts: Sequence[Rollout], items: Tensor) -> dict[str, Any]:
    """Every column of items, of the rollouts end to end, at `items`."""

    def at(columns: Sequence[Column]) -> Column:
        return _pick(_cat(columns), items)

    model = rollouts[0]
    return {
        **{name: at([getattr(r, name) for r in rollouts]) for name in ("tick", "elapsed", "proposed", "executed")},
        "reward": {name: at([r.reward[name] for r in rollouts]) for name in model.reward},
        "scored": {name: at([r.scored[name] for r in rollouts]) for name in model.scored},
        "observation": {name: at([r.observation[name] for r in rollouts]) for name in model.observation},
    }


def _cat_streams(tables: Sequence[Streams]) -> Streams:
    model = tables[0]
    return Streams(
        **{f.name: _cat([getattr(t, f.name) for t in tables]) for f in fields(model) if f.name not in _NESTED},
        final_observation={k: _cat([t.final_observation[k] for t in tables]) for k in model.final_observation},
        labels={k: _cat([t.labels[k] for t in tables]) for k in model.labels},
    )


def _stream_rows(table: Streams, opening: Tensor, closing: Tensor) -> Streams:
    """One stream a row: how it began from `opening`, how it ended from `closing`."""
    began = {
        name: _pick(getattr(table, name), opening) for name in ("episode", "role", "policy_id", "learner", "start_tick")
    }
    return Streams(
        **began,
        terminated=table.terminated[closing],
        truncated=table.truncated[closing],
        final_observation={name: column[closing] for name, column in table.final_observation.items()},
        labels={name: _pick(column, closing) for name, column in table.labels.items()},
    )


def _cat_decisions(rollouts: Sequence[Rollout], level: str, item_at: list[int], stream_at: list[int]) -> Decisions:
    tables = [r.decisions[level] for r in rollouts]
    above = rollouts[0].above(level)
    row_at = _offsets([len(r.decisions[above]) if above else 0 for r in rollouts])
    shifted = [
        replace(
            d,
            stream=d.stream + s,
            start=d.start + i,
            stop=d.stop + i,
            parent=torch.where(d.parent < 0, -1, d.parent + p),
        )
        for d, i, s, p in zip(tables, item_at, stream_at, row_at, strict=True)
    ]
    names = [f.name for f in fields(Decisions) if f.name != "values"]
    return Decisions(
        **{name: torch.cat([getattr(d, name) for d in shifted]) for name in names},
        values={name: torch.cat([d.values[name] for d in tables]) for name in tables[0].values},
    )


def _place(d: Decisions, new_stream: Tensor, moved: Tensor) -> Decisions:
    """The table after streams were renamed and their items moved by that many places."""
    by = moved[d.stream]
    return replace(d, stream=new_stream[d.stream], start=d.start + by, stop=d.stop + by)


def _cat(columns: Sequence[Column], shifts: Sequence[int] | None = None) -> Column:
    """Columns end to end, each raised by its shift."""
    head = columns[0]
    if isinstance(head, Tensor):
        return torch.cat([c + k for c, k in zip(columns, shifts, strict=True)] if shifts else list(columns))
    if isinstance(head, Ragged):
        rows = [c[torch.arange(len(c), device=c.spans.device)] for c in columns]
        lengths = torch.cat([c.spans.lengths for c in rows])
        return Ragged(values=torch.cat([c.values for c in rows]), spans=Spans.from_lengths(lengths))
    return [entry for column in columns for entry in column]


def _pick(column: Column, rows: Tensor) -> Column:
    return [column[k] for k in rows.tolist()] if isinstance(column, list) else column[rows]


def _inverse(rows: Tensor, size: int) -> Tensor:
    """int64 [size]: the new row of each old one, -1 where it is left out."""
    new = torch.full((size,), -1, dtype=torch.int64, device=rows.device)
    new[rows] = torch.arange(len(rows), device=rows.device)
    return new


def _rename(rows: Tensor, new: Tensor) -> Tensor:
    """new[rows], and -1 where rows is -1."""
    renamed = rows.clone()
    renamed[rows >= 0] = new[rows[rows >= 0]]
    return renamed


def _offsets(counts: Sequence[int]) -> list[int]:
    return list(accumulate(counts, initial=0))[:-1]


def _check_alike(rollouts: Sequence[Rollout]) -> None:
    """The names of columns, levels and partitions must agree."""
    if not rollouts:
        raise DataError("no rollouts to join")
    shapes = [
        {
            "levels": {level: sorted(d.values) for level, d in r.decisions.items()},
            "reward channels": sorted(r.reward),
            "observations": sorted(r.observation),
            "partitions": {name: r.spans.parent(name) for name in r.spans},
            "final observations and labels": sorted([*r.streams.final_observation, *r.streams.labels]),
            "memory": sorted(r.memory),
        }
        for r in rollouts
    ]
    for k, shape in enumerate(shapes):
        for what, names in shape.items():
            if names != shapes[0][what]:
                raise DataError(f"rollout {k} cannot be joined to rollout 0: {what} {names} against {shapes[0][what]}")
