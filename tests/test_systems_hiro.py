"""HIRO: held places against moving goals, corrected goals against a loop, paths, and runs that go on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_resumes, stop_and_go_on
from torch import Tensor

pytest.importorskip("gymnasium_robotics")

from echelon.credit.relabel import goal_transition
from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.hierarchy.runner import Runner
from echelon.systems.online.hiro import HIRO
from echelon.training.agent import build_agent
from echelon.training.metrics import read_jsonl
from echelon.training.online.worlds import make_world, world_spaces

MAZE = "PointMaze_UMaze-v3"
SPACES = Spaces({"observation": (1,), "achieved_goal": (2,), "desired_goal": (2,)}, {}, None, (-1.0, -2.0), (1.0, 2.0))


def agent(**changes: Any) -> HIRO:
    torch.manual_seed(0)
    return HIRO(HIRO.Config(**{"hidden": (8,), "period": 3, "reach": (1.0, 2.0), "random_steps": 0, **changes}), SPACES)


def collected(ticks: list[int], period: int = 4, limit: int = 10) -> tuple[HIRO, list[Any]]:
    config = HIRO.Config(env=MAZE, hidden=(8,), period=period, reach=(1.0,), random_steps=0, slots=2)
    found = build_agent(HIRO, config, world_spaces(MAZE))
    assert isinstance(found, HIRO)
    generator = torch.Generator().manual_seed(0)
    runner = Runner(found.levels(explore=True), make_world(MAZE, 2, limit), generator=generator)
    return found, [runner.collect(number) for number in ticks]


def test_a_held_place_is_the_moving_goal_of_the_paper() -> None:
    """h(s, g, s') step after step gives at each what is left to the place asked for at first."""
    _, (rollout,) = collected([20])
    d, achieved = rollout.decisions["goal"], rollout.observation["achieved_goal"]
    assert len(d) == 2 * 6  # 4 + 4 + 2 steps, twice in each slot
    for row in range(len(d)):
        start, stop = int(d.start[row]), int(d.stop[row])
        assert 1 <= stop - start <= 4
        goal = d.action[row] - achieved[start]
        for item in range(start, stop - 1):
            goal = goal_transition(goal, achieved[item], achieved[item + 1])
            assert torch.allclose(goal, d.action[row] - achieved[item + 1], atol=1e-6)


def test_the_worker_s_rows_by_hand() -> None:
    """Goal (1, .5) at (0, 0), then (.5, 0): left is (.5, .5), paid -.707107."""
    hiro = agent()
    rows = {
        "observation": torch.zeros(1, 1), "next_observation": torch.ones(1, 1),
        "achieved_goal": torch.zeros(1, 2), "next_achieved_goal": torch.tensor([[0.5, 0.0]]),
        "command": torch.tensor([[1.0, 0.5]]), "action": torch.tensor([[0.5, 1.0]]), "discount": torch.tensor([0.95]),
    }  # fmt: skip
    batch = hiro.steps(rows)
    assert batch["features"].tolist() == [[0, 0, 0, 1, 0.5]] and batch["next_features"].tolist() == [
        [1, 0.5, 0, 0.5, 0.5]
    ]
    assert batch["reward"].item() == pytest.approx(-0.707107, abs=1e-6) and batch["action"].tolist() == [[0.5, 0.5]]


def test_the_level_below_reads_what_is_left() -> None:
    hiro = agent()
    manager, worker = hiro.levels(explore=False)
    seen = {"observation": torch.randn(5, 1), "achieved_goal": torch.randn(5, 2), "desired_goal": torch.randn(5, 2)}
    due = torch.ones(5, dtype=torch.bool)
    place = manager.decide(seen, None, due).action
    mean = torch.tanh(hiro.manager.actor(torch.cat(list(seen.values()), -1)))
    assert torch.allclose(place, seen["achieved_goal"] + mean * torch.tensor([1.0, 2.0]))
    read = torch.cat([seen["observation"], seen["achieved_goal"], place - seen["achieved_goal"]], -1)
    acted = torch.tanh(hiro.worker.actor(read)) * torch.tensor([1.0, 2.0])
    assert torch.allclose(worker.decide(seen, place, due).action, acted, atol=1e-6)


def made_up(durations: list[int], period: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(5)
    n = len(durations)
    return {
        "path_state": torch.randn(n, period, 3),
        "path_achieved": torch.randn(n, period, 2),
        "path_action": torch.rand(n, period, 2) * 2 - 1,
        "achieved_goal": torch.randn(n, 2),
        "next_achieved_goal": torch.randn(n, 2),
        "action": torch.randn(n, 2),
        "duration": torch.tensor(durations, dtype=torch.float32),
    }


@torch.no_grad()
def test_corrected_goals_equal_a_loop() -> None:
    """Every decision on its own, goals moved by h, likelihoods summed step by step."""
    hiro, rows = agent(), made_up([3, 1, 2, 3, 2])
    rows["achieved_goal"] = rows["path_achieved"][:, 0]
    torch.manual_seed(9)
    found = hiro.corrected(rows)
    torch.manual_seed(9)
    noise = torch.randn(8, 5, 2)
    half = torch.tensor([1.0, 2.0])
    for n, duration in enumerate([3, 1, 2, 3, 2]):
        path = [*rows["path_achieved"][n][:duration], rows["next_achieved_goal"][n]]
        change = path[-1] - path[0]
        candidates = [rows["action"][n] - path[0], change, *(change + 0.5 * half * noise[i, n] for i in range(8))]
        best, most = None, -torch.inf
        for goal in (g.clamp(-half, half) for g in candidates):
            moved, score = goal, 0.0
            for t in range(duration):
                act = torch.tanh(hiro.worker.actor(torch.cat([rows["path_state"][n, t], moved])))
                score -= 0.5 * float((rows["path_action"][n, t] - act).square().sum())
                moved = goal_transition(moved, path[t], path[t + 1])
            if score > most + 1e-6:
                best, most = goal, score
        assert best is not None and torch.allclose(found[n], best, atol=1e-5)


def test_the_correction_finds_the_likelier_goal() -> None:
    """A worker that does half of what is asked for: of (2, 0) and what came about, (1, .5), the latter: -.033750."""
    hiro = HIRO(HIRO.Config(hidden=(8,), period=2, reach=(2.0,), candidates=1), SPACES)
    hiro.worker.act = lambda features: (0.5 * features[..., -2:]).clamp(-1, 1)  # type: ignore[method-assign]
    path = torch.tensor([[[0.0, 0.0], [0.5, 0.0]]])
    rows = {
        "path_state": torch.zeros(1, 2, 3), "path_achieved": path, "achieved_goal": path[:, 0],
        "path_action": torch.tensor([[[0.5, 0.1], [0.4, 0.4]]]), "next_achieved_goal": torch.tensor([[1.0, 0.5]]),
        "action": torch.tensor([[2.0, 0.0]]), "duration": torch.tensor([2.0]),
    }  # fmt: skip
    torch.manual_seed(3)
    draw = torch.tensor([1.0, 0.5]) + torch.randn(1, 1, 2)[0, 0]
    left = draw - torch.tensor([0.5, 0.0])
    drawn = -0.5 * float((torch.tensor([0.5, 0.1]) - 0.5 * draw.clamp(-2, 2)).square().sum())
    drawn -= 0.5 * float((torch.tensor([0.4, 0.4]) - 0.5 * left).square().sum())
    assert drawn < -0.03375
    torch.manual_seed(3)
    assert hiro.corrected(rows).tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize("ticks", [[30], [7, 3, 9, 11]])
def test_paths_lie_under_their_decisions(ticks: list[int]) -> None:
    """Whatever the batches, each decision keeps the steps that happened while it held."""
    hiro, rollouts = collected(ticks)
    for rollout in rollouts:
        hiro.keep(rollout)
    steps, asked = (hiro.replay.rows(torch.arange(len(r))) if r is hiro.replay else r.rows(torch.arange(len(r)))
                    for r in (hiro.replay, hiro.decisions))  # fmt: skip
    assert len(hiro.replay) == 60 and len(hiro.decisions) == 18
    at = 0
    for row in range(18):
        duration = int(asked["duration"][row])
        assert duration in (4, 2)
        for t in range(duration):
            assert torch.equal(asked["path_achieved"][row, t], steps["achieved_goal"][at])
            assert torch.equal(asked["path_action"][row, t], steps["action"][at].clamp(-1, 1))
            assert torch.equal(asked["action"][row], steps["command"][at])
            at += 1
        assert torch.equal(asked["next_achieved_goal"][row], steps["next_achieved_goal"][at - 1])
    assert asked["discount"].tolist() == [1.0] * 18


def test_the_manager_learns_every_period() -> None:
    hiro, rollouts = collected([20], period=4)
    hiro.keep(rollouts[0])
    named = [any(name.startswith("manager/") for name in hiro.draw()) for _ in range(8)]
    assert named == [False, False, False, True] * 2
    every = {update.name: update.every for update in hiro.updates()}
    assert every == {"worker/critic": 1, "worker/actor": 2, "manager/critic": 4, "manager/actor": 8}


def test_senseless_values_are_refused_by_name() -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"period": 0}, {"reach": ()}, {"reach": (-1.0,)}, {"candidates": 0}, {"manager_gamma": 2.0}, {"noise": -1.0},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(UsageError, match=next(iter(change))):
            HIRO.Config(**change)
    with pytest.raises(UsageError, match="reach must be 1 or 2 numbers"):
        agent(reach=(1.0, 1.0, 1.0))


def small(**changes: Any) -> HIRO.Config:
    few: dict[str, Any] = {"slots": 2, "ticks": 5, "updates": 12, "limit": 12, "random_steps": 20, "batch_size": 8}
    often: dict[str, Any] = {"eval_every": 6, "eval_episodes": 2, "checkpoint_every": 3, "log_every": 2}
    return HIRO.Config(**{"env": MAZE, "reach": (1.0,), "hidden": (8,), "capacity": 64, **few, **often, **changes})


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of a goal and of an episode."""
    assert_resumes(HIRO, small(), 47, tmp_path, monkeypatch)
    rows = [row for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl") if "goal/missed" in row]
    assert rows and all(0 <= row["goal/reached"] <= 1 and row["goal/missed"] > 0 for row in rows)


def test_a_run_that_cannot_be_restored_forgets_what_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echelon.hierarchy.world.state_of", lambda env: None)
    stop_and_go_on(HIRO, small(), 47, tmp_path / "cut", monkeypatch)
