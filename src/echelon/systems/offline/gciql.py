"""GCIQL: goal-conditioned implicit Q-learning, the flat critic baseline.

Idea: IQL with goals: a twin critic Q(s, g, a), an expectile value V(s, g) of it, and a policy that climbs Q while it
stays near the data (DDPG+BC).
Source: OGBench's reference agent (arXiv 2410.20092); IQL (arXiv 2110.06169).
Levels: one policy, a decision every environment step.
CRL and QRL import the policy's step from here.
Deviations: continuous actions and state observations only; DDPG+BC extraction only (OGBench's choice for its
table), with Q at the mean action also where the standard deviation is learned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Level
from echelon.losses.policy import ddpgbc_loss
from echelon.losses.value import expectile_loss
from echelon.nets.frozen import frozen
from echelon.nets.goal import GaussianPolicy, GoalValue
from echelon.systems.offline.common import GoalConfig, GoalLevel
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Polyak, Update


@dataclass(frozen=True, kw_only=True)
class GCIQLConfig(GoalConfig):
    """Defaults: OGBench. `target_rate` moves the target critic."""

    system: ClassVar[str] = "gciql"
    expectile: float = 0.9
    """Optimism of the value."""
    alpha: float = 0.3
    """Weight of the cloning term (OGBench: pointmaze .003, antmaze .3, manipulation 1)."""

    def __post_init__(self) -> None:
        self.require("expectile", 0 < self.expectile < 1, "between 0 and 1")
        self.require("alpha", 0 <= self.alpha < math.inf, "0 or more")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """The goal draws of one batch."""
        return {"value": self.value_goals(), "actor": self.actor_goals()}


def climb_loss(
    actor: GaussianPolicy, q: Callable[[Tensor], Tensor], batch: Batch, alpha: float
) -> tuple[Tensor, Metrics]:
    """DDPG+BC of pi(a | s, g): `q` maps the clipped mean actions [B, A] to Q [B], without gradient for its weights."""
    mean = actor(batch["observations"], batch["actor_goals"])
    value = q(mean.clamp(-1, 1))
    loss = ddpgbc_loss(value, actor.log_prob(mean, batch["actions"]), alpha)
    return loss, {"actor/loss": loss.detach(), "actor/q": value.detach().mean()}


class GCIQL(Agent):
    """Q(s, g, a) by temporal differences, V(s, g) by expectiles of Q, pi(a | s, g) by DDPG+BC."""

    Config = GCIQLConfig

    def __init__(self, config: GCIQLConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        pair = 2 * spec.observation_dim
        self.value = GoalValue(pair, config.value_hidden, members=1)
        self.critic = GoalValue(pair + spec.action_dim, config.value_hidden)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = GaussianPolicy(pair, config.actor_hidden, spec.action_dim, constant_std=config.constant_std)

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile regression of V(s, g) towards the target critic's minimum at the data's action."""
        s, g = batch["observations"], batch["value_goals"]
        with torch.no_grad():
            q = self.target_critic(s, g, batch["actions"]).amin(0)
        v = self.value(s, g)[0]
        loss = expectile_loss(q - v, q - v, self.config.expectile).mean()
        return loss, {"value/loss": loss.detach(), "value/mean": v.detach().mean()}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Squared error of both critics towards r + gamma m V(s', g)."""
        g, success = batch["value_goals"], batch["value_success"]
        with torch.no_grad():
            target = success - 1 + self.config.discount * (1 - success) * self.value(batch["next_observations"], g)[0]
        q = self.critic(batch["observations"], g, batch["actions"])
        loss = (q - target).square().sum(0).mean()
        return loss, {"critic/loss": loss.detach(), "critic/mean": target.mean()}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """DDPG+BC at the policy's mean action."""
        s, g = batch["observations"], batch["actor_goals"]
        with frozen(self.critic):
            return climb_loss(self.actor, lambda a: self.critic(s, g, a).amin(0), batch, self.config.alpha)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of the three losses."""
        value, value_metrics = self.value_loss(batch)
        critic, critic_metrics = self.critic_loss(batch)
        actor, actor_metrics = self.actor_loss(batch)
        return value + critic + actor, value_metrics | critic_metrics | actor_metrics

    def updates(self) -> tuple[Update, ...]:
        polyak = Polyak(self.critic, self.target_critic, self.config.target_rate)
        modules = (self.value, self.critic, self.actor)
        return (Update("gciql", self.loss, modules, self.config.lr, targets=(polyak,)),)

    def levels(self) -> tuple[Level, ...]:
        return (GoalLevel(self.actor),)

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"V": self.value(observation, goal)[0]}
