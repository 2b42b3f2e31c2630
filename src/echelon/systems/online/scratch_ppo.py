"""PPO over vectors of numbers from a chosen initial deviation: the baseline of who acts through a decoder.

Idea: how far the first actions lie apart decides what is met at all, so a baseline gets to choose it, too.
Source: PPO, arXiv 1707.06347; the deviation .5 is that of MoCapAct's runs without a decoder (arXiv 2208.07363).
Levels: one policy, a decision every environment step.
Shares with `flat-ppo`: everything but the initial deviation, which is 1 there.
Deviations: as `flat-ppo`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from echelon.envs.spaces import Spaces
from echelon.nets.actors import Gaussian
from echelon.systems.online.flat_ppo import FlatPPO


class ScratchPPO(FlatPPO):
    """A policy and a value."""

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(FlatPPO.Config):
        """Hyper-parameters of PPO, and where it begins."""

        system: ClassVar[str] = "ppo-scratch"
        env: str = "Pendulum-v1"
        """Environment; its actions are vectors."""
        initial_std: float = 0.5
        """Standard deviation of each number of an action when the learning begins."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("initial_std", 0 < self.initial_std < math.inf, "positive")

    def __init__(self, config: Config, spaces: Spaces):
        size = spaces.action_dim
        super().__init__(config, spaces)
        self.actor = Gaussian(self.read.size, config.hidden, size, log_std=math.log(config.initial_std))
