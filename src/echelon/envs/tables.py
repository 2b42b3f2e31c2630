"""Worlds whose rules are a table: so many states and actions, and for each pair what may happen with what chance.

A `Model` holds the rules exactly, to be planned with; `TableWorld` plays it, many episodes side by side. Each slot
draws from a stream of random numbers that its episode's seed gives: no episode depends on its neighbours.
Legend: N states, A actions, K things that may happen, S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from echelon.errors import UsageError

Outcomes = Iterable[tuple[float, int, float]]
"""(probability, next state, reward) of each thing that may happen."""
_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""Constants of splitmix64 (Steele, Lea, Flood 2014), as signed numbers."""


@dataclass(frozen=True, eq=False)
class Model:
    """The rules of a finite world, in double precision.

    next int64, probability, reward float64: [N, A, K]; terminal bool[N]; start float64[N], the chance that an episode
    begins there. Nothing leads out of a terminal state. views: what else is shown beside the state, a column [N] each
    (whole numbers from 0, or vectors). success: bool[N], terminal states that count as one; None: nothing does.
    """

    next: Tensor
    probability: Tensor
    reward: Tensor
    terminal: Tensor
    start: Tensor
    views: Mapping[str, Tensor] = field(default_factory=dict)
    success: Tensor | None = None

    def __post_init__(self) -> None:
        if not torch.allclose(self.probability.sum(-1), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12):
            raise UsageError("the chances of what may happen must add up to 1 for every state and action")
        if bool(((self.next < 0) | (self.next >= self.states)).any()):
            raise UsageError(f"a next state lies outside of 0 to {self.states - 1}")
        if abs(float(self.start.sum()) - 1) > 1e-12 or bool((self.start[self.terminal] > 0).any()):
            raise UsageError("the chances of starts must add up to 1, none of them terminal")

    @property
    def states(self) -> int:
        """How many states there are."""
        return self.next.shape[0]

    @property
    def actions(self) -> int:
        """How many actions there are."""
        return self.next.shape[1]

    @cached_property
    def transition(self) -> Tensor:
        """P(s' | s, a), float64[N, A, N]."""
        table = torch.zeros(self.states, self.actions, self.states, dtype=torch.float64)
        return table.scatter_add_(2, self.next, self.probability)

    @cached_property
    def expected_reward(self) -> Tensor:
        """E[r | s, a], float64[N, A]."""
        return (self.probability * self.reward).sum(-1)


def model_of(
    actions: int,
    rule: Callable[[int, int], Outcomes],
    terminal: Sequence[bool],
    starts: Sequence[int],
    views: Mapping[str, Tensor] | None = None,
    success: Sequence[bool] | None = None,
) -> Model:
    """The model of `rule(state, action)`; episodes begin in any of `starts` with equal chance."""
    pairs = [(s, a) for s in range(len(terminal)) for a in range(actions)]
    found = [[(1.0, s, 0.0)] if terminal[s] else list(rule(s, a)) for s, a in pairs]
    most = max(map(len, found))
    rows = [
        outcomes + [(0.0, pair[0], 0.0)] * (most - len(outcomes)) for pair, outcomes in zip(pairs, found, strict=True)
    ]
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(terminal), actions, most, 3)
    start = torch.zeros(len(terminal), dtype=torch.float64)
    start[list(starts)] = 1 / len(starts)
    return Model(
        table[..., 1].long(),
        table[..., 0].clone(),
        table[..., 2].clone(),
        torch.tensor(terminal),
        start,
        views or {},
        None if success is None else torch.tensor(success),
    )


