"""Turn-level credit of language agents against the published numbers, naive references and its invariances."""

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
from reference import credit_language as ref
from torch import Tensor
from turn_trees import flat, tree_of

from echelon.credit.credit import Credit
from echelon.credit.groups import grpo
from echelon.credit.turns import (
    at_end,
    gigpo,
    igpo,
    index_groups,
    rloo_to_go,
    rlvmr,
    spa,
    step_groups,
)
from echelon.errors import DataError, UsageError
from echelon.spans import Spans, SpanTree


def keys(nested: Any) -> Tensor:
    """Hashable labels of the turns as int keys."""
    labels = [x for group in nested for episode in group for x in episode]
    return torch.tensor([labels.index(x) for x in labels])


# ---- RLOO to go


def test_rloo_to_go_leaves_the_turn_itself_out__paper() -> None:
    tree = tree_of([2, 1], [3])
    credit = rloo_to_go(tree, reward=doubles(0, 2, 1, 1, 1, 1), gamma=0.5)
    # the second turn of the first episode and the episode without siblings have no baseline
    printed(credit.advantage, 1 - 1, 2, 1 - 1, 1.75, 1.5, 1)


@given(forest=forests(), data=st.data(), gamma=st.sampled_from([1.0, 0.9]))
def test_rloo_to_go_equals_its_definition(forest: Forest, data: st.DataObject, gamma: float) -> None:
    reward = columns(data.draw, forest.size)
    nested = [
        [[sum(gamma ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))] for r in group]
        for group in forest.nest(reward)
    ]
    expected = [
        [
            [
                g - sum(others) / max(len(others), 1)
                for t, g in enumerate(own)
                for others in [[row[t] for j, row in enumerate(group) if j != i and t < len(row)]]
            ]
            for i, own in enumerate(group)
        ]
        for group in nested
    ]
    torch.testing.assert_close(rloo_to_go(forest.tree, reward=reward, gamma=gamma).advantage, forest.pack(expected))


def gradient_of_stopping(advantage: Callable[[SpanTree, Tensor], Tensor], p: float, horizon: int = 3) -> Tensor:
    """E[Σ_t A_t · d log π_t / dp] by enumeration: two episodes that stop after each turn with probability p.

    The reward is 1 at the last turn of an episode that stops at its second turn, and the horizon forces a stop.
    """
    outcomes = []
    for length in range(1, horizon + 1):
        probability = (1 - p) ** (length - 1) * (p if length < horizon else 1)
        score = [-1 / (1 - p)] * (length - 1) + [1 / p if length < horizon else 0]
        outcomes.append((probability, score, [0.0] * (length - 1) + [float(length == 2)]))
    total = doubles(0)
    for probability, score, reward in outcomes:
        for probability_2, score_2, reward_2 in outcomes:
            a = advantage(tree_of([len(reward), len(reward_2)]), doubles(*reward, *reward_2))
            total += probability * probability_2 * (a * doubles(*score, *score_2)).sum() / 2
    return total


def test_rloo_to_go_is_unbiased_where_the_policy_decides_when_to_stop__paper() -> None:
    p = 0.3
    true = 1 - 2 * p  # E[reward] = (1 - p) · p
    printed(gradient_of_stopping(lambda tree, r: rloo_to_go(tree, reward=r).advantage, p), true, atol=1e-12)

    def with_itself(tree: SpanTree, reward: Tensor) -> Tensor:
        to_go, rows = tree["episode"].scan(reward), index_groups(tree)
        return to_go - rows.siblings(to_go, "mean")

    biased = gradient_of_stopping(with_itself, p)
    assert abs(2 * float(biased) - true) > 0.05  # not even up to the factor (G-1)/G of a fixed number of turns


# ---- GiGPO: states A, B, C with rewards 0, 0, 10 and A, B, B with none

TWO = tree_of([3, 3])
REWARD, STATE = doubles(0, 0, 10, 0, 0, 0), torch.tensor([4, -7, 2**40, 4, -7, -7])


def test_gigpo_returns_and_step_groups__paper() -> None:
    printed(TWO["episode"].scan(REWARD, 0.95), 9.025, 9.5, 10, 0, 0, 0, atol=1e-12)
    steps = step_groups(TWO, state=STATE)
    assert steps.ids.tolist() == [0, 1, 2, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({"eps": None}, 5),
        ({"eps": None, "statistics": "episodes"}, 5),
        ({}, 0.912871),
        ({"statistics": "episodes"}, 0.707107),
    ],
    ids=["mean", "mean-episodes", "rows", "episodes"],
)
def test_gigpo_episode_level__code(options: dict[str, Any], level: float) -> None:
    credit = gigpo(TWO, reward=REWARD, state=STATE, **options)
    printed(credit.terms["episode"], *[level] * 3, *[-level] * 3, atol=1e-6)


