"""BESO: loss, gradients and actions against a derivation; what it remembers in play; averages, goals and options."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from reference import offline_beso as reference
from small_runs import TinyWorld
from test_offline_losses import assert_slope
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Reset, from_gym
from echelon.nets.samplers import unit_noise
from echelon.systems import index
from echelon.systems.offline import beso
from echelon.systems.offline.recipes import recipe
from echelon.training.agent import DataSpec, Learner
from echelon.training.runtime import choose

B, W, G, OBS, ACT = 5, 4, 2, 3, 2
SMALL = {"window": W, "goal_frames": G, "embed_dim": 8, "heads": 2, "denoiser_hidden": (12, 9), "dropout": 0.0,
         "attention_dropout": 0.0}  # fmt: skip


def agent_of(**changes) -> beso.BESO:
    torch.manual_seed(3)
    agent = beso.BESO(beso.BESOConfig(**SMALL | changes), DataSpec(OBS, ACT)).double()
    with torch.no_grad():  # away from special points; the average differs from the network
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return agent


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windows(seed: int = 5) -> dict[str, Tensor]:
    """Windows of 1, 2, 4, 4 and 3 real steps, of which the last is repeated."""
    last = torch.tensor([0, 1, 3, 3, 2])
    place = torch.minimum(torch.arange(W).expand(B, W), last[:, None])[..., None]
    states, actions = 2 + draw(seed, B, W, OBS), draw(seed + 1, B, W, ACT)
    return {
        "observations": states.gather(1, place.expand(-1, -1, OBS)),
        "actions": actions.gather(1, place.expand(-1, -1, ACT)),
        "real": torch.arange(W) <= last[:, None],
        "goals": 2 + draw(seed + 2, B, G, OBS),
        "kept": torch.tensor([True, False, True, True, False])[:, None, None],
    }


def weights(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in network.named_parameters()}


def scaled(x: Tensor, seen: Tensor) -> np.ndarray:
    """By the range of what was seen."""
    low, high = (f(seen.flatten(0, -2).numpy(), 0) for f in (np.min, np.max))
    return 2 * (x.numpy() - low) / (high - low) - 1


def standardised(x: Tensor, seen: Tensor) -> np.ndarray:
    """By the moments of what was seen."""
    rows = seen.flatten(0, -2).numpy()
    return ((x.numpy() - rows.mean(0)) / np.maximum(rows.std(0), 1e-2)).clip(-5, 5)


def reference_loss(agent: beso.BESO, batch: dict, prepared: dict) -> float:
    rows = []
    for b in range(B):
        n = int(batch["real"][b].sum())
        rows.append({
            "states": standardised(batch["observations"][b, :n], batch["observations"]),
            "actions": scaled(batch["actions"][b, :n], batch["actions"]),
            "goals": standardised(batch["goals"][b], batch["observations"]) * batch["kept"][b].numpy(),
            "noise": prepared["noise"][b, :n].numpy(), "sigma": float(prepared["sigma"][b]),
        })  # fmt: skip
    return reference.loss(weights(agent.network), {"heads": 2, "data_std": agent.config.data_std}, rows)


# --- learning


@pytest.mark.parametrize("mask", ["sample", "element"])
def test_the_loss_equals_the_reference(mask):
    agent, batch = agent_of(), windows()
    if mask == "element":
        batch["kept"] = draw(9, B, G, OBS) > 0
    prepared = agent.prepare(batch)
    loss, metrics = agent.loss(prepared)
    assert float(loss.detach()) == pytest.approx(reference_loss(agent, batch, prepared), rel=1e-6)
    assert float(metrics["denoiser/real"]) == pytest.approx(14 / 20)


def test_gradients_equal_finite_differences_of_the_reference():
    agent, batch = agent_of(), windows()
    prepared = agent.prepare(batch)
    (update,) = agent.updates()
    update.loss(prepared)[0].backward()
    assert all(p.grad is None for p in agent.average.parameters())
    assert_slope(list(agent.network.parameters()), lambda: reference_loss(agent, batch, prepared))


def test_training_levels_are_those_of_their_law_and_one_a_window():
    agent = agent_of(train_sigma_min=0.05, train_sigma_max=1.0)
    many = {name: x[:1].expand(4000, *x.shape[1:]) for name, x in windows().items()}
    sigma = agent.prepare(many)["sigma"]
    assert sigma.shape == (4000,) and float(sigma.min()) >= 0.05 and float(sigma.max()) <= 1
    found = sigma.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.255789, 0.412472, 0.615542], abs=0.02)


def test_what_is_said_of_an_action_depends_on_no_later_step():
    agent = agent_of()
    x = [draw(k, 1, n, d).requires_grad_() for k, (n, d) in enumerate([(W, ACT), (W, OBS), (G, OBS)])]
    level = draw(7, 1).requires_grad_()
    out = agent.network(x[0], level, x[1], x[2])
    for k in range(W):
        actions, states, goals, at = torch.autograd.grad(out[0, k].sum(), [*x, level], retain_graph=True)
        for slope in (actions, states):
            assert (slope[0].abs().sum(1) > 0).tolist() == [j <= k for j in range(W)]
        assert bool((goals != 0).all()) and bool((at != 0).all())


def test_a_step_moves_the_network_and_then_its_average():
    """By hand: Adam with the rate of StepLR, then the average, which keeps 2/11 of itself, 3/12, no more than .27."""
    agent = agent_of(lr=1e-2, lr_decay=0.5, lr_every=2, average_decay=0.27)
    hand, batch = copy.deepcopy(agent), windows()
    learner, adam = Learner(agent, choose("cpu", "float32", 1)), torch.optim.Adam(hand.network.parameters(), lr=1e-2)
    for step, factor, kept in ((1, 1.0, 2 / 11), (2, 1.0, 3 / 12), (3, 0.5, 0.27)):
        learner.step(step, batch)
        adam.param_groups[0]["lr"] = 1e-2 * factor
        hand.zero_grad(set_to_none=True)
        hand.loss(hand.prepare(batch))[0].backward()
        adam.step()
        with torch.no_grad():
            for average, p in zip(hand.average.parameters(), hand.network.parameters(), strict=True):
                average.copy_(kept * average + (1 - kept) * p)
        for (name, mine), theirs in zip(agent.named_parameters(), hand.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7, msg=name)
    assert [agent_of().decayed(step) for step in (1, 100, 101, 201)] == [1, 1, 0.99, 0.99**2]


def test_dropout_draws_from_the_agent_alone_and_never_in_acting():
    agent = agent_of(dropout=0.5, attention_dropout=0.5)
    other, batch = copy.deepcopy(agent), windows()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = agent.loss(agent.prepare(batch))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, other.loss(other.prepare(batch))[0])
    assert not torch.equal(first, agent_of().loss(agent_of().prepare(batch))[0])
    agent.train()
    assert agent.network.training and not any(module.training for module in agent.average.modules())


def test_batches_that_do_not_fit_are_refused():
    batch = windows()
    with pytest.raises(ValueError, match=r"sizes differ: .*'real': \(5, 3\)"):
        agent_of().prepare(batch | {"real": batch["real"][:, :3]})


# --- acting


def acting(agent: beso.BESO, steps: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, actions between them and goals of windows that end with so many real steps; what it does there."""
    count, w = len(steps), agent.config.window
    states, past, goal = 2 + draw(1, count, w, OBS), draw(2, count, w - 1, ACT), 2 + draw(3, count, 1, OBS)
    noise = unit_noise(torch.Generator().manual_seed(seed), shared=True)
    return states, past, goal, agent.sample(states, past, torch.tensor(steps), goal, noise)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"past": "kept"},
        {"goal_drop": 0.1, "guidance": 2.0},
        {"goal_drop": 0.1, "guidance": 0.0},
        {"sampler": "ancestral", "schedule": "exponential"},
        {"sampler": "heun", "schedule": "karras", "past": "kept", "denoise_steps": 2},
        {"window": 1},
    ],
)
def test_actions_equal_the_reference(changes):
    agent = agent_of(**changes)
    w, steps = agent.config.window, [1, 3, agent.config.window][: agent.config.window]
    agent.states.update(5 * draw(20, 50, OBS))
    agent.actions.update(0.6 * draw(21, 50, ACT))
    states, past, goal, found = acting(agent, steps)
    hyper = dataclasses.asdict(agent.config) | {"levels": agent.config.levels()}
    noise = unit_noise(torch.Generator().manual_seed(0), shared=True)
    draws = [noise(torch.zeros(1, w, ACT, dtype=torch.float64))[0].numpy() for _ in range(5)]
    for b, n in enumerate(steps):
        s, g = (agent.states(x).numpy() for x in (states[b, w - n :], goal[b].expand(G, -1)))
        p = agent.actions(past[b, w - n :] if n > 1 else past[b, :0]).numpy()
        expected = reference.action(weights(agent.average), hyper, s, p, g, [x[:n] for x in draws])
        expected = agent.actions.inverse(torch.tensor(np.clip(expected, -1.1, 1.1))).clamp(-1, 1)
        torch.testing.assert_close(found[b], expected, rtol=1e-6, atol=1e-8)


