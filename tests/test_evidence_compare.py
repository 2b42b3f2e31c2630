"""Comparisons of systems on data sets: numbers, labels, picture and errors."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evidence_bench import Bench, bench, claimed

from echelon.errors import DataError, UsageError
from echelon.evidence import compare, statistics

__all__ = ["bench", "claimed"]

ENVS = ("pointmaze-medium-navigate-v0", "pointmaze-large-stitch-v0")


def write_run(folder: Path, system: str, env: str, seed: int, tasks: list[list[int]], **config: object) -> None:
    """A run's files: three equal evaluations with these outcomes by task."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"system": system, "config": {"env": env, "seed": seed, **config}}))
    mean = sum(map(sum, tasks)) / sum(map(len, tasks))
    row = {"success": mean, "tasks": {f"task{t}": outcomes for t, outcomes in enumerate(tasks, 1)}}
    (folder / "evaluations.jsonl").write_text("".join(json.dumps({"step": s, **row}) + "\n" for s in (10, 20, 30)))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for env, lift in zip(ENVS, (0, 1), strict=True):
        for seed in (0, 1):
            write_run(tmp_path / f"gcbc-{env}" / f"seed-{seed}", "gcbc", env, seed, [[0, 0, 0, 1], [0, 0, 0, seed]])
            ota = [[1, 1, 0, 1], [1, lift, 1, 1]]
            write_run(tmp_path / f"ota-{env}" / f"seed-{seed}", "ota", env, seed, ota, option_steps=5)
    return tmp_path


def test_means_differences_and_overall(runs: Path) -> None:
    comparison = compare.of_runs([runs])
    assert comparison.labels == ["gcbc", "ota"] and set(comparison.envs) == set(ENVS)
    cell = comparison.cells["ota", ENVS[0]]
    assert cell.scores.shape == (2, 2, 4) and cell.mean.value == 75
    assert comparison.cells["gcbc", ENVS[0]].mean.value == pytest.approx(100 * (0.25 + 0.25 + 0 + 0.25) / 4)
    difference, better = comparison.against_first("ota") or (0, 0)
    assert difference == pytest.approx((75 + 87.5) / 2 - 18.75) and better == 1
    assert comparison.against_first("gcbc") is None
    overall = comparison.overall("ota")
    assert overall is not None and overall.value == statistics.iqm(
        100 * np.array([0.75, 0.75, 0.75, 0.75, 0.75, 1, 0.75, 1])
    )


def test_table_and_document_agree(runs: Path) -> None:
    comparison = compare.of_runs([runs])
    header, rows = compare.table(comparison)
    assert header[0] == "system" and header[-3:] == ("all (IQM)", "difference to first", "P(better than first)")
    assert [len(row) for row in rows] == [len(header)] * 2
    assert rows[1][header.index(ENVS[0])].startswith("75.0 [") and rows[1][-2:] == ("+62.5", "1.00")
    document = json.loads(json.dumps(compare.document(comparison)))
    assert document["systems"]["ota"]["envs"][ENVS[0]]["value"] == 75
    assert len(document["systems"]["gcbc"]["envs"][ENVS[1]]["runs"]) == 2


def test_one_data_set_needs_no_overall_column(runs: Path) -> None:
    header, rows = compare.table(compare.of_runs([runs / f"ota-{ENVS[0]}", runs / f"gcbc-{ENVS[0]}"]))
    assert header == ("system", ENVS[0], "difference to first", "P(better than first)")
    assert [row[0] for row in rows] == ["ota", "gcbc"] and rows[1][-2:] == ("-56.2", "0.00")


def test_a_missing_data_set_leaves_a_gap(runs: Path) -> None:
    comparison = compare.of_runs([runs / f"gcbc-{ENVS[0]}", runs / f"gcbc-{ENVS[1]}", runs / f"ota-{ENVS[0]}"])
    assert comparison.overall("ota") is None and comparison.against_first("ota") is None
    assert "–" in compare.table(comparison)[1][1]
    ElementTree.fromstring(compare.svg(comparison))


def test_runs_of_one_system_are_told_apart_by_what_differs(runs: Path) -> None:
    for seed in (0, 1):
        write_run(runs / "long" / f"seed-{seed}", "ota", ENVS[0], seed, [[1] * 4] * 2, option_steps=20)
    labels = compare.of_runs([runs / f"ota-{ENVS[0]}", runs / "long"]).labels
    assert labels == ["ota option_steps=5", "ota option_steps=20"]


def test_picture_is_svg_with_a_line_for_each(runs: Path) -> None:
    text = compare.svg(compare.of_runs([runs]))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count('class="line"') == 4 and all(env in text for env in ENVS)


