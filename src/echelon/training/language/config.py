"""Configuration of a language agent's run: the model and its warm start, the games of an iteration, the update."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Literal

from echelon.losses.aggregate import Mode
from echelon.training.config import RunConfig

_NUMBER = re.compile(r"[a-z_]+=-?\d+(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(RunConfig):
    """What every run of a language agent has. One update of `updates` is an iteration: collect episodes, optimise."""

    env: str = "alfworld"
    """Text world: alfworld (its engine on synthetic scenes), textcraft, reasoning."""
    kinds: tuple[str, ...] = ()
    """Kinds of tasks of the world; all of them when empty."""
    eval_kinds: tuple[str, ...] = ()
    """Kinds of the evaluation, such as one that no training meets; as `kinds` when empty."""
    limit: int = 20
    """Steps after which an episode is cut off."""
    options: tuple[str, ...] = ()
    """Options of the world, such as receptacles=8 distractors=4."""
    updates: int = 150
    """Iterations."""
    tokens: int = 0
    """Tokens that are read and emitted in training: the iteration that reaches them is the last; 0 for no bound."""
    eval_every: int = 10
    """Iterations between evaluations; the reported score is the mean over the last three."""
    eval_episodes: int = 32
    """Evaluation episodes for each kind of task."""
    log_every: int = 1
    """Iterations between lines of metrics."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""

    model: str = "tiny"
    """tiny (from scratch, on the world's words), smollm2, or the path of a Hugging Face causal model."""
    layers: int = 4
    """Layers of a tiny model."""
    width: int = 128
    """Width of a tiny model."""
    context: int = 1024
    """Tokens that a tiny model can read."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's weights in memory; in bfloat16 only adapters can be trained, which stay float32."""
    warm_episodes: int = 2_000
    """Episodes of the scripted expert that the model imitates first; 0 for none."""
    warm_slips: float = 0.2
    """Share of the expert's actions that are random ones instead, so that reinforcement has something to gain."""
    warm_epochs: int = 3
    """Passes over the expert's episodes."""
    warm_lr: float = 2e-3
    """AdamW's learning rate of the imitation, falling linearly to 0."""
    warm_batch: int = 8
    """Episodes a step of the imitation."""
    warm_reading: float = 1.0
    """Weight of a token that the world says, in the imitation of a tiny model, beside 1 of the agent's own."""
    warm_seed: int = 0
    """Seed of the warm start; all arms and seeds of a comparison share one."""
    warm_lora: int = 0
    """Rank of the adapters that the imitation trains, which then become part of the weights; 0: the weights."""
    warm_valid: float = 0.0
    """Share of valid actions at which the imitation ends; 0: it never looks, and takes all its passes."""
    warm_check: int = 25
    """Steps of the imitation between looks at that share."""
    warm_check_episodes: int = 16
    """Episodes of such a look."""

    tasks: int = 16
    """Tasks an iteration (published: 16)."""
    group: int = 8
    """Episodes of each task (published: 8)."""
    max_tokens: int = 24
    """Tokens that a turn may emit."""
    temperature: float = 1.0
    """Of sampling in training; log-probabilities are those of the tempered distribution."""
    eval_temperature: float = 0.4
    """Of sampling in evaluation; 0 is greedy (published: 0.4)."""
    invalid_penalty: float = 0.01
    """Subtracted from the reward of a turn whose action is not understood (published: 0.1 where success pays 10)."""

    lora: int = 0
    """Rank of the adapters that are trained in place of the model's weights; 0: the weights themselves."""
    recompute: bool = False
    """Whether a layer's activations are computed once more in the backward pass instead of kept."""
    lr: float = 1e-4
    """AdamW's learning rate (published, for 1.5 B and more: 1e-6)."""
    minibatches: int = 2
    """Optimiser steps an iteration, each on a share of the groups."""
    clip_low: float = 0.2
    """PPO's clip from below."""
    clip_high: float = 0.2
    """PPO's clip from above."""
    dual_clip: float = 3.0
    """Bound of the loss where the advantage is negative."""
    kl: float = 0.01
    """Weight of the KL divergence from the warm start; 0 keeps no reference."""
    entropy: float = 0.001
    """Weight of the entropy bonus."""
    aggregation: Mode = "token-mean"
    """How token losses are weighed into one."""
    clip_norm: float = 1.0
    """Bound of the gradient's norm."""
    token_budget: int = 2_048
    """Tokens of a micro-batch; changes memory and speed, no number but by rounding."""
    batch: int = 64
    """Calls that are sampled together; changes speed alone."""
    workers: int = 0
    """Processes for the worlds, which find out those that hang; 0: the run's own, the same numbers."""

    @property
    def world(self) -> dict[str, int | float]:
        """What the world is built with."""
        pairs = [option.partition("=") for option in self.options]
        return {"limit": self.limit, **{name: json.loads(value) for name, _, value in pairs}}

    @property
    def turn_tokens(self) -> int:
        """Tokens that a turn may emit, whatever else an agent writes beside its action included."""
        return self.max_tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in self.options:
            self.require("options", _NUMBER.fullmatch(option) is not None, "NAME=NUMBER each")
        for name in ("limit", "layers", "width", "context", "warm_epochs", "warm_batch", "tasks", "group", "max_tokens",
                     "minibatches", "token_budget", "batch", "warm_check", "warm_check_episodes"):  # fmt: skip
            self.require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warm_episodes", "warm_reading", "tokens", "lora", "warm_lora", "workers", "kl", "entropy",
                     "temperature", "eval_temperature", "invalid_penalty"):  # fmt: skip
            self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("lr", "warm_lr", "clip_norm"):
            self.require(name, 0 < getattr(self, name) < math.inf, "positive")
        self.require("width", self.width % 32 == 0, "a multiple of 32, the size of a head")
        self.require("warm_valid", 0 <= self.warm_valid < 1, "in [0, 1)")
        bare = self.lora == 0 or (self.warm_episodes > 0 and self.warm_lora == 0)
        self.require("dtype", self.dtype == "float32" or not bare, "float32, unless adapters alone are trained, here "
                     "and in the warm start (lora and warm_lora of 1 or more): bfloat16 loses small steps")  # fmt: skip
        self.require("warm_slips", 0 <= self.warm_slips < 1, "in [0, 1)")
        self.require("minibatches", self.minibatches <= self.tasks, f"at most tasks, {self.tasks}")
        self.require("temperature", self.temperature > 0, "positive: a greedy policy explores nothing")
