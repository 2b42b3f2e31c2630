"""The Fetch robot's FetchReach and FetchPush: scripted experts, data collection, and the test environments.

Simulators: gymnasium-robotics 1.4.2. An episode has 50 steps; its goal, the place for the gripper (Reach) or for the
block (Push), is drawn anew, and it is reached within 5 cm.
Recipe of a data set (the mixing of arXiv 2311.02013, section on the offline suite): a share of the episodes comes from
the scripted expert, 0.1 in the mixed sets, evenly spread; in all others every action is uniform in [-1, 1]. The experts
are not the trained ones of the published buffers, so these are sets of their own:
- Reach: a_xyz = clip(10 (goal - gripper), -1, 1), the gripper at rest;
- Push: over to where the block lies between gripper and goal, down, and push; up again where the block slipped off.
A row is (observation, action, last row?, achieved and desired goal). The same episode of two shares has the same start
and goal and, if neither is the expert's, the same actions.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from echelon.envs.catalog import DataInfo
from echelon.envs.ogbench import GoalEnv, Observation
from echelon.errors import MissingExtra, UsageError

RECIPE = {"name": "fetch-scripted", "version": 1}
GAIN = 10.0
BEHIND, OFF_LINE = 0.065, 0.02  # metres: from the block's centre back to where a push begins; how far off its line
HOVER, LOW = 0.48, 0.425  # heights of the gripper over the block and beside it, the table being at 0.4
STROKE, STRAIGHTEN = 0.05, 1.5  # how far ahead a push aims at most; how much it turns back to the line
THERE = 0.012  # the block rests this near to the goal
CONTACT = 0.045  # from the centre of the block to that of the gripper which pushes it
GRIPPER, BLOCK, LINKS = slice(0, 3), slice(3, 6), {"FetchReach-v4": slice(3, 5), "FetchPush-v4": slice(9, 11)}

Expert = Callable[[np.ndarray, np.ndarray], np.ndarray]


def reach(seen: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The proportional controller's action [4] for an observation [10] and a goal [3]."""
    return np.append(np.clip(GAIN * (goal - seen[GRIPPER]), -1.0, 1.0), 0.0)


