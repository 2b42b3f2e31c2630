"""Rewards of tool-using agents and of single next actions, against published numbers and independent references."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_turns import assert_close, doubles
from reference import credit_language as ref
from reference import credit_shaped_answers as ref_text
from reference import credit_shaped_rewards as ref_rewards
from torch import Tensor

from echelon.credit.groups import grpo
from echelon.errors import UsageError
from echelon.objectives.agents import (
    SearchAnswer,
    chatshopbuddy,
    deeptravel,
    hiersearch,
    opened_tags,
    peco,
    tool_efficiency,
    web_penalty,
)
from echelon.objectives.next_action import PredictedAction, ScreenAction, hi_agent, same_action, self_certainty, shop_r1
from echelon.objectives.terms import Evaluation, Term, each, evaluate
from echelon.objectives.text import contains_answer, exact_match, rouge_l, token_f1
from echelon.spans import Spans


def place(k: int) -> Any:
    return each(lambda item: item[k])


def ask(terms: tuple[Term, ...], items: Any, parts: Any = None) -> Evaluation:
    return evaluate(terms, items, parts, dtype=torch.float64)


def one(terms: tuple[Term, ...], item: Any, parts: Any = None) -> float:
    return float(ask(terms, [item], parts).reward[0])


def advantage(reward: Tensor, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    return grpo(Spans.from_lengths([len(reward)]), reward=reward, ddof=ddof, eps=eps).advantage


def by_case(cases: dict[str, list[dict[str, Any]]], *rules: str) -> Any:
    """Parameters (rule, inputs, expected) of the references' hand-derived cases."""
    rows = [(rule, case["inputs"], case["expected"]) for rule in rules for case in cases[rule]]
    return pytest.mark.parametrize(("rule", "inputs", "expected"), rows)


# ---- ChatShopBuddy

SHOPPING = [(1, 0.8, 0.6), (1, 0.4, 0.9), (0, 0.9, 0.9), (1, 0.5, 0)]


def shop(**options: Any) -> tuple[Term, ...]:
    return chatshopbuddy(place(0), place(1), place(2), **options)


def test_chatshopbuddy__reconstructed() -> None:
    result = ask(shop(), SHOPPING)
    assert_close(result.reward, [1.52, 1.2, 0, 1.25])
    assert_close(advantage(result.reward), [0.779828, 0.306757, -1.467259, 0.380674])


def test_chatshopbuddy_pays_judges_behind_the_gate_alone__reconstructed() -> None:
    assert ask(shop(), SHOPPING).calls == {"correct": 4, "structure": 3, "efficiency": 2}
    assert ask(shop(gate="none"), SHOPPING).calls == {"correct": 4, "structure": 4, "efficiency": 4}


UNIT = st.integers(0, 8).map(lambda x: x / 8)


@given(st.tuples(UNIT, UNIT, UNIT), st.sampled_from(["hard", "soft", "none"]), UNIT)
def test_chatshopbuddy_equals_its_naive_reference(scores: Any, gate: Any, threshold: float) -> None:
    weights = (2.0, 1.0, 0.4)
    expected = ref.chatshopbuddy_reward(*scores, weights, threshold, gate)
    assert one(shop(weights=weights, threshold=threshold, gate=gate), scores) == pytest.approx(expected, abs=1e-12)


@by_case(ref.CASES, "chatshopbuddy_reward")
def test_chatshopbuddy_cases(rule: str, inputs: dict[str, Any], expected: float) -> None:
    inputs = dict(inputs)
    scores = tuple(inputs.pop(name) for name in ("correct", "structure", "efficiency"))
    assert one(shop(**inputs), scores) == pytest.approx(expected, abs=1e-9)


def test_tool_efficiency__reconstructed() -> None:
    assert [tool_efficiency(calls, 4) for calls in (0, 1, 4, 9)] == [1, 0.75, 0, 0]
    with pytest.raises(UsageError, match="unknown gate 'softish'; did you mean soft"):
        shop(gate="softish")


