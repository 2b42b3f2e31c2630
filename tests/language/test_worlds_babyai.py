"""BabyAI in words: what is told is what is there, the bot as expert, games that belong to one split."""

from __future__ import annotations

import re

import numpy as np
import promises
import pytest

pytest.importorskip("minigrid")

from echelon.errors import UsageError
from echelon.language.worlds import babyai
from echelon.language.worlds.babyai import ACTIONS, BabyAI, _Adviser, _Lost, _Stack
from echelon.language.worlds.world import SPLITS, Task, expert_episode, make, tasks

LINE = re.compile(r"You see an? ([a-z ]+?) ((?:\d+ steps? (?:forward|left|right)(?: and )?)+)\.")


def test_the_kinds_are_the_packages_levels():
    import gymnasium

    names = {match[1] for match in map(re.compile(r"BabyAI-(\w+)-v\d").fullmatch, gymnasium.registry) if match}
    unplayable = {"PutNextS5N2Carrying", "PutNextS6N3Carrying", "PutNextS7N4Carrying", "KeyInBox"}
    assert set(BabyAI.variants) == {name for name in names if "Debug" not in name} - unplayable
    assert set(BabyAI.kinds) <= set(BabyAI.variants) and len(set(BabyAI.variants)) == len(BabyAI.variants)


def test_the_expert_solves_twenty_games_and_recovers_from_slips():
    world = make("babyai")
    shown = [expert_episode(world, task) for task in tasks("babyai", "test", 20, 0)]
    assert all(one.solved and one.reward == 1.0 for one in shown)
    assert all(turn.after.valid for one in shown for turn in one.turns)
    patient = make("babyai", limit=200)
    slipped = [
        expert_episode(patient, task, 0.2) for task in tasks("babyai", "train", 8, 1, ["GoToLocal", "PickupLoc"])
    ]
    assert sum(one.solved for one in slipped) >= 7 and any(turn.slip for turn in slipped[0].turns)


def seen_things(world, text):
    """Places and things of a text, in the package's coordinates."""
    env = world._env
    found = {}
    for thing, where in LINE.findall(text):
        steps = {way: int(count) for count, way in re.findall(r"(\d+) steps? (forward|left|right)", where)}
        right = steps.get("right", 0) - steps.get("left", 0)
        place = np.array(env.agent_pos) + steps.get("forward", 0) * env.dir_vec + right * env.right_vec
        found[tuple(int(x) for x in place)] = thing
    return found


@pytest.mark.parametrize("kind", ["GoToLocal", "UnlockPickup", "OpenDoor"])
def test_what_is_told_is_there_and_everything_seen_is_told(kind):
    world, rng = make("babyai", limit=60), np.random.default_rng(0)
    for task in tasks("babyai", "train", 2, 0, [kind]):
        seen = world.reset(task)
        while not seen.done:
            env, found = world._env, seen_things(world, seen.text)
            for place, thing in found.items():
                cell = env.grid.get(*place)
                assert cell.type in thing and (cell.type == "wall" or cell.color in thing)
                if cell.type == "door":
                    assert thing.split()[0] == ("open" if cell.is_open else "locked" if cell.is_locked else "closed")
            for column, row in ((i, j) for i in range(env.width) for j in range(env.height)):
                cell = env.grid.get(column, row)
                if cell is not None and cell.type != "wall" and (column, row) != tuple(env.agent_pos):
                    assert env.in_view(column, row) >= ((column, row) in found)
                    visible = env.in_view(column, row) and env.agent_sees(column, row)
                    assert visible == ((column, row) in found) or cell.type == "door"
            seen = world.step(seen.admissible[int(rng.integers(len(seen.admissible)))])


def test_what_is_admissible_changes_the_game_and_nothing_else_does():
    world, rng = make("babyai", limit=80), np.random.default_rng(1)
    for task in tasks("babyai", "train", 3, 2, ["UnlockPickup", "GoToLocal", "PutNextLocal"]):
        seen = world.reset(task)
        while not seen.done:
            action = list(ACTIONS)[int(rng.integers(6))]
            after = world.step(action)
            assert after.valid == (action in seen.admissible)
            assert (after.info["grid"] != seen.info["grid"]) == after.valid
            assert after.text.startswith("Nothing happens.") == (not after.valid)
            seen = after