def test_without_guidance_the_goal_is_ignored_and_with_it_it_is_not():
    for guidance, ignored in ((0.0, True), (0.5, False), (1.0, False)):
        agent = agent_of(goal_drop=0.1, guidance=guidance)
        states, past, goal, found = acting(agent, [2, 4])
        noise = unit_noise(torch.Generator().manual_seed(0), shared=True)
        other = agent.sample(states, past, torch.tensor([2, 4]), goal + 1, noise)
        assert torch.equal(found, other) == ignored


def test_actions_stay_within_the_data_and_a_little_beyond():
    agent = agent_of()
    with torch.no_grad():
        agent.average.head.bias.fill_(50.0)
    agent.actions.update(torch.tensor([[-0.5, 0.2], [0.1, 0.6]], dtype=torch.float64))
    found = acting(agent, [4])[-1]
    torch.testing.assert_close(found[0], torch.tensor([-0.2 + 1.1 * 0.3, 0.4 + 1.1 * 0.2], dtype=torch.float64))


@pytest.mark.parametrize("window", [1, 3])
def test_in_play_it_remembers_the_latest_states_and_its_own_actions(window, monkeypatch):
    """Actions are a function of what is remembered; made again from the record of episodes in two slots."""
    agent = beso.BESO(beso.BESOConfig(**SMALL | {"window": window}), DataSpec(3, 2))

    def act(states: Tensor, past: Tensor, steps: Tensor, goals: Tensor, noise) -> Tensor:
        assert goals.shape == (len(states), 1, 3)
        weight = torch.arange(1.0, window + 1) * (torch.arange(window) >= window - steps[:, None])
        trace = (weight[:, :, None] * states[..., :2]).sum(1) - (weight[:, 1:, None] * past * (
            torch.arange(window - 1) >= window - steps[:, None])[..., None]).sum(1) + goals[:, 0, :2]  # fmt: skip
        return torch.sin(5 * trace)

    monkeypatch.setattr(agent, "sample", act)
    world = from_gym([TinyWorld(), TinyWorld()])
    resets = [Reset(seed=k, options={"task_id": 1 + k % 5}) for k in range(5)]
    rollout = Runner(agent.levels(), world).episodes(resets)
    assert len(rollout.spans["stream"].lengths.unique()) > 1 or rollout.size > 10
    for first, length in zip(
        rollout.spans["stream"].starts.tolist(), rollout.spans["stream"].lengths.tolist(), strict=True
    ):
        seen, done = (x[first : first + length] for x in (rollout.observation["observation"], rollout.executed))
        goal = rollout.observation["goal"][first]
        for t in range(length):
            n = min(t + 1, window)
            states, past = torch.zeros(1, window, 3), torch.zeros(1, window - 1, 2)
            states[0, window - n :] = seen[t + 1 - n : t + 1]
            if n > 1:
                past[0, window - n :] = done[t + 1 - n : t]
            expected = act(states, past, torch.tensor([n]), goal[None, None], None)[0]
            torch.testing.assert_close(done[t], expected, rtol=0, atol=1e-6)


