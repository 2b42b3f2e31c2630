"""What the page tells of levels and labels while a run learns, of training episodes, and of files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_view import checked, record

from echelon.credit.returns import gae
from echelon.errors import DataError
from echelon.evidence.view import control, gather, levels, rollouts, runs
from echelon.evidence.view.page import page
from echelon.evidence.view.timeline import Strings
from echelon.rollout import Rollout
from echelon.spans import Spans
from echelon.training.online.agent import AFTER, BONUS, EXPECTED

ONLINE: dict[str, Any] = {"env": "somewhere", "seed": 0, "slots": 2, "ticks": 4}


def valued(episodes: int = 1, length: int = 40, seed: int = 0) -> Rollout:
    """Five episodes each that were cut off, whose levels note what they expected, and what was expected at the end."""
    rollout, generator = record("pointmaze-medium-navigate-v0", episodes, length), torch.Generator().manual_seed(seed)
    for level, d in rollout.decisions.items():
        d.values["value" if level == "high" else EXPECTED] = torch.randn(len(d), generator=generator)
        rollout.streams.labels[AFTER + level] = torch.randn(len(rollout.streams), generator=generator)
    rollout.decisions["low"].values[BONUS] = torch.randn(len(rollout.decisions["low"]), generator=generator)
    rollout.reward["env"] = torch.randn(rollout.size, generator=generator)
    rollout.scored["env"] = torch.ones(rollout.size, dtype=torch.bool)
    rollout.meta["credit"] = {"high": {"gamma": 0.9, "lam": 0.8}, "low": {"gamma": 0.5, "lam": 1.0}}
    rollout.meta["diagnostics"] = {}
    return rollout


def exact(rollout: Rollout, level: str, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantages of the decisions of a level, by the library's own rule, stream by stream."""
    d = rollout.decisions[level]
    order, value = torch.argsort(d.start), d.values["value" if level == "high" else EXPECTED]
    reward = torch.stack(
        [sum((gamma**k * rollout.reward["env"][a + k] for k in range(b - a)), torch.tensor(0.0))
         for a, b in zip(d.start[order].tolist(), d.stop[order].tolist(), strict=True)]
    ).double()  # fmt: skip
    if BONUS in d.values:
        reward = reward + d.values[BONUS][order].double()
    found = gae(
        Spans.by_key(d.stream[order]), reward=reward, value=value[order].double(),
        gamma=gamma ** (d.stop - d.start)[order].double(), lam=lam,
        final_value=torch.as_tensor(rollout.streams.labels[AFTER + level]).double(),
    )  # fmt: skip
    return found.advantage.numpy()


@pytest.mark.parametrize(("level", "gamma", "lam"), [("high", 0.9, 0.8), ("low", 0.5, 1.0)])
def test_what_was_cut_off_reaches_to_what_was_expected_then(level: str, gamma: float, lam: float) -> None:
    """By gamma and lambda of the record, own rewards included; the terms sum to the advantage."""
    rollout = valued()
    wanted = exact(rollout, level, gamma, lam)
    np.testing.assert_allclose(control.advantages(rollout, level, {"gamma": 0.1, "lam": 0.1}), wanted, atol=1e-6)
    for number, one in enumerate(control.timelines(rollout, {}, Strings(), 5)):
        mine = np.flatnonzero([one.rows[r].level == level for r in one.row])
        assert np.array_equal(one.metrics["value"][mine], one.chain["value before it"][mine])
        theirs = (rollout.decisions[level].stream == number).numpy()
        np.testing.assert_allclose(one.metrics["advantage"][mine], wanted[theirs], atol=1e-6)
        error, decay = one.chain["td_error"][mine], one.chain["decay"][mine]
        for k in range(len(mine)):
            weights = np.concatenate([[1.0], np.cumprod(decay[k:-1])])
            assert abs(weights @ error[k:] - one.metrics["advantage"][mine[k]]) < 1e-6
        parts = {n: c[mine] for n, c in one.chain.items() if n not in ("td_error", "decay", "value before it")}
        own = np.nan_to_num(np.stack(list(parts.values()))).sum(0)
        np.testing.assert_allclose(own - one.chain["value before it"][mine], error, atol=1e-9)