def test_gigpo_step_level_and_total__code() -> None:
    mean = gigpo(TWO, reward=REWARD, state=STATE, eps=None)
    printed(mean.terms["step"], 4.5125, 6.333333, 0, -4.5125, -3.166667, -3.166667)
    printed(mean.advantage, 9.5125, 11.333333, 5, -9.5125, -8.166667, -8.166667)
    std = gigpo(TWO, reward=REWARD, state=STATE)
    printed(std.terms["step"], 0.707107, 1.154700, 0, -0.707107, -0.577350, -0.577350)
    printed(std.advantage, 1.619977, 2.067571, 0.912871, -1.619977, -1.490221, -1.490221, atol=1e-6)


def test_gigpo_rows_weigh_episodes_by_their_turns__code() -> None:
    tree, reward, state = tree_of([2, 4]), doubles(0, 10, 0, 0, 0, 0), torch.arange(6)
    rows = gigpo(tree, reward=reward, state=state, eps=None)
    printed(rows.advantage, 6.666667, 6.666667, *[-3.333333] * 4)
    episodes = gigpo(tree, reward=reward, state=state, eps=None, statistics="episodes")
    printed(episodes.advantage, 5, 5, -5, -5, -5, -5)


def test_gigpo_singletons__code() -> None:
    """A group of one row passes its score through; a group of one longer episode only if episodes are counted."""
    tree, reward, state = tree_of([1], [2]), doubles(3, 0, 2), torch.tensor([0, 0, 1])
    printed(gigpo(tree, reward=reward, state=state).advantage, 3, 0, 0, atol=4e-6)
    printed(gigpo(tree, reward=reward, state=state, statistics="episodes").advantage, 3, 2, 2, atol=4e-6)
    for statistics in ("rows", "episodes"):
        credit = gigpo(tree, reward=reward, state=state, statistics=statistics, singleton="zero", eps=None)
        assert bool((credit.advantage == 0).all())


@pytest.mark.parametrize("case", range(4))
def test_gigpo_hand_derived_cases__paper(case: int) -> None:
    inputs = dict(ref.CASES["gigpo"][case]["inputs"])
    groups = inputs.pop("groups")
    tree = tree_of(*[[len(e["reward"]) for e in group] for group in groups])
    active = flat([[e.get("active", [1] * len(e["reward"])) for e in group] for group in groups]) > 0
    valid = flat([[e.get("valid", [1] * len(e["reward"])) for e in group] for group in groups])
    credit = gigpo(
        tree,
        reward=flat([[e["reward"] for e in group] for group in groups]),
        state=keys([[e["state"] for e in group] for group in groups]),
        penalty=0.1 * (1 - valid),
        where=active,
        gamma=inputs.get("gamma", 0.95),
        omega=inputs.get("omega", 1.0),
        statistics="episodes" if inputs.get("over") == "trajectories" else "rows",
        ddof=inputs.get("ddof", 1),
        eps=None if inputs.get("mode") == "mean_norm" else 1e-6,
        singleton="raw" if inputs.get("legacy_singleton") else "zero",
    )
    expected = ref.CASES["gigpo"][case]["expected"]
    torch.testing.assert_close(credit.terms["episode"], flat(expected["episode"]))
    torch.testing.assert_close(credit.terms["step"], inputs.get("omega", 1.0) * flat(expected["step"]))
    torch.testing.assert_close(credit.advantage, flat(expected["total"]))
    torch.testing.assert_close(credit.weight, active.double())


GIGPO_OPTIONS = st.fixed_dictionaries(
    {
        "gamma": st.sampled_from([1.0, 0.9]),
        "omega": st.sampled_from([0.0, 0.5, 1.0]),
        "ddof": st.sampled_from([0, 1]),
    }
)


