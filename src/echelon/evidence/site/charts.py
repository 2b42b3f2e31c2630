"""The site's drawings, 340 pixels wide so that a telephone shows them at full size: arms, differences, levels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echelon.claims import Above, AtLeast, Equivalent, NotWorse, Test
from echelon.evidence.site.facts import LevelFact
from echelon.evidence.statistics import Estimate
from echelon.evidence.view.markup import Markup, join, number, short, tag
from echelon.evidence.view.svg import Axis, drawing

WIDTH = 340
EDGE = 14
"""Pixels that are left free at both ends of an axis."""
LETTER = 6.1
"""Pixels of an average letter of the drawings' text; words wrap by it."""


@dataclass(frozen=True)
class Measure:
    """One bar: its label, mean with interval, the runs' scores, and its colour."""

    label: str
    mean: Estimate
    runs: Sequence[float]
    style: int


@dataclass(frozen=True)
class Mark:
    """A dashed line at `value` with its name."""

    value: float
    label: str


def means(measures: Sequence[Measure], *, title: str, unit: str, points: bool, mark: Mark | None = None) -> Markup:
    """A bar from zero for every arm, with its interval and a dot a run; `points`: the axis is 0 to 100."""
    shown = [value for m in measures for value in (m.mean.value, m.mean.low, m.mean.high, *m.runs)]
    low, high = (0.0, 100.0) if points else span([*shown, *([mark.value] if mark else [])])
    top, row = (20 if mark else 4), 46
    floor = top + row * len(measures)
    x = Axis(low, high, EDGE, WIDTH - EDGE)
    drawn = [_measure(measure, x, top + row * place) for place, measure in enumerate(measures)]
    marked = _mark(mark, x, floor) if mark else None
    return drawing((WIDTH, floor + 36), title, _scale(x, top, floor, unit), drawn, marked)


def difference(estimate: Estimate, test: Test, *, title: str, unit: str) -> Markup:
    """The estimate with its interval, against no difference and against what the test asks for."""
    marks = asked(test)
    low, high = span([estimate.value, estimate.low, estimate.high, *(mark.value for mark in marks)], both=True)
    top, floor = 4 + 16 * len(marks), 48 + 16 * len(marks)
    x = Axis(low, high, EDGE, WIDTH - EDGE)
    zero = tag("path", class_="axis", d=f"M{_at(x, 0.0)} {top}V{floor}")
    middle = top + 26
    told = tag("text", said(estimate), class_="value mid", x=_clear(x, estimate.value, said(estimate)), y=middle - 12)
    spread = _interval(x, estimate, middle, 6)
    point = tag("circle", class_="dot s0", cx=float(x(estimate.value)), cy=middle, r=4.5)
    marked = [_mark(mark, x, floor, 12 + 16 * place) for place, mark in enumerate(marks)]
    return drawing((WIDTH, floor + 36), title, _scale(x, top, floor, unit), zero, marked, spread, point, told)


def asked(test: Test) -> list[Mark]:
    """Where a test draws its lines: the values that the estimate or its interval must reach or keep."""
    match test:
        case AtLeast(score):
            return [Mark(score, f"asked: {short(score)} or more")]
        case Above(margin):
            return [Mark(margin, f"asked: {short(margin)} or more")] if margin else []
        case NotWorse(margin):
            return [Mark(-margin, f"asked: above {short(-margin)}")]
        case Equivalent(margin):
            return [Mark(-margin, f"asked: above {short(-margin)}"), Mark(margin, f"asked: below {short(margin)}")]


