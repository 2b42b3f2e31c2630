"""Group baselines against the published numbers, independent references and their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import doubles
from forests import columns
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_base as ref
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.groups import (
    baseline,
    batch_std,
    dr_grpo,
    gdpo,
    grpo,
    opo,
    pass_at_k,
    reinforce,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    whiten,
)
from echelon.errors import DataError
from echelon.spans import Spans


def packed(rows: list[list[float | None]]) -> tuple[Spans, Tensor, Tensor]:
    """(groups, reward, known) of nested rewards, None where unknown."""
    flat = [x for row in rows for x in row]
    reward = doubles(*[math.nan if x is None else x for x in flat])
    return Spans.from_lengths([len(row) for row in rows]), reward, ~reward.isnan()


def compute(rule: str, rewards: Any, lengths: Any = None, **options: Any) -> Tensor:
    """The rule under test with the arguments of its reference, flat."""
    length = None if lengths is None else torch.tensor([n for row in lengths for n in row])
    if rule == "gdpo":
        groups = Spans.from_lengths([len(row) for row in rewards])
        parts = doubles(*[x for row in rewards for member in row for x in member]).reshape(groups.size, -1)
        named = {str(k): part for k, part in enumerate(parts.T)}
        weights = options.pop("weights", None)
        if weights is not None:
            options["weights"] = {str(k): w for k, w in enumerate(weights)}
        if length is not None:
            options |= {"var_eps": 1e-8}
        options.pop("whiten_eps", None)
        return gdpo(groups, rewards=named, length=length, **options).advantage
    groups, reward, known = packed(rewards)
    if rule == "leave_one_out_mean":
        return reward - baseline(groups, reward, "loo_mean", singleton="raw")
    if rule == "reinforce_batch_mean":
        return reinforce(reward=reward, baseline=reward.mean()).advantage
    if rule == "reinforce_pp":
        return reinforce_pp(groups, reward=reward, **options).advantage
    if rule == "pass_at_k":
        scale = options.pop("scale", True)
        options["eps"] = options.get("eps", 1e-6) if scale else None
        return pass_at_k(groups, reward=reward, **options).advantage
    if rule == "grpo" and options.pop("scale", True) is False:
        rule = "dr_grpo"
    functions: dict[str, Callable[..., Credit]] = {
        "rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo, "batch_std": batch_std,
        "opo": opo, "reinforce_pp_baseline": reinforce_pp_baseline,
    }  # fmt: skip
    if length is not None:
        options["length"] = length
    return functions[rule](groups, reward=reward, where=known, **options).advantage


def expected(rule: str, rewards: Any, answer: Any) -> Tensor:
    """The reference's answer, flat; of leave-one-out means, what remains of the reward."""
    answer = answer["advantage"] if isinstance(answer, dict) else answer
    flat = doubles(*[x for row in answer for x in row])
    return packed(rewards)[1] - flat if rule == "leave_one_out_mean" else flat


RULES = (
    "leave_one_out_mean", "reinforce_batch_mean", "rloo", "grpo", "dr_grpo", "batch_std", "opo", "pass_at_k",
    "reinforce_pp_baseline", "gdpo",
)  # fmt: skip
# references say R for a lone member; released code divides by 1 + eps
TOLERANCE = {"atol": 2e-6, "rtol": 2e-6}


@pytest.mark.parametrize("rule", [*RULES, "reinforce_pp"])
def test_hand_derived_cases__paper(rule: str) -> None:
    for case in ref.CASES[rule]:
        inputs = dict(case["inputs"])
        if rule == "reinforce_pp" and "mask" in inputs:  # tokens that are masked have no item
            mask = inputs.pop("mask")
            kept = [[x for x, m in zip(*pair, strict=True) if m] for pair in zip(inputs["rewards"], mask, strict=True)]
            answer = case["expected"]["advantage"]
            answer = [[x for x, m in zip(*pair, strict=True) if m] for pair in zip(answer, mask, strict=True)]
            torch.testing.assert_close(compute(rule, kept, **{k: v for k, v in inputs.items() if k != "rewards"}),
                                       expected(rule, kept, answer), **TOLERANCE)  # fmt: skip
            continue
        if rule == "reinforce_pp_baseline":
            inputs.setdefault("singleton", "raw")
        if rule == "grpo":
            inputs.setdefault("eps", 1e-4)
        actual = compute(rule, **inputs)
        rtol = 1.1 * inputs["eps"] if inputs.get("singleton") == "raw" and "eps" in inputs else TOLERANCE["rtol"]
        torch.testing.assert_close(actual, expected(rule, inputs["rewards"], case["expected"]), atol=2e-6, rtol=rtol)


