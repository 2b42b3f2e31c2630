"""TextWorld's games: won by the package's own plan, scored step by step, compiled once whoever asks for them."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from importlib import metadata

import promises
import pytest

pytest.importorskip("textworld")

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds import _textworld_games
from echelon.language.worlds._textworld_games import FILE, SKILLS, compiled, games_dir, recipe
from echelon.language.worlds.textworld import TextWorld, plain, playable
from echelon.language.worlds.world import expert_episode, make, tasks

COIN, SIMPLE, COOKING = "coin-3", "simple-dense", "cooking-recipe1+take1+cook+cut"
UNKNOWN = "That's not a verb I recognise."


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """One folder of games for the whole session, so that each is compiled once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "textworld-games"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHELON_GAMES", str(folder))
        yield folder


def world(**options):
    """All tests share one game of each kind and split."""
    return make("textworld", games=1, **options)


def one(kind, split="train"):
    return tasks("textworld", split, 1, 0, [kind])[0]


def test_the_plan_wins_every_game_and_the_points_add_up():
    for kind, split in ((COIN, "train"), (SIMPLE, "train"), (COOKING, "train"), (COIN, "test")):
        shown = expert_episode(world(), one(kind, split))
        assert shown.solved and shown.reward == 1.0
        last = shown.turns[-1].after
        assert last.info["won"] and not last.info["lost"] and last.info["plan"] == () == last.admissible
        gained = [turn.after.info["gained"] for turn in shown.turns]
        assert sum(gained) == last.info["score"] == last.info["max_score"] and set(gained) <= {0, 1}
        assert all(turn.after.valid and turn.action in turn.before.admissible for turn in shown.turns)
        paid = expert_episode(world(points=1), one(kind, split))
        assert [turn.after.reward for turn in paid.turns] == [points / last.info["max_score"] for points in gained]
        assert abs(paid.reward - 1) < 1e-9


def test_the_plan_leads_on_after_slips():
    shown = [expert_episode(world(), one(kind), 0.3) for kind in (COIN, SIMPLE)]
    assert all(each.solved for each in shown) and any(turn.slip for each in shown for turn in each.turns)


def test_a_coin_game_in_full():
    play = world()
    first = play.reset(one(COIN))
    assert first.text.startswith("There is a coin in one of the rooms. Find it and take it!\n\n-= ")
    assert first.info["objective"] in first.text and first.info["max_score"] == 1
    assert first.state.endswith(" | You are carrying nothing.") and "\n>" not in first.text and "$" not in first.text
    assert len(first.info["plan"]) == 3 and first.info["plan"][-1] == "take coin"
    for action in first.info["plan"][:2]:
        seen = play.step(action)
        assert seen.text.startswith("-= ") and not seen.done and seen.text in seen.state
    end = play.step("take coin")
    assert (end.reward, end.terminated, end.info["score"]) == (1.0, True, 1)
    assert end.text.endswith("You scored 1 out of a possible 1, in 4 turns.") and "RESTART" not in end.text


def test_the_cook_reads_the_book_first_and_a_spoilt_meal_is_lost():
    play = world()
    shown = expert_episode(play, one(COOKING))
    actions = [turn.action for turn in shown.turns]
    assert actions.count("examine cookbook") == 1 and actions[-2:] == ["prepare meal", "eat meal"]
    book = shown.turns[actions.index("examine cookbook")].after
    assert "Ingredients:" in book.text and book.info["gained"] == 0
    cook = next(place for place, action in enumerate(actions) if action.startswith("cook "))
    for points, total in ((0, 0.0), (1, 0.0)):
        other = world(points=points)
        other.reset(one(COOKING))
        paid = [other.step(action) for action in (*actions[: cook + 1], actions[cook])]
        assert paid[-1].terminated and paid[-1].info["lost"] and not paid[-1].info["won"]
        assert abs(sum(seen.reward for seen in paid) - total) < 1e-9
        assert sum(seen.info["gained"] for seen in paid) == paid[-1].info["score"] > 0
        assert other.expert() is None


def test_what_is_not_understood_gets_the_games_answer_and_changes_nothing():
    play = world()
    first = play.reset(one(SIMPLE))
    told = {
        "fly": UNKNOWN,
        "quit": UNKNOWN,
        "open chest drawer. Undo": UNKNOWN,
        "tw-trace-actions": UNKNOWN,
        "\u00e9tudier\nla porte": UNKNOWN,
        "": "I beg your pardon?",
        "go": "You'll have to say which compass direction to go in.",
    }
    for action, answer in told.items():
        seen = play.step(action)
        assert (seen.text, seen.valid, seen.state, seen.reward) == (answer, False, first.state, 0.0)
        assert seen.admissible == first.admissible and seen.info["plan"] == first.info["plan"]
    assert play.step(" Examine   king-size  bed").valid  # other letters and blanks than in the list of commands
    assert play.step("inventory").text == "You are carrying nothing."


