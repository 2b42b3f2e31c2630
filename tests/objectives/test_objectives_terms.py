"""Terms and their evaluation: gates, scopes, unknown scores, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_turns import assert_close, doubles
from reference import credit_language as ref

from echelon.credit.groups import grpo
from echelon.errors import DataError, UsageError
from echelon.objectives.terms import Each, Evaluation, Gate, Term, each, evaluate
from echelon.spans import Spans


def field(name: str) -> Any:
    return each(lambda item: item[name])


def ask(terms: Any, items: Any, parts: Any = None) -> Evaluation:
    return evaluate(terms, items, parts, dtype=torch.float64)


SCORES = st.none() | st.integers(0, 4).map(lambda x: x / 4)


@given(st.lists(st.lists(SCORES, min_size=3, max_size=3), max_size=5), st.sampled_from([0.25, 0.5, 1.0]))
def test_a_chain_of_gates_equals_its_naive_reference(rows: list[list[float | None]], threshold: float) -> None:
    weights = (1.0, 0.5, 0.25)
    asked: list[list[int]] = []

    def level(k: int) -> Term:
        def fn(items: list[int]) -> Iterator[float | None]:
            asked.append(items)
            return (rows[i][k] for i in items)

        return Term(str(k), fn, weight=weights[k], gate=(str(k - 1), threshold) if k else None)

    result = ask([level(k) for k in range(3)], range(len(rows)))
    for i, row in enumerate(rows):
        seen = row[: row.index(None)] if None in row else row
        expected = ref.gated_reward([(s or 0.0, threshold, w) for s, w in zip(seen, weights, strict=False)])
        hits_unknown = len(seen) < 3 and all((s or 0.0) >= threshold for s in seen)
        assert bool(result.unknown[i]) == hits_unknown
        if not hits_unknown:
            assert result.reward[i] == expected["reward"]
            assert int(sum(~part[i].isnan() for part in result.parts.values())) == expected["evaluated"]
    assert sum(map(len, asked)) == sum(result.calls.values())
    assert [] not in asked


def test_gates_open_on_either_side() -> None:
    items = [0.0, 0.5, 1.0]
    for side, expected in ((">=", [0, 1, 1]), (">", [0, 0, 1]), ("<=", [1, 1, 0]), ("<", [1, 0, 0])):
        terms = (Term("x", lambda xs: xs, weight=0.0), Term("y", each(lambda _: 1), gate=Gate("x", 0.5, side)))
        assert ask(terms, items).reward.tolist() == expected


def test_a_gate_that_was_not_asked_or_is_unknown_does_not_open() -> None:
    items = [{"a": 0}, {"a": 1, "b": None}, {"a": 1, "b": 0}]
    terms = (
        Term("a", field("a")),
        Term("b", field("b"), gate=("a", 1.0)),
        Term("c", each(lambda item: 5.0), gate=Gate("b", 1.0, "<")),
    )
    result = ask(terms, items)
    assert result.calls == {"a": 3, "b": 2, "c": 1}
    assert result.unknown.tolist() == [False, True, False]
    assert_equal(result.parts["b"], [math.nan, math.nan, 0])
    assert_equal(result.reward, [0, math.nan, 6])


def assert_equal(column: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(column, doubles(*expected), atol=0, rtol=0, equal_nan=True)


def test_factors_multiply_and_shares_sum_to_the_reward() -> None:
    items = [{"c": 0.5, "s": 0.8}, {"c": 0.0, "s": 1.0}]
    terms = (
        Term("c", field("c"), weight=2.0),
        Term("s", field("s"), weight=0.5, gate=Gate("c", 0.0, ">"), times=("c",)),
    )
    result = ask(terms, items)
    assert_equal(result.shares["s"], [0.2, 0])
    assert_equal(sum(result.shares.values()), [1.2, 0])
    assert_equal(result.reward, [1.2, 0])


def test_labels_are_paid_their_own_terms_and_those_of_nobody() -> None:
    terms = (
        Term("answer", field("a")),
        Term("plan", field("p"), weight=0.5, credit_to=("planner",)),
        Term("act", field("x"), credit_to=("actor", "tool")),
    )
    result = ask(terms, [{"a": 1, "p": 1, "x": 3}, {"a": 1, "p": None, "x": 3}])
    assert_equal(result.reward_of("planner"), [1.5, math.nan])
    assert_equal(result.reward_of("tool"), [4, math.nan])
    assert_equal(result.reward_of("other"), [1, math.nan])


def test_unknown_items_leave_the_statistics_of_their_group() -> None:
    result = ask([Term("v", lambda xs: xs)], [1.0, None, 0.0, math.nan, 1.0, 1.0])
    assert result.known.tolist() == [True, False, True, False, True, True]
    groups = Spans.from_lengths([4, 2])
    credit = grpo(groups, reward=result.reward, where=result.known)
    assert_close(credit.advantage, [0.7071058, 0, -0.7071058, 0, 0, 0])
    assert credit.weight.tolist() == [1, 0, 1, 0, 1, 1]
    with pytest.raises(DataError, match="unknown"):  # forgetting `where` does not go unnoticed
        grpo(groups, reward=result.reward)


# ---- parts of items

PARTS = {"turn": [[1, 0, 1], [], [1, 1], [1, None, 0]]}


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [("min", [0, 7, 1, math.nan]), ("mean", [2 / 3, 7, 1, math.nan]), ("sum", [2, 7, 2, math.nan])],
)
def test_parts_reduce_to_their_item(reduce: Any, expected: list[float]) -> None:
    asked = []

    def judge(turns: list[Any]) -> list[Any]:
        asked.append(turns)
        return turns

    result = ask([Term("turns", judge, Each("turn", reduce, 7.0))], range(4), PARTS)
    assert_equal(result.parts["turns"], expected)
    assert result.calls == {"turns": 8}
    assert asked == [[1, 0, 1, 1, 1, 1, None, 0]]


def test_early_exit_asks_wave_after_wave() -> None:
    asked = []

    def judge(turns: list[Any]) -> list[Any]:
        asked.append(turns)
        return turns

    result = ask([Term("turns", judge, Each("turn", "min", 1.0, stop_below=1.0))], range(4), PARTS)
    assert_equal(result.parts["turns"], [0, 1, 1, math.nan])
    assert asked == [[1, 1, 1], [0, 1, None]]
    assert result.calls == {"turns": 6}


@given(st.lists(st.lists(st.booleans(), max_size=5), max_size=5))
def test_early_exit_changes_no_binary_minimum(turns: list[list[bool]]) -> None:
    def result(stop: float | None) -> Evaluation:
        return ask([Term("t", lambda xs: xs, Each("turn", "min", 1.0, stop))], turns, {"turn": turns})

    eager, lazy = result(None), result(1.0)
    assert torch.equal(eager.reward, lazy.reward)
    assert lazy.calls["t"] == sum(t.index(False) + 1 if False in t else len(t) for t in turns)


# ---- shapes, types, errors


def test_no_items_and_tensor_scores() -> None:
    assert ask([Term("a", field("a")), Term("b", field("b"), gate=("a", 1.0))], []).reward.shape == (0,)
    vectorised = Term("square", lambda xs: torch.tensor(xs) ** 2)
    assert ask([vectorised], [1.0, 2.0]).reward.tolist() == [1, 4]
    assert evaluate([vectorised], [1.0]).reward.dtype == torch.float32


def test_an_exception_tells_where_it_happened() -> None:
    items = [{"ok": 1, "x": 1}, {"ok": 0}, {"ok": 1}]
    with pytest.raises(KeyError) as lazy:
        ask([Term("ok", field("ok")), Term("size", field("x"), gate=("ok", 1.0))], items)
    assert lazy.value.__notes__ == ["reward term 'size', asked about items 0, 2: the next verdict was that of item 2"]

    def judge(items: list[Any]) -> list[float]:
        raise TimeoutError("no reply")

    with pytest.raises(TimeoutError) as batched:
        ask([Term("judge", judge)], range(20))
    assert "'judge', asked about items 0, 1, 2, 3, 4, 5, 6, 7, ...:" in batched.value.__notes__[0]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "at least one term"),
        ([Term("a", abs), Term("a", abs)], "two reward terms are called 'a'"),
        ([Term("a", abs, gate=("b", 1.0)), Term("b", abs)], "'a' refers to 'b'; earlier terms: -"),
        ([Term("a", abs, gate=("a", 1.0))], "refers to 'a'"),
        ([Term("a", abs), Term("b", abs, times=("c",))], "'b' refers to 'c'; earlier terms: a"),
        ([Term("a", abs), Term("b", abs, gate=Gate("a", 0, "=="))], "side of a gate '=='"),
        ([Term("a", abs, weight=math.nan)], "weight of reward term 'a' is nan"),
        ([Term("a", abs, "turn")], r"scope 'turn' of 'a' needs a reduction: Each\('turn'"),
    ],
)
def test_malformed_objectives_are_refused(terms: list[Term], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(terms, [1])


def test_malformed_scopes_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown reduction 'avg'"):
        Each("turn", "avg", 0.0)
    with pytest.raises(UsageError, match="stop_below needs reduce='min', got 'mean'"):
        Each("turn", "mean", 0.0, stop_below=1.0)


def test_malformed_scores_are_refused() -> None:
    with pytest.raises(DataError, match="'a' gave 1 verdicts on 2 items"):
        evaluate([Term("a", lambda xs: xs[:1])], [1, 2])
    with pytest.raises(DataError, match="'a' gave 3 verdicts on 2 items"):
        evaluate([Term("a", lambda xs: [*xs, 0])], [1, 2])
    with pytest.raises(DataError, match="'a' scored item 1 -inf; say None if it is unknown"):
        evaluate([Term("a", lambda xs: xs)], [1, -math.inf])
    turns = Term("turns", lambda xs: xs, Each("turn", "min", 1.0))
    with pytest.raises(DataError, match=r"'turns' needs parts\['turn'\] of 2 items, got 0; given: -"):
        evaluate([turns], [1, 2])
    with pytest.raises(DataError, match="of 2 items, got 1; given: turn"):
        evaluate([turns], [1, 2], {"turn": [[1]]})
