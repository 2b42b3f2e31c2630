"""HIQL: hierarchical implicit Q-learning.

Idea: a value over long horizons is too noisy to rank single actions but good enough to rank states k steps apart; so
one action-free value extracts two policies: a high one that proposes a subgoal (as a learned representation) and a low
one that reaches it.
Source: arXiv 2307.11949; hyper-parameters and goal draws of OGBench's reference agent (arXiv 2410.20092).
Levels: `high` (s, g) -> z = phi([s; subgoal]), nominally k steps ahead but decided anew at every step; `low` (s, z) ->
action, every step.
Shares with GCIVL: the value loss. OTA imports the networks, both policy losses and the levels from here.
Conventions: one phi serves the value and its target (only the heads have a slow copy), as in the released agent, where
sharing the module's definition shares its parameters. k is a training span: nothing is held while acting.
Deviations: state observations only (no gradient from the low policy into phi, as in the released agent for states).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from echelon.claims import Above, Claim, Score, success
from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Decision, Level
from echelon.losses.policy import awr_loss
from echelon.losses.value import ivl_loss
from echelon.nets.goal import GaussianPolicy, GoalRepresentation, GoalValue, length_normalize
from echelon.systems.offline.common import GoalConfig
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Polyak, Update


def waypoint_goals(config: GoalConfig, steps: int) -> dict[str, GoalSpec]:
    """`low` goals are the states `steps` ahead, `high` targets those on the way to `high` goals; and the value's."""
    return {
        "value": config.value_goals(),
        "low": GoalSpec(current=1, steps=steps),
        "high": config.actor_goals(steps=steps),
    }


