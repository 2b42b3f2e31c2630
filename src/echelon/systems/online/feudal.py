"""FeUdal networks: a manager that points into a learned space, and a worker who is praised for going there.

Idea: the manager's goal is a direction in the space of its own states; it learns by how far the state then went that
way (transition policy gradient), without knowing what the worker does, and no gradient of the worker's reaches it.
Source: arXiv 1703.01161.
Levels: manager, a direction every step, of which the last c are summed for the worker > action, a policy over choices.
Shares with flat PPO: reader, levels around actors; its credit is `credit.options.feudal`.
Deviations: manager and worker are perceptrons on what is observed, without the (dilated) LSTMs of the paper, so that
the manager remembers its last c directions and nothing else; slots side by side in place of asynchronous actors, one
step of Adam in place of RMSProp; directions, intrinsic rewards and returns reach to the ends of an iteration's record,
the returns bootstrapped there, so that the manager learns nothing from its last c steps; no random goals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.credit.options import feudal, feudal_intrinsic, transition_cosine
from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Decision, Level
from echelon.nets.actors import Categorical
from echelon.nets.mlp import MLP
from echelon.rollout import Rollout
from echelon.spans import Spans
from echelon.systems.online.common import Reader, by_item, observed
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig


class Manager(nn.Module):
    """What is perceived [..., P] as a state [..., d], and the direction that is wanted from there, of length 1."""

    def __init__(self, perceived: int, hidden: int, size: int):
        super().__init__()
        self.space = MLP([perceived, size], activate_final=True, activation=F.relu)
        self.direction = MLP([size, hidden, size], activation=F.relu)
        self.value = MLP([size, hidden, 1], activation=F.relu)

    def forward(self, perceived: Tensor) -> tuple[Tensor, Tensor]:
        """State and direction."""
        state = self.space(perceived)
        return state, F.normalize(self.direction(state), dim=-1)


class Worker(Categorical):
    """π(a | s, w) = softmax(U(s) φ(w)): choices embedded in k numbers, φ linear without bias, so that w decides."""

    def __init__(self, perceived: int, hidden: int, size: int, choices: int, embedding: int):
        nn.Module.__init__(self)
        self.perceived, self.choices = perceived, choices
        self.embed = MLP([perceived, hidden, choices * embedding], activation=F.relu)
        self.project = nn.Linear(size, embedding, bias=False)
        self.value = MLP([perceived, hidden, 1], activation=F.relu)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., A] of what is perceived [..., P] and the summed directions [..., d], side by side."""
        perceived, pooled = features.split([self.perceived, features.shape[-1] - self.perceived], -1)
        embedded = self.embed(perceived).unflatten(-1, (self.choices, -1))
        return (embedded @ self.project(pooled).unsqueeze(-1)).squeeze(-1)


class ManagerLevel(Level):
    """Gives the sum of its last `horizon` directions; its memory [S, (c - 1) d] holds those before, latest first."""

    name = "manager"

    def __init__(self, agent: Feudal):
        self.agent = agent

    def start(self, streams: int) -> Tensor:
        size = (self.agent.config.horizon - 1) * self.agent.config.size
        return torch.zeros(streams, size, device=self.agent.device)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Any, Tensor | None]:
        """The sum of directions, for the worker, and the memory with the latest one in it."""
        assert memory is not None
        _, goal = self.agent.manager(self.agent.perceive(self.agent.read(obs)))
        earlier = memory.unflatten(-1, (-1, goal.shape[-1])) if memory.shape[-1] else memory.new_zeros(len(goal), 0, 1)
        return goal + earlier.sum(1), torch.cat([goal, memory], -1)[:, : memory.shape[-1]]

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """The summed directions [B, d]."""
        return Decision(features)


class WorkerLevel(Level):
    """Samples from the worker's policy, or takes its mode."""

    name = "action"

    def __init__(self, agent: Feudal, explore: bool):
        self.agent, self.explore = agent, explore

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """A choice for each stream, and its log-probability."""
        assert parent is not None
        worker = self.agent.worker
        logits = worker(torch.cat([self.agent.perceive(self.agent.read(features)), parent], -1))
        action = worker.sample(logits, self.generator) if self.explore else worker.mode(logits)
        return Decision(action, worker.log_prob(logits, action))


