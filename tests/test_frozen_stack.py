"""A frozen stack is the stack below a command: the same transitions as in one hierarchy, and what a world promises."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hierarchy_scripts import Clock
from torch import Tensor

from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.frozen_stack import Command, FrozenStack
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Never, Termination, Until
from echelon.hierarchy.transitions import Transitions
from echelon.hierarchy.world import Reset, from_gym, from_vector
from echelon.rollout import Rollout

GAMMA = 0.9


class Line(gymnasium.Env[np.ndarray, Any]):
    """A place on a line that an action in [-1, 1] moves; the reward is the place; ends beyond 4, is cut after 12."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, start: float = 0.0):
        self.start, self.place, self.ticks = start, start, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place, self.ticks = self.start, 0
        return np.array([self.place]), {}

    def step(self, action: np.ndarray) -> Any:
        self.place += float(action[0])
        self.ticks += 1
        ended = self.place > 4
        return np.array([self.place]), self.place, ended, self.ticks >= 12 and not ended, {"success": ended}


class Move(Level):
    """Goes where it is commanded, faster the longer the episode (its memory counts ticks)."""

    name = "action"

    def start(self, streams: int) -> Tensor:
        return torch.zeros(streams, 1)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Any, Tensor | None]:
        assert memory is not None
        return {**obs, "count": memory}, memory + 1

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        assert parent is not None
        return Decision(parent.reshape(-1, 1) * (0.3 + 0.05 * features["count"]))


class Manager(Level):
    """Commands by where it is: to the right, now and then to the left."""

    name = "manager"

    def __init__(self, termination: Termination):
        self.termination = termination

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        place = features["observation"][:, 0]
        return Decision(torch.where((place * 7).remainder(3) < 2, 1.0, -0.5))


def crossed(features: Any, running: Any) -> Tensor:
    """The place lies in every second interval of length 1."""
    return features["observation"][:, 0].remainder(2) > 1


def envs() -> list[Line]:
    return [Line(0.0), Line(-1.0), Line(0.4)]


def sorted_rows(rows: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    table = torch.stack([rows[name].reshape(len(rows["key"]), -1)[:, 0].double() for name in names], 1)
    return table[np.lexsort(table.T.flip(0).numpy())]


NAMES = ("observation", "next_observation", "action", "reward", "discount", "duration")


@pytest.mark.parametrize("termination", [Every(3), Every(1), Until(crossed) | Every(5), Every(100)])
def test_commands_from_outside_are_those_of_a_level_above(termination: Termination) -> None:
    """One manager above the stack in one runner, and in a frozen one: the same semi-Markov transitions."""
    joined = Runner([Manager(termination), Move()], from_gym(envs())).collect(60)
    whole = Transitions("manager", GAMMA).add(joined)
    stack = FrozenStack(from_gym(envs()), [Move()], Command(termination), gamma=GAMMA)
    runner = Runner([Manager(Every(1))], stack)
    apart = Transitions("manager", GAMMA)
    parts = [apart.add(runner.collect(ticks)) for ticks in (7, 1, 52)]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for slot_start in (0.0, -1.0, 0.4):  # the first episodes of each slot, as far as both runs saw them
        keys = [
            rows["key"][(rows["observation"][:, 0] - slot_start).abs() < 1e-6].sort().values for rows in (whole, found)
        ]
        for one, other in zip(keys[0][:2].tolist(), keys[1][:2].tolist(), strict=True):
            mine = {name: column[whole["key"] == one] for name, column in whole.items()}
            theirs = {name: column[found["key"] == other] for name, column in found.items()}
            assert len(mine["key"]) > 0
            assert torch.allclose(sorted_rows(mine, NAMES), sorted_rows(theirs, NAMES), atol=1e-5)


def test_by_hand() -> None:
    """Command 1 for three ticks from 0: places .3, .65, 1.05; then two are left of a command of -1 cut by nothing."""
    stack = FrozenStack(from_gym([Line()]), [Move()], Command(Every(3)), gamma=0.5)
    stack.reset(np.array([0]), [Reset(seed=0)])
    step = stack.step(torch.ones(1), np.ones(1, dtype=bool))
    assert step.observation["observation"][0, 0] == pytest.approx(1.05)
    assert step.reward[0] == pytest.approx(0.3 + 0.65 / 2 + 1.05 / 4)
    assert step.elapsed[0] == 3 and not step.terminated[0] and not step.truncated[0]
    while not step.terminated[0]:
        step = stack.step(torch.ones(1), np.ones(1, dtype=bool))
    # .3 + .05 t after t ticks: 4.05 after the ninth (sum .3·9 + .05·36 = 4.5), 3.8 after the eighth (2.4 + 1.4)
    assert step.observation["observation"][0, 0] == pytest.approx(4.5)
    assert step.elapsed[0] == 3 and step.infos[0]["success"]


def test_a_stack_in_a_stack() -> None:
    inner = FrozenStack(from_gym([Line()]), [Move()], Command(Every(2)))

    class Twice(Level):
        name = "twice"

        def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
            assert parent is not None
            return Decision(parent)

    outer = FrozenStack(inner, [Twice()], Command(Every(2)))
    flat = FrozenStack(from_gym([Line()]), [Move()], Command(Every(4)))
    runs = [Runner([Manager(Every(1))], world).collect(3) for world in (outer, flat)]
    assert torch.allclose(runs[0].elapsed, runs[1].elapsed)
    # the first command is the same; later ones may differ, since Manager looks at other moments
    assert torch.allclose(runs[0].reward_sum()[:1], runs[1].reward_sum()[:1])


class Push(Level):
    """Pushes a cart where it is commanded."""

    name = "action"

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        assert parent is not None
        return Decision((parent > 0).long())


def test_a_world_that_moves_all_together() -> None:
    """Episodes that end in the middle of a command, one by one, in a vector environment as in single ones."""

    def found(world: Any) -> Rollout:
        return Runner([Lean()], FrozenStack(world, [Push()], Command(Every(4)))).episodes(
            [Reset(seed=n) for n in range(5)]
        )

    apart = found(from_gym([gymnasium.make("CartPole-v1", max_episode_steps=30) for _ in range(3)]))
    make = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=30)] * 3
    together = found(from_vector(SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)))
    assert len(set(apart.streams.labels["length"].tolist())) > 1  # type: ignore[union-attr]
    for name in ("elapsed", "proposed", "tick"):
        assert torch.equal(getattr(apart, name), getattr(together, name)), name
    assert torch.equal(apart.reward_sum(), together.reward_sum())
    assert torch.equal(apart.reward_sum(), apart.elapsed)  # a cart earns 1 a step


