"""GiGPO: group-in-group policy optimisation (arXiv 2505.10978).

Idea: GRPO gives all turns of a trajectory one advantage. Episodes of one task meet the same states again and again, by
chance; GiGPO compares what was done there: the discounted return to go of a turn against other visits of its state, on
top of the episode against its group. No critic, no extra samples.
Source: arXiv 2505.10978 and its released code: statistics over turns, eps 1e-6, invalid actions lower their own score
and return.
Levels: episode (macro group of the task), turn (step group of the state); tokens share their turn's advantage.
Shares with GRPO: the program and the loss; only the credit differs.
Deviations: small models that imitate the world's expert first, instead of instruct models of 1.5 B and more; the whole
episode is the context of a turn, not the last few turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor

from echelon.claims import Above, Claim, Guard, Score, metric, success
from echelon.credit.credit import Credit
from echelon.credit.turns import gigpo
from echelon.systems.agents.react import React
from echelon.training.language.agent import Turns
from echelon.training.language.config import LanguageConfig


class GiGPO(React):
    """Episode advantage plus omega times the advantage among equal states."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageConfig):
        """Hyper-parameters of GiGPO."""

        system: ClassVar[str] = "gigpo"
        omega: float = 1.0
        """Weight of the step level (paper: 1); 0 is GRPO with row statistics."""
        gamma: float = 0.95
        """Discount of a turn (code: 0.95)."""
        scale: bool = True
        """Whether advantages are divided by their group's standard deviation (code: mean_std_norm)."""

    def credit(self, turns: Turns, values: Mapping[str, Tensor]) -> Credit:
        """Both levels' advantages on each token of a turn."""
        penalty = self.config.invalid_penalty * (~turns.valid).to(turns.reward.dtype)
        credit = gigpo(
            turns.tree,
            reward=turns.reward,
            penalty=penalty,
            state=turns.state,
            gamma=self.config.gamma,
            omega=self.config.omega,
            eps=1e-6 if self.config.scale else None,
        )
        return credit.expand(turns.tokens)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.agents.recipes import arm_of, recipe

    config = recipe(GiGPO.Config, "alfworld", "published" if full else "cpu")
    method, flat = arm_of(config), arm_of(replace(config, omega=0.0), "omega 0")
    alone = partial(metric, name="states/alone")
    return (
        Claim(
            id="above-grpo",
            text="On the ALFWorld engine with synthetic scenes GiGPO succeeds more often than GRPO, which is GiGPO "
            "with omega 0 and else the same (published on ALFWorld, 7 B: 90.8 to 77.6).",
            method=Score(method, success),
            baseline=Score(flat, success),
            test=Above(0),
            source="arXiv 2505.10978; with a small model",
            unless=Guard(alone, 0.5, "most states are met once, so that there is nothing to compare them with"),
            also=(Score(method, alone), Score(flat, alone)),
        ),
    )
