"""Meta-World's arm: clips of scripted experts and the noisy data around them, clips to be tracked, tasks to be learned.

Simulators and experts: metaworld 3.1.1 (arXiv 1910.10897). A state is what belongs to the arm and its object, FEATURES
numbers: the hand's place (3), how far the gripper is open (1), the object's place (3) and orientation (quaternion, 4).
The goal of a task is no part of it, as in the package's own worlds with hidden goals.

Recipe of a data set (that of MoCapAct, arXiv 2208.07363, with scripts in the place of motion capture): a clip is what a
task's expert does without noise from a drawn start; starts from which it fails are drawn again. An episode begins
where its clip does, and the expert acts with noise N(0, 0.1^2) on each number. A row holds the state, the noisy action,
the mean action (what the expert would have done), the clip's state at the same time (`references`), and what the credit
of an imitator is made of: `rewards` for being near the clip, `values`, `advantages` and `clip_returns`. In a corrupted
set every second expert of a task is bad: N(0, 1), drawn once for its clip, is added to each number of its actions, and
what it did with that is its mean action.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from echelon.envs.catalog import METAWORLD_TASKS, DataInfo, EnvInfo
from echelon.envs.fetch import is_expert
from echelon.envs.ogbench import GoalEnv, Observation
from echelon.envs.restore import set_simulator_state, simulator_state
from echelon.errors import MissingExtra, UsageError, unknown

RECIPE = {"name": "metaworld-clips", "version": 1}
FEATURES, ACTIONS = 11, 4
NOISE, CORRUPTION = 0.1, 1.0
CLIP = 120
"""Steps of a clip; every task's expert is done before."""
AHEAD = 5
"""Frames of the clip that a tracker sees: those of the next 1, …, 5 steps (MoCapAct: 5)."""
WIDTH = 0.1
"""Metres off the clip at which the reward for tracking has fallen to 1 / e."""
LOST = 0.3
"""Metres off the clip at which it counts as lost (MoCapAct's termination error has the same number)."""
DISCOUNT = 0.95
"""Of the rewards for tracking (MoCapAct's experts: .95)."""
LIMIT = 200
"""Steps of an episode of a task."""
HAND, OBJECT = slice(0, 3), slice(4, 7)


def simulator(task: str) -> Any:
    """The package's environment of `task` ("push", "door-open", …), with repeatable resets by `begin(seed)`.

    MissingExtra without the package, UsageError for a task that it does not have.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of a missing display
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError:
        raise MissingExtra("metaworld", "control") from None
    found: dict[str, Any] = {name.removesuffix("-v3"): base for name, base in ALL_V3_ENVIRONMENTS.items()}
    if task not in found:
        raise unknown("task of metaworld", task, found)
    return _repeatable(found[task])()


@lru_cache
def _repeatable(base: Any) -> Any:
    """`base`, a task's environment, showing its goal, without a limit of steps; resets depend on their seed alone."""

    class Repeatable(base):
        max_path_length = 1_000_000

        def __init__(self) -> None:
            super().__init__()
            self._partially_observable = False
            self.__dict__.pop("sawyer_observation_space", None)  # it was made for a hidden goal
            self._freeze_rand_vec, self.seeded_rand_vec, self._set_task_called = False, True, True
            self._places = {name: getattr(self.model, name).copy() for name in ("body_pos", "body_quat", "site_pos")}

        def begin(self, seed: int) -> np.ndarray:
            """Start the episode of `seed`; what is seen then, float64[39]."""
            for name, value in self._places.items():
                getattr(self.model, name)[:] = value
            self.seed(seed)
            return self.reset()[0]

    return Repeatable


def state_of(seen: np.ndarray) -> np.ndarray:
    """float32[FEATURES] of what the package shows, float64[39]."""
    return seen[:FEATURES].astype(np.float32)


class Expert:
    """The package's script for a task, within the bounds of actions."""

    def __init__(self, task: str):
        from metaworld import policies

        name = "".join(word.capitalize() for word in task.split("-"))
        self.policy = getattr(policies, f"Sawyer{name}V3Policy")()

    def __call__(self, seen: np.ndarray) -> np.ndarray:
        """Action [4] for what is seen, float64[39]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a step is clipped
            return np.clip(self.policy.get_action(seen.copy()), -1.0, 1.0).astype(np.float64)


def clip(world: Any, expert: Expert, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A start from which the expert succeeds without noise, and its states there, float32[CLIP + 1, FEATURES]."""
    while True:
        seed, done = int(rng.integers(2**31)), False
        seen = world.begin(seed)
        states = [state_of(seen)]
        for _ in range(CLIP):
            seen, _, _, _, info = world.step(expert(seen))
            states.append(state_of(seen))
            done = done or bool(info["success"])
        if done:
            return seed, np.stack(states)


