"""HECRL: worked examples, losses and gradients against an independent derivation, rewards, plans, held subgoals."""

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
from reference import hecrl as reference
from small_runs import SPEC, TinyWorld, small, synthetic_store
from torch import Tensor, nn

from echelon.data.source import OfflineSource
from echelon.data.store import Store, write_store
from echelon.errors import UsageError
from echelon.hierarchy.level import Level
from echelon.hierarchy.planning.select import ReachableThenUseful, select
from echelon.hierarchy.runner import Reset, Runner
from echelon.hierarchy.world import from_gym
from echelon.losses.policy import ddpgbc_loss
from echelon.losses.value import expectile_loss
from echelon.systems import launch
from echelon.systems.offline.hecrl import HECRL, HECRLConfig, critic_target, objects_in_place, row_error
from echelon.systems.offline.moved import held_out_pairs, moved_by_subgoals, moved_objects
from echelon.training.agent import Agent, DataSpec, Learner, Update
from echelon.training.runtime import choose

B, ACT, CUBES = 6, 2, 2
OBS = 19 + 9 * CUBES
TINY: dict[str, Any] = {
    "env": "cube-double-play-v0",
    "embed_dim": 8,
    "heads": 2,
    "width": 10,
    "value_hidden": (7,),
    "actor_hidden": (6, 5),
    "diffuser_hidden": (9, 7),
    "diffusion_steps": 10,
    "samples": 5,
    "batch_size": B,
}


def build(**changes: Any) -> HECRL:
    torch.manual_seed(3)
    agent = HECRL(HECRLConfig(**TINY | changes), DataSpec(OBS, ACT)).double()
    with torch.no_grad():  # away from special points: targets differ from online nets, norms are not the identity
        for p in agent.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return agent


def make_batch(seed: int = 5, rows: int = B) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    names = ("observations", "next_observations", "value_goals", "value_targets", "actor_goals", "actor_targets")
    batch = {name: torch.randn(rows, OBS, generator=g, dtype=torch.float64) for name in names}
    batch["actions"] = torch.rand(rows, ACT, generator=g, dtype=torch.float64) * 2 - 1
    for name in ("value", "actor"):
        batch[f"{name}_success"] = torch.zeros(rows, dtype=torch.float64)
    return batch


def t(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# --- worked examples


def test_the_policy_s_loss_of_the_worked_example():
    assert float(ddpgbc_loss(t(-4, -8), -t(0.25, 0.25), 0.1)) == pytest.approx(1.025, abs=1e-6)
    assert float(row_error(t(1, 0)[None], t(0.5, 0.5)[None])) == 0.25


def test_critic_targets_and_value_loss_of_the_worked_example():
    assert critic_target(t(-1, -1), t(-120, -3), 0.99).tolist() == pytest.approx([-100, -3.97], abs=1e-9)
    assert critic_target(t(0, -1), t(5, 3), 0.99).tolist() == [0, 0]
    d = t(1, -2)
    assert float(expectile_loss(d, d, 0.9).mean()) == pytest.approx(0.65, abs=1e-12)


REACHED, USEFUL = t(-10, -35, -22, -28), t(-30, -5, -12, -20)


@pytest.mark.parametrize(("own", "reach", "chosen"), [(-25, -30, 2), (-11, -30, -1), (-25, -9, -1), (-1e9, -9, -1)])
def test_plans_of_the_worked_example(monkeypatch, own, reach, chosen):
    """The first number of a state names it: 0 the state, 1 to 4 the candidates, 9 the goal."""
    agent = build(reach=float(reach), samples=4)
    named = torch.zeros(6, OBS, dtype=torch.float64)
    named[:, 0] = t(0, 1, 2, 3, 4, 4.5)

    def value(s: Tensor, g: Tensor) -> Tensor:
        a, b = s[:, 0].round(decimals=1), g[:, 0].round(decimals=1)
        own_value = torch.full_like(a, own)
        return torch.where(
            b < 4.2, REACHED[(b.long() - 1).clamp(0, 3)], torch.where(a == 0, own_value, USEFUL[a.long() - 1])
        )

    monkeypatch.setattr(agent, "v", value)
    monkeypatch.setattr(agent.high, "forward", lambda s, g, n, generator: named[None, 1:5])
    aim, rejected, direct = agent.plan(named[:1], named[5:], torch.Generator())
    assert aim[0, 0] == (4.5 if chosen < 0 else chosen + 1)
    assert bool(direct[0]) == (chosen < 0)
    assert float(rejected) == (0.25 if reach == -30 else 1)


# --- losses and gradients against the reference


def weights(agent: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in agent.named_parameters()}


def to_reference(agent: HECRL, batch: dict[str, Tensor]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    c = agent.config
    hyper = dataclasses.asdict(c) | {"kinds": agent.layout.kinds, "steps": c.diffusion_steps, "dim": c.embed_dim}
    return {name: x.numpy() for name, x in batch.items()}, hyper


@pytest.mark.parametrize("changes", [{}, {"high": "regression", "identity": "none"}])
def test_losses_and_gradients_equal_the_reference(changes):
    """Gradients along a random direction of each update's weights: a missing or extra stop-gradient shows."""
    agent = build(**changes)
    batch = agent.prepare(make_batch())
    arrays, hyper = to_reference(agent, batch)
    frozen = weights(agent)
    expected = reference.losses(frozen, arrays, hyper)
    generator = torch.Generator().manual_seed(1)
    assert [u.name for u in agent.updates()] == ["value", "critic", "actor", "subgoal"]
    for update in agent.updates():
        loss, _ = update.loss(batch)
        assert float(loss.detach()) == pytest.approx(expected[update.name], rel=1e-8), update.name
        agent.zero_grad()
        loss.backward()
        own = {id(p) for module in update.modules for p in module.parameters()}
        assert all((p.grad is not None) <= (id(p) in own) for p in agent.parameters())
        trainable = [(n, p) for n, p in agent.named_parameters() if id(p) in own]
        direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype).numpy() for n, p in trainable}
        slope = sum(float((p.grad * torch.as_tensor(direction[n])).sum()) for n, p in trainable if p.grad is not None)
        ends = []
        for sign in (1e-6, -1e-6):
            moved = frozen | {n: frozen[n] + sign * d for n, d in direction.items()}
            ends.append(reference.losses(moved, arrays, hyper, frozen)[update.name])
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=2e-5, abs=1e-7), update.name


