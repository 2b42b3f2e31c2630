"""SAC's losses against a float64 derivation, and the parts around them."""

from __future__ import annotations

import math

import pytest
import torch

from echelon.envs.spaces import Spaces
from echelon.nets.actors import Categorical, Gaussian, SquashedGaussian
from echelon.systems.online.sac import SAC, SoftActorCritic

SPACES = Spaces({"observation": (3,)}, {}, None, (-2.0,), (2.0,))


def parts() -> SoftActorCritic:
    torch.manual_seed(0)
    return SoftActorCritic(3, 1, (8,), rate=0.25, target_entropy=-1.0).double()


def batch(rows: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    found = {name: torch.randn(rows, 3, dtype=torch.float64) for name in ("features", "next_features")}
    action = torch.tanh(torch.randn(rows, 1, dtype=torch.float64))
    return found | {
        "action": action,
        "reward": torch.randn(rows, dtype=torch.float64),
        "discount": torch.tensor([0.9, 0.0, 0.81, 0.9, 0.9], dtype=torch.float64)[:rows],
    }


def density(mean: float, log_std: float, action: float) -> float:
    """log π of a squashed Gaussian by the change of variables."""
    before = math.atanh(action)
    normal = -0.5 * ((before - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return normal - math.log(1 - action**2)


def test_a_squashed_sample_has_the_density_of_the_change_of_variables() -> None:
    torch.manual_seed(0)
    actor = SquashedGaussian(3, (8,), 1).double()
    parameters = actor(torch.randn(6, 3, dtype=torch.float64))
    action, log_prob = actor.sample(parameters)
    for (mean, log_std), a, logp in zip(parameters.tolist(), action[:, 0].tolist(), log_prob.tolist(), strict=True):
        assert logp == pytest.approx(density(mean, log_std, a), abs=1e-9)


def test_losses_equal_the_paper_s_sums() -> None:
    soft, rows = parts(), batch()
    with torch.no_grad():
        soft.log_temperature[0].fill_(math.log(0.3))
    torch.manual_seed(7)
    critic, _ = soft.critic_loss(rows)
    torch.manual_seed(7)
    action, logp = soft.actor.sample(soft.actor(rows["next_features"]))
    later = soft.target_critic(torch.cat([rows["next_features"], action], -1))[..., 0]
    q = soft.critic(torch.cat([rows["features"], rows["action"]], -1))[..., 0]
    expected = 0.0
    for row in range(5):
        soft_value = min(later[0, row].item(), later[1, row].item()) - 0.3 * logp[row].item()
        y = rows["reward"][row].item() + rows["discount"][row].item() * soft_value
        expected += sum(0.5 * (q[k, row].item() - y) ** 2 for k in (0, 1)) / 5
    assert critic.item() == pytest.approx(expected, rel=1e-9)

    torch.manual_seed(8)
    actor, metrics = soft.actor_loss(rows)
    torch.manual_seed(8)
    action, logp = soft.actor.sample(soft.actor(rows["features"]))
    q = soft.critic(torch.cat([rows["features"], action], -1))[..., 0]
    own = sum(0.3 * logp[r].item() - min(q[0, r].item(), q[1, r].item()) for r in range(5)) / 5
    excess = sum(logp[r].item() - 1.0 for r in range(5)) / 5
    assert metrics["actor/loss"].item() == pytest.approx(own, rel=1e-9)
    assert actor.item() == pytest.approx(own - math.log(0.3) * excess, rel=1e-9)


def test_gradients_go_where_they_belong() -> None:
    soft, rows = parts(), batch()
    soft.actor_loss(rows)[0].backward()
    assert all(p.grad is None for p in soft.critic.parameters())
    assert all(p.grad is not None for p in soft.actor.parameters())
    assert soft.log_temperature[0].grad is not None
    assert all(p.requires_grad for p in soft.critic.parameters())


def test_targets_follow_by_their_rate() -> None:
    soft = parts()
    with torch.no_grad():
        for p in soft.critic.parameters():
            p.add_(1.0)
    before = [p.clone() for p in soft.target_critic.parameters()]
    soft.follow()
    for old, new, online in zip(before, soft.target_critic.parameters(), soft.critic.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * online)


def test_actions_are_scaled_to_the_bounds_and_back() -> None:
    agent = SAC(SAC.Config(hidden=(8,), random_steps=0), SPACES)
    (level,) = agent.levels(explore=True)
    level.generator = torch.Generator().manual_seed(0)
    seen = {"observation": torch.randn(64, 3)}
    with torch.no_grad():
        action = level.decide(seen, None, torch.ones(64, dtype=torch.bool)).action
    assert action.shape == (64, 1) and float(action.abs().max()) <= 2 and float(action.abs().max()) > 1
    rows = {"observation": seen["observation"], "next_observation": seen["observation"], "action": action}
    agent.replay.add(rows | {"reward": torch.zeros(64), "discount": torch.ones(64)})
    assert float(agent.draw()["action"].abs().max()) <= 1


def test_samples_of_choices_and_vectors_have_their_probabilities() -> None:
    torch.manual_seed(0)
    choice = Categorical(2, (4,), 3)
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(60_000, 3)
    shares = torch.bincount(choice.sample(logits, torch.Generator().manual_seed(0)), minlength=3) / 60_000
    assert torch.allclose(shares, logits[0].softmax(-1), atol=0.01)
    p = logits[0].softmax(-1)
    assert choice.entropy(logits)[0].item() == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)
    assert choice.log_prob(logits[:1], torch.tensor([2])).item() == pytest.approx(float(p[2].log()), rel=1e-5)
    vector = Gaussian(2, (4,), 2, log_std=math.log(0.5))
    normal = torch.distributions.Normal(torch.zeros(2), 0.5)
    action = torch.tensor([[0.3, -0.4]])
    assert vector.log_prob(torch.zeros(1, 2), action).item() == pytest.approx(float(normal.log_prob(action).sum()))
    assert vector.entropy(torch.zeros(1, 2)).item() == pytest.approx(float(normal.entropy().sum()))
