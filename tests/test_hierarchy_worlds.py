"""Gymnasium environments as worlds: seeds, options, bounds, time limits, and which autoreset modes are taken."""

from __future__ import annotations

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from hierarchy_scripts import Script, differences

from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Reset, from_gym, from_vector


class Walk(gymnasium.Env):
    """A walk on a line from a random place to `goal`, which an option sets; observations of three kinds."""

    observation_space = gymnasium.spaces.Dict(
        observation=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
        goal=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
        picture=gymnasium.spaces.Box(0, 255, (2, 2), np.uint8),
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1), (options or {}).get("goal", 3)
        return self.show(), {"success": 0.0}

    def show(self):
        picture = np.full((2, 2), int(self.place) % 256, np.uint8)
        return {"observation": np.array([self.place]), "goal": np.array([self.goal], dtype=float), "picture": picture}

    def step(self, action):
        assert self.action_space.contains(action)
        self.place += float(action[0])
        won = self.place >= self.goal
        return self.show(), -abs(self.place - self.goal), won, False, {"success": float(won)}


class Forward(Level):
    """Wants 1.5 a step towards the goal, which is more than the bounds allow."""

    name = "low"

    def decide(self, features, parent, due):
        return Decision(1.5 * (features["goal"] - features["observation"]).sign())


def resets(n):
    return [Reset(seed=i, options={"goal": 2 + i % 3}, labels={"task": i % 3}) for i in range(n)]


@pytest.mark.parametrize("slots", [1, 3, 7])
def test_gymnasium_environments_run_the_episodes_asked_for(slots):
    envs = [TimeLimit(Walk(), 4) for _ in range(slots)]
    rollout = Runner([Forward()], from_gym(envs), info_labels=("success",)).episodes(resets(7))
    assert rollout.observation["observation"].dtype == torch.float32
    assert rollout.observation["picture"].dtype == torch.uint8 and rollout.observation["picture"].shape[1:] == (2, 2)
    starts = rollout.observation["observation"][rollout.spans["stream"].starts, 0]
    drawn = [np.random.default_rng(seed).uniform(-1, 1) for seed in range(7)]
    assert starts.tolist() == pytest.approx([np.float32(x) for x in drawn])
    assert rollout.proposed.unique().tolist() == [1.5] and rollout.executed.unique().tolist() == [1.0]
    steps = [int(np.ceil(2 + i % 3 - x)) for i, x in enumerate(drawn)]
    won = [n <= 4 for n in steps]
    assert False in won and True in won
    assert rollout.spans["stream"].lengths.tolist() == [min(n, 4) for n in steps]
    assert rollout.streams.terminated.tolist() == won and rollout.streams.truncated.tolist() == [not w for w in won]
    assert rollout.streams.labels["success"].tolist() == [float(w) for w in won]
    final = [x + min(n, 4) for x, n in zip(drawn, steps, strict=True)]
    assert rollout.streams.final_observation["observation"][:, 0].tolist() == pytest.approx(final, abs=1e-6)
    assert rollout.streams.labels["task"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_results_do_not_depend_on_the_number_of_environments():
    runs = [Runner([Forward()], from_gym([TimeLimit(Walk(), 4) for _ in range(n)])).episodes(resets(7)) for n in (1, 4)]
    assert differences(*runs) == []


def test_clipping_can_be_left_to_the_environment():
    class Wide(Walk):
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    rollout = Runner([Forward()], from_gym([Wide()])).episodes([Reset(seed=0)])
    assert rollout.executed.unique().tolist() == [1.5]
    assert from_gym([Walk()], clip=False).bounds is None


def test_discrete_actions():
    class Push(Level):
        name = "low"

        def decide(self, features, parent, due):
            return Decision((features["observation"][:, 2] > 0).long())

    rollout = Runner([Push()], from_gym([gymnasium.make("CartPole-v1") for _ in range(2)])).episodes(
        [Reset(seed=i) for i in range(3)]
    )
    assert rollout.executed.dtype == torch.int64 and rollout.executed.shape == (rollout.size,)
    assert rollout.streams.labels["return"].tolist() == rollout.spans["stream"].lengths.tolist()
    env = gymnasium.make("CartPole-v1")
    seen, _ = env.reset(seed=1)
    first = int(rollout.spans["stream"].starts[1])
    for step in range(5):
        assert rollout.observation["observation"][first + step].tolist() == seen.tolist()
        seen, *_ = env.step(int(rollout.executed[first + step]))


def test_two_time_scales_on_mujoco():
    pytest.importorskip("mujoco")
    envs = [gymnasium.make("HalfCheetah-v5", max_episode_steps=7) for _ in range(2)]
    stack = [Script("high", act=lambda f, p: f["observation"][:, :6].tanh()), Script("low", act=lambda f, p: -p)]
    rollout = Runner(stack, from_gym(envs), generator=torch.Generator().manual_seed(3)).collect(10)
    assert rollout.streams.truncated.tolist() == [True, True, False, False]
    assert rollout.streams.labels["length"].tolist() == [7, 7, 3, 3]
    assert torch.equal(rollout.executed, -rollout.observation["observation"][:, :6].tanh())
    again = gymnasium.make("HalfCheetah-v5")
    seen, _ = again.reset(seed=int(rollout.streams.labels["seed"][1]))
    for item in rollout.spans["stream"].order or range(7, 14):
        assert rollout.observation["observation"][item].numpy() == pytest.approx(seen.astype(np.float32), abs=0)
        seen, *_ = again.step(rollout.executed[item].numpy())


@pytest.mark.parametrize("slots", [2, 3])
def test_a_vector_environment_without_autoreset_gives_the_same(slots):
    makers = [lambda: TimeLimit(Walk(), 4) for _ in range(slots)]
    world = from_vector(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED))
    same = [Reset(seed=i, options={"goal": 3}) for i in range(8)]
    runner = Runner([Forward()], world, info_labels=("success",))
    reference = Runner([Forward()], from_gym([make() for make in makers]), info_labels=("success",)).episodes(same)
    assert differences(runner.episodes(same), reference) == []
    assert (
        differences(runner.episodes(same[:1]), Runner([Forward()], world, info_labels=("success",)).episodes(same[:1]))
        == []
    )


