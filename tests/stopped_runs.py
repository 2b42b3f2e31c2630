"""Runs of online systems for tests: stopped in the middle and gone on with, against those that were not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from echelon.training import checkpoint, run
from echelon.training.agent import Learner
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig


def weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a run's newest checkpoint."""
    found = checkpoint.latest(directory)
    assert found is not None
    return found.tensors


SHORT: dict[str, Any] = {
    "slots": 2,
    "ticks": 20,
    "updates": 8,
    "hidden": (8,),
    "batch_size": 16,
    "capacity": 200,
    "random_steps": 80,
    "gradient_ratio": 0.1,
    "limit": 30,
    "eval_every": 4,
    "eval_episodes": 3,
    "checkpoint_every": 4,
    "log_every": 1,
}
"""A run of seconds of what learns from replay."""


def stop_and_go_on(
    system: type[OnlineAgent], config: OnlineConfig, at: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Train in `directory`, with a signal in gradient step `at`, and go on to the end; what was said."""
    said: list[str] = []
    step = Learner.step

    def signalled(learner: Learner, number: int, batch: Any) -> Any:
        if number == at:
            signal.raise_signal(signal.SIGINT)
        return step(learner, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", signalled)
        assert run.train(system, config, directory, device="cpu", threads=1, say=said.append) is None
    assert run.train(system, config, directory, device="cpu", threads=1, say=said.append) == directory
    return said


def assert_resumes(
    system: type[OnlineAgent], config: OnlineConfig, at: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped in gradient step `at` ends as one that was not: checkpoint, evaluations, episodes."""
    run.train(system, config, directory / "whole", device="cpu", threads=1, say=lambda line: None)
    stop_and_go_on(system, config, at, directory / "cut", monkeypatch)
    assert_same(directory)


def assert_same(directory: Path) -> None:
    """The runs "whole" and "cut" in `directory` came to the same, bit for bit; clocks aside."""
    expected, found = weights(directory / "whole"), weights(directory / "cut")
    assert expected.keys() == found.keys()
    assert [n for n in expected if expected[n].numpy().tobytes() != found[n].numpy().tobytes()] == []
    for file in ("evaluations.jsonl", "episodes.jsonl"):
        rows = [
            [json.loads(line) for line in (directory / side / file).read_text().splitlines()]
            for side in ("whole", "cut")
        ]
        for row in (*rows[0], *rows[1]):
            row.pop("seconds", None), row.pop("load", None)
        assert rows[0] == rows[1]
