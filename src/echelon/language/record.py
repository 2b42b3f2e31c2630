"""The record of what language agents saw and emitted: a forest of contexts and a table of calls.

A program hands an engine token ids; the record finds what they share with what it holds. Items are exactly the tokens
that agents emitted, so that no loss can fall on anything else. Episodes are sorted by (group, uid), and what belongs
together is contiguous: calls of a stream, streams of an episode, episodes of a group.

Legend: P pool tokens, K nodes, E episodes, S streams, C calls, N items.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon import columns as disk
from echelon.errors import DataError
from echelon.language import _tables
from echelon.language._assemble import Loose, assemble, join, ragged, take_episodes
from echelon.language._checks import check, check_written, name_of_call
from echelon.language._collect import loose
from echelon.language._entries import EpisodeBuilder, state_key
from echelon.language._tables import Calls, Episodes, Items, Nodes, Streams, Texts, Use
from echelon.language.engine import End, Source
from echelon.spans import Spans, SpanTree

FORMAT = "echelon.record"

__all__ = ["EpisodeBuilder", "Record", "RecordBuilder", "Use", "state_key"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """What happened; checked when made. Nothing in it changes: `write` gives a record with further columns."""

    tokens: Tensor  # int32 [P], the pool: every text of a node once
    nodes: Nodes
    episodes: Episodes
    streams: Streams
    calls: Calls
    items: Items
    texts: Texts  # for people, for critics with another tokenizer, for state keys
    agents: tuple[str, ...]
    kinds: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)  # JSON: run, tokenizer

    def __post_init__(self) -> None:
        check(self)

    # ---- facts

    @property
    def size(self) -> int:
        """N, the number of items."""
        return len(self.items.source)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of which spans begin with calls."""
        return tuple(sorted(self.calls.begin))

    @property
    def labels(self) -> tuple[str, ...]:
        """The channels that label items."""
        return tuple(sorted(self.items.label))

    @cached_property
    def length(self) -> Tensor:
        """int64 [C]: items of each call, 0 for one that emitted nothing."""
        return self.nodes.length[self.calls.out]

    @cached_property
    def first(self) -> Tensor:
        """int64 [C]: first item of each call."""
        return self.length.cumsum(0) - self.length

    @cached_property
    def call(self) -> Tensor:
        """int64 [N]: the call of each item."""
        return torch.repeat_interleave(torch.arange(len(self.length)), self.length)

    @cached_property
    def token(self) -> Tensor:
        """int64 [N]: what each item is."""
        return self.tokens[ragged(self.nodes.start[self.calls.out], self.length)].long()

    @cached_property
    def episode(self) -> Tensor:
        """int64 [C]: the episode of each call."""
        return self.streams.episode[self.calls.stream]

    @cached_property
    def on_context(self) -> Tensor:
        """bool [C]: whether the call was sampled under the very context that it is scored under."""
        out = self.calls.out
        return (self.calls.given == self.nodes.parent[out]) & (self.calls.given_cut == self.nodes.cut[out])

    @cached_property
    def behaviour(self) -> Tensor:
        """bool [N]: where `logp` may serve as behaviour probability: sampled, and under the context it is scored under.

        Elsewhere the trainer's own first pass has to.
        """
        return (self.items.source == Source.SAMPLED) & self.on_context[self.call]

    # ---- token texts

    def context_ids(self, call: int) -> Tensor:
        """int64: what the call is scored under."""
        out = int(self.calls.out[call])
        return torch.from_numpy(self.path(int(self.nodes.parent[out]), int(self.nodes.cut[out])).astype(np.int64))

    def given_ids(self, call: int) -> Tensor:
        """int64: what the call was sampled under."""
        return torch.from_numpy(
            self.path(int(self.calls.given[call]), int(self.calls.given_cut[call])).astype(np.int64)
        )

    def output_ids(self, call: int) -> Tensor:
        """int64: what the call emitted."""
        return self.token[self.item_slice(call)]

    def name_of(self, call: int) -> str:
        """For messages: the call's row, and its number in its episode."""
        return name_of_call(self, call)

    def item_slice(self, call: int) -> slice:
        """The items of a call."""
        start = int(self.first[call])
        return slice(start, start + int(self.length[call]))

    def path(self, node: int, cut: int) -> np.ndarray:
        """int32: the text that ends `cut` tokens into `node`; empty for -1."""
        parents, cuts, starts = self._plain_nodes
        pool = self._pool
        pieces = []
        while node >= 0:
            pieces.append(pool[starts[node] : starts[node] + cut])
            node, cut = parents[node], cuts[node]
        return np.concatenate(pieces[::-1]) if pieces else np.empty(0, dtype=np.int32)

    @cached_property
    def _pool(self) -> np.ndarray:
        return self.tokens.numpy()

    @cached_property
    def _plain_nodes(self) -> tuple[list[int], list[int], list[int]]:
        return self.nodes.parent.tolist(), self.nodes.cut.tolist(), self.nodes.start.tolist()

    def contexts(self, calls: Tensor) -> list[np.ndarray]:
        """The contexts of several calls, int64 [c]: int32 each."""
        out = self.calls.out[calls]
        above = zip(self.nodes.parent[out].tolist(), self.nodes.cut[out].tolist(), strict=True)
        return [self.path(node, cut) for node, cut in above]

    def outputs(self, calls: Tensor) -> list[np.ndarray]:
        """The outputs of several calls, int64 [c]: int32 each."""
        out = self.calls.out[calls]
        starts, lengths = self.nodes.start[out].tolist(), self.nodes.length[out].tolist()
        return [self._pool[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    # ---- choosing, and the tree

    def choose(self, calls: Tensor | Sequence[int] | None = None) -> Tensor:
        """int64, ascending: the calls that a selection means: all (None), a bool mask [C], or rows."""
        count = len(self.calls.out)
        if calls is None:
            return torch.arange(count)
        chosen = torch.as_tensor(calls)
        if chosen.dtype == torch.bool:
            if chosen.shape != (count,):
                raise DataError(f"record: a mask of {count} calls expected, got shape {tuple(chosen.shape)}")
            return chosen.nonzero()[:, 0]
        chosen = chosen.long().reshape(-1).sort().values
        if len(chosen) and not 0 <= int(chosen[0]) <= int(chosen[-1]) < count:
            raise DataError(f"record: calls must lie in 0..{count - 1}, got {int(chosen[0])}..{int(chosen[-1])}")
        if bool((chosen[1:] == chosen[:-1]).any()):
            raise DataError(f"record: call {int(chosen[1:][chosen[1:] == chosen[:-1]][0])} is chosen twice")
        return chosen

    def items_of(self, calls: Tensor | Sequence[int] | None = None) -> Tensor:
        """int64: the items of the chosen calls, ascending."""
        chosen = self.choose(calls)
        return ragged(self.first[chosen], self.length[chosen])

    def tree(self, calls: Tensor | Sequence[int] | None = None) -> SpanTree:
        """Partitions of the items (of the chosen calls: `items_of(calls)`).

        'group' > 'episode' > 'stream' > 'call'; every level, inside 'stream': calls from one that begins it to the
        next; every item label, inside 'call': maximal runs. What emitted nothing has no span: `rows_of` tells the
        table's row of each span.
        """
        items = self.items_of(calls)
        call = self.call[items]
        stream = self.calls.stream[call]
        episode = self.streams.episode[stream]
        entries: dict[str, tuple[Spans, str | None]] = {
            "group": (_runs(self.episodes.group[episode]), None),
            "episode": (_runs(episode), "group"),
            "stream": (_runs(stream), "episode"),
            "call": (_runs(call), "stream"),
        }
        first = _changes(self.calls.stream)
        for level in self.levels:
            entries[level] = (_runs((self.calls.begin[level] | first).cumsum(0)[call]), "stream")
        for channel in self.labels:
            entries[channel] = (_runs(call, self.items.label[channel][items]), "call")
        return SpanTree(entries)

    def rows_of(self, name: str, calls: Tensor | Sequence[int] | None = None) -> Tensor:
        """int64 [n]: the row of the table `name` ('call', 'stream' or 'episode') that each span of `tree(calls)` is."""
        call = self.call[self.items_of(calls)]
        stream = self.calls.stream[call]
        column = {"call": call, "stream": stream, "episode": self.streams.episode[stream]}
        if name not in column:
            raise DataError(f"record: no table of spans '{name}'; there are {', '.join(column)}")
        return column[name].unique_consecutive()

    def elapsed(self, calls: Tensor | Sequence[int] | None = None) -> Tensor:
        """float32: 0 inside a call and 1 at its last item, so that a discount falls on turns, not on tokens."""
        chosen = self.choose(calls)
        length = self.length[chosen]
        elapsed = torch.zeros(int(length.sum()))
        elapsed[(length.cumsum(0) - 1)[length > 0]] = 1.0
        return elapsed

    # ---- writing, joining, selecting

    def write(self, *, items: Mapping[str, Tensor] | None = None, calls: Mapping[str, Tensor] | None = None) -> Record:
        """The same record with these columns added or replaced; nothing else may be written once it is collected.

        items: "adv.<term>", "weight.<loss>" or "value.<head>", float [N]; adv and weight finite.
        calls: "part.<reward>" or "value.<head>", float [C]; NaN: not evaluated.
        """
        new_items = _written(self.items, items or {}, ("adv", "weight", "value"), self.size)
        new_calls = _written(self.calls, calls or {}, ("part", "value"), len(self.calls.out))
        return replace(self, items=new_items, calls=new_calls)

    def select(self, episodes: Tensor | Sequence[int]) -> Record:
        """The record of these episodes alone: a bool mask [E], or rows."""
        chosen = torch.as_tensor(episodes)
        ids = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen.long().unique()
        count = len(self.episodes.uid)
        if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < count:
            raise DataError(f"record: episodes must lie in 0..{count - 1}, got {int(ids[0])}..{int(ids[-1])}")
        return Record(**assemble(take_episodes(self._loose(), ids)), meta=self.meta)

    @staticmethod
    def cat(records: Sequence[Record], meta: dict[str, Any] | None = None) -> Record:
        """One record of several with different episodes.

        meta: of the result; may be left out where the records agree on theirs, which name the codes of labels.
        """
        if not records:
            raise DataError("record: nothing to join")
        if meta is None:
            meta = records[0].meta
            for record in records:
                for key in meta.keys() | record.meta.keys():
                    if meta.get(key) != record.meta.get(key):
                        raise DataError(f"record: '{key}' of the records' meta differs; say which meta the result has")
        parts = join([record._loose() for record in records])
        order = np.lexsort((parts.episodes.uid.numpy(), parts.episodes.group.numpy()))
        return Record(**assemble(take_episodes(parts, torch.from_numpy(order))), meta=meta)

    def _loose(self) -> Loose:
        every = self.choose()
        contexts = self.contexts(every)
        givens: list[np.ndarray | None] = [None] * len(contexts)
        for call in (~self.on_context).nonzero()[:, 0].tolist():
            given = self.path(int(self.calls.given[call]), int(self.calls.given_cut[call]))
            givens[call] = None if np.array_equal(given, contexts[call]) else given
        return Loose(
            episodes=self.episodes,
            streams=self.streams,
            calls=self.calls,
            items=self.items,
            contexts=contexts,
            givens=givens,
            outputs=self.outputs(every),
            texts=self.texts.strings(),
            agents=list(self.agents),
            kinds=list(self.kinds),
        )

    # ---- disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `<path>.safetensors` and `<path>.json`, each replaced atomically."""
        disk.save(path, FORMAT, self._nested(), self._header())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read what `save` wrote; DataError names a file that is missing, altered or truncated."""
        tables, header = disk.load(path, FORMAT)
        try:
            return cls(
                tokens=tables["token"]["id"],
                nodes=Nodes(**tables["node"]),
                episodes=Episodes(**tables["episode"]),
                streams=Streams(**tables["stream"]),
                calls=Calls(**tables["call"]),
                items=Items(**tables["item"]),
                texts=Texts(**tables["text"]),
                agents=tuple(header["agents"]),
                kinds=tuple(header["kinds"]),
                meta=header["meta"],
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{os.fspath(path)}: not a record as this version knows it ({error})") from error

    def columns(self) -> dict[str, Tensor]:
        """Every column by its name on disk: "call/out", "item/label/block"."""
        return disk.flatten(self._nested())

    def _nested(self) -> dict[str, Any]:
        return {
            "token": {"id": self.tokens},
            "node": _tables.columns(self.nodes),
            "episode": _tables.columns(self.episodes),
            "stream": _tables.columns(self.streams),
            "call": _tables.columns(self.calls),
            "item": _tables.columns(self.items),
            "text": {"offsets": self.texts.offsets, "data": self.texts.data},
        }

    def _header(self) -> dict[str, Any]:
        return {
            "counts": {
                "tokens": len(self.tokens),
                "nodes": len(self.nodes.parent),
                "episodes": len(self.episodes.uid),
                "streams": len(self.streams.agent),
                "calls": len(self.calls.out),
                "items": self.size,
                "texts": len(self.texts),
            },
            "enums": {k.__name__.lower(): {code.name.lower(): int(code) for code in k} for k in (Use, End, Source)},
            "agents": list(self.agents),
            "kinds": list(self.kinds),
            "meta": self.meta,
        }

    def __repr__(self) -> str:
        counts = self._header()["counts"]
        return f"Record({', '.join(f'{name}={count}' for name, count in counts.items())})"


class RecordBuilder:
    """Collects episodes, in whatever sequence they come, and makes a record of them."""

    def __init__(self, meta: dict[str, Any] | None = None):
        self.meta = dict(meta or {})
        self._episodes: dict[int, EpisodeBuilder] = {}

    def episode(
        self,
        uid: int,
        group: int = 0,
        task: str | None = None,
        kind: str = "",
        seed: int = 0,
        origin: tuple[int, int, int] = (-1, -1, -1),
    ) -> EpisodeBuilder:
        """Open an episode.

        uid: unique in everything that is ever joined. group: the episodes to compare it with.
        origin: (uid of the episode that it restarts from, its call, items of that call that are kept). A call of an
        episode of this builder is named as that builder names it, any other by its number in the record's episode.
        """
        if uid in self._episodes:
            raise DataError(f"episode {uid} exists already; a uid names one episode")
        if uid < 0:
            raise DataError(f"the uid of an episode must be at least 0, got {uid}")
        self._episodes[uid] = EpisodeBuilder(uid, group, task, kind, seed, origin)
        return self._episodes[uid]

    def build(self) -> Record:
        """Sort to (group, episode, stream, time), find what contexts share, check, and return the record."""
        return Record(**assemble(loose(self._episodes)), meta=self.meta)


def _changes(*keys: Tensor) -> Tensor:
    """bool: where any key differs from the one before; true at the first."""
    new = torch.ones(len(keys[0]), dtype=torch.bool)
    new[1:] = torch.stack([key[1:] != key[:-1] for key in keys]).any(0)
    return new


def _runs(*keys: Tensor) -> Spans:
    """Maximal runs of equal keys."""
    return Spans.from_starts(_changes(*keys))


def _written(table: Any, new: Mapping[str, Tensor], groups: tuple[str, ...], rows: int) -> Any:
    changed = {group: dict(getattr(table, group)) for group in groups}
    for name, column in new.items():
        check_written(name, column, groups, rows)
        group, _, short = name.partition(".")
        changed[group][short] = column.detach()
    return replace(table, **changed)
