"""The report of runs: what is read from run directories, and the page and picture made of it."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echelon.data.store import write_store
from echelon.envs.maze import MazeMap
from echelon.errors import DataError, UsageError
from echelon.evidence.view import gather, mazes, runs
from echelon.evidence.view.markup import number
from echelon.evidence.view.page import page, view
from echelon.evidence.view.picture import picture
from echelon.evidence.view.probe import probe
from echelon.rollout import Begin, Decisions, End, Rollout, Streams, partition
from echelon.spans import Spans, SpanTree
from echelon.systems import index
from echelon.training import checkpoint
from echelon.training.agent import Agent, DataSpec
from echelon.training.config import to_json

ENV = "pointmaze-medium-navigate-v0"
SPEC = {"observation_dim": 2, "action_dim": 2}
HOSTILE = '<script>alert("x")</script>&'
VOID = {"meta", "br", "hr", "input", "link"}


# --- synthetic runs


def decide(streams: Spans, length: int) -> Decisions:
    """Decisions of `length` items each (the last of a stream may be shorter)."""
    start = torch.cat(
        [torch.arange(int(a), int(b) + 1, length) for a, b in zip(streams.starts, streams.ends, strict=True)]
    )
    stream = streams.ids[start]
    stop = torch.minimum(start + length, streams.ends[stream] + 1)
    count = len(start)
    end = torch.where(stop == streams.ends[stream] + 1, int(End.TRUNCATED), int(End.OPTION))
    return Decisions(
        stream=stream, start=start, stop=stop, span=partition(streams, start, stop)[1],
        begin=torch.full((count,), int(Begin.DECIDED)), end=end, action=torch.zeros(count, 2),
        log_prob=torch.full((count,), torch.nan), parent=torch.full((count,), -1),
    )  # fmt: skip


def record(env: str, episodes: int, length: int = 60, size: int = 2) -> Rollout:
    """Episodes of every task that drive the first `length` steps of the guide's way; odd ones count as successes."""
    maze = MazeMap.of(env) if "maze" in env else MazeMap.of("medium")
    rng = np.random.default_rng(0)
    paths, tasks = [], []
    for _ in range(episodes):
        for task in maze.tasks:
            corners = maze.to_xy(np.array(maze.path(task.start, task.goal)))
            at = np.linspace(0, len(corners) - 1, length + 1)
            way = np.stack([np.interp(at, np.arange(len(corners)), corners[:, k]) for k in (0, 1)], axis=1)
            paths.append(np.pad(way + rng.normal(0, 0.1, way.shape), ((0, 0), (0, size - 2))))
            tasks.append(task)
    count = len(paths)
    streams = Spans.from_lengths(torch.full((count,), length))
    n = count * length
    seen = np.concatenate([path[:-1] for path in paths]).astype(np.float32)
    aim = np.repeat([np.pad(task.goal_xy, (0, size - 2)) for task in tasks], length, axis=0).astype(np.float32)
    tables = {"high": decide(streams, 7), "low": decide(streams, 1)}
    tables["low"].parent = partition(streams, tables["high"].start, tables["high"].stop)[0].ids  # rows are in order
    spans = SpanTree(
        {"episode": (streams, None), "stream": (streams, "episode")}
        | {name: (partition(streams, d.start, d.stop)[0], "stream") for name, d in tables.items()}
    )
    return Rollout(
        stream=streams.ids, tick=torch.arange(length).repeat(count), elapsed=torch.ones(n), reward={}, scored={},
        observation={"observation": torch.from_numpy(seen), "goal": torch.from_numpy(aim)},
        proposed=torch.zeros(n, 2), executed=torch.zeros(n, 2), decisions=tables, spans=spans,
        streams=Streams(
            episode=torch.arange(count), role=["agent"] * count, policy_id=["policy"] * count,
            learner=torch.ones(count, dtype=torch.bool), terminated=torch.zeros(count, dtype=torch.bool),
            truncated=torch.ones(count, dtype=torch.bool), start_tick=torch.zeros(count, dtype=torch.int64),
            final_observation={"observation": torch.tensor(np.array([p[-1] for p in paths]), dtype=torch.float32)},
            labels={"task": torch.tensor([int(t.name[-1]) for t in tasks]), "success": torch.arange(count) % 2},
        ),
    )  # fmt: skip


