"""OGBench's goal-conditioned test environments as Gymnasium environments with dictionary observations.

The protocol is that of the benchmark (arXiv 2410.20092): five fixed tasks (echelon's own environments may have more),
the episode ends at the goal or after the environment's limit of steps, and it is a success if the goal was reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from echelon.envs.catalog import EnvInfo, environment
from echelon.envs.families import require_control
from echelon.envs.maze import MazeMap
from echelon.envs.simulators import build
from echelon.errors import UsageError

Observation = dict[str, np.ndarray]


class Rollout(NamedTuple):
    """What an expert did in one test task: observations float32[T, O] from start to end, and the goal float32[O]."""

    task: str
    observations: np.ndarray
    goal: np.ndarray
    success: bool


class GoalEnv(gymnasium.Env[Observation, np.ndarray]):
    """One test environment. Observations are {"observation": float32[O], "goal": float32[O]}.

    `reset(options={"task_id": k})` chooses task k from 1 on; without it a task is drawn. `info["success"]` says at
    every step whether the goal is reached now; `terminated` is the same, `truncated` the limit of steps. Actions are
    clipped to [-1, 1]. A reset with a seed decides everything that follows, whatever happened before and whoever else
    draws random numbers. The simulator is built at the first reset: spaces and sizes cost nothing.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(self, facts: EnvInfo):
        require_control()
        self.facts = facts
        whole = Box(-np.inf, np.inf, (facts.observation_dim,), np.float32)
        self.observation_space: Any = Dict({"observation": whole, "goal": whole})
        self.action_space = Box(-1.0, 1.0, (facts.action_dim,), np.float32)
        self._simulator: Any = None
        self._goal = np.zeros(facts.observation_dim, np.float32)
        self._steps = 0
        self._draws_at_steps = facts.name.split("-")[1] == "teleport"
        self._numpy_state = np.random.RandomState().get_state()

    @property
    def simulator(self) -> Any:
        """OGBench's own environment, built when first asked for."""
        if self._simulator is None:
            self._simulator = build(self.facts)
        return self._simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode of task `options["task_id"]`; info holds the task's number and name."""
        super().reset(seed=seed)
        options = dict(options or {})
        task = options.get("task_id")
        if task is not None:
            self._check_task(task)
        simulator = self.simulator
        if seed is not None:
            self._numpy_state = np.random.RandomState(seed % 2**32).get_state()
            simulator.action_space.seed(seed)
        with self._own_numpy_randomness():
            observation, info = simulator.reset(seed=seed, options=options)
        self._goal = np.asarray(info["goal"], np.float32)
        self._steps = 0
        number = int(simulator.cur_task_id or 0)
        return self._seen(observation), {"task_id": number, "task": simulator.cur_task_info["task_name"]}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step; the reward is 1 at the goal, else 0."""
        if self._simulator is None:
            raise UsageError(f"{self.facts.name}: step before the first reset")
        action = self._clipped(action)
        if self._draws_at_steps:
            with self._own_numpy_randomness():
                observation, _, terminated, _, info = self._simulator.step(action)
        else:
            observation, _, terminated, _, info = self._simulator.step(action)
        self._steps += 1
        terminated, outcome = self._judged(bool(terminated), info)
        truncated = self._steps >= self.facts.limit
        return self._seen(observation), float(outcome["success"]), terminated, truncated, outcome

    def close(self) -> None:
        """Release the simulator."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _judged(self, terminated: bool, told: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Whether the episode ends here, and what is said of it, by what the simulator answered."""
        return terminated, {"success": bool(told["success"])}

    def _check_task(self, task: Any) -> None:
        if task not in range(1, len(self.facts.tasks) + 1):
            raise UsageError(f"{self.facts.name}: no task {task!r}; valid: 1 to {len(self.facts.tasks)}")

    def _clipped(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise UsageError(f"{self.facts.name}: an action is {self.facts.action_dim} finite numbers, not {action}")
        return np.clip(action, -1.0, 1.0)

    def _seen(self, observation: np.ndarray) -> Observation:
        return {"observation": np.asarray(observation, np.float32), "goal": self._goal.copy()}

    @contextmanager
    def _own_numpy_randomness(self) -> Iterator[None]:
        """OGBench draws from NumPy's global generator: lend it ours, and leave the caller's untouched."""
        callers = np.random.get_state()
        np.random.set_state(self._numpy_state)
        try:
            yield
        finally:
            self._numpy_state = np.random.get_state()
            np.random.set_state(callers)


def make_env(name: str) -> GoalEnv:
    """The test environment called `name`, or in which the data set `name` was collected.

    Raises UsageError for an unknown name (naming the nearest) and MissingExtra without the simulators.
    """
    facts = environment(name)
    if facts.family == "fetch":
        from echelon.envs.fetch import FetchEnv

        return FetchEnv(facts)
    if facts.family == "told":
        from echelon.envs.told import ToldEnv

        return ToldEnv(facts)
    if facts.family == "orders":
        from echelon.envs.orders import OrdersEnv

        return OrdersEnv(facts)
    if facts.family == "metaworld":
        from echelon.envs.metaworld import TrackingEnv

        return TrackingEnv(facts)
    return GoalEnv(facts)


def tasks(name: str) -> tuple[str, ...]:
    """Names of the test tasks of an environment, in order of their ids 1, 2, ..."""
    return environment(name).tasks


def bfs_rollouts(name: str, task_ids: Sequence[int] = (1, 2, 3, 4, 5), seed: int = 0) -> list[Rollout]:
    """Rollouts of a noise-free shortest-path expert in pointmaze test tasks, through the real environment.

    The expert follows the guide of the data collection without its noise, and in the goal's cell heads for the goal
    itself (the guide would stop at the cell's centre, from which the goal may be out of reach).
    """
    env = make_env(name)
    if env.facts.family != "pointmaze":
        raise UsageError(
            f"'{name}': there is a shortest-path expert for pointmaze only, where an action is a direction"
        )
    maze = MazeMap.of(name)
    found = []
    for task in task_ids:
        seen, info = env.reset(seed=seed, options={"task_id": task})
        track, done, success = [seen["observation"]], False, False
        while not done:
            here, goal = seen["observation"].astype(np.float64), seen["goal"].astype(np.float64)
            direction = maze.direction(here, goal)
            if (maze.to_cell(here) == maze.to_cell(goal)).all():
                direction = (goal - here) / (np.linalg.norm(goal - here) + 1e-6)
            seen, _, terminated, truncated, outcome = env.step(direction)
            track.append(seen["observation"])
            done, success = terminated or truncated, outcome["success"]
        found.append(Rollout(info["task"], np.stack(track), seen["goal"], success))
    env.close()
    return found
