"""The level below a latent: a decoder that turns it into an action, at every step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Features, Level


class DecodeLevel(Level):
    """(observation, latent that the level above decided) -> the decoder's action, within `low` and `high`.

    bound: the latents' numbers are brought within ± this much before; None: they are taken as they are.
    """

    name = "action"

    def __init__(
        self,
        decoder: Callable[[Tensor, Tensor], Tensor],
        low: Tensor | float = -1.0,
        high: Tensor | float = 1.0,
        bound: float | None = None,
    ):
        self.decoder, self.low, self.high, self.bound = decoder, low, high, bound

    def decide(self, features: Features, parent: Tensor | None, due: Tensor) -> Decision:
        if parent is None:
            raise UsageError(f"level '{self.name}' decodes latents; put a level above it that decides them")
        latent = parent if self.bound is None else parent.clamp(-self.bound, self.bound)
        action = self.decoder(features["observation"], latent)
        return Decision(action.clamp(self.low, self.high))  # type: ignore[arg-type]
