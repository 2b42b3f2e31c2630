"""QRL: its quasimetric's axioms, its losses and gradients against an independent derivation, a world that is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import offline_gc, offline_qrl
from test_offline_losses import ACT, OBS, B, assert_slope, layers, make_batch, to_reference

from echelon.errors import UsageError
from echelon.nets.quasimetric import IntervalQuasimetric, union_length
from echelon.systems import index
from echelon.systems.offline import qrl
from echelon.systems.offline.recipes import recipe
from echelon.training.agent import DataSpec, Learner
from echelon.training.runtime import choose

coordinates = st.lists(st.integers(-8, 8).map(lambda n: n / 2), min_size=12, max_size=12)  # ties are frequent


@pytest.fixture(autouse=True)
def exact_gelu(monkeypatch):
    """The reference states GELU in its tanh form; ours is the exact one."""
    erf = np.vectorize(math.erf)
    monkeypatch.setattr(offline_gc, "gelu", lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))))


def agent_of(constant_std: bool = True) -> qrl.QRL:
    torch.manual_seed(3)
    config = qrl.QRLConfig(
        actor_hidden=(16, 12), value_hidden=(14, 12), latent_dim=12, group=4, reach=2.0, softness=0.5,
        constant_std=constant_std,
    )  # fmt: skip
    agent = index.load("qrl")(config, DataSpec(OBS, ACT)).double()
    assert isinstance(agent, qrl.QRL)
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return agent


def weights(agent: qrl.QRL) -> dict:
    """The agent's weights in the reference's layout."""
    actor = {"layers": layers(agent.actor.mlp)}
    if agent.actor.log_std is not None:
        actor["log_std"] = agent.actor.log_std.detach().numpy().copy()
    scalars = {"mix": agent.value.distance.mix.item(), "log_multiplier": agent.multiplier.log.item()}
    return scalars | {"phi": layers(agent.value.phi), "dynamics": layers(agent.dynamics), "actor": actor}


def t(rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- the quasimetric


@pytest.mark.parametrize(
    ("start", "end", "length"),
    [
        ([0.0, 1.0], [2.0, 3.0], 3.0),  # overlap
        ([0.0, 5.0], [2.0, 6.0], 3.0),  # apart
        ([0.0, 1.0], [4.0, 2.0], 4.0),  # one inside the other
        ([0.0, 1.0], [1.0, 2.0], 2.0),  # touching
        ([3.0, 1.0], [2.0, 1.0], 0.0),  # both empty
        ([0.0, 9.0, 1.0], [2.0, 4.0, 5.0], 5.0),  # an empty one among others
    ],
)
def test_union_of_intervals_by_hand(start, end, length):
    assert float(union_length(t(start), t(end))) == pytest.approx(length, abs=1e-12)


@given(coordinates, coordinates)
def test_union_equals_cutting_the_line(start, end):
    expected = offline_qrl.covered(list(zip(start, end, strict=True)))
    assert float(union_length(t(start), t(end))) == pytest.approx(expected, abs=1e-9)


@given(coordinates, coordinates, coordinates, st.floats(-3, 3))
def test_it_is_a_quasimetric(x, y, z, mix):
    d = IntervalQuasimetric(group=4).double()
    with torch.no_grad():
        d.mix.fill_(mix)
        xx, xy, yz, xz = (float(d(t(a), t(b))) for a, b in ((x, x), (x, y), (y, z), (x, z)))
    assert xx == 0
    assert xy >= 0
    assert xz <= xy + yz + 1e-9


def test_it_is_not_symmetric_and_mixes_mean_and_maximum():
    d = IntervalQuasimetric(group=2).double()
    x, y = t([0.0, 0.0, 0.0, 0.0]), t([1.0, 2.0, -1.0, 1.0])
    there, back = d(x, y).detach(), d(y, x).detach()
    assert float(there) == pytest.approx(0.5 * 1.5 + 0.5 * 2)  # lengths 2 and 1
    assert float(back) == pytest.approx(0.5 * 0.5 + 0.5 * 1)  # lengths 0 and 1


def test_its_gradient_where_all_ends_meet_is_finite():
    d = IntervalQuasimetric(group=4).double()
    x = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    d(x, x.detach().clone()).sum().backward()
    assert float(x.grad.abs().max()) == 0


# --- losses and gradients against the reference


@pytest.mark.parametrize("constant_std", [True, False])
def test_losses_equal_the_reference(constant_std):
    agent = agent_of(constant_std)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    loss, metrics = agent.loss(batch)
    expected = offline_qrl.qrl_losses(weights(agent), arrays, hyper)
    assert expected["excess"] > 0.01
    assert float(loss.detach()) == pytest.approx(expected["total"], rel=1e-9)
    for ours, theirs in {"value/excess": "excess", "dynamics/loss": "dynamics", "actor/loss": "actor"}.items():
        assert float(metrics[ours]) == pytest.approx(expected[theirs], rel=1e-9), ours
    assert float(metrics["value/multiplier"]) == pytest.approx(math.exp(weights(agent)["log_multiplier"]))


@pytest.mark.parametrize("constant_std", [True, False])
def test_gradients_equal_finite_differences_of_the_reference(constant_std):
    """Along a random direction of all weights: what the multiplier, the model and the policy may move."""
    agent = agent_of(constant_std)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    agent.loss(batch)[0].backward()
    frozen = weights(agent)
    assert_slope(
        list(agent.parameters()), lambda: offline_qrl.qrl_losses(weights(agent), arrays, hyper, frozen)["total"]
    )


def test_the_push_and_the_excess_by_hand():
    """OGBench's shape: 100 softplus(5 - d / 100), of slope -sigma(5) at d = 0 and -1/2 at d = 500."""
    d = t([0.0, 500.0]).requires_grad_()
    loss = qrl.apart_loss(d, 500.0, 100.0)
    assert float(loss.detach()) == pytest.approx(100 * (math.log1p(math.exp(5)) + math.log(2)) / 2, rel=1e-12)
    loss.backward()
    assert (2 * d.grad).tolist() == pytest.approx([-1 / (1 + math.exp(-5)), -0.5], rel=1e-12)
    assert float(qrl.excess(t([0.2, 1.0, 1.5, 3.0]))) == pytest.approx((0.25 + 4) / 4, abs=1e-12)


