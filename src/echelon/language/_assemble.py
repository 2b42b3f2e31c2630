"""Tables and token texts in, the fields of a record out: what building, joining and selecting have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.language._tables import Calls, Episodes, Items, Nodes, Streams, Table, Texts, change, stack
from echelon.language._trie import OwnTexts, Trie


@dataclass(frozen=True, eq=False, kw_only=True)
class Loose:
    """A record without its forest. In `calls` the columns out, given and given_cut mean nothing yet.

    Streams are contiguous by episode, calls by stream; texts, agents and kinds may be named more than once.
    """

    episodes: Episodes
    streams: Streams
    calls: Calls
    items: Items
    contexts: list[np.ndarray]  # int32, a call each: what it is scored under
    givens: list[np.ndarray | None]  # int32: what it was sampled under, None: the same
    outputs: list[np.ndarray]  # int32
    texts: list[str]
    agents: list[str]
    kinds: list[str]


def assemble(loose: Loose) -> dict[str, Any]:
    """Build the forest, and keep every text and name once: the fields of a `Record`, its meta excepted."""
    nodes, tokens, ends = _forest(loose)
    texts, episodes, calls = _intern_texts(loose)
    agents, agent = _intern_names(loose.agents, loose.streams.agent)
    kinds, kind = _intern_names(loose.kinds, loose.episodes.kind)
    out, given, given_cut = torch.from_numpy(ends).reshape(3, -1)
    return {
        "tokens": tokens,
        "nodes": nodes,
        "episodes": replace(episodes, kind=kind),
        "streams": replace(loose.streams, agent=agent),
        "calls": replace(calls, out=out, given=given, given_cut=given_cut),
        "items": loose.items,
        "texts": texts,
        "agents": agents,
        "kinds": kinds,
    }


def take_episodes(loose: Loose, ids: Tensor) -> Loose:
    """These episodes, int64 [e], in this order, each at most once."""
    streams = _members(loose.streams.episode, ids)
    calls = _members(loose.calls.stream, streams)
    lengths = torch.tensor([len(output) for output in loose.outputs], dtype=torch.int64)
    items = ragged((lengths.cumsum(0) - lengths)[calls], lengths[calls])
    episode, stream, call = (
        _renumber(old, len(table))
        for old, table in ((ids, loose.episodes.uid), (streams, loose.streams.episode), (calls, loose.calls.stream))
    )
    kept_streams, kept_calls = _gather(loose.streams, streams), _gather(loose.calls, calls)
    rows = calls.tolist()
    return replace(
        loose,
        episodes=_gather(loose.episodes, ids),
        streams=replace(
            kept_streams, episode=episode[kept_streams.episode], parent_call=_follow(kept_streams.parent_call, call)
        ),
        calls=replace(kept_calls, stream=stream[kept_calls.stream], parent=_follow(kept_calls.parent, call)),
        items=_gather(loose.items, items),
        contexts=[loose.contexts[row] for row in rows],
        givens=[loose.givens[row] for row in rows],
        outputs=[loose.outputs[row] for row in rows],
    )


def join(parts: Sequence[Loose]) -> Loose:
    """One after the other; episodes must still be sorted, by `take_episodes`."""
    at = dict.fromkeys(("text", "agent", "kind", "episode", "stream", "call"), 0)
    moved = []
    for part in parts:
        moved.append(_move(part, at))
        rows = [len(column) for column in (part.episodes.uid, part.streams.episode, part.calls.stream)]
        sizes = [len(part.texts), len(part.agents), len(part.kinds), *rows]
        at = {name: start + size for (name, start), size in zip(at.items(), sizes, strict=True)}
    return Loose(
        episodes=stack([part.episodes for part in moved]),
        streams=stack([part.streams for part in moved]),
        calls=stack([part.calls for part in moved]),
        items=stack([part.items for part in moved]),
        contexts=[text for part in moved for text in part.contexts],
        givens=[text for part in moved for text in part.givens],
        outputs=[text for part in moved for text in part.outputs],
        texts=[text for part in moved for text in part.texts],
        agents=[name for part in moved for name in part.agents],
        kinds=[name for part in moved for name in part.kinds],
    )


def ragged(start: Tensor, length: Tensor) -> Tensor:
    """int64: start[0], start[0] + 1, … length[0] of them, then the same for every other row."""
    first = length.cumsum(0) - length
    return torch.repeat_interleave(start - first, length) + torch.arange(int(length.sum()))


def _forest(loose: Loose) -> tuple[Nodes, Tensor, np.ndarray]:
    """(nodes, pool, int64 [3, C]: out, given and given_cut of every call)."""
    trie = Trie()
    ends = np.empty((3, len(loose.outputs)), dtype=np.int64)
    streams = loose.calls.stream.tolist()
    episodes = loose.streams.episode[loose.calls.stream].tolist()
    own, current = OwnTexts(), -1
    for call, (stream, episode) in enumerate(zip(streams, episodes, strict=True)):
        if episode != current:
            own, current = OwnTexts(), episode
        context, output, given = loose.contexts[call], loose.outputs[call], loose.givens[call]
        place = trie.context(context, own, stream)
        sampled_at = place if given is None else trie.context(given)
        out = trie.output(place, output)
        own.add(stream, np.concatenate([context, output]), out if len(output) else place)
        ends[:, call] = out[0] - 1, sampled_at[0] - 1, sampled_at[1]
    nodes = Nodes(
        parent=torch.tensor(trie.parent[1:], dtype=torch.int64) - 1,
        cut=torch.tensor(trie.cut[1:], dtype=torch.int64),
        start=torch.tensor(trie.start[1:], dtype=torch.int64),
        length=torch.tensor(trie.length[1:], dtype=torch.int64),
    )
    pool = np.concatenate([np.empty(0, dtype=np.int32), *trie.pool])
    return nodes, torch.from_numpy(pool), ends


def _intern_texts(loose: Loose) -> tuple[Texts, Episodes, Calls]:
    """The texts in use, each once, in the sequence of their first use: tasks first, then call by call."""
    number: dict[str, int] = {}
    in_calls = torch.stack([loose.calls.obs_text, loose.calls.out_text, loose.calls.state_text], 1)
    used = torch.cat([loose.episodes.task, in_calls.reshape(-1)]).tolist()
    new = torch.tensor(
        [-1 if old < 0 else number.setdefault(loose.texts[old], len(number)) for old in used], dtype=torch.int64
    )
    tasks, rest = new.split([len(loose.episodes.task), in_calls.numel()])
    obs, out, state = rest.reshape(-1, 3).unbind(1)
    calls = replace(loose.calls, obs_text=obs.clone(), out_text=out.clone(), state_text=state.clone())
    return Texts.of(list(number)), replace(loose.episodes, task=tasks.clone()), calls


def _intern_names(names: list[str], column: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """The names in use, sorted, and the column that counts among them."""
    used = [names[row] for row in column.tolist()]
    kept = sorted(set(used))
    rank = {name: row for row, name in enumerate(kept)}
    return tuple(kept), torch.tensor([rank[name] for name in used], dtype=torch.int64)


def _members(owner: Tensor, of: Tensor) -> Tensor:
    """Rows owned by `of`, owner after owner; `owner` is ascending."""
    start = torch.searchsorted(owner, of)
    return ragged(start, torch.searchsorted(owner, of, right=True) - start)


def _gather(table: Table, rows: Tensor) -> Table:
    return change(table, lambda column: column[rows])


def _renumber(old: Tensor, size: int) -> Tensor:
    """int64 [size]: the new number of every old row, -1 where it is gone."""
    new = torch.full((size,), -1, dtype=torch.int64)
    new[old] = torch.arange(len(old))
    return new


def _follow(reference: Tensor, new: Tensor) -> Tensor:
    """References renamed; -1 stays."""
    known = reference >= 0
    followed = reference.clone()
    followed[known] = new[reference[known]]
    return followed


def _shift(reference: Tensor, by: int) -> Tensor:
    return torch.where(reference >= 0, reference + by, reference)


def _move(part: Loose, at: dict[str, int]) -> Loose:
    """With every reference counted on from `at`."""
    e, s, c = part.episodes, part.streams, part.calls
    return replace(
        part,
        episodes=replace(e, task=_shift(e.task, at["text"]), kind=e.kind + at["kind"]),
        streams=replace(
            s,
            episode=s.episode + at["episode"],
            agent=s.agent + at["agent"],
            parent_call=_shift(s.parent_call, at["call"]),
        ),
        calls=replace(
            c,
            stream=c.stream + at["stream"],
            parent=_shift(c.parent, at["call"]),
            obs_text=_shift(c.obs_text, at["text"]),
            out_text=_shift(c.out_text, at["text"]),
            state_text=_shift(c.state_text, at["text"]),
        ),
    )
