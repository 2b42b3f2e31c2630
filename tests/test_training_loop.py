"""The loop that all trainers share: what comes after what, when it stops, and what is forgotten when it goes on."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from echelon.errors import EchelonError
from echelon.training.config import RunConfig
from echelon.training.metrics import read_jsonl
from echelon.training.trainer import Examined, Numbers, Trainer

Bare: Any = type("Bare", (Trainer,), dict.fromkeys(Trainer.__abstractmethods__))


class Plan(RunConfig):
    system = "counting"


class Counting(Bare):
    """Learns nothing and notes what it is asked for; `then` is called with every note."""

    FILES, SHOWN = ("evaluations", "thirds"), "loss"

    def __init__(self, directory: Path, step: int = 0, then: Callable[[str], Any] = lambda event: None):
        self.directory, self.step, self.train_s, self.then = directory, step, 0.0, then
        self.config = Plan(env="nowhere", updates=7, log_every=2, eval_every=3, checkpoint_every=4)
        self.events: list[str] = []
        self.loss = 1.0

    def note(self, what: str) -> None:
        self.events.append(f"{what} {self.step}")
        self.then(self.events[-1])

    def iterate(self) -> Numbers:
        self.note("iterate")
        if self.step % 3 == 0:
            self.files["thirds"].append({"step": self.step})
        return {"loss": self.loss, "speed": 2.0}

    def examine(self) -> Examined:
        self.note("examine")
        return Examined({"step": self.step, "score": 0.5}, {"score": 0.5}, "score 0.50")

    def save(self) -> None:
        self.note("save")

    def stops_with(self, event: str) -> None:
        """A signal comes at `event`."""
        self.then = lambda now: signal.raise_signal(signal.SIGTERM) if now == event else None


def steps(directory: Path, name: str) -> list[int]:
    return [row["step"] for row in read_jsonl(directory / f"{name}.jsonl")]


def test_everything_has_its_turn_and_the_last_step_has_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Counting(tmp_path)
    assert run.train()
    assert run.events == [
        *("iterate 1", "iterate 2", "iterate 3", "examine 3", "iterate 4", "save 4"),
        *("iterate 5", "iterate 6", "examine 6", "iterate 7", "examine 7", "save 7"),
    ]
    written = [(row["step"], row["kind"]) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert written == [(2, "train"), (3, "eval"), (4, "train"), (6, "train"), (6, "eval"), (7, "train"), (7, "eval")]
    assert read_jsonl(tmp_path / "evaluations.jsonl") == run.evaluations
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == [f"step {step}: score 0.50" for step in (3, 6, 7)]
    assert said[3].startswith("counting on nowhere, seed 0: 7/7 (100 %)") and said[3].endswith("left  loss 1")


@pytest.mark.parametrize(("event", "last"), [("iterate 2", 2), ("examine 3", 3), ("save 4", 5), ("save 7", 7)])
def test_a_signal_is_heard_once_a_step_and_the_state_is_saved(event: str, last: int, tmp_path: Path) -> None:
    run = Counting(tmp_path)
    run.stops_with(event)
    assert run.train() == (last == 7)
    assert run.events[-1] == f"save {last}" and run.events.count(f"save {last}") == 1


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    run = Counting(tmp_path)
    run.stops_with("examine 6")
    assert not run.train()
    again = Counting(tmp_path, step=4)
    assert again.train() and again.events[0] == "iterate 5"
    assert [row["step"] for row in again.evaluations] == steps(tmp_path, "evaluations") == [3, 6, 7]
    assert steps(tmp_path, "thirds") == [3, 6]
    assert steps(tmp_path, "metrics") == [2, 3, 4, 6, 6, 7, 7]
    anew = Counting(tmp_path)  # no checkpoint was ever saved
    anew.then = lambda event: anew.files["thirds"].append({"step": 0}) if event == "iterate 1" else None
    assert anew.train() and steps(tmp_path, "thirds") == [0, 3, 6]
    assert Counting(tmp_path).train() and steps(tmp_path, "thirds") == [3, 6]


@pytest.mark.parametrize(("step", "found"), [(1, 2), (3, 3), (5, 5)])
def test_a_loss_that_is_not_finite_is_found_before_anything_is_made_of_it(
    step: int, found: int, tmp_path: Path
) -> None:
    """At the next line of metrics, evaluation or checkpoint; here a signal asks for the one at step 5."""
    run = Counting(tmp_path)

    def spoil(event: str) -> None:
        if event == f"iterate {step}":
            run.loss = math.nan
        if event == "iterate 5":
            signal.raise_signal(signal.SIGINT)

    run.then = spoil
    with pytest.raises(EchelonError, match=f"'loss' became nan at step {found}"):
        run.train()
    assert run.events[-1] == f"iterate {found}"
