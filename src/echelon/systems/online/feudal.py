"""FeUdal networks: a manager that points into a learned space, and a worker who is praised for going there.

Idea: the manager's goal is a direction in the space of its own states; it learns by how far the state then went that
way (transition policy gradient), without knowing what the worker does, and no gradient of the worker's reaches it.
Source: arXiv 1703.01161.
Levels: manager, a direction every step, of which the last c are summed for the worker > action, a policy over choices.
Shares with flat PPO: reader, levels around actors; its credit is `credit.options.feudal`.
Both remember, unless `core` is mlp: the manager by a dilated LSTM whose output is the direction, the worker by an LSTM
below its embeddings; values are read from the same outputs.
Deviations: gradients reach back to the start of an iteration's record (paper: 400 steps), and the memories with which
it begins are those of the weights before; the worker's LSTM has the hidden width, and embeddings are linear in its
output; slots side by side in place of asynchronous actors, one step of Adam in place of RMSProp; directions, intrinsic
rewards and returns reach to the ends of a record, the returns bootstrapped there, so that the manager learns nothing
from its last c steps; no random goals. With perceptrons in place of LSTMs the manager remembers its last c directions
and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.credit.options import feudal, feudal_intrinsic, transition_cosine
from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Decision, Level
from echelon.nets.actors import Categorical
from echelon.nets.mlp import MLP
from echelon.nets.recurrent import DilatedLSTM, Memoryless
from echelon.rollout import Rollout
from echelon.spans import Spans
from echelon.systems.online.common import Reader, by_item, observed
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.agent import Appraisal, OnlineAgent
from echelon.training.online.config import OnlineConfig


class Manager(nn.Module):
    """What is perceived [..., P] as a state [..., d], and the direction that is wanted from there, of length 1.

    radius: of the dilated LSTM between the two; 0: perceptrons take its place.
    """

    def __init__(self, perceived: int, hidden: int, size: int, radius: int = 0):
        super().__init__()
        self.core: DilatedLSTM | Memoryless = DilatedLSTM(size, size, radius) if radius else Memoryless()
        self.space = MLP([perceived, size], activate_final=True, activation=F.relu)
        self.direction = nn.Identity() if radius else MLP([size, hidden, size], activation=F.relu)
        self.value = MLP([size, hidden, 1], activation=F.relu)

    def forward(self, perceived: Tensor, episodes: Spans, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [N, d], directions [N, d] and values [N] along episodes that begin with a memory each."""
        state = self.space(perceived)
        known = self.core(state, episodes, memory)
        return state, F.normalize(self.direction(known), dim=-1), self.value(known)[:, 0]

    def step(self, perceived: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Directions [S, d] in one step of each stream, and the memory after it."""
        known, memory = self.core.step(self.space(perceived), memory)
        return F.normalize(self.direction(known), dim=-1), memory


class Worker(Categorical):
    """π(a | s, w) = softmax(U(s) φ(w)): choices embedded in k numbers, φ linear without bias, so that w decides.

    It acts on what its `core` makes of what is perceived: an LSTM's features, or what is perceived itself.
    """

    def __init__(self, perceived: int, hidden: int, size: int, choices: int, embedding: int, recurrent: bool = False):
        nn.Module.__init__(self)
        self.known, self.choices = hidden if recurrent else perceived, choices
        self.core: DilatedLSTM | Memoryless = DilatedLSTM(perceived, hidden) if recurrent else Memoryless()
        sizes = [hidden] if recurrent else [perceived, hidden]
        self.embed = MLP([*sizes, choices * embedding], activation=F.relu)
        self.project = nn.Linear(size, embedding, bias=False)
        self.value = MLP([self.known, hidden, 1], activation=F.relu)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., A] of the core's features and the summed directions [..., d], side by side."""
        known, pooled = features.split([self.known, features.shape[-1] - self.known], -1)
        embedded = self.embed(known).unflatten(-1, (self.choices, -1))
        return (embedded @ self.project(pooled).unsqueeze(-1)).squeeze(-1)


class ManagerLevel(Level):
    """Gives the sum of its last `horizon` directions.

    Its memory [S, (c - 1) d + M] holds those before, latest first, and behind them the memory of its LSTM.
    """

    name = "manager"

    def __init__(self, agent: Feudal):
        self.agent = agent

    def start(self, streams: int) -> Tensor:
        return torch.zeros(streams, sum(self.agent.remembered), device=self.agent.device)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Any, Tensor | None]:
        """The sum of directions, for the worker, and the memory with the latest one in it."""
        assert memory is not None
        goals, core = memory.split(self.agent.remembered, -1)
        goal, core = self.agent.manager.step(self.agent.perceive(self.agent.read(obs)), core)
        earlier = goals.unflatten(-1, (-1, goal.shape[-1])) if goals.shape[-1] else goals.new_zeros(len(goal), 0, 1)
        return goal + earlier.sum(1), torch.cat([torch.cat([goal, goals], -1)[:, : goals.shape[-1]], core], -1)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """The summed directions [B, d]."""
        return Decision(features)


