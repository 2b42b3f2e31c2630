"""Evaluation by OGBench's protocol: an environment's fixed test tasks, n episodes each, greedy, as it judges itself."""

from __future__ import annotations

import hashlib
import os
import time
import typing
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict

from echelon.envs.catalog import environment
from echelon.envs.ogbench import make_env
from echelon.errors import UsageError
from echelon.hierarchy.runner import Reset, Runner
from echelon.hierarchy.world import from_gym
from echelon.rollout import Rollout
from echelon.training.agent import Agent

LAST = 3
"""How many of the last evaluations the reported score averages."""


class Evaluation(NamedTuple):
    """`row` is the line for evaluations.jsonl, `rollout` the record of what happened."""

    row: dict[str, Any]
    rollout: Rollout


class GoalApart(gymnasium.Wrapper[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray], np.ndarray]):
    """A world that shows as `goal` what it asks for, float32[G], instead of a whole observation that has it."""

    def __init__(self, env: gymnasium.Env[dict[str, np.ndarray], np.ndarray], goal_dim: int):
        super().__init__(env)
        seen = typing.cast(Dict, env.observation_space)
        self.observation_space: Any = Dict({**seen.spaces, "goal": Box(-np.inf, np.inf, (goal_dim,), np.float32)})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode. UsageError where the world does not tell what it asks for."""
        seen, info = self.env.reset(seed=seed, options=options)
        if "desired_goal" not in info:
            raise UsageError(f"{self.env} has no goals apart from observations, which the data have")
        self._goal = np.asarray(info["desired_goal"], np.float32)
        return seen | {"goal": self._goal}, info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], SupportsFloat, bool, bool, dict[str, Any]]:
        """One step of the world."""
        seen, reward, terminated, truncated, info = self.env.step(action)
        return seen | {"goal": self._goal}, reward, terminated, truncated, info


class Evaluator:
    """Runs an agent on the tasks of `env`, five in most; worlds are built once and reused.

    Episode e of a task starts from a seed made of (seed, step, task, e): another system's run with the same seed meets
    the same start and goal noise at the same step. With `goal_dim` worlds show goals apart from observations.
    """

    def __init__(self, env: str, episodes: int, seed: int, slots: int = 25, goal_dim: int | None = None):
        self.env, self.episodes, self.seed = env, episodes, seed
        self.facts = environment(env)
        self.tasks = range(1, len(self.facts.tasks) + 1)
        envs = [make_env(env) for _ in range(min(slots, episodes * len(self.tasks)))]
        self.world = from_gym(envs if goal_dim is None else [GoalApart(each, goal_dim) for each in envs])

    def run(self, agent: Agent, step: int) -> Evaluation:
        """Evaluate `agent` greedily as it is after `step` updates."""
        started = time.monotonic()
        resets = [
            Reset(seed=episode_seed(self.seed, step, task, e), options={"task_id": task}, labels={"task": task})
            for e in range(self.episodes)
            for task in self.tasks
        ]
        agent.eval()
        device = next(agent.parameters()).device
        told = ("success", *self.facts.measures)
        rollout = Runner(agent.levels(), self.world, device=device, info_labels=told).episodes(resets)
        agent.train()
        task = torch.as_tensor(rollout.streams.labels["task"])
        success = torch.as_tensor(rollout.streams.labels["success"]).float()
        outcomes = {f"task{t}": [int(x) for x in success[task == t]] for t in self.tasks}
        row = {
            "step": step,
            "success": round(float(success.double().mean()), 6),
            "tasks": outcomes,
            **{name: self._by_task(rollout, name) for name in self.facts.measures},
            "seconds": round(time.monotonic() - started, 2),
            "load": round(os.getloadavg()[0], 2),
        }
        return Evaluation(row, rollout)

    def _by_task(self, rollout: Rollout, name: str) -> dict[str, list[float]]:
        """What the world told of each episode under `name`, by task."""
        task, told = (np.asarray(rollout.streams.labels[label]) for label in ("task", name))
        return {f"task{t}": told[task == t].astype(float).round(6).tolist() for t in self.tasks}


def means(row: Mapping[str, Any]) -> dict[str, float]:
    """The mean success of an evaluation, over all and by task, named as metrics."""
    return {"success": row["success"], **{f"success/{name}": sum(x) / len(x) for name, x in row["tasks"].items()}}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reported score: mean success over the tasks of the last three evaluations; with each task's own mean."""
    last = rows[-LAST:]
    tasks = {name: fmean(fmean(row["tasks"][name]) for row in last) for name in last[0]["tasks"]}
    return {"score": fmean(tasks.values()), "tasks": tasks, "evaluations": len(last)}


def episode_seed(seed: int, step: int, task: int, episode: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{task}/{episode}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 2**31
