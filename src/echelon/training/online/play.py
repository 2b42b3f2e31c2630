"""Greedy episodes of an online agent, and what the episodes of its training came to."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.hierarchy.diagnostics import diagnose
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Changing, Reset
from echelon.rollout import Rollout
from echelon.training.evaluation import LAST, Evaluation, episode_seed
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig
from echelon.training.online.recording import appraise
from echelon.training.online.worlds import make_world

SUCCESS = ("success", "is_success")
"""Keys of an environment's infos that say whether the episode succeeded."""
SLOTS = 20
"""Evaluation episodes side by side, at most."""


class Evaluator:
    """Runs an agent greedily; worlds are built once and reused.

    Episode e starts from a seed made of (seed, step, e): another system's run with the same seed meets the same starts
    at the same step. Where rules change in the course of the training, they are those of the step.
    """

    def __init__(self, config: OnlineConfig, episodes: int | None = None, seed: int | None = None):
        self.env, self.episodes, self.ticks = config.env, episodes or config.eval_episodes, config.ticks
        self.seed = config.seed if seed is None else seed
        self.world = make_world(config.env, min(SLOTS, self.episodes), config.limit)

    def run(self, agent: OnlineAgent, step: int) -> Evaluation:
        """Evaluate `agent` as it is after `step` iterations.

        The row has the outcomes of single episodes: `tasks` {env: [0 or 1]} where the environment tells a success,
        `returns` and `lengths` {env: [number]} always, and their means. The record's `meta["diagnostics"]` has what it
        shows of each level, by `hierarchy.diagnostics.diagnose`.
        """
        started = time.monotonic()
        resets = [Reset(seed=episode_seed(self.seed, step, 0, e)) for e in range(self.episodes)]
        if isinstance(self.world, Changing):
            self.world.stand_at(step * self.ticks)
        agent.eval()
        device = next((p.device for p in agent.parameters()), torch.device("cpu"))
        generator = torch.Generator(device).manual_seed(episode_seed(self.seed, step, 1, 0))
        levels = agent.levels(False)
        runner = Runner(levels, self.world, generator=generator, device=device, info_labels=SUCCESS)
        rollout = runner.episodes(resets)
        choices = {level.name: level.choices for level in levels}
        places = {level.name: level.place for level in levels if level.place is not None}
        rollout.meta["diagnostics"] = diagnose(rollout, agent.gamma, choices, places)
        with torch.no_grad():
            appraise(agent, rollout)
        agent.train()
        labels = rollout.streams.labels
        returns, lengths = (torch.as_tensor(labels[name]).double() for name in ("return", "length"))
        success = succeeded(rollout)
        tasks = {} if success is None else {self.env: [int(x) for x in success]}
        row = {
            "step": step,
            "success": None if success is None else round(float(success.double().mean()), 6),
            "return": float(returns.mean()),
            "length": float(lengths.mean()),
            "tasks": tasks,
            "returns": {self.env: returns.tolist()},
            "lengths": {self.env: lengths.tolist()},
            "seconds": round(time.monotonic() - started, 2),
            "load": round(os.getloadavg()[0], 2),
        }
        return Evaluation(row, rollout)


def succeeded(rollout: Rollout) -> Tensor | None:
    """bool [S], whether the stream's episode has succeeded; None where the environment never says."""
    for key in SUCCESS:
        value = rollout.streams.labels.get(key)
        if isinstance(value, Tensor) and not bool(value.isnan().all()):
            return value > 0
        if isinstance(value, np.ndarray) and not bool(np.isnan(value).all()):
            return torch.from_numpy(value > 0)
    return None


def episode_rows(rollout: Rollout, step: int, environment_steps: int) -> list[dict[str, Any]]:
    """A line for each episode that ended in a rollout: number, return, length and, where it is told, success."""
    streams = rollout.streams
    ended = (streams.terminated | streams.truncated).nonzero()[:, 0].tolist()
    success = succeeded(rollout)
    returns, lengths = (torch.as_tensor(streams.labels[name]) for name in ("return", "length"))
    return [
        {
            "step": step,
            "environment_steps": environment_steps,
            "episode": int(streams.episode[row]),
            "return": float(returns[row]),
            "length": int(lengths[row]),
            "success": None if success is None else int(success[row]),
        }
        for row in ended
    ]


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reported score: success, or else the return, meaned over the last three evaluations."""
    last = rows[-LAST:]
    name = "success" if all(row["success"] is not None for row in last) else "return"
    return {"score": fmean(row[name] for row in last), "of": name, "evaluations": len(last)}
