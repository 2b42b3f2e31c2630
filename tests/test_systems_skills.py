"""Skills without rewards: DIAYN, DADS and the manager above skills, against their papers' numbers and naive loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stopped_runs import SHORT, assert_resumes
from torch import Tensor

from echelon.envs.spaces import Spaces
from echelon.errors import DataError, EchelonError, UsageError
from echelon.hierarchy.frozen_stack import Command, FrozenStack
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every
from echelon.hierarchy.world import from_gym
from echelon.systems.online import dads, diayn, skill_manager
from echelon.systems.online.common import observed
from echelon.systems.online.diayn import DIAYN, SkillLevel, skill_reward
from echelon.systems.online.skill_manager import SkillManager, reached
from echelon.systems.online.skills import cells, late
from echelon.training import run
from echelon.training.agent import Learner
from echelon.training.online.worlds import make_world
from echelon.training.runtime import choose

SPACES = Spaces({"observation": (3,)}, {}, None, (-2.0,), (2.0,))
SMALL: dict[str, Any] = {"env": "Pendulum-v1", **SHORT}


# ---- DIAYN


@pytest.mark.parametrize(("q", "expected"), [(0.6, 0.875469), (0.1, -0.916291)])
def test_reward_of_a_skill_among_four(q: float, expected: float) -> None:
    logits = torch.tensor([[q, (1 - q) / 3, (1 - q) / 3, (1 - q) / 3]]).log() + 7
    assert skill_reward(logits, torch.tensor([0])).item() == pytest.approx(expected, abs=1e-5)


def test_a_skill_is_held_for_the_episode_and_drawn_evenly() -> None:
    agent = DIAYN(DIAYN.Config(**{**SMALL, "skills": 4}), SPACES)
    worlds = from_gym([gymnasium.make("Pendulum-v1", max_episode_steps=5) for _ in range(20)])
    rollout = Runner(agent.levels(True), worlds, generator=torch.Generator().manual_seed(0)).collect(100)
    skills = rollout.decisions["skill"]
    assert len(skills) == 20 * 20 and bool((skills.stop - skills.start == 5).all())
    assert torch.bincount(skills.action).tolist() == pytest.approx([100] * 4, abs=30)
    level = SkillLevel(3, explore=False)
    found = [level.decide(None, None, torch.ones(4, dtype=torch.bool)).action.tolist() for _ in range(2)]
    assert found == [[0, 1, 2, 0], [1, 2, 0, 1]]


def filled(agent: Any, rows: int, command: Tensor) -> None:
    torch.manual_seed(3)
    columns = {name: torch.randn(rows, 3) for name in ("observation", "next_observation")}
    rest = {"action": torch.randn(rows, 1).clamp(-2, 2), "reward": torch.full((rows,), 99.0)}
    agent.replay.add(columns | rest | {"discount": torch.full((rows,), 0.9), "command": command})


def test_diayn_s_batch_has_its_own_reward_and_the_skill_in_what_is_read() -> None:
    torch.manual_seed(0)
    agent = DIAYN(DIAYN.Config(**{**SMALL, "skills": 4, "sees": (2, 0)}), SPACES)
    filled(agent, 12, torch.randint(4, (12,)))
    with torch.no_grad():
        batch = agent.prepare(agent.draw())
    for row in range(len(batch["reward"])):
        z, after = int(batch["skill"][row]), batch["next_state"][row]
        place = (agent.replay.columns["next_observation"][:, [2, 0]] == after).all(-1).nonzero()[0, 0]
        assert int(agent.replay.columns["command"][place]) == z
        q = agent.recognise(after).softmax(-1)[z].item()
        assert batch["reward"][row].item() == pytest.approx(math.log(q) - math.log(0.25), abs=1e-5)
        one_hot = [float(z == k) for k in range(4)]
        assert batch["features"][row, 3:].tolist() == one_hot == batch["next_features"][row, 3:].tolist()
    loss, metrics = agent.discriminator_loss(batch)
    nats = [-(r - math.log(4)) for r in batch["reward"].tolist()]
    assert loss.item() == pytest.approx(np.mean(nats), abs=1e-5)
    assert 0 <= metrics["discriminator/accuracy"] <= 100


def test_the_entropy_s_weight_stays() -> None:
    agent = DIAYN(DIAYN.Config(**{**SMALL, "skills": 2}), SPACES)
    assert agent.parts.temperature.item() == pytest.approx(0.1)
    filled(agent, 16, torch.randint(2, (16,)))
    with torch.no_grad():
        batch = agent.prepare(agent.draw())
    agent.parts.actor_loss(batch)[0].backward()
    assert agent.parts.log_temperature[0].grad is None


def test_skills_learn_to_be_told_apart() -> None:
    """Where the state is the action, two skills part: one goes up, the other down."""
    torch.manual_seed(1)
    agent = DIAYN(DIAYN.Config(**{**SMALL, "skills": 2, "hidden": (16,), "lr": 1e-2, "sees": (0,)}), SPACES)
    learner = Learner(agent, choose("cpu", "float32", 1))
    for step in range(1, 81):
        state, skill = torch.zeros(64, 3), torch.randint(2, (64,))
        with torch.no_grad():
            read = torch.cat([state, agent.encode(skill)], -1)
            action, _ = agent.parts.actor.sample(agent.parts.actor(read))
        after = torch.cat([action, state[:, 1:]], -1)
        rows = {"observation": state, "next_observation": after, "action": 2 * action, "command": skill}
        batch = agent.batch(rows | {"reward": torch.zeros(64), "discount": torch.zeros(64)})
        shown = learner.step(step, batch)
    assert shown["discriminator/accuracy"] > 85


@pytest.mark.parametrize("widths", [(0.5,), (1.0, 0.25)])
def test_cells_are_those_of_a_naive_count(widths: tuple[float, ...]) -> None:
    states = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    wide, high = (widths * 2)[:2]
    assert cells(states, widths) == len({(math.floor(x / wide), math.floor(y / high)) for x, y in states.tolist()})


# ---- runs


def test_diayn_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_resumes(DIAYN, DIAYN.Config(**{**SMALL, "skills": 4}), 10, tmp_path, monkeypatch)
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]
    assert last["states/cells"] > 1 and 0 <= last["discriminator/accuracy"] <= 100 and "skills/reward" in last


def test_senseless_configurations_are_refused() -> None:
    with pytest.raises(UsageError, match="diayn: skills must be at least 2"):
        DIAYN.Config(skills=1)
    with pytest.raises(UsageError, match="diayn: sees must be different places"):
        DIAYN.Config(sees=(1, 1))
    with pytest.raises(UsageError, match="places up to 2"):
        DIAYN(DIAYN.Config(**{**SMALL, "sees": (0, 3)}), SPACES)
    with pytest.raises(UsageError, match="acts with vectors"):
        DIAYN(DIAYN.Config(**SMALL), Spaces({"observation": (3,)}, {}, 2))
    with pytest.raises(UsageError, match="no goal"):
        DIAYN(DIAYN.Config(**{**SMALL, "reads": ("goal",)}), SPACES)


# ---- a manager over frozen skills


def manager_config(**changes: Any) -> SkillManager.Config:
    own = {
        "skills": 3,
        "skill_updates": 5,
        "skill_random_steps": 80,
        "skill_hidden": (8,),
        "skill_batch": 16,
        "hold": 4,
    }
    return SkillManager.Config(**{**SMALL, **own, **changes})


def test_the_manager_holds_frozen_skills_that_the_stage_learned(tmp_path: Path) -> None:
    config = manager_config()
    directory = run.train(SkillManager, config, tmp_path / "run", device="cpu", threads=1, say=lambda line: None)
    assert directory is not None
    stage, _ = run.load_agent(DIAYN, directory / "stages" / "00-skills")
    agent, _ = run.load_agent(SkillManager, directory)
    for name, tensor in stage.state_dict().items():
        assert torch.equal(tensor, agent.skilled.state_dict()[name]), name
    result = json.loads((directory / "result.json").read_text())
    assert result["environment_steps"] == (5 + 8) * 2 * 20
    assert result["stages"]["00-skills"]["gradient_steps"] > 0
    trained = {id(p) for update in agent.updates() for module in update.modules for p in module.parameters()}
    assert trained.isdisjoint(id(p) for p in agent.skilled.parameters())

    world = from_gym([gymnasium.make("Pendulum-v1", max_episode_steps=10) for _ in range(2)])
    rollout = Runner(agent.levels(False), world, generator=torch.Generator().manual_seed(0)).collect(10)
    held = rollout.decisions["manager"]
    assert sorted((held.stop - held.start).tolist()) == [2, 2, 4, 4, 4, 4]
    item = int(held.start[0])
    read = torch.cat([observed(rollout)["observation"][item], agent.skilled.encode(held.action[0])])
    mode = agent.skilled.parts.actor.mode(agent.skilled.parts.actor(read))
    assert torch.allclose(rollout.executed[item], 2 * mode, atol=1e-5)


def test_the_manager_learns_from_the_whole_time_that_a_skill_held() -> None:
    agent = SkillManager(manager_config(gamma=0.5), SPACES)
    world = from_gym([gymnasium.make("Pendulum-v1", max_episode_steps=10)])
    rollout = Runner(agent.levels(True), world, generator=torch.Generator().manual_seed(0)).collect(10)
    agent.keep(rollout)
    rewards = rollout.reward_sum().tolist()
    expected = [sum(0.5**i * r for i, r in enumerate(rewards[a:b])) for a, b in ((0, 4), (4, 8), (8, 10))]
    assert agent.replay.columns["reward"][:3].tolist() == pytest.approx(expected, rel=1e-5)
    assert agent.replay.columns["discount"][:3].tolist() == pytest.approx([0.5**4, 0.5**4, 0.5**2])
    rows = agent.replay.rows(torch.arange(3))
    batch = agent.batch(rows)
    target = agent.parts.target(batch)
    for row in range(3):
        after = rows["next_observation"][row]
        best = int(agent.parts.q(after).argmax())
        q = float(agent.parts.target_q(after)[best])
        assert target[row].item() == pytest.approx(expected[row] + rows["discount"][row].item() * q, rel=1e-4)


@pytest.mark.parametrize("at", [5, 20])
def test_the_manager_goes_on_bit_for_bit(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the skills' stage, and in its own."""
    assert_resumes(SkillManager, manager_config(), at, tmp_path, monkeypatch)


