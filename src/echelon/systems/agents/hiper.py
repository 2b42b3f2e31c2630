"""HiPER: explicit credit for plans and actions of one language agent (arXiv 2602.16165).

Idea: every turn the agent keeps or switches its subgoal, words it, and acts. Hierarchical advantage estimation gives
each of the three decisions its own advantage, at its own time-scale: actions inside a segment, subgoals from segment to
segment, the switch by what it leads to.
Source: arXiv 2602.16165 and its released code. heads = "code", as released: a third value, and the return of the
segment less that; "paper": two values, (q - β) · (V_high - V_low).
Levels: segment (from one SWITCH to the next; its subgoal is decided there and only copied afterwards), turn, token.
Shares with PPO: program, critic and loss; only the credit differs, and the penalties of the reward.
Deviations: a success pays 1, not 10, so the two penalties are a tenth of the published; the end token is trained, with
the block before it; actions that the world does not understand are invalid too. A turn that lacks subgoal or action is
measured by V_high: V_low would be read where it is hardly ever trained, and what departs from the format would look
better than it is (small models were seen to unlearn the format). The paper leaves open how V_low is to
learn the value of the subgoal held on arrival: here from the turns that keep it. β is what the policy gave the block
that it wrote, or 1 less that where it wrote KEEP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from echelon.claims import Above, Claim, Score, metric, success
from echelon.credit.credit import Credit, spread
from echelon.credit.segments import hae, normalise_levels, switch_difference
from echelon.language.words import Tokenizer
from echelon.objectives.turns import hiper_reward
from echelon.systems.agents.planexecute import (
    ACTION,
    SUBGOAL,
    SWITCH,
    PlanConfig,
    PlanExecute,
    blocks,
    decided,
    owners,
    segments,
    subgoals,
    switches,
)
from echelon.systems.agents.ppo import PPO
from echelon.training.language.agent import Turns, Voice, at_items
from echelon.training.language.critic import CriticConfig

Heads = Literal["code", "paper"]
Penalty = Literal["normalized", "fixed"]
OWNERS = {"low": ACTION, "high": SUBGOAL, "switch": SWITCH}


class PPOPlan(PlanExecute, PPO):
    """PPO on HiPER's program: what the format alone brings."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PlanConfig, PPO.Config):
        """Hyper-parameters of PPO with plans."""

        system: ClassVar[str] = "ppo-plan"


