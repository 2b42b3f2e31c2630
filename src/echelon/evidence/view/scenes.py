"""The maze sections of the page: the five tasks, the player, and the value fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from echelon.evidence.view.layout import Figures, Section, missing, section
from echelon.evidence.view.markup import Markup, join, tag
from echelon.evidence.view.mazes import Plan, ends, field_limits, floor, heat, subgoals, trail, walls
from echelon.evidence.view.runs import Array, Episode, Group, Run
from echelon.evidence.view.svg import colour_bar, ramp

TRACE_POINTS = 160


def maze_sections(groups: Sequence[Group], figures: Figures) -> list[Section | None]:
    """Sections "Paths and subgoals" and "Value fields"; one line each where there is nothing to draw."""
    plans = [Plan(group.maze) if group.maze else None for group in groups]
    drawn = [(g, group, plan) for g, (group, plan) in enumerate(zip(groups, plans, strict=True)) if plan]
    if not drawn:
        return [section("mazes", "Paths and subgoals", missing(groups, "episodes"))]
    paths = [part for part in drawn if any(run.episodes for run in part[1].runs)]
    fields = [part for part in drawn if any(run.fields for run in part[1].runs)]
    shared = definitions(drawn)
    tasks = join(shared, overview(paths, figures) if paths else None, player(paths, figures) if paths else None)
    return [
        section("mazes", "Paths and subgoals", missing(groups, "episodes"), tasks, missing(groups, "subgoals")),
        section("fields", "Value fields", field_figures(fields, figures), missing(groups, "fields")),
    ]


Drawn = Sequence[tuple[int, Group, Plan]]


def definitions(drawn: Drawn) -> Markup:
    """Everything that is drawn more than once, hidden: mazes, and the value fields of every seed."""
    parts = []
    for g, group, plan in drawn:
        parts.append(tag("g", floor(plan), id=f"floor{g}"))
        parts.append(tag("g", walls(plan), id=f"walls{g}"))
        for r, run in enumerate(group.runs):
            for task, by_name in run.fields.items():
                for v, (name, field) in enumerate(by_name.items()):
                    low, high = field_limits(run.fields, name)
                    parts.append(tag("g", heat(plan, field, low, high), id=field_id(g, r, task, v)))
    return tag("svg", tag("defs", parts), width="0", height="0", style="position:absolute", aria_hidden="true")


def field_id(group: int, run: int, task: str, value: int) -> str:
    """Name of a value field's drawing in the page."""
    return f"f{group}-{run}-{task}-{value}"


def overview(drawn: Drawn, figures: Figures) -> Markup:
    """The five tasks of each group: one episode with its subgoals, the others faint."""
    rows = []
    for g, group, plan in drawn:
        run = next(run for run in group.runs if run.episodes)
        head = tag(
            "div",
            tag("span", tag("span", class_=f"swatch s{group.style}"), group.label, f", seed {run.seed}"),
            class_="row-head",
        )
        cells = [task_cell(g, group, plan, run, task.name) for task in plan.maze.tasks]
        rows.append(join(head, tag("div", cells, class_=f"mazes s{group.style}")))
    return figures(
        "Test episodes in the maze.",
        "Ring: start; star: goal. The strong line is the first recorded episode of the task, faint lines are others. "
        "Diamonds are subgoals that the high level chose, each joined to where the agent was when it chose it (the "
        "data state whose representation is nearest stands for it). Good subgoals lie ahead on the way, neither "
        "behind a wall nor at the goal from the outset. Choose a maze to play it below.",
        rows,
    )


def task_cell(g: int, group: Group, plan: Plan, run: Run, task: str) -> Markup:
    """One maze of the overview, a button for the player."""
    episodes = [episode for episode in run.episodes if episode.task == task]
    drawing = plan.svg(
        f"{group.label}, {task}",
        tag("use", href=f"#floor{g}"),
        [trail(plan, episode.path, "faint") for episode in episodes[1:]],
        [trail(plan, episode.path, "trail") for episode in episodes[:1]],
        tag("use", href=f"#walls{g}"),
        [part for episode in episodes[:1] if (part := subgoals(plan, episode)) is not None],
        ends(plan, task, episodes[0] if episodes else None),
    )
    reached = sum(episode.success for episode in episodes)
    told = f" · {reached} of {len(episodes)} reached" if episodes else " · not recorded"
    button = tag("button", drawing, class_="pick", data_task=task, type="button", aria_label=f"play {task}")
    return tag("div", button, tag("b", task.replace("task", "task ")), told, class_="cell")


