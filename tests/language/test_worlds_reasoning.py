"""Arithmetic questions: the scratch-pad expert, its slips and checks, the verifier, and the splits."""

from __future__ import annotations

import ast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import UsageError
from echelon.language.worlds.reasoning import FAMILIES, Reasoning, _Pad, extract_answer, question_split
from echelon.language.worlds.world import SPLITS, Task, expert_episode, make, tasks

CHAIN = [f"chain_sum-{n}" for n in range(2, 11)]


def pad(redundancy: int = 0) -> _Pad:
    return _Pad(redundancy, np.random.default_rng(0))


def test_steps_of_the_scratch_pad() -> None:
    written = pad()
    assert written.expression(ast.parse("4 - 1 - -(2 * 3) + -5", mode="eval").body) == 4
    assert written.lines == ["4 - 1 = 3", "2 * 3 = 6", "0 - 6 = -6", "3 - -6 = 9", "9 + -5 = 4"]
    written = pad()
    assert written.multiple([12, 18]) == 36
    assert written.lines == ["18 % 12 = 6", "12 % 6 = 0", "12 * 18 = 216", "216 / 6 = 36"]
    written = pad()
    assert written.divisor([12, 18, 4]) == 2
    written = pad()
    assert written.legs({"cat": 3, "bee": 2}, {"cat": 4, "bee": 6}) == 24
    assert written.lines == ["3 * 4 = 12", "2 * 6 = 12", "12 + 12 = 24"]
    with pytest.raises(UsageError, match=r"'2 \*\* 3'"):
        pad().expression(ast.parse("2 ** 3", mode="eval").body)


def test_a_slip_is_carried_through() -> None:
    written = _Pad(0, np.random.default_rng(0), slip=(1, -2))
    assert written.expression(ast.parse("4 - 1 + 5 - 2", mode="eval").body) == 4
    assert written.lines == ["4 - 1 = 3", "3 + 5 = 6", "6 - 2 = 4"]


def test_checks_say_something_true_and_cost_words() -> None:
    written = pad(redundancy=3)
    written.expression(ast.parse("4 - 1 + 5 - 2 * 6", mode="eval").body)
    checks = [line.removeprefix("check ") for line in written.lines if line.startswith("check ")]
    assert len(written.lines) - len(checks) == 4
    assert 0 < len(checks) <= 12
    values = {
        pad().expression(ast.parse(left, mode="eval").body) - int(right)
        for left, right in (c.split(" = ") for c in checks)
    }
    assert values == {0}
    lengths = []
    for redundancy in (0, 1, 3):
        world = Reasoning(redundancy=redundancy)
        shown = [expert_episode(world, task) for task in tasks("reasoning", "train", 30, 0, CHAIN)]
        assert all(one.solved for one in shown)
        lengths.append(np.mean([len(one.turns[0].action.split()) for one in shown]))
    assert lengths[0] < lengths[1] < lengths[2]


def test_the_hurried_expert_stops_writing_early_and_is_right() -> None:
    games = tasks("reasoning", "train", 200, 0, ("chain_sum-4",))
    whole, hurried = Reasoning(redundancy=1), Reasoning(redundancy=1, hurry=0.5)
    steps = []
    for task in games:
        whole.reset(task)
        hurried.reset(task)
        full, short = str(whole.expert()), str(hurried.expert())
        assert hurried.step(short).reward == 1
        pad, cut = (text.partition(" </think>")[0] for text in (full, short))
        assert pad.startswith(cut) and full.endswith(short.partition(" </think>")[2])
        steps.append(sum(" = " in line and "check" not in line for line in cut.split(" ; ")))
    assert 70 <= sum(n < 3 for n in steps) <= 130
    assert min(steps.count(n) for n in (0, 1, 2)) >= 20, "any number of steps, none among them"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("digits", [1, 2])
def test_the_expert_is_right_and_its_slips_are_wrong(family: str, digits: int) -> None:
    world = Reasoning(digits=digits, redundancy=1)
    kinds = [kind for kind in world.kinds if kind.partition("-")[0] == family]
    made = tasks("reasoning", "test", 5 * len(kinds), 0, kinds)
    right = [expert_episode(world, task) for task in made]
    assert all(one.solved and one.turns[0].after.text == "Right." for one in right)
    slipped = [expert_episode(world, task, 1.0) for task in made]
    wrong = [one.turns[0].after.text == "Wrong." for one in slipped]
    assert wrong == [one.turns[0].slip for one in slipped]
    assert np.mean(wrong) > 0.9
    assert [one.task.kind.partition("-")[2] for one in right] == [
        str(one.turns[0].before.info["difficulty"]) for one in right
    ]


def test_thousands_of_test_questions_are_disjoint_from_training() -> None:
    world = make("reasoning", digits=2)
    asked = {split: [world.reset(task).text for task in tasks("reasoning", split, 2000, 0, CHAIN)] for split in SPLITS}
    for split, texts in asked.items():
        assert len(set(texts)) > 1950
        assert {question_split(text) for text in texts} == {split}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think> 1 + 1 = 2 </think> <answer> 2 </answer>", "2"),
        ("<answer>2</answer>", "2"),
        ("1 + 1 = 2 </think> <answer> 2 </answer> done", "2"),
        ("<think> <answer> 2 </answer>", None),
        ("<think> <answer> 2 </answer> </think>", None),
        ("<answer> 1 </answer> <answer> 2 </answer>", "2"),
        ("<answer> 2", None),
        ("2 </answer> <answer>", None),
        ("", None),
    ],
)
def test_where_the_answer_is_read(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


def test_wrong_late_and_missing_answers() -> None:
    world = Reasoning(limit=2)
    task = tasks("reasoning", "train", 1, 0, ["chain_sum-3"])[0]
    first = world.reset(task)
    assert first.info == {"family": "chain_sum", "difficulty": 3, "answer": first.info["answer"]}
    again = world.step("no idea")
    assert (again.text, again.valid, again.done, again.info["score"]) == ("Wrong. Try again.", False, False, 0.0)
    won = world.step(world.expert() or "")
    assert (won.text, won.reward, won.terminated, won.info["score"]) == ("Right.", 1.0, True, 1.0)
    world.reset(task)
    world.step("<answer> 999 </answer>")
    lost = world.step("<answer> 999 </answer>")
    assert (lost.text, lost.reward, lost.terminated, lost.truncated, lost.valid) == ("Wrong.", 0.0, True, False, True)
    assert world.expert() is None


@given(st.text(max_size=20) | st.sampled_from(["sNaN", "NaN", "Infinity", "1e999999999", "٣", "--1", "0x1", ","]))
def test_no_answer_breaks_the_verifier(answer: str) -> None:
    world = Reasoning()
    for kind in ("chain_sum-2", "gcd-2"):
        world.reset(Task("reasoning", kind, 0, 1, "train"))
        seen = world.step(f"<answer>{answer}</answer>")
        assert seen.terminated
        assert seen.reward in (0.0, 1.0)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="digits is 0; it is at least 1"):
        Reasoning(digits=0)
    with pytest.raises(UsageError, match="redundancy is -1; it is at least 0"):
        Reasoning(redundancy=-1)
    with pytest.raises(UsageError, match="hurry is 2; it is a share, from 0 to 1"):
        Reasoning(hurry=2)
