"""Online runs: transitions across batches, replay, exact resume in the middle of spans, and what flat PPO learns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stopped_runs import assert_resumes, stop_and_go_on
from torch import Tensor

from echelon.data.replay import LEFT, Replay, WholeEpisodes
from echelon.errors import DataError, UsageError
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Never
from echelon.hierarchy.transitions import Transitions, transitions
from echelon.hierarchy.world import Reset, from_gym
from echelon.rollout import Begin, End, Rollout
from echelon.systems.online.flat_ppo import FlatPPO
from echelon.training import run

GAMMA = 0.9


class Counting(gymnasium.Env[np.ndarray, Any]):
    """Shows how many steps were made; the reward is that number; ends in a terminal state after `length` steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 7):
        self.length, self.count = length, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1), {}

    def step(self, action: int) -> Any:
        self.count += 1
        return np.array([float(self.count)]), float(self.count), self.count == self.length, False, {}


class Option(Level):
    """Decides its own number: how many times it was asked."""

    name = "option"

    def __init__(self, k: int):
        self.termination, self.asked = Every(k), 0

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        self.asked += 1
        return Decision(torch.full((len(features["observation"]),), self.asked))


class Act(Level):
    name = "action"

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(torch.zeros(len(features["observation"]), dtype=torch.int64))


def collected(ticks: list[int], k: int = 3) -> list[Rollout]:
    runner = Runner([Option(k), Act()], from_gym([Counting(), Counting(5)]))
    return [runner.collect(number) for number in ticks]


def test_transitions_of_a_level_by_hand() -> None:
    """An option of three steps in an episode of seven: (1, 2, 3), (4, 5, 6), (7) and the end."""
    rows = transitions(Rollout.cat(collected([7])), "option", GAMMA)
    first = rows["next_observation"][:, 0] - rows["duration"] == rows["observation"][:, 0]
    assert bool(first.all())
    mine = rows["key"] == rows["key"].min()
    assert rows["observation"][mine, 0].tolist() == [0, 3, 6]
    assert rows["next_observation"][mine, 0].tolist() == [3, 6, 7]
    assert rows["reward"][mine].tolist() == pytest.approx([1 + 1.8 + 3 * 0.81, 4 + 4.5 + 6 * 0.81, 7])
    assert rows["discount"][mine].tolist() == pytest.approx([GAMMA**3, GAMMA**3, 0])
    assert rows["end"][mine].tolist() == [End.TIMEOUT, End.TIMEOUT, End.TERMINATED]


@pytest.mark.parametrize("level", ["option", "action"])
@pytest.mark.parametrize("ticks", [[1] * 12, [2, 5, 1, 4], [12]])
def test_batches_cut_nothing(level: str, ticks: list[int]) -> None:
    """However the steps are cut into batches, the same transitions finish."""
    whole = transitions(Rollout.cat(collected([12])), level, GAMMA)
    ended = whole["end"] != End.OPEN
    parts = Transitions(level, GAMMA)
    found = [parts.add(rollout) for rollout in collected(ticks)]
    joined = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    order = np.lexsort((joined["observation"][:, 0], joined["key"]))
    expected = np.lexsort((whole["observation"][ended][:, 0], whole["key"][ended]))
    for name in whole:
        if name != "begin":
            assert torch.allclose(joined[name][order], whole[name][ended][expected], equal_nan=True), name
    assert bool((joined["begin"] == Begin.DECIDED).all())


def test_a_batch_left_out_is_refused() -> None:
    first, second = collected([2, 2])
    assert first.size == second.size
    with pytest.raises(DataError, match="add every batch"):
        Transitions("option", GAMMA).add(second)


class Long(Level):
    """Decides once and never again in its episode: a large number, its log-probability and a value."""

    name, termination = "long", Never()

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        number = torch.arange(len(features["observation"])) + 2**53 + 1
        return Decision(number, number.double().log(), {"value": -number.double()})


