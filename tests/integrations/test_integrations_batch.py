"""Batch: turns, fields and answers of rules, on a batch of four completions written down by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from echelon.credit.credit import Credit
from echelon.errors import DataError
from echelon.integrations.batch import Batch
from echelon.spans import Spans

EMITTED = [[1, 1, 0, 1], [1], [0, 1, 0, 0, 1, 1], [1, 1]]  # turns: 2, 1, 2, 1


def batch(*fields: dict[str, Any]) -> Batch:
    reward = torch.tensor([1.0, 0.0, torch.nan, 2.0])
    emitted = torch.tensor([flag for row in EMITTED for flag in row]).bool()
    return Batch(
        groups=Spans.from_lengths([2, 2]),
        tokens=Spans.from_lengths([len(row) for row in EMITTED]),
        reward=reward,
        rewards={"score": reward},
        reward_weights={"score": 1.0},
        emitted=emitted,
        trained=emitted,
        fields=fields or [{}] * 4,
    )


def test_a_turn_lasts_until_the_policy_writes_again() -> None:
    assert batch().turns.lengths.tolist() == [3, 1, 1, 4, 2, 2]
    assert batch().episodes.lengths.tolist() == [2, 1, 2, 1]


def test_turn_lengths_of_the_rollout_come_first() -> None:
    fields = [{"turn_lengths": lengths} for lengths in ([1, 3], np.array([1]), torch.tensor([2, 2, 2]), [1, 1])]
    assert batch(*fields).turns.lengths.tolist() == [1, 3, 1, 2, 2, 2, 1, 1]
    wrong = [*fields[:3], {"turn_lengths": [3]}]
    with pytest.raises(DataError, match=r"turn_lengths of completion 3 are \[3\].*sum to its 2 tokens"):
        _ = batch(*wrong).turns
    with pytest.raises(DataError, match="completion 3 has no field 'turn_lengths'"):
        _ = batch(*fields[:3], {}).turns


def test_tree_of_turns() -> None:
    tree = batch().tree()
    assert list(tree) == ["group", "episode"] and tree.size == 6
    assert tree["group"].ids.tolist() == [0, 0, 0, 1, 1, 1]
    tree = batch().tree(Spans.from_lengths([1, 1, 1, 2, 1]))
    assert tree.ancestors("segment") == ["episode", "group"]
    assert tree["segment"].lengths.tolist() == [1, 1, 1, 2, 1]


def test_columns_of_completions_turns_and_tokens() -> None:
    one = batch(*({"x": value} for value in (1, 2.5, np.float32(3), torch.tensor(4))))
    assert one.column("x").tolist() == [1, 2.5, 3, 4] and one.column("x").dtype == torch.float32
    rows = ([1, 0], np.array([1.5]), torch.tensor([2, 0]), (3,))
    turns = batch(*({"x": value} for value in rows))
    assert turns.column("x", "turn").tolist() == [1, 0, 1.5, 2, 0, 3]
    assert turns.column("x", "turn", torch.int64).dtype == torch.int64
    tokens = batch(*({"x": list(range(len(row)))} for row in EMITTED))
    assert tokens.column("x", "token").tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 0, 1]


def test_keys_are_equal_where_entries_are() -> None:
    rows = (["kitchen", "hall"], ["kitchen"], ["hall", "attic"], ["attic"])
    assert batch(*({"state": row} for row in rows)).key("state").tolist() == [0, 1, 0, 1, 2, 2]
    numbers = ([7, 3], torch.tensor([7]), np.array([3, 9]), [9])
    assert batch(*({"state": row} for row in numbers)).key("state").tolist() == [0, 1, 0, 1, 2, 2]
    names = batch(*({"task": name} for name in "abba"))
    assert names.key("task", "completion").tolist() == [0, 1, 1, 0]


def test_fields_that_do_not_fit_are_named() -> None:
    some = batch({"x": 1, "y": 0}, {"x": 1}, {"x": 1}, {"y": 1})
    with pytest.raises(DataError, match=r"completion 3 has no field 'x'.*there are y"):
        some.column("x")
    with pytest.raises(DataError, match=r"no field 'z'.*there are x, y"):
        some.column("z")
    with pytest.raises(DataError, match="there are none"):
        batch().column("z")
    short = batch({"x": [1, 2]}, {"x": [1]}, {"x": [1]}, {"x": [1]})
    with pytest.raises(DataError, match="field 'x' of completion 2 has 1 entries; the completion has 2 turns"):
        short.column("x", "turn")
    long = batch({"x": [1, 2, 9]}, {"x": [1]}, {"x": [1, 3]}, {"x": [1, 9]})
    assert long.column("x", "turn", cut=True).tolist() == [1, 2, 1, 1, 3, 1]
    assert long.key("x", cut=True).tolist() == [0, 1, 0, 0, 2, 0]
    with pytest.raises(DataError, match="field 'x' of completion 0 has 3 entries"):
        long.column("x", "turn")
    with pytest.raises(DataError, match="field 'x' of completion 2 has 1 entries"):
        short.column("x", "turn", cut=True)
    single = batch(*[{"x": 1.5}] * 4)
    with pytest.raises(DataError, match=r"field 'x' of completion 0 has the single value 1.5; .* 4 tokens"):
        single.column("x", "token")
    with pytest.raises(DataError, match="completion 1 does not consist of numbers"):
        batch({"x": 1}, {"x": "one"}, {"x": 1}, {"x": 1}).column("x")


def test_answers_of_every_level() -> None:
    some = batch()
    for size, level in ((4, "completion"), (6, "turn"), (13, "token")):
        credit = some.check(torch.arange(float(size)))
        assert some.level(credit.advantage) == level
    assert some.over_tokens(torch.arange(4.0)).tolist() == [0] * 4 + [1] + [2] * 6 + [3] * 2
    assert some.over_tokens(torch.arange(6.0)).tolist() == [0] * 3 + [1] + [2] + [3] * 4 + [4] * 2 + [5] * 2
    assert some.over_tokens(torch.arange(13.0)).tolist() == list(range(13))


def test_answers_that_do_not_fit_are_refused() -> None:
    some = batch()
    with pytest.raises(DataError, match=r"shape \(5,\).*4 completions, 6 turns or 13 tokens"):
        some.check(torch.zeros(5))
    with pytest.raises(DataError, match=r"shape \(4, 1\)"):
        some.check(torch.zeros(4, 1))
    with pytest.raises(DataError, match=r"a rule must return Credit or a tensor, got dict.*spread"):
        some.check({"high": Credit(torch.zeros(6))})  # type: ignore[arg-type]
    bad = torch.zeros(13).index_fill(0, torch.tensor([6]), torch.nan)
    with pytest.raises(DataError, match=r"advantage of completion 2 \(item 6\) is nan"):
        some.check(bad)
    with pytest.raises(DataError, match=r"advantage of completion 2 \(item 3\) is inf"):
        some.check(torch.tensor([0, 0, 0, torch.inf, 0, 0]))
    with pytest.raises(DataError, match="advantage of completion 2 is nan"):
        some.check(some.reward)


def test_scored_completions() -> None:
    assert batch().scored.tolist() == [True, True, False, True]
    assert dataclasses.replace(batch(), reward=torch.zeros(4)).scored.all()