class TableWorld(VectorEnv):
    """`slots` episodes of a model side by side; shows "observation", the state, and the model's views.

    limit: steps after which an episode is cut off. then: (steps, model): episodes that begin once the world has made so
    many steps, in each slot, have other rules on the same states and actions (a goal that moved).
    Autoreset mode DISABLED; observations are tensors that are not written to later.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  # as gymnasium has it
    copy = True

    def __init__(self, model: Model, slots: int, limit: int | None = None, then: tuple[int, Model] | None = None):
        models = [model] if then is None else [model, then[1]]
        if models[0].next.shape[:2] != models[-1].next.shape[:2]:
            raise UsageError("rules that follow on others need as many states and actions")
        if slots < 1 or (limit is not None and limit < 1):
            raise UsageError("a world has at least one slot, and episodes of at least one step")
        self.models, self.limit, self.change = models, limit, None if then is None else then[0]
        self.num_envs = slots
        shown: dict[str, Space[Any]] = {"observation": Discrete(model.states)} | {
            name: _space(view) for name, view in model.views.items()
        }
        self.single_observation_space = Dict(shown)
        self.single_action_space = Discrete(model.actions)
        self.observation_space = batch_space(self.single_observation_space, slots)
        self.action_space = MultiDiscrete(np.full(slots, model.actions))
        self._tabulate()
        zeros = torch.zeros(slots, dtype=torch.int64)
        self._state, self._elapsed, self._draws, self._key, self._variant = (zeros.clone() for _ in range(5))
        self._steps = 0
        self._seeds = torch.Generator()  # of episodes that are given none, which nothing can bring back
        self._seeds.seed()

    def _tabulate(self) -> None:
        """The models' tables one behind the other, as flat as lookups want them."""
        models, outcomes = self.models, max(m.next.shape[2] for m in self.models)

        def flat(tables: list[Tensor]) -> Tensor:
            wide = [torch.cat([t, t[..., -1:].expand(*t.shape[:2], outcomes - t.shape[2])], 2) for t in tables]
            return torch.stack(wide).flatten(0, 2)

        bounds = [m.probability.cumsum(-1) for m in models]
        for bound in bounds:
            bound[..., -1] = 2.0  # whatever rounding makes of the sum
        self._bounds, self._outcomes = flat(bounds), outcomes
        self._next = flat([m.next for m in models]).flatten()
        self._reward = flat([m.reward for m in models]).float().flatten()
        self._terminal = torch.cat([m.terminal for m in models])
        self._starts = torch.stack([m.start.cumsum(-1) for m in models])
        for row, m in zip(self._starts, models, strict=True):
            row[int(m.start.nonzero()[-1]) :] = 2.0
        told = [m.success for m in models if m.success is not None]
        self._success = torch.cat(told).float() if len(told) == len(models) else None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Begin episodes in all slots, or those of options["reset_mask"], bool[S]."""
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            raise UsageError(f"this world takes no option {', '.join(sorted(unknown))}")
        mask = (options or {}).get("reset_mask")
        where = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        if isinstance(seed, int):
            seed = [seed + slot for slot in range(self.num_envs)]
        slots = where.nonzero()[:, 0]
        fresh = torch.randint(2**62, (len(slots),), generator=self._seeds)
        if seed is not None:
            given = [seed[slot] for slot in slots.tolist()]
            fresh = torch.tensor([f if s is None else s for s, f in zip(given, fresh.tolist(), strict=True)])
        variant = int(self.change is not None and self._steps >= self.change)
        key = scramble(fresh)
        state = torch.searchsorted(self._starts[variant], uniform(key, torch.zeros_like(key)), right=True)
        for name, values in (("_key", key), ("_draws", torch.ones_like(key)), ("_state", state)):
            setattr(self, name, getattr(self, name).index_copy(0, slots, values))
        self._elapsed = self._elapsed.index_fill(0, slots, 0)
        self._variant = self._variant.index_fill(0, slots, variant)
        return self._show(), {}

    def step(self, actions: Any) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """What the actions, int[S], come to."""
        model = self.models[0]
        chosen = torch.as_tensor(actions)
        if chosen.shape != (self.num_envs,) or chosen.is_floating_point():
            raise UsageError(f"actions are {self.num_envs} whole numbers, not {chosen.dtype}{list(chosen.shape)}")
        low, high = torch.aminmax(chosen)
        if int(low) < 0 or int(high) >= model.actions:
            raise UsageError(f"an action lies outside of 0 to {model.actions - 1}")
        base = self._variant * model.states
        pair = (base + self._state) * model.actions + chosen
        draw = uniform(self._key, self._draws)
        happened = pair * self._outcomes + (draw[:, None] >= self._bounds[pair]).sum(1)
        self._draws, self._elapsed = self._draws + 1, self._elapsed + 1
        self._state = self._next[happened]
        self._steps += 1
        terminated = self._terminal[base + self._state]
        over = self._elapsed >= self.limit if self.limit is not None else torch.zeros_like(terminated)
        infos = {} if self._success is None else {"success": self._success[base + self._state]}
        return self._show(), self._reward[happened], terminated, over & ~terminated, infos

    def stand_at(self, steps: int) -> None:
        """Count as having made so many steps: the rules of new episodes are those of that time."""
        self._steps = steps

    def _show(self) -> dict[str, Tensor]:
        return {"observation": self._state} | {name: view[self._state] for name, view in self.models[0].views.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where all episodes stand."""
        kept = {name: getattr(self, name).clone() for name in _KEPT}
        return {**kept, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand as `state_dict` said."""
        for name in _KEPT:
            setattr(self, name, state[name].clone())
        self._steps = state["steps"]


_KEPT = ("_state", "_elapsed", "_draws", "_key", "_variant")


def _space(view: Tensor) -> Space[Any]:
    """What a view's values lie in."""
    if not view.is_floating_point():
        return Discrete(int(view.max()) + 1)
    low, high = (bound(view, 0).values.numpy() for bound in (torch.min, torch.max))
    return Box(low.astype(np.float32), high.astype(np.float32))


def scramble(number: Tensor) -> Tensor:
    """splitmix64's finish: int64 to int64, one to one, near numbers far apart."""
    number = number + _GOLDEN
    number = (number ^ ((number >> 30) & 0x3FFFFFFFF)) * _FIRST
    number = (number ^ ((number >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return number ^ ((number >> 31) & 0x1FFFFFFFF)


def uniform(key: Tensor, draw: Tensor) -> Tensor:
    """Number `draw` of the stream `key`: float64 in [0, 1)."""
    return ((scramble(key + draw * _GOLDEN) >> 11) & 0x1FFFFFFFFFFFFF).double() * 2.0**-53
