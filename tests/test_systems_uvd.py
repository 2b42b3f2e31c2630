"""UVD: the scheduler against one number at a time, the policy's goals, demonstrations of orders, claims."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from reference import offline_uvd as reference

from echelon.claims import Claim
from echelon.credit import uvd_reward
from echelon.data.store import Store, write_store
from echelon.envs.orders import unseen
from echelon.errors import DataError, UsageError
from echelon.systems import index
from echelon.systems.offline import uvd
from echelon.systems.offline.recipes import recipe
from echelon.training.agent import DataSpec, build_agent

SPEC = DataSpec(3, 2)


def agent_of(**changes) -> uvd.UVD:
    return build_agent(uvd.UVD, uvd.UVDConfig(actor_hidden=(8,), **changes), SPEC)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- reward


def test_the_rewards_published_numbers():
    # the milestones lie 2 apart: from 1.0 to 0.9, from 0.5 to 0.3, and the same at the final one
    before, now, final = doubles(0.5, 0.25, 0.25), doubles(0.45, 0.15, 0.15), doubles(0.9, 0.9, 0.15)
    assert uvd_reward(before, now, final) == pytest.approx(doubles(0.25, 3.5, 9.5))


def test_the_reward_equals_the_reference_and_telescopes():
    draw = np.random.default_rng(0)
    gaps = 4 * draw.random((3, 200)) ** 2
    before, now, final = (torch.as_tensor(x) for x in gaps)
    found = uvd_reward(before, now, final, alpha=2.0, beta=0.5, final_reward=1.5, eps=0.3)
    wanted = [reference.reward(*row, 2.0, 0.5, 1.5, 0.3) for row in gaps.T.tolist()]
    assert found == pytest.approx(doubles(*wanted)) and (found <= 4).all() and found.min() == -2
    track = doubles(*draw.random(50))
    potential = uvd_reward(track[:-1], track[1:], torch.ones(49).double(), beta=0.0, alpha=5.0)
    assert potential.sum().item() == pytest.approx(5 * (track[0] - track[-1]).item())


# --- scheduler


def plans_of(places: list[list[float]], budgets: list[list[int]]) -> uvd.Plans:
    most = max(map(len, places))
    rows = [[*row, *row[-1:] * (most - len(row))] for row in places]
    states = torch.tensor(rows)[..., None] * torch.tensor([1.0, 0.0, 0.0])
    filled = [[*row, *[0] * (most - len(row))] for row in budgets]
    return uvd.Plans(states, torch.tensor(filled), torch.tensor([len(row) for row in places]))


def pursued(agent: uvd.UVD, plans: uvd.Plans | None, track: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """First number of what is aimed at in each tick [T, S] of a walk [T, S]; the level decides where it says so."""
    level = uvd.MilestoneLevel(agent, plans)
    memory, held, found = level.start(track.shape[1]), torch.full((track.shape[1], 3), torch.nan), []
    for t, place in enumerate(track):
        obs = {"observation": place[:, None] * torch.tensor([1.0, 0.0, 0.0]), "order": order}
        obs["goal"] = torch.full((len(place), 3), 9.0)
        features, memory = level.observe(obs, memory)
        due = level.ends(features, None, None) | (t == 0)
        held = torch.where(due[:, None], level.decide(features, None, due).action, held)
        found.append(held[:, 0].clone())
    return torch.stack(found)


@pytest.mark.parametrize("rule", ["released", "appendix", "distance"])
def test_the_scheduler_equals_the_reference(rule):
    agent = agent_of(switch=rule, delta=3)
    places, budgets = [[4.0, -3.0, 5.0], [2.0, 6.0]], [[6, 9, 5], [4, 7]]
    draw = torch.Generator().manual_seed(3)
    track = torch.cat([torch.zeros(1, 40), torch.randn(49, 40, generator=draw)]).cumsum(0)
    order = torch.eye(2)[torch.arange(40) % 2]
    found = pursued(agent, plans_of(places, budgets), track, order)
    seen = set()
    for s in range(40):
        plan = places[s % 2]
        gaps = [[abs(x - g) for g in plan] for x in track[:, s].double().tolist()]
        at = reference.schedule(gaps, budgets[s % 2], 0.2, 3, rule)
        assert found[:, s].tolist() == [plan[k] for k in at], s
        seen.add(at[-1])
    assert len(seen) > 1


def test_milestones_are_left_near_them_and_about_in_time():
    rule = uvd.released
    near, held = torch.tensor([True, True, False, False]), torch.tensor([6, 7, 13, 14])
    assert rule(near, held, torch.full((4,), 10), 3).tolist() == [False, True, False, True]
    held = torch.tensor([8, 9, 11, 12])
    assert uvd.appendix(near | True, held, torch.full((4,), 10), 2).tolist() == [False, True, True, False]


def test_without_orders_the_worlds_goal_is_the_only_milestone():
    track = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert (pursued(agent_of(), None, track, torch.zeros(4, 1)) == 9).all()
    assert agent_of().levels()[0].plans is None


def test_a_milestone_at_its_own_place_divides_by_nothing():
    plans = plans_of([[0.0, 1.0]], [[0, 3]])
    found = pursued(agent_of(switch="distance"), plans, torch.zeros(4, 1), torch.ones(1, 1))
    assert found[:, 0].tolist() == [0, 1, 1, 1]


# --- policy


def test_the_policy_sees_the_embedding_of_its_goal_alone(monkeypatch):
    monkeypatch.setitem(uvd.EMBEDDINGS, "scene", (0, 2))
    agent = agent_of(embedding="scene")
    s, g = torch.randn(5, 3), torch.randn(5, 3)
    other = g + torch.tensor([0.0, 7.0, 0.0])
    assert torch.equal(agent.act(s, g), agent.act(s, other)) and not torch.equal(agent.act(s, g), agent.act(s, g + 1))
    batch = {"observations": s, "goals": g, "actions": torch.zeros(5, 2)}
    loss, _ = agent.loss(batch)
    assert loss.item() == pytest.approx(agent.act(s, g).square().sum(1).mean().item())
    assert torch.equal(agent.levels()[1].decide({"observation": s}, g, None).action, agent.act(s, g).clamp(-1, 1))


# --- orders


def small_orders(folder, lacking: tuple[int, ...] = ()) -> Store:
    """A demonstration of each order: 4 runs of 5 steps, on a line that turns at their ends."""
    orders = [k for k in range(24) if k not in lacking]
    walk = np.cumsum(np.repeat([1.0, -1.0, 1.0, -1.0], 5))
    line = np.append(0.0, walk)
    rows = len(line)
    states = np.concatenate([np.stack([line, 0 * line + k, 0 * line], 1) for k in orders])
    columns = {
        "observations": states.astype(np.float32),
        "actions": np.zeros((len(states), 2), np.float32),
        "instructions": np.tile(np.minimum(np.arange(rows) // 5, 3), len(orders)),
        "orders": np.repeat(orders, rows),
        "terminals": np.tile(np.arange(rows) == rows - 1, len(orders)),
    }
    return Store.open(write_store(folder, [columns], len(states), {"name": folder.name}, "lines"))


def ordered(**changes) -> uvd.UVDConfig:
    return uvd.UVDConfig(env="scene-orders-v0", actor_hidden=(8,), min_interval=3, kernel=0.0, **changes)


def test_plans_are_the_validation_demonstrations_of_each_order(tmp_path, monkeypatch):
    store = small_orders(tmp_path / "lines")
    small_orders(tmp_path / "lines-val")
    monkeypatch.setattr(uvd, "ensure", lambda name: store)
    found = uvd.plans(ordered())
    assert found.states.shape == (24, 4, 3) and found.sizes.tolist() == [4] * 24
    assert found.states[7, :, 0].tolist() == [5, 0, 5, 0] and (found.states[7, :, 1] == 7).all()
    assert found.budgets[7].tolist() == [5] * 4
    last = uvd.plans(ordered(milestones="final"))
    assert last.states.shape == (24, 1, 3) and last.budgets[0].tolist() == [20]
    agent = build_agent(uvd.UVD, ordered(), SPEC)
    assert torch.equal(agent.levels()[0].plans.states, found.states)


def test_a_missing_demonstration_is_named(tmp_path, monkeypatch):
    store = small_orders(tmp_path / "lines")
    monkeypatch.setattr(uvd, "ensure", lambda name: store)
    with pytest.raises(DataError, match="scene-orders-v0 has no validation demonstrations"):
        uvd.plans(ordered())
    small_orders(tmp_path / "lines-val", lacking=(5,))
    with pytest.raises(DataError, match="no demonstration of order 5"):
        uvd.plans(ordered())


def test_each_seed_keeps_another_third_of_the_orders():
    config = ordered(hold_out=True, seed=4)
    assert config.goals()["milestone"].left_out == unseen(1) and not ordered().goals()["milestone"].left_out


@dataclasses.dataclass
class Ran:
    """What statistics read of a run."""

    config: dict
    evaluations: list

    def agent(self):
        raise AssertionError("statistics read the record alone")


def test_statistics_tell_unseen_orders_from_known_ones(tmp_path, monkeypatch):
    row = {"completion": {f"task{k + 1}": [k / 24, 0.0] for k in range(24)}, "tasks": {}}
    run = Ran(dataclasses.asdict(ordered(hold_out=True, seed=5)), [{}, row])
    new = uvd.of_orders(run, "completion", known=False)
    assert new[:, 0] == pytest.approx([100 * k / 24 for k in unseen(2)]) and new.shape == (8, 2)
    assert uvd.of_orders(run, "completion", known=True).shape == (16, 2)
    monkeypatch.setattr(uvd, "ensure", lambda name: small_orders(tmp_path / name))
    run.config |= {"env": "lines", "hold_out": False}
    assert uvd.boundaries(run, evenly=False, within=1).tolist() == [100] * 24  # 5, 10, 15: the runs end at 4, 9, 14
    run.config["env"] = "again"
    assert uvd.boundaries(run, evenly=True, within=0).tolist() == [0] * 24


# --- configuration and claims


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"milestones": "best"}, "milestones must be one of uvd, final, uniform, random, oracle"),
        ({"switch": "never"}, "switch must be one of released, appendix, distance"),
        ({"form": "new"}, "form must be one of released, appendix"),
        ({"near": 0.0}, "near must be positive"),
        ({"embedding": "video"}, "embedding must be one of whole, scene"),
        ({"least": 7}, "1 <= least <= most"),
        ({"hold_out": True}, "hold_out must be False in 'pointmaze-medium-navigate-v0', which has no orders, got True"),
    ],
)
def test_senseless_configurations_are_refused(change, what):
    with pytest.raises(UsageError, match=what):
        uvd.UVDConfig(**change)


def test_an_embedding_outside_the_observation_is_refused():
    with pytest.raises(UsageError, match="one of observations of 3 numbers, got scene"):
        agent_of(embedding="scene")


def test_recipes_and_claims():
    assert index.load("uvd") is uvd.UVD
    small = recipe(uvd.UVDConfig, "scene-orders-v0", "cpu")
    assert small.hold_out and small.embedding == "scene" and small.actor_hidden == (256, 256)
    assert not recipe(uvd.UVDConfig, "scene-play-v0", "published").hold_out
    claims = uvd.claims()
    assert all(isinstance(claim, Claim) for claim in claims)
    assert [claim.id for claim in claims] == ["new-orders", "known-orders-not-worse", "boundaries-no-better"]
    method, baseline = (score.arm.config(1) for score in claims[0].scores)
    assert dataclasses.replace(baseline, milestones="uvd") == method and baseline.milestones == "final"
