"""One strip as an SVG file, for a README: a hierarchy's episode beside a flat baseline's, and the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from echelon.errors import UsageError
from echelon.evidence.view.gather import gather
from echelon.evidence.view.layout import asset
from echelon.evidence.view.markup import Markup, plural, short, tag
from echelon.evidence.view.mazes import Plan, ends, field_limits, floor, heat, subgoals, trail, walls
from echelon.evidence.view.page import curve
from echelon.evidence.view.runs import Episode, Group, Run
from echelon.evidence.view.svg import line_chart, ramp

WIDTH, PANEL, GAP, TOP = 1060, 330, 24, 58


def picture(runs: Sequence[Path], out: Path) -> Path:
    """Draw the strip of `runs` to the SVG file `out` and return it.

    Left, the hierarchical system's value field, driven path and chosen subgoals; beside it, when there is one, the
    other system on the same task; right, success against updates. The task is the first that the former solves and
    the latter does not, in their first recorded episodes (else the first task). UsageError without recorded maze
    episodes or evaluations.
    """
    from echelon.evidence.view.probe import probe  # loads torch

    groups = gather(runs)
    for group in groups:
        shown = next((run for run in group.runs if run.episodes), group.runs[0])
        probe(replace(group, runs=[shown]))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(strip(groups), encoding="utf-8")
    return out


def strip(groups: Sequence[Group]) -> str:
    """The SVG document."""
    arms = [arm for group in groups if (arm := _arm(group)) is not None]
    scored = [group for group in groups if group.success()]
    if not arms or not scored:
        raise UsageError("a picture needs a maze run with recorded evaluation episodes; evaluate or train one first")
    arms.sort(key=lambda arm: not any(len(episode.subgoals) for episode in arm[1].episodes))
    arms = [arms[0], *arms[-1:]] if len(arms) > 1 else arms
    task = _task([run for _, run in arms])
    panels = [_maze_panel(group, run, task, x) for (group, run), x in zip(arms, _columns(len(arms)), strict=False)]
    x = _columns(len(arms))[len(arms)]
    chart = line_chart(
        [curve(group, None) for group in scored],
        title="Success against updates",
        x_label="updates",
        size=(WIDTH - x, 270),
        y_limits=(0.0, 100.0),
        dots=True,
        names=True,
    )
    head = [_text("Success while learning, %", x, 20, "title"), _text(_seeds(scored), x, 38, "label")]
    height = max(TOP + _height(group) for group, _ in arms) + 44
    parts: list[Markup | list[Markup]] = [*panels, head, _place(chart, x, TOP, WIDTH - x, 270)]
    return _document(WIDTH, max(height, TOP + 274), parts) + "\n"


def _arm(group: Group) -> tuple[Group, Run] | None:
    run = next((run for run in group.runs if run.episodes), None)
    return (group, run) if run is not None and group.maze is not None else None


def _task(runs: Sequence[Run]) -> str:
    """The first task whose first episode the first run wins and the last loses; else the first task."""
    firsts = [[_first(run, task) for task in dict.fromkeys(e.task for e in runs[0].episodes)] for run in runs]
    for one, other in zip(firsts[0], firsts[-1], strict=True):
        if one is not None and other is not None and one.success and not other.success:
            return one.task
    return runs[0].episodes[0].task


def _first(run: Run, task: str) -> Episode | None:
    return next((episode for episode in run.episodes if episode.task == task), None)


def _columns(mazes: int) -> list[int]:
    return [column * (PANEL + GAP) for column in range(mazes + 1)]


def _height(group: Group) -> float:
    assert group.maze is not None
    _, _, width, height = Plan(group.maze).view_box
    return PANEL * height / width


def _maze_panel(group: Group, run: Run, task: str, x: float) -> list[Markup]:
    assert group.maze is not None
    plan = Plan(group.maze)
    episode = _first(run, task)
    fields = run.fields.get(task, {})
    ground, legend = floor(plan), []
    if fields:
        name = next(iter(fields))
        low, high = field_limits(run.fields, name)
        ground = heat(plan, fields[name], low, high)
        legend = _legend(f"{name}(s, goal)", low, high, x, TOP + _height(group) + 10)
    drawn = []
    if episode is not None:
        lines = ("casing", "over") if fields else ("trail",)
        drawn = [trail(plan, episode.path, class_) for class_ in lines]
        drawn.append(subgoals(plan, episode) or Markup(""))
    maze = plan.svg(
        f"{group.label} on {task}",
        ground,
        walls(plan),
        tag("g", drawn, class_=f"s{group.style}"),
        ends(plan, task, episode),
    )
    outcome = "not recorded" if episode is None else "reaches the goal" if episode.success else "does not arrive"
    told = f"{task.replace('task', 'task ')}, seed {run.seed}: {outcome}"
    if episode is not None and len(episode.subgoals):
        told += "; diamonds: subgoals"
    return [
        _text(group.label, x + 4, 20, f"title name s{group.style}"),
        _text(told, x + 4, 38, "label"),
        _place(maze, x, TOP - 6, PANEL, _height(group)),
        *legend,
    ]


def _legend(label: str, low: float, high: float, x: float, y: float) -> list[Markup]:
    step = 120 / len(ramp())
    boxes = [
        tag("rect", x=x + 42 + i * step, y=y, width=step + 0.3, height=8, fill=colour)
        for i, colour in enumerate(ramp())
    ]
    return [
        _text(short(low), x + 36, y + 8, "tick end"),
        *boxes,
        _text(f"{short(high)} · {label}", x + 168, y + 8, "tick"),
    ]


def _seeds(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.runs) for group in groups})
    seeds = plural(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    return f"{seeds} on {groups[0].env}; band: 95 % interval"


def _text(text: str, x: float, y: float, class_: str) -> Markup:
    return tag("text", text, x=x, y=y, class_=class_)


def _place(svg: Markup, x: float, y: float, width: float, height: float) -> Markup:
    """The same drawing inside another one, at a place and size."""
    box = tag("svg", x=x, y=y, width=width, height=height).removesuffix("></svg>")
    return Markup(svg.replace("<svg", box, 1))


def _document(width: float, height: float, parts: Sequence[Markup | list[Markup]]) -> Markup:
    paper = tag("rect", x=-16, y=-8, width=width + 32, height=height + 16, style="fill:var(--paper)")
    style = tag("style", Markup(asset("svg.css")))
    return tag(
        "svg",
        style,
        paper,
        parts,
        xmlns="http://www.w3.org/2000/svg",
        class_="sheet",
        viewBox=f"-16 -8 {width + 32:g} {height + 16:g}",
        width=width + 32,
        height=height + 16,
        role="img",
        aria_label="A hierarchy's test episode beside a flat baseline's, and success while learning",
    )
