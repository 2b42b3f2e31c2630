"""Maze layouts as plain data: cells, coordinates, shortest paths and the five test tasks, without any physics.

Cells are (i, j) = (row, column); row i lies at y = 4 i - 4 and column j at x = 4 j - 4, the coordinates in which the
environments report positions. Layouts, tasks and the shortest-path guide are those of OGBench (arXiv 2410.20092).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from echelon.errors import UsageError, unknown

Cell = tuple[int, int]
NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))

_LAYOUTS = {
    "arena": "########/#......#/#......#/#......#/#......#/#......#/#......#/########",
    "medium": "########/#..##..#/#..#...#/##...###/#..#...#/#.#..#.#/#...#..#/########",
    "large": "############/#....#.....#/#.##.#.#.#.#/#......#...#/#.####.###.#/#..#.#.....#/##.#.#.#.###/#..#...#...#"
    "/############",
    "giant": "################/#.#......##....#/#.#.##.#.#..##.#/#...#..#...#...#/#.###.######.#.#/#...#...#....#.#"
    "/###.#.#..#.#.###/#...#..#...#...#/#.#.#.######.#.#/#.###...#...##.#/#.....#...#....#/################",
    "teleport": "############/#.....#.#..#/##.#...#..##/##.###.....#/#....#.#.#.#/#.##.#.#.#.#/#.##.#.#.#.#"
    "/#....#...#.#/############",
}
_TASKS: dict[str, tuple[tuple[Cell, Cell], ...]] = {
    "arena": (((1, 1), (6, 6)),),
    "medium": (((1, 1), (6, 6)), ((6, 1), (1, 6)), ((5, 3), (4, 2)), ((6, 5), (6, 1)), ((2, 6), (1, 1))),
    "large": (((1, 1), (7, 10)), ((5, 4), (7, 1)), ((7, 4), (1, 10)), ((3, 8), (5, 4)), ((1, 1), (5, 4))),
    "giant": (((1, 1), (10, 14)), ((1, 14), (10, 1)), ((8, 14), (1, 1)), ((8, 3), (5, 12)), ((5, 9), (3, 8))),
    "teleport": (((1, 10), (7, 1)), ((1, 1), (7, 10)), ((5, 6), (7, 10)), ((7, 1), (7, 10)), ((5, 6), (7, 1))),
}
_TELEPORTS: dict[str, tuple[tuple[Cell, ...], tuple[Cell, ...]]] = {
    "teleport": (((4, 6), (5, 1)), ((1, 7), (6, 1), (6, 10))),
}


class MazeTask(NamedTuple):
    """One test task: start and goal cell, and their centres in the environment's coordinates."""

    name: str
    start: Cell
    goal: Cell
    start_xy: tuple[float, float]
    goal_xy: tuple[float, float]


