"""DQN: Q-learning with a deep network, without a hierarchy; and the part that hierarchical systems value choices by.

Idea: a network regresses on the reward plus the discounted value of the next state's best action, from replayed steps
and a copy of itself that moves slowly. Double: the network picks that action, its copy values it. Dueling: value and
advantages have heads of their own.
Source: Nature 518, 529 (2015); double: arXiv 1509.06461; dueling: arXiv 1511.06581.
Levels: one policy, a decision every environment step; the flat baseline of systems that choose among options or goals.
Shares with them: `DeepQ`, whose rows may span any time, since each brings its own discount; `QLevel`; with SAC the
replay agent.
Deviations: Adam in place of RMSProp; features through dense layers, as no images are read; without hidden layers and
with states for observations it is the table of values, regressed on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.credit.options import option_value
from echelon.envs.spaces import Spaces
from echelon.hierarchy.diagnostics import VALUE
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Every, Termination
from echelon.nets.mlp import MLP
from echelon.systems.online.common import Reader
from echelon.systems.online.sac import ReplayAgent, ReplayConfig
from echelon.training.agent import Batch, Metrics, Update


class DuelingMLP(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean_a A(s, a), on shared hidden layers."""

    def __init__(self, features: int, hidden: tuple[int, ...], choices: int):
        super().__init__()
        self.choices = choices
        self.heads = MLP([features, *hidden, 1 + choices], activation=F.relu, final_scale=1e-4)

    def forward(self, features: Tensor) -> Tensor:
        """[..., choices]."""
        value, advantage = self.heads(features).split([1, self.choices], -1)
        return value + advantage - advantage.mean(-1, keepdim=True)


