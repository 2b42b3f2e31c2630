"""What systems share that learn skills without a reward: an actor that follows skills, and what its states show.

A skill z is drawn from a prior and held for the episode; a soft actor-critic learns a reward that the skills' own
states give, computed anew for each batch from what tells the skills apart at the time.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from echelon.claims import Above, Arm, Claim, Score
from echelon.envs.spaces import Spaces
from echelon.errors import DataError, UsageError
from echelon.rollout import Rollout
from echelon.systems.online.common import Reader
from echelon.systems.online.sac import ReplayAgent, ReplayConfig, SoftActorCritic
from echelon.training.agent import Batch, Metrics


@dataclass(frozen=True, kw_only=True)
class SkillConfig(ReplayConfig):
    """What systems have that learn skills."""

    env: str = "HalfCheetah-v5"
    """Environment: a gymnasium name, or a world of this library; its actions are vectors."""
    reads: tuple[str, ...] = ("observation",)
    """Observations that the actor reads; a goal is none of them."""
    sees: tuple[int, ...] = ()
    """Numbers of what is read by which skills are told apart, by place; all when empty (paper: all, or x and y)."""
    entropy_scale: float = 0.1
    """Weight of the policy's entropy, which stays (paper: 0.1)."""
    cell: tuple[float, ...] = (1.0,)
    """Widths of the cells of what is seen in which the states met are counted: one for all numbers, or one for each."""
    window: int = 10_000
    """Latest environment steps whose states are counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("reads", len(self.reads) > 0, "one observation at least")
        self.require("sees", len(set(self.sees)) == len(self.sees), "different places")
        self.require("entropy_scale", 0 < self.entropy_scale < math.inf, "positive")
        self.require("cell", len(self.cell) > 0 and all(0 < width < math.inf for width in self.cell), "positive")
        self.require("window", self.window >= 1, "at least 1")


class SkillAgent(ReplayAgent):
    """A soft actor-critic that reads the observation and the skill, `size` numbers, and learns `intrinsic` rewards."""

    config: SkillConfig
    columns: ClassVar[tuple[str, ...]] = ("action", "reward", "discount", "command")

    def __init__(self, config: SkillConfig, spaces: Spaces, size: int):
        super().__init__(config, spaces)
        self.read = Reader(spaces, config.reads)
        self.seen_places = list(config.sees or range(self.read.size))
        if not all(0 <= place < self.read.size for place in self.seen_places):
            raise UsageError(f"{config.system}: sees names places up to {self.read.size - 1}, got {config.sees}")
        if len(config.cell) not in (1, len(self.seen_places)):
            raise UsageError(
                f"{config.system}: cell has widths of {len(config.cell)} numbers, not of those that are seen"
            )
        self.parts = SoftActorCritic(
            self.read.size + size,
            spaces.action_dim,
            config.hidden,
            rate=config.rate,
            target_entropy=0.0,
            temperature=config.entropy_scale,
        )

    def encode(self, skill: Tensor) -> Tensor:
        """Skills as networks read them, [..., size]."""
        return skill

    @abstractmethod
    def intrinsic(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Rewards [B] of state, next_state and skill, and what they show; without gradient."""

    def batch(self, rows: Mapping[str, Tensor]) -> Batch:
        """Rows for actor and critics, who read the skill too; `skill` as commanded, states as they are seen."""
        found, skill = super().batch(rows), self.encode(rows["command"])
        state, after = found["features"], found["next_features"]
        return found | {
            "features": torch.cat([state, skill], -1),
            "next_features": torch.cat([after, skill], -1),
            "state": state[:, self.seen_places],
            "next_state": after[:, self.seen_places],
            "skill": rows["command"],
        }

    def prepare(self, batch: Batch) -> Batch:
        """The skills' own rewards in place of the environment's."""
        reward, self.shown = self.intrinsic(batch)
        return batch | {"reward": reward}

    def commit(self, aux: Metrics) -> None:
        """Move the target critics, and show what the rewards did."""
        self.parts.follow()
        aux.update(self.shown)

    def facts(self, rollout: Rollout) -> Mapping[str, float] | Metrics:
        """`states/cells`: how many cells the states of the latest `window` steps lie in."""
        replay, c = self.replay, self.config
        count = min(c.window, len(replay))
        if not count:
            return {}
        latest = torch.arange(replay.added - count, replay.added)
        seen = self.read(replay.rows(latest, [f"next_{name}" for name in self.read.names]), "next_")
        return {"states/cells": float(cells(seen[:, self.seen_places], c.cell))}


class Whitening(nn.Module):
    """x [..., D] less its mean, by its deviation; of all rows that `update` ever saw."""

    def __init__(self, size: int):
        super().__init__()
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("squares", torch.zeros(size))

    def update(self, x: Tensor) -> None:
        """Count rows [n, D]."""
        total, off = self.count + len(x), x.mean(0) - self.mean
        self.squares += (x - x.mean(0)).square().sum(0) + off.square() * self.count * len(x) / total
        self.mean += off * len(x) / total
        self.count.copy_(total)

    @property
    def deviation(self) -> Tensor:
        """[D]; 1 before anything was seen."""
        return (self.squares / self.count.clamp(min=1)).sqrt().clamp(min=1e-6) if self.count > 0 else self.mean + 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalised."""
        return (x - self.mean) / self.deviation


def cells(states: Tensor, widths: Sequence[float]) -> int:
    """In how many cells of a grid the states [N, D] lie, whose cells have one width or D."""
    return len(torch.unique(torch.floor(states / states.new_tensor(widths)).to(torch.int64), dim=0))


def late(run: Any, name: str, share: float = 0.2) -> np.ndarray:
    """Statistic of a claim: the mean of a metric of the training over its last `share` of lines, []."""
    found = [row[name] for row in run.metrics if row["kind"] == "train" and name in row]
    found = found[len(found) - max(1, round(share * len(found))) :]
    if not found or any(value is None for value in found):
        raise DataError(f"{getattr(run, 'path', 'run')}: no finite metric '{name}' late in the training")
    return np.array(np.mean(found))


def covers_more(learned: Arm, random: Arm, window: int, source: str) -> Claim:
    """The claim that learned skills see more of the world than random actions do."""
    count = partial(late, name="states/cells")
    return Claim(
        id="covers-more",
        text=f"In {window} steps on the hill the skills meet more cells of place and velocity than random actions do.",
        method=Score(learned, count),
        baseline=Score(random, count),
        test=Above(0),
        source=source,
    )
