"""SMORe: score models for offline goal-conditioned reinforcement learning.

Idea: to reach goals is to match the transitions that enter them. In the dual of that matching no discriminator is left:
an unnormalised score S(s, a, g) is pushed up where data enter g and kept Bellman-consistent, without rewards, on all
data; the best action of the data enters by an expectile, and a policy is cloned with the advantages as weights.
Source: arXiv 2311.02013; hyper-parameters of its released commands.
Levels: one policy, a decision every environment step.
Shares with GCIQL: twin critics, an expectile value; with GCIVL: the advantage-weighted policy.
Conventions: a batch is a mixture of `batch_size` offline rows with goals in hindsight (source 0) and as many that enter
their goal (source 1); value and policy learn from source 0 alone. Goals are the data's achieved goals, where these are
apart from observations. The updates are stepped one after the other: value, policy, critics, then the targets, towards
the new critics.
Baselines with the same draws, networks and order of updates, both with goals in hindsight:
- GCBC, `temperature=0`: every weight of the policy's regression is 1, so that neither value nor critics are learned;
- AWR (arXiv 1910.00177), `variant="sparse"`: advantages of a sparse reward, with critics that learn by temporal
  differences from the rows of both sources. The reward is -c at the goal, for ever, and c elsewhere. k steps before it
  is entered that is worth (2 gamma^k - 1) (-c) / (1 - gamma): the discounted 0/1 reward on the scale of smore_stable's
  scores, where a temperature means the same. The value is as optimistic as SMORe's, as in IQL (arXiv 2110.06169);
  with `expectile=0.5` it is that of the data's own actions, as in AWR's paper.
Deviations: the paper's dual is `variant="smore"`; `smore_stable`, the released default, regresses scores of entering
transitions to a maximum -c / (1 - gamma) and charges c a step elsewhere. Reviews of the paper quote its squared
residual with the factor 1/4; the code has 1/2, as here. With the released c = -2 scores span 400 at a temperature of 3.
A step nearer to the goal is worth up to -2c, so that its weight grows by the factor exp(-2c temperature): e^12, where
most weights are 100 or 0. With c = -0.02, scores in [-2, 2], it is 1.13, next to cloning; the CPU sizes take -1: e^6.
The released sampler's stride, which reads across episodes, is an option; its list of entering transitions takes the end
of the episode before for what leads to an episode's first state: not here. Networks are the library's (GELU, its
initial weights), the critics without layer norm, as released; the released gradient penalty, off by default, is absent.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from echelon.claims import Above, Arm, AtLeast, Claim, Score, metric, success
from echelon.data.hindsight import HindsightSpec, Stride, by_source
from echelon.hierarchy.level import Level
from echelon.losses.policy import awr_loss, awr_weight
from echelon.losses.value import expectile_loss
from echelon.nets.entities import EntityNorm
from echelon.nets.goal import GaussianPolicy, GoalValue
from echelon.nets.mlp import EnsembleMLP
from echelon.systems.offline.common import GoalLevel
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Update, half_cosine
from echelon.training.config import Config

Variant = Literal["smore_stable", "smore", "sparse"]
REGULARISER = 1e-4
REACH, MANY, FEW = "fetchreach-mixed-v0", "fetchpush-mixed-v0", "fetchpush-mixed1-v0"
"""Data of the claims: experts collected a tenth of the episodes, of the last a hundredth."""
PUSHING = {"updates": 40_000, "eval_every": 4_000}
SMALL = {REACH: {"updates": 2_500, "eval_every": 2_500}, MANY: PUSHING, FEW: PUSHING}
"""What the claims' CPU size has instead of the recipe's."""
ARMS: dict[str, dict[str, Any]] = {
    "SMORe": {},
    "cloning (temperature 0)": {"temperature": 0.0},
    "AWR (sparse reward)": {"variant": "sparse"},
}
"""Sides of the claims, and how they differ."""


@dataclass(frozen=True, kw_only=True)
class SMOReConfig(Config):
    """Defaults: the released code and commands."""

    system: ClassVar[str] = "smore"
    updates: int = 3_000_000
    """Training steps."""
    batch_size: int = 256
    """Transitions of each of the two sources."""
    actor_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of the policy."""
    value_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of the value and of each critic."""
    discount: float = 0.99
    """gamma."""
    target_rate: float = 0.005
    """Share of the online critics that the targets take after each step."""
    variant: Variant = "smore_stable"
    """The critics' loss: smore_stable = regression (released default), smore = the paper's dual, sparse = TD (AWR)."""
    step_reward: float = -2.0
    """c of smore_stable and sparse: the reward of a step; entering a goal is worth -c / (1 - gamma)."""
    expectile: float = 0.8
    """beta: optimism of the value."""
    temperature: float = 3.0
    """Inverse temperature of the advantage weights; 0 clones."""
    future: float = 0.8
    """Share of goals reached later in the episode; the rest are the goals that the data were collected for."""
    goal_radius: float = 0.05
    """Distance within which a goal of the data counts as reached (Fetch: 5 cm)."""
    normalize: bool = False
    """Networks see (x - mean) / std of observations and goals, by running moments of the offline rows, clipped to +-5;
    released: x as it is, where a few centimetres between goals tell next to nothing."""
    stride: Stride = "episode"
    """released: its sampler, which reads the k-th episode k places too early."""

    def __post_init__(self) -> None:
        self.require("actor_hidden", all(size >= 1 for size in self.actor_hidden), "sizes of at least 1")
        # they are normalised, and the norm of a single unit is constant
        self.require("value_hidden", all(size >= 2 for size in self.value_hidden), "sizes of at least 2")
        self.require("discount", 0 < self.discount < 1, "between 0 and 1")
        for name in ("target_rate", "future"):
            self.require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        self.require("variant", self.variant in get_args(Variant), " or ".join(get_args(Variant)))
        self.require("step_reward", -math.inf < self.step_reward < 0, "negative")
        self.require("expectile", 0 < self.expectile < 1, "between 0 and 1")
        self.require("temperature", 0 <= self.temperature < math.inf, "0 or more")
        self.require("goal_radius", 0 < self.goal_radius < math.inf, "positive")
        self.require("stride", self.stride in get_args(Stride), " or ".join(get_args(Stride)))
        super().__post_init__()

    def goals(self) -> dict[str, HindsightSpec]:
        """The two sources of a batch, in their order."""
        offline = HindsightSpec(future=self.future, stride=self.stride, radius=self.goal_radius)
        return {"offline": offline, "entering": dataclasses.replace(offline, entering=True)}


class TanhPolicy(GaussianPolicy):
    """A Gaussian whose mean is squashed to (-1, 1) and whose standard deviations are learned."""

    def __init__(self, input_dim: int, hidden: tuple[int, ...], action_dim: int):
        super().__init__(input_dim, hidden, action_dim, constant_std=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate `inputs` [..., D_i] and return the mean action [..., A]."""
        return torch.tanh(super().forward(*inputs))


