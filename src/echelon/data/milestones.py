"""Milestones: the frames of a demonstration at which one part of it ends, and goals made of them.

While somebody works on one part, the distance to the frame in which it is finished falls; seen backwards from there,
the first frame from which it did not fall is where the part before ended. Repeated, this finds the parts of a
demonstration without any learning (`decompose`). There are four baselines: the last frame alone, frames at equal
distances, random ones, and the ends of what the data say is pursued.
Legend: t frame 0..T of a demonstration, e_t [D] its embedding, g milestones in ascending order, B batch, O size of an
observation. Frames are rows: unlike other goals a milestone may be an episode's last observation.
Source: UVD (arXiv 2310.08581), its appendix and released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from echelon.data.check import Columns
from echelon.errors import DataError
from echelon.spans import Spans

Method = Literal["uvd", "final", "uniform", "random", "oracle"]
Form = Literal["released", "appendix"]
PURSUED, ORDER = "instructions", "orders"
UNOWNED = -1
"""Label of a frame behind the last milestone."""
ROUNDING = 1e-10
"""By how much, of the largest distance, a maximum has to exceed its neighbours: a plateau has none."""


@dataclass(frozen=True, kw_only=True)
class MilestoneSpec:
    """How to find the milestones of a data set's episodes, and which transitions to draw with theirs as goals.

    method: "uvd", "final", "uniform", "random" or "oracle", see METHODS.
    embedding: which numbers of an observation make its embedding; all where it is empty.
    interval, kernel, form: of `decompose`.
    least, most: how many milestones "uniform" and "random" have, drawn for each episode.
    seed: of these draws.
    left_out: episodes whose column `orders` has one of these numbers are not drawn from.
    """

    method: Method = "uvd"
    embedding: tuple[int, ...] = ()
    interval: int = 18
    kernel: float = 0.08
    form: Form = "released"
    least: int = 3
    most: int = 6
    seed: int = 0
    left_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, options in (("method", get_args(Method)), ("form", get_args(Form))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be {', '.join(options)}, got '{getattr(self, name)}'")
        if self.interval < 0:
            raise ValueError(f"interval must be at least 0, got {self.interval}")
        if not 0 <= self.kernel < math.inf:
            raise ValueError(f"kernel must be at least 0, got {self.kernel}")
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least and most: 1 <= least <= most, got {self.least} and {self.most}")


@dataclass(frozen=True)
class Demonstration:
    """What milestones are found in: `embedding` float64[T + 1, D], `pursued` int64[T + 1] or None, and its number."""

    embedding: np.ndarray
    pursued: np.ndarray | None = None
    number: int = 0

    @property
    def last(self) -> int:
        """T."""
        return len(self.embedding) - 1


def smooth(x: np.ndarray, kernel: float = 0.08) -> np.ndarray:
    """Nadaraya-Watson over the index, float64[N]: sum_u K(s, u) x_u / sum_u K(s, u), K = exp(-kernel (s - u)^2).

    With `kernel` 0 nothing is smoothed. Weights below 1e-32 count as 0.
    """
    if kernel == 0:
        return np.asarray(x, np.float64)
    radius = min(math.ceil(math.sqrt(74 / kernel)), len(x) - 1)
    weights = np.exp(-kernel * np.arange(-radius, radius + 1, dtype=np.float64) ** 2)
    total, count = (np.convolve(y, weights)[radius : radius + len(x)] for y in (x, np.ones(len(x))))
    return total / count


def strict_maxima(x: np.ndarray) -> np.ndarray:
    """int64[...]: interior indices of float64[N] at which x exceeds both neighbours, by more than rounding."""
    above = np.diff(x) > ROUNDING * np.abs(x).max(initial=0.0)
    below = np.diff(x) < -ROUNDING * np.abs(x).max(initial=0.0)
    return np.flatnonzero(above[:-1] & below[1:]) + 1


def decompose(embedding: np.ndarray, interval: int = 18, kernel: float = 0.08, form: Form = "released") -> list[int]:
    """The milestones of a demonstration with embeddings float[T + 1, D], ascending; the last is T.

    From the milestone found last, at first T, distances to it are smoothed over the frames up to it alone; the latest
    strict maximum further than `interval` before it is the milestone before, unless there is none.
    form "released" asks that it lie further than `interval` from the start, too; "appendix" does not, and takes the
    frame before the maximum.
    """
    embedding = np.asarray(embedding, np.float64)
    found = [len(embedding) - 1]
    while found[0] > interval:
        now = found[0]
        peaks = strict_maxima(smooth(np.linalg.norm(embedding[: now + 1] - embedding[now], axis=1), kernel))
        peaks = peaks[now - peaks > interval]
        if form == "released":
            peaks = peaks[peaks > interval]
        if not len(peaks):
            break
        found.insert(0, int(peaks[-1]) - (form == "appendix"))
    return found


def by_distance(demo: Demonstration, spec: MilestoneSpec, rng: np.random.Generator) -> list[int]:
    """UVD's."""
    return decompose(demo.embedding, spec.interval, spec.kernel, spec.form)


def final(demo: Demonstration, spec: MilestoneSpec, rng: np.random.Generator) -> list[int]:
    """The last frame alone: cloning of what leads to a final goal."""
    return [demo.last]


def equally_spaced(last: int, count: int) -> list[int]:
    """`count` frames up to `last` at equal distances, fewer where there are not as many."""
    return sorted({round(last * (k + 1) / count) for k in range(count)} - {0}) or [last]


