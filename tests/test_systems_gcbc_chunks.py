"""GCBC with chunks: its loss by hand and in play: chunks are played for their span, cut or repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.offline_mage import dense
from small_runs import TinyWorld

from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Reset, from_gym
from echelon.systems import index
from echelon.systems.offline.gcbc_chunks import GCBCChunks, GCBCChunksConfig
from echelon.training.agent import DataSpec

OBS, ACT = 3, 2


def agent_of(chunk: int, play: int) -> GCBCChunks:
    torch.manual_seed(0)
    agent = GCBCChunks(GCBCChunksConfig(actor_hidden=(8,), chunk=chunk, play=play), DataSpec(OBS, ACT))
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return agent


def test_the_loss_counts_the_steps_that_the_episode_has():
    agent, g = agent_of(3, 2).double(), torch.Generator().manual_seed(1)
    batch = {
        "observations": torch.randn(2, 3, OBS, generator=g).double(),
        "actions": torch.randn(2, 3, ACT, generator=g).double(),
        "goals": torch.randn(2, 1, OBS, generator=g).double(),
        "real": torch.tensor([[True, True, True], [True, False, False]]),
        "kept": torch.ones(2, 1, 1, dtype=torch.bool),
    }
    weights = {name: p.detach().numpy() for name, p in agent.actor.mlp.named_parameters()}
    read = np.concatenate([batch["observations"][:, 0].numpy(), batch["goals"][:, 0].numpy()], 1)
    mean = dense(weights, read).reshape(2, 3, ACT)
    errors = (mean - batch["actions"].numpy()) ** 2
    expected = np.mean([*errors[0].ravel(), *errors[1, 0].ravel()])
    loss, metrics = agent.loss(agent.prepare(batch))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    assert float(metrics["chunk/real"]) == pytest.approx(4 / 6)
    assert index.load("gcbc-chunks") is GCBCChunks


def test_windows_begin_where_the_policy_stands():
    spec = GCBCChunksConfig().goals()["chunk"]
    assert (spec.steps, spec.anchor, spec.frames, spec.ahead, spec.drop) == (20, "first", 1, 1, 0)


@pytest.mark.parametrize(("chunk", "play"), [(4, 2), (2, 4), (3, 3)])
def test_in_play_a_chunk_is_held_and_its_rows_follow_each_other(chunk, play):
    agent = agent_of(chunk, play)
    resets = [Reset(seed=k, options={"task_id": 1 + k}) for k in range(3)]
    rollout = Runner(agent.levels(), from_gym([TinyWorld(), TinyWorld()])).episodes(resets)
    spans, decided = rollout.spans["stream"], 0
    for first, length in zip(spans.starts.tolist(), spans.lengths.tolist(), strict=True):
        for t in range(length):
            if t % play == 0:
                s, g = (rollout.observation[name][first + t][None] for name in ("observation", "goal"))
                plan = agent.chunk(s, g)[0].detach().clamp(-1, 1)
                decided += 1
            row = plan[min(t % play, chunk - 1)]
            torch.testing.assert_close(rollout.executed[first + t], row, rtol=0, atol=1e-6)
    assert len(rollout.decisions["chunk"]) == decided
