"""Credit of planners and executors against the published numbers and naive references."""

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
from turn_trees import flat, tree_of

from echelon.credit.credit import spread
from echelon.credit.groups import grpo
from echelon.credit.roles import himac, peco, select_blueprint
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree

# ---- HiMAC: four candidate blueprints, then four rollouts of the chosen one

EIGHT = Spans.from_lengths([8])
RETURNS = doubles(1, 0, 0, 0.5, 1, 1, 0, 1)
CHOSEN = torch.arange(8) >= 4


def test_himac_macro_and_micro__reconstructed() -> None:
    credits = himac(EIGHT, reward=RETURNS, chosen=CHOSEN)
    printed(credits["macro"].advantage, 1.305580, -0.783348, -0.783348, 0.261116, 0, 0, 0, 0, atol=2e-6)
    printed(credits["micro"].advantage, 0, 0, 0, 0, 0.499999, 0.499999, -1.499997, 0.499999)
    population = himac(EIGHT, reward=RETURNS, chosen=CHOSEN, ddof=0)["macro"]
    printed(population.advantage[:4], 1.507553, -0.904532, -0.904532, 0.301511, atol=3e-6)


def test_himac_selects_the_first_of_the_best__reconstructed() -> None:
    assert select_blueprint(Spans.from_lengths([4]), reward=RETURNS[:4]).tolist() == [0]
    two = Spans.by_key(torch.tensor([0, 1, 0, 1, 1, 0]))
    assert select_blueprint(two, reward=doubles(0, 2, 3, 2, 1, 3)).tolist() == [2, 1]
    with pytest.raises(DataError, match="reward of episode 2 is nan"):
        select_blueprint(two, reward=doubles(0, 2, math.nan, 2, 1, 3))


def test_himac_hand_derived_cases__paper() -> None:
    case = ref.CASES["himac_macro"][0]
    rewards, expected = case["inputs"]["rewards"], case["expected"]
    groups, reward = Spans.from_lengths([len(row) for row in rewards]), flat(rewards)
    none = torch.zeros(groups.size, dtype=torch.bool)
    torch.testing.assert_close(
        himac(groups, reward=reward, chosen=none)["macro"].advantage, flat(expected["advantage"])
    )
    selected = select_blueprint(groups, reward=reward) - groups.starts
    assert selected.tolist() == expected["selected"]
    case = ref.CASES["himac_micro"][0]
    micro = himac(groups, reward=reward, chosen=~none, ddof=case["inputs"]["ddof"])["micro"]
    torch.testing.assert_close(micro.advantage, flat(case["expected"]))


def test_himac_spreads_to_the_tokens_of_each_role__reconstructed() -> None:
    """Sequences of three blueprint tokens and two of the micro policy."""
    credits = himac(EIGHT, reward=RETURNS, chosen=CHOSEN)
    episodes = Spans.from_lengths([5] * 8)
    blueprint = episodes.position < 3
    tokens = spread(credits, episodes, {"macro": blueprint, "micro": ~blueprint})
    assert tokens.weight[:5].tolist() == [1, 1, 1, 0, 0]
    assert tokens.weight[20:25].tolist() == [0, 0, 0, 1, 1]
    printed(tokens.advantage[:5], 1.305580, 1.305580, 1.305580, 0, 0, atol=2e-6)
    printed(tokens.advantage[30:35], 0, 0, 0, -1.499997, -1.499997)


def test_himac_learns_at_the_micro_level_where_blueprints_are_equal__reconstructed() -> None:
    credits = himac(EIGHT, reward=doubles(1, 1, 1, 1, 1, 1, 0, 1), chosen=CHOSEN)
    assert bool((credits["macro"].advantage == 0).all())
    printed(credits["micro"].advantage[4:], 0.499999, 0.499999, -1.499997, 0.499999)
    assert select_blueprint(EIGHT, reward=torch.ones(8)).tolist() == [0]


@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4), data=st.data())
def test_himac_equals_its_naive_reference(rows: list[list[float]], data: st.DataObject) -> None:
    expected = ref.himac_macro(rows)
    groups, reward = Spans.from_lengths([len(row) for row in rows]), flat(rows)
    order = torch.tensor(data.draw(st.permutations(range(groups.size))))
    inverse = torch.argsort(order)
    shuffled = Spans(groups.offsets, order)  # slot i holds item order[i]
    column = reward[inverse]
    macro = himac(shuffled, reward=column, chosen=torch.zeros_like(column, dtype=torch.bool))["macro"]
    torch.testing.assert_close(macro.advantage[order], flat(expected["advantage"]))
    chosen = inverse[select_blueprint(shuffled, reward=column)] - groups.offsets[:-1]
    assert chosen.tolist() == expected["selected"]


