"""The status of systems follows from claims, results and code; the pages that show it stay in step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evidence_bench import BEATS, HIQL, MODULES, REACHES, SAME, Bench, bench, claimed, config_of, steps

from echelon.claims import Above, Arm, Claim, Score, success
from echelon.errors import DataError
from echelon.evidence import codehash, reproduce, status
from echelon.systems import index

__all__ = ["bench", "claimed"]


def state(bench: Bench) -> dict[str, Any]:
    rows = {row["slug"]: row for row in status.table(bench.folder / "results")}
    return rows["ota"]


def test_status_before_any_result(bench: Bench) -> None:
    rows = status.table(bench.folder / "results")
    assert [row["number"] for row in rows] == [*range(1, 102), *([None] * (len(rows) - 101))]
    assert {row["slug"] for row in rows if row["status"] == "runs"} == set(index.names())
    assert [claim["verdict"] for claim in state(bench)["claims"]] == ["not run"] * 3


def test_verified_means_every_claim_is_supported(bench: Bench, claimed: Callable) -> None:
    claimed(BEATS, SAME)
    bench()
    row = state(bench)
    assert row["status"] == "verified"
    assert row["claims"][0]["result_file"] == "ota/beats-hiql.json" and row["claims"][0]["estimate"][0] == 40
    claimed(BEATS, SAME, REACHES)
    assert state(bench)["status"] == "runs"
    bench()
    assert [claim["verdict"] for claim in state(bench)["claims"]] == ["supported", "supported", "not supported"]
    assert state(bench)["status"] == "runs"


def test_only_results_of_record_count(bench: Bench, claimed: Callable) -> None:
    claimed(BEATS)
    bench(seeds=[7, 8])
    assert state(bench)["claims"][0] | {"text": ""} == {
        "id": "beats-hiql", "text": "", "verdict": "not run", "stale": [], "estimate": None, "date": None,
        "result_file": "ota/beats-hiql.json", "replayed": False, "remedy": "", "guard": "", "undecided": False,
            "also": [],
    }  # fmt: skip
    bench()
    bench(seeds=[7, 8])
    assert state(bench)["status"] == "verified"


def test_changed_code_makes_a_result_stale(bench: Bench, claimed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(BEATS)
    bench()
    now = MODULES | {"data/goals.py": "0", "nets/new.py": "1"}
    monkeypatch.setattr(codehash, "of_result", lambda systems, statistics: now)
    row = state(bench)
    assert row["status"] == "runs" and row["claims"][0]["verdict"] == "supported"
    assert row["claims"][0]["stale"] == ["data/goals.py changed", "nets/new.py is used now"]
    assert "(stale: data/goals.py changed, nets/new.py is used now; " in status.readme_table([row])


def test_a_changed_claim_makes_a_result_stale(bench: Bench, claimed: Callable) -> None:
    claimed(BEATS)
    bench()
    for changed in (
        Claim("beats-hiql", "OTA beats HIQL", BEATS.method, Above(5), BEATS.source, BEATS.baseline),
        Claim("beats-hiql", "OTA beats HIQL", BEATS.method, Above(15), BEATS.source, Score(HIQL, steps)),
        Claim("beats-hiql", "OTA beats HIQL", Score(Arm("OTA", lambda s: config_of("ota", s, lr=1.0)), success),
              Above(15), BEATS.source, BEATS.baseline),
    ):  # fmt: skip
        claimed(changed)
        assert "the claim's configuration or test changed" in state(bench)["claims"][0]["stale"]
        assert state(bench)["claims"][0]["remedy"] == "echelon reproduce ota"
    claimed(Claim("beats-hiql", "said in other words", BEATS.method, Above(15), BEATS.source, BEATS.baseline))
    assert state(bench)["status"] == "verified"


def test_settings_that_came_later_count_as_the_same_at_their_defaults() -> None:
    known = json.loads(json.dumps(reproduce.specification(BEATS)))
    lr = known["arms"][0]["config"].pop("lr")
    assert reproduce.speaks_of({"specification": known}, BEATS)
    other = Score(Arm("OTA", lambda s: config_of("ota", s, lr=2 * lr)), success)
    claim = Claim("beats-hiql", "OTA beats HIQL", other, Above(15), BEATS.source, BEATS.baseline)
    assert not reproduce.speaks_of({"specification": known}, claim)
    known["arms"][0]["config"]["forgotten"] = 1
    assert not reproduce.speaks_of({"specification": known}, BEATS)


def test_more_seeds_of_record_than_were_run_is_not_run(bench: Bench, claimed: Callable) -> None:
    claimed(BEATS)
    bench()
    claimed(Claim("beats-hiql", "", BEATS.method, Above(15), BEATS.source, BEATS.baseline, seeds=tuple(range(8))))
    assert state(bench)["claims"][0]["verdict"] == "not run"


def test_pages_are_rewritten_between_their_markers(bench: Bench, claimed: Callable) -> None:
    claimed(BEATS)
    bench()
    root = bench.folder
    (root / "docs").mkdir()
    for page in (root / "README.md", root / "docs" / "systems.md"):
        page.write_text(f"before\n{status.BEGIN}\nold\n{status.END}\nafter\n")
    assert status.outdated(root) == [root / "README.md", root / "docs" / "systems.md"]
    assert status.write_pages(root) == [root / "README.md", root / "docs" / "systems.md"]
    assert status.outdated(root) == [] and status.write_pages(root) == []
    readme, systems = (root / "README.md").read_text(), (root / "docs" / "systems.md").read_text()
    assert readme.startswith(f"before\n{status.BEGIN}\n") and readme.endswith(f"\n{status.END}\nafter\n")
    papers = sum(index.rows()[name].number is not None for name in index.names())
    assert f"Of 101 systems: 1 verified, {papers - 1} running, {101 - papers} planned. Baselines: GCBC," in readme
    assert "| OTA beats HIQL | [supported](results/ota/beats-hiql.json) |" in readme
    assert systems.count("\n| ") >= 105 and "../results/ota/beats-hiql.json" in systems
    assert "| 27 | OTA | Option-aware" in systems and "| baseline | HIQL |" in systems


def test_a_page_without_markers_is_refused(bench: Bench) -> None:
    (bench.folder / "docs").mkdir()
    (bench.folder / "README.md").write_text(status.BEGIN)
    (bench.folder / "docs" / "systems.md").write_text("")
    with pytest.raises(DataError, match=r"README.md: the generated table goes between"):
        status.pages(bench.folder)


def test_the_pages_of_this_checkout_are_up_to_date() -> None:
    stale = status.outdated(Path(__file__).parents[1])
    assert not stale, f"{', '.join(path.name for path in stale)}: run `echelon systems --write` and commit the result"
