"""CRL: losses and gradients against an independent derivation, and what its critic means."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from reference import offline_crl, offline_gc
from test_offline_losses import ACT, OBS, B, assert_slope, build, layers, make_batch, to_reference

from echelon.nets.bilinear import BilinearCritic
from echelon.systems.offline import crl
from echelon.systems.offline.recipes import recipe


@pytest.fixture(autouse=True)
def exact_gelu(monkeypatch):
    """The reference states GELU in its tanh form; ours is the exact one."""
    erf = np.vectorize(math.erf)
    monkeypatch.setattr(offline_gc, "gelu", lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))))


def agent_of(constant_std: bool = True) -> crl.CRL:
    agent = build("crl", constant_std)
    agent.critic = BilinearCritic(OBS + ACT, OBS, (14, 12), 7).double()  # few dimensions: the reference has loops
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for p in agent.critic.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return agent


def weights(agent: crl.CRL) -> dict:
    """The agent's weights in the reference's layout."""
    critic = {name: [layers(getattr(agent.critic, name), m) for m in range(2)] for name in ("phi", "psi")}
    actor = {"layers": layers(agent.actor.mlp)}
    if agent.actor.log_std is not None:
        actor["log_std"] = agent.actor.log_std.detach().numpy().copy()
    return {"critic": critic, "actor": actor}


@pytest.mark.parametrize("constant_std", [True, False])
def test_losses_equal_the_reference(constant_std):
    agent = agent_of(constant_std)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    loss, metrics = agent.loss(batch)
    expected = offline_crl.crl_losses(weights(agent), arrays, hyper)
    assert float(loss.detach()) == pytest.approx(expected["total"], rel=1e-9)
    assert float(metrics["critic/loss"]) == pytest.approx(expected["critic"], rel=1e-9)
    assert float(metrics["actor/loss"]) == pytest.approx(expected["actor"], rel=1e-9)
    tables = offline_crl.critics(weights(agent)["critic"], *(arrays[k] for k in ("observations", "actions")),
                                 arrays["value_goals"])  # fmt: skip
    assert float(metrics["critic/accuracy"]) == pytest.approx((tables.mean(0).argmax(1) == np.arange(B)).mean())
    assert float(metrics["critic/positive"]) == pytest.approx(tables.diagonal(axis1=1, axis2=2).mean(), rel=1e-9)


@pytest.mark.parametrize("constant_std", [True, False])
def test_gradients_equal_finite_differences_of_the_reference(constant_std):
    """Along a random direction of all weights: the policy's loss reaches no weight of the critic."""
    agent = agent_of(constant_std)
    batch = make_batch(agent)
    arrays, hyper = to_reference(agent, batch)
    agent.loss(batch)[0].backward()
    frozen = weights(agent)
    assert_slope(
        list(agent.parameters()), lambda: offline_crl.crl_losses(weights(agent), arrays, hyper, frozen)["total"]
    )


def test_the_loss_by_hand():
    """Logits log 3 and -log 3: sigma = 3/4 and 1/4, each pair is told right with probability 3/4."""
    logits = math.log(3) * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
    assert float(crl.contrastive_loss(logits)) == pytest.approx(math.log(4 / 3), abs=1e-12)
    assert float(crl.contrastive_loss(-logits)) == pytest.approx(math.log(4), abs=1e-12)
    assert float(crl.contrastive_loss(0 * logits)) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_at_the_optimum_the_log_odds_are_the_density_ratio(size):
    """The expected gradient over all batches of a small world vanishes at log p(g | x) / p(g) - log(B - 1)."""
    joint = torch.tensor([[0.3, 0.1, 0.05], [0.05, 0.2, 0.3]], dtype=torch.float64)  # p(x, g)
    ratio = joint / (joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True))
    critic = (ratio.log() - math.log(size - 1)).requires_grad_()
    rows = list(itertools.product(range(2), range(3)))
    expected = torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(rows, repeat=size):
        x, g = (torch.tensor(part) for part in zip(*batch, strict=True))
        expected = expected + joint[x, g].prod() * crl.contrastive_loss(critic[x][:, g])
    expected.backward()
    assert float(critic.grad.abs().max()) < 1e-12


def test_the_pairs_diagonal_is_the_critic_row_by_row():
    critic = agent_of().critic
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (OBS + ACT, OBS))
    pairs = critic.pairs(x, torch.cat([g, g[:2]]))
    assert pairs.shape == (2, 6, 8)
    torch.testing.assert_close(pairs[:, :, :6].diagonal(dim1=1, dim2=2), critic(x, g))


def test_positive_goals_lie_ahead_and_all_pairs_weigh_alike():
    goals = crl.CRLConfig(discount=0.9).goals()
    assert (goals["value"].future, goals["value"].law, goals["value"].discount) == (1, "geometric", 0.9)
    assert (goals["actor"].future, goals["actor"].law) == (1, "uniform")
    logits = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(crl.contrastive_loss(logits[:, order][:, :, order]), crl.contrastive_loss(logits))


def test_its_value_is_the_critic_at_the_policy_s_action():
    agent = agent_of()
    batch = make_batch(agent)
    s, g = batch["observations"], batch["actor_goals"]
    params = weights(agent)
    mean = offline_gc.actor(params["actor"], s.numpy(), g.numpy())[0]
    table = offline_crl.critics(params["critic"], s.numpy(), mean.clip(-1, 1), g.numpy())
    np.testing.assert_allclose(
        agent.value_functions(s, g)["Q"].detach().numpy(), table.min(0).diagonal(), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    ("env", "alpha", "discount", "elsewhere"),
    [
        ("pointmaze-medium-navigate-v0", 0.03, 0.99, 0.0),
        ("pointmaze-giant-stitch-v0", 0.03, 0.995, 0.5),
        ("antmaze-large-navigate-v0", 0.1, 0.99, 0.0),
        ("antmaze-medium-explore-v0", 0.003, 0.99, 1.0),
        ("humanoidmaze-large-navigate-v0", 0.1, 0.995, 0.0),
        ("antsoccer-arena-stitch-v0", 0.3, 0.99, 0.5),
        ("cube-single-play-v0", 3.0, 0.99, 0.0),
        ("scene-noisy-v0", 0.1, 0.99, 0.0),
    ],
)
def test_recipes_are_ogbench_s_commands(env, alpha, discount, elsewhere):
    config = recipe(crl.CRLConfig, env)
    assert (config.alpha, config.discount, config.actor_p_random) == (alpha, discount, elsewhere)
    assert (config.latent_dim, config.batch_size, config.value_hidden) == (512, 1024, (512, 512, 512))
