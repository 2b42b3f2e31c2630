"""Random records against naive lists: every column, every text, the forest's promises, joining and selecting."""

from __future__ import annotations

import math
import random
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from record_reference import build, episodes, naive

from echelon.language.engine import Source
from echelon.language.record import Record, state_key

SEEDS = st.integers(0, 10_000)


def same(a: Record, b: Record) -> None:
    """Bit-equal columns and equal headers."""
    mine, other = a.columns(), b.columns()
    assert mine.keys() == other.keys()
    for name, column in mine.items():
        assert column.dtype == other[name].dtype, name
        assert torch.equal(column.nan_to_num(7.5), other[name].nan_to_num(7.5)), name
    assert (a.agents, a.kinds, a.meta) == (b.agents, b.kinds, b.meta)


def close(column: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(column, torch.tensor(expected, dtype=column.dtype), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60)
@given(SEEDS)
def test_tables(seed: int) -> None:
    script = episodes(seed)
    record, expected = build(script), naive(script)
    assert record.episodes.uid.tolist() == [one.uid for one in expected.episodes]
    assert [record.texts[i] for i in record.episodes.task.tolist()] == [one.task for one in expected.episodes]
    assert [record.kinds[i] for i in record.episodes.kind.tolist()] == [one.kind for one in expected.episodes]
    assert record.episodes.terminated.tolist() == [one.terminated for one in expected.episodes]
    for row, one in enumerate(expected.episodes):
        uid, number, kept = one.origin
        place = expected.row[uid][number] - min(expected.row[uid]) if uid >= 0 else -1
        assert record.episodes.origin_call[row] == place and record.episodes.origin_items[row] == kept

    assert record.streams.episode.tolist() == [episode for episode, _ in expected.streams]
    assert [record.agents[i] for i in record.streams.agent.tolist()] == [one.agent for _, one in expected.streams]
    openers = [(expected.episodes[episode].uid, one.parent_call) for episode, one in expected.streams]
    assert record.streams.parent_call.tolist() == [expected.row[uid][n] if n >= 0 else -1 for uid, n in openers]

    calls, c = [one for _, one in expected.calls], record.calls
    assert c.stream.tolist() == [stream for stream, _ in expected.calls]
    owner = [expected.episodes[expected.streams[stream][0]].uid for stream, _ in expected.calls]
    assert [expected.episodes[row].uid for row in record.episode.tolist()] == owner
    parents = [one.more["parent"] for one in calls]
    assert c.parent.tolist() == [expected.row[uid][n] if n >= 0 else -1 for uid, n in zip(owner, parents, strict=True)]
    for name in ("end", "use", "policy", "valid", "seed"):
        assert getattr(c, name).tolist() == [one.more[name] for one in calls]
    close(c.temperature, [one.more["temperature"] for one in calls])
    close(c.reward, [one.reward for one in calls])
    states = [one.more.get("state") for one in calls]
    assert c.state.tolist() == [-1 if state is None else state_key(state) for state in states]
    for name, key in (("state_text", "state"), ("obs_text", "obs_text"), ("out_text", "out_text")):
        texts = [record.texts[i] if i >= 0 else None for i in getattr(c, name).tolist()]
        assert texts == [one.more.get(key) for one in calls]
    for level in record.levels:
        assert c.begin[level].tolist() == [one.more.get("begin", {}).get(level, False) for one in calls]
    for channel in c.label:
        assert c.label[channel].tolist() == [one.more.get("labels", {}).get(channel, -1) for one in calls]
    for name in c.part:
        close(c.part[name], [one.parts.get(name, math.nan) for one in calls])
    for name in c.value:
        close(c.value[name], [one.more.get("values", {}).get(name, math.nan) for one in calls])


@settings(max_examples=60)
@given(SEEDS)
def test_items_and_token_texts(seed: int) -> None:
    script = episodes(seed)
    record, expected = build(script), naive(script)
    for row, (_, one) in enumerate(expected.calls):
        assert record.context_ids(row).tolist() == one.context
        assert record.given_ids(row).tolist() == (one.context if one.given is None else one.given)
        assert record.output_ids(row).tolist() == one.output
        assert bool(record.on_context[row]) == (one.given is None or one.given == one.context)
    at = expected.items
    calls = [one for _, one in expected.calls]
    assert record.call.tolist() == [row for row, _ in at]
    assert record.token.tolist() == [calls[row].output[token] for row, token in at]
    assert record.items.source.tolist() == [calls[row].source[token] for row, token in at]
    close(record.items.logp, [calls[row].logp[token] for row, token in at])
    own = [calls[row].given in (None, calls[row].context) for row, _ in at]
    sampled = [calls[row].source[token] == Source.SAMPLED for row, token in at]
    assert record.behaviour.tolist() == [a and b for a, b in zip(own, sampled, strict=True)]
    for channel in record.labels:
        found = [calls[row].more.get("labels", {}).get(channel) for row, _ in at]
        assert record.items.label[channel].tolist() == [
            -1 if label is None else label[token] for label, (_, token) in zip(found, at, strict=True)
        ]
    ends = [token == len(calls[row].output) - 1 for row, token in at]
    assert record.elapsed().tolist() == ends


@settings(max_examples=60)
@given(SEEDS)
def test_forest_shares_contexts_and_never_outputs(seed: int) -> None:
    record = build(episodes(seed))
    nodes, outputs = record.nodes, set(record.calls.out.tolist())
    assert len(outputs) == len(record.calls.out)
    text = {}
    started: Counter[tuple[int, int, int]] = Counter()
    for node in range(len(nodes.parent)):
        parent, cut, start, length = (
            int(column[node]) for column in (nodes.parent, nodes.cut, nodes.start, nodes.length)
        )
        own = tuple(record.tokens[start : start + length].tolist())
        assert text.setdefault(own, start) == start  # every text once in the pool
        if not own:
            assert node in outputs
            continue
        if node not in outputs:  # nothing that hangs there, or goes on there, begins as this context does
            assert started[parent, cut, own[0]] == 0
            kept = int(nodes.start[parent]) + cut
            assert parent < 0 or cut == int(nodes.length[parent]) or int(record.tokens[kept]) != own[0]
        started[parent, cut, own[0]] += 1
    assert len(record.tokens) == sum(len(own) for own in text)


@settings(max_examples=40)
@given(SEEDS)
def test_arrival_changes_nothing(seed: int) -> None:
    script = episodes(seed)
    same(build(script), build(script, random.Random(seed + 1)))


@settings(max_examples=40)
@given(SEEDS)
def test_parts_join_to_the_whole(seed: int) -> None:
    script, draw = episodes(seed, count=6), random.Random(seed)
    whole = build(script)
    same(whole, whole.select(range(len(script))))
    mask = torch.tensor([draw.random() < 0.5 for _ in script])
    chosen = whole.select(mask)
    uids = set(whole.episodes.uid[mask].tolist())
    expected = build([one for one in script if one.uid in uids])
    for name, column in expected.columns().items():
        if name != "episode/origin_call":  # counted in the episode it names, if that is there to count in
            assert torch.equal(column.nan_to_num(7.5), chosen.columns()[name].nan_to_num(7.5)), name
    rest = whole.select(~mask)
    same(whole, Record.cat([rest, chosen]))
    same(whole, Record.cat([chosen, rest]))


@settings(max_examples=20)
@given(SEEDS)
def test_tree(seed: int) -> None:
    script = episodes(seed)
    record, expected = build(script), naive(script)
    for chosen in (None, (record.calls.use == 0).nonzero()[:, 0]):
        kept = set(range(len(expected.calls)) if chosen is None else chosen.tolist())
        at = [(row, token) for row, token in expected.items if row in kept]
        tree = record.tree(chosen)
        stream = [expected.calls[row][0] for row, _ in at]
        episode = [expected.streams[row][0] for row in stream]
        group = [expected.episodes[row].group for row in episode]
        keys = {"group": group, "episode": episode, "stream": stream, "call": [row for row, _ in at]}
        count, segment, last = 0, {}, -1
        for row, (home, one) in enumerate(expected.calls):
            count += home != last or one.more.get("begin", {}).get("segment", False)
            segment[row], last = count, home
        if "segment" in record.levels:
            keys["segment"] = [segment[row] for row, _ in at]
            assert tree.parent("segment") == "stream"
        for name, key in keys.items():
            runs = sum(before != after for before, after in zip([None, *key], key, strict=False))
            assert tree[name].n == runs and tree[name].order is None
            assert tree[name].reduce(torch.tensor(key, dtype=torch.int64), "min").tolist() == list(dict.fromkeys(key))
        for name in ("call", "stream", "episode"):
            assert record.rows_of(name, chosen).tolist() == list(dict.fromkeys(keys[name]))
        if "block" in record.labels:
            label = record.items.label["block"][record.items_of(chosen)].tolist()
            runs = [(row, value) for (row, _), value in zip(at, label, strict=True)]
            assert tree["block"].n == sum(a != b for a, b in zip([None, *runs], runs, strict=False))
            assert tree.parent("block") == "call"


def test_saved_and_loaded(tmp_path) -> None:
    for seed in range(5):
        record = build(episodes(seed))
        record.save(tmp_path / "rollout")
        same(record, Record.load(tmp_path / "rollout"))
