"""PPO's shared parts: the rate that follows the divergence, a value that reads more, a value a reward channel."""

from __future__ import annotations

import math
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from echelon.envs.spaces import spaces_of
from echelon.errors import DataError, UsageError
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import from_gym
from echelon.losses.kl import adapt_rate
from echelon.systems.online.common import AdaptiveRate, channel_advantages, minibatches, readers
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


class Channels(gymnasium.Env):
    """A point in the plane; three steps, of which no single reward is told."""

    observation_space, action_space = Box(-9, 9, (2,)), Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        self.place, self.time = np.random.default_rng(seed).normal(size=2).astype(np.float32), 0
        return self.place, {}

    def step(self, action):
        self.time, self.place = self.time + 1, self.place + action.astype(np.float32)
        return self.place, 0.0, self.time == 3 and self.place[0] > 0, self.time == 3, {}


class Channelled:
    """The same, with the channels "reach" (which side of 0) and "effort"; `sole`: the first alone, as one reward."""

    explicit = True

    def __init__(self, slots, sole=False):
        self.inner, self.sole = from_gym([Channels() for _ in range(slots)]), sole

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def step(self, actions, active):
        step = self.inner.step(actions, active)
        reach = np.sign(step.observation["observation"][:, 0])
        effort = -np.square(actions.numpy()).sum(1)
        return step._replace(reward=reach if self.sole else {"reach": reach, "effort": effort})


def channelled(sole=False, ticks=16, **options):
    """An agent and a record of its in four such worlds."""
    torch.manual_seed(3)
    spaces = spaces_of(Channels.observation_space, Channels.action_space)
    agent = FlatPPO(FlatPPO.Config(hidden=(8,), minibatch=16, epochs=1, gamma=0.9, lam=0.8, **options), spaces)
    generator = torch.Generator().manual_seed(5)
    return agent, Runner(agent.levels(True), Channelled(4, sole), generator=generator).collect(ticks)


def test_a_critic_for_each_channel_by_hand():
    rollout = channelled(ticks=3, channels=("effort", "reach"))[1].episodes([0])
    rollout.reward = {"reach": torch.tensor([1.0, 0.0, 2.0]), "effort": torch.tensor([0.0, -10.0, -1.0])}
    rollout.streams.terminated[:], rollout.streams.truncated[:] = False, True
    values = torch.tensor([[0.5, -2.0], [0.4, -3.0], [0.3, -1.0]])
    weights = {"reach": 1.0, "effort": 2.0}
    advantage, target = channel_advantages(rollout, values, torch.tensor([[1.0, 0.0]]), weights, 0.9, 0.8)
    # reach: deltas 1 + 0.9 x 0.4 - 0.5 = 0.86, -0.13, 2 + 0.9 - 0.3 = 2.6; effort: -0.7, -7.9, 0
    reach, effort = np.array([2.11424, 1.742, 2.6]), np.array([-6.388, -7.9, 0.0])
    expected = sum(w * (a - a.mean()) / a.std() for w, a in ((1, reach), (2, effort)))
    torch.testing.assert_close(advantage.double().numpy(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target, values + torch.tensor(np.stack([reach, effort], 1), dtype=torch.float32))


def test_a_critic_for_each_channel_by_a_loop():
    agent, rollout = channelled(channels=("effort", "reach"), channel_weights=(0.5, 2.0))
    with torch.no_grad():
        batch = agent.credited(rollout)
        final = agent.critic(rollout.streams.final_observation["observation"])
        values = agent.critic(rollout.observation["observation"])
    columns = []
    for c, name in enumerate(agent.config.channels):
        found, streams = torch.zeros(rollout.size), rollout.streams
        for s, (start, stop) in enumerate(pairwise(rollout.spans["stream"].offsets.tolist())):
            after, running = (0.0 if streams.terminated[s] else float(final[s, c])), 0.0
            for i in reversed(range(start, stop)):
                delta = float(rollout.reward[name][i]) + 0.9 * after - float(values[i, c])
                found[i] = running = delta + 0.9 * 0.8 * running
                after = float(values[i, c])
        columns.append(found)
    torch.testing.assert_close(batch["target"], values + torch.stack(columns, 1), rtol=1e-5, atol=1e-5)
    parts = [w * (a - a.mean()) / a.std(correction=0) for w, a in zip((0.5, 2.0), columns, strict=True)]
    torch.testing.assert_close(batch["advantage"], sum(parts), rtol=1e-4, atol=1e-5)
    _, metrics = agent.loss(batch)
    errors = (agent.critic(batch["features"]) - batch["target"]).square().mean(0)
    torch.testing.assert_close(metrics["value/loss"], errors[0] + errors[1])


def test_one_channel_is_the_ordinary_critic():
    plain, alike = channelled(sole=True), channelled(channels=("reach",), channel_weights=(1.0,))
    assert torch.equal(plain[1].proposed, alike[1].proposed)
    torch.testing.assert_close(plain[0].state_dict(), alike[0].state_dict(), rtol=0, atol=0)
    batches, losses = [], []
    for agent, rollout in (plain, alike):
        with torch.no_grad():
            batch = agent.credited(rollout)
        loss, _ = agent.loss(batch)
        loss.backward()
        batches.append(batch)
        losses.append(loss)
    assert torch.equal(batches[0]["target"], batches[1]["target"][:, 0])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for one, other in zip(plain[0].parameters(), alike[0].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_channels_that_nobody_tells_are_named():
    agent, rollout = channelled(channels=("effort", "safety"))
    with torch.no_grad(), pytest.raises(DataError, match="no reward channel 'safety'; there are reach, effort"):
        next(iter(agent.learn(rollout)))
    with pytest.raises(UsageError, match="channel_weights must be one for each of `channels`"):
        FlatPPO.Config(channels=("a", "b"), channel_weights=(1.0,))
    with pytest.raises(UsageError, match="names of different channels"):
        FlatPPO.Config(channels=("a", "a"))
    with pytest.raises(UsageError, match="an option has one value, of all rewards together"):
        PPOC.Config(channels=("a",))