def scores(critic: EnsembleMLP, batch: Batch, source: str = "") -> Tensor:
    """S(s, a, g) [2, B] of the rows of a source, by the beginning of their names."""
    rows = [batch[source + name] for name in ("observations", "goals", "actions")]
    return critic(torch.cat(rows, -1)).squeeze(-1)


def dual_loss(entering: Tensor, offline: Tensor, following: Tensor, gamma: float) -> Tensor:
    """-E_q[S] + 1e-4 E_rho[S] + E_rho[(S - gamma V')^2] / 2, summed over heads.

    S of entering and of offline transitions [heads, B]; V' = V(s', g) [B] of the offline ones.
    """
    residual = (offline - gamma * following).square()
    return (-entering.mean(-1) + REGULARISER * offline.mean(-1) + 0.5 * residual.mean(-1)).sum()


def stable_loss(entering: Tensor, offline: Tensor, following: Tensor, gamma: float, c: float) -> Tensor:
    """E_q[(S + c / (1 - gamma))^2] + (1 - gamma) 1e-4 E_rho[S^2] + E_rho[(S - c - gamma V')^2] / 2, as `dual_loss`."""
    attained = (entering + c / (1 - gamma)).square().mean(-1)
    size = (1 - gamma) * REGULARISER * offline.square().mean(-1)
    residual = (offline - c - gamma * following).square().mean(-1)
    return (attained + size + 0.5 * residual).sum()


