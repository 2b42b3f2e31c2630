"""The report of runs as one self-contained HTML page: no network, no fonts or scripts from elsewhere."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from echelon.evidence.statistics import Estimate, difference, estimate
from echelon.evidence.view.flame import flame_section
from echelon.evidence.view.gather import gather
from echelon.evidence.view.hierarchy import online_sections
from echelon.evidence.view.layout import Figures, asset, document, key, missing, section
from echelon.evidence.view.levels import levels_section
from echelon.evidence.view.markup import Markup, duration, join, number, plural, short, signed, tag
from echelon.evidence.view.provenance import provenance
from echelon.evidence.view.runs import LAST_EVALUATIONS, Array, Curve, Group, seeds_table
from echelon.evidence.view.scenes import maze_sections
from echelon.evidence.view.svg import Bar, Line, bar_chart, histogram, line_chart

POINT_REPETITIONS = 500


def view(runs: Sequence[Path], out: Path | None = None, open_browser: bool = False) -> Path:
    """Write the report of `runs` (run folders, or folders of `seed-*` runs) and return its path.

    Seeds of one configuration are shown together, each configuration in its own colour. `out` is the HTML file; by
    default `report.html` inside the (first) run folder given. Raises UsageError for a path that holds no run.
    """
    from echelon.evidence.view.probe import probe  # loads torch

    groups = gather(runs)
    for group in groups:
        probe(group)
    path = Path(out) if out is not None else Path(runs[0]) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(groups), encoding="utf-8")
    if open_browser:
        webbrowser.open(path.resolve().as_uri())
    return path


def page(groups: Sequence[Group]) -> str:
    """The whole document."""
    figures = Figures()
    bodies = [
        section("success", "Success", success(groups, figures)),
        flame_section(groups, figures),
        *online_sections(groups, figures),
        *maze_sections(groups, figures),
        section("order", "Order consistency", order(groups, figures)),
        levels_section(groups, figures),
        section("spans", "How long decisions last", spans(groups, figures)),
        section("training", "Training", training(groups, figures)),
        section("provenance", "Where this comes from", provenance(groups)),
    ]
    shown = [body for body in bodies if body is not None]
    title = headline(groups)
    foot = tag("footer", "Written by echelon. The page is self-contained: keep it, send it, print it.")
    main = tag("main", header(groups, title, [entry for entry, _ in shown]), [body for _, body in shown], foot)
    script = tag("script", Markup(asset("player.js") + asset("flame.js")))
    look = tag("style", Markup("".join(map(asset, ("svg.css", "page.css", "flame.css")))))
    return document(title, look, main, script)


# --- header


def headline(groups: Sequence[Group]) -> str:
    """What the page is about: systems on environment."""
    names = list(dict.fromkeys(group.label for group in groups))
    envs = list(dict.fromkeys(group.env for group in groups))
    told = " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{told} on {envs[0]}" if len(envs) == 1 else told


def header(groups: Sequence[Group], title: str, contents: Sequence[tuple[str, str]]) -> Markup:
    """Title, the result in a sentence, what each system is, the facts of the runs, and the contents."""
    abouts = [
        tag("p", tag("b", group.label, class_=f"s{group.style}"), " – ", group.sentence, class_="about")
        for group in groups
        if group.sentence
    ]
    facts = tag("dl", [tag("div", tag("dt", name), tag("dd", text)) for name, text in facts_of(groups)], class_="facts")
    links = tag("nav", [tag("a", name, href=f"#{anchor}") for anchor, name in contents])
    return tag(
        "header",
        tag("p", "echelon run report", class_="eyebrow"),
        tag("h1", title),
        verdict(groups),
        abouts,
        facts,
        links,
    )


def score(group: Group) -> Estimate | None:
    """Mean success over seeds, tasks and the last evaluations, in percent, with its interval."""
    scores = group.scores()
    return None if scores is None else estimate([scores])


def verdict(groups: Sequence[Group]) -> Markup:
    """The final success of each system, and the difference when there are two in one environment."""
    parts = []
    for group in groups:
        found, returns = score(group), group.returns()[-LAST_EVALUATIONS:]
        if found is None and returns:
            mean = estimate([np.mean([scores for _, scores in returns], axis=0)])
            parts.append(
                f"{group.label} earns a return of {short(mean.value)} in its test episodes"
                f" (95 % interval {short(mean.low)} to {short(mean.high)}, {plural(len(group.runs), 'seed')})."
            )
        elif found is None:
            parts.append(f"{group.label} has not been evaluated yet.")
        else:
            parts.append(
                f"{group.label} succeeds in {found.value:.1f} % of its test episodes"
                f" (95 % interval {found.low:.1f} to {found.high:.1f}, {plural(len(group.runs), 'seed')})."
            )
    arms = [scores for group in groups if (scores := group.scores()) is not None]
    if len(groups) == len(arms) == 2 and groups[0].env == groups[1].env:
        gap = difference(arms[0], arms[1])
        parts.append(f"The difference is {signed(gap.value)} points ({signed(gap.low)} to {signed(gap.high)}).")
    if any(len(scores) == 1 for scores in arms):
        parts.append("An interval of one seed knows the chance of episodes only, not that of training again.")
    return tag("p", " ".join(parts), class_="lede")


def facts_of(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Date, machine, time and size of the runs, as far as they are known."""
    runs = [run for group in groups for run in group.runs]
    started = sorted(str(run.identity["started"]) for run in runs if run.identity.get("started"))
    machine = list(
        dict.fromkeys(str(r.identity.get("gpu") or r.identity.get("cpu")) for r in runs if r.identity.get("cpu"))
    )
    walls = [run.wall_s for run in runs if run.wall_s is not None]
    seeds = [", ".join(str(run.seed) for run in group.runs) for group in groups]
    updates = list(dict.fromkeys(short(float(run.config["updates"])) for run in runs if run.config.get("updates")))
    commits = list(dict.fromkeys(str(run.identity["commit"])[:10] for run in runs if run.identity.get("commit")))
    found = [
        ("Date", day(started[0]) if started else ""),
        ("Seeds", seeds[0] if len(set(seeds)) == 1 else "; ".join(seeds)),
        ("Updates a run", " / ".join(updates)),
        ("Wall time a run", duration(float(np.mean(walls))) if walls else ""),
        ("Machine", "; ".join(machine)),
        ("Commit", ", ".join(commits)),
    ]
    unfinished = sum(not run.result for run in runs)
    if unfinished:
        found.append(("Unfinished", f"{unfinished} of {len(runs)} runs"))
    return [(name, text) for name, text in found if text]


