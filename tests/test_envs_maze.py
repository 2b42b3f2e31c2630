"""Layouts, shortest paths and the catalogue, against OGBench's own environments and a naive search."""

from itertools import pairwise

import numpy as np
import pytest

from echelon.envs.catalog import DATASETS, ENVIRONMENTS, HOME_MADE, environment, parse, sized
from echelon.envs.maze import MazeMap, guide
from echelon.envs.simulators import build
from echelon.errors import UsageError

KINDS = ("medium", "large", "giant", "teleport")


def naive_distance(walls, start, goal):
    """Length of a shortest path by relaxing all cells until nothing changes; None where there is no path."""
    best = {start: 0}
    changed = True
    while changed:
        changed = False
        for (i, j), d in list(best.items()):
            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if not walls[near] and best.get(near, 10**9) > d + 1:
                    best[near] = d + 1
                    changed = True
    return best.get(goal)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_tasks_and_guide_are_those_of_the_environment(kind):
    env = build(ENVIRONMENTS[f"pointmaze-{kind}-v0"])
    maze = MazeMap.of(kind)
    assert np.array_equal(maze.walls, env.maze_map == 1)
    assert [(t.name, t.start, t.goal) for t in maze.tasks] == [
        (t["task_name"], t["init_ij"], t["goal_ij"]) for t in env.task_infos
    ]
    assert [t.start_xy for t in maze.tasks] == [tuple(t["init_xy"]) for t in env.task_infos]
    rng = np.random.default_rng(0)
    x_min, x_max, y_min, y_max = maze.extent
    for _ in range(300):
        xy = rng.uniform((x_min, y_min), (x_max, y_max))
        goal = maze.free_cells[rng.integers(len(maze.free_cells))]
        goal_xy = np.array(maze.centre(goal)) + rng.uniform(-1, 1, 2)
        aim, _ = env.get_oracle_subgoal(xy, goal_xy)
        cell = tuple(maze.to_cell(xy))
        assert cell == env.xy_to_ij(xy) and maze.centre(cell) == env.ij_to_xy(cell)
        assert np.array_equal(maze.to_xy(guide(maze, goal))[cell], aim)
        gap = aim - xy
        assert np.allclose(maze.direction(xy, goal_xy), gap / (np.linalg.norm(gap) + 1e-6), atol=1e-12)
    ins, outs = maze.teleports
    info = env._teleport_info or {"teleport_in_ijs": [], "teleport_out_ijs": []}
    assert (list(ins), list(outs)) == (info["teleport_in_ijs"], info["teleport_out_ijs"])
    env.close()


def test_distances_and_paths_against_a_naive_search():
    maze = MazeMap.of("pointmaze-large-stitch-v0")
    rng = np.random.default_rng(1)
    for _ in range(8):
        start, goal = (maze.free_cells[k] for k in rng.integers(len(maze.free_cells), size=2))
        expected = naive_distance(maze.walls, start, goal)
        assert maze.distances(goal)[start] == expected
        path = maze.path(start, goal)
        assert path[0] == start and path[-1] == goal and len(path) == expected + 1
        assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in pairwise(path))
        assert all(not maze.walls[cell] for cell in path)
        at_four = {c for c in maze.free_cells if naive_distance(maze.walls, start, c) == 4}
        assert set(maze.cells_at(start, 4)) == at_four
    assert maze.distances((1, 1))[0, 0] == -1


def test_published_counts_and_places():
    assert len(MazeMap.of("large").free_cells) == 46
    maze = MazeMap.of("antmaze-large-navigate-v0")
    assert maze.centre((1, 1)) == (0.0, 0.0) and maze.centre((7, 10)) == (36.0, 24.0)
    assert maze.tasks[0].goal_xy == (36.0, 24.0)
    assert maze.to_cell(np.array([[0.0, 0.0], [1.9, -1.9], [2.1, 0.0]])).tolist() == [[1, 1], [1, 1], [1, 2]]
    assert maze.extent == (-6.0, 42.0, -6.0, 30.0)
    straight = [c for c in maze.free_cells if c not in maze.vertex_cells]
    assert (2, 1) in straight and (1, 2) in straight and (1, 1) in maze.vertex_cells and (3, 4) in maze.vertex_cells


def test_errors_name_the_value():
    with pytest.raises(UsageError, match=r"\(0, 0\) is not a free cell"):
        MazeMap.of("large").distances((0, 0))
    with pytest.raises(UsageError, match="unknown maze 'pointmaze-hug-v0'"):
        MazeMap.of("pointmaze-hug-v0")
    with pytest.raises(UsageError, match=r"no path from \(1, 1\) to \(1, 7\)"):
        MazeMap.of("teleport").path((1, 1), (1, 7))


def test_catalogue_agrees_with_the_package():
    import gymnasium
    import gymnasium_robotics  # noqa: F401
    import ogbench  # noqa: F401

    for env in ENVIRONMENTS.values():
        if env.family not in {*HOME_MADE} - {"fetch"}:
            assert gymnasium.spec(env.name).max_episode_steps == env.limit, env.name
    for info in DATASETS.values():
        assert info.env.name in ENVIRONMENTS and info.episodes == info.full_episodes


@pytest.mark.parametrize(
    ("name", "episodes", "length", "limit", "dims", "regenerable"),
    [
        ("pointmaze-large-stitch-v0", 5000, 200, 1000, (2, 2), True),
        ("pointmaze-giant-navigate-v0", 500, 2000, 1000, (2, 2), True),
        ("antmaze-medium-explore-v0", 10000, 500, 1000, (29, 8), False),
        ("humanoidmaze-giant-stitch-v0", 10000, 400, 4000, (69, 21), False),
        ("antsoccer-medium-stitch-v0", 8000, 500, 1000, (42, 8), False),
        ("cube-quadruple-play-v0", 5000, 1000, 1000, (55, 5), True),
        ("scene-noisy-v0", 1000, 1000, 750, (40, 5), True),
        ("puzzle-4x5-noisy-v0", 3000, 1000, 1000, (99, 5), True),
    ],
)
def test_published_sizes(name, episodes, length, limit, dims, regenerable):
    info = parse(name)
    assert (info.episodes, info.length, info.env.limit, info.regenerable) == (episodes, length, limit, regenerable)
    assert (info.env.observation_dim, info.env.action_dim) == dims
    assert info.validation_episodes == episodes // 10


def test_names():
    small = parse("cube-single-play-v0@7")
    assert (small.episodes, small.full_episodes, small.validation_episodes) == (7, 1000, 1)
    assert sized(small, None).name == sized(small, 1000).name == "cube-single-play-v0"
    assert sized(small, 30).name == "cube-single-play-v0@30"
    assert environment("cube-single-play-v0@7") is environment("cube-single-v0")
    with pytest.raises(
        UsageError, match="unknown data set 'pointmaze-large-stich-v0'; did you mean pointmaze-large-st"
    ):
        parse("pointmaze-large-stich-v0")
    with pytest.raises(UsageError, match="unknown environment 'pointmaze-larg-v0'; did you mean pointmaze-large-v0"):
        environment("pointmaze-larg-v0")
    for wrong in ("@0", "@1001", "@x", "@"):
        with pytest.raises(UsageError, match="a number of episodes from 1 to 1000"):
            parse(f"cube-single-play-v0{wrong}")
    with pytest.raises(UsageError, match="valid: 1 to 1000"):
        sized(small, 2000)