def test_agents_are_commanded_one_by_one() -> None:
    """Clock pays the tick: 0 + 1, 2 + 3 and, at the end of five ticks, 4, to each of two agents."""

    class Idle(Level):
        name = "action"

        def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
            assert parent is not None
            return Decision(parent * 10)

    class Name(Level):
        name = "manager"

        def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
            return Decision(features["observation"][:, 2])

    world = Clock(2, agents=2)
    rollout = Runner([Name()], FrozenStack(world, [Idle()], Command(Every(2)))).collect(3)
    assert rollout.reward_sum().reshape(4, 3).tolist() == [[1, 5, 4]] * 4
    assert rollout.elapsed.reshape(4, 3).tolist() == [[2, 2, 1]] * 4
    assert bool(rollout.streams.terminated.all())
    assert world.heard[0][0].tolist() == [0, 10, 0, 10]


class Kept(Line):
    """One that `envs.restore` does not know."""


def cart_stack() -> FrozenStack:
    class Push(Move):
        def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
            assert parent is not None
            coin = torch.rand(len(parent), generator=self.generator)
            return Decision(((coin + 0.1 * parent + 0.01 * features["count"][:, 0]) > 0.5).long())

    generator = torch.Generator().manual_seed(3)
    carts = from_gym([gymnasium.make("CartPole-v1") for _ in range(2)])
    return FrozenStack(carts, [Push()], Command(Every(3)), generator=generator)


class Lean(Level):
    name = "manager"

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(features["observation"][:, 2].sign())


def test_it_can_be_kept_if_the_world_below_can() -> None:
    def runner() -> Runner:
        return Runner([Lean()], cart_stack(), generator=torch.Generator().manual_seed(0))

    whole = runner()
    first, second = whole.collect(9), whole.collect(15)
    cut = runner()
    again = cut.collect(9)
    assert torch.equal(first.observation["observation"], again.observation["observation"])
    kept, state = cut.state_dict(), cut.world.state_dict()
    fresh = runner()
    fresh.world.load_state_dict(state)
    fresh.load_state_dict(kept)
    resumed = fresh.collect(15)
    for name in ("proposed", "elapsed"):
        assert torch.equal(getattr(resumed, name), getattr(second, name))
    assert torch.equal(resumed.observation["observation"], second.observation["observation"])
    assert FrozenStack(from_gym([Kept()]), [Move()], Command(Every(2))).state_dict() is None


def test_what_does_not_fit_is_named() -> None:
    cart = from_gym([gymnasium.make("Pendulum-v1")])

    class Network(Level):
        name = "reach"

        def __init__(self, features: int, actions: int):
            self.net = torch.nn.Linear(features, actions)

        def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
            return Decision(self.net(torch.cat([features["observation"], parent], -1)))

    manager = Manager(Every(1))
    manager.decide = lambda features, parent, due: Decision(torch.zeros(1, 2))  # type: ignore[method-assign]
    with pytest.raises(EchelonError, match=r"level 'reach' does not fit Pendulum-v1, which shows 'observation' \[3\]"):
        Runner([manager], FrozenStack(cart, [Network(9, 1)], Command(Every(2)))).collect(1)
    with pytest.raises(EchelonError, match=r"level 'reach' does not fit Pendulum-v1: .*\[4\].* takes \[1\]"):
        Runner([manager], FrozenStack(cart, [Network(5, 4)], Command(Every(2)))).collect(1)
    assert isinstance(Runner([manager], FrozenStack(cart, [Network(5, 1)], Command(Every(2)))).collect(1), Rollout)


def test_what_cannot_be_is_refused() -> None:
    vector = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(UsageError, match="equally long"):
        FrozenStack(from_vector(vector), [Move()], Command(Never()))
    with pytest.raises(UsageError, match="at least one level"):
        FrozenStack(from_gym([Line()]), [], Command(Every(1)))
    with pytest.raises(UsageError, match="gamma"):
        FrozenStack(from_gym([Line()]), [Move()], Command(Every(1)), gamma=1.5)