# ---- DeepTravel

TRIPS = [(1, [1, 1, 1]), (0, [1, 1]), (1, [1, 0, 1]), (1, [1, 1])]


def travel(trips: list[Any], **options: Any) -> Evaluation:
    terms = deeptravel(place(0), lambda turns: turns, **options)
    return ask(terms, trips, {"turn": [trip[1] for trip in trips]})


def test_deeptravel__reconstructed() -> None:
    result = travel(TRIPS)
    assert result.reward.tolist() == [1, 0, 0, 1]
    assert_close(advantage(result.reward), [0.866024, -0.866024, -0.866024, 0.866024])
    assert_close(advantage(doubles(1, 0, 0, 0, 0, 0, 0, 0)), [2.474867, *[-0.353552] * 7])
    assert travel(TRIPS, combine="mean").reward.tolist() == [1, 0, pytest.approx(2 / 3), 1]


def test_deeptravel_judge_calls__reconstructed() -> None:
    assert travel(TRIPS).calls == {"trajectory": 4, "turns": 8}
    lazy = travel(TRIPS, ask="until_failure")
    assert lazy.calls == {"trajectory": 4, "turns": 7}
    assert lazy.reward.tolist() == [1, 0, 0, 1]
    with pytest.raises(UsageError, match="stop_below needs reduce='min'"):
        travel(TRIPS, combine="mean", ask="until_failure")


VERDICT = st.sampled_from([0, 1, 1, None])


@given(
    st.lists(st.tuples(VERDICT, st.lists(VERDICT, max_size=4), st.booleans()), max_size=5),
    st.sampled_from(["product", "mean"]),
)
def test_deeptravel_equals_its_naive_reference(trips: list[Any], combine: Any) -> None:
    result = travel(trips, combine=combine, form=place(2))
    expected = [ref_rewards.deeptravel_reward(v, turns, combine, form) for v, turns, form in trips]
    assert result.unknown.tolist() == [r is None for r in expected]
    assert_close(result.reward.nan_to_num(nan=9), [9 if r is None else r for r in expected])
    judged = [(v, turns) for v, turns, form in trips if form]
    assert result.calls["turns"] == sum(ref_rewards.deeptravel_judge_calls(v or 0, turns) for v, turns in judged)


# ---- CoDA


def coda(f1: float, planner: float, executors: list[float], evidence: float) -> float:
    terms = peco(place(0), place(1), lambda rows: rows, place(2))
    return one(terms, (f1, planner, evidence), {"executor": [executors]})


def test_peco__code() -> None:
    rewards = [coda(1, 1, [0, 1], 1), coda(0.5, 1, [1], 0), coda(0, 0, [], 0), coda(0, 1, [1, 1], 1)]
    assert rewards == [5.0, 2.0, -3.0, -0.5]
    assert_close(advantage(doubles(*rewards)), [1.204454, 0.328487, -1.131457, -0.401485])


@given(UNIT, UNIT, st.lists(UNIT, max_size=3), UNIT)
def test_peco_equals_its_naive_reference(f1: float, planner: float, executors: list[float], evidence: float) -> None:
    assert coda(f1, planner, executors, evidence) == pytest.approx(
        ref.peco_reward(f1, planner, executors, evidence), abs=1e-12
    )


def test_peco_without_a_gold_answer_is_unknown() -> None:
    assert ask(peco(place(0), place(1), lambda rows: rows, place(2)), [(None, 1, 1)], {"executor": [[]]}).unknown.all()


# ---- HierSearch


def search(**options: Any) -> float:
    names = {"penalty": "none", "combine": "code"} | {k: options.pop(k) for k in ("penalty", "combine") if k in options}
    return one(hiersearch(**names), SearchAnswer(**({"answer": "x", "gold": "y"} | options)))


def test_token_f1_without_articles__code() -> None:
    assert token_f1("the red cat", "red cat sat") == pytest.approx(0.8)


