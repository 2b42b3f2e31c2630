"""What the offline systems' claims measure, with numbers set by hand, and which trainings the claims need."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small, synthetic_store, tiny_world
from test_systems_hecrl import build as build_hecrl
from test_systems_hecrl import cube_store

from echelon.claims import AtLeast, success
from echelon.envs.maze import MazeMap
from echelon.errors import DataError, UsageError
from echelon.evidence import reproduce
from echelon.evidence.run import Run
from echelon.systems.offline import moved, prompts
from echelon.systems.offline.beside import beside, gained_over
from echelon.systems.offline.beso import BESO
from echelon.systems.offline.cells import rank_correlation, straight_order, value_order
from echelon.systems.offline.hilp import HILP, HILPConfig
from echelon.systems.offline.prompts import acting_with, prompted, takes_longer
from echelon.systems.offline.recipes import arm
from echelon.training import run as training

LARGE = "pointmaze-large-navigate-v0"

# --- distances of cells


def test_rank_correlation_of_a_worked_example():
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)."""
    x, y = np.array([1.0, 7.0, 7.0, 9.0]), np.array([-3.0, -2.0, 5.0, 6.0])
    assert rank_correlation(x, y) == pytest.approx(4.5 / 22.5**0.5, abs=1e-12)
    assert rank_correlation(x, -y) == pytest.approx(-4.5 / 22.5**0.5, abs=1e-12)


@given(st.lists(st.integers(-20, 20), min_size=3, max_size=30).filter(lambda x: len(set(x)) > 1))
def test_rank_correlation_sees_the_order_alone(numbers):
    x = np.array(numbers, dtype=float)
    assert rank_correlation(x, np.exp(x / 10)) == pytest.approx(1, abs=1e-9)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1, abs=1e-9)


@pytest.mark.parametrize(("maze", "expected"), [("medium", 0.892), ("large", 0.822), ("giant", 0.852)])
def test_straight_distances_of_the_mazes(maze, expected):
    found = straight_order(SimpleNamespace(config={"env": f"pointmaze-{maze}-navigate-v0"}))
    assert found.shape == () and float(found) / 100 == pytest.approx(expected, abs=5e-4)


class Knowing:
    """An agent that knows the ways: V is minus the steps, `worst` plus the steps, `xy` minus the straight distance."""

    def value_functions(self, observation: torch.Tensor, goal: torch.Tensor) -> dict[str, torch.Tensor]:
        maze = MazeMap("large")
        here, there = (maze.to_cell(x.numpy()) for x in (observation, goal))
        steps = [maze.distances((int(g[0]), int(g[1])))[tuple(s)] for s, g in zip(here, there, strict=True)]
        ways = torch.tensor(np.array(steps, np.float32))
        return {"V": -ways, "worst": ways, "xy": -(observation - goal).norm(dim=-1)}


def test_a_value_that_counts_steps_orders_all_distances():
    run: Any = SimpleNamespace(config={"env": LARGE}, agent=Knowing)
    assert float(value_order(run, "V")) == pytest.approx(100, abs=1e-9)
    assert float(value_order(run, "worst")) == pytest.approx(-100, abs=1e-9)
    assert float(value_order(run, "xy")) == pytest.approx(float(straight_order(run)), abs=0.1)


def test_where_a_state_is_no_place_cells_have_no_distances():
    with pytest.raises(UsageError, match="'antmaze-large-navigate-v0': distances of cells"):
        straight_order(SimpleNamespace(config={"env": "antmaze-large-navigate-v0"}))


# --- other prompts, other data


def test_one_training_serves_all_prompts(tmp_path: Path):
    """Under its own prompt the last evaluation comes out again; under another, that of a run trained with it."""
    with tiny_world(synthetic_store(tmp_path / "walks")):
        runs = {}
        for prompt in ("plan", "goal", "random"):
            config = small(HILP, updates=60, eval_every=60, eval_episodes=3, planning_states=30, lr=0.02, prompt=prompt)
            training.train(HILP, config, tmp_path / prompt, device="cpu", threads=1, say=lambda text: None)
            runs[prompt] = Run(tmp_path / prompt)
        for trained in (runs["plan"], runs["random"]):
            for prompt, own in runs.items():
                expected = 100.0 * np.array(list(own.evaluations[-1]["tasks"].values()))
                found = prompted(trained, prompt)
                assert found.shape == (5, 3)
                np.testing.assert_array_equal(found, expected)
        assert len({json.dumps(own.evaluations[-1]["tasks"]) for own in runs.values()}) > 1, "prompts make a difference"
        with pytest.raises(UsageError, match="prompt must be goal, plan or random"):
            prompted(runs["plan"], "north")