@dataclass(frozen=True)
class MazeMap:
    """One maze layout. `kind` is arena, medium, large, giant or teleport; see `MazeMap.of`.

    The environments put noise of up to 1 on each axis of a task's start and goal position.
    """

    kind: str
    unit: float = 4.0
    offset: float = 4.0

    @staticmethod
    def of(name: str) -> MazeMap:
        """The layout called `name`, or that of an environment or data set such as `pointmaze-large-stitch-v0`."""
        parts = name.split("-")
        kind = parts[1] if len(parts) > 1 else name
        if kind not in _LAYOUTS:
            raise unknown("maze", name, _LAYOUTS)
        return MazeMap(kind)

    @cached_property
    def walls(self) -> np.ndarray:
        """bool[H, W]: True where the cell is a wall."""
        return np.array([[mark == "#" for mark in row] for row in _LAYOUTS[self.kind].split("/")])

    @cached_property
    def free_cells(self) -> tuple[Cell, ...]:
        """All cells that are not walls, row by row."""
        return tuple((int(i), int(j)) for i, j in np.argwhere(~self.walls))

    @cached_property
    def vertex_cells(self) -> tuple[Cell, ...]:
        """Free cells that are not the middle of a straight corridor."""
        free = ~self.walls

        def corridor(i: int, j: int) -> bool:
            upright, level = (free[i - 1, j], free[i + 1, j]), (free[i, j - 1], free[i, j + 1])
            return (all(upright) and not any(level)) or (all(level) and not any(upright))

        return tuple(cell for cell in self.free_cells if not corridor(*cell))

    @cached_property
    def tasks(self) -> tuple[MazeTask, ...]:
        """The test tasks in order (task ids count from 1)."""
        pairs = _TASKS[self.kind]
        return tuple(
            MazeTask(f"task{k}", start, goal, self.centre(start), self.centre(goal))
            for k, (start, goal) in enumerate(pairs, 1)
        )

    @property
    def teleports(self) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
        """Cells of the inbound and of the outbound teleports, both empty in most mazes; inbound ones act within 1.5."""
        return _TELEPORTS.get(self.kind, ((), ()))

    def centre(self, cell: Cell) -> tuple[float, float]:
        """(x, y) of a cell's centre."""
        return cell[1] * self.unit - self.offset, cell[0] * self.unit - self.offset

    def to_xy(self, cells: np.ndarray) -> np.ndarray:
        """Centres float64[..., 2] as (x, y) of cells int[..., 2] as (i, j)."""
        return np.asarray(cells, dtype=np.float64)[..., ::-1] * self.unit - self.offset

    def to_cell(self, xy: np.ndarray) -> np.ndarray:
        """Cells int64[..., 2] as (i, j) in which the positions float[..., 2] lie."""
        shifted = (np.asarray(xy, dtype=np.float64) + self.offset + 0.5 * self.unit) / self.unit
        return shifted[..., ::-1].astype(np.int64)

    def distances(self, goal: Cell) -> np.ndarray:
        """int64[H, W]: steps from cell to cell on a shortest path to `goal`; -1 in walls and where none leads."""
        return _distances(self, self._checked(goal)).copy()

    def cells_at(self, start: Cell, distance: int) -> tuple[Cell, ...]:
        """Cells whose shortest path from `start` takes exactly `distance` steps, row by row."""
        return tuple((int(i), int(j)) for i, j in np.argwhere(_distances(self, self._checked(start)) == distance))

    def path(self, start: Cell, goal: Cell) -> list[Cell]:
        """Cells of the guide's shortest path, both ends included. UsageError when none leads there."""
        distance = _distances(self, self._checked(goal))
        if distance[self._checked(start)] < 0:
            raise UsageError(f"maze '{self.kind}': no path from {start} to {goal}")
        following = guide(self, goal)
        cells = [start]
        while cells[-1] != goal:
            i, j = following[cells[-1]]
            cells.append((int(i), int(j)))
        return cells

    def direction(self, xy: np.ndarray, goal_xy: np.ndarray) -> np.ndarray:
        """Unit vectors float64[..., 2] from positions float[..., 2] to where the guide to `goal_xy` sends them.

        The guide aims at the centre of the next cell of the shortest path, and at the goal cell's centre once there.
        """
        goal = self.to_cell(goal_xy)
        cell = self.to_cell(xy)
        aim = self.to_xy(guide(self, (int(goal[0]), int(goal[1])))[cell[..., 0], cell[..., 1]])
        gap = aim - xy
        return gap / (np.linalg.norm(gap, axis=-1, keepdims=True) + 1e-6)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(x_min, x_max, y_min, y_max) of the whole layout, walls included."""
        height, width = self.walls.shape
        low = -self.offset - 0.5 * self.unit
        return low, low + width * self.unit, low, low + height * self.unit

    def _checked(self, cell: Cell) -> Cell:
        i, j = cell
        height, width = self.walls.shape
        if not (0 <= i < height and 0 <= j < width) or self.walls[i, j]:
            raise UsageError(f"maze '{self.kind}': {cell} is not a free cell")
        return cell


@lru_cache(maxsize=1024)
def _distances(maze: MazeMap, goal: Cell) -> np.ndarray:
    distance = np.full(maze.walls.shape, -1)
    distance[goal] = 0
    frontier = [goal]
    while frontier:
        reached = []
        for i, j in frontier:
            for di, dj in NEIGHBOURS:
                near = (i + di, j + dj)
                if not maze.walls[near] and distance[near] < 0:
                    distance[near] = distance[i, j] + 1
                    reached.append(near)
        frontier = reached
    return distance


@lru_cache(maxsize=1024)
def guide(maze: MazeMap, goal: Cell) -> np.ndarray:
    """int64[H, W, 2]: the cell to aim for from each cell on the way to `goal`.

    It is the neighbour nearest to the goal, the first of up, left, down, right where two are equal (that order fixes
    which of several shortest paths the recorded data follow); the cell itself at the goal, in walls and off the map.
    """
    distance = _distances(maze, goal)
    height, width = distance.shape
    following = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    for i, j in maze.free_cells:
        best = distance[i, j]
        for di, dj in NEIGHBOURS:
            near = (i + di, j + dj)
            if not maze.walls[near] and distance[near] < best:
                best = distance[near]
                following[i, j] = near
    following.setflags(write=False)
    return following