def test_commands_to_the_interpreter_are_kept_from_it():
    assert playable("  Go \n north ") == "Go north"
    assert playable("go north then UNDO") == playable("g") == playable("tw-print x") == "tw-unknown"
    assert playable("take quilt") == "take quilt" and playable("grab it") == "grab it"
    assert len(playable("a" * 500)) == 150


def test_a_text_without_what_belongs_to_the_terminal():
    raw = "\n\n   ____  __ \n  |    \\|  $$ \n  \\$$$ \n\nDo it!\n\n\n\n-= Attic =-\nDusty. \n\n>    -= Attic =-0/1"
    assert plain(raw) == "Do it!\n\n-= Attic =-\nDusty."
    over = "You win.\n\n\n     *** The End ***\n\n\nWould you like to RESTART, RESTORE or QUIT?\n> -= Attic =-1/2"
    assert plain(over) == "You win.\n\n*** The End ***"
    assert plain("a > b\n>") == "a > b" and plain("") == ""


def test_promises():
    made = [one(COIN), one(SIMPLE), one(COOKING)]
    promises.same_in_any_order(world(), world(), made)
    promises.restored(world(), world(), made[1], every=4)
    for place, task in enumerate(made):
        promises.admissible_is_valid(world(), task, 15, place)
    episodes = [expert_episode(world(), task) for task in made]
    promises.same_in_turns([world() for _ in episodes], episodes)


def test_another_process_makes_and_plays_the_same(tmp_path):
    promises.same_elsewhere(world(), [one(COOKING)], 0.1, {"games": 1}, {"ECHELON_GAMES": str(tmp_path)})
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_recipe_is_all_that_a_game_depends_on():
    game = recipe("coin-5", 3, "train", False)
    assert game.key == recipe("coin-5", 3, "test", False).key and game.settings == {"level": 5}
    others = [
        recipe("coin-6", 3, "train", False),
        recipe("coin-5", 4, "train", False),
        recipe("coin-5", 3, "train", True),
    ]
    others += [dataclasses.replace(game, version="0"), dataclasses.replace(game, format=0)]
    assert len({game.key, *(other.key for other in others)}) == 6
    simple = recipe("simple-sparse", 0, "test", True)
    assert simple.settings == {"rewards": "sparse", "goal": "detailed", "test": True} and simple.objective is None
    cooking = recipe("cooking-recipe2+take1+go6+open+cut", 0, "valid", False).settings
    assert {**cooking, "recipe_seed": 0, "drop": False} == cooking
    assert (cooking["recipe"], cooking["take"], cooking["go"]) == (2, 1, 6)
    assert (cooking["open"], cooking["cook"], cooking["cut"], cooking["split"]) == (True, False, True, "valid")
    assert len(SKILLS) == len(set(SKILLS)) == 640 and len(TextWorld.variants) == 640 + 90 + 3


def test_the_number_of_games_bounds_those_of_a_split(monkeypatch):
    made = []
    monkeypatch.setattr("echelon.language.worlds.textworld.compiled", lambda game: made.append(game.key) or 1 / 0)
    for games, expected in ((4, 4), (0, 40)):
        made.clear()
        for task in tasks("textworld", "train", 40, 0, [COIN]):
            with pytest.raises(ZeroDivisionError):
                make("textworld", games=games).reset(task)
        assert len(set(made)) == expected


def test_a_game_is_made_once_and_never_half(tmp_path, monkeypatch):
    monkeypatch.setenv("ECHELON_GAMES", str(tmp_path / "new" / "games"))
    game, calls = recipe(COIN, 1, "train", False), []

    def fail(_, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    def slow(_, file):
        calls.append(file)
        time.sleep(0.05)
        file.write_bytes(b"story")

    monkeypatch.setattr(_textworld_games, "_write", fail)
    with pytest.raises(OSError, match="disk full"):
        compiled(game)
    assert [path.name for path in games_dir().iterdir() if path.is_dir()] == []
    monkeypatch.setattr(_textworld_games, "_write", slow)
    threads = [threading.Thread(target=compiled, args=(game,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and (games_dir() / game.key / FILE).read_bytes() == b"story"
    (games_dir() / game.key / FILE).unlink()  # somebody tidied up
    assert compiled(game).read_bytes() == b"story" and len(calls) == 2


def test_misuse_is_refused_in_words(tmp_path, monkeypatch):
    for option, message in (({"games": -1}, "games is -1"), ({"points": 2}, "points is 2; it is 0 or 1")):
        with pytest.raises(UsageError, match=message):
            make("textworld", **option)
    assert make("textworld").expert() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ECHELON_GAMES", str(tmp_path / "file" / "games"))
    with pytest.raises(UsageError, match="export ECHELON_GAMES"):
        world().reset(one(COIN))
    impossible = dataclasses.replace(recipe(COIN, 0, "train", False), settings={"level": 300})
    monkeypatch.setattr(_textworld_games, "_MAX_DRAWS", 1)
    with pytest.raises(UsageError, match="choose another kind"):
        _textworld_games._made(impossible)

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_textworld_games.metadata, "version", absent)
    with pytest.raises(MissingExtra, match=r"echelon\[text\]"):
        world().reset(one(COIN))
