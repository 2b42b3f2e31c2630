"""QRL: quasimetric reinforcement learning, the flat baseline that learns distances.

Idea: the optimal steps-to-goal d(s, g) is the largest quasimetric that gives every transition of the data at most one
step. So push all pairs of states apart, hold neighbours together by a multiplier, and let the triangle inequality, true
of the network by construction, carry short distances to long ones. A policy then descends d through a latent model.
Source: arXiv 2304.01203; quasimetric IQE (arXiv 2211.15120); networks, goal draws and constants of OGBench's reference
agent (arXiv 2410.20092).
Levels: one policy, a decision every environment step.
Shares with GCIQL: the policy's DDPG+BC step, with Q = -d(z', phi(g)) at the predicted next representation z'.
Conventions: d counts steps, so that V = -d. Every pair (s, random g) is pushed apart with a force that fades as d goes
beyond `reach` steps. The multiplier is exp of a parameter and moves in the same optimiser step as the rest.
Deviations: as in OGBench the mean squared excess is held at `eps` (the paper: eps^2), the multiplier has the learning
rate of all (the paper: its own), and the model is trained on d, not on its square. Continuous actions and state
observations only; Q at the mean action also where the standard deviation is learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Level
from echelon.nets.frozen import frozen
from echelon.nets.goal import GaussianPolicy
from echelon.nets.mlp import MLP
from echelon.nets.quasimetric import QuasimetricValue
from echelon.systems.offline.common import ActorConfig, GoalLevel
from echelon.systems.offline.gciql import climb_loss
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Update


@dataclass(frozen=True, kw_only=True)
class QRLConfig(ActorConfig):
    """Defaults: OGBench."""

    system: ClassVar[str] = "qrl"
    value_hidden: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of the representation and of the latent model."""
    latent_dim: int = 512
    """Dimensions of the representation."""
    group: int = 8
    """Intervals of one component of the quasimetric; divides latent_dim."""
    eps: float = 0.05
    """Mean squared excess over one step that is allowed between neighbours."""
    reach: float = 500.0
    """Steps beyond which pushing two states apart stops to matter."""
    softness: float = 100.0
    """Steps over which that push fades."""
    alpha: float = 0.003
    """Weight of the cloning term (OGBench: pointmaze .0003, antmaze .003, manipulation .3)."""

    def __post_init__(self) -> None:
        # they are normalised, and the norm of a single unit is constant
        self.require("value_hidden", all(size >= 2 for size in self.value_hidden), "sizes of at least 2")
        self.require("latent_dim", self.latent_dim >= 1, "at least 1")
        self.require("group", self.group >= 1, "at least 1")
        self.require("group", self.latent_dim % self.group == 0, f"a divisor of latent_dim ({self.latent_dim})")
        for name in ("eps", "reach", "alpha"):
            self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self.require("softness", 0 < self.softness < math.inf, "positive")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """The goal draws of one batch: `value` goals are any states, to be pushed away."""
        return {"value": GoalSpec(random=1), "actor": self.actor_goals()}


class Multiplier(nn.Module):
    """lambda = exp(parameter), 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        """The multiplier, a scalar."""
        return self.log.exp()


def apart_loss(distance: Tensor, reach: float, softness: float) -> Tensor:
    """Mean of softness * softplus((reach - d) / softness): falls by 1 a step well below `reach`, flat far beyond."""
    return softness * F.softplus((reach - distance) / softness).mean()


def excess(distance: Tensor) -> Tensor:
    """Mean squared excess of neighbours' distances over one step, max(d - 1, 0)^2."""
    return (distance - 1).relu().square().mean()


class QRL(Agent):
    """A quasimetric d(s, g), a latent model, pi(a | s, g) by DDPG+BC through both."""

    Config = QRLConfig

    def __init__(self, config: QRLConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        o, a, dim = spec.observation_dim, spec.action_dim, config.latent_dim
        self.value = QuasimetricValue(o, config.value_hidden, dim, config.group)
        self.multiplier = Multiplier()
        self.dynamics = MLP([dim + a, *config.value_hidden, dim], layer_norm=True)
        self.actor = GaussianPolicy(2 * o, config.actor_hidden, a, constant_std=config.constant_std)

    def value_loss(self, z: Tensor, z_next: Tensor, z_goal: Tensor) -> tuple[Tensor, Metrics]:
        """Push random pairs apart subject to neighbours: d falls under the multiplier, the multiplier rises with it."""
        c, multiplier = self.config, self.multiplier()
        far, near = self.value.distance(z, z_goal), self.value.distance(z, z_next)
        apart, over = apart_loss(far, c.reach, c.softness), excess(near)
        loss = apart + multiplier.detach() * over + multiplier * (c.eps - over.detach())
        metrics = {
            "value/loss": (apart + multiplier * over).detach(),
            "value/excess": over.detach(),
            "value/multiplier": multiplier.detach(),
            "value/far": far.detach().mean(),
            "value/near": near.detach().mean(),
        }
        return loss, metrics

    def predict(self, z: Tensor, action: Tensor) -> Tensor:
        """The next representation z' [B, D]."""
        return z + self.dynamics(torch.cat([z, action], -1))

    def dynamics_loss(self, z: Tensor, z_next: Tensor, action: Tensor) -> Tensor:
        """The mean distance between predicted and true next representation, both ways; it trains phi and d too."""
        guess = self.predict(z, action)
        return (self.value.distance(z_next, guess) + self.value.distance(guess, z_next)).mean() / 2

    def actor_loss(self, batch: Batch, z: Tensor) -> tuple[Tensor, Metrics]:
        """DDPG+BC with Q = -d(z', phi(g)) at the policy's mean action; `z` = phi(s)."""
        z = z.detach()
        with frozen(self.value), frozen(self.dynamics):
            z_goal = self.value.phi(batch["actor_goals"])
            return climb_loss(
                self.actor, lambda a: -self.value.distance(self.predict(z, a), z_goal), batch, self.config.alpha
            )

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of the quasimetric's, the model's and the policy's losses."""
        states = torch.cat([batch["observations"], batch["next_observations"], batch["value_goals"]])
        z, z_next, z_goal = self.value.phi(states).chunk(3)
        value, value_metrics = self.value_loss(z, z_next, z_goal)
        dynamics = self.dynamics_loss(z, z_next, batch["actions"])
        actor, actor_metrics = self.actor_loss(batch, z)
        metrics = value_metrics | {"dynamics/loss": dynamics.detach()} | actor_metrics
        return value + dynamics + actor, metrics

    def updates(self) -> tuple[Update, ...]:
        modules = (self.value, self.multiplier, self.dynamics, self.actor)
        return (Update("qrl", self.loss, modules, self.config.lr),)

    def levels(self) -> tuple[Level, ...]:
        return (GoalLevel(self.actor),)

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"V": -self.value(observation, goal)}
