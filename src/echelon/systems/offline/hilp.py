"""HILP: foundation policies with Hilbert representations.

Idea: embed states so that the distance of two embeddings is the number of steps between them; then train one policy
pi(a | s, z) that moves as fast as it can in direction z of that space. A goal, a plan or a reward is a choice of z.
Source: arXiv 2402.15567; hyper-parameters of its released goal-conditioned code (github.com/seohongpark/HILP).
Levels: `prompt` turns what is wanted into a unit vector z (towards a goal or a planned mid-point at every step, for a
reward once); `skill` (s, z) -> action, every step.
Shares with HIQL: the value loss, here on V(s, g) = -||phi(s) - phi(g)||. Mid-points come from `hierarchy/planning`.
Options: `prompt` goes straight for the goal (HILP), for mid-points (HILP-Plan) or in a random direction (ablation);
`embedding` may be the observation itself (ablation). Prompts are acting only: one set of weights serves all of them.
Conventions: phi is the first of the two embeddings and learns from the value loss alone. No state ends the skill's
return. At the goal, where the direction vanishes, z does too.
Deviations: skills are drawn anew at every update, as the paper means; the code behind its numbers drew them once for
the whole run (`skill_draw="frozen"`). Mid-points are taken among the states of the last batches, which are uniform
draws from the data set too. Goals ahead lie one step ahead or more (the released draw may give the state itself, with
probability 0). A prompt from rewards is a unit vector, as the skills here; the successor-feature agent of the paper's
zero-shot experiments has its own code and is not part of this file. State observations only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.claims import Above, Arm, Claim, NotWorse, Score, success
from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.planning.midpoint import nearest_midpoint
from echelon.hierarchy.termination import Never
from echelon.losses.policy import awr_loss
from echelon.losses.value import expectile_loss, ivl_loss
from echelon.nets.goal import GaussianPolicy, GoalValue
from echelon.nets.mlp import EnsembleMLP
from echelon.systems.offline.common import GoalConfig
from echelon.training.agent import Batch, DataSpec, Metrics, Polyak, Update
from echelon.training.drawing import DrawingAgent


@dataclass(frozen=True, kw_only=True)
class HILPConfig(GoalConfig):
    """Defaults: the released goal-conditioned code. `target_rate` moves the target embedding and the target critic."""

    system: ClassVar[str] = "hilp"
    value_p_current: float = 0.0
    """Share of value goals equal to the current state."""
    value_p_future: float = 0.625
    """Share of value goals ahead on the trajectory, geometrically distributed; the rest are random states."""
    constant_std: bool = False
    """Standard deviation 1; else a learned vector."""
    expectile: float = 0.95
    """Optimism of the embedding's value."""
    skill_dim: int = 32
    """Dimensions of the Hilbert embedding and its skills."""
    skill_expectile: float = 0.9
    """Optimism of the skill policy's value."""
    skill_temperature: float = 10.0
    """Inverse temperature of the skill policy's advantage weights."""
    skill_discount: float = 0.99
    """gamma of the skill policy's return."""
    skill_draw: Literal["fresh", "frozen"] = "fresh"
    """New random skills at every update, or the same ones always (the flaw of the code behind the paper's numbers)."""
    embedding: Literal["hilbert", "euclidean"] = "hilbert"
    """phi learned, or phi(s) = s with skills of the observation's size; its steps are not of length 1, so that
    `skill_temperature` means something else there."""
    prompt: Literal["goal", "plan", "random"] = "goal"
    """Where to go: straight for the goal, for mid-points on the way, or in one random direction an episode."""
    planning_rounds: int = 3
    """Halvings of the way to the goal."""
    planning_states: int = 50_000
    """States of the data among which mid-points are searched."""
    planning_neighbours: int = 50
    """Best mid-points that are averaged."""

    def __post_init__(self) -> None:
        self.require("actor_p_random", self.actor_p_random == 0, "0: the policy follows skills and has no goals")
        for name in ("expectile", "skill_expectile"):
            self.require(name, 0 < getattr(self, name) < 1, "between 0 and 1")
        self.require("skill_discount", 0 <= self.skill_discount < 1, "0 or more and below 1")
        self.require("skill_temperature", 0 <= self.skill_temperature < math.inf, "0 or more")
        for name in ("skill_dim", "planning_states", "planning_neighbours"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("planning_rounds", self.planning_rounds >= 0, "0 or more")
        self.require("skill_draw", self.skill_draw in ("fresh", "frozen"), "fresh or frozen")
        self.require("embedding", self.embedding in ("hilbert", "euclidean"), "hilbert or euclidean")
        self.require("prompt", self.prompt in ("goal", "plan", "random"), "goal, plan or random")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """The goal draws of one batch."""
        return {"value": self.value_goals()}


class HilbertEmbedding(nn.Module):
    """Two independent maps phi: s -> R^dim."""

    def __init__(self, observation_dim: int, hidden: tuple[int, ...], dim: int):
        super().__init__()
        self.heads = EnsembleMLP(2, [observation_dim, *hidden, dim], layer_norm=True)

    def forward(self, observation: Tensor) -> Tensor:
        """Map [..., O] to [2, ..., dim]."""
        return self.heads(observation)


class EuclideanEmbedding(nn.Module):
    """The ablation phi(s) = s."""

    def forward(self, observation: Tensor) -> Tensor:
        """Map [..., O] to [1, ..., O]."""
        return observation[None]


def distance_value(phi_s: Tensor, phi_g: Tensor) -> Tensor:
    """V(s, g) = -sqrt(max(||phi(s) - phi(g)||^2, 1e-6)) of embeddings [..., D]: minus the steps from s to g."""
    return -(phi_s - phi_g).square().sum(-1).clamp(min=1e-6).sqrt()


def direction(x: Tensor) -> Tensor:
    """x [..., D] scaled to length 1; 0 stays 0."""
    return F.normalize(x, dim=-1)


def least_squares_skill(steps: Tensor, reward: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The unit vector z [D] along which `steps` phi(s') - phi(s) [N, D] predict `reward` [N] best, by least squares.

    Where nothing is to be learned (the same reward everywhere, or one that no direction explains) z is drawn with
    `generator`, uniformly on the sphere.
    """
    x, r = steps.double(), reward.double()
    # E[x x']^+ E[x r]: the pseudo-inverse, because embeddings may leave dimensions unused
    z = torch.linalg.pinv(x.T @ x / len(x), hermitian=True) @ (x.T @ r / len(x))
    if float(r.min()) == float(r.max()) or float(z.norm()) < 1e-12:
        z = torch.randn(len(z), generator=generator, dtype=z.dtype).to(z.device)
    return direction(z).to(steps.dtype)


class AimLevel(Level):
    """(s, g) -> the direction z [B, D] from phi(s) to phi(g), or to the mid-point that `plan` puts in its place.

    `plan` takes phi(s), phi(g) [B, D] and returns the point to head for.
    """

    name = "prompt"

    def __init__(self, phi: nn.Module, plan: Callable[[Tensor, Tensor], Tensor] | None = None):
        self.phi, self.plan = phi, plan

    def aim(self, observation: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """phi(s) and the point to head for, both [B, D]."""
        here, there = self.phi(torch.cat([observation, goal]))[0].chunk(2)
        return here, there if self.plan is None else self.plan(here, there)

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        here, there = self.aim(features["observation"], features["goal"])
        return Decision(direction(there - here))


class HeldSkill(Level):
    """A skill for the whole episode: `draw` gives those [B, D] of B episodes that begin."""

    name = "prompt"
    termination = Never()

    def __init__(self, draw: Callable[[int], Tensor]):
        self.draw = draw

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(self.draw(len(features["observation"])))


class SkillLevel(Level):
    """(s, z) -> action in [-1, 1]."""

    name = "skill"

    def __init__(self, actor: GaussianPolicy):
        self.actor = actor

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        assert parent is not None
        return Decision(self.actor(features["observation"], parent).clamp(-1, 1))


class HILP(DrawingAgent):
    """An embedding in which distance is time, and one policy that follows directions in it."""

    Config = HILPConfig
    states: Tensor
    seen: Tensor

    def __init__(self, config: HILPConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        o, a = spec.observation_dim, spec.action_dim
        euclidean = config.embedding == "euclidean"
        self.dim = o if euclidean else config.skill_dim
        self.phi = EuclideanEmbedding() if euclidean else HilbertEmbedding(o, config.value_hidden, self.dim)
        self.target_phi = copy.deepcopy(self.phi).requires_grad_(False)
        self.skill_value = GoalValue(o + self.dim, config.value_hidden, members=1)
        self.skill_critic = GoalValue(o + self.dim + a, config.value_hidden)
        self.target_skill_critic = copy.deepcopy(self.skill_critic).requires_grad_(False)
        self.skill_actor = GaussianPolicy(o + self.dim, config.actor_hidden, a, constant_std=config.constant_std)
        self.register_buffer("states", torch.zeros(config.planning_states, o))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.generator = torch.Generator().manual_seed(config.seed)

    def prepare(self, batch: Batch) -> Batch:
        """Add a random unit `skills` [B, D] to each transition; remember the states for planning."""
        s = batch["observations"]
        kept = s[-len(self.states) :]
        self.states.index_copy_(0, (self.seen + torch.arange(len(kept), device=s.device)) % len(self.states), kept)
        self.seen += len(kept)
        if self.config.skill_draw == "frozen":
            self.generator.manual_seed(self.config.seed)
        z = torch.randn(len(s), self.dim, generator=self.generator).to(s)
        return batch | {"skills": direction(z)}

    def embedding_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile regression of V(s, g) towards r + gamma m V(s', g), r = m = 0 at the goal, else r = -1, m = 1."""
        c, s, g, success = self.config, batch["observations"], batch["value_goals"], batch["value_success"]
        phi_s, phi_g = self.phi(torch.cat([s, g])).chunk(2, dim=1)
        with torch.no_grad():
            old_s, old_next, old_g = self.target_phi(torch.cat([s, batch["next_observations"], g])).chunk(3, dim=1)
        v = distance_value(phi_s, phi_g)
        old, following = distance_value(old_s, old_g), distance_value(old_next, old_g)
        loss = ivl_loss(v, old, following, success - 1, 1 - success, c.discount, c.expectile)
        return loss, {"value/loss": loss.detach(), "value/mean": v.detach().mean()}

    def skill_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """IQL on [s; z] with the reward (phi(s') - phi(s)) . z: value, critics and policy, summed."""
        c, s, s_next = self.config, batch["observations"], batch["next_observations"]
        z, a = batch["skills"], batch["actions"]
        with torch.no_grad():
            here, there = self.phi(torch.cat([s, s_next]))[0].chunk(2)
            reward = ((there - here) * z).sum(-1)
            target = reward + c.skill_discount * self.skill_value(s_next, z)[0]
            old_q = self.target_skill_critic(s, z, a).amin(0)
        advantage = old_q - self.skill_value(s, z)[0]
        value = expectile_loss(advantage, advantage, c.skill_expectile).mean()
        critic = (self.skill_critic(s, z, a) - target).square().sum(0).mean()
        log_prob = self.skill_actor.log_prob(self.skill_actor(s, z), a)
        actor = awr_loss(advantage, log_prob, c.skill_temperature)
        metrics = {"value_loss": value, "critic_loss": critic, "actor_loss": actor, "advantage": advantage.mean()}
        metrics |= {"step_length": (there - here).norm(dim=-1).mean(), "log_prob": log_prob.mean()}
        return value + critic + actor, {f"skill/{name}": x.detach() for name, x in metrics.items()}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of the embedding's and the skill policy's losses."""
        embedding, embedding_metrics = self.embedding_loss(batch)
        skill, skill_metrics = self.skill_loss(batch)
        return embedding + skill, embedding_metrics | skill_metrics

    def updates(self) -> tuple[Update, ...]:
        rate = self.config.target_rate
        targets = (
            Polyak(self.phi, self.target_phi, rate),
            Polyak(self.skill_critic, self.target_skill_critic, rate),
        )
        modules = (self.phi, self.skill_value, self.skill_critic, self.skill_actor)
        return (Update("hilp", self.loss, modules, self.config.lr, targets=targets),)

    def levels(self) -> tuple[Level, ...]:
        top: Level
        if self.config.prompt == "random":
            generator = torch.Generator().manual_seed(self.config.seed)
            top = HeldSkill(lambda n: direction(torch.randn(n, self.dim, generator=generator)).to(self.states))
        else:
            top = self.aiming()
        return (top, SkillLevel(self.skill_actor))

    @torch.no_grad()
    def aiming(self) -> AimLevel:
        """The level that goes for goals, with a plan or without; a plan embeds its states now, with today's weights."""
        c = self.config
        if c.prompt != "plan":
            return AimLevel(self.phi)
        examples = self.phi(self.states[: int(self.seen)])[0]
        return AimLevel(
            self.phi, lambda s, g: nearest_midpoint(s, g, examples, c.planning_neighbours, c.planning_rounds)
        )

    @torch.no_grad()
    def reward_levels(self, s: Tensor, s_next: Tensor, reward: Tensor) -> tuple[Level, ...]:
        """A hierarchy that follows a reward function, zero-shot: `reward` [N] of transitions `s`, `s_next` [N, O].

        The skill is the least-squares one, held for ever.
        """
        here, there = self.phi(torch.cat([s, s_next]))[0].chunk(2)
        generator = torch.Generator().manual_seed(self.config.seed)
        z = least_squares_skill(there - here, reward, generator)
        return (HeldSkill(lambda n: z.expand(n, -1)), SkillLevel(self.skill_actor))

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"V": distance_value(self.phi(observation), self.phi(goal)).mean(0)}

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor | None:
        """The candidates nearest in the embedding to the point that is headed for; None for random directions."""
        if self.config.prompt == "random":
            return None
        _, there = self.aiming().aim(observation, goal)
        return candidates[torch.cdist(there, self.phi(candidates)[0]).argmin(1)]


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size. One training serves all prompts."""
    from echelon.systems.offline.cells import straight_order, value_order
    from echelon.systems.offline.prompts import prompted
    from echelon.systems.offline.recipes import arm

    size, maze = "published" if full else "cpu", "pointmaze-large-navigate-v0"
    source = "arXiv 2402.15567"
    short: dict[str, Any] = {} if full else {"updates": 20_000, "eval_every": 20_000}

    def planned(name: str, **changes: Any) -> Arm:
        return arm(HILPConfig, maze, size, name, prompt="plan", **short, **changes)

    hilp = planned("HILP-Plan")
    # a step there is 0.2 long, in the Hilbert embedding 1: five times the temperature gives the same weights
    euclidean = planned("Euclidean plan", embedding="euclidean", skill_temperature=50.0)
    plan, goal, at_random = (Score(hilp, partial(prompted, prompt=name)) for name in ("plan", "goal", "random"))
    return (
        Claim(
            id="above-random-skill",
            text="On pointmaze-large-navigate mid-points of the Hilbert embedding lead the skills to more goals than "
            "random skills of the same weights reach, by 10 points or more.",
            method=plan,
            baseline=at_random,
            test=Above(10),
            source=source,
        ),
        Claim(
            id="plan-not-below-goal",
            text="On pointmaze-large-navigate heading for mid-points is not worse than heading straight for the goal "
            "by 10 points, with the same weights.",
            method=plan,
            baseline=goal,
            test=NotWorse(10),
            source=source,
        ),
        Claim(
            id="above-euclidean",
            text="On pointmaze-large-navigate the Hilbert embedding leads to more goals than the observation in its "
            "place, which knows no walls, by 10 points or more.",
            method=Score(hilp, success),
            baseline=Score(euclidean, success),
            test=Above(10),
            source=source,
            also=(Score(euclidean, partial(prompted, prompt="goal")),),
        ),
        Claim(
            id="order-of-distances",
            text="Over all pairs of cells of pointmaze-large distances in the Hilbert embedding are ordered like the "
            "ways between them, better than straight distances are (rank correlation .822).",
            method=Score(hilp, partial(value_order, value="V")),
            baseline=Score(hilp, straight_order),
            test=Above(0),
            source=source,
        ),
    )
