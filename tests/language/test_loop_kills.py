"""Ten kills inside the rollout phases of one run: it ends with the very weights of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colours import Colours
from forked import run_forked
from small_language import outcome, small, tiny_language
from small_runs import assert_same

from echelon.language.driver import Phase
from echelon.language.sampling import TransformersEngine
from echelon.systems.agents.gigpo import GiGPO
from echelon.training import checkpoint, run
from echelon.training.language.loop import LanguageRun

KILLS = 10
PLACES: dict[str, tuple[Any, str, bool]] = {
    "before texts are sampled": (TransformersEngine, "generate", False),
    "after texts were sampled": (TransformersEngine, "generate", True),
    "in the world": (Colours, "_act", False),
}


def train(directory: Path) -> None:
    """Train, or go on, in `directory`; checkpoints lie two iterations apart."""
    config = small(GiGPO, updates=12, eval_every=6, checkpoint_every=2)
    run.train(GiGPO, config, directory, device="cpu", threads=1, say=lambda line: None)


def killed(directory: Path, place: str, count: int) -> Callable[[], None]:
    """The life of a process that ends at the `count`-th event of its rollout phases; evaluations do not count."""

    def body() -> None:
        holder, name, after = PLACES[place]
        real, collect, state = getattr(holder, name), LanguageRun.collect, {"inside": False, "left": count}

        def watched(self: LanguageRun) -> Phase:
            state["inside"] = True
            phase = collect(self)
            state["inside"] = False
            return phase

        def deadly(*given: Any, **options: Any) -> Any:
            answer = real(*given, **options) if after else None
            state["left"] -= state["inside"]
            if state["inside"] and state["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer if after else real(*given, **options)

        setattr(holder, name, deadly)
        LanguageRun.collect = watched  # type: ignore[method-assign]
        train(directory)

    return body


def test_ten_kills_in_rollouts_leave_no_trace(tmp_path: Path) -> None:
    draw = random.Random(7)
    with tiny_language(tmp_path / "models"):
        train(tmp_path / "whole")
        steps = []
        for _ in range(KILLS):
            place = draw.choice(list(PLACES))
            count = draw.randrange(1, 70 if place == "in the world" else 14)
            code = run_forked(killed(tmp_path / "killed", place, count), limit_s=240)
            assert code == -signal.SIGKILL, f"the run ended before event {count} {place}"
            found = checkpoint.latest(tmp_path / "killed")
            steps.append(found.step if found else 0)
        train(tmp_path / "killed")
        assert steps == sorted(steps) and 0 < len(set(steps)) < KILLS, steps  # on the way, and some phases twice
        assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".old"))]
