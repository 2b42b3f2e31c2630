"""Runs small enough for tests: a tiny world, a synthetic data set, tiny networks, and what a run amounts to."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor

from echelon.data.source import OfflineSource
from echelon.data.store import Store, write_store
from echelon.envs.catalog import SCENE_INSTRUCTIONS
from echelon.training import checkpoint, evaluation, offline
from echelon.training.agent import Agent, DataSpec, build_agent
from echelon.training.config import Config
from echelon.training.evaluation import Evaluator
from echelon.training.metrics import read_jsonl
from echelon.training.offline import OfflineRun
from echelon.training.runtime import choose

SPEC = DataSpec(observation_dim=3, action_dim=2)
SENTENCES = len(SCENE_INSTRUCTIONS)
"""What worlds can ask for in words."""
SMALL: dict[str, Any] = {
    "updates": 40,
    "batch_size": 8,
    "eval_every": 15,
    "eval_episodes": 1,
    "log_every": 3,
    "checkpoint_every": 1000,
}
TIMES = {"time_s", "updates_per_s", "seconds", "load", "train_s", "evaluation_s", "finished"}
"""What two runs of the same identity may differ in: when and how fast they ran."""


class TinyWorld(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A point in the plane, seen with the product of its coordinates; five goals around the start, six steps.

    What it asks for it also says: the first five of SENTENCES sentences.
    """

    observation_space = Dict(
        {name: Box(-np.inf, np.inf, (3,)) for name in ("observation", "goal")}
        | {"instruction": Box(0, 1, (SENTENCES,))}
    )
    action_space = Box(-1, 1, (2,))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        task = (options or {})["task_id"]
        angle, self.asked = 2 * math.pi * task / 5, np.eye(SENTENCES, dtype=np.float32)[task - 1]
        self.place, self.steps = 0.1 * self.np_random.standard_normal(2), 0
        self.goal = 0.25 * np.array([math.cos(angle), math.sin(angle)])
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.place, self.steps = self.place + 0.1 * action, self.steps + 1
        success = bool(np.linalg.norm(self.place - self.goal) < 0.2)
        return self._seen(), float(success), success, self.steps == 6, {"success": success}

    def _seen(self) -> dict[str, np.ndarray]:
        here, there = (np.array([*p, p.prod()], np.float32) for p in (self.place, self.goal))
        return {"observation": here, "goal": there, "instruction": self.asked}


def synthetic_store(folder: Path, episodes: int = 6, length: int = 20) -> Store:
    """Random walks in TinyWorld; each episode serves a sentence."""
    draw = np.random.default_rng(7)
    actions = draw.uniform(-1, 1, (episodes, length + 1, 2)).astype(np.float32)
    place = np.concatenate([np.zeros_like(actions[:, :1]), 0.1 * actions[:, :-1]], 1).cumsum(1)
    terminals = np.zeros((episodes, length + 1), bool)
    terminals[:, -1] = True
    told = np.repeat(np.arange(episodes) % SENTENCES, length + 1).reshape(terminals.shape)
    columns = {"observations": np.concatenate([place, place.prod(-1, keepdims=True)], -1), "actions": actions}
    columns["instructions"] = told.astype(np.int64)
    rows = {
        name: column.reshape(-1, *column.shape[2:]) for name, column in (columns | {"terminals": terminals}).items()
    }
    return Store.open(write_store(folder, [rows], terminals.size, {"name": folder.name}, "random walks"))


def small(cls: type[Agent], **changes: Any) -> Config:
    """The default configuration with tiny layers and a tiny budget."""
    config = cls.Config(**SMALL)
    names = [f.name for f in dataclasses.fields(config)]
    smaller: dict[str, Any] = {name: (12, 12) for name in names if name.endswith("hidden")}
    smaller |= {name: 8 for name in names if name == "samples"}  # that a planner chooses from
    return dataclasses.replace(config, **smaller | changes)


@contextlib.contextmanager
def tiny_world(store: Store) -> Iterator[None]:
    """Within it, every data set is `store`, every environment a TinyWorld, and no write waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(evaluation, "make_env", lambda name: TinyWorld())
        patch.setattr(offline, "ensure", lambda name, transitions, say: store)
        yield


def open_run(cls: type[Agent], config: Config, store: Store, directory: Path) -> OfflineRun:
    """A run at its first step, outside of `run.train`: for a look inside. Needs `tiny_world`."""
    agent = build_agent(cls, config, SPEC)
    source = OfflineSource(store, config.goals(), config.batch_size, config.seed)
    evaluator = Evaluator(config.env, config.eval_episodes, config.seed)
    return OfflineRun(directory, config, agent, source, choose("cpu", "float32", 1), evaluator)


@torch.no_grad()
def act(agent: Agent, observation: Tensor, goal: Tensor) -> Tensor:
    """What the hierarchy does at the first tick of an episode: [B, A]."""
    action, due = None, torch.ones(len(observation), dtype=torch.bool)
    for level in agent.levels():
        seen = {"observation": observation, "goal": goal, "instruction": torch.eye(SENTENCES)[[0] * len(goal)]}
        features, _ = level.observe(seen, level.start(len(observation)))
        action = level.decide(features, action, due).action
    assert action is not None
    return action


def outcome(directory: Path) -> dict[str, Any]:
    """All that a run left behind, except for times: two runs of the same identity must have the same."""
    found = checkpoint.latest(directory)
    assert found is not None
    files = sorted(path for path in (directory / "rollouts").iterdir())
    left: dict[str, Any] = {f"tensor {name}": digest(tensor.numpy()) for name, tensor in found.tensors.items()}
    left |= {f"rollout {file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    left |= {f"state {name}": value for name, value in untimed(found.state).items()}
    left |= {f"metrics {k}": untimed(row) for k, row in enumerate(read_jsonl(directory / "metrics.jsonl"))}
    left |= {f"evaluation {k}": untimed(row) for k, row in enumerate(read_jsonl(directory / "evaluations.jsonl"))}
    result = directory / "result.json"
    return left | {"step": found.step, "result": untimed(json.loads(result.read_text())) if result.exists() else None}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare two outcomes; a failure names the parts that differ."""
    different = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    shown = "\n".join(f"{name}: {one.get(name)} | {other.get(name)}" for name in sorted(different)[:8])
    assert not different, f"{len(different)} parts differ:\n{shown}"


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """`row` without its times."""
    return {name: value for name, value in row.items() if name not in TIMES}


def digest(array: np.ndarray) -> tuple[str, str]:
    """Type and shape, and a hash of the bytes."""
    return f"{array.dtype}{list(array.shape)}", hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
