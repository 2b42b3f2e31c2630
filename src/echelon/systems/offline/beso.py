"""BESO: goal-conditioned imitation with a score-based diffusion policy.

Idea: a denoiser of short windows of actions, given the states and the goal, holds all the ways in which people act
where a regression would average them; as training and sampling are decoupled, three deterministic steps are enough.
Goals that are left out at random make the same network a policy without goals, and guidance mixes the two.
Source: arXiv 2304.02532 and its released code (github.com/intuitive-robots/beso).
Levels: one policy, a decision every step: the latest states and its own actions between them, and the goal, make
actions of a window, of which the last one is executed; below that, denoising steps.
Shares the denoiser's loss and samplers (`nets/edm`, `nets/samplers`), the transformer, windows (`data/windows`) and the
memory of its level (`hierarchy/window`) with other generative policies.
Options: `goal_drop` with `guidance` is the paper's CFG-BESO, without (the default) c-BESO. `past="kept"` leaves the
actions of the past as they were; released: they begin as they were and are denoised again with the newest.
`goal_mask="element"` is the released mask of goals: number by number, so that the network hardly ever sees a goal
that is left out as a whole, which is what guidance asks it about.
Deviations: state observations only. The moments by which states and goals are standardised and the range by which
actions are scaled are those of what was seen so far (released: of the whole data at once). Windows are shorter where an
episode begins (released: whole ones alone); goals begin at the step after the window, as released, and at an episode's
end its last state is repeated (released: zeros). In the test environments a goal is one state, repeated if
`goal_frames` asks for more. All rows share their noise, so that nobody's action depends on who else acts. Adam without
weight decay.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from echelon.claims import Above, AtLeast, Claim, NotWorse, Score, success
from echelon.data.windows import Mask, WindowSpec, check_windows
from echelon.hierarchy.level import Level
from echelon.hierarchy.window import WindowLevel, newest, to_front
from echelon.nets.edm import Denoise, edm_loss, preconditioned, truncated_log_logistic
from echelon.nets.entities import EntityNorm
from echelon.nets.ranges import Range
from echelon.nets.samplers import (
    Noise,
    Pinned,
    ddim,
    euler_ancestral,
    exponential_levels,
    guided,
    heun,
    karras_levels,
    linear_levels,
    unit_noise,
)
from echelon.nets.transformer import Transformer, causal_mask, init_normal_
from echelon.training.agent import Batch, DataSpec, Metrics, Update
from echelon.training.config import Config
from echelon.training.drawing import DrawingAgent, drawing_from

ACT_SEED = 0
"""Seed of the noise of actions where the runner brings no generator: acting depends on the weights alone."""
Sampler = Literal["ddim", "heun", "ancestral"]
Schedule = Literal["linear", "exponential", "karras"]
Past = Literal["denoised", "kept"]
SCHEDULES = {"linear": linear_levels, "exponential": exponential_levels, "karras": karras_levels}


@dataclass(frozen=True, kw_only=True)
class BESOConfig(Config):
    """Defaults: the released code for block-push, c-BESO (CFG-BESO: goal_drop .1, guidance 2)."""

    system: ClassVar[str] = "beso"
    updates: int = 60_000
    """Gradient steps (kitchen 40 k)."""
    lr: float = 1e-4
    """Adam's learning rate."""
    window: int = 5
    """W: states that the policy sees, and actions that it denoises together (kitchen 4)."""
    goal_frames: int = 1
    """G: consecutive states of which a goal is made (kitchen 2)."""
    goal_within: int | None = None
    """How many steps after the window a goal may lie at the latest; None: as far as the episode goes."""
    embed_dim: int = 240
    """Dimensions of a token (kitchen 360)."""
    heads: int = 12
    """Attention heads (kitchen 6)."""
    denoiser_hidden: tuple[int, ...] = (960, 960, 960, 960)
    """Units of the feed-forward part of each layer: one number a layer (kitchen 6 layers)."""
    dropout: float = 0.05
    """Of what each layer adds (kitchen 0)."""
    attention_dropout: float = 0.05
    """Of attention's weights (kitchen .3)."""
    lr_decay: float = 0.99
    """Factor of the learning rate every `lr_every` updates."""
    lr_every: int = 100
    """Updates between these factors."""
    average_decay: float = 0.999
    """What the averaged weights, which act, keep of themselves at update n: (1 + n) / (10 + n), at most this."""
    data_std: float = 0.5
    """sigma_data: standard deviation of scaled actions that the preconditioning assumes."""
    train_sigma_min: float = 0.05
    """Lowest noise level of the training (kitchen .005)."""
    train_sigma_max: float = 1.0
    """Highest noise level of the training."""
    goal_drop: float = 0.0
    """Probability that a goal is left out in training."""
    goal_mask: Mask = "sample"
    """What is left out together: a sample's whole goal, or each number by itself (released)."""
    guidance: float = 1.0
    """lambda: 0 ignores the goal, 1 is conditional, more exaggerates what the goal changes (kitchen 1.5)."""
    denoise_steps: int = 3
    """Denoising steps for an action."""
    sampler: Sampler = "ddim"
    """How they are made (kitchen: ancestral)."""
    schedule: Schedule = "linear"
    """How their noise levels fall."""
    sigma_min: float = 0.1
    """Lowest noise level of an action before the last step."""
    sigma_max: float = 1.0
    """Noise level at which an action begins."""
    past: Past = "denoised"
    """Whether actions of the past are denoised with the newest, or kept."""

    def __post_init__(self) -> None:
        for name in ("window", "goal_frames", "embed_dim", "heads", "lr_every", "denoise_steps"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("goal_within", self.goal_within is None or self.goal_within >= 1, "None or at least 1")
        self.require("heads", self.embed_dim % self.heads == 0, f"a divisor of embed_dim ({self.embed_dim})")
        layers = self.denoiser_hidden
        self.require("denoiser_hidden", bool(layers) and min(layers) >= 1, "one or more sizes of at least 1")
        for name in ("dropout", "attention_dropout"):
            self.require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self.require("lr_decay", 0 < self.lr_decay <= 1, "above 0 and at most 1")
        for name in ("average_decay", "goal_drop"):
            self.require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("data_std", "train_sigma_min", "sigma_min"):
            self.require(name, 0 < getattr(self, name) < math.inf, "positive")
        low = self.train_sigma_min
        self.require("train_sigma_max", low < self.train_sigma_max < math.inf, f"above train_sigma_min ({low})")
        low = self.sigma_min
        self.require("sigma_max", low <= self.sigma_max < math.inf, f"sigma_min ({low}) or more")
        self.require("guidance", 0 <= self.guidance < math.inf, "0 or more")
        alone = self.guidance == 1 or self.goal_drop > 0
        self.require("guidance", alone, f"1 where no goal is ever left out (goal_drop {self.goal_drop})")
        for name, options in (("goal_mask", Mask), ("sampler", Sampler), ("schedule", Schedule), ("past", Past)):
            known = get_args(options)
            self.require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        super().__post_init__()

    def goals(self) -> dict[str, WindowSpec]:
        """Windows that end anywhere, and goals after them."""
        return {
            "window": WindowSpec(
                steps=self.window,
                frames=self.goal_frames,
                within=self.goal_within,
                drop=self.goal_drop,
                mask=self.goal_mask,
            )
        }

    def levels(self) -> tuple[float, ...]:
        """Noise levels of an action, the last 0."""
        return SCHEDULES[self.schedule](self.denoise_steps, self.sigma_min, self.sigma_max)


class ActionDenoiser(nn.Module):
    """F of a window's actions, given its states and a goal: a causal transformer.

    Tokens: the noise level, G frames of the goal, then state and action of each step, which share a place. States and
    goals share an embedding. What is said of an action stands at its own token: it depends on no later step.
    """

    def __init__(self, config: BESOConfig, spec: DataSpec):
        super().__init__()
        c, dim = config, config.embed_dim
        self.level, self.state = nn.Linear(1, dim), nn.Linear(spec.observation_dim, dim)
        self.action, self.head = nn.Linear(spec.action_dim, dim), nn.Linear(dim, spec.action_dim)
        self.body = Transformer(
            dim, c.heads, c.denoiser_hidden, 1 + c.goal_frames + c.window,
            dropout=c.dropout, attention_dropout=c.attention_dropout,
        )  # fmt: skip
        self.apply(init_normal_)

    def forward(self, actions: Tensor, level: Tensor, states: Tensor, goals: Tensor) -> Tensor:
        """Map actions [B, W, A] at log(sigma) / 4 `level` [B], with states [B, W, O] and goals [B, G, O]."""
        before, device = 1 + goals.shape[1], actions.device
        steps = torch.stack([self.state(states), self.action(actions)], 2).flatten(1, 2)
        tokens = torch.cat([self.level(level[:, None, None]), self.state(goals), steps], 1)
        place = before + torch.arange(actions.shape[1], device=device).repeat_interleave(2)
        place = torch.cat([torch.arange(before, device=device), place])
        seen = self.body(tokens, place, causal_mask(len(place), device))
        return self.head(seen[:, before + 1 :: 2])


class DenoiseLevel(WindowLevel):
    """The latest states, its own actions between them, and the goal -> action in [-1, 1]."""

    name = "policy"

    def __init__(self, agent: BESO):
        super().__init__(agent.config.window, agent.sizes, agent.actions.low.device)
        self.agent = agent
        self.generator = torch.Generator().manual_seed(ACT_SEED)

    def act(self, states: Tensor, past: Tensor, steps: Tensor, goal: Tensor) -> Tensor:
        return self.agent.sample(states, past, steps, goal[:, None], unit_noise(self.generator, shared=True))


class BESO(DrawingAgent):
    """A denoiser of windows of actions, and a slow average of its weights, which acts."""

    Config = BESOConfig
    averaged: Tensor
    """How many updates the average has seen."""

    def __init__(self, config: BESOConfig, spec: DataSpec):
        super().__init__()
        self.config, self.sizes = config, (spec.observation_dim, spec.action_dim)
        self.states, self.actions = EntityNorm([(1, spec.observation_dim)]), Range(spec.action_dim)
        self.network = ActionDenoiser(config, spec)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.average.eval()
        self.register_buffer("averaged", torch.zeros(()))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.left_out = 0  # seed of what dropout leaves out in this update

    # --- learning

    def prepare(self, batch: Batch) -> Batch:
        """Scale what the network sees, erase the goals that are left out, and draw `sigma` [B] and `noise`."""
        check_windows(batch)
        c, states, actions = self.config, batch["observations"], batch["actions"]
        self.states.update(states.flatten(0, 1))
        self.actions.update(actions)
        u = torch.rand(len(states), generator=self.generator, dtype=torch.float64)
        sigma = truncated_log_logistic(u, c.train_sigma_min, c.train_sigma_max, math.log(c.data_std), 0.5)
        noise = torch.randn(actions.shape, generator=self.generator)
        self.left_out = int(torch.randint(2**31 - 1, (), generator=self.generator))
        scaled = {"observations": self.states(states), "goals": self.states(batch["goals"]) * batch["kept"]}
        made = {"actions": self.actions(actions), "sigma": sigma.to(actions), "noise": noise.to(actions)}
        return batch | scaled | made

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean over real steps of (F - (a - c_skip x) / c_out)^2, x = a + sigma noise, one level for a window."""
        network = partial(self.network, states=batch["observations"], goals=batch["goals"])
        drops = max(self.config.dropout, self.config.attention_dropout) > 0
        with drawing_from(self.left_out if drops else None, batch["actions"].device):
            loss = edm_loss(
                network,
                batch["actions"],
                batch["sigma"],
                batch["noise"],
                self.config.data_std,
                batch["real"][..., None],
            )
        return loss, {"denoiser/real": batch["real"].float().mean()}

    def updates(self) -> tuple[Update, ...]:
        return (Update("denoiser", self.loss, (self.network,), self.config.lr, schedule=self.decayed),)

    def decayed(self, step: int) -> float:
        """The factor of the learning rate at `step` (from 1)."""
        return self.config.lr_decay ** ((step - 1) // self.config.lr_every)

    def commit(self, aux: Metrics) -> None:
        """Move the average towards the weights as this step left them."""
        averages, weights = ([p.data for p in net.parameters()] for net in (self.average, self.network))
        self.averaged += 1
        kept = ((1 + self.averaged) / (10 + self.averaged)).clamp(max=self.config.average_decay)
        gaps = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(gaps, 1 - kept)  # a tensor: nothing waits for the device
        torch._foreach_add_(averages, gaps)

    def train(self, mode: bool = True) -> BESO:
        """Set the mode of the network that learns; the average never drops anything."""
        super().train(mode)
        self.average.eval()
        return self

    # --- acting

    @torch.no_grad()
    def sample(self, states: Tensor, past: Tensor, steps: Tensor, goals: Tensor, noise: Noise) -> Tensor:
        """An action [B, A] in [-1, 1] after `states` [B, W, O] and the actions between them, `past` [B, W - 1, A].

        `steps` int64[B]: how many of the states are real, at the end. `goals` [B, G or 1, O]. Nothing here is scaled.
        """
        c, window = self.config, states.shape[1]
        states = to_front(self.states(states), steps)
        clean = torch.cat([self.actions(past), past.new_zeros(len(past), 1, self.sizes[1])], 1)
        clean = to_front(clean, steps)
        before = (torch.arange(window, device=steps.device) < (steps - 1)[:, None])[..., None]
        goals = self.states(goals).expand(-1, c.goal_frames, -1)
        start = torch.where(before, clean, c.levels()[0] * noise(clean))
        pinned = Pinned(before, clean) if c.past == "kept" else None
        found = newest(self._run(self._denoiser(states, goals), start, noise, pinned), steps)
        return self.actions.action(found)

    def _denoiser(self, states: Tensor, goals: Tensor) -> Denoise:
        """D given scaled states [B, W, O] and goals [B, G, O], guided."""
        conditional, free = (
            preconditioned(partial(self.average, states=states, goals=g), self.config.data_std)
            for g in (goals, torch.zeros_like(goals))
        )
        return guided(conditional, free, self.config.guidance)

    def _run(self, denoise: Denoise, start: Tensor, noise: Noise, pinned: Pinned | None) -> Tensor:
        levels = self.config.levels()
        if self.config.sampler == "ancestral":
            return euler_ancestral(denoise, start, levels, noise, pinned)
        return (heun if self.config.sampler == "heun" else ddim)(denoise, start, levels, pinned)

    def levels(self) -> tuple[Level, ...]:
        return (DenoiseLevel(self),)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.offline.gcbc_chunks import GCBCChunksConfig
    from echelon.systems.offline.prompts import acting_with, takes_longer
    from echelon.systems.offline.recipes import arm, recipe

    size, env, source = "published" if full else "cpu", "cube-single-play-v0", "arXiv 2304.02532"
    config = recipe(BESOConfig, env, size)
    assert isinstance(config, BESOConfig)
    beso = arm(BESOConfig, env, size)
    one: dict[str, Any] = {"chunk": 1, "play": 1, "updates": config.updates, "transitions": config.transitions}
    one |= {"batch_size": config.batch_size, "lr": config.lr, "goal_within": config.goal_within}
    return (
        Claim(
            id="above-gcbc",
            text="On cube-single-play BESO, with three denoising steps, succeeds more often than GCBC, the "
            "regression of one action, after as many updates at the same rate, with goals as far ahead.",
            method=Score(beso, success),
            baseline=Score(arm(GCBCChunksConfig, env, size, "GCBC", **one), success),
            test=Above(0),
            source=source,
        ),
        Claim(
            id="three-steps-suffice",
            text="On cube-single-play the same weights succeed with three denoising steps as often as with thirty, "
            "but for 5 points at most.",
            method=Score(beso, partial(acting_with, field="denoise_steps", value=3)),
            baseline=Score(beso, partial(acting_with, field="denoise_steps", value=30)),
            test=NotWorse(5),
            source=source,
        ),
        Claim(
            id="three-steps-are-faster",
            text="A decision by thirty denoising steps takes five times as long as one by three, or longer.",
            method=Score(beso, partial(takes_longer, field="denoise_steps", value=30, times=5.0)),
            test=AtLeast(100),
            source=source,
        ),
    )
