"""Charts as SVG text: axes, lines with bands, bars, histograms, colour ramps.

Colours are CSS classes (`s0`, `s1`, … set `--c`), so one drawing serves light and dark; `svg.css` defines them.
Pixel coordinates grow to the right and downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.evidence.view.markup import Markup, join, number, short, tag

Array = NDArray[np.float64]
LEVELS = 24
RAMP = ("#22264f", "#2c4a86", "#2f7f95", "#66b08c", "#c4d58a", "#fbf3c4")  # low to high; dark to light, blue to yellow


@dataclass(frozen=True)
class Line:
    """One curve: points, an optional band around it, and its style class number."""

    label: str
    x: Array
    y: Array
    style: int = 0
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class Bar:
    """One bar: its value, the interval and the single observations drawn over it, and its style class number."""

    label: str
    value: float
    style: int = 0
    low: float | None = None
    high: float | None = None
    points: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """Maps data [low, high] to pixels [start, stop], linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: Array | float) -> Array:
        values = np.asarray(value, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log10(np.maximum(values, 1e-300)), math.log10(low), math.log10(high)
        share = np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round numbers inside the limits (powers of ten on a logarithmic axis)."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**power for power in powers[:: max(1, -(-len(powers) // count))]]
        step = _round_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(raw: float) -> float:
    if raw <= 0 or not math.isfinite(raw):
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= raw * 0.999)


