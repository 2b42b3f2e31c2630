"""Collecting pointmaze data: a shortest-path guide with Gaussian action noise, in the real environment.

Recipe (OGBench, arXiv 2410.20092, data set types `navigate` and `stitch`):
- navigate: start in any free cell, aim for a random vertex cell, draw another one whenever the goal is reached;
- stitch: start in any free cell, aim for a cell at exactly 4 steps (the start itself if there is none) and stay there;
- action = clip(direction to the next cell's centre + N(0, 0.5^2), -1, 1) in each axis;
- start and goal positions carry uniform noise of +-1 an axis.
A row is (observation, action, last row?, qpos and qvel before the step). In the teleport maze an observation shows
where the point stood before it was teleported, qpos of that row where it came out, as the published recipe has it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from echelon.envs.catalog import DataInfo
from echelon.envs.maze import Cell, MazeMap, guide
from echelon.envs.simulators import build

RECIPE = {"name": "ogbench-pointmaze", "version": 1}
NOISE = 0.5
STITCH_DISTANCE = 4
GOAL_NOISE = 1.0


def draw_task(maze: MazeMap, kind: str, rng: np.random.Generator) -> tuple[Cell, Cell]:
    """Start and goal cell of an episode of `kind` navigate or stitch."""
    start = maze.free_cells[rng.integers(len(maze.free_cells))]
    if kind == "navigate":
        return start, draw_vertex(maze, rng)
    goals = maze.cells_at(start, STITCH_DISTANCE) or (start,)
    return start, goals[rng.integers(len(goals))]


def draw_vertex(maze: MazeMap, rng: np.random.Generator) -> Cell:
    """A random vertex cell: the goals of `navigate`."""
    return maze.vertex_cells[rng.integers(len(maze.vertex_cells))]


class PointMazeCollector:
    """Collects episodes of one pointmaze data set; each is a function of (seed, episode number) alone."""

    def __init__(self, info: DataInfo):
        self.info = info
        self.maze = MazeMap.of(info.name)
        self.env: Any = build(info.env, collecting=True)
        self.aims: dict[Cell, list[list[tuple[float, float]]]] = {}

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()

    def episode(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """The rows of episode `index`: float32 observations, actions, qpos, qvel [T+1, 2] and bool terminals [T+1].

        Seeds NumPy's global generator, from which the environment draws its start, goal and teleports.
        """
        rng = np.random.default_rng([seed, index])
        np.random.seed(rng.integers(2**32, dtype=np.uint32))
        self.env.action_space.seed(int(rng.integers(2**31)))
        start, goal = draw_task(self.maze, self.info.kind, rng)
        observation, _ = self.env.reset(
            seed=int(rng.integers(2**31)), options={"task_info": {"init_ij": start, "goal_ij": goal}}
        )
        rows = self.info.length + 1
        columns = {name: np.empty((rows, 2), np.float32) for name in ("observations", "actions", "qpos", "qvel")}
        noise = rng.normal(0.0, NOISE, (rows, 2)).tolist()
        aims = self._aims_to_goal()
        unit = self.maze.unit
        shift = self.maze.offset + 0.5 * unit
        x, y = self.env.data.qpos.tolist()
        for t, (noise_x, noise_y) in enumerate(noise):
            aim_x, aim_y = aims[int((y + shift) / unit)][int((x + shift) / unit)]
            gap_x, gap_y = aim_x - x, aim_y - y
            norm = math.sqrt(gap_x * gap_x + gap_y * gap_y) + 1e-6
            action = np.array([_clip(gap_x / norm + noise_x), _clip(gap_y / norm + noise_y)])
            columns["observations"][t] = observation
            columns["actions"][t] = action
            observation, _, _, _, info = self.env.step(action)
            columns["qpos"][t] = info["prev_qpos"]
            columns["qvel"][t] = info["prev_qvel"]
            x, y = self.env.data.qpos.tolist()
            if self.info.kind == "navigate" and info["success"]:
                self._aim_at(draw_vertex(self.maze, rng), rng)
                aims = self._aims_to_goal()
        terminals = np.zeros(rows, bool)
        terminals[-1] = True
        return {**columns, "terminals": terminals}

    def _aim_at(self, cell: Cell, rng: np.random.Generator) -> None:
        x, y = self.maze.centre(cell)
        shift_x, shift_y = rng.uniform(-GOAL_NOISE, GOAL_NOISE, 2)
        self.env.cur_goal_xy = (x + shift_x, y + shift_y)

    def _aims_to_goal(self) -> list[list[tuple[float, float]]]:
        cell = self.env.xy_to_ij(self.env.cur_goal_xy)
        if cell not in self.aims:
            table = self.maze.to_xy(guide(self.maze, cell))
            self.aims[cell] = [[(x, y) for x, y in row] for row in table.tolist()]
        return self.aims[cell]


def _clip(value: float) -> float:
    return min(1.0, max(-1.0, value))