def test_updates_come_in_order_and_the_targets_follow_the_moved_critics():
    agent = build()
    learner = Learner(agent, choose("cpu", "float32", 1))
    before = [p.clone() for p in agent.target_critic.parameters()]
    learner.step(1, make_batch())
    for old, new, online in zip(before, agent.target_critic.parameters(), agent.critic.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.005 * (online - old), rtol=0, atol=1e-15)
        assert not new.requires_grad


class Sum(Agent):
    """3 a + 4 b, whose gradient has norm 5."""

    def __init__(self, clip_norm: float | None):
        super().__init__()
        self.a, self.b = (nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2))
        self.clip_norm = clip_norm

    def updates(self) -> tuple[Update, ...]:
        def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return (3 * self.a.weight + 4 * self.b.weight).sum(), {}

        return (Update("sum", loss, (self.a, self.b), 0.1, clip_norm=self.clip_norm),)

    def levels(self) -> tuple[Level, ...]:
        return ()


@pytest.mark.parametrize(("clip_norm", "a", "b"), [(None, 3, 4), (20, 3, 4), (5.1, 3, 4), (1, 0.6, 0.8), (2, 1.2, 1.6)])
def test_the_gradient_of_all_parameters_together_is_clipped_before_the_step(clip_norm, a, b):
    agent = Sum(clip_norm)
    learner = Learner(agent, choose("cpu", "float32", 1))
    learner.step(1, {})
    seen = [learner.optimizers["sum"].state[p]["exp_avg"].item() for p in agent.parameters()]
    if a == 3:
        assert [p.grad.item() for p in agent.parameters()] == [3, 4]
    assert seen == pytest.approx([0.1 * a, 0.1 * b], rel=1e-6)  # Adam's first mean is a tenth of the gradient it saw


def test_each_update_s_gradient_is_clipped_by_itself():
    """The critics together, as in the released code; values whose gradient is short are not stretched."""

    def norms(**changes: Any) -> dict[str, float]:
        agent = build(**changes)
        Learner(agent, choose("cpu", "float32", 1)).step(1, make_batch())
        return {
            update.name: math.hypot(*(float(p.grad.norm()) for m in update.modules for p in m.parameters()))
            for update in agent.updates()
        }

    assert {update.clip_norm for update in build().updates()} == {20.0}
    free = norms(clip_norm=None)
    assert min(free.values()) > 0.02 and len(free) == 4
    assert norms(clip_norm=0.01) == pytest.approx(dict.fromkeys(free, 0.01), rel=1e-3)
    assert norms(clip_norm=1e6) == free


