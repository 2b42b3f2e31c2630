"""Scenes in which something is asked for in words: play with what is pursued in every row, and a test environment.

A home-made set: OGBench's scene and its plan oracles (see echelon.envs.manipulation), which pursue one target after
another, with a column `instructions` int64[rows] that says which sentence of SCENE_INSTRUCTIONS the action of a row
serves. Unlike in `scene-play-v0` the next one is drawn uniformly from those that can be followed: a locked drawer or
window is never a target, and blocks go 8 cm or farther. Episodes have 500 steps, about ten instructions.

In the test environment task k asks for the k-th sentence. An episode starts where that makes sense: what is
to be opened is closed and not locked, the block lies on the table, everything else is drawn. It is a success when the
state is reached that the sentence names, whatever became of the rest. Observations have a third part, `instruction`
float32[8], one-hot; `goal` shows one finished state, with the arm anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from echelon.envs.catalog import EnvInfo
from echelon.envs.manipulation import ManipulationCollector
from echelon.envs.ogbench import GoalEnv, Observation

RECIPE = {"name": "scene-told", "version": 1}
OPEN_DRAWER, CLOSE_DRAWER, OPEN_WINDOW, CLOSE_WINDOW, PRESS_LEFT, PRESS_RIGHT, PUT_IN_DRAWER, MOVE_BLOCK = range(8)
DRAWER = {OPEN_DRAWER: -0.16, CLOSE_DRAWER: 0.0}  # metres along the rail
WINDOW = {OPEN_WINDOW: 0.2, CLOSE_WINDOW: 0.0}
BUTTON = {PRESS_LEFT: 1, PRESS_RIGHT: 0}  # the simulator's numbers: its button 0 locks the drawer, 1 the window
IN_PLACE = 0.04  # metres: the simulator's own tolerance of blocks, drawer and window
ON_TABLE, IN_BOX = 0.03, 0.08  # heights of the block's centre below which it lies there
TABLE = np.array([[0.3, -0.07], [0.45, 0.18]])  # where blocks lie and are put, xy in metres
BOX = np.array([0.33, -0.24, 0.066])  # where a block lies in the open drawer
BOX_LOW, BOX_HIGH = np.array([0.21, -0.27, 0.0]), np.array([0.45, -0.07, 0.15])  # the drawer: x, y from its handle, z


class ToldCollector(ManipulationCollector):
    """Collects episodes of plans with their instructions; each is a function of (seed, episode number) alone."""

    def begin(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        super().begin(seed)
        return self.retarget(0.0)

    def retarget(self, stacking: float) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw the next instruction, and targets until one fits it."""
        seen, facts = super().retarget(stacking)
        wanted = self.env.np_random.choice(possible(facts))
        while instruction_of(facts) != wanted or (wanted == MOVE_BLOCK and not far(facts)):
            seen, facts = super().retarget(stacking)
        return seen, facts

    def pursued(self, facts: dict[str, Any]) -> dict[str, int]:
        return {"instructions": instruction_of(facts)}


def possible(facts: dict[str, Any]) -> list[int]:
    """Which of SCENE_INSTRUCTIONS can be followed, by what the simulator tells."""
    found = [PRESS_LEFT, PRESS_RIGHT]
    drawer, window = facts["privileged/drawer_pos"][0], facts["privileged/window_pos"][0]
    if facts["button_states"][BUTTON[PRESS_RIGHT]]:
        found.append(OPEN_DRAWER if drawer >= -0.08 else CLOSE_DRAWER)
    if facts["button_states"][BUTTON[PRESS_LEFT]]:
        found.append(OPEN_WINDOW if window <= 0.1 else CLOSE_WINDOW)
    if not in_drawer(facts):
        found += [MOVE_BLOCK, PUT_IN_DRAWER] if drawer < -0.12 else [MOVE_BLOCK]
    return found


def far(facts: dict[str, Any]) -> bool:
    """Whether the block has to be moved so far that it leaves its place."""
    gap = facts["privileged/target_block_pos"][:2] - facts["privileged/block_0_pos"][:2]
    return bool(np.linalg.norm(gap) >= 2 * IN_PLACE)


def in_drawer(facts: dict[str, Any]) -> bool:
    """The simulator's own answer to whether the block is above the drawer's bottom."""
    place = facts["privileged/block_0_pos"] - [0.0, facts["privileged/drawer_handle_pos"][1], 0.0]
    return bool((place >= BOX_LOW).all() and (place <= BOX_HIGH).all())


