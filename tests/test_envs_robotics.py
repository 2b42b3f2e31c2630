"""Goal-directed tasks of gymnasium-robotics: found by name, read as dicts of goals, restored bit for bit."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")

from echelon.envs.restore import set_state, state_of
from echelon.errors import DataError, UsageError
from echelon.systems.online.common import Reader
from echelon.training import checkpoint
from echelon.training.online.worlds import make_env, make_world, world_spaces

GOALS = ("observation", "achieved_goal", "desired_goal")


def test_names_are_registered_when_asked_for() -> None:
    env = make_env("PointMaze_Medium-v3", 7)
    assert env.spec is not None and env.spec.max_episode_steps == 7
    env.close()
    with pytest.raises(UsageError, match="PointMaze_Nowhere"):
        make_env("PointMaze_Nowhere-v3")


@pytest.mark.parametrize("name", ["PointMaze_UMaze-v3", "AntMaze_UMaze-v5"])
def test_a_maze_leaves_no_file_behind(name: str) -> None:
    env = make_env(name)
    assert not Path(env.unwrapped.tmp_xml_file_path).exists()
    env.reset(seed=0)
    env.close()


def test_goals_are_read_by_name() -> None:
    spaces = world_spaces("PointMaze_UMaze-v3")
    assert {name: spaces.observation[name] for name in GOALS} == {GOALS[0]: (4,), GOALS[1]: (2,), GOALS[2]: (2,)}
    assert spaces.low == (-1.0, -1.0) and spaces.size(*GOALS) == 8
    seen = {name: torch.full((3, spaces.size(name)), float(i)) for i, name in enumerate(GOALS)}
    assert Reader(spaces, (GOALS[2], GOALS[0]))(seen)[0].tolist() == [2, 2, 0, 0, 0, 0]
    assert world_spaces("FetchReach-v4").size(*GOALS) == 16


def test_goals_of_several_tasks_are_joined_by_name() -> None:
    """The kitchen's goals are dicts; tasks in the order of their names, as the space has them."""
    spaces = world_spaces("FrankaKitchen-v1")
    assert {name: spaces.observation[name] for name in GOALS} == {GOALS[0]: (59,), GOALS[1]: (17,), GOALS[2]: (17,)}
    env = make_env("FrankaKitchen-v1")
    seen, _ = env.reset(seed=0)
    base = env.unwrapped
    assert seen["desired_goal"].tolist() == [x for name in sorted(base.goal) for x in base.goal[name].tolist()]
    assert env.observation_space.contains(seen)


@pytest.mark.parametrize(
    "name", ["PointMaze_UMaze-v3", "AntMaze_UMaze-v5", "FetchReach-v4", "FetchPush-v4", "FrankaKitchen-v1"]
)
def test_a_restored_task_goes_on_bit_for_bit(name: str) -> None:
    """Through a wall's contact or a push; with the same goal, time left, and later episodes."""
    first, second = make_env(name, 30), make_env(name, 30)
    draw = np.random.default_rng(3)
    actions = np.sign(draw.uniform(-1, 1, (20, *first.action_space.shape))).astype(np.float32).repeat(2, 0)
    first.reset(seed=11)
    for action in actions[:17]:
        first.step(action)
    state = state_of(first)
    assert state is not None
    second.reset(seed=5)
    second.step(actions[0])
    tensors, plain = checkpoint.flatten(state, "state")
    set_state(second, checkpoint.unflatten(tensors, plain))
    for action in actions[17:]:
        one, other = first.step(action), second.step(action)
        for goal in GOALS:
            assert one[0][goal].tobytes() == other[0][goal].tobytes()
        assert one[1:4] == other[1:4]
        if one[3]:
            one, other = first.reset(), second.reset()
            assert all(one[0][goal].tobytes() == other[0][goal].tobytes() for goal in GOALS)


def test_tasks_done_in_the_kitchen_are_restored() -> None:
    first, second = make_env("FrankaKitchen-v1"), make_env("FrankaKitchen-v1")
    for env in (first, second):
        env.reset(seed=3)
    first.unwrapped.tasks_to_complete -= {"kettle", "microwave"}
    first.unwrapped.episode_task_completions += ["microwave", "kettle"]
    tensors, plain = checkpoint.flatten(state_of(first), "state")
    set_state(second, checkpoint.unflatten(tensors, plain))
    assert second.unwrapped.tasks_to_complete == first.unwrapped.tasks_to_complete
    assert second.unwrapped.episode_task_completions == ["microwave", "kettle"]


def test_what_is_not_known_says_so() -> None:
    hand, point = make_env("AdroitHandDoor-v1"), make_env("PointMaze_UMaze-v3")
    for env in (hand, point):
        env.reset(seed=0)
    assert state_of(hand) is None
    state = state_of(point)
    assert state is not None
    with pytest.raises(DataError, match="PointMazeEnv"):
        set_state(gymnasium.make("CartPole-v1"), state)
    assert make_world("AdroitHandDoor-v1", 1).state_dict() is None
