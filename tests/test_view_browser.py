"""The run viewer in a real browser: mouse, wheel, keys, numbers, links, narrow screens, hostile text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_view_flame import hostile_page, talking
from test_view_online import REPLAYED, trained

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import frames
from benchmarks.browser import PROGRAM, Browser, Tab, started
from echelon.evidence.view import gather
from echelon.evidence.view.mazes import Plan
from echelon.evidence.view.page import view
from echelon.evidence.view.played import plan_of
from echelon.language.record import Record
from echelon.rollout import Rollout

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine")
FIRST = "#run=0&episode=0"
IT = "document.getElementById('flame').explorer"
CANVAS, PANEL = "#flame canvas", "document.querySelector('.decision')"
ROWS = f"[...{PANEL}.querySelectorAll('tr')].map((row) => [...row.children].map((cell) => cell.textContent))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Option-Critic in four rooms, and its page."""
    settings = REPLAYED | {"limit": 40, "gradient_ratio": 0.2, "options": 3}
    path = trained(tmp_path_factory.mktemp("maze"), "option-critic", env="four-rooms", **settings)
    view([path])
    return path


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of GiGPO in a world of a dozen words, and its page."""
    with talking(tmp_path_factory.mktemp("language")) as path:
        view([path])
        yield path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an episode of 2,000 steps under three levels."""
    return frames.control_page(tmp_path_factory.mktemp("long"))


class Viewer:
    """A tab at a page, and what a person reads there."""

    def __init__(self, browser: Browser, file: Path, fragment: str = "", **screen: Any) -> None:
        self.file, self.tab = file, Tab(browser, **screen)
        self.tab.open(file, fragment)

    def state(self) -> dict[str, Any]:
        return self.tab.js(f"({{...{IT}.state, key: {IT}.episode.raw.key, span: {IT}.episode.raw.span}})")

    def panel(self) -> dict[str, float]:
        """The numbers of the panel by their names; what is no number is left out."""
        found = {}
        for name, text in self.tab.js(ROWS):
            try:
                found[name] = float(text.replace("−", "-"))
            except ValueError:
                continue
        return found

    def box(self, box: int) -> tuple[float, float]:
        """Where the middle of what is seen of a box lies."""
        left, top = self.tab.at(CANVAS, 0, 0)
        x, y = self.tab.js(f"{IT}.place({box})")
        return round(left + x), round(top + y)

    def time(self, place: tuple[float, float]) -> float:
        """The time at a place."""
        left = f"document.querySelector('{CANVAS}').getBoundingClientRect().left"
        return float(self.tab.js(f"{IT}.time({place[0]} - {left})"))

    def wide(self) -> tuple[float, float]:
        """How wide the page and the window are."""
        page, window = self.tab.js("[document.documentElement.scrollWidth, innerWidth]")
        return page, window

    def close(self) -> None:
        """Nothing complained, nothing was asked for but the page."""
        self.tab.settle()
        assert self.tab.errors == []
        assert set(self.tab.requests) <= {self.file.as_uri(), *(f"{self.file.as_uri()}{self.tab.js('location.hash')}",)}
        self.tab.close()


def shown(value: float) -> Any:
    """A number as the panel shows it: seven digits."""
    return pytest.approx(value, rel=1e-6, abs=1e-9)


# ---- numbers