@given(
    forest=forests(),
    data=st.data(),
    options=GIGPO_OPTIONS,
    statistics=st.sampled_from(["rows", "episodes"]),
    mean_only=st.booleans(),
    raw=st.booleans(),
)
def test_gigpo_equals_its_naive_reference(
    forest: Forest, data: st.DataObject, options: dict[str, Any], statistics: Any, mean_only: bool, raw: bool
) -> None:
    reward = columns(data.draw, forest.size)
    state = columns(data.draw, forest.size, -0.5, 0.5).long()
    bits = st.lists(st.booleans(), min_size=forest.size, max_size=forest.size)
    active, valid = torch.tensor(data.draw(bits)), torch.tensor(data.draw(bits))
    credit = gigpo(
        forest.tree,
        reward=torch.where(active, reward, math.nan),
        state=state,
        penalty=0.1 * ~valid,
        where=active,
        statistics=statistics,
        eps=None if mean_only else 1e-6,
        singleton="raw" if raw else "zero",
        **options,
    )
    columns_ = {"reward": reward, "state": state, "active": active, "valid": valid}
    nested = {name: forest.nest(column) for name, column in columns_.items()}
    groups = [
        [{name: nested[name][g][i] for name in nested} for i in range(len(forest.lengths[g]))]
        for g in range(len(forest.lengths))
    ]
    expected = ref.gigpo(
        groups,
        mode="mean_norm" if mean_only else "mean_std_norm",
        over="rows" if statistics == "rows" else "trajectories",
        legacy_singleton=raw,
        **options,
    )
    # references say R for a lone member; released code divides by 1 + eps
    tolerance = {"atol": 2e-6, "rtol": 2e-6}
    torch.testing.assert_close(credit.advantage, forest.pack(expected["total"]), **tolerance)
    torch.testing.assert_close(credit.terms["episode"], forest.pack(expected["episode"]), **tolerance)


@given(forest=forests(), data=st.data(), statistics=st.sampled_from(["rows", "episodes"]))
def test_gigpo_without_repeated_states_is_grpo(forest: Forest, data: st.DataObject, statistics: Any) -> None:
    tree, reward = forest.tree, columns(data.draw, forest.size)
    credit = gigpo(tree, reward=reward, state=torch.arange(forest.size), statistics=statistics, singleton="zero")
    total = tree["episode"].reduce(reward)
    if statistics == "rows":
        expected = grpo(tree["group"], reward=tree["episode"].expand(total)).advantage
    else:
        expected = tree["episode"].expand(grpo(tree.within("episode", "group"), reward=total).advantage)
    torch.testing.assert_close(credit.advantage, expected)
    assert bool((credit.terms["step"] == 0).all())


@given(forest=forests(), data=st.data())
def test_gigpo_invariances(forest: Forest, data: st.DataObject) -> None:
    tree, reward = forest.tree, columns(data.draw, forest.size)
    state = columns(data.draw, forest.size, -0.5, 0.5).long()
    credit = gigpo(tree, reward=reward, state=state)
    torch.testing.assert_close(credit.terms["episode"] + credit.terms["step"], credit.advantage)
    without = gigpo(tree, reward=reward, state=state, omega=0.0)
    torch.testing.assert_close(without.advantage, credit.terms["episode"])
    given_steps = gigpo(tree, reward=reward, state=step_groups(tree, state=state))
    torch.testing.assert_close(given_steps.advantage, credit.advantage)
    hashed = gigpo(tree, reward=reward, state=(state + 1) * (2**62 - 1))  # too far apart for one key with the group
    torch.testing.assert_close(hashed.advantage, credit.advantage)


@given(forest=forests(), data=st.data(), mean_only=st.booleans())
def test_equal_values_have_no_advantage(forest: Forest, data: st.DataObject, mean_only: bool) -> None:
    tree, key = forest.tree, columns(data.draw, forest.size, -0.5, 0.5).long()
    eps = None if mean_only else 1e-6
    outcome = torch.full((tree["episode"].n,), 0.1)  # in float32, whose rounding errors a tiny eps would inflate
    level = gigpo(tree, reward=at_end(tree["episode"], outcome), state=key, eps=eps, singleton="zero").terms["episode"]
    assert bool((level == 0).all())
    same = torch.full((forest.size,), 0.1)
    step = gigpo(tree, reward=same, state=key, gamma=0.0, eps=eps).terms["step"]
    tagged = rlvmr(tree, score=same, meta=same, tag=key, eps=eps, singleton="zero").advantage
    assert bool((step == 0).all() and (tagged == 0).all())
    assert bool((igpo(tree, gain=same, outcome=outcome).advantage == 0).all())


