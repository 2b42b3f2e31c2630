"""What cannot be built, read or stepped is said once, with the environment, the level, the step and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor

from echelon.envs.joined import Joined
from echelon.errors import EchelonError, MissingExtra, UsageError
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.runner import Runner
from echelon.systems.online import goals
from echelon.training.online.worlds import make_env, make_world, world_spaces


class Odd(gymnasium.Env[Any, Any]):
    """Shows dicts within a dict; raises, or shows NaN, at the third step."""

    action_space = Discrete(2)

    def __init__(self, fault: str = "", inner: Any = None):
        parts = {"b": Box(-1, 1, (2,)), "a": Box(-2, 2, (1,))} if inner is None else {"b": inner}
        self.observation_space: Any = Dict({"observation": Box(-9, 9, (1,)), "desired_goal": Dict(parts)})
        self.fault, self.count = fault, 0

    def show(self) -> Any:
        x = np.nan if self.fault == "nan" and self.count == 3 else 0.0
        goal = {"b": np.array([0.1, 0.2], np.float32), "a": np.array([1.5], np.float32)}  # not in the space's order
        return {"observation": np.array([x], np.float32), "desired_goal": goal}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self.show(), {}

    def step(self, action: int) -> Any:
        self.count += 1
        if self.fault == "raises" and self.count == 3:
            raise FloatingPointError("the arm came off")
        return self.show(), 0.0, False, False, {}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> float:
        return 0.0


class First(Level):
    name = "arm"

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(torch.zeros(len(features["observation"]), dtype=torch.int64))


def missing(package: str) -> Any:
    raise gymnasium.error.DependencyNotInstalled(f"{package} is not installed")


@pytest.fixture(autouse=True)
def odd() -> Iterator[None]:
    makers = {
        "Odd-v0": Odd,
        "OddRaises-v0": lambda: Odd("raises"),
        "OddNan-v0": lambda: Odd("nan"),
        "OddInner-v0": lambda: Odd(inner=Discrete(3)),
        "OddFaulty-v0": lambda: 1 / 0,
        "OddMujoco-v0": lambda: missing("MuJoCo"),
        "OddBox-v0": lambda: missing("box2d"),
    }
    for name, make in makers.items():
        gymnasium.register(name, entry_point=make, disable_env_checker=True)
    yield
    for name in makers:
        gymnasium.registry.pop(name)


def test_what_cannot_be_built() -> None:
    with pytest.raises(UsageError, match="environment 'OddFaulty-v0': ZeroDivisionError: division by zero"):
        make_env("OddFaulty-v0")
    with pytest.raises(MissingExtra, match=r'mujoco is not installed; it comes with: pip install "echelon\[control\]"'):
        make_env("OddMujoco-v0")
    with pytest.raises(UsageError, match="environment 'OddBox-v0': box2d is not installed"):
        make_env("OddBox-v0")


def test_what_cannot_be_read() -> None:
    with pytest.raises(UsageError, match=r"observation 'desired_goal' is .*; a dict within a dict can be read if"):
        make_env("OddInner-v0")


def test_dicts_within_a_dict_are_joined_in_the_order_of_the_space() -> None:
    env = make_env("Odd-v0")
    seen, _ = env.reset()
    assert isinstance(env, Joined) and seen["desired_goal"].tolist() == pytest.approx([1.5, 0.1, 0.2])
    bounds: Any = env.observation_space["desired_goal"]
    assert bounds.low.tolist() == [-2, -1, -1] and bounds.dtype == np.float32
    assert world_spaces("Odd-v0").observation["desired_goal"] == (3,)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            "OddRaises-v0",
            "level 'arm' in stream 0: slot 0, episode 0, tick 2 of OddRaises-v0: FloatingPointError: the arm",
        ),
        ("OddNan-v0", "'observation', seen by level 'arm', contains NaN in stream 0: .* of OddNan-v0"),
    ],
)
def test_what_goes_wrong_in_a_step(name: str, what: str) -> None:
    with pytest.raises(EchelonError, match=what):
        Runner([First()], make_world(name, 2)).collect(5)


def test_worlds_of_tables_have_their_names() -> None:
    class Far(First):
        def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
            return Decision(torch.full((len(features["observation"]),), 9))

    with pytest.raises(
        EchelonError, match="level 'arm' in some stream of chain: UsageError: an action lies outside of 0"
    ):
        Runner([Far()], make_world("chain", 2)).collect(1)


def test_tasks_with_several_goals_need_a_distance() -> None:
    far, goal = torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2)
    with pytest.raises(UsageError, match="Odd-v0 cannot tell the reward for another goal; give a threshold"):
        goals.GoalReward("Odd-v0")(far, goal)
    assert goals.GoalReward("Odd-v0", 1.0)(far, goal).tolist() == [-1.0]
