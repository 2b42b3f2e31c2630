"""Manipulation data: rows, the switch of targets, the noise of the two types, repeatability after any history."""

from dataclasses import replace

import numpy as np
import pytest

from echelon.envs.catalog import parse
from echelon.envs.families import collector, recipe
from echelon.envs.manipulation import OTHER_STACKING, STACKING, ManipulationCollector, visible
from echelon.errors import UsageError

LENGTH = 24
SIZES = {"cube-single": (28, 21, 20, 0), "scene": (40, 25, 24, 2), "puzzle-3x3": (55, 23, 23, 9)}


def short(name, length=LENGTH):
    return ManipulationCollector(replace(parse(name), length=length))


@pytest.mark.parametrize("kind", ["play", "noisy"])
@pytest.mark.parametrize("place", list(SIZES))
def test_rows_and_repeatability(place, kind):
    source = short(f"{place}-{kind}-v0")
    assert source.random_rate == (0.0 if kind == "play" else 0.2 if place == "puzzle-3x3" else 0.1)
    first, other = source.episode(3, 0), source.episode(3, 1)
    observations, qpos, qvel, buttons = SIZES[place]
    shapes = {"observations": observations, "actions": 5, "qpos": qpos, "qvel": qvel}
    assert all(first[k].shape == (LENGTH + 1, n) and first[k].dtype == np.float32 for k, n in shapes.items())
    assert first["terminals"].nonzero()[0].tolist() == [LENGTH]
    if buttons:
        assert first["button_states"].shape == (LENGTH + 1, buttons) and first["button_states"].dtype == np.int64
    else:
        assert "button_states" not in first
    assert np.abs(first["actions"]).max() <= 1.0
    for e in (first, other):  # observation and qpos of a row are of one moment: both begin with the arm's six joints
        assert np.array_equal(e["observations"][:, :6], e["qpos"][:, :6])
        assert np.array_equal(e["observations"][:, 6:12], e["qvel"][:, :6])
    assert not np.array_equal(first["observations"][0], other["observations"][0])
    again = source.episode(3, 0)  # after another episode, and after this one
    assert all(np.array_equal(first[k], again[k]) for k in first)
    source.close()


class Still:
    """An oracle that never moves, so that an action is its noise."""

    done = False

    def reset(self, seen, info):
        pass

    def select_action(self, seen, info):
        return np.zeros(5)


def test_noise_and_random_actions_of_the_noisy_type(monkeypatch):
    source = short("puzzle-3x3-noisy-v0", length=4000)
    source.oracles = {"button": Still()}
    outcome = source.env.step(np.zeros(5))
    source.env.step = lambda action: outcome  # the physics plays no part here
    assert source.random_rate == 0.2
    source.random_rate = 0.0
    levels = []
    for index in range(6):
        actions = source.episode(0, index)["actions"]
        levels.append(actions[:, :3].std())
        assert np.allclose(actions.mean(0), 0, atol=5 * actions.std(0) / np.sqrt(4001))
        assert np.isclose(actions[:, 3].std() / levels[-1], 3, rtol=0.06)
        plain = np.median(np.abs(actions), axis=0)  # the median is not touched by clipping
        assert np.isclose(plain[4] / plain[3], 10 / 3, rtol=0.08)
    assert 0 < min(levels) < max(levels) < 0.1 and np.std(levels) > 0.01
    source.random_rate = 0.2
    monkeypatch.setattr("echelon.envs.manipulation.NOISE_LEVEL", 0.0)
    actions = source.episode(0, 0)["actions"]
    random = (actions != 0).any(1)
    assert abs(random.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4001)
    assert np.allclose(actions[random].std(0), 1 / np.sqrt(3), rtol=0.06) and np.abs(actions[random]).max() > 0.99
    assert np.unique(actions[random][:, 0]).size == random.sum()
    source.close()


def test_after_a_switch_the_first_action_sees_the_previous_target():
    seen = []

    class Spy:
        done = False

        def reset(self, observation, info):
            self.count, self.done = 0, False
            seen.append(("target", info["privileged/target_block_pos"]))

        def select_action(self, observation, info):
            self.count += 1
            self.done = self.count == 5
            seen.append(("action", info["privileged/target_block_pos"]))
            return np.zeros(5)

    source = short("cube-single-play-v0", length=17)
    source.oracles = {"cube": Spy()}
    source.episode(0, 0)
    source.close()
    targets = [place for what, place in seen if what == "target"]
    actions = [place for what, place in seen if what == "action"]
    assert len(targets) == 4 and len(actions) == 18
    assert np.allclose(actions[:6], targets[0])  # five of the first target, one more after the switch
    assert np.allclose(actions[6:11], targets[1]) and np.allclose(actions[11:16], targets[2])


def test_scene_episodes_with_the_block_out_of_view_are_drawn_again(monkeypatch):
    assert visible(np.array([[0.4, 0.2, 0.02], [0.4, -0.29, 0.3], [0.35, -0.31, 0.07]]))
    for y, z in ((0.29, 0.02), (-0.3, 0.02), (-0.35, 0.09)):
        assert not visible(np.array([[0.4, 0.0, 0.02], [0.4, y, z]]))
    source = short("scene-play-v0", length=3)
    first = source.episode(0, 0)
    verdicts = iter([False, True])
    monkeypatch.setattr("echelon.envs.manipulation.visible", lambda block: next(verdicts))
    second = source.episode(0, 0)
    assert len(second["terminals"]) == 4 and not np.array_equal(first["qpos"], second["qpos"])
    source.close()


def test_published_settings():
    assert STACKING == {"single": (0, 0), "double": (0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
    assert OTHER_STACKING == (0.5, 0.5)
    assert recipe(parse("scene-play-v0")) == {"name": "ogbench-manipulation", "version": 1}
    with pytest.raises(UsageError, match="needs a trained expert"):
        collector(parse("antmaze-large-stitch-v0"))
