"""MoCapAct: one policy distilled from many experts of short clips, through a latent that can be commanded afterwards.

Idea: each clip of motion has an expert of its own that follows it. A recurrent encoder sees the clip's next frames and
says a latent, from which a decoder makes the action that the clip's expert would have taken; a prior keeps latents near
N(0, I). What is left is one policy that tracks all clips, and a decoder that turns any plausible latent into plausible
motion: the low level of whoever learns a new task (`mocapact-transfer`).
Source: arXiv 2208.07363 and its released code (github.com/microsoft/MoCapAct), the distillation; neural probabilistic
motor primitives (NPMP, arXiv 1811.11711).
Levels: `latent`, the encoder: (state, next frames of the clip, latent before) -> latent, every step > `action`, the
decoder: (state, latent) -> action, every step. Greedy: means, after the latent 0 where an episode begins.
Shares with other systems: windows of data, the recurrent encoder and the decoder (`nets.latents`), exponential weights.
Options: `weighting` is "bc" (every row alike), "cwr" (by the return of the row's clip), "awr" (by its advantage) or
"rwr" (value plus advantage; the released command). `rho` is that of the released command, 0; the class default was .95.
Deviations: NPMP distillation on metaworld's scripted experts, not on the MoCapAct data, which are a download: clips are
what the scripts do without noise, and advantages come from returns, not from a critic. Frames are shown as differences
from the present state. Where the data have no `references`, the clip is the episode itself; without `mean_actions` the
actions are cloned as they were; where the world shows no "reference", all coming frames are the goal. Sequences begin
anywhere and are shorter where their episode ends. States are standardised by running moments. Activations are ELU, with
layer norms in the decoder alone. No GPT for the completion of motions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from echelon.claims import Above, AtLeast, Claim, Score, success
from echelon.data.clips import ClipSource
from echelon.data.store import Store
from echelon.data.windows import WindowSpec, check_windows
from echelon.errors import DataError
from echelon.hierarchy.latents import DecodeLevel
from echelon.hierarchy.level import Decision, Features, Level
from echelon.losses.weights import exponential_weights
from echelon.nets.entities import EntityNorm
from echelon.nets.latents import LatentDecoder, LatentEncoder, prior_kl
from echelon.training.agent import Batch, DataSpec, Metrics, Update
from echelon.training.config import Config
from echelon.training.drawing import DrawingAgent
from echelon.training.offline import OfflineRun
from echelon.training.runtime import Runtime
from echelon.training.trainer import Trainer

Weighting = Literal["bc", "cwr", "awr", "rwr"]
SCORES = {"cwr": ("clip_returns",), "awr": ("advantages",), "rwr": ("values", "advantages")}
"""Columns whose sum a row is weighted by."""
TEMPERATURES = {"cwr": 0.2, "awr": 8.0, "rwr": 4.0}
"""The published ones, in units of the reward for tracking, which is 1 at most."""
BESIDE = ("mean_actions", "references")
"""Columns that are read beside observations and actions, where the data have them."""


@dataclass(frozen=True, kw_only=True)
class MoCapActConfig(Config):
    """Defaults: the released command that distils the multi-clip policy, but for `weighting` (there: rwr)."""

    system: ClassVar[str] = "mocapact"
    env: str = "metaworld-experts-v0"
    """Environment and data set."""
    updates: int = 100_000
    """Gradient steps (released: 100 k)."""
    batch_size: int = 256
    """Sequences a batch (released: 256)."""
    lr: float = 5e-4
    """Adam's learning rate (released: 5e-4)."""
    clip_norm: float = 1.0
    """Bound of the gradient's norm (released: 1)."""
    sequence: int = 30
    """T: steps of a sequence, through which gradients pass (released: 30)."""
    frames: int = 5
    """K: frames of the clip that the encoder sees, those of the next 1, …, K steps (released: 5)."""
    latent: int = 60
    """Numbers of a latent (released: 60; 20 for locomotion alone)."""
    encoder_hidden: tuple[int, ...] = (1024, 1024)
    """Hidden layers of the encoder (released: 1024, 1024)."""
    decoder_hidden: tuple[int, ...] = (1024, 1024, 1024)
    """Hidden layers of the decoder (released: 1024 three times)."""
    beta: float = 0.1
    """Weight of the divergence from the prior (released: .1)."""
    rho: float = 0.0
    """How much of the latent before the prior keeps (released command: 0; class default: .95)."""
    action_std: float = 0.1
    """Standard deviation of the decoder's actions, as the loss sees them (released: .1)."""
    weighting: Weighting = "bc"
    """What rows are weighted by."""
    temperature: float | None = None
    """Temperature of the weights; the published one of the weighting when absent (cwr .2, awr 8, rwr 4)."""
    weight_cap: float | None = None
    """Largest weight, where one is set."""

    def __post_init__(self) -> None:
        for name in ("sequence", "frames", "latent"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("encoder_hidden", "decoder_hidden"):
            sizes = getattr(self, name)
            self.require(name, bool(sizes) and min(sizes) >= 1, "one or more sizes of at least 1")
        self.require("clip_norm", 0 < self.clip_norm < math.inf, "positive")
        self.require("beta", 0 <= self.beta < math.inf, "0 or more")
        self.require("rho", 0 <= self.rho < 1, "at least 0 and below 1")
        self.require("action_std", 0 < self.action_std < math.inf, "positive")
        self.require("weighting", self.weighting in get_args(Weighting), f"one of {', '.join(get_args(Weighting))}")
        for name in ("temperature", "weight_cap"):
            given = getattr(self, name)
            self.require(name, given is None or 0 < given < math.inf, "positive, or absent")
        super().__post_init__()

    def goals(self) -> dict[str, WindowSpec]:
        """Sequences that begin anywhere, and the steps behind them whose frames are seen at their end."""
        return {"clip": WindowSpec(steps=self.sequence + self.frames, anchor="first")}


class EncodeLevel(Level):
    """(state, next frames of the clip) -> latent; its memory [S, D] is the latent before, 0 where an episode begins."""

    name = "latent"

    def __init__(self, agent: MoCapAct):
        self.agent = agent

    def start(self, streams: int) -> Tensor:
        return torch.zeros(streams, self.agent.config.latent, device=self.agent.frames.mean.device)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Features, Tensor | None]:
        assert memory is not None
        state = obs["observation"]
        shown = obs["reference"] if "reference" in obs else obs["goal"].repeat(1, self.agent.config.frames)
        latent = self.agent.latent(state, shown, memory)
        return {"latent": latent}, latent

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(features["latent"])