class HiPER(PlanExecute):
    """Hierarchical advantages of actions, subgoals and switches."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PlanConfig, CriticConfig):
        """Hyper-parameters of HiPER."""

        system: ClassVar[str] = "hiper"
        heads: Heads = "code"
        """Values and the switch's advantage: code (low, high, term), paper (low, high)."""
        gamma: float = 1.0
        """Discount of a turn."""
        lam_turn: float = 1.0
        """GAE's λ inside a segment."""
        lam_seg: float = 0.95
        """GAE's λ from segment to segment."""
        bootstrap: bool = False
        """Whether an episode that was cut off goes on with its last values (published: on ALFWorld, not on WebShop).
        Where success is the only end and gamma is 1, every value then grows towards that of success."""
        normalise: bool = True
        """Whether each level's advantages are centred and divided by their standard deviation over turns."""
        keep: float = -0.03
        """Reward of keeping the subgoal (published: -0.3 where a success pays 10; on WebShop -3.5)."""
        keep_scale: Penalty = "normalized"
        """normalized: an episode gets `keep` times its share of turns that keep; fixed: each such turn gets it."""
        inconsistent: float = -0.03
        """Reward of a kept subgoal in other words (published: -0.3 where a success pays 10)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("heads", self.heads in get_args(Heads), " or ".join(get_args(Heads)))
            self.require("keep_scale", self.keep_scale in get_args(Penalty), " or ".join(get_args(Penalty)))
            for name in ("gamma", "lam_turn", "lam_seg"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")

    def __init__(self, config: Config, tokenizer: Tokenizer, voice: Voice):
        super().__init__(config, tokenizer, voice)
        self.heads = ("low", "high", "term") if config.heads == "code" else ("low", "high")

    def rewards(self, turns: Turns) -> Tensor:
        """[C]: what the world paid, with the penalties of keeping, of rewording what is kept, and of invalid turns."""
        c = self.config
        return hiper_reward(
            turns.tree["episode"],
            reward=turns.reward,
            switch=switches(turns),
            subgoal=subgoals(turns),
            valid=turns.valid,
            keep=c.keep,
            scale=c.keep_scale,
            inconsistent=c.inconsistent,
            invalid=c.invalid_penalty,
        )

    def credit(self, turns: Turns, values: Mapping[str, Tensor]) -> Credit:
        """Action tokens get "low", the subgoal's tokens of turns that begin a segment "high", the switch's "switch"."""
        c, tree, first, (after, planned) = self.config, segments(turns), turns.tokens.starts, decided(turns)
        credits = hae(
            tree,
            reward=self.rewards(turns),
            low_value=torch.where(planned, values["low"][after], values["high"][first]),
            high_value=values["high"][first],
            term_value=values["term"][first] if c.heads == "code" else None,
            terminated=turns.terminated,
            truncation="own" if c.bootstrap else "zero",
            gamma=c.gamma,
            lam_turn=c.lam_turn,
            lam_seg=c.lam_seg,
        )
        if c.heads == "paper":
            credits["switch"] = switch_difference(
                tree["episode"],
                switch=switches(turns),
                probability=switch_probability(turns),
                high_value=values["high"][first],
                low_value=values["low"][first],
            )
        targets = self._targets(turns, credits, first)
        code = owners(turns)
        owned = {level: code == OWNERS[level] for level in credits}
        if c.normalise:
            holds = {level: turns.tokens.reduce(mine, "sum") > 0 for level, mine in owned.items()}
            credits = normalise_levels(credits, holds)
        laid = spread(credits, turns.tokens, owned)
        return Credit(laid.advantage, targets, laid.weight, laid.terms)

    def trained(self, turns: Turns, credit: Credit) -> Tensor:
        """bool [M]: the tokens that decide something; a kept subgoal is none."""
        return super().trained(turns, credit) & (credit.weight > 0)

    def _targets(self, turns: Turns, credits: Mapping[str, Credit], first: Tensor) -> dict[str, Tensor]:
        """Head → [M], at the items where it is read: "low" once the subgoal is known, the others before the turn."""
        after, planned = decided(turns)
        low = torch.where(planned, credits["low"].target["low"], torch.nan)
        targets = {"low": at_items(turns, low, after), "high": at_items(turns, credits["high"].target["high"], first)}
        if self.config.heads == "code":
            return targets | {"term": at_items(turns, credits["switch"].target["term"], first)}
        kept = ~switches(turns) & (turns.tree["episode"].position > 0)
        arrival = at_items(turns, torch.where(kept, low, torch.nan), first)
        return targets | {"low": torch.where(targets["low"].isfinite(), targets["low"], arrival)}


def switch_probability(turns: Turns) -> Tensor:
    """[C]: β, the probability that the policy gave to SWITCH, from that of the block that it wrote."""
    logp = turns.record.items.logp[turns.items].nan_to_num(0.0)
    written = turns.tokens.reduce(torch.where(blocks(turns) == SWITCH, logp, 0)).exp()
    return torch.where(switches(turns), written, 1 - written)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.agents.recipes import arm_of, recipe

    size = "published" if full else "cpu"
    method, flat = (arm_of(recipe(system.Config, "alfworld", size)) for system in (HiPER, PPOPlan))
    two = partial(success, task="two")
    heads = "value/low/explained", "value/high/explained", "segments/turns"
    return (
        Claim(
            id="above-ppo-plan",
            text="On the ALFWorld engine with synthetic scenes HiPER succeeds more often than PPO with the same "
            "plan-execute prompt (published on ALFWorld, 1.5 B: 95.3 to 81.3).",
            method=Score(method, success),
            baseline=Score(flat, success),
            test=Above(0),
            source="arXiv 2602.16165; with a small model",
            also=(
                *(Score(arm, two) for arm in (method, flat)),
                *(Score(method, partial(metric, name=name)) for name in heads),
                Score(flat, partial(metric, name="value/value/explained")),
            ),
        ),
    )
