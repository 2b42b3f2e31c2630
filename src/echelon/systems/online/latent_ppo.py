"""PPO over the latents of a frozen decoder: what systems share that learn a task above a low level learned before.

The policy's actions are latents; a level below it turns each into an action of the world, which it is the mean of, and
learns no more. Rewards, values and advantages are those of single steps, as without a decoder.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from echelon.envs.spaces import Spaces
from echelon.hierarchy.latents import DecodeLevel
from echelon.hierarchy.level import Level
from echelon.systems.online.scratch_ppo import ScratchPPO
from echelon.training.online.staged import StagedAgent


@dataclass(frozen=True, kw_only=True)
class LatentPPOConfig(ScratchPPO.Config):
    """What PPO over latents has beside PPO."""

    latent: int = 60
    """Numbers of a latent."""
    latent_bound: float = 3.0
    """Latents are brought within ± this much before they are decoded."""
    initial_std: float = 2.5
    """Standard deviation of each number of a latent when the learning begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("latent", self.latent >= 1, "at least 1")
        self.require("latent_bound", 0 < self.latent_bound < math.inf, "positive")


class LatentPPO(ScratchPPO, StagedAgent):
    """Base of PPO over a decoder's latents; subclasses learn the decoder in stages before."""

    config: LatentPPOConfig
    level = "latent"

    def __init__(self, config: LatentPPOConfig, spaces: Spaces):
        bound = (config.latent_bound,) * config.latent
        super().__init__(config, Spaces(spaces.observation, spaces.discrete, None, tuple(-x for x in bound), bound))
        self.low, self.high = spaces.bounds()

    @abstractmethod
    def decode(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Actions [B, A] for observations [B, O] and latents [B, D], by what was learned before."""

    def levels(self, explore: bool) -> tuple[Level, ...]:
        c, device = self.config, next(self.actor.parameters()).device
        low, high = self.low.to(device), self.high.to(device)
        return (*super().levels(explore), DecodeLevel(self.decode, low, high, c.latent_bound))
