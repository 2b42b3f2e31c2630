"""PPO for multi-turn agents: a critic in the place of groups, generalised advantage estimation over an episode.

Idea: a second transformer says what is to be expected; what comes differently is credited to the turns before. By turn,
the critic is read before a turn's first token and all its tokens share the turn's advantage; by token, it is read
before each, and only the discount knows of turns.
Source: arXiv 1707.06347, with GAE of 1506.02438; defaults are those of verl, which HiPER's scripts leave as they are.
Levels: none above the turn, or above the token; the flat baseline of HiPER (81) and other systems with critics.
Deviations: small models that imitate the world's expert first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.groups import whiten
from echelon.credit.returns import gae
from echelon.spans import Spans
from echelon.systems.agents.react import React
from echelon.training.language.agent import Turns, at_items, sampled
from echelon.training.language.critic import CriticConfig

Unit = Literal["turn", "token"]


class PPO(React):
    """Generalised advantages of turns or tokens from one value head."""

    heads = ("value",)

    @dataclass(frozen=True, kw_only=True)
    class Config(CriticConfig):
        """Hyper-parameters of PPO."""

        system: ClassVar[str] = "ppo"
        unit: Unit = "turn"
        """What the critic is read before, and an advantage belongs to: turn, token."""
        gamma: float = 1.0
        """Discount of a turn; there is none between its tokens."""
        lam: float = 1.0
        """GAE's λ, of a turn or a token; 1 is the return less the value."""
        bootstrap: bool = False
        """Whether an episode that was cut off goes on, for its returns, with the last value that was read in it; else
        with nothing. Where success is the only end and gamma is 1, every value then grows towards that of success."""
        normalise: bool = True
        """Whether advantages are centred and divided by their standard deviation over the iteration's tokens."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("unit", self.unit in get_args(Unit), " or ".join(get_args(Unit)))
            for name in ("gamma", "lam"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")

    def credit(self, turns: Turns, values: Mapping[str, Tensor]) -> Credit:
        """The advantages, and the returns that the values are to predict."""
        by_token = self.config.unit == "token"
        credit = self._tokens(turns, values["value"]) if by_token else self._turns(turns, values["value"])
        if not self.config.normalise:
            return credit
        return Credit(whiten(credit.advantage, where=sampled(turns.record, turns)), credit.target, credit.weight)

    def _turns(self, turns: Turns, value: Tensor) -> Credit:
        """Items are turns."""
        first = turns.tokens.starts
        credit = self._estimate(turns, turns.tree["episode"], self.rewards(turns), value[first], self.config.gamma)
        target = at_items(turns, credit.target["value"], first)
        spread = credit.expand(turns.tokens)
        return Credit(spread.advantage, {"value": target}, spread.weight, spread.terms)

    def _tokens(self, turns: Turns, value: Tensor) -> Credit:
        """Items are tokens: the reward and the discount of a turn fall on its last."""
        episodes = Spans.by_key(turns.tokens.expand(turns.tree["episode"].ids))
        last = turns.tokens.ends
        reward = torch.zeros_like(value).index_copy_(0, last, self.rewards(turns))
        gamma = torch.ones_like(value).index_fill_(0, last, self.config.gamma)
        return self._estimate(turns, episodes, reward, value, gamma)

    def _estimate(self, turns: Turns, episodes: Spans, reward: Tensor, value: Tensor, gamma: float | Tensor) -> Credit:
        cut = ~turns.terminated & self.config.bootstrap
        after = torch.where(cut, value[episodes.ends], 0)
        return gae(episodes, reward=reward, value=value, gamma=gamma, lam=self.config.lam, final_value=after)
