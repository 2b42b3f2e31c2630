"""Decision Transformer: loss, gradients and actions against a derivation; who sees whom; what it remembers in play."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import offline_decision_transformer as reference
from test_offline_losses import assert_slope
from test_systems_beso import scaled, standardised, weights
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.window import newest, to_front
from echelon.systems import index
from echelon.systems.offline import mage
from echelon.systems.offline.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from echelon.training.agent import DataSpec, Learner
from echelon.training.runtime import choose

B, W, OBS, ACT = 4, 3, 3, 2
SMALL = {"window": W, "embed_dim": 8, "heads": 2, "transformer_hidden": (12, 9), "dropout": 0.0}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def agent_of(**changes) -> DecisionTransformer:
    torch.manual_seed(3)
    agent = DecisionTransformer(DecisionTransformerConfig(**SMALL | changes), DataSpec(OBS, ACT)).double()
    with torch.no_grad():  # away from special points
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return agent


def windows() -> dict[str, Tensor]:
    """Windows of 1, 2, 3 and 3 real steps, of which the last is repeated."""
    last = torch.tensor([0, 1, 2, 2])
    place = torch.minimum(torch.arange(W).expand(B, W), last[:, None])[..., None]
    return {
        "observations": (2 + draw(5, B, W, OBS)).gather(1, place.expand(-1, -1, OBS)),
        "actions": draw(6, B, W, ACT).gather(1, place.expand(-1, -1, ACT)),
        "real": torch.arange(W) <= last[:, None],
        "goals": 2 + draw(7, B, 1, OBS),
    }


def reference_loss(agent: DecisionTransformer, batch: dict[str, Tensor]) -> float:
    rows = []
    for b in range(B):
        n = int(batch["real"][b].sum())
        rows.append({
            "states": standardised(batch["observations"][b, :n], batch["observations"]),
            "actions": scaled(batch["actions"][b, :n], batch["actions"]),
            "goal": standardised(batch["goals"][b, 0], batch["observations"]),
        })  # fmt: skip
    return reference.loss(weights(agent.network), 2, rows)


# --- learning


def test_the_loss_and_its_gradients_equal_the_reference():
    agent, batch = agent_of(), windows()
    (update,) = agent.updates()
    loss, metrics = update.loss(agent.prepare(batch))
    assert float(loss.detach()) == pytest.approx(reference_loss(agent, batch), rel=1e-6)
    assert float(metrics["sequence/real"]) == pytest.approx(9 / 12)
    loss.backward()
    assert_slope(list(agent.network.parameters()), lambda: reference_loss(agent, batch))


@pytest.mark.parametrize("window", [1, 4])
def test_what_is_said_of_an_action_depends_on_no_later_step_nor_on_itself(window):
    agent = agent_of(window=window)
    goal, states, actions = (draw(k, *shape).requires_grad_() for k, shape in enumerate(
        [(1, OBS), (1, window, OBS), (1, window, ACT)]))  # fmt: skip
    out = agent.network(goal, states, actions)
    for k in range(window):
        slopes = torch.autograd.grad(
            out[0, k].sum(), (goal, states, actions), retain_graph=True, materialize_grads=True
        )
        assert bool((slopes[0] != 0).all())
        assert (slopes[1][0].abs().sum(1) > 0).tolist() == [j <= k for j in range(window)]
        assert (slopes[2][0].abs().sum(1) > 0).tolist() == [j < k for j in range(window)]


def test_the_rate_rises_and_gradients_are_cut_off():
    """By hand: Adam at a third of the rate, then two thirds, then all of it, on gradients of length .01 at most."""
    agent, batch = agent_of(lr=1e-2, updates=6, warm_up=0.5, clip_norm=0.01), windows()
    hand, learner = copy.deepcopy(agent), Learner(agent, choose("cpu", "float32", 1))
    adam = torch.optim.Adam(hand.network.parameters(), lr=1e-2)
    for step, factor in ((1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 1.0)):
        learner.step(step, batch)
        adam.param_groups[0]["lr"] = 1e-2 * factor
        hand.zero_grad(set_to_none=True)
        hand.loss(hand.prepare(batch))[0].backward()
        assert float(torch.nn.utils.clip_grad_norm_(hand.network.parameters(), 0.01)) > 0.01
        adam.step()
        for (name, mine), theirs in zip(agent.named_parameters(), hand.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7, msg=name)


def test_dropout_draws_from_the_agent_alone_and_never_in_acting():
    agent, batch = agent_of(dropout=0.5), windows()
    other, before = copy.deepcopy(agent), torch.get_rng_state()
    first = agent.loss(agent.prepare(batch))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, other.loss(other.prepare(batch))[0])
    torch.testing.assert_close(acting(agent, [2, 3]), acting(agent_of(), [2, 3], agent))


def test_batches_that_do_not_fit_are_refused():
    batch = windows()
    with pytest.raises(ValueError, match=r"sizes differ: .*'real': \(4, 2\)"):
        agent_of().prepare(batch | {"real": batch["real"][:, :2]})


# --- acting


def acting(agent: DecisionTransformer, steps: list[int], like: DecisionTransformer | None = None) -> Tensor:
    """What it does in windows that end with so many real steps, scaled as `like` is."""
    if like is not None:
        agent.states.load_state_dict(like.states.state_dict())
        agent.actions.load_state_dict(like.actions.state_dict())
    count = len(steps)
    return agent.follow(
        2 + draw(1, count, W, OBS), draw(2, count, W - 1, ACT), torch.tensor(steps), 2 + draw(3, count, OBS)
    )


def test_actions_equal_the_reference():
    agent, steps = agent_of(), [1, 2, 3]
    agent.states.update(5 * draw(20, 50, OBS))
    agent.actions.update(0.6 * draw(21, 50, ACT))
    found, params = acting(agent, steps), weights(agent.network)
    states, past, goals = 2 + draw(1, 3, W, OBS), draw(2, 3, W - 1, ACT), 2 + draw(3, 3, OBS)
    for b, n in enumerate(steps):
        s, g = agent.states(states[b, W - n :]).numpy(), agent.states(goals[b][None]).numpy()[0]
        expected = reference.next_action(params, 2, g, s, agent.actions(past[b, W - n :]).numpy())
        torch.testing.assert_close(found[b], agent.actions.action(torch.tensor(expected)))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 9))
def test_real_steps_come_first_and_the_newest_is_their_last(steps, seed):
    x, count = draw(seed, len(steps), 5, 2), torch.tensor(steps)
    found = to_front(x, count)
    for b, n in enumerate(steps):
        expected = np.concatenate([x[b, 5 - n :].numpy(), np.repeat(x[b, -1:].numpy(), 5 - n, 0)])
        assert np.array_equal(found[b].numpy(), expected)
    assert torch.equal(newest(found, count), x[:, -1])


def test_it_learns_to_go_on_with_an_alternation_that_states_do_not_show():
    """Actions are 1 and -1 in turns while the state says nothing: only its own last action tells the next."""
    torch.manual_seed(0)
    agent = DecisionTransformer(
        DecisionTransformerConfig(**SMALL | {"lr": 1e-2, "warm_up": 0.0, "clip_norm": 10.0}), DataSpec(1, 1)
    )
    learner, first = Learner(agent, choose("cpu", "float32", 1)), torch.tensor([1.0, -1.0]).repeat(16)[:, None, None]
    nothing = torch.zeros(32, W, 1)
    batch = {
        "observations": nothing,
        "actions": first * torch.tensor([1.0, -1.0, 1.0])[:, None],
        "goals": nothing[:, :1],
        "real": nothing[..., 0] == 0,
    }
    for step in range(1, 151):
        learner.step(step, batch)
    past = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])[..., None]
    found = agent.follow(nothing[:2], past, torch.tensor([3, 3]), nothing[:2, 0])
    assert found[:, 0].tolist() == pytest.approx([-1, 1], abs=0.1)


# --- settings


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"heads": 3}, r"a divisor of embed_dim \(8\), got 3"),
        ({"transformer_hidden": ()}, "one or more sizes"),
        ({"dropout": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"clip_norm": 0.0}, "positive, got 0.0"),
        ({"warm_up": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_wrong_settings_are_refused(change, what):
    with pytest.raises(UsageError, match=f"decision-transformer: {next(iter(change))} must be {what}"):
        DecisionTransformerConfig(**SMALL | change)


def test_it_is_the_baseline_of_a_longer_claim_with_the_same_budget():
    assert index.load("decision-transformer") is DecisionTransformer
    found = {claim.id: claim for claim in mage.claims(full=True)}
    method, baseline = (score.arm.config(1) for score in found["above-decision-transformer"].scores)
    for name in ("updates", "batch_size", "lr", "transitions", "env"):
        assert getattr(method, name) == getattr(baseline, name)
    assert "above-decision-transformer" not in {claim.id for claim in mage.claims()}
