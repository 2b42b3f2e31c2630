"""What goes wrong in a world or a level is said with the level, the stream and the values."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from hierarchy_scripts import Clock, Script, lengths, obey

from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.level import Decision
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Learned, Until
from echelon.hierarchy.world import Reset, from_gym
from echelon.rollout import End


def fails(match, levels, world=None, error=EchelonError, episodes=(4, 4, 4)):
    with pytest.raises(error, match=match):
        Runner(levels, world or Clock(2)).episodes(lengths(*episodes))


def late_nan(features, parent):
    x = features["observation"][:, :2].clone()
    x[(x[:, 0] == 2) & (x[:, 1] == 1)] = torch.nan
    return x


def test_nan_actions_name_level_and_stream():
    fails(
        "level 'low' gave an action with NaN in stream 0: slot 0, episode 2, tick 1",
        [Script("low", act=late_nan)],
    )
    fails("level 'high' .* stream 0: slot 0, episode 2, tick 1", [Script("high", act=late_nan), obey()])
    fails(
        r"stream 2 \(agent_0\): slot 1, episode 1, tick 0",
        [Script("low", act=lambda f, p: _nan_at_one(f))],
        Clock(2, 2),
    )


def _nan_at_one(features):
    return torch.where(features["observation"][:, :1] == 1, torch.nan, 0.0)


def test_nan_from_a_guard_names_its_level():
    class Bad(Script):
        def guard(self, features, proposed, running):
            return proposed * torch.nan

    fails("level 'top' gave a guarded action with NaN in stream 0", [Bad("top"), obey()])


def test_nan_observations_name_observation_level_and_stream():
    class Blind(Clock):
        def show(self):
            rows = super().show()
            rows[(rows[:, 0] == 1) & (rows[:, 1] >= 2), 1] = np.nan
            return rows

    message = "observation 'observation', seen by level 'low', contains NaN in stream 1: slot 1, episode 1, tick 2"
    fails(message, [Script("low")], Blind(2))
    fails("contains NaN in stream 1: slot 1, episode 1, tick 2", [Script("low")], Blind(2), episodes=(2, 2))


def test_nan_in_idle_streams_does_not_matter():
    class Rotting(Clock):
        def show(self):
            rows = super().show()
            rows[self.time >= self.length[:, 0]] = np.nan
            return rows

        def step(self, actions, active):
            step = super().step(actions, active)
            step.observation[self.time == self.length[:, 0]] = 0  # the final observation is in order
            return step

    rollout = Runner([Script("low")], Rotting(2)).episodes(lengths(2, 5))
    assert rollout.spans["stream"].lengths.tolist() == [2, 5]


class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, fails_at: str):
        self.fails_at = fails_at

    def reset(self, seed=None, options=None):
        if self.fails_at == "reset":
            raise RuntimeError("no ground")
        return np.zeros(2), {}

    def step(self, action):
        if self.fails_at == "step":
            raise ZeroDivisionError("the floor is gone")
        return np.zeros(2), 0.0, False, False, {}


def test_a_world_that_raises_is_named_with_level_and_stream():
    with pytest.raises(
        EchelonError, match="level 'low' in stream 1: slot 1, episode 1, tick 0 of Mine: ZeroDivisionError: the floor"
    ):
        Runner([Script("low")], from_gym([Mine(""), Mine("step")])).collect(3)
    with pytest.raises(EchelonError, match="slot 1: RuntimeError: no ground"):
        Runner([Script("low")], from_gym([Mine(""), Mine("reset")])).collect(3)

    class Broken(Clock):
        def step(self, actions, active):
            raise KeyError("goal")

    message = "the world raised on an action of level 'low' in some stream of Broken: KeyError: 'goal'"
    fails(message, [Script("low")], Broken(1))


def test_wrong_shapes_are_named():
    fails(
        r"level 'low' was asked for 2 actions and gave shape \[1, 2\]",
        [Script("low", act=lambda f, p: torch.zeros(1, 2))],
    )

    class Odd(Script):
        def guard(self, features, proposed, running):
            return proposed[:, :1]

        def advance(self, action, obs, previous):
            return action[:, :1]

    fails(r"guard of level 'low' returned shape \[2, 1\], not \[2, 2\]", [Odd("low")], error=UsageError)
    fails(r"advance of level 'high' returned shape \[2, 1\], not \[2, 2\]", [_unguarded(Odd)("high", Every(2)), obey()])

    class Short(Clock):
        def show(self):
            return super().show()[:1]

    fails(r"observation 'observation' has shape \[1, 3\]; the world has 2 streams", [Script("low")], Short(2))


def _unguarded(kind):
    return type("Unguarded", (Script,), {"advance": kind.advance})


def test_values_must_come_always_or_never():
    class Moody(Script):
        def decide(self, features, parent, due):
            decision = super().decide(features, parent, due)
            return decision if (features["observation"][:, 1] == 0).all() else decision._replace(log_prob=None)

    fails("level 'low' gives log_prob or values with some of its decisions only", [Moody("low")], error=UsageError)


def test_a_level_stuck_in_empty_decisions_is_named():
    class Stuck(Script):
        def decide(self, features, parent, due):
            return Decision(torch.zeros(len(features["observation"]), 1), empty=features["observation"][:, 0] == 1)

    fails(
        "level 'high' gave 100 empty decisions in a row in stream 1: slot 1, episode 1, tick 0", [Stuck("high"), obey()]
    )


def test_terminations_with_wrong_answers_are_refused():
    fails(
        r"one answer a stream, \[2\], not \[2, 3\]", [Script("high", Until(lambda f, r: f["observation"] > 0)), obey()]
    )
    fails("gives bool, not float32", [Script("high", Until(lambda f, r: f["observation"][:, 0])), obey()])
    fails(r"float\[2\], not \(2, 1\)", [Script("high", Learned(lambda f, a: f["observation"][:, :1])), obey()])
    nan = Learned(lambda f, a: torch.full((2,), torch.nan))
    fails("level 'high' gave a probability of ending with NaN in stream 0", [Script("high", nan), obey()])
    with pytest.raises(UsageError, match="by option, timeout or interrupted"):
        Until(lambda f, r: None, End.PARENT)


def test_after_an_error_the_runner_starts_over():
    world = Clock(2)
    runner = Runner([Script("high", Every(3)), obey()], world, resets=lambda i: Reset(options={"length": 9}))
    runner.collect(2)
    step, world.step = world.step, None
    with pytest.raises(EchelonError, match="TypeError"):
        runner.collect(2)
    world.step = step
    again = runner.collect(4)
    assert again.tick.tolist() == [0, 1, 2, 3] * 2 and again.executed[:, 1].tolist() == [0, 0, 0, 3] * 2


def test_columns_must_come_always():
    class Fickle(Clock):
        def step(self, actions, active):
            step = super().step(actions, active)
            if self.time[0] == 2:
                return step._replace(**self.change)
            return step

    for change, now in (
        ({"elapsed": np.ones(1)}, "'reward', 'elapsed time'"),
        ({"reward": {"bonus": np.ones(1)}}, "'bonus'"),
    ):
        world = Fickle(1)
        world.change = change
        fails(rf"columns \('reward',\) before, \({now},?\) now", [Script("low")], world, UsageError)


def test_observations_to_record_must_exist():
    with pytest.raises(UsageError, match="unknown observation 'goal'"):
        Runner([Script("low")], Clock(1), record=("goal",)).episodes(lengths(2))
