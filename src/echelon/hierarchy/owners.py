"""Which decision of a level each item of a rollout lies under."""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.errors import unknown
from echelon.rollout import Rollout


def owners(rollout: Rollout, level: str) -> Tensor:
    """int64[N]: for each item the row of `rollout.decisions[level]` that it lies under.

    Also of a level that commands teams, whose decision covers items in the streams of all members:
    `Spans.by_key(owners(rollout, level))` partitions the items by it.
    """
    if level not in rollout.decisions:
        raise unknown("level", level, rollout.levels)
    upward = rollout.levels[::-1]
    bottom = rollout.decisions[upward[0]]
    lasting = bottom.span >= 0
    of_span = torch.full((rollout.spans[upward[0]].n,), -1, dtype=torch.int64, device=bottom.span.device)
    of_span[bottom.span[lasting]] = lasting.nonzero()[:, 0]
    owner = of_span[rollout.spans[upward[0]].ids]
    for below in upward[: upward.index(level)]:
        owner = rollout.decisions[below].parent[owner]
    return owner
