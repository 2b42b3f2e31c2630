"""The page of one system: idea, levels, what it claims and what came out, how to run it, where it deviates."""

from __future__ import annotations

from collections.abc import Sequence

from echelon.evidence.site import charts
from echelon.evidence.site.claim import claim_section
from echelon.evidence.site.gather import System
from echelon.evidence.site.layout import MEANING, family, page, paper, prose, published, status_badge
from echelon.evidence.status import PLANNED
from echelon.evidence.view.markup import Markup, join, tag

PARTS = (
    ("Deviations", "Deviations from paper and code"),
    ("Conventions", "Conventions"),
    ("Options", "Options"),
    ("Shares", "Shared with other systems"),
    ("Source", "Source"),
)
"""What a module tells beside its idea and levels, in the page's order, with headings."""


def system_page(system: System, before: System | None, after: System | None) -> str:
    """The whole page, with links to the systems `before` and `after` it in the table."""
    return page(
        str(system.row["name"]),
        "../",
        ways(before, after),
        head(system),
        facts(system),
        levels(system),
        claims(system),
        run(system),
        [part(system, name, heading) for name, heading in PARTS],
    )


def ways(before: System | None, after: System | None) -> Markup:
    """Links to the table and to the neighbours."""
    near = [
        tag("a", text.format(system.row["name"]), href=f"{system.slug}.html", rel=rel)
        for system, text, rel in ((before, "← {}", "prev"), (after, "{} →", "next"))
        if system is not None
    ]
    return tag("nav", tag("a", "All systems", href="../index.html"), near, class_="ways")


def head(system: System) -> Markup:
    """Number and family, name, title and idea."""
    row = system.row
    place = f"No. {row['number']}" if row["number"] is not None else "Baseline"
    return tag(
        "header",
        tag("p", f"{place} · {family(row['family'])}", class_="eyebrow"),
        tag("h1", row["name"]),
        tag("p", row["title"], class_="subtitle"),
        tag("p", prose(system.told.idea), class_="lede") if system.told.idea else None,
    )


def facts(system: System) -> Markup:
    """Status, publication and module."""
    row = system.row
    year = published(row["arxiv"])
    told = [
        ("Status", join(status_badge(row["status"]), tag("small", f" {MEANING[row['status']]}"))),
        ("Publication", join(paper(row["arxiv"]), f", {year}" if year else "")),
        ("Module", tag("code", system.module) if system.module else "none yet"),
    ]
    return tag("dl", [tag("div", tag("dt", name), tag("dd", text)) for name, text in told], class_="facts")


def levels(system: System) -> Markup | None:
    """The hierarchy as a diagram, with the module's own words."""
    known, words = system.told.levels, system.told.parts.get("Levels", "")
    if not known and not words:
        return None
    count = "One level" if len(known) == 1 else f"{len(known)} levels"
    title = f"{system.row['name']}: {count.lower()}, {', '.join(level.name for level in known)}"
    drawn = tag("figure", charts.levels(known, title), class_="half") if known else None
    said = tag("p", prose(words)) if words else None
    explained = (
        f"{count}, from the top down: what each decides, and how long that holds. Where the hierarchy is one of "
        "rewards, memory, labels or data and not of time, the words say so."
    )
    beside = tag("div", said, tag("p", explained, class_="note") if known else None)
    return tag("section", tag("h2", "Levels"), tag("div", drawn, beside, class_="two"), id="levels")


def claims(system: System) -> Markup:
    """What the system claims, each with its evidence."""
    if system.row["status"] == PLANNED:
        said = (
            "Nothing of this system is implemented or measured here yet. What stands above is the publication's idea."
        )
        return tag("section", tag("h2", "Claims"), tag("p", said, class_="note"), id="claims")
    if not system.claims:
        said = "It claims nothing of its own: it serves as a baseline, or its claims are still to come."
        return tag("section", tag("h2", "Claims"), tag("p", said, class_="note"), id="claims")
    body = [claim_section(system.slug, measured) for measured in system.claims]
    return tag("section", tag("h2", "Claims"), body, id="claims")


def run(system: System) -> Markup | None:
    """The commands that train the system, and check all its claims."""
    if system.module is None:
        return None
    commands = [f"echelon train {system.slug}"]
    commands += [f"echelon reproduce {system.slug}"] if system.claims else []
    what = "trains it; the second line runs all claims and records the verdicts" if system.claims else "trains it"
    said = tag("p", f"The first line {what}." if system.claims else f"This {what}.", class_="about")
    return tag("section", tag("h2", "Run it"), said, command(commands), id="run")


def command(lines: Sequence[str]) -> Markup:
    """Lines for a shell."""
    return tag("pre", tag("code", "\n".join(lines)))


def part(system: System, name: str, heading: str) -> Markup | None:
    """One part of the module's docstring."""
    words = system.told.parts.get(name)
    return tag("section", tag("h2", heading), tag("p", prose(words)), id=name.lower()) if words else None
