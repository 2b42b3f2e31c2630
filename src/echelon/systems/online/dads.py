"""DADS: dynamics-aware discovery of skills, whose outcomes a model predicts, so that plans over them need no training.

Idea: a skill is rewarded where a model of its own changes of state predicts better than under other skills; so skills
are predictable and unlike each other, and the model that says so is the one that plans with them.
Source: arXiv 1907.01657; off-policy form: arXiv 2004.12974.
Levels: skill, numbers in [-1, 1], uniform and held for the episode while learning, afterwards the first step of a plan
by model predictive path integral every `hold` steps > action, a soft actor-critic that reads the skill.
Shares with DIAYN: everything but what tells skills apart; with SAC: actor, critics, replay.
Deviations: states and changes are normalised by the mean and deviation of all that were learned from, in place of batch
normalisation; the replay is short, which is what keeps it near the policy, and rows have no importance ratios; the
model takes one step in `dynamics_every` of the actor's, between them; each plan begins at the prior's mean.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.claims import Above, Arm, AtLeast, Claim, Score, success
from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.planning.mppi import mppi
from echelon.hierarchy.termination import Every, Never
from echelon.nets.mlp import MLP
from echelon.systems.online.sac import SoftLevel
from echelon.systems.online.skills import SkillAgent, SkillConfig, Whitening, covers_more, late
from echelon.training.agent import Batch, Metrics, Update

LARGEST = 50.0
"""Bound of a difference of log-probabilities (released: 50)."""


def dynamics_reward(log_q: Tensor, others: Tensor) -> Tensor:
    """log(L + 1) - log(1 + Σ_i exp(log q(s'|s,z_i) - log q(s'|s,z))), [B]: log_q [B], others [L, B] of prior z_i."""
    odds = (others - log_q).clamp(-LARGEST, LARGEST)
    return math.log(len(others) + 1) - torch.cat([torch.zeros_like(log_q)[None], odds]).logsumexp(0)


class SkillDynamics(nn.Module):
    """q(s' | s, z): a mixture of Gaussians of unit variance over the normalised change of state."""

    def __init__(self, state: int, skill: int, hidden: tuple[int, ...], components: int):
        super().__init__()
        self.state, self.components = state, components
        self.states, self.changes = Whitening(state), Whitening(state)
        self.mlp = MLP([state + skill, *hidden, components * (1 + state)], activation=F.relu)

    def mixture(self, state: Tensor, skill: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of weights [..., K] and means [..., K, D]."""
        out = self.mlp(torch.cat([self.states(state), skill], -1))
        logits, means = out.split([self.components, self.components * self.state], -1)
        return logits.log_softmax(-1), means.unflatten(-1, (self.components, self.state))

    def log_prob(self, state: Tensor, skill: Tensor, after: Tensor) -> Tensor:
        """[...] of the normalised change that led from state to after."""
        weights, means = self.mixture(state, skill)
        error = self.changes(after - state)[..., None, :] - means
        density = -0.5 * error.square().sum(-1) - 0.5 * self.state * math.log(2 * math.pi)
        return (weights + density).logsumexp(-1)

    def predict(self, state: Tensor, skill: Tensor) -> Tensor:
        """The expected next state [..., D]."""
        weights, means = self.mixture(state, skill)
        change = (weights.exp()[..., None] * means).sum(-2)
        return state + self.changes.mean + self.changes.deviation * change


class PriorLevel(Level):
    """Draws a skill for an episode, uniform in [-1, 1]."""

    name = "skill"

    def __init__(self, size: int):
        self.size, self.termination = size, Never()

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """A skill [B, size] for each stream."""
        skill = torch.empty(int(due.sum()), self.size, device=due.device)
        return Decision(skill.uniform_(-1, 1, generator=self.generator))


class PlanLevel(Level):
    """Plans skills towards the goal with their dynamics, and gives the first one."""

    name = "skill"

    def __init__(self, agent: DADS):
        self.agent, self.termination = agent, Every(agent.config.hold)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """A skill [B, size] for each stream."""
        c, agent = self.agent.config, self.agent
        state, goal = agent.read(features)[:, agent.seen_places], features[c.goal].to(torch.float32)
        start = torch.zeros(len(state), c.plan, c.skill_size, device=state.device)
        value = partial(agent.plan_value, state=state, goal=goal)
        plan = mppi(
            value,
            start,
            samples=c.samples,
            rounds=c.rounds,
            temperature=c.plan_temperature,
            generator=self.generator,
        )
        return Decision(plan[:, 0])


class DADS(SkillAgent):
    """A soft actor-critic and the dynamics of its skills."""

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(SkillConfig):
        """Hyper-parameters of DADS."""

        system: ClassVar[str] = "dads"
        skill_size: int = 2
        """Numbers of a skill (released, Ant: 2)."""
        ticks: int = 500
        """Environment steps of each slot before the networks learn (released, Ant: 500)."""
        gradient_ratio: float = 0.128
        """The actor's gradient steps for each environment step (released, Ant: 64 for 500)."""
        dynamics_every: int = 8
        """The actor's gradient steps for each one of the dynamics (released, Ant: 64 for 8)."""
        capacity: int = 10_000
        """Rows that the replay holds: those of the policy as it lately was."""
        random_steps: int = 5_000
        """Environment steps of random actions at the start, before anything is learned."""
        updates: int = 2_000
        """Iterations; slots x ticks environment steps each."""
        eval_every: int = 500
        """Iterations between evaluations; the reported score is the mean over the last three."""
        log_every: int = 10
        """Iterations between lines of metrics."""
        checkpoint_every: int = 100
        """Iterations between checkpoints."""
        components: int = 4
        """Gaussians of the dynamics (released: 4)."""
        others: int = 100
        """Skills of the prior that a transition is compared under, L."""
        goal: str = "desired_goal"
        """Observation that is planned for; without it, evaluation draws skills."""
        goal_places: tuple[int, ...] = (0, 1)
        """Which numbers of what is seen are to be as the goal, by place."""
        hold: int = 10
        """Environment steps for which a skill of a plan is held, H_z."""
        plan: int = 4
        """Skills of a plan."""
        samples: int = 64
        """Plans drawn in a round."""
        rounds: int = 5
        """Rounds of a plan's refinement."""
        plan_temperature: float = 10.0
        """How much better a plan's value weighs."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("skill_size", "dynamics_every", "components", "others", "hold", "plan", "samples", "rounds"):
                self.require(name, getattr(self, name) >= 1, "at least 1")
            self.require("plan_temperature", 0 < self.plan_temperature < math.inf, "positive")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces, config.skill_size)
        seen = len(self.seen_places)
        self.plans = config.goal in spaces.observation
        if self.plans and (
            not all(0 <= place < seen for place in config.goal_places)
            or spaces.observation[config.goal] != (len(config.goal_places),)
        ):
            shape = spaces.observation[config.goal]
            raise UsageError(
                f"dads: goal_places must name {shape} of the {seen} numbers that are seen, got {config.goal_places}"
            )
        self.dynamics = SkillDynamics(seen, config.skill_size, config.hidden, config.components)

    def levels(self, explore: bool) -> tuple[Level, ...]:
        top = PlanLevel(self) if self.plans and not explore else PriorLevel(self.config.skill_size)
        return (top, SoftLevel(self, self.parts, self.read, explore))

    def plan_value(self, plans: Tensor, state: Tensor, goal: Tensor) -> Tensor:
        """[B, P]: minus the mean distance to the goal along plans [B, P, H, D] from `state` [B, S], by the model."""
        places, here = list(self.config.goal_places), state[:, None].expand(-1, plans.shape[1], -1)
        total = torch.zeros(plans.shape[:2], device=plans.device)
        for skill in plans.unbind(2):
            for _ in range(self.config.hold):
                here = self.dynamics.predict(here, skill)
                total = total - (here[..., places] - goal[:, None]).norm(dim=-1)
        return total / (plans.shape[2] * self.config.hold)

    def intrinsic(self, batch: Batch) -> tuple[Tensor, Metrics]:
        state, after, dynamics = batch["state"], batch["next_state"], self.dynamics
        dynamics.states.update(state)
        dynamics.changes.update(after - state)
        own = dynamics.log_prob(state, batch["skill"], after)
        prior = torch.empty(self.config.others, *batch["skill"].shape, device=state.device).uniform_(-1, 1)
        others = dynamics.log_prob(state.expand(len(prior), -1, -1), prior, after.expand(len(prior), -1, -1))
        reward = dynamics_reward(own, others)
        better = (own > others).float().mean()
        return reward, {"skills/reward": reward.mean(), "dynamics/own_better": 100 * better}

    def dynamics_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Minus the log-probability of the state that was met."""
        loss = -self.dynamics.log_prob(batch["state"], batch["skill"], batch["next_state"]).mean()
        return loss, {"dynamics/loss": loss.detach()}

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        dynamics = Update("dynamics", self.dynamics_loss, (self.dynamics,), c.lr, every=c.dynamics_every)
        return (dynamics, *self.parts.updates(c.lr))


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.online.recipes import MOUNTAIN, UMAZE, arm_of, recipe

    def sides(env: str) -> tuple[DADS.Config, Arm, Arm]:
        config = recipe(DADS.Config, env, "published" if full else "cpu")
        idle = dataclasses.replace(config, random_steps=config.updates * config.steps + 1)
        return config, arm_of(config), arm_of(idle, "not learned")

    config, learned, random = sides(MOUNTAIN)
    _, planner, idle_planner = sides(UMAZE)
    return (
        Claim(
            id="own-outcome",
            text="The dynamics give the state that was met a higher probability under its own skill than under three "
            "in four others; by chance half of them.",
            method=Score(learned, partial(late, name="dynamics/own_better")),
            test=AtLeast(75),
            source="arXiv 1907.01657",
            also=(Score(learned, partial(late, name="skills/reward")),),
        ),
        covers_more(learned, random, config.window, "arXiv 1907.01657"),
        Claim(
            id="plans",
            text=f"Plans over skills, for which nothing was learned of goals, reach 20 points more of those of {UMAZE} "
            "than the same planner over what was not learned.",
            method=Score(planner, success),
            baseline=Score(idle_planner, success),
            test=Above(20),
            source="arXiv 1907.01657",
        ),
    )