def test_hiersearch_rewards__code() -> None:
    tools, used = ("a", "b", "c"), ("a", "c", "other")
    rewards = [
        search(answer="the red cat", gold="red cat sat", tools=tools),
        search(tools=tools, tools_used=used),
        search(answer="y", complete=False, tools=tools, tools_used=used),
        search(tools=tools, tools_used=used),
        search(tools=tools),
    ]
    assert_close(doubles(*rewards), [0.8, 0.0666667, 0, 0.0666667, 0])
    assert_close(advantage(doubles(*rewards)), [1.780455, -0.348350, -0.541878, -0.348350, -0.541878], 1e-6)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [("LLLW", -0.2), ("LLLLLW", -0.1), ("LLLLLLW", -0.045), ("LLLLLLLLW", -0.01), ("LWL", -1.0), ("LLL", 0.0)],
)
def test_web_penalty__code(calls: str, expected: float) -> None:
    assert web_penalty([c == "W" for c in calls]) == expected


def test_an_early_web_call_turns_f1_into_the_bonus__code() -> None:
    # F1 2/13 = .154, less .2 for the call sequence LLLW
    case = {"answer": "a red b c d e f g h i j", "gold": "red x y", "tools": "ab", "tools_used": "a"}
    assert search(**case) == pytest.approx(2 / 13)
    assert search(**case, penalty="early_web", web_calls=[False, False, False, True]) == 0.05


def test_a_little_f1_earns_less_than_none__code() -> None:
    poor = {"answer": " ".join(["y", *map(str, range(40))]), "tools": "ab", "tools_used": "ab"}
    assert search(**poor) == pytest.approx(2 / 42)
    assert search(tools="ab", tools_used="ab") == 0.1
    assert search(**poor, combine="max") == 0.1


WORDS = st.lists(st.sampled_from(["the", "red", "cat", "Sat.", "yes", "no"]), max_size=4).map(" ".join)


@given(st.data())
def test_hiersearch_equals_its_naive_reference(data: st.DataObject) -> None:
    answer, gold = data.draw(WORDS), data.draw(WORDS)
    calls = data.draw(st.lists(st.sampled_from("LW"), max_size=10))
    tools, used = data.draw(st.sets(st.sampled_from("abc"))), data.draw(st.sets(st.sampled_from("abcd")))
    complete, combine = data.draw(st.booleans()), data.draw(st.sampled_from(["code", "max"]))
    fined = data.draw(st.booleans())
    assert web_penalty([c == "W" for c in calls]) == pytest.approx(ref_text.hiersearch_penalty(calls))
    expected = ref_text.hiersearch_reward(
        ref_text.token_f1(answer, gold),
        sorted(used),
        sorted(tools),
        format_ok=complete,
        penalty=ref_text.hiersearch_penalty(calls) if fined else 0.0,
        combine=combine,
    )
    item = SearchAnswer(answer, gold, used, tools, complete, [c == "W" for c in calls])
    terms = hiersearch(penalty="early_web" if fined else "none", combine=combine)
    assert one(terms, item) == pytest.approx(expected, abs=1e-12)


def test_hiersearch_options_and_tags() -> None:
    assert opened_tags("<web> q </web> <graph", ("web", "graph", "chunk")) == {"web"}
    with pytest.raises(UsageError, match="unknown penalty 'late'"):
        hiersearch(penalty="late")
    with pytest.raises(UsageError, match="unknown way to combine 'sum'"):
        hiersearch(combine="sum")


# ---- texts


@given(WORDS, WORDS)
def test_text_scores_equal_their_naive_references(a: str, b: str) -> None:
    assert token_f1(a, b) == pytest.approx(ref_text.token_f1(a, b), abs=1e-12)
    assert rouge_l(a, b) == pytest.approx(ref_text.rouge_l(a, b), abs=1e-12)
    assert exact_match(a, b) == float(ref_text.answer_words(a) == ref_text.answer_words(b))


