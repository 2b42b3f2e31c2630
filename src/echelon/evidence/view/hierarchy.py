"""The sections of online runs: returns, paths of recorded episodes, what the hierarchy does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from echelon.evidence.statistics import estimate
from echelon.evidence.view.control import WORDS
from echelon.evidence.view.layout import Figures, Section, key, section
from echelon.evidence.view.markup import Markup, join, short, tag
from echelon.evidence.view.mazes import Plan, ends, floor, subgoals, trail, walls
from echelon.evidence.view.played import Played, plan_of
from echelon.evidence.view.runs import Episode, Group
from echelon.evidence.view.svg import Line, line_chart
from echelon.rollout import End

COLOURS = {End.OPTION: 2, End.TIMEOUT: 4, End.INTERRUPTED: 1, End.PARENT: 3, End.TERMINATED: 0, End.TRUNCATED: 5}
"""Reasons for the end of a decision that a table counts, and a style each."""
PATHS = 4
"""Episodes of a run of which the path is drawn."""


def online_sections(groups: Sequence[Group], figures: Figures) -> list[Section | None]:
    """Sections "Returns", "Paths" and "What the hierarchy does"; none for runs without an environment to act in."""
    online = [group for group in groups if any(run.online for run in group.runs)]
    if not online:
        return []
    return [
        section("returns", "Returns", returns(online, figures)),
        section("paths", "Paths", join([paths(group, figures) for group in online])),
        section("levels", "What the hierarchy does", diagnostics(online, figures)),
    ]


# ---- returns


def returns(groups: Sequence[Group], figures: Figures) -> Markup | None:
    """Return and length of the evaluation episodes against environment steps."""
    shown = [group for group in groups if group.returns()]
    if not shown:
        return None
    charts = [
        line_chart(
            [_line(group, name) for group in shown],
            title=f"{name} against environment steps",
            x_label="environment steps",
            y_label=name,
            dots=True,
        )
        for name in ("return", "length")
    ]
    return figures(
        "Return and length of greedy episodes.",
        "Mean over seeds and episodes of each evaluation; the band is the 95 % bootstrap interval. A return that rises "
        "while episodes stay as long was earned otherwise than by an earlier end.",
        key(shown),
        tag("div", charts, class_="two"),
    )


def _line(group: Group, name: str) -> Line:
    found = group.returns(name)
    points = [estimate([scores], repetitions=500) for _, scores in found]
    update = int(group.runs[0].config.get("slots", 1)) * int(group.runs[0].config.get("ticks", 1))
    steps = np.array([step * update for step, _ in found], dtype=np.float64)
    value, low, high = (np.array([getattr(p, part) for p in points]) for part in ("value", "low", "high"))
    return Line(group.label, steps, value, group.style, low, high)


# ---- paths


def paths(group: Group, figures: Figures) -> Markup | None:
    """Where one went in the first recorded episodes of a run, if its environment has a plan."""
    run = next((run for run in group.runs if run.played), None)
    plan = None if run is None else plan_of(run.env)
    if run is None or plan is None:
        return None
    head = tag("div", tag("span", tag("span", class_=f"swatch s{group.style}"), f"{group.label}, seed {run.seed}"))
    cells = [tag("div", drawing(Plan(plan), n, one), class_="cell") for n, one in enumerate(run.played[:PATHS], 1)]
    return figures(
        "Evaluation episodes from above.",
        "Ring: start; star: goal; diamonds: goals that were set. The colour of a path is the choice that held there.",
        head,
        tag("div", cells, class_=f"mazes s{group.style}"),
    )


def drawing(plan: Plan, n: int, one: Played) -> Markup:
    """The path of an episode on the plan, each decision of the top level in its colour."""
    if one.path is None:
        return Markup("")
    top = next(iter(one.levels.values()))
    chosen = len(one.levels) > 1 and bool(top) and top[0].choice is not None
    parts = [(one.path[b.start : b.stop + 1], f"trail s{(b.choice or 0) % 6}") for b in top] if chosen else []
    trails = [trail(plan, path, class_) for path, class_ in parts or [(one.path, "trail")]]
    goal = one.path[-1] if one.goal is None else one.goal
    seen = np.zeros((1, 2), dtype=np.float32)
    episode = Episode("", bool(one.success), seen, np.asarray(goal)[None].astype(np.float32), one.path, one.subgoals)
    target = ends(plan, "", episode) if one.goal is not None or one.success else None
    picture = plan.svg(f"path of episode {n}", floor(plan), trails, walls(plan), subgoals(plan, episode), target)
    return join(picture, tag("b", f"episode {n}"), "" if one.success is None else (" · ", "reached" * one.success))


# ---- what the hierarchy does


def diagnostics(groups: Sequence[Group], figures: Figures) -> Markup | None:
    """A table of what the newest record shows of each level."""
    rows = []
    for group in groups:
        found = [run.diagnostics for run in group.runs if run.diagnostics]
        for level in found[0] if found else ():
            numbers = [one[level] for one in found if level in one]
            if any(numbers):
                rows.append(_level_row(group, level, numbers))
    if not rows:
        return None
    names = (
        "level",
        "length, steps",
        "ends by",
        "reached",
        "missed by",
        "entropy",
        "choices used",
        "value error",
        "bias",
    )
    head = tag("tr", [tag("th", name) for name in names])
    table = tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")
    return figures(
        "Decisions of the newest evaluation.",
        "Means over seeds. Reached: decisions that ended by their own condition, or where they asked to be; missed by: "
        "how far from there. Entropy: of the choices by the steps that they held, 1 if all alike; a single choice that "
        "is used all the time, or options of one step, are a hierarchy that has collapsed. Value error: of what was "
        "expected against what came of it, in rewards; bias: too much (+).",
        table,
    )


def _level_row(group: Group, level: str, seeds: Sequence[dict[str, float]]) -> Markup:
    def mean(name: str) -> float | None:
        values = [numbers[name] for numbers in seeds if name in numbers]
        return float(np.mean(values)) if values else None

    def cell(name: str, percent: bool = False) -> Markup:
        value = mean(name)
        return tag("td", "–" if value is None else f"{100 * value:.0f} %" if percent else short(value))

    ends_by = {reason: mean(f"end_{reason.name.lower()}") for reason in COLOURS}
    shares = sorted(((x, WORDS[reason]) for reason, x in ends_by.items() if x), reverse=True)
    name = tag("th", tag("span", class_=f"swatch s{group.style}"), f"{group.label}, {level}")
    reasons = tag("td", "; ".join(f"{text} {100 * share:.0f} %" for share, text in shares[:3]) or "–")
    return tag(
        "tr", name, cell("length"), reasons, cell("reached", True), cell("missed"), cell("entropy"),
        cell("coverage", True), cell("value_error"), cell("value_bias"),
    )  # fmt: skip
