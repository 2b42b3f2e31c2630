"""FeUdal networks: the paper's numbers, the manager's memory, where gradients go, exact resume, a task learned."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stopped_runs import assert_resumes
from torch import Tensor

from echelon.credit.options import feudal_intrinsic, transition_cosine
from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import from_gym
from echelon.rollout import Rollout
from echelon.spans import Spans
from echelon.systems.online.common import by_item, observed
from echelon.systems.online.feudal import Feudal, Worker, begun_with
from echelon.training.agent import Batch, Learner
from echelon.training.runtime import choose

SPACES = Spaces({"observation": (4,)}, {}, 2)
SMALL: dict[str, Any] = {"slots": 2, "ticks": 20, "horizon": 3, "size": 6, "hidden": 8, "embedding": 4, "radius": 4}


CORES = pytest.mark.parametrize("core", ["lstm", "mlp"])


def agent(**changes: Any) -> Feudal:
    torch.manual_seed(0)
    return Feudal(Feudal.Config(**{**SMALL, **changes}), SPACES)


def collected(found: Feudal, ticks: list[int]) -> list[Rollout]:
    world = from_gym([gymnasium.make("CartPole-v1", max_episode_steps=11) for _ in range(2)])
    runner = Runner(found.levels(True), world, generator=torch.Generator().manual_seed(0))
    return [runner.collect(number) for number in ticks]


def batch_of(found: Feudal, rollout: Rollout) -> Batch:
    with torch.no_grad():
        (batch,) = list(found.learn(rollout))
    return batch


def test_the_numbers_of_the_paper_s_equations() -> None:
    state = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    goal = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    one = Spans([0, 4])
    assert feudal_intrinsic(one, state=state, goal=goal, horizon=3)[3].item() == pytest.approx(0.863828, abs=1e-5)
    cosine = transition_cosine(one, state=state, goal=goal, horizon=2)
    assert -(2 - 1.5) * cosine[0].item() == pytest.approx(-0.353553, abs=1e-6)

    worker = Worker(1, 3, 2, 3, 2)
    with torch.no_grad():
        worker.embed.layers[1].weight.zero_()
        worker.embed.layers[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
        worker.project.weight.copy_(torch.eye(2))
        policy = worker(torch.tensor([[0.3, 1.0, 1.0]])).softmax(-1)[0]
    assert policy.tolist() == pytest.approx([0.211942, 0.211942, 0.576117], abs=1e-6)


def known_of(found: Feudal, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """State, direction and value of the manager, its memory taken from the record."""
    memory = begun_with(rollout, "manager", sum(found.remembered))[:, found.remembered[0] :]
    with torch.no_grad():
        return found.manager(found.perceive(found.read(observed(rollout))), rollout.spans["stream"], memory)


@CORES
@pytest.mark.parametrize("horizon", [1, 3])
def test_the_worker_is_told_the_sum_of_the_last_directions(horizon: int, core: str) -> None:
    """Within an episode, over the ends of batches, and from nothing where an episode starts."""
    found = agent(horizon=horizon, core=core)
    parts = collected(found, [4, 9, 1, 12])
    rollout = Rollout.cat(parts)
    perceived, episodes = found.perceive(found.read(observed(rollout))), rollout.spans["stream"]
    nothing = torch.zeros(episodes.n, found.manager.core.memory_size)
    _, goal, value = found.manager(perceived, episodes, nothing)
    pooled = by_item(rollout, "manager", rollout.decisions["manager"].action)
    for start, stop in pairwise(episodes.offsets.tolist()):
        for item in range(start, stop):
            expected = goal[max(start, item - horizon + 1) : item + 1].sum(0)
            assert torch.allclose(pooled[item], expected, atol=1e-5)
    cut = torch.cat([known_of(found, part)[2] for part in parts])  # what a batch remembers of the one before
    assert torch.allclose(cut.sort().values, value.sort().values, atol=1e-5)


def test_what_a_policy_remembers_is_what_the_loss_goes_through() -> None:
    """Log-probabilities of the worker along a record are those with which it acted, in every batch."""
    found = agent()
    for rollout in collected(found, [4, 9, 13]):
        batch = batch_of(found, rollout)
        known = found.worker.core(found.perceive(batch["read"]), rollout.spans["stream"], batch["worker_memory"])
        logits = found.worker(torch.cat([known, batch["pooled"]], -1))
        acted = by_item(rollout, "action", rollout.decisions["action"].log_prob)
        assert torch.allclose(found.worker.log_prob(logits, batch["action"]), acted, atol=1e-5)
    assert bool(batch["worker_memory"].any()) and bool(batch["manager_memory"].any())


def test_final_values_are_those_of_one_more_step() -> None:
    """Of a record that is cut, the value behind it is the first one of the next record."""
    found = agent()
    first, second = collected(found, [5, 6])
    batch, goes_on = batch_of(found, first), second.streams.start_tick > 0
    assert int(goes_on.sum()) == 2 and not bool(first.streams.terminated.any())
    value = known_of(found, second)[2][second.spans["stream"].starts][goes_on]
    last = first.spans["stream"].ends
    expected = first.reward_sum()[last] + found.config.gamma * value
    assert torch.allclose(batch["manager_target"][last], expected, atol=1e-5)


def test_no_gradient_of_the_worker_reaches_the_manager() -> None:
    found = agent(value_weight=0.0)
    batch = batch_of(found, collected(found, [20])[0])
    batch["manager_advantage"] = torch.zeros_like(batch["manager_advantage"])
    found.loss(batch)[0].backward()
    for module in (found.manager.core, found.manager.space):
        assert all(p.grad is None or not bool(p.grad.any()) for p in module.parameters())
    for module in (found.worker.project, found.worker.core):
        assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@CORES
def test_the_loss_is_the_sum_of_its_parts(core: str) -> None:
    found = agent(entropy=0.1, value_weight=0.3, core=core)
    rollout = collected(found, [7, 20])[1]
    batch = batch_of(found, rollout)
    loss, _ = found.loss(batch)
    perceived, episodes = found.perceive(batch["read"]), rollout.spans["stream"]
    state, goal, value = found.manager(perceived, episodes, batch["manager_memory"])
    known = found.worker.core(perceived, episodes, batch["worker_memory"])
    logits = found.worker(torch.cat([known, batch["pooled"]], -1))
    offsets, items, total = batch["offsets"].tolist(), len(batch["read"]), 0.0
    for start, stop in pairwise(offsets):
        for t in range(start, stop):
            if t + 3 < stop:
                cosine = torch.cosine_similarity(state[t + 3] - state[t], goal[t], dim=0).item()
                total -= batch["manager_advantage"][t].item() * cosine
            else:
                assert batch["manager_advantage"][t] == 0
            logp = logits[t].log_softmax(-1)
            total -= batch["worker_advantage"][t].item() * logp[int(batch["action"][t])].item()
            total += 0.1 * (logp.exp() * logp).sum().item()
            total += 0.3 * (value[t].item() - batch["manager_target"][t].item()) ** 2
            total += 0.3 * (found.worker.value(known[t]).item() - batch["worker_target"][t].item()) ** 2
    assert loss.item() == pytest.approx(total / items, rel=1e-4)


class Arms(gymnasium.Env[np.ndarray, Any]):
    """The second of two choices earns 1; twelve times an episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.ones(4, dtype=np.float32), {}

    def step(self, action: int) -> Any:
        self.count += 1
        return np.ones(4, dtype=np.float32), float(action), self.count == 12, False, {}


