"""Configuration of a run in an environment: how much is collected before the networks learn, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass

from echelon.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(RunConfig):
    """What every online run has. One update of `updates` is an iteration: collect `ticks` steps of each slot, learn."""

    env: str = "CartPole-v1"
    """Environment: a gymnasium name, or a world of this library."""
    slots: int = 8
    """Episodes side by side."""
    ticks: int = 128
    """Environment steps of each slot before the networks learn."""
    updates: int = 100
    """Iterations; slots x ticks environment steps each."""
    limit: int | None = None
    """Steps after which an episode is cut off; the environment's own number when absent."""
    lr: float = 3e-4
    """Adam's learning rate."""
    eval_every: int = 10
    """Iterations between evaluations; the reported score is the mean over the last three."""
    eval_episodes: int = 20
    """Evaluation episodes."""
    log_every: int = 1
    """Iterations between lines of metrics."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("slots", "ticks"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        self.require("limit", self.limit is None or self.limit >= 1, "at least 1")
        self.require("lr", 0 < self.lr < math.inf, "positive")

    @property
    def steps(self) -> int:
        """Environment steps of an iteration."""
        return self.slots * self.ticks

    @property
    def environment_steps(self) -> int:
        """Environment steps of the whole training."""
        return self.updates * self.steps
