"""SAC with hindsight: goals that were reached later are put in the place of those that were asked for.

Idea: an episode that missed its goal shows how to reach what it did reach; with such a goal a reward that says only
"reached or not" is seen in every batch, and the policy for all goals learns from it.
Source: arXiv 1707.01495 (hindsight, "future" with 4 goals in 5), on SAC (arXiv 1812.05905) in place of DDPG.
Levels: one policy for goals, a decision every environment step; the flat baseline of goal-directed hierarchies.
Shares with SAC everything but what is drawn; with HIRO and HAC how rows wait for the end of their episode.
Deviations: goals are drawn at each draw from the replay, not once when an episode is stored (as later code does); SAC's
temperature explores, in place of noise; all rewards are made anew. A task that ends at its goal keeps its own ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from echelon.data.replay import WholeEpisodes
from echelon.envs.spaces import Spaces
from echelon.hierarchy.transitions import Columns
from echelon.rollout import Rollout
from echelon.systems.online.goals import DESIRED, NEXT_ACHIEVED, GoalReward, finished, goal_dim, seen_names
from echelon.systems.online.sac import SAC
from echelon.training.agent import Batch
from echelon.training.online.agent import Keeper


class HindsightSAC(SAC):
    """A soft actor-critic for goals."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SAC.Config):
        """Hyper-parameters of SAC with hindsight."""

        system: ClassVar[str] = "sac-her"
        env: str = "FetchReach-v4"
        """Environment with goals: a gymnasium name."""
        hindsight: float = 0.8
        """Share of drawn rows whose goal is one that was reached later (paper: 4 in 5)."""
        threshold: float | None = None
        """Distance within which a goal counts as reached: reward 0, else -1. The environment's own rule when absent."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("hindsight", 0 <= self.hindsight <= 1, "in [0, 1]")
            self.require("threshold", self.threshold is None or self.threshold >= 0, "0 or more")

    config: Config

    def __init__(self, config: Config, spaces: Spaces):
        goal_dim(spaces)
        super().__init__(config, spaces)
        self.episodes = WholeEpisodes()
        self.reward = GoalReward(config.env, config.threshold)

    def kept(self) -> Mapping[str, Keeper]:
        return {**super().kept(), "episodes": self.episodes}

    def abandon(self) -> None:
        super().abandon()
        self.episodes = WholeEpisodes()

    def keep(self, rollout: Rollout) -> Columns:
        """Put the transitions of episodes that are over into the replay."""
        rows = self.moves.add(rollout)
        self.replay.add(finished(self.episodes, rows, (*seen_names(self.spaces), *self.columns)))
        return rows

    def draw(self) -> Batch:
        """Rows, most of them asked for what a row of the same episode, not earlier, achieved."""
        places = self.replay.draw(self.config.batch_size)
        rows = self.replay.rows(places)
        reached = self.replay.rows(self.replay.later(places), (NEXT_ACHIEVED,))[NEXT_ACHIEVED]
        hindsight = (torch.rand(len(reached), device=reached.device) < self.config.hindsight)[:, None]
        for name in (DESIRED, f"next_{DESIRED}"):
            rows[name] = torch.where(hindsight, reached, rows[name])
        rows["reward"] = self.reward(rows[NEXT_ACHIEVED], rows[DESIRED])
        return self.batch(rows)
