"""Hindsight goals for offline goal-conditioned learning, as one declarative specification.

Legend: i transition index, f index of the last transition of i's trajectory, j goal index, o target index,
k or n steps, B batch. Indices live in transition space; goals are states of transitions, so a trajectory's true last
observation is never a goal (the OGBench loading convention).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GoalSpec:
    """How to draw a goal (and a state on the way to it) for a transition.

    With probability `current` the goal is the target state itself (a certain success); else it lies in the future of
    the same trajectory with probability `future`, or is any state of the data set with probability `random`.
    The target is the state `steps` ahead, at most the goal (if the goal is ahead) or the trajectory's end; with
    `steps=0` it is the transition's own state. Success means goal index = target index.

    Examples: HIQL's value goals GoalSpec(current=.2, future=.5, random=.3); OTA's option ends are the same with
    steps=n; a low-level subgoal k steps ahead is GoalSpec(current=1, steps=k); the high level's
    GoalSpec(future=1, law="uniform", steps=k).
    """

    current: float = 0.0
    future: float = 0.0
    random: float = 0.0
    law: Literal["geometric", "uniform"] = "geometric"
    discount: float = 0.99
    steps: int = 0

    def __post_init__(self) -> None:
        total = self.current + self.future + self.random
        if min(self.current, self.future, self.random) < 0 or abs(total - 1) > 1e-6:
            raise ValueError(f"goal probabilities must be >= 0 and sum to 1, got current={self.current}, "
                             f"future={self.future}, random={self.random}")  # fmt: skip
        if self.law not in ("geometric", "uniform"):
            raise ValueError(f"law must be 'geometric' or 'uniform', got '{self.law}'")
        if self.law == "geometric" and not 0 < self.discount < 1:
            raise ValueError(f"a geometric law needs 0 < discount < 1, got {self.discount}")
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, got {self.steps}")


class Goals(NamedTuple):
    """Drawn goals: `goal` and `target` int64[B] transition indices, `success` bool[B] = (goal == target)."""

    goal: Tensor
    target: Tensor
    success: Tensor


UNIFORMS = 4
"""Uniform numbers that one draw consumes: is it the future, how far, which random state, is it the current one."""


def draw_goals(spec: GoalSpec, i: Tensor, f: Tensor, n: int, u: Tensor) -> Goals:
    """Draw goals for transitions `i` int64[B] whose trajectories end at `f` int64[B], out of `n` transitions.

    `u` float64[4, B] holds uniform numbers in [0, 1); the result is a pure function of them.
    """
    in_trajectory = u[0] < spec.future / (1 - spec.current + 1e-6)
    ahead = future_geometric(i, f, u[1], spec.discount) if spec.law == "geometric" else future_uniform(i, f, u[1])
    return place_goals(spec, i, f, ahead, (u[2] * n).long(), in_trajectory, u[3] < spec.current)


def future_geometric(i: Tensor, f: Tensor, u: Tensor, discount: float) -> Tensor:
    """min(i + Geometric(1 - discount), f); the offset is at least 1."""
    offset = 1 + torch.log1p(-u).div(math.log(discount)).floor().long()
    return torch.minimum(i + offset, f)


def future_uniform(i: Tensor, f: Tensor, u: Tensor) -> Tensor:
    """A state between the next one and the trajectory's end: round(min(i + 1, f) * u + f * (1 - u))."""
    return (torch.minimum(i + 1, f) * u + f * (1 - u)).round().long()


def place_goals(
    spec: GoalSpec, i: Tensor, f: Tensor, ahead: Tensor, elsewhere: Tensor, in_trajectory: Tensor, current: Tensor
) -> Goals:
    """Assemble goals from the elementary decisions: `ahead` and `elsewhere` int64[B], the other two bool[B]."""
    goal = torch.where(in_trajectory, ahead, elsewhere)
    target = i if spec.steps == 0 else torch.minimum(i + spec.steps, torch.where(in_trajectory, ahead, f))
    goal = torch.where(current, target, goal)
    return Goals(goal, target, goal == target)