def limits(values: Array) -> tuple[float, float, bool]:
    """(low, high, log) that show `values` well: log over more than two decades, else linear without rare outliers."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0, False
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 100:
        return low, high, True
    q1, q99 = (float(q) for q in np.quantile(values, [0.01, 0.99]))
    if high - low > 6 * (q99 - q1) > 0:
        low, high = q1, q99
    if low >= 0 and low < 0.35 * high:
        low = 0.0
    if high <= 0 and high > 0.35 * low:
        high = 0.0
    pad = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return (low - pad if low else low), (high + pad if high else high), False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (440, 270),
    y_limits: tuple[float, float] | tuple[float, float, bool] | None = None,
    dots: bool = False,
    names: bool = False,
) -> Markup:
    """Curves with bands over a common axis; `dots` marks the points, `names` writes each label at its curve's end.

    y_limits: lowest and highest value, and whether the axis is logarithmic; what `limits` says of the curves if absent.
    """
    width, height = size
    small = width < 300
    left, right, top, bottom = (34, 8, 8, 22) if small else (46, 96 if names else 14, 10, 40 if x_label else 24)
    xs = np.concatenate([line.x for line in lines])
    ys = [part[np.isfinite(part)] for line in lines for part in (line.y, line.low, line.high) if part is not None]
    low, high, log = (*y_limits, False)[:3] if y_limits else limits(np.concatenate(ys))
    x = Axis(min(0.0, float(xs.min())), float(xs.max()) or 1.0, left, width - right)
    y = Axis(low, high, height - bottom, top, log)
    frame = _frame(x, y, x_label, y_label, counts=(3, 3) if small else (5, 5), size=size)
    drawn = [_curve(line, x, y, dots) for line in lines]
    ends = _end_names(lines, x, y) if names else None
    return drawing(size, title, frame, drawn, ends)


def _curve(line: Line, x: Axis, y: Axis, dots: bool) -> Markup:
    good = np.isfinite(line.y)
    px, py = x(line.x[good]), y(line.y[good])
    band = None
    if line.low is not None and line.high is not None:
        around = np.concatenate([y(line.high[good]), y(line.low[good])[::-1]])
        band = tag("path", class_="band", d=points_path(np.concatenate([px, px[::-1]]), around) + "Z")
    marks = None
    if dots or good.sum() == 1:
        tips = [f"{line.label}: {short(b)} at {short(a)}" for a, b in zip(line.x[good], line.y[good], strict=True)]
        marks = [
            tag("circle", tag("title", tip), class_="dot", cx=cx, cy=cy, r=2.6)
            for cx, cy, tip in zip(px, py, tips, strict=True)
        ]
    return tag("g", band, tag("path", class_="line", d=points_path(px, py)), marks, class_=f"s{line.style}")


def _end_names(lines: Sequence[Line], x: Axis, y: Axis) -> Markup:
    """Labels at the right end, pushed apart so that they do not overlap."""
    wanted = sorted((float(y(line.y[np.isfinite(line.y)][-1])), index) for index, line in enumerate(lines))
    placed: list[tuple[float, int]] = []
    for position, index in wanted:
        placed.append((max(position, placed[-1][0] + 15) if placed else position, index))
    return join(
        tag("text", lines[index].label, class_=f"name s{lines[index].style}", x=x.stop + 8, y=position + 4)
        for position, index in placed
    )


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, counts: tuple[int, int], size: tuple[int, int]) -> Markup:
    lines = "".join(f"M{number(x.start)} {number(float(y(t)))}H{number(x.stop)}" for t in y.ticks(counts[1]))
    across = tag("path", class_="grid", d=lines)
    y_text = [tag("text", short(t), class_="tick end", x=x.start - 6, y=float(y(t)) + 3.5) for t in y.ticks(counts[1])]
    x_text = [tag("text", short(t), class_="tick mid", x=float(x(t)), y=y.start + 15) for t in x.ticks(counts[0])]
    below = tag("text", x_label, class_="label mid", x=(x.start + x.stop) / 2, y=size[1] - 5) if x_label else None
    middle = (y.start + y.stop) / 2
    beside = (
        tag("text", y_label, class_="label mid", transform=f"translate(11 {number(middle)}) rotate(-90)")
        if y_label
        else None
    )
    axis = tag("path", class_="axis", d=f"M{number(x.start)} {number(y.start)}H{number(x.stop)}")
    return join(across, axis, y_text, x_text, below, beside)


def bar_chart(
    bars: Sequence[Bar], *, title: str, high: float, digits: int, mark: float | None = None, x_label: str = ""
) -> Markup:
    """Horizontal bars from 0 to `high` with their values to `digits` decimals; a dashed line at `mark`."""
    width, row = 440, 30
    left = min(max(60, 16 + 7 * max(len(bar.label) for bar in bars)), 190)
    height = row * len(bars) + 40
    x = Axis(0.0, high, left, width - 52)
    drawn = []
    for index, bar in enumerate(bars):
        middle = row * index + row / 2 + 4
        end = float(x(bar.value))
        spread = None
        if bar.low is not None and bar.high is not None:
            spread = tag(
                "path",
                class_="whisker",
                d=f"M{number(float(x(bar.low)))} {number(middle)}H{number(float(x(bar.high)))}",
            )
        drawn.append(
            tag(
                "g",
                tag("text", bar.label, class_="name end", x=left - 10, y=middle + 4),
                tag("rect", class_="bar", x=left, y=middle - 8, width=max(end - left, 0.5), height=16, rx=2),
                spread,
                [tag("circle", class_="point", cx=float(x(p)), cy=middle, r=2.6) for p in bar.points],
                tag("text", number(bar.value, digits), class_="value", x=width - 42, y=middle + 4),
                class_=f"s{bar.style}",
            )
        )
    floor = height - 32
    lines = "".join(f"M{number(float(x(t)))} 4V{floor}" for t in x.ticks(5))
    ticks = [tag("text", short(t), class_="tick mid", x=float(x(t)), y=floor + 13) for t in x.ticks(5)]
    dashed = tag("path", class_="mark", d=f"M{number(float(x(mark)))} 2V{floor}") if mark is not None else None
    label = tag("text", x_label, class_="label mid", x=(x.start + x.stop) / 2, y=height - 4)
    return drawing((width, height), title, tag("path", class_="grid", d=lines), drawn, dashed, ticks, label)


def histogram(samples: Sequence[tuple[str, int, Array]], *, title: str, x_label: str) -> Markup:
    """Shares of whole numbers >= 0, one (label, style, values) a system side by side in each of at most 24 bins."""
    size, (left, right, top, bottom) = (320, 180), (46, 10, 10, 40)
    together = np.concatenate([values for _, _, values in samples])
    first, last = int(together.min()), int(together.max())
    wide = max(1, -(-(last - first + 1) // 24))
    edges = np.arange(first, last + wide + 1, wide)
    counts = [np.histogram(values, edges)[0] / max(len(values), 1) for _, _, values in samples]
    start = 0 if first < 6 else first  # a single bar at 1 should stand beside 0 and 2, not fill the chart
    x = Axis(start - 0.5, max(float(edges[-1]), start + 7.0) - 0.5, left, size[0] - right)
    y = Axis(0.0, max(float(c.max()) for c in counts), size[1] - bottom, top)
    slot = float(x(edges[0] + wide) - x(edges[0]))
    bar = 0.84 * slot / len(samples)
    drawn = []
    for place, ((label, style, _), shares) in enumerate(zip(samples, counts, strict=True)):
        for edge, share in zip(edges[:-1], shares, strict=True):
            if share > 0:
                at = float(x(edge - 0.5)) + 0.08 * slot + place * bar
                span = f"{edge}" if wide == 1 else f"{edge} to {edge + wide - 1}"
                tip = tag("title", f"{label}: {100 * share:.1f} % last {span}")
                drawn.append(
                    tag(
                        "rect",
                        tip,
                        class_=f"bar s{style}",
                        x=at,
                        y=float(y(share)),
                        width=max(bar - 0.5, 0.5),
                        height=y.start - float(y(share)),
                    )
                )
    percent = Axis(0.0, 100 * y.high, y.start, y.stop)
    frame = _frame(x, percent, x_label, "% of decisions", counts=(6, 4), size=size)
    return drawing(size, title, frame, drawn)


def colour_bar(low: float, high: float, label: str) -> Markup:
    """The ramp with its limits, 220 pixels wide."""
    step = 200 / LEVELS
    boxes = [
        tag("rect", x=10 + index * step, y=16, width=step + 0.3, height=9, fill=colour, shape_rendering="crispEdges")
        for index, colour in enumerate(ramp())
    ]
    return drawing(
        (220, 40),
        f"{label} from {short(low)} to {short(high)}",
        tag("text", label, class_="label", x=10, y=11),
        boxes,
        tag("text", short(low), class_="tick", x=10, y=37),
        tag("text", short(high), class_="tick end", x=210, y=37),
    )


def ramp() -> list[str]:
    """The LEVELS colours of a value, low to high, evenly spaced between the anchors."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP], dtype=np.float64)
    places = np.linspace(0, len(RAMP) - 1, LEVELS)
    channels = [np.interp(places, np.arange(len(RAMP)), anchors[:, c]) for c in range(3)]
    return [f"#{round(r):02x}{round(g):02x}{round(b):02x}" for r, g, b in zip(*channels, strict=True)]


def points_path(x: Array, y: Array) -> str:
    """The path through pixel points, with one decimal."""
    return "M" + "L".join(f"{number(a, 1)} {number(b, 1)}" for a, b in zip(x, y, strict=True)) if len(x) else "M0 0"


def drawing(size: tuple[float, float], title: str, *inside: Markup | list[Markup] | None) -> Markup:
    """The SVG element of a chart of `size` pixels around `inside`; `title` says what it shows."""
    return tag(
        "svg", *inside, class_="chart", viewBox=f"0 0 {number(size[0])} {number(size[1])}", role="img", aria_label=title
    )