def test_weights_act_again_by_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Denoising steps differ in acting alone: asked for its own three, the last evaluation comes out again."""
    with tiny_world(synthetic_store(tmp_path / "walks")):
        changes: dict[str, Any] = {"updates": 4, "eval_every": 4, "eval_episodes": 2, "embed_dim": 12, "sigma_max": 5.0}
        run = Run(training.train(BESO, small(BESO, **changes), tmp_path / "run", device="cpu", threads=1) or tmp_path)
        expected = 100.0 * np.array(list(run.evaluations[-1]["tasks"].values()))
        np.testing.assert_array_equal(acting_with(run, "denoise_steps", 3), expected)
        assert acting_with(run, "denoise_steps", 30).shape == (5, 2)
        with pytest.raises(UsageError, match="denoise_steps must be at least 1, got 0"):
            acting_with(run, "denoise_steps", 0)
        for times, points in ((0.0, 100), (1e6, 0)):
            assert takes_longer(run, "denoise_steps", 4, times) == points
        monkeypatch.setattr(prompts, "_seconds", lambda agent, shown: agent.config.denoise_steps)
        found = [float(takes_longer(run, "denoise_steps", 30, times)) for times in (5, 10, 10.1)]
        assert found == [100, 100, 0]


def write_run(path: Path, env: str, outcomes: list[int], code: str = "abc", **config: Any) -> Run:
    """A finished run with one evaluation of two tasks."""
    path.mkdir(parents=True)
    seed = int(path.name.partition("-")[2])
    documents = {
        "config": {"system": "smore", "config": {"env": env, "seed": seed, "temperature": 3.0, **config}},
        "identity": {"code_hash": code},
        "result": {},
    }
    for name, document in documents.items():
        (path / f"{name}.json").write_text(json.dumps(document))
    tasks = {"task1": outcomes[:2], "task2": outcomes[2:]}
    (path / "evaluations.jsonl").write_text(json.dumps({"step": 5, "tasks": tasks}) + "\n")
    return Run(path)


def test_a_run_is_compared_with_the_one_that_differs_in_its_data_alone(tmp_path: Path):
    run = write_run(tmp_path / "smore-few-1" / "seed-1", "few", [1, 0, 0, 1])
    write_run(tmp_path / "smore-many-1" / "seed-0", "many", [0, 0, 0, 0])
    write_run(tmp_path / "smore-many-2" / "seed-1", "many", [0, 0, 0, 0], temperature=0.0)
    write_run(tmp_path / "smore-many-3" / "seed-1", "many", [0, 0, 0, 0], code="older")
    unfinished = write_run(tmp_path / "smore-many-4" / "seed-1", "many", [0, 0, 0, 0])
    (unfinished.path / "result.json").unlink()
    with pytest.raises(DataError, match="no finished run beside it is the same but for its data, 'many'"):
        gained_over(run, "many")
    wanted = write_run(tmp_path / "smore-many-5" / "seed-1", "many", [1, 1, 0, 0])
    assert beside(run, "many").path == wanted.path
    assert gained_over(run, "many").tolist() == [[0, -100], [0, 100]]


# --- objects that subgoals leave in their place


def test_objects_left_are_those_not_moved(tmp_path: Path, monkeypatch):
    agent, store = build_hecrl(), cube_store(tmp_path / "cubes")
    agent.norm.update(torch.as_tensor(store.columns["observations"]))
    asked = []

    def held(env: str, transitions: int | None) -> Any:
        asked.append((env, transitions))
        return SimpleNamespace(validation=lambda: None if transitions == 1 else store)

    def propose(s: torch.Tensor, g: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
        proposals = s[:, None].repeat(1, n, 1)
        proposals[:, : n // 4, 19] += 1  # a quarter of the proposals move the first of two cubes by 10 cm
        return proposals

    monkeypatch.setattr(moved, "ensure", held)
    monkeypatch.setattr(agent, "propose", propose)
    config = {"env": "cube-double-play-v0", "transitions": 200}
    run = SimpleNamespace(config=config, agent=lambda: agent)
    assert moved.objects_left(run, pairs=20).tolist() == [1.75] * 20
    assert asked == [("cube-double-play-v0", 200)]
    with pytest.raises(DataError, match="cube-double-play-v0 has no validation episodes"):
        moved.objects_left(SimpleNamespace(config=config | {"transitions": 1}, agent=lambda: agent))


# --- what is trained


def configs(system: str, full: bool = False) -> set[Any]:
    claims = reproduce.claims_of(system, full)
    return {score.arm.config(seed) for claim in claims for score in claim.measured for seed in claim.seeds}


def test_an_arm_is_the_recipe_with_changes():
    side = arm(HILPConfig, LARGE, "cpu", "straight on", prompt="goal", skill_temperature=3.0)
    assert side.name == "straight on" and arm(HILPConfig, LARGE, "cpu").name == "HILP"
    changed = arm(HILPConfig, LARGE, "cpu").config(4)
    assert side.config(4) == dataclasses.replace(changed, prompt="goal", skill_temperature=3.0)


@pytest.mark.parametrize(("system", "trainings"), [("saw", 9), ("hilp", 6), ("smore", 18), ("hecrl", 6)])
def test_claims_share_their_trainings(system, trainings):
    assert len(configs(system)) == trainings


def test_what_a_score_is_compared_with_is_trained_too():
    """`gained_over` reads runs on more experts' data: the same claim trains them."""
    for full in (False, True):
        compared = [c for c in reproduce.claims_of("smore", full) if c.id.startswith("fewer-experts")]
        assert len(compared) == 1 + full
        for claim in compared:
            trained = {score.arm.config(0) for score in claim.measured}
            for score in claim.scores:
                assert isinstance(score.statistic, partial)
                assert dataclasses.replace(score.arm.config(0), env=score.statistic.keywords["env"]) in trained