def test_a_vector_environment_takes_one_set_of_options_at_a_time():
    world = from_vector(SyncVectorEnv([Walk, Walk], autoreset_mode=AutoresetMode.DISABLED))
    with pytest.raises(UsageError, match="same options"):
        Runner([Forward()], world).episodes(resets(2))


def test_same_step_autoreset_keeps_the_true_final_observation():
    makers = [lambda: TimeLimit(Walk(), 3) for _ in range(3)]
    world = from_vector(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    runner = Runner([Forward()], world, info_labels=("success",))
    rollout = runner.collect(9)
    assert rollout.streams.labels["success"].tolist() == rollout.streams.terminated.tolist()
    assert rollout.streams.terminated.any() and rollout.streams.truncated.any()
    starts = rollout.observation["observation"][rollout.spans["stream"].starts, 0]
    assert ((starts >= -1) & (starts <= 1)).all()
    moved = rollout.streams.final_observation["observation"][:, 0] - starts
    assert moved.tolist() == pytest.approx(rollout.spans["stream"].lengths.tolist(), abs=1e-5)
    assert rollout.streams.labels["seed"].tolist() == [-1] * len(rollout.streams)
    with pytest.raises(UsageError, match="explicit resets"):
        runner.episodes([Reset()])


def test_next_step_autoreset_is_refused():
    with pytest.raises(UsageError, match=r"autoreset mode NEXT_STEP .*DISABLED"):
        from_vector(SyncVectorEnv([Walk], autoreset_mode=AutoresetMode.NEXT_STEP))


class TorchLine(VectorEnv):
    """A batched world of tensors."""

    metadata: ClassVar[dict] = {"autoreset_mode": AutoresetMode.DISABLED}
    single_action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, num_envs):
        self.num_envs, self.place = num_envs, torch.zeros(num_envs, 1)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        self.place = torch.where(torch.from_numpy(mask)[:, None], torch.zeros_like(self.place), self.place)
        return self.place, {}

    def step(self, actions):
        assert isinstance(actions, torch.Tensor)
        self.place = self.place + actions
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        return self.place, self.place[:, 0], self.place[:, 0] > 3, never, {}


def test_a_batched_world_of_tensors():
    level = Script("low", act=lambda f, p: torch.ones_like(f["observation"]) * 0.75)
    rollout = Runner([level], from_vector(TorchLine(3))).episodes([Reset(seed=i) for i in range(5)])
    assert rollout.spans["stream"].lengths.tolist() == [5] * 5
    assert rollout.streams.final_observation["observation"][:, 0].tolist() == [3.75] * 5
    assert rollout.observation["observation"][:5, 0].tolist() == [0, 0.75, 1.5, 2.25, 3]


def test_from_gym_needs_an_environment():
    with pytest.raises(UsageError, match="at least one environment"):
        from_gym([])
