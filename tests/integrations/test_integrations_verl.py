"""verl's estimators from echelon's rules: numbers of verl 0.9.1 on one small batch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.groups import gdpo, grpo, opo, reinforce_pp_baseline, rloo
from echelon.errors import DataError
from echelon.integrations.batch import Batch
from echelon.integrations.verl import Estimator, estimator

PAGE = Path(__file__).parents[2] / "docs/integrations.md"
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
SCORES = torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1.0]])
UID = np.array(["p", "q", "p", "q"], dtype=object)


def length(batch: Batch) -> Tensor:
    return batch.tokens.reduce(batch.emitted.to(batch.reward.dtype))


def rows(values: list[float]) -> Tensor:
    """One advantage a completion over its tokens."""
    return torch.tensor(values)[:, None] * MASK


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda b: grpo(b.groups, reward=b.reward, ddof=1, eps=1e-6, singleton="raw"), [-0.707106, 0.707106]),
        (lambda b: rloo(b.groups, reward=b.reward, singleton="raw"), [-1.0, 1.0]),
        (
            lambda b: reinforce_pp_baseline(b.groups, reward=b.reward, length=length(b), singleton="raw"),
            [-1.044466, 0.870388],
        ),
    ],
    ids=["grpo", "rloo", "reinforce_plus_plus_baseline"],
)
def test_group_rules__code(rule: Any, expected: list[float]) -> None:
    advantages, returns = estimator(rule)(
        token_level_rewards=SCORES, response_mask=MASK, index=UID, config={"gamma": 1.0}
    )
    low, high = expected
    torch.testing.assert_close(advantages, rows([low, low, high, high]), atol=1e-6, rtol=0)
    assert torch.equal(returns, advantages)


def test_opo_weighs_by_length__code() -> None:
    rule = estimator(lambda b: opo(b.groups, reward=b.reward, length=length(b), singleton="raw"))
    advantages, _ = rule(SCORES, MASK, UID)
    torch.testing.assert_close(advantages, rows([-0.4, -2 / 3, 0.6, 1 / 3]), atol=1e-6, rtol=0)


def test_gdpo_with_the_configured_columns__code() -> None:
    def rule(b: Batch) -> Credit:
        weights, lengths = b.reward_weights, length(b)
        return gdpo(
            b.groups, rewards=b.rewards, weights=weights, length=lengths, eps=1e-6, var_eps=1e-8, singleton="raw"
        )

    columns = {"fmt": np.array([1.0, 0, 1, 1], dtype=object), "acc": np.array([0.0, 1, 1, 0]), "uid": UID}
    config = {"gdpo_reward_keys": ["fmt", "acc"], "gdpo_reward_weights": [1.0, 0.25]}
    advantages, _ = estimator(rule)(
        token_level_rewards=SCORES, response_mask=MASK, index=UID, config=config, non_tensor_batch=columns, batch={}
    )
    torch.testing.assert_close(advantages, rows([-0.610705, -1.450424, 0.229014, 1.068733]), atol=1e-6, rtol=0)
    with pytest.raises(DataError, match=r"gdpo_reward_keys name \['style'\].*fmt, acc, uid"):
        estimator(rule)(SCORES, MASK, UID, {"gdpo_reward_keys": ["style"]}, non_tensor_batch=columns)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Estimator]:
    """verl's registry, empty, in place of verl."""
    known: dict[str, Estimator] = {}
    module: Any = ModuleType("verl.trainer.ppo.core_algos")
    module.register_adv_est = lambda name: lambda function: known.setdefault(name, function)
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return known


def test_the_page_registers_estimators__code(registry: dict[str, Estimator]) -> None:
    (example,) = re.findall(r"^```python\n(from verl.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(example, PAGE.name, "exec"), {})
    advantages, _ = registry["echelon_rloo"](SCORES, MASK, UID)
    torch.testing.assert_close(advantages, rows([-1.0, -1.0, 1.0, 1.0]))
    # γ = 1, scores less a KL penalty at every token; the penalty of the tool's token at [1, 1] is nobody's
    rewards = SCORES - torch.tensor([[0.1, 0, 0.2, 0], [0, 0.5, 0.1, 0], [0.3, 0, 0, 0], [0, 0.1, 0, 0.1]])
    returns = torch.tensor([[0.7, 0.8, 0.8, 0], [-0.1, 0, -0.1, 0], [1.7, 2, 0, 0], [0.8, 0.8, 0.9, 0.9]])
    mean = returns.sum() / 11
    std = (((returns - mean) ** 2 * MASK).sum() / 10 + 1e-8).sqrt()
    advantages, _ = registry["echelon_reinforce_pp"](token_level_rewards=rewards, response_mask=MASK, config={})
    torch.testing.assert_close(advantages, (returns - mean) / std * MASK)


def test_what_a_rule_sees() -> None:
    seen: list[Batch] = []

    def rule(batch: Batch) -> Credit:
        seen.append(batch)
        column = batch.column("token_reward", "token")
        return Credit(column, {"value": column + 1}, weight=torch.full_like(column, 0.5))

    scores = SCORES.clone()
    scores[2, 2] = 4.0  # verl scores the response's last position, though a tool may have written it
    advantages, returns = estimator(rule)(scores, MASK, reward_baselines=torch.arange(4.0))
    batch = seen[0]
    assert batch.tokens.lengths.tolist() == [3, 3, 3, 4] and batch.emitted.sum() == 11
    assert batch.turns.lengths.tolist() == [3, 2, 1, 3, 4]
    assert batch.groups.n == 4 and batch.reward.tolist() == [1, 0, 6, 1]
    assert batch.column("reward_baseline").tolist() == [0, 1, 2, 3]
    assert torch.equal(advantages, scores * MASK / 2) and torch.equal(returns, (scores + 1) * MASK)


def test_a_row_without_any_token_of_the_policy() -> None:
    empty = torch.zeros(2, 3, dtype=torch.long)
    advantages, _ = estimator(lambda batch: batch.reward + 1)(torch.zeros(2, 3), empty)
    assert torch.equal(advantages, torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        estimator(lambda batch: torch.zeros(3))(SCORES, MASK, UID)