def test_smore_s_claims_are_about_pushing_and_reaching():
    for full, shares in ((False, ("", "1")), (True, ("", "2.5", "1"))):
        reaches, above_cloning, above_awr, *fewer = reproduce.claims_of("smore", full)
        assert reaches.test == AtLeast(95) and all(
            s.arm.config(0).env == "fetchreach-mixed-v0" for s in reaches.measured
        )
        data = {f"fetchpush-mixed{share}-v0" for share in shares}
        for claim in fewer:
            curves = [score for score in claim.also if score.statistic is success]
            assert {score.arm.config(0).env for score in curves} == data and len(curves) == 2 * len(data)
        for claim in (above_cloning, above_awr):
            assert {score.arm.config(0).env for score in claim.measured} == {"fetchpush-mixed-v0"}


def test_ablations_differ_in_what_they_are_named_after():
    def difference(claim: Any) -> set[str]:
        sides = [dataclasses.asdict(score.arm.config(0)) for score in claim.scores]
        return {name for name in sides[0] if sides[0][name] != sides[1][name]}

    found = {
        (slug, claim.id): difference(claim)
        for slug in ("saw", "hilp", "smore", "hecrl")
        for claim in reproduce.claims_of(slug, full=True)
        if claim.baseline is not None and claim.id != "not-below-hiql"
    }
    assert found == {
        ("saw", "above-own-net"): {"bootstrap_weight"},
        ("saw", "above-alike"): {"kl_alpha"},
        ("saw", "stitch-control"): {"bootstrap_weight"},
        ("hilp", "above-random-skill"): set(),
        ("hilp", "plan-not-below-goal"): set(),
        ("hilp", "above-euclidean"): {"embedding", "skill_temperature"},
        ("hilp", "order-of-distances"): set(),
        ("smore", "above-cloning"): {"temperature"},
        ("smore", "above-awr"): {"variant"},
        ("smore", "fewer-experts"): {"temperature"},
        ("smore", "fewer-experts-than-awr"): {"variant"},
        ("hecrl", "moves-fewer"): {"high"},
    }