def field_figures(drawn: Drawn, figures: Figures) -> Markup | None:
    """Heat maps: one row a group and value function, one column a task."""
    if not drawn:
        return None
    rows = []
    for g, group, plan in drawn:
        r, run = next((r, run) for r, run in enumerate(group.runs) if run.fields)
        names = list(next(iter(run.fields.values())))
        for v, name in enumerate(names):
            bar = colour_bar(*field_limits(run.fields, name), f"{name}(s, goal)")
            label = tag("span", tag("span", class_=f"swatch s{group.style}"), f"{group.label}, {name}, seed {run.seed}")
            cells = [
                tag(
                    "div",
                    plan.svg(
                        f"{name} for {task.name}",
                        tag("use", href=f"#{field_id(g, r, task.name, v)}"),
                        tag("use", href=f"#walls{g}"),
                        ends(plan, task.name),
                    ),
                    tag("b", task.name.replace("task", "task ")),
                    class_="cell",
                )
                for task in plan.maze.tasks
            ]
            rows.append(join(tag("div", label, bar, class_="row-head"), tag("div", cells, class_="mazes")))
    return figures(
        "What each value function believes about the way to the goal.",
        "Value of every place for the task's goal (star), dark = far, light = near; one scale a row. Follow the "
        "colours from the ring: they should brighten all the way along the corridors. A plain of one colour, or a "
        "bright patch behind a wall, is where the policy above it loses its direction.",
        rows,
    )


# --- player


def player(drawn: Drawn, figures: Figures) -> Markup:
    """The interactive replay; without scripts it stays hidden and the overview is all there is."""
    data = {"ramp": ramp(), "groups": [group_data(g, group, plan) for g, group, plan in drawn]}
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    blob = tag("script", Markup(text), type="application/json", id="episodes")
    return figures(
        "Replay.",
        "Drag the slider or press play: the agent (dot) drives, the diamond is its current subgoal, the ground is the"
        " value function chosen under the maze. The traces show each value along the path, scaled to its own range: a"
        " hierarchy works when the high level's value keeps rising even where the flat one wavers.",
        tag("div", class_="player", id="player", hidden=True),
        blob,
    )


def group_data(g: int, group: Group, plan: Plan) -> dict[str, Any]:
    """What the player needs of one group; coordinates in tenths of a pixel, paths as differences."""
    seeds = []
    for r, run in enumerate(group.runs):
        if not run.episodes:
            continue
        names = list(next(iter(run.fields.values()))) if run.fields else []
        seeds.append(
            {
                "seed": run.seed,
                "fields": [[name, *(round(x, 2) for x in field_limits(run.fields, name))] for name in names],
                "prefix": f"f{g}-{r}-",
                "tasks": {
                    task.name: [episode_data(plan, e) for e in run.episodes if e.task == task.name]
                    for task in plan.maze.tasks
                },
            }
        )
    return {
        "label": group.label,
        "style": group.style,
        "maze": g,
        "box": list(plan.view_box),
        "tasks": [task.name for task in plan.maze.tasks],
        "seeds": seeds,
    }


def episode_data(plan: Plan, episode: Episode) -> dict[str, Any]:
    """One episode as small integers."""
    points = np.round(plan.pixels(episode.path) * 10).astype(int)
    chosen = np.round(plan.pixels(episode.subgoals[:, 1:]) * 10).astype(int)
    return {
        "won": int(episode.success),
        "ends": ends(plan, episode.task, episode),
        "path": np.diff(points, axis=0, prepend=np.zeros((1, 2), dtype=int)).ravel().tolist(),
        "subgoals": np.column_stack([episode.subgoals[:, 0].astype(int), chosen]).tolist(),
        "values": {name: trace(value) for name, value in episode.values.items()},
    }


def trace(values: Array) -> list[int]:
    """At most TRACE_POINTS values scaled to 0 … 100."""
    every = np.unique(np.linspace(0, len(values) - 1, TRACE_POINTS).round().astype(int))
    low, high = float(values.min()), float(values.max())
    return np.round(100 * (values[every] - low) / ((high - low) or 1.0)).astype(int).tolist()
