"""HBPO: hierarchical budget policy optimisation, reasoning whose length follows the difficulty (arXiv 2507.15844).

Idea: the completions of a question's group begin by announcing a number of tokens, in turn one of a few budgets, and
are paid by a cosine of the tokens they used, flat up to their budget. Two advantages: within a budget, how far its
completions stay below its ceiling; between budgets, GRPO over the group. Nothing is announced in evaluation.
Source: arXiv 2507.15844 and its released code (`form`, `intra_coef`, `train_announcement` choose where they differ).
Levels: episode (its budget, dealt out and not learned), completion (the tokens).
Shares with GRPO: the loss. `reward` "accuracy" and "cosine" are the baselines, GRPO without announcements.
Deviations: the announcement is forced, not sampled, and carries no loss, though it counts in the length; the code
trains it. A small model imitates the world's expert first, half of whose responses announce the least budget that holds
them, for a model without language has to learn somewhere what an announcement means; the announcement is no target.
Budgets and lengths are the published ones over 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.groups import grpo
from echelon.credit.shaped import hbpo
from echelon.language.engine import Source
from echelon.language.program import LevelSpec, Lm, Log, WorldHandle
from echelon.language.record import Record
from echelon.language.worlds.world import Turn
from echelon.objectives.reasoning import budget_ceiling, budget_reward
from echelon.training.language.agent import Expert, LanguageAgent, Turns, sampled
from echelon.training.language.config import LanguageConfig

OPENING = "<think>"
READABLE = tuple(range(8, 129, 8))
"""Budgets that a tiny model has met in its warm start: one for all arms, whatever budgets they announce."""
CHAIN_SUM: dict[str, Any] = {
    "env": "reasoning",
    "limit": 1,
    "kinds": tuple(f"chain_sum-{terms}" for terms in range(2, 11)),
    "options": ("redundancy=1",),
}
"""The task of the comparison: sums of 2 to 10 terms, whose demonstrations check more than they need."""
ARMS: dict[str, dict[str, Any]] = {
    "hbpo": {},
    "accuracy": {"reward": "accuracy"},
    "cosine": {"reward": "cosine"},
    "single": {"budgets": (48,)},
}
"""What the sides of the comparison change: the method, GRPO with either reward, and one budget for all."""

Reward = Literal["budget", "cosine", "accuracy"]
Form = Literal["paper", "code"]


def announcement(budget: int) -> str:
    """What a response begins with."""
    return f"{OPENING} I will answer the question with {budget} tokens"


class HBPO(LanguageAgent):
    """Budgets announced in turn, and both levels' advantages."""

    levels: ClassVar[tuple[LevelSpec, ...]] = (LevelSpec("episode", span="episode"), LevelSpec("completion"))
    form: ClassVar[str] = "budget"
    tags: ClassVar[tuple[str, ...]] = (OPENING, "</think>", "<answer>", "</answer>")

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageConfig):
        """Hyper-parameters of HBPO."""

        system: ClassVar[str] = "hbpo"
        env: str = "reasoning"
        """Text world; one answer ends an episode, whatever the world is."""
        limit: int = 1
        """Answers to a question."""
        think_tokens: int = 104
        """Tokens for thinking, beside the `max_tokens` of an answer; both together are L_max (published: 4,096)."""
        reward: Reward = "budget"
        """What is paid: budget; or, without announcements, cosine (of the length of right answers), accuracy (0, 1)."""
        budgets: tuple[int, ...] = (16, 32, 64, 80)
        """Budgets in tokens, given to the members of a group in turn (paper: 512, 1024, 2048, 2560)."""
        beta: float = 4.0
        """Reward of a right answer without any tokens (code: 4)."""
        alpha: float = 1 / 128
        """What a token beyond the budget costs (code: 1 / L_max)."""
        form: Form = "paper"
        """Reward: paper; or code, which costs very short answers a little, and -1 where there is no answer at all."""
        intra_coef: float = 1.0
        """Weight of the advantage within a budget (paper: 1; the code adds it twice: 2)."""
        train_announcement: bool = False
        """Whether the announcement, though forced, is trained like the rest (code: it is)."""
        group: int = 16
        """Episodes of each task (paper: 16, four a budget)."""
        clip_high: float = 0.28
        """PPO's clip from above (paper: .28)."""
        kl: float = 0.0
        """Weight of the KL divergence from the warm start (paper: none)."""
        entropy: float = 0.0
        """Weight of the entropy bonus (paper: none)."""
        invalid_penalty: float = 0.0
        """Subtracted from the reward of a response without an answer (paper: none)."""
        eval_temperature: float = 0.6
        """Of sampling in evaluation (paper: .6)."""

        @property
        def turn_tokens(self) -> int:
            """L_max: tokens of a response, announcement included."""
            return self.max_tokens + self.think_tokens

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("think_tokens", self.think_tokens >= 0, "0 or more")
            self.require("reward", self.reward in get_args(Reward), " or ".join(get_args(Reward)))
            self.require("form", self.form in get_args(Form), " or ".join(get_args(Form)))
            for name in ("beta", "alpha", "intra_coef"):
                self.require(name, getattr(self, name) >= 0, "0 or more")
            most = f"between 1 and L_max = {self.turn_tokens}"
            self.require("budgets", bool(self.budgets) and min(self.budgets) >= 1, most)
            self.require("budgets", self.reward != "budget" or max(self.budgets) <= self.turn_tokens, most)
            known = self.model != "tiny" or set(self.budgets) <= set(READABLE)
            self.require("budgets", known, f"multiples of 8 up to {READABLE[-1]}, the numbers that a tiny model reads")

    async def episode(self, task: Any, world: WorldHandle, lm: Lm, log: Log) -> None:
        """Announce a budget, in training alone, and answer once."""
        speak = self.voice.begin(lm, world)
        seen = await world.reset(task)
        budget = await self._budget(task, world, lm)
        forced = [] if budget is None else self.tokenizer.encode(announcement(budget))
        context = self.tokenizer.render([{"role": "user", "content": seen.text}])
        reply = await speak(seen, context, lambda text: text.removeprefix(OPENING) if forced else text, forced)
        seen = await world.step(reply.text)
        log.turn(seen)
        log.done(seen.terminated)
        log.label("budget", -1 if budget is None else budget)

    async def _budget(self, task: Any, world: WorldHandle, lm: Lm) -> int | None:
        """What this episode announces, None for nothing."""
        if task.split != "train":
            return None
        if not isinstance(self.voice, Expert):
            budgets = self.config.budgets
            return budgets[lm.uid % self.config.group % len(budgets)] if self.config.reward == "budget" else None
        if lm.uid % 2:
            return None
        words = (await world.expert() or "").removeprefix(OPENING)
        length = lm.count(announcement(READABLE[-1])) + len(self.tokenizer.encode(words)) + 1
        return next((budget for budget in READABLE if length <= budget), READABLE[-1])

    def rewards(self, turns: Turns) -> Tensor:
        """[C]: of each completion, by its correctness and its length."""
        c, length, correct = self.config, turns.tokens.lengths, turns.reward > 0
        if c.reward == "accuracy":
            paid = correct.to(turns.reward.dtype)
        elif c.reward == "cosine":
            within = correct & (length <= c.turn_tokens)
            paid = torch.where(within, budget_ceiling(length, beta=c.beta, max_length=c.turn_tokens), 0)
        else:
            paid = budget_reward(
                length=length, budget=budgets(turns), correct=correct, well_formed=turns.valid, form=c.form,
                beta=c.beta, alpha=c.alpha, max_length=c.turn_tokens,
            )  # fmt: skip
        return paid - c.invalid_penalty * (~turns.valid).to(paid.dtype)

    def credit(self, turns: Turns, values: Mapping[str, Tensor]) -> Credit:
        """A completion's advantage on each of its tokens."""
        c, reward, groups = self.config, self.rewards(turns), turns.tree["group"]
        if c.reward != "budget":
            return grpo(groups, reward=reward).expand(turns.tokens)
        budget = budgets(turns)
        ceiling = budget_ceiling(budget, beta=c.beta, max_length=c.turn_tokens)
        credit = hbpo(groups, reward=reward, budget=budget, ceiling=ceiling, intra_coef=c.intra_coef)
        return credit.expand(turns.tokens)

    def trained(self, turns: Turns, credit: Credit) -> Tensor:
        """The sampled tokens, or all of them with `train_announcement`."""
        chosen = sampled(turns.record, turns)
        if not self.config.train_announcement:
            return chosen
        return chosen | (turns.record.items.source[turns.items] == Source.FORCED)

    def facts(self, turns: Turns) -> Mapping[str, Tensor]:
        """The reward, tokens of a completion and their spread, and the tokens of each budget's completions."""
        length, budget = turns.tokens.lengths.double(), budgets(turns)
        found = {
            "reward": self.rewards(turns).mean(),
            "length/mean": length.mean(),
            "length/std": length.std(correction=0),
        }
        for one in budget[budget >= 0].unique().tolist():
            found[f"length/budget_{one}"] = length[budget == one].mean()
        return found

    @classmethod
    def wording(cls, turn: Turn) -> Sequence[str]:
        """All announcements."""
        return [announcement(budget) for budget in READABLE]


def budgets(turns: Turns) -> Tensor:
    """int64 [C]: the budget announced by each completion, -1 for none."""
    return turns.record.calls.label["budget"][turns.calls]


def spending(record: Record) -> dict[str, float]:
    """How tokens follow the difficulty, which is the number at the end of a kind's name.

    "tokens": mean of a completion; "tokens/<difficulty>": of the completions of one difficulty; "correlation": of
    tokens and difficulty over completions, 0 where one of them is constant.
    """
    length = torch.zeros(len(record.episodes.uid)).index_add(0, record.episode, record.length.float())
    names = [int(kind.rpartition("-")[2]) for kind in record.kinds]
    difficulty = torch.tensor(names)[record.episodes.kind].float()
    found = {"tokens": float(length.mean())}
    for one in difficulty.unique().tolist():
        found[f"tokens/{one:g}"] = float(length[difficulty == one].mean())
    varies = len(length) > 1 and length.std() > 0 and difficulty.std() > 0
    found["correlation"] = float(torch.corrcoef(torch.stack([length, difficulty]))[0, 1]) if varies else 0.0
    return found