def test_it_commits_to_one_of_two_ways_where_a_regression_would_go_between():
    """From one state half of the data go left, half right."""
    config = beso.BESOConfig(
        **SMALL | {"window": 1, "goal_frames": 1, "lr": 3e-3, "average_decay": 0.98, "lr_decay": 1.0}
    )
    torch.manual_seed(0)
    agent = beso.BESO(config, DataSpec(1, 1))
    learner, way = Learner(agent, choose("cpu", "float32", 1)), torch.tensor([-0.8, 0.8]).repeat(32)[:, None, None]
    nothing = torch.zeros_like(way)
    batch = {
        "observations": nothing,
        "actions": way,
        "goals": nothing,
        "kept": nothing == 0,
        "real": nothing[..., 0] == 0,
    }
    for step in range(1, 301):
        learner.step(step, batch)
    count = 200
    states, past, steps = torch.zeros(count, 1, 1), torch.zeros(count, 0, 1), torch.ones(count, dtype=torch.int64)
    found = agent.sample(states, past, steps, states, unit_noise(torch.Generator().manual_seed(0)))
    assert float((found.abs() > 0.4).float().mean()) > 0.8, "nearer to a way than to the middle"
    assert 0.3 < float((found > 0).float().mean()) < 0.7


# --- settings


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"heads": 3}, r"a divisor of embed_dim \(8\), got 3"),
        ({"denoiser_hidden": ()}, "one or more sizes"),
        ({"train_sigma_max": 0.05}, r"above train_sigma_min \(0.05\), got 0.05"),
        ({"sigma_max": 0.01}, r"sigma_min \(0.1\) or more, got 0.01"),
        ({"guidance": 2.0}, r"1 where no goal is ever left out \(goal_drop 0.0\), got 2.0"),
        ({"past": "noised"}, "one of denoised, kept, got noised"),
        ({"sampler": "euler"}, "one of ddim, heun, ancestral"),
        ({"schedule": "cosine"}, "one of linear, exponential, karras"),
        ({"goal_mask": "frame"}, "one of sample, element"),
    ],
)
def test_wrong_settings_are_refused(change, what):
    with pytest.raises(UsageError, match=f"beso: {next(iter(change))} must be {what}"):
        beso.BESOConfig(**SMALL | change)


