"""The first page of the site: how many systems stand where, what their claims came to, and the table of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from echelon.evidence.site.charts import said
from echelon.evidence.site.gather import System
from echelon.evidence.site.layout import MEANING, family, freshness, page, paper, published, status_badge, verdict_badge
from echelon.evidence.status import PLANNED, RUNS, VERIFIED
from echelon.evidence.view.markup import Markup, join, plural, tag

TITLE = "Hierarchical reinforcement learning, system by system"


def index_page(systems: Sequence[System]) -> str:
    """The whole page."""
    papers = [system for system in systems if system.row["number"] is not None]
    baselines = [system for system in systems if system.row["number"] is None]
    counts = Counter(system.row["status"] for system in papers)
    told = f"{counts[VERIFIED]} verified, {counts[RUNS]} running, {counts[PLANNED]} planned"
    head = tag(
        "header",
        tag("p", "echelon", class_="eyebrow"),
        tag("h1", TITLE),
        tag("p", f"{len(papers)} publications: {told}. ", lede(systems), class_="lede"),
    )
    links = [("#claims", "Claims"), ("#systems", f"The {len(papers)} systems"), ("#baselines", "Baselines")]
    contents = tag("nav", [tag("a", name, href=to) for to, name in links])
    return page(
        "Systems",
        "",
        head,
        contents,
        tag("section", tag("h2", "At a glance"), glance(papers, counts), id="glance"),
        tag("section", tag("h2", "What was claimed, and what came out"), claims(systems), id="claims"),
        tag("section", tag("h2", f"The {len(papers)} systems"), table(papers), id="systems"),
        tag(
            "section",
            tag("h2", "Baselines"),
            tag("p", "What the systems are compared with, and the classics that they descend from.", class_="about"),
            table(baselines),
            id="baselines",
        ),
    )


def lede(systems: Sequence[System]) -> str:
    """How many claims there are and what became of them."""
    states = [measured.state for system in systems for measured in system.claims]
    verdicts = Counter(state["verdict"] for state in states)
    parts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    stale = sum(bool(state["stale"]) for state in states)
    ending = f" {stale} of the results are stale." if stale else ""
    return f"{plural(len(states), 'claim')}: {parts or 'none made'}.{ending}"


def glance(papers: Sequence[System], counts: Counter[str]) -> Markup:
    """A square for every publication, drawn by its status, and what the status means."""
    squares = [
        tag(
            "a",
            str(system.row["number"]),
            class_=f"square {system.row['status']}",
            href=address(system),
            title=f"{system.row['name']}: {system.row['status']}",
            aria_label=f"{system.row['number']} {system.row['name']}, {system.row['status']}",
        )
        for system in papers
    ]
    key = [
        tag("li", status_badge(status), tag("b", f" {counts[status]} "), tag("span", MEANING[status]))
        for status in (VERIFIED, RUNS, PLANNED)
    ]
    return join(tag("div", squares, class_="squares"), tag("ul", key, class_="meanings"))


def claims(systems: Sequence[System]) -> Markup:
    """One line a claim, with its verdict and estimate."""
    rows = []
    for system in systems:
        for place, measured in enumerate(system.claims):
            state = measured.state
            fresh = freshness(state)
            rows.append(
                tag(
                    "li",
                    None if place else tag("a", system.row["name"], href=address(system), class_="system"),
                    tag("a", state["text"], href=f"{address(system)}#{state['id']}", class_="text"),
                    tag(
                        "span",
                        verdict_badge(state),
                        tag("small", f"{said(measured.estimate)}, {fresh}") if measured.estimate else None,
                        class_="outcome",
                    ),
                    class_="more" if place else None,
                )
            )
    if not rows:
        return tag("p", "No system claims anything yet.", class_="note")
    lines = tag("ul", rows, class_="claims")
    words = "Estimates are differences of means, or means, with the 95 % interval; a page tells unit and test."
    return join(tag("p", words, class_="about"), lines)


def table(systems: Sequence[System]) -> Markup:
    """The systems with number, idea, family, year, status and claims; on narrow screens its cells stand in blocks."""
    head = tag(
        "tr", [tag("th", name, scope="col") for name in ("No.", "System", "Family", "Paper", "Status", "Claims")]
    )
    return tag("table", tag("thead", head), tag("tbody", [_row(system) for system in systems]), class_="systems")


def address(system: System) -> str:
    """Where a system's page lies, from the first page."""
    return f"systems/{system.slug}.html"


def supported(system: System) -> str:
    """How many of the claims are supported by a fresh result."""
    held = sum(m.state["verdict"] == "supported" and not m.state["stale"] for m in system.claims)
    return f"{held} of {len(system.claims)} supported" if system.claims else ""


def _row(system: System) -> Markup:
    row = system.row
    about = tag(
        "td",
        tag("a", tag("b", row["name"]), href=address(system)),
        tag("span", row["title"], class_="title-of"),
        tag("span", system.told.idea, class_="idea"),
    )
    return tag(
        "tr",
        tag("td", str(row["number"] or "–"), class_="number"),
        about,
        tag("td", family(row["family"])),
        tag("td", paper(row["arxiv"]), tag("small", published(row["arxiv"]))),
        tag("td", status_badge(row["status"])),
        tag("td", supported(system)),
        id=system.slug,
    )
