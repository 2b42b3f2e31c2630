"""The sections of online runs: returns, recorded episodes as flame graphs of their levels, what the hierarchy does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from echelon.evidence.statistics import estimate
from echelon.evidence.view.gather import Episode, Group
from echelon.evidence.view.layout import Figures, Section, key, missing, section
from echelon.evidence.view.markup import Markup, join, number, short, tag
from echelon.evidence.view.mazes import Plan, ends, floor, subgoals, trail, walls
from echelon.evidence.view.played import Box, Played, plan_of
from echelon.evidence.view.svg import Line, line_chart
from echelon.rollout import End

WIDTH, LABEL, ROW = 940, 92, 20
"""Pixels of a flame graph: its width, that of the levels' names in it, the height of a level."""
MOST_BOXES = 400
"""Boxes of a level that are drawn one by one; of more, neighbours alike are drawn as one."""
COLOURS = {End.OPTION: 2, End.TIMEOUT: 4, End.INTERRUPTED: 1, End.PARENT: 3, End.TERMINATED: 0, End.TRUNCATED: 5}
"""Style of a decision that is a vector, by how it ended."""
WORDS = {
    End.OPTION: "its own condition",
    End.TIMEOUT: "time was up",
    End.INTERRUPTED: "interrupted",
    End.PARENT: "the level above ended",
    End.TERMINATED: "a terminal state",
    End.TRUNCATED: "the episode was cut off",
    End.OPEN: "goes on",
}


def online_sections(groups: Sequence[Group], figures: Figures) -> list[Section | None]:
    """Sections "Returns", "Episodes" and "What the hierarchy does"; none for runs without an environment to act in."""
    online = [group for group in groups if any(run.online for run in group.runs)]
    if not online:
        return []
    return [
        section("returns", "Returns", returns(online, figures)),
        section(
            "episodes", "Episodes", join([episodes(group, figures) for group in online]), missing(online, "played")
        ),
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


# ---- episodes


def episodes(group: Group, figures: Figures) -> Markup | None:
    """The recorded episodes of one run: levels over time and, in mazes, the path."""
    run = next((run for run in group.runs if run.played), None)
    if run is None:
        return None
    plan = plan_of(run.env)
    head = tag("div", tag("span", tag("span", class_=f"swatch s{group.style}"), f"{group.label}, seed {run.seed}"))
    rows = [
        join(tag("div", told(n, one), class_="row-head"), tag("div", flames(one), class_="scroll"))
        for n, one in enumerate(run.played, 1)
    ]
    maps = None
    if plan is not None:
        cells = [tag("div", drawing(Plan(plan), n, one), class_="cell") for n, one in enumerate(run.played, 1)]
        maps = tag("div", cells, class_=f"mazes s{group.style}")
    return figures(
        "Evaluation episodes, level by level.",
        "Time runs to the right; a row is a level, a box a decision for as long as it held: its number is the choice, "
        "as is its colour; of vectors, the colour is how they ended (green: by their own condition, such as a goal "
        "reached; ochre: time was up). Marks below are rewards other than 0. Point at a box for what was decided, "
        "expected, and why it ended."
        + (" In the maze: ring, start; star, goal; diamonds, goals that were set." if maps else ""),
        head,
        maps,
        rows,
    )


def told(number_of: int, one: Played) -> str:
    """An episode in a line."""
    outcome = "" if one.success is None else ", success" if one.success else ", no success"
    return f"Episode {number_of}: {len(one.rewards)} steps, return {short(one.earned)}{outcome}"


def flames(one: Played) -> Markup:
    """The levels of an episode over its steps."""
    steps = max(len(one.rewards), 1)
    scale = (WIDTH - LABEL - 10) / steps
    rows = []
    for place, (level, boxes) in enumerate(one.levels.items()):
        y = place * (ROW + 4)
        rows.append(tag("text", level, class_="name end", x=LABEL - 8, y=y + 14))
        rows += [_drawn(box, y, scale) for box in merged(boxes)]
    bottom = len(one.levels) * (ROW + 4)
    marks = "".join(
        f"M{number(LABEL + (t + 0.5) * scale)} {bottom}v8" for t in np.flatnonzero(one.rewards != 0)[:MOST_BOXES]
    )
    rewards = tag("path", tag("title", "rewards"), class_="axis", d=marks) if marks and not one.rewards.all() else None
    box = f"0 0 {WIDTH} {bottom + 26}"
    ticks = [
        tag("text", short(t), class_="tick mid", x=LABEL + t * scale, y=bottom + 22)
        for t in sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps})
    ]
    return tag("svg", rows, rewards, ticks, class_="flames", viewBox=box, role="img", aria_label="levels over time")


def merged(boxes: Sequence[Box]) -> list[Box]:
    """The boxes; of very many, those that follow on each other with the same choice as one."""
    if len(boxes) <= MOST_BOXES:
        return list(boxes)
    found: list[Box] = []
    for box in boxes:
        last = found[-1] if found else None
        alike = last is not None and last.choice == box.choice and (box.choice is not None or last.end == box.end)
        if last is not None and alike and last.stop == box.start:
            found[-1] = Box(last.start, box.stop, box.choice, box.end, box.text)
        else:
            found.append(box)
    return found


def _drawn(box: Box, y: float, scale: float) -> Markup:
    style = box.choice % 6 if box.choice is not None else COLOURS.get(box.end, 5)
    x, width = LABEL + box.start * scale, (box.stop - box.start) * scale
    tip = f"{box.text} · steps {box.start} to {box.stop} · ended: {WORDS[box.end]}"
    text = None
    if box.choice is not None and width > 14:
        text = tag("text", str(box.choice), class_="mid inside", x=x + width / 2, y=y + 14)
    shape = tag("rect", class_=f"bar s{style}", x=x, y=y, width=max(width - 0.6, 0.4), height=ROW, rx=1.5)
    return tag("g", tag("title", tip), shape, text)


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
