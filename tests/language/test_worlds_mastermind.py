"""Mastermind: pegs counted by hand and by a slow reference, an expert that contradicts no answer, bad guesses."""

from __future__ import annotations

import itertools
import random
import sys

import numpy as np
import promises
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("textarena")

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds import mastermind
from echelon.language.worlds.mastermind import Mastermind, answers, codes
from echelon.language.worlds.world import SPLITS, Task, expert_episode, make, tasks


def pegs(code, guess):
    """The rules, literally: black pegs first, then what is left, one for one."""
    rest = [(c, g) for c, g in zip(code, guess, strict=True) if c != g]
    left, white = [c for c, _ in rest], 0
    for _, digit in rest:
        if digit in left:
            left.remove(digit)
            white += 1
    return len(code) - len(rest), white


def told(kind, code, guess):
    place = codes(kind).index(tuple(code))
    black, white = answers(kind, guess)
    return int(black[place]), int(white[place])


@pytest.mark.parametrize(
    ("code", "guess", "expected"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), (4, 0)),
        ((1, 2, 3, 4), (4, 3, 2, 1), (0, 4)),
        ((1, 1, 2, 3), (1, 4, 1, 1), (1, 1)),
        ((1, 2, 2, 1), (2, 2, 2, 2), (2, 0)),
        ((5, 5, 6, 6), (1, 2, 3, 4), (0, 0)),
    ],
)
def test_pegs_counted_by_hand(code, guess, expected):
    assert told("code-4-6-repeats", code, guess) == expected == pegs(code, guess)


