"""MAGE: a future drawn from coarse to fine, and the action that leads into it.

Idea: trajectories of states and returns become maps of codes at growing resolutions, all from one codebook; a
transformer says a scale at a time, all of its codes together, given every coarser scale, so that one code sketches the
whole horizon before the next ones refine it. The first action is read from the sum of the codes.
Source: arXiv 2602.23770. Its code was not public when this was written: all sizes, rates and weights but K are
reconstructed, and so is how the adapter and the transformer's tokens are made.
Levels: one policy, a decision every step: K scales of codes over the same horizon, then the inverse dynamics. K passes
of the transformer make a plan, whatever its length.
Shares the quantiser (`nets/vq`), the block-causal transformer and windows (`data/windows`) with other generative
policies.
Options: `scales` of one number is the paper's single-scale ablation; `condition_weight=0` is the one without the loss
of the first element; `conditioned="first"` tells the return and the states to the coarsest scale alone.
Deviations: goals in hindsight instead of one task's reward: the reward is 1 at the goal, where the trajectory ends and
stays, and what is asked for in play is an upper expectile of the returns that the data got from there to the goal.
Autoencoder and transformer learn in the same steps, until the first is frozen after a share of them (paper: one after
the other). Adam without weight decay. All rows share their noise in play, so that nobody's plan depends on who else
plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.claims import Above, Claim, Score, success
from echelon.data.windows import WindowSpec, check_windows
from echelon.hierarchy.level import Decision, Level
from echelon.losses.value import expectile_loss
from echelon.nets.mlp import MLP
from echelon.nets.ranges import Range
from echelon.nets.transformer import Transformer, block_causal_mask, init_normal_
from echelon.nets.vq import Quantised, ScaleVQ, fine
from echelon.training.agent import Batch, DataSpec, Metrics, Update, half_cosine
from echelon.training.config import Config
from echelon.training.drawing import DrawingAgent

ACT_SEED = 0
"""Seed of the noise of plans where the runner brings no generator: acting depends on the weights alone."""
KERNEL = 5
"""Places that a convolution over time sees."""
LEAST = 2.0**-25
"""What stands for a uniform number of 0: half a step of float32's, which are never 1."""
Conditioned = Literal["all", "first"]


@dataclass(frozen=True, kw_only=True)
class MAGEConfig(Config):
    """Defaults: K = 8 as in the paper; other sizes and rates are reconstructed."""

    system: ClassVar[str] = "mage"
    updates: int = 20_000
    """Gradient steps."""
    batch_size: int = 128
    """Trajectories of an update."""
    lr: float = 3e-4
    """Adam's learning rate, of all networks; those of planner and return fall to 0 along half a cosine."""
    horizon: int = 64
    """T: places of a trajectory."""
    stride: int = 4
    """Environment steps from one place to the next."""
    goal_within: int | None = None
    """How many environment steps ahead a goal may lie at the latest; None: as far as the episode goes."""
    scales: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 64)
    """l_1 < ... < l_K: codes of each scale, every one over the whole horizon (paper: K = 8, l_1 = 1)."""
    codes: int = 512
    """Codes that all scales share."""
    code_dim: int = 64
    """C: numbers of a code."""
    autoencoder_hidden: tuple[int, ...] = (128, 128)
    """Channels of the hidden convolutions of encoder and decoder; the adapter has one, as wide as the last."""
    embed_dim: int = 128
    """Dimensions of a token of the transformer."""
    heads: int = 4
    """Attention heads."""
    transformer_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Units of the feed-forward part of each layer: one number a layer."""
    inverse_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the inverse dynamics."""
    aim_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the return that is asked for."""
    discount: float = 0.99
    """gamma, of an environment step."""
    aim_expectile: float = 0.9
    """Which expectile of the data's returns is asked for in play."""
    code_decay: float = 0.99
    """What the codes' moving averages keep of themselves."""
    commitment_weight: float = 0.25
    """Weight of the encoder's distance to its codes."""
    coding: float = 0.5
    """Share of the updates in which the autoencoder learns; then it is frozen."""
    condition_weight: float = 1.0
    """Weight of the first decoded element's distance to the state and the return at hand; 0: the paper's ablation."""
    relaxation: float = 1.0
    """Temperature at which that loss blends codes (Gumbel-softmax)."""
    conditioned: Conditioned = "all"
    """Which scales are told the condition themselves: all, or the first (the paper's ablation)."""
    temperature: float = 1.0
    """Of the codes in play; 0: the likeliest ones."""

    def __post_init__(self) -> None:
        for name in ("horizon", "stride", "codes", "code_dim", "embed_dim", "heads"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("heads", self.embed_dim % self.heads == 0, f"a divisor of embed_dim ({self.embed_dim})")
        self.require("goal_within", self.goal_within is None or self.goal_within >= 1, "None or at least 1")
        growing = all(a < b for a, b in pairwise(self.scales))
        self.require("scales", bool(self.scales) and self.scales[0] >= 1 and growing, "one or more growing numbers")
        finest = self.scales[-1]
        self.require("horizon", finest <= self.horizon, f"at least the finest of the scales ({finest})")
        for name in ("autoencoder_hidden", "transformer_hidden"):
            layers = getattr(self, name)
            self.require(name, bool(layers) and min(layers) >= 1, "one or more sizes of at least 1")
        for name in ("inverse_hidden", "aim_hidden"):
            self.require(name, all(size >= 1 for size in getattr(self, name)), "sizes of at least 1")
        for name in ("discount", "aim_expectile"):
            self.require(name, 0 < getattr(self, name) < 1, "between 0 and 1")
        self.require("code_decay", 0 <= self.code_decay < 1, "at least 0 and below 1")
        self.require("coding", 0 < self.coding <= 1, "above 0 and at most 1")
        for name in ("commitment_weight", "condition_weight", "temperature"):
            self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self.require("relaxation", 0 < self.relaxation < math.inf, "positive")
        known = get_args(Conditioned)
        self.require("conditioned", self.conditioned in known, f"one of {', '.join(known)}")
        super().__post_init__()

    def goals(self) -> dict[str, WindowSpec]:
        """Trajectories that begin anywhere, and a goal after their first state."""
        return {
            "trajectory": WindowSpec(steps=self.horizon, stride=self.stride, anchor="first", within=self.goal_within)
        }


# --- networks


class TimeConv(nn.Module):
    """Convolutions over time [B, T, sizes[0]] -> [B, T, sizes[-1]], zeros beyond both ends."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(a, b, KERNEL, padding=KERNEL // 2) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, sizes[0]]."""
        x = x.transpose(1, 2)
        for k, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if k else x)
        return x.transpose(1, 2)


