"""FetchReach and FetchPush: the experts succeed, episodes depend on (seed, number) alone, shares are exact."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echelon.cli import main
from echelon.data.goals import GoalSpec
from echelon.data.source import OfflineSource
from echelon.data.store import Store
from echelon.envs.catalog import DATASETS, environment, parse, with_experts
from echelon.envs.ensure import fetch
from echelon.envs.families import recipe
from echelon.envs.fetch import FetchCollector, goal_observation, is_expert, push, reach
from echelon.envs.ogbench import make_env
from echelon.errors import UsageError

pytest.importorskip("gymnasium_robotics")
SIZES = {"fetchreach": 10, "fetchpush": 25}


def test_reach_is_proportional_and_clipped():
    seen = np.zeros(10)
    seen[:3] = (1.3, 0.7, 0.5)
    assert np.allclose(reach(seen, np.array([1.35, 0.3, 0.51])), [0.5, -1, 0.1, 0])


def block_ahead(gripper):
    seen = np.zeros(25)
    seen[:3], seen[3:6] = gripper, (1.3, 0.7, 0.425)
    return push(seen, np.array([1.4, 0.7, 0.425]))  # the block has to go along +x


def test_push_goes_over_down_and_ahead():
    assert block_ahead((1.34, 0.75, 0.48)) == pytest.approx([-1, -0.5, 0, 0], abs=1e-4)  # to (1.235, 0.7), high enough
    assert block_ahead((1.34, 0.75, 0.44)) == pytest.approx(
        [0, 0, 0.4, 0], abs=1e-4
    )  # first up: the block is in the way
    assert block_ahead((1.235, 0.71, 0.48)) == pytest.approx([0, -0.1, -0.55, 0], abs=1e-4)  # down
    assert block_ahead((1.24, 0.71, 0.425)) == pytest.approx([0.5, -0.15, 0, 0], abs=1e-4)  # ahead, back to the line
    assert block_ahead((1.35, 0.7, 0.425)) == pytest.approx([0, 0, 0.55, 0], abs=1e-4)  # on the wrong side: up
    assert (push(np.tile([1.0, 1.0, 0.425], 9)[:25], np.array([1.005, 1, 0.425])) == 0).all()  # it is there


@pytest.mark.parametrize(("place", "episodes", "least"), [("fetchreach", 8, 8), ("fetchpush", 20, 16)])
def test_experts_reach_their_goals(place, episodes, least):
    source = FetchCollector(parse(f"{place}-expert-v0"))
    last = [{k: v[-1] for k, v in source.episode(100, index).items()} for index in range(episodes)]
    gaps = [np.linalg.norm(row["achieved_goals"] - row["desired_goals"]) for row in last]
    assert sum(gap < 0.05 for gap in gaps) >= least
    source.close()


@pytest.mark.parametrize("place", list(SIZES))
def test_rows_and_repeatability(place):
    mixed = FetchCollector(replace(parse(f"{place}-mixed-v0"), length=12))
    uniform = FetchCollector(replace(parse(f"{place}-random-v0"), length=12))
    first, other = mixed.episode(3, 0), mixed.episode(3, 1)
    shapes = {"observations": SIZES[place], "actions": 4, "achieved_goals": 3, "desired_goals": 3}
    assert {name: column.shape for name, column in first.items()} == {
        **{name: (13, size) for name, size in shapes.items()},
        "terminals": (13,),
    }
    assert all(first[name].dtype == np.float32 for name in shapes) and first["terminals"].nonzero()[0].tolist() == [12]
    part = slice(0, 3) if place == "fetchreach" else slice(3, 6)
    assert np.array_equal(first["observations"][:, part], first["achieved_goals"])
    assert (first["desired_goals"] == first["desired_goals"][0]).all()
    assert not np.array_equal(first["desired_goals"][0], other["desired_goals"][0])
    expert = reach if place == "fetchreach" else push
    wanted = [expert(o, g) for o, g in zip(first["observations"], first["desired_goals"], strict=True)]
    assert np.allclose(first["actions"], wanted, atol=1e-4)  # of ten episodes, the first is the expert's
    assert 0.8 < np.abs(other["actions"]).max() <= 1 and len(np.unique(other["actions"])) == 13 * 4
    again, same, begun = mixed.episode(3, 0), uniform.episode(3, 1), uniform.episode(3, 0)
    assert all(np.array_equal(first[k], again[k]) and np.array_equal(other[k], same[k]) for k in first)
    assert np.array_equal(begun["observations"][0], first["observations"][0])
    assert np.array_equal(begun["desired_goals"], first["desired_goals"])
    assert not np.array_equal(begun["actions"], first["actions"])
    mixed.close()
    uniform.close()


@given(st.integers(0, 400), st.sampled_from((0.0, 0.01, 0.025, 0.05, 0.1, 0.3333, 0.5, 1.0)))
def test_shares_are_exact_in_every_beginning(n, share):
    found = sum(is_expert(index, share) for index in range(n))
    assert share * n - 1e-9 <= found < share * n + 1


def test_names():
    assert [parse(f"fetchpush-{kind}-v0").experts for kind in ("random", "mixed", "expert")] == [0, 0.1, 1]
    few = parse("fetchreach-mixed2.5-v0@40")
    assert (few.experts, few.episodes, few.full_episodes, few.length) == (0.025, 40, 2000, 50)
    assert few.name == with_experts("fetchreach-mixed-v0@40", 0.025) and not few.published and few.regenerable
    assert recipe(few) == {"name": "fetch-scripted", "version": 1, "experts": 0.025}
    assert parse("fetchreach-mixed10-v0") is DATASETS["fetchreach-mixed-v0"]
    assert with_experts("fetchpush-mixed-v0", 1) == "fetchpush-expert-v0"
    assert environment("fetchpush-mixed1-v0") is environment("FetchPush-v4")
    for wrong in ("fetchreach-mixed101-v0", "fetchslide-mixed-v0", "fetchreach-mixed2.-v0", "cube-mixed5-v0"):
        with pytest.raises(UsageError, match="unknown data set"):
            parse(wrong)
    with pytest.raises(UsageError, match=r"a share of 1.5 experts was asked for; valid: 0 to 1"):
        with_experts("fetchreach-mixed-v0", 1.5)
    with pytest.raises(UsageError, match="cube-single-play-v0 has no share of experts; valid: fetchreach-mixed-v0"):
        with_experts("cube-single-play-v0", 0.5)
    with pytest.raises(UsageError, match="not published, it is made here: echelon data make fetchreach-mixed-v0"):
        fetch("fetchreach-mixed-v0")


def test_made_stored_and_read_in_batches(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path))
    argv = ["data", "make", "fetchreach-mixed-v0", "--experts", "0.25", "--episodes", "5", "--jobs", "1", "--json"]
    assert main(argv) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["name"] == "fetchreach-mixed25-v0@5" and manifest["env"] == "FetchReach-v4"
    assert manifest["recipe"]["experts"] == 0.25 and manifest["source"].endswith("no released file has this name")
    store = Store.open("fetchreach-mixed25-v0@5")
    assert (store.episodes, store.transitions, store.validation().episodes) == (5, 250, 1)
    gaps = np.linalg.norm(store.columns["achieved_goals"] - store.columns["desired_goals"], axis=1)
    assert (gaps[50::51] < 0.05).tolist()[0] and (gaps[50 + 4 * 51] < 0.05)  # episodes 0 and 4 are the expert's
    batch = OfflineSource(store, {"value": GoalSpec(future=0.8, random=0.2)}, 32, 0).next()
    assert batch["value_goals"].shape == (32, 10) and torch.isfinite(batch["observations"]).all()
    assert main(["data", "make", "cube-single-play-v0", "--experts", "0.5"]) == 2


@pytest.mark.parametrize("place", list(SIZES))
def test_the_environment_is_the_data_sets(place):
    env = make_env(f"{place}-mixed-v0")
    expert = reach if place == "fetchreach" else push
    starts = []
    for task in (1, 2):
        seen, info = env.reset(seed=5, options={"task_id": task})
        assert info["task"] == f"task{task}" and env.observation_space.contains(seen)
        starts.append(seen["goal"])
        for step in range(50):
            action = expert(seen["observation"].astype(float), info["desired_goal"])
            seen, reward, terminated, truncated, outcome = env.step(action)
            assert not terminated and truncated == (step == 49) and reward == outcome["success"]
        assert outcome["success"]
        near = np.abs(seen["observation"] - seen["goal"])
        assert near[:3].max() < 0.08 and (near[3:9].max() < 0.05 or place == "fetchreach")
    again, _ = env.reset(seed=5, options={"task_id": 1})
    assert np.array_equal(again["goal"], starts[0]) and not np.array_equal(starts[0], starts[1])
    with pytest.raises(UsageError, match="no task 6; valid: 1 to 5"):
        env.reset(options={"task_id": 6})
    assert env.reset()[1]["task_id"] in range(1, 6)
    env.close()


def test_a_pushs_goal_is_its_end():
    start = np.arange(25.0)
    start[3:6] = (1.2, 0.7, 0.425)
    goal = goal_observation("FetchPush-v4", start, np.array([1.2, 0.9, 0.425]))
    assert np.allclose(goal[:9], [1.2, 0.855, 0.425, 1.2, 0.9, 0.425, 0, 0.045, 0], atol=1e-4)
    assert goal[9:14].tolist() == [9, 10, 11, 12, 13] and (goal[14:] == 0).all()
