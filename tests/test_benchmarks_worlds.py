"""The benchmark of worlds: every world is timed, and the slots are all counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import worlds
from echelon.envs.grids import WORLDS


def test_every_world_is_timed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["worlds", "--slots", "3", "--ticks", "4", "--repeats", "1"])
    worlds.main()
    table = capsys.readouterr().out
    assert all(f"\n{name} " in table for name in WORLDS) and "3 slots" in table


def test_a_rate_counts_the_steps_of_all_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(worlds.time, "process_time", lambda: next(clock))
    played: list[int] = []
    assert worlds.rate(played.append, ticks=10, slots=4, repeats=2) == 30.0  # 40 in 2 s and in 1 s; the first is warmth
    assert played == [10, 10, 10]
