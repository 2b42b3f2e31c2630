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
from echelon.systems.online.feudal import Feudal, Worker
from echelon.training.agent import Batch, Learner
from echelon.training.runtime import choose

SPACES = Spaces({"observation": (4,)}, {}, 2)
SMALL: dict[str, Any] = {"slots": 2, "ticks": 20, "horizon": 3, "size": 6, "hidden": 8, "embedding": 4}


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


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_worker_is_told_the_sum_of_the_last_directions(horizon: int) -> None:
    """Within an episode, over the ends of batches, and from nothing where an episode starts."""
    found = agent(horizon=horizon)
    rollout = Rollout.cat(collected(found, [4, 9, 1, 12]))
    _, goal = found.manager(found.perceive(found.read(observed(rollout))))
    pooled = by_item(rollout, "manager", rollout.decisions["manager"].action)
    offsets = rollout.spans["stream"].offsets.tolist()
    for start, stop in pairwise(offsets):
        for item in range(start, stop):
            expected = goal[max(start, item - horizon + 1) : item + 1].sum(0)
            assert torch.allclose(pooled[item], expected, atol=1e-5)


def test_no_gradient_of_the_worker_reaches_the_manager() -> None:
    found = agent(value_weight=0.0)
    batch = batch_of(found, collected(found, [20])[0])
    batch["manager_advantage"] = torch.zeros_like(batch["manager_advantage"])
    found.loss(batch)[0].backward()
    for module in (found.manager.direction, found.manager.space):
        assert all(p.grad is None or not bool(p.grad.any()) for p in module.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in found.worker.project.parameters())


def test_the_loss_is_the_sum_of_its_parts() -> None:
    found = agent(entropy=0.1, value_weight=0.3)
    rollout = collected(found, [20])[0]
    batch = batch_of(found, rollout)
    loss, _ = found.loss(batch)
    perceived = found.perceive(batch["read"])
    state, goal = found.manager(perceived)
    logits = found.worker(torch.cat([perceived, batch["pooled"]], -1))
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
            total += 0.3 * (found.manager.value(state[t]).item() - batch["manager_target"][t].item()) ** 2
            total += 0.3 * (found.worker.value(perceived[t]).item() - batch["worker_target"][t].item()) ** 2
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


def test_it_learns_which_choice_pays() -> None:
    found = agent(lr=1e-2)
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


def test_it_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"updates": 6, "eval_every": 3, "eval_episodes": 2, "checkpoint_every": 2, "log_every": 1}
    assert_resumes(Feudal, Feudal.Config(**{**SMALL, **few}), 3, tmp_path, monkeypatch)


def test_senseless_configurations_are_refused() -> None:
    with pytest.raises(UsageError, match="feudal: horizon must be less than ticks"):
        Feudal.Config(ticks=10, horizon=10)
    with pytest.raises(UsageError, match="chooses among actions"):
        Feudal(Feudal.Config(**SMALL), Spaces({"observation": (3,)}, {}, None, (-1.0,), (1.0,)))
