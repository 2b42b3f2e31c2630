"""MAGE: the card's numbers, losses, gradients and actions against a derivation; what scales see; stages and options."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from reference import offline_mage as reference
from test_offline_losses import assert_slope
from torch import Tensor

from echelon.errors import UsageError
from echelon.nets.transformer import block_causal_mask
from echelon.systems import index
from echelon.systems.offline import mage
from echelon.systems.offline.recipes import recipe
from echelon.training.agent import DataSpec, Learner
from echelon.training.runtime import choose

B, T, OBS, ACT = 4, 6, 3, 2
SMALL = {"horizon": T, "stride": 2, "scales": (1, 2, 4), "codes": 5, "code_dim": 4, "autoencoder_hidden": (7,),
         "embed_dim": 8, "heads": 2, "transformer_hidden": (9, 6), "inverse_hidden": (8,), "aim_hidden": (8,),
         "discount": 0.8, "relaxation": 0.7, "condition_weight": 0.6}  # fmt: skip
UNTIL = [3, 11, 1, 40]


def agent_of(**changes) -> mage.MAGE:
    torch.manual_seed(3)
    agent = mage.MAGE(mage.MAGEConfig(**SMALL | changes), DataSpec(OBS, ACT)).double()
    with torch.no_grad():  # away from special points
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return agent


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windows(seed: int = 5) -> dict[str, Tensor]:
    """Trajectories with goals 3, 11, 1 and 40 environment steps ahead."""
    return {
        "observations": 2 + draw(seed, B, T, OBS),
        "actions": draw(seed + 1, B, T, ACT),
        "real": torch.ones(B, T, dtype=torch.bool),
        "goals": 2 + draw(seed + 2, B, 1, OBS),
        "kept": torch.ones(B, 1, 1, dtype=torch.bool),
        "until": torch.tensor(UNTIL),
    }


def weights(agent: mage.MAGE) -> dict[str, np.ndarray]:
    found = {name: p.detach().numpy().copy() for name, p in agent.named_parameters()}
    return found | {"vq.codebook": agent.vq.codebook.numpy().copy()}


def hyper_of(agent: mage.MAGE) -> dict:
    return dataclasses.asdict(agent.config)


def rows_of(batch: dict[str, Tensor], prepared: dict[str, Tensor]) -> list[dict]:
    """What the reference reads: states scaled by the range of the batch."""
    low, high = (f(batch["observations"].flatten(0, 1).numpy(), 0) for f in (np.min, np.max))
    return [
        {
            "states": 2 * (batch["observations"][b].numpy() - low) / (high - low) - 1,
            "goal": 2 * (batch["goals"][b, 0].numpy() - low) / (high - low) - 1,
            "until": UNTIL[b],
            "action": batch["actions"][b, 0].numpy(),
            "gumbel": prepared["gumbel"][b].numpy(),
        }
        for b in range(B)
    ]


# --- the card's numbers, and others by hand


def test_codes_of_the_oracle_and_their_errors():
    """f = (1, 3, 2, 6) with codes -2 .. 3 at scales 1, 2, 4: errors 14, 10, 0; spread as the plan is in play."""
    agent = agent_of(horizon=4, codes=6, code_dim=1)
    agent.vq.codebook.copy_(torch.tensor([[-2.0], [-1], [0], [1], [2], [3]]))
    f = torch.tensor([1.0, 3, 2, 6], dtype=torch.float64)[None, :, None]
    found = agent.vq.encode(f)
    assert [x.tolist() for x in found.codes] == [[[5]], [[1, 3]], [[1, 3, 0, 4]]]
    assert (f - found.sums).square().sum((1, 2, 3)).tolist() == [14, 10, 0]
    assert torch.equal(agent.vq.decode(found.codes, 4), f)


def test_the_planner_has_the_mask_of_the_oracle():
    mask = block_causal_mask(agent_of().planner.numbers)
    assert mask.sum(1).tolist() == [1, 3, 3, 7, 7, 7, 7] and int(mask.sum()) == 35


def test_the_loss_of_the_first_element_of_the_oracle():
    first, wanted = torch.tensor([[0.2, 1.0, 0.5]]), torch.tensor([[0.0, 0.9, 0.7]])
    assert float(mage.condition_loss(first, wanted)) == pytest.approx(0.09)


def test_trajectories_stay_at_their_goals():
    """gamma .5, a place every 2 steps, goals 5 and 0 steps ahead: returns by hand, states after the goal are it."""
    found = mage.returns_to_go(torch.tensor([5, 0]), 4, 2, 0.5)
    assert found.tolist() == [[1 / 32, 1 / 8, 1 / 2, 1], [1, 1, 1, 1]]
    agent, batch = agent_of(), windows()
    tau = agent.prepare(batch)["trajectories"]
    for b, steps in enumerate(UNTIL):
        left = [max(steps - 2 * j, 0) for j in range(T)]
        assert tau[b, :, 0].tolist() == pytest.approx([2 * 0.8**n - 1 for n in left])
        states = torch.stack(
            [batch["goals"][b, 0] if n == 0 else batch["observations"][b, j] for j, n in enumerate(left)]
        )
        torch.testing.assert_close(agent.states.inverse(tau[b, :, 1:]), states)


def test_sharp_blends_are_the_codes_themselves():
    """Logits that leave no doubt: Z of the blend equals the decoded codes; even ones give the codebook's mean."""
    agent = agent_of()
    codes = [torch.randint(5, (B, n), generator=torch.Generator().manual_seed(n)) for n in (1, 2, 4)]
    logits = 1e3 * torch.nn.functional.one_hot(torch.cat(codes, 1), 5).double()
    found = mage.blended(logits, torch.zeros_like(logits), agent.vq, T, 1.0)
    torch.testing.assert_close(found, agent.vq.decode(codes, T))
    even = mage.blended(0 * logits, torch.zeros_like(logits), agent.vq, T, 1.0)
    torch.testing.assert_close(even, (3 * agent.vq.codebook.mean(0)).expand_as(even))


