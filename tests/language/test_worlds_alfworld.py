"""The ALFWorld engine on synthetic scenes: the words of TextWorld's own environment, solvable games, exact states."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("alfworld")
pytest.importorskip("textworld")

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds import _alfworld_grammar, _alfworld_scenes, alfworld
from echelon.language.worlds._alfworld_engine import NOTHING, Play, game
from echelon.language.worlds._alfworld_scenes import CHANGES, GOALS, LAMP, Difficulty, draw, fits, library, shuts
from echelon.language.worlds.world import expert_episode, make, tasks

KINDS = list(GOALS)
USUAL = Difficulty()


def one(kind, index=0, split="train"):
    return tasks("alfworld", split, index + 1, 0, [kind])[index]


def reference(scene, names):
    """TextWorld's own PDDL environment, nothing cached, with a scene loaded."""
    import textworld
    from textworld.envs.pddl import PddlEnv

    env = PddlEnv(textworld.EnvInfos(admissible_commands=True, won=True))
    rules = library().grammar.replace("UNKNOWN GOAL", scene.sentence)
    env.load({"pddl_domain": library().domain, "grammar": rules, "pddl_problem": _alfworld_scenes.problem(scene)})
    for info in env._entity_infos.values():
        info.name = names[info.id].name
    return env


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_and_commands_are_those_of_textworld_and_its_plan_wins(kind):
    translated = game(kind, 11, True, USUAL)
    play, other = Play(translated), Play(game("clean", 3, False, USUAL))
    env = reference(translated.scene, translated.names)
    rng = np.random.default_rng(KINDS.index(kind))
    text, seen = play.start(), env.reset()
    other.start()
    plan = env._pddl_state.replan(env._entity_infos)
    script = [*plan, "dance", *[""] * 14]  # then whatever comes, also after the end
    for step, command in enumerate(script):
        assert text == seen.feedback
        assert list(play.commands) == seen["admissible_commands"]
        assert play.won == seen["won"] == (step == len(plan)) or step > len(plan)
        command = command or play.commands[int(rng.integers(len(play.commands)))]
        text, (seen, _, _) = play.act(command), env.step(command)
        if step % 3 == 0:  # another game in the same library, now and then
            other.act(other.commands[int(rng.integers(len(other.commands)))])
    facts = {str(fact) for fact in env._pddl_state.facts if "new-axiom" not in fact.name}
    assert {str(fact) for fact in play._facts.facts} == facts


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_solves_every_kind_in_known_and_unseen_rooms_also_after_slips(kind):
    world = make("alfworld", limit=60)
    for split in ("train", "test"):
        for task in tasks("alfworld", split, 3, 1, [kind]):
            clean = expert_episode(world, task)
            assert clean.solved and len(clean.turns) <= 30 and clean.reward == 1.0
            assert expert_episode(world, task, corruption=0.3).solved


def phases(kind, index=0):
    world = make("alfworld")
    turns = expert_episode(world, one(kind, index)).turns
    named = [turn.before.info["phase"] for turn in turns]
    return turns, [named[0], *(after for before, after in pairwise(named) if after != before)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("place", ["find {}", "put {}"]),
        ("heat", ["find {}", "heat {}", "put {}"]),
        ("cool", ["find {}", "cool {}", "put {}"]),
        ("clean", ["find {}", "clean {}", "put {}"]),
        ("two", ["find {}", "put {}", "find second {}", "put second {}"]),
    ],
)
def test_the_expert_names_its_phases(kind, expected):
    turns, named = phases(kind)
    target = draw(kind, one(kind).seed, True, USUAL).target.lower()
    assert named == [phase.format(target) for phase in expected]
    assert turns[-1].after.info["phase"] == "done"
    assert turns[-1].after.info["won"]


def test_looking_ends_with_the_lamp():
    for index in range(3):
        turns, named = phases("look", index)
        target = draw("look", one("look", index).seed, True, USUAL).target.lower()
        assert named in ([f"find {target}", "use desklamp"], [f"find {target}", "find desklamp", "use desklamp"])
        assert turns[-1].action == "use desklamp 1"


