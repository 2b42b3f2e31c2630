"""What the site says of a system beside its results: its idea, its levels, and the parts of its module's docstring."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from functools import cache

from echelon.errors import DataError
from echelon.evidence.view.layout import asset
from echelon.systems import index
from echelon.systems.index import Row

FILE = "systems.txt"
PARTS = ("Idea", "Source", "Levels", "Shares", "Options", "Conventions", "Deviations")
"""What the docstring of a system's module may tell, in this order; "Shares with X: …" is read as `Shares`."""
OPENING = re.compile(rf"^({'|'.join(PARTS)})(?=:| with )(:\s*)?", re.MULTILINE)


@dataclass(frozen=True)
class LevelFact:
    """One level of a hierarchy: its name, what it decides, and how long that holds (words for people)."""

    name: str
    decides: str
    holds: str


@dataclass(frozen=True)
class Fact:
    """What the table says of a system: its idea ("" where a module tells it) and its levels, from the top down."""

    idea: str = ""
    levels: tuple[LevelFact, ...] = ()


@dataclass(frozen=True)
class Told:
    """A system for people: `summary` in a line ("" for what is planned), `parts` by the names of `PARTS`, levels."""

    idea: str
    summary: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    levels: tuple[LevelFact, ...] = ()


def tell(row: Row) -> Told:
    """All that is known of a system without a result: from its module if there is one, else from the table."""
    fact = table().get(row.slug, Fact())
    if row.module is None:
        return Told(fact.idea, levels=fact.levels)
    summary, parts = docstring_parts(importlib.import_module(row.module).__doc__ or "")
    idea = fact.idea or parts.get("Idea", summary)
    return Told(idea[:1].upper() + idea[1:], summary, parts, fact.levels)


@cache
def table() -> dict[str, Fact]:
    """The facts of the table by slug. DataError for a line that fits neither form, or a slug that the index lacks."""
    return parse(asset(FILE, "echelon.evidence.site"))


def parse(text: str) -> dict[str, Fact]:
    """Facts by slug from the table's text: "slug | idea" lines, each followed by indented "level | decides | holds"."""
    ideas: dict[str, str] = {}
    levels: dict[str, list[LevelFact]] = {}
    slug = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("|")]
        if line.startswith(" "):
            if len(cells) != 3 or not all(cells) or not slug:
                raise DataError(f"{FILE}, line {number}: a level is '  name | what it decides | how long it holds'")
            levels[slug].append(LevelFact(*cells))
            continue
        slug = cells[0]
        if len(cells) != 2 or slug not in index.rows() or slug in ideas:
            raise DataError(f"{FILE}, line {number}: a system is 'slug | idea', once, with a slug of the index")
        ideas[slug], levels[slug] = cells[1], []
    return {slug: Fact(idea, tuple(levels[slug])) for slug, idea in ideas.items()}


def docstring_parts(text: str) -> tuple[str, dict[str, str]]:
    """The summary of a module's docstring and its parts by name, each on one line."""
    found = list(OPENING.finditer(text))
    ends = [*(match.start() for match in found), len(text)][1:]
    parts: dict[str, str] = {}
    for match, end in zip(found, ends, strict=True):
        start = match.end() if match.group(2) else match.start()
        said = " ".join(text[start:end].split())
        name = match.group(1)
        parts[name] = f"{parts[name]} {said}" if name in parts else said
    summary = text[: found[0].start()] if found else text
    return " ".join(summary.split()), parts