def sparse_loss(
    entering: Tensor, offline: Tensor, entered: Tensor, following: Tensor, gamma: float, c: float
) -> Tensor:
    """Temporal differences of a sparse reward: half of either source's mean (S - y)^2, summed over heads.

    y = -c / (1 - gamma) where the goal is entered, by all of source 1 and where `entered` bool[B] says so of the
    offline ones, else c + gamma V'. The rest as `dual_loss`.
    """
    top = -c / (1 - gamma)
    target = torch.where(entered, top, c + gamma * following)
    return 0.5 * ((entering - top).square().mean(-1) + (offline - target).square().mean(-1)).sum()


def effective_share(advantage: Tensor, temperature: float) -> Tensor:
    """(sum w)^2 / (B sum w^2) of the weights w = min(exp(temperature A), 100): 1 if all are alike, 1 / B if one counts.

    Relative to the largest weight: a number even where all of them are too small for one.
    """
    log = (temperature * advantage.double()).clamp(max=math.log(100.0))
    weight = torch.exp(log - log.max())
    return (weight.sum().square() / weight.square().sum() / len(weight)).to(advantage.dtype)


class SMORe(Agent):
    """S(s, a, g) from entering transitions and Bellman residuals, V(s, g) by expectiles, pi(a | s, g) by AWR."""

    Config = SMOReConfig

    def __init__(self, config: SMOReConfig, spec: DataSpec):
        super().__init__()
        self.config, self.goal_dim = config, spec.goal_dim
        self.sizes = (spec.observation_dim, spec.goal_dim or spec.observation_dim)
        pair = sum(self.sizes)
        self.norm = EntityNorm([(1, pair)]) if config.normalize else None
        self.value = GoalValue(pair, config.value_hidden, members=1)
        self.critic = EnsembleMLP(2, [pair + spec.action_dim, *config.value_hidden, 1])
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = TanhPolicy(pair, config.actor_hidden, spec.action_dim)

    @property
    def clones(self) -> bool:
        """Whether all weights are 1: then nothing asks for scores or values, and neither is learned."""
        return self.config.temperature == 0

    def prepare(self, batch: Batch) -> Batch:
        """The offline rows, with the `scores` [B] of the target critics; the entering rows, as `entering_...`.

        Where all weights are 1, the offline rows alone.
        """
        offline, entering = by_source(batch, 2)
        if self.norm is not None:
            self.norm.update(torch.cat([offline["observations"], offline["goals"]], -1))
        offline = self.normalized(offline)
        if self.clones:
            return offline
        entering = {f"entering_{name}": column for name, column in self.normalized(entering).items()}
        return offline | entering | {"scores": scores(self.target_critic, offline).amin(0)}

    def normalized(self, rows: Batch) -> Batch:
        """`rows` as the networks see them."""
        following, _ = self.seen(rows["next_observations"], rows["goals"])
        s, g = self.seen(rows["observations"], rows["goals"])
        return {**rows, "observations": s, "next_observations": following, "goals": g}

    def seen(self, observation: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """s [..., O] and g [..., G] as the networks see them."""
        if self.norm is None:
            return observation, goal
        s, g = self.norm(torch.cat([observation, goal], -1)).split(self.sizes, -1)
        return s, g

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile regression of V(s, g) towards the lower target score of the data's action."""
        v = self.value(batch["observations"], batch["goals"])[0]
        error = batch["scores"] - v
        loss = expectile_loss(error, error, self.config.expectile).mean()
        return loss, {"value/loss": loss.detach(), "value/mean": v.detach().mean()}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """AWR with A = S - V; how many of the batch's rows the weights leave."""
        s, g, temperature = batch["observations"], batch["goals"], self.config.temperature
        with torch.no_grad():
            advantage = s.new_zeros(len(s)) if self.clones else batch["scores"] - self.value(s, g)[0]
        log_prob = self.actor.log_prob(self.actor(s, g), batch["actions"])
        loss = awr_loss(advantage, log_prob, temperature)
        return loss, {
            "actor/loss": loss.detach(),
            "actor/advantage": advantage.mean(),
            "actor/effective_share": effective_share(advantage, temperature),
            "actor/clipped": (awr_weight(advantage, temperature) >= 100).float().mean(),
        }

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Up where goals are entered, Bellman-consistent on offline rows; or the sparse reward's differences."""
        c = self.config
        offline, entering = scores(self.critic, batch), scores(self.critic, batch, "entering_")
        with torch.no_grad():
            following = self.value(batch["next_observations"], batch["goals"])[0]
        if c.variant == "smore":
            loss = dual_loss(entering, offline, following, c.discount)
        elif c.variant == "smore_stable":
            loss = stable_loss(entering, offline, following, c.discount, c.step_reward)
        else:
            loss = sparse_loss(entering, offline, batch["entered"], following, c.discount, c.step_reward)
        means = {"critic/offline": offline.detach().mean(), "critic/entering": entering.detach().mean()}
        largest = torch.maximum(offline.detach().abs().amax(), entering.detach().abs().amax())
        return loss, {"critic/loss": loss.detach(), "critic/largest": largest} | means

    def updates(self) -> tuple[Update, ...]:
        lr = self.config.lr
        actor = Update("actor", self.actor_loss, (self.actor,), lr, schedule=half_cosine(self.config.updates))
        if self.clones:
            return (actor,)
        value = Update("value", self.value_loss, (self.value,), lr)
        return value, actor, Update("critic", self.critic_loss, (self.critic,), lr)

    def commit(self, aux: Metrics) -> None:
        """Move the targets towards the critics as they are after their step."""
        if self.clones:
            return
        targets, sources = tuple(self.target_critic.parameters()), tuple(self.critic.parameters())
        torch._foreach_lerp_(targets, sources, self.config.target_rate)

    def levels(self) -> tuple[Level, ...]:
        return (GoalLevel(lambda s, g: self.actor(*self.seen(s, g))),)

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {} if self.clones else {"V": self.value(*self.seen(observation, goal))[0]}


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show.

    `full` at the published size, with 2.5 % of experts between, and AWR where experts are few too.
    """
    from echelon.systems.offline.beside import gained_over
    from echelon.systems.offline.recipes import arm

    size, source = "published" if full else "cpu", "arXiv 2311.02013"
    data = (MANY, *(("fetchpush-mixed2.5-v0",) if full else ()), FEW)
    share = partial(metric, name="actor/effective_share")
    smore, cloning, awr = ARMS

    def side(name: str, env: str) -> Arm:
        return arm(SMOReConfig, env, size, name, **({} if full else SMALL[env]), **ARMS[name])

    def above(slug: str, other: str) -> Claim:
        return Claim(
            id=slug,
            text=f"Where an expert collected a tenth of the data ({MANY}) SMORe pushes the block to more goals than "
            f"{other} with goals in hindsight, by 10 points or more, with the same networks and draws.",
            method=Score(side(smore, MANY), success),
            baseline=Score(side(other, MANY), success),
            test=Above(10),
            source=source,
            also=tuple(Score(side(name, MANY), share) for name in (smore, other)),
        )

    def loses_less(slug: str, other: str) -> Claim:
        return Claim(
            id=slug,
            text=f"From a tenth of experts' episodes to a hundredth ({FEW}) SMORe loses less than {other} with goals "
            "in hindsight, with the same networks and draws.",
            method=Score(side(smore, FEW), partial(gained_over, env=MANY)),
            baseline=Score(side(other, FEW), partial(gained_over, env=MANY)),
            test=Above(0),
            source=source,
            also=tuple(
                Score(side(name, env), statistic)
                for env in data
                for name in (smore, other)
                for statistic in (success, share)
            ),
        )

    reached = side(smore, REACH)
    return (
        Claim(
            id="reaches",
            text=f"Where an expert collected a tenth of the data ({REACH}) SMORe reaches 95 % of the goals.",
            method=Score(reached, success),
            test=AtLeast(95),
            source=source,
            also=(Score(reached, partial(metric, name="critic/largest")),),
        ),
        above("above-cloning", cloning),
        above("above-awr", awr),
        loses_less("fewer-experts", cloning),
        *((loses_less("fewer-experts-than-awr", awr),) if full else ()),
    )
