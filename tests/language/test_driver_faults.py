"""What goes wrong in one episode closes that one, says why, and leaves all others as they would have been."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odd_worlds
import pytest
from driving import Characters, assert_same, drive, scripted, starts, team, turns, without

from echelon.errors import UsageError
from echelon.language._pool import WorkerError
from echelon.language.driver import Driver, FaultLimit, Phase, Settings, Start, kept
from echelon.language.engine import End, Request, Sample
from echelon.language.program import gather

BAD = 3
HANG_S = 3.0


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find the worlds of the tests."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def check_others(phase: Phase, bad: int = BAD, program: Any = turns, count: int = 8) -> None:
    """All episodes but `bad` are those of a run without a fault."""
    clean = drive(program, starts(count))
    assert not clean.faults
    assert_same(without(phase.record, [bad]), without(clean.record, [bad]))
    assert phase.results == {uid: result for uid, result in clean.results.items() if uid != bad}


def check_closed(phase: Phase, end: End, message: str, uid: int = BAD) -> None:
    """Episode `uid` alone was closed so; its tokens weigh nothing."""
    (fault,) = phase.faults
    assert (fault.uid, fault.end) == (uid, end) and message in fault.message, fault
    row = phase.record.episodes.uid.tolist().index(uid)
    assert phase.record.episodes.fault.tolist() == [int(end) if r == row else -1 for r in range(len(phase.results) + 1)]
    own = phase.record.episode[phase.record.call] == row
    assert kept(phase.record).tolist() == (~own).float().tolist()
    assert bool(phase.record.episodes.truncated[row]) and not bool(phase.record.episodes.terminated[row])


# ---- worlds


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "step of world 'odd' raised ValueError: the door is stuck"),
        ("unmade", "reset of world 'odd' raised RuntimeError: no game"),
        ("nan", "the reward nan"),
        ("none", "the reward None"),
        ("odd", "the reward 'much'"),
    ],
)
def test_a_world_raises_or_answers_nonsense(kind: str, message: str) -> None:
    phase = drive(turns, starts(8, {BAD: kind}))
    check_closed(phase, End.ERROR, message)
    check_others(phase)
    calls = (phase.record.episode == BAD).sum()
    assert calls == (0 if kind == "unmade" else 2)  # what it had done until then stays


@pytest.mark.parametrize(
    ("kind", "end", "message"),
    [
        ("raises", End.ERROR, "step of world 'odd' raised ValueError: the door is stuck"),
        ("none", End.ERROR, "the reward None"),
        ("objects", End.ERROR, "not JSON serializable"),
        ("dies", End.KILLED, "ended its process twice"),
        ("hangs", End.TIMEOUT, f"took longer than {HANG_S:g} s"),
    ],
)
def test_a_world_in_a_worker_raises_dies_or_hangs(kind: str, end: End, message: str) -> None:
    """All worlds live in one worker: those of the others are made again, and go on where they were."""
    phase = drive(turns, starts(8, {BAD: kind}), workers=1, limit_s=HANG_S)
    check_closed(phase, end, message)
    check_others(phase)
    if kind == "hangs":
        assert "_misbehave" in phase.faults[0].message  # where it hung


def test_a_world_that_dies_among_parallel_calls() -> None:
    phase = drive(team, starts(6, {BAD: "dies"}), workers=2, options={"odd": {"limit": 1}})
    assert not phase.faults  # one step only

    async def many(task: Any, world: Any, lm: Any, log: Any) -> list[Any]:
        await world.reset()
        return await gather(lm("x"), world.step("a"), world.step("b"), world.step("c"))

    phase = drive(many, starts(6, {BAD: "dies"}), workers=2)
    check_closed(phase, End.KILLED, "step of world 'odd'")
    check_others(phase, program=many, count=6)


def test_a_death_that_is_not_the_worlds_fault_costs_nothing(tmp_path: Path) -> None:
    options = {"odd": {"flags": str(tmp_path)}}
    died = drive(turns, starts(5, {1: "dies once"}), workers=1, options=options)
    assert (tmp_path / "1").exists() and not died.faults
    assert_same(drive(turns, starts(5, {1: "dies once"}), workers=1, options=options).record, died.record)


def test_a_world_that_cannot_be_made_again_is_found_out() -> None:
    phase = drive(turns, starts(4, {0: "drifts", BAD: "dies"}), workers=1)
    assert [(fault.uid, fault.end) for fault in phase.faults] == [(0, End.ERROR), (BAD, End.KILLED)]
    assert "depends on more than its task and its actions" in phase.faults[0].message


def test_worlds_are_used_again_unless_they_are_broken() -> None:
    odd_worlds.Odd.made = 0
    drive(turns, starts(8), at_once=2)
    assert odd_worlds.Odd.made == 2
    drive(turns, starts(8, {0: "raises"}), at_once=2)
    assert odd_worlds.Odd.made == 5


def test_workers_that_cannot_start_are_no_episodes_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot find"):
        Driver(scripted(), Characters(), make=lambda name: odd_worlds.make(name), workers=1)
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(WorkerError, match="No module named 'odd_worlds'"):
        drive(turns, starts(2), workers=1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")
def test_a_worker_that_hangs_does_not_outlive_its_parent(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        options = {"odd": {"flags": str(tmp_path)}}
        drive(turns, starts(1, {0: "hangs"}), workers=1, limit_s=HANG_S, options=options)
        os._exit(0)
    while not (tmp_path / "0").exists():  # it hangs
        time.sleep(0.05)
    (worker,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(1200):
        if not Path(f"/proc/{worker}").exists() or "zombie" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(int(worker), signal.SIGKILL)
    raise AssertionError("the worker went on")


# ---- programs


def broken(when: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """`turns`, and in episode 3 `when` after the first call."""

    async def program(task: Any, world: Any, lm: Any, log: Any) -> int:
        if task.index != BAD:
            return await turns(task, world, lm, log)
        await lm("first")
        await when(task, world, lm, log)
        return -1

    return program


async def raises(task: Any, world: Any, lm: Any, log: Any) -> None:
    raise KeyError("a bug")


async def raises_in_a_stream(task: Any, world: Any, lm: Any, log: Any) -> None:
    async with lm.stream("executor") as child:
        await gather(child("x"), raises(task, world, lm, log))


async def sleeps(task: Any, world: Any, lm: Any, log: Any) -> None:
    await asyncio.sleep(0)


async def clings(task: Any, world: Any, lm: Any, log: Any) -> None:
    async def holds() -> None:
        try:
            await lm("x")
        finally:
            await lm("y")

    await gather(holds(), raises(task, world, lm, log))


async def is_endless(task: Any, world: Any, lm: Any, log: Any) -> None:
    while True:
        await lm.score("x", "y", use=None)


async def outgrows(task: Any, world: Any, lm: Any, log: Any) -> None:
    await lm("x" * 100)


async def leaves_its_block(task: Any, world: Any, lm: Any, log: Any) -> None:
    async with lm.stream("executor") as child:
        pass
    await child("x")


def says(what: Callable[[Any, Any], Any]) -> Any:
    """A program that makes one statement on the log or the model."""

    async def program(task: Any, world: Any, lm: Any, log: Any) -> None:
        result = what(lm, log)
        if result is not None:
            await result

    return program


def acts(what: Callable[[Any], Any]) -> Any:
    """A program that asks its world one thing."""

    async def program(task: Any, world: Any, lm: Any, log: Any) -> None:
        await world.reset()
        await what(world)

    return program


class BadChannel:
    """Labels fewer tokens than there are."""

    name, labels = "bad", ("one",)

    def __call__(self, ids: Sequence[int]) -> list[int]:
        return [0] * (len(ids) - 1)


class RaisingChannel(BadChannel):
    """Does not work at all."""

    def __call__(self, ids: Sequence[int]) -> list[int]:
        raise ZeroDivisionError("no label")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (raises, "KeyError: 'a bug' (test_driver_faults.py, line"),
        (raises_in_a_stream, "in raises)"),
        (sleeps, "an episode awaited a NoneType"),
        (clings, "a bug"),
        (is_endless, "is it endless?"),
        (outgrows, "ContextTooLong: the prompt has 100 tokens and the answer needs at least 1, but the model takes 60"),
        (leaves_its_block, "this stream of 'executor' is closed"),
        (says(lambda lm, log: log.reward(None)), "a reward is None (NoneType)"),
        (says(lambda lm, log: log.reward(math.nan)), "a reward is nan"),
        (says(lambda lm, log: log.reward("1")), "a reward is '1' (str)"),
        (says(lambda lm, log: log.reward(math.inf, part="f1")), "a reward is inf"),
        (says(lambda lm, log: log.begin("turn")), "unknown level 'turn'"),
        (says(lambda lm, log: log.state(3)), "the state's key is 3"),
        (says(lambda lm, log: lm("")), "the prompt is empty"),
        (says(lambda lm, log: lm([1, -2])), "the prompt holds -2"),
        (says(lambda lm, log: lm([1, True])), "the prompt holds True"),
        (says(lambda lm, log: lm("x", use="played")), "unknown use 'played'; did you mean"),
        (says(lambda lm, log: lm("x", stop="ab")), "stop 'ab' is 2 tokens"),
        (says(lambda lm, log: lm("x", max_tokens=0)), "max_tokens is 0"),
        (says(lambda lm, log: lm("x", forced="abcd", max_tokens=3)), "emits at least 4"),
        (says(lambda lm, log: lm("x", temperature=-1)), "temperature is -1"),
        (says(lambda lm, log: lm("x", labels=[BadChannel()])), "the channel 'bad' gave"),
        (says(lambda lm, log: lm("x", labels=[RaisingChannel()])), "ZeroDivisionError: no label"),
        (says(lambda lm, log: lm.score("x", "y" * 80)), "ContextTooLong"),
        (acts(lambda world: world.step(None)), "world.step takes a str, not None"),
        (acts(lambda world: world.reset("x")), "world.reset takes a Task, not 'x'"),
    ],
)
def test_a_program_goes_wrong(when: Any, message: str) -> None:
    program = broken(when)
    phase = drive(program, starts(8), context=60, awaits=50)
    check_closed(phase, End.ERROR, message)
    check_others(phase)
    assert int((phase.record.episode == BAD).sum()) >= 1


def test_a_reward_before_any_call_has_no_place() -> None:
    phase = drive(says(lambda lm, log: log.reward(1.0)), starts(1))
    check_closed(phase, End.ERROR, "no call has acted yet", uid=0)
    assert phase.record.size == 0 and phase.results == {}


def test_a_program_may_catch_what_it_can_mend() -> None:
    async def careful(task: Any, world: Any, lm: Any, log: Any) -> str:
        from echelon.language.program import ContextTooLong

        try:
            return (await lm("x" * 100)).text
        except ContextTooLong:
            return (await lm("x" * 10)).text

    phase = drive(careful, starts(1), context=40)
    assert not phase.faults and len(phase.record.calls.out) == 1


def test_closing_runs_the_finally_blocks() -> None:
    closed = []

    async def tidy(task: Any, world: Any, lm: Any, log: Any) -> None:
        try:
            await world.reset()
            await world.step("a")
        finally:
            closed.append(task.index)

    phase = drive(tidy, [Start(0, task=odd_worlds.task(0, "unmade"))])
    assert closed == [0] and len(phase.faults) == 1


def test_too_many_faults_stop_the_rollout() -> None:
    with pytest.raises(FaultLimit, match=r"3 of 5 episodes failed.*the first, 0: reset of world 'odd' raised"):
        drive(turns, starts(5, {0: "unmade", 2: "unmade", 4: "raises"}), tolerate=0.5)
    assert len(drive(turns, starts(5, {0: "raises", 4: "raises"}), tolerate=0.5).faults) == 2


# ---- engines and scorers


class Moody:
    """Serves all requests but those of one context, in which it raises or answers with what `spoil` makes of it."""

    def __init__(self, spoil: Callable[[Sample], Sample] | None):
        self.inner, self.spoil = scripted(), spoil

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        bad = [request.context == tuple(map(ord, "first")) for request in requests]
        if any(bad) and self.spoil is None:
            raise RuntimeError("out of memory")
        samples = self.inner.generate(requests)
        return [self.spoil(s) if b and self.spoil else s for s, b in zip(samples, bad, strict=True)]

    def load(self, agent: str, weights: Any) -> None:
        """Nothing to load."""


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (None, "the engine raised RuntimeError: out of memory"),
        (lambda s: replace(s, ids=()), "0 tokens and"),
        (lambda s: Sample((), (), End.LENGTH), "fills the model's window"),
        (lambda s: replace(s, ids=(97,) * 9, logp=(-1.0,) * 9), "9 tokens and 9 log-probs; 1 to 8"),
        (lambda s: replace(s, logp=s.logp[1:]), "log-probs; 1 to 8 are asked for"),
        (lambda s: replace(s, logp=(math.nan, *s.logp[1:])), "log-probs that are not finite"),
        (lambda s: replace(s, logp=(-math.inf, *s.logp[1:])), "log-probs that are not finite"),
    ],
)
def test_the_engine_fails_on_one_request(spoil: Any, message: str, batch: int) -> None:
    phase = drive(broken(raises), starts(8), engine=Moody(spoil), batch=batch)
    check_closed(phase, End.ERROR, message)
    check_others(phase)


def test_an_engine_that_forgets_what_was_forced() -> None:
    class Forgetful(Moody):
        def generate(self, requests: Sequence[Request]) -> list[Sample]:
            return self.inner.generate([replace(request, forced=()) for request in requests])

    phase = drive(says(lambda lm, log: lm("x", forced="yes")), starts(1), engine=Forgetful(None))
    check_closed(phase, End.ERROR, "other tokens than the forced ones", uid=0)


def test_an_engine_that_loses_requests_is_no_episodes_fault() -> None:
    class Lossy(Moody):
        def generate(self, requests: Sequence[Request]) -> list[Sample]:
            return self.inner.generate(requests)[1:]

    with pytest.raises(UsageError, match="1 answers to 2 requests"):
        drive(turns, starts(2), engine=Lossy(None))


def test_the_scorer_fails_on_one_request_or_is_missing() -> None:
    class Picky:
        def score(self, requests: Sequence[Any]) -> list[dict[str, np.ndarray]]:
            if any(request.target == (ord("!"),) for request in requests):
                raise ValueError("no such target")
            return [{"logp": np.zeros(len(request.target))} for request in requests]

    async def probing(task: Any, world: Any, lm: Any, log: Any) -> float:
        scores = await lm.score("x", "!" if task.index == BAD else "y")
        return float(scores["logp"].sum())

    phase = drive(probing, starts(8), scorer=Picky(), batch=4)
    check_closed(phase, End.ERROR, "the scorer raised ValueError: no such target")
    assert phase.results == dict.fromkeys((0, 1, 2, 4, 5, 6, 7), 0.0)
    with Driver(scripted(), Characters(), Settings(tolerate=1.0), make=odd_worlds.make) as driver:
        check_closed(driver.rollout(probing, starts(1)), End.ERROR, "needs a scorer", uid=0)
