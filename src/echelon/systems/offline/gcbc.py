"""GCBC: goal-conditioned behaviour cloning, the flat imitation baseline.

Idea: every state that a trajectory later visits was a goal that its actions led to; imitate the action given the goal.
Source: OGBench's reference agent (arXiv 2410.20092); Lynch et al. (arXiv 1903.01973).
Levels: one policy, a decision every environment step.
Deviations: continuous actions and state observations only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Level
from echelon.nets.goal import GaussianPolicy
from echelon.systems.offline.common import ActorConfig, GoalLevel
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Update


@dataclass(frozen=True, kw_only=True)
class GCBCConfig(ActorConfig):
    """Defaults: OGBench."""

    system: ClassVar[str] = "gcbc"

    def goals(self) -> dict[str, GoalSpec]:
        """The goal draws of one batch."""
        return {"actor": self.actor_goals()}


class GCBC(Agent):
    """pi(a | s, g) by maximum likelihood."""

    Config = GCBCConfig

    def __init__(self, config: GCBCConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        self.actor = GaussianPolicy(
            2 * spec.observation_dim, config.actor_hidden, spec.action_dim, constant_std=config.constant_std
        )

    def updates(self) -> tuple[Update, ...]:
        return (Update("actor", self.loss, (self.actor,), self.config.lr),)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-log pi(a | s, g)."""
        mean = self.actor(batch["observations"], batch["actor_goals"])
        log_prob = self.actor.log_prob(mean, batch["actions"]).mean()
        return -log_prob, {"actor/log_prob": log_prob.detach()}

    def levels(self) -> tuple[Level, ...]:
        return (GoalLevel(self.actor),)
