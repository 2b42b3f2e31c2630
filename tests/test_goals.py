"""Goal sampling: card numbers, distribution of each law, invariants over random trajectories."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import offline_gc as reference

from echelon.data.goals import GoalSpec, draw_goals, future_geometric, future_uniform, place_goals

OTA = GoalSpec(current=0.2, future=0.5, random=0.3, steps=5)


def column(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    "i, goal, in_trajectory, current, expected",
    [
        (2, 4, True, False, (4, 4, 0, 0)),
        (2, 9, True, False, (7, 9, -1, 1)),
        (2, 7, True, False, (7, 7, 0, 0)),
        (2, 15, False, False, (7, 15, -1, 1)),
        (7, 15, False, False, (9, 15, -1, 1)),
        (2, 15, False, True, (7, 7, 0, 0)),
    ],
)
def test_ota_option_ends_code(i, goal, in_trajectory, current, expected):
    """OTA's (o, goal, r, m) for n = 5, f = 9."""
    drawn = place_goals(
        OTA, column(i), column(9), column(goal), column(goal), torch.tensor([in_trajectory]), torch.tensor([current])
    )
    success = int(drawn.success)
    assert (int(drawn.target), int(drawn.goal), success - 1, 1 - success) == expected


def test_hiql_value_goals_succeed_only_at_the_current_state():
    spec = GoalSpec(current=0.2, future=0.5, random=0.3)
    drawn = place_goals(spec, column(3, 3), column(9, 9), column(4, 4), column(7, 7), torch.tensor([True, True]),
                        torch.tensor([True, False]))  # fmt: skip
    assert drawn.goal.tolist() == [3, 4] and drawn.success.tolist() == [True, False]


def test_low_level_goal_is_k_steps_ahead_clamped_to_the_end():
    spec = GoalSpec(current=1, steps=4)
    u = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw_goals(spec, column(0, 6, 9), column(9, 9, 9), 100, u)
    assert drawn.goal.tolist() == [4, 9, 9] == drawn.target.tolist()


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 0.999999), st.sampled_from([0.5, 0.9, 0.99, 0.995]))
def test_futures_equal_the_reference(i, extra, u, discount):
    f = i + extra
    ui = torch.tensor([u], dtype=torch.float64)
    offset = reference.geometric_offset(u, discount)
    on_edge = math.isclose(u, 1 - discount ** (offset - 1), abs_tol=1e-9) or math.isclose(
        u, 1 - discount**offset, abs_tol=1e-9
    )
    got = int(future_geometric(column(i), column(f), ui, discount))
    assert abs(got - reference.future_geometric(i, f, offset)) <= on_edge
    assert int(future_uniform(column(i), column(f), ui)) == reference.future_uniform(i, f, u)


@given(st.integers(0, 2**31), st.integers(0, 10), st.sampled_from(["geometric", "uniform"]))
def test_goals_never_cross_an_episode_and_match_success(seed, steps, law):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (6,), generator=generator)
    final_of = (lengths.cumsum(0) - 1).repeat_interleave(lengths)
    n = len(final_of)
    i = torch.randint(n, (64,), generator=generator)
    f = final_of[i]
    spec = GoalSpec(current=0.3, future=0.7, law=law, steps=steps)
    goal, target, success = draw_goals(spec, i, f, n, torch.rand(4, 64, dtype=torch.float64, generator=generator))
    assert ((i <= goal) & (goal <= f)).all() and ((i <= target) & (target <= torch.minimum(i + steps, f))).all()
    assert (success == (goal == target)).all()


def test_shares_match_the_probabilities():
    n, count = 10**6, 200_000
    u = torch.rand(4, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    i, f = torch.full((count,), 500), torch.full((count,), 999)
    goal = draw_goals(GoalSpec(current=0.2, future=0.5, random=0.3), i, f, n, u).goal
    current, ahead = (goal == 500).double().mean(), ((goal > 500) & (goal <= 999)).double().mean()
    assert abs(float(current) - 0.2) < 0.005 and abs(float(ahead) - 0.5) < 0.005
    offsets = future_geometric(i, torch.full((count,), 10**6), u[1], 0.99) - 500
    assert int(offsets.min()) == 1 and abs(float(offsets.double().mean()) - 100) < 1.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"current": 0.5}, "sum to 1"),
        ({"current": 1.5, "random": -0.5}, ">= 0"),
        ({"future": 1.0, "law": "linear"}, "linear"),
        ({"future": 1.0, "discount": 1.0}, "discount"),
        ({"future": 1.0, "steps": -1}, "steps"),
    ],
)
def test_bad_specifications_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GoalSpec(**arguments)
