"""Selections of samples and tokens against the numbers of their sources, brute force, and their invariances."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from checks import bools, doubles, printed
from forests import columns, forests
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from echelon.credit.groups import grpo
from echelon.credit.selection import (
    after_prefix,
    d3s,
    d3s_budget,
    d3s_samples,
    d3s_tokens,
    dcpo,
    positive_nll_weight,
    thor,
)
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree


def indices(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


EIGHT = Spans([0, 8])

# ---- DCPO

BUDDIES: dict[str, Any] = {
    "reward": doubles(1.5, 1.5, 1.2, 0, 0, 1.0, 0, 1.5),
    "length": torch.tensor([300, 120, 200, 90, 400, 250, 150, 500]),
}


def test_dcpo_keeps_short_right_and_long_wrong_samples__reconstructed() -> None:
    a, b = 0.866024, -0.866024
    credit = dcpo(EIGHT, **BUDDIES)
    assert indices(credit.weight) == [0, 1, 4, 6]
    printed(credit.advantage, a, a, 0, 0, b, 0, b, 0)
    a, b = 0.926549, -1.171298
    credit = dcpo(EIGHT, **BUDDIES, statistics="all")
    assert indices(credit.weight) == [0, 1, 4, 6]
    printed(credit.advantage, a, a, 0, 0, b, 0, b, 0)


def test_dcpo_drops_groups_without_contrast__reconstructed() -> None:
    groups = Spans.from_lengths([4, 4])
    credit = dcpo(groups, reward=doubles(1, 1, 1, 1, 1, 0, 1, 1), length=torch.arange(8))
    assert indices(credit.weight) == [4, 5]
    assert not dcpo(groups, reward=torch.ones(8), length=torch.arange(8), statistics="all").weight.any()


@given(data=st.data())
def test_dcpo_ends_are_disjoint_and_half_of_the_group(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 16))
    reward, length = columns(data.draw, size), columns(data.draw, size, 0, 4)
    credit = dcpo(Spans([0, size]), reward=reward, length=length)
    kept = indices(credit.weight)
    assert len(kept) in (0, 2 * max(1, size // 4))
    order = sorted(range(size), key=lambda i: (-reward[i], length[i], i))
    side = len(kept) // 2
    assert kept == sorted(order[:side] + order[size - side :])
    if not kept:
        side = min(max(1, size // 4), size // 2)
        assert len({float(reward[i]) for i in order[:side] + order[size - side :]}) <= 1


def test_dcpo_of_unknown_rewards_and_permuted_groups() -> None:
    known = bools(1, 1, 1, 1, 1, 1, 1, 1, 0)
    reward = torch.cat([BUDDIES["reward"], doubles(math.nan)])
    length = torch.cat([BUDDIES["length"], torch.tensor([1])])
    order = torch.tensor([8, 3, 0, 5, 7, 1, 6, 2, 4])
    credit = dcpo(Spans([0, 9], order), reward=reward, length=length, where=known)
    torch.testing.assert_close(credit.advantage[:8], dcpo(EIGHT, **BUDDIES).advantage)
    assert indices(credit.weight) == [0, 1, 4, 6]
    with pytest.raises(DataError, match="reward of completion 8 is nan"):
        dcpo(Spans([0, 9]), reward=reward, length=length)


# ---- D3S

THREE = Spans.from_lengths([4, 4, 4])
OUTCOMES = doubles(1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1)


def test_d3s_keeps_the_extremes_of_the_batch__paper() -> None:
    advantage = grpo(THREE, reward=OUTCOMES, ddof=0, eps=0).advantage
    a, b = 1.732051, 0.57735
    printed(advantage, a, -b, -b, -b, b, b, b, -a, 0, 0, 0, 0, atol=1e-6)
    kept = d3s_samples(THREE, advantage=advantage, keep=4 / 3)
    assert indices(kept) == [0, 1, 4, 7]  # two of each sign, ties by index
    printed(advantage[kept].var(correction=0), 1.666667)
    splits = [
        torch.cat([advantage.sort().values[: 4 - k], advantage.sort().values[12 - k :]]).var(correction=0)
        for k in range(5)
    ]
    printed(torch.stack(splits), 0.25, 1.583333, 1.666667, 1.583333, 0.25)
    brute = max(advantage[list(some)].var(correction=0) for some in itertools.combinations(range(12), 4))
    printed(brute, 1.666667)


def test_d3s_within_groups_and_without_spread__paper() -> None:
    advantage = grpo(THREE, reward=OUTCOMES, ddof=0, eps=0).advantage
    assert indices(d3s_samples(THREE, advantage=advantage, keep=2, scope="group")) == [0, 1, 4, 7]
    assert indices(d3s_samples(THREE, advantage=advantage, keep=4, scope="group")) == list(range(8))
    assert not d3s_samples(THREE, advantage=torch.zeros(12), keep=2).any()
    assert indices(d3s_samples(THREE, advantage=advantage, keep=9)) == list(range(12))


@given(data=st.data())
def test_d3s_samples_have_the_largest_variance_of_all_subsets(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    size = sum(lengths)
    order = torch.tensor(data.draw(st.permutations(range(size))))
    groups, x = Spans(torch.tensor([0, *itertools.accumulate(lengths)]), order), columns(data.draw, size)
    keep = data.draw(st.integers(1, 4))
    for scope, pools in (("group", [order[a:b] for a, b in itertools.pairwise(groups.offsets.tolist())]),
                         ("batch", [torch.arange(size)])):  # fmt: skip
        kept = d3s_samples(groups, advantage=x, keep=keep, scope=scope)
        for pool in pools:
            count = min(keep if scope == "group" else keep * groups.n, len(pool))
            best = max(float(x[list(some)].var(correction=0)) for some in itertools.combinations(pool.tolist(), count))
            mine = [i for i in pool.tolist() if kept[i]]
            assert len(mine) == (count if best > 0 else 0)
            assert best <= 0 or float(x[mine].var(correction=0)) == pytest.approx(best)


def test_d3s_tokens_by_advantage_times_entropy__paper() -> None:
    answers = Spans.by_key(torch.tensor([0, 0, 1, 1, 1, 0]))
    inputs = {"advantage": doubles(1.5, 1.5, -0.5, -0.5, -0.5, 1.5), "entropy": doubles(0.1, 0.8, 2, 0.3, 0, 0.4)}
    printed(inputs["advantage"].abs() * inputs["entropy"], 0.15, 1.2, 1.0, 0.15, 0, 0.6)
    assert indices(d3s_tokens(answers, **inputs, share=0.5)) == [1, 2, 5]
    assert indices(d3s_tokens(answers, **inputs, share=0.5, scope="answer")) == [1, 2, 3, 5]
    assert indices(d3s_tokens(answers, **inputs, share=0.5, where=bools(1, 0, 1, 1, 1, 0))) == [0, 2]
    assert d3s_tokens(answers, **inputs, share=1.0).all()


def test_d3s_rounds_shares_up_once() -> None:
    batch = Spans([0, 35])
    chosen = d3s_tokens(batch, advantage=torch.ones(35), entropy=torch.arange(35.0), share=0.2)  # 7.000000000000001
    assert indices(chosen) == list(range(28, 35))


def test_d3s_budget_relaxes_on_a_straight_line__paper() -> None:
    for progress, expected in ((0.0, (4, 0.2)), (0.5, (6, 0.6)), (1.0, (8, 1))):
        assert d3s_budget(progress, first=(4, 0.2), last=(8, 1)) == pytest.approx(expected)


@given(data=st.data())
def test_d3s_with_all_data_is_grpo(data: st.DataObject) -> None:
    forest = data.draw(forests())
    episodes, entropy = forest.tree["episode"], columns(data.draw, forest.size, 0, 2)
    reward = torch.cat([columns(data.draw, episodes.n - 1), doubles(9)])  # not all equal, as long as there are two
    credit = d3s(forest.tree, reward=reward, entropy=entropy, keep=4.0, share=1.0)
    base = grpo(forest.tree.within("episode", "group"), reward=reward, ddof=0).expand(episodes)
    torch.testing.assert_close(credit.advantage, base.advantage)
    if base.advantage.any():
        assert credit.weight.all()
    else:
        assert not credit.weight.any()


def test_d3s_picks_tokens_of_picked_samples_only__paper() -> None:
    tree = SpanTree({"group": Spans.from_lengths([3, 3]), "episode": (Spans.from_lengths([2, 1, 1, 2]), "group")})
    entropy = doubles(1, 2, 3, 9, 9, 9)
    credit = d3s(tree, reward=doubles(1, 0, 1, 1), entropy=entropy, keep=1, share=0.5, eps=0)
    printed(credit.advantage, 1, 1, -1, 0, 0, 0)
    assert indices(credit.weight) == [1, 2]
    with pytest.raises(DataError, match=r"entropy of completion 3 \(item 5\)"):
        d3s(
            tree,
            reward=doubles(1, 0, 1, 1),
            entropy=entropy.index_fill(0, torch.tensor([5]), math.nan),
            keep=1,
            share=1,
        )


# ---- THOR


def test_thor_step_group__code() -> None:
    passes = doubles(1, 0, 1, 1)
    a, b = 0.499999, -1.499997
    credit = thor(Spans([0, 4]), reward=passes, valid=bools(1, 1, 1, 1), step=bools(1, 1, 1, 1))
    printed(credit.advantage, a, b, a, a)
    printed(credit.terms["step"], a, b, a, a)
    assert not credit.terms["trajectory"].any()


def test_thor_levels_have_their_own_groups_and_filters__paper() -> None:
    groups = Spans.from_lengths([4, 4, 4, 2])
    reward = doubles(1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1, math.nan, 1, 1)
    valid = bools(1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1)
    step = bools(*[0] * 8, *[1] * 6)
    credit = thor(groups, reward=reward, valid=valid, step=step)
    # kept: three of four; dropped: one of four; kept: a step group of which half is left; dropped: all passed
    assert indices(credit.weight) == [0, 1, 2, 8, 9]
    printed(credit.advantage[:3], 1.154699, -0.577350, -0.577350, atol=2e-6)
    printed(credit.advantage[8:10], 0.707106, -0.707106, atol=2e-6)
    assert not credit.advantage[10:].any()
    torch.testing.assert_close(credit.terms["step"] + credit.terms["trajectory"], credit.advantage)
    assert indices(thor(groups, reward=reward, valid=valid, step=step, step_share=0.6).weight) == [0, 1, 2]


def test_thor_lone_survivor_keeps_its_raw_reward__code() -> None:
    inputs: dict[str, Any] = {"reward": doubles(1, 0), "valid": bools(1, 0), "step": bools(1, 1)}
    assert not thor(Spans([0, 2]), **inputs).weight.any()
    credit = thor(Spans([0, 2]), **inputs, singleton="raw")
    printed(credit.advantage, 0.999999, 0)
    assert indices(credit.weight) == [0]


def test_thor_positive_nll__code() -> None:
    log_prob = doubles(-0.5, -1, -0.2, -2)
    advantage = doubles(0.5, 0.5, -1.5, 0.5)
    weight = positive_nll_weight(advantage=advantage, mask=bools(1, 1, 1, 0), alpha=1.0)
    printed(-(weight * log_prob).sum(), 0.75)
    weight = positive_nll_weight(advantage=advantage, mask=bools(1, 1, 1, 0))
    printed(-(weight * log_prob).sum(), 0.0075)
    assert not positive_nll_weight(advantage=-advantage, mask=bools(1, 1, 0, 1)).any()


def test_thor_prefix_mask__code() -> None:
    assert after_prefix(Spans([0, 10]), prefix=torch.tensor([6])).long().tolist() == [0] * 6 + [1] * 4
    two = Spans.by_key(torch.tensor([0, 1, 0, 1, 0]))
    assert after_prefix(two, prefix=torch.tensor([2, 0])).tolist() == [False, True, False, True, True]


@given(data=st.data())
def test_permuting_items_permutes_the_selection(data: st.DataObject) -> None:
    forest = data.draw(forests())
    size, slots = forest.size, forest.slots
    group, episode = (Spans(forest.tree[name].offsets) for name in ("group", "episode"))
    packed = SpanTree({"group": group, "episode": (episode, "group")})
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    reward, entropy = (torch.rand(size, generator=generator, dtype=torch.float64) for _ in range(2))  # no ties
    valid, step = columns(data.draw, size) > -1, (columns(data.draw, group.n) > 0)[forest.tree["group"].ids]

    there = thor(forest.tree["group"], reward=reward, valid=valid, step=step)
    here = thor(group, reward=reward[slots], valid=valid[slots], step=step[slots])
    torch.testing.assert_close(there.advantage[slots], here.advantage)
    assert torch.equal(there.weight[slots], here.weight)

    outcome = forest.tree["episode"].reduce(reward, "first")
    for scope in ("batch", "group"):
        options: dict[str, Any] = {"keep": 1.5, "share": 0.5, "sample_scope": scope}
        there = d3s(forest.tree, reward=outcome, entropy=entropy, **options)
        here = d3s(packed, reward=outcome, entropy=entropy[slots], **options)
        torch.testing.assert_close(there.advantage[slots], here.advantage)
        assert torch.equal(there.weight[slots], here.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    reward = BUDDIES["reward"].to(dtype)
    credits = [
        dcpo(EIGHT, reward=reward, length=BUDDIES["length"]),
        thor(EIGHT, reward=reward, valid=reward > 0, step=reward > 2),
        d3s(SpanTree({"group": EIGHT, "episode": (Spans(range(9)), "group")}),
            reward=reward, entropy=reward, keep=4, share=0.5),
    ]  # fmt: skip
    assert {column.dtype for credit in credits for column in (credit.advantage, credit.weight)} == {dtype}
    assert positive_nll_weight(advantage=reward, mask=reward > 0).dtype == dtype
