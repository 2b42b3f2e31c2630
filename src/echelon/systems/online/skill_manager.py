"""A manager over frozen skills: DIAYN's skills as the actions of one who learns a task.

Idea: skills learned without a task move further than single actions do, so that a manager who holds each of them for a
while finds rare rewards that an actor from scratch does not meet.
Source: arXiv 1802.06070, on hierarchical control with learned skills.
Levels: manager, one of n skills every `hold` steps > action, DIAYN's actor, which learns no more.
Shares with DIAYN: the skills, learned in a stage of their own; with DQN: the values of the manager's choices.
Deviations: the manager is a double DQN over the skills, with epsilon-greedy choices and replay; skills act without
noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from echelon.claims import LAST_EVALUATIONS, Above, Claim, Score
from echelon.envs.spaces import Spaces
from echelon.errors import DataError
from echelon.hierarchy.level import Level
from echelon.hierarchy.termination import Every
from echelon.hierarchy.transitions import Transitions
from echelon.rollout import Rollout
from echelon.systems.online.diagnostics import DecisionTally
from echelon.systems.online.diayn import DIAYN, FollowsSkill
from echelon.systems.online.dqn import DeepQ, EpsilonConfig, QLevel
from echelon.systems.online.sac import SAC, ReplayAgent
from echelon.training import run
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.staged import StagedAgent
from echelon.training.stages import Plan, Stage, StageResult


class SkillManager(ReplayAgent, StagedAgent):
    """Values of skills, and the skills."""

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(EpsilonConfig):
        """Hyper-parameters of the manager, and of the skills' stage."""

        system: ClassVar[str] = "diayn-manager"
        env: str = "MountainCarContinuous-v0"
        """Environment: a gymnasium name, or a world of this library; its actions are vectors."""
        hold: int = 10
        """Environment steps for which a skill is held."""
        skills: int = 50
        """How many skills there are (released: 50)."""
        reads: tuple[str, ...] = ("observation",)
        """Observations that the skills read; the manager reads all."""
        sees: tuple[int, ...] = ()
        """Numbers of what skills read by which they are told apart, by place; all when empty."""
        skill_updates: int = 1_000_000
        """Iterations of the skills' stage; slots x ticks environment steps each."""
        skill_random_steps: int = 10_000
        """Environment steps of random actions at the start of the skills' stage."""
        skill_hidden: tuple[int, ...] = (300, 300)
        """Hidden layers of the skills' actor, critics and discriminator (released: 300, 300)."""
        skill_batch: int = 128
        """Rows of a gradient step of the skills."""
        skill_lr: float = 3e-4
        """Adam's learning rate for the skills (released: 3e-4)."""
        skill_gamma: float = 0.99
        """Discount of an environment step in the skills' stage (released: 0.99)."""
        skill_capacity: int = 1_000_000
        """Environment steps that the replay of the skills' stage holds."""
        skill_rate: float = 0.01
        """Share of the online critics that the skills' targets take after each step (released: 0.01)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("hold", self.hold >= 1, "at least 1")
            self.skill_stage()

        @property
        def environment_steps(self) -> int:
            """Environment steps of the whole training, the skills' included."""
            return (self.updates + self.skill_updates) * self.steps

        def skill_stage(self) -> DIAYN.Config:
            """The configuration of the skills' stage."""
            every = max(1, self.skill_updates // 4)
            return DIAYN.Config(
                env=self.env,
                seed=self.seed,
                slots=self.slots,
                ticks=self.ticks,
                limit=self.limit,
                gamma=self.skill_gamma,
                capacity=self.skill_capacity,
                rate=self.skill_rate,
                gradient_ratio=self.gradient_ratio,
                skills=self.skills,
                reads=self.reads,
                sees=self.sees,
                updates=self.skill_updates,
                random_steps=self.skill_random_steps,
                hidden=self.skill_hidden,
                batch_size=self.skill_batch,
                lr=self.skill_lr,
                eval_every=self.skill_updates,
                eval_episodes=self.eval_episodes,
                log_every=max(1, every // 25),
                checkpoint_every=every,
            )

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        self.skilled = DIAYN(config.skill_stage(), spaces).requires_grad_(False)
        self.moves = Transitions("manager", config.gamma)
        self.parts = DeepQ(self.read.size, config.hidden, config.skills, rate=config.rate, copy_every=config.copy_every)
        self.tally = DecisionTally("manager", config.skills)

    @classmethod
    def stages(cls, config: Config) -> Plan:
        """DIAYN in the same environment."""
        yield Stage("skills", lambda: DIAYN, config.skill_stage, config.skill_updates)

    def build_on(self, results: Sequence[StageResult]) -> None:
        learned, _ = run.load_agent(DIAYN, results[0].path)
        self.skilled.load_state_dict(learned.state_dict())

    def levels(self, explore: bool) -> tuple[Level, ...]:
        manager = QLevel(self.parts, self.read, self.epsilon if explore else None, "manager", Every(self.config.hold))
        return (manager, FollowsSkill(self.skilled, self.skilled.parts, self.skilled.read, explore=False))

    def epsilon(self) -> float:
        """The probability of any skill now."""
        return self.config.epsilon(int(self.seen))

    def keep(self, rollout: Rollout) -> Any:
        self.tally.add(rollout)
        return super().keep(rollout)

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        """Rows as the values of skills read them."""
        read = {"features": self.read(rows), "next_features": self.read(rows, "next_")}
        return read | {name: rows[name] for name in self.columns}

    def updates(self) -> tuple[Update, ...]:
        return self.parts.updates(self.config.lr, "manager/", self.config.clip_norm)

    def commit(self, aux: Metrics) -> None:
        self.parts.follow()

    def facts(self, rollout: Rollout) -> Mapping[str, float] | Metrics:
        return self.tally.facts()


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.online.recipes import MOUNTAIN, arm_of, recipe

    config = recipe(SkillManager.Config, MOUNTAIN, "published" if full else "cpu")
    untrained = dataclasses.replace(config, skill_random_steps=config.skill_updates * config.steps + 1)
    flat = SAC.Config(
        env=config.env,
        slots=config.slots,
        ticks=config.ticks,
        updates=config.updates + config.skill_updates,
        limit=config.limit,
        gamma=config.gamma,
        capacity=config.capacity,
        gradient_ratio=config.gradient_ratio,
        random_steps=config.skill_random_steps,
        hidden=config.skill_hidden,
        batch_size=config.skill_batch,
        lr=config.skill_lr,
        eval_every=config.eval_every,
        eval_episodes=config.eval_episodes,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
    )
    return (
        Claim(
            id="reaches-goals",
            text="A manager over frozen skills reaches the top of the hill in 50 of 100 episodes more than SAC without "
            "a hierarchy does after as many environment steps, those of the skills counted.",
            method=Score(arm_of(config), reached),
            baseline=Score(arm_of(flat), reached),
            test=Above(50),
            source="arXiv 1802.06070",
            also=(Score(arm_of(untrained, "over untrained skills"), reached),),
        ),
    )


def reached(run: Any) -> np.ndarray:
    """Statistic of a claim: episodes with a return above 0 in points, [episode], meaned over the last evaluations.

    On the hill (MountainCarContinuous) steps cost and the top alone pays, more than all steps of an episode may cost.
    """
    last = list(run.evaluations)[-LAST_EVALUATIONS:]
    if not last:
        raise DataError(f"{getattr(run, 'path', 'run')}: no evaluation to take returns from")
    returns = [np.concatenate([np.asarray(found) for found in row["returns"].values()]) for row in last]
    return 100.0 * np.mean([found > 0 for found in returns], axis=0)
