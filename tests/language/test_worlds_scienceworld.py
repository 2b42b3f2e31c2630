"""ScienceWorld: gold sequences, scores, the simulator's own words; skipped where there is no Java."""

from __future__ import annotations

import promises
import pytest

pytest.importorskip("scienceworld")

from echelon.errors import UsageError
from echelon.language.worlds import scienceworld
from echelon.language.worlds.scienceworld import NoJava, ScienceWorld, find_java
from echelon.language.worlds.world import expert_episode, make, tasks

with_java = pytest.mark.skipif(find_java() is None, reason="ScienceWorld needs Java: apt install default-jre-headless")


@with_java
@pytest.mark.timeout(1200)  # starting Java and reading a task take long on a busy machine
def test_gold_sequences_win_and_the_simulator_answers_in_its_own_words():
    world = make("scienceworld")
    (task,) = tasks("scienceworld", "train", 1, 0, ["find-non-living-thing"])
    shown = expert_episode(world, task)
    assert shown.solved and shown.reward == 1.0 and shown.turns[-1].after.info["score"] == 100
    first = shown.turns[0].before  # it may have points already: looking around is a part of some tasks
    assert first.info["gained"] + sum(turn.after.info["gained"] for turn in shown.turns) == 100
    assert first.info["task"] in first.text and first.info["plan"] == tuple(turn.action for turn in shown.turns)
    slipped = expert_episode(world, task, 0.6)
    assert slipped.solved and any(turn.slip for turn in slipped.turns)
    world.reset(task)
    for action in ("dance", "", "take \u00e9\nnow"):
        unknown = world.step(action)
        assert not unknown.valid and not unknown.done and "No known action" in unknown.text
    points = make("scienceworld", points=1, listed=1)
    paid = expert_episode(points, task)
    assert [turn.after.reward for turn in paid.turns] == [turn.after.info["gained"] / 100 for turn in shown.turns]
    assert paid.turns[0].action in paid.turns[0].before.admissible or len(paid.turns[0].before.admissible) > 50
    promises.restored(make("scienceworld"), make("scienceworld"), task, every=4)


def test_without_java_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(scienceworld, "find_java", lambda: None)
    scienceworld.machine.cache_clear()
    with pytest.raises(NoJava, match="apt install default-jre-headless"):
        scienceworld.machine()


def test_a_program_that_is_no_java_is_named(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java() == str(program)
    scienceworld.machine.cache_clear()
    with pytest.raises(NoJava, match="does not start ScienceWorld"):
        scienceworld.machine()


def test_options_are_switches():
    assert len(ScienceWorld.kinds) == len(set(ScienceWorld.kinds)) == 30
    with pytest.raises(UsageError, match="easy is 2; it is 0 or 1"):
        make("scienceworld", easy=2)
    assert make("scienceworld").expert() is None