# ---- PECO: four planners, the first with three executors

PECO = tree_of([4, 1, 1, 1])
PLANNER = torch.tensor([True, False, False, False, True, True, True])
FACTS = [(1, 1, [0.5], 1), (0.5, 1, [1], 0), (0, 0, [], 0), (0, 1, [1], 1)]
PLANNED = doubles(*[6 * f1 - 3 + plan + sum(run) + 0.5 * refine for f1, plan, run, refine in FACTS])
ROWS = torch.full((7,), math.nan, dtype=torch.float64).index_put((PLANNER,), PLANNED)  # executors' are not read


def test_peco_gives_executors_their_planner_s_advantage__code() -> None:
    printed(PLANNED, 5, 2, -3, -0.5, atol=1e-12)
    printed(PLANNED.mean()[None], 0.875, atol=1e-12)
    printed(PLANNED.std()[None], 3.424787)
    credit = peco(PECO, reward=ROWS, planner=PLANNER)
    printed(credit.advantage, *[1.204454] * 4, 0.328487, -1.131457, -0.401485, atol=1e-6)


def test_peco_passes_a_lone_planner_through__code() -> None:
    tree, planner = tree_of([2]), torch.tensor([True, False])
    printed(peco(tree, reward=doubles(2, 0), planner=planner).advantage, 2, 2, atol=3e-6)
    assert bool((peco(tree, reward=doubles(2, 0), planner=planner, singleton="zero").advantage == 0).all())


def test_peco_executors_may_keep_their_own_credit() -> None:
    verified = torch.tensor([False, True, True, False, False, False, False])
    task = doubles(9, 1, 0, math.nan, 9, 9, 9)
    credit = peco(PECO, reward=ROWS, planner=PLANNER, task_reward=task, verified=verified)
    shared = peco(PECO, reward=ROWS, planner=PLANNER).advantage
    torch.testing.assert_close(credit.advantage[~verified], shared[~verified])
    printed(credit.advantage[verified], 0.707106, -0.707106, atol=1e-6)
    torch.testing.assert_close(credit.terms["planner"] + credit.terms["own"], credit.advantage)
    with pytest.raises(DataError, match="come together"):
        peco(PECO, reward=ROWS, planner=PLANNER, verified=verified)


def test_peco_names_the_trajectory_that_has_no_reward() -> None:
    for reward, planner in ((ROWS.index_fill(0, torch.tensor([5]), math.nan), PLANNER), (ROWS, PLANNER & (ROWS > -3))):
        with pytest.raises(DataError, match="planner_reward of episode 2 is nan"):
            peco(PECO, reward=reward, planner=planner)


def test_peco_hand_derived_cases__paper() -> None:
    inputs, expected = ref.CASES["peco"][0]["inputs"], ref.CASES["peco"][0]["expected"]
    rows = [[[r] + [0.0] * len(e["executor_format"]) for r, e in zip(*pair, strict=True)]
            for pair in zip(expected["reward"], inputs["groups"], strict=True)]  # fmt: skip
    tree = tree_of(*[[len(row) for row in group] for group in rows])
    credit = peco(tree, reward=flat(rows), planner=tree["episode"].position == 0)
    answer = [[[a, *b] for a, b in zip(*pair, strict=True)]
              for pair in zip(expected["planner"], expected["executor"], strict=True)]  # fmt: skip
    torch.testing.assert_close(credit.advantage, flat(answer), atol=1e-9, rtol=0)


@given(forest=forests(), data=st.data())
def test_peco_is_grpo_of_the_planners(forest: Forest, data: st.DataObject) -> None:
    """And the executors' number and rewards do not matter, wherever the planner's row stands."""
    tree: SpanTree = forest.tree
    reward = columns(data.draw, forest.size)
    last = torch.zeros(forest.size, dtype=torch.bool).index_fill(0, tree["episode"].ends, True)
    expected = grpo(tree.within("episode", "group"), reward=reward[tree["episode"].ends], singleton="raw")
    options: Any = {"planner": last}
    credit = peco(tree, reward=torch.where(last, reward, math.nan), **options)
    torch.testing.assert_close(credit.advantage, tree["episode"].expand(expected.advantage))
