"""Claims about language agents from training to verdict and replay, with runs of a few seconds."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import small, tiny_language

from echelon.claims import Above, Arm, Claim, Guard, Score, metric, success
from echelon.cli import main
from echelon.cli.reproduce import sentence
from echelon.errors import DataError
from echelon.evidence import codehash, replay, reproduce, results, status, train
from echelon.evidence.replay import Answer
from echelon.evidence.run import Run
from echelon.systems import launch
from echelon.systems.agents.gigpo import GiGPO
from echelon.systems.agents.grpo import GRPO
from echelon.training.language.agent import LanguageAgent
from echelon.training.launch import Task

SEEDS = (100, 101, 102)
CHANGES: dict[str, Any] = {"updates": 2, "warm_episodes": 12, "warm_epochs": 1}


def arm(cls: type[LanguageAgent]) -> Arm:
    return Arm(cls.Config.system, lambda seed: small(cls, seed=seed, **CHANGES))


CLAIM = Claim(
    "above-grpo", "GiGPO succeeds more often than GRPO", Score(arm(GiGPO), success), Above(0), "arXiv 2505.10978",
    Score(arm(GRPO), success), SEEDS,
    unless=Guard(functools.partial(metric, name="states/alone"), 0.5, "most states are met once"),
    also=(Score(arm(GiGPO), functools.partial(metric, name="turns")),),
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, reproduce.Outcome]]:
    """A folder with models, runs and results of one claim; trainings run in this process."""
    folder = tmp_path_factory.mktemp("language")

    def in_this_process(tasks: Sequence[Task], jobs: int, **names: Any) -> None:
        for task in tasks:
            assert main(list(task.command[3:])) == 0

    with pytest.MonkeyPatch.context() as patch, tiny_language(folder / "models"):
        patch.setattr(train, "run_many", in_this_process)
        for module in (reproduce, replay, status):
            patch.setattr(module, "claims_of", lambda system, full=False: (CLAIM,) if system == "gigpo" else ())
        threads = torch.get_num_threads()
        (outcome,) = reproduce.reproduce("gigpo", jobs=1, out=folder / "results", runs=folder / "runs")
        torch.set_num_threads(threads)
        yield folder, outcome


def test_a_claim_is_trained_measured_and_judged(recorded: tuple[Path, reproduce.Outcome]) -> None:
    folder, outcome = recorded
    entry = outcome.entry
    assert entry["of_record"] and [arm["name"] for arm in entry["arms"]] == ["gigpo", "grpo"]
    runs = [run for arm in entry["arms"] for run in arm["runs"]]
    assert [run["seed"] for run in runs] == [*SEEDS, *SEEDS]
    assert all(len(run["scores"]) == 2 and run["curve"]["step"] == [0, 2] for run in runs)
    (start,) = {run["identity"]["spec"]["hash"] for run in runs}
    said = sentence(outcome)
    assert f"  warm start {start[:12]}" in said.splitlines()
    assert "metric(name='states/alone')" in said and "without verdict: gigpo, metric(name='turns'): " in said
    assert 0 <= entry["unless"]["value"] <= 1 and entry["also"][0]["mean"] >= 1
    assert str(folder) not in json.dumps(entry)  # nothing names a place of this machine
    assert any(name.startswith("training/language/") for name in entry["modules"])
    (claim,) = next(row for row in status.table(folder / "results") if row["slug"] == "gigpo")["claims"]
    assert claim["verdict"] == str(outcome.verdict) and claim["stale"] == [] and len(claim["also"]) == 1


def test_replays_agree_though_the_warm_start_is_made_anew(
    recorded: tuple[Path, reproduce.Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = recorded
    (first,) = replay.record("gigpo", folder / "results", 1)
    assert "transformers" in first["identity"]["versions"] and "echelon" not in first["identity"]["versions"]
    assert set(first["digests"]) == {"method", "baseline", "also 1", "unless"} and first["digests"]["method"]
    shutil.rmtree(folder / "models")  # as on a machine that has never seen it
    real = codehash.of_result
    monkeypatch.setattr(
        codehash, "of_result", lambda systems, statistics: real(systems, statistics) | {"language/engine.py": "other"}
    )
    state = status.claim_state("gigpo", CLAIM, folder / "results")
    assert "language/engine.py changed" in state["stale"] and state["remedy"].endswith("reproduce gigpo --replay")
    (second,) = replay.record("gigpo", folder / "results", 1)
    assert second["digests"] == first["digests"] and second["identity"] == first["identity"]
    assert status.claim_state("gigpo", CLAIM, folder / "results")["replayed"]
    entries = results.read(folder / "results" / "gigpo" / "above-grpo.json")
    assert replay.answer(entries, entries[0], second["modules"]) is Answer.AGREES


@pytest.mark.usefixtures("recorded")
def test_a_change_in_the_learning_shows_in_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replay.replayed([CLAIM], 1)["above-grpo"]
    monkeypatch.setattr(GiGPO, "credit", GRPO.credit)
    changed = replay.replayed([CLAIM], 1)["above-grpo"]
    assert changed.digests["method"] != plain.digests["method"]
    assert changed.digests["baseline"] == plain.digests["baseline"] and changed.identity == plain.identity


def test_an_agent_is_opened_without_its_warm_start_and_not_from_another(
    recorded: tuple[Path, reproduce.Outcome],
) -> None:
    folder, _ = recorded
    (place,) = (folder / "runs").glob("gigpo-*/seed-100")
    run = Run(place)
    before = {name: p.clone() for name, p in run.agent().language.model.named_parameters()}
    shutil.rmtree(folder / "models")
    after = dict(launch.load_agent(place).language.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    identity = json.loads((place / "identity.json").read_text())
    identity["spec"]["hash"] = "0" * 64
    (place / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(DataError, match="began from the warm start 000000000000, and here its recipe gives"):
        run.agent()


def test_runs_are_compared_and_drawn(
    recorded: tuple[Path, reproduce.Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = recorded
    arms = [str(next((folder / "runs").glob(f"{name}-*"))) for name in ("gigpo", "grpo")]
    assert main(["compare", *arms, "--svg", str(tmp_path / "curves.svg")]) == 0
    assert "gigpo" in capsys.readouterr().out.lower() and "<svg" in (tmp_path / "curves.svg").read_text()
