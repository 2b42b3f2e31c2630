"""Windows of steps and the goals that follow them, for policies that read or write sequences.

Legend: i transition index, f index of the last transition of i's episode, u uniform numbers in [0, 1), B batch, W steps
of a window, G frames of a goal, O size of an observation. Indices live in transition space: an episode's last
observation is neither a step nor a goal (see echelon.data.goals).
Source: BESO (arXiv 2304.02532) and its released sampler, which draws whole windows alone and no goal where too few
frames follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from echelon.spans import Spans

Anchor = Literal["last", "first"]
Mask = Literal["sample", "element"]


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """How to draw windows and goals.

    steps: W, steps of one episode.
    stride: how far they lie apart; 1: consecutive.
    offsets: where the steps lie after the first one, rising from 0, instead of `steps` and `stride`; for windows whose
        anchor is "first". Where the episode ends before, its last transition is repeated.
    anchor: which step of the window is the transition that is drawn, where a policy stands. "last": the window is what
        it remembers, shorter where the episode begins; "first": what it does next, shorter where the episode ends.
    frames: G, consecutive states from which a goal is made; where the episode ends before, its last one is repeated.
    ahead: how many steps after the drawn transition the first frame may lie at the soonest, uniformly up to where G
        frames are left; never beyond f.
    within: how many steps after it the first frame may lie at the latest; None: as far as the episode goes.
    drop: probability that a goal is marked as left out.
    mask: each sample's as a whole, or "element" by element (the released code: a goal of many numbers is then almost
        never left out as a whole).
    """

    steps: int = 1
    stride: int = 1
    offsets: tuple[int, ...] = ()
    anchor: Anchor = "last"
    frames: int = 1
    ahead: int = 1
    within: int | None = None
    drop: float = 0.0
    mask: Mask = "sample"

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("stride", 1), ("frames", 1), ("ahead", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.offsets and (self.steps != 1 or self.stride != 1 or self.anchor != "first"):
            raise ValueError(f"offsets {self.offsets} are for the anchor 'first', without steps and stride")
        if self.offsets and (self.offsets[0] != 0 or any(b <= a for a, b in pairwise(self.offsets))):
            raise ValueError(f"offsets must rise from 0, got {self.offsets}")
        if self.within is not None and self.within < self.ahead:
            raise ValueError(f"within must be None or at least ahead ({self.ahead}), got {self.within}")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is a probability, got {self.drop}")
        for name, options in (("anchor", get_args(Anchor)), ("mask", get_args(Mask))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be {' or '.join(options)}, got '{getattr(self, name)}'")

    def places(self) -> tuple[int, ...]:
        """Where the steps lie after the window's first one."""
        return self.offsets or tuple(range(0, self.steps * self.stride, self.stride))


class DrawnWindows(NamedTuple):
    """Transitions int64[B]: `first` and `last` of the window, `goal` of the goal's first frame, `final` of the episode;
    `kept` bool[B, 1, 1] or [B, G, O]: which goals, or numbers of them, are not left out."""

    first: Tensor
    last: Tensor
    goal: Tensor
    final: Tensor
    kept: Tensor


class Windows:
    """Draws windows from a data set's transitions, whose rows are `row` int64[N], and gathers them."""

    def __init__(self, spec: WindowSpec, observation_dim: int, row: Tensor, episodes: Spans):
        self.spec, self.row, self.episodes = spec, row, episodes
        self.goal_shape = (spec.frames, observation_dim) if spec.mask == "element" else (1, 1)
        self.uniforms = 2 + self.goal_shape[0] * self.goal_shape[1]
        """Uniform numbers that one draw consumes: which transition, how far the goal, what is left out."""

    def draw(self, u: Tensor) -> DrawnWindows:
        """B windows and goals from u float64[uniforms, B]."""
        spec = self.spec
        drawn = (u[0] * self.episodes.size).long()
        start, final = self.episodes.start_of(drawn), self.episodes.end_of(drawn)
        room = drawn - start if spec.anchor == "last" else final - drawn
        reach = (room // spec.stride * spec.stride).clamp(max=spec.places()[-1])
        first, last = (drawn - reach, drawn) if spec.anchor == "last" else (drawn, drawn + reach)
        soonest = torch.minimum(drawn + spec.ahead, final)
        latest = torch.maximum(final - (spec.frames - 1), soonest)
        if spec.within is not None:
            latest = torch.minimum(latest, drawn + spec.within)
        goal = soonest + (u[1] * (latest - soonest + 1)).long()
        kept = (u[2:] >= spec.drop).T.reshape(-1, *self.goal_shape)
        return DrawnWindows(first, last, goal, final, kept)

    def gather(self, drawn: DrawnWindows, observations: Tensor, actions: Tensor, b: slice) -> dict[str, Tensor]:
        """The windows `b`, with their steps at the front.

        `observations` [B, W, O], `actions` [B, W, A]; `real` bool[B, W] is false behind a shorter window's last step,
        which is repeated there; `goals` [B, G, O] and `kept`, as drawn: what is left out is not erased yet, so that it
        can be after scaling; `until` int64[B]: steps from the transition that was drawn to the goal's first frame.
        """
        first, last, goal, final, kept = (part[b] for part in drawn)
        place = first[:, None] + torch.tensor(self.spec.places(), device=first.device)
        frame = goal[:, None] + torch.arange(self.spec.frames, device=first.device)
        step = self.row[torch.minimum(place, last[:, None])]
        return {
            "observations": observations[step],
            "actions": actions[step],
            "real": place <= last[:, None],
            "goals": observations[self.row[torch.minimum(frame, final[:, None])]],
            "kept": kept,
            "until": goal - (last if self.spec.anchor == "last" else first),
        }

    def batches(self, u: Tensor, observations: Tensor, actions: Tensor) -> Callable[[slice], dict[str, Tensor]]:
        """Draw from u, and gather when asked for rows."""
        return partial(self.gather, self.draw(u), observations, actions)


def check_windows(batch: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where the columns of a batch of windows have different numbers of rows or steps."""
    shapes = {name: tuple(batch[name].shape[:2]) for name in ("observations", "actions", "real")}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"sizes differ: rows and steps of a batch of windows are {shapes}")
