"""The scripted planner and executor of CoDA in TextCraft, both from the commands that the world's expert still has.

Each knows what its context tells and no more. The planner keeps a stack: it begins with the goal, puts on what a result
says is needed, takes off what is done. The executor looks at the recipe of its task: what is to be found it gets, what
is to be crafted first it reports as needed, and with everything at hand it crafts. In a world without recipes the
planner hands on the goal, and the executor acts until the world ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil

from echelon.language.worlds.world import Observation

NEED, DONE, UNFINISHED, NEEDLESS = "need ", "done", "unfinished", "not needed"
"""Results: what is needed first; the task is done; the executor gave none; the expert no longer goes this way."""

MOST = 64
"""The largest amount that is got at once."""

_AMOUNT = re.compile(r"(\d{1,6}) (.+)")
_CRAFT = re.compile(r"craft (\d+) (.+?) using (.+)")
_TASK = re.compile(r"craft (\d{1,6}) (.+)")

Amount = tuple[int, str]
History = Sequence[tuple[str, str]]
"""(task, result) of the planner's turns so far."""


def write(tag: str, text: str) -> str:
    """A block."""
    return f"<{tag}>{text}</{tag}>"


def amount_of(task: str) -> Amount | None:
    """How many of which item are to be in the inventory when the task is done; None for another kind of task."""
    found = _TASK.fullmatch(task)
    return None if found is None else (int(found[1]), found[2])


def first_task(seen: Observation, goal: str) -> str:
    """The task that is the goal itself: `goal` is the line that names it."""
    return f"craft 1 {seen.info['goal']}" if "plan" in seen.info else goal


def assign(first: str, history: History, action: str = "") -> str:
    """The planner's turn; the world's expert `action` is not its business."""
    waiting = [first]
    for _, result in history:
        if result.startswith(NEED):
            waiting.append(f"craft {result.removeprefix(NEED)}")
        elif result != UNFINISHED and len(waiting) > 1:
            waiting.pop()
    return write("task", waiting[-1])


def carry_out(task: str, seen: Observation, action: str) -> str:
    """The executor's turn; an `action` that is not the world's expert's is a slip, and done."""
    wanted, steps = amount_of(task), seen.info.get("plan", ())
    if wanted is None or steps[:1] != (action,):
        return write("action", action)
    return _next(wanted, steps, seen.info["inventory"])


def _next(wanted: Amount, steps: Sequence[str], inventory: Mapping[str, int]) -> str:
    """What to do, or to answer, for so many of an item."""
    count, item = wanted
    missing = count - inventory.get(item, 0)
    if missing <= 0:
        return write("answer", DONE)
    crafts = {found[2]: found for step in reversed(steps) if (found := _CRAFT.fullmatch(step))}
    if item not in crafts:
        return write("answer", NEEDLESS)
    times = ceil(missing / int(crafts[item][1]))
    for amount in crafts[item][3].split(", "):
        found = _AMOUNT.fullmatch(amount)
        assert found is not None
        needed, name = times * int(found[1]), found[2]
        lacking = needed - inventory.get(name, 0)
        if lacking > 0 and name in crafts:
            return write("answer", f"{NEED}{needed} {name}")
        if lacking > 0:
            return write("action", f"get {min(lacking, MOST)} {name}")
    return write("action", crafts[item][0])