def uniform(demo: Demonstration, spec: MilestoneSpec, rng: np.random.Generator) -> list[int]:
    """Frames at equal distances."""
    return equally_spaced(demo.last, int(rng.integers(spec.least, spec.most + 1)))


def random(demo: Demonstration, spec: MilestoneSpec, rng: np.random.Generator) -> list[int]:
    """Any different frames, and the last."""
    count = int(rng.integers(spec.least, spec.most + 1)) - 1
    inner = rng.choice(np.arange(1, demo.last), min(count, max(demo.last - 1, 0)), replace=False)
    return [*sorted(int(t) for t in inner), demo.last]


def oracle(demo: Demonstration, spec: MilestoneSpec, rng: np.random.Generator) -> list[int]:
    """The last frame of every run of one thing pursued; where nothing is (a negative number), there is no end.

    Raises DataError where the data do not say what is pursued.
    """
    if demo.pursued is None:
        raise DataError(f"no column '{PURSUED}': milestones 'oracle' need data that say what is pursued")
    ends = np.flatnonzero(np.append(np.diff(demo.pursued) != 0, True))
    return [int(t) for t in ends if demo.pursued[t] >= 0]


METHODS: dict[str, Callable[[Demonstration, MilestoneSpec, np.random.Generator], list[int]]] = {
    "uvd": by_distance,
    "final": final,
    "uniform": uniform,
    "random": random,
    "oracle": oracle,
}
"""How milestones are found, by name."""


def milestones_of(demo: Demonstration, spec: MilestoneSpec) -> list[int]:
    """The milestones of a demonstration, ascending; what is drawn depends on its number and the seed alone."""
    return METHODS[spec.method](demo, spec, np.random.default_rng([spec.seed % 2**32, demo.number]))


def label(milestones: Sequence[int], frames: int) -> np.ndarray:
    """int64[frames]: the first milestone at or after each frame; UNOWNED behind the last one."""
    place = np.searchsorted(milestones, np.arange(frames))
    return np.append(np.asarray(milestones, np.int64), UNOWNED)[place]


def matched(found: Sequence[int], true: Sequence[int], within: int) -> float:
    """F1 in [0, 1] of frames `found` against `true` ones, each matched to at most one that lies `within` frames.

    1 where both are empty.
    """
    left, hits = sorted(true), 0
    for t in sorted(found):
        near = next((k for k, other in enumerate(left) if abs(t - other) <= within), None)
        if near is not None:
            left, hits = left[near + 1 :], hits + 1
    total = len(found) + len(true)
    return 2 * hits / total if total else 1.0


def demonstrations(columns: Columns, lengths: np.ndarray, embedding: Sequence[int] = ()) -> list[Demonstration]:
    """Every episode of a data set, whose episodes have `lengths` transitions."""
    stops = np.cumsum(lengths + 1)
    chosen = list(embedding) or slice(None)
    found = []
    for number, (start, stop) in enumerate(zip(stops - lengths - 1, stops, strict=True)):
        frames = np.asarray(columns["observations"][start:stop], np.float64)[:, chosen]
        pursued = columns[PURSUED][start:stop] if PURSUED in columns else None
        found.append(Demonstration(frames, pursued, number))
    return found


class Milestones:
    """Draws transitions that work towards a milestone, each with it as goal, and gathers them.

    `row` int64[N] are the rows of the transitions of `episodes`. Transitions behind the last milestone of their episode
    work towards none, and are never drawn; nor are those of episodes that are left out. Raises DataError where that
    leaves none, or the data lack a column that is asked for.
    """

    uniforms = 1
    """Uniform numbers that one draw consumes: which transition."""

    def __init__(self, spec: MilestoneSpec, columns: Columns, row: Tensor, episodes: Spans):
        self.row = row
        lengths = episodes.lengths.cpu().numpy()
        stops = np.cumsum(lengths + 1)
        goals = []
        for demo in demonstrations(columns, lengths, spec.embedding):
            labels = label(milestones_of(demo, spec), demo.last + 1)[:-1]
            start = stops[demo.number] - demo.last - 1
            kept = (labels != UNOWNED) & (not self._left_out(spec, columns, start))
            goals.append(np.where(kept, labels + start, UNOWNED))
        self.goal = torch.as_tensor(np.concatenate(goals), device=row.device)
        """Row of each transition's goal, int64[N]; UNOWNED where it has none."""
        self.owned = (self.goal != UNOWNED).nonzero()[:, 0]
        if not len(self.owned):
            raise DataError(f"no transition works towards a milestone by '{spec.method}'; left out: {spec.left_out}")

    def _left_out(self, spec: MilestoneSpec, columns: Columns, row: int) -> bool:
        if not spec.left_out:
            return False
        if ORDER not in columns:
            raise DataError(f"no column '{ORDER}', by which episodes are left out, as in scene-orders-v0")
        return int(columns[ORDER][row]) in spec.left_out

    def draw(self, u: Tensor) -> Tensor:
        """Transitions int64[B] from u float64[1, B], uniform among those that have a goal."""
        return self.owned[(u[0] * len(self.owned)).long()]

    def batches(self, u: Tensor, observations: Tensor, actions: Tensor) -> Callable[[slice], dict[str, Tensor]]:
        """Draw from u, and gather `observations`, `next_observations`, `goals` [B, O], `actions` [B, A] when asked."""
        drawn = self.draw(u)

        def gather(b: slice) -> dict[str, Tensor]:
            row = self.row[drawn[b]]
            return {
                "observations": observations[row],
                "next_observations": observations[row + 1],
                "actions": actions[row],
                "goals": observations[self.goal[drawn[b]]],
            }

        return gather