@given(st.lists(st.integers(1, 5), min_size=3, max_size=3), st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_pegs_agree_with_the_rules(code, guess):
    assert told("code-3-5-repeats", code, guess) == pegs(code, guess)


def test_codes_are_divided_among_the_splits():
    for kind, count in (("code-3-6", 120), ("code-4-6", 360), ("code-3-4-repeats", 64)):
        parts = [codes(kind, split) for split in SPLITS]
        assert sorted(itertools.chain(*parts)) == sorted(codes(kind))
        assert len(codes(kind)) == count and abs(len(parts[0]) / count - 0.6) < 0.03
    world = make("mastermind")
    found = {s: {world.reset(t).info["answer"] for t in tasks("mastermind", s, 200, 0, ["code-3-6"])} for s in SPLITS}
    assert not found["train"] & found["test"] and not found["train"] & found["valid"]
    assert len(found["train"]) > 60


@pytest.mark.parametrize("kind", ["code-3-6", "code-4-6", "code-4-6-repeats", "code-2-9"])
def test_the_expert_contradicts_no_answer_and_solves_every_game(kind):
    world = make("mastermind")
    for task in tasks("mastermind", "test", 20, 0, [kind]):
        shown = expert_episode(world, task)
        assert shown.solved and shown.reward == 1.0 and len(shown.turns) <= 10
        secret = tuple(map(int, shown.turns[0].before.info["answer"].split()))
        known = []
        for turn in shown.turns:
            guess = tuple(map(int, turn.action[1:-1].split()))
            assert all(pegs(guess, earlier) == answer for earlier, answer in known)
            known.append((guess, pegs(secret, guess)))
            black, white = known[-1][1]
            if turn is not shown.turns[-1]:
                assert f"Feedback: {black} black peg(s), {white} white peg(s)." in turn.after.text
            open_ones = sum(all(pegs(code, g) == a for g, a in known) for code in codes(kind))
            assert turn.after.info["candidates"] == open_ones
        assert guess == secret and shown.turns[-1].after.info["won"]


def test_slips_are_other_guesses_and_the_expert_recovers():
    world = make("mastermind", limit=30)
    shown = [expert_episode(world, task, 0.4) for task in tasks("mastermind", "train", 20, 0)]
    assert all(one.solved for one in shown)
    assert all(turn.after.valid for one in shown for turn in one.turns)
    slips = [turn for one in shown for turn in one.turns if turn.slip]
    assert len(slips) > 15 and len({turn.action for turn in slips}) > 15


def start(limit=9, errors=1, kind="code-3-6"):
    world = Mastermind(limit=limit, errors=errors)
    (task,) = tasks("mastermind", "train", 1, 0, [kind])
    return world, world.reset(task)


@pytest.mark.parametrize(
    ("guess", "reason"),
    [
        ("one two three", "space-separated list"),
        ("", "space-separated list"),
        ("[1 2]", "exactly 3 numbers"),
        ("[1 2 9]", "between 1 and 6"),
        ("[1 1 2]", "Duplicate numbers"),
        ("[" + "9" * 5000 + " 1 2]", "valid integers"),
    ],
)
def test_a_malformed_guess_gets_the_packages_words(guess, reason):
    world, first = start()
    seen = world.step(guess)
    assert not seen.valid and not seen.done and reason in seen.text and seen.reward == 0
    assert seen.state == "1 malformed" and first.state == "no guess yet"
    again = world.step(guess)
    assert again.terminated and not again.info["won"] and reason in again.text and "over" in again.state


def test_guesses_are_found_in_a_text_may_not_be_repeated_and_forgive_again():
    world, first = start()
    wrong = [f"[{' '.join(map(str, code))}]" for code in codes("code-3-6")]
    wrong.remove(f"[{first.info['answer']}]")
    assert world.step(f"I think it is {wrong[0]}.").valid
    repeated = world.step(wrong[0])
    assert not repeated.valid and "already guessed" in repeated.text
    assert world.step(wrong[1]).valid
    assert not world.step("hm").done
    assert world.step(wrong[2]).state.count("black") == 3
    patient, _ = start(errors=100)
    assert not any(patient.step("hm").terminated for _ in range(8))


def test_the_limit_truncates_and_the_text_tells_it():
    world, first = start(limit=3)
    assert "3 digits long, each digit from 1 to 6, with no duplicates" in first.text
    assert "You have 3 turns" in first.text
    others = (f"[{' '.join(map(str, code))}]" for code in codes("code-3-6", "test"))
    seen = [world.step(next(others)) for _ in range(3)]
    assert [one.truncated for one in seen] == [False, False, True] and not seen[-1].terminated
    assert world.expert() is None


def test_a_state_is_what_is_known_in_any_order():
    world, _ = start()
    (task,) = tasks("mastermind", "train", 1, 0, ["code-3-6"])
    one = world.restore(task, ("[1 2 3]", "[4 5 6]"))
    assert one.state == world.restore(task, ("[4 5 6]", "[1 2 3]")).state != "no guess yet"


def test_promises():
    made = tasks("mastermind", "train", 6, 3)
    promises.same_in_any_order(make("mastermind"), make("mastermind"), made)
    promises.restored(make("mastermind"), make("mastermind"), made[0])
    episodes = [expert_episode(make("mastermind"), task) for task in made[:3]]
    promises.same_in_turns([make("mastermind") for _ in episodes], episodes)
    promises.same_elsewhere(make("mastermind"), made[:3], 0.2, {}, {})


def test_the_random_numbers_of_the_process_are_left_alone():
    random.seed(5)
    before = random.getstate()
    mastermind._package.cache_clear()
    for module in [name for name in sys.modules if name.startswith("textarena.envs.Mastermind")]:
        del sys.modules[module]
    world, _ = start()
    world.step("[1 2 3]")
    assert random.getstate() == before


def test_misuse_is_refused_in_words(monkeypatch):
    with pytest.raises(UsageError, match="errors is -1"):
        Mastermind(errors=-1)
    with pytest.raises(UsageError, match="unknown kind of world 'mastermind' 'code-9-9'"):
        make("mastermind").reset(Task("mastermind", "code-9-9", 0, 0, "train"))
    assert make("mastermind").expert() is None
    mastermind._package.cache_clear()
    monkeypatch.setitem(sys.modules, "textarena.envs.Mastermind.env", None)
    with pytest.raises(MissingExtra, match=r"echelon\[text\]"):
        make("mastermind")
    mastermind._package.cache_clear()


def test_a_kind_says_its_size():
    assert mastermind.parts("code-4-6-repeats") == (4, 6, True)
    assert all(len(codes(kind)) <= 7_000 for kind in (*Mastermind.kinds, *Mastermind.variants))
    assert len(set(Mastermind.kinds + Mastermind.variants)) == len(Mastermind.kinds + Mastermind.variants)
    assert np.all(answers("code-2-4", (1, 2))[0] <= 2)
