"""GCBC with chunks: goal-conditioned behaviour cloning of several actions at once, the open-loop imitation baseline.

Idea: a policy that says its next K actions together, and plays some of them before it looks again, decides K times more
rarely, so that its errors add up more slowly and pauses in the data do not trap it.
Source: action chunks of ACT (arXiv 2304.13705), with goals in hindsight (arXiv 1912.06088).
Levels: `chunk` (s, g) -> the next K actions, of which `play` are held; `play` -> the action of the tick, every step.
Shares with GCBC: hindsight goals, uniform in what follows. The chunks and their goals come from `data/windows`, the
levels from `hierarchy/plans`; other generative policies act by the same two levels.
Deviations: a network of dense layers and squared errors; no averaging over overlapping chunks; states are observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from echelon.data.windows import WindowSpec, check_windows
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.plans import PlanLevel, PlayLevel
from echelon.hierarchy.termination import Every
from echelon.nets.edm import counted_mean
from echelon.nets.goal import GaussianPolicy
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Update
from echelon.training.config import Config


@dataclass(frozen=True, kw_only=True)
class GCBCChunksConfig(Config):
    """Defaults: OGBench's for cloning; chunks as Act2Goal (arXiv 2512.23541) has them at a smaller scale."""

    system: ClassVar[str] = "gcbc-chunks"
    actor_hidden: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of the policy."""
    chunk: int = 20
    """K: actions that are said together."""
    play: int = 10
    """How many of them are played before the next chunk; more than K repeat the last."""
    goal_within: int | None = None
    """How many steps after a chunk's first a goal may lie at the latest; None: as far as the episode goes."""

    def __post_init__(self) -> None:
        self.require("actor_hidden", all(size >= 1 for size in self.actor_hidden), "sizes of at least 1")
        for name in ("chunk", "play"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("goal_within", self.goal_within is None or self.goal_within >= 1, "None or at least 1")
        super().__post_init__()

    def goals(self) -> dict[str, WindowSpec]:
        """Windows that begin anywhere, and a goal after their first state."""
        return {"chunk": WindowSpec(steps=self.chunk, anchor="first", within=self.goal_within)}


class ChunkLevel(PlanLevel):
    """(s, g) -> the next K actions in [-1, 1]."""

    name = "chunk"

    def __init__(self, agent: GCBCChunks):
        self.agent, self.termination = agent, Every(agent.config.play)

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        goal = features["goal"] if parent is None else parent
        return Decision(self.agent.chunk(features["observation"], goal).clamp(-1, 1))


class GCBCChunks(Agent):
    """K actions, a function of s and g, by squared errors."""

    Config = GCBCChunksConfig

    def __init__(self, config: GCBCChunksConfig, spec: DataSpec):
        super().__init__()
        self.config, self.action_dim = config, spec.action_dim
        self.actor = GaussianPolicy(2 * spec.observation_dim, config.actor_hidden, config.chunk * spec.action_dim)

    def chunk(self, observation: Tensor, goal: Tensor) -> Tensor:
        """Actions [B, K, A] from observation and goal [B, O]."""
        return self.actor(observation, goal).unflatten(-1, (-1, self.action_dim))

    def prepare(self, batch: Batch) -> Batch:
        """The batch, if its columns fit each other."""
        check_windows(batch)
        return batch

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean squared error over the steps that the episode has."""
        found = self.chunk(batch["observations"][:, 0], batch["goals"][:, 0])
        loss = counted_mean((found - batch["actions"]).square(), batch["real"][..., None])
        return loss, {"chunk/real": batch["real"].float().mean()}

    def updates(self) -> tuple[Update, ...]:
        return (Update("chunk", self.loss, (self.actor,), self.config.lr),)

    def levels(self) -> tuple[Level, ...]:
        return (ChunkLevel(self), PlayLevel())
