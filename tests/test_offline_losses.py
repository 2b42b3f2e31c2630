"""Losses and gradients of the offline systems against an independent float64 derivation, with weights copied in.

`tests/reference/offline_gc.py` was written from the published formulas by someone who had not read the implementation.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import offline_gc as reference
from torch import Tensor, nn

from echelon.losses.policy import awr_loss, awr_weight
from echelon.losses.value import ivl_loss
from echelon.nets.goal import GaussianPolicy, GoalValue
from echelon.nets.mlp import MLP, EnsembleMLP
from echelon.systems import index
from echelon.training.agent import Agent, DataSpec, Learner
from echelon.training.runtime import choose

SYSTEMS = ("gcbc", "gcivl", "gciql", "hiql", "ota")
REFERENCE = {
    "gcbc": reference.gcbc_loss,
    "gcivl": reference.gcivl_losses,
    "gciql": reference.gciql_losses,
    "hiql": reference.hiql_losses,
    "ota": reference.ota_losses,
}
TERMS = {
    "gcbc": {},
    "gcivl": {"value/loss": "value", "actor/loss": "actor"},
    "gciql": {"value/loss": "value", "critic/loss": "critic", "actor/loss": "actor"},
    "hiql": {"value/loss": "value", "low/loss": "low_actor", "high/loss": "high_actor"},
    "ota": {
        "value/low_loss": "low_value",
        "value/high_loss": "high_value",
        "low/loss": "low_actor",
        "high/loss": "high_actor",
    },
}
B, OBS, ACT = 32, 5, 3


@pytest.fixture(autouse=True)
def exact_gelu(monkeypatch):
    """The reference states GELU in the tanh form of the published agents; ours is the exact one (erf)."""
    erf = np.vectorize(math.erf)
    monkeypatch.setattr(reference, "gelu", lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))))


def test_exact_gelu_is_within_5e_4_of_the_tanh_form():
    x = torch.linspace(-8, 8, 10_001, dtype=torch.float64)
    assert float((F.gelu(x) - F.gelu(x, approximate="tanh")).abs().max()) < 5e-4


def build(system: str, constant_std: bool = True) -> Agent:
    cls = index.load(system)
    config = cls.Config(actor_hidden=(16, 12), constant_std=constant_std)
    if hasattr(config, "value_hidden"):
        config = dataclasses.replace(config, value_hidden=(14, 12))
    torch.manual_seed(3)
    agent = cls(config, DataSpec(OBS, ACT)).double()
    with torch.no_grad():  # away from special points: targets differ from online nets, norms are not the identity
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return agent


def make_batch(agent: Agent) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    state = lambda: torch.randn(B, OBS, generator=g, dtype=torch.float64)  # noqa: E731
    batch = {"observations": state(), "next_observations": state()}
    batch["actions"] = torch.rand(B, ACT, generator=g, dtype=torch.float64) * 2 - 1
    for name, spec in agent.config.goals().items():
        batch[f"{name}_goals"] = state()
        batch[f"{name}_success"] = (torch.rand(B, generator=g) < 0.3).double()
        if spec.steps:
            batch[f"{name}_targets"] = state()
    return batch


def layers(module: nn.Module, member: int | None = None) -> list[dict[str, np.ndarray]]:
    if isinstance(module, MLP):
        rows = [{"weight": x.weight, "bias": x.bias} for x in module.layers]
        norms = [(n.weight, n.bias) for n in module.norms]
    else:
        assert isinstance(module, EnsembleMLP) and member is not None
        rows = [{"weight": w[member], "bias": b[member]} for w, b in zip(module.weights, module.biases, strict=True)]
        norms = [(w[member], b[member]) for w, b in zip(module.norm_weights, module.norm_biases, strict=True)]
    for row, (weight, bias) in zip(rows, norms, strict=False):
        row |= {"norm_weight": weight, "norm_bias": bias}
    return [{k: v.detach().numpy().copy() for k, v in row.items()} for row in rows]


def copy_weights(agent: Agent) -> dict:
    params: dict = {}
    for name, module in agent.named_children():
        if isinstance(module, GaussianPolicy):
            params[name] = {"layers": layers(module.mlp)}
            if module.log_std is not None:
                params[name]["log_std"] = module.log_std.detach().numpy().copy()
        elif isinstance(module, GoalValue):
            params[name] = {"heads": [layers(module.heads, m) for m in range(len(module.heads.weights[0]))]}
        else:
            params[name] = layers(module.mlp)
    return params


def to_reference(agent: Agent, batch: dict[str, Tensor]) -> tuple[dict, dict]:
    renamed = {"option_targets": "option_next_observations"}
    arrays = {renamed.get(k, k): v.numpy() for k, v in batch.items() if not k.endswith("_success")}
    for name, prefix in (("value", ""), ("option", "option_")):
        if f"{name}_success" in batch:
            success = batch[f"{name}_success"].numpy()
            arrays |= {f"{prefix}rewards": success - 1, f"{prefix}masks": 1 - success}
    return arrays, dataclasses.asdict(agent.config) | {"actor_loss": "ddpgbc"}


@pytest.mark.parametrize("constant_std", [True, False])
@pytest.mark.parametrize("system", SYSTEMS)
def test_losses_equal_the_reference(system, constant_std):
    agent = build(system, constant_std)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    loss, metrics = agent.updates()[0].loss(batch)
    expected = REFERENCE[system](copy_weights(agent), arrays, hyper)
    assert float(loss.detach()) == pytest.approx(expected["total"], rel=1e-9)
    for ours, theirs in TERMS[system].items():
        assert float(metrics[ours]) == pytest.approx(expected[theirs], rel=1e-9), ours


def assert_slope(parameters, reference):
    """The gradients of `parameters` are the slope of `reference()`, a float, along a random direction of them."""
    generator = torch.Generator().manual_seed(11)
    before = [p.detach().clone() for p in parameters]
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True))
    totals = []
    for step in (1e-6, -1e-6, 0):
        with torch.no_grad():
            for p, place, d in zip(parameters, before, directions, strict=True):
                p.copy_(place + step * d)
        totals.append(reference())
    assert slope == pytest.approx((totals[0] - totals[1]) / 2e-6, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_equal_finite_differences_of_the_reference(system):
    """Along a random direction; catches any missing or extra stop-gradient."""
    agent = build(system)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    update = agent.updates()[0]
    update.loss(batch)[0].backward()
    frozen = copy_weights(agent)
    trainable = [p for m in update.modules for p in m.parameters()]
    assert all(p.grad is None for n, p in agent.named_parameters() if n.startswith("target"))
    assert_slope(trainable, lambda: REFERENCE[system](copy_weights(agent), arrays, hyper, frozen)["total"])


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_step_is_adam_and_polyak_from_before_the_step(system):
    agent = build(system)
    batch = make_batch(agent)
    before = copy.deepcopy(agent)
    update = agent.updates()[0]
    update.loss(batch)[0].backward()
    gradients = [p.grad.numpy().copy() for m in update.modules for p in m.parameters()]
    agent.zero_grad()
    learner = Learner(agent, choose("cpu", "float32", threads=1))
    learner.step(1, batch)
    old = [p for m in before.updates()[0].modules for p in m.parameters()]
    new = [p for m in learner.updates[0].modules for p in m.parameters()]
    for p_old, p_new, gradient in zip(old, new, gradients, strict=True):
        # Adam's first step: both moments' bias corrections cancel
        expected = p_old.detach().numpy() - 3e-4 * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(p_new.detach().numpy(), expected, rtol=0, atol=1e-10)
    for polyak, polyak_before in zip(learner.updates[0].targets, before.updates()[0].targets, strict=True):
        pairs = zip(
            polyak.target.parameters(),
            polyak_before.target.parameters(),
            polyak_before.online.parameters(),
            strict=True,
        )
        for target, target_before, online_before in pairs:
            expected = 0.005 * online_before.detach() + 0.995 * target_before
            torch.testing.assert_close(target, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_actions_equal_the_reference(system):
    agent = build(system)
    batch = make_batch(agent)
    features = {"observation": batch["observations"], "goal": batch["next_observations"]}
    action = None
    for level in agent.levels():
        action = level.decide(features, action, torch.ones(B, dtype=torch.bool)).action
    act = reference.hierarchical_action if system in ("hiql", "ota") else reference.flat_action
    expected = act(copy_weights(agent), features["observation"].numpy(), features["goal"].numpy())
    np.testing.assert_allclose(action.detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "target_next, target, expected", [((-3, -2), (-4.5, -3.5), 0.39991), ((-3, -2), (-4, -3.5), 0.17139)]
)
def test_value_loss_code(target_next, target, expected):
    """The worked example of the value loss: side from the pessimistic target, regression per head."""
    pair = lambda x: torch.tensor(x, dtype=torch.float64).unsqueeze(1)  # noqa: E731
    one = torch.ones(1, dtype=torch.float64)
    loss = ivl_loss(pair((-4.2, -3.7)), pair(target), pair(target_next), -one, one, 0.99, 0.7)
    assert float(loss) == pytest.approx(expected, abs=5e-6)


def test_awr_code():
    """Weights at alpha = 3, clipped at 100, and the two-sample policy loss."""
    weights = awr_weight(torch.tensor([0.5, 1.5, 1.6, -1.0], dtype=torch.float64), 3.0)
    assert weights.tolist() == pytest.approx([4.481689, 90.017131, 100, 0.049787], abs=5e-7)
    policy = GaussianPolicy(1, (), 2)
    mean = torch.tensor([[0.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    action = torch.tensor([[0.5, -1.0], [0.5, -1.0]], dtype=torch.float64)
    loss = awr_loss(torch.tensor([0.5, -1.0], dtype=torch.float64), policy.log_prob(mean, action), 3.0)
    assert float(loss) == pytest.approx(5.577123, abs=5e-7)


@pytest.mark.parametrize(
    "n, expected",
    [
        (None, {0: 0, 1: -1, 2: -1.99, 10: -9.561792, 100: -63.396766, 1000: -99.995683}),
        (5, {0: 0, 1: 0, 5: 0, 6: -1, 10: -1, 11: -1.99, 25: -3.940399, 100: -17.383138, 500: -63.027036}),
    ],
)
def test_fixed_points_of_the_losses_code(n, expected):
    """On a chain whose state d is d steps from the goal, each table value is where the loss's gradient vanishes."""
    size = max(expected) + 1
    v = torch.zeros(size, dtype=torch.float64)
    d = torch.arange(size)
    for _ in range(size):
        reached = (d - (n or 1)).clamp(min=0)
        success = (d == 0) if n is None else (reached == 0)
        v = -(~success).double() + 0.99 * (~success).double() * v[reached]
    assert {k: round(float(v[k]), 6) for k in expected} == pytest.approx(expected, abs=1e-6)
    online = v.expand(2, -1).clone().requires_grad_()
    one = (~success).double()
    ivl_loss(online, v.expand(2, -1), v[reached].expand(2, -1), -one, one, 0.99, 0.7).backward()
    assert float(online.grad.abs().max()) < 1e-12
