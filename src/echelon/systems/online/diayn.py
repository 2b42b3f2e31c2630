"""DIAYN: diversity is all you need, skills that their states tell apart.

Idea: a skill is rewarded where a discriminator recognises it, so that skills part until each has states of its own,
while each acts as randomly as it can; no task's reward is needed.
Source: arXiv 1802.06070; defaults are those of its released code.
Levels: skill, one of n, uniform, held for the episode > action, a soft actor-critic that reads the skill.
Shares with SAC: actor, critics, replay; with DADS: everything but what tells skills apart.
Deviations: two critics with slow copies in place of a value network (the later form of SAC); discriminator and critics
take one step on each batch, as released, the reward being that of the discriminator before its step; the discriminator
reads what it sees normalised by all that it learned from, as numbers of any size have to tell skills apart; an actor
without a mixture of Gaussians.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from echelon.claims import AtLeast, Claim, Score
from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Never
from echelon.nets.mlp import MLP
from echelon.systems.online.sac import SoftLevel
from echelon.systems.online.skills import SkillAgent, SkillConfig, Whitening, covers_more, late
from echelon.training.agent import Batch, Metrics, Update


def skill_reward(logits: Tensor, skill: Tensor) -> Tensor:
    """log q(z | s') - log p(z) of skills int64 [B], from the discriminator's logits [B, n]; p is uniform over the n."""
    return logits.log_softmax(-1).gather(-1, skill[:, None])[:, 0] + math.log(logits.shape[-1])


class SkillLevel(Level):
    """Draws one of n skills for an episode; in turn, 0 to n - 1 and again, if it does not explore."""

    name = "skill"

    def __init__(self, skills: int, explore: bool):
        self.skills, self.explore, self.termination, self.drawn = skills, explore, Never(), 0
        self.choices = skills

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """A skill, int64, for each stream."""
        rows = int(due.sum())
        if self.explore:
            return Decision(torch.randint(self.skills, (rows,), generator=self.generator, device=due.device))
        self.drawn += rows
        return Decision((torch.arange(rows, device=due.device) + self.drawn - rows) % self.skills)


class FollowsSkill(SoftLevel):
    """The actor below a level that commands skills by number."""

    def features(self, seen: Any, parent: Tensor | None) -> Tensor:
        return super().features(seen, None if parent is None else self.agent.encode(parent))


class DIAYN(SkillAgent):
    """A soft actor-critic and a discriminator."""

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(SkillConfig):
        """Hyper-parameters of DIAYN."""

        system: ClassVar[str] = "diayn"
        skills: int = 50
        """How many skills there are (released: 50)."""
        hidden: tuple[int, ...] = (300, 300)
        """Hidden layers of actor, critics and discriminator, ReLU (released: 300, 300)."""
        rate: float = 0.01
        """Share of the online critics that the targets take after each step (released: 0.01)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("skills", self.skills >= 2, "at least 2")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces, config.skills)
        self.states = Whitening(len(self.seen_places))
        self.discriminator = MLP([len(self.seen_places), *config.hidden, config.skills], activation=F.relu)

    def encode(self, skill: Tensor) -> Tensor:
        return F.one_hot(skill, self.config.skills).to(torch.float32)

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return (SkillLevel(self.config.skills, explore), FollowsSkill(self, self.parts, self.read, explore))

    def recognise(self, state: Tensor) -> Tensor:
        """Logits [B, n] of the skills, of states [B, S]."""
        return self.discriminator(self.states(state))

    def intrinsic(self, batch: Batch) -> tuple[Tensor, Metrics]:
        self.states.update(batch["next_state"])
        reward = skill_reward(self.recognise(batch["next_state"]), batch["skill"])
        return reward, {"skills/reward": reward.mean()}

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the skill, given the state that it led to."""
        logits = self.recognise(batch["next_state"])
        loss = F.cross_entropy(logits, batch["skill"])
        right = (logits.detach().argmax(-1) == batch["skill"]).float().mean()
        return loss, {"discriminator/loss": loss.detach(), "discriminator/accuracy": 100 * right}

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        return (
            *self.parts.updates(c.lr),
            Update("discriminator", self.discriminator_loss, (self.discriminator,), c.lr),
        )


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.online.recipes import MOUNTAIN, arm_of, recipe

    config = recipe(DIAYN.Config, MOUNTAIN, "published" if full else "cpu")
    learned = arm_of(config)
    random = arm_of(dataclasses.replace(config, random_steps=config.updates * config.steps + 1), "random actions")
    return (
        Claim(
            id="told-apart",
            text=f"The discriminator names the skill of half of all states that were met; chance is right in "
            f"{100 / config.skills:.3g} %.",
            method=Score(learned, partial(late, name="discriminator/accuracy")),
            test=AtLeast(50),
            source="arXiv 1802.06070",
            also=(Score(learned, partial(late, name="skills/reward")),),
        ),
        covers_more(learned, random, config.window, "arXiv 1802.06070"),
    )
