"""What training shows of a hierarchy, counted over many records: a window then holds decisions that each would cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from echelon.hierarchy.diagnostics import flattened, reason_counts, shares, usage
from echelon.rollout import End, Rollout


class DecisionTally(nn.Module):
    """Counts of one level since the last `facts`; its buffers go into checkpoints with the agent's.

    choices: how many actions the level chooses among; None for one that gives vectors, which has no entropy.
    """

    def __init__(self, level: str, choices: int | None = None):
        super().__init__()
        self.level = level
        self.reasons: Tensor
        self.used: Tensor
        self.steps: Tensor
        self.register_buffer("reasons", torch.zeros(len(End), dtype=torch.int64))
        self.register_buffer("used", torch.zeros(choices or 0, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def add(self, rollout: Rollout) -> None:
        """Count a record."""
        self.steps += rollout.size
        self.reasons += reason_counts(rollout, self.level)
        if len(self.used):
            self.used += usage(rollout, self.level, len(self.used))

    def facts(self) -> dict[str, float]:
        """The numbers of `hierarchy.diagnostics.shares` since the last call, called "<level>/<name>"; starts anew."""
        found = shares(int(self.steps), self.reasons, self.used)
        for count in self.buffers():
            count.zero_()
        return flattened({self.level: found})
