"""PPO: proximal policy optimisation, without a hierarchy.

Idea: the policy is improved on what it did itself, for several epochs, by a surrogate that stops to pay once the
probability of an action has changed by a factor of 1 ± clip.
Source: arXiv 1707.06347; defaults are those of its MuJoCo runs as Stable-Baselines3 has them.
Levels: one policy, a decision every environment step; the flat baseline of online systems.
Shares with the hierarchical systems: the collector, generalised advantages, the surrogate.
Deviations: the value loss is not clipped; the log-probability is that of the action before it is clipped to the bounds.
Worlds that tell rewards in channels may have a value for each (`channels`), as SLIM has it: see `credit.channels.slim`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Level
from echelon.losses.surrogate import ppo_clip
from echelon.nets.mlp import MLP
from echelon.rollout import Rollout
from echelon.systems.online.common import (
    ActorLevel,
    AdaptiveRate,
    actor_of,
    advantages,
    by_item,
    channel_advantages,
    minibatches,
    observed,
    readers,
)
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.agent import Appraisal, OnlineAgent
from echelon.training.online.config import OnlineConfig


class FlatPPO(OnlineAgent):
    """A policy and a value."""

    config: Config
    level: ClassVar[str] = "action"
    """Name of the level that the policy is."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OnlineConfig):
        """Hyper-parameters of PPO."""

        system: ClassVar[str] = "flat-ppo"
        critic_only: tuple[str, ...] = ()
        """Observations that the value reads and the policy does not (an asymmetric critic)."""
        channels: tuple[str, ...] = ()
        """Reward channels that have a value and a normalised advantage each; one value of their sum when absent."""
        channel_weights: tuple[float, ...] = ()
        """Weights of the channels' advantages in their sum; 1 each when absent."""
        slots: int = 1
        """Episodes side by side."""
        ticks: int = 2048
        """Environment steps of each slot before the networks learn (paper: 2048)."""
        hidden: tuple[int, ...] = (64, 64)
        """Hidden layers of policy and value, tanh (paper: 64, 64)."""
        epochs: int = 10
        """Passes over an iteration's steps (paper: 10)."""
        minibatch: int = 64
        """Steps of a gradient step (paper: 64)."""
        gamma: float = 0.99
        """Discount of an environment step."""
        lam: float = 0.95
        """GAE's λ."""
        clip: float = 0.2
        """How far a probability ratio may move from 1."""
        value_weight: float = 0.5
        """Weight of the value's loss."""
        entropy: float = 0.0
        """Weight of the entropy bonus."""
        clip_norm: float = 0.5
        """Bound of the gradient's norm."""
        decay: bool = False
        """Whether learning rate and clip fall linearly to 0 over the run."""
        desired_kl: float | None = None
        """Divergence of a gradient step that the learning rate is adapted to; it stays as it is when absent."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("epochs", "minibatch"):
                self.require(name, getattr(self, name) >= 1, "at least 1")
            for name in ("gamma", "lam"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
            for name in ("clip", "clip_norm"):
                self.require(name, 0 < getattr(self, name) < math.inf, "positive")
            for name in ("value_weight", "entropy"):
                self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
            if self.desired_kl is not None:
                self.require("desired_kl", 0 < self.desired_kl < math.inf, "positive")
                self.require("desired_kl", not self.decay, "absent where learning rate and clip decay")
            self.require("channels", len(set(self.channels)) == len(self.channels), "names of different channels")
            sizes = (0, len(self.channels))
            self.require("channel_weights", len(self.channel_weights) in sizes, "one for each of `channels`, or absent")
            finite = all(map(math.isfinite, self.channel_weights))
            self.require("channel_weights", finite, "finite")

        @property
        def weights(self) -> dict[str, float]:
            """Channel → weight, for those that have a critic of their own."""
            return dict(zip(self.channels, self.channel_weights or (1.0,) * len(self.channels), strict=True))

        def remaining(self, iteration: int) -> float:
            """The factor of learning rate and clip in an iteration (from 1)."""
            return 1 - (iteration - 1) / self.updates if self.decay else 1.0

        @property
        def schedule(self) -> Callable[[int], float] | None:
            """The factor of the learning rate in a gradient step (from 1), where it changes."""
            steps = self.epochs * -(-self.steps // self.minibatch)
            return (lambda step: self.remaining((step - 1) // steps + 1)) if self.decay else None

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        self.read, self.state = readers(spaces, config.critic_only)
        self.actor = actor_of(spaces, self.read.size, config.hidden)
        self.critic = MLP([self.state.size, *config.hidden, len(config.channels) or 1], activation=torch.tanh)
        self.rate = None if config.desired_kl is None else AdaptiveRate(config.lr, config.desired_kl)
        self.iterations: Tensor
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))

    def levels(self, explore: bool) -> tuple[Level, ...]:
        c, critic = self.config, self.critic if explore else None
        state = self.state if c.critic_only else None
        return (ActorLevel(self.read, self.actor, explore, critic, self.level, state, c.channels),)

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Advantages of all steps, then minibatches of them, epoch after epoch."""
        self.iterations += 1
        yield from minibatches(self.credited(rollout), self.config.epochs, self.config.minibatch)

    def credited(self, rollout: Rollout) -> Batch:
        """The rollout's steps with their advantages and the targets of the value."""
        c, d = self.config, rollout.decisions[self.level]
        final = self.critic(self.state(rollout.streams.final_observation))
        values = torch.stack([by_item(rollout, self.level, value) for value in d.values.values()], -1)
        if c.channels:
            advantage, target = channel_advantages(rollout, values, final, c.weights, c.gamma, c.lam)
        else:
            advantage, target = advantages(rollout, values.squeeze(-1), final.squeeze(-1), c.gamma, c.lam)
        seen = observed(rollout)
        batch = {
            "features": self.read(seen),
            "action": by_item(rollout, self.level, d.action),
            "log_prob": by_item(rollout, self.level, d.log_prob),
            "advantage": advantage,
            "target": target,
        }
        if c.critic_only:
            batch["state"] = self.state(seen)
        return batch

    def appraise(self, rollout: Rollout) -> Mapping[str, Appraisal]:
        """The value; none where each channel of rewards has its own."""
        c, streams = self.config, rollout.streams
        if c.channels:
            return {}
        value, after = (self.critic(self.state(seen))[:, 0] for seen in (observed(rollout), streams.final_observation))
        return {self.level: Appraisal(value[rollout.decisions[self.level].start], after, c.gamma, c.lam)}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Clipped surrogate, squared error of the value (the sum over channels), entropy."""
        c, advantage, features = self.config, batch["advantage"], batch["features"]
        log_prob, entropy = self.actor.judged(self.actor(features), batch["action"])
        ratio, entropy = log_prob - batch["log_prob"], entropy.mean()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clip = c.clip * c.remaining(int(self.iterations))
        policy = ppo_clip(ratio, advantage, low=clip, high=clip).mean()
        values = self.critic(batch.get("state", features))
        if c.channels:
            value = (values - batch["target"]).square().mean(0).sum()
        else:
            value = F.mse_loss(values.squeeze(-1), batch["target"])
        loss, moved = policy + c.value_weight * value, ratio.detach()
        metrics = {
            "policy/loss": policy.detach(),
            "policy/entropy": entropy.detach(),
            "policy/kl": (moved.expm1() - moved).mean(),
            "value/loss": value.detach(),
        }
        return (loss - c.entropy * entropy if c.entropy else loss), metrics

    def updates(self) -> tuple[Update, ...]:
        c, modules = self.config, (self.actor, self.critic)
        schedule = c.schedule if self.rate is None else self.rate.factor
        return (Update("ppo", self.loss, modules, c.lr, clip_norm=c.clip_norm, schedule=schedule),)

    def commit(self, aux: Metrics) -> None:
        if self.rate is not None:
            self.rate.follow(aux["policy/kl"])