def test_a_game_in_full():
    world = make("alfworld")
    task = one("heat")
    first = world.reset(task)
    assert first.text.startswith("You are in the middle of a room. Looking quickly around you, you see a ")
    assert first.text.endswith(f"\n\nYour task is to: {first.info['task']}.")
    assert first.state == "at the middle: nothing; holding nothing"
    assert (first.reward, first.done, first.valid) == (0, False, True)
    assert "help" not in first.admissible and "inventory" in first.admissible
    scene = draw("heat", task.seed, True, USUAL)
    start, appliance, goal = scene.where[f"{scene.target.lower()} 1"], "microwave 1", scene.of_type(scene.place)[0]
    target = f"{scene.target.lower()} 1"
    actions = [f"go to {start}", *([f"open {start}"] if shuts(scene.receptacles[start]) else [])]
    actions += [f"take {target} from {start}"] + ([f"go to {appliance}"] if start != appliance else [])
    actions += [f"heat {target} with {appliance}"]
    for action in actions:
        seen = world.step(action)
        assert seen.valid and action not in (seen.text, seen.state)
    assert seen.text == f"You heat the {target} using the {appliance}."
    assert seen.state.endswith(f"; holding {target} hot")
    assert seen.info["phase"] == f"put {scene.target.lower()}"
    world.step(f"go to {goal}")
    if shuts(scene.place):
        world.step(f"open {goal}")
    end = world.step(f"move {target} to {goal}")
    assert (end.reward, end.terminated, end.truncated, world.expert()) == (1.0, True, False, None)
    with pytest.raises(UsageError, match="after the end"):
        world.step("look")


def test_the_state_is_what_can_be_seen_and_the_room_is_everything():
    world = make("alfworld", limit=100, rooms=["kitchen"])
    task = one("heat")
    start = world.reset(task)
    for action in ("look", "inventory", "help", "fly away", " look "):  # nothing of this changes anything
        same = world.step(action)
        assert (same.state, same.info["room"], same.valid) == (start.state, start.info["room"], action != "fly away")
    assert world.step("fly away").text == NOTHING
    shut = world.step("go to fridge 1")
    assert shut.state == "at fridge 1: closed; holding nothing"
    opened = world.step("open fridge 1")
    assert opened.state.startswith("at fridge 1: ") and "closed" not in opened.state
    elsewhere = world.step("go to microwave 1")
    assert elsewhere.state == "at microwave 1: closed; holding nothing"
    world.restore(task, ("go to microwave 1",))
    direct = world._seen
    assert direct.state == elsewhere.state  # the open fridge cannot be seen from here
    assert direct.info["room"] != elsewhere.info["room"]
    again = world.restore(task, ("look", "go to fridge 1", "open fridge 1", "inventory", "go to microwave 1"))
    assert (again.state, again.info["room"]) == (elsewhere.state, elsewhere.info["room"])


def test_worlds_that_take_turns_are_as_if_alone():
    alone = [expert_episode(make("alfworld"), one(kind, 1), 0.3) for kind in KINDS]
    worlds = [make("alfworld") for _ in KINDS]
    for world, episode in zip(worlds, alone, strict=True):
        assert world.reset(episode.task) == episode.turns[0].before
    for step in range(max(len(episode.turns) for episode in alone)):
        for world, episode in zip(worlds, alone, strict=True):
            if step < len(episode.turns):
                assert world.step(episode.turns[step].action) == episode.turns[step].after


def test_a_snapshot_is_restored_with_what_the_expert_knows():
    world, other = make("alfworld"), make("alfworld")
    task = one("two", 1)
    turns = expert_episode(world, task).turns
    middle = len(turns) // 2
    seen = other.restore(task, tuple(turn.action for turn in turns[:middle]))
    assert seen == turns[middle].before
    assert other.expert() == turns[middle].action
    assert other.snapshot() == tuple(turn.action for turn in turns[:middle])


def test_the_step_limit_truncates():
    world = make("alfworld", limit=3)
    world.reset(one("clean"))
    seen = [world.step("look") for _ in range(3)]
    assert [each.truncated for each in seen] == [False, False, True]
    assert not seen[-1].terminated and world.expert() is None


