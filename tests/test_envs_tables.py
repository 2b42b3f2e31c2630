"""Worlds given by tables: their exact rules, their seeds, restoring them in the middle, and their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from echelon.envs.grids import CELLS, EAST, FAR, HALLWAYS, ROOMS, four_rooms, named_world
from echelon.envs.tables import Model, TableWorld, model_of, scramble, uniform
from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Reset, from_vector
from echelon.training import checkpoint
from echelon.training.online.worlds import make_world, world_spaces


class Hash(Level):
    """Acts by a hash of the state: deterministic, and different in every state."""

    name = "action"

    def __init__(self, actions: int):
        self.actions = actions

    def decide(self, features: Any, parent: Any, due: Any) -> Decision:
        return Decision((features["observation"] * 7 + 3) % self.actions)


def coin(limit: int | None = None, slots: int = 4, then: Any = None, reward: float = 1.0) -> TableWorld:
    """States 0, 1, 2 (terminal): action 0 stays or goes on with chances .3 and .7, action 1 goes back."""
    model = model_of(2, lambda s, a: [(0.3, s, 0.0), (0.7, s + 1, reward)] if a == 0 else [(1.0, 0, -1.0)],
                     [False, False, True], [0, 1], success=[False, False, True])  # fmt: skip
    return TableWorld(model, slots, limit, then)


def test_random_numbers_are_those_of_splitmix64() -> None:
    state, mask, expected = 1234567, 2**64 - 1, []
    for _ in range(4):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(((z ^ (z >> 31)) >> 11) * 2.0**-53)
    key = torch.full((4,), 1234567)
    assert uniform(key, torch.arange(4)).tolist() == expected
    assert (expected[0] * 2**53) // 1 == 6457827717110365317 >> 11  # first output of the reference implementation
    many = uniform(scramble(torch.arange(20_000)), torch.zeros(20_000, dtype=torch.int64))
    assert abs(float(many.mean()) - 0.5) < 0.01 and abs(float(many.var()) - 1 / 12) < 0.002
    assert float(many.min()) >= 0 and float(many.max()) < 1


def test_the_model_of_a_rule() -> None:
    model = coin().models[0]
    assert model.transition[:, 0].tolist() == [[0.3, 0.7, 0], [0, 0.3, 0.7], [0, 0, 1]]
    assert model.transition[:, 1].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert model.expected_reward.tolist() == [[0.7, -1], [0.7, -1], [0, 0]]
    assert model.start.tolist() == [0.5, 0.5, 0]
    with pytest.raises(UsageError, match="add up to 1"):
        model_of(1, lambda s, a: [(0.5, 0, 0.0)], [False], [0])
    with pytest.raises(UsageError, match="outside of 0 to 0"):
        model_of(1, lambda s, a: [(1.0, 1, 0.0)], [False], [0])
    with pytest.raises(UsageError, match="none of them terminal"):
        model_of(1, lambda s, a: [(1.0, 1, 0.0)], [False, True], [1])


def test_steps_happen_as_often_as_the_model_says() -> None:
    world = coin(slots=4000)
    shown, _ = world.reset(seed=0)
    assert abs(float((shown["observation"] == 0).double().mean()) - 0.5) < 0.03
    before = shown["observation"].clone()
    after, reward, terminated, truncated, infos = world.step(torch.zeros(4000, dtype=torch.int64))
    gone = after["observation"] == before + 1
    assert abs(float(gone.double().mean()) - 0.7) < 0.03
    assert torch.equal(reward, gone.float()) and torch.equal(terminated, after["observation"] == 2)
    assert not bool(truncated.any()) and torch.equal(infos["success"], terminated.float())
    assert torch.equal(shown["observation"], before)  # what was shown is not written to


def test_an_episode_depends_on_its_seed_alone() -> None:
    def run(slots: int) -> Any:
        runner = Runner([Hash(4)], make_world("four-rooms", slots, 40), info_labels=("success",))
        return runner.episodes([Reset(seed=i) for i in range(9)])

    one, many = run(1), run(4)
    assert one.streams.labels["length"].tolist() == many.streams.labels["length"].tolist()
    for record in (one, many):
        assert record.streams.truncated.tolist() == (~record.streams.terminated).tolist()
        assert record.streams.labels["success"].tolist() == record.streams.terminated.double().tolist()

    def episode(record: Any, i: int) -> list[int]:
        spans = record.spans["stream"]
        items = torch.arange(int(spans.starts[i]), int(spans.starts[i] + spans.lengths[i]))
        return record.observation["observation"][items].tolist()

    assert [episode(one, i) for i in range(9)] == [episode(many, i) for i in range(9)]


def test_limits_cut_episodes_and_the_goal_moves() -> None:
    sure, down = [four_rooms(goal, slip=0.0) for goal in (EAST, FAR)], torch.ones(3, dtype=torch.int64)
    world = TableWorld(sure[0], 3, limit=5, then=(7, sure[1]))
    world.reset(seed=1)
    world._state[:] = CELLS.index((1, 1))  # far enough from both goals
    assert [world.step(0 * down)[3].tolist() for _ in range(5)] == [[False] * 3] * 4 + [[True] * 3]
    world.reset(options={"reset_mask": np.array([True, True, False])})
    world.step(0 * down)
    world.step(0 * down)
    world.reset(options={"reset_mask": np.array([True, False, False])}, seed=[4, None, None])
    state = world.state_dict()
    for goal, there in ((FAR, [True, False, False]), (EAST, [False, True, True])):  # only slot 0 began since the change
        world.load_state_dict(state)
        world._state = torch.full((3,), CELLS.index((goal[0] - 1, goal[1])))
        assert world.step(down)[2].tolist() == there


def test_a_world_goes_on_from_its_state(tmp_path: Any) -> None:
    def runner() -> Runner:
        return Runner([Hash(4)], make_world("four-rooms@20", 5, 12), generator=torch.Generator().manual_seed(3))

    whole = runner()
    whole.collect(13)
    first = runner()
    first.collect(13)
    tensors, plain = checkpoint.flatten({"world": first.world.state_dict(), "runner": first.state_dict()}, "s")
    kept = checkpoint.unflatten(tensors, plain)
    second = runner()
    second.world.load_state_dict(kept["world"])
    second.load_state_dict(kept["runner"])
    for _ in range(2):
        a, b = whole.collect(11), second.collect(11)
        assert torch.equal(a.observation["observation"], b.observation["observation"])
        assert torch.equal(a.reward_sum(), b.reward_sum())
        assert torch.equal(a.streams.episode, b.streams.episode)


def test_four_rooms_have_the_rules_of_the_paper() -> None:
    assert len(CELLS) == 104 and len(ROOMS) == 13 and {len(row) for row in ROOMS} == {13}
    assert set(HALLWAYS) <= set(CELLS)
    model = four_rooms()
    place = {cell: state for state, cell in enumerate(CELLS)}
    corner = place[1, 1]  # up and left bump
    table = model.transition[corner]
    third, ninth = 2 / 3, 1 / 9
    stay, down, right = corner, place[2, 1], place[1, 2]
    for action, chances in enumerate(((third + ninth, ninth, ninth), (2 * ninth, third, ninth),
                                      (third + ninth, ninth, ninth), (2 * ninth, ninth, third))):  # fmt: skip
        assert table[action, [stay, down, right]].tolist() == pytest.approx(list(chances))
    above = place[EAST[0] - 1, EAST[1]]
    assert model.expected_reward[above].tolist() == pytest.approx([ninth, third, ninth, ninth])
    assert bool(model.terminal[place[EAST]]) and int(model.terminal.sum()) == 1
    assert float(model.start[place[EAST]]) == 0 and float(model.start.sum()) == pytest.approx(1)
    with pytest.raises(UsageError, match="not a free cell"):
        four_rooms((0, 0))


def test_names() -> None:
    spaces = world_spaces("four-rooms")
    assert spaces.discrete == {"observation": 104} and spaces.choices == 4 and spaces.observation == {"observation": ()}
    assert named_world("CartPole-v1", 2) is None
    assert named_world("four-rooms", 2).limit == 1000 and named_world("four-rooms", 2, 7).limit == 7
    assert named_world("four-rooms@300", 2).change == 300
    with pytest.raises(UsageError, match="number of steps"):
        named_world("four-rooms@soon", 2)


def test_errors_say_what_is_wrong() -> None:
    world = coin()
    world.reset(seed=0)
    with pytest.raises(UsageError, match="outside of 0 to 1"):
        world.step(torch.tensor([0, 1, 2, 0]))
    with pytest.raises(UsageError, match="whole numbers"):
        world.step(torch.zeros(4))
    with pytest.raises(UsageError, match="no option goal"):
        world.reset(options={"goal": 3})
    with pytest.raises(UsageError, match="at least one slot"):
        coin(slots=0)
    with pytest.raises(UsageError, match="as many states"):
        coin(then=(3, four_rooms()))

    class Forgetful(TableWorld):
        def state_dict(self) -> Any:
            return None

    assert from_vector(Forgetful(four_rooms(), 1)).state_dict() is None
    assert isinstance(coin().models[0], Model)
