"""Hindsight: which goals rows get, what they earn for them, and runs that go on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_resumes

pytest.importorskip("gymnasium_robotics")

from echelon.data.replay import LEFT
from echelon.envs.spaces import Spaces
from echelon.errors import DataError, UsageError
from echelon.evidence.run import Run
from echelon.systems.online.goals import GoalReward, speed
from echelon.systems.online.sac_her import HindsightSAC
from echelon.training.config import to_json

SHAPES = {"observation": (1,), "achieved_goal": (1,), "desired_goal": (1,)}
SPACES = Spaces(SHAPES, {}, None, (-1.0,), (1.0,))


def filled(**changes: Any) -> HindsightSAC:
    """An agent whose replay holds two episodes, of 4 and 6 steps; what is achieved is 10 · episode + time."""
    agent = HindsightSAC(HindsightSAC.Config(hidden=(4,), threshold=0.5, **changes), SPACES)
    for episode, length in ((1, 4), (2, 6)):
        time = torch.arange(length, dtype=torch.float32)[:, None]
        here = 10 * episode + time
        rows = {
            "observation": here,
            "next_observation": here + 1,
            "achieved_goal": here,
            "next_achieved_goal": here + 1,
        }
        asked = torch.full((length, 1), -5.0)
        rows |= {"desired_goal": asked, "next_desired_goal": asked, "action": torch.zeros(length, 1)}
        rows |= {"reward": torch.full((length,), 99.0), "discount": torch.ones(length), LEFT: time[:, 0].flip(0).long()}
        agent.replay.add(rows)
    return agent


def test_goals_are_of_the_future_of_the_same_episode() -> None:
    torch.manual_seed(0)
    agent = filled(batch_size=4_000)
    batch = agent.draw()
    observation, _, goal = batch["features"].unbind(-1)
    hindsight = goal != -5
    assert float(hindsight.float().mean()) == pytest.approx(0.8, abs=0.03)
    assert bool((goal[hindsight] >= observation[hindsight] + 1).all())
    last = torch.where(observation < 20, 14.0, 26.0)
    assert bool((goal[hindsight] <= last[hindsight]).all())
    at_start = hindsight & (observation == 20)
    counts = torch.bincount((goal[at_start] - 21).long(), minlength=6)
    assert counts.tolist() == pytest.approx([int(at_start.sum()) / 6] * 6, rel=0.35)
    assert torch.equal(batch["features"][:, 2], batch["next_features"][:, 2])
    reached = goal == batch["next_features"][:, 0]
    assert batch["reward"].tolist() == [0.0 if hit else -1.0 for hit in reached]
    assert bool(reached.any()) and not bool(reached.all())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_hindsight(share: float) -> None:
    goal = filled(batch_size=200, hindsight=share).draw()["features"][:, 2]
    assert bool(((goal == -5) == (share == 0)).all())


def test_rewards_are_the_environment_s() -> None:
    """The maze pays 1 within 0.45, Fetch takes 1 beyond 0.05; as batches they are the numbers of single calls."""
    torch.manual_seed(0)
    achieved = torch.rand(50, 2) - 0.5
    goal = torch.zeros(50, 2)
    near = achieved.norm(dim=-1)
    assert torch.equal(GoalReward("PointMaze_UMaze-v3")(achieved, goal), (near <= 0.45).float())
    apart = torch.cat([achieved, torch.zeros(50, 1)], -1) / 5
    assert torch.equal(GoalReward("FetchReach-v4")(apart, torch.zeros(50, 3)), -(apart.norm(dim=-1) > 0.05).float())
    assert torch.equal(GoalReward("nowhere", 0.2)(achieved, goal), -(near > 0.2).float())
    with pytest.raises(UsageError, match="CartPole-v1 cannot tell"):
        GoalReward("CartPole-v1")(achieved, goal)


def test_an_environment_without_goals_is_refused() -> None:
    with pytest.raises(UsageError, match="no desired_goal"):
        HindsightSAC(HindsightSAC.Config(), Spaces({"observation": (3,)}, {}, None, (-1.0,), (1.0,)))
    with pytest.raises(UsageError, match="alike"):
        HindsightSAC(HindsightSAC.Config(), Spaces({**SHAPES, "desired_goal": (2,)}, {}, None, (-1.0,), (1.0,)))
    with pytest.raises(UsageError, match="hindsight"):
        HindsightSAC.Config(hindsight=1.5)


def test_speed_is_minus_the_steps_to_the_first_success(tmp_path: Path) -> None:
    def run(*successes: float) -> Run:
        path = tmp_path / "-".join(map(str, ("run", *successes)))
        path.mkdir(exist_ok=True)
        config = to_json(HindsightSAC.Config(slots=4, ticks=50, updates=100))
        (path / "config.json").write_text(json.dumps(config))
        rows = [{"step": 10 * (i + 1), "success": success} for i, success in enumerate(successes)]
        (path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Run(path)

    assert float(speed(run(0.1, 0.8, 0.2))) == -4.0
    assert float(speed(run(0.1, 0.7))) == -20.0
    assert float(speed(run(0.1, 0.7), level=0.5)) == -4.0
    with pytest.raises(DataError, match="no evaluation"):
        speed(run())


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of episodes, whose rows wait for their end."""
    few: dict[str, Any] = {"slots": 2, "ticks": 5, "updates": 12, "limit": 12, "random_steps": 20, "batch_size": 8}
    often: dict[str, Any] = {"eval_every": 6, "eval_episodes": 2, "checkpoint_every": 3, "log_every": 2}
    config = HindsightSAC.Config(env="PointMaze_UMaze-v3", hidden=(8,), capacity=64, **few, **often)
    assert_resumes(HindsightSAC, config, 47, tmp_path, monkeypatch)
