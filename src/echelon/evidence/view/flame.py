"""The section of recorded episodes: a picker, the flame graph of one, the world beside it, and a panel of a decision.

The page carries columns (`timeline`); `flame.js` draws what is visible of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from echelon.evidence.view.layout import Figures, Section, missing, section
from echelon.evidence.view.markup import Markup, tag
from echelon.evidence.view.mazes import Plan, floor, walls
from echelon.evidence.view.played import plan_of
from echelon.evidence.view.runs import Group, Run
from echelon.evidence.view.svg import ramp
from echelon.evidence.view.timeline import Timeline, packed

DIVERGING = ("#0b5394", "#5a94c6", "#b9d3e8", "#e9e6df", "#f3cda6", "#dc8a3e", "#a04a00")
"""Negative to positive: blue and orange, which all forms of colour blindness tell apart."""
DARK = ("#7cc0f5", "#4a8cc4", "#2f5675", "#2e3339", "#6e4a2a", "#b9722f", "#f2a35e")
"""The same on dark paper: what is close to zero stays close to the paper."""


def flame_section(groups: Sequence[Group], figures: Figures) -> Section | None:
    """Section "Episodes" of everything that was recorded, None where nothing can be."""
    shown = [group for group in groups if any(run.timelines for run in group.runs)]
    absent = missing(groups, "played")
    if not shown:
        return section("recorded", "Episodes", absent)
    plans: list[Markup] = []
    documents: list[dict[str, Any]] = []
    for group in shown:
        plan = plan_of(group.env) or group.maze
        board = Plan(plan) if plan is not None else None
        number = None
        if board is not None:
            number = len(plans)
            plans.append(tag("g", tag("g", floor(board)), tag("g", walls(board)), id=f"plan{number}"))
        documents += [run_document(group, run, board, number) for run in group.runs if run.timelines]
    told = {"colours": {"diverging": DIVERGING, "dark": DARK, "sequential": ramp()}, "runs": documents}
    hidden = tag("svg", tag("defs", plans), width="0", height="0", style="position:absolute", aria_hidden="true")
    return section("recorded", "Episodes", explorer(figures, hidden, told), absent)


def explorer(figures: Figures, plans: Markup, told: dict[str, Any]) -> Markup:
    """The figure that `flame.js` fills."""
    noscript = tag("noscript", tag("p", "The episodes are drawn by a script of this page.", class_="note"))
    return figures(
        "Recorded episodes, level by level.",
        "Time runs to the right; a row is a level, a box a decision for as long as it held, and marks are told below. "
        "Wheel, buttons or + and − zoom, dragging or Shift with an arrow key pans, a click or the arrow keys choose a "
        "decision: the panel tells what was seen, decided, how it ended and how its advantage came about, term by "
        "term. The address in the browser leads back to the episode and the decision.",
        plans,
        tag("div", class_="flame", id="flame", hidden=True),
        noscript,
        tag("script", Markup(as_script(told)), type="application/json", id="timelines"),
    )


def run_document(group: Group, run: Run, plan: Plan | None, number: int | None) -> dict[str, Any]:
    """What the page needs of the episodes of one run."""
    return {
        "label": f"{group.label}, seed {run.seed}",
        "style": group.style,
        "plan": None if plan is None else {"id": f"plan{number}", "box": list(plan.view_box)},
        "strings": run.strings.all,
        "episodes": [episode_document(one, plan) for one in run.timelines],
    }


def episode_document(one: Timeline, plan: Plan | None) -> dict[str, Any]:
    """One episode, its path in pixels of the plan."""
    told = one.document()
    if one.path is not None and plan is not None:
        told["path"] = packed(plan.pixels(one.path).astype("f4").ravel())
        places = plan.pixels(one.subgoals[:, 1:]) if len(one.subgoals) else one.subgoals[:, 1:]
        told["subgoals"] = [[float(t), *place] for t, place in zip(one.subgoals[:, 0], places.tolist(), strict=True)]
    else:
        told["path"], told["subgoals"] = None, []
    return told


def as_script(told: Any) -> str:
    """JSON that no text in it can leave: nothing in it opens or closes an element."""
    text = json.dumps(told, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