def push(seen: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The scripted pusher's action [4] for an observation [25] and a goal [3]; it depends on nothing else."""
    gripper, block = seen[GRIPPER], seen[BLOCK]
    distance, ahead = _line(block, goal)
    aside = gripper[:2] - block[:2]
    along = float(aside @ ahead)
    aside = aside - along * ahead
    to_start = block[:2] - BEHIND * ahead - gripper[:2]
    if distance < THERE:
        return np.zeros(4)
    move = np.zeros(3)
    if gripper[2] < LOW + 0.03 and along < -OFF_LINE and np.linalg.norm(aside) < OFF_LINE:
        move[:2], move[2] = min(distance, STROKE) * ahead - STRAIGHTEN * aside, LOW - gripper[2]
    elif np.linalg.norm(to_start) < 0.75 * OFF_LINE:
        move[:2], move[2] = to_start, LOW - gripper[2]
    else:
        move[2] = HOVER - gripper[2]
        if move[2] < 0.75 * OFF_LINE:  # high enough to pass over the block
            move[:2] = to_start
    return np.append(np.clip(GAIN * move, -1.0, 1.0), 0.0)


EXPERTS: dict[str, Expert] = {"FetchReach-v4": reach, "FetchPush-v4": push}


def is_expert(index: int, share: float) -> bool:
    """Whether the expert has episode `index`: of the first n episodes, ceil(share n) are its."""
    exact = Fraction(repr(float(share)))
    return ceil(exact * (index + 1)) > ceil(exact * index)


def simulator(name: str) -> Any:
    """The bare simulator, without a limit of steps. MissingExtra without gymnasium-robotics."""
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # it tells of other environments' versions, and of a missing display
            from gymnasium_robotics.envs.fetch.push import MujocoFetchPushEnv
            from gymnasium_robotics.envs.fetch.reach import MujocoFetchReachEnv
    except ImportError:
        raise MissingExtra("gymnasium-robotics", "control") from None
    return MujocoFetchPushEnv() if name == "FetchPush-v4" else MujocoFetchReachEnv()


class FetchCollector:
    """Collects episodes of one data set; each is a function of (seed, episode number) alone."""

    def __init__(self, info: DataInfo):
        self.info = info
        self.expert = EXPERTS[info.env.name]
        self.env = simulator(info.env.name)

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()

    def episode(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """All T+1 rows: float32 observations [10 or 25], actions [4], achieved_goals and desired_goals [3], terminals.

        What the last row's action would lead to is not seen any more.
        """
        rng = np.random.default_rng([seed, index])
        seen, _ = self.env.reset(seed=int(rng.integers(2**31)))
        scripted = is_expert(index, self.info.experts)
        rows = self.info.length + 1
        actions = rng.uniform(-1.0, 1.0, (rows, 4))
        record = []
        for t in range(rows):
            record.append(seen)
            if scripted:
                actions[t] = self.expert(seen["observation"], seen["desired_goal"])
            seen = self.env.step(actions[t])[0]
        names = {"observations": "observation", "achieved_goals": "achieved_goal", "desired_goals": "desired_goal"}
        columns = {name: np.array([row[key] for row in record], np.float32) for name, key in names.items()}
        return {**columns, "actions": actions.astype(np.float32), "terminals": np.arange(rows) == rows - 1}


class FetchEnv(GoalEnv):
    """A test environment: 50 steps, and a success if the goal is reached in the last of them.

    The goal is a whole observation, as a data set's states are: the gripper at the goal, or the block there and the
    gripper where the expert's push ends, everything at rest. There is one task, with a drawn goal; the numbers 1 to 5
    of the protocol are five series of draws. `info["desired_goal"]` has the goal proper.
    """

    @property
    def simulator(self) -> Any:
        """The package's own environment, built when first asked for."""
        if self._simulator is None:
            self._simulator = simulator(self.facts.name)
        return self._simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode of series `options["task_id"]`, or of one that is drawn."""
        super(GoalEnv, self).reset(seed=seed)
        task = (options or {}).get("task_id")
        if task is None:
            task = int(self.np_random.integers(1, len(self.facts.tasks) + 1))
        self._check_task(task)
        start = None if seed is None else int(np.random.SeedSequence([seed, task]).generate_state(1)[0])
        seen, _ = self.simulator.reset(seed=start)
        self._goal = goal_observation(self.facts.name, seen["observation"], seen["desired_goal"])
        self._steps = 0
        info = {"task_id": task, "task": self.facts.tasks[task - 1], "desired_goal": seen["desired_goal"]}
        return self._seen(seen["observation"]), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step; the reward is 1 at the goal, else 0, and the episode goes on there."""
        if self._simulator is None:
            raise UsageError(f"{self.facts.name}: step before the first reset")
        seen, _, _, _, info = self._simulator.step(self._clipped(action))
        self._steps += 1
        success = bool(info["is_success"])
        truncated = self._steps >= self.facts.limit
        return self._seen(seen["observation"]), float(success), False, truncated, {"success": success}


def goal_observation(name: str, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The observation float32[O] of an episode's end in its goal [3], of an episode that began with `start` [O]."""
    found = np.zeros_like(start)
    found[LINKS[name]] = start[LINKS[name]]
    if name == "FetchReach-v4":
        found[GRIPPER] = goal
    else:
        _, ahead = _line(start[BLOCK], goal)
        found[GRIPPER] = [*(goal[:2] - CONTACT * ahead), LOW]
        found[BLOCK] = goal
        found[6:9] = found[BLOCK] - found[GRIPPER]
        found[11:14] = start[11:14]  # how the block is turned
    return found.astype(np.float32)


def _line(block: np.ndarray, goal: np.ndarray) -> tuple[float, np.ndarray]:
    """How far the goal is from the block in the plane of the table, and in which direction [2]."""
    gap = goal[:2] - block[:2]
    distance = float(np.linalg.norm(gap))
    return distance, gap / (distance + 1e-6)
