"""Collected data: the recipe's facts, and the same bytes whatever the number of processes and interruptions."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from echelon.data.store import Store
from echelon.envs import collect
from echelon.envs.catalog import ENVIRONMENTS, parse
from echelon.envs.ensure import ensure
from echelon.envs.maze import MazeMap
from echelon.envs.pointmaze import PointMazeCollector, draw_task
from echelon.envs.simulators import build
from echelon.errors import DataError, UsageError

NAME = "pointmaze-medium-stitch-v0"
FACTS_THAT_DIFFER = ("created",)


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("kind", ["medium", "large", "giant", "teleport"])
def test_goals_of_stitch_are_at_four_steps_and_of_navigate_at_vertices(kind):
    maze, rng = MazeMap.of(kind), np.random.default_rng(0)
    stitch = [draw_task(maze, "stitch", rng) for _ in range(2000)]
    for start, goal in stitch:
        if start == goal:
            assert not maze.cells_at(start, 4)
        else:
            assert maze.distances(start)[goal] == 4
    assert {start for start, _ in stitch} == set(maze.free_cells)
    navigate = [draw_task(maze, "navigate", rng) for _ in range(2000)]
    assert {goal for _, goal in navigate} == set(maze.vertex_cells)
    assert {start for start, _ in navigate} == set(maze.free_cells)


def collected(name, episodes, length=None):
    info = parse(name)
    source = PointMazeCollector(replace(info, length=length or info.length))
    goals = []
    reset, aim = source.env.reset, source._aim_at
    source.env.reset = lambda **kw: goals.append([kw["options"]["task_info"]["goal_ij"]]) or reset(**kw)
    source._aim_at = lambda cell, rng: goals[-1].append(cell) or aim(cell, rng)
    rows = [source.episode(0, index) for index in range(episodes)]
    source.close()
    return rows, goals


def test_rows_of_an_episode():
    (episode, other), goals = collected(NAME, 2)
    assert {k: (v.shape, v.dtype.name) for k, v in episode.items()} == {
        "observations": ((201, 2), "float32"),
        "actions": ((201, 2), "float32"),
        "qpos": ((201, 2), "float32"),
        "qvel": ((201, 2), "float32"),
        "terminals": ((201,), "bool"),
    }
    assert episode["terminals"].nonzero()[0].tolist() == [200]
    assert np.array_equal(episode["observations"], episode["qpos"])
    assert not np.array_equal(episode["observations"], other["observations"])
    assert [len(g) for g in goals] == [1, 1]  # stitch keeps its goal
    maze = MazeMap.of(NAME)
    start = maze.to_cell(episode["observations"][0])
    assert maze.distances(goals[0][0])[tuple(start)] in (0, 4)
    assert (np.abs(episode["observations"][0] - maze.to_xy(start)) <= 1).all()
    assert np.linalg.norm(episode["observations"][-1] - maze.to_xy(np.array(goals[0][0]))) < 1.0


def test_each_row_leads_to_the_next_by_a_step_of_the_environment():
    (episode,), _ = collected(NAME, 1)
    env = build(ENVIRONMENTS["pointmaze-medium-v0"], collecting=True)
    env.reset(seed=0)
    for t in (0, 1, 7, 60, 199):
        env.set_state(episode["qpos"][t].astype(float), episode["qvel"][t].astype(float))
        seen, *_ = env.step(episode["actions"][t].astype(float))
        assert np.allclose(seen, episode["observations"][t + 1], atol=1e-5)


def test_navigate_draws_a_new_vertex_at_each_goal_reached():
    episodes, goals = collected("pointmaze-medium-navigate-v0", 3)
    maze = MazeMap.of("medium")
    reach = 1.0 + math.sqrt(2)  # the success radius, and how far a goal may lie from its cell's centre
    assert sum(map(len, goals)) >= 10 and {cell for cells in goals for cell in cells} <= set(maze.vertex_cells)
    for episode, cells in zip(episodes, goals, strict=True):
        t = 0
        for cell in cells[:-1]:  # all but the last were reached, in this order
            near = np.linalg.norm(episode["observations"][t:] - maze.to_xy(np.array(cell)), axis=1) <= reach
            assert near.any()
            t += int(near.argmax())


def test_action_noise_is_normal_with_half_a_unit_and_clipped():
    episodes, goals = collected(NAME, 60, length=120)
    maze = MazeMap.of(NAME)
    direction = np.concatenate(
        [
            maze.direction(e["qpos"].astype(np.float64), maze.to_xy(np.array(g[0])))
            for e, g in zip(episodes, goals, strict=True)
        ]
    ).ravel()
    action = np.concatenate([e["actions"] for e in episodes]).ravel()
    assert np.abs(action).max() == 1.0
    high = np.array([1 - normal_cdf((1 - d) / 0.5) for d in direction])
    spread = math.sqrt((high * (1 - high)).sum())
    assert abs((action == 1).sum() - high.sum()) < 4 * spread
    inner = np.abs(direction) < 0.7
    noise = (action - direction)[inner]
    assert abs((np.abs(noise) < 0.25).mean() - (2 * normal_cdf(0.5) - 1)) < 4 * 0.5 / math.sqrt(inner.sum())
    assert abs((noise > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(inner.sum())


def test_teleported_rows_show_where_the_point_stood_before():
    episodes, _ = collected("pointmaze-teleport-navigate-v0", 2)
    maze = MazeMap.of("teleport")
    ins, outs = (maze.to_xy(np.array(cells)) for cells in maze.teleports)
    jumps = 0
    for e in episodes:
        moved = np.flatnonzero((e["observations"] != e["qpos"]).any(1))
        jumps += len(moved)
        for t in moved:
            assert np.linalg.norm(ins - e["observations"][t], axis=1).min() <= 1.5 + 1e-4
            assert np.linalg.norm(outs - e["qpos"][t], axis=1).min() < 1e-5
    assert jumps > 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small set of several shards, made by one process."""
    root = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(collect.SHARD_ROWS, "pointmaze", 1000)
        path = collect.make(NAME, jobs=1, episodes=12, root=root, progress=False)
    return Store.open(path)