def test_the_panel_of_a_maze_walker_tells_the_numbers_of_its_record(browser: Browser, maze: Path) -> None:
    rollout = Rollout.load(maze / "rollouts" / "step_000000004")
    options = rollout.decisions["option"]
    rows = (options.stream == 0).nonzero()[:, 0]
    rows = rows[options.start[rows].argsort()]
    viewer, gamma = Viewer(browser, maze / "report.html", FIRST), 0.99
    for place in (0, len(rows) // 2):
        row, after = int(rows[place]), int(rows[place + 1]) if place + 1 < len(rows) else None
        viewer.tab.click(viewer.box(place))
        told, start, stop = viewer.panel(), int(options.start[row]), int(options.stop[row])
        value = options.values["value"].double()
        rewards = rollout.reward["reward"][start:stop].double()
        earned = float((gamma ** np.arange(stop - start) * rewards.numpy()).sum())
        assert viewer.state()["box"] == place and told["value"] == shown(float(value[row]))
        assert told["reward over it"] == shown(earned) and told["reward"] == shown(float(rewards.sum()))
        if after is not None:
            following = gamma ** (stop - start) * float(value[after])
            assert told["discounted value after it"] == shown(following)
            assert told["advantage"] == pytest.approx(earned + following - float(value[row]), abs=1e-6)
        said = viewer.tab.js(f"{PANEL}.textContent")
        assert f"steps {start} to {stop}" in said and "Ended by: " in said and "How its advantage came about" in said
    viewer.close()


def test_terms_of_a_language_agent_sum_to_its_advantage(browser: Browser, language: Path) -> None:
    learnt = Record.load(language / "records" / "learnt_000000002")
    calls = (learnt.episode == 0).nonzero()[:, 0].tolist()
    viewer = Viewer(browser, language / "report.html")
    rows = viewer.tab.js(f"{IT}.episode.raw.rows.map((row) => row[1])")
    boxes = viewer.tab.js(f"Array.from({IT}.episode.row)")
    mine = [box for box, row in enumerate(boxes) if rows[row] == "call"]
    assert len(mine) == len(calls)
    for box, call in zip(mine, calls, strict=True):
        viewer.tab.click(viewer.box(box))
        told, items = viewer.panel(), learnt.item_slice(call)
        terms = {f"term {name}": float(column[items].double().mean()) for name, column in learnt.items.adv.items()}
        assert len(terms) == 2
        for name, term in terms.items():
            assert told[name] == pytest.approx(term, abs=1e-6)
        assert sum(told[name] for name in terms) == pytest.approx(told["advantage"], abs=1e-6)
        assert told["log-probability"] == pytest.approx(float(learnt.items.logp[items].double().mean()), abs=1e-6)
        assert told["return of the episode"] == pytest.approx(float(learnt.calls.reward[calls].sum()), abs=1e-6)
    said = viewer.tab.js("[...document.querySelectorAll('.said li > button')].map((one) => one.textContent)")
    assert "world" in said and len(said) >= len(calls)
    viewer.tab.click(viewer.tab.at(".said li:last-child > button"))
    assert viewer.state()["box"] == mine[-1]
    viewer.close()


def test_td_errors_of_a_chain_sum_to_the_advantage(browser: Browser, long: Path) -> None:
    viewer = Viewer(browser, long, "#run=0&episode=0&decision=3")
    told = viewer.panel()
    errors = [value for name, value in told.items() if "TD error" in name]
    assert len(errors) == 9 and sum(errors) == pytest.approx(told["advantage"], abs=1e-5)
    viewer.close()


# ---- moving about


def test_the_wheel_zooms_around_the_mouse(browser: Browser, long: Path) -> None:
    viewer = Viewer(browser, long)
    place = viewer.tab.at(CANVAS, 0.6, 0.3)
    before, at = viewer.state(), viewer.time(place)
    assert before["from"] == 0 and before["to"] == before["span"] == 2000
    viewer.tab.wheel(place, down=-400)
    near = viewer.state()
    assert near["to"] - near["from"] == pytest.approx(2000 * np.exp(-0.8), rel=1e-6)
    assert viewer.time(place) == pytest.approx(at, abs=1e-6)
    viewer.tab.wheel(place, right=100)
    assert viewer.state()["from"] > near["from"]
    viewer.tab.wheel(place, down=4000)
    assert (viewer.state()["from"], viewer.state()["to"]) == (0, 2000)
    for _ in range(6):
        viewer.tab.wheel(place, down=-1000)
    closest = viewer.state()
    assert closest["to"] - closest["from"] == pytest.approx(4)
    viewer.close()


def test_dragging_pans_and_chooses_nothing(browser: Browser, long: Path) -> None:
    viewer = Viewer(browser, long)
    x, y = viewer.tab.at(CANVAS, 0.6, 0.3)
    viewer.tab.wheel((x, y), down=-400)
    before, at = viewer.state(), viewer.time((x, y))
    viewer.tab.drag([(x, y), (x - 40, y), (x - 90, y + 5)])
    after = viewer.state()
    assert after["box"] == -1 and after["to"] - after["from"] == pytest.approx(before["to"] - before["from"])
    assert viewer.time((x - 90, y)) == pytest.approx(at, abs=1e-6)
    viewer.tab.drag([(x, y), (x + 3000, y)])
    assert viewer.state()["from"] == 0
    viewer.tab.click(viewer.box(1))
    assert viewer.state()["box"] == 1
    viewer.tab.hover(viewer.box(2))
    assert viewer.tab.js("document.querySelector('.tip').textContent").startswith("plan: ")
    viewer.close()


def test_everything_is_reached_by_keys_alone(browser: Browser, maze: Path) -> None:
    viewer = Viewer(browser, maze / "report.html", FIRST)
    order = []
    for _ in range(60):
        viewer.tab.press("Tab")
        order.append(viewer.tab.js("document.activeElement.ariaLabel || document.activeElement.textContent"))
        if order[-1].startswith("flame graph"):
            break
    wanted = ["run", "sorted by", "colour", "episode"]
    assert [name for name in order if name in wanted] == wanted and order[-1].startswith("flame graph")
    viewer.tab.press("ArrowRight")
    assert viewer.state()["box"] == 0
    viewer.tab.press("ArrowRight", "ArrowDown")
    below = viewer.state()["box"]
    rows = viewer.tab.js(f"Array.from({IT}.episode.row)")
    assert rows[below] == 1 and viewer.tab.js(f"{IT}.episode.parent[{below}]") == 1
    viewer.tab.press("ArrowUp")
    assert viewer.state()["box"] == 1 and "option" in viewer.tab.js("document.querySelector('[aria-live]').textContent")
    viewer.tab.press("+", "+")
    near = viewer.state()
    assert near["to"] - near["from"] == pytest.approx(max(0.49 * near["span"], 4))
    viewer.tab.press("Shift+ArrowRight")
    assert viewer.state()["from"] > near["from"]
    viewer.tab.press("f")
    assert viewer.state()["from"] <= viewer.tab.js(f"{IT}.episode.start[1]")
    viewer.tab.press("0")
    assert viewer.state()["from"] == 0 and viewer.state()["to"] == near["span"]
    viewer.tab.press("Enter")
    assert viewer.tab.js("document.activeElement.className") == "decision"
    viewer.tab.js("document.querySelector('#flame select[size]').focus()")
    viewer.tab.press("ArrowDown")
    assert viewer.state()["key"] == "1" and viewer.state()["box"] == -1
    viewer.close()


def test_an_address_leads_back_to_episode_and_decision(browser: Browser, maze: Path) -> None:
    viewer = Viewer(browser, maze / "report.html", "#run=0&episode=1&decision=2")
    assert viewer.state()["key"] == "1" and viewer.state()["box"] == 2
    viewer.tab.click(viewer.box(3))
    address = viewer.tab.js("location.hash")
    assert address == "#run=0&episode=1&decision=3"
    told = viewer.panel()
    viewer.close()
    again = Viewer(browser, maze / "report.html", address)
    assert again.state()["box"] == 3 and again.panel() == told
    again.tab.js("location.hash = '#run=0&episode=2&decision=1'")
    again.tab.settle()
    assert again.state()["key"] == "2" and again.state()["box"] == 1
    for wrong in ("#run=7&episode=1", "#run=0&episode=%00", "#run=0&episode=1&decision=1e9", "#recorded", "#%"):
        again.tab.js(f"location.hash = {json.dumps(wrong)}")
        again.tab.settle()
    assert again.state()["box"] == -1
    again.close()


def test_the_world_goes_with_the_cursor(browser: Browser, maze: Path) -> None:
    viewer = Viewer(browser, maze / "report.html", FIRST)
    place = "['cx', 'cy'].map((name) => document.querySelector('.world .agent').getAttribute(name))"
    path = viewer.tab.js(f"Array.from({IT}.episode.path)")
    last = len(viewer.tab.js(f"Array.from({IT}.episode.row)")) - 1
    viewer.tab.click(viewer.box(last))
    at = int(viewer.tab.js(f"{IT}.episode.start[{last}]"))
    assert [float(x) for x in viewer.tab.js(place)] == pytest.approx(path[2 * at : 2 * at + 2], abs=1e-4)
    viewer.close()


def test_the_subgoal_that_holds_is_marked_in_the_maze(browser: Browser, tmp_path: Path) -> None:
    """A point that HIRO moves: marker and subgoal at the places that the record has, drawn by the maze's own plan."""
    pytest.importorskip("gymnasium_robotics")
    settings = REPLAYED | {"limit": 30, "period": 5, "reach": (1.0,), "gradient_ratio": 0.2}
    path = trained(tmp_path, "hiro", env="PointMaze_UMaze-v3", **settings)
    viewer = Viewer(browser, view([path]), FIRST)
    run = gather.gather([path])[0].runs[0]
    drawn, one = plan_of(run.env), run.played[0]
    assert drawn is not None and one.path is not None
    plan = Plan(drawn)
    for box, (tick, *place) in enumerate(one.subgoals):
        viewer.tab.click(viewer.box(box))
        assert viewer.state()["box"] == box
        walker, wanted = plan.pixels(np.stack([one.path[int(tick)], place]))
        circle = viewer.tab.js("['cx', 'cy'].map((name) => document.querySelector('.world .agent').getAttribute(name))")
        assert [float(x) for x in circle] == pytest.approx(walker.tolist(), abs=1e-2)
        diamond = viewer.tab.js("document.querySelector('.world .aim').getAttribute('transform')")
        assert [float(x) for x in re.findall(r"-?[\d.]+", diamond)[:2]] == pytest.approx(wanted.tolist(), abs=1e-2)
    viewer.close()


# ---- what must not happen


@pytest.mark.parametrize("dark", [False, True])
def test_narrow_screens_do_not_scroll_sideways(browser: Browser, maze: Path, language: Path, dark: bool) -> None:
    for path in (maze, language):
        viewer = Viewer(browser, path / "report.html", width=360, height=740, dark=dark)
        assert viewer.wide()[0] <= 360
        viewer.tab.click(viewer.box(0))
        assert viewer.state()["box"] == 0 and viewer.wide()[0] <= 360
        viewer.close()


def test_draw_calls_are_bounded_by_what_is_seen(browser: Browser, long: Path) -> None:
    viewer = Viewer(browser, long)
    found = viewer.tab.js(
        f"""[1, 0.5, 0.1, 0.02].map((share) => {{ const it = {IT}, e = it.episode;
        it.look(300, 300 + 2000 * share); it.draw();
        let seen = 0;
        for (let k = 0; k < e.row.length; k++) seen += e.stop[k] > it.state.from && e.start[k] < it.state.to;
        return [it.stats.calls, seen, document.querySelector('{CANVAS}').clientWidth] }})"""
    )
    for calls, seen, width in found:
        assert calls <= 3 * seen + 80 and calls <= 3 * 3 * width
    viewer.close()


def test_hostile_text_is_text(browser: Browser, tmp_path: Path) -> None:
    file = hostile_page(tmp_path)
    viewer = Viewer(browser, file, "#run=0&episode=0&decision=0", width=360, height=740)
    title = viewer.tab.js("document.title")
    said = viewer.tab.js(f"{PANEL}.textContent")
    assert "<script>document.title=" in said and "onerror=" in said and "⟨U+202E⟩evil⟨U+0000⟩" in said
    viewer.tab.hover(viewer.box(0))
    viewer.tab.click(viewer.box(1))
    assert len(viewer.tab.js(f"{PANEL}.querySelector('pre').textContent")) == 3000
    viewer.tab.click(viewer.tab.at(".decision .two button"))
    assert viewer.tab.js(f"{PANEL}.querySelector('pre').textContent.length") == 1_000_000
    assert viewer.tab.js("document.querySelectorAll('#flame img, #flame script, #flame iframe').length") == 0
    assert viewer.tab.js("document.title") == title and "owned" not in title and viewer.wide()[0] <= 360
    viewer.close()
