"""The furniture of a page: numbered figures, sections, notes, the colour key."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from echelon.evidence.view.markup import Markup, join, tag
from echelon.evidence.view.runs import Group

Section = tuple[tuple[str, str], Markup]


class Figures:
    """Numbers the figures of a page and sets their captions."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, title: str, explanation: str, *inside: Markup | list[Markup] | None) -> Markup:
        """A figure of `inside` under its number, title, and what to look for."""
        self.count += 1
        caption = tag("figcaption", tag("b", f"Figure {self.count}. {title}"), " ", explanation)
        return tag("figure", *inside, caption)


def document(title: str, look: Markup, *body: Markup) -> str:
    """A whole page: `look` is the style or the link to it; `body` goes into the body."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · echelon"),
        look,
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def section(anchor: str, title: str, *inside: Markup | list[Markup] | None) -> Section | None:
    """A section with its entry for the contents; None when there is nothing inside."""
    body = join(*inside)
    return ((anchor, title), tag("section", tag("h2", title), body, id=anchor)) if body else None


def note(text: str) -> Markup:
    """One line that says why something is not there."""
    return tag("p", text, class_="note")


def missing(groups: Sequence[Group], name: str) -> list[Markup]:
    """A line for each group in which part `name` is absent."""
    return [note(f"{group.label}: {group.missing[name]}.") for group in groups if name in group.missing]


def key(groups: Sequence[Group]) -> Markup | None:
    """Which colour is which system; nothing when there is one."""
    if len(groups) < 2:
        return None
    names = [tag("span", tag("span", class_=f"swatch s{g.style}"), g.label) for g in groups]
    return tag("div", names, class_="key")


def asset(name: str, package: str = "echelon.evidence.view") -> str:
    """Text of a file in a package, by default this module's."""
    return files(package).joinpath(name).read_text(encoding="utf-8")
