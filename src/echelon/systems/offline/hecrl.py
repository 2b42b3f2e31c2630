"""HECRL: hierarchical entity-centric RL with factored subgoal diffusion.

Idea: where a state is a set of entities, a good subgoal changes few of them. A diffusion model over entity sets, being
multimodal, commits to moving one object where a regression would move all of them a little; the value function of a
goal-conditioned agent discards the samples that are out of reach and takes the most useful of the others.
Source: arXiv 2602.02722 and its released code (github.com/DanHrmti/HECRL).
Levels: `subgoal` (s, g) -> a state, held for `hold_steps` steps and after `num_subgoals` decisions the goal itself;
`policy` (s, subgoal) -> action, every step. The two learn independently of each other.
Shares with GCIQL: expectile value, twin critic, DDPG+BC. Selection: `hierarchy/planning`. Diffusion and entity
networks: `nets/diffusion`, `nets/entities`. Where entities lie: `envs/entities`.
Options: `high` is the diffusion, the paper's ablation by advantage-weighted regression, or nothing (then the policy
heads for the goal: entity-centric IQL).
Conventions: the reward judges the next state, 0 if every object lies within 4 cm of its place in the goal, else -1
(where no objects are declared: 0 if the next state is the goal); nothing ends a return, so that values lie in
[-1/(1 - gamma), 0]. The deterministic policy ends in tanh. The policy climbs the first critic, not the smaller one.
Deviations: state entities only. Objects differ in colour, which OGBench's numbers do not show but its goals mean: a
learned tag tells entities apart (`identity="none"`: interchangeable, as sets of any size). Moments of observations are
running ones (released: from the whole data at once). The diffusion loss is the mean over the middle frame; the released
mean over all frames is a third of it plus a constant, so that the same `clip_norm` meets a gradient three times as
large here. All rows of a plan share their noise, so that nobody's plan depends on who else plans. In mazes the set has
one entity.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from echelon.claims import Above, Claim, Guard, Score
from echelon.data.goals import GoalSpec
from echelon.envs.entities import DECLARED, declared, layout_of
from echelon.hierarchy.level import Decision, Features, Level
from echelon.hierarchy.planning.select import ReachableThenUseful, select
from echelon.hierarchy.termination import Every
from echelon.losses.policy import awr_loss, ddpgbc_loss
from echelon.losses.value import expectile_loss
from echelon.nets.diffusion import Diffusion, sinusoids
from echelon.nets.entities import EntityFunction, EntityNorm, FrameTransformer
from echelon.nets.frozen import frozen
from echelon.training.agent import Batch, DataSpec, Metrics, Update
from echelon.training.config import Config
from echelon.training.drawing import DrawingAgent

PLAN_SEED = 0
"""Seed of the noise of plans where the runner brings no generator: acting depends on the weights alone."""
High = Literal["diffusion", "regression", "none"]
Draw = Literal["position", "coin"]
Identity = Literal["tagged", "none"]


@dataclass(frozen=True, kw_only=True)
class HECRLConfig(Config):
    """Defaults: the released code, for pick-place-push with cubes."""

    system: ClassVar[str] = "hecrl"
    updates: int = 2_500_000
    """Gradient steps."""
    batch_size: int = 512
    """Transitions a batch."""
    embed_dim: int = 64
    """Dimensions of a token."""
    heads: int = 8
    """Attention heads."""
    width: int = 256
    """Units of the feed-forward part of each attention block of values and policy."""
    value_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers behind the aggregation token, of the value and the critics."""
    actor_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers behind the aggregation token, of the policy."""
    diffuser_hidden: tuple[int, ...] = (256,) * 8
    """Units of the feed-forward part of each layer of the subgoal network: one number a layer."""
    discount: float = 0.99
    """gamma."""
    target_rate: float = 0.005
    """Share of the online weights that the target critics take at each update."""
    expectile: float = 0.9
    """Optimism of the value."""
    alpha: float = 0.1
    """Weight of the cloning term (.05 to .3 by environment)."""
    value_p_next: float = 0.2
    """Share of value goals that are the next state; the rest lie uniformly in the future."""
    value_draw: Draw = "position"
    """Which rows have the next state as goal: the first of each batch (released), or each by a coin."""
    success_metres: float = 0.04
    """How near to its place every object has to be."""
    identity: Identity = "tagged"
    """Whether a learned tag tells entities of one kind apart."""
    high: High = "diffusion"
    """Where subgoals come from: diffusion and selection; regression (ablation); none, the goal itself (ablation)."""
    high_alpha: float = 3.0
    """Inverse temperature of the regression's advantage weights."""
    clip_norm: float | None = 20.0
    """Largest norm of each update's gradient; longer ones are scaled down to it. None: they are taken as they are."""
    subgoal_ahead: int = 50
    """k: how far ahead subgoals lie in the data."""
    hold_steps: int = 25
    """Steps for which a subgoal is held (scene 50)."""
    num_subgoals: int = 32
    """Subgoals in an episode before the goal itself (scene 16)."""
    diffusion_steps: int = 10
    """T: denoising steps."""
    samples: int = 256
    """Candidates for each subgoal (scene 64)."""
    reach: float = -30.0
    """R: candidates with V(s, candidate) below it are discarded (scene -25); -30 is about 36 steps."""

    def __post_init__(self) -> None:
        self.require("env", declared(self.env), f"one whose entities are declared ({', '.join(DECLARED)})")
        for name in ("embed_dim", "heads", "width", "subgoal_ahead", "hold_steps", "diffusion_steps", "samples"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("num_subgoals", self.num_subgoals >= 0, "0 or more")
        self.require("embed_dim", self.embed_dim % 2 == 0, "even")
        self.require("heads", self.embed_dim % self.heads == 0, f"a divisor of embed_dim ({self.embed_dim})")
        for name in ("value_hidden", "actor_hidden"):  # they are normalised, and the norm of a single unit is constant
            self.require(name, all(size >= 2 for size in getattr(self, name)), "sizes of at least 2")
        layers = self.diffuser_hidden
        self.require("diffuser_hidden", bool(layers) and min(layers) >= 1, "one or more sizes of at least 1")
        self.require("discount", 0 < self.discount < 1, "between 0 and 1")
        self.require("expectile", 0 < self.expectile < 1, "between 0 and 1")
        for name in ("target_rate", "value_p_next"):
            self.require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("alpha", "high_alpha", "success_metres"):
            self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self.require("reach", self.reach < math.inf, "a number")
        self.require("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "positive")
        for name, options in (("value_draw", Draw), ("identity", Identity), ("high", High)):
            known = get_args(options)
            self.require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """Value goals succeed at the next state; policy goals with the state k steps ahead on the way to them."""
        current = self.value_p_next if self.value_draw == "coin" else 0.0
        return {
            "value": GoalSpec(current=current, future=1 - current, law="uniform", steps=1),
            "actor": GoalSpec(future=1, law="uniform", steps=self.subgoal_ahead),
        }


def objects_in_place(here: Tensor, there: Tensor, metres: float) -> Tensor:
    """bool[B]: whether every object of positions `here` [B, n, 3] lies within `metres` of its place in `there`."""
    return ((here - there).norm(dim=-1) <= metres).all(-1)


def critic_target(reward: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """r + gamma V(s', g), clipped to what rewards of -1 and 0 allow: [-1/(1 - gamma), 0]."""
    return (reward + discount * next_value).clamp(-1 / (1 - discount), 0)


def row_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error [B] of each row of [B, D]."""
    return (predicted - wanted).square().mean(-1)


class SubgoalDiffuser(nn.Module):
    """p(subgoal | s, g): diffusion of the middle one of the frames [s, subgoal, g], the outer ones known."""

    known: Tensor

    def __init__(self, config: HECRLConfig, network: FrameTransformer):
        super().__init__()
        self.dim, self.diffusion, self.network = config.embed_dim, Diffusion(config.diffusion_steps), network
        self.register_buffer("known", torch.tensor([[True], [False], [True]]), persistent=False)

    def denoise(self, frames: Tensor, step: Tensor) -> Tensor:
        """The noise in frames [B, 3, O] at `step` int64[B]."""
        return self.network(frames, sinusoids(step, self.dim).to(frames.dtype))

    def loss(self, s: Tensor, subgoal: Tensor, g: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Mean absolute error of the noise [B, O] in the subgoal at `step` int64[B]; states [B, O]."""
        return self.diffusion.loss(self.denoise, torch.stack([s, subgoal, g], 1), step, noise[:, None], self.known)

    def forward(self, s: Tensor, g: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw n subgoals [B, n, O] on the way from s to g [B, O]."""
        frames = torch.stack([s, s, g], 1)
        return self.diffusion.sample(self.denoise, frames, self.known, n, generator)[:, :, 1]


class SubgoalRegression(nn.Module):
    """The ablation: one subgoal, a function of s and g."""

    def __init__(self, network: FrameTransformer):
        super().__init__()
        self.network = network

    def forward(self, s: Tensor, g: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n times the same subgoal [B, n, O] on the way from s to g [B, O]."""
        return self.network(torch.stack([s, g], 1))[:, :1].expand(-1, n, -1)


class SubgoalLevel(Level):
    """(s, g) -> the state to reach next.

    Recorded with it: the share of the candidates `rejected`, and `direct`, 1 where it is the goal itself.
    """

    name = "subgoal"

    def __init__(self, agent: HECRL):
        self.agent, self.termination = agent, Every(agent.config.hold_steps)
        self.generator = torch.Generator().manual_seed(PLAN_SEED)

    def start(self, streams: int) -> Tensor:
        """Ticks of the episode so far."""
        return torch.zeros(streams, dtype=torch.int64, device=self.agent.norm.mean.device)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Features, Tensor | None]:
        assert memory is not None
        return {**obs, "tick": memory}, memory + 1

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        goal, c = features["goal"], self.agent.config
        aim = goal.clone()
        rejected, direct = torch.zeros_like(goal[:, 0]), torch.ones_like(goal[:, 0])
        planning = features["tick"] < c.hold_steps * c.num_subgoals
        if bool(planning.any()):
            assert self.generator is not None
            plans = self.agent.plan(features["observation"][planning], goal[planning], self.generator)
            aim[planning], rejected[planning], direct[planning] = plans
        return Decision(aim, values={"rejected": rejected, "direct": direct})


class ReachLevel(Level):
    """(s, subgoal or goal) -> action in [-1, 1]."""

    name = "policy"

    def __init__(self, agent: HECRL):
        self.agent = agent

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        norm, aim = self.agent.norm, features["goal"] if parent is None else parent
        return Decision(self.agent.policy(norm(features["observation"]), norm(aim)))


class HECRL(DrawingAgent):
    """Goal-conditioned IQL on entity sets, and a model of subgoals; losses see normalised observations."""

    Config = HECRLConfig

    def __init__(self, config: HECRLConfig, spec: DataSpec):
        super().__init__()
        self.config = c = config
        self.layout = layout_of(c.env, spec.observation_dim)
        kinds, tagged = self.layout.kinds, c.identity == "tagged"
        shape = (kinds, c.embed_dim, c.heads, c.width)
        self.norm = EntityNorm(kinds)
        self.value = EntityFunction(*shape, c.value_hidden, 1, tagged=tagged)
        self.critic = nn.ModuleList(
            EntityFunction(*shape, c.value_hidden, 1, tagged=tagged, action_dim=spec.action_dim) for _ in range(2)
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = EntityFunction(*shape, c.actor_hidden, spec.action_dim, tagged=tagged, final_scale=1e-2)
        self.high: SubgoalDiffuser | SubgoalRegression | None = None
        sizes = (c.embed_dim, c.heads, c.diffuser_hidden)
        if c.high == "diffusion":
            self.high = SubgoalDiffuser(c, FrameTransformer(kinds, 3, *sizes, tagged=tagged, condition=c.embed_dim))
        elif c.high == "regression":
            self.high = SubgoalRegression(FrameTransformer(kinds, 2, *sizes, tagged=tagged))
        self.generator = torch.Generator().manual_seed(c.seed)

    # --- what the networks mean, on normalised sets [B, O]

    def v(self, s: Tensor, g: Tensor) -> Tensor:
        """V(s, g) [B]."""
        return self.value(s, g).squeeze(-1)

    def q(self, critics: nn.ModuleList, s: Tensor, a: Tensor, g: Tensor) -> Tensor:
        """Q(s, a, g) of both critics [2, B]."""
        return torch.stack([critic(s, g, a).squeeze(-1) for critic in critics])

    def policy(self, s: Tensor, g: Tensor) -> Tensor:
        """pi(s, g) [B, A] in [-1, 1]."""
        return self.actor(s, g).tanh()

    # --- learning

    def positions(self, observation: Tensor) -> Tensor | None:
        """Positions [B, n, 3] in metres of the objects of raw observations [B, O]; None where none are declared."""
        layout = self.layout
        if layout.objects is None:
            return None
        count, size = layout.kinds[layout.objects]
        start = sum(n * d for n, d in layout.kinds[: layout.objects])
        block = observation[:, start : start + count * size].unflatten(-1, (count, size))
        return block[..., :3] / layout.units

    def prepare(self, batch: Batch) -> Batch:
        """Place the next states among the value goals, add `rewards` and the diffusion's noise, normalise states."""
        c, s_next, goals = self.config, batch["next_observations"], batch["value_goals"]
        success = batch["value_success"]
        if c.value_draw == "position":
            first = (torch.arange(len(goals), device=goals.device) < c.value_p_next * len(goals))[:, None]
            goals, success = torch.where(first, s_next, goals), torch.where(first[:, 0], 1.0, success)
        here, there = self.positions(s_next), self.positions(goals)
        if here is not None and there is not None:
            success = objects_in_place(here, there, c.success_metres).to(success.dtype)
        self.norm.update(batch["observations"])
        states = {name: batch[name] for name in ("observations", "next_observations", "actor_goals", "actor_targets")}
        made = {name: self.norm(x) for name, x in (states | {"value_goals": goals}).items()} | {"rewards": success - 1}
        if c.high == "diffusion":
            step = torch.randint(c.diffusion_steps, (len(goals),), generator=self.generator)
            noise = torch.randn(goals.shape, generator=self.generator)
            made |= {"steps": step.to(goals.device), "noise": noise.to(goals)}
        return batch | made

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile regression of V(s, g) towards the target critics' minimum at the data's action."""
        s, g = batch["observations"], batch["value_goals"]
        with torch.no_grad():
            q = self.q(self.target_critic, s, batch["actions"], g).amin(0)
        v = self.v(s, g)
        loss = expectile_loss(q - v, q - v, self.config.expectile).mean()
        return loss, {"value/mean": v.detach().mean()}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Squared error of both critics towards the clipped r + gamma V(s', g), with V as it is now."""
        s, g = batch["observations"], batch["value_goals"]
        with torch.no_grad():
            target = critic_target(batch["rewards"], self.v(batch["next_observations"], g), self.config.discount)
        loss = (self.q(self.critic, s, batch["actions"], g) - target).square().mean(1).sum()
        return loss, {"critic/target": target.mean(), "critic/success": batch["rewards"].mean() + 1}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """DDPG+BC: climb the first critic, scaled by its mean size, and stay near the data's actions."""
        s, g = batch["observations"], batch["actor_goals"]
        action = self.policy(s, g)
        with frozen(self.critic):
            q = self.critic[0](s, g, action).squeeze(-1)
        error = row_error(action, batch["actions"])
        loss = ddpgbc_loss(q, -error, self.config.alpha)
        return loss, {"actor/q": q.detach().mean(), "actor/error": error.detach().mean()}

    def subgoal_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Towards the state k steps ahead w: denoising; or advantage-weighted regression, A = V(w, g) - V(s, g)."""
        s, w, g = batch["observations"], batch["actor_targets"], batch["actor_goals"]
        if isinstance(self.high, SubgoalDiffuser):
            return self.high.loss(s, w, g, batch["steps"], batch["noise"]), {}
        assert self.high is not None
        with torch.no_grad():
            gain = self.v(w, g) - self.v(s, g)
        error = row_error(self.high(s, g, 1, self.generator)[:, 0], w)
        return awr_loss(gain, -error, self.config.high_alpha), {"subgoal/advantage": gain.mean()}

    def updates(self) -> tuple[Update, ...]:
        lr, clip = self.config.lr, self.config.clip_norm
        found = [
            Update("value", self.value_loss, (self.value,), lr, clip_norm=clip),
            Update("critic", self.critic_loss, (self.critic,), lr, clip_norm=clip),
            Update("actor", self.actor_loss, (self.actor,), lr, clip_norm=clip),
        ]
        if self.high is not None:
            found.append(Update("subgoal", self.subgoal_loss, (self.high,), lr, clip_norm=clip))
        return tuple(found)

    def commit(self, aux: Metrics) -> None:
        """Move the target critics, with the critics as this step left them."""
        targets, sources = ([p.data for p in net.parameters()] for net in (self.target_critic, self.critic))
        torch._foreach_lerp_(targets, sources, self.config.target_rate)

    # --- acting

    @torch.no_grad()
    def propose(self, observation: Tensor, goal: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n subgoals [B, n, O] on the way from `observation` to `goal` [B, O], before any selection."""
        assert self.high is not None
        return self.norm.inverse(self.high(self.norm(observation), self.norm(goal), n, generator))

    @torch.no_grad()
    def plan(self, observation: Tensor, goal: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What to aim for [B, O] on the way to `goal`; share of candidates rejected [B]; 1 where it is the goal [B]."""
        assert self.high is not None
        s, g = self.norm(observation), self.norm(goal)
        if isinstance(self.high, SubgoalRegression):
            none = torch.zeros_like(goal[:, 0])
            return self.norm.inverse(self.high(s, g, 1, generator)[:, 0]), none, none
        candidates = self.high(s, g, self.config.samples, generator)
        judgement = ReachableThenUseful(self.v, self.config.reach)(s, candidates, g)
        choice = select(candidates, g, judgement)
        direct = choice.chosen[:, :1] < 0
        aim = torch.where(direct, goal, self.norm.inverse(choice.aim))
        return aim, judgement.scores.isneginf().to(goal.dtype).mean(1), direct[:, 0].to(goal.dtype)

    def levels(self) -> tuple[Level, ...]:
        reach = ReachLevel(self)
        return (reach,) if self.high is None else (SubgoalLevel(self), reach)

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        return {"V": self.v(self.norm(observation), self.norm(goal))}

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor | None:
        """The candidates nearest to the chosen subgoals, as the networks see them."""
        if self.high is None:
            return None
        aim, _, _ = self.plan(observation, goal, torch.Generator().manual_seed(PLAN_SEED))
        return candidates[torch.cdist(self.norm(aim), self.norm(candidates)).argmin(1)]


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.offline.moved import objects_left
    from echelon.systems.offline.recipes import arm

    env, size = "cube-triple-noisy-v0", "published" if full else "cpu"
    # what is claimed is what the subgoal network proposes: on a CPU the updates go to it, values and policy are small
    small = {
        "updates": 5_000,
        "batch_size": 128,
        "transitions": 300_000,
        "width": 16,
        "value_hidden": (32, 32),
        "actor_hidden": (32, 32),
        "diffuser_hidden": (128, 128, 128, 128),
        "eval_every": 5_000,
        "eval_episodes": 1,
    }
    diffusion, regression = (
        Score(arm(HECRLConfig, env, size, name, high=name, **({} if full else small)), objects_left)
        for name in ("diffusion", "regression")
    )
    return (
        Claim(
            id="moves-fewer",
            text="With all three cubes to be moved, a subgoal by diffusion leaves at least one cube more in its place "
            "than one by advantage-weighted regression (published: 1.36 against 2.96 cubes moved).",
            method=diffusion,
            baseline=regression,
            test=Above(1),
            source="arXiv 2602.02722",
            unless=Guard(objects_left, 2.75, "its subgoals move next to nothing, so there is nothing to commit to"),
        ),
    )