def test_without_an_expectation_at_the_end_the_others_reach_up_to_the_last() -> None:
    rollout = valued()
    for level in rollout.levels:
        del rollout.streams.labels[AFTER + level]
    one = control.timelines(rollout, {}, Strings(), 1)[0]
    high = np.flatnonzero([one.rows[r].level == "high" for r in one.row])
    assert np.isnan(one.metrics["advantage"][high[-1]]) and np.isfinite(one.metrics["advantage"][high[:-1]]).all()
    assert one.chain["decay"][high[-2]] == 0.0, "nothing unknown is a term of what is shown"


# ---- runs


def online_run(folder: Path, seed: int = 0, **metrics: float) -> Path:
    """An online run of three evaluations, and of training episodes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"system": "nobody", "config": ONLINE | {"seed": seed}}))
    rows = [
        {"step": step, "kind": "eval", **{name: value + step / 10 for name, value in metrics.items()}}
        for step in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (1, 2, 3):
        valued(seed=10 * seed + step).save(folder / "rollouts" / f"step_{step:09d}")
    valued(seed=99).save(folder / "rollouts" / "trained_000000003")
    return folder


def test_training_episodes_are_listed_as_such(tmp_path: Path) -> None:
    run = gather.gather([online_run(tmp_path / "run")])[0].runs[0]
    evaluated, trained = run.timelines[:5], run.timelines[5:]
    assert [one.key for one in evaluated] == [str(n) for n in range(5)]
    assert [one.key for one in trained] == [f"trained {n}" for n in range(5)]
    assert all(one.title.startswith("training episode") for one in trained)
    np.testing.assert_allclose(trained[2].rewards["env"], valued(seed=99).reward["env"][80:120].numpy(), atol=1e-7)


def test_variances_are_those_of_the_advantages_by_evaluation(tmp_path: Path) -> None:
    run = gather.gather([online_run(tmp_path / "run")])[0].runs[0]
    assert set(run.variances) == {"high", "low"}
    for level, gamma, lam in (("high", 0.9, 0.8), ("low", 0.5, 1.0)):
        curve = run.variances[level]
        assert curve.step.tolist() == [1.0, 2.0, 3.0]
        wanted = [exact(valued(seed=step), level, gamma, lam).var() for step in (1, 2, 3)]
        np.testing.assert_allclose(curve.value, wanted, rtol=1e-6)


def test_measures_are_told_from_metrics(tmp_path: Path) -> None:
    numbers = {"option/length": 4.9, "option/reached": 0.4, "option/entropy": 0.2}
    run = gather.gather([online_run(tmp_path / "run", **numbers)])[0].runs[0]
    found = {measure.title: levels.curves(run, measure) for measure in levels.MEASURES}
    assert [len(curves) for curves in found.values()] == [2, 1, 1, 1, 0, 0, 0]
    _, anew, reached, entropy, *_ = (next(iter(curves.values()), None) for curves in found.values())
    assert anew is not None and reached is not None and entropy is not None
    np.testing.assert_allclose(anew.value, [100 / 5.0, 100 / 5.1, 100 / 5.2])
    np.testing.assert_allclose(reached.value, [50, 60, 70])
    np.testing.assert_allclose(entropy.value, [0.3, 0.4, 0.5])


def test_labels_and_levels_of_language_have_their_own(tmp_path: Path) -> None:
    told = {"level/goal/turns": 4.0, "level/goal/advantage_variance": 0.5, "label/block/act/entropy": 1.5}
    told |= {"label/block/act/advantage_std": 3.0, "kl": 0.25, "label/block/act/kl": 0.5}
    told |= {"invalid": 0.1, "level/goal/invalid": 0.2}
    run = runs.Run(tmp_path, "x", {}, {}, {}, [], {n: runs.Curve(np.ones(1), np.array([v])) for n, v in told.items()})
    found = [{name: curve.value.tolist() for name, curve in levels.curves(run, m).items()} for m in levels.MEASURES]
    wanted = [{"goal": [0.5], "block act": [9.0]}, {"goal": [25.0]}, {}, {}, {"block act": [1.5]}]
    assert found == [*wanted, {"all": [0.25], "block act": [0.5]}, {"all": [90.0], "goal": [80.0]}]


def test_seeds_have_a_mean_and_an_interval(tmp_path: Path) -> None:
    for seed in range(3):
        online_run(tmp_path / "runs" / f"seed-{seed}", seed, **{"option/entropy": 0.1 * seed})
    groups = gather.gather([tmp_path / "runs"])
    entropy = levels.MEASURES[3]
    line = levels.line(groups[0], [levels.curves(run, entropy)["option"] for run in groups[0].runs])
    np.testing.assert_allclose(line.y, [0.2, 0.3, 0.4], atol=1e-12)
    assert line.low is not None and line.high is not None
    assert (line.low < line.y).all() and (line.y < line.high).all() and (line.high <= line.y + 0.1 + 1e-12).all()
    html = page(groups)
    parser = checked(html)
    assert "learning" in parser.ids
    for words in ("Variance of advantages", "Entropy of choices", "training episode"):
        assert words in html, words
    alone = levels.line(groups[0], [runs.Curve(np.arange(2.0), np.ones(2))])
    assert alone.low is None and alone.high is None


def test_a_page_without_levels_has_no_such_section(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"system": "nobody", "config": {"env": "somewhere", "seed": 0}}))
    assert "learning" not in checked(page(gather.gather([tmp_path]))).ids


def test_lengths_of_spans_tell_their_unit(tmp_path: Path) -> None:
    online_run(tmp_path / "control")
    (tmp_path / "talk").mkdir()
    config = {"env": "somewhere", "seed": 0, "group": 2, "warm_episodes": 0}
    (tmp_path / "talk" / "config.json").write_text(json.dumps({"system": "other", "config": config}))
    groups = gather.gather([tmp_path / "control", tmp_path / "talk"])
    groups[1].runs[0].spans = {"high": np.array([12.0, 30.0])}
    html = page(groups)
    checked(html)
    assert html.count("steps a decision lasts") == 2 and html.count("tokens a decision lasts") == 1


# ---- what is damaged or foreign


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("evaluations.jsonl", '{"step": 1, "tasks": {"a": []}}\n', "line 1: task 'a' has no episode"),
        ("evaluations.jsonl", '{"step": 1, "tasks": {"a": ["won"]}}\n', "line 1: no evaluation"),
        ("evaluations.jsonl", '{"step": 1, "tasks": {"a": [1]}}\n{"step": 2, "tasks": {"b": [1]}}\n', "line 2: tasks"),
        ("result.json", '{"wall_s": "long"}', "wall_s is 'long', not a number"),
        ("config.json", '{"system": "nobody", "config": {"seed": "x"}}', "seed is 'x', not a whole number"),
        ("config.json", '{"system": "nobody", "config": {"env": 7}}', "env is 7, not a text"),
        ("rollouts/step_final.safetensors", "", "'final' is no step"),
    ],
)
def test_what_is_no_value_of_a_run_is_named_with_its_file(tmp_path: Path, file: str, content: str, why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"system": "nobody", "config": {"env": "somewhere", "seed": 0}}))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError) as caught:
        gather.gather([tmp_path])
    assert str(tmp_path / file.partition(".")[0]) in str(caught.value) and why in str(caught.value)


def test_a_record_of_something_else_is_named(tmp_path: Path) -> None:
    """Of an episode without goals in what should be a maze; of columns that are none of a rollout."""
    from echelon import columns
    from echelon.rollout import FORMAT

    config = {"env": "pointmaze-medium-navigate-v0", "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps({"system": "nobody", "config": config}))
    foreign = record("pointmaze-medium-navigate-v0", 1, 10)
    del foreign.observation["goal"], foreign.streams.labels["success"]
    foreign.save(tmp_path / "rollouts" / "step_000000001")
    with pytest.raises(DataError, match=r"no observation 'goal', no label 'success'; is it of pointmaze-medium"):
        gather.gather([tmp_path])
    columns.save(tmp_path / "rollouts" / "step_000000002", FORMAT, {"item": {"tick": torch.zeros(3)}}, {})
    with pytest.raises(DataError, match=r"step_000000002\.safetensors: not the columns of a rollout"):
        rollouts.opened(tmp_path / "rollouts" / "step_000000002")