@dataclass(frozen=True, kw_only=True)
class HIQLConfig(GoalConfig):
    """Defaults: OGBench."""

    system: ClassVar[str] = "hiql"
    expectile: float = 0.7
    """Optimism of the value (tau)."""
    low_alpha: float = 3.0
    """Inverse temperature of the low policy's advantage weights."""
    high_alpha: float = 3.0
    """Inverse temperature of the high policy's advantage weights."""
    subgoal_steps: int = 25
    """k: how far ahead subgoals lie in the data (humanoid 100, manipulation 10)."""
    representation_dim: int = 10
    """Dimensions of phi."""

    def __post_init__(self) -> None:
        self.require("expectile", 0 < self.expectile < 1, "between 0 and 1")
        for name in ("low_alpha", "high_alpha"):
            self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("subgoal_steps", "representation_dim"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """The goal draws of one batch: `low` goals are the states k steps ahead."""
        return waypoint_goals(self, self.subgoal_steps)


def value_loss(
    phi: GoalRepresentation,
    value: GoalValue,
    target_value: GoalValue,
    s: Tensor,
    s_next: Tensor,
    g: Tensor,
    success: Tensor,
    discount: float,
    expectile: float,
) -> Tensor:
    """Expectile regression of V(s, phi([s; g])) towards r + gamma m V(s_next, phi([s_next; g])).

    r = m = 0 where `success` [B] is 1, else r = -1, m = 1. phi learns from this loss alone.
    """
    z = phi(s, g)
    with torch.no_grad():
        both = target_value(torch.cat([s, s_next]), torch.cat([z, phi(s_next, g)]))
        target, target_next = both.chunk(2, dim=-1)
    return ivl_loss(value(s, z), target, target_next, success - 1, 1 - success, discount, expectile)


def low_actor_loss(
    phi: GoalRepresentation, value: GoalValue, low_actor: GaussianPolicy, batch: Batch, alpha: float
) -> tuple[Tensor, Metrics]:
    """AWR on actions towards the state w k steps ahead: A = V(s', w) - V(s, w), pi(a | s, phi([s; w]))."""
    s, w = batch["observations"], batch["low_goals"]
    with torch.no_grad():
        both = torch.cat([s, batch["next_observations"]])
        z = phi(both, torch.cat([w, w]))
        now, later = value(both, z).mean(0).chunk(2)
    advantage, z_now = later - now, z[: len(s)]
    loss = awr_loss(advantage, low_actor.log_prob(low_actor(s, z_now), batch["actions"]), alpha)
    return loss, {"low/loss": loss.detach(), "low/advantage": advantage.mean()}


def high_actor_loss(
    phi: GoalRepresentation, value: GoalValue, high_actor: GaussianPolicy, batch: Batch, alpha: float
) -> tuple[Tensor, Metrics]:
    """AWR on subgoals: A = V(w, g) - V(s, g) for the state w k steps ahead, pi(phi([s; w]) | s, g)."""
    s, w, g = batch["observations"], batch["high_targets"], batch["high_goals"]
    with torch.no_grad():
        both = torch.cat([s, w])
        z_s, z_w, subgoal = phi(torch.cat([both, s]), torch.cat([g, g, w])).chunk(3)
        now, later = value(both, torch.cat([z_s, z_w])).mean(0).chunk(2)
    advantage = later - now
    loss = awr_loss(advantage, high_actor.log_prob(high_actor(s, g), subgoal), alpha)
    metrics = {
        "high/loss": loss.detach(),
        "high/advantage": advantage.mean(),
        "high/advantage_std": advantage.std(correction=0),
    }
    return loss, metrics


class HighLevel(Level):
    """(s, g) -> subgoal representation z of length sqrt(dim)."""

    name = "high"

    def __init__(self, actor: GaussianPolicy):
        self.actor = actor

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(length_normalize(self.actor(features["observation"], features["goal"])))


class LowLevel(Level):
    """(s, z) -> action in [-1, 1]."""

    name = "low"

    def __init__(self, actor: GaussianPolicy):
        self.actor = actor

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        assert parent is not None
        return Decision(self.actor(features["observation"], parent).clamp(-1, 1))


def nearest_subgoal(
    high_actor: GaussianPolicy, phi: GoalRepresentation, s: Tensor, g: Tensor, candidates: Tensor
) -> Tensor:
    """The candidate states [B, O] whose representation phi([s; w]) is nearest to what the high policy asks for.

    `s`, `g` [B, O], `candidates` [C, O]; memory grows with B * C.
    """
    z = length_normalize(high_actor(s, g))
    b, c = len(s), len(candidates)
    pairs = phi(s.repeat_interleave(c, 0), candidates.repeat(b, 1)).view(b, c, -1)
    return candidates[torch.einsum("bcd,bd->bc", pairs, z).argmax(1)]


class HIQL(Agent):
    """One value, two policies."""

    Config = HIQLConfig

    def __init__(self, config: HIQLConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        o, dim = spec.observation_dim, config.representation_dim
        self.phi = GoalRepresentation(o, config.value_hidden, dim)
        self.value = GoalValue(o + dim, config.value_hidden)
        self.target_value = copy.deepcopy(self.value).requires_grad_(False)
        self.high_actor = GaussianPolicy(2 * o, config.actor_hidden, dim, constant_std=config.constant_std)
        self.low_actor = GaussianPolicy(o + dim, config.actor_hidden, spec.action_dim, constant_std=config.constant_std)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of the value's and both policies' losses."""
        c, s, s_next = self.config, batch["observations"], batch["next_observations"]
        value = value_loss(
            self.phi, self.value, self.target_value, s, s_next, batch["value_goals"], batch["value_success"],
            c.discount, c.expectile,
        )  # fmt: skip
        low, low_metrics = low_actor_loss(self.phi, self.value, self.low_actor, batch, c.low_alpha)
        high, high_metrics = high_actor_loss(self.phi, self.value, self.high_actor, batch, c.high_alpha)
        return value + low + high, {"value/loss": value.detach()} | low_metrics | high_metrics

    def updates(self) -> tuple[Update, ...]:
        polyak = Polyak(self.value, self.target_value, self.config.target_rate)
        modules = (self.phi, self.value, self.high_actor, self.low_actor)
        return (Update("hiql", self.loss, modules, self.config.lr, targets=(polyak,)),)

    def levels(self) -> tuple[Level, ...]:
        return (HighLevel(self.high_actor), LowLevel(self.low_actor))

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"V": self.value(observation, self.phi(observation, goal)).mean(0)}

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor:
        return nearest_subgoal(self.high_actor, self.phi, observation, goal, candidates)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.offline.gcbc import GCBCConfig
    from echelon.systems.offline.gcivl import GCIVLConfig
    from echelon.systems.offline.recipes import arm

    size, maze = "published" if full else "cpu", "pointmaze-medium-navigate-v0"
    return tuple(
        Claim(
            id=f"above-{flat.system}",
            text=f"On pointmaze-medium-navigate HIQL succeeds more often than flat {name}, by 10 points or more "
            f"(published: 79 to {published}).",
            method=Score(arm(HIQLConfig, maze, size), success),
            baseline=Score(arm(flat, maze, size), success),
            test=Above(10),
            source="arXiv 2307.11949; numbers of arXiv 2410.20092",
        )
        for flat, name, published in ((GCBCConfig, "GCBC", 9), (GCIVLConfig, "GCIVL", 63))
    )
