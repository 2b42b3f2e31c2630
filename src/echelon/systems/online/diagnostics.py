"""What a record shows of a hierarchy: how long decisions hold, why they end, whether all of them are used.

Options may collapse to one, or to single steps, and a subgoal may never be reached; a curve of returns does not tell.
`DecisionTally` counts over many records, so that a window holds whole decisions though its records cut them.
Legend: N items (steps), D decisions of a level, O choices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from echelon.errors import UsageError
from echelon.rollout import End, Rollout

REASONS = tuple(reason for reason in End if reason is not End.OPEN)


def held(rollout: Rollout, level: str, column: Tensor) -> Tensor:
    """[N, ...]: a column of decisions, one row a decision [D, ...], at all items for which they hold."""
    d, spans = rollout.decisions[level], rollout.spans[level]
    owns = d.span >= 0
    by_span = torch.zeros(spans.n, *column.shape[1:], dtype=column.dtype, device=column.device)
    return spans.expand(by_span.index_copy(0, d.span[owns], column[owns]))


def ended(rollout: Rollout, level: str, reason: End = End.OPTION) -> Tensor:
    """bool [N]: whether a decision of the level ended for this reason, on arrival in the state after the item."""
    d = rollout.decisions[level]
    over = d.stop[(d.end == reason) & (d.span >= 0)] - 1
    return torch.zeros(rollout.size, dtype=torch.bool, device=over.device).index_fill(0, over, True)


def reason_counts(rollout: Rollout, level: str) -> Tensor:
    """int64 [7]: how many decisions of the level ended for each reason, by `End`; those that go on under OPEN."""
    return torch.bincount(rollout.decisions[level].end, minlength=len(End))


def usage(rollout: Rollout, level: str, choices: int) -> Tensor:
    """int64 [O]: for how many steps each choice of the level held."""
    return torch.bincount(held(rollout, level, rollout.decisions[level].action), minlength=choices)


def mean_length(steps: int, reasons: Tensor) -> float:
    """Steps a decision held, from the steps of a record and its `reason_counts`.

    Steps for each end, not a mean over finished decisions, which would miss the long ones that a record cuts. Without
    an end it is the number of steps: decisions hold for that long at least.
    """
    return steps / max(int(reasons.sum() - reasons[End.OPEN]), 1)


def entropy_share(counts: Tensor) -> float:
    """Entropy of the shares that `counts` [O] stand for, as a part of ln O: 0 if one is used, 1 if all are alike."""
    if len(counts) < 2:
        raise UsageError("the entropy of a single choice has no share")
    shares = counts.double() / counts.sum().clamp(min=1)
    return float(torch.special.entr(shares).sum()) / math.log(len(counts))


def reached_rate(reasons: Tensor) -> float:
    """Share of ended decisions that ended by their own condition: subgoals reached, for a level that sets them."""
    return float(reasons[End.OPTION]) / max(int(reasons.sum() - reasons[End.OPEN]), 1)


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
        """The numbers since the last call, called "<level>/<name>"; starts anew.

        length: steps a decision holds. reached: share of ends by the decision's own condition. termination: such ends a
        step. end_<reason>: share of each reason. entropy: of the choices, by the steps that they hold, as a part of
        ln(choices).
        """
        steps, ends = int(self.steps), max(int(self.reasons.sum() - self.reasons[End.OPEN]), 1)
        found = {
            "length": mean_length(steps, self.reasons),
            "reached": reached_rate(self.reasons),
            "termination": float(self.reasons[End.OPTION]) / max(steps, 1),
            **{f"end_{reason.name.lower()}": float(self.reasons[reason]) / ends for reason in REASONS},
        }
        if len(self.used) > 1:
            found["entropy"] = entropy_share(self.used)
        for count in self.buffers():
            count.zero_()
        return {f"{self.level}/{name}": value for name, value in found.items()}
