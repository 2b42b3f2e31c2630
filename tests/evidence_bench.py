"""A reproduction bench: claims about OTA and HIQL, and a trainer that writes a run's files without training."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echelon.claims import Above, Arm, AtLeast, Claim, Equivalent, Score, success
from echelon.evidence import codehash, replay, reproduce, status, train
from echelon.evidence.run import Run
from echelon.systems import index
from echelon.training.config import Config

TRAINER = """
import json, pathlib, sys

config_file, out, wishes = (pathlib.Path(word) for word in sys.argv[1:4])
document = json.loads(config_file.read_text())
config = document["config"]
wish = json.loads(wishes.read_text())
out.mkdir(parents=True, exist_ok=True)
with wishes.with_name("calls").open("a") as calls:
    calls.write(f"{document['system']} {config['seed']} {(out / 'evaluations.jsonl').exists()}\\n")
(out / "config.json").write_text(json.dumps(document))
code = wish.get("code_hash", "code of " + document["system"])
(out / "identity.json").write_text(json.dumps({"seed": config["seed"], "code_hash": code}))
wins = wish["wins"][document["system"]]
tasks = {f"task{t}": [int((e + config["seed"]) % 10 < wins) for e in range(10)] for t in (1, 2)}
rows = [{"step": s, "success": wins / 10, "tasks": tasks, "seconds": 0.1, "load": 1.0} for s in (10, 20, 30)]
stop = [document["system"], config["seed"]] == wish.get("stop")
(out / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows[: 1 if stop else 3]))
lines = [{"step": 10, "kind": "train", "alone": wish.get("alone", 0.25)}]
lines += [] if stop else [{"step": 30, "kind": "eval"}, {"step": 30, "kind": "train", "alone": 0.25}]
(out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
if stop:
    sys.exit("the trainer ran out of luck")
(out / "result.json").write_text(json.dumps({"score": wins / 10, "train_s": 1.5, "updates": 30}))
"""


MODULES = {"data/goals.py": "1", "evidence/statistics.py": "2", "systems/offline/ota.py": "3", "training/run.py": "4"}
"""What every result of the bench depends on."""


def config_of(system: str, seed: int, **fields: Any) -> Config:
    return index.load(system).Config(seed=seed, updates=30, **fields)


OTA = Arm("OTA", lambda seed: config_of("ota", seed))
HIQL = Arm("HIQL", lambda seed: config_of("hiql", seed))


def steps(run: Run, scale: float = 1.0) -> np.ndarray:
    """A statistic of its own: the steps of the evaluations."""
    return scale * np.array([step for step, _ in run.curve], dtype=float)


BEATS = Claim(
    "beats-hiql", "OTA beats HIQL", Score(OTA, success), Above(15), "arXiv 2505.12737", Score(HIQL, success), (0, 1, 2)
)
REACHES = Claim("reaches-99", "OTA reaches 99", Score(OTA, success), AtLeast(99), "arXiv 2505.12737", seeds=(0, 1))
SAME = Claim(
    "same-steps", "two scales agree", Score(OTA, steps), Equivalent(1), "own",
    Score(OTA, functools.partial(steps, scale=1.01)), (0, 1, 2),
)  # fmt: skip


class Bench:
    """A results folder, a runs folder and the fake trainer that fills it as `wish` says."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "trainer.py").write_text(TRAINER)
        self.wish(wins={"ota": 8, "hiql": 4})

    def wish(self, **fields: Any) -> None:
        (self.folder / "wishes.json").write_text(json.dumps(fields))

    def command(self, config: Path, directory: Path) -> Sequence[str]:
        script, wishes = self.folder / "trainer.py", self.folder / "wishes.json"
        return [sys.executable, str(script), str(config), str(directory), str(wishes)]

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return sorted(file.read_text().splitlines()) if file.exists() else []

    def __call__(self, **changes: Any) -> list[reproduce.Outcome]:
        places = {"out": self.folder / "results", "runs": self.folder / "runs", "command": self.command}
        return reproduce.reproduce("ota", **{**places, **changes})


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def claim(*claims: Claim) -> None:
        def of(system: str, full: bool = False) -> tuple[Claim, ...]:
            return claims if system == "ota" else ()

        monkeypatch.setattr(reproduce, "claims_of", of)
        monkeypatch.setattr(status, "claims_of", of)
        monkeypatch.setattr(replay, "claims_of", of)

    claim(BEATS, REACHES, SAME)
    return claim


@pytest.fixture
def bench(tmp_path: Path, claimed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(train, "prepare", lambda configs: None)
    monkeypatch.setattr(codehash, "of_run", lambda system: f"code of {system}")
    monkeypatch.setattr(codehash, "of_result", lambda systems, statistics: dict(MODULES))
    return Bench(tmp_path)