class Planner(nn.Module):
    """p(m_k | m_<k, condition) of all places of a scale together: a block-causal transformer.

    The tokens of the first scale tell the condition; those of a later one what the coarser scales decode to so far,
    averaged to as many places, and the condition unless that is for the first alone.
    """

    numbers: Tensor

    def __init__(self, config: MAGEConfig, condition_dim: int):
        super().__init__()
        c = config
        self.lengths, self.everywhere = c.scales, c.conditioned == "all"
        self.register_buffer(
            "numbers", torch.arange(len(c.scales)).repeat_interleave(torch.tensor(c.scales)), persistent=False
        )
        self.start, self.head = nn.Linear(condition_dim, c.embed_dim), nn.Linear(c.embed_dim, c.codes)
        self.sketch = nn.Linear(c.code_dim, c.embed_dim) if len(c.scales) > 1 else None
        self.body = Transformer(c.embed_dim, c.heads, c.transformer_hidden, sum(c.scales))
        self.apply(init_normal_)

    def forward(self, condition: Tensor, sketches: Tensor | None) -> Tensor:
        """Logits [B, sum of l, V] from condition [B, D] and the sketches [B, sum of l but the first, C]."""
        tokens = self._tokens(condition, self.lengths[0], None)
        if sketches is not None:
            tokens = torch.cat([tokens, self._tokens(condition, sketches.shape[1], sketches)], 1)
        place = torch.arange(len(self.numbers), device=tokens.device)
        return self.head(self.body(tokens, place, block_causal_mask(self.numbers)))

    def generate(self, vq: ScaleVQ, condition: Tensor, noise: Tensor, places: int) -> list[Tensor]:
        """Codes int64[B, l_k] of each scale, one pass a scale: argmax of logits + `noise` [1 or B, sum of l, V]."""
        codes: list[Tensor] = []
        past, sketch, first = None, None, 0
        for length in self.lengths:
            if codes:
                sketch = vq.sketches(codes, places)[:, -length:]
            place = torch.arange(first, first + length, device=condition.device)
            seen, past = self.body.extend(self._tokens(condition, length, sketch), place, past)
            codes.append((self.head(seen) + noise[:, first : first + length]).argmax(-1))
            first += length
        return codes

    def _tokens(self, condition: Tensor, length: int, sketch: Tensor | None) -> Tensor:
        told = self.start(condition)[:, None].expand(-1, length, -1)
        if sketch is None or self.sketch is None:
            return told
        return self.sketch(sketch) + told if self.everywhere else self.sketch(sketch)


# --- losses


def returns_to_go(until: Tensor, horizon: int, stride: int, discount: float) -> Tensor:
    """R float64[B, T] = gamma^(steps left), 1 from the goal on, for goals `until` [B] environment steps ahead."""
    left = until[:, None] - stride * torch.arange(horizon, device=until.device)
    return discount ** left.clamp(min=0).double()


