"""GRPO for multi-turn agents: one advantage a trajectory, from the group of episodes of the same task.

Idea: a task is played several times, and what an episode earned is compared with its group, so that no critic is
needed. Each token of an episode gets (R - mean) / (std + eps) of its group.
Source: arXiv 2402.03300, with the agent's episode as the sample; the baseline of GiGPO (51) and its relatives.
Levels: episode; its turns and their tokens share one advantage.
Deviations: a penalty for actions that the world does not understand, as in GiGPO's comparison; small models that
imitate the world's expert first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.groups import grpo
from echelon.systems.agents.react import React
from echelon.training.language.agent import Turns
from echelon.training.language.config import LanguageConfig


class GRPO(React):
    """Group-relative policy optimisation over episodes."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageConfig):
        """Hyper-parameters of GRPO."""

        system: ClassVar[str] = "grpo"

    def credit(self, turns: Turns, values: Mapping[str, Tensor]) -> Credit:
        """The episode's advantage on each of its tokens."""
        episodes = turns.tree["episode"]
        outcome = episodes.reduce(self.rewards(turns))
        episode = grpo(turns.tree.within("episode", "group"), reward=outcome)
        return episode.expand(episodes).expand(turns.tokens)
