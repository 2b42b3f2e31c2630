"""Mixtures of transitions with goals apart from observations: goals reached later, goals that were asked for.

Legend: i transition index, k goal index (both in transition space), t and t' their places in an episode of T
transitions, u uniform numbers in [0, 1), B batch, O and G sizes of observations and goals. A place's goals are those of
its state: an episode's last observation is never a goal (see echelon.data.goals).
Source: the batches of SMORe (arXiv 2311.02013) and its released sampler, whose index arithmetic is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from echelon.data.check import Columns
from echelon.errors import DataError
from echelon.spans import Spans

UNIFORMS = 5
"""Uniform numbers that one draw consumes: which episode, when, is the goal ahead, how far, which entry."""
REACHED, ASKED = "achieved_goals", "desired_goals"
Stride = Literal["episode", "released"]


@dataclass(frozen=True, kw_only=True)
class HindsightSpec:
    """How to draw transitions together with their goals.

    With `entering=False`: an episode, a place t in it but the last, and as goal what is reached at t' > t with
    probability `future`, else what was asked for at t. With `entering=True`: the transition that ends at t', with what
    is reached there as goal; else, with probability 1 - `future`, any transition that comes within `radius` of what was
    asked for, with that as goal. Where the data tell of no goals that were asked for, or none was reached, `future`
    is 1. A transition that ends within `radius` of its goal enters it.
    `stride`: how far apart the episodes stand. The released sampler counts T - 1 places for each, so that from the
    second on it reads across their ends.
    """

    future: float = 0.8
    entering: bool = False
    radius: float = 0.05
    stride: Stride = "episode"

    def __post_init__(self) -> None:
        if not 0 <= self.future <= 1:
            raise ValueError(f"future is a probability, got {self.future}")
        if not 0 < self.radius < math.inf:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if self.stride not in get_args(Stride):
            raise ValueError(f"stride must be {' or '.join(get_args(Stride))}, got '{self.stride}'")


class Drawn(NamedTuple):
    """`taken` and `goal` int64[B]: transitions; `asked` bool[B]: the goal is what was asked for there, not reached."""

    taken: Tensor
    goal: Tensor
    asked: Tensor


def goal_dim(columns: Mapping[str, Sequence[int]]) -> int | None:
    """Size G of goals apart from observations, by the shapes of a data set's columns; None where there are none."""
    return columns[REACHED][-1] if REACHED in columns and ASKED in columns else None


def place_ahead(t: Tensor, length: Tensor, u: Tensor) -> Tensor:
    """t' = t + 1 + int((T - 3 - t) u) for t <= T - 2; the last place is reached from the one before it alone."""
    return t + 1 + ((length - 3 - t) * u).long()


class Mixture:
    """Draws a data set's transitions for several specifications, gathers them with columns `source` and `entered`.

    `row` int64[N] are the rows of the transitions of `episodes`. Goals are the columns `achieved_goals` and
    `desired_goals`; where they are missing, they are the observations reached later.
    Raises DataError where no episode has two transitions.
    """

    def __init__(
        self, specs: Sequence[HindsightSpec], columns: Columns, observations: Tensor, row: Tensor, episodes: Spans
    ):
        self.specs, self.row, device = list(specs), row, row.device
        self.uniforms = UNIFORMS * len(self.specs)
        self.starts, self.lengths = episodes.starts, episodes.lengths
        self.long = (self.lengths >= 2).nonzero().squeeze(1)
        if not len(self.long):
            raise DataError("goals in hindsight need an episode of two transitions or more; this set has none")
        self.asked: Tensor | None = None
        self.reached = observations
        if goal_dim({name: column.shape for name, column in columns.items()}) is not None:
            self.reached, self.asked = (torch.as_tensor(columns[name]).to(device) for name in (REACHED, ASKED))
        self.entries = [self._entries(spec) if spec.entering else row[:0] for spec in self.specs]
        self.radii = torch.tensor([spec.radius for spec in self.specs], device=device)

    def _entries(self, spec: HindsightSpec) -> Tensor:
        """Transitions to another place of the same episode, within the radius of what was asked for there."""
        if self.asked is None:
            return self.row[:0]
        near = (self.reached[self.row] - self.asked[self.row]).norm(dim=-1) < spec.radius
        near[self.starts] = False  # a first state has no transition that enters it
        return near.nonzero().squeeze(1) - 1

    def draw(self, u: Tensor) -> list[Drawn]:
        """One draw of B transitions for each specification from u float64[5 specifications, B]."""
        parts = u.split(UNIFORMS)
        return [self._draw(*each) for each in zip(self.specs, self.entries, parts, strict=True)]

    def _draw(self, spec: HindsightSpec, entries: Tensor, u: Tensor) -> Drawn:
        episode = self.long[(u[0] * len(self.long)).long()]
        first, length = self.starts[episode], self.lengths[episode]
        if spec.stride == "released":
            first = first - episode
        t = (u[1] * (length - 1)).long()
        goal = first + place_ahead(t, length, u[3])
        possible = len(entries) > 0 if spec.entering else self.asked is not None
        asked = u[2] >= (spec.future if possible else 1.0)
        if not spec.entering:
            return Drawn(first + t, torch.where(asked, first + t, goal), asked)
        if possible:
            goal = torch.where(asked, entries[(u[4] * len(entries)).long()] + 1, goal)
        return Drawn(goal - 1, goal, asked)

    def gather(self, drawn: Sequence[Drawn], observations: Tensor, actions: Tensor, b: slice) -> dict[str, Tensor]:
        """Rows `b` of each draw, one specification after the other.

        `source` int64 counts the specifications; `entered` bool: the next state is within its radius of the goal.
        """
        taken, goal, asked = (torch.cat([draw[k][b] for draw in drawn]) for k in range(3))
        row, goal = self.row[taken], self.row[goal]
        goals = self.reached[goal]
        if self.asked is not None:
            goals = torch.where(asked[:, None], self.asked[goal], goals)
        source = torch.arange(len(drawn), device=row.device).repeat_interleave(len(row) // len(drawn))
        return {
            "observations": observations[row],
            "next_observations": observations[row + 1],
            "actions": actions[row],
            "goals": goals,
            "source": source,
            "entered": (self.reached[row + 1] - goals).norm(dim=-1) < self.radii[source],
        }

    def batches(self, u: Tensor, observations: Tensor, actions: Tensor) -> Callable[[slice], dict[str, Tensor]]:
        """Draw from u, and gather when asked for rows."""
        return partial(self.gather, self.draw(u), observations, actions)


def by_source(batch: Mapping[str, Tensor], sources: int) -> list[dict[str, Tensor]]:
    """The parts of a mixed batch, in the order of their sources; each has as many rows."""
    parts = {name: column.chunk(sources) for name, column in batch.items()}
    return [{name: part[k] for name, part in parts.items()} for k in range(sources)]
