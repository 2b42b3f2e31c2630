"""Dense rewards of turns (IGPO, SPA-RL) against the published numbers and naive references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import doubles, printed
from forests import Forest, columns, forests
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_language as ref
from reference import credit_language_values as values
from turn_trees import flat, tree_of

from echelon.credit.groups import rloo
from echelon.credit.turns import at_end, even_reward, igpo, information_gain, spa, spa_reward
from echelon.errors import DataError, UsageError
from echelon.spans import Spans

# ---- IGPO


def test_information_gain__paper() -> None:
    probability = torch.tensor([[0.1, 0.2], [0.2, 0.4], [0.4, 0.4]], dtype=torch.float64)
    s = probability.log().mean(1)
    printed(s, -1.956012, -1.262864, -0.916291)
    episodes = Spans.from_lengths([2])
    printed(information_gain(episodes, log_prob=s[1:], initial=s[:1]), 0.693147, 0.346574)
    printed(s.exp(), 0.141421, 0.282843, 0.4)
    by_probability = information_gain(episodes, log_prob=s[1:], initial=s[:1], scale="probability")
    printed(by_probability, 0.141421, 0.117157)


@pytest.mark.parametrize("case", range(3))
def test_information_gain_hand_derived_cases__paper(case: int) -> None:
    inputs, expected = ref.CASES["igpo_gains"][case]["inputs"], ref.CASES["igpo_gains"][case]["expected"]
    tokens = torch.tensor(inputs["log_probs"], dtype=torch.float64)
    if "floor" in inputs:  # of tokens; `floor` below bounds their mean
        tokens = tokens.clamp(min=math.log(inputs["floor"]))
    s = tokens.mean(1)
    scale: Any = "probability" if inputs.get("form") == "prob" else "log"
    gain = information_gain(Spans.from_lengths([len(s) - 1]), log_prob=s[1:], initial=s[:1], scale=scale)
    torch.testing.assert_close(gain, flat(expected))


def test_information_gain_of_an_impossible_answer() -> None:
    episodes, log_prob, initial = Spans.from_lengths([1, 1]), doubles(-1, -math.inf), doubles(-2, -2)
    printed(information_gain(episodes, log_prob=log_prob, initial=initial, floor=-5.0), 1, -3)
    gain = information_gain(episodes, log_prob=log_prob, initial=initial, scale="probability")
    printed(gain, math.exp(-1) - math.exp(-2), -math.exp(-2))
    with pytest.raises(DataError, match="log_prob of episode 1"):
        information_gain(episodes, log_prob=log_prob, initial=initial)


IGPO = tree_of([3, 3])
GAIN, OUTCOME = doubles(0.2, 0.1, math.nan, -0.1, 0.2, math.nan), doubles(1, 0.5)


def test_igpo_of_the_pool__paper() -> None:
    sample = igpo(IGPO, gain=GAIN, outcome=OUTCOME, eps=0.0)
    printed(sample.advantage, 1.414214, 0.707107, 0.707107, -1.414214, 0, -0.707107)
    population = igpo(IGPO, gain=GAIN, outcome=OUTCOME, eps=0.0, ddof=0)
    printed(population.advantage, 1.816497, 1, 1, -1.816497, -0.183503, -1)


def test_igpo_rewards_before_they_are_summed__paper() -> None:
    sample = igpo(IGPO, gain=GAIN, outcome=OUTCOME, eps=0.0, gamma=0.0)
    printed(sample.advantage, 0.707107, 0, 0.707107, -1.414214, 0.707107, -0.707107)
    population = igpo(IGPO, gain=GAIN, outcome=OUTCOME, eps=0.0, ddof=0, gamma=0.0)
    printed(population.advantage, 0.816497, 0, 1, -1.632993, 0.816497, -1)


def test_igpo_of_columns__code() -> None:
    credit = igpo(IGPO, gain=GAIN, outcome=OUTCOME, statistics="column")
    printed(credit.terms["gain"] + credit.terms["outcome"], 1.3, 1.1, 1, 0.6, 0.7, 0.5)
    printed(credit.advantage, 0.35, 0.2, 0.25, -0.35, -0.2, -0.25)


def test_igpo_counts_finished_episodes_as_zero_in_a_column__code() -> None:
    credit = igpo(tree_of([2, 1]), gain=doubles(0.5, 0, 0), outcome=doubles(1, 0), statistics="column")
    printed(credit.advantage, 1.5 - 0.75, 1 - 0.5, 0 - 0.75)


def test_igpo_clips_extreme_gains() -> None:
    tree, outcome = tree_of([2, 2]), doubles(0, 0)
    credit = igpo(tree, gain=doubles(100, 0, -1, 0), outcome=outcome, clip=2.0, statistics="column")
    printed(credit.terms["gain"], 2, 0, -1, 0)


@pytest.mark.parametrize("case", range(2))
def test_igpo_hand_derived_cases__paper(case: int) -> None:
    inputs, expected = ref.CASES["igpo"][case]["inputs"], ref.CASES["igpo"][case]["expected"]
    groups = inputs["groups"]
    credit = igpo(
        tree_of(*[[len(e["gain"]) for e in group] for group in groups]),
        gain=flat([[e["gain"] for e in group] for group in groups]),
        outcome=flat([[e["outcome"] for e in group] for group in groups]),
        gamma=inputs.get("gamma", 1.0),
        eps=1e-8,
    )
    torch.testing.assert_close(credit.advantage, flat(expected["advantage"]))


@given(forest=forests(), data=st.data(), gamma=st.sampled_from([1.0, 0.5]), ddof=st.sampled_from([0, 1]))
def test_igpo_equals_its_naive_reference(forest: Forest, data: st.DataObject, gamma: float, ddof: int) -> None:
    gain, outcome = columns(data.draw, forest.size), columns(data.draw, forest.tree["episode"].n)
    nested, ends = forest.nest(gain), forest.nest_episodes(outcome)
    groups = [
        [{"gain": g, "outcome": o} for g, o in zip(*pair, strict=True)] for pair in zip(nested, ends, strict=True)
    ]
    expected = ref.igpo(groups, gamma=gamma, eps=1e-6, ddof=ddof)["advantage"]
    credit = igpo(forest.tree, gain=gain, outcome=outcome, gamma=gamma, ddof=ddof)
    torch.testing.assert_close(credit.advantage, forest.pack(expected))


@given(data=st.data(), lengths=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=3))
def test_igpo_of_token_columns_equals_its_naive_reference(data: st.DataObject, lengths: list[list[int]]) -> None:
    """On tokens, as the released code: `lengths` are turns an episode, the items are tokens."""
    groups: Any = []
    for group in lengths:
        rows = []
        for turns in group:
            mask = [[1, *data.draw(st.lists(st.integers(0, 1), max_size=2))] for _ in range(turns)]
            mask[-1].append(1)  # an episode ends with a token of the model
            gains = columns(data.draw, turns).tolist()
            rows.append({"mask": mask, "gain": gains, "outcome": float(columns(data.draw, 1))})
        groups.append(rows)
    gain = [
        [
            [
                e["gain"][t] if j == max(k for k, flag in enumerate(turn) if flag) else 0.0
                for t, turn in enumerate(e["mask"])
                for j in range(len(turn))
            ]
            for e in group
        ]
        for group in groups
    ]
    tree = tree_of(*[[len(row) for row in group] for group in gain])
    outcome = flat([[e["outcome"] for e in group] for group in groups])
    credit = igpo(tree, gain=flat(gain), outcome=outcome, statistics="column")
    model = flat([[[float(flag) for turn in e["mask"] for flag in turn] for e in group] for group in groups])
    expected = ref.igpo_column_mean(groups)["advantage"]
    torch.testing.assert_close(credit.advantage * model, flat(expected))


# ---- SPA-RL

FOUR = Spans.from_lengths([4])
SHARES, GROUNDED = doubles(0.1, 0.3, -0.05, 0.5), torch.tensor([True, False, True, True])


def test_spa_reward_and_advantage__paper() -> None:
    printed(spa_reward(FOUR, attribution=SHARES, grounded=GROUNDED), 0.6, 0.3, 0.45, 1.0, atol=1e-12)
    value = doubles(0.5, 0.6, 0.7, 0.8)
    credit = spa(FOUR, attribution=SHARES, grounded=GROUNDED, value=value)
    printed(credit.advantage, 1.74785, 1.103, 0.74, 0.2, atol=1e-12)
    torch.testing.assert_close(credit.target["value"], credit.advantage + value)


def test_spa_reward_of_the_released_trainer__code() -> None:
    stored = doubles(1, 0.5, 1, 1)
    reward = spa_reward(FOUR, attribution=stored, grounded=torch.zeros(4), form="code")
    printed(reward, 3, 1, 1, 0, atol=1e-12)


def test_spa_constant_of_the_released_example_is_leave_one_out__code() -> None:
    constant = rloo(Spans.from_lengths([3]), reward=doubles(1, 0, 0.5)).expand(Spans.from_lengths([4, 1, 1]))
    printed(constant.advantage[:4], 0.75, 0.75, 0.75, 0.75, atol=1e-12)


def test_spa_even_reward__paper() -> None:
    printed(even_reward(FOUR, outcome=doubles(1)), 0.25, 0.25, 0.25, 0.25, atol=1e-12)


def test_rewards_of_turns_sit_on_their_last_tokens__paper() -> None:
    stretches = Spans.from_lengths([2, 3, 2, 3])  # the environment's and the assistant's in turn
    placed = at_end(stretches, doubles(0, 0.6, 0, 0.3))
    assert placed.nonzero()[:, 0].tolist() == [4, 9]
    printed(placed[[4, 9]], 0.6, 0.3, atol=1e-12)


@given(forest=forests(), data=st.data(), gamma=st.sampled_from([1.0, 0.9]))
def test_spa_equals_its_naive_reference(forest: Forest, data: st.DataObject, gamma: float) -> None:
    attribution, value = columns(data.draw, forest.size), columns(data.draw, forest.size)
    grounded = torch.tensor([data.draw(st.booleans()) for _ in range(forest.size)])
    final = columns(data.draw, forest.tree["episode"].n)
    nested = [forest.nest(column) for column in (attribution, value, grounded)]
    ends = forest.nest_episodes(final)
    groups = [
        [{"contribution": c[i], "value": v[i], "executable": g[i], "final_value": f[i]} for i in range(len(c))]
        for c, v, g, f in zip(*nested, ends, strict=True)
    ]
    credit = spa(
        forest.tree["episode"],
        attribution=attribution,
        grounded=grounded,
        value=value,
        gamma=gamma,
        final_value=final,
    )
    torch.testing.assert_close(credit.advantage, forest.pack(values.spa_turn_advantages(groups, gamma=gamma)))


def test_options_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="one value a span expected, 2 of them"):
        igpo(IGPO, gain=GAIN, outcome=doubles(1, 2, 3), statistics="column")
    with pytest.raises(DataError, match="outcome of episode 1 is nan"):
        igpo(IGPO, gain=GAIN, outcome=doubles(1, math.nan))
    with pytest.raises(UsageError, match="unknown statistics"):
        igpo(IGPO, gain=GAIN, outcome=OUTCOME, statistics="rows")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown scale"):
        information_gain(FOUR, log_prob=SHARES, initial=doubles(0), scale="bits")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown form"):
        spa_reward(FOUR, attribution=SHARES, grounded=GROUNDED, form="released")  # type: ignore[arg-type]
