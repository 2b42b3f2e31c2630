"""SAW: its published numbers, its losses and gradients against an independent derivation, what its options mean."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import offline_gc, offline_saw
from test_offline_losses import ACT, OBS, B, assert_slope, build, layers, make_batch, to_reference

from echelon.errors import UsageError
from echelon.losses.policy import awr_loss, awr_weight
from echelon.nets.goal import GaussianPolicy, GoalValue
from echelon.systems.offline import hiql, saw
from echelon.systems.offline.recipes import recipe
from echelon.training.agent import DataSpec

DIVERGENCES = ("squared", "kl", "reverse_kl")


def t(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture(autouse=True)
def exact_gelu(monkeypatch):
    """The reference states GELU in its tanh form; ours is the exact one."""
    erf = np.vectorize(math.erf)
    monkeypatch.setattr(offline_gc, "gelu", lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))))


def weights(agent: saw.SAW) -> dict:
    """The agent's weights in the reference's layout."""
    params: dict = {"phi": layers(agent.phi.mlp)}
    for name in ("value", "target_value"):
        module = getattr(agent, name)
        assert isinstance(module, GoalValue)
        params[name] = {"heads": [layers(module.heads, m) for m in range(2)]}
    for name in ("low_actor", "actor"):
        policy = getattr(agent, name)
        params[name] = {"layers": layers(policy.mlp)}
        if policy.log_std is not None:
            params[name]["log_std"] = policy.log_std.detach().numpy().copy()
    params["actor"]["phi"] = layers(agent.actor.phi.mlp)
    return params


def agent_of(constant_std: bool = True, **changes) -> saw.SAW:
    agent = build("saw", constant_std)
    agent.config = dataclasses.replace(agent.config, **changes)
    return agent


# --- the worked example of the paper's losses: kl_alpha 3, two actions


MEAN, SUB = t([0.2, 0.1], [0.0, -0.5]), t([0.5, -0.1], [0.25, 0.0])
ZERO = torch.zeros(2, dtype=torch.float64)


def test_bootstrapping_loss_of_the_worked_example():
    gain = t(0.4, -0.2)
    assert awr_weight(gain, 3.0).tolist() == pytest.approx([3.320117, 0.548812], abs=5e-7)
    distance = saw.pull("squared", (MEAN, ZERO), (SUB, ZERO))
    assert distance.tolist() == pytest.approx([0.13, 0.3125], abs=1e-12)
    assert float(saw.bootstrap_loss(gain, distance, 3.0)) == pytest.approx(0.301559, abs=5e-7)
    for kind in ("kl", "reverse_kl"):
        assert saw.pull(kind, (MEAN, ZERO), (SUB, ZERO)).tolist() == pytest.approx([0.065, 0.15625], abs=1e-12)


def test_one_step_loss_of_the_worked_example():
    gain, action = t(0.1, -0.3), t([0.3, 0.3], [-0.1, 0.2])
    assert awr_weight(gain, 3.0).tolist() == pytest.approx([1.349859, 0.406570], abs=5e-7)
    log_prob = GaussianPolicy(1, (), 2).log_prob(MEAN, action)
    assert log_prob.tolist() == pytest.approx([-1.862877, -2.087877], abs=5e-7)
    assert float(awr_loss(gain, log_prob, 3.0)) == pytest.approx(1.681744, abs=5e-7)


def test_waypoint_weights_are_clipped_at_100():
    one = t(1.0)
    assert float(saw.bootstrap_loss(t(2.0), one, 3.0)) == 100
    assert float(saw.bootstrap_loss(t(400.0), one, 3.0)) == 100


# --- losses and gradients against the reference


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("constant_std", [True, False])
def test_losses_equal_the_reference(constant_std, divergence):
    agent = agent_of(constant_std, divergence=divergence, kl_alpha=0.7, awr_alpha=2.0, bootstrap_weight=1.5)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    loss, metrics = agent.loss(batch)
    expected = offline_saw.saw_losses(weights(agent), arrays, hyper)
    assert float(loss.detach()) == pytest.approx(expected["total"], rel=1e-9)
    terms = {"value/loss": "value", "low/loss": "low_actor", "actor/loss": "one_step", "bootstrap/loss": "bootstrap"}
    for ours, theirs in terms.items():
        assert float(metrics[ours]) == pytest.approx(expected[theirs], rel=1e-9), ours


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("constant_std", [True, False])
def test_gradients_equal_finite_differences_of_the_reference(constant_std, divergence):
    """Along a random direction of all trainable weights; catches a missing or an extra stop-gradient."""
    agent = agent_of(constant_std, divergence=divergence)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    agent.loss(batch)[0].backward()
    assert all(p.grad is None for p in agent.target_value.parameters())
    frozen = weights(agent)
    trainable = [p for p in agent.parameters() if p.requires_grad]
    assert_slope(trainable, lambda: offline_saw.saw_losses(weights(agent), arrays, hyper, frozen)["total"])


def test_the_value_is_hiql_s():
    agent, other = agent_of(), build("hiql")
    for name in ("phi", "value", "target_value"):
        getattr(other, name).load_state_dict(getattr(agent, name).state_dict())
    batch = make_batch(agent)
    assert agent.config.goals() == other.config.goals()
    assert float(agent.loss(batch)[1]["value/loss"]) == float(other.loss(batch)[1]["value/loss"])
    s, g = batch["observations"], batch["high_goals"]
    assert torch.equal(agent.value_functions(s, g)["V"], other.value_functions(s, g)["V"])
    assert saw.value_loss is hiql.value_loss


def test_actions_are_the_clipped_mean_of_the_flat_policy():
    agent = agent_of()
    batch = make_batch(agent)
    s, g = batch["observations"], 3 * batch["high_goals"]
    (level,) = agent.levels()
    action = level.decide({"observation": s, "goal": g}, None, torch.ones(B, dtype=torch.bool)).action
    mean, _ = offline_saw.flat_policy(weights(agent)["actor"], s.numpy(), g.numpy())
    np.testing.assert_allclose(action.detach().numpy(), mean.clip(-1, 1), rtol=0, atol=1e-12)


# --- what the options mean


@pytest.mark.parametrize("kind", ["kl", "reverse_kl"])
def test_kl_equals_torch_s_in_its_direction(kind):
    generator = torch.Generator().manual_seed(0)
    pi, sub = (
        (torch.randn(7, 3, generator=generator).double(), torch.randn(3, generator=generator).double()) for _ in "ab"
    )
    normal = [torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in (pi, sub)]
    first, second = normal if kind == "kl" else normal[::-1]
    expected = torch.distributions.kl_divergence(first, second).sum(-1)
    torch.testing.assert_close(saw.pull(kind, pi, sub), expected)


@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_with_unit_deviations_the_released_distance_is_twice_either_kl(numbers):
    mean, sub, zero = t(numbers[:3]), t(numbers[3:]), torch.zeros(3, dtype=torch.float64)
    squared, kl, reverse = (saw.pull(kind, (mean, zero), (sub, zero)) for kind in DIVERGENCES)
    torch.testing.assert_close(2 * kl, squared)
    torch.testing.assert_close(2 * reverse, squared)


def test_kl_alpha_0_weighs_all_waypoints_alike():
    distance = t(0.3, 5.0, 1.0)
    assert float(saw.bootstrap_loss(t(-9.0, 0.0, 50.0), distance, 0.0)) == pytest.approx(2.1, abs=1e-12)


@pytest.mark.parametrize("kl_alpha", [0.0, 0.3, 3.0])
def test_the_flat_policy_s_optimum_is_the_weighted_mean_of_the_near_policy(kl_alpha):
    """Importance weights over waypoints of one (s, g): the pull is at rest at the mean under p(w) exp(beta B)."""
    gain, sub = t(-0.4, 0.1, 0.3, 0.5), t([1.0, 0.0], [0.5, 0.5], [-0.5, 1.0], [0.0, -1.0])
    weight = torch.exp(kl_alpha * gain)
    mean = ((weight[:, None] * sub).sum(0) / weight.sum()).requires_grad_()
    saw.bootstrap_loss(gain, saw.pull("squared", (mean.expand(4, -1), ZERO), (sub, ZERO)), kl_alpha).backward()
    assert float(mean.grad.abs().max()) < 1e-12


def test_only_the_near_goals_move_the_near_policy_and_only_policy_losses_the_policy_s_phi():
    agent = agent_of()
    batch = make_batch(agent)
    agent.loss(batch)[0].backward()
    full = [p.grad.clone() for p in agent.low_actor.parameters()]
    assert all(bool(p.grad.abs().sum() > 0) for p in agent.actor.phi.parameters())
    agent.zero_grad()
    agent.config = dataclasses.replace(agent.config, bootstrap_weight=0.0, one_step_weight=0.0)
    agent.loss(batch)[0].backward()
    assert all(torch.equal(p.grad, old) for p, old in zip(agent.low_actor.parameters(), full, strict=True))
    assert all(bool(p.grad.abs().sum() == 0) for p in agent.actor.parameters())


def test_a_waypoint_at_the_state_itself_has_weight_1():
    agent = agent_of()
    batch = make_batch(agent) | {"high_targets": make_batch(agent)["observations"]}
    gain = saw.advantages(agent.phi, agent.value, batch)[2]
    assert float(gain.abs().max()) < 1e-12


def test_a_shift_of_the_value_changes_no_advantage():
    agent = agent_of()
    batch = make_batch(agent)
    before = saw.advantages(agent.phi, agent.value, batch)
    with torch.no_grad():
        agent.value.heads.biases[-1].add_(3.0)
    for gain, shifted in zip(before, saw.advantages(agent.phi, agent.value, batch), strict=True):
        torch.testing.assert_close(gain, shifted, rtol=0, atol=1e-9)


# --- configuration


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("pointmaze-large-navigate-v0", (3.0, 0.7, 25, 0.99)),
        ("antmaze-giant-navigate-v0", (3.0, 0.7, 25, 0.995)),
        ("humanoidmaze-medium-navigate-v0", (3.0, 0.7, 100, 0.995)),
        ("cube-single-play-v0", (0.3, 0.9, 10, 0.99)),
        ("cube-double-play-v0", (1.0, 0.7, 10, 0.99)),
        ("cube-triple-play-v0", (1.0, 0.7, 10, 0.99)),
        ("scene-play-v0", (1.0, 0.7, 10, 0.99)),
    ],
)
def test_recipes_are_the_released_commands(env, expected):
    config = recipe(saw.SAWConfig, env)
    assert (config.kl_alpha, config.expectile, config.subgoal_steps, config.discount) == expected
    assert (config.batch_size, config.updates, config.awr_alpha, config.low_alpha) == (1024, 1_000_000, 3.0, 3.0)


def test_an_unknown_divergence_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="divergence must be squared or kl or reverse_kl, got forward"):
        saw.SAWConfig(divergence="forward")  # type: ignore[arg-type]


def test_the_policies_have_their_published_inputs():
    agent = saw.SAW(saw.SAWConfig(actor_hidden=(8,), value_hidden=(8,)), DataSpec(OBS, ACT))
    assert agent.low_actor.mlp.layers[0].in_features == 2 * OBS
    assert agent.actor.mlp.layers[0].in_features == OBS + 10
    assert not {id(p) for p in agent.phi.parameters()} & {id(p) for p in agent.actor.parameters()}
