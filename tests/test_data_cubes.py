"""Play data of several cubes: OGBench's own oracles and settings, each cube moved in turn, at the published sizes."""

from dataclasses import replace

import numpy as np
import pytest

from echelon.envs.catalog import parse
from echelon.envs.manipulation import ManipulationCollector

LENGTH = 20


@pytest.mark.parametrize(
    ("place", "cubes", "episodes", "limit", "stacking"),
    [("double", 2, 1000, 500, (0.0, 0.25)), ("triple", 3, 3000, 1000, (0.05, 0.35))],
)
def test_play_of_several_cubes(place, cubes, episodes, limit, stacking):
    info = parse(f"cube-{place}-play-v0")
    assert (info.episodes, info.length, info.validation_episodes) == (episodes, 1000, episodes // 10)
    assert (info.env.observation_dim, info.env.action_dim, info.env.limit) == (19 + 9 * cubes, 5, limit)
    source = ManipulationCollector(replace(info, length=LENGTH))
    assert source.stacking == stacking and source.random_rate == 0 and list(source.oracles) == ["cube"]
    oracle, drawn, targets = source.oracles["cube"], [], set()
    draw, reset = source.env.set_new_target, oracle.reset

    def following(**options):
        drawn.extend([options["p_stack"]] if "p_stack" in options else [])  # a reset's first target has none
        return draw(**options)

    def start(seen, facts):
        targets.add(int(facts["privileged/target_block"]))
        reset(seen, facts)
        oracle._plan = oracle._plan[:4]  # done after a few steps: several targets in a short episode

    source.env.set_new_target, oracle.reset = following, start
    rows = [source.episode(0, index) for index in range(3)]
    again = source.episode(0, 0)
    source.close()
    assert targets <= set(range(cubes)) and len(targets) >= 2
    assert all(stacking[0] <= p <= stacking[1] for p in drawn) and len(set(drawn)) == 3  # one for an episode
    shapes = {"observations": info.env.observation_dim, "actions": 5, "qpos": 14 + 7 * cubes, "qvel": 14 + 6 * cubes}
    for episode in rows:
        assert all(episode[k].shape == (LENGTH + 1, n) and episode[k].dtype == np.float32 for k, n in shapes.items())
        assert np.abs(episode["actions"]).max() <= 1 and episode["terminals"].nonzero()[0].tolist() == [LENGTH]
        assert "button_states" not in episode
    assert all(np.array_equal(rows[0][name], again[name]) for name in again)
    assert not np.array_equal(rows[0]["qpos"], rows[1]["qpos"])