# --- learning


@pytest.mark.parametrize("changes", [{}, {"conditioned": "first"}, {"scales": (5,)}, {"condition_weight": 0.0}])
def test_losses_equal_the_reference(changes):
    agent, batch = agent_of(**changes), windows()
    prepared = agent.prepare(batch)
    params, hyper, rows = weights(agent), hyper_of(agent), rows_of(batch, prepared)
    straight = []
    for row in rows:
        f, _, row["sums"] = reference.coded(params, hyper, reference.trajectory(hyper, row))
        straight.append(row["sums"][-1] - f)
    expected = (
        reference.autoencoder_loss(params, hyper, rows, straight),
        reference.planner_loss(params, hyper, rows),
        reference.aim_loss(params, hyper, rows),
    )
    found = [float(update.loss(prepared)[0].detach()) for update in agent.updates()]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_equal_finite_differences_of_the_reference(which):
    agent, batch = agent_of(), windows()
    prepared = agent.prepare(batch)
    hyper, rows, straight = hyper_of(agent), rows_of(batch, prepared), []
    for row in rows:
        f, _, row["sums"] = reference.coded(weights(agent), hyper, reference.trajectory(hyper, row))
        straight.append(row["sums"][-1] - f)
    losses = (
        lambda: reference.autoencoder_loss(weights(agent), hyper, rows, straight),
        lambda: reference.planner_loss(weights(agent), hyper, rows),
        lambda: reference.aim_loss(weights(agent), hyper, rows),
    )
    update = agent.updates()[which]
    update.loss(prepared)[0].backward()
    assert_slope([p for module in update.modules for p in module.parameters()], losses[which])