# --- goals, rewards, moments


def test_value_goals_by_position_are_the_next_states_of_the_first_fifth():
    agent, batch = build(), make_batch(rows=10)
    agent.norm.update(torch.randn(100, OBS).double())
    made = copy.deepcopy(agent).prepare(dict(batch))
    agent.norm.update(batch["observations"])
    wanted = torch.cat([batch["next_observations"][:2], batch["value_goals"][2:]])
    torch.testing.assert_close(made["value_goals"], agent.norm(wanted))
    assert made["rewards"].tolist() == [0, 0] + [-1] * 8
    spec = agent.config.goals()["value"]
    assert (spec.current, spec.future, spec.random, spec.law, spec.steps) == (0, 1, 0, "uniform", 1)


def test_value_goals_by_coin_have_the_same_shares(tmp_path: Path):
    config = HECRLConfig(**TINY | {"env": "pointmaze-medium-navigate-v0", "value_draw": "coin", "batch_size": 4000})
    store = synthetic_store(tmp_path / "walks", episodes=20, length=50)
    batch = OfflineSource(store, config.goals(), 4000, 0).next()
    is_next = (batch["value_goals"] == batch["next_observations"]).all(-1).float().mean()
    # a future goal is the next state for one in the steps that are left: the harmonic mean of 1 to 49
    assert float(is_next) == pytest.approx(0.2 + 0.8 * sum(1 / k for k in range(1, 50)) / 50, abs=0.03)
    agent = HECRL(config, SPEC)
    assert agent.prepare(batch)["rewards"].tolist() == (batch["value_success"] - 1).tolist()


def test_every_object_has_to_lie_within_4_cm_in_the_next_state():
    agent, batch = build(value_p_next=0.0), make_batch(rows=3)
    goals = batch["value_goals"] = batch["next_observations"].clone()
    goals[:, :19] += 5  # the robot does not count
    goals[0, 19] += 0.39
    goals[1, 28 + 2] += 0.41
    assert agent.prepare(batch)["rewards"].tolist() == [0, -1, 0]
    here = torch.zeros(1, 2, 3)
    assert bool(objects_in_place(here, here + torch.tensor([0.04, 0, 0]), 0.0401))
    assert not bool(objects_in_place(here, here + torch.tensor([[0.05, 0, 0], [0.0, 0, 0]]), 0.04))


def test_positions_are_metres_of_the_cubes():
    x = torch.arange(float(OBS))[None]
    expected = torch.tensor([[[1.9, 2.0, 2.1], [2.8, 2.9, 3.0]]])
    torch.testing.assert_close(build().positions(x), expected)
    assert HECRL(HECRLConfig(), SPEC).positions(torch.zeros(1, 3)) is None


# --- acting


def test_actions_are_the_reference_s():
    agent = build(high="none")
    agent.norm.update(make_batch()["observations"])
    s, g = make_batch()["observations"], make_batch(9)["observations"]
    (level,) = agent.levels()
    action = level.decide({"observation": s, "goal": g}, None, torch.ones(B, dtype=torch.bool)).action
    _, hyper = to_reference(agent, {})
    net = reference.under(weights(agent), "actor")
    expected = np.tanh(reference.entity_function(net, hyper, agent.norm(s).numpy(), agent.norm(g).numpy()))
    np.testing.assert_allclose(action.detach().numpy(), expected, atol=1e-9)
    assert agent.subgoals(s, g, s) is None and len(agent.updates()) == 3


