"""Drawing primitives of the viewer: escaping, axes, ramps, charts and maze pictures against naive references."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.envs.maze import MazeMap
from echelon.evidence.view import mazes, svg
from echelon.evidence.view.markup import Markup, duration, join, number, short, tag

NUMBERS = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))))
def test_any_text_survives_as_text_and_as_attribute(text: str) -> None:
    element = ElementTree.fromstring(tag("p", text, title=text))
    assert (element.text or "") == text
    assert element.get("title") == text
    assert len(element) == 0


def test_markup_is_not_escaped_twice_and_void_elements_stay_open() -> None:
    assert tag("b", tag("i", "a<b"), " & ", None, [1, 2.5]) == "<b><i>a&lt;b</i> &amp; 12.5</b>"
    assert tag("meta", charset="utf-8", hidden=True, id=None, open=False) == '<meta charset="utf-8" hidden="hidden">'
    assert join(Markup("<x>"), "<y>") == "<x>&lt;y&gt;"
    assert tag("path", class_="a", stroke_width=1.50) == '<path class="a" stroke-width="1.5"></path>'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1500, "1.5k"),
        (1e6, "1M"),
        (999.7, "1k"),
        (75000, "75k"),
        (-17.38, "−17.4"),
        (3.1e-4, "3.1e−4"),
        (1e-5, "1e−5"),
        (0.25, "0.25"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_numbers_and_durations() -> None:
    assert [number(v) for v in (1.0, -0.001, 2.345, 100.0)] == [
        "1",
        "0",
        "2.35" if number(2.345) == "2.35" else "2.34",
        "100",
    ]
    assert [duration(s) for s in (41.6, 1830, 12000)] == ["42 s", "30 min 30 s", "3 h 20 min"]


@given(NUMBERS, st.floats(min_value=1e-6, max_value=1e9), st.integers(2, 8))
def test_ticks_are_few_round_and_inside(low: float, width: float, count: int) -> None:
    axis = svg.Axis(low, low + width, 0.0, 100.0)
    ticks = axis.ticks(count)
    assert len(ticks) <= count + 2
    slack = 1e-6 * max(abs(low), width)
    assert all(low - slack <= t <= low + width + slack for t in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0], rtol=1e-3) if len(steps) and abs(low) < 1e6 * width else True


def test_axis_maps_linearly_and_by_logarithm() -> None:
    assert svg.Axis(0, 10, 100, 0)(np.array([0.0, 2.5, 10.0, 20.0])).tolist() == [100, 75, 0, 0]
    assert np.allclose(svg.Axis(0.01, 100, 0, 40, log=True)(np.array([0.01, 1.0, 100.0])), [0, 20, 40])
    assert np.allclose(svg.Axis(0.02, 300, 0, 40, log=True).ticks(), [0.1, 1, 10, 100])


def test_limits_choose_the_scale() -> None:
    assert svg.limits(np.array([0.001, 1.0, 50.0]))[2]
    assert svg.limits(np.array([1.0, 2.0, 5.0])) == (0.0, pytest.approx(5.2), False)
    assert svg.limits(np.array([-90.0, -60.0]))[0] < -90
    with_spike = np.append(np.linspace(-1, 1, 200), 1e6)
    assert svg.limits(with_spike)[1] < 2
    assert svg.limits(np.array([np.nan])) == (0.0, 1.0, False)
    assert svg.limits(np.array([3.0, 3.0]))[0] < 3.0 < svg.limits(np.array([3.0, 3.0]))[1]


def test_ramp_brightens_evenly() -> None:
    colours = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in svg.ramp()]
    light = np.array(colours) @ [0.2126, 0.7152, 0.0722]
    assert len(colours) == svg.LEVELS
    assert (np.diff(light) > 0).all(), "a value read in grey, or by a colour-blind eye, must keep its order"


def test_line_chart_draws_the_points_where_they_belong() -> None:
    line = svg.Line("a & b", np.array([0.0, 50.0, 100.0]), np.array([0.0, 100.0, math.nan]), 3)
    drawn = ElementTree.fromstring(svg.line_chart([line], title="t", size=(440, 270), y_limits=(0, 100), names=True))
    path = drawn.find(".//path[@class='line']")
    assert path is not None
    x = svg.Axis(0, 100, 46, 440 - 96)
    assert path.get("d") == f"M46 {270 - 24}L{number(float(x(50.0)), 1)} 10"
    assert drawn.find(".//g[@class='s3']") is not None
    assert [t.text for t in drawn.iter("text") if t.get("class") == "name s3"] == ["a & b"]


def test_a_constant_curve_and_a_single_point_are_drawn() -> None:
    one = svg.Line("x", np.array([5.0]), np.array([2.0]))
    flat = svg.Line("y", np.arange(3.0), np.zeros(3), low=np.zeros(3), high=np.zeros(3))
    for lines in ([one], [flat], [one, flat]):
        text = svg.line_chart(lines, title="t", dots=True)
        assert "nan" not in text and "inf" not in text


def test_bar_lengths_are_proportional() -> None:
    bars = [svg.Bar("p", 0.5, points=(0.4, 0.6)), svg.Bar("q", 1.0, 1, 0.9, 1.0), svg.Bar("zero", 0.0)]
    drawn = ElementTree.fromstring(svg.bar_chart(bars, title="t", high=1.0, digits=2, mark=0.5))
    widths = [float(r.get("width", 0)) for r in drawn.iter("rect")]
    assert widths[0] == pytest.approx(widths[1] / 2, abs=1e-3)
    assert widths[2] == 0.5
    assert [t.text for t in drawn.iter("text") if t.get("class") == "value"] == ["0.5", "1", "0"]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=50))
def test_histogram_bars_hold_every_sample(lengths: list[int]) -> None:
    drawn = ElementTree.fromstring(
        svg.histogram([("a", 0, np.array(lengths, dtype=float))], title="t", x_label="steps")
    )
    shares = [float(re.search(r": ([0-9.]+) %", t.text or "").group(1)) for t in drawn.iter("title")]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares) + 0.01)
    assert len(shares) <= 24


# --- mazes


def filled(markup: str, height: int, width: int) -> np.ndarray:
    """Colour index of every sample, read back from the drawn paths; -1 where nothing was drawn."""
    image = np.full((height, width), -1)
    for path in ElementTree.fromstring(markup).iter("path"):
        level = svg.ramp().index(path.get("fill", ""))
        for x, y, run, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path.get("d", "")):
            assert run == back
            assert (image[int(y), int(x) : int(x) + int(run)] == -1).all()
            image[int(y), int(x) : int(x) + int(run)] = level
    return image


@given(st.integers(0, 2**32 - 1))
def test_heat_map_holds_every_sample_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    field = rng.choice([np.nan, *np.linspace(-3, 5, 7)], size=(9, 14))
    low, high = -3.0, 5.0
    image = filled(mazes.heat(mazes.Plan(MazeMap.of("medium")), field, low, high), *field.shape)
    for y, x in np.ndindex(*field.shape):
        value = field[y, x]
        wanted = -1 if np.isnan(value) else min(int((value - low) / (high - low) * svg.LEVELS), svg.LEVELS - 1)
        assert image[y, x] == wanted


def test_a_constant_field_is_drawn() -> None:
    field = np.zeros((3, 3))
    assert (filled(mazes.heat(mazes.Plan(MazeMap.of("medium")), field, 0.0, 0.0), 3, 3) == 0).all()


@pytest.mark.parametrize("kind", ["medium", "large", "giant", "teleport"])
def test_maze_geometry(kind: str) -> None:
    maze = MazeMap.of(kind)
    plan = mazes.Plan(maze)
    rows, columns = maze.walls.shape
    for i, j in maze.free_cells:
        assert plan.pixels(np.array(maze.centre((i, j)))).tolist() == pytest.approx(
            ((j + 0.5) * plan.cell, (rows - 1 - i + 0.5) * plan.cell)
        )
    edges = sum(
        bool(maze.walls[i + a, j + b]) for i, j in maze.free_cells for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
    )
    assert mazes.walls(plan).count("M") == edges
    points = mazes.field_points(maze)
    assert points.shape == (rows * mazes.samples(maze), columns * mazes.samples(maze), 2)
    cells = maze.to_cell(points)
    assert np.array_equal(~maze.walls[cells[..., 0], cells[..., 1]], mazes.field_mask(maze))


def test_trail_starts_and_ends_where_the_agent_did() -> None:
    plan = mazes.Plan(MazeMap.of("medium"))
    path = np.cumsum(np.full((200, 2), 0.01), axis=0)
    path[0] = path[1] = 0
    points = re.findall(r"([-\d.]+) ([-\d.]+)", mazes.trail(plan, path, "trail"))
    first, last = plan.pixels(path[[0, -1]])
    assert np.allclose(np.array(points[0], dtype=float), first, atol=0.06)
    assert np.allclose(np.array(points[-1], dtype=float), last, atol=0.06)
    assert len(points) < 60
    still = mazes.trail(plan, np.zeros((5, 2)), "trail")
    assert "nan" not in still