@by_case(ref_text.CASES, "token_f1", "rouge_l")
def test_text_cases(rule: str, inputs: dict[str, str], expected: float) -> None:
    assert {"token_f1": token_f1, "rouge_l": rouge_l}[rule](*inputs.values()) == pytest.approx(expected, abs=1e-9)


def test_rouge_l__paper() -> None:
    assert rouge_l("add to cart", "add to cart button") == pytest.approx(0.857143, abs=5e-7)
    assert rouge_l("cart", "add to cart button") == pytest.approx(0.4)


def test_contained_answers() -> None:
    assert contains_answer("In 1952, at the Rhine.", "5") == 1
    assert contains_answer("In 1952, at the Rhine.", "5", match="words") == 0
    assert contains_answer("In 1952, at the Rhine.", "The Rhine", match="words") == 1
    assert contains_answer("anything", "the") == contains_answer("anything", "", match="words") == 0


# ---- Shop-R1

CART = {"type": "click", "name": "add to cart button"}
SEARCH = {"type": "type_and_submit", "name": "search box", "text": "red warm wool hat"}


def output(**action: Any) -> str:
    return json.dumps({"rationale": "r", "action": action})


def shopped(text: str, recorded: dict[str, str], certainty: float = 0.0, **options: Any) -> float:
    return one(shop_r1(**options), PredictedAction(text, recorded, certainty))


def test_shop_r1__paper() -> None:
    assert shopped(output(type="click", name="add to cart"), CART) == pytest.approx(858.142857)
    assert shopped(output(type="click", name="cart"), CART) == pytest.approx(1.0)
    assert shopped(output(type="terminate"), {"type": "terminate"}) == pytest.approx(0.8)
    assert shopped(output(type="terminate"), CART) == 0.5
    assert shopped("{", CART) == 0.0


def test_similar_texts_count_above_the_threshold_alone__paper() -> None:
    recorded, near = CART | {"name": "a b c d"}, output(type="click", name="a b c x")
    assert rouge_l("a b c x", "a b c d") == 0.75
    assert shopped(near, recorded) == pytest.approx(1.0)
    assert shopped(near, recorded, threshold=0.74, dars=2.0) == pytest.approx(2.5)


def test_self_certainty__paper() -> None:
    probs = doubles([0.7, 0.1, 0.1, 0.1], [0.25] * 4)
    one_row, both = Spans.from_lengths([1, 1]), Spans.from_lengths([2])
    assert_close(self_certainty(both, log_prob=probs.log(), normaliser="mean"), [0.2229232])
    assert_close(self_certainty(both, log_prob=probs.log()), [0.0557308])
    assert_close(self_certainty(one_row, log_prob=probs.log(), normaliser="mean"), [2 * 0.2229232, 0])
    with pytest.raises(UsageError, match="unknown normaliser 'sum'"):
        self_certainty(both, log_prob=probs.log(), normaliser="sum")


@by_case(ref_text.CASES, "self_certainty")
def test_self_certainty_cases(rule: str, inputs: dict[str, Any], expected: float) -> None:
    rows = doubles(*inputs["rows"])
    got = self_certainty(
        Spans.from_lengths([len(rows)]), log_prob=rows.log(), normaliser=inputs.get("normaliser", "printed")
    )
    assert_close(got, [expected])


@by_case(ref_text.CASES, "shop_r1_action", "shop_r1_reward")
def test_shop_r1_cases(rule: str, inputs: dict[str, Any], expected: float) -> None:
    inputs = dict(inputs)
    if rule == "shop_r1_action":
        inputs["output"], expected = output(**inputs.pop("action")), expected + 0.5
    assert shopped(inputs.pop("output"), inputs.pop("target"), **inputs) == pytest.approx(expected, abs=1e-9)


TEXT = st.lists(st.sampled_from(["red", "warm", "wool", "hat", "box"]), max_size=4).map(" ".join)


