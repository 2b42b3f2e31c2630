"""What goal-directed systems share: rewards of other goals, rows in whole episodes, how fast a success comes.

Their environments show three things, as those of gymnasium-robotics do: what is seen ("observation"), what is achieved
of a goal ("achieved_goal") and what is asked for ("desired_goal").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.data.replay import WholeEpisodes
from echelon.envs.joined import Joined
from echelon.envs.spaces import Spaces
from echelon.errors import DataError, UsageError
from echelon.hierarchy.transitions import Columns
from echelon.rollout import End
from echelon.training.online.worlds import make_env

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"
NEXT_ACHIEVED = f"next_{ACHIEVED}"


def goal_dim(spaces: Spaces) -> int:
    """Numbers of a goal. UsageError for an environment that does not show what is achieved and what is asked for."""
    size = spaces.size(DESIRED)
    if spaces.size(ACHIEVED) != size:
        raise UsageError(f"{ACHIEVED} has {spaces.size(ACHIEVED)} numbers, {DESIRED} {size}; they must be alike")
    return size


def state_names(spaces: Spaces) -> tuple[str, ...]:
    """What is seen beside the goal that is asked for."""
    return tuple(name for name in spaces.observation if name != DESIRED)


class GoalReward:
    """[B]: the reward for what was achieved [B, d] when asked for a goal [B, d].

    The environment's own `compute_reward`; with a `threshold` -1, and 0 within that distance.
    """

    def __init__(self, env: str, threshold: float | None = None):
        self.env, self.threshold = env, threshold
        self._rule: Callable[..., Any] | None = None

    def __call__(self, achieved: Tensor, goal: Tensor) -> Tensor:
        if self.threshold is not None:
            return -((achieved - goal).norm(dim=-1) > self.threshold).to(achieved.dtype)
        if self._rule is None:
            env = make_env(self.env)  # of several tasks at once, a rule takes dicts and depends on what was done before
            self._rule = None if isinstance(env, Joined) else getattr(env.unwrapped, "compute_reward", None)
            if self._rule is None:
                raise UsageError(f"{self.env} cannot tell the reward for another goal; give a threshold of distance")
        found = self._rule(achieved.cpu().numpy(), goal.cpu().numpy(), {})
        return torch.as_tensor(found, dtype=achieved.dtype, device=achieved.device)


def finished(episodes: WholeEpisodes, rows: Mapping[str, Tensor], names: Sequence[str]) -> Columns:
    """The columns `names` of transitions, of those whose episode is over, in the order of time; see `WholeEpisodes`."""
    over = (rows["end"] == End.TERMINATED) | (rows["end"] == End.TRUNCATED)
    return episodes.add({name: rows[name] for name in names}, rows["key"], over)


def seen_names(spaces: Spaces) -> tuple[str, ...]:
    """Columns of transitions with everything that is seen, before and after."""
    return tuple(column for name in spaces.observation for column in (name, f"next_{name}"))


def speed(run: Any, level: float = 0.8) -> np.ndarray:
    """Minus the environment steps until an evaluation's success was `level` or more, []; higher is better.

    Steps are in thousands. A run that never got there counts with all its steps.
    """
    if not run.evaluations:
        raise DataError(f"{getattr(run, 'path', 'run')}: no evaluation to find the first success in")
    config = run.config
    reached = [row["step"] for row in run.evaluations if row["success"] is not None and row["success"] >= level]
    iterations = reached[0] if reached else config["updates"]
    return np.array(-iterations * config["slots"] * config["ticks"] / 1000)
