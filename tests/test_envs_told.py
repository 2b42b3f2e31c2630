"""Scenes in which something is asked for: what is pursued in the data, and what the test environment judges."""

from dataclasses import replace

import numpy as np
import pytest

from echelon.envs import told
from echelon.envs.catalog import SCENE_INSTRUCTIONS, parse
from echelon.envs.ogbench import make_env
from echelon.training.evaluation import Evaluator

FACTS = {
    "privileged/drawer_pos": np.array([0.0]),
    "privileged/window_pos": np.array([0.0]),
    "privileged/drawer_handle_pos": np.array([0.33, -0.24, 0.08]),
    "privileged/block_0_pos": np.array([0.4, 0.0, 0.02]),
    "button_states": np.array([1, 1]),
}
OPEN = {"privileged/drawer_pos": np.array([-0.16]), "privileged/drawer_handle_pos": np.array([0.33, -0.08, 0.08])}
WIDE = {"privileged/window_pos": np.array([0.2])}


def at(x, y, z):
    return {"privileged/block_0_pos": np.array([x, y, z])}


def test_rows_tell_what_is_pursued_and_are_repeatable():
    source = told.ToldCollector(replace(parse("scene-told-v0"), length=90))
    targets = []
    retarget = source.retarget

    def noted(stacking):
        seen, facts = retarget(stacking)
        targets.append(told.instruction_of(facts))
        return seen, facts

    source.retarget = noted
    first = source.episode(5, 0)
    instructions = first["instructions"]
    assert instructions.shape == (91,) and instructions.dtype == np.int64
    changes = np.flatnonzero(np.diff(instructions)) + 1
    pursued = instructions[[0, *changes]].tolist()
    assert pursued == [a for a, b in zip(targets, [None, *targets], strict=False) if a != b][: len(pursued)]
    assert len(targets) >= 2 and changes.min() > 15
    again = source.episode(5, 0)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    source.close()


def test_which_instruction_a_target_is():
    def target(task, **facts):
        named = {f"privileged/target_{name}": value for name, value in facts.items()}
        return SCENE_INSTRUCTIONS[told.instruction_of({"privileged/target_task": task, **named})]

    assert target("drawer", drawer_pos=[-0.16]) == "open the drawer"
    assert target("drawer", drawer_pos=[0.0]) == "close the drawer"
    assert target("window", window_pos=[0.2]) == "open the window"
    assert target("window", window_pos=[0.0]) == "close the window"
    assert target("button", button=0) == "press the right button"
    assert target("button", button=1) == "press the left button"
    assert target("cube", block_pos=[0.33, -0.24, 0.066]) == "put the block into the drawer"
    assert target("cube", block_pos=[0.4, -0.07, 0.02]).startswith("move the block")


def test_what_is_locked_or_done_is_not_asked_for():
    def possible(**changes):
        return {SCENE_INSTRUCTIONS[k].split()[0] + SCENE_INSTRUCTIONS[k].split()[2][0] for k in told.possible(changes)}

    assert sorted(possible(**FACTS)) == ["moveb", "opend", "openw", "pressl", "pressr"]
    locked = FACTS | {"button_states": np.array([0, 0])}
    assert possible(**locked) == {"moveb", "pressl", "pressr"}
    assert "closed" in possible(**(FACTS | OPEN)) and "putb" in possible(**(FACTS | OPEN))
    inside = FACTS | OPEN | at(0.33, -0.24, 0.066)
    assert not {"moveb", "putb"} & possible(**inside)


@pytest.mark.parametrize(
    ("sentence", "before", "after", "short"),
    [
        ("open the drawer", {}, OPEN, {"privileged/drawer_pos": np.array([-0.119])}),
        ("close the drawer", OPEN, {"privileged/drawer_pos": np.array([-0.04])}, OPEN),
        ("open the window", {}, {"privileged/window_pos": np.array([0.161])}, {}),
        ("close the window", WIDE, {}, {"privileged/window_pos": np.array([0.05])}),
        ("press the left button", {}, {"button_states": np.array([1, 0])}, {"button_states": np.array([0, 1])}),
        ("press the right button", {}, {"button_states": np.array([0, 1])}, {"button_states": np.array([1, 0])}),
        ("put the block into the drawer", OPEN, OPEN | at(0.33, -0.24, 0.066), OPEN | at(0.33, -0.24, 0.12)),
        (SCENE_INSTRUCTIONS[7], {}, at(0.4, 0.05, 0.02), at(0.4, 0.05, 0.1)),
    ],
)  # fmt: skip
def test_when_an_instruction_is_followed(sentence, before, after, short):
    k = SCENE_INSTRUCTIONS.index(sentence)
    assert told.followed(k, FACTS | before, FACTS | after)
    assert not told.followed(k, FACTS | before, FACTS | short)
    assert not told.followed(k, FACTS | before, FACTS | before)


def test_starts_make_sense_and_goals_are_what_is_asked_for():
    for k in range(8):
        for seed in range(20):
            start, goal = told.layouts(k, np.random.default_rng(seed))
            changed = {name for name in start if not np.array_equal(start[name], goal[name])}
            which = ["drawer_pos", "window_pos", "button_states", "block_xyzs"][k // 2]
            assert changed == {which}
            assert k not in told.DRAWER or start["button_states"][0] == 1
            assert k not in told.WINDOW or start["button_states"][1] == 1
            assert k != told.PUT_IN_DRAWER or start["drawer_pos"] == -0.16


def test_the_test_environment_asks_and_judges():
    env = make_env("scene-told-v0")
    assert len(env.facts.tasks) == 8 and env.facts.tasks[0] == "task1_open_the_drawer"
    seen, info = env.reset(seed=4, options={"task_id": 6})
    assert info == {"task_id": 6, "task": "task6_press_the_right_button"}
    assert env.observation_space.contains(seen) and seen["instruction"].argmax() == 5
    assert seen["goal"][28:30].tolist() == [1, 0] if seen["observation"][28] == 0 else [0, 1]
    again, _ = env.reset(seed=4, options={"task_id": 6})
    assert all(np.array_equal(seen[name], again[name]) for name in seen)
    _, reward, terminated, truncated, outcome = env.step(np.zeros(5))
    assert (reward, terminated, truncated, outcome) == (0.0, False, False, {"success": False})
    env.simulator._cur_button_states[0] = 1 - env.simulator._cur_button_states[0]
    _, reward, terminated, truncated, outcome = env.step(np.zeros(5))
    assert (reward, terminated, truncated, outcome) == (1.0, True, False, {"success": True})
    env.close()
    assert list(Evaluator("scene-told-v0", 1, 0).tasks) == list(range(1, 9))
