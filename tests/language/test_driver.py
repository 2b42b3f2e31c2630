"""Programs, batching and the record that comes of it: whatever the batch size, and whatever runs beside."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import BOS, EOS, Characters, Lengths, assert_same, babble, drive, scripted, starts, team, turns
from hypothesis import given
from hypothesis import strategies as st

from echelon.language._play import call_seed
from echelon.language.driver import Driver, Settings, Start, kept
from echelon.language.engine import End, Request, ScriptedEngine, Source, uniforms
from echelon.language.program import gather
from echelon.language.record import Record, Use


def said(record: Record, call: int) -> str:
    return Characters().decode(record.output_ids(call).tolist())


def seen(record: Record, call: int) -> str:
    return Characters().decode(record.given_ids(call).tolist())


def one(program: Any, **changes: Any) -> Any:
    """A single episode without faults."""
    phase = drive(program, starts(1), **changes)
    assert not phase.faults, phase.faults
    return phase


# ---- the same record however it is run


@pytest.mark.parametrize("program", [turns, team])
def test_the_record_does_not_depend_on_the_batch_size(program: Any) -> None:
    whole = drive(program, starts(9), batch=64)
    assert not whole.faults and whole.record.size > 60
    for batch, at_once in ((1, None), (3, None), (64, 1), (3, 2), (64, 5)):
        other = drive(program, starts(9), batch=batch, at_once=at_once)
        assert_same(other.record, whole.record)
        assert other.results == whole.results


def test_nor_on_which_other_episodes_run_or_the_sequence_they_are_given_in() -> None:
    whole = drive(team, starts(8))
    few = drive(team, starts(8)[5:1:-2])
    assert_same(whole.record.select(torch.tensor([3, 5])), few.record)


def test_worlds_in_processes_give_the_same_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    here = drive(team, starts(5))
    assert_same(drive(team, starts(5), workers=2).record, here.record)


def test_requests_are_served_in_their_sequence_and_in_batches() -> None:
    engine = scripted()
    phase = drive(turns, starts(7), engine=engine, batch=3)
    assert engine.batches[:3] == [3, 3, 1] and max(engine.batches) == 3
    rounds = max(phase.results.values())
    assert phase.progress.rounds == rounds and phase.progress.calls == sum(engine.batches) == len(
        phase.record.calls.out
    )
    assert phase.progress.tokens == phase.record.size and phase.progress.done == phase.progress.total == 7


def test_at_once_keeps_the_batches_full() -> None:
    engine = scripted()
    drive(turns, starts(20), engine=engine, batch=4, at_once=4)
    assert engine.batches[:8] == [4] * 8


def test_seeds_are_the_documented_hash() -> None:
    """Values of record: a change would make every interrupted run go on with other texts."""
    packed = struct.pack("<4q", 5, 3, 1, 2)
    whole = int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=b"echelon.call").digest(), "little")
    assert call_seed(5, 3, 1, 2) == whole // 2 == 7661959839759425075

    record = drive(team, starts(4)).record
    index = 0
    for call in range(len(record.calls.out)):
        stream = int(record.calls.stream[call])
        episode = int(record.streams.episode[stream])
        first = int((record.streams.episode == episode).nonzero()[0])
        if call == 0 or stream != int(record.calls.stream[call - 1]):
            index = 0
        if record.calls.use[call] not in (Use.PROBE, Use.TARGET):
            uid = int(record.episodes.uid[episode])
            assert int(record.calls.seed[call]) == call_seed(5, uid, stream - first, index)
            index += 1


@given(st.lists(st.integers(-(2**62), 2**62), min_size=4, max_size=4, unique=True))
def test_seeds_depend_on_every_key(keys: list[int]) -> None:
    a, b, c, d = keys
    seeds = {call_seed(a, b, c, d), call_seed(b, a, c, d), call_seed(a, b, d, c), call_seed(a, b, c, d - 1)}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


# ---- what a call leaves in the record


def test_a_turn_in_the_record() -> None:
    phase = drive(turns, starts(3), versions={"policy": 7})
    record = phase.record
    assert record.levels == ("segment",) and record.meta["labels"] == {}
    assert [level["name"] for level in record.meta["levels"]] == ["segment", "turn"]
    assert record.calls.policy.tolist() == [7] * len(record.calls.out)
    texts = record.texts.strings()
    for call in range(len(record.calls.out)):
        prompt, text = seen(record, call), said(record, call)
        observation = texts[int(record.calls.obs_text[call])]
        assert prompt == f"{chr(BOS)}user: {observation}\n"
        assert texts[int(record.calls.out_text[call])] == text.rstrip(chr(EOS))
        seed = int(record.calls.seed[call])
        asked = babble(Request(tuple(map(ord, prompt)), 6, seed))
        assert text == "".join(map(chr, [*asked, EOS]))[:6]
        items = record.item_slice(call)
        logp = np.log1p(-uniforms(seed, 0, len(text))).astype(np.float32)
        np.testing.assert_array_equal(record.items.logp[items].numpy(), logp)
        spoken = text.rstrip(chr(EOS))
        assert float(record.calls.reward[call]) == (1.0 if "z" in spoken else len(spoken) / 8)
        assert bool(record.calls.valid[call]) == ("q" not in spoken)
        assert record.calls.end[call] == (End.EOS if text.endswith(chr(EOS)) else End.LENGTH)
    first = record.calls.begin["segment"]
    assert bool(first[0]) and 1 < int(first.sum()) < len(first)
    assert json.loads(texts[int(record.episodes.task[1])])["seed"] == 101
    assert record.episodes.seed.tolist() == [100, 101, 102] and record.kinds == ("fine",)
    ended = ["z" in said(record, int((record.episode == e).nonzero()[-1])) for e in range(3)]
    assert record.episodes.terminated.tolist() == ended
    assert record.episodes.truncated.tolist() == [not end for end in ended]
    assert kept(record).tolist() == [1.0] * record.size


def test_streams_of_a_team() -> None:
    record = drive(team, starts(3)[2:]).record
    agents = [record.agents[a] for a in record.streams.agent.tolist()]
    parts = agents.count("executor")
    assert parts > 1 and agents == ["planner", *["executor"] * parts, "judge", "policy"]
    assert record.streams.parent_call.tolist() == [-1, *[0] * parts, -1, -1]
    use = record.calls.use
    assert use[-1] == Use.TARGET and use[-2] == Use.PROBE
    plan = record.item_slice(0)
    assert record.items.source[plan].tolist()[:4] == [Source.FORCED] * 3 + [Source.SAMPLED]
    probe = record.item_slice(len(use) - 2)
    assert set(record.items.source[probe].tolist()) == {Source.SCORED}
    assert record.items.logp[probe].isnan().all()
    retried = (record.calls.parent >= 0).nonzero()[:, 0].tolist()
    assert len(retried) == parts and all(said(record, c) for c in retried)
    for call in retried:
        before = int(record.calls.parent[call])
        assert record.calls.stream[call] == record.calls.stream[before] and call == before + 2
    stopped = [c for c in range(len(use)) if record.calls.end[c] == End.STOP]
    assert all(said(record, c).endswith("c") for c in stopped)


def test_a_text_may_be_trained_under_another_prompt_than_it_was_sampled_under() -> None:
    async def hinted(task: Any, world: Any, lm: Any, log: Any) -> None:
        await lm("with a hint", scored="without")

    record = one(hinted).record
    assert seen(record, 0) == "with a hint"
    assert Characters().decode(record.context_ids(0).tolist()) == "without"
    assert not record.behaviour.any()


def test_what_is_all_forced_and_what_is_told_asks_no_engine() -> None:
    engine = scripted()

    async def dictated(task: Any, world: Any, lm: Any, log: Any) -> list[Any]:
        forced = await lm("a", forced="xyz", max_tokens=3)
        told = await lm.tell("a", "xyz", agent="teacher")
        log.reward(2.0)
        return [forced, told]

    phase = one(dictated, engine=engine)
    forced, told = phase.results[0]
    assert engine.batches == [] and (forced.end, told.end) == (End.LENGTH, End.EOS)
    assert forced.text == told.text == "xyz" and all(map(math.isnan, (*forced.logp, *told.logp)))
    assert phase.record.calls.use.tolist() == [Use.ACTED, Use.TARGET]
    assert phase.record.calls.reward.tolist() == [0.0, 2.0]
    assert set(phase.record.items.source.tolist()) == {Source.FORCED}


def test_marks_go_to_the_next_call_or_to_the_reply_named() -> None:
    async def marked(task: Any, world: Any, lm: Any, log: Any) -> None:
        log.begin("segment")
        log.state("here")
        await lm.score("?", "x")  # a probe takes no marks
        await lm("other", agent="other")  # the state, not the begin: segments are the policy's
        first = await lm("first")
        second = await lm("second", use="proposed")
        log.begin("segment", of=second)
        log.state("there", of=second)
        log.reward(1.5)  # the first, which acted
        log.reward(0.25)
        log.reward(0.5, part="f1", of=second)
        log.reward(0.75, part="f1", of=second)
        log.valid(False, of=first)

    record = one(marked).record
    texts = record.texts.strings()
    by_prompt = {seen(record, call): call for call in range(4)}
    order = [by_prompt[name] for name in ("?", "other", "first", "second")]
    states = [int(record.calls.state_text[call]) for call in order]
    assert [texts[s] if s >= 0 else None for s in states] == [None, "here", None, "there"]
    assert record.calls.begin["segment"][order].tolist() == [False, False, True, True]
    assert record.calls.reward[order].tolist() == [0, 0, 1.75, 0]
    assert record.calls.part["f1"][order[3]] == 0.75 and record.calls.part["f1"][order[:3]].isnan().all()
    assert record.calls.valid[order].tolist() == [True, True, False, True]


def test_roles_may_share_weights() -> None:
    asked = []

    async def roles(task: Any, world: Any, lm: Any, log: Any) -> None:
        await lm("a")
        await lm("b", agent="judge")
        async with lm.stream("executor", learner=False) as child:
            await child("c")

    engine = ScriptedEngine(lambda request: asked.append(request.agent) or [99])
    record = one(roles, engine=engine, weights={"executor": "policy"}, versions={"policy": 4, "judge": 2}).record
    assert asked == ["policy", "judge", "policy"]
    assert record.calls.policy.tolist() == [4, 2, 4] and record.streams.learner.tolist() == [True, True, False]
    assert record.streams.parent_call.tolist() == [-1, -1, 0]


def test_a_stream_is_opened_by_the_last_call_before_it() -> None:
    async def nested(task: Any, world: Any, lm: Any, log: Any) -> None:
        await lm("plan")
        async with lm.stream("executor") as child:
            async with child.stream("helper") as inner:  # the executor has said nothing yet
                await inner("help")
            await child("do")
            async with child.stream("helper") as inner:
                await inner("help again")

    record = one(nested).record
    opened = zip(record.streams.agent.tolist(), record.streams.parent_call.tolist(), strict=True)
    by_prompt = {seen(record, call): call for call in range(4)}
    assert [(record.agents[agent], call) for agent, call in opened] == [
        ("policy", -1),
        ("helper", by_prompt["plan"]),
        ("executor", by_prompt["plan"]),
        ("helper", by_prompt["do"]),
    ]


def test_scores_are_served_in_batches_and_may_leave_no_trace() -> None:
    scorer = Lengths()

    async def candidates(task: Any, world: Any, lm: Any, log: Any) -> int:
        scores = await gather(*(lm.score("which", "x" * n, use=None) for n in (3, 1, 2)))
        best = max(range(3), key=lambda i: scores[i]["logp"].sum())
        await lm("go")
        return best

    phase = drive(candidates, starts(2), scorer=scorer, batch=4)
    assert scorer.batches == [4, 2] and set(phase.results.values()) == {1}
    assert len(phase.record.calls.out) == 2


# ---- control flow


def test_gather_keeps_the_order_and_runs_in_parallel() -> None:
    engine = scripted()

    async def parallel(task: Any, world: Any, lm: Any, log: Any) -> Any:
        async def chain(count: int) -> int:
            for _ in range(count):
                await lm(f"{count}")
            return count

        assert await gather() == []
        return await gather(chain(3), chain(0), gather(chain(2), lm("x")), chain(1))

    phase = one(parallel, engine=engine)
    three, none, (two, reply), last = phase.results[0]
    assert (three, none, two, last) == (3, 0, 2, 1) and reply.text
    assert engine.batches == [4, 2, 1]


def test_the_first_error_of_a_gather_ends_the_others() -> None:
    closed = []

    async def failing(task: Any, world: Any, lm: Any, log: Any) -> str:
        async def endless() -> None:
            try:
                while True:
                    await lm("again")
            finally:
                closed.append(True)

        async def bad() -> None:
            await lm("bad")
            raise KeyError("no such thing")

        try:
            await gather(endless(), bad(), endless())
        except KeyError as error:
            await lm("goes on")
            return str(error)
        return "no error"

    phase = one(failing)
    assert phase.results[0] == "'no such thing'" and closed == [True, True]
    assert len(phase.record.calls.out) == 4


def test_snapshots_restarts_and_the_expert() -> None:
    async def restarted(task: Any, world: Any, lm: Any, log: Any) -> list[Any]:
        first = await world.reset()
        second = await world.step("a")
        taken = await world.snapshot()
        hint = await world.expert()
        await world.step(hint)
        back = await world.restore(task, taken)
        await lm(back.text)
        return [first.text, second, taken, hint, back]

    phase = one(restarted)
    _, second, taken, hint, back = phase.results[0]
    assert taken == ("a",) and hint == "z" and back == second
    assert phase.record.episodes.truncated.tolist() == [True]  # the world's last observation was no end


def test_origins_and_texts_for_tasks() -> None:
    async def question(task: Any, world: Any, lm: Any, log: Any) -> None:
        await lm(task)

    phase = drive(question, [Start(4, task="2+2", kind="sum", seed=9), Start(5, task="3+3", origin=(4, 0, 1))])
    record = phase.record
    assert [record.texts[i] for i in record.episodes.task.tolist()] == ["2+2", "3+3"]
    assert record.episodes.terminated.all()  # without a world the program's end is the end
    assert record.episodes.origin_uid.tolist() == [-1, 4] and record.episodes.seed.tolist() == [9, 0]


def test_progress_is_told() -> None:
    told: list[Any] = []
    drive(turns, starts(4), report=told.append, at_once=2)
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].done == told[-1].total == 4


def test_rooms_and_counts_of_the_context() -> None:
    async def short(task: Any, world: Any, lm: Any, log: Any) -> Any:
        assert lm.context == 12 and lm.count("four") == 4
        return (await lm("x" * 9, max_tokens=50), await lm("x", max_tokens=50))

    first, second = one(short, engine=ScriptedEngine(lambda request: [97] * 40), context=12).results[0]
    assert (len(first.ids), len(second.ids)) == (3, 11) and first.end is End.LENGTH


def test_settings_are_checked() -> None:
    for wrong in ({"batch": 0}, {"at_once": 0}):
        with pytest.raises(Exception, match="at least 1"):
            Driver(scripted(), Characters(), Settings(**wrong))


def test_no_episode_gives_an_empty_record() -> None:
    phase = drive(turns, [])
    assert phase.record.size == 0 and phase.results == {} and phase.progress.total == 0