class Feudal(OnlineAgent):
    """Perception, manager and worker."""

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(OnlineConfig):
        """Hyper-parameters of FeUdal networks."""

        system: ClassVar[str] = "feudal"
        slots: int = 16
        """Episodes side by side."""
        ticks: int = 100
        """Environment steps of each slot before the networks learn."""
        updates: int = 5_000
        """Iterations; slots x ticks environment steps each."""
        horizon: int = 10
        """Steps over which a direction counts, c (paper: 10)."""
        size: int = 256
        """Numbers of the manager's space, d (paper: 256)."""
        embedding: int = 16
        """Numbers of a choice's embedding, k (paper: 16)."""
        hidden: int = 256
        """Width of the hidden layers, ReLU (paper: 256)."""
        alpha: float = 0.5
        """Weight of the intrinsic reward, α."""
        gamma: float = 0.99
        """The manager's discount of an environment step."""
        worker_gamma: float = 0.95
        """The worker's discount of an environment step."""
        value_weight: float = 0.5
        """Weight of the values' losses."""
        entropy: float = 0.01
        """Weight of the entropy bonus."""
        clip_norm: float = 40.0
        """Bound of the gradient's norm."""
        eval_every: int = 500
        """Iterations between evaluations; the reported score is the mean over the last three."""
        log_every: int = 10
        """Iterations between lines of metrics."""
        checkpoint_every: int = 100
        """Iterations between checkpoints."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("horizon", "size", "embedding", "hidden"):
                self.require(name, getattr(self, name) >= 1, "at least 1")
            self.require("horizon", self.horizon < self.ticks, "less than ticks, or the manager never learns")
            for name in ("gamma", "worker_gamma"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
            for name in ("alpha", "value_weight", "entropy"):
                self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
            self.require("clip_norm", 0 < self.clip_norm < math.inf, "positive")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        c = config
        self.read = Reader(spaces)
        self.perceive = MLP([self.read.size, c.hidden], activate_final=True, activation=F.relu)
        self.manager = Manager(c.hidden, c.hidden, c.size)
        self.worker = Worker(c.hidden, c.hidden, c.size, spaces.choices, c.embedding)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return (ManagerLevel(self), WorkerLevel(self, explore))

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Credit of both levels along the record, in one batch."""
        c, episodes = self.config, rollout.spans["stream"]
        read, final = self.read(observed(rollout)), self.perceive(self.read(rollout.streams.final_observation))
        perceived = self.perceive(read)
        state, goal = self.manager(perceived)
        intrinsic = feudal_intrinsic(episodes, state=state, goal=goal, horizon=c.horizon)
        credit = feudal(
            episodes,
            reward=rollout.reward_sum(),
            intrinsic=intrinsic,
            manager_value=self.manager.value(state)[:, 0],
            worker_value=self.worker.value(perceived)[:, 0],
            terminated=rollout.streams.terminated,
            final_manager_value=self.manager.value(self.manager.space(final))[:, 0],
            final_worker_value=self.worker.value(final)[:, 0],
            horizon=c.horizon,
            alpha=c.alpha,
            gamma=c.gamma,
            worker_gamma=c.worker_gamma,
        )
        manager, worker = credit["manager"], credit["worker"]
        assert manager.weight is not None
        yield {
            "read": read,
            "offsets": episodes.offsets,
            "action": rollout.proposed,
            "pooled": by_item(rollout, "manager", rollout.decisions["manager"].action),
            "intrinsic": intrinsic,
            "manager_advantage": manager.advantage * manager.weight,
            "manager_target": manager.target["manager"],
            "worker_advantage": worker.advantage,
            "worker_target": worker.target["worker"],
        }

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-(A · cosine) of the manager, -(A · log π) and entropy of the worker, squared errors of both values."""
        c, episodes = self.config, Spans(batch["offsets"])
        perceived = self.perceive(batch["read"])
        state, goal = self.manager(perceived)
        cosine = transition_cosine(episodes, state=state, goal=goal, horizon=c.horizon)
        manager = -(batch["manager_advantage"] * cosine).mean()
        logits = self.worker(torch.cat([perceived, batch["pooled"]], -1))
        worker = -(batch["worker_advantage"] * self.worker.log_prob(logits, batch["action"])).mean()
        entropy = self.worker.entropy(logits).mean()
        values = (
            (self.manager.value(state)[:, 0] - batch["manager_target"]).square().mean()
            + (self.worker.value(perceived)[:, 0] - batch["worker_target"]).square().mean()
        )  # fmt: skip
        metrics = {
            "manager/loss": manager.detach(),
            "manager/cosine": cosine.detach().mean(),
            "worker/loss": worker.detach(),
            "worker/entropy": entropy.detach(),
            "worker/intrinsic": batch["intrinsic"].mean(),
            "value/loss": values.detach(),
        }
        return manager + worker + c.value_weight * values - c.entropy * entropy, metrics

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        return (Update("feudal", self.loss, (self.perceive, self.manager, self.worker), c.lr, clip_norm=c.clip_norm),)