@given(st.data())
def test_shop_r1_equals_its_naive_reference(data: st.DataObject) -> None:
    kinds = st.sampled_from(["click", "type_and_submit", "terminate"])
    recorded = {"type": data.draw(kinds), "name": data.draw(TEXT), "text": data.draw(TEXT)}
    action = {
        key: data.draw(kinds if key == "type" else TEXT)
        for key in data.draw(st.sets(st.sampled_from(sorted(recorded))))
    }
    text = data.draw(st.sampled_from([output(**action), json.dumps({"action": action}), "[]", "x"]))
    options = {
        "dars": 10.0,
        "threshold": data.draw(UNIT),
        "attribute": data.draw(st.sampled_from(["present", "correct"])),
    }
    expected = ref_text.shop_r1_reward(text, recorded, 3.0, **options)
    assert shopped(text, recorded, 3.0, **options) == pytest.approx(expected, abs=1e-9)


def test_no_output_of_a_model_breaks_the_parser() -> None:
    broken = [
        "[" * 100_000,
        '{"rationale": ' + "1" * 5000 + "}",
        '{"rationale": 1, "action": null}',
        output(type=["click"]),
    ]
    assert [shopped(text, CART) for text in broken] == [0, 0, 0.5, 0.5]
    with pytest.raises(UsageError, match="unknown attribute rule 'exact'"):
        shop_r1(attribute="exact")


# ---- Hi-Agent


def test_hi_agent__paper() -> None:
    terms = hi_agent(place(0), place(1), place(2))
    reward = ask(terms, [(1, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)]).reward
    assert_close(reward, [1, 0.7, 0.7, 0])
    assert_close(advantage(reward), [0.942807, 0.235702, 0.235702, -1.414210])
    assert_close(advantage(reward, ddof=0), [1.088659, 0.272165, 0.272165, -1.632989], 3e-6)


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=4))
def test_hi_agent_equals_its_naive_reference(rows: list[tuple[int, int, int]]) -> None:
    expected = ref.hi_agent_foresight([[list(row) for row in rows]])
    reward = ask(hi_agent(place(0), place(1), place(2)), rows).reward
    assert_close(reward, expected["reward"][0])
    assert_close(advantage(reward), expected["advantage"][0])


def test_low_level_statistics_of_the_batch__paper() -> None:
    reward = doubles(1, 0, 0, 1, 1, 1, 0, 1)
    assert_close(advantage(reward), torch.where(reward > 0, 0.724567, -1.207612).double())
    assert_close(advantage(reward, ddof=0), torch.where(reward > 0, 0.774595, -1.290992).double(), 2e-6)


def click(x: float, y: float) -> ScreenAction:
    return ScreenAction("click", (x, y))


def test_points_match_within_the_tolerance__paper() -> None:
    assert same_action(click(0.501, 0.301), click(0.5, 0.3)) == 1
    assert same_action(click(0.5015, 0.3015), click(0.5, 0.3)) == 0
    assert math.dist((0.5015, 0.3015), (0.5, 0.3)) == pytest.approx(0.002121, abs=5e-7)


@given(st.lists(UNIT, min_size=4, max_size=4), st.booleans(), UNIT)
def test_points_match_as_in_the_naive_reference(p: list[float], same: bool, tolerance: float) -> None:
    kind = "click" if same else "press"
    expected = ref.hi_agent_match(kind, "click", p[:2], p[2:], tolerance)
    assert same_action(ScreenAction(kind, (p[0], p[1])), click(p[2], p[3]), tolerance) == expected


def test_texts_and_directions_match__reconstructed() -> None:
    oracle = ScreenAction("type", text="Red  Hat")
    assert same_action(ScreenAction("type", text="red hat "), oracle) == 1
    assert same_action(ScreenAction("type", text="red cap"), oracle) == 0
    assert same_action(ScreenAction("type"), oracle) == 0
    assert same_action(ScreenAction("click"), click(0, 0)) == 0
    swipe = ScreenAction("swipe", direction="up")
    assert (same_action(swipe, swipe), same_action(ScreenAction("swipe", direction="down"), swipe)) == (1, 0)
    assert same_action(ScreenAction("terminate", (0.1, 0.2)), ScreenAction("terminate")) == 1
