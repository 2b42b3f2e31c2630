"""Replays: what a digest covers, which facts are compared, and what they make of a result whose code changed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evidence_bench import BEATS, HIQL, MODULES, OTA, REACHES, SAME, Bench, bench, claimed
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small, synthetic_store, tiny_world

from echelon.claims import Above, Claim
from echelon.cli import main
from echelon.errors import DataError, UsageError
from echelon.evidence import codehash, replay, reproduce, results, status
from echelon.evidence.replay import Answer, Replay
from echelon.evidence.run import Run
from echelon.evidence.train import Command
from echelon.rollout import Rollout
from echelon.systems import index
from echelon.training import checkpoint
from echelon.training.run import train

__all__ = ["bench", "claimed"]

LATER = MODULES | {"spans.py": "9"}
ESTIMATE = {"value": 40.0, "low": 30.0, "high": 50.0}
ENTRY: dict[str, Any] = {
    "chain": "c0", "modules": MODULES, "verdict": "supported", "estimate": {**ESTIMATE, "of": "difference"},
}  # fmt: skip


def fact(modules: dict[str, str], **changes: Any) -> dict[str, Any]:
    """A fact about ENTRY."""
    plain = {
        "kind": "replay", "of": "c0", "modules": modules, "identity": {"cpu": "a"},
        "digests": {"method": "1", "baseline": "2"}, "judged": {**ESTIMATE, "verdict": "supported"},
    }  # fmt: skip
    return {**plain, **changes}


OTHER = {
    "digest": {"digests": {"method": "1", "baseline": "3"}},
    "fewer digests": {"digests": {"method": "1"}},
    "value": {"judged": {**ESTIMATE, "value": 40.001, "verdict": "supported"}},
    "interval": {"judged": {**ESTIMATE, "low": 29.0, "verdict": "supported"}},
    "verdict": {"judged": {**ESTIMATE, "verdict": "inconclusive"}},
}


def test_two_equal_facts_make_changed_code_agree() -> None:
    assert replay.answer([ENTRY, fact(MODULES), fact(LATER)], ENTRY, LATER) is Answer.AGREES
    assert replay.answer([ENTRY, fact(LATER), fact(MODULES)], ENTRY, LATER) is Answer.AGREES  # in any order
    last_bits = {"judged": {**ESTIMATE, "low": 30.000000000000004, "verdict": "supported"}}
    assert replay.answer([fact(MODULES), fact(LATER, **last_bits)], ENTRY, LATER) is Answer.AGREES


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER.keys())
def test_any_difference_on_either_side_contradicts(change: dict[str, Any]) -> None:
    assert replay.answer([fact(MODULES), fact(LATER, **change)], ENTRY, LATER) is Answer.DIFFERS
    assert replay.answer([fact(MODULES, **change), fact(LATER)], ENTRY, LATER) is Answer.DIFFERS


@pytest.mark.parametrize("change", [OTHER["value"], OTHER["verdict"]])
def test_facts_that_agree_with_each_other_must_agree_with_the_result(change: dict[str, Any]) -> None:
    assert replay.answer([fact(MODULES, **change), fact(LATER, **change)], ENTRY, LATER) is Answer.DIFFERS


def test_both_sides_are_needed() -> None:
    third = fact(MODULES | {"spans.py": "8"})
    assert replay.answer([], ENTRY, LATER) is Answer.UNRECORDED
    assert replay.answer([third], ENTRY, LATER) is Answer.UNRECORDED
    assert replay.answer([fact(LATER)], ENTRY, LATER) is Answer.UNRECORDED
    assert replay.answer([fact(MODULES)], ENTRY, LATER) is Answer.MISSING
    assert replay.answer([fact(MODULES), third], ENTRY, LATER) is Answer.MISSING


def test_facts_about_other_results_or_from_other_machines_do_not_count() -> None:
    assert replay.answer([fact(MODULES), fact(LATER, of="c1")], ENTRY, LATER) is Answer.MISSING
    assert replay.answer([fact(MODULES, of="c1"), fact(LATER)], ENTRY, LATER) is Answer.UNRECORDED
    elsewhere = fact(LATER, identity={"cpu": "b"})
    assert replay.answer([fact(MODULES), elsewhere], ENTRY, LATER) is Answer.ELSEWHERE
    assert replay.answer([fact(MODULES), elsewhere, fact(LATER)], ENTRY, LATER) is Answer.AGREES
    # other machines agree only through facts of their own
    bridge = fact(MODULES, identity={"cpu": "b"}, digests={"method": "7"})
    assert replay.answer([fact(MODULES), bridge, fact(LATER, identity={"cpu": "b"})], ENTRY, LATER) is Answer.DIFFERS


SIDES = st.tuples(
    st.sampled_from([MODULES, LATER, {"spans.py": "8"}]), st.sampled_from("ab"), st.sampled_from("12"), st.booleans()
)


@given(st.lists(SIDES, max_size=6))
def test_fresh_if_a_pair_agrees_and_none_disagrees(made: list[tuple[dict[str, str], str, str, bool]]) -> None:
    facts = [
        fact(modules, identity={"cpu": cpu}, digests={"method": digest}, **({} if right else OTHER["value"]))
        for modules, cpu, digest, right in made
    ]
    agreed = [
        digest == other and right and right_too
        for modules, cpu, digest, right in made
        for modules_too, cpu_too, other, right_too in made
        if (modules, modules_too) == (MODULES, LATER) and cpu == cpu_too
    ]
    said = replay.answer(facts, ENTRY, LATER)
    assert (said is Answer.AGREES) == (agreed != [] and all(agreed))
    assert (said is Answer.DIFFERS) == (not all(agreed))


# ---- status


@pytest.fixture
def replays(bench: Bench, claimed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One supported claim, and replays that come to whatever this dictionary says."""
    comes_to: dict[str, Any] = {"digests": {"method": "1", "baseline": "2"}, "identity": {"cpu": "a"}}

    def replayed(claims: Sequence[Claim], jobs: int, command: object) -> dict[str, Replay]:
        return {claim.id: Replay(dict(comes_to["digests"]), dict(comes_to["identity"])) for claim in claims}

    claimed(BEATS)
    monkeypatch.setattr(replay, "replayed", replayed)
    return comes_to


