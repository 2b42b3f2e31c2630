"""Metaworld's clips, tracking and tasks: experts succeed, episodes depend on (seed, number), worlds are restored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.offline_mocapact import discounted, frames

pytest.importorskip("metaworld")

from echelon.envs import metaworld
from echelon.envs.catalog import METAWORLD_TASKS, environment, parse
from echelon.envs.ensure import fetch
from echelon.envs.families import recipe
from echelon.envs.metaworld import (
    AHEAD,
    FEATURES,
    ClipCollector,
    Expert,
    TrackingEnv,
    ahead,
    credit,
    normalized_length,
    normalized_return,
    off_clip,
)
from echelon.envs.ogbench import make_env
from echelon.envs.restore import set_state, state_of
from echelon.errors import UsageError
from echelon.training.online.worlds import make_env as make_world_env
from echelon.training.online.worlds import world_spaces

SHORT = 70
"""Steps of a clip here; reach, push and button-press are done by then."""


@pytest.fixture(scope="module")
def short() -> pytest.MonkeyPatch:
    """Shorter clips, while this module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld, "CLIP", SHORT)
        yield patch


@pytest.fixture(scope="module")
def collectors(short: pytest.MonkeyPatch) -> list[ClipCollector]:
    """Of the good set and of the corrupted one."""
    names = ("metaworld-experts-v0", "metaworld-corrupted-v0")
    return [ClipCollector(replace(parse(name), length=SHORT)) for name in names]


# --- credit


def test_lengths_and_returns_by_hand() -> None:
    assert normalized_length(20, 150, 210) == pytest.approx(0.684211, abs=1e-6)
    rewards, off = np.array([1.0, 0.5, 0.2, 0.9]), np.array([0.0, 0.1, 0.4, 0.0])
    assert normalized_return(rewards, off) == pytest.approx((1.7 / 3) * 0.75)  # lost at its third step
    assert normalized_return(rewards, off / 2) == pytest.approx(2.6 / 4)


def test_rewards_and_advantages_by_hand() -> None:
    states, clip = np.zeros((3, FEATURES)), np.zeros((3, FEATURES))
    states[1, 0], states[2, 4:7] = 0.2, (0.0, 0.12, 0.16)  # the hand .2 m off, then the object
    assert off_clip(states, clip).tolist() == pytest.approx([0, 0.1, 0.1])
    found = credit(states, clip)
    assert found["rewards"].tolist() == pytest.approx([np.exp(-1), np.exp(-1), 0])
    assert found["values"].tolist() == pytest.approx([20.0] * 3)
    assert found["advantages"].tolist() == pytest.approx([20 * (np.exp(-1) - 1)] * 3, rel=1e-5)
    assert found["clip_returns"].tolist() == pytest.approx([np.exp(-1)] * 3)


@given(st.integers(0, 1000), st.integers(1, 12))
def test_returns_are_those_of_plain_sums(seed: int, length: int) -> None:
    states, clip = 0.1 * np.random.default_rng(seed).standard_normal((2, length + 1, FEATURES))
    found = credit(states, clip)
    expected = discounted(np.exp(-((off_clip(states[1:], clip[1:]) / 0.1) ** 2)), 0.95)
    assert np.allclose(found["values"][:-1] + found["advantages"][:-1], expected, atol=1e-4)
    assert (found["advantages"] <= 0).all() and (found["clip_returns"] <= 1).all()
    for t in range(length + 1):
        assert np.allclose(ahead(clip, t), frames(clip, np.zeros_like(clip), t, AHEAD))


# --- data


def test_names_sizes_and_recipes() -> None:
    good, corrupted = parse("metaworld-experts-v0"), parse("metaworld-corrupted-v0@12")
    assert good.env is environment("metaworld-tracking-v0") is corrupted.env
    assert (good.episodes, good.length, corrupted.episodes) == (240, metaworld.CLIP, 12)
    assert not good.published and good.regenerable
    assert recipe(good) == {"name": "metaworld-clips", "version": 1, "experts": 1.0}
    assert recipe(corrupted)["experts"] == 0.5
    with pytest.raises(UsageError, match="not published, it is made here: echelon data make metaworld-experts-v0"):
        fetch("metaworld-experts-v0")


