"""Hierarchical advantage estimation against its source's numbers, an independent reference and its two limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import bools, doubles, same
from forests import Forest, column, columns, forest_of, forests, scalars
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_language_values as ref
from torch import Tensor

from echelon.credit.credit import Credit, spread
from echelon.credit.returns import gae
from echelon.credit.segments import (
    boundaries,
    hae,
    normalise_levels,
    switch_difference,
    switch_return,
)
from echelon.errors import DataError
from echelon.objectives.turns import copy_penalty, keep_penalty
from echelon.spans import Spans, SpanTree

Groups = list[list[dict[str, Any]]]


def near(actual: Tensor, *expected: float, digits: int = 6) -> None:
    torch.testing.assert_close(actual, doubles(*expected), atol=0.51 * 10.0**-digits, rtol=0)


def tree_of(switch: Tensor, episodes: Spans) -> SpanTree:
    return SpanTree({"episode": episodes, "segment": (boundaries(switch, episodes), "episode")})


# ---- numbers of the source

WON = {
    "reward": doubles(0, 0, 0, 0, 1),
    "low_value": doubles(0.2, 0.3, 0.4, 0.5, 0.7),
    "high_value": doubles(0.25, 0.35, 0.45, 0.55, 0.65),
    "term_value": doubles(0, 0, 0, 0, 0),
}
CUT = {name: (doubles(0, 0, 0) if name == "reward" else x[:3]) for name, x in WON.items()}
TWO_SEGMENTS = tree_of(bools(1, 0, 1, 0, 0), Spans([0, 5]))


def test_hae_discounted__code() -> None:
    out = hae(TWO_SEGMENTS, **WON, gamma=0.9, lam_turn=0.95, lam_seg=0.95)
    near(out["low"].advantage, 0.159775, 0.105, 0.380458, 0.3865, 0.3)
    near(out["high"].advantage[[0, 2]], 0.39152, 0.36)
    near(out["high"].target["high"][[0, 2]], 0.64152, 0.81)
    near(out["switch"].target["term"], 0.3645, 0.405, 0.81, 0.9, 1)
    assert out["high"].weight.tolist() == [1, 0, 1, 0, 0]
    assert out["high"].target["high"].isnan().tolist() == [False, True, False, True, True]
    torch.testing.assert_close(out["low"].target["low"], out["low"].advantage + WON["low_value"])


def test_hae_undiscounted__code() -> None:
    out = hae(TWO_SEGMENTS, **WON)  # the defaults
    near(out["low"].advantage, 0.25, 0.15, 0.6, 0.5, 0.3)
    near(out["high"].advantage, 0.7225, 0, 0.55, 0, 0)
    near(out["switch"].advantage, 0.45, 0.45, 1, 1, 1)


@pytest.mark.parametrize("truncation", ["own", "zero"])
def test_hae_truncated__code(truncation: Any) -> None:
    tree = tree_of(bools(1, 0, 1), Spans([0, 3]))
    x = {"gamma": 0.9, "lam_turn": 0.95, "lam_seg": 0.95, "terminated": bools(0)}
    out = hae(tree, **CUT, **x, truncation=truncation)
    own = truncation == "own"
    near(out["low"].advantage, 0.159775, 0.105, -0.04 if own else -0.4)
    near(out["high"].advantage[[0, 2]], *((0.0798725, -0.045) if own else (-0.231775, -0.45)), digits=7)
    near(out["switch"].target["term"], 0.3645, 0.405, 0.405 if own else 0)
    given = {"final_low_value": doubles(0.4 if own else 0), "final_high_value": doubles(0.45 if own else 0)}
    for level, credit in hae(tree, **CUT, **x, **given).items():
        assert torch.equal(credit.advantage, out[level].advantage)


def test_switch_difference__paper() -> None:
    credit = switch_difference(
        Spans([0, 5]),
        switch=bools(1, 0, 1, 0, 0),
        probability=doubles(1, 0.3, 0.6, 0.2, 0.1),
        high_value=WON["high_value"],
        low_value=doubles(0, 0.3, 0.32, 0.5, 0.7),
    )
    near(credit.advantage, 0, -0.015, 0.052, -0.01, 0.005)
    assert credit.weight.tolist() == [0, 1, 1, 1, 1]  # at first there is nothing to keep


def test_keep_penalty__code() -> None:
    switch, one = bools(1, 0, 1, 0, 0), Spans([0, 5])
    shaped = keep_penalty(one, reward=doubles(0, 0, 0, 0, 0), switch=switch, penalty=-3.5)
    near(shaped, 0, -0.7, 0, -0.7, -0.7)
    near(shaped.sum()[None], -2.1)
    near(keep_penalty(one, reward=WON["reward"], switch=switch, penalty=-0.3, scale="fixed"), 0, -0.3, 0, -0.3, 0.7)


def test_normalisation__code() -> None:
    credits = {"low": Credit(doubles(1, 2, 3)), "high": Credit(doubles(1, 9, 2), weight=doubles(1, 0, 1))}
    out = normalise_levels(credits)
    near(out["low"].advantage, -1.224745, 0, 1.224745)
    near(out["high"].advantage, -1, 0, 1)


# ---- an independent reference


def compute(rule: str, groups: Groups, **options: Any) -> Any:
    """The rule under test on nested episodes, in the form in which its reference answers."""
    forest = forest_of(groups)
    episodes, segments = forest.tree["episode"], forest.tree["segment"]
    reward, switch = column(groups, "reward"), column(groups, "switch") > 0
    if rule == "hae_rewards":
        return forest.nest(rewards_of(groups, episodes, reward, switch, **options))
    own = options.pop("bootstrap_truncated", True)
    normalise = options.pop("norm_adv", True)
    paper = options.pop("switch_form", "code") == "paper"
    out = hae(
        forest.tree,
        reward=reward,
        low_value=column(groups, "v_low"),
        high_value=column(groups, "v_high"),
        term_value=column(groups, "v_term"),
        terminated=scalars(groups, "terminated") > 0,
        truncation="own" if own else "zero",
        **options,
    )
    if rule == "hae":
        if paper:
            out["switch"] = difference_of(groups, episodes, switch)
        owns = {"switch": column(groups, "has_switch") > 0, "high": column(groups, "has_subgoal") > 0}
        if normalise:
            out = normalise_levels(out, owns)
        return {level: forest.nest(credit.advantage) for level, credit in out.items()}
    level, head = {"hae_low": ("low", "low"), "hae_high": ("high", "high")}.get(rule, ("switch", "term"))
    credit = out[level]
    answer = {"advantage": credit.advantage, "return": credit.target[head].nan_to_num()}
    if level != "switch":
        start = torch.zeros(forest.size).index_fill(0, segments.starts, 1) if level == "high" else 1
        value = column(groups, f"v_{level}") * start
        answer["target"] = credit.terms["td_error"] + value
    return {name: forest.nest(x) for name, x in answer.items()}


def difference_of(groups: Groups, episodes: Spans, switch: Tensor) -> Credit:
    return switch_difference(
        episodes,
        switch=switch,
        probability=column(groups, "switch_prob"),
        high_value=column(groups, "v_high"),
        low_value=column(groups, "v_low_previous"),
    )


def rewards_of(groups: Groups, episodes: Spans, reward: Tensor, switch: Tensor, **options: Any) -> Tensor:
    texts = [text for group in groups for e in group for text in e.get("subgoal", [""] * len(e["reward"]))]
    names = {"": -1} | {text: i for i, text in enumerate(dict.fromkeys(filter(None, texts)))}
    subgoal = torch.tensor([names[text] for text in texts])
    penalty, mode = options.get("keep_penalty", 0.0), options.get("keep_mode", "normalized")
    reward = reward - options.get("invalid_penalty", 0.1) * (1 - column(groups, "valid"))
    reward = keep_penalty(episodes, reward=reward, switch=switch, penalty=penalty, scale=mode)
    penalty = options.get("consistency_penalty", -0.3)
    return copy_penalty(episodes, reward=reward, switch=switch, subgoal=subgoal, penalty=penalty)


@pytest.mark.parametrize("rule", ["hae_low", "hae_high", "hae_switch_value_head", "hae", "hae_rewards"])
def test_hand_derived_cases__code(rule: str) -> None:
    for case in ref.CASES[rule]:
        assert same(compute(rule, **case["inputs"]), case["expected"], 1e-8)


def test_hand_derived_switch_differences__paper() -> None:
    for case in ref.CASES["hae_switch_difference"]:
        groups = [[{**e, "reward": e["switch"]} for e in group] for group in case["inputs"]["groups"]]
        episodes = forest_of(groups).tree["episode"]
        got = difference_of(groups, episodes, column(groups, "switch") > 0).advantage
        expected = doubles(*(a for group in case["expected"] for row in group for a in row))
        torch.testing.assert_close(got, torch.where(episodes.position > 0, expected, 0))


@st.composite
def batches(draw: st.DrawFn) -> Groups:
    groups: Groups = []
    for lengths in draw(forests(max_groups=2)).lengths:
        groups.append([])
        for t in lengths:
            names = ("reward", "v_low", "v_high", "v_term", "v_low_previous", "switch_prob")
            episode: dict[str, Any] = {name: columns(draw, t).tolist() for name in names}
            for name in ("switch", "has_switch", "has_subgoal", "valid"):
                episode[name] = draw(st.lists(st.integers(0, 1), min_size=t, max_size=t))
            episode["switch"][0] = episode["switch_prob"][0] = 1
            episode["subgoal"] = draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=t, max_size=t))
            episode["terminated"] = draw(st.booleans())
            groups[-1].append(episode)
    return groups


@given(groups=batches(), own=st.booleans(), paper=st.booleans())
def test_equals_its_naive_reference(groups: Groups, own: bool, paper: bool) -> None:
    options: dict[str, Any] = {"gamma": 0.8, "bootstrap_truncated": own}
    levels = {"lam_turn": 0.7, "lam_seg": 0.6, "switch_form": "paper" if paper else "code", "norm_adv": False}
    assert same(compute("hae", groups, **options, **levels), ref.hae(groups, **options, **levels))
    expected = ref.hae_low(groups, **options, lam_turn=0.7)
    assert same(compute("hae_low", groups, **options, lam_turn=0.7), expected)
    expected = ref.hae_high(groups, **options, lam_seg=0.6)
    assert same(compute("hae_high", groups, **options, lam_seg=0.6), expected)
    assert same(compute("hae_rewards", groups, keep_penalty=-0.5), ref.hae_rewards(groups, keep_penalty=-0.5))


@given(groups=batches())
def test_normalisation_equals_its_naive_reference(groups: Groups) -> None:
    forest = forest_of(groups)
    advantage, use = column(groups, "v_low"), column(groups, "has_switch")
    got = normalise_levels({"low": Credit(advantage)}, {"low": use > 0})["low"].advantage
    owner = [[[int(x) for x in row] for row in group] for group in forest.nest(use)]
    assert same(forest.nest(got), ref.hae_normalise(forest.nest(advantage), owner), 1e-7)


# ---- limits and invariances


@given(forest=forests(), data=st.data())
def test_limits_are_gae(forest: Forest, data: st.DataObject) -> None:
    episodes, n = forest.tree["episode"], forest.tree["episode"].n
    x = {name: columns(data.draw, forest.size) for name in ("reward", "low_value", "high_value", "term_value")}
    finals = {"final_low_value": columns(data.draw, n), "final_high_value": columns(data.draw, n)}
    end = {"terminated": torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))}
    options: dict[str, Any] = {"gamma": 0.9, "lam_turn": 0.8, "lam_seg": 0.7}
    tree = tree_of(torch.ones(forest.size, dtype=torch.bool), episodes)
    always = hae(tree, **x, **end, **finals, **options)
    flat = {"reward": x["reward"], "gamma": 0.9, **end}
    high = gae(episodes, **flat, value=x["high_value"], lam=0.7, final_value=finals["final_high_value"])
    torch.testing.assert_close(always["high"].advantage, high.advantage)
    torch.testing.assert_close(always["high"].target["high"], high.target["value"])
    assert always["high"].weight.all()
    tree = tree_of(torch.zeros(forest.size, dtype=torch.bool), episodes)
    never = hae(tree, **x, **end, **finals, **options)
    low = gae(episodes, **flat, value=x["low_value"], lam=0.8, final_value=finals["final_low_value"])
    torch.testing.assert_close(never["low"].advantage, low.advantage)
    assert never["high"].weight.sum() == n


@given(forest=forests(), data=st.data())
def test_order_and_terms(forest: Forest, data: st.DataObject) -> None:
    """Items and episodes in another order give the same numbers; parts sum to the advantage; discounts may vary."""
    names = ("reward", "low_value", "high_value", "term_value")
    x = {name: columns(data.draw, forest.size) for name in names}
    got = hae(forest.tree, **x, gamma=torch.full((forest.size,), 0.9, dtype=torch.float64))
    plain = SpanTree({name: (Spans(forest.tree[name].offsets), forest.tree.parent(name)) for name in forest.tree})
    packed = hae(plain, **{name: column[forest.slots] for name, column in x.items()}, gamma=0.9)
    turned, items = forest.tree.take("episode", torch.arange(forest.tree["episode"].n).flip(0))
    backwards = hae(turned, **{name: column[items] for name, column in x.items()}, gamma=0.9)
    for level, credit in got.items():
        torch.testing.assert_close(credit.advantage[forest.slots], packed[level].advantage)
        torch.testing.assert_close(credit.advantage[items], backwards[level].advantage)
        torch.testing.assert_close(torch.stack(list(credit.terms.values())).sum(0), credit.advantage)


@given(forest=forests(), data=st.data())
def test_boundaries(forest: Forest, data: st.DataObject) -> None:
    episodes = forest.tree["episode"]
    switch = columns(data.draw, forest.size) > 0
    segments = boundaries(switch, episodes)
    starts = torch.zeros(forest.size, dtype=torch.bool).index_fill(0, segments.starts, True)
    assert torch.equal(starts, switch | (episodes.position == 0))
    segments.within(episodes)  # refines


def test_exact_values_leave_no_advantage() -> None:
    tree = tree_of(bools(0, 1, 0, 0), Spans([0, 4]))
    value = doubles(0.729, 0.81, 0.9, 1)
    out = hae(tree, reward=doubles(0, 0, 0, 1), low_value=value, high_value=value, term_value=value, gamma=0.9)
    for credit in out.values():
        near(credit.advantage, 0, 0, 0, 0, digits=12)
    for credit in normalise_levels({"low": Credit(torch.full((3,), 0.1))}).values():
        assert credit.advantage.tolist() == [0, 0, 0]


def test_switch_return_stands_alone() -> None:
    segments = TWO_SEGMENTS["segment"]
    x = {"reward": WON["reward"], "term_value": doubles(0.1, 0.1, 0.1, 0.1, 0.1)}
    credit = switch_return(segments, **x, next_value=doubles(0.45, 0), gamma=0.9)
    near(credit.advantage, 0.2645, 0.305, 0.71, 0.8, 0.9)


def test_difference_is_the_advantage_over_both_choices() -> None:
    """Weighed by its probabilities, the credit of SWITCH and of KEEP cancels: E[A] = 0."""
    x = {"probability": doubles(1, 0.3), "high_value": doubles(2, 5), "low_value": doubles(1, 1)}
    one = Spans([0, 2])
    switch = switch_difference(one, switch=bools(1, 1), **x).advantage[1]
    keep = switch_difference(one, switch=bools(1, 0), **x).advantage[1]
    near((0.3 * switch + 0.7 * keep)[None], 0, digits=12)
    near((switch - keep)[None], 4, digits=12)
    undefined = {**x, "low_value": doubles(math.nan, 1)}
    assert switch_difference(one, switch=bools(1, 1), **undefined).advantage.tolist() == [0, switch]


def test_tokens_take_the_credit_of_their_level() -> None:
    out = hae(TWO_SEGMENTS, **WON, gamma=0.9, lam_turn=0.95)
    turns = Spans.from_lengths([4] * 5)  # switch, subgoal, action, and a token of nobody
    label = torch.arange(20) % 4
    tokens = spread(out, turns, {"switch": label == 0, "high": label == 1, "low": label == 2})
    near(tokens.advantage[label == 1], 0.39152, 0, 0.36, 0, 0)
    assert tokens.weight[label == 1].tolist() == [1, 0, 1, 0, 0]
    assert tokens.weight[label == 3].tolist() == [0] * 5
    near(tokens.advantage[label == 2], 0.159775, 0.105, 0.380458, 0.3865, 0.3)
    assert torch.equal(tokens.advantage[label == 0], out["switch"].advantage)


def test_float32_and_degenerate_sizes() -> None:
    out = hae(TWO_SEGMENTS, **{name: x.float() for name, x in WON.items()}, gamma=0.9)
    assert all(credit.advantage.dtype == torch.float32 for credit in out.values())
    none = Spans([0])
    empty = hae(tree_of(bools(), none), reward=doubles(), low_value=doubles(), high_value=doubles())
    assert all(len(credit.advantage) == 0 for credit in normalise_levels(empty).values())
    single = hae(tree_of(bools(0), Spans([0, 1])), reward=doubles(3), low_value=doubles(1), high_value=doubles(2))
    assert (single["low"].advantage.item(), single["high"].advantage.item()) == (2, 1)
    unowned = normalise_levels(single, {"high": bools(0)})["high"]
    assert (unowned.advantage.item(), unowned.weight.item()) == (0, 0)
    assert unowned.target.keys() == {"high"}


def test_bad_input_names_the_episode() -> None:
    tree = tree_of(bools(1, 0, 1, 1), Spans([0, 2, 4]))
    x = {"reward": doubles(0, 0, 0, 0), "low_value": doubles(0, 0, 0, 0), "high_value": doubles(0, 0, 0, 0)}
    for name in x:
        with pytest.raises(DataError, match=f"{name} of episode 1"):
            hae(tree, **{**x, name: doubles(0, 0, math.nan, 0)})
    with pytest.raises(DataError, match="term_value of episode 1"):
        hae(tree, **x, term_value=doubles(0, 0, 0, math.inf))
    with pytest.raises(DataError, match="episode 1 was truncated: give `final_low_value`"):
        hae(tree, **x, terminated=bools(1, 0))
    with pytest.raises(DataError, match="final_high_value of episode 1 is nan"):
        hae(tree, **x, final_low_value=doubles(0, 0), final_high_value=doubles(0, math.nan))
    with pytest.raises(DataError, match="unknown truncation 'none'"):
        hae(tree, **x, truncation="none")  # type: ignore[arg-type]
    unread = {**x, "high_value": doubles(0, math.nan, 0, 0)}  # V_high is looked at where a segment starts
    assert hae(tree, **unread)["high"].advantage.isfinite().all()