def change_code(monkeypatch: pytest.MonkeyPatch, modules: dict[str, str] = LATER) -> None:
    monkeypatch.setattr(codehash, "of_result", lambda systems, statistics: dict(modules))


def claim_now(bench: Bench) -> dict[str, Any]:
    row = next(row for row in status.table(bench.folder / "results") if row["slug"] == "ota")
    claim = row["claims"][0]
    fresh = claim["verdict"] == "supported" and not claim["stale"]
    assert row["status"] == ("verified" if fresh else "runs")
    return claim


def record(bench: Bench, **options: Any) -> list[results.Entry]:
    return replay.record("ota", bench.folder / "results", **options)


def test_a_result_survives_a_change_that_changes_no_number(
    bench: Bench, replays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench()
    record(bench)
    assert claim_now(bench)["replayed"] is False  # nothing changed yet
    change_code(monkeypatch)
    stale = claim_now(bench)
    assert stale["stale"] == ["spans.py is used now"]
    assert stale["remedy"] == "the present code was not replayed yet: echelon reproduce ota --replay"
    (written,) = record(bench)
    fresh = claim_now(bench)
    assert fresh["replayed"] and fresh["stale"] == [] and fresh["remedy"] == ""
    rows = status.table(bench.folder / "results")
    assert "[supported](results/ota/beats-hiql.json) (replayed) |" in status.readme_table(rows)
    assert "[supported](../results/ota/beats-hiql.json) (replayed) |" in status.docs_table(rows)
    first, *facts = results.read(bench.folder / "results" / "ota" / "beats-hiql.json")
    assert facts[-1] == written and [f["modules"] for f in facts] == [MODULES, LATER]
    assert written["of"] == first["chain"] and written["kind"] == "replay"
    assert written["judged"] == {**{key: first["estimate"][key] for key in ESTIMATE}, "verdict": "supported"}
    assert {"date", "commit", "code_hash", "identity", "digests"} <= set(written)
    change_code(monkeypatch, LATER | {"spans.py": "10"})
    assert claim_now(bench)["stale"] == ["spans.py is used now"]


def test_a_replay_that_differs_leaves_the_result_stale(
    bench: Bench, replays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench()
    record(bench)
    change_code(monkeypatch)
    replays["digests"]["baseline"] = "3"
    record(bench)
    claim = claim_now(bench)
    assert claim["stale"] and claim["remedy"] == "a replay gives other numbers: echelon reproduce ota"
    assert "(stale: spans.py is used now; a replay gives" in status.remark(claim)
    bench()  # a new result, of the changed code, needs no replay
    assert claim_now(bench)["stale"] == []


def test_an_unreplayed_or_foreign_record_says_what_helps(
    bench: Bench, replays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench()
    change_code(monkeypatch)
    record(bench)
    assert claim_now(bench)["remedy"] == "the recorded code was never replayed: echelon reproduce ota"
    change_code(monkeypatch, MODULES)
    replays["identity"]["cpu"] = "b"
    record(bench)
    change_code(monkeypatch)
    assert claim_now(bench)["remedy"].startswith("replayed on different machines, versions or data: ")


def test_changed_statistics_that_judge_otherwise_leave_it_stale(
    bench: Bench, replays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench()
    record(bench)
    change_code(monkeypatch)
    real = replay.judge

    def narrower(*arguments: Any) -> Any:
        verdict, estimate = real(*arguments)
        return verdict, dataclasses.replace(estimate, low=estimate.low + 0.5)

    monkeypatch.setattr(replay, "judge", narrower)
    record(bench)
    assert claim_now(bench)["remedy"].startswith("a replay gives other numbers")


def test_a_changed_claim_is_not_replayed(bench: Bench, replays: dict[str, Any], claimed: Callable[..., None]) -> None:
    bench()
    claimed(Claim("beats-hiql", "OTA beats HIQL", BEATS.method, Above(5), BEATS.source, BEATS.baseline))
    assert record(bench) == []
    assert claim_now(bench)["stale"] == ["the claim's configuration or test changed"]


def test_a_replay_speaks_of_the_newest_result_of_record(bench: Bench, replays: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="holds no result of record of ota to replay; make one: echelon reproduce ota"):
        record(bench)
    bench(seeds=[7, 8])
    with pytest.raises(UsageError, match="no result of record"):
        record(bench)
    bench()
    bench()
    bench(seeds=[7, 8])
    (written,) = record(bench)
    file = bench.folder / "results" / "ota" / "beats-hiql.json"
    assert written["of"] == [entry["chain"] for entry in results.read(file)][2]


def test_a_forged_fact_is_refused(bench: Bench, replays: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bench()
    record(bench)
    change_code(monkeypatch)
    replays["digests"]["method"] = "other"
    record(bench)
    file = bench.folder / "results" / "ota" / "beats-hiql.json"
    file.write_text(file.read_text().replace('"other"', '"1"'))
    with pytest.raises(DataError, match="entry 2 is not the one that was recorded"):
        claim_now(bench)
    with pytest.raises(DataError, match="entry 2 is not the one that was recorded"):
        record(bench)


def test_code_that_changes_meanwhile_is_noticed(
    bench: Bench, replays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench()
    with pytest.raises(DataError, match=r"the code changed meanwhile \(spans.py is no longer used\)"):
        record(bench, since={"beats-hiql": LATER})
    hashes = iter([MODULES, LATER])
    monkeypatch.setattr(replay, "hashes_of", lambda claim: next(hashes))
    with pytest.raises(DataError, match=r"the code changed meanwhile \(spans.py is used now\)"):
        record(bench)
    assert len(results.read(bench.folder / "results" / "ota" / "beats-hiql.json")) == 1


def test_a_result_without_scores_cannot_be_judged_again(bench: Bench, replays: dict[str, Any]) -> None:
    entry = bench()[0].entry
    for arm in entry["arms"]:
        for run in arm["runs"]:
            del run["scores"]
    results.append(bench.folder / "results" / "ota" / "beats-hiql.json", entry)
    with pytest.raises(DataError, match="keeps no scores of single episodes"):
        record(bench)


@pytest.mark.parametrize("claim", [BEATS, REACHES, SAME], ids=lambda claim: claim.id)
def test_recorded_scores_are_judged_as_they_were(bench: Bench, claim: Claim) -> None:
    entry = {outcome.claim.id: outcome.entry for outcome in bench()}[claim.id]
    judged = replay.judged_again(claim, entry)
    assert judged == {**{key: entry["estimate"][key] for key in ESTIMATE}, "verdict": entry["verdict"]}


# ---- the command


def fast(real: Callable[..., Any], command: Command, system: str, seeds: Any, **options: Any) -> Any:
    return real(system, seeds, **options, command=command)


def test_reproduce_replays_what_it_recorded(
    bench: Bench, replays: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "reproduce", partial(fast, reproduce.reproduce, bench.command))
    file = bench.folder / "results" / "ota" / "beats-hiql.json"
    out = ["--out", str(bench.folder / "results"), "--runs", str(bench.folder / "runs")]
    assert main(["reproduce", "ota", "--seeds", "7,8", *out]) == 0
    assert [entry.get("kind") for entry in results.read(file)] == [None]  # not of record
    assert main(["reproduce", "ota", *out]) == 0
    assert [entry.get("kind") for entry in results.read(file)] == [None, None, "replay"]
    change_code(monkeypatch)
    capsys.readouterr()
    assert main(["reproduce", "ota", "--replay", *out]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "beats-hiql: supported (replayed)"
    change_code(monkeypatch, MODULES)
    assert main(["reproduce", "ota", "--replay", *out]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "beats-hiql: supported (fresh)"


def test_the_command_says_what_does_not_hold(
    bench: Bench, replays: dict[str, Any], claimed: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = ["--out", str(bench.folder / "results")]
    assert main(["reproduce", "ota", "--replay", *out]) == 2
    assert "make one: echelon reproduce ota" in capsys.readouterr().err
    assert main(["reproduce", "ota", "--replay", "--full", *out]) == 2
    assert main(["reproduce", "ota", "--replay", "--seeds", "0", *out]) == 2
    bench()
    record(bench)
    claimed(BEATS, REACHES)
    change_code(monkeypatch)
    replays["digests"]["method"] = "3"
    capsys.readouterr()
    assert main(["reproduce", "ota", "--replay", *out]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "beats-hiql: supported (stale: spans.py is used now; a replay gives other numbers: echelon reproduce ota)",
        "reaches-99: not run",
    ]
    assert main(["reproduce", "ota", "--replay", "--json", *out]) == 1
    assert [claim["id"] for claim in json.loads(capsys.readouterr().out)] == ["beats-hiql", "reaches-99"]


# ---- digests


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The digest of a run that was written with the given changes."""

    def digest(**changes: Any) -> str:
        parts: dict[str, Any] = {
            "tensors": {"agent.w": torch.tensor([1.0, -0.0]), "optimizer.m": torch.arange(3, dtype=torch.uint8)},
            "tasks": {"task1": [0, 1]},
            "executed": torch.zeros(2, 2),
            "levels": {"high": [3.0], "low": [1.0, 2.0]},
            "start": 0,
            "stop": 2,
            "values": [50.0],
        } | changes
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        checkpoint.save(folder, 32, parts["tensors"], {"train_s": float(len(folder.name))})
        row = {"step": 32, "success": 0.5, "tasks": parts["tasks"], "seconds": float(len(list(tmp_path.iterdir())))}
        (folder / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "rollouts").mkdir()
        (folder / "rollouts" / "step_000000032.safetensors").touch()
        tables = {
            level: SimpleNamespace(
                action=torch.tensor(actions),
                start=torch.tensor([parts["start"]] * len(actions)),
                stop=torch.tensor([parts["stop"]] * len(actions)),
            )
            for level, actions in parts["levels"].items()
        }
        rollout = SimpleNamespace(executed=parts["executed"], levels=list(tables), decisions=tables)
        monkeypatch.setattr(Rollout, "load", lambda path: rollout)
        run = Run(folder)
        run.__dict__["identity"] = {"torch": "", "cpu": "", "device": "cpu", "threads": 1, "matmul": "highest",
                                    "precision": "float32"}  # fmt: skip

        def statistic(run: Run) -> np.ndarray:
            if parts["values"] is None:
                raise DataError(f"{run.path}: too few episodes")
            return np.array(parts["values"])

        return replay.statistic_digest(replay.run_digest(run), run, statistic)

    return digest


CHANGES: dict[str, dict[str, Any]] = {
    "a bit of a tensor": {"tensors": {"agent.w": torch.tensor([1.0, 0.0]), "optimizer.m": torch.arange(3).byte()}},
    "a tensor's name": {"tensors": {"agent.v": torch.tensor([1.0, -0.0]), "optimizer.m": torch.arange(3).byte()}},
    "a tensor's type": {
        "tensors": {"agent.w": torch.tensor([1.0, -0.0]).view(torch.int32), "optimizer.m": torch.arange(3).byte()}
    },
    "a tensor's shape": {
        "tensors": {"agent.w": torch.tensor([[1.0, -0.0]]), "optimizer.m": torch.arange(3).byte()}
    },
    "one tensor more": {
        "tensors": {"agent.w": torch.tensor([1.0, -0.0]), "optimizer.m": torch.arange(3).byte(),
                    "z": torch.zeros(0)}
    },
    "an outcome": {"tasks": {"task1": [1, 0]}},
    "an executed action": {"executed": torch.tensor([[0.0, 0.0], [0.0, 1e-45]])},
    "a decision of the top level": {"levels": {"high": [4.0], "low": [1.0, 2.0]}},
    "a decision of the bottom level": {"levels": {"high": [3.0], "low": [1.0, 2.5]}},
    "a level's name": {"levels": {"top": [3.0], "low": [1.0, 2.0]}},
    "a start": {"start": 1},
    "a stop": {"stop": 1},
    "a statistic": {"values": [50.000000000000007]},
    "a statistic's shape": {"values": [[50.0]]},
    "a statistic that needs more of a run": {"values": None},
}  # fmt: skip


def test_digests_cover_every_ingredient_and_nothing_else(traced: Callable[..., str]) -> None:
    plain = traced()
    assert plain == traced() and len(plain) == 64  # the times differed
    drawn = {"random.torch": torch.arange(4).byte(), "source.generator": torch.arange(5).byte()}
    weights = {"agent.w": torch.tensor([1.0, -0.0]), "optimizer.m": torch.arange(3).byte()}
    assert plain == traced(tensors=weights | drawn)
    digests = {name: traced(**change) for name, change in CHANGES.items()}
    assert [name for name, digest in digests.items() if digest == plain] == []
    assert traced(values=None) == digests["a statistic that needs more of a run"]  # folders and messages differ
    assert len(set(digests.values())) == len(CHANGES)


def test_a_run_without_a_checkpoint_or_a_rollout_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint or no rollout"):
        replay.run_digest(Run(tmp_path))


COPY = """
import json, pathlib, shutil, sys
config, out = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
folder = pathlib.Path(sys.argv[1])
shutil.copytree(folder / "run", out)
document = json.loads(config.read_text())
(out / "config.json").write_text(json.dumps(document))
identity = json.loads((out / "identity.json").read_text()) | {"code_hash": "code of " + document["system"]}
(out / "identity.json").write_text(json.dumps(identity))
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([document["system"], document["config"], sys.argv[4:]]) + "\\n")
"""


def test_arms_are_trained_briefly_once_and_real_runs_repeat(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = index.load("hiql")
    store = synthetic_store(tmp_path / "data")
    with tiny_world(store):
        for name in ("run", "again"):
            train(cls, small(cls, updates=2, eval_every=2), tmp_path / name, device="cpu", precision="float32",
                  threads=1)  # fmt: skip
        first, again = (replay.run_digest(Run(tmp_path / name)).hexdigest() for name in ("run", "again"))
    assert first == again
    monkeypatch.setattr(replay, "material", lambda config: (config.env, {"name": config.env}))
    command = lambda config, out: (sys.executable, "-c", COPY, str(tmp_path), str(config), str(out))  # noqa: E731
    found = replay.replayed([BEATS, REACHES, SAME], 2, command)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(system for system, _, _ in calls) == ["hiql", "ota"]
    for system, config, flags in calls:
        arm = {"ota": OTA, "hiql": HIQL}[system]
        assert config == json.loads(json.dumps(dataclasses.asdict(replay.shortened(arm.config(0)))))
        assert (config["updates"], config["eval_every"], config["eval_episodes"], config["seed"]) == (32, 32, 1, 0)
        assert flags == ["--device", "cpu", "--precision", "float32", "--threads", "1"]
    assert {claim: sorted(made.digests) for claim, made in found.items()} == {
        "beats-hiql": ["baseline", "method"], "reaches-99": ["method"], "same-steps": ["baseline", "method"],
    }  # fmt: skip
    assert found["beats-hiql"].digests["method"] == found["reaches-99"].digests["method"]
    assert found["same-steps"].digests["method"] != found["same-steps"].digests["baseline"]
    identity = found["beats-hiql"].identity
    assert identity["threads"] == 1 and identity["precision"] == "float32" and identity["device"] == "cpu"
    assert identity["torch"] == str(torch.__version__) and identity["versions"]["python"] and identity["cpu"]
    assert identity["data"] == {"pointmaze-medium-navigate-v0": {"name": "pointmaze-medium-navigate-v0"}}
    assert "echelon" not in identity["versions"] and found == replay.replayed([BEATS, REACHES, SAME], 2, command)


def test_data_are_named_by_their_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echelon.training import offline

    stores = [synthetic_store(tmp_path / "a" / "maze"), synthetic_store(tmp_path / "b" / "maze"),
              synthetic_store(tmp_path / "c" / "maze", length=19)]  # fmt: skip
    facts = []
    for store in stores:
        monkeypatch.setattr(offline, "ensure", lambda name, transitions, store=store: store)
        name, known = replay.material(OTA.config(0))
        assert name == "pointmaze-medium-navigate-v0 whole"
        facts.append(known)
    assert facts[0] == facts[1] and facts[0]["sha256"] != facts[2]["sha256"]
    assert {**facts[0], "sha256": ""} == {"name": "maze", "episodes": 6, "transitions": 120, "sha256": ""}


def test_arms_computed_in_different_ways_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "material", lambda config: ("data", {}))
    arms = []
    for matmul in ("highest", "medium"):
        run = Run(tmp_path / matmul)
        run.__dict__["identity"] = {"matmul": matmul}
        arms.append((OTA.config(0), run))
    with pytest.raises(DataError, match="computed in different ways"):
        replay.identity_of(arms)
    assert replay.identity_of(arms[:1])["matmul"] == "highest"
