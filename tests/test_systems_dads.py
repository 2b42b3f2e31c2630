"""DADS: rewards and dynamics against the paper's sums, plans against a naive search, exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import SHORT, assert_resumes
from torch import Tensor

from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.hierarchy.planning.mppi import mppi
from echelon.systems.online.dads import DADS, PlanLevel, PriorLevel, SkillDynamics, dynamics_reward
from echelon.systems.online.skills import Whitening

SPACES = Spaces({"observation": (3,)}, {}, None, (-2.0,), (2.0,))
GOALS = Spaces({"observation": (3,), "desired_goal": (2,)}, {}, None, (-2.0,), (2.0,))


SMALL: dict[str, Any] = {"env": "Pendulum-v1", **SHORT}


def config(**changes: Any) -> DADS.Config:
    own = {"others": 5, "dynamics_every": 2, "hold": 2, "plan": 3, "samples": 8, "rounds": 2}
    return DADS.Config(**{**SMALL, **own, **changes})


def test_reward_by_hand() -> None:
    reward = dynamics_reward(torch.tensor([-1.0]), torch.tensor([[-2.0], [-3.0], [-1.5]]))
    assert reward.item() == pytest.approx(0.639727, abs=1e-6)
    # the same under all skills tells nothing; a difference counts up to 50
    assert dynamics_reward(torch.tensor([-4.0]), torch.full((7, 1), -4.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert dynamics_reward(torch.tensor([-900.0]), torch.zeros(1, 1)).item() == pytest.approx(math.log(2) - 50)
    assert dynamics_reward(torch.tensor([0.0]), torch.full((1, 1), -900.0)).item() == pytest.approx(math.log(2))


def test_whitening_counts_every_row() -> None:
    rows = [3 + 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for n in (4, 1, 30)]
    whitening = Whitening(2)
    assert torch.equal(whitening(rows[0]), rows[0])
    for part in rows:
        whitening.update(part)
    seen = torch.cat(rows)
    assert torch.allclose(whitening.mean, seen.mean(0), atol=1e-5)
    assert torch.allclose(whitening.deviation, seen.std(0, unbiased=False), atol=1e-5)


def dynamics() -> SkillDynamics:
    torch.manual_seed(0)
    found = SkillDynamics(2, 1, (8,), 4)
    found.states.update(torch.randn(20, 2) * 2 + 1)
    found.changes.update(torch.randn(20, 2) * 0.1)
    return found


def test_dynamics_are_a_mixture_of_gaussians() -> None:
    q = dynamics()
    state, skill = torch.randn(3, 2), torch.rand(3, 1)
    after = state + 0.1 * torch.randn(3, 2)
    found, expected = q.log_prob(state, skill, after), q.predict(state, skill)
    for row in range(3):
        read = torch.cat([(state[row] - q.states.mean) / q.states.deviation, skill[row]])
        out = q.mlp(read)
        weights, means = out[:4].softmax(-1), out[4:].reshape(4, 2)
        change = (after[row] - state[row] - q.changes.mean) / q.changes.deviation
        density, mean = 0.0, torch.zeros(2)
        for k in range(4):
            normal = math.prod(math.exp(-0.5 * e**2) / math.sqrt(2 * math.pi) for e in (change - means[k]).tolist())
            density += weights[k].item() * normal
            mean += weights[k] * means[k]
        assert found[row].item() == pytest.approx(math.log(density), abs=1e-4)
        assert torch.allclose(expected[row], state[row] + q.changes.mean + q.changes.deviation * mean, atol=1e-5)


def test_a_plan_is_the_weighted_mean_of_sampled_ones() -> None:
    start = torch.zeros(2, 3, 1)
    seen: list[Tensor] = []

    def value(plans: Tensor) -> Tensor:
        seen.append(plans)
        return -(plans[..., 0] - 0.5).square().sum(-1)

    found = mppi(value, start, samples=16, rounds=1, temperature=3.0, generator=torch.Generator().manual_seed(0))
    (plans,) = seen
    assert float(plans.abs().max()) <= 1
    for row in range(2):
        weights = [math.exp(-3 * sum((x - 0.5) ** 2 for x in plan[:, 0].tolist())) for plan in plans[row]]
        mean = sum(w * plan for w, plan in zip(weights, plans[row], strict=True)) / sum(weights)
        assert torch.allclose(found[row], mean, atol=1e-5)
    better = mppi(value, start, samples=200, rounds=8, spread=0.3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(better, torch.full_like(start, 0.5), atol=0.15)
    assert mppi(value, start, rounds=0) is start
    with pytest.raises(UsageError, match="one sample"):
        mppi(value, start, samples=0)


def test_the_value_of_a_plan_is_that_of_a_walk_through_the_model() -> None:
    torch.manual_seed(0)
    agent = DADS(config(sees=(0, 2), goal_places=(1, 0)), GOALS)
    agent.dynamics.changes.update(torch.randn(20, 2))
    state, goal, plans = torch.randn(2, 2), torch.randn(2, 2), torch.rand(2, 4, 3, 2)
    found = agent.plan_value(plans, state, goal)
    for b in range(2):
        for p in range(4):
            here, total = state[b], 0.0
            for h in range(3):
                for _ in range(2):
                    here = agent.dynamics.predict(here, plans[b, p, h])
                    total += math.dist((here[1].item(), here[0].item()), goal[b].tolist())
            assert found[b, p].item() == pytest.approx(-total / 6, rel=1e-4)


def test_a_plan_goes_towards_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamics in which a skill is a velocity, the first skill points at the goal."""
    agent = DADS(config(samples=64, rounds=4, plan=2), GOALS)
    move = torch.eye(2, 3) * 0.3
    monkeypatch.setattr(agent.dynamics, "predict", lambda state, skill: state + skill @ move)
    level = agent.levels(explore=False)[0]
    assert isinstance(level, PlanLevel) and isinstance(agent.levels(explore=True)[0], PriorLevel)
    level.generator = torch.Generator().manual_seed(0)
    goal = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    seen = {"observation": torch.zeros(2, 3), "desired_goal": goal}
    with torch.no_grad():
        skill = level.decide(seen, None, torch.ones(2, dtype=torch.bool)).action
    assert bool((torch.cosine_similarity(skill, goal) > 0.9).all())