class DeepQ(nn.Module):
    """Values of choices with a slow copy, learning from rows of a batch.

    A batch has features and next_features [B, F], action int64 [B], reward [B], of all the time that the choice held,
    and discount [B], of what follows it: gamma^duration, 0 where the episode ended in a terminal state.
    """

    def __init__(
        self,
        features: int,
        hidden: tuple[int, ...],
        choices: int,
        *,
        double: bool = True,
        dueling: bool = False,
        rate: float = 1.0,
        copy_every: int = 1,
        largest_error: float = 1.0,
    ):
        super().__init__()
        self.choices, self.picks_itself, self.largest_error = choices, double, largest_error
        self.rate, self.copy_every = rate, copy_every
        self.q: nn.Module = (
            DuelingMLP(features, hidden, choices)
            if dueling
            else MLP([features, *hidden, choices], activation=F.relu, final_scale=1e-4)
        )
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def target(self, batch: Batch) -> Tensor:
        """[B]: r + discount · Q'(s', a'), a' the best choice of the network (double) or of its copy."""
        later = self.target_q(batch["next_features"])
        after = taken(later, self.q(batch["next_features"]).argmax(-1)) if self.picks_itself else option_value(later)
        return batch["reward"] + batch["discount"] * after

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Half the squared error, beyond `largest_error` as steep as there."""
        with torch.no_grad():
            target = self.target(batch)
        q = taken(self.q(batch["features"]), batch["action"])
        loss = F.huber_loss(q, target, delta=self.largest_error)
        return loss, {"q/loss": loss.detach(), "q/value": q.detach().mean()}

    def updates(self, lr: float, prefix: str = "", clip_norm: float | None = None) -> tuple[Update, ...]:
        """One step of the values; its name begins with `prefix`."""
        return (Update(f"{prefix}q", self.loss, (self.q,), lr, clip_norm=clip_norm),)

    def follow(self) -> None:
        """After a gradient step: at every `copy_every`-th, move the copy by `rate`."""
        self.steps += 1
        if int(self.steps) % self.copy_every == 0:
            torch._foreach_lerp_(tuple(self.target_q.parameters()), tuple(self.q.parameters()), self.rate)


class QLevel(Level):
    """Picks the choice of largest value, or with probability `epsilon()` any; None: always the largest.

    What the level above commands is part of what is read.
    """

    def __init__(
        self,
        parts: DeepQ,
        reader: Reader,
        epsilon: Callable[[], float] | None,
        name: str = "action",
        termination: Termination | None = None,
    ):
        self.name, self.parts, self.reader, self.epsilon, self.choices = name, parts, reader, epsilon, parts.choices
        self.termination = Every(1) if termination is None else termination

    def decide(self, features: object, parent: Tensor | None, due: Tensor) -> Decision:
        """A choice, int64, for each stream, and what it is worth."""
        read = self.reader(features)
        if parent is not None:
            read = torch.cat([read, parent.to(read.dtype)], -1)
        q = self.parts.q(read)
        best = q.argmax(-1)
        if self.epsilon is None:
            return Decision(best, values={VALUE: taken(q, best)})
        rows, device = len(best), best.device
        anything = torch.randint(self.parts.choices, (rows,), generator=self.generator, device=device)
        tried = torch.rand(rows, generator=self.generator, device=device) < self.epsilon()
        action = torch.where(tried, anything, best)
        return Decision(action, values={VALUE: taken(q, action)})


@dataclass(frozen=True, kw_only=True)
class EpsilonConfig(ReplayConfig):
    """What systems have that value choices from replay and explore by taking any of them."""

    slots: int = 4
    """Episodes side by side."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers, ReLU; without any, values are linear in what is observed: a table, if that is a state."""
    lr: float = 2.5e-4
    """Adam's learning rate (paper: 2.5e-4, of RMSProp)."""
    batch_size: int = 32
    """Rows of a gradient step (paper: 32)."""
    capacity: int = 100_000
    """Rows that the replay holds (paper: 1 M)."""
    random_steps: int = 1_000
    """Environment steps before anything is learned (paper: 50 k)."""
    gradient_ratio: float = 0.25
    """Gradient steps for each environment step (paper: every 4th)."""
    rate: float = 1.0
    """Share of the online network that its copy takes (paper: all)."""
    copy_every: int = 500
    """Gradient steps between moves of the copy (paper: 10 k)."""
    epsilon_start: float = 1.0
    """Probability of any choice at first (paper: 1)."""
    epsilon_end: float = 0.05
    """Probability of any choice later on (paper: 0.1)."""
    epsilon_steps: int = 10_000
    """Environment steps until then, the probability falling linearly (paper: 1 M)."""
    clip_norm: float = 10.0
    """Bound of the gradient's norm (dueling: 10)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epsilon_start", "epsilon_end"):
            self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("epsilon_steps", "copy_every"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("clip_norm", 0 < self.clip_norm < math.inf, "positive")

    def epsilon(self, seen: int) -> float:
        """The probability of any choice after so many environment steps."""
        share = min(seen / self.epsilon_steps, 1.0)
        return self.epsilon_start + share * (self.epsilon_end - self.epsilon_start)


class DQN(ReplayAgent):
    """Values of actions."""

    config: EpsilonConfig

    @dataclass(frozen=True, kw_only=True)
    class Config(EpsilonConfig):
        """Hyper-parameters of DQN."""

        system: ClassVar[str] = "dqn"
        double: bool = True
        """Whether the network picks the next action that its copy values."""
        dueling: bool = False
        """Whether value and advantages have heads of their own."""
        largest_error: float = 1.0
        """Larger errors count linearly (paper: 1)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("largest_error", 0 < self.largest_error < math.inf, "positive")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        self.parts = DeepQ(
            self.read.size,
            config.hidden,
            spaces.choices,
            double=config.double,
            dueling=config.dueling,
            rate=config.rate,
            copy_every=config.copy_every,
            largest_error=config.largest_error,
        )

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return (QLevel(self.parts, self.read, self.epsilon if explore else None),)

    def epsilon(self) -> float:
        """The probability of any action now."""
        return self.config.epsilon(int(self.seen))

    def unit(self, action: Tensor) -> Tensor:
        """Choices stay numbers."""
        return action

    def updates(self) -> tuple[Update, ...]:
        return self.parts.updates(self.config.lr, clip_norm=self.config.clip_norm)

    def commit(self, aux: Metrics) -> None:
        self.parts.follow()


def taken(values: Tensor, choice: Tensor) -> Tensor:
    """[..., O], int64 [...] → [...]: the value of each row's choice."""
    return values.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
