"""Shaped group advantages against the numbers of their sources, and their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import doubles, printed
from forests import Forest, columns, forests
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.groups import grpo
from echelon.credit.shaped import de_grpo, geometric_gap, hbpo, hrpo, hrpo_split, worldrft
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree


def terms_sum(credit: Credit) -> None:
    torch.testing.assert_close(torch.stack(tuple(credit.terms.values())).sum(0), credit.advantage)


def flat_tree(*episodes: list[int]) -> SpanTree:
    """A tree from the lengths of the episodes, a list a group."""
    return SpanTree(
        {
            "group": Spans.from_lengths([sum(lengths) for lengths in episodes]),
            "episode": (Spans.from_lengths([n for lengths in episodes for n in lengths]), "group"),
        }
    )


FOUR, EIGHT = Spans([0, 4]), Spans([0, 8])

# ---- advantages that are exactly those of a group baseline: Hi-Agent, DeepTravel, HierSearch, ChatShopBuddy, MasHost


def test_hi_agent_foresight_is_grpo_over_the_subgoals_of_a_step__paper() -> None:
    marks = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.float64)
    reward = marks @ doubles(0.4, 0.3, 0.3)  # format, environment, judge
    printed(reward, 1.0, 0.7, 0.7, 0.0)
    printed(grpo(FOUR, reward=reward).advantage, 0.942807, 0.235702, 0.235702, -1.414210)
    printed(grpo(FOUR, reward=reward, ddof=0).advantage, 1.088659, 0.272165, 0.272165, -1.632989)


def test_hi_agent_low_level_is_grpo_with_the_batch_as_the_only_group__paper() -> None:
    reward = doubles(1, 0, 0, 1, 1, 1, 0, 1)
    a, b = 0.724567, -1.207612
    printed(grpo(EIGHT, reward=reward).advantage, a, b, b, a, a, a, b, a)
    a, b = 0.774595, -1.290992
    printed(grpo(EIGHT, reward=reward, ddof=0).advantage, a, b, b, a, a, a, b, a)


def test_hi_agent_an_always_solved_step_is_rewarded_by_the_batch_and_not_by_its_group__paper() -> None:
    steps, reward = Spans.from_lengths([4, 4]), doubles(1, 1, 1, 1, 1, 0, 0, 0)
    assert grpo(steps, reward=reward).advantage[:4].tolist() == [0] * 4
    assert (grpo(EIGHT, reward=reward).advantage[:4] > 0).all()


def test_deeptravel_gated_rewards_are_normalised_as_in_grpo__paper() -> None:
    printed(grpo(FOUR, reward=doubles(1, 0, 0, 1)).advantage, 0.866024, -0.866024, -0.866024, 0.866024)
    one_success = grpo(EIGHT, reward=doubles(1, *[0] * 7)).advantage
    printed(one_success, 2.474867, *[-0.353552] * 7)


def test_hiersearch_rewards_are_normalised_as_in_grpo__code() -> None:
    reward = doubles(0.8, 1 / 15, 0, 1 / 15, 0)
    expected = (1.780455, -0.348350, -0.541878, -0.348350, -0.541878)
    printed(grpo(Spans([0, 5]), reward=reward).advantage, *expected, atol=1e-6)


def test_chatshopbuddy_gated_rewards_are_normalised_as_in_grpo__reconstructed() -> None:
    printed(grpo(FOUR, reward=doubles(1.52, 1.2, 0, 1.25)).advantage, 0.779828, 0.306757, -1.467259, 0.380674)


def test_mashost_group_advantage_is_grpo__paper() -> None:
    reward = doubles(1, 0, 1, 0)
    printed(grpo(FOUR, reward=reward, ddof=0, eps=0).advantage, 1, -1, 1, -1)
    printed(grpo(FOUR, reward=reward, eps=0).advantage, 0.866025, -0.866025, 0.866025, -0.866025)
    assert grpo(FOUR, reward=doubles(1, 1, 1, 1)).advantage.tolist() == [0] * 4


# ---- HBPO


def ceiling(budget: Tensor) -> Tensor:
    return 4 * torch.cos(torch.pi * budget / 8192)


HBPO: dict[str, Any] = {
    "reward": doubles(3.923141, 3.570518, 2.222281, 0),
    "budget": torch.tensor([512, 512, 2560, 2560]),
    "ceiling": ceiling(doubles(512, 512, 2560, 2560)),
}


def test_hbpo_group_of_two_budgets__paper() -> None:
    credit = hbpo(FOUR, **HBPO)
    printed(credit.terms["intra"], -0.176311, -0.176311, -1.111140, -1.111140, atol=1e-6)
    printed(credit.terms["inter"], 0.840604, 0.642220, -0.116291, -1.366533, atol=1e-6)
    printed(credit.advantage, 0.664292, 0.465908, -1.227431, -2.477673, atol=1e-6)
    terms_sum(credit)


def test_hbpo_adds_the_inner_term_twice__code() -> None:
    printed(hbpo(FOUR, **HBPO, intra_coef=2).advantage, 0.487981, 0.289597, -2.338571, -3.588814, atol=2e-6)


def test_hbpo_an_unsolved_prompt_is_pushed_down_by_its_ceilings__paper() -> None:
    credit = hbpo(FOUR, **(HBPO | {"reward": torch.zeros(4, dtype=torch.float64)}))
    torch.testing.assert_close(credit.advantage, -HBPO["ceiling"])


def test_hbpo_one_budget_at_its_ceiling_is_grpo__paper() -> None:
    reward = doubles(2, 0, 1, 1)
    same = hbpo(FOUR, reward=reward, budget=torch.full((4,), 512), ceiling=torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(same.advantage, grpo(FOUR, reward=reward).advantage)


def test_hbpo_leaves_unknown_rewards_out() -> None:
    reward, known = torch.cat([HBPO["reward"], doubles(math.nan)]), torch.tensor([True] * 4 + [False])
    more = {
        "budget": torch.cat([HBPO["budget"], torch.tensor([512])]),
        "ceiling": torch.cat([HBPO["ceiling"], HBPO["ceiling"][:1]]),
    }
    credit = hbpo(Spans([0, 5]), reward=reward, **more, where=known)
    torch.testing.assert_close(credit.advantage[:4], hbpo(FOUR, **HBPO).advantage)
    assert credit.advantage[4] == credit.weight[4] == 0
    terms_sum(credit)


# ---- HRPO


SYSTEMS = flat_tree([3, 4])
EDITS: dict[str, Any] = {"outcome": doubles(1, 0), "reward": doubles(0, -0.1, 0.1, 0, -0.1, -0.1, 0), "eps": 0.0}


def test_hrpo_sum_of_group_and_edits__reconstructed() -> None:
    credit = hrpo(SYSTEMS, **EDITS)
    printed(credit.terms["group"], 1, 1, 1, -1, -1, -1, -1)
    printed(credit.terms["edits"], 0, 0, 0.1, -0.2, -0.2, -0.1, 0)
    printed(credit.advantage, 1.0, 1.0, 1.1, -1.2, -1.2, -1.1, -1.0)
    terms_sum(credit)


def test_hrpo_gate_spares_the_edits_below_the_mean__reconstructed() -> None:
    printed(hrpo(SYSTEMS, **EDITS, combine="gate").advantage, 1.0, 1.0, 1.1, -1, -1, -1, -1)


def test_hrpo_own_reward_only__reconstructed() -> None:
    printed(hrpo(SYSTEMS, **EDITS, gamma=0.0).advantage, 1, 0.9, 1.1, -1, -1.1, -1.1, -1)


def test_hrpo_equal_outcomes_leave_the_edits_or_nothing__reconstructed() -> None:
    solved = EDITS | {"outcome": doubles(1, 1)}
    printed(hrpo(SYSTEMS, **solved).advantage, 0, 0, 0.1, -0.2, -0.2, -0.1, 0)
    assert not hrpo(SYSTEMS, **solved, equal_beta=0.0).advantage.any()


def test_hrpo_split_gives_both_ratios_the_group_and_their_own_rewards__reconstructed() -> None:
    edge = doubles(0, 0, 0, 0, -0.5, 0, 0)
    credits = hrpo_split(
        SYSTEMS, outcome=EDITS["outcome"], node_reward=EDITS["reward"], edge_reward=edge, eps=0.0, beta=2.0
    )
    printed(credits["node"].advantage, 1.0, 1.0, 1.2, -1.4, -1.4, -1.2, -1.0)
    printed(credits["edge"].advantage, 1, 1, 1, -2, -2, -1, -1)


def test_hrpo_without_rewards_of_edits_is_grpo() -> None:
    nothing = torch.zeros(7, dtype=torch.float64)
    base = grpo(Spans([0, 2]), reward=EDITS["outcome"], ddof=0).expand(SYSTEMS["episode"])
    torch.testing.assert_close(hrpo(SYSTEMS, outcome=EDITS["outcome"], reward=nothing).advantage, base.advantage)


# ---- WorldRFT

POINTS = flat_tree([3, 3, 3, 3])
COLLISIONS = -doubles(0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1)


def test_worldrft_normalises_points_and_sums_to_the_end__paper() -> None:
    credit = worldrft(POINTS, reward=COLLISIONS)
    expected = (2, 2, 1, 0, 0, 1, -2, -2, -1, 0, 0, -1)
    printed(credit.terms["now"], 0, 1, 1, 0, -1, 1, 0, -1, -1, 0, 1, -1)
    printed(credit.advantage, *expected)
    terms_sum(credit)
    printed(worldrft(POINTS, reward=COLLISIONS, ddof=1).advantage, *[0.8660254 * x for x in expected])


def test_worldrft_trajectories_that_still_run_are_compared__paper() -> None:
    credit = worldrft(flat_tree([2, 1, 2]), reward=doubles(0, -1, 0, 0, 0))
    printed(credit.advantage, -1, -1, 0, 1, 1)


# ---- DE-GRPO

REWARDS, LOG_PROBS = doubles(1, 0.6, 0.4, 0), doubles(-1, -1.5, -2.5, -4)
LITERAL: dict[str, Any] = {"first_visit": "literal", "ties": "literal", "gate_min": -1.0}


def test_de_grpo_statistics_of_pairs__code() -> None:
    printed(geometric_gap(FOUR, REWARDS), 0.475236)
    printed(geometric_gap(FOUR, LOG_PROBS), 1.426820)
    printed(geometric_gap(FOUR, REWARDS) * geometric_gap(FOUR, LOG_PROBS), 0.678077)
    printed(grpo(FOUR, reward=REWARDS, eps=1e-4).advantage, 1.200673, 0.240135, -0.240135, -1.200673)


@pytest.mark.parametrize(
    ("before", "after", "factor", "gate", "advantage"),
    [
        (math.nan, 0.135615, 0.0, 0.0, (0, 0, 0, 0)),
        (0.0, 0.135615, 0.0, 0.0, (0, 0, 0, 0)),
        (0.3, 0.375615, 1.0, 0.408103, (0.489998, 0.098000, -0.098000, -0.489998)),
        (1.0, 0.935615, 0.5, 0.213339, (0.256150, 0.051230, -0.051230, -0.256150)),
    ],
)
def test_de_grpo_life_cycle__code(before: float, after: float, factor: float, gate: float, advantage: Any) -> None:
    credit, life = de_grpo(
        FOUR, reward=REWARDS, log_prob=LOG_PROBS, smoothed=doubles(before), baseline=doubles(0.1), **LITERAL
    )
    printed(life.smoothed, after)
    printed(life.margin, 0.533333)
    printed(life.gate, gate)
    assert life.factor.tolist() == [factor]
    printed(credit.advantage, *advantage)
    terms_sum(credit)


def test_de_grpo_binary_and_equal_rewards__code() -> None:
    for reward, margin, gap in ((doubles(1, 1, 0, 0), 0.666667, 0.01), (doubles(1, 1, 1, 1), 0, 1e-6)):
        _, life = de_grpo(FOUR, reward=reward, log_prob=LOG_PROBS, smoothed=doubles(0.5))
        printed(life.margin, margin)
        printed(geometric_gap(FOUR, reward, ties="literal"), gap, atol=2e-8)
    printed(geometric_gap(FOUR, doubles(1, 1, 0, 0)), 1.000001)  # of unequal pairs alone
    assert geometric_gap(FOUR, doubles(1, 1, 1, 1)).tolist() == [0]


def test_de_grpo_first_visits_repaired__paper() -> None:
    inputs: dict[str, Any] = {"reward": REWARDS, "log_prob": LOG_PROBS, "smoothed": doubles(math.nan), "baseline": 0.1}
    expected = (0.489998, 0.098000, -0.098000, -0.489998)
    credit, life = de_grpo(FOUR, **inputs)
    printed(life.smoothed, 0.678077)
    printed(credit.advantage, *expected)
    credit, life = de_grpo(FOUR, **inputs, first_visit="discover")
    printed(life.smoothed, 0.135615)
    printed(credit.advantage, *expected)


def test_de_grpo_gate_does_not_turn_advantages_round_unless_asked__paper() -> None:
    inputs: dict[str, Any] = {"reward": REWARDS, "log_prob": LOG_PROBS, "smoothed": doubles(0.5), "baseline": 5.0}
    assert not de_grpo(FOUR, **inputs)[0].advantage.any()
    assert de_grpo(FOUR, **inputs, gate_min=-1.0)[0].advantage[0] < -1


def test_de_grpo_lone_sample_has_no_pair() -> None:
    one = Spans([0, 1])
    credit, life = de_grpo(one, reward=doubles(1), log_prob=doubles(-1), smoothed=doubles(math.nan))
    assert [x.tolist() for x in life] == [[0], [0], [0], [0]]
    assert credit.advantage.tolist() == [0]


# ---- invariances

Rule = Callable[[SpanTree, Tensor, Tensor], Credit]


def run_hbpo(tree: SpanTree, x: Tensor, y: Tensor) -> Credit:
    budget = (2 * tree["episode"].reduce(y, "first")).long()
    reward = tree["episode"].reduce(x, "first")
    return hbpo(tree.within("episode", "group"), reward=reward, budget=budget, ceiling=3.0 - budget)


def run_de_grpo(tree: SpanTree, x: Tensor, y: Tensor) -> Credit:
    groups = tree.within("episode", "group")
    reward, log_prob = (tree["episode"].reduce(z, "first") for z in (x, y))
    return de_grpo(groups, reward=reward, log_prob=log_prob, smoothed=doubles(*[0.5] * groups.n))[0]


def run_hrpo(tree: SpanTree, x: Tensor, y: Tensor) -> Credit:
    return hrpo(tree, outcome=tree["episode"].reduce(x, "first"), reward=y, gamma=0.5, equal_beta=0.25)


RULES: dict[str, Rule] = {
    "hbpo": lambda tree, x, y: run_hbpo(tree, x, y).expand(tree["episode"]),
    "de_grpo": lambda tree, x, y: run_de_grpo(tree, x, y).expand(tree["episode"]),
    "hrpo": run_hrpo,
    "worldrft": lambda tree, x, y: worldrft(tree, reward=x),
}


def packed(forest: Forest) -> SpanTree:
    """The same forest with its items in the order of memory."""
    group, episode = (Spans(forest.tree[name].offsets) for name in ("group", "episode"))
    return SpanTree({"group": group, "episode": (episode, "group")})


@pytest.mark.parametrize("name", RULES)
@given(data=st.data())
def test_permuting_items_permutes_the_result(name: str, data: st.DataObject) -> None:
    forest = data.draw(forests())
    x, y = (columns(data.draw, forest.size) for _ in range(2))
    credit = RULES[name](forest.tree, x, y)
    terms_sum(credit)
    assert torch.isfinite(credit.advantage).all()
    straight = RULES[name](packed(forest), x[forest.slots], y[forest.slots])
    torch.testing.assert_close(credit.advantage[forest.slots], straight.advantage)


@pytest.mark.parametrize("name", ["de_grpo", "hrpo", "worldrft"])  # the ceilings of hbpo are absolute
@given(data=st.data())
def test_shifting_rewards_changes_nothing(name: str, data: st.DataObject) -> None:
    forest = data.draw(forests())
    x, y = (columns(data.draw, forest.size) for _ in range(2))
    shifted = RULES[name](forest.tree, x + 8, y)
    torch.testing.assert_close(shifted.advantage, RULES[name](forest.tree, x, y).advantage)


@given(data=st.data())
def test_equal_rewards_leave_what_is_absolute(data: st.DataObject) -> None:
    forest = data.draw(forests())
    y = columns(data.draw, forest.size)
    x = torch.full_like(y, 0.1)
    assert not worldrft(forest.tree, reward=x).advantage.any()
    assert not run_de_grpo(forest.tree, x, y).advantage.any()
    assert not run_hrpo(forest.tree, x, y).terms["group"].any()
    assert not run_hbpo(forest.tree, x, y).terms["inter"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    hbpo_inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in HBPO.items()}
    assert hbpo(FOUR, **hbpo_inputs).advantage.dtype == dtype
    assert hrpo(SYSTEMS, outcome=EDITS["outcome"].to(dtype), reward=EDITS["reward"].to(dtype)).advantage.dtype == dtype
    assert worldrft(POINTS, reward=COLLISIONS.to(dtype)).advantage.dtype == dtype
    state = torch.tensor([0.3], dtype=dtype)
    credit, life = de_grpo(FOUR, reward=REWARDS.to(dtype), log_prob=LOG_PROBS.to(dtype), smoothed=state)
    assert {credit.advantage.dtype, *(column.dtype for column in life)} == {dtype}


def test_errors_name_the_place() -> None:
    nan = doubles(0, 0, 0, math.nan)
    with pytest.raises(DataError, match="reward of completion 3 is nan"):
        hbpo(FOUR, **(HBPO | {"reward": nan}))
    with pytest.raises(DataError, match="log_prob of completion 3"):
        de_grpo(FOUR, reward=REWARDS, log_prob=nan, smoothed=doubles(0))
    with pytest.raises(DataError, match=r"reward of episode 1 \(item 3\)"):
        hrpo(SYSTEMS, outcome=doubles(1, 0), reward=doubles(0, 0, 0, math.nan, 0, 0, 0))
    with pytest.raises(DataError, match="outcome of episode 1"):
        hrpo(SYSTEMS, outcome=doubles(1, math.inf), reward=EDITS["reward"])
    with pytest.raises(DataError, match=r"reward of episode 3 \(item 10\)"):
        worldrft(POINTS, reward=COLLISIONS.index_fill(0, torch.tensor([10]), math.nan))
