"""SMORe: its worked examples, losses, gradients and the order of a step against a derivation, goals apart in a run."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from reference import offline_gc, offline_smore
from small_runs import TinyWorld, act, synthetic_store, tiny_world
from test_offline_losses import assert_slope, layers

from echelon.errors import UsageError
from echelon.losses.value import expectile_loss
from echelon.systems.offline import smore
from echelon.systems.offline.recipes import recipe
from echelon.training import run
from echelon.training.agent import DataSpec, Learner
from echelon.training.evaluation import Evaluator, GoalApart
from echelon.training.offline import OfflineRun
from echelon.training.runtime import choose

B, OBS, ACT, GOAL = 6, 5, 3, 2


@pytest.fixture(autouse=True)
def exact_gelu(monkeypatch):
    """The reference states GELU in its tanh form; ours is the exact one."""
    erf = np.vectorize(math.erf)
    monkeypatch.setattr(offline_gc, "gelu", lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))))


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def agent_of(**changes) -> smore.SMORe:
    config = smore.SMOReConfig(**{"actor_hidden": (16, 12), "value_hidden": (14, 12), "step_reward": -0.3} | changes)
    torch.manual_seed(3)
    agent = smore.SMORe(config, DataSpec(OBS, ACT, GOAL)).double()
    with torch.no_grad():  # the targets differ from the critics
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return agent


def mixed_batch(seed: int = 5) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = {"observations": OBS, "next_observations": OBS, "actions": ACT, "goals": GOAL}
    batch = {name: torch.randn(2 * B, size, generator=g, dtype=torch.float64) for name, size in sizes.items()}
    flags = {"source": torch.tensor([0] * B + [1] * B), "entered": torch.arange(2 * B) % 3 == 0}
    flags["entered"][B:] = True
    return batch | flags


def weights(agent: smore.SMORe) -> dict:
    """The agent's weights in the reference's layout."""
    heads = {"value": (agent.value.heads, 1), "critic": (agent.critic, 2), "target_critic": (agent.target_critic, 2)}
    params: dict = {k: {"heads": [layers(module, m) for m in range(n)]} for k, (module, n) in heads.items()}
    params["actor"] = {"layers": layers(agent.actor.mlp), "log_std": agent.actor.log_std.detach().numpy().copy()}
    return params


def reference_losses(agent: smore.SMORe, batch: dict, frozen: dict | None = None) -> dict[str, float]:
    first, second = ({k: v.numpy()[half] for k, v in batch.items()} for half in (slice(0, B), slice(B, None)))
    params, hyper = weights(agent), dataclasses.asdict(agent.config)
    return {
        "value": offline_smore.value_loss(params, first, hyper),
        "actor": offline_smore.actor_loss(params, first, hyper),
        "critic": offline_smore.critic_loss(params, first, second, hyper, frozen),
    }


# --- the worked examples: gamma 0.99, c = -2


ENTERING, OFFLINE, FOLLOWING = t([150, 190]), t([-10, -4]), t(-12, -3)


def test_the_stable_loss_of_the_worked_example():
    assert float(smore.stable_loss(ENTERING, OFFLINE, FOLLOWING, 0.99, -2)) == pytest.approx(1303.998883, abs=5e-7)
    both = smore.stable_loss(ENTERING.expand(2, 2), OFFLINE.expand(2, 2), FOLLOWING, 0.99, -2)
    assert float(both) == pytest.approx(2 * 1303.998883, abs=1e-6)


def test_the_dual_loss_of_the_worked_example():
    assert float(smore.dual_loss(ENTERING, OFFLINE, FOLLOWING, 0.99)) == pytest.approx(-168.851875, abs=5e-7)


def test_the_sparse_loss_of_the_worked_example():
    """Targets -13.88 and, as it enters, 200 of the offline rows: (2500 + 100 + 3.88^2 + 204^2) / 4."""
    entered = torch.tensor([False, True])
    assert float(smore.sparse_loss(ENTERING, OFFLINE, entered, FOLLOWING, 0.99, -2)) == pytest.approx(11057.7636)
    both = smore.sparse_loss(ENTERING.expand(2, 2), OFFLINE.expand(2, 2), entered, FOLLOWING, 0.99, -2)
    assert float(both) == pytest.approx(2 * 11057.7636)


def test_the_value_loss_of_the_worked_example():
    d = t(2, -1)
    assert float(expectile_loss(d, d, 0.8).mean()) == pytest.approx(1.7)


def test_the_fixed_point_counts_down_from_200(monkeypatch):
    """A chain whose last step enters the goal, and a step that leads nowhere, without the regulariser."""
    monkeypatch.setattr(smore, "REGULARISER", 0.0)
    table = t([0, 0, 0, 0, -200])  # four steps of the chain, the last one entering; one for ever
    for _ in range(6):
        value = table[0].clone()
        scores = table.clone().requires_grad_()
        following = torch.stack([value[1], value[2], value[3], value[4]])
        smore.stable_loss(scores[:, 3:4], scores[:, [0, 1, 2, 4]], following, 0.99, -2).backward()
        table = table - scores.grad * t(4, 4, 4, 0.5, 4)  # each step is at its own minimum
    assert table[0, :4].tolist() == pytest.approx([188.1196, 192.04, 196, 200], abs=1e-9)
    assert float(table[0, 4]) == pytest.approx(-200, abs=1e-9)


def test_the_sparse_reward_has_the_same_fixed_point():
    """The same chain, whose last step is among the offline rows too, and what its steps are worth by a 0/1 reward."""
    table, entered = t(0, 0, 0, 0, -200), torch.arange(5) == 3
    for _ in range(6):
        scores = table[None].clone().requires_grad_()
        smore.sparse_loss(scores[:, 3:4], scores, entered, table[[1, 2, 3, 4, 4]], 0.99, -2).backward()
        table = table - scores.grad[0] * t(5, 5, 5, 1 / 1.2, 5)
    assert table.tolist() == pytest.approx([188.1196, 192.04, 196, 200, -200], abs=1e-9)
    discounted = t(0.99**3, 0.99**2, 0.99, 1, 0)
    torch.testing.assert_close(table, 200 * (2 * discounted - 1), rtol=0, atol=1e-9)


def test_a_smaller_c_scales_the_stable_loss_and_nothing_else():
    small = smore.stable_loss(0.01 * ENTERING, 0.01 * OFFLINE, 0.01 * FOLLOWING, 0.99, -0.02)
    whole = smore.stable_loss(ENTERING, OFFLINE, FOLLOWING, 0.99, -2)
    assert float(small) == pytest.approx(1e-4 * float(whole), rel=1e-12)


@pytest.mark.parametrize(("c", "factor"), [(-2.0, math.exp(12)), (-0.2, 3.32), (-0.02, 1.127)])
def test_what_a_step_nearer_to_the_goal_is_worth(c, factor):
    """Entering is worth -c / (1 - gamma), the step before it c + gamma times that: -2c less."""
    top = -c / 0.01
    gain = top - (c + 0.99 * top)
    assert gain == pytest.approx(-2 * c) and math.exp(3 * gain) == pytest.approx(factor, rel=1e-3)
    fixed = smore.stable_loss(t([top]), t([top - gain]), t(top), 0.99, c)
    assert float(fixed) == pytest.approx(0.01 * smore.REGULARISER * (top - gain) ** 2, rel=1e-9)


# --- losses, gradients, the order of a step


@pytest.mark.parametrize("variant", ["smore_stable", "smore", "sparse"])
def test_losses_equal_the_reference(variant):
    agent = agent_of(variant=variant)
    batch = mixed_batch()
    prepared = agent.prepare(batch)
    expected = reference_losses(agent, batch)
    for name, loss in (("value", agent.value_loss), ("actor", agent.actor_loss), ("critic", agent.critic_loss)):
        assert float(loss(prepared)[0].detach()) == pytest.approx(expected[name], rel=1e-9), name
    metrics = agent.actor_loss(prepared)[1] | agent.critic_loss(prepared)[1]
    params = weights(agent)
    first = {k: v.numpy()[:B] for k, v in batch.items()}
    low = offline_smore.scores(params, "target_critic", first).min(0)
    advantage = low - offline_smore.value(params, first["observations"], first["goals"])
    share = offline_smore.effective_share(advantage, agent.config.temperature)
    assert float(metrics["actor/effective_share"]) == pytest.approx(share, rel=1e-9)
    assert float(metrics["actor/advantage"]) == pytest.approx(advantage.mean(), rel=1e-9)
    every = offline_smore.scores(params, "critic", {k: v.numpy() for k, v in batch.items()})
    assert float(metrics["critic/largest"]) == pytest.approx(np.abs(every).max(), rel=1e-9)
    assert float(metrics["critic/entering"]) == pytest.approx(every[:, B:].mean(), rel=1e-9)


@pytest.mark.parametrize("variant", ["smore_stable", "smore", "sparse"])
def test_gradients_equal_finite_differences_of_the_reference(variant):
    """Along a random direction of each update's own modules."""
    agent = agent_of(variant=variant)
    batch = mixed_batch()
    prepared = agent.prepare(batch)
    for update in agent.updates():
        owned = [p for module in update.modules for p in module.parameters()]
        agent.zero_grad(set_to_none=True)
        update.loss(prepared)[0].backward()
        assert all(p.grad is None for p in agent.parameters() if all(p is not q for q in owned))
        assert_slope(owned, partial(lambda name: reference_losses(agent, batch)[name], update.name))


