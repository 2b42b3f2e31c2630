"""An interrupted rollout goes on from its journal and gives, bit for bit, the record that nothing interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driving import LEVELS, Characters, Lengths, assert_same, drive, scripted, starts, team, turns
from forked import run_forked
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_worlds import make

from echelon.errors import DataError
from echelon.language.driver import Driver, Phase, Settings
from echelon.language.engine import End, Request, Sample

BATCH, EPISODES = 4, 7


class Interrupted:
    """The scripted engine, until `left` batches are served."""

    def __init__(self, left: int, kill: bool = False):
        self.inner, self.left, self.kill = scripted(), left, kill

    @property
    def batches(self) -> list[int]:
        return self.inner.batches

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        if self.left == 0:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        self.left -= 1
        return self.inner.generate(requests)

    def load(self, agent: str, weights: Any) -> None:
        """Nothing to load."""


def run(journal: Path | None, engine: Any = None, program: Any = team, **changes: Any) -> Phase:
    return drive(program, starts(EPISODES), engine=engine, journal=journal, batch=BATCH, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Phase, list[int], bytes]:
    """(an uninterrupted rollout, its batches, its journal)."""
    engine, path = scripted(), tmp_path_factory.mktemp("whole") / "journal"
    phase = run(path, engine)
    assert_same(run(None).record, phase.record)  # keeping a journal changes nothing
    return phase, engine.batches, path.read_bytes()


@pytest.mark.parametrize("served", [0, 1, 2, 5, 9])
def test_a_killed_rollout_goes_on_where_it_was(
    served: int, whole: tuple[Phase, list[int], bytes], tmp_path: Path
) -> None:
    phase, batches, _ = whole
    path, scorer = tmp_path / "journal", Lengths()
    code = run_forked(lambda: run(path, Interrupted(served, kill=True)))
    assert code == -signal.SIGKILL
    engine = scripted()
    resumed = run(path, engine, scorer=scorer)
    assert engine.batches == batches[served:]  # the same batches: a real engine's rounding would be the same, too
    assert_same(resumed.record, phase.record)
    assert resumed.results == phase.results and resumed.faults == phase.faults == ()
    assert resumed.progress == replace(phase.progress, replayed=resumed.progress.replayed)
    assert resumed.progress.replayed >= sum(batches[:served])


def test_it_may_be_interrupted_again_and_again(whole: tuple[Phase, list[int], bytes], tmp_path: Path) -> None:
    phase, batches, journal = whole
    path, times = tmp_path / "journal", 0
    while True:
        engine = Interrupted(2)
        try:
            resumed = run(path, engine)
        except KeyboardInterrupt:
            times += 1
        else:
            break
    assert times == (len(batches) - 1) // 2
    assert_same(resumed.record, phase.record)
    assert path.read_bytes() == journal


@settings(max_examples=25)
@given(share=st.floats(0, 1))
def test_a_journal_cut_anywhere_is_completed(
    share: float, whole: tuple[Phase, list[int], bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    phase, _, journal = whole
    path = tmp_path_factory.mktemp("cut") / "journal"
    cut = journal[: int(share * len(journal))]
    path.write_bytes(cut)
    resumed = run(path)
    assert_same(resumed.record, phase.record)
    assert path.read_bytes() == journal
    lines = [line for line in cut.split(b"\n")[:-1] if b'"ids"' in line or b'"scores"' in line]
    assert resumed.progress.replayed == sum(line.count(b'"ids"') + line.count(b'{"scores"') for line in lines)


def test_a_finished_journal_needs_no_engine(whole: tuple[Phase, list[int], bytes], tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(whole[2])
    engine, scorer = scripted(), Lengths()
    assert_same(run(path, engine, scorer=scorer).record, whole[0].record)
    assert engine.batches == scorer.batches == []


def test_another_batch_size_reads_the_same_journal(whole: tuple[Phase, list[int], bytes], tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"\n".join(whole[2].split(b"\n")[:4]) + b"\n")
    resumed = drive(team, starts(EPISODES), journal=path, batch=3)
    assert resumed.progress.replayed > 0
    assert_same(resumed.record, whole[0].record)


@pytest.mark.parametrize("place", [30, 200, 1000])
def test_damage_inside_the_journal_is_reported(
    place: int, whole: tuple[Phase, list[int], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    damaged = bytearray(whole[2])
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"line \d+ is damaged; remove it"):
        run(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("changes", [{"run": 6}, {"versions": {"policy": 1}}])
def test_the_journal_of_another_phase_is_refused(
    changes: dict[str, Any], whole: tuple[Phase, list[int], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(whole[2])
    with pytest.raises(DataError, match="another rollout phase"):
        run(path, **changes)
    with pytest.raises(DataError, match="another rollout phase"):
        drive(team, starts(EPISODES + 1), journal=path)
    driver = Driver(scripted(), Characters(), Settings(run=5, max_tokens=8, batch=BATCH), make=make)
    with pytest.raises(DataError, match="another rollout phase"):
        driver.rollout(team, starts(EPISODES), levels=LEVELS, journal=path, meta={"tokenizer": "b"})


def test_a_changed_program_is_refused(whole: tuple[Phase, list[int], bytes], tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(whole[2])
    with pytest.raises(DataError, match="operation 1 of episode 0 was another request than now"):
        run(path, program=turns)


def test_faults_are_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The world hung in the interrupted run: it is not asked again, nor may the outcome differ."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    path, begun = tmp_path / "journal", starts(4, {1: "hangs"})
    first = drive(turns, begun, workers=1, limit_s=2.0, journal=path)
    again = drive(turns, begun, journal=path)  # would hang for long in this process
    assert [(fault.uid, fault.end) for fault in first.faults] == [(1, End.TIMEOUT)]
    assert again.faults == first.faults
    assert_same(again.record, first.record)


def test_an_engines_faults_are_read_back(tmp_path: Path) -> None:
    class Once:
        def __init__(self) -> None:
            self.inner = scripted()

        def generate(self, requests: Sequence[Request]) -> list[Sample]:
            if any(b"start" in bytes(request.context) for request in requests):
                raise RuntimeError("not this one")
            return self.inner.generate(requests)

        def load(self, agent: str, weights: Any) -> None:
            """Nothing to load."""

    async def named(task: Any, world: Any, lm: Any, log: Any) -> None:
        await lm("start" if task.index == 2 else "go")

    path = tmp_path / "journal"
    first = drive(named, starts(4), engine=Once(), journal=path)
    again = drive(named, starts(4), journal=path)
    assert len(first.faults) == 1 and again.faults == first.faults
    assert_same(again.record, first.record)
