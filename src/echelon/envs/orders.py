"""Four subtasks in one of 24 orders: demonstrations, and a test environment that asks for an order.

A home-made set: in OGBench's scene the drawer and the window are opened and both buttons pressed, by the package's plan
oracles (see echelon.envs.manipulation), in every order, ten demonstrations each. The buttons lock nothing here, so
that every order is possible. An episode ends with its last subtask's plan: episodes differ in length. Column `orders`
int64[rows] is the number of the episode's order, `instructions` int64[rows] the sentence of SCENE_INSTRUCTIONS that a
row serves. Episode k has order k mod 24, and the validation set one demonstration of each. Demonstrations in which
something goes wrong are thrown away and drawn again.

In the test environment task k asks for the k-th order, shown as `order` float32[24], one-hot; `goal` is a state in
which all is done, which says nothing of an order. An episode is a success when all four were done, each for the first
time, in the order asked for; it ends there, or when something was done out of its turn. `info["completion"]` is the
share of the four that were done in their turn.
Source of the design: the orders of four subtasks in FrankaKitchen on which UVD (arXiv 2310.08581) is judged.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np

from echelon.envs.catalog import DataInfo, EnvInfo
from echelon.envs.manipulation import PLAN, oracles_of
from echelon.envs.simulators import build
from echelon.envs.told import (
    DRAWER,
    OPEN_DRAWER,
    OPEN_WINDOW,
    PRESS_LEFT,
    PRESS_RIGHT,
    TABLE,
    WINDOW,
    AskingEnv,
    followed,
)

RECIPE = {"name": "scene-orders", "version": 1, "noise": PLAN["noise"]}
SUBTASKS = (OPEN_DRAWER, OPEN_WINDOW, PRESS_LEFT, PRESS_RIGHT)
ORACLES = {OPEN_DRAWER: "drawer", OPEN_WINDOW: "window", PRESS_LEFT: "button", PRESS_RIGHT: "button"}
ORDERS = tuple(permutations(SUBTASKS))
"""The instructions of each order, one after the other."""
PARTITIONS, PARTITION_SEED = 3, 87


def unseen(partition: int) -> tuple[int, ...]:
    """The eight orders that are kept for testing in partition 0, 1 or 2: every order in exactly one of them."""
    drawn = np.random.default_rng(PARTITION_SEED).permutation(len(ORDERS))
    size = len(ORDERS) // PARTITIONS
    return tuple(sorted(int(k) for k in drawn[partition * size : (partition + 1) * size]))


class Progress:
    """Which subtasks of an order were done, in which turn, by what the simulator tells from `start` on."""

    def __init__(self, order: tuple[int, ...], start: dict[str, Any]):
        self.order, self.start = order, start
        self.done: list[int] = []
        """Subtasks in the order in which they were done for the first time."""

    def see(self, told: dict[str, Any]) -> None:
        """Look again. Of two that are done at once the one whose turn it is comes first."""
        self.done += [k for k in self.order if k not in self.done and followed(k, self.start, told)]

    @property
    def completed(self) -> int:
        """How many were done in their turn."""
        return next((n for n, (a, b) in enumerate(zip(self.done, self.order, strict=False)) if a != b), len(self.done))

    @property
    def over(self) -> bool:
        """Whether all are done, or one was done out of its turn."""
        return self.completed < len(self.done) or self.completed == len(self.order)


def unlocked(facts: EnvInfo) -> Any:
    """OGBench's scene with buttons that lock nothing."""
    import mujoco

    found = build(facts)
    found._apply_button_states = lambda: mujoco.mj_forward(found.model, found.data)
    return found