def test_a_manager_of_senseless_skills_is_refused() -> None:
    with pytest.raises(UsageError, match="diayn-manager: hold must be at least 1"):
        manager_config(hold=0)
    with pytest.raises(UsageError, match="diayn: skills must be at least 2"):
        manager_config(skills=1)


# ---- skills as a world


def test_skills_are_the_actions_of_a_frozen_stack_that_fits() -> None:
    agent = DIAYN(DIAYN.Config(**{**SMALL, "skills": 4}), SPACES)
    manager = SkillLevel(4, explore=True)
    manager.termination = Every(1)
    stack = FrozenStack(make_world("Pendulum-v1", 2, 12), agent.levels(False)[1:], Command(Every(5)))
    rollout = Runner([manager], stack, generator=torch.Generator().manual_seed(0)).collect(3)
    assert rollout.elapsed.reshape(2, 3).tolist() == [[5, 5, 2]] * 2 and bool(rollout.streams.truncated.all())
    other = FrozenStack(make_world("HalfCheetah-v5", 2), agent.levels(False)[1:], Command(Every(5)))
    with pytest.raises(EchelonError, match=r"level 'action' does not fit HalfCheetah-v5.*'observation' \[17\]"):
        Runner([manager], other).collect(1)


# ---- claims


class Told:
    """What a statistic reads of a run."""

    path = "a run"

    def __init__(self, metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]):
        self.metrics, self.evaluations = metrics, evaluations


