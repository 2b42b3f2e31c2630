"""PPOC: proximal policy optimisation of options, of their terminations and of the policy that chooses them.

Idea: options learn from what they did themselves, by PPO's clipped surrogate, with advantages along the whole episode
across their switches; an option ends where the policy over options promises more than it does.
Source: arXiv 1712.00004; the deliberation cost: arXiv 1709.04571.
Levels: "option" samples one of so many from a learned policy and holds it until its learned termination fires; "action"
acts by the option's policy, every environment step.
Shares with PPO: its settings, advantages and surrogate; with Option-Critic: the options' policies and terminations.
Deviations: the policy over options takes the same clipped surrogate, since it learns for several
epochs too, only where it chose, with Σ_w pi(w|s) V(s, w) as its baseline; terminations are judged in the state entered,
for the option that entered it; the deliberation cost is not paid where an episode ends; rewards are not scaled; options
share no weights. What a record shows of the state after its last step goes to no termination.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from echelon.claims import Claim
from echelon.credit.options import continuation_value, ppoc
from echelon.envs.spaces import Spaces
from echelon.hierarchy.diagnostics import ended, held
from echelon.hierarchy.level import Level
from echelon.losses.surrogate import ppo_clip
from echelon.nets.actors import Categorical
from echelon.nets.mlp import MLP
from echelon.rollout import Begin, Rollout
from echelon.systems.online.common import ActorLevel, AdaptiveRate, by_item, minibatches, observed, readers
from echelon.systems.online.diagnostics import DecisionTally
from echelon.systems.online.dqn import taken
from echelon.systems.online.flat_ppo import FlatPPO
from echelon.systems.online.learned_options import OptionActionLevel, OptionActors, Terminations
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.agent import Appraisal, OnlineAgent


class PPOC(OnlineAgent):
    """Policies of options, a policy over them, terminations and values V(s, w)."""

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(FlatPPO.Config):
        """Hyper-parameters of PPOC, beside those of PPO."""

        system: ClassVar[str] = "ppoc"
        options: int = 2
        """How many options there are (code: 2)."""
        termination_lr: float = 5e-7
        """Learning rate of the terminations (code: 5e-7)."""
        option_entropy: float = 0.1
        """Weight of the entropy of the policy over options (code: 0.1)."""
        deliberation_cost: float = 0.0
        """What ending an option costs, in rewards."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("options", self.options >= 2, "at least 2")
            self.require("channels", not self.channels, "absent: an option has one value, of all rewards together")
            self.require("termination_lr", 0 < self.termination_lr < math.inf, "positive")
            for name in ("option_entropy", "deliberation_cost"):
                self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        self.read, self.state = readers(spaces, config.critic_only)
        features, hidden, options = self.read.size, config.hidden, config.options
        self.actors = OptionActors(spaces, features, hidden, options)
        self.chooser = Categorical(features, hidden, options)
        self.critic = MLP([self.state.size, *hidden, options], activation=torch.tanh)
        self.rate = None if config.desired_kl is None else AdaptiveRate(config.lr, config.desired_kl)
        self.terminations = Terminations(features, hidden, options)
        self.tally = DecisionTally("option", options)
        self.iterations: Tensor
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))

    def levels(self, explore: bool) -> tuple[Level, ...]:
        top = ActorLevel(self.read, self.chooser, explore, self.worth, "option", self.state)
        top.termination = self.terminations.condition(self.read)
        return top, OptionActionLevel(self.read, self.actors, explore)

    def worth(self, state: Tensor) -> Tensor:
        """[B, 1]: what may be expected where an option is chosen, Σ_w pi(w|s) V(s, w); of all that the values read."""
        return (self.chooser(state[..., : self.read.size]).softmax(-1) * self.critic(state)).sum(-1, keepdim=True)

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Credit of all steps, then minibatches of them, epoch after epoch."""
        self.tally.add(rollout)
        self.iterations += 1
        yield from minibatches(self.credited(rollout), self.config.epochs, self.config.minibatch)

    def credited(self, rollout: Rollout) -> Batch:
        """The rollout's steps with their credit: of the action, of the choice where one was made, of arriving."""
        c, stream = self.config, rollout.spans["stream"]
        action, choice = rollout.decisions["action"], rollout.decisions["option"]
        features, state = self.read(observed(rollout)), self.state(observed(rollout))
        option, over = held(rollout, "option", choice.action), ended(rollout, "option")
        credit = ppoc(
            stream,
            reward=rollout.reward_sum(),
            value=self.critic(state),
            option=option,
            policy=self.chooser(features).softmax(-1),
            ended=over,
            terminated=rollout.streams.terminated,
            final_value=self.final_value(rollout, option[stream.ends], over[stream.ends]),
            gamma=c.gamma,
            lam=c.lam,
            deliberation_cost=c.deliberation_cost,
        )
        chosen = by_item(rollout, "option", choice.begin == Begin.DECIDED)
        everywhere = torch.ones_like(chosen)
        return {
            "features": features,
            "state": state,
            "option": option,
            "action": rollout.proposed,
            "log_prob": by_item(rollout, "action", action.log_prob),
            "advantage": whitened(credit["action"].advantage, everywhere),
            "target": credit["action"].target["value"],
            "chosen": chosen,
            "choice_log_prob": by_item(rollout, "option", choice.log_prob),
            "choice_advantage": whitened(credit["option"].advantage, chosen),
            "arrived": stream.shift(option, -1),
            "ending": credit["termination"].advantage,
        }

    def final_value(self, rollout: Rollout, option: Tensor, over: Tensor) -> Tensor:
        """[S]: V of each stream's final observation with the option that it ran, int64 [S].

        Where the stream goes on it is known whether the option ended there (`over`, bool [S]); one that was cut off
        would have ended by its chance.
        """
        features = self.read(rollout.streams.final_observation)
        ends = torch.where(rollout.streams.truncated[:, None], self.terminations(features), over[:, None].float())
        policy = self.chooser(features).softmax(-1)
        state = self.state(rollout.streams.final_observation)
        return taken(continuation_value(self.critic(state), ends, policy=policy), option)

    def appraise(self, rollout: Rollout) -> Mapping[str, Appraisal]:
        """Of a choice, what may be expected before it; of an action, the value of its option."""
        c, ends, state = self.config, rollout.spans["stream"].ends, self.state(observed(rollout))
        action, choice = rollout.decisions["action"], rollout.decisions["option"]
        option, over = held(rollout, "option", choice.action), ended(rollout, "option")
        after = self.final_value(rollout, option[ends], over[ends])
        columns = {"option": (self.worth(state)[:, 0], choice), "action": (taken(self.critic(state), option), action)}
        return {name: Appraisal(value[d.start], after, c.gamma, c.lam) for name, (value, d) in columns.items()}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Clipped surrogates of actions and choices, squared error of the value, both entropies."""
        c, features, option, chosen = self.config, batch["features"], batch["option"], batch["chosen"]
        clip = c.clip * c.remaining(int(self.iterations))
        log_prob, entropy = self.actors.judged(features, option, batch["action"])
        ratio, entropy = log_prob - batch["log_prob"], entropy.mean()
        policy = ppo_clip(ratio, batch["advantage"], low=clip, high=clip).mean()
        value = (taken(self.critic(batch["state"]), option) - batch["target"]).square().mean()
        logits, number = self.chooser(features), chosen.sum().clamp(min=1)
        moved = torch.where(chosen, self.chooser.log_prob(logits, option) - batch["choice_log_prob"], 0)
        choice = (chosen * ppo_clip(moved, batch["choice_advantage"], low=clip, high=clip)).sum() / number
        option_entropy = (chosen * self.chooser.entropy(logits)).sum() / number
        loss = policy + choice + c.value_weight * value - c.entropy * entropy - c.option_entropy * option_entropy
        return loss, {
            "policy/loss": policy.detach(),
            "policy/entropy": entropy.detach(),
            "policy/kl": (ratio.exp() - 1 - ratio).detach().mean(),
            "choice/loss": choice.detach(),
            "choice/entropy": option_entropy.detach(),
            "value/loss": value.detach(),
        }

    def termination_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-A · beta(s, w) for the option w that entered the state, A = Σ_w pi(w|s) V(s, w) - V(s, w) - cost."""
        ends = taken(self.terminations(batch["features"]), batch["arrived"])
        loss = -(batch["ending"] * ends).mean()
        return loss, {"termination/loss": loss.detach(), "termination/probability": ends.detach().mean()}

    def updates(self) -> tuple[Update, ...]:
        c, modules = self.config, (self.actors, self.chooser, self.critic)
        schedule = c.schedule if self.rate is None else self.rate.factor
        return (
            Update("ppo", self.loss, modules, c.lr, clip_norm=c.clip_norm, schedule=schedule),
            Update("termination", self.termination_loss, (self.terminations,), c.termination_lr, schedule=c.schedule),
        )

    def facts(self, rollout: Rollout) -> Mapping[str, float]:
        return self.tally.facts()

    def commit(self, aux: Metrics) -> None:
        if self.rate is not None:
            self.rate.follow(aux["policy/kl"])


def whitened(x: Tensor, where: Tensor) -> Tensor:
    """x [N] less its mean and over its deviation among the rows of `where` bool [N]; 0 in all others."""
    number = where.sum().clamp(min=1)
    centred = torch.where(where, x - torch.where(where, x, 0).sum() / number, 0)
    return centred / ((centred.square().sum() / number).sqrt() + 1e-8)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.online.recipes import MOVING, recipe
    from echelon.systems.online.rooms import sooner

    size = "published" if full else "cpu"
    method, flat = recipe(PPOC.Config, MOVING, size), recipe(FlatPPO.Config, MOVING, size)
    return (sooner(method, flat, ("PPOC", "PPO"), "arXiv 1712.00004; the task: arXiv 1609.05140, figure 2"),)
