"""A world and levels whose every move is known, for the tests of the runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.world import Reset, Step
from echelon.rollout import Decisions, Rollout


class Clock:
    """Shows (seed, ticks since the reset, agent); the reward is the tick; nothing else ever changes.

    `options`: "length", one an agent or one for all (default 5); "truncate" (default False).
    """

    explicit, bounds = True, None

    def __init__(self, slots: int, agents: int = 1):
        self.slots, self.agents = slots, agents
        self.roles = tuple(f"agent_{a}" for a in range(agents))
        self.seed, self.time = np.zeros(slots), np.zeros(slots)
        self.length, self.cut = np.zeros((slots, agents)), np.zeros(slots, dtype=bool)
        self.heard: list[tuple[Tensor, np.ndarray]] = []

    def reset(self, slots: np.ndarray, resets: Sequence[Reset]) -> np.ndarray:
        for slot, reset in zip(slots, resets, strict=True):
            options = reset.options or {}
            self.seed[slot], self.time[slot] = reset.seed or 0, 0
            self.length[slot] = options.get("length", 5)
            self.cut[slot] = options.get("truncate", False)
        return self.show()

    def show(self) -> np.ndarray:
        rows = np.stack([self.seed, self.time], 1).repeat(self.agents, 0)
        agent = np.tile(np.arange(self.agents), self.slots)
        return np.concatenate([rows, agent[:, None]], 1).astype(np.float32)

    def step(self, actions: Tensor, active: np.ndarray) -> Step:
        self.heard.append((actions.clone(), active.copy()))
        reward = self.time.repeat(self.agents)
        self.time += 1
        over = (self.time[:, None] >= self.length).ravel()
        cut = self.cut.repeat(self.agents)
        infos = [{"success": float(seed % 2 == 0)} for seed in self.seed]
        return Step(self.show(), reward, over & ~cut, over & cut, infos=infos)


class Script(Level):
    """Calls `act(features, parent) -> Tensor[B, d]`, by default (seed, tick) then; keeps what it was asked."""

    def __init__(self, name: str, termination: Any = None, act: Any = None):
        self.name = name
        if termination is not None:
            self.termination = termination
        self.act = act or (lambda features, parent: features["observation"][:, :2])
        self.asked: list[tuple[Tensor, Tensor | None, Tensor]] = []

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        self.asked.append((features["observation"], parent, due))
        action = self.act(features, parent)
        return Decision(action, action.flatten(1)[:, -1] / 10, {"guess": action.flatten(1)[:, -1] * 2})


def obey(name: str = "low", termination: Any = None) -> Script:
    """A level that does what its parent says."""
    return Script(name, termination, lambda features, parent: parent)


def valid(rollout: Rollout) -> Rollout:
    """The rollout, put through the checks that the runner leaves out."""
    return replace(rollout, checked=True)


def table(rollout: Rollout, level: str, *columns: str) -> list[tuple]:
    """The decisions of a level as rows, by default (stream, start, stop, begin, end)."""
    found = valid(rollout).decisions[level]
    return list(
        zip(*(getattr(found, c).tolist() for c in columns or ("stream", "start", "stop", "begin", "end")), strict=True)
    )


def lengths(*numbers: Any, **options: Any) -> list[Reset]:
    """One reset a number, with seeds 0, 1, ..."""
    return [Reset(seed=i, options={"length": number, **options}) for i, number in enumerate(numbers)]


def same(a: Any, b: Any) -> bool:
    """Whether two columns agree in every bit, NaN included."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(-7), b.nan_to_num(-7))
    return a == b


def in_order(rollout: Rollout) -> list[Decisions]:
    """The decisions of each level sorted by stream and time, parents renumbered: joined rollouts keep another order."""
    found, above = [], None
    for d in rollout.decisions.values():
        key = (d.stream * (rollout.size + 1) + d.start) * (rollout.size + 1) + d.stop
        order = torch.argsort(key, stable=True)
        number = torch.empty_like(order)
        number[order] = torch.arange(len(order))
        d = d[order]
        found.append(d if above is None else replace(d, parent=above[d.parent]))
        above = number
    return found


def differences(a: Rollout, b: Rollout) -> list[str]:
    """The names of the columns in which two rollouts differ, memory and numbers of episodes apart."""
    a, b = valid(a), valid(b)
    found = [n for n in ("stream", "tick", "elapsed", "proposed", "executed") if not same(getattr(a, n), getattr(b, n))]
    for kind in ("reward", "scored", "observation"):
        x, y = getattr(a, kind), getattr(b, kind)
        found += [f"{kind} {n}" for n in {**x, **y} if n not in x or n not in y or not same(x[n], y[n])]
    for level, x, y in zip(a.levels, in_order(a), in_order(b), strict=True):
        names = ("stream", "start", "stop", "span", "begin", "end", "action", "log_prob", "parent")
        found += [f"{level}.{n}" for n in names if not same(getattr(x, n), getattr(y, n))]
        found += [f"{level}.{n}" for n in x.values if not same(x.values[n], y.values[n])]
    names = ("role", "policy_id", "learner", "terminated", "truncated", "start_tick")
    found += [f"streams.{n}" for n in names if not same(getattr(a.streams, n), getattr(b.streams, n))]
    for kind in ("final_observation", "labels"):
        x, y = getattr(a.streams, kind), getattr(b.streams, kind)
        found += [f"{kind} {n}" for n in {**x, **y} if n not in x or n not in y or not same(x[n], y[n])]
    for name in a.spans:
        if not same(a.spans[name].ids, b.spans[name].ids):
            found.append(f"partition {name}")
    return found
