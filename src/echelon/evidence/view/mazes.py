"""Mazes as SVG text: floor and walls, value fields, driven paths, chosen subgoals.

Every maze is WIDTH pixels wide, so that lines and markers look the same in all of them; x grows to the right and y
upwards as in the environments' own pictures. The outer ring of walls is cropped to a rim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from echelon.envs.maze import MazeMap
from echelon.evidence.view.markup import Markup, number, tag
from echelon.evidence.view.runs import Array, Episode
from echelon.evidence.view.svg import LEVELS, points_path, ramp

WIDTH = 220.0
RIM = 0.97
"""Share of the outer cells that is cropped."""
COLUMNS = 72
"""About how many samples wide a value field is; at least FINE a cell."""
FINE = 5
SHOWN_SUBGOALS = 10
STAR = "M0 -6.2L1.8 -2L6.2 -1.7L2.8 1.2L3.9 5.6L0 3.2L-3.9 5.6L-2.8 1.2L-6.2 -1.7L-1.8 -2Z"
DIAMOND = "M0 -3.6L3.6 0L0 3.6L-3.6 0Z"


@dataclass(frozen=True)
class Plan:
    """The drawing board of one maze."""

    maze: MazeMap

    @property
    def cell(self) -> float:
        """Width of a cell in pixels."""
        return WIDTH / (self.maze.walls.shape[1] - 2 * RIM)

    @property
    def view_box(self) -> tuple[float, float, float, float]:
        """x, y, width, height of the visible part in pixels."""
        rim = RIM * self.cell
        return rim, rim, WIDTH, len(self.maze.walls) * self.cell - 2 * rim

    def pixels(self, xy: Array) -> Array:
        """Pixels [..., 2] of positions [..., 2] in the environment's coordinates."""
        x_min, _, _, y_max = self.maze.extent
        x, y = np.moveaxis(np.asarray(xy, dtype=np.float64), -1, 0)
        return np.stack([x - x_min, y_max - y], axis=-1) * (self.cell / self.maze.unit)

    def svg(self, title: str, *inside: Markup | list[Markup] | None, class_: str = "maze") -> Markup:
        """An SVG element of the visible part."""
        box = " ".join(number(v) for v in self.view_box)
        return tag("svg", *inside, class_=class_, viewBox=box, role="img", aria_label=title)


def floor(plan: Plan) -> Markup:
    """The free cells as one area."""
    rows = []
    for i, row in enumerate(~plan.maze.walls):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        y = (len(plan.maze.walls) - 1 - i) * plan.cell
        runs = zip(edges[::2] * plan.cell, edges[1::2] * plan.cell, strict=True)
        rows += [_box(first, y, after - first, plan.cell) for first, after in runs]
    return tag("path", class_="floor", d="".join(rows))


def walls(plan: Plan) -> Markup:
    """The border between free cells and walls as thin lines."""
    segments = []
    blocked, side = plan.maze.walls, number(plan.cell)
    for i, j in plan.maze.free_cells:
        x, y = j * plan.cell, (len(blocked) - 1 - i) * plan.cell
        sides = {
            (i + 1, j): (x, y, f"h{side}"),
            (i - 1, j): (x, y + plan.cell, f"h{side}"),
            (i, j - 1): (x, y, f"v{side}"),
            (i, j + 1): (x + plan.cell, y, f"v{side}"),
        }
        segments += [f"M{number(a)} {number(b)}{stroke}" for cell, (a, b, stroke) in sides.items() if blocked[cell]]
    return tag("path", class_="walls", d="".join(segments))


def samples(maze: MazeMap) -> int:
    """Samples of a value field along one side of a cell."""
    return max(FINE, round(COLUMNS / maze.walls.shape[1]))


def field_points(maze: MazeMap) -> Array:
    """float64[H, W, 2]: the positions at which a value field is sampled, walls included."""
    rows, columns = maze.walls.shape
    x_min, _, y_min, _ = maze.extent
    fine = samples(maze)
    step = maze.unit / fine
    y, x = np.meshgrid(np.arange(rows * fine), np.arange(columns * fine), indexing="ij")
    return np.stack([x_min + (x + 0.5) * step, y_min + (y + 0.5) * step], axis=-1)


