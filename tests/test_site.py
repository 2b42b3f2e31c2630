"""`echelon site`: facts of systems, honest axes, pages that results cannot break, the folder that it writes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echelon.claims import Above, AtLeast, Equivalent, NotWorse
from echelon.cli import main
from echelon.errors import DataError, UsageError
from echelon.evidence import results, statistics, status
from echelon.evidence.reproduce import claims_of, hashes_of, specification
from echelon.evidence.site import charts, facts, write
from echelon.evidence.site.charts import Mark, Measure
from echelon.evidence.site.facts import Fact, LevelFact, docstring_parts
from echelon.evidence.site.layout import prose, published
from echelon.evidence.statistics import Estimate
from echelon.evidence.view.markup import VOID, Markup, join
from echelon.systems import index

HOSTILE = '<script>alert("x")</script>&'
SCORES = {
    "HIQL": [[[50.0, 100.0]], [[0.0, 50.0]], [[100.0, 100.0]]],
    HOSTILE: [[[0.0, 50.0]], [[0.0, 0.0]], [[50.0, 50.0]]],
}


# --- a site of made-up results


def entry(scores: dict[str, Any]) -> dict[str, Any]:
    """A result of hiql's first claim with the given scores by arm, whose every free text is hostile."""
    claim = claims_of("hiql")[0]
    arms = [
        {
            "name": name,
            "mean": float(np.mean(values)),
            "episodes_a_task": 2,
            "runs": [
                {
                    "seed": seed,
                    "score": float(np.mean(run)),
                    "tasks": [float(np.mean(run))],
                    "scores": run,
                    "curve": {"step": [10, 20], "success": [0.0, float(np.mean(run))]},
                    "result": {"train_s": 90.0, "environment_steps": 400},
                    "identity": {},
                }
                for seed, run in enumerate(values)
            ],
        }
        for name, values in scores.items()
    ]
    method, baseline = (np.array(values) for values in scores.values())
    estimate = statistics.difference(method, baseline)
    return {
        "date": HOSTILE, "verdict": "supported", "of_record": True, "text": HOSTILE, "source": HOSTILE,
        "seeds": [0, 1, 2], "improvement": 0.75, "specification": specification(claim), "arms": arms,
        "estimate": {
            "of": HOSTILE, "value": estimate.value, "low": estimate.low, "high": estimate.high,
            "level": 0.95, "bootstrap": 5000, "paired": False,
        },
        "unless": {"statistic": f"m:{HOSTILE}", "value": 1.0, "above": 2.0, "exceeded": False, "reason": HOSTILE},
        "command": HOSTILE, "full": False, "code_hash": "0123", "git": {"commit": HOSTILE, "dirty": True},
        "modules": {**hashes_of(claim), f"{HOSTILE}.py": "0"},
        "machine": {"cpu": HOSTILE, "cores": 1, "memory_gib": 1.0, "system": HOSTILE},
        "versions": {"python": HOSTILE}, "load": [0.0, 0.0, 0.0],
    }  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of one result, as the command line writes it."""
    folder = tmp_path_factory.mktemp("site")
    claim = claims_of("hiql")[0]
    results.append(results.path_of(folder / "results", "hiql", claim.id), entry(SCORES))
    assert main(["site", "--out", str(folder / "out"), "--results", str(folder / "results")]) == 0
    return folder / "out"


class Page(HTMLParser):
    """Elements that do not close, addresses, anchors and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.ids: set[str] = set()
        self.text, self.scripts = "", 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.open += [] if tag in VOID else [tag]
        self.links += [(tag, str(value)) for name, value in attrs if name in ("href", "src")]
        self.ids |= {str(value) for name, value in attrs if name == "id"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_system_has_a_page_and_all_links_lead_somewhere(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    assert set(pages) == {"index.html", *(f"systems/{slug}.html" for slug in index.rows())}
    for name, page in pages.items():
        assert not page.open and not page.scripts
        for tag, address in page.links:
            if address.startswith("https://"):
                assert tag == "a" and address.startswith("https://arxiv.org/abs/")
                continue
            file, _, anchor = address.partition("#")
            target = (site / name).parent / file if file else site / name
            assert target.is_file(), (name, address)
            assert not anchor or anchor in Page(target).ids if target.suffix == ".html" else not anchor


def test_first_page_tells_every_system_with_status_and_idea(site: Path) -> None:
    page = Page(site / "index.html")
    assert f"{len([r for r in index.rows().values() if r.number])} publications" in page.text
    for row in index.rows().values():
        assert row.name in page.text and row.title in page.text and row.slug in page.ids
        if row.module is None:
            assert facts.tell(row).idea in page.text


def test_page_of_a_planned_system_tells_idea_levels_and_that_nothing_is_measured(site: Path) -> None:
    row = next(row for row in index.rows().values() if row.module is None)
    page, told = Page(site / f"systems/{row.slug}.html"), facts.tell(row)
    assert told.idea in page.text and "Nothing of this system is implemented" in page.text
    assert all(level.name in page.text for level in told.levels)
    assert "echelon train" not in page.text


def test_page_of_a_measured_system_tells_verdict_test_command_and_staleness(site: Path) -> None:
    page = Page(site / "systems/hiql.html")
    claim = claims_of("hiql")[0]
    for said in (
        claim.text,
        " supported",
        "stale",
        str(claim.test),
        "echelon reproduce hiql",
        "1 min 30 s of training each",
    ):
        assert said in page.text
    assert "400 environment steps each" in page.text and "Deviations from paper and code" in page.text
    assert "HIQL: 0: 75, 1: 25, 2: 100" in page.text and "0123, now " in page.text


def test_hostile_text_of_results_stays_text(site: Path) -> None:
    text = (site / "systems/hiql.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text
    shown = Page(site / "systems/hiql.html").text
    assert shown.count(HOSTILE) > 8 and f"{HOSTILE}.py" in shown


def test_copied_results_are_the_files_themselves(site: Path) -> None:
    name = f"hiql/{claims_of('hiql')[0].id}.json"
    assert (site / "results" / name).read_bytes() == (site.parent / "results" / name).read_bytes()


# --- facts


def test_all_publications_have_levels_and_planned_ones_an_idea() -> None:
    for row in index.rows().values():
        told = facts.tell(row) if row.module is None else facts.table().get(row.slug, Fact())
        if row.number is not None:
            assert told.levels, row.slug
        if row.module is None:
            assert told.idea.endswith(".") and 40 < len(told.idea) < 260, row.slug


def test_table_is_read_line_by_line() -> None:
    text = "# words\nota |\n  high | a subgoal | k steps\n  low | an action | 1 step\n\ngmah | An idea.\n"
    assert facts.parse(text) == {
        "ota": Fact("", (LevelFact("high", "a subgoal", "k steps"), LevelFact("low", "an action", "1 step"))),
        "gmah": Fact("An idea."),
    }


@pytest.mark.parametrize(
    "text", ["nothing |\n", "ota\n", "ota |\nota |\n", "  a | b | c\n", "ota |\n  a | b\n", "ota |\n  a || c\n"]
)
def test_damaged_table_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(DataError, match=f"line {text.count(chr(10))}"):
        facts.parse(text)


def test_docstring_falls_into_its_parts() -> None:
    shares = "Shares with Y: a; Idea.\nShares with Z the rest.\n"
    text = f"X: a system\nof two lines.\n\nIdea: one\n  two.\n{shares}Deviations: none.\n"
    summary, parts = docstring_parts(text)
    assert summary == "X: a system of two lines."
    assert parts == {"Idea": "one two.", "Shares": " ".join(shares.split()), "Deviations": "none."}
    assert docstring_parts("Just words.") == ("Just words.", {})


@pytest.mark.parametrize(
    ("arxiv", "year"), [("2408.11416", "2024"), ("cs/9905014", "1999"), ("0704.0001", "2007"), ("-", "")]
)
def test_year_of_an_identifier(arxiv: str, year: str) -> None:
    assert published(arxiv) == year


def test_code_in_prose_is_marked_and_escaped() -> None:
    assert join(prose("a `<b>` c")) == "a <code>&lt;b&gt;</code> c"


# --- drawings


def bars(drawn: Markup) -> list[tuple[float, float]]:
    """Where each bar begins and how long it is."""
    found = [node.attrib for node in ElementTree.fromstring(drawn).iter("rect")]
    return [(float(bar["x"]), float(bar["width"])) for bar in found if bar["class"] == "bar"]


def test_bars_of_success_stand_on_an_axis_from_0_to_100() -> None:
    drawn = charts.means(
        [
            Measure("a", Estimate(50.0, 40.0, 60.0), [40.0, 60.0], 0),
            Measure("b", Estimate(25.0, 20.0, 30.0), [25.0], 1),
        ],
        title="t", unit="u", points=True,
    )  # fmt: skip
    full = charts.WIDTH - 2 * charts.EDGE
    assert bars(drawn) == [(charts.EDGE, full / 2), (charts.EDGE, full / 4)]
    dots = [node for node in ElementTree.fromstring(drawn).iter("circle")]
    assert [float(dot.attrib["cx"]) for dot in dots] == [charts.EDGE + share * full for share in (0.4, 0.6, 0.25)]


def test_every_axis_holds_zero_the_intervals_and_what_was_asked() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = (rng.normal(size=rng.integers(1, 5)) * 10.0 ** rng.integers(-12, 6)).tolist()
        for both in (False, True):
            low, high = charts.span(values, both)
            assert low <= min(0.0, *values) and high >= max(0.0, *values) and low < high
            assert not both or low < 0 < high
    assert charts.span([0.0]) == (0.0, 1.0)
    assert charts.span([-10.0]) == (-10.8, 0.0) and charts.span([10.0]) == (0.0, 10.8)


def test_a_bar_of_a_negative_mean_ends_at_zero() -> None:
    drawn = charts.means([Measure("a", Estimate(-5.0, -6.0, -4.0), [-5.0], 0)], title="t", unit="u", points=False)
    ((start, length),) = bars(drawn)
    assert start + length == pytest.approx(charts.WIDTH - charts.EDGE, abs=0.01)


@pytest.mark.parametrize(
    ("test", "values"),
    [(Above(10), [10]), (Above(0), []), (NotWorse(2), [-2]), (Equivalent(1), [-1, 1]), (AtLeast(-0.5), [-0.5])],
)
def test_what_a_test_asks_is_drawn(test: Any, values: list[float]) -> None:
    assert [mark.value for mark in charts.asked(test)] == values
    drawn = charts.difference(Estimate(1.0, 0.5, 2.0), test, title="t", unit="u")
    marks = [node for node in ElementTree.fromstring(drawn).iter("path") if node.attrib["class"] == "mark"]
    assert len(marks) == len(values)


def test_texts_stay_inside_a_drawing() -> None:
    many = Measure("name " * 40, Estimate(99.0, 98.0, 100.0), [99.0], 0)
    drawn = charts.means([many], title="t", unit="u", points=True, mark=Mark(100.0, "asked: 100 or more"))
    box = charts.levels([LevelFact("a" * 90, "decide " * 20, "hold " * 20), LevelFact("b", "c", "d")], "t")
    for node in [*ElementTree.fromstring(drawn).iter("text"), *ElementTree.fromstring(box).iter("text")]:
        width = charts.LETTER * len(node.text or "")
        kind = node.attrib.get("class", "").split()
        start = float(node.attrib["x"]) - (width / 2 if "mid" in kind else width if "end" in kind else 0.0)
        assert start >= -1 and start + width <= charts.WIDTH + 1, node.text


# --- the folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No system, so that writing a site takes no time."""
    monkeypatch.setattr(write, "gather", lambda source: [])


def test_a_second_site_replaces_the_first_and_keeps_what_it_did_not_write(quick: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write.write_site(out, tmp_path)
    (out / "old.html").write_text("old")
    (out / "mine.txt").write_text("mine")
    names = json.loads((out / write.MARKER).read_text())
    (out / write.MARKER).write_text(json.dumps([*names, "old.html"]))
    assert write.write_site(out, tmp_path) == out / "index.html"
    assert not (out / "old.html").exists() and (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("marker", [None, "no json", "[1]", '["../x"]', '["/x"]'])
def test_a_folder_that_is_no_site_is_left_alone(quick: None, tmp_path: Path, marker: str | None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    if marker is not None:
        (out / write.MARKER).write_text(marker)
    before = sorted(out.iterdir())
    with pytest.raises(UsageError, match="new folder"):
        write.write_site(out, tmp_path)
    assert sorted(out.iterdir()) == before


def test_wrong_arguments_say_what_to_do(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments, said in (
        (["--out", str(file)], "is a file; give --out a folder"),
        (["--out", str(tmp_path / "a"), "--results", str(tmp_path / "none")], "leave out --results"),
        (["--readme", "--results", str(tmp_path)], "leave out --results"),
        (["--ouu", "x"], "unknown flag '--ouu'"),
        (["word"], "unexpected argument 'word'"),
    ):
        assert main(["site", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_path_of_the_first_page_is_printed(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["site", "--out", str(out), "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    assert main(["site", "--out", str(out), "--results", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"index": str(out / "index.html"), "rewritten": []}


def test_tables_of_the_checkout_are_rewritten_on_request(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "table", lambda out: [])
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", "docs/systems.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"before\n{status.BEGIN}\nold\n{status.END}\nafter\n")
    (tmp_path / "results").mkdir()
    assert main(["site", "--readme"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("site/index.html\n") and "README.md" in told and "systems.md" in told
    assert "old" not in (tmp_path / "README.md").read_text()