class WorkerLevel(Level):
    """Samples from the worker's policy, or takes its mode; its memory [S, M] is that of its LSTM, if it has one."""

    name = "action"

    def __init__(self, agent: Feudal, explore: bool):
        self.agent, self.explore = agent, explore

    def start(self, streams: int) -> Tensor | None:
        size = self.agent.worker.core.memory_size
        return torch.zeros(streams, size, device=self.agent.device) if size else None

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Any, Tensor | None]:
        """What the worker's core makes of what is perceived [S, ...]."""
        core: Any = self.agent.worker.core
        return core.step(self.agent.perceive(self.agent.read(obs)), memory)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """A choice for each stream, and its log-probability."""
        assert parent is not None
        worker = self.agent.worker
        logits = worker(torch.cat([features, parent], -1))
        action = worker.sample(logits, self.generator) if self.explore else worker.mode(logits)
        return Decision(action, worker.log_prob(logits, action))


def begun_with(rollout: Rollout, level: str, size: int) -> Tensor:
    """[S, size]: the memory of a level with which each stream of the record begins; zeros if it has none."""
    begun = torch.zeros(len(rollout.streams), size, device=rollout.stream.device)
    if level not in rollout.memory:
        return begun
    items, states = rollout.memory[level]
    return begun.index_copy(0, rollout.stream[items], states.to(begun.dtype))


