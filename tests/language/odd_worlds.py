"""A world of text whose episodes go wrong on demand: for the fault tests, also in worker processes."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from echelon.language.worlds.world import BaseWorld, Observation, Task

KINDS = ("fine", "raises", "hangs", "dies", "dies once", "nan", "none", "odd", "drifts", "objects", "unmade")
BAD_STEP = 2


class Odd(BaseWorld):
    """Says a digest of its task and actions; ends after `limit` steps, or earlier when an action contains "z"."""

    name, kinds = "odd", KINDS
    made = 0

    def __init__(self, limit: int = 4, flags: str = ""):
        super().__init__(limit)
        Odd.made += 1
        self.flags, self.drift = flags, os.getpid()

    def _start(self, task: Task) -> Observation:
        self.task = task
        if task.kind == "unmade":
            raise RuntimeError("no game")
        return Observation(self._digest(), ("a", "b"), state=f"start of {task.index}")

    def _act(self, action: str) -> Observation:
        print(f"the world was told {action!r}")  # what a world prints must not disturb the answers
        reward: Any = 1.0 if "z" in action else len(action) / 8
        if len(self._actions) == BAD_STEP:
            reward = self._misbehave(reward)
        info: dict[str, Any] = {"told": action}
        if self.task.kind == "objects":
            info["self"] = self
        return Observation(
            self._digest(), ("a", "b"), self._digest()[:1], reward, "z" in action, valid="q" not in action, info=info
        )

    def expert(self) -> str | None:
        return "z" if self._actions else "a"

    def _digest(self) -> str:
        said = repr((self.task.seed, self._actions, self.drift if self.task.kind == "drifts" else 0))
        return hashlib.sha256(said.encode()).hexdigest()[:6]

    def _misbehave(self, reward: float) -> Any:
        kind = self.task.kind
        if kind == "raises":
            raise ValueError("the door is stuck")
        flag = Path(self.flags) / str(self.task.index)
        if kind == "hangs":
            if self.flags:
                flag.touch()
            time.sleep(1000)
        if kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "dies once" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"nan": math.nan, "none": None, "odd": "much"}.get(kind, reward)


def make(name: str, **options: Any) -> BaseWorld:
    """Build one."""
    assert name == "odd"
    return Odd(**options)


def task(index: int, kind: str = "fine") -> Task:
    """One game."""
    return Task("odd", kind, index, 100 + index, "train")