def test_errors_say_what_is_wrong(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no evaluated run"):
        compare.of_runs([tmp_path / "nowhere"])
    write_run(runs / "again" / "seed-0", "ota", ENVS[0], 0, [[1] * 4] * 2, option_steps=5)
    with pytest.raises(UsageError, match="the same seed twice"):
        compare.of_runs([runs])
    write_run(runs / "more" / "seed-7", "gcbc", ENVS[0], 7, [[1] * 5] * 2)
    with pytest.raises(DataError, match="different tasks or numbers of episodes"):
        compare.of_runs([runs / f"gcbc-{ENVS[0]}", runs / "more"])


def test_systems_are_trained_with_one_budget_then_compared(bench: Bench) -> None:
    arguments = {"size": "demo", "changes": {"updates": 30}, "runs": bench.folder / "runs", "command": bench.command}
    comparison = compare.compare(["hiql", "ota"], ENVS[:1], seeds=(0, 1), **arguments)
    assert [row[0] for row in compare.table(comparison)[1]] == ["hiql", "ota"]
    assert {run.config["updates"] for cell in comparison.cells.values() for run in cell.runs} == {30}
    assert comparison.against_first("ota") == (pytest.approx(40), 1)
    assert len(bench.calls()) == 4
    compare.compare(["hiql", "ota"], ENVS[:1], seeds=(0, 1), **arguments)
    assert len(bench.calls()) == 4
    with pytest.raises(UsageError, match=r"unknown field of ota's configuration 'update'; did you mean updates"):
        compare.compare(["ota"], ENVS[:1], changes={"update": 3})


# ---- returns, where no success is told


def write_online(folder: Path, system: str, env: str, seed: int, returns: list[float], **config: object) -> None:
    """A run's files: four evaluations, the n-th with these returns plus n, of which the last three count."""
    folder.mkdir(parents=True)
    fields = {"env": env, "seed": seed, "slots": 2, "ticks": 5, **config}
    (folder / "config.json").write_text(json.dumps({"system": system, "config": fields}))
    rows = [
        {
            "step": 10 * n,
            "success": None,
            "return": sum(returns) / len(returns) + n,
            "tasks": {},
            "returns": {env: [value + n for value in returns]},
        }
        for n in range(4)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def returns(tmp_path: Path) -> Path:
    for env, scale in (("Pendulum-v1", -100), ("CartPole-v1", 1)):
        for seed in (0, 1, 2):
            write_online(tmp_path / "sac" / env / f"seed-{seed}", "sac", env, seed, [scale * (5.0 + seed), scale * 7])
            write_online(tmp_path / "td3" / env / f"seed-{seed}", "td3", env, seed, [scale * (4.0 + seed), scale * 6])
    return tmp_path


def test_returns_are_compared_where_no_success_is_told(returns: Path) -> None:
    comparison = compare.of_runs([returns / "sac" / "Pendulum-v1", returns / "td3" / "Pendulum-v1"])
    assert comparison.unit == compare.RETURN == compare.document(comparison)["unit"]
    cell = comparison.cells["sac", "Pendulum-v1"]
    assert cell.scores.shape == (3, 1, 2)
    assert cell.scores[1, 0].tolist() == [-600 + 2, -700 + 2]  # the mean of the last three adds (1 + 2 + 3) / 3
    assert cell.mean.value == pytest.approx(-650 + 2) and cell.mean.low < cell.mean.value < cell.mean.high
    header, rows = compare.table(comparison)
    assert header == ("system", "Pendulum-v1, return", "difference to first", "P(better than first)")
    assert rows[0][1].startswith("-648 [") and rows[0][1].endswith("n=3")
    assert rows[1][-2:] == ("+100", "0.94")  # of nine pairs eight are better and one is as good: (8 + 1/2) / 9


def test_returns_of_several_environments_are_not_averaged(returns: Path) -> None:
    comparison = compare.of_runs([returns])
    header, rows = compare.table(comparison)
    assert set(header[1:3]) == {"CartPole-v1, return", "Pendulum-v1, return"}
    assert rows[1][0] == "td3" and rows[1][3:5] == ("–", "–")
    assert float(rows[1][5]) == pytest.approx(0.5, abs=0.01), "better in the one as often as worse in the other"
    document = json.loads(json.dumps(compare.document(comparison)))
    assert document["systems"]["td3"]["iqm"] is None
    assert document["systems"]["td3"]["against_first"]["difference"] is None


def test_curves_of_returns_go_over_environment_steps(returns: Path) -> None:
    text = compare.svg(compare.of_runs([returns / "sac" / "Pendulum-v1"]))
    ElementTree.fromstring(text)
    assert "environment steps" in text and ">return</text>" in text and "at 300</title>" in text


def test_one_table_has_one_unit(runs: Path, returns: Path) -> None:
    with pytest.raises(UsageError, match=r"one unit: .*gcbc.* tells success, .*sac.*\(.*-v1\) returns alone"):
        compare.of_runs([runs / f"gcbc-{ENVS[0]}", returns / "sac"])
    file = returns / "sac" / "Pendulum-v1" / "seed-0" / "evaluations.jsonl"
    file.write_text(json.dumps({"step": 1, "success": None, "tasks": {}}) + "\n")
    with pytest.raises(UsageError, match="seed-0: its evaluations tell neither success nor return"):
        compare.of_runs([returns / "sac"])
