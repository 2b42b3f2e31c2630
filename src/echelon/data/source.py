"""Minibatches from an offline data set: sampled, relabelled and gathered on the training device, without a loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from echelon.data.check import check_episodes
from echelon.data.goals import UNIFORMS, Goals, GoalSpec, draw_goals
from echelon.data.hindsight import HindsightSpec, Mixture
from echelon.data.milestones import Milestones, MilestoneSpec
from echelon.data.store import Store
from echelon.data.told import Told, ToldSpec
from echelon.data.windows import Windows, WindowSpec
from echelon.errors import CheckpointError
from echelon.spans import Spans

Batch = dict[str, Tensor]


class OfflineSource:
    """An endless stream of transition batches with hindsight goals; seeded, resumable, on `device`.

    `goals` names the goal draws that a system wants. Batches hold `observations`, `next_observations` [B, O],
    `actions` [B, A], and for each name: `{name}_goals` [B, O], `{name}_success` [B] (float, goal index = target index)
    and, where the specification has steps, `{name}_targets` [B, O].

    Specifications that draw transitions together with their goals make a mixture instead (echelon.data.hindsight): B
    rows of each, one after the other, with `goals` and a column `source`. A specification of windows makes batches of
    windows [B, W, ...] with goals that follow them (echelon.data.windows), or of windows beside pairs of states on the
    way to what a sentence asks for (echelon.data.told). A specification of milestones makes batches of transitions with
    the milestone that they work towards as `goals` (echelon.data.milestones). The kinds are not mixed.

    Indices are drawn for `block` batches at a time, which divides the cost of the small integer operations; the
    order of batches is part of the run's identity and does not depend on when it is saved.

    Raises DataError, naming the episode, when the contents of the store are not fit to train on.
    """

    def __init__(
        self,
        store: Store,
        goals: Mapping[str, GoalSpec | HindsightSpec | WindowSpec | ToldSpec | MilestoneSpec],
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        block: int = 16,
    ):
        self.goals = {name: spec for name, spec in goals.items() if isinstance(spec, GoalSpec)}
        rows = [spec for spec in goals.values() if isinstance(spec, HindsightSpec)]
        windows = [spec for spec in goals.values() if isinstance(spec, WindowSpec | ToldSpec | MilestoneSpec)]
        if self.goals and (rows or windows):
            raise ValueError(f"{', '.join(self.goals)}: goals for drawn rows, beside specifications that draw both")
        if windows and len(goals) > 1:
            raise ValueError(f"{', '.join(goals)}: windows are drawn by one specification, and by nothing beside it")
        self.batch_size, self.block = batch_size, block
        check_episodes(store.columns, f"data set '{store.name}' in {store.path}", lengths=store.lengths)
        self.observations = torch.as_tensor(store.columns["observations"]).to(device)
        self.actions = torch.as_tensor(store.columns["actions"]).to(device)
        lengths = torch.as_tensor(store.lengths).to(device)
        self.episodes = Spans.from_lengths(lengths)
        self.row = torch.arange(self.episodes.size, device=device) + self.episodes.ids
        self.final = self.episodes.end_of(torch.arange(self.episodes.size, device=device))
        self.generator = torch.Generator(device).manual_seed(seed)
        self._before_block = self.generator.get_state()
        self.rows: Mixture | Windows | Told | Milestones | None = None
        if rows:
            self.rows = Mixture(rows, store.columns, self.observations, self.row, self.episodes)
        elif windows:
            (spec,), size = windows, self.observations.shape[-1]
            if isinstance(spec, ToldSpec):
                self.rows = Told(spec, store.columns, size, self.row, self.episodes)
            elif isinstance(spec, MilestoneSpec):
                self.rows = Milestones(spec, store.columns, self.row, self.episodes)
            else:
                self.rows = Windows(spec, size, self.row, self.episodes)
        self._drawn: Callable[[slice], Batch] | None = None
        self._position = 0

    @property
    def transitions(self) -> int:
        """Number of transitions that batches are drawn from."""
        return self.episodes.size

    def next(self) -> Batch:
        """Return the next batch."""
        if self._drawn is None or self._position == self.block:
            self._draw()
        assert self._drawn is not None
        b = slice(self._position * self.batch_size, (self._position + 1) * self.batch_size)
        self._position += 1
        return self._drawn(b)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: the generator's state before the current block, and the batches used of it."""
        return {"generator": self._before_block.clone(), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the stream exactly where `state_dict` was taken.

        Raises CheckpointError when that was on another kind of device, whose generator draws other numbers.
        """
        try:
            self.generator.set_state(state["generator"])
        except RuntimeError as error:
            kind = self.row.device.type
            raise CheckpointError(f"the batches were not drawn on '{kind}': resume on the run's own device") from error
        self._draw()
        self._position = int(state["position"])

    def _states(self, transition: Tensor) -> Tensor:
        return self.observations[self.row[transition]]

    def _draw(self) -> None:
        self._before_block = self.generator.get_state()
        count = self.block * self.batch_size
        if self.rows is not None:
            self._drawn = self.rows.batches(self._uniforms(self.rows.uniforms, count), self.observations, self.actions)
        else:
            u = self._uniforms(1 + UNIFORMS * len(self.goals), count)
            n = self.transitions
            index = (u[0] * n).long()
            final = self.final[index]
            goals = {
                name: draw_goals(spec, index, final, n, u[1 + UNIFORMS * k : 1 + UNIFORMS * (k + 1)])
                for k, (name, spec) in enumerate(self.goals.items())
            }
            self._drawn = partial(self._relabelled, index, goals)
        self._position = 0

    def _uniforms(self, kinds: int, count: int) -> Tensor:
        return torch.rand((kinds, count), generator=self.generator, device=self.row.device, dtype=torch.float64)

    def _relabelled(self, index: Tensor, goals: dict[str, Goals], b: slice) -> Batch:
        row = self.row[index[b]]
        batch = {
            "observations": self.observations[row],
            "next_observations": self.observations[row + 1],
            "actions": self.actions[row],
        }
        for name, drawn in goals.items():
            batch[f"{name}_goals"] = self._states(drawn.goal[b])
            batch[f"{name}_success"] = drawn.success[b].to(self.observations.dtype)
            if self.goals[name].steps:
                batch[f"{name}_targets"] = self._states(drawn.target[b])
        return batch