def same_bytes(a, b):
    facts = [{k: v for k, v in s.manifest.items() if k not in FACTS_THAT_DIFFER} for s in (a, b)]
    return facts[0] == facts[1]  # the manifest holds every file's checksum


def test_what_is_made(made):
    assert made.name == f"{NAME}@12" and (made.episodes, made.transitions) == (12, 2400)
    manifest = made.manifest
    assert manifest["regenerated"] is True and manifest["recipe"] == {"name": "ogbench-pointmaze", "version": 1}
    assert (manifest["env"], manifest["seed"], manifest["split"]) == ("pointmaze-medium-v0", 0, "train")
    assert (manifest["full_episodes"], manifest["versions"]["ogbench"]) == (5000, "1.2.2")
    validation = made.validation()
    assert validation.episodes == 1 and validation.manifest["split"] == "val"
    assert not (made.path.parent / ".partial" / made.name).exists()
    (first,), _ = collected(NAME, 1)
    assert all(np.array_equal(made.episode(0)[k], first[k]) for k in first)
    with pytest.raises(UsageError, match="holds the set made from seed 0; remove it to make seed 4"):
        collect.make(made.name, seed=4, root=made.path.parent, progress=False)


def test_two_processes_and_other_shards_make_the_same_bytes(made, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(collect.SHARD_ROWS, "pointmaze", 700)
    again = Store.open(collect.make(made.name, jobs=2, root=tmp_path))
    assert same_bytes(made, again) and same_bytes(made.validation(), again.validation())
    assert "making pointmaze-medium-stitch-v0@12" in capfd.readouterr().out
    stamp = again.path.stat().st_mtime_ns
    assert collect.make(made.name, root=tmp_path) == again.path and again.path.stat().st_mtime_ns == stamp


def test_killed_work_is_taken_up_again(made, tmp_path, monkeypatch):
    code = (
        "import sys; from echelon.envs import collect; collect.SHARD_ROWS['pointmaze'] = 1000\n"
        f"collect.make({made.name!r}, jobs=1, root=sys.argv[1], progress=False)"
    )
    partial = tmp_path / ".partial" / made.name
    monkeypatch.setitem(collect.SHARD_ROWS, "pointmaze", 1000)
    first = partial / collect.shards_of(parse(made.name))[0].file
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "MUJOCO_GL": "disable"})
    deadline = time.monotonic() + 200
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists() and not (tmp_path / made.name).exists()
    with np.load(first) as shard:  # mark what was kept, to see it again in the finished set
        columns = {name: shard[name] for name in shard.files}
    columns["qvel"][0] = 123.0
    with first.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **columns)
    resumed = Store.open(collect.make(made.name, jobs=2, root=tmp_path, progress=False))
    assert (resumed.columns["qvel"][0] == 123.0).all()
    for name in ("observations", "actions", "qpos", "terminals"):
        assert np.array_equal(resumed.columns[name], made.columns[name])
    assert np.array_equal(resumed.columns["qvel"][1:], made.columns["qvel"][1:])
    assert not partial.exists()


def test_work_begun_by_another_seed_is_not_mixed_in(tmp_path):
    info = parse(f"{NAME}@2")
    partial = collect._open_partial(tmp_path, info, seed=1)
    (partial / "train-000000-000002.npz").write_bytes(b"of seed 1")
    assert collect._open_partial(tmp_path, info, seed=1).joinpath("train-000000-000002.npz").exists()
    assert not collect._open_partial(tmp_path, info, seed=0).joinpath("train-000000-000002.npz").exists()


def test_a_failing_process_is_reported_with_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "ogbench.py").write_text("raise RuntimeError('no such simulator')")
    with pytest.raises(
        DataError, match=r"(?s)process that made pointmaze-medium-stitch-v0@1 failed.*no such simulator"
    ):
        collect.make(NAME, jobs=1, episodes=1, root=tmp_path, progress=False)
    assert not (tmp_path / f"{NAME}@1").exists()


def test_ensure_makes_only_what_is_asked_for_and_reuses_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path))
    said = []
    store = ensure(NAME, transitions=350, jobs=1, say=said.append)
    assert store.path.name == f"{NAME}@2" and store.transitions == 400
    assert said == [f"data set {NAME}@2 is not there yet: making 400 transitions"]
    again = ensure(NAME, transitions=120, progress=False)
    assert again.path == store.path and again.transitions == 200
    assert ensure(str(store.path), progress=False).transitions == 400
    with pytest.raises(
        UsageError, match=r"antmaze-large-stitch-v0' needs a trained expert.*echelon data fetch antmaze"
    ):
        ensure("antmaze-large-stitch-v0")
    with pytest.raises(UsageError, match="did you mean"):
        ensure("pointmaze-large-stich-v0")
    with pytest.raises(UsageError, match="0 jobs"):
        collect.make(NAME, jobs=0)
    with pytest.raises(UsageError, match="needs a trained expert"):
        collect.make("antmaze-large-stitch-v0")
