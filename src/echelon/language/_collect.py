"""From what episodes wrote down, in any sequence, to sorted tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.language._assemble import Loose
from echelon.language._entries import CallRow, EpisodeBuilder, StreamRow
from echelon.language._tables import MISSING, Calls, Episodes, Items, Streams

_INT, _FLOAT = np.int64, np.float32
_PLAIN = ("policy", "use", "end", "valid", "temperature", "seed", "started", "finished")
_DTYPES = {"valid": np.bool_, "temperature": _FLOAT, "started": np.float64, "finished": np.float64}


def loose(episodes: Mapping[int, EpisodeBuilder]) -> Loose:
    """Tables in the sequence (group, uid), stream, time, with references between rows instead of numbers given out."""
    builders = sorted(episodes.values(), key=lambda builder: (builder.group, builder.uid))
    texts, agents, kinds = _Names(), _Names(), _Names()
    streams: list[tuple[int, StreamRow, int]] = []  # (episode, row, parent call)
    calls: list[tuple[int, CallRow, int]] = []  # (stream, row, parent call)
    numbers: dict[int, list[int]] = {}  # by uid: the place in the episode of each call as it was numbered
    for episode, builder in enumerate(builders):
        rank, order = _sequence(builder)
        first_stream, first_call = len(streams), len(calls)
        place = [0] * len(order)
        for row, number in enumerate(order):
            place[number] = row
        numbers[builder.uid] = place
        for stream in sorted(builder.streams, key=lambda stream: stream.order):
            streams.append((episode, stream, _placed(stream.parent_call, place, first_call)))
        for number in order:
            call = builder.calls[number]
            calls.append((first_stream + rank[call.stream], call, _placed(call.plain["parent"], place, first_call)))
    rows = [row for _, row, _ in calls]
    return Loose(
        episodes=_episodes(builders, numbers, texts, kinds),
        streams=Streams(
            episode=_column(episode for episode, _, _ in streams),
            agent=_column(agents[row.agent] for _, row, _ in streams),
            parent_call=_column(parent for _, _, parent in streams),
            learner=_column((row.learner for _, row, _ in streams), np.bool_),
        ),
        calls=_calls(calls, texts),
        items=_items(rows),
        contexts=[row.context for row in rows],
        givens=[row.given for row in rows],
        outputs=[row.output for row in rows],
        texts=list(texts.numbers),
        agents=list(agents.numbers),
        kinds=list(kinds.numbers),
    )


class _Names:
    """Numbers strings as they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))


def _sequence(builder: EpisodeBuilder) -> tuple[dict[int, int], list[int]]:
    """(place of each stream, numbers of the calls sorted by stream and order)."""
    by_order = sorted(range(len(builder.streams)), key=lambda stream: builder.streams[stream].order)
    rank = {stream: place for place, stream in enumerate(by_order)}
    keys = [(rank[call.stream], call.order) for call in builder.calls]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for before, after in pairwise(order):
        if keys[before] == keys[after]:
            raise DataError(f"{builder}: calls {before} and {after} of one stream have the same order {keys[after][1]}")
    return rank, order


def _placed(number: int, place: list[int], first: int) -> int:
    return first + place[number] if number >= 0 else -1


def _episodes(
    builders: list[EpisodeBuilder], numbers: Mapping[int, list[int]], texts: _Names, kinds: _Names
) -> Episodes:
    origins = [_origin(builder, numbers) for builder in builders]
    return Episodes(
        uid=_column(b.uid for b in builders),
        group=_column(b.group for b in builders),
        task=_column(-1 if b.task is None else texts[b.task] for b in builders),
        kind=_column(kinds[b.kind] for b in builders),
        seed=_column(b.seed for b in builders),
        terminated=_column((b.terminated for b in builders), np.bool_),
        truncated=_column((b.truncated for b in builders), np.bool_),
        fault=_column(b.fault for b in builders),
        origin_uid=_column(uid for uid, _, _ in origins),
        origin_call=_column(call for _, call, _ in origins),
        origin_items=_column(kept for _, _, kept in origins),
    )


def _origin(builder: EpisodeBuilder, numbers: Mapping[int, list[int]]) -> tuple[int, int, int]:
    """With the call's place in its episode, where that was collected here too."""
    uid, call, kept = builder.origin
    if uid not in numbers or call < 0:
        return uid, call, kept
    if call >= len(numbers[uid]):
        raise DataError(f"{builder}: restarts in call {call} of episode {uid}, which has {len(numbers[uid])} calls")
    return uid, numbers[uid][call], kept


def _calls(calls: list[tuple[int, CallRow, int]], texts: _Names) -> Calls:
    rows = [row for _, row, _ in calls]
    columns: dict[str, Any] = {
        name: _column((row.plain[name] for row in rows), _DTYPES.get(name, _INT)) for name in _PLAIN
    }
    for name in ("obs_text", "out_text", "state_text"):
        columns[name] = _column(texts[row.texts[name]] if name in row.texts else -1 for row in rows)
    for name in ("out", "given", "given_cut"):  # known once there is a forest
        columns[name] = torch.full((len(rows),), -1, dtype=torch.int64)
    for name, dtype in (("begin", np.bool_), ("label", _INT), ("part", _FLOAT), ("value", _FLOAT)):
        columns[name] = _sparse([getattr(row, name) for row in rows], MISSING[name], dtype)
    return Calls(
        stream=_column(stream for stream, _, _ in calls),
        parent=_column(parent for _, _, parent in calls),
        state=_column(row.state for row in rows),
        reward=_column((row.reward for row in rows), _FLOAT),
        **columns,
    )


def _items(rows: list[CallRow]) -> Items:
    sizes = [len(row.output) for row in rows]
    return Items(
        source=_packed([row.source for row in rows], _INT),
        logp=_packed([row.logp for row in rows], _FLOAT),
        label=_packed_groups([row.token_label for row in rows], sizes, MISSING["label"], _INT),
        value=_packed_groups([row.token_value for row in rows], sizes, MISSING["value"], _FLOAT),
    )


def _column(values: Iterable[Any], dtype: Any = _INT) -> Tensor:
    return torch.from_numpy(np.array(list(values), dtype=dtype))


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in row})


def _sparse(rows: list[dict[str, Any]], missing: Any, dtype: Any) -> dict[str, Tensor]:
    return {name: _column((row.get(name, missing) for row in rows), dtype) for name in _names(rows)}


def _packed(parts: list[np.ndarray], dtype: Any) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=dtype), *parts]))


def _packed_groups(rows: list[dict[str, np.ndarray]], sizes: list[int], missing: Any, dtype: Any) -> dict[str, Tensor]:
    packed = {}
    for name in _names(rows):
        parts = (row.get(name, np.full(size, missing, dtype)) for row, size in zip(rows, sizes, strict=True))
        packed[name] = _packed(list(parts), dtype)
    return packed
