"""Exact planning against values worked out by hand, against sums written out, and against another library's rules."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from torch import Tensor

from echelon.envs import exact, grids
from echelon.envs.tables import Model, model_of
from echelon.errors import UsageError
from echelon.training.online.worlds import make_world, world_spaces


def line(states: int = 4) -> Model:
    """0 1 2 … and a terminal end that pays 1: action 1 goes right, action 0 stays."""
    end = states - 1
    return model_of(2, lambda s, a: [(1.0, s + a, float(s + a == end))], [s == end for s in range(states)], [0])


def test_a_line_by_hand() -> None:
    choices = exact.steps(line(), 0.9)
    q = exact.optimal(choices)
    assert q[1].tolist() == pytest.approx([0.81, 0.9, 1, 0]) and q[0].tolist() == pytest.approx([0.729, 0.81, 0.9, 0])
    right = torch.ones(4, dtype=torch.int64)
    assert exact.value(exact.followed(choices, right)).tolist() == [pytest.approx([0.81, 0.9, 1, 0])]
    stay = torch.tensor([1, 0, 1, 1])
    assert exact.value(exact.followed(choices, stay))[0].tolist() == pytest.approx([0, 0, 1, 0])
    option = exact.until(exact.followed(choices, right), torch.tensor([False, False, True, True]))
    assert option.reward[0].tolist() == pytest.approx([0, 0, 1, 0])
    assert option.arrival[0, :, 2].tolist() == pytest.approx([0.81, 0.9, 0, 0])
    assert option.arrival[0, :, 3].tolist() == pytest.approx([0, 0, 0.9, 0])


def test_what_never_ends_is_refused_without_discount() -> None:
    choices = exact.steps(line(), 1.0)
    assert exact.value(exact.followed(choices, torch.ones(4, dtype=torch.int64)))[0].tolist() == [1, 1, 1, 0]
    with pytest.raises(UsageError, match="never ends once begun in state 0"):
        exact.value(exact.followed(choices, torch.tensor([1, 0, 1, 1])))
    with pytest.raises(UsageError, match="does not settle"):
        exact.optimal(exact.steps(model_of(1, lambda s, a: [(1.0, 0, 1.0)], [False], [0]), 1.0))


def test_an_option_is_the_sum_over_its_steps() -> None:
    """Against Σ_k of following it for k steps, written out."""
    model, gamma = grids.four_rooms(), 0.9
    choices = exact.steps(model, gamma)
    generator = torch.Generator().manual_seed(0)
    policy = torch.randint(4, (3, model.states), generator=generator)
    stops = torch.rand(3, model.states, generator=generator) < 0.2
    stops |= model.terminal
    found = exact.until(exact.followed(choices, policy), stops)
    states = torch.arange(model.states)
    for option in range(3):
        move = torch.stack([model.transition[s, policy[option, s]] for s in states])
        pay = torch.stack([model.expected_reward[s, policy[option, s]] for s in states])
        alive = torch.eye(model.states, dtype=torch.float64) * (~model.terminal).double()
        reward = torch.zeros(model.states, dtype=torch.float64)
        arrival = torch.zeros(model.states, model.states, dtype=torch.float64)
        for k in range(400):
            reward += gamma**k * alive @ pay
            reached = alive @ move
            arrival += gamma ** (k + 1) * reached * stops[option].double()
            alive = reached * (~stops[option]).double()
        assert torch.allclose(found.reward[option], reward, atol=1e-10)
        assert torch.allclose(found.arrival[option], arrival, atol=1e-10)


def test_the_best_policy_is_found_and_none_is_better() -> None:
    model = grids.four_rooms()
    choices = exact.steps(model, 0.9)
    q = exact.optimal(choices)
    best = exact.value(exact.followed(choices, q.argmax(0)))[0]
    assert torch.allclose(best, q.amax(0), atol=1e-10)
    generator = torch.Generator().manual_seed(1)
    others = exact.value(exact.followed(choices, torch.randint(4, (5, model.states), generator=generator)))
    assert bool((others <= best + 1e-10).all())
    allowed = torch.ones(4, model.states, dtype=torch.bool)
    allowed[:, 0] = False
    ended = exact.optimal(choices, allowed, torch.full((model.states,), 0.7, dtype=torch.float64))
    assert bool(ended[:, 0].isneginf().all()) and float(ended[:, 1].amax()) > float(q[:, 1].amax())


@pytest.mark.parametrize("gamma, expected", [(1.0, 0.208), (0.975, 0.156222)])
def test_the_chain_is_worth_what_the_paper_s_rules_say(gamma: float, expected: float) -> None:
    """Reaching 6 from 2 before 1 happens with chance 1/5: .2 · 1 + .8 · .01."""
    model = grids.chain()
    choices = exact.steps(model, gamma)
    assert float(model.start @ exact.optimal(choices).amax(0)) == pytest.approx(expected, abs=1e-6)
    left = exact.value(exact.followed(choices, torch.zeros(12, dtype=torch.int64)))
    assert float(left[0, 1]) == pytest.approx(0.01)
    assert model.views["place"].tolist() == [*range(6), *range(6)]
    assert model.transition[4].tolist() == [[0, 0, 0, 1, *[0] * 8], [0, 0, 0, 0.5, *[0] * 7, 0.5]]
    assert model.transition[11, 1, 10] == 1 and model.expected_reward[1, 0] == 0.01 and model.expected_reward[7, 0] == 1


def rules_of(env: gymnasium.Env) -> Tensor:
    """[S, A, (next, reward)] of a deterministic gymnasium table."""
    table = env.unwrapped.P
    assert all(len(table[s][a]) == 1 for s in table for a in table[s])
    return torch.tensor([[table[s][a][0][1:3] for a in range(6)] for s in range(500)], dtype=torch.float64)


def test_the_taxi_has_the_rules_of_gymnasium_but_for_dropping_elsewhere() -> None:
    model, other = grids.taxi(), rules_of(gymnasium.make("Taxi-v4"))
    assert model.next.shape == (500, 6, 1)
    differs = (model.next[..., 0] != other[..., 0]) | (model.reward[..., 0] != other[..., 1])
    differs &= ~model.terminal[:, None]
    assert {a for _, a in differs.nonzero().tolist()} == {grids.PUTDOWN}
    for state in differs[:, grids.PUTDOWN].nonzero()[:, 0].tolist():
        cell, passenger, destination = grids.taxi_parts(state)
        assert passenger == grids.IN_TAXI and cell in grids.LANDMARKS and cell != grids.LANDMARKS[destination]
        assert model.next[state, grids.PUTDOWN, 0] == state and model.reward[state, grids.PUTDOWN, 0] == -10
    assert int((model.start > 0).sum()) == 300 and int(model.terminal.sum()) == 100


def test_the_taxi_is_worth_as_much_as_gymnasium_s() -> None:
    gamma, other = 0.99, rules_of(gymnasium.make("Taxi-v4"))
    model = grids.taxi()
    best = torch.zeros(500, dtype=torch.float64)
    for _ in range(2000):  # value iteration on the other rules
        best = (other[..., 1] + gamma * torch.where(model.terminal, 0, best)[other[..., 0].long()]).amax(1)
    mine = exact.optimal(exact.steps(model, gamma)).amax(0)
    going = ~model.terminal
    assert torch.allclose(mine[going], best[going], atol=1e-8)


def test_names_of_the_worlds() -> None:
    assert world_spaces("chain").discrete == {"observation": 12, "place": 6}
    shown = {"observation": 500, "row": 5, "column": 5, "passenger": 5, "destination": 4}
    assert world_spaces("taxi").discrete == shown and world_spaces("taxi").choices == 6
    with pytest.raises(UsageError, match="do not change"):
        make_world("taxi@7", 1)