def field_mask(maze: MazeMap) -> np.ndarray:
    """bool[H, W]: which of `field_points` lie in free cells."""
    return ~np.kron(maze.walls, np.ones((samples(maze), samples(maze)), dtype=bool))


def heat(plan: Plan, field: Array, low: float, high: float) -> Markup:
    """A value field [H, W] (NaN = nothing) as one path a colour level between `low` and `high`."""
    share = np.clip((field - low) / ((high - low) or 1.0), 0, 1)
    level = np.where(np.isnan(field), -1, np.minimum(np.nan_to_num(share) * LEVELS, LEVELS - 1)).astype(int)
    boxes: list[list[str]] = [[] for _ in range(LEVELS)]
    for y, row in enumerate(level):
        starts = np.flatnonzero(np.diff(row, prepend=-2))
        for first, after in zip(starts, np.append(starts[1:], len(row)), strict=True):
            if row[first] >= 0:
                boxes[row[first]].append(f"M{first} {y}h{after - first}v1h-{after - first}z")
    height, scale = len(plan.maze.walls) * plan.cell, plan.cell / samples(plan.maze)
    paths = [tag("path", fill=colour, d="".join(d)) for colour, d in zip(ramp(), boxes, strict=True) if d]
    place = f"translate(0 {number(height)}) scale({number(scale, 4)} {number(-scale, 4)})"
    return tag("g", paths, class_="heat", transform=place)


def field_limits(fields: Mapping[str, Mapping[str, Array]], name: str) -> tuple[float, float]:
    """Lowest and highest value of one value function over all tasks."""
    values = np.concatenate([by_name[name].ravel() for by_name in fields.values() if name in by_name])
    return float(np.nanmin(values)), float(np.nanmax(values))


def ends(plan: Plan, task: str, episode: Episode | None = None) -> Markup:
    """The start (ring) and the goal (star): those of `episode`, else the task's nominal ones."""
    found = {t.name: (t.start_xy, t.goal_xy) for t in plan.maze.tasks}
    if episode is not None:
        places = np.stack([episode.path[0], episode.goal[0, :2]])
    elif task in found:
        places = np.array(found[task])
    else:
        return Markup("")
    start, goal = plan.pixels(places).tolist()
    ring = tag("circle", tag("title", "start"), class_="start", r=4.5, transform=_place(*start))
    star = tag("path", tag("title", "goal"), class_="goal", d=STAR, transform=_place(*goal))
    return tag("g", ring, star)


def trail(plan: Plan, path: Array, class_: str) -> Markup:
    """A driven path, thinned where it hardly moves."""
    points = plan.pixels(path)
    moved = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    keep = np.unique(np.append(np.searchsorted(moved, np.arange(0, moved[-1], 1.5)), len(points) - 1))
    return tag("path", class_=class_, d=points_path(points[keep, 0], points[keep, 1]))


def subgoals(plan: Plan, episode: Episode) -> Markup | None:
    """Markers of at most SHOWN_SUBGOALS chosen subgoals, each joined to the position at which it was chosen."""
    if not len(episode.subgoals):
        return None
    every = np.unique(np.linspace(0, len(episode.subgoals) - 1, SHOWN_SUBGOALS).round().astype(int))
    chosen = episode.subgoals[every]
    origin = plan.pixels(episode.path[np.minimum(chosen[:, 0].astype(int), len(episode.path) - 1)])
    target = plan.pixels(chosen[:, 1:])
    links = "".join(
        f"M{number(a, 1)} {number(b, 1)}L{number(c, 1)} {number(d, 1)}"
        for (a, b), (c, d) in zip(origin, target, strict=True)
    )
    marks = [
        tag(
            "path",
            tag("title", f"subgoal chosen at step {int(step)}"),
            class_="subgoal",
            d=DIAMOND,
            transform=_place(x, y),
        )
        for (x, y), step in zip(target, chosen[:, 0], strict=True)
    ]
    return tag("g", tag("path", class_="link", d=links), marks)


def _place(x: float, y: float) -> str:
    return f"translate({number(x)} {number(y)})"


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{number(x)} {number(y)}h{number(width)}v{number(height)}h{number(-width)}z"