def with_final(streams: Spans, column: Tensor, final: Tensor) -> tuple[Spans, Tensor, Tensor]:
    """Streams with one more row each, `final` [n, ...]; the joined column [N + n, ...]; bool[N + n], the rows added."""
    longer = Spans.from_lengths(streams.lengths + 1)
    last = longer.position + 1 == longer.expand(longer.lengths)
    joined = column.new_empty(longer.size, *column.shape[1:])
    joined[last], joined[~last] = final, column
    return longer, joined, last


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
        core: Literal["lstm", "mlp"] = "lstm"
        """What manager and worker remember with: a dilated LSTM and an LSTM (paper), or perceptrons, which do not."""
        radius: int = 10
        """States of the dilated LSTM, r, of which one moves in a step (paper: 10)."""
        horizon: int = 10
        """Steps over which a direction counts, c (paper: 10)."""
        size: int = 256
        """Numbers of the manager's space and units of its LSTM, d (paper: 256)."""
        embedding: int = 16
        """Numbers of a choice's embedding, k (paper: 16)."""
        hidden: int = 256
        """Width of the hidden layers, ReLU, and units of the worker's LSTM (paper: 256)."""
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
            self.require("core", self.core in ("lstm", "mlp"), "lstm or mlp")
            for name in ("radius", "horizon", "size", "embedding", "hidden"):
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
        recurrent = c.core == "lstm"
        self.manager = Manager(c.hidden, c.hidden, c.size, c.radius if recurrent else 0)
        self.worker = Worker(c.hidden, c.hidden, c.size, spaces.choices, c.embedding, recurrent)

    @property
    def remembered(self) -> list[int]:
        """Sizes of the two parts of the manager's memory: earlier directions, and what its LSTM keeps."""
        return [(self.config.horizon - 1) * self.config.size, self.manager.core.memory_size]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return (ManagerLevel(self), WorkerLevel(self, explore))

    def seen(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor, tuple[Tensor, Tensor]]:
        """What was read [N, F], memories that streams begin with, the rows added for final observations bool[N + S].

        Then intrinsic rewards [N], and the values of manager and worker [N + S] each.
        """
        episodes = rollout.spans["stream"]
        read, final = self.read(observed(rollout)), self.read(rollout.streams.final_observation)
        longer, seen, last = with_final(episodes, self.perceive(read), self.perceive(final))
        memories = {
            "manager_memory": begun_with(rollout, "manager", sum(self.remembered))[:, self.remembered[0] :],
            "worker_memory": begun_with(rollout, "action", self.worker.core.memory_size),
        }
        state, goal, manager_value = self.manager(seen, longer, memories["manager_memory"])
        worker_value = self.worker.value(self.worker.core(seen, longer, memories["worker_memory"]))[:, 0]
        intrinsic = feudal_intrinsic(episodes, state=state[~last], goal=goal[~last], horizon=self.config.horizon)
        return read, memories, last, intrinsic, (manager_value, worker_value)

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Credit of both levels along the record, in one batch."""
        c, episodes = self.config, rollout.spans["stream"]
        read, memories, last, intrinsic, (manager_value, worker_value) = self.seen(rollout)
        credit = feudal(
            episodes,
            reward=rollout.reward_sum(),
            intrinsic=intrinsic,
            manager_value=manager_value[~last],
            worker_value=worker_value[~last],
            terminated=rollout.streams.terminated,
            final_manager_value=manager_value[last],
            final_worker_value=worker_value[last],
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
            **memories,
            "action": rollout.proposed,
            "pooled": by_item(rollout, "manager", rollout.decisions["manager"].action),
            "intrinsic": intrinsic,
            "manager_advantage": manager.advantage * manager.weight,
            "manager_target": manager.target["manager"],
            "worker_advantage": worker.advantage,
            "worker_target": worker.target["worker"],
        }

    def appraise(self, rollout: Rollout) -> Mapping[str, Appraisal]:
        """Both values; what they are compared with reaches to the end of the record: λ is 1."""
        c = self.config
        _, _, last, intrinsic, (manager, worker) = self.seen(rollout)
        where = {name: rollout.decisions[name].start for name in ("manager", "action")}
        bonus = c.alpha * intrinsic[where["action"]]
        return {
            "manager": Appraisal(manager[~last][where["manager"]], manager[last], c.gamma, 1.0),
            "action": Appraisal(worker[~last][where["action"]], worker[last], c.worker_gamma, 1.0, bonus),
        }

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-(A · cosine) of the manager, -(A · log π) and entropy of the worker, squared errors of both values."""
        c, episodes = self.config, Spans(batch["offsets"])
        perceived = self.perceive(batch["read"])
        state, goal, manager_value = self.manager(perceived, episodes, batch["manager_memory"])
        cosine = transition_cosine(episodes, state=state, goal=goal, horizon=c.horizon)
        manager = -(batch["manager_advantage"] * cosine).mean()
        known = self.worker.core(perceived, episodes, batch["worker_memory"])
        logits = self.worker(torch.cat([known, batch["pooled"]], -1))
        worker = -(batch["worker_advantage"] * self.worker.log_prob(logits, batch["action"])).mean()
        entropy = self.worker.entropy(logits).mean()
        values = (
            (manager_value - batch["manager_target"]).square().mean()
            + (self.worker.value(known)[:, 0] - batch["worker_target"]).square().mean()
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
