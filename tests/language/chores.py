"""A world with phases, runs small enough for tests in it, and records written by hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from echelon.language.engine import Source
from echelon.language.record import Record, RecordBuilder
from echelon.language.words import WordTokenizer
from echelon.language.worlds import world
from echelon.language.worlds.world import BaseWorld, Observation, Task
from echelon.systems.agents.planexecute import FORMAT, PlanExecute, read
from echelon.training.language.agent import LanguageAgent
from echelon.training.language.loop import LanguageRun
from echelon.training.runtime import choose

COLOURS = ("red", "green")
SMALL: dict[str, Any] = {
    "env": "chores",
    "limit": 5,
    "updates": 2,
    "eval_every": 2,
    "eval_episodes": 2,
    "layers": 1,
    "width": 32,
    "context": 256,
    "warm_episodes": 96,
    "warm_epochs": 4,
    "warm_lr": 1e-2,
    "tasks": 2,
    "group": 3,
    "max_tokens": 4,
    "lr": 1e-3,
}


class Chores(BaseWorld):
    """Take the box of a colour, then put it down; in phases "find red" and "bring red"."""

    name: ClassVar[str] = "chores"
    kinds: ClassVar[tuple[str, ...]] = ("one", "two")

    def __init__(self, limit: int = 5):
        super().__init__(limit)

    def expert(self) -> str | None:
        """The next action that helps."""
        return None if self._seen.done else f"{'put' if self._held else 'take'} {self._wanted[0]}"

    def _start(self, task: Task) -> Observation:
        self._wanted = [COLOURS[task.seed // 3 % 2], COLOURS[task.seed // 6 % 2]][: 1 + (task.kind == "two")]
        self._held = False
        return self._shown(f"bring {' and '.join(self._wanted)}", True)

    def _act(self, action: str) -> Observation:
        helps = action.strip() == f"{'put' if self._held else 'take'} {self._wanted[0]}"
        if helps:
            self._held = not self._held
            self._wanted = self._wanted[not self._held :]
        return self._shown("good" if helps else "nothing", action.strip() in self._all)

    @property
    def _all(self) -> tuple[str, ...]:
        return tuple(f"{verb} {colour}" for verb in ("take", "put") for colour in COLOURS)

    def _shown(self, text: str, valid: bool) -> Observation:
        if not self._wanted:
            return Observation("done", self._all, "done", 1.0, terminated=True, valid=valid)
        phase = f"{'bring' if self._held else 'find'} {self._wanted[0]}"
        return Observation(text, self._all, phase, valid=valid, info={"phase": phase})


@contextlib.contextmanager
def chores(models: Path) -> Iterator[None]:
    """Within it, "chores" is a world, warm starts lie in `models`, and no write waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(world._WORLDS, "chores", f"{__name__}:Chores")
        patch.setenv("ECHELON_MODELS", str(models))
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def small(cls: type[LanguageAgent], **changes: Any) -> Any:
    """A configuration of little work."""
    return cls.Config(**{**SMALL, **changes})


def open_run(cls: type[LanguageAgent], directory: Path, **changes: Any) -> LanguageRun:
    """A run at its first step."""
    config = small(cls, **changes)
    inputs = LanguageRun.inputs(cls, config, lambda line: None)
    return LanguageRun.build(cls, config, directory, choose("cpu", "float32", 1), inputs)


WORDS = WordTokenizer.build(
    ["KEEP SWITCH find bring take put red green box good nothing Subgoal: None"], tags=PlanExecute.tags
)


@dataclass(frozen=True)
class Said:
    """A turn of a hand-made record."""

    text: str
    reward: float = 0.0
    valid: bool = True
    logp: float = -0.5
    """Of each token."""


def plan(switch: bool, subgoal: str = "find red", action: str = "take red") -> str:
    """A turn that keeps to the format."""
    word = "SWITCH" if switch else "KEEP"
    return f"<switch>{word}</switch><subgoal>{subgoal}</subgoal><action>{action}</action>"


def record_of(episodes: Sequence[Sequence[Said]], terminated: Sequence[bool] | None = None, group: int = 1) -> Record:
    """The record of these turns as the plan-execute program would have made it; contexts only grow."""
    builder = RecordBuilder()
    channel = FORMAT.channel("block", WORDS, tail=True)
    for uid, turns in enumerate(episodes):
        episode = builder.episode(uid, uid // group)
        stream = episode.stream("policy")
        context, met = WORDS.render([{"role": "user", "content": "bring red"}]), {"": -1}
        for turn in turns:
            ids, said = [*WORDS.encode(turn.text), WORDS.eos], read(turn.text)
            labels: dict[str, Any] = {"subgoal": met.setdefault(said.subgoal, len(met) - 1), "block": channel(ids)}
            episode.call(
                stream, context, ids, logp=[turn.logp] * len(ids), source=Source.SAMPLED, valid=turn.valid,
                begin={"segment": said.switch}, labels=labels,
            )  # fmt: skip
            episode.reward(turn.reward)
            context = [*context, *ids, *WORDS.follow([{"role": "user", "content": "good"}])]
        ended = terminated is None or terminated[uid]
        episode.done(terminated=ended, truncated=not ended)
    return builder.build()
