"""Planners: the worked examples, naive references on random candidates, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import hilp as reference
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.planning.midpoint import midpoint_judge, nearest_midpoint
from echelon.hierarchy.planning.select import Judgement, ReachableThenUseful, plan, select

EXAMPLES = torch.tensor([[0, 2], [1, 0], [2, 0], [4, 0], [2, 0.5], [1.5, 3]], dtype=torch.float64)
HERE, THERE = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[4.0, 0.0]], dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- mid-points


def test_midpoints_worked_example():
    scores = midpoint_judge(HERE, EXAMPLES, THERE).scores
    assert scores[0].tolist() == pytest.approx([-4.4721, -3, -2, -4, -2.0616, -3.9051], abs=5e-5)
    aims = [nearest_midpoint(HERE, THERE, EXAMPLES, 2, rounds)[0].tolist() for rounds in range(4)]
    assert aims == [[4, 0], [2, 0.25], [1.5, 0], [1.5, 0]]
    for rounds, chosen in ((1, {2, 4}), (2, {1, 2}), (3, {1, 2})):
        choice = plan(HERE, THERE, lambda s, g: EXAMPLES, midpoint_judge, 2, rounds)
        assert set(choice.chosen[0].tolist()) == chosen


def test_a_planned_row_is_unaffected_by_the_others():
    here, there = torch.cat([HERE, HERE + 1]), torch.cat([THERE, THERE - 3])
    both = nearest_midpoint(here, there, EXAMPLES, 2, 3)
    assert both[0].tolist() == [1.5, 0]
    torch.testing.assert_close(both[1:], nearest_midpoint(here[1:], there[1:], EXAMPLES, 2, 3))


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 30), st.integers(1, 40), st.integers(1, 3))
def test_midpoints_equal_a_naive_search(seed, b, n, neighbours, rounds):
    here, there, examples = draw(seed, b, 3), draw(seed + 1, b, 3), draw(seed + 2, n, 3)
    got = nearest_midpoint(here, there, examples, neighbours, rounds).numpy()
    for row in range(b):
        expected = reference.midpoint(here[row].numpy(), there[row].numpy(), examples.numpy(), neighbours, rounds)
        np.testing.assert_allclose(got[row], expected, atol=1e-9)


def test_candidates_of_each_row_and_shared_ones_are_judged_alike():
    here, there = draw(0, 3, 2), draw(1, 3, 2)
    shared = midpoint_judge(here, EXAMPLES, there)
    own = midpoint_judge(here, EXAMPLES.expand(3, -1, -1), there)
    torch.testing.assert_close(shared.scores, own.scores)
    for k in (1, 2, 6):
        one, other = (select(c, there, shared, k) for c in (EXAMPLES, EXAMPLES.expand(3, -1, -1)))
        assert torch.equal(one.aim, other.aim) and torch.equal(one.chosen, other.chosen)


def test_without_examples_or_rounds_the_goal_is_the_aim():
    assert torch.equal(nearest_midpoint(HERE, THERE, EXAMPLES[:0], 2, 3), THERE)
    assert torch.equal(nearest_midpoint(HERE, THERE, EXAMPLES, 2, 0), THERE)


def test_with_fewer_examples_than_neighbours_all_are_averaged():
    torch.testing.assert_close(nearest_midpoint(HERE, THERE, EXAMPLES, 50, 1), EXAMPLES.mean(0, keepdim=True))


# --- reachable, then useful


REACHED, USEFUL = (-10.0, -35.0, -22.0, -28.0), (-30.0, -5.0, -12.0, -20.0)


def table(own: float, reached: tuple[float, ...] = REACHED):
    """V of the worked example: the state is 0, candidate i is i + 1, the goal is 9."""

    def value(s: Tensor, g: Tensor) -> Tensor:
        rows = []
        for a, b in zip(s[:, 0].int().tolist(), g[:, 0].int().tolist(), strict=True):
            rows.append(own if (a, b) == (0, 9) else reached[b - 1] if a == 0 else USEFUL[a - 1])
        return torch.tensor(rows)

    return value


def choose(own: float, reach: float = -30, reached: tuple[float, ...] = REACHED):
    candidates = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    judge = ReachableThenUseful(table(own, reached), reach)
    return plan(torch.zeros(1, 1), torch.full((1, 1), 9.0), lambda s, g: candidates, judge)


def test_selection_worked_example():
    """Candidate 1 is too far away; candidate 2 is worth -12: better than the goal's -25, not than its -11."""
    assert choose(-25).chosen.tolist() == [[2]] and choose(-25).aim.tolist() == [[3.0]]
    assert choose(-11).chosen.tolist() == [[-1]] and choose(-11).aim.tolist() == [[9.0]]


