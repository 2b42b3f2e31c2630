"""HILP: worked examples, losses and gradients against an independent derivation, skills, prompts and planning."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import hilp as reference
from reference import offline_gc
from small_runs import SPEC, open_run, small, synthetic_store, tiny_world
from torch import Tensor

from echelon.data.goals import future_geometric
from echelon.errors import UsageError
from echelon.hierarchy.runner import Reset, Runner
from echelon.losses.value import ivl_loss
from echelon.nets.goal import GaussianPolicy
from echelon.nets.mlp import MLP, EnsembleMLP
from echelon.systems import launch
from echelon.systems.offline.hilp import HILP, AimLevel, HILPConfig, direction, distance_value, least_squares_skill
from echelon.training.agent import DataSpec, Learner
from echelon.training.runtime import choose

B, OBS, ACT = 32, 5, 3


@pytest.fixture(autouse=True)
def exact_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference states GELU in the tanh form of the published agents; ours is the exact one (erf)."""
    erf = np.vectorize(math.erf)
    monkeypatch.setattr(offline_gc, "gelu", lambda x: 0.5 * x * (1.0 + erf(x / math.sqrt(2.0))))


def build(spread: bool = True, **changes: Any) -> HILP:
    settings: dict[str, Any] = {"actor_hidden": (16, 12), "value_hidden": (14, 12), "skill_dim": 4}
    torch.manual_seed(3)
    agent = HILP(HILPConfig(**settings | {"planning_states": 40, "batch_size": B} | changes), DataSpec(OBS, ACT))
    agent = agent.double()
    with torch.no_grad():  # away from special points: targets differ from online nets, norms are not the identity
        for p in agent.parameters():
            p.add_(0.3 * spread * torch.randn_like(p))
    return agent