def test_statistics_by_hand() -> None:
    rows = [{"kind": "train", "step": n, "x": float(n)} for n in range(10)] + [{"kind": "eval", "step": 9, "x": 99.0}]
    assert late(Told(rows, []), "x") == 8.5  # the last fifth
    assert late(Told(rows[:3], []), "x", share=0.01) == 2
    with pytest.raises(DataError, match="metric 'y'"):
        late(Told(rows, []), "y")
    evaluations = [{"returns": {"hill": found}} for found in ([-9, -9, 1], [90, -2, -1], [80, -3, -1], [70, -1, 50])]
    assert reached(Told([], evaluations)).tolist() == pytest.approx([100, 0, 100 / 3])
    with pytest.raises(DataError, match="no evaluation"):
        reached(Told([], []))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("module", [diayn, dads, skill_manager])
def test_claims_compare_runs_of_equal_budgets(module: Any, full: bool) -> None:
    found = module.claims(full)
    assert len({claim.id for claim in found}) == len(found)
    for claim in found:
        budgets = set()
        for score in claim.scores:
            config = score.arm.config(3)
            assert config.seed == 3
            updates = config.updates + getattr(config, "skill_updates", 0)
            budgets.add((config.env, config.limit, config.eval_episodes, updates * config.slots * config.ticks))
            assert updates // config.eval_every >= 1
        assert len(budgets) == 1