def test_a_plan_is_the_best_candidate_within_reach_in_the_observation_s_units():
    agent = build(reach=-1e9, samples=7)
    agent.norm.update(3 + 2 * make_batch()["observations"])
    s, g = 3 + make_batch()["observations"], 3 + make_batch(9)["observations"]
    with torch.no_grad():
        aim, rejected, direct = agent.plan(s, g, torch.Generator().manual_seed(4))
        proposed = agent.propose(s, g, 7, torch.Generator().manual_seed(4))
        candidates = agent.high(agent.norm(s), agent.norm(g), 7, torch.Generator().manual_seed(4))
        judged = ReachableThenUseful(agent.v, -1e9)(agent.norm(s), candidates, agent.norm(g))
        chosen = select(proposed, g, judged)
    torch.testing.assert_close(aim, chosen.aim)
    assert rejected.tolist() == [0] * B and direct.tolist() == (chosen.chosen[:, 0] < 0).double().tolist()
    far = dataclasses.replace(agent.config, reach=1e9)
    agent.config = far
    aim, rejected, direct = agent.plan(s, g, torch.Generator().manual_seed(4))
    assert torch.equal(aim, g) and rejected.tolist() == [1] * B and direct.tolist() == [1] * B


def test_the_regression_s_subgoal_is_taken_as_it_is():
    agent = build(high="regression", reach=1e9)
    s, g = make_batch()["observations"], make_batch(9)["observations"]
    aim, _, direct = agent.plan(s, g, torch.Generator())
    torch.testing.assert_close(aim, agent.propose(s, g, 1, torch.Generator())[:, 0])
    assert direct.tolist() == [0] * B


class LongWorld(TinyWorld):
    """A TinyWorld that is never solved and lasts 30 steps."""

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        seen, *_ = super().step(action)
        return seen, 0.0, False, self.steps == 30, {"success": False}


def test_subgoals_are_held_and_after_the_last_one_comes_the_goal():
    config = dataclasses.replace(small(HECRL), hold_steps=4, num_subgoals=3, samples=3, reach=-1e9)
    assert isinstance(config, HECRLConfig)
    torch.manual_seed(0)
    agent = HECRL(config, SPEC).eval()
    agent.plan = lambda s, g, generator: (g + 1 + s, 0 * g[:, 0] + 0.5, 0 * g[:, 0])  # type: ignore[method-assign]
    world = from_gym([LongWorld(), LongWorld()])
    rollout = Runner(agent.levels(), world).episodes([Reset(seed=k, options={"task_id": k}) for k in (1, 2, 3)])
    decisions = rollout.decisions["subgoal"]
    spans = (decisions.stop - decisions.start).tolist()
    assert spans == [4, 4, 4, 4, 4, 4, 4, 2] * 3
    rejected = torch.as_tensor(decisions.values["rejected"]).view(3, 8)
    assert (rejected == 0.5).tolist() == [[True] * 3 + [False] * 5] * 3
    assert torch.as_tensor(decisions.values["direct"]).view(3, 8).tolist() == [[0.0] * 3 + [1.0] * 5] * 3


def test_noise_goes_on_from_a_checkpoint():
    agent = build()
    agent.prepare(make_batch())
    saved = copy.deepcopy(agent.state_dict())
    torch.manual_seed(8)
    expected = agent.prepare(make_batch())
    other = build(seed=4)
    other.load_state_dict(saved)
    torch.manual_seed(9)
    again = other.prepare(make_batch())
    assert torch.equal(again["noise"], expected["noise"]) and torch.equal(again["steps"], expected["steps"])


# --- objects that a subgoal moves


def test_moved_objects_are_counted_after_matching():
    here = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    swapped, one, far = here[[1, 0, 2]], here + torch.tensor([[0.0, 0, 0], [0, 0.05, 0], [0, 0.04, 0]]), here + 0.5
    assert moved_objects(here, torch.stack([here, swapped, one, far])).tolist() == [0, 0, 1, 3]
    assert int(moved_objects(here, swapped + torch.tensor([0.05, 0, 0]))) == 3
    with pytest.raises(UsageError, match="8 objects: the orders of at most 7"):
        moved_objects(torch.zeros(8, 3), torch.zeros(8, 3))


@given(st.integers(0, 10**6), st.permutations([0, 1, 2, 3]))
def test_moved_objects_ignore_the_order_and_never_exceed_those_that_changed(seed, order):
    here = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    there = here.clone()
    there[: seed % 4] += 0.3
    count = int(moved_objects(here, there[order]))
    assert count == int(moved_objects(here, there)) == int(moved_objects(there, here)) <= seed % 4