def test_settings_reach_windows_and_levels():
    config = beso.BESOConfig(window=4, goal_frames=2, goal_drop=0.1, goal_mask="element")
    spec = config.goals()["window"]
    assert (spec.steps, spec.frames, spec.drop, spec.mask, spec.anchor, spec.ahead) == (4, 2, 0.1, "element", "last", 1)
    assert beso.BESOConfig().levels() == pytest.approx((1, 0.55, 0.1, 0))
    karras = beso.BESOConfig(schedule="karras").levels()
    assert karras == pytest.approx((1, 0.360631, 0.1, 0), abs=1e-6)


def test_recipes_and_claims():
    full, small = (recipe(beso.BESOConfig, "cube-single-play-v0", size) for size in ("published", "cpu"))
    assert (full.updates, full.batch_size, full.lr, full.window, full.denoise_steps) == (60_000, 1024, 1e-4, 5, 3)
    assert (small.updates, small.embed_dim, small.denoiser_hidden) == (15_000, 64, (256, 256, 256))
    ratio = math.log(
        small.lr_decay ** (small.updates / small.lr_every) / full.lr_decay ** (full.updates / full.lr_every)
    )
    assert ratio == pytest.approx(math.log(0.99) * -300)
    assert [claim.id for claim in beso.claims()] == ["above-gcbc", "three-steps-suffice", "three-steps-are-faster"]
    method, baseline = (score.arm.config(1) for score in beso.claims()[0].scores)
    assert (method.updates, method.batch_size) == (baseline.updates, baseline.batch_size)
    assert beso.claims()[1].method.arm.config(2) == beso.claims()[1].baseline.arm.config(2)


def test_it_is_found_by_its_name():
    assert index.load("beso") is beso.BESO