def make_batch(seed: int = 5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = {
        name: torch.randn(B, OBS, generator=g, dtype=torch.float64)
        for name in ("observations", "next_observations", "value_goals")
    }
    batch["actions"] = torch.rand(B, ACT, generator=g, dtype=torch.float64) * 2 - 1
    batch["value_success"] = (torch.rand(B, generator=g) < 0.3).double()
    return batch


def layers(module: MLP | EnsembleMLP, member: int = 0) -> list[dict[str, np.ndarray]]:
    if isinstance(module, MLP):
        rows: list[dict[str, Any]] = [{"weight": x.weight, "bias": x.bias} for x in module.layers]
        norms = [(n.weight, n.bias) for n in module.norms]
    else:
        rows = [{"weight": w[member], "bias": b[member]} for w, b in zip(module.weights, module.biases, strict=True)]
        norms = [(w[member], b[member]) for w, b in zip(module.norm_weights, module.norm_biases, strict=True)]
    for row, (weight, bias) in zip(rows, norms, strict=False):
        row |= {"norm_weight": weight, "norm_bias": bias}
    return [{k: v.detach().numpy().copy() for k, v in row.items()} for row in rows]


def copy_weights(agent: HILP) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, module in agent.named_children():
        if isinstance(module, GaussianPolicy):
            params[name] = {"layers": layers(module.mlp)}
            if module.log_std is not None:
                params[name]["log_std"] = module.log_std.detach().numpy().copy()
        else:
            heads = module.heads
            assert isinstance(heads, EnsembleMLP)
            params[name] = {"heads": [layers(heads, m) for m in range(len(heads.weights[0]))]}
    return params


def to_reference(agent: HILP, batch: dict[str, Tensor]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {k: v.numpy() for k, v in batch.items() if k != "value_success"}
    success = batch["value_success"].numpy()
    return arrays | {"rewards": success - 1, "masks": 1 - success}, dataclasses.asdict(agent.config)


def step(agent: HILP, *batches: dict[str, Tensor]) -> None:
    learner = Learner(agent, choose("cpu", "float32", threads=1))
    for k, batch in enumerate(batches, 1):
        learner.step(k, batch)


# --- worked examples


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_worked_example_of_the_value_and_the_reward():
    s, s_next, g = vector(0, 0), vector(0.6, 0.8), vector(3, 4)
    assert float(distance_value(s, g)) == pytest.approx(-5)
    assert float(distance_value(s_next, g)) == pytest.approx(-4)
    assert float(distance_value(g, g)) == pytest.approx(-0.001)
    torch.testing.assert_close(direction(g - s), vector(0.6, 0.8))
    assert float((s_next - s) @ direction(g - s)) == pytest.approx(1)
    assert float((s_next - s) @ vector(-0.8, 0.6)) == pytest.approx(0)
    pair = lambda x: vector(x, x)[:, None]  # noqa: E731
    loss = ivl_loss(pair(-5.0), pair(-5.0), pair(-4.0), vector(-1), vector(1), 0.99, 0.95)
    assert float(loss) / 2 == pytest.approx(0.00152)


def test_worked_example_of_goals_ahead():
    """The published offsets, but for u = 0: there our draw begins at the next state."""
    u = vector(0, 0.005, 0.1, 0.5, 0.9)
    zero, end = torch.zeros(5, dtype=torch.int64), torch.full((5,), 1000)
    assert future_geometric(zero, end, u, 0.99).tolist() == [1, 1, 11, 69, 230]


def test_the_value_and_its_gradient_are_finite_at_the_goal():
    here = torch.zeros(3, 4, requires_grad=True)
    distance_value(here, torch.zeros(3, 4)).sum().backward()
    assert here.grad is not None and bool((here.grad == 0).all())
    assert direction(torch.zeros(2, 4)).tolist() == [[0.0] * 4] * 2


def test_the_value_is_minus_a_metric():
    x = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    d = lambda a, b: -distance_value(x[a], x[b])  # noqa: E731
    torch.testing.assert_close(d(0, 1), d(1, 0))
    assert bool((d(0, 2) <= d(0, 1) + d(1, 2) + 1e-12).all())


# --- losses


@pytest.mark.parametrize("constant_std", [True, False])
def test_losses_equal_the_reference(constant_std):
    agent = build(constant_std=constant_std, skill_temperature=3.0)
    batch = agent.prepare(make_batch())
    arrays, hyper = to_reference(agent, batch)
    loss, metrics = agent.updates()[0].loss(batch)
    expected = reference.hilp_losses(copy_weights(agent), arrays, hyper)
    assert float(loss.detach()) == pytest.approx(expected["total"], rel=1e-9)
    for ours, theirs in {
        "value/loss": "value",
        "skill/value_loss": "skill_value",
        "skill/critic_loss": "skill_critic",
        "skill/actor_loss": "skill_actor",
    }.items():
        assert float(metrics[ours]) == pytest.approx(expected[theirs], rel=1e-9), ours
    assert float(metrics["skill/advantage"]) == pytest.approx(expected["advantage"].mean(), rel=1e-9)


def test_gradients_equal_finite_differences_of_the_reference():
    """Along a random direction; catches any missing or extra stop-gradient."""
    agent = build(skill_temperature=3.0)
    batch = agent.prepare(make_batch())
    arrays, hyper = to_reference(agent, batch)
    update = agent.updates()[0]
    update.loss(batch)[0].backward()
    frozen = copy_weights(agent)
    assert all(p.grad is None for n, p in agent.named_parameters() if n.startswith("target"))
    trainable = [p for m in update.modules for p in m.parameters()]
    g = torch.Generator().manual_seed(11)
    ways = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in trainable]
    slope = sum(float((p.grad * way).sum()) for p, way in zip(trainable, ways, strict=True))
    totals = []
    for sign in (1, -1):
        moved = copy.deepcopy(agent)
        with torch.no_grad():
            for p, way in zip((p for m in moved.updates()[0].modules for p in m.parameters()), ways, strict=True):
                p.add_(sign * 1e-6 * way)
        totals.append(reference.hilp_losses(copy_weights(moved), arrays, hyper, frozen)["total"])
    assert slope == pytest.approx((totals[0] - totals[1]) / 2e-6, rel=1e-5, abs=1e-6)


def test_the_embedding_learns_from_the_value_loss_alone():
    agent = build()
    agent.skill_loss(agent.prepare(make_batch()))[0].backward()
    assert all(p.grad is None for p in agent.phi.parameters())


def test_both_targets_follow_with_the_weights_from_before_the_step():
    agent = build()
    before = copy.deepcopy(agent)
    step(agent, make_batch())
    for online, target in (("phi", "target_phi"), ("skill_critic", "target_skill_critic")):
        for new, old, source in zip(*(getattr(x, name).parameters() for x, name in
                                      ((agent, target), (before, target), (before, online))), strict=True):  # fmt: skip
            torch.testing.assert_close(new, 0.005 * source.detach() + 0.995 * old, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stretch", "slope"), [(1.0, 0), (0.9, -1), (1.1, 1)])
def test_steps_of_length_one_are_where_the_value_loss_rests(stretch, slope):
    """A corridor walked one way, undiscounted: shorter steps are stretched, longer ones shrunk."""
    n = 8
    s, g = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    s, g = s[s <= g], g[s <= g]
    success = (s == g).double()
    scale = torch.tensor(stretch, dtype=torch.float64, requires_grad=True)
    phi = scale * torch.arange(n, dtype=torch.float64)[:, None]
    old = phi.detach()
    v, at, after = (distance_value(x[i], x[g])[None] for x, i in ((phi, s), (old, s), (old, (s + 1).clamp(max=n - 1))))
    loss = ivl_loss(v, at, after, success - 1, 1 - success, 1 - 1e-9, 0.95)
    loss.backward()
    assert scale.grad is not None
    if slope == 0:
        assert float(loss.detach()) < 1e-6 and abs(float(scale.grad)) < 1e-4  # the floor of .001 at the goal
    else:
        assert slope * float(scale.grad) > 1e-3


# --- skills


def test_two_consecutive_updates_use_different_skills():
    agent = build()
    one, two = (agent.prepare(make_batch())["skills"] for _ in range(2))
    assert not bool((one == two).all(1).any())
    torch.testing.assert_close(one.norm(dim=1), torch.ones(B, dtype=torch.float64))


def test_the_frozen_draw_repeats_the_same_skills():
    agent = build(skill_draw="frozen")
    one, two = (agent.prepare(make_batch())["skills"] for _ in range(2))
    assert torch.equal(one, two) and len(one.unique(dim=0)) == B
    assert torch.equal(one, build().prepare(make_batch())["skills"]), "the first draw is that of fresh skills"


def test_skills_are_uniform_on_the_sphere():
    agent = build(skill_dim=3)
    z = torch.cat([agent.prepare(make_batch())["skills"] for _ in range(300)])
    assert float(z.mean(0).abs().max()) < 0.03
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.02)


def test_skills_do_not_depend_on_the_process_wide_generator_and_go_on_from_a_checkpoint():
    one, other = build(), build()
    torch.manual_seed(99)
    assert torch.equal(one.prepare(make_batch())["skills"], other.prepare(make_batch())["skills"])
    loaded = build(seed=7)
    loaded.load_state_dict(one.state_dict())
    assert torch.equal(one.prepare(make_batch())["skills"], loaded.prepare(make_batch())["skills"])


# --- prompts and planning


def act(agent: HILP, s: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The skill and the action at an episode's first tick."""
    seen, due = {"observation": s, "goal": g}, torch.ones(len(s), dtype=torch.bool)
    top, bottom = agent.levels()
    z = top.decide(seen, None, due).action
    return z, bottom.decide(seen, z, due).action


def with_prompt(agent: HILP, **changes: Any) -> HILP:
    """The same weights under another configuration."""
    other = HILP(dataclasses.replace(agent.config, **changes), DataSpec(OBS, ACT)).double()
    other.load_state_dict(agent.state_dict())
    return other


@torch.no_grad()
def test_the_goal_prompt_acts_like_the_reference():
    agent, batch = build(), make_batch()
    s, g = batch["observations"], batch["value_goals"]
    z, action = act(agent, s, g)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(B, dtype=torch.float64))
    np.testing.assert_allclose(action, reference.action(copy_weights(agent), s.numpy(), g.numpy()), atol=1e-12)


@torch.no_grad()
def test_the_plan_prompt_heads_for_mid_points_of_the_states_seen():
    agent, batch = build(), make_batch()
    agent.prepare(batch)
    planner = with_prompt(agent, prompt="plan", planning_neighbours=3)
    s, g = batch["next_observations"], batch["value_goals"]
    z, _ = act(planner, s, g)
    phi = copy_weights(agent)["phi"]
    here, there, known = (reference.embed(phi, x.numpy())[0] for x in (s, g, batch["observations"]))
    for row in range(B):
        way = reference.midpoint(here[row], there[row], known, neighbours=3, rounds=3) - here[row]
        np.testing.assert_allclose(z[row], way / np.linalg.norm(way), atol=1e-6)
    straight, _ = act(agent, s, g)
    assert not torch.allclose(z, straight)
    for changes in ({"planning_rounds": 0}, {"prompt": "goal"}):
        torch.testing.assert_close(act(with_prompt(planner, **changes), s, g)[0], straight)


@torch.no_grad()
def test_a_planner_that_has_seen_nothing_goes_straight():
    agent, batch = build(prompt="plan"), make_batch()
    torch.testing.assert_close(
        act(agent, batch["observations"], batch["value_goals"]),
        act(with_prompt(agent, prompt="goal"), batch["observations"], batch["value_goals"]),
    )


@torch.no_grad()
def test_random_prompts_ignore_the_goal_and_are_the_same_at_every_evaluation():
    agent, batch = build(prompt="random"), make_batch()
    s = batch["observations"]
    z, _ = act(agent, s, batch["value_goals"])
    assert torch.equal(z, act(agent, s, s)[0]) and len(z.unique(dim=0)) == B
    torch.testing.assert_close(z.norm(dim=1), torch.ones(B, dtype=torch.float64))
    assert agent.subgoals(s, s, s) is None


def test_states_are_remembered_in_a_ring():
    agent, batches = build(planning_states=40), [make_batch(k) for k in range(3)]
    agent.prepare(batches[0])
    assert int(agent.seen) == B and torch.equal(agent.states[:B], batches[0]["observations"])
    for batch in batches[1:]:
        agent.prepare(batch)
    last = torch.cat([batch["observations"] for batch in batches])[-40:]
    assert {tuple(row) for row in agent.states.tolist()} == {tuple(row) for row in last.tolist()}
    small_one = build(planning_states=10)
    small_one.prepare(batches[0])
    assert torch.equal(small_one.states, batches[0]["observations"][-10:])


@torch.no_grad()
def test_the_subgoal_shown_is_the_candidate_nearest_to_the_aim():
    agent, batch = build(), make_batch()
    g = batch["value_goals"]
    assert torch.equal(agent.subgoals(batch["observations"], g, g.flip(0)), g)


def test_trained_runs_plan_and_save(tmp_path: Path):
    """Through the real loop: runs with each prompt and embedding evaluate, and their weights serve another prompt."""
    store = synthetic_store(tmp_path / "walks")
    with tiny_world(store):
        for name, changes in {
            "plan": {"prompt": "plan", "planning_neighbours": 4},
            "random": {"prompt": "random"},
            "flat": {"embedding": "euclidean"},
        }.items():
            config = small(HILP, updates=3, eval_every=3, planning_states=30, **changes)
            found = open_run(HILP, config, store, tmp_path / name)
            assert found.train()
            assert len(found.evaluations) == 1
            clone = HILP(dataclasses.replace(config, prompt="goal", seed=5), SPEC)
            clone.load_state_dict(found.agent.state_dict())
            s = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(clone.value_functions(s, s + 1)["V"], found.agent.value_functions(s, s + 1)["V"])


def test_random_and_reward_skills_are_held_for_an_episode(tmp_path: Path):
    """Goals are decided on at every step; a random or a reward's skill once an episode."""
    with tiny_world(store := synthetic_store(tmp_path / "walks")):
        found = open_run(HILP, small(HILP, prompt="random"), store, tmp_path)
        agent = found.agent
        batch = found.source.next()
        steps = (batch["observations"], batch["next_observations"])
        resets = [Reset(seed=k, options={"task_id": k + 1}) for k in range(5)]
        stacks = {"random": agent.levels(), "reward": agent.reward_levels(*steps, batch["actions"][:, 0])}
        stacks["goal"] = (AimLevel(agent.phi), stacks["random"][1])
        for name, levels in stacks.items():
            rollout = Runner(levels, found.evaluator.world).episodes(resets)
            top, bottom = rollout.decisions["prompt"], rollout.decisions["skill"]
            assert len(bottom) == rollout.size
            assert len(top) == (rollout.size if name == "goal" else 5), name
            assert len(top.action.unique(dim=0)) == (1 if name == "reward" else len(top)), name


# --- ablation, zero-shot rewards, configuration


@torch.no_grad()
def test_the_euclidean_embedding_is_the_observation():
    agent, batch = build(embedding="euclidean"), make_batch()
    s, g = batch["observations"], batch["value_goals"]
    z, _ = act(agent, s, g)
    torch.testing.assert_close(z, (g - s) / (g - s).norm(dim=1, keepdim=True))
    torch.testing.assert_close(agent.value_functions(s, g)["V"], -(g - s).norm(dim=1))
    assert not list(agent.phi.parameters())
    with torch.enable_grad():
        step(agent, batch)
    _, metrics = agent.skill_loss(agent.prepare(batch))
    steps = batch["next_observations"] - s
    assert float(metrics["skill/step_length"]) == pytest.approx(float(steps.norm(dim=1).mean()))


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 40))
def test_least_squares_prompts_equal_the_reference(seed, dim, n):
    g = torch.Generator().manual_seed(seed)
    steps = torch.randn(n + dim + 1, dim, generator=g, dtype=torch.float64)
    reward = torch.randn(n + dim + 1, generator=g, dtype=torch.float64)
    expected = reference.least_squares(steps.numpy(), reward.numpy())
    np.testing.assert_allclose(least_squares_skill(steps, reward), expected, atol=1e-6)


