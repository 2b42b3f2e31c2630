"""Which episodes of a training are written down, step by step, for people who look at a run.

One in a hundred, in blocks, so that most iterations cost nothing: as many as lie side by side, `BLOCK` at most, in the
middle of each `SHARE` times as many that begin one after the other. Where an evaluation passed since the latest one was
chosen, the first that begins is taken too, so that there is one or more between any two evaluations. Which they are
follows from their numbers alone: no random number is drawn, and whoever resumes a run writes the same.

`rollouts/trained_<step>` has, beside each evaluation, those that ended since the one before; those that go on are in
`rollouts/open_<step>` beside a checkpoint, until a later one takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.hierarchy.diagnostics import VALUE
from echelon.rollout import Ragged, Rollout
from echelon.training.online.agent import AFTER, BONUS, EXPECTED, OnlineAgent

SHARE, BLOCK = 100, 64
"""One episode in so many is written down; at most so many that begin one after the other."""
MOST = 16 * 2**20
"""Bytes of observations in a record from which on no further episode is chosen; at twice as many, none is followed."""
TRAINED, OPEN = "trained", "open"


@dataclass
class Recording:
    """What was kept of the chosen episodes since the latest evaluation.

    slots: episodes side by side. followed: numbers of those that go on. chosen: whether there is one for the record of
    the next evaluation.
    """

    folder: Path
    slots: int
    pieces: list[Rollout] = field(default_factory=list)
    followed: set[int] = field(default_factory=set)
    chosen: bool = False
    size: int = 0

    def add(self, agent: OnlineAgent, rollout: Rollout, last: bool) -> None:
        """Keep what an iteration's record has of the chosen episodes. last: whether an evaluation comes next."""
        streams = rollout.streams
        number = streams.episode.tolist()
        begun = [n for n, tick in zip(number, streams.start_tick.tolist(), strict=True) if tick == 0]
        if self.size < MOST:
            self.followed |= {n for n in begun if n // min(self.slots, BLOCK) % SHARE == SHARE // 2}
        if not self.chosen and not self.followed and (begun or last):
            self.followed.add(begun[0] if begun else number[0])
        rows = [row for row, n in enumerate(number) if n in self.followed]
        if not rows:
            return
        first = rollout.spans["stream"].starts[torch.tensor(rows, device=rollout.stream.device)]
        piece = rollout.episodes(rollout.spans["episode"].ids[first].unique())
        appraise(agent, piece)
        self.pieces.append(piece if piece.stream.device.type == "cpu" else piece.to("cpu"))
        self.size += sum(map(_bytes, piece.observation.values()))
        self.chosen = True
        over = streams.terminated | streams.truncated
        self.followed -= set(streams.episode[over].tolist())
        if self.size >= 2 * MOST:
            self.followed.clear()

    def write(self, step: int) -> None:
        """Write down those that are over; if none is, what there is of the others, which are then left."""
        whole = self._joined()
        if whole is None:
            return
        going = torch.tensor([n in self.followed for n in _numbers(whole)])
        if bool(going.all()):
            self.followed.clear()
            going[:] = False
        over, rest = ((~going).nonzero()[:, 0], going.nonzero()[:, 0])
        whole.episodes(over).save(self.folder / f"{TRAINED}_{step:09d}")
        self.pieces = [whole.episodes(rest)] if len(rest) else []
        self.size = sum(_bytes(column) for piece in self.pieces for column in piece.observation.values())
        self.chosen = bool(self.pieces)

    # ---- checkpoints

    def save(self, step: int) -> dict[str, Any]:
        """What a checkpoint notes; what was kept of episodes that go on is written beside it."""
        whole = self._joined()
        if whole is not None:
            whole.save(self.folder / f"{OPEN}_{step:09d}")
        return {"open": whole is not None, "followed": sorted(self.followed), "chosen": self.chosen, "size": self.size}

    def load(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint. One without a note, or whose file is gone or damaged, has nothing to go on with."""
        if state is None:
            return
        try:
            self.pieces = [Rollout.load(self.folder / f"{OPEN}_{step:09d}")] if state["open"] else []
        except DataError:
            return
        self.followed, self.chosen, self.size = set(state["followed"]), state["chosen"], state["size"]

    def leave(self) -> None:
        """Follow no episode any more: those that ran were abandoned."""
        self.followed.clear()

    def prune(self, checkpoints: Path) -> None:
        """Remove what was written beside checkpoints that are no longer there."""
        for file in self.folder.glob(f"{OPEN}_*"):
            if not (checkpoints / f"step_{file.stem.removeprefix(f'{OPEN}_')}").exists():
                file.unlink()

    def _joined(self) -> Rollout | None:
        """All pieces as one, which they are from now on; None without any."""
        if len(self.pieces) > 1:
            self.pieces = [Rollout.cat(self.pieces)]
        return self.pieces[0] if self.pieces else None


def appraise(agent: OnlineAgent, rollout: Rollout) -> None:
    """Note in a record what the agent's levels expected, where they did not, and how advantages come of it."""
    credit = {}
    for level, found in agent.appraise(rollout).items():
        values = rollout.decisions[level].values
        if VALUE not in values:
            values[EXPECTED] = found.value
        if found.bonus is not None:
            values[BONUS] = found.bonus
        rollout.streams.labels[AFTER + level] = found.after
        credit[level] = {"gamma": found.gamma, "lam": found.lam}
    if credit:
        rollout.meta = {**rollout.meta, "credit": credit}


def _numbers(rollout: Rollout) -> list[int]:
    """The number of each episode, in the order of the partition."""
    first = rollout.spans["episode"].starts
    return rollout.streams.episode[rollout.stream[first]].tolist()


def _bytes(column: Tensor | Ragged) -> int:
    values = column.values if isinstance(column, Ragged) else column
    return values.numel() * values.element_size()
