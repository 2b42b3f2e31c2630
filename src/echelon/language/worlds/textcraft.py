"""TextCraft: craft an item of Minecraft from a list of recipes, by text commands (Prasad et al., arXiv 2311.05772).

The commands, their rules and every sentence shown are those of the package `textcraft` (0.0.3). The games are made
here (see `_crafting` for why): a goal item, all recipes that can take part in making it, and a chosen number of
distractors, in random order. Commands: `get 2 oak logs`, `craft 4 oak planks using 1 oak logs`, `inventory`. The reward
is 1 when the goal has been crafted, and the episode ends there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from echelon.errors import UsageError
from echelon.language.worlds._crafting import Kitchen, Names, new_game, plan, recipe_book
from echelon.language.worlds.world import BaseWorld, Observation, Task, split_seed

COUNTS = (0, 10, 30, 100)
"""Numbers of distractors that a kind can name."""
MAX_DIGITS = 6
"""Commands with a longer number are refused: Python will not read one of thousands of digits."""


class TextCraft(BaseWorld):
    """The world; kinds are the crafting depths of the goal, splits have different goal items.

    A kind such as `depth2-30` has 30 distractors, whatever the option says. Kinds of one depth have the same goals in
    the same places of their lists, so that what the number of distractors does is seen on the same goals.

    `Task.index` is the goal's place in `goals(kind)`; `Task.seed` draws the distractors and the order of the recipes.
    `Observation.info` has `goal`, `inventory` {item: count}, `phase`, what the expert crafts next ("craft stick", or
    "done" at the end), `plan`, its commands from here on, and, at a reset, `recipes` (as shown), `depth` and `needed`
    (number of recipes that are no distractors). `state` is the goal with the inventory.
    """

    name: ClassVar[str] = "textcraft"
    kinds: ClassVar[tuple[str, ...]] = ("depth1", "depth2", "depth3", "depth4")
    variants: ClassVar[tuple[str, ...]] = tuple(f"{depth}-{count}" for depth in kinds for count in COUNTS)

    def __init__(self, distractors: int = 10, limit: int = 40, renamed: int = 0):
        """`distractors`: recipes shown beside those needed; those that share an ingredient with them come first.

        `renamed`: 1 for games in which every item is called by one word, drawn anew for each game, and recipes name one
        item in the place of a group. What is made of what can then be read, and not be remembered.
        """
        super().__init__(limit)
        if distractors < 0:
            raise UsageError(f"distractors is {distractors}; it is a number of recipes")
        if renamed not in (0, 1):
            raise UsageError(f"renamed is {renamed}; it is 0 or 1")
        self.distractors, self.renamed = distractors, renamed
        self._env = new_game()
        self._book = recipe_book()
        self._goal = ""
        self._kitchen = Kitchen((), {}, ())
        self._plan: tuple[str, ...] = ()
        self._names = Names({})

    @classmethod
    def tasks(cls, split: str, count: int, seed: int, kinds: Sequence[str]) -> list[Task]:
        """The kinds in turn; every goal of the split and kind once, in random order, before any comes again."""
        made: list[Task] = []
        pools = {kind: goals(kind, split) for kind in kinds}
        orders: dict[tuple[str, int], np.ndarray] = {}
        for number in range(count):
            kind = kinds[number % len(kinds)]
            turn, place = divmod(number // len(kinds), len(pools[kind]))
            if (kind, turn) not in orders:
                rng = np.random.default_rng(split_seed(split, cls.name, _parts(kind)[0], seed, turn))
                orders[kind, turn] = rng.permutation(len(pools[kind]))
            index = goals(kind).index(pools[kind][orders[kind, turn][place]])
            made.append(Task(cls.name, kind, index, split_seed(split, cls.name, kind, seed, number, "game"), split))
        return made

    def plan(self, item: str | None = None, count: int = 1) -> tuple[str, ...] | None:
        """The expert's commands from here to `count` more of `item` (default: the goal); None if it knows no way."""
        steps = self._way(self._names.real(item) if item else self._goal, count)
        return None if steps is None else tuple(map(self._names.shown, steps))

    def _way(self, item: str, count: int) -> list[str] | None:
        return plan(self._kitchen, item, count, self._inventory())

    def expert(self) -> str | None:
        """Next command of the recursive plan; planned anew when something else was done."""
        if self._seen.done:
            return None
        steps = self._steps()
        return self._names.shown(steps[0]) if steps else None

    def _steps(self) -> tuple[str, ...]:
        """The rest of the plan, made anew if there is none."""
        if not self._plan:
            self._plan = tuple(self._way(self._goal, 1) or ())
        return self._plan

    def _phase(self) -> str:
        """What the expert's next crafting step is for."""
        crafted = [step.split(" using ")[0].split(" ", 2)[2] for step in self._steps() if step.startswith("craft ")]
        return f"craft {crafted[0] if crafted else self._goal}"

    def _start(self, task: Task) -> Observation:
        known = goals(task.kind)
        if not 0 <= task.index < len(known):
            raise UsageError(f"task index is {task.index}; {task.kind} of textcraft has {len(known)} goals")
        rng = np.random.default_rng(task.seed)
        self._goal, self._plan = known[task.index], ()
        needed = self._book.needed(self._goal)
        if self.renamed:
            needed = self._book.plainly(needed, self._goal)
        related = self._book.related(needed)
        near = {*needed, *related}
        others = [recipe for recipe in self._book.recipes if recipe not in near]
        pool = [related[i] for i in rng.permutation(len(related))] + [others[i] for i in rng.permutation(len(others))]
        count = _parts(task.kind)[1]
        if self.renamed:
            pool = [recipe for recipe in dict.fromkeys(self._book.plain[r] for r in pool) if recipe not in near]
        shown = [*needed, *pool[: self.distractors if count is None else count]]
        shown = [shown[i] for i in rng.permutation(len(shown))]
        members = {tag: tuple(rng.permutation(items).tolist()) for tag, items in self._book.members.items()}
        self._kitchen = Kitchen(tuple(shown), members, self._book.depth)
        self._env.goal, self._env.inventory = _item_id(self._goal), {}
        if self.renamed:
            here = dict.fromkeys(name for r in shown for name in (r.output, *(item for item, _ in r.inputs)))
            words = self._book.words
            if len(here) > len(words):
                raise UsageError(f"{len(here)} items, and only {len(words)} names for them: show fewer distractors")
            self._names = Names(dict(zip(here, (words[i] for i in rng.permutation(len(words))), strict=False)))
        told = tuple(self._names.recipe(recipe) for recipe in shown)
        lines = "\n".join(told)
        more = {"recipes": told, "depth": self._book.depth[self._goal], "needed": len(needed)}
        goal = self._names.name(self._goal)
        return self._observe(f"Crafting commands:\n{lines}\n\nGoal: craft {goal}.", more=more)

    def _act(self, action: str) -> Observation:
        if re.search(rf"[0-9]{{{MAX_DIGITS + 1},}}", action):
            text, reward, terminated = f"Could not execute {action}", 0.0, False
        else:
            action = self._names.real(action)
            text, reward, terminated, _, _ = self._env.step(action)
            text = self._names.shown(text)
        self._plan = self._plan[1:] if self._plan[:1] == (action,) else ()
        valid = not text.startswith(("Could not", "Wrong item format"))
        return self._observe(text, reward=float(reward), terminated=terminated, valid=valid)

    def _observe(
        self,
        text: str,
        reward: float = 0.0,
        terminated: bool = False,
        valid: bool = True,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Observation:
        inventory, names = self._inventory(), self._names
        goal, has = names.name(self._goal), {names.name(item): count for item, count in inventory.items()}
        held = ", ".join(f"{count} {item}" for item, count in sorted(has.items()))
        finds = [
            f"get {count} {names.name(item)}" for item, counts in self._kitchen.amounts.items() for count in counts
        ]
        crafts = map(names.shown, self._kitchen.crafts(inventory))
        admissible = () if terminated else ("inventory", *crafts, *finds)
        phase = "done" if terminated else names.shown(self._phase())
        steps = () if terminated else tuple(map(names.shown, self._steps()))
        info = {"goal": goal, "inventory": has, "phase": phase, "plan": steps, **more}
        return Observation(text, admissible, f"{goal} | {held}", reward, terminated, valid=valid, info=info)

    def _inventory(self) -> dict[str, int]:
        return {_item_name(item): count for item, count in self._env.inventory.items() if count > 0}


@cache
def goals(kind: str, split: str | None = None) -> tuple[str, ...]:
    """The goal items of one depth, or those of them that belong to a split: three fifths, one fifth and one fifth."""
    depth = int(_parts(kind)[0].removeprefix("depth"))
    items = [item for item, at in recipe_book().depth.items() if at == depth]
    items.sort(key=lambda item: hashlib.blake2b(item.encode(), digest_size=8).digest())
    if split is None:
        return tuple(items)
    of_place = ("test", "train", "valid", "train", "train")
    return tuple(item for place, item in enumerate(items) if of_place[place % len(of_place)] == split)


def _parts(kind: str) -> tuple[str, int | None]:
    """The crafting depth of a kind, and the number of distractors if it names one."""
    depth, _, count = kind.partition("-")
    return depth, int(count) if count else None


def _item_id(name: str) -> str:
    return "minecraft:" + name.replace(" ", "_")


def _item_name(item_id: str) -> str:
    return item_id.removeprefix("minecraft:").replace("_", " ")