def instruction_of(facts: dict[str, Any]) -> int:
    """Which of SCENE_INSTRUCTIONS the simulator's target is."""
    task = facts["privileged/target_task"]
    if task == "drawer":
        return OPEN_DRAWER if facts["privileged/target_drawer_pos"][0] < -0.08 else CLOSE_DRAWER
    if task == "window":
        return OPEN_WINDOW if facts["privileged/target_window_pos"][0] > 0.1 else CLOSE_WINDOW
    if task == "button":
        return PRESS_RIGHT if facts["privileged/target_button"] == 0 else PRESS_LEFT
    return PUT_IN_DRAWER if facts["privileged/target_block_pos"][1] < TABLE[0, 1] - IN_PLACE else MOVE_BLOCK


def followed(instruction: int, start: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether what `instruction` names holds, by what the simulator tells at the `start` of an episode and `now`."""
    if instruction in DRAWER:
        return bool(abs(now["privileged/drawer_pos"][0] - DRAWER[instruction]) <= IN_PLACE)
    if instruction in WINDOW:
        return bool(abs(now["privileged/window_pos"][0] - WINDOW[instruction]) <= IN_PLACE)
    if instruction in BUTTON:
        button = BUTTON[instruction]
        return bool(now["button_states"][button] != start["button_states"][button])
    block, before = now["privileged/block_0_pos"], start["privileged/block_0_pos"]
    if instruction == MOVE_BLOCK:
        return bool(block[2] <= ON_TABLE and np.linalg.norm(block[:2] - before[:2]) > IN_PLACE)
    return bool(block[2] <= IN_BOX and in_drawer(now))


def layouts(instruction: int, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where everything is at the start of an episode, and in its goal: in the simulator's own words for a task."""
    buttons = rng.integers(2, size=2)
    drawer, window = rng.choice(list(DRAWER.values())), rng.choice(list(WINDOW.values()))
    block = np.append(rng.uniform(*TABLE), 0.02)
    elsewhere = np.append(rng.uniform(*TABLE), 0.02)
    while np.linalg.norm(elsewhere - block) < 2 * IN_PLACE:
        elsewhere = np.append(rng.uniform(*TABLE), 0.02)
    if instruction in DRAWER:
        drawer, buttons[BUTTON[PRESS_RIGHT]] = sum(DRAWER.values()) - DRAWER[instruction], 1
    elif instruction in WINDOW:
        window, buttons[BUTTON[PRESS_LEFT]] = sum(WINDOW.values()) - WINDOW[instruction], 1
    elif instruction == PUT_IN_DRAWER:
        drawer = DRAWER[OPEN_DRAWER]
    pressed = buttons.copy()
    if instruction in BUTTON:
        pressed[BUTTON[instruction]] = 1 - buttons[BUTTON[instruction]]
    start = {"block_xyzs": block[None], "button_states": buttons, "drawer_pos": drawer, "window_pos": window}
    goal = {
        "block_xyzs": {PUT_IN_DRAWER: BOX, MOVE_BLOCK: elsewhere}.get(instruction, block)[None],
        "button_states": pressed,
        "drawer_pos": DRAWER.get(instruction, drawer),
        "window_pos": WINDOW.get(instruction, window),
    }
    return start, goal


class AskingEnv(GoalEnv):
    """A test environment in the scene whose observations tell under the name `shown` which task it is, one-hot."""

    shown: str

    def __init__(self, facts: EnvInfo):
        super().__init__(facts)
        one_hot = Box(0.0, 1.0, (len(facts.tasks),), np.float32)
        self.observation_space = Dict({**self.observation_space.spaces, self.shown: one_hot})
        self._asked = 0
        self._start: dict[str, Any] = {}

    def layouts(self, asked: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start and goal of an episode in which the task of that number, from 0, is asked for."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode of task `options["task_id"]`, or of one that is drawn."""
        super(GoalEnv, self).reset(seed=seed)
        task = (options or {}).get("task_id")
        if task is None:
            task = int(self.np_random.integers(1, len(self.facts.tasks) + 1))
        self._check_task(task)
        start, goal = self.layouts(task - 1)
        asked = {"task_info": {"task_name": self.facts.tasks[task - 1], "init": start, "goal": goal}}
        seen, self._start = self.simulator.reset(seed=int(self.np_random.integers(2**31)), options=asked)
        self._goal = np.asarray(self._start["goal"], np.float32)
        self._asked, self._steps = task - 1, 0
        self._begun()
        return self._seen(seen), {"task_id": task, "task": self.facts.tasks[task - 1]}

    def _begun(self) -> None:
        """An episode has begun."""

    def _seen(self, observation: np.ndarray) -> Observation:
        return {**super()._seen(observation), self.shown: np.eye(len(self.facts.tasks), dtype=np.float32)[self._asked]}


class ToldEnv(AskingEnv):
    """A test environment that asks in words; see the module's docstring."""

    shown = "instruction"

    def layouts(self, asked: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return layouts(asked, self.np_random)

    def _judged(self, terminated: bool, told: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        success = followed(self._asked, self._start, told)
        return success, {"success": success}