def ahead(states: np.ndarray, t: int) -> np.ndarray:
    """The frames t + 1, …, t + AHEAD of a clip [T, F], one behind the other [AHEAD * F]; its last one is repeated."""
    return states[np.minimum(np.arange(t + 1, t + 1 + AHEAD), len(states) - 1)].reshape(-1)


# ---- credit


def off_clip(states: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Metres [T] that hand and object are off the clip, meaned over both; states and references are [T, FEATURES]."""
    gaps = [np.linalg.norm(states[:, part] - references[:, part], axis=1) for part in (HAND, OBJECT)]
    return np.mean(gaps, axis=0)


def normalized_length(start: int, end: int, last: int) -> float:
    """Which share of the rest of a clip was tracked, from `start` to `end`, where it could end at `last`."""
    return (end - start) / (last - start)


def normalized_return(rewards: np.ndarray, off: np.ndarray) -> float:
    """Mean reward up to where the clip is lost, times the share of the clip up to there; [T] each, all steps of one."""
    lost = np.flatnonzero(off > LOST)
    end = int(lost[0]) + 1 if len(lost) else len(off)
    return float(rewards[:end].mean()) * normalized_length(0, end, len(off))


def credit(states: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
    """Columns [T + 1] for the states of an episode and its clip, [T + 1, FEATURES] each.

    rewards: exp(-(metres off the clip / WIDTH)^2) after the step. values: the discounted return of the expert without
    noise, which stays on its clip: the sum of DISCOUNT^k. advantages: the discounted return from here on, less that;
    the last reward goes on behind the end, where the last frame does. clip_returns: the normalised return of all.
    """
    off = off_clip(states[1:], references[1:])
    rewards = np.exp(-((off / WIDTH) ** 2))
    returns = np.empty(len(states))
    returns[-1] = rewards[-1] / (1 - DISCOUNT)
    for t in range(len(rewards) - 1, -1, -1):
        returns[t] = rewards[t] + DISCOUNT * returns[t + 1]
    values = np.full(len(states), 1 / (1 - DISCOUNT))
    found = {
        "rewards": np.append(rewards, 0.0),
        "values": values,
        "advantages": returns - values,
        "clip_returns": np.full(len(states), normalized_return(rewards, off)),
    }
    return {name: column.astype(np.float32) for name, column in found.items()}


class ClipCollector:
    """Collects episodes of one data set; each is a function of (seed, episode number) alone.

    Episode e is of task e modulo the number of tasks; of a task's episodes the expert's share of `info` is good.
    """

    def __init__(self, info: DataInfo):
        self.info = info
        self.worlds = {task: simulator(task) for task in METAWORLD_TASKS}
        self.experts = {task: Expert(task) for task in METAWORLD_TASKS}

    def close(self) -> None:
        """Release the simulators."""
        for world in self.worlds.values():
            world.close()

    def episode(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """All T + 1 rows: see the module's docstring; `tasks` int64 is the task's number in METAWORLD_TASKS."""
        rng = np.random.default_rng([seed, index])
        turn, number = divmod(index, len(METAWORLD_TASKS))
        task, good = METAWORLD_TASKS[number], is_expert(turn, self.info.experts)
        world, expert = self.worlds[task], self.experts[task]
        start, references = clip(world, expert, rng)
        rows = self.info.length + 1
        bias = rng.standard_normal(ACTIONS) * (0.0 if good else CORRUPTION)
        noise = NOISE * rng.standard_normal((rows, ACTIONS))
        seen, states, means, actions = world.begin(start), [], [], []
        for t in range(rows):
            means.append(np.clip(expert(seen) + bias, -1.0, 1.0))
            actions.append(np.clip(means[t] + noise[t], -1.0, 1.0))
            states.append(state_of(seen))
            if t < self.info.length:
                seen = world.step(actions[t])[0]
        columns = {"observations": states, "actions": actions, "mean_actions": means, "references": references}
        return {
            **{name: np.asarray(column, np.float32) for name, column in columns.items()},
            **credit(np.stack(states), references),
            "tasks": np.full(rows, number),
            "terminals": np.arange(rows) == rows - 1,
        }


# ---- worlds


class TrackingEnv(GoalEnv):
    """Clips that no data set has, to be tracked: a success as soon as the clip's task is done, which ends the episode.

    Beside "observation" and "goal", the clip's last state, it shows "reference": the clip's next frames, as in `ahead`.
    Task k is metaworld's task k of METAWORLD_TASKS. The reward is 1 at the success, else 0.
    """

    def __init__(self, facts: EnvInfo):
        super().__init__(facts)
        frames = Box(-np.inf, np.inf, (AHEAD * FEATURES,), np.float32)
        self.observation_space = Dict({**self.observation_space.spaces, "reference": frames})
        self._worlds: dict[str, tuple[Any, Expert]] = {}
        self._frames = np.zeros((1, FEATURES), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start at a clip of task `options["task_id"]`, or of one that is drawn; info holds its number and name."""
        super(GoalEnv, self).reset(seed=seed)
        number = (options or {}).get("task_id")
        if number is None:
            number = int(self.np_random.integers(1, len(self.facts.tasks) + 1))
        self._check_task(number)
        task = METAWORLD_TASKS[number - 1]
        if task not in self._worlds:
            self._worlds[task] = simulator(task), Expert(task)
        self._simulator, expert = self._worlds[task]
        rng = np.random.default_rng(self.np_random.integers(2**31) if seed is None else [seed, number])
        start, self._frames = clip(self._simulator, expert, rng)
        self._goal, self._steps = self._frames[-1], 0
        seen = self._simulator.begin(start)
        return self._seen(seen), {"task_id": number, "task": self.facts.tasks[number - 1]}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step."""
        if self._simulator is None:
            raise UsageError(f"{self.facts.name}: step before the first reset")
        seen, _, _, _, info = self._simulator.step(self._clipped(action))
        self._steps += 1
        success = bool(info["success"])
        return self._seen(seen), float(success), success, self._steps >= self.facts.limit, {"success": success}

    def close(self) -> None:
        """Release the simulators."""
        for world, _ in self._worlds.values():
            world.close()
        self._worlds, self._simulator = {}, None

    def _seen(self, observation: np.ndarray) -> Observation:
        return super()._seen(state_of(observation)) | {"reference": ahead(self._frames, self._steps)}


class TaskEnv(gymnasium.Env[Observation, np.ndarray]):
    """A task of metaworld to be learned: LIMIT steps, its own reward of each divided by ten.

    It shows "observation", the state, and "task", the place of the goal [3], which is no part of the state.
    `info["success"]` is whether the task has been done in this episode, which goes on.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(self, task: str):
        self.task, self.world = task, simulator(task)
        shapes = {"observation": (FEATURES,), "task": (3,)}
        self.observation_space: Any = Dict(
            {name: Box(-np.inf, np.inf, shape, np.float32) for name, shape in shapes.items()}
        )
        self.action_space = Box(-1.0, 1.0, (ACTIONS,), np.float32)
        self._seed: int | None = None
        self._done = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with a drawn object and goal."""
        super().reset(seed=seed)
        self._begin(int(self.np_random.integers(2**31)))
        return self._seen(self._last), {}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step."""
        self._last, reward, _, _, info = self.world.step(np.asarray(action, np.float64))
        self._done = self._done or bool(info["success"])
        return self._seen(self._last), float(reward) / 10, False, False, {"success": self._done}

    def close(self) -> None:
        """Release the simulator."""
        self.world.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the episode stands, for `envs.restore`: its seed, and what came of it."""
        if self._seed is None:
            return {"seed": None}
        return {
            "seed": self._seed,
            "done": self._done,
            "steps": self.world.curr_path_length,
            "before": self.world._prev_obs.tolist(),
            "simulator": simulator_state(self.world),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand as `state_dict` said: the reset brings back what the reward remembers of the start."""
        self._seed = None
        if state["seed"] is None:
            return
        self._begin(state["seed"])
        self._done, self.world.curr_path_length = state["done"], state["steps"]
        self.world._prev_obs = np.array(state["before"])
        set_simulator_state(self.world, state["simulator"])

    def _begin(self, seed: int) -> None:
        self._seed, self._done, self._last = seed, False, self.world.begin(seed)

    def _seen(self, seen: np.ndarray) -> Observation:
        return {"observation": state_of(seen), "task": seen[-3:].astype(np.float32)}
