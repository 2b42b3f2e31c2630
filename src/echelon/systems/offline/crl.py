"""CRL: contrastive reinforcement learning, the flat baseline without temporal differences.

Idea: tell the goals that really came after (s, a) from goals of other rows, by binary classification. The classifier's
log-odds are log p(g | s, a) - log p(g) up to a constant, where p(g | s, a) is the discounted future of the data's
policy; so they are a critic for reaching g, and a policy climbs them.
Source: arXiv 2206.07568; networks, goal draws and policy extraction of OGBench's reference agent (arXiv 2410.20092).
Levels: one policy, a decision every environment step.
Shares with GCIQL: the policy's DDPG+BC step.
Conventions: among B rows a goal has B - 1 negatives, all pairs weigh alike, so the log-odds at the optimum are
log p(g | s, a) / p(g) - log(B - 1). Both members of the critic learn from the same pairs; the policy climbs their
minimum.
Deviations: the paper draws the policy's goals at random and mixes Q and cloning by a share; OGBench draws them ahead on
the trajectory and divides Q by its mean size, as here. Continuous actions and state observations only; Q at the mean
action also where the standard deviation is learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Level
from echelon.nets.bilinear import BilinearCritic
from echelon.nets.frozen import frozen
from echelon.nets.goal import GaussianPolicy
from echelon.systems.offline.common import ActorConfig, GoalLevel
from echelon.systems.offline.gciql import climb_loss
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Update


@dataclass(frozen=True, kw_only=True)
class CRLConfig(ActorConfig):
    """Defaults: OGBench."""

    system: ClassVar[str] = "crl"
    value_hidden: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of each of the critic's representations."""
    latent_dim: int = 512
    """Dimensions of the critic's representations."""
    discount: float = 0.99
    """gamma: positive goals lie a geometrically distributed number of steps ahead."""
    alpha: float = 0.1
    """Weight of the cloning term (OGBench: pointmaze .03, antmaze .1, manipulation 3)."""

    def __post_init__(self) -> None:
        # they are normalised, and the norm of a single unit is constant
        self.require("value_hidden", all(size >= 2 for size in self.value_hidden), "sizes of at least 2")
        self.require("latent_dim", self.latent_dim >= 1, "at least 1")
        self.require("discount", 0 < self.discount < 1, "between 0 and 1")
        self.require("alpha", 0 <= self.alpha < math.inf, "0 or more")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """The goal draws of one batch: `value` goals are the positives."""
        return {"value": GoalSpec(future=1, discount=self.discount), "actor": self.actor_goals()}


def contrastive_loss(logits: Tensor) -> Tensor:
    """Binary noise-contrastive estimation: mean cross-entropy of logits [..., B, B] with positives on the diagonal.

    Source: arXiv 2206.07568.
    """
    own = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, own.expand_as(logits))


class CRL(Agent):
    """A contrastive critic f(s, a, g), pi(a | s, g) by DDPG+BC."""

    Config = CRLConfig

    def __init__(self, config: CRLConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        o, a = spec.observation_dim, spec.action_dim
        self.critic = BilinearCritic(o + a, o, config.value_hidden, config.latent_dim)
        self.actor = GaussianPolicy(2 * o, config.actor_hidden, a, constant_std=config.constant_std)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Which goal of the batch came after which (s, a)?"""
        logits = self.critic.pairs(torch.cat([batch["observations"], batch["actions"]], -1), batch["value_goals"])
        loss = contrastive_loss(logits)
        found = logits.detach().mean(0).argmax(1) == torch.arange(logits.shape[1], device=logits.device)
        positive = logits.detach().diagonal(dim1=1, dim2=2).mean()
        return loss, {
            "critic/loss": loss.detach(),
            "critic/accuracy": found.float().mean(),
            "critic/positive": positive,
        }

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """DDPG+BC at the policy's mean action."""
        s, g = batch["observations"], batch["actor_goals"]
        with frozen(self.critic):
            return climb_loss(self.actor, lambda a: self.q(s, a, g), batch, self.config.alpha)

    def q(self, observation: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """The smaller of the two log-odds [B]."""
        return self.critic(torch.cat([observation, action], -1), goal).amin(0)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of both losses."""
        critic, critic_metrics = self.critic_loss(batch)
        actor, actor_metrics = self.actor_loss(batch)
        return critic + actor, critic_metrics | actor_metrics

    def updates(self) -> tuple[Update, ...]:
        return (Update("crl", self.loss, (self.critic, self.actor), self.config.lr),)

    def levels(self) -> tuple[Level, ...]:
        return (GoalLevel(self.actor),)

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"Q": self.q(observation, self.actor(observation, goal).clamp(-1, 1), goal)}