def test_decisions_that_outlast_a_resumed_run_s_first_batch() -> None:
    """They keep their type, log-probability and values, though nobody decides anything there."""

    def runner() -> Runner:
        return Runner([Long(), Act()], from_gym([Counting(50), Counting(50)]))

    whole = runner()
    whole.collect(3)
    cut = runner()
    cut.collect(3)
    again = runner()
    again.world.reset(np.arange(2), [Reset(), Reset()])
    again.load_state_dict(cut.state_dict())
    for _ in range(2):
        a, b = whole.collect(4).decisions["long"], again.collect(4).decisions["long"]
        assert a.action.dtype == b.action.dtype == torch.int64 and torch.equal(a.action, b.action)
        assert torch.equal(a.log_prob, b.log_prob) and a.values.keys() == b.values.keys() == {"value"}
        assert torch.equal(a.values["value"], b.values["value"])


def test_replay_is_a_ring() -> None:
    replay = Replay(5)
    with pytest.raises(UsageError, match="before rows were added"):
        replay.draw(1)
    for start in (0, 3, 6):
        replay.add({"x": torch.arange(start, start + 3), "y": torch.ones(3, 2)})
    assert len(replay) == 5 and sorted(replay.columns["x"].tolist()) == [4, 5, 6, 7, 8]
    replay.add({"x": torch.arange(20, 32), "y": torch.ones(12, 2)})
    assert sorted(replay.columns["x"].tolist()) == [27, 28, 29, 30, 31]
    again = Replay(5)
    again.load_state_dict(replay.state_dict())
    for each in (replay, again):
        each.add({"x": torch.tensor([99]), "y": torch.ones(1, 2)})
    assert replay.columns["x"].tolist() == again.columns["x"].tolist()
    with pytest.raises(DataError, match="columns"):
        replay.add({"x": torch.tensor([1])})
    with pytest.raises(DataError, match="shape"):
        replay.add({"x": torch.tensor([1]), "y": torch.ones(1, 3)})
    with pytest.raises(DataError, match="different numbers"):
        replay.add({"x": torch.tensor([1]), "y": torch.ones(2, 2)})


def test_whole_episodes_wait_for_their_end() -> None:
    whole = WholeEpisodes()
    key, over = torch.tensor([1, 1, 2]), torch.tensor([False, False, False])
    assert len(whole.add({"x": torch.tensor([10, 11, 20])}, key, over)["x"]) == 0
    kept = WholeEpisodes()
    kept.load_state_dict(whole.state_dict())
    for each in (whole, kept):
        rows = each.add({"x": torch.tensor([12, 21])}, torch.tensor([1, 2]), torch.tensor([True, False]))
        assert rows["x"].tolist() == [10, 11, 12] and rows[LEFT].tolist() == [2, 1, 0]


def test_later_rows_are_of_the_same_episode() -> None:
    replay = Replay(8)
    for episode, length in ((1, 3), (2, 4), (3, 4)):
        rows = {"episode": torch.full((length,), episode), LEFT: torch.arange(length).flip(0)}
        replay.add(rows)
    generator = torch.Generator().manual_seed(0)
    places = replay.draw(2_000, generator)
    later = replay.later(places, generator)
    assert torch.equal(replay.columns["episode"][later], replay.columns["episode"][places])
    ahead = replay.columns[LEFT][places] - replay.columns[LEFT][later]
    assert bool((ahead >= 0).all())
    first = (replay.columns["episode"][places] == 3) & (replay.columns[LEFT][places] == 3)
    assert torch.bincount(ahead[first]).tolist() == pytest.approx([int(first.sum()) / 4] * 4, rel=0.3)


# ---- runs


def small(**changes: Any) -> FlatPPO.Config:
    few = {"slots": 2, "ticks": 24, "updates": 6, "minibatch": 16, "epochs": 2, "hidden": (8,)}
    often = {"eval_every": 3, "eval_episodes": 2, "checkpoint_every": 2}
    return FlatPPO.Config(**{**few, **often, **changes})


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_a_run_goes_on_bit_for_bit(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of an episode, which the environment's state brings back."""
    assert_resumes(FlatPPO, small(env=env), 20, tmp_path, monkeypatch)


def test_a_run_that_cannot_be_restored_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echelon.hierarchy.world.state_of", lambda env: None)
    stop_and_go_on(FlatPPO, small(), 20, tmp_path / "cut", monkeypatch)
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows].count("resumed") == 1
    episodes = [json.loads(line)["episode"] for line in (tmp_path / "cut" / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == len(set(episodes))


def test_unknown_environment() -> None:
    with pytest.raises(UsageError, match="CartPoles"):
        run.train(FlatPPO, dataclasses.replace(small(), env="CartPoles-v1"), "nowhere")