@pytest.mark.parametrize("own", [-1e9, -25.0, 0.0, -float("inf")])
def test_all_out_of_reach_means_the_goal_whatever_it_is_worth(own):
    assert choose(own, reach=-9).aim.tolist() == [[9.0]]


def test_a_tie_with_the_goal_goes_to_the_candidate_and_the_bound_itself_is_in_reach():
    assert choose(-12).chosen.tolist() == [[2]]
    assert choose(-25, reach=-22).chosen.tolist() == [[2]]


def test_without_a_bound_the_most_useful_wins():
    assert choose(-25, reach=-100).chosen.tolist() == [[1]]


def test_candidates_may_be_sets_and_shared():
    """Entity sets [entities, features] as states: the value sees them whole."""
    shared = draw(3, 5, 4, 2)
    s, g = draw(4, 3, 4, 2), draw(5, 3, 4, 2)
    judge = ReachableThenUseful(lambda a, b: -(a - b).flatten(1).norm(dim=1), -1e3)
    choice = plan(s, g, lambda *_: shared, judge)
    for row in range(3):
        gaps = [-float((w - g[row]).norm()) for w in shared]
        best = int(np.argmax(gaps))
        if -float((s[row] - g[row]).norm()) > gaps[best]:
            assert torch.equal(choice.aim[row], g[row])
        else:
            assert choice.chosen[row].tolist() == [best] and torch.equal(choice.aim[row], shared[best])


# --- select


@given(
    st.lists(st.sampled_from([-float("inf"), -3.0, -2.0, -1.0, 0.0]), min_size=1, max_size=6, unique=True),
    st.sampled_from([-float("inf"), -2.5, -1.0, 1.0]),
    st.integers(1, 7),
)
def test_select_equals_a_naive_choice(scores, own, k):
    candidates, goal = draw(7, 1, len(scores), 2), draw(8, 1, 2)
    choice = select(candidates, goal, Judgement(torch.tensor([scores]), torch.tensor([own])), k)
    order = sorted((i for i, x in enumerate(scores) if x > -float("inf")), key=lambda i: -scores[i])[:k]
    if not order or own > scores[order[0]]:
        assert torch.equal(choice.aim, goal) and set(choice.chosen[0].tolist()) == {-1}
    else:
        torch.testing.assert_close(choice.aim[0], candidates[0, order].mean(0))
        assert [i for i in choice.chosen[0].tolist() if i >= 0] == order


def test_a_discarded_candidate_that_is_not_a_number_does_no_harm():
    candidates = torch.tensor([[[1.0], [float("nan")]]])
    judgement = Judgement(torch.tensor([[0.0, -float("inf")]]), torch.tensor([-1.0]))
    assert select(candidates, torch.zeros(1, 1), judgement, k=2).aim.tolist() == [[1.0]]


def test_wrong_arguments_are_refused():
    judgement = midpoint_judge(HERE, EXAMPLES, THERE)
    with pytest.raises(UsageError, match="k = 0"):
        select(EXAMPLES, THERE, judgement, k=0)
    with pytest.raises(UsageError, match=r"5 candidates of 1 rows .*\[1, 6\]"):
        select(EXAMPLES[:5], THERE, judgement)
    with pytest.raises(UsageError, match="rounds = 0"):
        plan(HERE, THERE, lambda s, g: EXAMPLES, midpoint_judge, rounds=0)
