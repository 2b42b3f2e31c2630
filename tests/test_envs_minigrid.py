"""MiniGrid: levels found by name, read as vectors, restored bit for bit, trained and resumed; what is wrong is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("minigrid")

from stopped_runs import assert_resumes

from echelon.cli import main
from echelon.envs import minigrid
from echelon.envs.restore import set_state, state_of
from echelon.errors import DataError, EchelonError, MissingExtra, UsageError
from echelon.systems.online.feudal import Feudal
from echelon.training import checkpoint
from echelon.training.online.worlds import make_env, world_spaces

EMPTY = "MiniGrid-Empty-5x5-v0"
LEVELS = (
    EMPTY,
    "MiniGrid-Dynamic-Obstacles-5x5-v0",  # obstacles that move, held in the grid and in a list
    "MiniGrid-KeyCorridorS3R2-v0",  # rooms that name their neighbours
    "MiniGrid-MultiRoom-N2-S4-v0",
    "MiniGrid-LockedRoom-v0",
    "MiniGrid-Fetch-5x5-N2-v0",
    "MiniGrid-ObstructedMaze-1Dlhb-v0",  # keys in boxes
)


def naive(seen: dict[str, Any], words: list[list[str]], mission: list[str]) -> list[int]:
    """The vector, written out cell by cell."""
    vector: list[int] = []
    for row in seen["image"]:
        for cell in row:
            for kind, number in zip(cell, (11, 6, 3), strict=True):
                vector += [int(kind == k) for k in range(number)]
    vector += [int(seen["direction"] == k) for k in range(4)]
    for options, chosen in zip(words, mission, strict=True):
        vector += [int(word == chosen) for word in options]
    return vector


def test_a_level_is_seen_as_one_of_n_for_everything() -> None:
    env = make_env("MiniGrid-GoToDoor-5x5-v0")
    inner: Any = env.unwrapped
    colours = inner.observation_space["mission"].ordered_placeholders
    for seed in range(4):
        seen, _ = env.reset(seed=seed)
        expected = naive(inner.gen_obs(), colours, [inner.mission.split()[3]])
        assert seen.tolist() == expected and seen.sum() == 3 * 49 + 2 and env.observation_space.contains(seen)
        for action in (0, 2, 1, 5):
            seen = env.step(action)[0]
            assert seen.tolist() == naive(inner.gen_obs(), colours, [inner.mission.split()[3]])
    spaces = world_spaces(EMPTY)
    assert spaces.observation == {"observation": (984,)} and spaces.choices == 7  # its mission never changes


def test_success_is_told_at_the_goal_alone() -> None:
    env = make_env(EMPTY)
    env.reset(seed=0)
    told = [env.step(action) for action in (2, 2, 1, 2, 2)]
    assert [step[4]["success"] for step in told] == [False] * 4 + [True] and told[-1][2]
    short = make_env(EMPTY, 3)
    short.reset(seed=0)
    assert [short.step(6)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("name", LEVELS)
def test_a_restored_level_goes_on_bit_for_bit(name: str) -> None:
    """Keys carried, doors opened, boxes emptied; later episodes as well."""
    first, second = make_env(name, 60), make_env(name, 60)
    actions = np.random.default_rng(5).integers(first.action_space.n, size=90)
    first.reset(seed=11)
    for action in actions[:40]:
        first.step(action)
    second.reset(seed=5)
    second.step(actions[0])
    tensors, plain = checkpoint.flatten(state_of(first), "state")
    set_state(second, checkpoint.unflatten(tensors, json.loads(json.dumps(plain))))
    for action in actions[40:]:
        one, other = first.step(action), second.step(action)
        assert one[0].tobytes() == other[0].tobytes() and one[1:] == other[1:]
        grids = [env.unwrapped.grid.encode().tolist() for env in (first, second)]
        assert grids[0] == grids[1]
        if one[2] or one[3]:
            assert first.reset()[0].tobytes() == second.reset()[0].tobytes()


def test_what_is_one_object_stays_one() -> None:
    """A ball that is carried lies in its room's list too; rooms know each other."""
    first, second = make_env("MiniGrid-KeyCorridorS3R2-v0"), make_env("MiniGrid-KeyCorridorS3R2-v0")
    for env in (first, second):
        env.reset(seed=2)
    inner: Any = first.unwrapped
    inner.carrying = inner.obj
    inner.grid.set(*inner.obj.cur_pos, None)
    set_state(second, state_of(first))
    again: Any = second.unwrapped
    assert again.carrying is again.obj and again.obj is not inner.obj
    assert any(again.obj is item for row in again.room_grid for room in row for item in room.objs)
    room = again.room_grid[0][0]
    assert room.neighbors[0] is again.room_grid[0][1] and again.room_grid[0][1].neighbors[2] is room


def test_objects_of_unknown_kinds_cannot_be_restored() -> None:
    env = make_env(EMPTY)
    env.reset(seed=0)
    state = state_of(env)
    assert state is not None
    env.unwrapped.extra = object()
    assert state_of(env) is None
    with pytest.raises(DataError, match="EmptyEnv"):
        set_state(gymnasium.make("CartPole-v1"), state)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an episode, with levels that remember, and products as wide as a grid's vector."""
    config = Feudal.Config(
        env="MiniGrid-KeyCorridorS3R1-v0", limit=30, slots=2, ticks=20, updates=4, horizon=3, size=6, hidden=8,
        embedding=4, radius=4, eval_every=4, eval_episodes=1, checkpoint_every=2, log_every=1,
    )  # fmt: skip
    assert_resumes(Feudal, config, 3, tmp_path, monkeypatch)


def test_the_command_line_trains_in_a_level(tmp_path: Path) -> None:
    few = {"updates": 2, "slots": 2, "ticks": 8, "minibatch": 8, "epochs": 1, "eval-episodes": 1, "limit": 8}
    flags = [text for name, value in few.items() for text in (f"--{name}", str(value))]
    assert main(["train", "flat-ppo", "--env", EMPTY, *flags, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert rows[-1]["success"] in (0.0, 1.0)


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="MiniGrid-Nowhere-v0"):
        make_env("MiniGrid-Nowhere-v0")
    with pytest.raises(UsageError, match="BabyAIMissionSpace are sentences"):
        minigrid.Symbolic(gymnasium.make("BabyAI-GoToRedBall-v0"))
    env = make_env(EMPTY)
    env.reset(seed=0)
    env.unwrapped.mission = "eat the cake"
    with pytest.warns(UserWarning, match="not within"), pytest.raises(EchelonError, match="'eat the cake'"):
        env.step(0)
    monkeypatch.setitem(sys.modules, "minigrid", None)
    monkeypatch.delitem(gymnasium.registry, EMPTY)
    with pytest.raises(
        MissingExtra, match=r'minigrid is not installed; it comes with: pip install "echelon\[control\]"'
    ):
        make_env(EMPTY)
