"""What a trainable system is: an `Agent` with ordered `Update`s, and the step that applies them.

One training step is: `prepare` the batch (no gradient), then every due update in order (loss, gradients, targets,
optimiser), then `commit`. A later update sees the weights that an earlier one moved.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from echelon.errors import CheckpointError
from echelon.hierarchy.level import Level
from echelon.training import checkpoint
from echelon.training.adam import Adam
from echelon.training.config import Config, RunConfig
from echelon.training.runtime import Runtime
from echelon.training.trainer import Trainable, Trainer

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class DataSpec:
    """Sizes that an agent's networks need: `observation_dim` (goals have the same) and `action_dim`.

    `goal_dim` is the size of goals apart from observations, where the data have such; most systems have no use for it.
    """

    observation_dim: int
    action_dim: int
    goal_dim: int | None = None


@dataclass(frozen=True)
class Polyak:
    """target <- rate * online + (1 - rate) * target, with the online weights from before the optimiser's step."""

    online: nn.Module
    target: nn.Module
    rate: float


@dataclass(frozen=True)
class Update:
    """One optimiser step: `loss(batch) -> (scalar, metrics)` on the parameters of `modules`.

    It runs at every `every`-th training step, `repeat` times, up to the step `until` (None: always). `targets` move
    between the gradient and the step.
    `schedule` maps a training step (from 1) to the factor of `lr` there; None: 1 always.
    `clip_norm` is the largest norm of the gradient, of all parameters together: a longer one is scaled down to it.
    """

    name: str
    loss: Callable[[Batch], tuple[Tensor, Metrics]]
    modules: Sequence[nn.Module]
    lr: float
    targets: Sequence[Polyak] = ()
    every: int = 1
    repeat: int = 1
    schedule: Callable[[int], float] | None = None
    clip_norm: float | None = None
    until: int | None = None


def half_cosine(updates: int) -> Callable[[int], float]:
    """A schedule that falls from 1 at the first of `updates` steps to 0 after the last, along half a cosine."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * (step - 1) / updates))


class LearningAgent(nn.Module, Trainable, ABC):
    """Networks with ordered updates, wherever the batches come from."""

    @abstractmethod
    def updates(self) -> tuple[Update, ...]:
        """The ordered updates of one training step."""

    def prepare(self, batch: Batch) -> Batch:
        """Turn what the source delivered into what the losses read (credit, learned rewards); runs without gradient."""
        return batch

    def commit(self, aux: Metrics) -> None:
        """Change state outside the optimisers (queues, multipliers, counters) after the step's last update."""


A = TypeVar("A", bound=LearningAgent)


class Agent(LearningAgent):
    """Base of systems that train offline. Subclasses are final: they add networks and implement what is abstract."""

    Config: ClassVar[type[Config]]
    goal_dim: int | None = None
    """Size of the goals that it wants from worlds, where these are goals apart from observations."""

    @classmethod
    def trainer(cls) -> type[Trainer]:
        """The offline loop."""
        from echelon.training.offline import OfflineRun

        return OfflineRun

    @abstractmethod
    def levels(self) -> tuple[Level, ...]:
        """The acting hierarchy, top level first, greedy."""

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        """Named goal-conditioned values [B] for observation [B, O], goal [B, O or G]; empty for systems without any."""
        return {}

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor | None:
        """The states [B, O] among `candidates` [C, O] that the top level asks for; None without such a level."""
        return None


@dataclass
class Learner:
    """Applies an agent's updates: owns its optimisers and knows the fast path of this machine."""

    agent: LearningAgent
    runtime: Runtime
    updates: tuple[Update, ...] = field(init=False)
    optimizers: dict[str, Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.updates = self.agent.updates()
        self.optimizers = {u.name: self.runtime.adam(_parameters(u.modules), u.lr) for u in self.updates}
        self._targets = {u.name: [_pairs(p) for p in u.targets] for u in self.updates}

    def step(self, step: int, batch: Batch) -> Metrics:
        """Do training step number `step` (from 1); returns metrics as tensors, so nothing waits for the device."""
        aux: Metrics = {}
        with torch.no_grad():
            batch = self.agent.prepare(batch)
        for update in self.updates:
            if step % update.every or (update.until is not None and step > update.until):
                continue
            optimizer = self.optimizers[update.name]
            if update.schedule is not None:
                for group in optimizer.param_groups:
                    group["lr"] = update.lr * update.schedule(step)
            for _ in range(update.repeat):
                with self.runtime.autocast():
                    loss, metrics = update.loss(batch)
                optimizer.clear()
                loss.backward()
                for polyak, (targets, sources) in zip(update.targets, self._targets[update.name], strict=True):
                    self.runtime.lerp_(targets, sources, polyak.rate)
                optimizer.move(update.clip_norm)
            aux[f"loss/{update.name}"] = loss.detach()
            aux.update(metrics)
        with torch.no_grad():
            self.agent.commit(aux)
        return aux

    def state_dict(self) -> dict[str, Any]:
        """Optimiser states by update name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])


def build_agent(cls: type[A], config: RunConfig, sizes: Any) -> A:
    """Build the networks for the sizes of data or a world, with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return cls(config, sizes)


def load_weights(agent: LearningAgent, found: checkpoint.Checkpoint) -> None:
    """Copy a checkpoint's weights into `agent`. Raises CheckpointError when they are those of other networks."""
    weights = {k.removeprefix("agent."): v for k, v in found.tensors.items() if k.startswith("agent.")}
    try:
        agent.load_state_dict(weights)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f"{found.path}: the weights are not those of this configuration: {reasons[0]}") from error


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return list({id(p): p for module in modules for p in module.parameters() if p.requires_grad}.values())


def _pairs(polyak: Polyak) -> tuple[list[Tensor], list[Tensor]]:
    return [p.data for p in polyak.target.parameters()], [p.data for p in polyak.online.parameters()]
