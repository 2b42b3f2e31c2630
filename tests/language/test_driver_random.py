"""Random programs: whatever the batch size, the number of open episodes and the company, an episode stays the same."""

from __future__ import annotations

from typing import Any

from driving import Characters, assert_same, drive, starts, without
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.language._play import call_seed
from echelon.language.program import gather
from echelon.language.record import Record, Use

Tree = Any
"""("lm", …), ("score",), ("tell",), ("step",), ("mark",), ("raise",); ("do" | "all" | "stream", [trees])."""

leaves = st.one_of(
    st.tuples(st.just("lm"), st.sampled_from(["policy", "judge"]), st.integers(1, 6)),
    st.sampled_from([("score",), ("tell",), ("step",), ("mark",)]),
)
trees = st.recursive(
    leaves,
    lambda inner: st.tuples(st.sampled_from(["do", "all", "stream"]), st.lists(inner, max_size=4)),
    max_leaves=12,
)


def program_of(plans: list[Tree]) -> Any:
    """Episode i runs plan i; what it says depends on what it was answered."""

    async def run(tree: Tree, lm: Any, world: Any, log: Any, heard: list[str]) -> None:
        kind = tree[0]
        if kind == "lm":
            reply = await lm(f"say {''.join(heard)[-4:]}", agent=tree[1], max_tokens=tree[2])
            heard.append(reply.text)
            log.reward(len(reply.ids) / 4, of=reply)
            if reply.text > "k":
                await lm.score("more", reply.ids, use=None)
        elif kind == "score":
            heard.append(f"{(await lm.score('how', 'so'))['logp'].sum():.2f}")
        elif kind == "tell":
            await lm.tell("do", "as I say")
        elif kind == "step":
            heard.append((await world.restore(log._episode.start.task, heard[-1:])).text)
        elif kind == "mark":
            log.begin("segment")
            log.state(f"{len(heard)}")
        elif kind == "raise":
            raise RuntimeError("as planned")
        elif kind == "do":
            for part in tree[1]:
                await run(part, lm, world, log, heard)
        elif kind == "all":
            await gather(*(run(part, lm, world, log, heard) for part in tree[1]))
        else:
            async with lm.stream("executor") as child:
                for part in tree[1]:
                    await run(part, child, world, log, heard)

    async def program(task: Any, world: Any, lm: Any, log: Any) -> list[str]:
        heard: list[str] = []
        await lm("first")  # so that no episode is empty, and all records have the same columns
        await run(plans[task.index], lm, world, log, heard)
        return heard

    return program


def seeds_by_stream(record: Record) -> None:
    """Every sampled call has the seed of its place."""
    made: dict[int, int] = {}
    for call, stream in enumerate(record.calls.stream.tolist()):
        if record.calls.use[call] == Use.ACTED:
            episode = int(record.streams.episode[stream])
            first = int((record.streams.episode == episode).nonzero()[0])
            uid, index = int(record.episodes.uid[episode]), made.get(stream, 0)
            assert int(record.calls.seed[call]) in {
                call_seed(5, uid, number, index) for number in range(stream - first, stream - first + 9)
            }
            made[stream] = index + 1


@settings(max_examples=40)
@given(plans=st.lists(trees, min_size=1, max_size=5), batch=st.integers(1, 4), at_once=st.integers(1, 5))
def test_random_programs_do_not_depend_on_batches(plans: list[Tree], batch: int, at_once: int) -> None:
    begun, program = starts(len(plans)), program_of(plans)
    whole = drive(program, begun, batch=64)
    assert not whole.faults
    other = drive(program, begun, batch=batch, at_once=at_once)
    assert_same(other.record, whole.record)
    assert other.results == whole.results
    seeds_by_stream(whole.record)
    alone = drive(program, begun[-1:])
    assert_same(without(whole.record, range(len(plans) - 1)), alone.record)


def with_raise(tree: Tree, place: int) -> Tree:
    """The plan that raises beside its part number `place`."""
    return ("all", [("do", [("lm", "policy", 3)] * place + [("raise",)]), tree])


@settings(max_examples=30)
@given(plans=st.lists(trees, min_size=2, max_size=5), bad=st.integers(0, 4), place=st.integers(0, 3))
def test_an_episode_that_raises_anywhere_changes_no_other(plans: list[Tree], bad: int, place: int) -> None:
    bad %= len(plans)
    broken = [with_raise(plan, place) if number == bad else plan for number, plan in enumerate(plans)]
    begun = starts(len(plans))
    clean, faulty = drive(program_of(plans), begun, batch=3), drive(program_of(broken), begun, batch=3)
    assert [fault.uid for fault in faulty.faults] == [bad]
    assert "as planned" in faulty.faults[0].message
    assert_same(without(faulty.record, [bad]), without(clean.record, [bad]))
    assert "raise" not in Characters().decode(faulty.record.token.tolist())