@CORES
def test_it_learns_which_choice_pays(core: str) -> None:
    found = agent(lr=1e-2, core=core)
    runner = Runner(
        found.levels(True), from_gym([Arms() for _ in range(4)]), generator=torch.Generator().manual_seed(0)
    )
    learner = Learner(found, choose("cpu", "float32", 1))
    shares: list[Tensor] = []
    for step in range(1, 41):
        rollout = runner.collect(12)
        learner.step(step, batch_of(found, rollout))
        shares.append(rollout.reward_sum().mean())
    assert float(torch.stack(shares[-5:]).mean()) > 0.8


@CORES
def test_it_goes_on_bit_for_bit(core: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"updates": 6, "eval_every": 3, "eval_episodes": 2, "checkpoint_every": 2, "log_every": 1}
    assert_resumes(Feudal, Feudal.Config(**{**SMALL, **few, "core": core}), 3, tmp_path, monkeypatch)


def test_senseless_configurations_are_refused() -> None:
    with pytest.raises(UsageError, match="feudal: horizon must be less than ticks"):
        Feudal.Config(ticks=10, horizon=10)
    with pytest.raises(UsageError, match="feudal: core must be lstm or mlp"):
        Feudal.Config(core="gru")
    with pytest.raises(UsageError, match="chooses among actions"):
        Feudal(Feudal.Config(**SMALL), Spaces({"observation": (3,)}, {}, None, (-1.0,), (1.0,)))