def condition_loss(first: Tensor, wanted: Tensor) -> Tensor:
    """L_cond: squared length of the first decoded (R, s) [B, 1 + O] less the one at hand, averaged over rows."""
    return (first - wanted).square().sum(-1).mean()


def blended(logits: Tensor, gumbel: Tensor, vq: ScaleVQ, places: int, temperature: float) -> Tensor:
    """Z [B, T, C] of codes blended by softmax((logits + gumbel) / temperature), both [B, sum of l, V]."""
    vectors = ((logits + gumbel) / temperature).softmax(-1) @ vq.codebook.to(logits.dtype)
    return torch.stack([fine(part, places) for part in vectors.split(list(vq.lengths), 1)]).sum(0)


def gumbel_noise(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """-log(-log u) of uniform u from `generator`, on that one's device; with dtype and device of `like`."""
    place = like.device if generator is None else generator.device
    u = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device=place)
    return -(-u.clamp(min=LEAST).log()).log().to(like)


# --- acting


class CoarseToFine(Level):
    """(s, g) -> the first action of a plan, in [-1, 1]."""

    name = "policy"

    def __init__(self, agent: MAGE):
        self.agent = agent
        self.generator = torch.Generator().manual_seed(ACT_SEED)

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        goal = features["goal"] if parent is None else parent
        return Decision(self.agent.act(features["observation"], goal, self.generator))


