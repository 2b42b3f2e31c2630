"""The page of online runs: levels over time, what the hierarchy does, returns; plans of rooms and mazes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_view import checked

from echelon.cli import main
from echelon.envs import grids
from echelon.errors import UsageError
from echelon.evidence.view import gather, mazes
from echelon.evidence.view.page import page, view
from echelon.evidence.view.played import FOUR_ROOMS, GridMap, plan_of
from echelon.rollout import Rollout
from echelon.systems import index
from echelon.training import run

OFTEN: dict[str, Any] = {"updates": 4, "eval_every": 2, "eval_episodes": 3, "checkpoint_every": 4, "log_every": 1}
REPLAYED: dict[str, Any] = {"slots": 2, "ticks": 8, "hidden": (6,), "random_steps": 16, "batch_size": 6}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set is on this machine."""
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path / "data"))


def trained(folder: Path, system: str, seed: int = 0, **settings: Any) -> Path:
    cls = index.load(system)
    config = cls.Config(seed=seed, **OFTEN, **settings)
    done = run.train(cls, config, folder / system / f"seed-{seed}", device="cpu", threads=1, say=lambda line: None)
    assert done is not None
    return done


def rooms(folder: Path, seed: int = 0) -> Path:
    return trained(folder, "option-critic", seed, env="four-rooms", limit=40, gradient_ratio=0.2, options=3, **REPLAYED)


def test_options_in_four_rooms(tmp_path: Path) -> None:
    for seed in (0, 1):
        rooms(tmp_path, seed)
    html = view([tmp_path / "option-critic"]).read_text()
    parser = checked(html)
    assert {"success", "returns", "recorded", "paths", "levels", "spans", "training", "provenance"} <= set(parser.ids)
    assert "mazes" not in parser.ids and "fields" not in parser.ids
    for words in (
        "environment steps",
        "its own condition",
        "choices used",
        "value error",
        "option/length",
        "evaluation/",
    ):
        assert words in html, words
    assert html.count('id="flame"') == 1 and html.count('aria-label="path of episode') == 3
    assert html.count('class="walls"') == 4 and len(html) < 1_500_000
    group = gather.gather([tmp_path / "option-critic"])[0]
    rollout = Rollout.load(group.runs[0].path / "rollouts" / "step_000000004")
    assert group.runs[0].diagnostics == rollout.meta["diagnostics"]
    one = group.runs[0].played[1]
    items = slice(int(rollout.spans["stream"].starts[1]), int(rollout.spans["stream"].ends[1]) + 1)
    states = [
        *rollout.observation["observation"][items].tolist(),
        int(rollout.streams.final_observation["observation"][1]),
    ]
    assert one.path is not None
    assert [(-int(y), int(x)) for x, y in one.path] == [grids.CELLS[state] for state in states]
    assert one.earned == pytest.approx(float(rollout.streams.labels["return"][1]))
    for level, boxes in one.levels.items():
        assert [box.start for box in boxes] == [0, *(box.stop for box in boxes[:-1])] and boxes[-1].stop == len(
            one.rewards
        )
        mine = rollout.decisions[level]
        assert [box.choice for box in boxes] == mine.action[mine.stream == 1][
            mine.start[mine.stream == 1].argsort()
        ].tolist()
    returns = group.returns()
    assert [step for step, _ in returns] == [2, 4] and returns[0][1].shape == (2, 1, 3)