WALK = """
import json, sys
from echelon.language.worlds.world import expert_episode, make, tasks
world = make("alfworld")
found = []
for task in tasks("alfworld", "test", 6, 5):
    turns = expert_episode(world, task, 0.2).turns
    found.append([[t.before.text, t.before.admissible, t.before.state, t.before.info["room"], t.action] for t in turns])
print(json.dumps([found, sys.argv]))
"""


def test_another_process_plays_the_same_says_nothing_and_leaves_nothing(tmp_path):
    env = {**os.environ, "PYTHONHASHSEED": "123", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "default", "-c", WALK, "--its", "own arguments"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True)
    found, arguments = json.loads(done.stdout)
    assert arguments == ["-c", "--its", "own arguments"]
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    world = make("alfworld")
    for task, there in zip(tasks("alfworld", "test", 6, 5), found, strict=True):
        turns = expert_episode(world, task, 0.2).turns
        here = [(t.before.text, t.before.admissible, t.before.state, t.before.info["room"], t.action) for t in turns]
        assert [(text, tuple(commands), *rest) for text, commands, *rest in there] == here


@settings(max_examples=150)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**48 - 1),
    st.booleans(),
    st.builds(Difficulty, st.integers(6, 30), st.integers(0, 40), st.sampled_from([0.0, 0.5, 1.0])),
)
def test_every_seed_makes_a_sound_scene(kind, seed, training, difficulty):
    scene = draw(kind, seed, training, difficulty)
    assert scene == draw(kind, seed, training, difficulty)
    assert len(scene.receptacles) <= difficulty.receptacles
    wanted = scene.of_type(scene.target)
    assert len(wanted) == (2 if kind == "two" else 1)
    assert len(scene.objects) - len(wanted) - (kind == "look") <= difficulty.distractors
    assert set(scene.where) == set(scene.objects)
    assert all(fits(scene.objects[name], scene.receptacles[place]) for name, place in scene.where.items())
    if kind == "look":
        assert scene.of_type(LAMP) == ["desklamp 1"]
    else:
        assert scene.of_type(scene.place) and fits(scene.target, scene.place)
        assert all(scene.receptacles[scene.where[name]] != scene.place for name in wanted)
    if kind in CHANGES:
        assert scene.of_type(CHANGES[kind][0])
    choices = {
        shuts(r) for r in scene.receptacles.values() if fits(scene.target, r) and (kind == "look" or r != scene.place)
    }
    if difficulty.closed != 0.5 and len(choices) == 2:
        assert shuts(scene.receptacles[scene.where[wanted[0]]]) == bool(difficulty.closed)


def test_splits_are_of_different_rooms_and_a_room_stays_the_same():
    rooms: dict[int, set[tuple[str, ...]]] = {}
    plans = {}
    for split in ("train", "valid", "test"):
        drawn = [draw(t.kind, t.seed, t.split != "test", USUAL) for t in tasks("alfworld", split, 240, 0)]
        plans[split] = {scene.plan for scene in drawn}
        for scene in drawn:
            rooms.setdefault(scene.plan, set()).add(tuple(scene.receptacles))
    assert all(len(layouts) == 1 for layouts in rooms.values())
    assert not plans["train"] & plans["test"] and not plans["valid"] & plans["test"]
    assert len(plans["train"]) > 60 and len(plans["test"]) > 15
    assert set(alfworld.SEEN_KINDS).isdisjoint(alfworld.HELD_OUT_KINDS)
    assert {*alfworld.SEEN_KINDS, *alfworld.HELD_OUT_KINDS} <= set(KINDS)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"receptacles": 5}, "place", "at least 6"),
        ({"distractors": -1}, "place", "distractors is -1"),
        ({"closed": 1.5}, "place", "closed is 1.5"),
        ({"rooms": []}, "place", "no rooms"),
        ({"rooms": ["attic"]}, "place", "unknown room 'attic'"),
        ({"rooms": ["bathroom"]}, "heat", "no goal of kind 'heat' exists in the rooms bathroom"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, kind, message):
    with pytest.raises(UsageError, match=message):
        make("alfworld", **options).reset(one(kind))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(_alfworld_scenes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"echelon\[text\]"):
        library.__wrapped__()


def test_the_grammar_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="unknown form"):
        _alfworld_grammar.compiled("__import__('os').getcwd()")