class MAGE(DrawingAgent):
    """A quantising autoencoder of trajectories, a planner of its codes, inverse dynamics, and the return to ask for."""

    Config = MAGEConfig

    def __init__(self, config: MAGEConfig, spec: DataSpec):
        super().__init__()
        self.config, hidden, channels = config, config.autoencoder_hidden, config.code_dim
        state, condition = spec.observation_dim, 1 + 2 * spec.observation_dim
        self.states = Range(state)
        self.encoder = TimeConv([1 + state, *hidden, channels])
        self.decoder = TimeConv([channels, *reversed(hidden), 1 + state])
        self.vq = ScaleVQ(config.scales, config.codes, channels, config.code_decay)
        self.planner = Planner(config, condition)
        self.adapter = TimeConv([channels + 1 + state, hidden[-1], channels])
        self.inverse = MLP([config.horizon * channels, *config.inverse_hidden, spec.action_dim])
        self.aim = MLP([2 * state, *config.aim_hidden, 1])
        self.quantised: Quantised | None = None  # in this step, for the codes
        self.generator = torch.Generator().manual_seed(config.seed)

    # --- learning

    def prepare(self, batch: Batch) -> Batch:
        """Scaled `trajectories` [B, T, 1 + O] that stay at their goals, `goals` [B, O], `gumbel`."""
        check_windows(batch)
        c, states, until = self.config, batch["observations"], batch["until"]
        self.states.update(states.flatten(0, 1))
        returns = returns_to_go(until, c.horizon, c.stride, c.discount).to(states)
        there = (until[:, None] <= c.stride * torch.arange(c.horizon, device=until.device))[..., None]
        scaled = self.states(torch.where(there, batch["goals"], states))
        trajectories = torch.cat([2 * returns[..., None] - 1, scaled], -1)
        gumbel = gumbel_noise((len(states), sum(c.scales), c.codes), self.generator, states)
        made = {"trajectories": trajectories, "goals": self.states(batch["goals"][:, 0]), "gumbel": gumbel}
        return {"actions": batch["actions"][:, 0], **made}

    def autoencoder_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean squared error of what the codes decode to, and the encoder's distance to them."""
        f = self.encoder(batch["trajectories"])
        quantised = self.quantised = self.vq.encode(f)
        error = (self.decoder(self.vq.straight_through(f, quantised)) - batch["trajectories"]).square().mean()
        commitment = self.vq.commitment(f, quantised)
        used = {f"codes/used_{k}": x for k, x in enumerate(self.vq.usage(quantised.codes), 1)}
        metrics = {"autoencoder/error": error.detach(), "autoencoder/commitment": commitment.detach()}
        return error + self.config.commitment_weight * commitment, metrics | used

    def planner_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy of all codes, L_cond through codes that are blended, and the squared error of a_0."""
        c = self.config
        first = batch["trajectories"][:, 0]
        with torch.no_grad():
            quantised = self.vq.encode(self.encoder(batch["trajectories"]))
            sketches = self.vq.sketches(quantised.codes, c.horizon) if len(c.scales) > 1 else None
        logits = self.planner(torch.cat([first, batch["goals"]], 1), sketches)
        entropy = F.cross_entropy(logits.flatten(0, 1), torch.cat(quantised.codes, 1).flatten())
        z = blended(logits, batch["gumbel"], self.vq, c.horizon, c.relaxation)
        condition = condition_loss(self.decoded(z, first)[:, 0], first)
        action = self.inverse(quantised.sums[-1].flatten(1))
        inverse = (action - batch["actions"]).square().mean()
        terms = {"cross_entropy": entropy, "condition": condition, "inverse": inverse}
        loss = entropy + c.condition_weight * condition + inverse
        return loss, {f"planner/{name}": term.detach() for name, term in terms.items()}

    def aim_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile regression of the return from the first state to the goal."""
        first = batch["trajectories"][:, 0]
        asked = self.aim(torch.cat([first[:, 1:], batch["goals"]], 1))[:, 0]
        error = first[:, 0] - asked
        return expectile_loss(error, error, self.config.aim_expectile).mean(), {"aim/mean": asked.detach().mean()}

    def updates(self) -> tuple[Update, ...]:
        lr = self.config.lr
        coders, planners = (self.encoder, self.decoder), (self.planner, self.adapter, self.inverse)
        return (
            Update("autoencoder", self.autoencoder_loss, coders, lr, until=self.coded()),
            Update("planner", self.planner_loss, planners, lr, schedule=half_cosine(self.config.updates)),
            Update("aim", self.aim_loss, (self.aim,), lr, schedule=half_cosine(self.config.updates)),
        )

    def coded(self) -> int:
        """The last update in which autoencoder and codes move."""
        return math.ceil(self.config.coding * self.config.updates)

    def commit(self, aux: Metrics) -> None:
        """The codes move to what the autoencoder's update quantised, if there was one."""
        if self.quantised is not None:
            self.vq.learn(self.quantised, self.generator)
            self.quantised = None

    # --- acting

    def decoded(self, z: Tensor, first: Tensor) -> Tensor:
        """D'(Z, R_0, s_0): a scaled trajectory [B, T, 1 + O] from Z [B, T, C] that begins at `first` [B, 1 + O]."""
        told = first[:, None].expand(-1, z.shape[1], -1)
        return self.decoder(z + self.adapter(torch.cat([z, told], -1)))

    def condition(self, observation: Tensor, goal: Tensor) -> Tensor:
        """(R_0, s_0, g) [B, 1 + 2 O], scaled, with the return that is asked for."""
        seen = torch.cat([self.states(observation), self.states(goal)], -1)
        return torch.cat([self.aim(seen).clamp(-1, 1), seen], -1)

    @torch.no_grad()
    def plan(self, observation: Tensor, goal: Tensor, generator: torch.Generator | None) -> Tensor:
        """Z [B, T, C]: the sum of the codes of a plan from `observation` to `goal` [B, O]."""
        c, condition = self.config, self.condition(observation, goal)
        noise = c.temperature * gumbel_noise((1, sum(c.scales), c.codes), generator, condition)
        return self.vq.decode(self.planner.generate(self.vq, condition, noise, c.horizon), c.horizon)

    @torch.no_grad()
    def act(self, observation: Tensor, goal: Tensor, generator: torch.Generator | None) -> Tensor:
        """The first action [B, A] of a plan, in [-1, 1]."""
        return self.inverse(self.plan(observation, goal, generator).flatten(1)).clamp(-1, 1)

    def levels(self) -> tuple[Level, ...]:
        return (CoarseToFine(self),)

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        """The return that is asked for."""
        return {"aim": (self.condition(observation, goal)[:, 0] + 1) / 2}


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size, with another baseline."""
    from echelon.systems.offline.decision_transformer import DecisionTransformerConfig
    from echelon.systems.offline.recipes import arm, recipe

    size, env, source = "published" if full else "cpu", "pointmaze-large-navigate-v0", "arXiv 2602.23770"
    config = recipe(MAGEConfig, env, size)
    assert isinstance(config, MAGEConfig)
    mage = Score(arm(MAGEConfig, env, size), success)
    single = arm(MAGEConfig, env, size, "SINGLE-SCALE", scales=config.scales[-1:])
    same: dict[str, Any] = {"updates": config.updates, "batch_size": config.batch_size, "lr": config.lr}
    sequence = arm(DecisionTransformerConfig, env, size, **same)
    found = [
        Claim(
            id="coarse-to-fine",
            text="On pointmaze-large-navigate plans of all scales succeed more often than plans of the finest scale "
            "alone after as many updates on as large batches.",
            method=mage,
            baseline=Score(single, success),
            test=Above(0),
            source=source,
        )
    ]
    if full:
        found.append(
            Claim(
                id="above-decision-transformer",
                text="On pointmaze-large-navigate MAGE succeeds more often than Decision Transformer after as many "
                "updates at the same rate on as large batches.",
                method=mage,
                baseline=Score(sequence, success),
                test=Above(0),
                source=source,
            )
        )
    return tuple(found)
