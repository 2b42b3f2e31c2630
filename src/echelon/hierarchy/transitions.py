"""Semi-Markov transitions: what each decision of a level saw, did and earned, and what it led to.

A row is a decision, however long it held: an option of twelve steps, a skill, a motor action. `Transitions` follows a
runner from batch to batch and puts a decision that was cut by the end of one together with what follows in the next.
Legend: D decisions of a level.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.rollout import Begin, End, Ragged, Rollout, decision_returns

Columns = dict[str, Tensor]
_FIRST = ("action", "command", "executed", "log_prob", "key")
"""Columns, beside what was seen, that a decision has from its beginning on."""


def transitions(rollout: Rollout, level: str, gamma: float, channels: str | Sequence[str] | None = None) -> Columns:
    """One row a decision of `level`, as far as it lies in this record; [D, ...] each.

    <name>, next_<name>: every observation where it began and where it ended (of an episode's last, the final one).
    action; command: that of the decision above, where there is one; executed: what the world was sent at its first
    item, for the bottom level; log_prob; reward: sum of gamma^(time since its start) · reward; discount: what the value
    of where it led is multiplied with, gamma^duration, 0 after a terminal state; duration; begin, end: how, `Begin` and
    `End`; key: of episode and role, unique; values.<name>: what the level noted.
    """
    d, table, size = rollout.decisions[level], rollout.streams, rollout.size
    earned = decision_returns(rollout, level, gamma, channels)
    stops = rollout.spans["stream"].starts + rollout.spans["stream"].lengths
    last = d.stop >= stops[d.stream]
    start, stop = d.start.clamp(max=size - 1), d.stop.clamp(max=size - 1)
    row: Columns = {}
    for name in table.final_observation:  # a learned termination's probabilities are recorded, but not seen
        seen = rollout.observation[name]
        if isinstance(seen, Ragged):
            raise DataError(f"observation '{name}' has rows of different lengths, and transitions have none")
        row[name], after = seen[start], seen[stop]
        final = table.final_observation[name][d.stream]
        row[f"next_{name}"] = torch.where(last.reshape(-1, *[1] * (after.ndim - 1)), final, after)
    above = rollout.above(level)
    if above is not None:
        row["command"] = rollout.decisions[above].action[d.parent]
    if level == rollout.levels[-1]:
        row["executed"] = rollout.executed[start]
    role = torch.tensor([zlib.crc32(name.encode()) for name in table.role], device=d.stream.device)
    ended = earned.end == End.TERMINATED
    return row | {
        "action": d.action,
        "log_prob": d.log_prob,
        "reward": earned.reward,
        "discount": torch.where(ended, 0.0, gamma**earned.duration),
        "duration": earned.duration,
        "begin": d.begin,
        "end": earned.end,
        "key": (table.episode[d.stream] << 32) | role[d.stream],
        **{f"values.{name}": column for name, column in d.values.items()},
    }


class Transitions:
    """The finished transitions of one level, batch after batch. `state_dict` keeps those that are under way."""

    def __init__(self, level: str, gamma: float, channels: str | Sequence[str] | None = None):
        self.level, self.gamma, self.channels = level, gamma, channels
        self.open: Columns = {}

    def add(self, rollout: Rollout) -> Columns:
        """Those that ended in the rollout, which follows on the one before; columns as of `transitions`."""
        rows = transitions(rollout, self.level, self.gamma, self.channels)
        carried = rows["begin"] == Begin.CARRIED
        if bool(carried.any()):
            rows = self._joined(rows, carried)
        ended = rows["end"] != End.OPEN
        if bool(ended.all()):  # as of a level that decides on every tick
            self.open = {}
            return rows
        self.open = select(rows, ~ended)
        return select(rows, ended)

    def _joined(self, rows: Columns, carried: Tensor) -> Columns:
        """The carried rows with what they did before."""
        keys = self.open.get("key", rows["key"][:0])
        order = keys.argsort()
        at = carried.nonzero()[:, 0]
        place = torch.searchsorted(keys[order], rows["key"][at]).clamp(max=max(len(keys) - 1, 0))
        if not len(keys) or bool((keys[order][place] != rows["key"][at]).any()):
            raise DataError(f"level '{self.level}': a decision goes on whose beginning was not added; add every batch")
        before = select(self.open, order[place])
        merged = dict(rows)
        for name, column in before.items():
            seen = f"next_{name}" in before
            if seen or name in _FIRST or name.startswith("values.") or name == "begin":
                merged[name] = rows[name].index_copy(0, at, column)
        earned = before["reward"] + before["discount"] * rows["reward"][at]
        merged["reward"] = rows["reward"].index_copy(0, at, earned)
        for name, joined in (
            ("discount", before["discount"] * rows["discount"][at]),
            ("duration", before["duration"] + rows["duration"][at]),
        ):
            merged[name] = rows[name].index_copy(0, at, joined)
        return merged

    def state_dict(self) -> dict[str, Any]:
        """The decisions under way."""
        return {"open": dict(self.open)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.open = dict(state["open"])


def select(columns: Mapping[str, Tensor], rows: Tensor) -> Columns:
    """These rows, by index or mask, of all columns."""
    return {name: column[rows] for name, column in columns.items()}