def day(stamp: str) -> str:
    """20 November 2026 for an ISO time stamp; the stamp itself if it is none."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{moment.day} {moment:%B %Y}"


# --- success


def success(groups: Sequence[Group], figures: Figures) -> Markup:
    """Table by task, curve over updates, curves by task."""
    scored = [group for group in groups if group.scores() is not None]
    if not scored:
        return join(missing(groups, "success"))
    table = success_table(scored)
    curves = figures(
        "Success while learning.",
        "Mean over tasks and seeds at each evaluation; the band is the 95 % bootstrap interval over seeds and "
        "episodes. Look for a gap that stays open, not for the best single point.",
        key(scored),
        line_chart(
            [curve(group, None) for group in scored],
            title="Success against updates",
            x_label="updates",
            y_label="success, %",
            y_limits=(0.0, 100.0),
            dots=True,
        ),
    )
    parts = [
        tag(
            "div",
            tag("b", name.replace("task", "task ")),
            line_chart(
                [curve(g, i) for g in scored if name in g.tasks], title=name, size=(210, 130), y_limits=(0.0, 100.0)
            ),
            class_="cell",
        )
        for i, name in enumerate(scored[0].tasks)
    ]
    whole = join(missing(groups, "success"), tag("div", tag("div", table), curves, class_="two"))
    if len(parts) == 1:
        return whole
    by_task = figures(
        "The same by task.",
        "Success in percent against updates. One task that stays at the bottom tells more about a method than the "
        "mean.",
        tag("div", parts, class_="many"),
    )
    return join(whole, by_task)


def curve(group: Group, task: int | None) -> Line:
    """Success against updates of one task, or of all."""
    found = group.success()
    pick = slice(None) if task is None else slice(task, task + 1)
    points = [estimate([scores[:, pick]], repetitions=POINT_REPETITIONS) for _, scores in found]
    steps = np.array([step for step, _ in found], dtype=np.float64)
    value, low, high = (np.array([getattr(p, name) for p in points]) for name in ("value", "low", "high"))
    return Line(group.label, steps, value, group.style, low, high)


def success_table(groups: Sequence[Group]) -> Markup:
    """Success by task, shaded, with the interval of the mean; and its bars."""
    tasks = list(dict.fromkeys(name for group in groups for name in group.tasks))
    heads = tag(
        "tr", tag("th", "success, %"), [tag("th", name.replace("task", "task ")) for name in tasks], tag("th", "all")
    )
    rows, bars = [], []
    for group in groups:
        scores, whole = group.scores(), score(group)
        if scores is None or whole is None:
            continue
        means = dict(zip(group.tasks, scores.mean((0, 2)), strict=True))
        cells = [shaded(means[name]) if name in means else tag("td", "–") for name in tasks]
        interval = tag("span", f"{whole.low:.0f} to {whole.high:.0f}", class_="range")
        name = tag("th", tag("span", class_=f"swatch s{group.style}"), group.label)
        rows.append(tag("tr", name, cells, tag("td", tag("b", f"{whole.value:.1f}"), tag("br"), interval)))
        seeds = scores.mean((1, 2)).tolist() if len(scores) > 1 else []
        bars.append(Bar(group.label, whole.value, group.style, whole.low, whole.high, seeds))
    table = tag("div", tag("table", tag("thead", heads), tag("tbody", rows)), class_="scroll")
    episodes = " / ".join(dict.fromkeys(str(scores.shape[2]) for g in groups if (scores := g.scores()) is not None))
    about = (
        f"Mean over seeds of the last three evaluations ({episodes} episodes a task and seed). "
        "Bars: the mean over tasks; whiskers: 95 % bootstrap interval (seeds, episodes); rings: single seeds."
    )
    drawn = bar_chart(bars, title="Final success", high=100.0, digits=1, x_label="success, %")
    return join(table, tag("div", drawn, style="margin-top:18px"), tag("p", about, class_="note plain"))


def shaded(value: float) -> Markup:
    """A table cell whose background grows with `value` in percent."""
    return tag("td", f"{value:.0f}", style=f"background:rgb(0 114 178 / {number(0.5 * value / 100)})")


# --- order, spans, training


def order(groups: Sequence[Group], figures: Figures) -> Markup:
    """Bars of the order consistency of each value function."""
    bars = []
    for group in groups:
        names = list(dict.fromkeys(name for run in group.runs for name in run.order))
        for name in names:
            seeds = [run.order[name] for run in group.runs if name in run.order]
            label = f"{group.label}, {name}" if len(groups) > 1 else name
            bars.append(Bar(label, float(np.mean(seeds)), group.style, points=seeds if len(seeds) > 1 else ()))
    if not bars:
        return join(missing(groups, "order"))
    figure = figures(
        "Does the value rise along the way?",
        "Share of steps of shortest-path drives through the five tasks after which the smoothed value, k steps later, "
        "is higher; mean over tasks, rings: single seeds. 1 is a perfect compass, 0.5 (dashed) a coin. The high level "
        "steers by the sign of this difference, so a small lead here decides long tasks.",
        tag("div", bar_chart(bars, title="Order consistency", high=1.0, digits=3, mark=0.5), class_="half"),
    )
    return join(figure, missing(groups, "order"))


def spans(groups: Sequence[Group], figures: Figures) -> Markup:
    """Histograms of the length of decisions, one chart a level and unit of time."""
    drawn = []
    for unit, language in (("steps", False), ("tokens", True)):
        alike = [group for group in groups if group.runs[0].language == language]
        for level in dict.fromkeys(level for group in alike for run in group.runs for level in run.spans):
            samples = [
                (g.label, g.style, np.concatenate([run.spans[level] for run in g.runs if level in run.spans]))
                for g in alike
                if any(len(run.spans.get(level, ())) for run in g.runs)
            ]
            if samples:
                counted = ", ".join(f"{label} {len(lengths):,}" for label, _, lengths in samples)
                chart = histogram(samples, title=f"Span lengths of level {level}", x_label=f"{unit} a decision lasts")
                drawn.append(tag("div", tag("b", f"Level {level}"), f" · decisions: {counted}", chart, class_="cell"))
    if not drawn:
        return join(missing(groups, "spans"))
    figure = figures(
        "Span lengths by level.",
        "How many environment steps a decision of each level holds, in the recorded evaluation episodes; of a language"
        " agent, how many tokens are emitted meanwhile, in the episodes shown above. A single bar at 1 means that the"
        " level decides afresh at every step; a level with options shows its terminations here.",
        key(groups),
        tag("div", drawn, class_="three"),
    )
    return join(missing(groups, "spans"), figure)


def training(groups: Sequence[Group], figures: Figures) -> Markup:
    """All training metrics as small multiples: losses first, then by the part of the name before the slash."""
    names = list(dict.fromkeys(name for group in groups for run in group.runs for name in run.metrics))
    charts = []
    for name in sorted(names, key=lambda n: (n.partition("/")[0] != "loss", "/" not in n, n)):
        lines = [line for group in groups if (line := metric_line(group, name)) is not None]
        family, slash, rest = name.rpartition("/")
        label = tag("div", family + slash, tag("b", rest))
        charts.append(tag("div", label, line_chart(lines, title=name, size=(210, 130)), class_="cell"))
    if not charts:
        return join(missing(groups, "metrics"))
    figure = figures(
        "What the training loop measured.",
        "Against updates; the line is the mean over seeds, the band reaches from the lowest to the highest seed. The "
        "axis is logarithmic where values span more than two decades. Look for curves that diverge late or never "
        "settle.",
        key(groups),
        tag("div", charts, class_="many"),
    )
    return join(missing(groups, "metrics"), figure)


def metric_line(group: Group, name: str) -> Line | None:
    """One training metric of a group, mean and range over its seeds."""
    curves: list[Curve] = [run.metrics[name] for run in group.runs if name in run.metrics]
    if not curves:
        return None
    steps, values = seeds_table(curves)
    band: tuple[Array | None, Array | None] = (values.min(0), values.max(0)) if len(values) > 1 else (None, None)
    return Line(group.label, steps, values.mean(0), group.style, *band)