@pytest.mark.parametrize("rule", ["rloo_to_go", "gigpo", "rlvmr", "igpo"])
@given(forest=forests(), data=st.data(), seed=st.integers(0, 99))
def test_permuting_episodes_permutes_the_credit(rule: str, forest: Forest, data: st.DataObject, seed: int) -> None:
    """Episodes taken in another sequence, groups included, give the same credit to the same turns."""
    tree = forest.tree
    reward, other = columns(data.draw, forest.size), columns(data.draw, forest.size)
    state = columns(data.draw, forest.size, -0.5, 0.5).long()
    outcome = columns(data.draw, tree["episode"].n)

    def credit(tree: SpanTree, items: Tensor, episodes: Tensor) -> Credit:
        if rule == "rloo_to_go":
            return rloo_to_go(tree, reward=reward[items])
        if rule == "gigpo":
            return gigpo(tree, reward=reward[items], state=state[items])
        if rule == "rlvmr":
            return rlvmr(tree, score=reward[items], meta=other[items], tag=state[items])
        return igpo(tree, gain=reward[items], outcome=outcome[episodes])

    shuffled = torch.randperm(tree["episode"].n, generator=torch.Generator().manual_seed(seed))
    taken, items = tree.take("episode", shuffled)
    whole = credit(tree, torch.arange(forest.size), torch.arange(tree["episode"].n))
    torch.testing.assert_close(credit(taken, items, shuffled).advantage, whole.advantage[items])
    torch.testing.assert_close(sum(whole.terms.values()), whole.advantage)


# ---- RLVMR: a success with tags P, E, E, R and a failure with P, E and an invalid turn

SEVEN = tree_of([4, 3])
SCORE, META = doubles(10, 10, 10, 10, 0, 0, -0.1), doubles(1, 1, 0, 1, 0, 1, 0)
TAG = torch.tensor([0, 1, 1, 2, 0, 1, 3])


def test_rlvmr_levels__code() -> None:
    credit = rlvmr(SEVEN, score=SCORE, meta=META, tag=TAG)
    printed(credit.terms["episode"], *[0.801768] * 4, -1.062809, -1.062809, -1.081455)
    printed(credit.terms["meta"], 0.707106, 0.577349, -1.154699, 0.999999, -0.707106, 0.577349, 0)


def test_rlvmr_totals__code() -> None:
    one = rlvmr(SEVEN, score=SCORE, meta=META, tag=TAG)
    printed(one.advantage, 1.508874, 1.379117, -0.352930, 1.801767, -1.769915, -0.485460, -1.081455, atol=1e-6)
    half = rlvmr(SEVEN, score=SCORE, meta=META, tag=TAG, w=0.5)
    printed(half.advantage, 1.155321, 1.090443, 0.224419, 1.301768, -1.416362, -0.774134, -1.081455, atol=1e-6)
    mean = rlvmr(SEVEN, score=SCORE, meta=META, tag=TAG, eps=None)
    printed(mean.terms["episode"], 4.3, 4.3, 4.3, 4.3, -5.7, -5.7, -5.8, atol=1e-12)
    zero = rlvmr(SEVEN, score=SCORE, meta=META, tag=TAG, singleton="zero")
    assert zero.terms["meta"][3] == 0


@pytest.mark.parametrize("case", range(2))
def test_rlvmr_hand_derived_cases__paper(case: int) -> None:
    inputs, expected = ref.CASES["rlvmr"][case]["inputs"], ref.CASES["rlvmr"][case]["expected"]
    groups = inputs["groups"]
    alpha = inputs.get("alpha")
    outcome = [[[10 * e["success"] - 0.1 * (1 - valid) for valid in e["valid"]] for e in group] for group in groups]
    credit = rlvmr(
        tree_of(*[[len(e["tag"]) for e in group] for group in groups]),
        score=flat(outcome),
        meta=flat(expected["meta"]),
        tag=keys(expected["tag"]),
        w=inputs["w"] if alpha is None else (1 - alpha) / alpha,
        scope="batch" if inputs.get("scope") == "batch" else "group",
        eps=None if inputs.get("mode") == "mean_norm" else 1e-6,
        singleton="raw" if inputs.get("legacy_singleton", True) else "zero",
    )
    total = credit.advantage if alpha is None else alpha * credit.advantage
    torch.testing.assert_close(total, flat(expected["total"]), atol=2e-6, rtol=0)


@given(forest=forests(), data=st.data(), scope=st.sampled_from(["group", "batch"]), raw=st.booleans())
def test_rlvmr_equals_its_naive_reference(forest: Forest, data: st.DataObject, scope: Any, raw: bool) -> None:
    names = ["planning", "explore", "reflection", "monitor"]
    groups = [
        [
            {
                "tag": [data.draw(st.sampled_from(names)) for _ in range(length)],
                "valid": [data.draw(st.booleans()) for _ in range(length)],
                "admissible": [data.draw(st.booleans()) for _ in range(length)],
                "action": [data.draw(st.sampled_from("ab")) for _ in range(length)],
                "success": data.draw(st.booleans()),
            }
            for length in lengths
        ]
        for lengths in forest.lengths
    ]
    expected = ref.rlvmr(groups, legacy_singleton=raw, scope="task" if scope == "group" else "batch")
    outcome = [[[10.0 * e["success"] - 0.1 * (not v) for v in e["valid"]] for e in group] for group in groups]
    tags = [[[float([*names, "none"].index(tag)) for tag in row] for row in group] for group in expected["tag"]]
    credit = rlvmr(
        forest.tree,
        score=forest.pack(outcome),
        meta=forest.pack(expected["meta"]),
        tag=forest.pack(tags).long(),
        scope=scope,
        singleton="raw" if raw else "zero",
    )
    torch.testing.assert_close(credit.advantage, forest.pack(expected["total"]), atol=2e-5, rtol=2e-6)


