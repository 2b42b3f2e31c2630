"""Credit travels between time-scales: expansion, owners, terms, and errors."""

from __future__ import annotations

import pytest
import torch

from echelon.credit.credit import Credit, finite, spread
from echelon.errors import DataError
from echelon.spans import Spans

TURNS = Spans.from_lengths([2, 3])


def test_defaults_and_detachment() -> None:
    advantage = torch.tensor([1.0, -1.0], requires_grad=True)
    credit = Credit(advantage, {"value": 2 * advantage})
    assert credit.weight.tolist() == [1, 1]
    assert torch.equal(credit.terms["advantage"], credit.advantage)
    assert not credit.advantage.requires_grad
    assert not credit.target["value"].requires_grad


def test_expand_gives_tokens_the_credit_of_their_turn() -> None:
    credit = Credit(torch.tensor([1.0, 2.0]), {"value": torch.tensor([3.0, 4.0])}, torch.tensor([0.0, 1.0]))
    tokens = credit.expand(TURNS)
    assert tokens.advantage.tolist() == [1, 1, 2, 2, 2]
    assert tokens.target["value"].tolist() == [3, 3, 4, 4, 4]
    assert tokens.weight.tolist() == [0, 0, 1, 1, 1]


def test_spread_lets_the_owner_decide() -> None:
    high = Credit(torch.tensor([5.0, 0.0]), {"high": torch.tensor([9.0, 8.0])}, torch.tensor([1.0, 0.0]))
    low = Credit(torch.tensor([1.0, 2.0]), terms={"now": torch.tensor([0.5, 0.5]), "later": torch.tensor([0.5, 1.5])})
    planning = torch.tensor([True, False, True, False, False])
    acting = torch.tensor([False, True, False, True, False])
    credit = spread({"high": high, "low": low}, TURNS, {"high": planning, "low": acting})
    assert credit.advantage.tolist() == [5, 1, 0, 2, 0]
    assert credit.weight.tolist() == [1, 1, 0, 1, 0]  # a subgoal that was kept, and a token of nobody, train nothing
    assert credit.target["high"].nan_to_num(-1).tolist() == [9, -1, 8, -1, -1]
    assert set(credit.terms) == {"high.advantage", "low.now", "low.later"}
    torch.testing.assert_close(torch.stack(tuple(credit.terms.values())).sum(0), credit.advantage)


def test_levels_must_match() -> None:
    credit = Credit(torch.zeros(2))
    with pytest.raises(DataError, match="only one of them has action"):
        spread({"action": credit}, TURNS, {})
    with pytest.raises(DataError, match=r"\'value\' has shape \(3,\), the advantage \(2,\)"):
        Credit(torch.zeros(2), {"value": torch.zeros(3)})


def test_the_first_number_that_is_not_finite_is_named() -> None:
    finite("turn", TURNS, reward=torch.zeros(5), level=torch.full((5,), 3e38))  # an overflowing sum is not an error
    with pytest.raises(DataError, match=r"reward of turn 1 \(item 3\) is inf"):
        finite("turn", TURNS, reward=torch.tensor([0, 0, 0, torch.inf, torch.nan]))
    with pytest.raises(DataError, match=r"value of completion 1 is \[0.0, nan\]"):
        finite("completion", None, value=torch.tensor([[0.0, 0.0], [0.0, torch.nan]]))