@pytest.mark.parametrize(("distance", "rises"), [(1.0, False), (3.0, True)])
def test_the_multiplier_rises_while_neighbours_are_too_far_apart(distance, rises):
    """Gradient descent moves it by lambda (excess - eps)."""
    agent = agent_of()
    agent.value.distance.forward = lambda x, y: distance + 0 * (x + y).sum(-1)  # type: ignore[method-assign]
    z = torch.zeros(4, 12, dtype=torch.float64)
    agent.value_loss(z, z, z)[0].backward()
    expected = float(agent.multiplier().detach()) * (agent.config.eps - max(distance - 1, 0) ** 2)
    assert float(agent.multiplier.log.grad) == pytest.approx(expected, rel=1e-12)
    assert (float(agent.multiplier.log.grad) < 0) == rises


def test_its_value_is_minus_the_distance():
    agent = agent_of()
    batch = make_batch(agent)
    s, g = batch["observations"], batch["actor_goals"]
    params = weights(agent)
    z, z_goal = (offline_gc.mlp_forward(params["phi"], x.numpy(), False, True) for x in (s, g))
    expected = -offline_qrl.distance(z, z_goal, params["mix"], 4)
    np.testing.assert_allclose(agent.value_functions(s, g)["V"].detach().numpy(), expected, rtol=0, atol=1e-10)
    assert not agent.value_functions(s, s)["V"].any()


def test_it_finds_the_distances_of_a_one_way_ring():
    """Six places in a ring, one step forward only: from 0 to 1 is one step, from 1 to 0 five."""
    config = qrl.QRLConfig(
        actor_hidden=(8,), value_hidden=(32,), latent_dim=64, lr=0.01, eps=0.0025, reach=8, softness=1
    )
    torch.manual_seed(0)
    agent, places = qrl.QRL(config, DataSpec(6, 1)), torch.eye(6)
    here, there = torch.arange(6).repeat_interleave(6), torch.arange(6).repeat(6)
    batch = {"observations": places[here], "next_observations": places[(here + 1) % 6], "actions": torch.zeros(36, 1)}
    batch |= {"value_goals": places[there], "actor_goals": places[there]}
    learner = Learner(agent, choose("cpu", "float32", 1))
    for step in range(1, 401):
        learner.step(step, batch)
    error = -agent.value_functions(places[here], places[there])["V"].detach() - (there - here) % 6
    assert float(error.abs().mean()) < 0.4  # seeds 0, 1, 2: 0.14, 0.20, 0.25; a symmetric distance: 1 at best


# --- configuration


@pytest.mark.parametrize(
    ("env", "alpha", "elsewhere"),
    [
        ("pointmaze-medium-navigate-v0", 0.0003, 0.0),
        ("pointmaze-giant-stitch-v0", 0.0003, 0.5),
        ("antmaze-large-navigate-v0", 0.003, 0.0),
        ("antmaze-medium-explore-v0", 0.001, 1.0),
        ("humanoidmaze-large-navigate-v0", 0.001, 0.0),
        ("antsoccer-arena-stitch-v0", 0.003, 0.5),
        ("cube-single-play-v0", 0.3, 0.0),
        ("scene-noisy-v0", 0.03, 0.0),
    ],
)
def test_recipes_are_ogbench_s_commands(env, alpha, elsewhere):
    config = recipe(qrl.QRLConfig, env)
    assert (config.alpha, config.actor_p_random) == (alpha, elsewhere)
    assert (config.latent_dim, config.group, config.eps, config.batch_size) == (512, 8, 0.05, 1024)
    assert config.goals()["value"].random == 1


def test_groups_that_do_not_divide_the_representation_are_refused():
    with pytest.raises(UsageError, match=r"group must be a divisor of latent_dim \(512\), got 3"):
        qrl.QRLConfig(group=3)
    assert dataclasses.replace(qrl.QRLConfig(), latent_dim=24, group=3).group == 3


def test_batches_have_no_ties_that_hide_a_gradient():
    agent = agent_of()
    assert len(make_batch(agent)["observations"].unique(dim=0)) == B
