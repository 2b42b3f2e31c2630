"""SAC: soft actor-critic, without a hierarchy; and the parts that hierarchical systems make levels of.

Idea: a stochastic policy is improved on replayed steps towards what two critics value, plus its entropy; the weight of
the entropy is found by holding it near a target.
Source: arXiv 1812.05905 (the version with two critics and a learned temperature).
Levels: one policy, a decision every environment step; the flat baseline of online systems.
Shares with DIAYN, DADS and SAC with hindsight: `SoftActorCritic`, and with all of them the collector and the replay.
Deviations: the entropy of the policy before it is squashed has no bound from below but that of its log-deviation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from echelon.data.replay import Replay
from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Level
from echelon.hierarchy.transitions import Columns, Transitions
from echelon.nets.actors import SquashedGaussian
from echelon.nets.frozen import frozen
from echelon.nets.rectified import RectifiedEnsemble
from echelon.rollout import Rollout
from echelon.systems.online.common import BoundedLevel, Reader
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.agent import Keeper, OnlineAgent
from echelon.training.online.config import OnlineConfig


class SoftActorCritic(nn.Module):
    """Actor, two critics with targets and a temperature, learning from rows of a batch.

    A batch has features and next_features [B, F], action [B, A] in (-1, 1), reward [B] and discount [B] (0 where the
    episode ended in a terminal state), whatever time an action held. A `temperature` that is given stays as it is.
    """

    def __init__(
        self,
        features: int,
        actions: int,
        hidden: tuple[int, ...],
        *,
        rate: float,
        target_entropy: float,
        temperature: float | None = None,
    ):
        super().__init__()
        self.rate, self.target_entropy, self.learned = rate, target_entropy, temperature is None
        self.actor = SquashedGaussian(features, hidden, actions)
        self.critic = RectifiedEnsemble(2, [features + actions, *hidden, 1])
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        start = torch.tensor(math.log(1.0 if temperature is None else temperature))
        self.log_temperature = nn.ParameterList([nn.Parameter(start, requires_grad=self.learned)])

    @property
    def temperature(self) -> Tensor:
        """Weight of the entropy."""
        return self.log_temperature[0].exp()

    def target(self, batch: Batch) -> Tensor:
        """[B]: r + discount · (min Q'(s', a') - α log π(a' | s')), a' drawn from the policy."""
        action, log_prob = self.actor.sample(self.actor(batch["next_features"]))
        q = q_values(self.target_critic, batch["next_features"], action).amin(0)
        return batch["reward"] + batch["discount"] * (q - self.temperature * log_prob)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Half the squared error of both critics."""
        with torch.no_grad():
            target = self.target(batch)
        q = q_values(self.critic, batch["features"], batch["action"])
        loss = 0.5 * (q - target).square().mean(-1).sum()
        return loss, {"critic/loss": loss.detach(), "critic/value": q.detach().mean()}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """α log π(a | s) - min Q(s, a), a drawn from the policy with its gradient; and for the temperature
        -log α · (log π + target entropy), so that α falls while the policy is more random than asked for."""
        action, log_prob = self.actor.sample(self.actor(batch["features"]))
        with frozen(self.critic):
            q = q_values(self.critic, batch["features"], action).amin(0)
        temperature = self.temperature.detach()
        actor = (temperature * log_prob - q).mean()
        excess = (log_prob.detach() + self.target_entropy).mean()
        metrics = {"actor/loss": actor.detach(), "actor/entropy": -log_prob.detach().mean(), "temperature": temperature}
        return (actor - self.log_temperature[0] * excess if self.learned else actor), metrics

    def updates(self, lr: float, prefix: str = "") -> tuple[Update, ...]:
        """Critics, then the actor with the temperature; names begin with `prefix`."""
        return (
            Update(f"{prefix}critic", self.critic_loss, (self.critic,), lr),
            Update(f"{prefix}actor", self.actor_loss, (self.actor, self.log_temperature), lr),
        )

    def follow(self) -> None:
        """Move the target critics."""
        targets, sources = tuple(self.target_critic.parameters()), tuple(self.critic.parameters())
        torch._foreach_lerp_(targets, sources, self.rate)


class SoftLevel(BoundedLevel):
    """The policy of a `SoftActorCritic` as a level: samples, or the mode; random until `warm` says that it may act."""

    def __init__(self, agent: OnlineAgent, parts: SoftActorCritic, reader: Reader, explore: bool, name: str = "action"):
        super().__init__(agent, reader, explore, agent.spaces.bounds(), name)
        self.parts = parts

    def propose(self, read: Tensor) -> Tensor:
        parameters = self.parts.actor(read)
        if not self.explore:
            return self.parts.actor.mode(parameters)
        return self.parts.actor.sample(parameters, self.generator)[0]


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(OnlineConfig):
    """What systems that learn from replay have."""

    slots: int = 1
    """Episodes side by side."""
    ticks: int = 1
    """Environment steps of each slot before the networks learn."""
    updates: int = 1_000_000
    """Iterations; slots x ticks environment steps each."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of actor and critics, ReLU (paper: 256, 256)."""
    batch_size: int = 256
    """Rows of a gradient step."""
    capacity: int = 1_000_000
    """Rows that the replay holds."""
    random_steps: int = 10_000
    """Environment steps of random actions at the start, before anything is learned."""
    gradient_ratio: float = 1.0
    """Gradient steps for each environment step."""
    gamma: float = 0.99
    """Discount of an environment step."""
    rate: float = 0.005
    """Share of the online critics that the targets take after each step."""
    eval_every: int = 10_000
    """Iterations between evaluations; the reported score is the mean over the last three."""
    log_every: int = 1_000
    """Iterations between lines of metrics."""
    checkpoint_every: int = 50_000
    """Iterations between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "capacity"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("random_steps", self.random_steps >= 0, "0 or more")
        self.require("gradient_ratio", 0 < self.gradient_ratio < math.inf, "positive")
        for name in ("gamma", "rate"):
            self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")


class ReplayAgent(OnlineAgent):
    """Counts environment steps, fills a replay with the transitions of the bottom level, and draws from it."""

    config: ReplayConfig
    columns: ClassVar[tuple[str, ...]] = ("action", "reward", "discount")
    """What is kept of a transition beside what was observed before and after."""

    def __init__(self, config: ReplayConfig, spaces: Spaces):
        super().__init__(config, spaces)
        self.read = Reader(spaces)
        self.low: Tensor
        self.high: Tensor
        for name, bound in zip(("low", "high"), spaces.bounds(), strict=True):
            self.register_buffer(name, bound)
        self.moves = Transitions("action", config.gamma)
        self.replay = Replay(config.capacity)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.due: Tensor
        self.register_buffer("due", torch.zeros((), dtype=torch.float64))

    @property
    def warm(self) -> bool:
        """Whether the random steps are over."""
        return int(self.seen) >= self.config.random_steps

    def kept(self) -> Mapping[str, Keeper]:
        return {"replay": self.replay, "moves": self.moves}

    def abandon(self) -> None:
        self.moves.open = {}

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Keep what ended, and draw the batches that are due."""
        self.keep(rollout)
        for _ in range(self.owed(rollout)):
            yield self.draw()

    def owed(self, rollout: Rollout) -> int:
        """Count the rollout's steps; how many gradient steps are due."""
        self.seen += rollout.size
        if not self.warm or not len(self.replay):
            return 0
        self.due += self.config.gradient_ratio * rollout.size
        steps = int(self.due)
        self.due -= steps
        return steps

    def keep(self, rollout: Rollout) -> Columns:
        """Put the rollout's transitions into the replay; all their columns."""
        rows = self.moves.add(rollout)
        names = [name for seen in rollout.streams.final_observation for name in (seen, f"next_{seen}")]
        self.replay.add({name: rows[name] for name in (*names, *self.columns)})
        return rows

    def draw(self) -> Batch:
        """A batch for the losses."""
        return self.batch(self.replay.sample(self.config.batch_size))

    def batch(self, rows: Mapping[str, Tensor]) -> Batch:
        """Rows of the replay as an actor and its critics read them."""
        return {
            "features": self.read(rows),
            "next_features": self.read(rows, "next_"),
            "action": self.unit(rows["action"]),
            "reward": rows["reward"],
            "discount": rows["discount"],
        }

    def unit(self, action: Tensor) -> Tensor:
        """Actions within the bounds as vectors in [-1, 1]."""
        return 2 * (action - self.low) / (self.high - self.low) - 1


class SAC(ReplayAgent):
    """A soft actor-critic over environment steps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReplayConfig):
        """Hyper-parameters of SAC."""

        system: ClassVar[str] = "sac"
        env: str = "HalfCheetah-v5"
        """Environment: a gymnasium name, or a world of this library; its actions are vectors."""
        target_entropy: float | None = None
        """Entropy that the temperature holds (paper: minus the number of actions, when absent)."""

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        actions = spaces.action_dim
        target = -float(actions) if config.target_entropy is None else config.target_entropy
        self.parts = SoftActorCritic(self.read.size, actions, config.hidden, rate=config.rate, target_entropy=target)

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return (SoftLevel(self, self.parts, self.read, explore),)

    def updates(self) -> tuple[Update, ...]:
        return self.parts.updates(self.config.lr)

    def commit(self, aux: Metrics) -> None:
        self.parts.follow()


def q_values(critic: Any, features: Tensor, action: Tensor) -> Tensor:
    """[members, B]: what each member of an `EnsembleMLP` says of features [B, F] and actions [B, A]."""
    return critic(torch.cat([features, action], -1)).squeeze(-1)