def start_and_end(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """A scene in which nothing is done, the block anywhere on the table, and one in which all is."""
    block = np.append(rng.uniform(*TABLE), 0.02)[None]
    start = {"block_xyzs": block, "button_states": np.zeros(2, int), "drawer_pos": 0.0, "window_pos": 0.0}
    done = {"button_states": np.ones(2, int), "drawer_pos": DRAWER[OPEN_DRAWER], "window_pos": WINDOW[OPEN_WINDOW]}
    return start, start | done


class OrdersCollector:
    """Collects demonstrations of orders; each is a function of (seed, episode number) alone."""

    def __init__(self, info: DataInfo):
        self.info = info
        self.env = unlocked(info.env)
        self.env.reset(seed=0)
        self.oracles = oracles_of(self.env, "scene", False)

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()

    def episode(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """The rows of a demonstration: those of manipulation data, with int64 `instructions` and `orders`.

        Seeds NumPy's global generator, from which the oracles draw. The last row's action is zero and leads nowhere.
        """
        order, attempt = index % len(ORDERS), 0
        while True:
            columns, progress = self._attempt(ORDERS[order], np.random.default_rng([seed, index, attempt]))
            rows = len(columns["actions"])
            if progress.completed == len(SUBTASKS) and rows <= self.info.length + 1:
                columns |= {"orders": np.full(rows, order), "terminals": np.arange(rows) == rows - 1}
                return columns
            attempt += 1

    def _attempt(self, order: tuple[int, ...], rng: np.random.Generator) -> tuple[dict[str, np.ndarray], Progress]:
        np.random.seed(rng.integers(2**32, dtype=np.uint32))
        start, end = start_and_end(rng)
        task = {"task_info": {"task_name": "", "init": start, "goal": end}}
        seen, facts = self.env.reset(seed=int(rng.integers(2**31)), options=task)
        progress = Progress(order, facts)
        rows: list[tuple[np.ndarray, ...]] = []
        for subtask in order:
            oracle = self.oracles[ORACLES[subtask]]
            oracle.reset(seen, facts | self._targets(subtask))
            while not oracle.done:
                action = np.clip(oracle.select_action(seen, facts), -1.0, 1.0)
                rows.append(_row(seen, action, facts, subtask))
                seen, _, _, _, facts = self.env.step(action)
                progress.see(facts)
        rows.append(_row(seen, np.zeros(5), facts, order[-1]))
        names = ("observations", "actions", "qpos", "qvel", "button_states", "instructions")
        kinds = (np.float32, np.float32, np.float32, np.float32, np.int64, np.int64)
        columns = {n: np.array(x, k) for n, x, k in zip(names, zip(*rows, strict=True), kinds, strict=True)}
        return columns, progress

    def _targets(self, subtask: int) -> dict[str, np.ndarray]:
        """Where a subtask's oracle has to go, as the simulator tells of it when it draws targets itself."""
        sites = {"button_top": f"btntop_{int(subtask == PRESS_LEFT)}"}
        sites |= {f"{name}_handle": f"{name}_handle_center_target" for name in ("drawer", "window")}
        return {f"privileged/target_{name}_pos": self.env.data.site(s).xpos.copy() for name, s in sites.items()}


def _row(seen: np.ndarray, action: np.ndarray, facts: dict[str, Any], subtask: int) -> tuple[np.ndarray, ...]:
    return (seen, action, facts["qpos"], facts["qvel"], facts["button_states"], np.array(subtask))


class OrdersEnv(AskingEnv):
    """A test environment that asks for an order; see the module's docstring."""

    shown = "order"

    @property
    def simulator(self) -> Any:
        """The scene, built when first asked for."""
        if self._simulator is None:
            self._simulator = unlocked(self.facts)
        return self._simulator

    def layouts(self, asked: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return start_and_end(self.np_random)

    def _begun(self) -> None:
        self._progress = Progress(ORDERS[self._asked], self._start)

    def _judged(self, terminated: bool, told: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        self._progress.see(told)
        completed = self._progress.completed
        success = completed == len(SUBTASKS)
        return self._progress.over, {"success": success, "completion": completed / len(SUBTASKS)}