@st.composite
def rewards(draw: st.DrawFn, least: int = 1) -> list[list[float]]:
    sizes = draw(st.lists(st.integers(least, 5), min_size=1, max_size=4))
    return [columns(draw, size).tolist() for size in sizes]


OPTIONS: dict[str, dict[str, Any]] = {"grpo": {"eps": 1e-6}, "rloo": {"singleton": "raw"}}


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
def test_equals_its_naive_reference(rule: str, data: st.DataObject) -> None:
    rows: Any = data.draw(rewards(least=2 if rule == "pass_at_k" else 1))
    if sum(map(len, rows)) < 2:
        return  # the spread of a batch of one is not defined
    options = dict(OPTIONS.get(rule, {}))
    if rule in ("grpo", "dr_grpo"):
        options["singleton"] = data.draw(st.sampled_from(["zero", "raw"]))
        rows = [[x if data.draw(st.booleans()) else None for x in row] for row in rows]
    if rule in ("opo", "reinforce_pp_baseline"):
        options["lengths"] = [[data.draw(st.integers(1, 6)) for _ in row] for row in rows]
    if rule == "reinforce_pp_baseline":
        options["singleton"] = "raw"
    if rule == "gdpo":
        rows = [[[x, data.draw(st.sampled_from([0.0, 1.0]))] for x in row] for row in rows]
        options["weights"] = [1.0, 0.5]
    reference = ref.gdpo if rule == "gdpo" else getattr(ref, rule)
    answer = reference(rows, **options)
    torch.testing.assert_close(compute(rule, rows, **options), expected(rule, rows, answer), **TOLERANCE)


GROUP_RULES: dict[str, Callable[..., Credit]] = {
    "rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo, "batch_std": batch_std, "pass_at_k": pass_at_k
}  # fmt: skip


@pytest.mark.parametrize("rule", GROUP_RULES)
@given(rows=rewards(), seed=st.integers(0, 99), shift=st.sampled_from([-3.0, 0.5]))
def test_invariances(rule: str, rows: list[list[float]], seed: int, shift: float) -> None:
    groups, reward, _ = packed([[*row] for row in rows])
    if groups.size < 2:
        return
    function = GROUP_RULES[rule]
    advantage = function(groups, reward=reward).advantage
    order = torch.randperm(groups.size, generator=torch.Generator().manual_seed(seed))
    permuted = function(Spans.by_key(groups.ids[order]), reward=reward[order]).advantage
    if rule != "pass_at_k":  # equal bests keep the sequence of the items
        torch.testing.assert_close(permuted, advantage[order])
    torch.testing.assert_close(function(groups, reward=reward + shift).advantage, advantage)
    credit = function(groups, reward=reward)
    torch.testing.assert_close(sum(credit.terms.values()), credit.advantage)
    assert bool((function(groups, reward=torch.full_like(reward, 0.1)).advantage == 0).all())


# ---- published numbers: rewards [1, 0, 0, 1] and [1, 0, 0, 0]

HALF, ONE = doubles(1, 0, 0, 1), doubles(1, 0, 0, 0)
FOUR = Spans.from_lengths([4])


@pytest.mark.parametrize(
    ("ddof", "eps", "value"), [(1, 1e-4, 0.865875), (1, 1e-6, 0.866024), (0, 0.0, 1.0)], ids=["trl", "verl", "plain"]
)
def test_grpo_of_half_right__code(ddof: int, eps: float, value: float) -> None:
    advantage = grpo(FOUR, reward=HALF, ddof=ddof, eps=eps).advantage
    torch.testing.assert_close(advantage, doubles(value, -value, -value, value), atol=5e-7, rtol=0)