def test_a_scale_sees_itself_and_coarser_ones_alone():
    agent = agent_of()
    condition, sketches = draw(1, 1, 1 + 2 * OBS), draw(2, 1, 6, 4).requires_grad_()
    out = agent.planner(condition, sketches)
    for token, scale in enumerate([0, 1, 1, 2, 2, 2, 2]):
        (slope,) = torch.autograd.grad(out[0, token].sum(), sketches, retain_graph=True)
        assert (slope[0].abs().sum(1) > 0).tolist() == [k <= scale for k in (1, 1, 2, 2, 2, 2)]


def test_the_autoencoder_is_frozen_after_its_share_of_the_updates():
    agent, batch = agent_of(updates=4, coding=0.5, lr=1e-2), windows()
    learner = Learner(agent, choose("cpu", "float32", 1))

    def coder() -> list[Tensor]:
        parts = [*agent.encoder.parameters(), *agent.decoder.parameters(), agent.vq.codebook]
        return [p.detach().clone() for p in parts]

    for step in range(1, 5):
        before, planner = coder(), agent.planner.head.weight.detach().clone()
        metrics = learner.step(step, batch)
        assert ("loss/autoencoder" in metrics) == (step <= 2)
        same = [torch.equal(a, b) for a, b in zip(before, coder(), strict=True)]
        assert all(same) if step > 2 else not any(same)
        assert not torch.equal(planner, agent.planner.head.weight)


def test_without_the_loss_of_the_first_element_nothing_moves_the_adapter():
    for weight, moved in ((0.0, False), (1.0, True)):
        agent = agent_of(condition_weight=weight)
        agent.planner_loss(agent.prepare(windows()))[0].backward()
        assert any(bool(p.grad.any()) for p in agent.adapter.parameters() if p.grad is not None) == moved
        if moved:
            assert all(bool(p.grad.any()) for p in agent.adapter.parameters())


def test_batches_that_do_not_fit_are_refused():
    batch = windows()
    with pytest.raises(ValueError, match=r"sizes differ: .*'real': \(4, 3\)"):
        agent_of().prepare(batch | {"real": batch["real"][:, :3]})


# --- acting


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"conditioned": "first"}, {"scales": (5,)}])
def test_actions_equal_the_reference(changes):
    agent = agent_of(**changes)
    agent.states.update(5 * draw(20, 50, OBS))
    states, goals, c = 2 + draw(1, 3, OBS), draw(2, 3, OBS), agent.config
    found = agent.act(states, goals, torch.Generator().manual_seed(0))
    noise = mage.gumbel_noise((sum(c.scales), c.codes), torch.Generator().manual_seed(0), states).numpy()
    for b in range(3):
        s, g = (agent.states(x[b]).numpy() for x in (states, goals))
        expected = reference.action(weights(agent), hyper_of(agent), s, g, c.temperature * noise)
        assert found[b].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_plan_takes_a_pass_a_scale_whatever_its_length(monkeypatch):
    agent, passes = agent_of(), []
    extend = agent.planner.body.extend

    def counted(tokens, place, past=None):
        passes.append(place.tolist())
        return extend(tokens, place, past)

    monkeypatch.setattr(agent.planner.body, "extend", counted)
    agent.act(draw(1, 2, OBS), draw(2, 2, OBS), torch.Generator().manual_seed(0))
    assert passes == [[0], [1, 2], [3, 4, 5, 6]]


