"""A level that acts on a window: the latest states, its own actions between them, and a goal.

    class Windowed(WindowLevel):
        name = "policy"

        def act(self, states, past, steps, goal):
            return self.net(to_front(states, steps), to_front(past, steps - 1), goal)

Legend: S streams, B of them that are due, W states of a window, O numbers of a state, A of an action.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from echelon.hierarchy.level import Decision, Features, Level


class WindowLevel(Level):
    """The states of the last W = `window` ticks, its own actions between them, and the goal -> action in [-1, 1].

    Its memory [S, 1 + W O + (W - 1) A]: how many ticks there were, the latest states and actions, the newest last.
    `sizes`: O and A. What it observes has to be of O numbers, or it raises a ValueError.
    """

    def __init__(self, window: int, sizes: tuple[int, int], device: torch.device):
        self.window, self.sizes, self.device = window, sizes, device
        self.acted: Tensor | None = None  # [S, A] by the last decision: no part of what a level observes

    @abstractmethod
    def act(self, states: Tensor, past: Tensor, steps: Tensor, goal: Tensor) -> Tensor:
        """Actions [B, A] after `states` [B, W, O] and the actions between them, `past` [B, W - 1, A], to `goal` [B, O].

        `steps` int64[B]: how many of the states are real, at the end.
        """

    def start(self, streams: int) -> Tensor:
        (o, a), w = self.sizes, self.window
        return torch.zeros(streams, 1 + w * o + (w - 1) * a, device=self.device)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Features, Tensor | None]:
        assert memory is not None
        state, w, (o, a) = obs["observation"], self.window, self.sizes
        if state.shape[-1] != o:
            raise ValueError(f"sizes differ: observations have {state.shape[-1]} numbers, the policy's {o}")
        count, states, past = memory.split([1, w * o, (w - 1) * a], 1)
        if self.acted is not None:  # in an episode's first tick it is put where nobody looks
            past = torch.cat([past, self.acted], 1)[:, a:]
        states, count = torch.cat([states, state], 1)[:, o:], count + 1
        seen = {"states": states.unflatten(1, (w, o)), "past": past.unflatten(1, (w - 1, a)), "count": count[:, 0]}
        return {**seen, "goal": obs["goal"]}, torch.cat([count, states, past], 1)

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        goal = features["goal"] if parent is None else parent
        steps = features["count"].clamp(max=self.window).long()
        action = self.act(features["states"], features["past"], steps, goal)
        acted = action.new_zeros(len(due), action.shape[1]) if self.acted is None else self.acted.clone()
        acted[due] = action
        self.acted = acted
        return Decision(action)


def to_front(x: Tensor, steps: Tensor) -> Tensor:
    """Windows x [B, W, *E] whose last `steps` int64[B] rows are real, with these first; behind them the last again.

    So places count from an episode's first step, and no token of a causal network sees what lies behind the real ones.
    """
    places = x.shape[1]
    order = (torch.arange(places, device=steps.device) + (places - steps)[:, None]).clamp(max=places - 1)
    return x[torch.arange(len(x), device=steps.device)[:, None], order]


def newest(x: Tensor, steps: Tensor) -> Tensor:
    """The last real row [B, *E] of windows x [B, W, *E] whose first `steps` int64[B] rows are real."""
    return x[torch.arange(len(x), device=steps.device), steps - 1]
