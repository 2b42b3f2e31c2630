"""Decision Transformer: a sequence model says the next action, given what is wanted, the states and its own actions.

Idea: to act well is to go on with a sequence in which it is told beforehand what came of it: a causal transformer
learns, by nothing but imitation, which action follows a history given what the episode then reached.
Source: arXiv 2106.01345 and its released code for continuous control (github.com/kzl/decision-transformer).
Levels: one policy, a decision every step, from the goal, the latest W states and its own actions between them.
Shares the transformer, windows (`data/windows`) and the memory of its level (`hierarchy/window`) with BESO: it is BESO
with one way to act where that one has many.
Deviations: a goal in hindsight, the same at all steps of a window, takes the place of the return-to-go; in play no
return has to be asked for. Places count from the window's first step (published: the episode's). The feed-forward parts
have GELU (published: ReLU), embeddings no norm of their own, and Adam no weight decay. Windows are shorter where an
episode begins, as published. The moments by which states are standardised and the range by which actions are scaled are
those of what was seen so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from echelon.data.windows import WindowSpec, check_windows
from echelon.hierarchy.level import Level
from echelon.hierarchy.window import WindowLevel, newest, to_front
from echelon.nets.edm import counted_mean
from echelon.nets.entities import EntityNorm
from echelon.nets.ranges import Range
from echelon.nets.transformer import Transformer, causal_mask, init_normal_
from echelon.training.agent import Batch, DataSpec, Metrics, Update
from echelon.training.config import Config
from echelon.training.drawing import DrawingAgent, drawing_from


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig(Config):
    """Defaults: the paper's for locomotion."""

    system: ClassVar[str] = "decision-transformer"
    updates: int = 100_000
    """Gradient steps."""
    batch_size: int = 64
    """Windows of an update."""
    lr: float = 1e-4
    """Adam's learning rate, after the warm-up."""
    warm_up: float = 0.1
    """Share of the updates in which the rate rises to it, in equal steps (released: 10,000 of 100,000)."""
    clip_norm: float = 0.25
    """Longest gradient."""
    window: int = 20
    """W: states that the policy sees."""
    embed_dim: int = 128
    """Dimensions of a token."""
    heads: int = 1
    """Attention heads."""
    transformer_hidden: tuple[int, ...] = (512, 512, 512)
    """Units of the feed-forward part of each layer: one number a layer."""
    dropout: float = 0.1
    """Of what each layer adds, and of attention's weights."""

    def __post_init__(self) -> None:
        for name in ("window", "embed_dim", "heads"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("heads", self.embed_dim % self.heads == 0, f"a divisor of embed_dim ({self.embed_dim})")
        layers = self.transformer_hidden
        self.require("transformer_hidden", bool(layers) and min(layers) >= 1, "one or more sizes of at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self.require("warm_up", 0 <= self.warm_up <= 1, "between 0 and 1")
        self.require("clip_norm", self.clip_norm > 0, "positive")
        super().__post_init__()

    def goals(self) -> dict[str, WindowSpec]:
        """Windows that end anywhere, and a goal after them."""
        return {"window": WindowSpec(steps=self.window)}


class NextActions(nn.Module):
    """The action after each state of a window: a causal transformer over goal, state and action of each step.

    The three tokens of a step share a place. What is said of an action stands at its state's token: it depends on no
    later step, nor on the action itself.
    """

    def __init__(self, config: DecisionTransformerConfig, spec: DataSpec):
        super().__init__()
        c, dim = config, config.embed_dim
        self.goal, self.state = (nn.Linear(spec.observation_dim, dim) for _ in range(2))
        self.action, self.head = nn.Linear(spec.action_dim, dim), nn.Linear(dim, spec.action_dim)
        self.body = Transformer(
            dim, c.heads, c.transformer_hidden, c.window, dropout=c.dropout, attention_dropout=c.dropout
        )
        self.apply(init_normal_)

    def forward(self, goals: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Goals [B, O], states [B, W, O], actions [B, W, A], the last of which nobody sees -> [B, W, A] in (-1, 1)."""
        seen, done = self.state(states), self.action(actions)
        wanted = self.goal(goals)[:, None].expand_as(seen)
        tokens = torch.stack([wanted, seen, done], 2).flatten(1, 2)[:, :-1]
        place = torch.arange(states.shape[1], device=tokens.device).repeat_interleave(3)[:-1]
        return self.head(self.body(tokens, place, causal_mask(len(place), tokens.device))[:, 1::3]).tanh()


class SequenceLevel(WindowLevel):
    """The latest states, its own actions between them, and the goal -> action in [-1, 1]."""

    name = "policy"

    def __init__(self, agent: DecisionTransformer):
        super().__init__(agent.config.window, agent.sizes, agent.actions.low.device)
        self.agent = agent

    def act(self, states: Tensor, past: Tensor, steps: Tensor, goal: Tensor) -> Tensor:
        return self.agent.follow(states, past, steps, goal)


class DecisionTransformer(DrawingAgent):
    """One network, by squared errors."""

    Config = DecisionTransformerConfig

    def __init__(self, config: DecisionTransformerConfig, spec: DataSpec):
        super().__init__()
        self.config, self.sizes = config, (spec.observation_dim, spec.action_dim)
        self.states, self.actions = EntityNorm([(1, spec.observation_dim)]), Range(spec.action_dim)
        self.network = NextActions(config, spec)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.left_out: int | None = None  # seed of what dropout leaves out in this update, if it does

    # --- learning

    def prepare(self, batch: Batch) -> Batch:
        """Scale what the network sees."""
        check_windows(batch)
        states, actions = batch["observations"], batch["actions"]
        self.states.update(states.flatten(0, 1))
        self.actions.update(actions)
        if self.config.dropout > 0:
            self.left_out = int(torch.randint(2**31 - 1, (), generator=self.generator))
        scaled = {"observations": self.states(states), "goals": self.states(batch["goals"])}
        return batch | scaled | {"actions": self.actions(actions)}

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean squared error over real steps."""
        self.network.train()
        with drawing_from(self.left_out, batch["actions"].device):
            found = self.network(batch["goals"][:, 0], batch["observations"], batch["actions"])
        loss = counted_mean((found - batch["actions"]).square(), batch["real"][..., None])
        return loss, {"sequence/real": batch["real"].float().mean()}

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        return (Update("sequence", self.loss, (self.network,), c.lr, schedule=self.warmed, clip_norm=c.clip_norm),)

    def warmed(self, step: int) -> float:
        """The factor of the learning rate at `step` (from 1)."""
        return min(step / max(self.config.warm_up * self.config.updates, 1.0), 1.0)

    # --- acting

    @torch.no_grad()
    def follow(self, states: Tensor, past: Tensor, steps: Tensor, goal: Tensor) -> Tensor:
        """The action [B, A] in [-1, 1] after `states` [B, W, O] and the actions between them, `past` [B, W - 1, A].

        `steps` int64[B]: how many of the states are real, at the end. `goal` [B, O]. Nothing here is scaled.
        """
        done = torch.cat([self.actions(past), past.new_zeros(len(past), 1, self.sizes[1])], 1)
        self.network.eval()  # dropout is for learning alone
        found = self.network(self.states(goal), to_front(self.states(states), steps), to_front(done, steps))
        return self.actions.action(newest(found, steps))

    def levels(self) -> tuple[Level, ...]:
        return (SequenceLevel(self),)
