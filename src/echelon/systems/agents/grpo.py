"""GRPO for multi-turn agents: one advantage a trajectory, from the group of episodes of the same task.

arXiv 2402.03300 (GRPO), with the agent's episode as the sample. Levels: none above the turn; the baseline of GiGPO (51)
and its relatives. Each token of an episode gets (R - mean) / (std + eps) of its group.
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
