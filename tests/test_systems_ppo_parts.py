"""PPO's shared parts: the learning rate that follows the divergence, and a value that reads more than the policy."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from echelon.envs.spaces import spaces_of
from echelon.errors import UsageError
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import from_gym
from echelon.losses.kl import adapt_rate
from echelon.systems.online.common import AdaptiveRate, minibatches, readers
from echelon.systems.online.flat_ppo import FlatPPO
from echelon.systems.online.ppoc import PPOC
from echelon.training.agent import Learner
from echelon.training.runtime import choose


class Hidden(gymnasium.Env):
    """Pays action 1 in odd episodes and action 0 in even ones; only "secret" tells which it is."""

    observation_space = Dict({"seen": Box(-1, 1, (2,)), "secret": Box(0, 1, (1,))})
    action_space = Discrete(2)

    def __init__(self):
        self.episode = self.time = 0

    def _shown(self):
        return {"seen": np.zeros(2, np.float32), "secret": np.full(1, self.episode % 2, np.float32)}

    def reset(self, *, seed=None, options=None):
        self.episode, self.time = self.episode + 1, 0
        return self._shown(), {}

    def step(self, action):
        self.time += 1
        return self._shown(), float(action == self.episode % 2), self.time == 4, False, {}


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.021, 1e-3 / 1.5), (0.02, 1e-3), (0.01, 1e-3), (0.005, 1e-3), (0.004, 1.5e-3), (0.0, 1e-3)],
)
def test_the_rate_moves_by_a_half_outside_a_factor_of_two(kl, expected):
    assert adapt_rate(1e-3, kl, target=0.01) == pytest.approx(expected, rel=1e-12)


def test_the_rate_stays_within_its_bounds():
    draw = np.random.default_rng(0)
    rate = 1e-3
    for kl in draw.lognormal(-4.6, 2, size=400):
        before, rate = rate, adapt_rate(rate, kl, target=0.01)
        assert 1e-5 <= rate <= 1e-2
        assert (rate < before) <= (kl > 0.02) and (rate > before) <= (kl < 0.005)
    with pytest.raises(UsageError, match="kl must be finite, got nan"):
        adapt_rate(1e-3, math.nan, target=0.01)


def ready(cls, **options):
    """A learner, and the batches of one record."""
    envs = [Hidden(), Hidden()]
    spaces = spaces_of(envs[0].observation_space, envs[0].action_space)
    torch.manual_seed(0)
    config = cls.Config(slots=2, ticks=16, minibatch=8, epochs=2, hidden=(8,), **options)
    agent = cls(config, spaces)
    generator = torch.Generator().manual_seed(0)
    rollout = Runner(agent.levels(True), from_gym(envs), generator=generator).collect(16)
    return agent, rollout


@pytest.mark.parametrize("cls", [FlatPPO, PPOC])
def test_the_optimiser_takes_the_rate_that_the_last_divergence_asks_for(cls):
    agent, rollout = ready(cls, desired_kl=1e-4, lr=1e-3)
    learner, rate = Learner(agent, choose("cpu", "float32", 1)), 1e-3
    with torch.no_grad():
        batches = list(agent.learn(rollout))
    for step, batch in enumerate(batches, 1):
        aux = learner.step(step, batch)
        assert learner.optimizers["ppo"].param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)
        rate = adapt_rate(rate, float(aux["policy/kl"]), target=1e-4)
    assert rate != 1e-3
    assert float(agent.state_dict()["rate.rate"]) == pytest.approx(rate, rel=1e-12)
    assert AdaptiveRate(2e-3, 0.1).factor(1) == pytest.approx(1.0)


@pytest.mark.parametrize("cls", [FlatPPO, PPOC])
def test_only_the_value_reads_what_is_for_it_alone(cls):
    agent, rollout = ready(cls, critic_only=("secret",))
    assert (agent.read.size, agent.state.size) == (2, 3)
    with torch.no_grad():
        batch = next(iter(agent.learn(rollout)))
    batch = {name: column.clone() for name, column in batch.items()}
    loss, metrics = agent.loss(batch)
    loss.backward()
    assert all(p.grad is not None for p in agent.critic.parameters())
    batch["state"][:, 2] = 1 - batch["state"][:, 2]
    _, changed = agent.loss(batch)
    assert changed["value/loss"] != metrics["value/loss"]
    assert torch.equal(changed["policy/loss"], metrics["policy/loss"])


def test_unknown_or_missing_observations_are_named():
    spaces = spaces_of(Hidden.observation_space, Hidden.action_space)
    assert [reader.names for reader in readers(spaces, ("seen",))] == [("secret",), ("secret", "seen")]
    with pytest.raises(UsageError, match=r"the environment shows .*, and no hidden"):
        readers(spaces, ("hidden",))
    with pytest.raises(UsageError, match="the policy needs something to read"):
        readers(spaces, ("seen", "secret"))
    with pytest.raises(UsageError, match="desired_kl"):
        FlatPPO.Config(desired_kl=0.01, decay=True)


def test_minibatches_take_every_row_once_an_epoch():
    torch.manual_seed(1)
    rows = torch.arange(33)
    found = list(minibatches({"x": rows, "y": 2.0 * rows}, epochs=3, size=8))
    assert [len(batch["x"]) for batch in found] == [8, 8, 8, 8] * 3  # the row that is left over is left out
    assert all(torch.equal(batch["y"], 2.0 * batch["x"]) for batch in found)
    torch.manual_seed(1)
    expected = [chosen for _ in range(3) for chosen in torch.randperm(33).split(8) if len(chosen) > 1]
    assert all(torch.equal(batch["x"], rows[chosen]) for batch, chosen in zip(found, expected, strict=True))
