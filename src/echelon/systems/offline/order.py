"""Order consistency: how often a value ranks two states of an expert's path as the path does.

The high policy of HIQL and OTA learns from the sign of V(s_{t+k}, g) - V(s_t, g). Along a shortest path that sign
should be positive; the share of steps where it is says how often the high policy is taught the right thing.
Source: OTA (arXiv 2505.12737).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.envs.ogbench import bfs_rollouts
from echelon.spans import Spans
from echelon.training.agent import Agent

WINDOW = 30
"""Moving-average window in steps (the paper: 30, humanoid 150, manipulation 10)."""


def order_consistency(values: Tensor, paths: Spans, k: int, window: int = WINDOW) -> Tensor:
    """Share [n] of steps t of each path with vbar[t + k] > vbar[t]; equal values count as not greater.

    `values` float[N] are V(s_t, g) along the paths; vbar is their trailing moving average over `window` steps, shorter
    at a path's start. NaN for a path of k steps or less.
    """
    count = paths.scan(torch.ones_like(values), reverse=False, limit=window)
    smooth = paths.scan(values, reverse=False, limit=window) / count
    item = torch.arange(paths.size, device=values.device)
    inside = item + k <= paths.end_of(item)
    rising = smooth[(item + k).clamp(max=max(paths.size - 1, 0))] > smooth
    steps = paths.reduce(inside.to(values.dtype), "sum")
    return paths.reduce((rising & inside).to(values.dtype), "sum") / steps.masked_fill(steps == 0, torch.nan)


@torch.no_grad()
def expert_order(agent: Agent, env: str, k: int, drop_last: int = 0, window: int = WINDOW) -> dict[str, np.ndarray]:
    """Order consistency of each of an agent's values on the shortest-path expert's way through the five test tasks.

    The goal is the last state of the expert's path; `drop_last` leaves out that many steps before it (OTA's V_h is flat
    there by construction). Returns name -> float64[5].
    """
    paths = [torch.as_tensor(path) for path in _expert_paths(env)]
    goals = torch.cat([path[-1:].expand(len(path), -1) for path in paths])
    values = agent.value_functions(torch.cat(paths), goals)
    lengths = torch.tensor([len(path) for path in paths])
    kept = torch.cat([torch.arange(n) < n - drop_last for n in lengths.tolist()])
    spans = Spans.from_lengths(lengths - drop_last)
    return {name: order_consistency(v[kept].double(), spans, k, window).numpy() for name, v in values.items()}


def order_points(run: Any, value: str, drop_last: int = 0) -> np.ndarray:
    """Statistic of a claim: order consistency of a run's value function `value` in points (0 to 100), [task]."""
    k = int(run.config["subgoal_steps"])
    return 100.0 * expert_order(run.agent(), run.config["env"], k, drop_last)[value]


@cache
def _expert_paths(env: str) -> tuple[np.ndarray, ...]:
    return tuple(rollout.observations for rollout in bfs_rollouts(env))