def test_the_reward_of_a_batch_compares_with_skills_of_the_prior() -> None:
    torch.manual_seed(0)
    agent = DADS(config(), SPACES)
    rows = {name: torch.randn(6, 3) for name in ("observation", "next_observation")}
    rows |= {"action": torch.zeros(6, 1), "reward": torch.zeros(6), "discount": torch.ones(6)}
    batch = agent.batch(rows | {"command": torch.rand(6, 2)})
    with torch.no_grad():
        torch.manual_seed(5)
        reward = agent.prepare(batch)["reward"]
        torch.manual_seed(5)
        prior = torch.empty(5, 6, 2).uniform_(-1, 1)
        for row in range(6):
            s, after = batch["state"][row], batch["next_state"][row]
            own = agent.dynamics.log_prob(s, batch["skill"][row], after).item()
            odds = sum(math.exp(agent.dynamics.log_prob(s, prior[i, row], after).item() - own) for i in range(5))
            assert reward[row].item() == pytest.approx(math.log(6) - math.log(1 + odds), abs=1e-4)


def test_it_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_resumes(DADS, config(), 10, tmp_path, monkeypatch)


def test_senseless_configurations_are_refused() -> None:
    with pytest.raises(UsageError, match="dads: others must be at least 1"):
        config(others=0)
    with pytest.raises(UsageError, match="goal_places"):
        DADS(config(goal_places=(0, 5)), GOALS)
    with pytest.raises(UsageError, match="goal_places"):
        DADS(config(goal_places=(0,)), GOALS)