def test_goals_in_a_maze_of_robots(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    path = trained(
        tmp_path, "hiro", env="PointMaze_UMaze-v3", limit=30, period=5, reach=(1.0,), gradient_ratio=0.2, **REPLAYED
    )
    html = view([path]).read_text()
    checked(html)
    assert "time was up" in html and html.count('class="subgoal"') == 3 * 6 and 'class="goal"' in html
    found = gather.gather([path])[0].runs[0]
    plan, one = plan_of(found.env), found.played[0]
    assert plan is not None and one.path is not None and one.goal is not None
    assert len(one.path) == 31 and one.subgoals[:, 0].tolist() == [0, 5, 10, 15, 20, 25]
    cells = np.floor((one.path - [plan.extent[0], plan.extent[2]]) / plan.unit).astype(int)
    assert not plan.walls[cells[:, 1], cells[:, 0]].any(), "who is in a wall is drawn at the wrong place"
    column, row = np.floor((one.goal - [plan.extent[0], plan.extent[2]]) / plan.unit).astype(int)
    assert not plan.walls[row, column]


def test_a_run_without_success_or_plan_shows_its_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained(tmp_path, "flat-ppo", env="CartPole-v1", slots=2, ticks=16, minibatch=16, epochs=1, hidden=(6,))
    assert main(["view", str(path), "--json"]) == 0
    html = Path(json.loads(capsys.readouterr().out)["report"]).read_text()
    parser = checked(html)
    assert re.search(r"earns a return of [\d.]+ in its test episodes", html)
    assert "CartPole-v1 tells no success" in html and 'aria-label="path of' not in html
    assert {"returns", "recorded", "levels"} <= set(parser.ids)


def test_a_bare_online_run_says_what_is_missing(tmp_path: Path) -> None:
    fields = {"env": "CartPole-v1", "seed": 0, "slots": 2, "ticks": 4}
    (tmp_path / "config.json").write_text(json.dumps({"system": "dqn", "config": fields}))
    html = page(gather.gather([tmp_path]))
    checked(html)
    assert "not evaluated yet" in html and "rollouts/ is empty" in html


def test_a_bare_language_run_says_what_is_missing(tmp_path: Path) -> None:
    cls = index.load("grpo")
    from echelon.training.config import to_json

    (tmp_path / "config.json").write_text(json.dumps(to_json(cls.Config())))
    assert main(["view", str(tmp_path), "--json"]) == 0
    html = (tmp_path / "report.html").read_text()
    checked(html)
    assert "records/ is empty" in html and "not evaluated yet" in html


def test_a_run_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echelon.cli import runs
    from echelon.cli.view import refuse_others
    from echelon.training.config import RunConfig

    (tmp_path / "config.json").write_text("{}")

    class Other(RunConfig):
        system = "other"

    monkeypatch.setattr(runs, "config_of", lambda directory: Other(env="nowhere"))
    with pytest.raises(UsageError, match=r"is a run of 'other'; curves: echelon compare"):
        refuse_others((tmp_path,))


def test_four_rooms_lie_as_they_are_printed() -> None:
    plan = mazes.Plan(FOUR_ROOMS)
    assert FOUR_ROOMS.extent == (-0.5, 12.5, -12.5, 0.5)
    for i, j in grids.CELLS:
        assert not FOUR_ROOMS.walls[12 - i, j]
    assert FOUR_ROOMS.walls.sum() == 13 * 13 - 104
    top, bottom = plan.pixels(np.array([[1.0, -1.0], [1.0, -11.0]]))
    assert top[1] < bottom[1] and top[0] == bottom[0] == pytest.approx(1.5 * plan.cell)
    assert top[1] == pytest.approx(1.5 * plan.cell)
    wide = GridMap("wide", 2.0, rows=("###", "#.#"), centre_xy=(1.0, 0.0))
    assert wide.extent == (-2.0, 4.0, -2.0, 2.0)
    assert plan_of("CartPole-v1") is None and plan_of("four-rooms-far@100") is FOUR_ROOMS


def test_everything_is_finite_before_anything_was_learned(tmp_path: Path) -> None:
    """A record without a finished decision at the top has a page too."""
    torch.manual_seed(0)
    path = trained(tmp_path, "diayn", env="Pendulum-v1", limit=5, gradient_ratio=0.2, skills=3, **REPLAYED)
    html = view([path]).read_text()
    checked(html)
    assert "the episode was cut off 100 %" in html
