"""Pairs of states on the way to what a sentence asks for, beside windows of steps.

The data say in a column `instructions` int64[rows] which sentence the action of a row serves. Consecutive transitions
of an episode that serve the same sentence are a run of it; pairs never leave theirs.
Legend: u uniform numbers in [0, 1), B batch, O size of an observation, k steps between the states of a pair. Indices
live in transition space (see echelon.data.goals).
Source: the training pairs of GHIL-Glue (arXiv 2410.20018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from echelon.data.check import Columns
from echelon.data.windows import DrawnWindows, Windows, WindowSpec
from echelon.errors import DataError
from echelon.spans import Spans

COLUMN = "instructions"


@dataclass(frozen=True, kw_only=True)
class ToldSpec:
    """How to draw a batch of windows, of pairs and of steps; the three are drawn independently of each other.

    window: the windows and their goals, wherever runs begin and end.
    near, far: the states of a pair lie k steps apart, uniform in [near, far), less far where the run ends before; the
        first one is any transition that at least `near` others of its run follow.
    ahead: a step is any transition and the state so many steps ahead, at most at the run's end.
    """

    window: WindowSpec = field(default_factory=WindowSpec)
    near: int = 16
    far: int = 24
    ahead: int = 20

    def __post_init__(self) -> None:
        for name, least in (("near", 1), ("far", self.near + 1), ("ahead", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


class DrawnTold(NamedTuple):
    """Windows, and transitions int64[B]: the `first` and `later` states of pairs, and of steps `here` and `target`."""

    windows: DrawnWindows
    first: Tensor
    later: Tensor
    here: Tensor
    target: Tensor


class Told:
    """Draws a data set's windows, pairs and steps, and gathers them.

    `row` int64[N] are the rows of the transitions of `episodes`. Raises DataError where the data do not say what their
    actions serve, or no run is long enough for a pair.
    """

    def __init__(self, spec: ToldSpec, columns: Columns, observation_dim: int, row: Tensor, episodes: Spans):
        if COLUMN not in columns:
            raise DataError(f"no column '{COLUMN}': it says which sentence each action serves, as in scene-told-v0")
        self.spec, self.row = spec, row
        self.windows = Windows(spec.window, observation_dim, row, episodes)
        self.uniforms = self.windows.uniforms + 3
        """Uniform numbers that one draw consumes: those of a window, which pair, how far, which step."""
        self.instructions = torch.as_tensor(columns[COLUMN]).to(row.device)[row]
        self.ends = run_ends(self.instructions, episodes)
        room = self.ends - torch.arange(len(row), device=row.device)
        self.anchors = (room >= spec.near).nonzero()[:, 0]
        if not len(self.anchors):
            longest = int(room.max()) + 1
            raise DataError(
                f"pairs of states {spec.near} steps apart: the longest run of a sentence has {longest} steps"
            )

    def draw(self, u: Tensor) -> DrawnTold:
        """B of each from u float64[uniforms, B]."""
        spec, (which, far, where) = self.spec, u[self.windows.uniforms :]
        first = self.anchors[(which * len(self.anchors)).long()]
        widest = (self.ends[first] - first).clamp(max=spec.far - 1)
        later = first + spec.near + (far * (widest - spec.near + 1)).long()
        here = (where * len(self.row)).long()
        target = torch.minimum(here + spec.ahead, self.ends[here])
        return DrawnTold(self.windows.draw(u[: self.windows.uniforms]), first, later, here, target)

    def batches(self, u: Tensor, observations: Tensor, actions: Tensor) -> Callable[[slice], dict[str, Tensor]]:
        """Draw from u, and gather when asked for rows.

        To the columns of windows come `pair_states` and `pair_later` [B, O] with `pair_instructions` int64[B], and
        `step_states` and `step_targets` [B, O] with `step_instructions` int64[B].
        """
        drawn = self.draw(u)

        def gather(b: slice) -> dict[str, Tensor]:
            places = {"pair_states": drawn.first, "pair_later": drawn.later}
            places |= {"step_states": drawn.here, "step_targets": drawn.target}
            return {
                **self.windows.gather(drawn.windows, observations, actions, b),
                **{name: observations[self.row[place[b]]] for name, place in places.items()},
                "pair_instructions": self.instructions[drawn.first[b]],
                "step_instructions": self.instructions[drawn.here[b]],
            }

        return gather


def run_ends(instructions: Tensor, episodes: Spans) -> Tensor:
    """int64[N]: the last transition of the run that each transition belongs to; `instructions` int64[N]."""
    begins = torch.ones(len(instructions), dtype=torch.bool, device=instructions.device)
    begins[1:] = (instructions[1:] != instructions[:-1]) | (episodes.ids[1:] != episodes.ids[:-1])
    runs = Spans.from_starts(begins)
    return runs.end_of(torch.arange(len(instructions), device=instructions.device))