def test_a_step_moves_value_policy_critics_and_targets_in_that_order():
    """By hand: each loss sees what the one before it moved, and the targets see the new critics."""
    agent = agent_of(updates=10, lr=1e-2)
    hand, batch = copy.deepcopy(agent), mixed_batch()
    learner = Learner(agent, choose("cpu", "float32", 1))
    adams = {name: torch.optim.Adam(getattr(hand, name).parameters(), lr=1e-2) for name in ("value", "actor", "critic")}
    for step, factor in ((1, 1.0), (2, 0.5 * (1 + math.cos(0.1 * math.pi)))):
        learner.step(step, batch)
        with torch.no_grad():
            prepared = hand.prepare(batch)
        for name, loss in (("value", hand.value_loss), ("actor", hand.actor_loss), ("critic", hand.critic_loss)):
            adams["actor"].param_groups[0]["lr"] = 1e-2 * factor
            hand.zero_grad(set_to_none=True)
            loss(prepared)[0].backward()
            adams[name].step()
        with torch.no_grad():
            for target, online in zip(hand.target_critic.parameters(), hand.critic.parameters(), strict=True):
                target.copy_(0.995 * target + 0.005 * online)
        for (name, mine), theirs in zip(agent.named_parameters(), hand.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9, msg=name)


