"""Act2Goal: a goal-conditioned world model imagines frames at several time scales, an action expert follows.

Idea: a flow model imagines the way from the state to the goal as dense frames of the next steps and sparse ones out to
a horizon; an action expert of the same depth attends, block by block, to what the world model computes, and says the
next actions together. So a plan has the detail to act on now and the reach to head for a distant goal.
Source: arXiv 2512.23541 (no code is released).
Levels: `chunk` (s, g) -> the next P actions, of which `play` are held; `play` -> the action of the tick, every step.
Within a chunk the world model's flow comes first, then that of the actions.
Shares with GCBC with chunks: its levels (`hierarchy/plans`) and windows (`data/windows`), here at the frames' offsets.
Flow matching: `nets/flow`; transformers: `nets/transformer`.
Options: `offsets` is the printed formula of the sparse frames, whose gaps shrink with the distance; or "growing", its
mirror image, whose gaps grow as the text says; or "even". `distal=0` is the ablation without sparse frames.
`goal_law="next"` has the state after the step as goal, as the paper's relabelling of what was played online has it.
Conventions: frames beyond the goal are the goal; the first of them counts in the loss, those that repeat it do not, nor
do actions at or after the goal. Both networks learn jointly for `joint_updates`, then the actions' loss alone moves
both. The actions attend to the world model at the noise level drawn for its own loss; in play to its last flow step.
Deviations: state observations, no images: a frame is a state, the network a small transformer and no pre-trained video
model, and proprioception is the whole state. Sparse actions are learned and never played, as published. The online
stage with low-rank adapters is not part of it. Moments of states and the range of actions are those of what was seen
so far. All rows share their noise, so that nobody's plan depends on who else plans. Adam without weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from echelon.claims import Above, Claim, Score, success
from echelon.data.windows import WindowSpec, check_windows
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.plans import PlanLevel, PlayLevel
from echelon.hierarchy.termination import Every
from echelon.nets.entities import EntityNorm
from echelon.nets.flow import Velocity, flow_loss, flow_sample
from echelon.nets.ranges import Range
from echelon.nets.samplers import Noise, unit_noise
from echelon.nets.transformer import Transformer, init_normal_
from echelon.training.agent import Batch, DataSpec, Metrics, Update, half_cosine
from echelon.training.config import Config
from echelon.training.drawing import DrawingAgent

PLAN_SEED = 0
"""Seed of the noise of plans where the runner brings no generator: acting depends on the weights alone."""
Offsets = Literal["printed", "growing", "even"]
GoalLaw = Literal["later", "next"]


@dataclass(frozen=True, kw_only=True)
class Act2GoalConfig(Config):
    """Defaults: the paper where it says so; sizes, learning rate and budget are those of states, where it does not."""

    system: ClassVar[str] = "act2goal"
    updates: int = 30_000
    """Gradient steps."""
    batch_size: int = 256
    """Windows a batch."""
    joint_updates: int = 20_000
    """Of these, how many learn frames and actions jointly; the others learn the actions alone."""
    lr: float = 3e-4
    """Adam's learning rate at the first update; it falls to 0 along half a cosine."""
    action_weight: float = 0.1
    """Weight of the actions' loss beside that of the frames (paper)."""
    horizon: int = 200
    """K: offset of the last sparse frame."""
    proximal: int = 54
    """P: steps of the dense part, and actions of a chunk (paper)."""
    frame_stride: int = 6
    """r: steps between dense frames (54 actions and 9 frames in the paper)."""
    distal: int = 9
    """M: sparse frames, and actions there (paper); 0: none, the ablation."""
    offsets: Offsets = "printed"
    """Where the sparse frames lie: gaps that shrink with the distance (as printed), that grow, or that are even."""
    goal_law: GoalLaw = "later"
    """Which states are goals: any later one of the episode, or the next one."""
    goal_within: int | None = None
    """How many steps ahead a later goal may lie at the latest; None: as far as the episode goes."""
    play: int = 50
    """Actions that are played before the next chunk (paper)."""
    flow_steps: int = 10
    """N: Euler steps, of the frames and of the actions."""
    heads: int = 4
    """Attention heads of both networks."""
    world_dim: int = 128
    """Dimensions of the world model's tokens."""
    world_hidden: tuple[int, ...] = (512,) * 6
    """Units of the feed-forward part of each of its blocks: one number a block."""
    expert_dim: int = 64
    """Dimensions of the action expert's tokens."""
    expert_hidden: tuple[int, ...] = (256,) * 6
    """Units of the feed-forward part of each of its blocks; as many blocks as the world model has."""

    def __post_init__(self) -> None:
        for name in ("proximal", "frame_stride", "play", "flow_steps", "heads", "world_dim", "expert_dim"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("distal", "joint_updates"):
            self.require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("world_dim", "expert_dim"):
            self.require("heads", getattr(self, name) % self.heads == 0, f"a divisor of {name} ({getattr(self, name)})")
        self.require("world_hidden", bool(self.world_hidden) and min(self.world_hidden) >= 1, "one or more sizes")
        self.require("expert_hidden", all(size >= 1 for size in self.expert_hidden), "sizes of at least 1")
        self.require(
            "expert_hidden",
            len(self.expert_hidden) == len(self.world_hidden),
            f"as many sizes as world_hidden, {self.world_hidden}",
        )
        self.require("goal_within", self.goal_within is None or self.goal_within >= 1, "None or at least 1")
        self.require("action_weight", 0 < self.action_weight < math.inf, "positive")
        self.require("frame_stride", self.proximal % self.frame_stride == 0, f"a divisor of proximal ({self.proximal})")
        self.require("play", self.play <= self.proximal, f"proximal ({self.proximal}) or less")
        for name, options in (("offsets", Offsets), ("goal_law", GoalLaw)):
            known = get_args(options)
            self.require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        sparse = [self.proximal, *self.sparse()]
        apart = self.horizon >= sparse[0] and all(a < b for a, b in pairwise(sparse))
        far = f"so far beyond proximal ({sparse[0]}) that the distal ({self.distal}) frames differ"
        self.require("horizon", apart, far)
        super().__post_init__()

    def sparse(self) -> tuple[int, ...]:
        """Offsets of the sparse frames."""
        return distal_offsets(self.horizon, self.proximal, self.distal, self.offsets)

    def frames(self) -> tuple[int, ...]:
        """Offsets of all frames."""
        return (*range(self.frame_stride, self.proximal + 1, self.frame_stride), *self.sparse())

    def steps(self) -> tuple[int, ...]:
        """Offsets of all actions: those of the chunk, then the sparse ones."""
        return (*range(self.proximal), *self.sparse())

    def goals(self) -> dict[str, WindowSpec]:
        """Windows that begin anywhere, of the steps at which there are frames or actions; a goal after their first."""
        offsets = (*range(self.proximal + 1), *self.sparse())
        return {"chunk": WindowSpec(offsets=offsets, anchor="first", within=self.goal_within)}


def distal_offsets(horizon: int, proximal: int, count: int, law: Offsets) -> tuple[int, ...]:
    """d_m = P + floor((K - P) share(m)), m = 1..M, with d_M = K; rounding errors of the logarithms lose no step.

    share: log(m + 1) / log(M + 1), as printed; ((M + 1)^(m/M) - 1) / M, growing; m / M, even.
    """
    found = []
    for m in range(1, count):
        if law == "printed":
            share = math.log(m + 1) / math.log(count + 1)
        else:
            share = m / count if law == "even" else ((count + 1) ** (m / count) - 1) / count
        found.append(proximal + math.floor((horizon - proximal) * share + 1e-9))
    return (*found, horizon) if count else ()


def stage_loss(world: Tensor, actions: Tensor, joint: bool, action_weight: float) -> Tensor:
    """L_v + w L_a while both are learned jointly, then L_a."""
    return world + action_weight * actions if joint else actions


class WorldModel(nn.Module):
    """The velocity of noisy frames given s and g; with it what every block computed."""

    def __init__(self, config: Act2GoalConfig, observation_dim: int):
        super().__init__()
        c, dim = config, config.world_dim
        self.tau, self.state = nn.Linear(1, dim), nn.Linear(observation_dim, dim)
        self.frame, self.head = nn.Linear(observation_dim, dim), nn.Linear(dim, observation_dim)
        self.body = Transformer(dim, c.heads, c.world_hidden, 3 + len(c.frames()))
        for part in (self.tau, self.state, self.frame, self.head):
            init_normal_(part)

    def forward(self, frames: Tensor, tau: Tensor, state: Tensor, goal: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Frames [B, F, O] at tau [B], s and g [B, O] -> velocity [B, F, O]; tokens [B, 3 + F, D] of each block."""
        known = self.state(torch.stack([state, goal], 1))
        tokens = torch.cat([self.tau(tau[:, None, None]), known, self.frame(frames)], 1)
        seen = self.body.layers(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.body.norm(seen[-1])[:, 3:]), seen[1:]


class ActionExpert(nn.Module):
    """The velocity of noisy actions given s; each block attends to the tokens of the world model's block."""

    def __init__(self, config: Act2GoalConfig, spec: DataSpec):
        super().__init__()
        c, dim = config, config.expert_dim
        self.tau, self.state = nn.Linear(1, dim), nn.Linear(spec.observation_dim, dim)
        self.action, self.head = nn.Linear(spec.action_dim, dim), nn.Linear(dim, spec.action_dim)
        self.body = Transformer(dim, c.heads, c.expert_hidden, 2 + len(c.steps()), context_dim=c.world_dim)
        for part in (self.tau, self.state, self.action, self.head):
            init_normal_(part)

    def forward(self, actions: Tensor, tau: Tensor, state: Tensor, context: list[Tensor]) -> Tensor:
        """Actions [B, N, A] at tau [B], s [B, O], tokens [B, K, D] of each of the world model's blocks -> [B, N, A]."""
        tokens = torch.cat([self.tau(tau[:, None, None]), self.state(state)[:, None], self.action(actions)], 1)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.body(tokens, place, context=context)[:, 2:])


class ImagineLevel(PlanLevel):
    """(s, g) -> the next P actions in [-1, 1]."""

    name = "chunk"

    def __init__(self, agent: Act2Goal):
        self.agent, self.termination = agent, Every(agent.config.play)
        self.generator = torch.Generator().manual_seed(PLAN_SEED)

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        goal = features["goal"] if parent is None else parent
        assert self.generator is not None
        return Decision(self.agent.plan(features["observation"], goal, unit_noise(self.generator, shared=True))[1])


class Act2Goal(DrawingAgent):
    """A world model and an action expert; losses see standardised states and scaled actions."""

    Config = Act2GoalConfig
    learned: Tensor
    """How many updates there were."""

    def __init__(self, config: Act2GoalConfig, spec: DataSpec):
        super().__init__()
        self.config, self.sizes = config, (spec.observation_dim, spec.action_dim)
        self.states, self.actions = EntityNorm([(1, spec.observation_dim)]), Range(spec.action_dim)
        self.world, self.expert = WorldModel(config, spec.observation_dim), ActionExpert(config, spec)
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))
        self.generator = torch.Generator().manual_seed(config.seed)
        places = {offset: k for k, offset in enumerate(config.goals()["chunk"].places())}
        self.frame_rows, self.step_rows = ([places[k] for k in ks] for ks in (config.frames(), config.steps()))

    def velocities(self, state: Tensor, goal: Tensor) -> tuple[Velocity, Velocity]:
        """Of frames and of actions; the second attends to what the latest call of the first computed. States [B, O]."""
        seen: list[Tensor] = []

        def imagine(x: Tensor, tau: Tensor) -> Tensor:
            velocity, seen[:] = self.world(x, tau, state, goal)
            return velocity

        def follow(x: Tensor, tau: Tensor) -> Tensor:
            return self.expert(x, tau, state, seen)

        return imagine, follow

    # --- learning

    def prepare(self, batch: Batch) -> Batch:
        """Frames [B, F, O] and steps [B, N, A] before the goal, scaled; what of them counts; noise and levels."""
        check_windows(batch)
        c, states, actions = self.config, batch["observations"], batch["actions"]
        goal, until = batch["goals"][:, 0], batch["until"][:, None]
        if c.goal_law == "next":
            goal, until = states[:, 1], batch["real"][:, 1:2].long()
        self.states.update(states.flatten(0, 1))
        self.actions.update(actions)
        at, step = (torch.tensor(offsets, device=until.device) for offsets in (c.frames(), c.steps()))
        before = torch.cat([at.new_zeros(1), at[:-1]])
        first, frames = torch.arange(len(at), device=until.device) == 0, states[:, self.frame_rows]
        frames = self.states(torch.where((at < until)[..., None], frames, goal[:, None]))
        steps = self.actions(actions[:, self.step_rows])
        made = {"frames": frames, "frames_count": (before < until) | first, "steps": steps}
        made |= {"steps_count": (step < until) | (step == 0), "state": self.states(states[:, 0])}
        for name, x in (("frames", frames), ("steps", steps)):
            made[f"{name}_noise"] = torch.randn(x.shape, generator=self.generator).to(x)
            made[f"{name}_tau"] = torch.rand(len(x), generator=self.generator).to(x)
        return batch | made | {"goal": self.states(goal)}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Squared errors of the velocities of frames and actions, joined as the stage asks; see `stage_loss`."""
        imagine, follow = self.velocities(batch["state"], batch["goal"])
        world, actions = (
            flow_loss(velocity, batch[x], batch[f"{x}_tau"], batch[f"{x}_noise"], batch[f"{x}_count"][..., None])
            for velocity, x in ((imagine, "frames"), (follow, "steps"))
        )
        joint = int(self.learned) < self.config.joint_updates
        loss = stage_loss(world, actions, joint, self.config.action_weight)
        return loss, {"flow/frames": world.detach(), "flow/actions": actions.detach()}

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        return (Update("flow", self.loss, (self.world, self.expert), c.lr, schedule=half_cosine(c.updates)),)

    def commit(self, aux: Metrics) -> None:
        """Count the update."""
        self.learned += 1

    # --- acting

    @torch.no_grad()
    def plan(self, observation: Tensor, goal: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Imagined frames [B, F, O], standardised, and the actions [B, P, A] in [-1, 1] to play; states [B, O]."""
        c = self.config
        if observation.shape[-1] != self.sizes[0]:
            raise ValueError(f"sizes differ: observations have {observation.shape[-1]} numbers, not {self.sizes[0]}")
        s, g = self.states(observation), self.states(goal)
        imagine, follow = self.velocities(s, g)
        frames = flow_sample(imagine, noise(s.new_zeros(len(s), len(c.frames()), self.sizes[0])), c.flow_steps)
        found = flow_sample(follow, noise(s.new_zeros(len(s), len(c.steps()), self.sizes[1])), c.flow_steps)
        return frames, self.actions.action(found[:, : c.proximal])

    def levels(self) -> tuple[Level, ...]:
        return (ImagineLevel(self), PlayLevel())


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the size of the configuration's defaults."""
    from echelon.systems.offline.recipes import arm

    size, env = "published" if full else "cpu", "pointmaze-large-navigate-v0"
    return (
        Claim(
            id="above-proximal-only",
            text="On pointmaze-large-navigate Act2Goal, with sparse frames out to the horizon, succeeds more often "
            "than with the dense frames of the next steps alone.",
            method=Score(arm(Act2GoalConfig, env, size), success),
            baseline=Score(arm(Act2GoalConfig, env, size, "proximal only", distal=0), success),
            test=Above(0),
            source="arXiv 2512.23541",
        ),
    )