def cube_store(folder: Path) -> Store:
    """Ten episodes of twenty steps in which cubes 0 and 1 take turns to move by 2 cm a step."""
    rows = torch.zeros(10, 21, OBS)
    rows[..., 28] = 5.0
    for step in range(1, 21):
        rows[:, step] = rows[:, step - 1]
        rows[:, step, 20 if (step - 1) // 5 % 2 == 0 else 29] += 0.2
    terminals = np.zeros((10, 21), bool)
    terminals[:, -1] = True
    actions = np.zeros((210, ACT), np.float32)
    columns = {"observations": rows.view(210, OBS).numpy(), "actions": actions, "terminals": terminals.reshape(-1)}
    return Store.open(write_store(folder, [columns], 210, {"name": folder.name}, "cubes"))


def test_held_out_pairs_have_every_cube_displaced_and_proposals_are_counted(tmp_path: Path, monkeypatch):
    agent, store = build(), cube_store(tmp_path / "cubes")
    agent.norm.update(torch.as_tensor(store.columns["observations"]))
    s, g = held_out_pairs(store, agent, 30)
    moved = moved_objects(agent.positions(s), agent.positions(g))
    assert s.shape == (30, OBS) and moved.tolist() == [2] * 30
    one, both = s.clone(), s.clone()
    one[:, 19] += 1
    both[:, 19] += 1
    both[:, 28] += 1
    proposals = torch.stack([s, one, both, one], 1)
    monkeypatch.setattr(agent, "propose", lambda s, g, n, generator: proposals)
    assert moved_by_subgoals(agent, s, g, 4).tolist() == [1.0] * 30
    with pytest.raises(UsageError, match="cubes: 0 pairs with every object displaced, 5 were asked for"):
        held_out_pairs(store, agent, 5, metres=9.0)


def test_without_objects_nothing_can_be_counted(tmp_path: Path):
    agent, store = HECRL(small(HECRL), SPEC), synthetic_store(tmp_path / "walks")  # type: ignore[arg-type]
    for attempt in (lambda: held_out_pairs(store, agent, 3), lambda: moved_by_subgoals(agent, *torch.zeros(2, 1, 3))):
        with pytest.raises(UsageError, match="no objects are declared for 'pointmaze-medium-navigate-v0'"):
            attempt()


# --- configuration


@pytest.mark.parametrize(
    "changes",
    [
        {"env": "antsoccer-arena-navigate-v0"},
        {"env": "FetchPush-v4"},
        {"heads": 3},
        {"embed_dim": 7},
        {"diffuser_hidden": ()},
        {"value_p_next": 1.5},
        {"high": "flow"},
        {"identity": "colour"},
        {"value_draw": "dice"},
        {"reach": float("nan")},
        {"samples": 0},
        {"num_subgoals": -1},
        {"clip_norm": 0.0},
        {"clip_norm": float("inf")},
    ],
)
def test_wrong_settings_are_refused_by_name(changes):
    ((name, value),) = changes.items()
    with pytest.raises(UsageError, match=rf"hecrl: .*{name}") as caught:
        HECRLConfig(**changes)
    assert str(value) in str(caught.value)


def test_observations_without_their_entities_are_refused():
    with pytest.raises(UsageError, match="observations of 30 numbers, its entities are 1 x 19"):
        HECRL(HECRLConfig(**TINY), DataSpec(30, ACT))


def test_recipes_keep_the_published_numbers():
    cube, scene = (launch.recipe("hecrl", env, "published") for env in ("cube-triple-noisy-v0", "scene-noisy-v0"))
    assert isinstance(cube, HECRLConfig) and isinstance(scene, HECRLConfig)
    assert (cube.discount, cube.target_rate, cube.lr, cube.batch_size) == (0.99, 0.005, 3e-4, 512)
    assert cube.clip_norm == scene.clip_norm == 20
    assert (cube.expectile, cube.alpha, cube.high_alpha) == (0.9, 0.1, 3.0)
    assert (cube.embed_dim, cube.heads, cube.diffuser_hidden) == (64, 8, (256,) * 8)
    assert (cube.subgoal_ahead, cube.diffusion_steps) == (50, 10)
    assert [(c.hold_steps, c.num_subgoals, c.samples, c.reach) for c in (cube, scene)] == [
        (25, 32, 256, -30.0), (50, 16, 64, -25.0),
    ]  # fmt: skip
    small_size = launch.recipe("hecrl", "cube-triple-noisy-v0", "cpu")
    assert isinstance(small_size, HECRLConfig)
    assert (small_size.diffuser_hidden, small_size.embed_dim, small_size.batch_size) == ((256,) * 4, 64, 256)
    assert small_size.samples == 64