def test_the_policy_s_rate_ends_at_0():
    actor = next(update for update in agent_of(updates=100).updates() if update.name == "actor")
    rate = actor.schedule
    assert rate(1) == 1 and rate(51) == pytest.approx(0.5)
    assert rate(101) == pytest.approx(0) and 0 < rate(100) < 1e-3


def test_entering_rows_reach_neither_value_nor_policy():
    agent, batch = agent_of(), mixed_batch()
    changed = {k: torch.cat([v[:B], -v[B:]]) if v.dim() == 2 else v for k, v in batch.items()}
    one, two = agent.prepare(batch), agent.prepare(changed)
    for loss in (agent.value_loss, agent.actor_loss):
        assert torch.equal(loss(one)[0], loss(two)[0])
    assert not torch.equal(agent.critic_loss(one)[0], agent.critic_loss(two)[0])


# --- options


def test_temperature_0_clones():
    agent = agent_of(temperature=0.0)
    prepared = agent.prepare(mixed_batch())
    loss, metrics = agent.actor_loss(prepared)
    mean = agent.actor(prepared["observations"], prepared["goals"])
    assert torch.equal(loss, -agent.actor.log_prob(mean, prepared["actions"]).mean())
    assert float(metrics["actor/effective_share"]) == 1 and float(mean.detach().abs().max()) < 1


