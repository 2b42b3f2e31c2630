"""The record on hand-made episodes: the forest, the tree, what may be written, and every refusal."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from echelon.errors import DataError
from echelon.language._tables import Texts
from echelon.language.engine import End, Source
from echelon.language.record import EpisodeBuilder, Record, RecordBuilder, Use, state_key

PROMPT = [1, 2, 3]


def one(uid: int = 7) -> tuple[RecordBuilder, EpisodeBuilder]:
    builder = RecordBuilder()
    return builder, builder.episode(uid)


def forest(record: Record) -> list[tuple[int, int, list[int]]]:
    """(parent, cut, own tokens) of every node."""
    n = record.nodes
    rows = zip(*(column.tolist() for column in (n.parent, n.cut, n.start, n.length)), strict=True)
    return [(parent, cut, record.tokens[start : start + length].tolist()) for parent, cut, start, length in rows]


# ---- the forest


def test_appended_contexts_share_and_rewritten_ones_branch() -> None:
    builder, episode = one()
    line = episode.stream()
    episode.call(line, PROMPT, [10, 11], [-1, -1])
    episode.call(line, [*PROMPT, 10, 11, 4], [12], [-1])  # appended
    episode.call(line, [1, 2, 9], [13], [-1])  # rewritten after two tokens
    record = builder.build()
    assert forest(record) == [
        (-1, 0, PROMPT),
        (0, 3, [10, 11]),
        (1, 2, [4]),
        (2, 1, [12]),
        (0, 2, [9]),  # hangs inside the prompt
        (4, 1, [13]),
    ]
    assert record.calls.out.tolist() == [1, 3, 5]
    assert record.calls.given.tolist() == [0, 2, 4] and record.calls.given_cut.tolist() == [3, 1, 1]


def test_outputs_are_never_merged() -> None:
    builder = RecordBuilder()
    for uid in range(3):
        episode = builder.episode(uid)
        episode.call(episode.stream(), PROMPT, [10, 11], [-1, -1])
    record = builder.build()
    assert forest(record) == [(-1, 0, PROMPT), *[(0, 3, [10, 11])] * 3]
    assert record.tokens.tolist() == [*PROMPT, 10, 11]  # but in the pool every text is once


def test_a_context_follows_the_outputs_of_its_own_episode() -> None:
    builder = RecordBuilder()
    for uid in range(2):  # word by word the same
        episode = builder.episode(uid)
        line = episode.stream()
        episode.call(line, PROMPT, [10], [-1])
        episode.call(line, [*PROMPT, 10, 4], [11], [-1])
    record = builder.build()
    first, second, third, fourth = record.calls.out.tolist()
    above = record.nodes.parent
    assert above[above[second]] == first
    assert above[above[fourth]] == third != first


def test_a_restart_inside_a_sampled_text() -> None:
    builder = RecordBuilder()
    origin = builder.episode(0)
    origin.call(origin.stream(), PROMPT, [10, 11, 12], [-1] * 3)
    again = builder.episode(1, origin=(0, 0, 2))
    again.call(again.stream(), [*PROMPT, 10, 11], [13], [-1])
    record = builder.build()
    assert forest(record) == [(-1, 0, PROMPT), (0, 3, [10, 11, 12]), (1, 2, [13])]
    assert record.context_ids(1).tolist() == [*PROMPT, 10, 11]
    e = record.episodes
    assert (e.origin_uid.tolist(), e.origin_call.tolist(), e.origin_items.tolist()) == ([-1, 0], [-1, 0], [-1, 2])


def test_nothing_is_lost_on_an_empty_output() -> None:
    builder, episode = one()
    line = episode.stream()
    episode.call(line, PROMPT, [], [], end=End.ERROR)
    episode.call(line, PROMPT, [10], [-1])
    record = builder.build()
    assert forest(record) == [(-1, 0, PROMPT), (0, 3, []), (0, 3, [10])]
    assert record.length.tolist() == [0, 1] and record.first.tolist() == [0, 0] and record.call.tolist() == [1]
    assert record.rows_of("call").tolist() == [1] and record.tree()["call"].n == 1
    assert record.elapsed().tolist() == [1]


def test_sampled_under_one_context_and_scored_under_another() -> None:
    builder, episode = one()
    line = episode.stream()
    episode.call(line, PROMPT, [10], [-1], given=[1, 2, 8, 8])
    episode.call(line, PROMPT, [10], [-1], given=PROMPT)
    record = builder.build()
    assert record.given_ids(0).tolist() == [1, 2, 8, 8] and record.context_ids(0).tolist() == PROMPT
    assert record.on_context.tolist() == [False, True] and record.behaviour.tolist() == [False, True]


def test_no_context_at_all() -> None:
    builder, episode = one()
    episode.call(episode.stream(), [], [5], [-1])
    record = builder.build()
    assert forest(record) == [(-1, 0, [5])] and record.context_ids(0).tolist() == []
    assert record.calls.given.tolist() == [-1] and record.on_context.tolist() == [True]


# ---- tables


def test_sorted_by_group_episode_stream_and_time() -> None:
    builder = RecordBuilder()
    late, early = builder.episode(5, group=1, kind="b"), builder.episode(9, group=0, kind="a")
    a, b = late.stream("planner", order=(1,)), late.stream("worker", order=(0, 3))
    late.call(a, PROMPT, [10], [-1])
    late.call(b, PROMPT, [11], [-1], parent=0, order=(2,))
    late.call(b, PROMPT, [12], [-1], order=(1,))
    early.call(early.stream("planner", learner=False), PROMPT, [13], [-1])
    record = builder.build()
    assert record.episodes.uid.tolist() == [9, 5] and record.kinds == ("a", "b")
    assert [record.agents[i] for i in record.streams.agent.tolist()] == ["planner", "worker", "planner"]
    assert record.streams.learner.tolist() == [False, True, True]
    assert record.token.tolist() == [13, 12, 11, 10]
    assert record.calls.parent.tolist() == [-1, -1, 3, -1]


def test_notes_rewards_and_parts() -> None:
    builder, episode = one()
    line = episode.stream()
    acted = episode.call(line, PROMPT, [10, 11], [-1, -1], labels={"block": [0, 1]})
    probe = episode.call(line, PROMPT, [12], source=Source.SCORED, use=Use.PROBE)
    episode.note(acted, valid=False, state="kitchen", begin={"segment": True}, labels={"role": 2}, out_text="go")
    episode.reward(0.5)
    episode.reward(0.25)
    episode.part("f1", 0.75)
    episode.part("bleu", math.nan, probe)
    episode.done(truncated=True)
    record = builder.build()
    c = record.calls
    assert c.valid.tolist() == [False, True] and c.state.tolist() == [state_key("kitchen"), -1]
    assert c.reward.tolist() == [0.75, 0] and c.part["f1"][0] == 0.75
    assert c.part["f1"][1].isnan() and c.part["bleu"].isnan().all()
    assert c.begin["segment"].tolist() == [True, False] and c.label["role"].tolist() == [2, -1]
    assert record.items.label["block"].tolist() == [0, 1, -1]
    assert record.texts[int(c.out_text[0])] == "go" and record.texts[int(c.state_text[0])] == "kitchen"
    assert (record.episodes.terminated.tolist(), record.episodes.truncated.tolist()) == ([False], [True])
    with pytest.raises(IndexError, match="text -1 of 2"):
        record.texts[-1]


def test_the_tree_of_levels_and_labels() -> None:
    builder, episode = one()
    planner, worker = episode.stream("planner"), episode.stream("worker")
    episode.call(planner, PROMPT, [1, 1, 2], [-1] * 3, labels={"block": [0, 0, 1]}, begin={"segment": True})
    episode.call(planner, PROMPT, [2], [-1], labels={"block": [1]})
    episode.call(planner, PROMPT, [3, 3], [-1] * 2, begin={"segment": True})
    episode.call(worker, PROMPT, [4], [-1])
    record = builder.build()
    tree = record.tree()
    assert {name: tree[name].offsets.tolist() for name in tree} == {
        "group": [0, 7],
        "episode": [0, 7],
        "stream": [0, 6, 7],
        "call": [0, 3, 4, 6, 7],
        "segment": [0, 4, 6, 7],
        "block": [0, 2, 3, 4, 6, 7],
    }
    assert [tree.parent(name) for name in tree] == [None, "group", "episode", "stream", "stream", "call"]
    assert tree["call"].expand(torch.tensor([1, 2, 3, 4])).tolist() == [1, 1, 1, 2, 3, 3, 4]
    chosen = record.tree([0, 2])
    assert chosen["segment"].offsets.tolist() == [0, 3, 5] and record.items_of([2, 0]).tolist() == [0, 1, 2, 4, 5]
    assert record.elapsed([0, 2]).tolist() == [0, 0, 1, 0, 1]


def test_an_empty_record() -> None:
    record = RecordBuilder().build()
    assert record.size == 0 and record.tree()["call"].n == 0
    assert Record.cat([record, record]).size == 0


# ---- after collection


def test_only_judgements_are_written() -> None:
    builder, episode = one()
    episode.call(episode.stream(), PROMPT, [10, 11], [-1, -1])
    record = builder.build()
    adv = torch.tensor([1.0, -1.0])
    judged = record.write(items={"adv.gae": adv, "weight.pg": adv, "value.v": adv}, calls={"part.f1": adv[:1]})
    assert judged.items.adv["gae"].equal(adv) and judged.calls.part["f1"].equal(adv[:1])
    assert not record.items.adv and not record.calls.part
    late = judged.write(calls={"part.f1": torch.tensor([math.nan]), "value.q": adv[:1]}, items={"adv.gae": -adv})
    assert late.calls.part["f1"].isnan().all() and late.items.adv["gae"].equal(-adv)
    for items, calls, message in (
        ({"logp": adv}, {}, r"'logp' cannot be written once it is collected; adv\.<name>, weight\.<name>"),
        ({"label.block": adv}, {}, "'label.block' cannot be written"),
        ({"adv.": adv}, {}, "'adv.' cannot be written"),
        ({"adv.a": adv[:1]}, {}, r"'adv.a' must be 2 floats, got torch.float32 of shape \(1,\)"),
        ({"adv.a": adv.long()}, {}, "must be 2 floats, got torch.int64"),
        ({"weight.a": adv / 0}, {}, "'weight.a' must be finite, it is inf at row 0"),
        ({}, {"reward": adv[:1]}, "'reward' cannot be written"),
    ):
        with pytest.raises(DataError, match=message):
            record.write(items=items, calls=calls)


def two(uids: tuple[int, int] = (0, 1)) -> list[Record]:
    records = []
    for uid in uids:
        builder, episode = one(uid)
        episode.call(episode.stream(), PROMPT, [10], [-1])
        records.append(builder.build())
    return records


def test_joining_refuses_what_cannot_be_joined() -> None:
    a, b = two()
    assert Record.cat([b, a]).episodes.uid.tolist() == [0, 1]
    assert len(Record.cat([b, a]).nodes.parent) == 3  # they share the prompt
    with pytest.raises(DataError, match="the uid 0 names several episodes"):
        Record.cat([a, a])
    with pytest.raises(DataError, match=r"adv\.gae is in some of the records only"):
        Record.cat([a, b.write(items={"adv.gae": torch.ones(1)})])
    with pytest.raises(DataError, match="nothing to join"):
        Record.cat([])
    other = Record.cat([b], meta={"tokenizer": "x"})
    with pytest.raises(DataError, match="'tokenizer' of the records' meta differs"):
        Record.cat([a, other])
    assert Record.cat([a, other], meta={}).meta == {}
    filled = Record.cat([a, b.write(calls={"part.f1": torch.ones(1)})])
    assert filled.calls.part["f1"].isnan().tolist() == [True, False]


def test_choosing() -> None:
    record = Record.cat(two())
    assert record.choose(torch.tensor([False, True])).tolist() == [1]
    assert record.select([1]).episodes.uid.tolist() == [1]
    for calls, message in (([2], r"calls must lie in 0\.\.1"), ([0, 0], "call 0 is chosen twice")):
        with pytest.raises(DataError, match=message):
            record.choose(calls)
    with pytest.raises(DataError, match="a mask of 2 calls expected"):
        record.choose(torch.tensor([True]))
    with pytest.raises(DataError, match=r"episodes must lie in 0\.\.1"):
        record.select([2])
    with pytest.raises(DataError, match=r"no table of spans 'turn'; there are call, stream, episode"):
        record.rows_of("turn")


# ---- disk


def test_damaged_files_are_refused(tmp_path) -> None:
    record = Record.cat(two())
    path = tmp_path / "rollout-0"
    record.save(path)
    header = json.loads((tmp_path / "rollout-0.json").read_text())["header"]
    assert header["counts"]["calls"] == 2 and header["enums"]["use"]["probe"] == 2
    tensors = tmp_path / "rollout-0.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="altered or truncated"):
        Record.load(path)
    tensors.unlink()
    with pytest.raises(DataError, match="no such file"):
        Record.load(path)


# ---- refusals, by who made the mistake


def test_the_episode_refuses_at_once() -> None:
    _, episode = one()
    line = episode.stream()
    call = episode.call

    def refused(message: str, *arguments, **more) -> None:
        with pytest.raises(DataError, match=message):
            call(*arguments, **more)
        assert not episode.calls and episode.streams[line].made == 0

    refused("episode 7, call 0: there is no stream 1; 1 are open", 1, PROMPT, [5], [-1])
    refused("episode 7: parent 0 does not exist; there are 0 calls so far", line, PROMPT, [5], [-1], parent=0)
    refused("episode 7, call 0: context must hold token ids", line, [-1], [5], [-1])
    refused("call 0: output must be a vector of token ids", line, PROMPT, [0.5], [-1])
    refused("call 0: output must be a vector of token ids", line, PROMPT, [2**31], [-1])
    refused(
        "call 0: given must be a vector of token ids, got float64",
        line,
        PROMPT,
        [5],
        [-1],
        given=torch.ones(1).double(),
    )
    refused(r"call 0: logp has the shape \(1,\) for 2 tokens", line, PROMPT, [5, 6], [-1])
    refused(r"call 0: source has the shape \(2,\) for 1 tokens", line, PROMPT, [5], [-1], [0, 0])
    refused("call 0: token 0 .* has an unknown source", line, PROMPT, [5], [-1], [3])
    refused(
        "call 0: token 1 .log-prob nan. is sampled, its log-prob must be finite", line, PROMPT, [5, 6], [-1, math.nan]
    )
    refused("token 0 .log-prob 0.5. is sampled", line, PROMPT, [5], [0.5])
    refused("token 0 .log-prob -1.0. was not sampled, its log-prob must be NaN", line, PROMPT, [5], [-1], Source.FORCED)
    refused("label 'block' must hold integers", line, PROMPT, [5], [-1], labels={"block": [0.5]})
    refused(r"label 'block' has the shape \(2,\) for 1 tokens", line, PROMPT, [5], [-1], labels={"block": [0, 1]})
    refused(r"value 'v' has the shape \(0,\) for 1 tokens", line, PROMPT, [5], [-1], values={"v": []})
    with pytest.raises(DataError, match="a reward before any call acted"):
        episode.reward(1.0)
    with pytest.raises(DataError, match="must be finite, got inf"):
        episode.reward(math.inf)
    with pytest.raises(DataError, match="both terminated and truncated"):
        episode.done(terminated=True, truncated=True)
    with pytest.raises(DataError, match="a fault is one of ERROR, TIMEOUT, KILLED"):
        episode.fail(End.EOS)
    with pytest.raises(DataError, match=r"a stream with the order \(0,\) exists already"):
        episode.stream(order=(0,))
    with pytest.raises(DataError, match="parent_call 3 does not exist"):
        episode.stream(parent_call=3)


def test_the_builder_refuses() -> None:
    builder, episode = one()
    with pytest.raises(DataError, match="episode 7 exists already"):
        builder.episode(7)
    with pytest.raises(DataError, match="must be at least 0, got -1"):
        builder.episode(-1)
    line = episode.stream()
    episode.call(line, PROMPT, [5], [-1], order=(3,))
    episode.call(line, PROMPT, [5], [-1], order=(3,))
    with pytest.raises(DataError, match=r"episode 7: calls 0 and 1 of one stream have the same order \(3,\)"):
        builder.build()
    builder, episode = one()
    builder.episode(8, origin=(7, 2, 0))
    with pytest.raises(DataError, match="episode 8: restarts in call 2 of episode 7, which has 0 calls"):
        builder.build()
    for level in ("call", "block"):
        builder, episode = one()
        episode.call(episode.stream(), PROMPT, [5], [-1], begin={level: True}, labels={"block": [0]})
        with pytest.raises(DataError, match=f"'{level}' names two partitions"):
            builder.build()
    builder, episode = one()
    episode.call(episode.stream(), PROMPT, [5], [-1], labels={"a/b": [0]})
    with pytest.raises(DataError, match=r"'label\.a/b' cannot be a column's name"):
        builder.build()


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("nodes", "parent", [0, 0, 0], "node 0 does not come after the node it hangs from"),
        ("nodes", "cut", [0, 4, 3], "node 1 keeps more than its parent has"),
        ("nodes", "start", [0, 3, 9], "node 2 lies outside of the pool"),
        ("nodes", "length", [3, 0, 1], "2 items for the 1 tokens that were emitted"),
        ("episodes", "group", [1, 0], r"episode row 0 and the next are not sorted by \(group, uid\)"),
        ("episodes", "uid", [3, 3], "the uid 3 names several episodes"),
        ("episodes", "terminated", [False, True], "episode 1 is both terminated and truncated"),
        ("episodes", "fault", [-1, 0], "episode row 1 has an unknown fault"),
        ("episodes", "kind", [0, 1], "episode row 1 names a kind that does not exist"),
        ("episodes", "task", [-1, 0], "episode row 1 names a task text that does not exist"),
        ("streams", "episode", [1, 0], "stream 0 and the next are not sorted by episode"),
        ("streams", "episode", [0, 2], "stream 1 names an episode that does not exist"),
        ("streams", "agent", [0, 1], "stream 1 names an agent that does not exist"),
        ("streams", "parent_call", [-1, 0], "stream 1 is opened by a call of another episode"),
        ("streams", "parent_call", [-1, 1], "stream 1 is opened by a call of another episode, or by its own"),
        ("streams", "learner", [0, 1], "stream.learner must be bool, got torch.int64"),
        ("calls", "stream", [1, 0], "call 0 and the next are not sorted by stream"),
        ("calls", "stream", [0, 2], "call 1 names a stream that does not exist"),
        ("calls", "out", [1, 1], r"call 0 \(number 0 of episode 0\) shares its output node"),
        ("calls", "out", [1, 3], r"call 1 \(number 0 of episode 1\) has an output node that does not exist"),
        ("calls", "given", [0, 3], "call 1 .* was sampled under a node that does not exist"),
        ("calls", "given_cut", [3, 4], "call 1 .* was sampled under more tokens than the node has"),
        ("calls", "parent", [-1, 0], "call 1 .* has a parent in another episode"),
        ("calls", "parent", [0, -1], "call 0 .* is its own parent"),
        ("calls", "parent", [-1, 2], "call 1 .* has a parent that does not exist"),
        ("calls", "use", [0, 4], "call 1 .* has an unknown use"),
        ("calls", "end", [0, 7], "call 1 .* has an unknown end"),
        ("calls", "reward", [0.0, math.nan], "call 1 .* has a reward that is not finite"),
        ("calls", "obs_text", [-1, 0], "call 1 .* names a text for obs_text that does not exist"),
        ("calls", "seed", [0], r"call.seed has shape \(1,\), the table 2 rows"),
        ("texts", "offsets", [0, 2], "the offsets of the texts do not divide their bytes"),
        ("items", "source", [0, 3], r"call 1 \(number 0 of episode 1\), token 0: an item of an unknown source"),
        ("items", "source", [0, 1], "call 1 .*, token 0: a log-prob at an item that was not sampled"),
        ("items", "logp", [-1.0, math.nan], "call 1 .*, token 0: a sampled item whose log-prob is not finite"),
    ],
)
def test_a_record_checks_itself(table: str, column: str, value: list, message: str) -> None:
    record = Record.cat(two())
    record = replace(record, episodes=replace(record.episodes, truncated=torch.tensor([False, True])))
    if table == "texts":
        changed = Texts(torch.tensor(value), record.texts.data)
    else:
        changed = replace(getattr(record, table), **{column: torch.tensor(value)})
    with pytest.raises(DataError, match=message):
        replace(record, **{table: changed})