def test_a_game_in_full():
    world = make("babyai")
    (task,) = tasks("babyai", "train", 1, 0, ["UnlockPickup"])
    shown = expert_episode(world, task)
    first, last = shown.turns[0].before, shown.turns[-1].after
    assert first.text == f"Your mission: {first.info['mission']}.\n{first.state}"
    assert first.info["mission"].startswith("pick up the ") and first.info["carrying"] == ""
    assert last.terminated and last.info["won"] and "The mission is done." in last.text and last.admissible == ()
    assert 0.1 < last.info["score"] < 1 and first.info["score"] == 0
    carried = [turn.after for turn in shown.turns if turn.after.info["carrying"].endswith("key")]
    assert carried and all(f"You carry a {one.info['carrying']}." in one.text for one in carried)


def test_words_that_are_no_action_get_the_list_of_actions():
    world = make("babyai")
    (task,) = tasks("babyai", "train", 1, 0)
    before = world.reset(task)
    seen = world.step("jump over\nthe wall")
    assert seen.text.startswith("'jump over the wall' is not an action. Actions: turn left, turn right, go forward")
    assert (seen.valid, seen.state, seen.info["grid"]) == (False, before.state, before.info["grid"])
    assert world.step(" Turn  LEFT ").valid
    assert world.expert() is not None


def test_the_limit_is_ours():
    world = make("babyai", limit=100)
    (task,) = tasks("babyai", "train", 1, 0, ["GoToObjS4"])
    world.reset(task)
    seen = [world.step("drop") for _ in range(100)]  # the package would stop after 16
    assert [one.truncated for one in seen] == [False] * 99 + [True]
    assert world.expert() is None


def test_a_game_belongs_to_one_split():
    world = make("babyai")
    games = {}
    for split in SPLITS:
        shown = [world.reset(task) for task in tasks("babyai", split, 60, 0, ["GoToRedBallNoDists", "GoToObjS4"])]
        games[split] = {(one.info["grid"], one.info["mission"]) for one in shown}
        assert len(games[split]) > 30
    assert not games["train"] & games["valid"] and not games["train"] & games["test"]
    assert not games["valid"] & games["test"]


def test_a_bot_that_plans_for_ever_is_given_up(monkeypatch):
    class Endless:
        def __init__(self, env):
            self.stack = []

        def replan(self, action):
            while True:
                self.stack.append("again")

    monkeypatch.setattr("minigrid.utils.baby_ai_bot.BabyAIBot", Endless)
    assert _Adviser("GoToObj", 3).advice([]) is None
    stack = _Stack([1])
    stack.left = 1
    stack.append(2)
    with pytest.raises(_Lost):
        stack.append(3)


def test_promises():
    made = tasks("babyai", "valid", 5, 3)
    promises.same_in_any_order(make("babyai"), make("babyai"), made)
    promises.restored(make("babyai"), make("babyai"), made[1], every=3)
    promises.admissible_is_valid(make("babyai"), made[4], 40, 0)
    episodes = [expert_episode(make("babyai"), task) for task in made]
    promises.same_in_turns([make("babyai") for _ in episodes], episodes)
    promises.same_elsewhere(make("babyai"), made[:3], 0.2, {}, {})


def test_misuse_is_refused_in_words(monkeypatch):
    with pytest.raises(UsageError, match="did you mean GoToLocal"):
        make("babyai").reset(Task("babyai", "GotoLocal", 0, 0, "train"))
    assert make("babyai").expert() is None
    monkeypatch.setattr(babyai, "MAX_DRAWS", 0)
    with pytest.raises(UsageError, match="has no game for the split 'train'"):
        make("babyai").reset(Task("babyai", "GoToLocal", 0, 0, "train"))