def test_rows_repeatability_and_what_corruption_changes(collectors: list[ClipCollector]) -> None:
    good, mixed = collectors
    first = good.episode(3, 7)  # push, its second episode
    sizes = {"observations": FEATURES, "references": FEATURES, "actions": 4, "mean_actions": 4}
    assert all(first[name].shape == (SHORT + 1, size) for name, size in sizes.items())
    assert {first[name].dtype for name in (*sizes, "rewards", "values", "advantages")} == {np.dtype(np.float32)}
    assert first["terminals"].nonzero()[0].tolist() == [SHORT] and (first["tasks"] == 1).all()
    assert np.array_equal(first["observations"][0], first["references"][0])
    good.episode(3, 1)  # what was done before changes nothing
    again, bad, same = good.episode(3, 7), mixed.episode(3, 7), mixed.episode(3, 1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.array_equal(column, same[name]) for name, column in good.episode(3, 1).items())
    assert np.array_equal(bad["references"], first["references"])
    assert first["clip_returns"][0] > 0.9 > 0.7 > bad["clip_returns"][0]
    noise = first["actions"] - first["mean_actions"]
    inside = np.abs(first["actions"]) < 1
    assert 0.07 < noise[inside].std() < 0.13
    assert not np.array_equal(first["observations"], good.episode(4, 7)["observations"])


def test_a_clip_is_what_the_expert_does_without_noise(collectors: list[ClipCollector]) -> None:
    world, expert = collectors[0].worlds["reach"], collectors[0].experts["reach"]
    start, states = metaworld.clip(world, expert, np.random.default_rng(5))
    seen, done = world.begin(start), False
    for t in range(SHORT):
        assert np.array_equal(states[t], seen[:FEATURES].astype(np.float32))
        seen, _, _, _, info = world.step(expert(seen))
        done = done or bool(info["success"])
    assert done


# --- worlds


def test_tracking_shows_the_clip_and_ends_with_the_task(short: pytest.MonkeyPatch) -> None:
    env = make_env("metaworld-experts-v0")
    assert isinstance(env, TrackingEnv) and len(env.facts.tasks) == len(METAWORLD_TASKS)
    seen, info = env.reset(seed=9, options={"task_id": 1})
    assert info == {"task_id": 1, "task": "task1_reach"}
    clip = env._frames
    assert np.array_equal(seen["observation"], clip[0]) and np.array_equal(seen["goal"], clip[-1])
    assert np.array_equal(seen["reference"], clip[1:6].reshape(-1)) and env.observation_space.contains(seen)
    expert, steps, ended = Expert("reach"), 0, False
    while not ended:
        seen, reward, ended, _, outcome = env.step(expert(env._simulator._get_obs()))
        steps += 1
        assert np.array_equal(seen["observation"], clip[steps])
        assert np.array_equal(seen["reference"], ahead(clip, steps))
    assert outcome["success"] and reward == 1 and steps < SHORT
    other, _ = env.reset(seed=10, options={"task_id": 1})
    again, _ = env.reset(seed=9, options={"task_id": 1})
    assert np.array_equal(again["reference"], clip[1:6].reshape(-1))
    assert not np.array_equal(other["goal"], again["goal"])
    with pytest.raises(UsageError, match="no task 7; valid: 1 to 6"):
        env.reset(options={"task_id": 7})
    env.close()


def test_a_task_shows_its_goal_apart_and_goes_on_bit_for_bit() -> None:
    spaces = world_spaces("metaworld-door-lock-v3")
    assert spaces.observation == {"observation": (FEATURES,), "task": (3,)} and spaces.low == (-1.0,) * 4
    one, other = (make_world_env("metaworld-door-lock-v3", 40) for _ in range(2))
    assert state_of(one)["inner"] == {"seed": None}  # type: ignore[index]
    draw = np.random.default_rng(0)
    one.reset(seed=3)
    for action in draw.uniform(-1, 1, (15, 4)):
        _, reward, terminated, truncated, info = one.step(action)
        assert 0 <= reward <= 1 and not terminated and not truncated and info == {"success": False}
    other.reset(seed=8)
    other.step(np.ones(4))
    state = state_of(one)
    assert state is not None
    set_state(other, state)
    for action in draw.uniform(-1, 1, (25, 4)):
        found = [env.step(action) for env in (one, other)]
        assert np.array_equal(found[0][0]["observation"], found[1][0]["observation"])
        assert found[0][1:] == found[1][1:]
    assert found[0][3], "the limit of 40 steps goes on too"
    starts = [env.reset()[0] for env in (one, other)]
    assert np.array_equal(starts[0]["observation"], starts[1]["observation"])
    with pytest.raises(UsageError, match=r"unknown task of metaworld 'dor-lock'; did you mean door-lock"):
        make_world_env("metaworld-dor-lock-v3")
