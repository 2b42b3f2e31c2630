"""What a record shows of a hierarchy: how long decisions hold, why they end, which choices are used, what is valued.

Options may collapse to one, or to single steps, and a subgoal may never be reached; a curve of returns does not tell.
Everything is read from a `Rollout` alone, so that any system's will do.
Legend: N items (steps), D decisions of a level, O choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.transitions import transitions
from echelon.rollout import End, Rollout

REASONS = tuple(reason for reason in End if reason is not End.OPEN)
VALUE = "value"
"""What levels call the discounted sum of the environment's rewards that they expect, among a decision's values."""


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


def shares(steps: int, reasons: Tensor, used: Tensor | None = None) -> dict[str, float]:
    """The numbers that counts of one level stand for: its steps, its ends by reason [7], and the use of choices [O].

    length: steps a decision holds. reached: share of ends by the decision's own condition. termination: such ends a
    step. end_<reason>: share of each reason. With several choices, entropy: of the steps that each of them held, as a
    part of ln(choices); coverage: share of the choices that were made at all.
    """
    ends = max(int(reasons.sum() - reasons[End.OPEN]), 1)
    found = {
        "length": mean_length(steps, reasons),
        "reached": reached_rate(reasons),
        "termination": float(reasons[End.OPTION]) / max(steps, 1),
        **{f"end_{reason.name.lower()}": float(reasons[reason]) / ends for reason in REASONS},
    }
    if used is not None and len(used) > 1:
        found |= {"entropy": entropy_share(used), "coverage": float((used > 0).double().mean())}
    return found


def value_errors(rollout: Rollout, level: str, gamma: float) -> Tensor:
    """What came of each decision less what its level had expected, [M] of those of which that can be told.

    What came of it: the rewards until the episode's last decision of the level, discounted by gamma a unit of time, and
    what that last one expected; or all rewards, where the episode ended in a terminal state. Of an episode that was cut
    off, or goes on, the last decision itself is left out.
    """
    d = rollout.decisions[level]
    rows = (d.span >= 0).nonzero()[:, 0]
    rows = rows[torch.argsort(d.start[rows])]  # in time order, stream by stream
    start, stream, value = d.start[rows], d.stream[rows], d.values[VALUE][rows].double()
    last = torch.ones_like(stream, dtype=torch.bool)
    last[:-1] = stream[1:] != stream[:-1]
    cut = last & ~rollout.streams.terminated[stream]
    limit = torch.full((len(rollout.streams),), rollout.size, device=start.device)
    limit[stream[cut]] = start[cut]
    before = torch.arange(rollout.size, device=start.device) < limit[rollout.stream]
    earned = torch.where(before, rollout.reward_sum().double(), 0)
    earned[start[cut]] = value[cut]
    came = rollout.spans["stream"].scan(earned, gamma ** rollout.elapsed.double())
    return (came[start] - value)[~cut]


def missed(rollout: Rollout, level: str, name: str) -> Tensor:
    """[M]: how far from what its action asked for, a value of the observation `name`, each decision that ended led."""
    rows = transitions(rollout, level, 1.0)
    there = rows[f"next_{name}"]
    return (rows["action"][:, : there.shape[1]] - there)[rows["end"] != End.OPEN].norm(dim=-1)


def diagnose(
    rollout: Rollout,
    gamma: float,
    choices: Mapping[str, int | None],
    places: Mapping[str, tuple[str, float]] = MappingProxyType({}),
) -> dict[str, dict[str, float]]:
    """The numbers of every level, by its name: `shares`, and of what it values `value_error` and `value_bias`.

    Of the lowest level, which decides in every step, entropy and coverage of choices alone.

    gamma: discount of a unit of time in the values that decisions carry under the name "value".
    choices: how many choices a level has, by its name; None or absent for one that gives vectors.
    places: observation and distance of levels that ask for values of it: of those, `reached` is the share of decisions
    that ended within the distance, however they ended, and `missed` the mean distance.
    value_error is the mean size of `value_errors`, value_bias the mean of what was expected less what came.
    """
    found: dict[str, dict[str, float]] = {}
    for level, d in rollout.decisions.items():
        number = choices.get(level)
        used = None if number is None else usage(rollout, level, number)
        found[level] = shares(rollout.size, reason_counts(rollout, level), used)
        if level == rollout.levels[-1]:
            found[level] = {name: x for name, x in found[level].items() if name in ("entropy", "coverage")}
        if level in places and len(far := missed(rollout, level, places[level][0])):
            found[level] |= {"reached": float((far <= places[level][1]).double().mean()), "missed": float(far.mean())}
        if VALUE in d.values and len(errors := value_errors(rollout, level, gamma)):
            found[level] |= {"value_error": float(errors.abs().mean()), "value_bias": -float(errors.mean())}
    return found


def flattened(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The same under the names "<level>/<name>"."""
    return {f"{level}/{name}": value for level, numbers in found.items() for name, value in numbers.items()}
