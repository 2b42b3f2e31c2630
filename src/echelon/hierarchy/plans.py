"""Plans: decisions that say what to do at each of the coming ticks, and the level below that plays them.

A plan may be longer than the span for which it is held: then its end is never played. It may be shorter, too: then its
last row is repeated, or zeros follow.

    class Chunks(PlanLevel):
        name, termination = "chunks", Every(50)  # of 54 rows

        def decide(self, features, parent, due):
            return Decision(self.net(features["observation"]))  # [B, 54, A]

    levels = (Chunks(), PlayLevel())
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Features, Level

After = Literal["repeat", "zero"]


class PlanLevel(Level):
    """A level whose decision is a plan [S, P, ...]: a row for each of P ticks, the first for the tick it is decided on.

    While it is held, the running action is what is left of it, so that its first row is always the one for now, however
    the span ends. `after`: what comes behind the last row.
    """

    after: After = "repeat"

    def advance(self, action: Tensor, obs: dict[str, Tensor], previous: dict[str, Tensor]) -> Tensor:
        """One tick later: without the first row, and with one more at the end."""
        last = action[:, -1:]
        return torch.cat([action[:, 1:], last if self.after == "repeat" else torch.zeros_like(last)], 1)


class PlayLevel(Level):
    """At every tick what the plan of the level above, a `PlanLevel`, says for it."""

    name = "play"

    def decide(self, features: Features, parent: Tensor | None, due: Tensor) -> Decision:
        if parent is None or parent.dim() < 3:
            shape = "nothing" if parent is None else f"actions of shape {list(parent.shape)}"
            raise UsageError(f"level '{self.name}' plays plans [S, P, ...]; the level above gave {shape}")
        return Decision(parent[:, 0])