def test_a_linear_reward_is_recovered_also_where_dimensions_are_unused():
    g = torch.Generator().manual_seed(0)
    steps = torch.cat([torch.randn(500, 3, generator=g), torch.zeros(500, 2)], 1)
    z = direction(torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(least_squares_skill(steps, 7 * steps @ z), z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_constant_reward_gives_a_random_unit_skill(reward):
    steps = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    rewards = torch.full((20,), reward)
    one, two, same = (least_squares_skill(steps, rewards, torch.Generator().manual_seed(k)) for k in (0, 1, 0))
    assert float(one.norm()) == pytest.approx(1) and not torch.equal(one, two) and torch.equal(one, same)
    nowhere = least_squares_skill(torch.zeros(5, 4), torch.arange(5.0))
    assert float(nowhere.norm()) == pytest.approx(1)


@torch.no_grad()
def test_a_reward_is_followed_in_one_direction():
    """The reward is the progress along a known direction of the embedding; every episode gets that skill."""
    agent, batch = build(), make_batch()
    s, s_next = batch["observations"], batch["next_observations"]
    z = direction(torch.arange(1.0, 5.0, dtype=torch.float64))
    reward = (agent.phi(s_next)[0] - agent.phi(s)[0]) @ z
    top, bottom = agent.reward_levels(s, s_next, reward)
    due = torch.ones(B, dtype=torch.bool)
    skill = top.decide({"observation": s}, None, due).action
    torch.testing.assert_close(skill, z.expand(B, -1), rtol=0, atol=1e-6)
    action = bottom.decide({"observation": s}, skill, due).action
    torch.testing.assert_close(action, agent.skill_actor(s, skill).clamp(-1, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "left"},
        {"embedding": "cosine"},
        {"skill_draw": "stale"},
        {"actor_p_random": 0.5},
        {"skill_dim": 0},
        {"skill_discount": 1.0},
        {"planning_rounds": -1},
    ],
)
def test_wrong_settings_are_refused_by_name(changes):
    (name, value), *_ = changes.items()
    with pytest.raises(UsageError, match=rf"hilp: {name} must be .*{value}"):
        HILPConfig(**changes)


def test_the_recipe_keeps_the_published_numbers():
    config = launch.recipe("hilp", "pointmaze-large-stitch-v0")
    assert (config.expectile, config.skill_expectile, config.skill_temperature, config.skill_dim) == (0.95, 0.9, 10, 32)
    assert (config.planning_rounds, config.planning_states, config.planning_neighbours) == (3, 50_000, 50)
    goals = config.goals()["value"]
    assert (goals.current, goals.future, goals.random) == (0, 0.625, 0.375)
