"""Option-Critic: options that learn their policies and when to end, from one reward.

Idea: with a value Q(s, w) of every option, the return has a gradient in what an option does and in when it ends: its
policy follows y - Q(s, w), and it ends where another option is worth more. A deliberation cost, paid whenever an option
ends, keeps it from ending at every step.
Source: arXiv 1609.05140 (Option-Critic), 1709.04571 (deliberation cost).
Levels: "option" chooses one of so many, epsilon-greedily on Q(s, .), and holds it until its learned termination fires;
"action" acts by the option's policy, every environment step.
Shares with DQN: the network of values, its slow copy, replay and exploration; with PPOC: the options' policies and
terminations.
Deviations: unlike in its re-implementation in PyTorch, terminations are judged in the state that was entered, as the
theory has it, not in the one before; epsilon falls linearly; values, policies and terminations have networks of their
own and an Adam each, with no trunk in common; every step of the record improves policies and terminations, once, while
the values learn from replay. Target, margin, entropy and costs are the papers'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from echelon.claims import Claim
from echelon.credit.credit import Credit
from echelon.credit.options import option_critic
from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Level
from echelon.losses.surrogate import reinforce
from echelon.rollout import End, Rollout
from echelon.systems.online.diagnostics import DecisionTally
from echelon.systems.online.dqn import DeepQ, EpsilonConfig, QLevel, taken
from echelon.systems.online.learned_options import OptionActionLevel, OptionActors, Terminations
from echelon.systems.online.sac import ReplayAgent
from echelon.training.agent import Batch, Metrics, Update

FRESH = "fresh_"
"""Columns of a batch that come from the steps just made, not from replay."""


class OptionCritic(ReplayAgent):
    """Values of options, their policies and terminations."""

    config: Config
    columns = ("command", "action", "reward", "end")

    @dataclass(frozen=True, kw_only=True)
    class Config(EpsilonConfig):
        """Hyper-parameters of Option-Critic."""

        system: ClassVar[str] = "option-critic"
        options: int = 4
        """How many options there are (paper: 4 and 8)."""
        ticks: int = 4
        """Environment steps of each slot before the networks learn (code: 4)."""
        lr: float = 5e-4
        """Learning rate of the values (code: 5e-4, for everything)."""
        policy_lr: float = 5e-4
        """Learning rate of the options' policies."""
        termination_lr: float = 5e-4
        """Learning rate of the terminations."""
        copy_every: int = 200
        """Gradient steps between moves of the values' copy (code: 200)."""
        entropy: float = 0.01
        """Weight of the policies' entropy (code: 0.01)."""
        margin: float = 0.01
        """How much better another option has to be for one to end (paper: 0.01)."""
        deliberation_cost: float = 0.0
        """What ending an option costs, in rewards (arXiv 1709.04571: 0 to 0.03)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("options", self.options >= 2, "at least 2")
            for name in ("policy_lr", "termination_lr"):
                self.require(name, 0 < getattr(self, name) < math.inf, "positive")
            for name in ("entropy", "margin", "deliberation_cost"):
                self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
            share = 1 / self.steps
            self.require("gradient_ratio", share <= self.gradient_ratio <= 1, f"{share:g} (one an iteration) to 1")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        features, hidden, options = self.read.size, config.hidden, config.options
        self.parts = DeepQ(features, hidden, options, rate=config.rate, copy_every=config.copy_every)
        self.actors = OptionActors(spaces, features, hidden, options)
        self.terminations = Terminations(features, hidden, options)
        self.tally = DecisionTally("option", options)

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return (
            QLevel(
                self.parts,
                self.read,
                self.epsilon if explore else None,
                name="option",
                termination=self.terminations.condition(self.read),
            ),
            OptionActionLevel(self.read, self.actors, explore),
        )

    def epsilon(self) -> float:
        """The probability of any option now."""
        return self.config.epsilon(int(self.seen))

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Each batch has rows from replay, for the values, and its part of the steps just made, for the options."""
        self.tally.add(rollout)
        fresh = self.batch(self.keep(rollout))
        steps = self.owed(rollout)
        for part in torch.randperm(rollout.size).tensor_split(max(steps, 1))[:steps]:
            yield self.draw() | {FRESH + name: column[part] for name, column in fresh.items()}

    def batch(self, rows: Mapping[str, Tensor]) -> Batch:
        """Steps as the losses read them; their option is called "command", being that of the level above."""
        read = {"features": self.read(rows), "next_features": self.read(rows, "next_")}
        return read | {name: rows[name] for name in self.columns}

    def credit(self, batch: Batch, prefix: str = "") -> dict[str, Credit]:
        """Credit of the columns called `prefix` + name; the slow copy values what follows, the network ending."""
        after = batch[prefix + "next_features"]
        return option_critic(
            reward=batch[prefix + "reward"],
            option=batch[prefix + "command"],
            q=self.parts.q(batch[prefix + "features"]),
            next_q=self.parts.target_q(after),
            next_termination=self.terminations(after),
            terminated=batch[prefix + "end"] == End.TERMINATED,
            termination_q=self.parts.q(after),
            gamma=self.config.gamma,
            margin=self.config.margin,
            deliberation_cost=self.config.deliberation_cost,
        )

    def prepare(self, batch: Batch) -> Batch:
        """Add the values' target, and the advantages of actions and endings."""
        fresh = self.credit(batch, FRESH)
        return batch | {
            "target": self.credit(batch)["action"].target["q"],
            "advantage": fresh["action"].advantage,
            "ending": fresh["termination"].advantage,
        }

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Half the squared error of Q(s, w) from y = r + gamma · U(s', w)."""
        q = taken(self.parts.q(batch["features"]), batch["command"])
        loss = 0.5 * (q - batch["target"]).square().mean()
        return loss, {"q/loss": loss.detach(), "q/value": q.detach().mean()}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-(y - Q(s, w)) · log pi(a | s, w), less the entropy."""
        log_prob, entropy = self.actors.judged(
            batch[FRESH + "features"], batch[FRESH + "command"], batch[FRESH + "action"]
        )
        loss = (reinforce(log_prob, batch["advantage"]) - self.config.entropy * entropy).mean()
        return loss, {"policy/loss": loss.detach(), "policy/entropy": entropy.detach().mean()}

    def termination_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """beta(s', w) · (Q(s', w) - max Q(s', .) + margin + cost), where the episode goes on."""
        ends = taken(self.terminations(batch[FRESH + "next_features"]), batch[FRESH + "command"])
        loss = -(batch["ending"] * ends).mean()
        return loss, {"termination/loss": loss.detach(), "termination/probability": ends.detach().mean()}

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        return (
            Update("critic", self.critic_loss, (self.parts.q,), c.lr, clip_norm=c.clip_norm),
            Update("policy", self.policy_loss, (self.actors,), c.policy_lr, clip_norm=c.clip_norm),
            Update("termination", self.termination_loss, (self.terminations,), c.termination_lr),
        )

    def commit(self, aux: Metrics) -> None:
        self.parts.follow()

    def facts(self, rollout: Rollout) -> Mapping[str, float]:
        return self.tally.facts()


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.online.dqn import DQN
    from echelon.systems.online.recipes import MOVING, recipe
    from echelon.systems.online.rooms import sooner

    size = "published" if full else "cpu"
    method, flat = recipe(OptionCritic.Config, MOVING, size), recipe(DQN.Config, MOVING, size)
    return (sooner(method, flat, ("Option-Critic", "DQN"), "arXiv 1609.05140, figure 2"),)
