"""The test environments: protocol, sizes without physics, repeatable resets, and the shortest-path expert."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from echelon.envs.catalog import ENVIRONMENTS, environment
from echelon.envs.maze import MazeMap
from echelon.envs.ogbench import GoalEnv, bfs_rollouts, make_env, tasks
from echelon.errors import UsageError


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_spaces_and_tasks_cost_no_physics(name):
    env = make_env(name)
    info = environment(name)
    assert env.observation_space["observation"].shape == env.observation_space["goal"].shape == (info.observation_dim,)
    assert env.action_space.shape == (info.action_dim,)
    assert len(tasks(name)) == len(info.tasks) and env._simulator is None
    with pytest.raises(UsageError, match="step before the first reset"):
        env.step(np.zeros(info.action_dim))


@pytest.mark.parametrize(
    "name",
    ["pointmaze-large-v0", "antmaze-medium-v0", "cube-double-v0", "scene-v0", "puzzle-3x3-v0", "antsoccer-arena-v0"],
)
def test_a_seeded_reset_decides_everything(name):
    env = make_env(name)
    simulator = env.simulator
    assert tuple(task["task_name"] for task in simulator.task_infos) == tasks(name)

    def play(seed):
        seen, info = env.reset(seed=seed, options={"task_id": 2})
        assert info == {"task_id": 2, "task": tasks(name)[1]}
        found = [seen["goal"], seen["observation"]]
        for k in range(3):
            seen, *_ = env.step(np.full(env.action_space.shape, 0.3 * (-1) ** k))
            found.append(seen["observation"])
        assert env.observation_space.contains(seen)
        return np.stack(found)

    first = play(7)
    other = play(8)
    np.random.seed(99)
    drawn = np.random.rand(3)
    np.random.seed(99)
    env.action_space.sample()
    again = play(7)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(np.random.rand(3), drawn)  # the caller's global generator is left alone
    env.close()


def test_episode_ends_at_the_goal_or_at_the_limit():
    env = make_env("pointmaze-medium-navigate-v0")
    maze = MazeMap.of("medium")
    seen, _ = env.reset(seed=0, options={"task_id": 3})
    start, goal = seen["observation"], seen["goal"]
    assert maze.tasks[2].start == tuple(maze.to_cell(start)) and maze.tasks[2].goal == tuple(maze.to_cell(goal))
    seen, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False})
    env.simulator.set_xy(goal + np.array([0.9, 0.0]))
    seen, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True})
    short = GoalEnv(replace(env.facts, limit=4))
    short.reset(seed=0, options={"task_id": 1})
    assert [short.step(np.ones(2))[3] for _ in range(4)] == [False, False, False, True]
    short.reset(seed=0)
    assert short.step(np.ones(2))[3] is False


def test_actions_are_clipped_and_checked():
    env = make_env("pointmaze-medium-v0")
    env.reset(seed=1, options={"task_id": 1})
    far, *_ = env.step(np.array([5.0, 0.0]))
    env.reset(seed=1, options={"task_id": 1})
    near, *_ = env.step(np.array([1.0, 0.0]))
    assert np.array_equal(far["observation"], near["observation"])
    for wrong in (np.array([np.nan, 0.0]), np.zeros(3), np.zeros((1, 2))):
        with pytest.raises(UsageError, match="an action is 2 finite numbers"):
            env.step(wrong)
    for task in (0, 6, "task1"):
        with pytest.raises(UsageError, match=r"no task .*valid: 1 to 5"):
            env.reset(options={"task_id": task})
    with pytest.raises(UsageError, match="unknown environment 'pointmaze-larg-v0'"):
        make_env("pointmaze-larg-v0")


def test_goal_noise_differs_between_seeds_and_stays_within_one():
    env = make_env("pointmaze-large-v0")
    goal = np.array(MazeMap.of("large").tasks[0].goal_xy)
    gaps = np.array([env.reset(seed=s, options={"task_id": 1})[0]["goal"] - goal for s in range(40)])
    assert np.abs(gaps).max() <= 1 and np.abs(gaps).max() > 0.9 and len(np.unique(gaps[:, 0])) == 40


@pytest.mark.parametrize("name", ["pointmaze-medium-v0", "pointmaze-giant-navigate-v0"])
def test_shortest_path_expert_reaches_every_goal(name):
    maze = MazeMap.of(name)
    found = bfs_rollouts(name, seed=5)
    assert [r.task for r in found] == [t.name for t in maze.tasks]
    for rollout, task in zip(found, maze.tasks, strict=True):
        assert rollout.success and rollout.observations.dtype == np.float32 and rollout.goal.shape == (2,)
        assert np.linalg.norm(rollout.observations[-1] - rollout.goal) <= 1.0 + 1e-5
        cells = maze.to_cell(rollout.observations)
        visited = [tuple(cells[0]), *(tuple(b) for a, b in pairwise(cells) if (a != b).any())]
        assert visited == maze.path(task.start, task.goal)[: len(visited)]
        assert len(visited) >= len(maze.path(task.start, task.goal)) - 1  # success may come just before the last cell
    with pytest.raises(UsageError, match="pointmaze only"):
        bfs_rollouts("antmaze-medium-v0")