# ---- what all of them owe


RULES: dict[str, Callable[[SpanTree, Tensor], Credit]] = {
    "rloo_to_go": lambda tree, x: rloo_to_go(tree, reward=x),
    "gigpo": lambda tree, x: gigpo(tree, reward=x, state=torch.zeros(len(x), dtype=torch.int64)),
    "gigpo, penalty": lambda tree, x: gigpo(tree, reward=torch.ones_like(x), state=TAG, penalty=x),
    "rlvmr, score": lambda tree, x: rlvmr(tree, score=x, meta=META.to(x), tag=TAG),
    "rlvmr, meta": lambda tree, x: rlvmr(tree, score=SCORE.to(x), meta=x, tag=TAG),
    "igpo, gain": lambda tree, x: igpo(tree, gain=x, outcome=x.new_ones(2)),
    "igpo, column": lambda tree, x: igpo(tree, gain=x, outcome=x.new_ones(2), statistics="column"),
    "spa, attribution": lambda tree, x: spa(tree["episode"], attribution=x, grounded=x * 0, value=x * 0),
}


@pytest.mark.parametrize("rule", RULES)
def test_not_a_number_is_refused_with_its_episode(rule: str) -> None:
    column = META.clone()
    column[5] = math.nan
    with pytest.raises(DataError, match="of episode 1 "):
        RULES[rule](SEVEN, column)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_credit_keeps_the_precision_of_its_input(rule: str, dtype: torch.dtype) -> None:
    credit = RULES[rule](SEVEN, META.to(dtype))
    assert {credit.advantage.dtype, credit.weight.dtype, *(c.dtype for c in credit.terms.values())} == {dtype}
    torch.testing.assert_close(credit.advantage.double(), RULES[rule](SEVEN, META).advantage, atol=1e-5, rtol=1e-5)


@given(forest=forests(), data=st.data(), shift=st.sampled_from([-3.0, 0.5]))
def test_a_bonus_for_everyone_changes_nothing(forest: Forest, data: st.DataObject, shift: float) -> None:
    tree, reward = forest.tree, columns(data.draw, forest.size)
    tag, outcome = columns(data.draw, forest.size, -0.5, 0.5).long(), columns(data.draw, tree["episode"].n)
    bonus = at_end(tree["episode"], torch.full_like(outcome, shift))
    plain, richer = (gigpo(tree, reward=r, state=tag, singleton="zero") for r in (reward, reward + bonus))
    torch.testing.assert_close(richer.terms["episode"], plain.terms["episode"])
    plain, richer = (rlvmr(tree, score=r, meta=r, tag=tag, singleton="zero") for r in (reward, reward + shift))
    torch.testing.assert_close(richer.advantage, plain.advantage)
    plain, richer = (igpo(tree, gain=reward + s, outcome=outcome + s) for s in (0.0, shift))
    torch.testing.assert_close(richer.advantage, plain.advantage)


def test_options_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="state must be 6 int keys, one a turn"):
        gigpo(TWO, reward=REWARD, state=STATE[:5])
    with pytest.raises(DataError, match=r"got torch\.float64"):
        gigpo(TWO, reward=REWARD, state=REWARD)
    with pytest.raises(UsageError, match="unknown statistics"):
        gigpo(TWO, reward=REWARD, state=STATE, statistics="turns")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown scope"):
        rlvmr(SEVEN, score=SCORE, meta=META, tag=TAG, scope="task")  # type: ignore[arg-type]


def test_no_turns_at_all() -> None:
    empty = SpanTree({"group": Spans([0]), "episode": (Spans([0]), "group")})
    none, state = torch.empty(0), torch.empty(0, dtype=torch.int64)
    assert len(gigpo(empty, reward=none, state=state).advantage) == 0
    assert len(rloo_to_go(empty, reward=none).advantage) == 0
    assert len(rlvmr(empty, score=none, meta=none, tag=state).advantage) == 0
    assert len(igpo(empty, gain=none, outcome=none).advantage) == 0
