"""Recorded episodes of online runs as boxes and paths: who decided what for how long, and where that led."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from echelon.envs import grids
from echelon.envs.maze import Cell, MazeMap, MazeTask
from echelon.rollout import Decisions, End, Ragged, Rollout

Array = NDArray[np.float64]
PLACE = "achieved_goal"
"""What robots in mazes show of where they are."""


@dataclass(frozen=True)
class Box:
    """A decision on its time line: steps start to stop, one of so many choices (None: a vector), how it ended."""

    start: int
    stop: int
    choice: int | None
    end: End
    text: str


@dataclass(frozen=True)
class Played:
    """One recorded episode: boxes of each level, top first; rewards [T]; the path [T + 1, 2], if there is a plan.

    subgoals: float64[M, 3], tick and place of each decision of the top level, where its actions are places.
    """

    earned: float
    success: bool | None
    rewards: Array
    levels: dict[str, list[Box]]
    path: Array | None = None
    goal: Array | None = None
    subgoals: Array = field(default_factory=lambda: np.zeros((0, 3)))


@dataclass(frozen=True)
class GridMap(MazeMap):
    """A plan given by rows of marks, # for walls, the first one on top; its middle lies at `centre_xy`."""

    rows: tuple[str, ...] = ()
    centre_xy: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def walls(self) -> np.ndarray:
        """bool[H, W], the lowest row first."""
        return np.array([[mark == "#" for mark in row] for row in reversed(self.rows)])

    @cached_property
    def tasks(self) -> tuple[MazeTask, ...]:
        """None that have names."""
        return ()

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(x_min, x_max, y_min, y_max), walls included."""
        height, width = len(self.rows), len(self.rows[0])
        (x, y), unit = self.centre_xy, self.unit
        return x - width * unit / 2, x + width * unit / 2, y - height * unit / 2, y + height * unit / 2


FOUR_ROOMS = GridMap("four-rooms", 1.0, rows=grids.ROOMS, centre_xy=(6.0, -6.0))
"""Cell (i, j) lies at x = j, y = -i."""


def plan_of(env: str) -> GridMap | None:
    """The plan of an online environment that has one, as far as its package is installed."""
    if env.partition("@")[0] in ("four-rooms", "four-rooms-far"):
        return FOUR_ROOMS
    if not env.startswith(("PointMaze_", "AntMaze_")):
        return None
    from echelon.errors import MissingExtra
    from echelon.training.online.worlds import make_env

    try:
        found = make_env(env)
    except MissingExtra:
        return None
    maze = found.unwrapped.maze  # type: ignore[attr-defined]  # of gymnasium-robotics
    found.close()
    rows = tuple("".join("#" if mark == 1 else "." for mark in row) for row in maze.maze_map)
    return GridMap(env, float(maze.maze_size_scaling), rows=rows)


def played(rollout: Rollout, env: str, most: int) -> list[Played]:
    """The first `most` episodes of a record."""
    there = rollout.spans["stream"]
    success = _labels(rollout, "success")
    success = _labels(rollout, "is_success") if success is None else success
    rewards = rollout.reward_sum().double().numpy()
    found = []
    for stream in range(min(most, len(rollout.streams))):
        items = slice(int(there.starts[stream]), int(there.ends[stream]) + 1)
        levels = {level: list(_boxes(d, stream, items.start)) for level, d in rollout.decisions.items()}
        told = None if success is None or np.isnan(success[stream]) else bool(success[stream] > 0)
        path, goal = _path(rollout, env, stream, items)
        places = (
            np.zeros((0, 3)) if path is None else _places(rollout.decisions[rollout.levels[0]], stream, items.start)
        )
        subgoals = places if goal is not None and len(rollout.levels) > 1 else np.zeros((0, 3))
        earned = rewards[items]
        found.append(Played(float(earned.sum()), told, earned, levels, path, goal, subgoals))
    return found


def _labels(rollout: Rollout, name: str) -> Array | None:
    column = rollout.streams.labels.get(name)
    return None if column is None else np.asarray(column, dtype=np.float64)


def _boxes(d: Decisions, stream: int, first: int) -> Iterator[Box]:
    """The decisions of a stream in time order, those that took no time left out."""
    rows = ((d.stream == stream) & (d.span >= 0)).nonzero()[:, 0]
    for row in rows[torch.argsort(d.start[rows])].tolist():
        action = d.action[row]
        choice = int(action) if action.ndim == 0 and not action.is_floating_point() else None
        shown = str(choice) if choice is not None else ", ".join(f"{x:.3g}" for x in action.flatten()[:6].tolist())
        values = "".join(f", {name} {float(column[row]):.3g}" for name, column in d.values.items())
        yield Box(int(d.start[row]) - first, int(d.stop[row]) - first, choice, End(int(d.end[row])), shown + values)


def _places(d: Decisions, stream: int, first: int) -> Array:
    """Tick and place [M, 3] of each decision, where these are places: vectors of two numbers or more."""
    if d.action.ndim != 2 or d.action.shape[1] < 2 or not d.action.is_floating_point():
        return np.zeros((0, 3))
    rows = ((d.stream == stream) & (d.span >= 0)).nonzero()[:, 0]
    rows = rows[torch.argsort(d.start[rows])]
    return torch.cat([(d.start[rows] - first)[:, None].double(), d.action[rows, :2].double()], 1).numpy()


def _path(rollout: Rollout, env: str, stream: int, items: slice) -> tuple[Array | None, Array | None]:
    """Where one was [T + 1, 2], and the goal [2], in the coordinates of the plan; None where there is none."""
    rooms = env.partition("@")[0] in ("four-rooms", "four-rooms-far")
    if not rooms and not env.startswith(("PointMaze_", "AntMaze_")):
        return None, None
    name = "observation" if rooms else PLACE
    seen, final = rollout.observation.get(name), rollout.streams.final_observation.get(name)
    if seen is None or final is None or isinstance(seen, Ragged):
        return None, None
    states = torch.cat([seen[items], final[stream : stream + 1]]).numpy()
    if rooms:
        cells: list[Cell] = [grids.CELLS[int(state)] for state in states]
        return np.array([(j, -i) for i, j in cells], dtype=np.float64), None
    goal = rollout.observation["desired_goal"]
    assert not isinstance(goal, Ragged)
    return states[:, :2].astype(np.float64), goal[items.start, :2].double().numpy()