def test_who_clones_learns_neither_value_nor_critics():
    """They would change nothing: the policy's steps are those of any other draw of their weights."""
    one, two = agent_of(temperature=0.0), agent_of(temperature=0.0)
    with torch.no_grad():
        for module in (two.value, two.critic, two.target_critic):
            for parameter in module.parameters():
                parameter.mul_(-2)
    before, batch = copy.deepcopy(one), mixed_batch()
    for agent in (one, two):
        learner = Learner(agent, choose("cpu", "float32", 1))
        for step in (1, 2):
            metrics = learner.step(step, batch)
        assert set(metrics) >= {"loss/actor", "actor/effective_share"} and "loss/critic" not in metrics
    assert one.value_functions(batch["observations"], batch["goals"]) == {}
    for (name, mine), theirs, old in zip(one.named_parameters(), two.parameters(), before.parameters(), strict=True):
        if name.startswith("actor"):
            assert torch.equal(mine, theirs)
        else:
            assert torch.equal(mine, old), name


def test_networks_may_see_observations_and_goals_by_the_moments_of_offline_rows():
    """The same losses as without, of rows normalised by hand; positions and goals in play as in a batch."""
    plain, agent, batch = agent_of(), agent_of(normalize=True), mixed_batch()
    agent.load_state_dict(plain.state_dict(), strict=False)
    pairs = torch.cat([batch["observations"][:B], batch["goals"][:B]], -1)
    mean, std = pairs.mean(0), pairs.std(0, correction=0).clamp(min=1e-2)
    o = batch["observations"].shape[-1]
    by_hand = dict(batch)
    for name, part in (("observations", slice(o)), ("next_observations", slice(o)), ("goals", slice(o, None))):
        by_hand[name] = ((batch[name] - mean[part]) / std[part]).clamp(-5, 5)
    one, two = agent.prepare(batch), plain.prepare(by_hand)
    for name in ("value_loss", "actor_loss", "critic_loss"):
        torch.testing.assert_close(getattr(agent, name)(one)[0], getattr(plain, name)(two)[0], rtol=1e-9, atol=1e-9)
    s, g = batch["observations"][:3], batch["goals"][:3]
    torch.testing.assert_close(
        agent.value_functions(s, g)["V"],
        plain.value_functions(by_hand["observations"][:3], by_hand["goals"][:3])["V"],
        rtol=1e-9,
        atol=1e-9,
    )
    (level,), (other,) = agent.levels(), plain.levels()
    seen = {"observation": by_hand["observations"][:3], "goal": by_hand["goals"][:3]}
    expected = other.decide(seen, None, torch.ones(3, dtype=torch.bool)).action
    found = level.decide({"observation": s, "goal": g}, None, torch.ones(3, dtype=torch.bool)).action
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_effective_share():
    assert float(smore.effective_share(t(0.3, 0.3, 0.3), 3)) == pytest.approx(1)
    assert float(smore.effective_share(t(0, 0, 0, -200), 3)) == pytest.approx(0.75)
    assert float(smore.effective_share(t(50, 90, -200, -300), 3)) == pytest.approx(0.5)  # two are clipped at 100
    assert float(smore.effective_share(torch.tensor([-300.0, -350.0]), 3)) == pytest.approx(0.5)  # both underflow
    w = 3.0 * t(0.1, -0.4, 0.2)
    expected = float(w.exp().sum() ** 2 / (2 * w).exp().sum() / 3)
    assert float(smore.effective_share(t(0.1, -0.4, 0.2), 3)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"variant": "gofar"}, "smore_stable or smore or sparse"),
        ({"stride": "none"}, "episode or released"),
        ({"step_reward": 0.5}, "negative"),
        ({"expectile": 1.0}, "between 0 and 1"),
        ({"future": 1.5}, "between 0 and 1"),
        ({"temperature": -1.0}, "0 or more"),
        ({"goal_radius": 0.0}, "positive"),
    ],
)
def test_wrong_settings_are_refused(change, what):
    with pytest.raises(UsageError, match=f"smore: {next(iter(change))} must be {what}"):
        smore.SMOReConfig(**change)


