"""TD3's target, losses and order of updates against hand-made sums; the bounded values of HAC."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_resumes

from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.systems.online.td3 import TD3, TwinDelayed
from echelon.training.agent import Learner
from echelon.training.runtime import choose

SPACES = Spaces({"observation": (3,)}, {}, None, (-2.0, 0.0), (2.0, 1.0))


def parts(**changes: Any) -> TwinDelayed:
    torch.manual_seed(0)
    return TwinDelayed(3, 2, (8,), **{"rate": 0.25, **changes}).double()


def batch(rows: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    found = {name: torch.randn(rows, 3, dtype=torch.float64) for name in ("features", "next_features")}
    return found | {
        "action": torch.rand(rows, 2, dtype=torch.float64) * 2 - 1,
        "reward": torch.randn(rows, dtype=torch.float64),
        "discount": torch.tensor([0.9, 0.0, 0.81, 0.9, 0.9], dtype=torch.float64)[:rows],
    }


def test_losses_equal_the_paper_s_sums() -> None:
    twin, rows = parts(noise=0.4, clip=0.3), batch()
    torch.manual_seed(7)
    critic, _ = twin.critic_loss(rows)
    torch.manual_seed(7)
    noise = torch.randn(5, 2, dtype=torch.float64)
    q = twin.critic(torch.cat([rows["features"], rows["action"]], -1))[..., 0]
    expected = 0.0
    for row in range(5):
        mean = torch.tanh(twin.target_actor(rows["next_features"][row]))
        smoothed = [min(max(mean[a].item() + min(max(0.4 * noise[row, a].item(), -0.3), 0.3), -1), 1) for a in range(2)]
        seen = torch.cat([rows["next_features"][row], torch.tensor(smoothed, dtype=torch.float64)])
        later = twin.target_critic(seen[None])[:, 0, 0].min().item()
        y = rows["reward"][row].item() + rows["discount"][row].item() * later
        expected += sum((q[k, row].item() - y) ** 2 for k in (0, 1)) / 5
    assert critic.item() == pytest.approx(expected, rel=1e-9)

    actor, _ = twin.actor_loss(rows)
    first = twin.critic(torch.cat([rows["features"], torch.tanh(twin.actor(rows["features"]))], -1))[0, :, 0]
    assert actor.item() == pytest.approx(-first.mean().item(), rel=1e-9)
    actor.backward()
    assert all(p.grad is None for p in twin.critic.parameters())
    assert all(p.grad is not None for p in twin.actor.parameters())


def test_values_of_a_horizon_are_bounded() -> None:
    """H = 10: the offset is -4.998925, and x = 0 is worth -0.067."""
    twin = parts(horizon=10, critics=1)
    assert twin.offset == pytest.approx(-4.998925, abs=5e-7)
    with torch.no_grad():
        for p in twin.critic.parameters():
            p.zero_()
    rows = batch()
    values = twin.values(twin.critic, rows["features"], rows["action"])
    assert values.tolist() == [pytest.approx([-0.067] * 5)]
    with torch.no_grad():
        for net in (twin.critic, twin.target_critic):
            net.biases[-1].fill_(math.log(9) - twin.offset)  # sigmoid = 0.9
    rows |= {"reward": torch.tensor([-1.0, 0.0, -10.0, 5.0, -1.5]).double(), "discount": torch.ones(5).double()}
    with torch.no_grad():
        for net in (twin.target_critic.weights[-1], twin.critic.weights[-1]):
            net.zero_()
    assert twin.target(rows).tolist() == pytest.approx([-10, -9, -10, -4, -10])


def test_the_actor_and_the_targets_move_every_other_step() -> None:
    agent = TD3(TD3.Config(hidden=(8,)), SPACES)
    learner = Learner(agent, choose("cpu", threads=1))
    rows = {name: column.float() for name, column in batch().items()}

    def moved(step: int) -> tuple[bool, bool, bool]:
        nets = (agent.parts.critic, agent.parts.actor, agent.parts.target_critic)
        before = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
        learner.step(step, rows)
        after = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
        first, second, third = (not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return first, second, third

    assert [moved(step) for step in (1, 2, 3, 4)] == [(True, False, False), (True, True, True)] * 2


def test_targets_follow_by_their_rate() -> None:
    twin = parts()
    with torch.no_grad():
        for p in (*twin.critic.parameters(), *twin.actor.parameters()):
            p.add_(1.0)
    before = [p.clone() for p in (*twin.target_critic.parameters(), *twin.target_actor.parameters())]
    twin.follow({})
    after = [*twin.target_critic.parameters(), *twin.target_actor.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    twin.follow({"loss/actor": torch.zeros(())})
    online = [*twin.critic.parameters(), *twin.actor.parameters()]
    assert all(torch.allclose(a, 0.75 * b + 0.25 * o) for a, b, o in zip(after, before, online, strict=True))


def test_a_prefix_names_columns_updates_and_metrics() -> None:
    twin, rows = parts(), batch()
    critic, actor = twin.updates(1e-3, 1e-4, prefix="low/", every=5)
    assert (critic.name, critic.every, actor.name, actor.every) == ("low/critic", 5, "low/actor", 10)
    assert (critic.lr, actor.lr) == (1e-3, 1e-4)
    mine = {f"low/{name}": column for name, column in rows.items()}
    loss, metrics = actor.loss(mine | {"high/features": torch.zeros(5, 9)})
    assert loss.item() == twin.actor_loss(rows)[0].item() and "low/actor/loss" in metrics


def test_acting_noise_stays_within_the_bounds() -> None:
    agent = TD3(TD3.Config(hidden=(8,), random_steps=1, noise=3.0), SPACES)
    seen = {"observation": torch.randn(64, 3)}
    due = torch.ones(64, dtype=torch.bool)
    for warm in (False, True):
        agent.seen.fill_(int(warm))
        (level,) = agent.levels(explore=True)
        level.generator = torch.Generator().manual_seed(0)
        action = level.decide(seen, None, due).action
        assert bool((action >= torch.tensor([-2.0, 0.0])).all()) and bool((action <= torch.tensor([2.0, 1.0])).all())
        assert action[:, 0].std() > 1
    (level,) = agent.levels(explore=False)
    assert torch.equal(level.decide(seen, None, due).action, level.decide(seen, None, due).action)


@pytest.mark.parametrize("change", [{"delay": 0}, {"noise": -1.0}, {"smoothing": math.inf}, {"rate": 2.0}])
def test_senseless_values_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        TD3.Config(**change)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, Any] = {
        "slots": 2,
        "ticks": 5,
        "updates": 12,
        "random_steps": 20,
        "batch_size": 8,
        "hidden": (8,),
        "capacity": 64,
    }
    often: dict[str, Any] = {"eval_every": 6, "eval_episodes": 2, "checkpoint_every": 3, "log_every": 2}
    assert_resumes(TD3, TD3.Config(env="Pendulum-v1", **few, **often), 57, tmp_path, monkeypatch)