def test_grpo_of_one_right__code() -> None:
    trl = grpo(FOUR, reward=ONE, eps=1e-4).advantage
    torch.testing.assert_close(trl, doubles(1.4997, -0.4999, -0.4999, -0.4999), atol=5e-5, rtol=0)
    verl = grpo(FOUR, reward=ONE, eps=1e-6).advantage
    torch.testing.assert_close(verl, doubles(1.499997, -0.499999, -0.499999, -0.499999), atol=5e-7, rtol=0)


def test_rloo_and_dr_grpo_of_one_right__paper() -> None:
    torch.testing.assert_close(rloo(FOUR, reward=ONE).advantage, doubles(1, -1 / 3, -1 / 3, -1 / 3))
    torch.testing.assert_close(dr_grpo(FOUR, reward=ONE).advantage, doubles(0.75, -0.25, -0.25, -0.25))


def test_rloo_is_a_multiple_of_dr_grpo__paper() -> None:
    reward = doubles(0.3, -1, 2, 0.5)
    torch.testing.assert_close(rloo(FOUR, reward=reward).advantage, 4 / 3 * dr_grpo(FOUR, reward=reward).advantage)


def test_singletons__code() -> None:
    one = Spans.from_lengths([1, 2])
    reward = doubles(3, 1, 0)
    assert grpo(one, reward=reward).advantage[0] == 0
    assert grpo(one, reward=reward, singleton="raw").advantage[0] == pytest.approx(3, abs=1e-5)
    assert rloo(one, reward=reward).advantage[0] == 0
    assert rloo(one, reward=reward, singleton="raw").advantage[0] == 3


def test_unknown_rewards_leave_the_statistics__code() -> None:
    reward = doubles(1, math.nan, 0, 1)
    credit = grpo(FOUR, reward=reward, where=~reward.isnan(), eps=1e-4)
    alone = grpo(Spans.from_lengths([3]), reward=doubles(1, 0, 1), eps=1e-4).advantage
    torch.testing.assert_close(credit.advantage[[0, 2, 3]], alone)
    assert credit.advantage[1] == 0
    assert credit.weight.tolist() == [1, 0, 1, 1]
    with pytest.raises(DataError, match="reward of completion 1 is nan"):
        grpo(FOUR, reward=reward)


def test_large_equal_rewards_have_no_advantage_in_float32() -> None:
    reward = torch.full((7,), 1e4 + 0.1)
    assert bool((grpo(Spans.from_lengths([7]), reward=reward).advantage == 0).all())


def test_whitening_normalises__paper() -> None:
    out = whiten(doubles(1, 2, 3), ddof=0, var_eps=0.0, eps=1e-8)
    torch.testing.assert_close(out, doubles(-1.224745, 0, 1.224745), atol=5e-7, rtol=0)


def test_gdpo_ignores_a_reward_where_it_is_unknown__code() -> None:
    a, b = HALF, doubles(1, math.nan, 0, 0)
    credit = gdpo(FOUR, rewards={"a": a, "b": b}, where={"b": ~b.isnan()})
    summed = grpo(FOUR, reward=a, eps=1e-4).advantage
    summed = summed + grpo(FOUR, reward=b, where=~b.isnan(), eps=1e-4).advantage
    torch.testing.assert_close(credit.advantage, whiten(summed, eps=1e-4, var_eps=0.0))


def test_gdpo_leaves_out_samples_that_no_reward_knows__code() -> None:
    a, b = doubles(1, 0, 0, math.nan), doubles(1, math.nan, 0, math.nan)
    credit = gdpo(FOUR, rewards={"a": a, "b": b}, where={"a": ~a.isnan(), "b": ~b.isnan()})
    alone = gdpo(Spans.from_lengths([3]), rewards={"a": a[:3], "b": b[:3]}, where={"b": ~b[:3].isnan()})
    torch.testing.assert_close(credit.advantage[:3], alone.advantage)
    assert credit.advantage[3] == 0 and credit.weight.tolist() == [1, 1, 1, 0]
