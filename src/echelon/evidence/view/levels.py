"""What levels and labels do while a run learns: how their advantages vary, how often they switch, what they reach.

A measure is a curve for each level (or label of tokens) of each run; systems lie side by side in one chart a level.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from echelon.evidence.statistics import LEVEL, resample
from echelon.evidence.view.layout import Figures, Section, key, section
from echelon.evidence.view.markup import Markup, tag
from echelon.evidence.view.runs import Array, Curve, Group, Run, seeds_table
from echelon.evidence.view.svg import Line, limits, line_chart

REPETITIONS = 500
PERCENT = (0.0, 100.0)


@dataclass(frozen=True)
class Source:
    """Metrics that tell a measure: names by a pattern whose groups name the level, and what their values come to.

    A pattern without groups is of everything, "all".
    """

    pattern: str
    value: Callable[[Array], Array] = lambda x: x


@dataclass(frozen=True)
class Measure:
    """A figure: what it says, how to read it, from which metrics it is told, and the limits of its axis."""

    title: str
    explanation: str
    sources: tuple[Source, ...]
    limits: tuple[float, float] | None = None


VARIANCE = Measure(
    "Variance of advantages, level by level.",
    "Of the decisions of a level in the greedy episodes of an evaluation, where it notes what it expects; of a "
    "language agent, of the tokens of a level or label in an iteration. A level whose variance falls to zero learns "
    "nothing more; one far above the others drowns them. The axis is logarithmic beyond two decades.",
    (
        Source(r"level/([^/]+)/advantage_variance"),
        Source(r"label/([^/]+)/([^/]+)/advantage_std", np.square),
    ),
)
MEASURES = (
    VARIANCE,
    Measure(
        "How often a level decides anew, %.",
        "Switches: decisions that began, in percent of the steps (of a language agent, of the turns) at which one "
        "could. The rest, up to 100, keep what was decided. At 100 a hierarchy is flat; near 0 it decides once.",
        (
            Source(r"evaluation/([^/]+)/length", lambda x: 100 / np.maximum(x, 1)),
            Source(r"level/([^/]+)/turns", lambda x: 100 / np.maximum(x, 1)),
        ),
        PERCENT,
    ),
    Measure(
        "Subgoals reached, %.",
        "Share of the decisions of an evaluation that ended by their own condition, or near the place that they asked "
        "for. Those of a level that ends by time alone reach nothing, by this count.",
        (Source(r"evaluation/([^/]+)/reached", lambda x: 100 * x),),
        PERCENT,
    ),
    Measure(
        "Entropy of choices by level.",
        "Of the steps that each choice held in an evaluation, as a part of its largest value: 1 if all are used "
        "alike, 0 if one has taken over.",
        (Source(r"evaluation/([^/]+)/entropy"),),
        (0.0, 1.0),
    ),
    Measure(
        "Entropy by label of tokens, nats a token.",
        "Of what the policy could have written instead, meaned over the tokens of each label in an iteration.",
        (Source(r"label/([^/]+)/([^/]+)/entropy"),),
    ),
    Measure(
        "Divergence from the warm start, nats a token.",
        "KL of what the policy wrote, log π / π_ref at its tokens, meaned over an iteration before its steps: of all "
        "tokens, and of each label. It begins at 0; where it climbs while success does not, the policy only drifts.",
        (Source(r"kl"), Source(r"label/([^/]+)/([^/]+)/kl")),
    ),
    Measure(
        "Actions that the world understands, %.",
        "Of the turns of an iteration: of all, and of each level.",
        (
            Source(r"invalid", lambda x: 100 * (1 - x)),
            Source(r"level/([^/]+)/invalid", lambda x: 100 * (1 - x)),
        ),
        PERCENT,
    ),
)


def levels_section(groups: Sequence[Group], figures: Figures) -> Section | None:
    """Section "Levels while learning"; None where no run tells anything of its levels."""
    drawn = [figure for measure in MEASURES if (figure := _figure(measure, groups, figures)) is not None]
    return section("learning", "Levels while learning", key(groups), drawn) if drawn else None


def curves(run: Run, measure: Measure) -> dict[str, Curve]:
    """The curves of a measure, by the name of their level or label."""
    found = dict(run.variances) if measure is VARIANCE else {}
    for source in measure.sources:
        for name, curve in run.metrics.items():
            if (match := re.fullmatch(source.pattern, name)) is not None:
                found[" ".join(match.groups()) or "all"] = Curve(curve.step, source.value(curve.value))
    return found


def line(group: Group, seeds: Sequence[Curve]) -> Line:
    """Mean over the seeds and its bootstrap interval; one seed has none."""
    steps, values = seeds_table(seeds)
    if len(values) < 2:
        return Line(group.label, steps, values[0], group.style)
    drawn = resample(values[:, :, None], REPETITIONS, np.random.default_rng(0)).mean(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Line(group.label, steps, values.mean(0), group.style, low, high)


def _figure(measure: Measure, groups: Sequence[Group], figures: Figures) -> Markup | None:
    """A chart for each level, all of one scale."""
    told = [(group, [curves(run, measure) for run in group.runs]) for group in groups]
    names = dict.fromkeys(name for _, seeds in told for seed in seeds for name, curve in seed.items() if _known(curve))
    drawn: dict[str, list[Line]] = {}
    for name in names:
        mine = [(g, [seed[name] for seed in seeds if name in seed and _known(seed[name])]) for g, seeds in told]
        drawn[name] = [line(group, seeds) for group, seeds in mine if seeds]
    if not drawn:
        return None
    scale = measure.limits or _scale([one for lines in drawn.values() for one in lines])
    charts = [
        tag(
            "div",
            tag("b", name),
            line_chart(
                lines,
                title=f"{measure.title} {name}",
                x_label="updates",
                size=(320, 190),
                y_limits=scale,
                dots=max(len(one.x) for one in lines) < 30,
            ),
            class_="cell",
        )
        for name, lines in drawn.items()
    ]
    about = f"{measure.explanation} Mean over seeds and its 95 % bootstrap interval."
    return figures(measure.title, about, tag("div", charts, class_="three"))


def _scale(lines: Sequence[Line]) -> tuple[float, float, bool]:
    """Limits of an axis for all these lines: from 0, or logarithmic where they need it."""
    parts = [part for one in lines for part in (one.y, one.low, one.high) if part is not None]
    low, high, log = limits(np.concatenate(parts))
    return (low, high, True) if log else (min(low, 0.0), high, False)


def _known(curve: Curve) -> bool:
    return bool(np.isfinite(curve.value).any())
