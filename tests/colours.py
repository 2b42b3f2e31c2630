"""A world of a dozen words, and one like it in which chosen episodes go wrong; light, for worker processes too."""

from __future__ import annotations

import math
import os
import signal
import time
from typing import Any, ClassVar

from echelon.language.worlds.world import BaseWorld, Observation, Task

COLOURS = ("red", "green", "blue")
FAULTS = ("raises", "hangs", "dies", "none", "nan", "lists", "rambles")
"""What goes wrong at the first action in a task with the index -1 less the place here."""


class Colours(BaseWorld):
    """Name the colours that are asked for, one after another: one of them, or two."""

    name: ClassVar[str] = "colours"
    kinds: ClassVar[tuple[str, ...]] = ("one", "two")

    def __init__(self, limit: int = 4):
        super().__init__(limit)

    def expert(self) -> str | None:
        """The colour that is asked for."""
        return None if self._seen.done else self._wanted[self._found]

    def _start(self, task: Task) -> Observation:
        self._wanted = [COLOURS[task.seed // 3 % 3], COLOURS[task.seed // 9 % 3]][: 1 + (task.kind == "two")]
        self._found = 0
        return self._shown(valid=True)

    def _act(self, action: str) -> Observation:
        self._found += action.strip() == self._wanted[self._found]
        return self._shown(valid=action.strip() in COLOURS)

    def _shown(self, valid: bool) -> Observation:
        if self._found == len(self._wanted):
            return Observation("done", COLOURS, "done", 1.0, terminated=True, valid=valid)
        text = f"say {self._wanted[self._found]}"
        return Observation(text, COLOURS, f"{text} {self._found}", valid=valid)


class Faulty(Colours):
    """The same, and what `FAULTS` says."""

    def _start(self, task: Task) -> Observation:
        self._fault = FAULTS[-1 - task.index] if task.index < 0 else ""
        return super()._start(task)

    def _act(self, action: str) -> Observation:
        if self._fault == "raises":
            raise ValueError("the paint is dry")
        if self._fault == "hangs":
            time.sleep(1000)
        if self._fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "rambles":
            return Observation("red " * 1000, COLOURS, "lost")
        rewards: dict[str, Any] = {"none": None, "nan": math.nan, "lists": [1.0, 0.0]}
        if self._fault in rewards:
            return Observation("say red", COLOURS, "lost", rewards[self._fault])
        return super()._act(action)


def make(name: str, **options: Any) -> BaseWorld:
    """Build the world that goes wrong."""
    assert name == "colours"
    return Faulty(**options)