class ClipRun(OfflineRun):
    """A run from data with columns of their own: mean actions, the clips' frames, and weights of rows."""

    @classmethod
    def batches(cls, config: MoCapActConfig, inputs: Store, runtime: Runtime) -> ClipSource:
        """Sequences of all that the loss reads."""
        columns = {name: torch.as_tensor(inputs.columns[name]) for name in BESIDE if name in inputs.columns}
        if config.weighting != "bc":
            columns["weights"] = row_weights(inputs, config)
        return ClipSource(inputs, config.goals()["clip"], config.batch_size, config.seed, runtime.device, columns)


class MoCapAct(DrawingAgent):
    """An encoder and a decoder of latents."""

    Config = MoCapActConfig

    def __init__(self, config: MoCapActConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        size = spec.observation_dim
        self.frames = EntityNorm([(1, config.frames * size)], least_std=1e-3)
        self.encoder = LatentEncoder((1 + config.frames) * size, config.encoder_hidden, config.latent)
        self.decoder = LatentDecoder(size, config.latent, config.decoder_hidden, spec.action_dim)
        self.generator = torch.Generator().manual_seed(config.seed)

    @classmethod
    def trainer(cls) -> type[Trainer]:
        """The offline loop, with the columns of clips."""
        return ClipRun

    def prepare(self, batch: Batch) -> Batch:
        """Sequences with time first: `states` [T, B, O], `frames` [T, B, K O] less the state, `means` [T, B, A], `real`
        and `weights` [T, B]; the draws `start` [B, D] and `noise` [T, B, D]."""
        check_windows(batch)
        c, observations = self.config, batch["observations"]
        states = observations[:, : c.sequence]
        clip = batch.get("references", observations)
        frames = clip[:, 1:].unfold(1, c.frames, 1).transpose(2, 3) - states[:, :, None]
        frames = frames.flatten(2)
        self.decoder.norm.update(states[:, 0])
        self.frames.update(frames[:, 0])
        real = batch["real"].to(states)
        sequences = {
            "states": states,
            "frames": frames,
            "means": batch.get("mean_actions", batch["actions"])[:, : c.sequence],
            "real": real[:, : c.sequence],
            "weights": batch.get("weights", torch.ones_like(real))[:, : c.sequence],
        }
        noise = torch.randn(c.sequence + 1, len(states), c.latent, generator=self.generator).to(states)
        return {name: x.transpose(0, 1) for name, x in sequences.items()} | {"start": noise[0], "noise": noise[1:]}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean over real steps of -w log N(mean action; decoder(s, z), std^2) + beta KL(q || prior)."""
        c, states, real = self.config, batch["states"], batch["real"]
        latents = self.encoder(self._seen(states, batch["frames"]), batch["start"], batch["noise"])
        error = batch["means"] - self.decoder(states, latents.z)
        log_prob = gaussian_log_prob(error, c.action_std)
        kl = prior_kl(latents.mean, latents.std, latents.before, c.rho)
        steps = real.sum()
        loss = ((c.beta * kl - batch["weights"] * log_prob) * real).sum() / steps
        mean = latents.mean.detach()
        metrics = {
            "distil/log_prob": (log_prob.detach() * real).sum() / steps,
            "distil/error": (error.detach().square().mean(-1) * real).sum() / steps,
            "latent/kl": (kl.detach() * real).sum() / steps,
            "latent/spread": mean.square().mean().sqrt(),
            "latent/noise": latents.std.detach().mean(),
        }
        return loss, metrics

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        return (Update("distil", self.loss, (self.encoder, self.decoder), c.lr, clip_norm=c.clip_norm),)

    def latent(self, state: Tensor, shown: Tensor, before: Tensor) -> Tensor:
        """The mean latent [B, D] for states [B, O], frames of a clip [B, K' O] of which the first K are seen, and the
        latents before [B, D]. ValueError where fewer are shown."""
        wanted = self.config.frames * state.shape[-1]
        if shown.shape[-1] < wanted:
            raise ValueError(f"sizes differ: {shown.shape[-1]} numbers of frames are shown, the encoder reads {wanted}")
        frames = shown[:, :wanted] - state.repeat(1, self.config.frames)
        return self.encoder.step(self._seen(state, frames), before)[0]

    def _seen(self, states: Tensor, frames: Tensor) -> Tensor:
        return torch.cat([self.decoder.norm(states), self.frames(frames)], -1)

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor:
        """A latent stands for the clip's next frame, the goal where no clip is shown: the candidate nearest to it."""
        return candidates[torch.cdist(self.decoder.norm(goal), self.decoder.norm(candidates)).argmin(1)]

    def levels(self) -> tuple[Level, ...]:
        return EncodeLevel(self), DecodeLevel(self.decoder)


def gaussian_log_prob(error: Tensor, std: float) -> Tensor:
    """log N(error; 0, std^2 I) [...] of errors [..., A]."""
    size = error.shape[-1]
    return -0.5 * error.square().sum(-1) / std**2 - size * (math.log(std) + 0.5 * math.log(2 * math.pi))


def row_weights(store: Store, config: MoCapActConfig) -> Tensor:
    """The weights of a data set's rows [rows], with mean one over its transitions. DataError without their columns."""
    names = SCORES[config.weighting]
    missing = [name for name in names if name not in store.columns]
    if missing:
        has = ", ".join(sorted(store.columns))
        raise DataError(f"weighting {config.weighting} needs the column '{missing[0]}'; '{store.name}' has {has}")
    score = sum((torch.as_tensor(store.columns[name]).double() for name in names), torch.zeros(store.rows).double())
    temperature = TEMPERATURES[config.weighting] if config.temperature is None else config.temperature
    transition = ~torch.as_tensor(store.columns["terminals"]).bool()
    found = torch.zeros_like(score)
    found[transition] = exponential_weights(score[transition], temperature, config.weight_cap)
    return found.float()


def late_metric(run: Any, name: str) -> np.ndarray:
    """Statistic of a claim: the last value of a metric of the training, in its own unit, []. DataError without one."""
    found = [row[name] for row in run.metrics if row["kind"] == "train" and row.get(name) is not None]
    if not found:
        raise DataError(f"{getattr(run, 'path', 'run')}: no finite metric '{name}' of the training")
    return np.array(found[-1])


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size, with what takes more arms."""
    from echelon.systems.offline.recipes import arm

    size, good, bad = "published" if full else "cpu", "metaworld-experts-v0", "metaworld-corrupted-v0"
    source = "arXiv 2208.07363"
    cloned = Score(arm(MoCapActConfig, good, size), success)
    by_clip = Score(arm(MoCapActConfig, bad, size, "CWR", weighting="cwr"), success)
    alike = Score(arm(MoCapActConfig, bad, size, "BC"), success)
    found = (
        Claim(
            id="tracks-held-out-clips",
            text="The distilled policy does the task in 90 % or more of clips of metaworld that it has not seen, all "
            "of which their experts do.",
            method=cloned,
            test=AtLeast(90),
            source=source,
        ),
        Claim(
            id="clip-weights-above-cloning",
            text="Where every second expert is bad, weights by the return of clips lead to success in more held-out "
            "clips than weights that are all alike, by 10 points or more.",
            method=by_clip,
            baseline=alike,
            test=Above(10),
            source=source,
        ),
    )
    by_advantage = Score(arm(MoCapActConfig, bad, size, "AWR", weighting="awr"), success)
    spread = partial(late_metric, name="latent/spread")
    strong = arm(MoCapActConfig, good, size, "beta 1", beta=1.0)
    more = (
        Claim(
            id="advantage-weights-above-cloning",
            text="Where every second expert is bad, weights by advantages lead to more success than weights that are "
            "all alike.",
            method=by_advantage,
            baseline=alike,
            test=Above(0),
            source=source,
        ),
        Claim(
            id="clip-weights-above-advantage-weights",
            text="Where every second expert is bad, weights by the return of clips lead to more success than weights "
            "by advantages.",
            method=by_clip,
            baseline=by_advantage,
            test=Above(0),
            source=source,
        ),
        Claim(
            id="strong-prior-collapses",
            text="With beta 1 mean latents spread less than with the weight of record: less is said of the clip.",
            method=Score(cloned.arm, spread),
            baseline=Score(strong, spread),
            test=Above(0.1),
            source=source,
        ),
    )
    return (*found, *more) if full else found