def make_run(
    path: Path,
    system: str = "ota",
    seed: int = 0,
    env: str = ENV,
    episodes: int = 2,
    level: float = 0.5,
    **settings: Any,
) -> Path:
    """A finished run of untrained networks with made-up metrics, as `echelon train` would leave it."""
    cls = index.load(system)
    values = {"actor_hidden": (8,), "value_hidden": (8,), "updates": 3000, "batch_size": 16} | settings
    names = {f.name for f in dataclasses.fields(cls.Config)}
    config = cls.Config(env=env, seed=seed, **{k: v for k, v in values.items() if k in names})
    path.mkdir(parents=True)
    identity = {
        "commit": "0123456789abcdef", "seed": seed, "torch": "2.13", "cpu": "a machine", "spec": SPEC,
        "data": {"name": env, "regenerated": True}, "started": "2026-11-20T08:00:00+00:00",
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    steps = range(1000, 4000, 1000)
    evaluations = [
        {"step": s, "tasks": {f"task{t}": (rng.random(4) < level).astype(int).tolist() for t in range(1, 6)}}
        for s in steps
    ]
    metrics = [
        {
            "step": s,
            "time_s": 0.1 * s,
            "kind": "train",
            "loss/value": 100.0 / s**2,
            "value/mean": -0.01 * s,
            "gap": None,
        }
        for s in range(10, 3001, 10)
    ]
    (path / "config.json").write_text(json.dumps(to_json(config)))
    (path / "identity.json").write_text(json.dumps(identity))
    (path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (path / "result.json").write_text(
        json.dumps({"score": level, "train_s": 100.0, "evaluation_s": 20.0, "updates": 3000})
    )
    if episodes:
        (path / "rollouts").mkdir()
        record(env, episodes).save(path / "rollouts" / "step_000003000")
    torch.manual_seed(seed)
    agent = cls(config, DataSpec(**SPEC))
    checkpoint.save(path, 3000, {f"agent.{k}": v for k, v in agent.state_dict().items()}, {})
    return path


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set in a cache of its own; states lie on a line so that a subgoal can be recognised."""
    cache = tmp_path / "data"
    monkeypatch.setenv("ECHELON_DATA", str(cache))
    states = np.stack([np.linspace(0, 20, 500), np.full(500, 0.25)], axis=1).astype(np.float32)
    part = {"observations": states, "actions": np.zeros((500, 2), np.float32), "terminals": np.arange(500) == 499}
    return write_store(cache / ENV, [part], 500, {"name": ENV, "regenerated": True, "recipe": HOSTILE}, "test")


@pytest.fixture
def two_systems(tmp_path: Path) -> list[Path]:
    """Two seeds of OTA and two of GCIVL."""
    for system, level in (("ota", 0.9), ("gcivl", 0.1)):
        for seed in (0, 1):
            make_run(tmp_path / system / f"seed-{seed}", system, seed, level=level)
    return [tmp_path / "ota", tmp_path / "gcivl"]


class Balance(HTMLParser):
    """Checks that tags nest, and collects ids, attribute values and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.values: list[tuple[str, str]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.values += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def checked(html: str) -> Balance:
    """Parse a page; assert that it is balanced, self-contained and without duplicate ids or dangling references."""
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert not re.search(r"https?://|//cdn|@import|url\(", html)
    assert len(set(parser.ids)) == len(parser.ids)
    for name, value in parser.values:
        assert name not in ("src", "srcset", "action"), value
        assert name != "href" or value[1:] in parser.ids, f"dangling {value}"
        assert not name.startswith("on")
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<script.*?</script>|<style.*?</style>", "", html, flags=re.S))
    return parser


# --- reading


def test_gather_groups_seeds_and_reads_everything(two_systems: list[Path]) -> None:
    groups = gather.gather(two_systems)
    assert [(g.label, [run.seed for run in g.runs], g.style) for g in groups] == [
        ("OTA", [0, 1], 0),
        ("GCIVL", [0, 1], 1),
    ]
    run = groups[0].runs[0]
    assert run.wall_s == 120.0
    assert set(run.metrics) == {"loss/value", "value/mean"}
    assert run.metrics["value/mean"].value[-1] == pytest.approx(-30)
    assert run.spans["low"].tolist() == [1.0] * len(run.spans["low"])
    assert sorted(set(run.spans["high"].tolist())) == [4.0, 7.0]
    assert [e.task for e in run.episodes] == [f"task{t}" for t in range(1, 6)] * 2
    assert [e.success for e in run.episodes] == [bool(i % 2) for i in range(10)]
    assert run.episodes[0].path.shape == (61, 2)
    assert groups[0].manifest is not None and groups[0].manifest["regenerated"] is True
    assert groups[0].sentence.startswith("option-aware")


def test_scores_pool_the_last_three_evaluations(two_systems: list[Path]) -> None:
    group = gather.gather(two_systems[:1])[0]
    scores = group.scores()
    assert scores is not None and scores.shape == (2, 5, 12)
    rows = [json.loads(line) for line in (two_systems[0] / "seed-1" / "evaluations.jsonl").read_text().splitlines()]
    assert scores[1, 2].tolist() == [100.0 * x for row in rows[-3:] for x in row["tasks"]["task3"]]
    assert [step for step, _ in group.success()] == [1000, 2000, 3000]


def test_seeds_table_averages_into_bins() -> None:
    steps = np.arange(1.0, 501.0)
    curves = [runs.Curve(steps, steps), runs.Curve(steps[:400], -steps[:400])]
    at, values = runs.seeds_table(curves, points=100)
    assert at.tolist() == [2.5 + 4 * i for i in range(100)]
    assert np.allclose(values, [at, -at])


def test_different_settings_are_different_groups_with_telling_labels(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"n{n}" / "seed-0", option_steps=n, episodes=0) for n in (1, 5)]
    assert [group.label for group in gather.gather(paths)] == ["OTA (option_steps 1)", "OTA (option_steps 5)"]


@pytest.mark.parametrize("kind", ["absent", "empty", "damaged"])
def test_what_is_no_run_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind != "absent":
        path.mkdir()
    if kind == "damaged":
        (path / "config.json").write_text("{")
    with pytest.raises((UsageError, DataError), match="thing"):
        view([path], None)


# --- what the agent thinks


def test_fields_and_subgoals_are_those_of_the_agent(tmp_path: Path) -> None:
    from echelon import load_agent

    group = gather.gather([make_run(tmp_path / "run")])[0]
    probe(group)
    run, maze = group.runs[0], MazeMap.of(ENV)
    agent: Agent = load_agent(run.path)
    mask, points = mazes.field_mask(maze), mazes.field_points(maze)
    y, x = np.argwhere(mask)[77]
    goal = torch.tensor([maze.tasks[2].goal_xy], dtype=torch.float32)
    values = agent.value_functions(torch.tensor(points[y, x][None], dtype=torch.float32), goal)
    assert set(run.fields["task3"]) == {"V_h", "V_l"}
    for name, value in values.items():
        assert run.fields["task3"][name][y, x] == pytest.approx(float(value.detach()), rel=1e-5)
        assert np.array_equal(np.isnan(run.fields["task3"][name]), ~mask)
    episode = run.episodes[0]
    assert len(episode.values["V_h"]) == 60
    assert 2 <= len(episode.subgoals) <= 24
    assert (episode.subgoals[:, 2] == 0.25).all(), "a subgoal is shown as a state of the data set"
    assert episode.subgoals[:, 0].tolist() == list(range(0, 60, 7)), "where the top level decided"
    one = run.timelines[0]
    assert one.subgoals.tolist() == episode.subgoals.tolist(), "beside the path, in step with the cursor"
    texts = [run.strings.all[one.text[box]] for box, r in enumerate(one.row) if one.rows[r].level == "high"]
    x, y = episode.subgoals[3, 1:]
    assert texts[3].startswith(f"to ({x:.3g}, {y:.3g}), the nearest state of the data")
    low = [run.strings.all[one.text[box]] for box, r in enumerate(one.row) if one.rows[r].level == "low"]
    assert not any("nearest" in text for text in low)


def test_a_flat_system_and_a_missing_data_set_are_said(tmp_path: Path, data: Path) -> None:
    flat = gather.gather([make_run(tmp_path / "flat", "gcivl")])[0]
    probe(flat)
    assert flat.missing["subgoals"].startswith("a flat policy")
    assert flat.runs[0].fields
    for file in data.iterdir():
        file.unlink()
    alone = gather.gather([make_run(tmp_path / "alone")])[0]
    probe(alone)
    assert "data set is not on this machine" in alone.missing["subgoals"]
    assert alone.runs[0].fields, "the position is the whole state, so no data set is needed"


# --- the page


def test_page_of_two_systems(two_systems: list[Path], tmp_path: Path) -> None:
    out = view(two_systems, tmp_path / "deep" / "page.html")
    html = out.read_text()
    parser = checked(html)
    assert html.startswith("<!doctype html>\n<html")
    assert len(html) < 1_500_000
    for words in (
        *(
            "OTA and GCIVL on",
            "95 % interval",
            "The difference is",
            "task 5",
            "Figure 7.",
            "V_h(s, goal)",
            "a flat policy",
        ),
        *("regenerated on this machine", "20 November 2026", "2 min 00 s", "prefers-color-scheme: dark"),
    ):
        assert words in html, words
    figures = [int(n) for n in re.findall(r"<b>Figure (\d+)\.", html)]
    assert figures == list(range(1, len(figures) + 1))
    assert HOSTILE not in html
    assert {"success", "mazes", "fields", "spans", "training", "provenance"} <= set(parser.ids)


def test_player_data_restores_path_and_subgoals(two_systems: list[Path]) -> None:
    groups = gather.gather(two_systems[:1])
    for group in groups:
        probe(group)
    parser = checked(page(groups))
    blob = json.loads(next(text for text in parser.scripts if text.startswith('{"ramp"')))
    seed = blob["groups"][0]["seeds"][1]
    played, episode = seed["tasks"]["task4"][0], groups[0].runs[1].episodes[3]
    plan = mazes.Plan(MazeMap.of(ENV))
    path = np.cumsum(np.array(played["path"]).reshape(-1, 2), axis=0) / 10
    assert np.allclose(path, plan.pixels(episode.path), atol=0.051)
    assert np.allclose(np.array(played["subgoals"])[:, 1:] / 10, plan.pixels(episode.subgoals[:, 1:]), atol=0.051)
    assert min(played["values"]["V_h"]) == 0 and max(played["values"]["V_h"]) == 100
    assert all(f"{seed['prefix']}task4-{v}" in parser.ids for v in range(2))


def test_changed_settings_are_marked_and_text_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", episodes=0)
    document = json.loads((run / "config.json").read_text())
    document["config"]["note"] = HOSTILE
    (run / "config.json").write_text(json.dumps(document))
    html = page(gather.gather([run]))
    checked(html)
    assert HOSTILE not in html and "&lt;script&gt;alert" in html
    assert (
        '<tr class="changed"><td class="code">batch_size</td><td class="code">16</td><td class="code">1024</td>' in html
    )
    assert '<tr><td class="code">expectile</td>' in html


def test_a_bare_run_has_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(
        json.dumps({"system": "nobody-knows", "config": {"env": "cube-single-play-v0", "seed": 3}})
    )
    out = view([run])
    assert out == run / "report.html"
    html = out.read_text()
    checked(html)
    for words in (
        "nobody-knows on cube-single-play-v0",
        "not evaluated yet",
        "no metrics.jsonl",
        "rollouts/ is empty",
        "1 of 1 runs",
    ):
        assert words in html, words


def test_an_environment_that_is_no_maze(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", env="cube-single-play-v0")
    html = view([run]).read_text()
    parser = checked(html)
    assert "cube-single-play-v0 is not a maze" in html
    assert "fields" not in parser.ids and "spans" in parser.ids


def test_a_maze_run_without_a_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for file in sorted((run / "checkpoints").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    html = view([run]).read_text()
    checked(html)
    assert "no trained networks to ask" in html
    assert html.count('class="trail"') == 5


def test_unfinished_seeds_meet_on_common_ground(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "ota" / f"seed-{seed}", seed=seed, episodes=0) for seed in (0, 1)]
    lines = (paths[1] / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (paths[1] / "evaluations.jsonl").write_text(lines[0] + '{"step": 2000, "tas')
    (paths[1] / "result.json").unlink()
    group = gather.gather([tmp_path / "ota"])[0]
    scores = group.scores()
    assert scores is not None and scores.shape == (2, 5, 4)
    assert [step for step, _ in group.success()] == [1000]
    checked(page([group]))


def test_order_consistency_is_measured_and_shown(tmp_path: Path) -> None:
    pytest.importorskip("ogbench")
    group = gather.gather([make_run(tmp_path / "run", episodes=0)])[0]
    probe(group)
    order = group.runs[0].order
    assert set(order) == {"V_h", "V_l"} and all(0 <= share <= 1 for share in order.values())
    html = page([group])
    checked(html)
    assert f">{number(order['V_l'], 3)}</text>" in html


def test_one_seed_says_what_its_interval_cannot_know(tmp_path: Path) -> None:
    html = page(gather.gather([make_run(tmp_path / "run", episodes=0)]))
    assert "1 seed)" in html and "not that of training again" in html


# --- the picture


def test_picture_is_standalone_svg(two_systems: list[Path], tmp_path: Path) -> None:
    out = picture(two_systems[::-1], tmp_path / "strip.svg")
    root = ElementTree.fromstring(out.read_text())
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert out.stat().st_size < 120_000
    assert not {"script", "image", "use", "foreignObject"} & {
        element.tag.removeprefix(space) for element in root.iter()
    }
    texts = ["".join(element.itertext()) for element in root.iter(f"{space}text")]
    assert texts.index("OTA") < texts.index("GCIVL"), "the hierarchy comes first, whatever the order given"
    titles = [t for t in texts if t.startswith("task")]
    assert titles[0].endswith("; diamonds: subgoals") and "diamonds" not in titles[1]


def test_picture_needs_episodes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recorded evaluation episodes"):
        picture([make_run(tmp_path / "run", episodes=0)], tmp_path / "x.svg")