def span(values: Sequence[float], both: bool = False) -> tuple[float, float]:
    """Limits of an axis that holds zero and all values, with room beyond them; at zero alone only if `both`."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.08 * (high - low) or 1.0
    return low - (room if low or both else 0.0), high + (room if high or both or not low else 0.0)


def said(estimate: Estimate) -> str:
    """An estimate with its interval, in few digits."""
    return f"{short(estimate.value)} [{short(estimate.low)}, {short(estimate.high)}]"


def levels(known: Sequence[LevelFact], title: str) -> Markup:
    """The levels as boxes from the top down: what each decides, and how long that holds."""
    drawn, top = [], 1.0
    for place, level in enumerate(known):
        box, height = _level(level, place, top)
        drawn.append(box)
        if place + 1 < len(known):
            drawn.append(tag("path", class_="down", d=f"M30 {number(top + height)}v17m-4 -5l4 5l4 -5"))
        top += height + 18
    return drawing((WIDTH, top - 17), title, drawn)


def shortened(text: str, width: float) -> str:
    """`text` cut so that it fits `width` pixels."""
    letters = max(int(width / LETTER), 1)
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _level(level: LevelFact, place: int, top: float) -> tuple[Markup, float]:
    letters = int((WIDTH - 70) / LETTER)
    lines = [("decides", textwrap.wrap(level.decides, letters)), ("holds", textwrap.wrap(level.holds, letters))]
    y, texts = top + 21, [tag("text", shortened(level.name, WIDTH - 30), class_="title", x=12, y=top + 21)]
    for name, words in lines:
        texts.append(tag("text", name, class_="label", x=12, y=y + 18))
        for word in words:
            y += 16
            texts.append(tag("text", word, x=60, y=y + 2))
        y += 2
    height = y + 12 - top
    box = tag("rect", class_="level", x=1, y=top, width=WIDTH - 2, height=height, rx=5)
    bar = tag("rect", class_="dot", x=1, y=top + 6, width=3, height=height - 12)
    return tag("g", box, bar, texts, class_=f"s{place % 6}"), height


def _measure(measure: Measure, x: Axis, top: float) -> Markup:
    middle, value = top + 30, said(measure.mean)
    ends = sorted((float(x(0.0)), float(x(measure.mean.value))))
    room = WIDTH - 2 * EDGE - LETTER * len(value) - 10
    tips = [tag("title", f"{measure.label}: {short(run)}") for run in measure.runs]
    spread = np.linspace(-4.0, 4.0, len(measure.runs)) if len(measure.runs) > 1 else np.zeros(1)
    return tag(
        "g",
        tag("text", shortened(measure.label, room), tag("title", measure.label), class_="name", x=EDGE, y=top + 15),
        tag("text", value, class_="tick end", x=WIDTH - EDGE, y=top + 15),
        tag("rect", class_="bar", x=ends[0], y=middle - 9, width=max(ends[1] - ends[0], 0.8), height=18, rx=1),
        _interval(x, measure.mean, middle, 5),
        [
            tag("circle", tip, class_="point", cx=float(x(run)), cy=middle + up, r=2.7)
            for run, up, tip in zip(measure.runs, spread, tips, strict=True)
        ],
        class_=f"s{measure.style}",
    )


def _interval(x: Axis, estimate: Estimate, y: float, cap: float) -> Markup:
    low, high = _at(x, estimate.low), _at(x, estimate.high)
    ends = "".join(f"M{end} {number(y - cap)}V{number(y + cap)}" for end in (low, high))
    return tag("path", class_="whisker", d=f"M{low} {number(y)}H{high}{ends}")


def _mark(mark: Mark, x: Axis, floor: float, y: float = 12) -> Markup:
    label = tag("text", mark.label, class_="label mid", x=_clear(x, mark.value, mark.label), y=y)
    return join(tag("path", class_="mark", d=f"M{_at(x, mark.value)} {number(y + 3)}V{floor}"), label)


def _scale(x: Axis, top: float, floor: float, unit: str) -> Markup:
    ticks = [0.0 if abs(tick) < 1e-12 * (x.high - x.low) else tick for tick in x.ticks(4)]
    grid = tag("path", class_="grid", d="".join(f"M{_at(x, tick)} {top}V{floor}" for tick in ticks))
    texts = [tag("text", short(tick), class_="tick mid", x=float(x(tick)), y=floor + 14) for tick in ticks]
    label = tag("text", shortened(unit, WIDTH), class_="label mid", x=WIDTH / 2, y=floor + 30)
    base = tag("path", class_="axis", d=f"M{number(x.start)} {floor}H{number(x.stop)}")
    return join(grid, base, texts, label)


def _clear(x: Axis, value: float, text: str) -> float:
    """Where the middle of `text` goes so that it stays inside the drawing and near `value`."""
    half = LETTER * len(text) / 2
    return min(max(float(x(value)), half + 2), WIDTH - half - 2)


def _at(x: Axis, value: float) -> str:
    return number(float(x(value)))
