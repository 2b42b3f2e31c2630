"""HAC: the three kinds of transitions by hand, attempts and their limits, subgoal tests, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_resumes, stop_and_go_on
from torch import Tensor

pytest.importorskip("gymnasium_robotics")

from echelon.data.replay import LEFT
from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.hierarchy.runner import Runner
from echelon.rollout import End, Rollout
from echelon.spans import Spans
from echelon.systems.online.common import observed
from echelon.systems.online.hac import HAC, by_goal
from echelon.training.agent import build_agent
from echelon.training.metrics import read_jsonl
from echelon.training.online.worlds import make_world, world_spaces

MAZE = "PointMaze_UMaze-v3"
LINE = Spaces({"observation": (1,), "achieved_goal": (1,), "desired_goal": (1,)}, {}, None, (-1.0,), (1.0,))


def on_a_line(**changes: Any) -> HAC:
    torch.manual_seed(0)
    given = {"hidden": (4,), "horizon": 3, "low": (-10.0,), "high": (10.0,), "near": (0.5,), "goals": 1}
    return HAC(HAC.Config(**{**given, **changes}), LINE)


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_the_three_kinds_of_transitions_by_hand() -> None:
    """H = 3, threshold .5: at 0, proposed 5, achieved 3, asked for 9."""
    hac = on_a_line()
    rows = {
        "observation": column(0.0), "next_observation": column(3.0), "achieved_goal": column(0.0),
        "next_achieved_goal": column(3.0), "desired_goal": column(9.0), "action": torch.tensor([[5.0, 1.0]]),
        "end": torch.tensor([End.TIMEOUT]),
    }  # fmt: skip
    found = hac.lessons(1, rows, Spans.from_lengths([1]))
    assert found["features"].tolist() == [[0, 0, 9], [0, 0, 3], [0, 0, 9]]
    assert found["next_features"].tolist() == [[3, 3, 9], [3, 3, 3], [3, 3, 9]]
    assert (10 * found["action"][:, 0]).tolist() == pytest.approx([3, 3, 5])
    assert found["reward"].tolist() == [-1, 0, -3] and found["discount"].tolist() == pytest.approx([0.98, 0, 0])
    for end, tested in ((End.TRUNCATED, 1.0), (End.PARENT, 1.0), (End.TIMEOUT, 0.0)):
        rows |= {"end": torch.tensor([end]), "action": torch.tensor([[5.0, tested]])}
        assert len(hac.lessons(1, rows, Spans.from_lengths([1]))["reward"]) == 2
    rows |= {"end": torch.tensor([End.OPTION]), "next_achieved_goal": column(5.4)}
    reached = hac.lessons(1, rows, Spans.from_lengths([1]))
    assert (10 * reached["action"][:, 0]).tolist() == pytest.approx([5, 5]) and len(reached["reward"]) == 2


def test_the_lowest_level_keeps_its_actions() -> None:
    """Goals are replaced, actions are not; its goal is what the level above asked for."""
    hac = on_a_line()
    rows = {
        "observation": column(0.0, 1.0), "next_observation": column(1.0, 2.0), "achieved_goal": column(0.0, 1.0),
        "next_achieved_goal": column(1.0, 2.0), "desired_goal": column(9.0, 9.0), "action": column(0.25, -1.0),
        "command": torch.tensor([[2.2, 1.0], [2.2, 1.0]]), "end": torch.tensor([End.TIMEOUT, End.TIMEOUT]),
    }  # fmt: skip
    found = hac.lessons(0, rows, Spans.from_lengths([2]))
    assert found["features"][:, 2].tolist() == pytest.approx([2.2, 2.2, 2, 2])
    assert found["action"][:, 0].tolist() == pytest.approx([0.25, -1, 0.25, -1])
    assert found["reward"].tolist() == [-1, 0, -1, 0] and found["discount"].tolist() == pytest.approx([0.98, 0] * 2)


def test_decisions_belong_to_the_one_above() -> None:
    rows = {"duration": torch.tensor([2.0, 3.0, 1.0, 4.0, 2.0]), LEFT: torch.tensor([2, 1, 0, 1, 0])}
    assert by_goal(rows, torch.tensor([5.0, 1.0, 6.0])).lengths.tolist() == [2, 1, 2]
    assert by_goal(rows, None).lengths.tolist() == [3, 2]


def collected(depth: int, ticks: list[int], **changes: Any) -> tuple[HAC, list[Rollout]]:
    given = {"horizon": 3, "low": (-1.5, -1.5), "high": (1.5, 1.5), "near": (0.3,), "tested": 0.5, "slots": 2}
    config = HAC.Config(env=MAZE, hidden=(8,), depth=depth, **{**given, **changes})
    hac = build_agent(HAC, config, world_spaces(MAZE))
    assert isinstance(hac, HAC)
    generator = torch.Generator().manual_seed(1)
    runner = Runner(hac.levels(explore=True), make_world(MAZE, 2, 25), generator=generator)
    return hac, [runner.collect(number) for number in ticks]


@pytest.mark.parametrize("near", [0.05, 0.3])
def test_a_place_has_as_many_attempts_as_the_horizon(near: float) -> None:
    """Three levels: a decision ends when its place is reached, or after three decisions of the level below."""
    _, (rollout,) = collected(3, [50], near=(near,))
    assert list(rollout.decisions) == ["goal2", "goal", "action"]
    ends: set[int] = set()
    achieved, final = (seen["achieved_goal"] for seen in (observed(rollout), rollout.streams.final_observation))
    assert isinstance(final, Tensor)
    for level, below in (("goal2", "goal"), ("goal", "action")):
        d, children = rollout.decisions[level], rollout.decisions[below]
        made = torch.bincount(children.parent, minlength=len(d))
        for row in range(len(d)):
            stop = int(d.stop[row])
            stream = int(d.stream[row])
            whole = rollout.spans["stream"].starts[stream] + rollout.spans["stream"].lengths[stream]
            here = final[stream] if stop == whole else achieved[stop]
            reached = bool(((here - d.action[row, :2]).abs() <= near).all())
            end = int(d.end[row])
            ends.add(end)
            if end == End.OPTION:
                assert reached
            elif end == End.TIMEOUT:
                assert int(made[row]) == 3 and not reached
            else:
                assert end in (End.PARENT, End.TRUNCATED, End.OPEN) and int(made[row]) <= 3
    assert End.TIMEOUT in ends and (near < 0.1 or End.OPTION in ends)


def test_a_test_is_handed_down_and_ends_noise() -> None:
    hac, (rollout,) = collected(3, [50], random_steps=0)
    top, goal = rollout.decisions["goal2"], rollout.decisions["goal"]
    above = top.action[goal.parent][:, 2]
    assert bool((goal.action[:, 2] >= above).all()) and 0 < float(goal.action[:, 2].mean()) < 1
    assert bool((goal.action[above == 0][:, 2] == 1).any())
    action = rollout.decisions["action"]
    command = goal.action[action.parent]
    seen = {name: rollout.observation[name][action.start] for name in hac.state.names}
    greedy = hac.tiers[0].act(torch.cat([hac.state(seen), command[:, :2]], -1)).detach()
    same = torch.isclose(action.action, greedy, atol=1e-5).all(-1)
    assert bool(same[command[:, 2] > 0].all()) and float(same[command[:, 2] == 0].float().mean()) < 0.2


@pytest.mark.parametrize("ticks", [[50], [7, 3, 20, 20]])
def test_whole_episodes_teach_every_level(ticks: list[int]) -> None:
    """Each decision gives itself and its hindsight goals, however batches cut the episodes; no penalty untested."""
    hac, rollouts = collected(2, ticks, tested=0.0)
    for rollout in rollouts:
        hac.keep(rollout)
    assert len(hac.replays["action"]) == 100 * 4
    decided = sum(int((rollout.decisions["goal"].begin == 0).sum()) for rollout in rollouts)
    assert len(hac.replays["goal"]) == decided * 4
    for replay in hac.replays.values():
        reward, discount = (replay.columns[name][: len(replay)] for name in ("reward", "discount"))
        assert set(reward.tolist()) == {-1.0, 0.0} and torch.allclose(discount, -0.98 * reward)
        assert float(replay.columns["action"][: len(replay)].abs().max()) <= 1
    facts = hac.facts(rollouts[-1])
    assert 1 <= facts["goal/length"] <= 3 and 0 <= facts["goal/reached"] <= 1


@torch.no_grad()
def test_greedy_levels_draw_nothing() -> None:
    hac = on_a_line()
    place, act = hac.levels(explore=False)
    seen = {name: torch.randn(6, 1) for name in LINE.observation}
    due = torch.ones(6, dtype=torch.bool)
    asked = place.decide(seen, None, due).action
    assert bool((asked[:, 1] == 0).all()) and float(asked[:, 0].abs().max()) <= 10
    assert torch.equal(act.decide(seen, asked, due).action, act.decide(seen, asked, due).action)


def test_senseless_values_are_refused_by_name() -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"depth": 1}, {"horizon": 1}, {"goals": 0}, {"low": (1.0,), "high": (0.0,)}, {"near": ()}, {"tested": 2.0},
        {"random": -0.1}, {"noise": -1.0},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(UsageError, match=next(iter(change))):
            HAC.Config(**change)
    with pytest.raises(UsageError, match="low must be 1 numbers"):
        on_a_line(low=(0.0, 0.0), high=(1.0, 1.0))


def small(**changes: Any) -> HAC.Config:
    few: dict[str, Any] = {"slots": 2, "ticks": 5, "updates": 12, "limit": 12, "random_steps": 20, "batch_size": 8}
    often: dict[str, Any] = {"eval_every": 6, "eval_episodes": 2, "checkpoint_every": 3, "log_every": 2}
    box: dict[str, Any] = {"low": (-1.5, -1.5), "high": (1.5, 1.5), "near": (0.3,), "horizon": 3, "capacity": 256}
    return HAC.Config(**{"env": MAZE, "hidden": (8,), **few, **often, **box, **changes})


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three levels, stopped in the middle of their attempts."""
    assert_resumes(HAC, small(depth=3), 47, tmp_path, monkeypatch)
    rows = [row for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl") if row["kind"] == "train"]
    assert all(-3 <= row["goal2/critic/value"] <= 0 for row in rows if "goal2/critic/value" in row)


def test_a_run_that_cannot_be_restored_forgets_what_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echelon.hierarchy.world.state_of", lambda env: None)
    stop_and_go_on(HAC, small(), 47, tmp_path / "cut", monkeypatch)