def test_noise_has_gumbels_law():
    found = mage.gumbel_noise((40_000,), torch.Generator().manual_seed(0), torch.zeros((), dtype=torch.float64))
    assert float(found.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(found.var()) == pytest.approx(math.pi**2 / 6, abs=0.05)


def test_the_return_that_is_asked_for_is_shown_and_stays_within_the_datas():
    agent = agent_of()
    with torch.no_grad():
        agent.aim.layers[-1].bias.fill_(50.0)
    assert agent.value_functions(draw(1, 2, OBS), draw(2, 2, OBS))["aim"].tolist() == [1, 1]


def straight_lines(generator: torch.Generator, count: int = 64) -> tuple[dict[str, Tensor], Tensor]:
    """A point in the plane that goes straight on to its goal; the directions [B, 2]."""
    way, start = (torch.rand(count, 1, 2, generator=generator) * 2 - 1 for _ in range(2))
    until = torch.randint(1, 12, (count,), generator=generator)
    batch = {
        "observations": start + 0.2 * way * torch.arange(8)[:, None],
        "actions": way.expand(-1, 8, -1),
        "real": torch.ones(count, 8, dtype=torch.bool),
        "goals": start + 0.2 * way * until[:, None, None],
        "until": until,
    }
    return batch, way[:, 0]


@torch.no_grad()
def test_it_learns_to_sketch_refine_and_act_on_straight_lines():
    """Errors fall with every scale that is decoded, plans begin where it is, actions lead to the goal."""
    sizes = {"codes": 32, "code_dim": 8, "autoencoder_hidden": (32,), "embed_dim": 32, "transformer_hidden": (64,)}
    config = mage.MAGEConfig(updates=700, horizon=8, stride=1, scales=(1, 2, 4, 8), heads=2, inverse_hidden=(64,),
                             aim_hidden=(32,), lr=2e-3, code_decay=0.9, **sizes)  # fmt: skip
    torch.manual_seed(0)
    agent, generator = mage.MAGE(config, DataSpec(2, 2)), torch.Generator().manual_seed(1)
    learner = Learner(agent, choose("cpu", "float32", 1))
    with torch.enable_grad():
        for step in range(1, config.updates + 1):
            learner.step(step, straight_lines(generator)[0])
    batch, way = straight_lines(generator)
    tau = agent.prepare(batch)["trajectories"]
    errors = [float((agent.decoder(x) - tau).square().mean()) for x in agent.vq.encode(agent.encoder(tau)).sums]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.3 * errors[0]
    state, goal = batch["observations"][:, 0], batch["goals"][:, 0]
    first = agent.condition(state, goal)[:, :3]
    begun = agent.decoded(agent.plan(state, goal, torch.Generator().manual_seed(0)), first)[:, 0]
    assert float(mage.condition_loss(begun, first)) < 0.01
    action = agent.act(state, goal, torch.Generator().manual_seed(0))
    assert float(torch.nn.functional.cosine_similarity(action, way, dim=-1).mean()) > 0.7


# --- settings


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"heads": 3}, r"a divisor of embed_dim \(8\), got 3"),
        ({"scales": (1, 4, 2)}, "one or more growing numbers"),
        ({"horizon": 3}, r"at least the finest of the scales \(4\), got 3"),
        ({"transformer_hidden": ()}, "one or more sizes"),
        ({"coding": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"relaxation": 0.0}, "positive, got 0.0"),
        ({"conditioned": "none"}, "one of all, first, got none"),
        ({"temperature": -1.0}, "0 or more, got -1.0"),
    ],
)
def test_wrong_settings_are_refused(change, what):
    with pytest.raises(UsageError, match=f"mage: {next(iter(change))} must be {what}"):
        mage.MAGEConfig(**SMALL | change)


def test_recipes_and_claims():
    full, small = (recipe(mage.MAGEConfig, "pointmaze-large-navigate-v0", size) for size in ("published", "cpu"))
    assert len(full.scales) == 8 and (full.horizon, full.stride, full.batch_size) == (64, 4, 128)
    assert (small.updates, small.scales, small.horizon * small.stride) == (12_000, (1, 4, 16, 32), 256)
    spec = small.goals()["trajectory"]
    assert (spec.steps, spec.stride, spec.anchor) == (32, 8, "first")
    (claim,) = mage.claims()
    method, baseline = (score.arm.config(1) for score in claim.scores)
    assert baseline == dataclasses.replace(method, scales=(32,)) and method.seed == 1


def test_it_is_found_by_its_name():
    assert index.load("mage") is mage.MAGE
