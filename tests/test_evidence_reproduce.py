"""Reproduction from claims to recorded verdicts, with a trainer that takes no time."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from evidence_bench import BEATS, MODULES, OTA, Bench, bench, claimed, config_of, steps

from echelon.claims import Arm, AtLeast, Claim, Guard, Score, Verdict, metric, success
from echelon.cli.reproduce import sentence
from echelon.errors import DataError, EchelonError, UsageError
from echelon.evidence import codehash, replay, reproduce, results, status, train
from echelon.evidence.run import Run
from echelon.systems import index
from echelon.training.config import to_json

__all__ = ["bench", "claimed"]


def test_claims_share_runs_and_get_their_verdicts(bench: Bench) -> None:
    beats, reaches, same = bench()
    assert bench.calls() == sorted(f"{system} {seed} False" for system in ("ota", "hiql") for seed in (0, 1, 2))
    assert (beats.verdict, reaches.verdict, same.verdict) == (
        Verdict.SUPPORTED, Verdict.NOT_SUPPORTED, Verdict.SUPPORTED,
    )  # fmt: skip
    assert beats.estimate.value == pytest.approx(40) and 0 < beats.estimate.low < 40 < beats.estimate.high
    assert same.estimate.value == pytest.approx(-0.2)


def test_an_entry_holds_what_a_reader_needs_to_check_it(bench: Bench) -> None:
    outcome = bench()[0]
    entry = results.read(bench.folder / "results" / "ota" / "beats-hiql.json")[0]
    assert entry == outcome.entry
    assert entry["command"] == "echelon reproduce ota"
    assert entry["of_record"] and not entry["full"] and entry["seeds"] == [0, 1, 2]
    assert entry["specification"]["test"] == {"kind": "Above", "margin": 15}
    method, baseline = entry["arms"]
    assert (method["name"], method["mean"], baseline["mean"]) == ("OTA", 80, pytest.approx(40))
    assert [run["seed"] for run in baseline["runs"]] == [0, 1, 2]
    run = method["runs"][0]
    assert run["tasks"] == [80, 80] and run["curve"] == {"step": [10, 20, 30], "success": [80, 80, 80]}
    assert run["result"]["train_s"] == 1.5 and run["identity"]["seed"] == 0
    assert entry["specification"]["arms"][1]["system"] == "hiql"
    assert entry["improvement"] == 1.0 and entry["estimate"]["level"] == 0.95
    assert entry["modules"] == MODULES and entry["code_hash"] == codehash.digest(MODULES)
    assert {"machine", "load", "versions", "git", "date", "code_hash", "text", "source"} <= set(entry)


def test_a_second_call_trains_nothing_and_appends(bench: Bench) -> None:
    bench()
    bench()
    assert len(bench.calls()) == 6
    first, second = results.read(bench.folder / "results" / "ota" / "beats-hiql.json")
    assert first["estimate"] == second["estimate"]


def test_a_failed_training_is_shown_and_resumed(bench: Bench) -> None:
    bench.wish(wins={"ota": 8, "hiql": 4}, stop=["hiql", 1])
    with pytest.raises(EchelonError, match=r"(?s)1 of 6 trainings failed.*ran out of luck"):
        bench()
    assert not (bench.folder / "results").exists()
    bench.wish(wins={"ota": 8, "hiql": 4})
    assert bench()[0].verdict is Verdict.SUPPORTED
    assert bench.calls().count("hiql 1 True") == 1  # went on in the directory that it had begun
    assert len(bench.calls()) == 7


def test_a_run_that_ends_without_a_result_is_an_error(bench: Bench) -> None:
    command = lambda config, directory: (sys.executable, "-c", "")  # noqa: E731
    with pytest.raises(EchelonError, match="seed-0 stopped before its end; start the same command again"):
        bench(command=command)


def test_a_run_of_other_code_is_refused(bench: Bench) -> None:
    bench.wish(wins={"ota": 8, "hiql": 4}, code_hash="0123456789ab")
    with pytest.raises(DataError, match=r"trained by other code \(0123456789ab, not code of"):
        bench()


def test_a_run_of_another_configuration_is_refused(bench: Bench) -> None:
    bench()
    directory = train.directory_of(OTA.config(0), bench.folder / "runs", "code of ota")
    document = to_json(OTA.config(0))
    document["config"]["lr"] = 1.0
    (directory / "config.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="another configuration"):
        bench()


def test_changed_code_means_new_runs_beside_the_old() -> None:
    before = train.directory_of(OTA.config(0), "runs", "code")
    assert before.name == "seed-0" and before.parent.name.startswith("ota-pointmaze-medium-navigate-v0-")
    assert train.directory_of(OTA.config(1), "runs", "code").parent == before.parent
    assert train.directory_of(config_of("ota", 0, lr=0.1), "runs", "code").parent != before.parent
    assert train.directory_of(OTA.config(0), "runs", "other code").parent != before.parent


def test_other_seeds_are_kept_apart_from_the_record(bench: Bench) -> None:
    outcome = bench(seeds=[3, 5])[0]
    assert outcome.entry["seeds"] == [3, 5] and not outcome.entry["of_record"]
    assert outcome.entry["command"] == "echelon reproduce ota --seeds 3,5"
    assert bench(seeds=[0, 1, 2, 3])[0].entry["of_record"]


def test_one_seed_proves_nothing(bench: Bench) -> None:
    assert {outcome.verdict for outcome in bench(seeds=[0])} == {Verdict.INCONCLUSIVE}


def test_the_baseline_winning_is_not_supported(bench: Bench) -> None:
    bench.wish(wins={"ota": 4, "hiql": 8})
    assert bench()[0].verdict is Verdict.NOT_SUPPORTED


ALONE = Guard(functools.partial(metric, name="alone"), 0.5, "too few states are met twice")
LONGER = Arm("longer", lambda seed: config_of("hiql", seed, lr=0.1))
GUARDED = dataclasses.replace(BEATS, unless=ALONE, also=(Score(OTA, steps), Score(LONGER, success)))


def test_a_guard_keeps_the_test_from_deciding(bench: Bench, claimed: Callable) -> None:
    claimed(GUARDED)
    (outcome,) = bench()
    assert outcome.verdict is Verdict.SUPPORTED
    unless = outcome.entry["unless"]
    assert (unless["value"], unless["runs"], unless["above"], unless["exceeded"]) == (0.25, [0.25] * 3, 0.5, False)
    assert "metric(name='alone') 0.25 is not above 0.5, so the test decides" in sentence(outcome)
    for file in (bench.folder / "runs").rglob("metrics.jsonl"):
        file.write_text(file.read_text().replace("0.25", "0.8", 1))  # the mean of two lines: 0.525
    (outcome,) = bench()
    assert outcome.verdict is Verdict.INCONCLUSIVE and outcome.estimate.value == pytest.approx(40)
    assert outcome.entry["unless"]["exceeded"] and outcome.entry["unless"]["value"] == pytest.approx(0.525)
    why = "metric(name='alone') 0.525 is above 0.5: too few states are met twice"
    assert sentence(outcome).splitlines()[2] == f"  {why}"
    (claim,) = next(row for row in status.table(bench.folder / "results") if row["slug"] == "ota")["claims"]
    assert (claim["verdict"], claim["stale"], claim["undecided"], claim["guard"]) == ("inconclusive", [], True, why)
    rows = status.table(bench.folder / "results")
    assert f"[inconclusive](results/ota/beats-hiql.json): {why} |" in status.readme_table(rows)


def test_scores_without_a_verdict_are_trained_measured_and_shown(bench: Bench, claimed: Callable) -> None:
    claimed(GUARDED)
    (outcome,) = bench()
    assert len(bench.calls()) == 9  # two arms of the test, one that is only measured
    first, second = outcome.entry["also"]
    assert first["statistic"] == "evidence_bench:steps" and first["system"] == "ota" and first["name"] == "OTA"
    assert first["estimate"] == {"value": 20, "low": 10, "high": 30} or first["estimate"]["value"] == 20
    assert second["config"]["lr"] == 0.1 and second["mean"] == pytest.approx(40)
    assert [run["seed"] for run in second["runs"]] == [0, 1, 2]
    assert len(outcome.entry["arms"]) == 2 and len(outcome.entry["specification"]["arms"]) == 2
    said = [line for line in sentence(outcome).splitlines() if "without verdict" in line]
    assert said[0].startswith("  without verdict: OTA, steps: 20 [") and "longer, success: 40 [" in said[1]
    rows = status.table(bench.folder / "results")
    assert "| OTA | OTA, steps: 20 [" in status.docs_table(rows) and "| without verdict | |" in status.docs_table(rows)


def test_what_is_claimed_includes_the_guard_and_not_what_has_no_verdict() -> None:
    plain, guarded = reproduce.specification(BEATS), reproduce.specification(GUARDED)
    assert guarded == plain | {"unless": {"statistic": "echelon.claims:metric(name='alone')", "above": 0.5}}
    assert set(reproduce.hashes_of(GUARDED)) >= set(reproduce.hashes_of(BEATS))
    found = replay.roles(GUARDED, [score.arm.config(0) for score in GUARDED.measured])
    assert [(name, config.system) for name, config, _ in found] == [
        ("method", "ota"), ("baseline", "hiql"), ("also 1", "ota"), ("also 2", "hiql"), ("unless", "ota"),
    ]  # fmt: skip


def test_a_guarded_result_is_judged_again_as_it_was(bench: Bench, claimed: Callable) -> None:
    claimed(GUARDED)
    bench.wish(wins={"ota": 8, "hiql": 4}, alone=0.9)
    (outcome,) = bench()
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert replay.judged_again(GUARDED, outcome.entry)["verdict"] == "inconclusive"
    assert reproduce.judge(GUARDED, 3, np.ones((3, 1, 5)), np.zeros((3, 1, 5)))[0] is Verdict.INCONCLUSIVE  # unknown


def ragged(run: Run) -> np.ndarray:
    return np.zeros((1, 1 + run.config["seed"]))


def undefined(run: Run) -> np.ndarray:
    return np.array([np.nan])


@pytest.mark.parametrize(("statistic", "message"), [(ragged, "different tasks or numbers"), (undefined, "finite")])
def test_statistics_must_give_comparable_numbers(bench: Bench, claimed: Callable, statistic: Any, message: str) -> None:
    claimed(Claim("odd", "odd", Score(OTA, statistic), AtLeast(0), "own", seeds=(0, 1)))
    with pytest.raises(DataError, match=message):
        bench()
    assert not (bench.folder / "results").exists()


def test_an_arm_may_vary_by_the_seed_only(bench: Bench, claimed: Callable) -> None:
    tuned = Arm("tuned", lambda seed: config_of("ota", seed, lr=0.1 * (seed + 1)))
    claimed(Claim("tuned", "tuned", Score(tuned, success), AtLeast(0), "own"))
    with pytest.raises(UsageError, match="'tuned': config\\(seed\\) must carry that seed and change nothing else"):
        bench()


def test_systems_without_claims_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "claims_of", lambda system, full: ())
    with pytest.raises(UsageError, match="gcbc claims nothing"):
        reproduce.reproduce("gcbc")


@pytest.mark.parametrize("system", index.names())
def test_real_claims_are_well_formed(system: str) -> None:
    for claim in reproduce.claims_of(system):
        assert claim.source and claim.text and max(claim.seeds) < 100
        for score in claim.scores:
            assert {type(config) for config in reproduce.configs_of(score.arm, claim.seeds)} == {
                index.load(score.arm.config(0).system).Config
            }
        json.dumps(reproduce.specification(claim))
        assert reproduce.hashes_of(claim)
