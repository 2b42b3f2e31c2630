"""GCIVL: goal-conditioned implicit V-learning, the flat value baseline.

Idea: HIQL's action-free expectile value V(s, g), but one flat policy extracted by advantage-weighted regression on the
one-step advantage V(s', g) - V(s, g). Over long horizons that difference drowns in the value's error.
Source: OGBench's reference agent (arXiv 2410.20092).
Levels: one policy, a decision every environment step.
Shares with HIQL: the value loss (echelon.losses.value.ivl_loss) and the goal draws.
Deviations: continuous actions and state observations only.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Level
from echelon.losses.policy import awr_loss
from echelon.losses.value import ivl_loss
from echelon.nets.goal import GaussianPolicy, GoalValue
from echelon.systems.offline.common import GoalConfig, GoalLevel
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Polyak, Update


@dataclass(frozen=True, kw_only=True)
class GCIVLConfig(GoalConfig):
    """Defaults: OGBench."""

    system: ClassVar[str] = "gcivl"
    expectile: float = 0.9
    """Optimism of the value."""
    alpha: float = 10.0
    """Inverse temperature of the advantage weights."""

    def __post_init__(self) -> None:
        self.require("expectile", 0 < self.expectile < 1, "between 0 and 1")
        self.require("alpha", 0 <= self.alpha < math.inf, "0 or more")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """The goal draws of one batch."""
        return {"value": self.value_goals(), "actor": self.actor_goals()}


class GCIVL(Agent):
    """V(s, g) by expectile regression, pi(a | s, g) by advantage-weighted regression."""

    Config = GCIVLConfig

    def __init__(self, config: GCIVLConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        self.value = GoalValue(2 * spec.observation_dim, config.value_hidden)
        self.target_value = copy.deepcopy(self.value).requires_grad_(False)
        self.actor = GaussianPolicy(
            2 * spec.observation_dim, config.actor_hidden, spec.action_dim, constant_std=config.constant_std
        )

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile regression of V(s, g) towards r + gamma m V(s', g), with r = -1 until the goal."""
        s, g, success = batch["observations"], batch["value_goals"], batch["value_success"]
        with torch.no_grad():
            both = self.target_value(torch.cat([s, batch["next_observations"]]), torch.cat([g, g]))
            target, target_next = both.chunk(2, dim=-1)
        v = self.value(s, g)
        loss = ivl_loss(v, target, target_next, success - 1, 1 - success, self.config.discount, self.config.expectile)
        return loss, {"value/loss": loss.detach(), "value/mean": v.detach().mean()}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """AWR with A = V(s', g) - V(s, g)."""
        s, g = batch["observations"], batch["actor_goals"]
        with torch.no_grad():
            v = self.value(torch.cat([s, batch["next_observations"]]), torch.cat([g, g])).mean(0)
            now, then = v.chunk(2)
        log_prob = self.actor.log_prob(self.actor(s, g), batch["actions"])
        loss = awr_loss(then - now, log_prob, self.config.alpha)
        return loss, {"actor/loss": loss.detach(), "actor/advantage": (then - now).mean()}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of both losses."""
        value, value_metrics = self.value_loss(batch)
        actor, actor_metrics = self.actor_loss(batch)
        return value + actor, value_metrics | actor_metrics

    def updates(self) -> tuple[Update, ...]:
        polyak = Polyak(self.value, self.target_value, self.config.target_rate)
        return (Update("gcivl", self.loss, (self.value, self.actor), self.config.lr, targets=(polyak,)),)

    def levels(self) -> tuple[Level, ...]:
        return (GoalLevel(self.actor),)

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"V": self.value(observation, goal).mean(0)}