def test_settings_reach_the_draws():
    goals = smore.SMOReConfig(future=0.5, goal_radius=0.1, stride="released").goals()
    assert list(goals) == ["offline", "entering"]
    assert [(g.future, g.entering, g.stride) for g in goals.values()] == [(0.5, x, "released") for x in (False, True)]
    assert {g.radius for g in goals.values()} == {0.1}


def test_recipes():
    full = recipe(smore.SMOReConfig, "fetchreach-mixed-v0")
    assert (full.step_reward, full.temperature, full.expectile, full.future) == (-2, 3, 0.8, 0.8)
    assert (full.batch_size, full.updates, full.value_hidden, full.lr) == (256, 3_000_000, (256,) * 3, 3e-4)
    for size in ("cpu", "demo"):
        small = recipe(smore.SMOReConfig, "fetchreach-mixed-v0", size)
        assert (small.step_reward, small.temperature, small.value_hidden) == (-1, 3, (256, 256))
        assert (small.discount, small.target_rate, small.normalize) == (0.97, 0.05, True)
    assert not full.normalize


# --- goals apart from observations, in a run


class Asking(TinyWorld):
    """TinyWorld that also tells its goal proper."""

    def reset(self, *, seed=None, options=None):
        seen, _ = super().reset(seed=seed, options=options)
        return seen, {"desired_goal": self.goal}


def test_worlds_show_goals_apart():
    env = GoalApart(Asking(), 2)
    apart = {"goal": Box(-np.inf, np.inf, (2,), np.float32)}
    assert env.observation_space == Dict({**TinyWorld().observation_space.spaces, **apart})
    seen, _ = env.reset(seed=0, options={"task_id": 2})
    assert env.observation_space.contains(seen) and np.allclose(seen["goal"], env.unwrapped.goal)
    after, *_ = env.step(np.zeros(2))
    assert env.observation_space.contains(after) and np.array_equal(after["goal"], seen["goal"])
    with pytest.raises(UsageError, match="no goals apart from observations"):
        GoalApart(TinyWorld(), 2).reset(seed=0, options={"task_id": 1})


def test_an_agent_sees_the_worlds_it_was_made_for(tmp_path):
    with tiny_world(synthetic_store(tmp_path / "walks")), pytest.MonkeyPatch.context() as patch:
        patch.setattr("echelon.training.evaluation.make_env", lambda name: Asking())
        agent = smore.SMORe(smore.SMOReConfig(actor_hidden=(8,), value_hidden=(8,)), DataSpec(3, 2, 2))
        found = OfflineRun.evaluate(agent, agent.config, 0, 1, 0)
        assert len(found["tasks"]) == 5
        whole = smore.SMORe(agent.config, DataSpec(3, 2))
        found = Evaluator("pointmaze-medium-v0", 1, 0, goal_dim=whole.goal_dim).run(whole, 0).row
        assert len(found["tasks"]) == 5


def test_fetch_from_data_to_evaluation(tmp_path, monkeypatch):
    """Goals are three coordinates, in the data, in the networks and in the world; runs load again."""
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path / "data"))
    config = dataclasses.replace(
        recipe(smore.SMOReConfig, "fetchreach-mixed-v0", "demo"), transitions=200, updates=12, eval_every=12,
        eval_episodes=1, batch_size=16, actor_hidden=(8,), value_hidden=(8,), log_every=4,
    )  # fmt: skip
    monkeypatch.setattr("echelon.training.offline.ensure", ensure_here)
    directory = run.train(smore.SMORe, config, tmp_path / "run", device="cpu", threads=1, say=lambda text: None)
    assert directory is not None and (directory / "result.json").exists()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert any("actor/effective_share" in str(row) for row in rows)
    agent, step = run.load_agent(smore.SMORe, directory)
    assert step == 12 and agent.goal_dim == 3
    assert act(agent, torch.zeros(2, 10), torch.zeros(2, 3)).shape == (2, 4)
    assert agent.value_functions(torch.zeros(2, 10), torch.zeros(2, 3))["V"].shape == (2,)


def ensure_here(name, transitions, say):
    """The first episodes, collected in this process."""
    from echelon.data.store import Store
    from echelon.envs.collect import make

    return Store.open(make(name, jobs=1, episodes=4, progress=False))
