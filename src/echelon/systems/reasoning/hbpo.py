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
That expert checks more than it needs and sometimes stops early, so that length can be saved, with and without harm.
Budgets and lengths are the published ones over 32; at CPU size every budget has 8 tokens more, for the announcement.
The first advantage is no baseline: it is never positive, and where answers are wrong it is as large as the budget's
ceiling. So a warm start has to be mostly right, as the recipe's is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from echelon.claims import Above, AtLeast, Claim, Evaluated, NotWorse, Score, Test
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
from echelon.training.language.play import tokens

OPENING = "<think>"
READABLE = tuple(range(8, 129, 8))
"""Budgets that a tiny model has met in its warm start: one for all arms, whatever budgets they announce."""
ARMS: dict[str, dict[str, Any]] = {
    "hbpo": {},
    "accuracy": {"reward": "accuracy"},
    "cosine": {"reward": "cosine"},
    "single": {"budgets": (48,)},
}
"""What the sides of the comparison change: the method, GRPO with either reward, and one budget for all.

The recipe, `systems/agents/recipes.py`, has the rest.
"""

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
        skip_unsolved: bool = False
        """Whether groups without a right answer are left out; else all they said gets less likely (paper: no)."""
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
        if lm.generator().random() < 0.5:  # drawn: kinds of questions come in turn, and each is to be met both ways
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
        solved = groups.expand(groups.reduce(turns.reward, "max")) > 0
        credit = hbpo(
            groups, reward=reward, budget=budget, ceiling=ceiling, intra_coef=c.intra_coef,
            where=solved if c.skip_unsolved else None,
        )  # fmt: skip
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
    length = tokens(record).float()
    names = [int(kind.rpartition("-")[2]) for kind in record.kinds]
    difficulty = torch.tensor(names)[record.episodes.kind].float()
    found = {"tokens": float(length.mean())}
    for one in difficulty.unique().tolist():
        found[f"tokens/{one:g}"] = float(length[difficulty == one].mean())
    varies = len(length) > 1 and length.std() > 0 and difficulty.std() > 0
    found["correlation"] = float(torch.corrcoef(torch.stack([length, difficulty]))[0, 1]) if varies else 0.0
    return found


# ---- what it claims


def right(run: Evaluated, at: int = -1) -> np.ndarray:
    """Right answers in points (0 to 100), [kind, question], of evaluation `at` of the run: 0 is the warm start's."""
    return 100.0 * np.array(list(run.evaluations[at]["tasks"].values()), dtype=float)


def hardest(run: Evaluated, at: int = -1) -> np.ndarray:
    """`right` for the kind of most difficulty alone, [1, question]."""
    tasks = run.evaluations[at]["tasks"]
    return 100.0 * np.array([tasks[max(tasks, key=_difficulty)]], dtype=float)


def brevity(run: Evaluated) -> np.ndarray:
    """-100 ln(tokens of a response), in the last evaluation, []: a difference of 28.77 is a quarter fewer tokens."""
    return np.array(-100.0 * math.log(run.evaluations[-1]["tokens"]))


def kept(run: Evaluated) -> np.ndarray:
    """Tokens of a response in the last evaluation, in per cent of the warm start's, []."""
    return np.array(100.0 * run.evaluations[-1]["tokens"] / run.evaluations[0]["tokens"])


def cut(run: Evaluated) -> np.ndarray:
    """100 - `kept`: tokens that reinforcement took away, in per cent of the warm start's, []."""
    return 100.0 - kept(run)


def correlation(run: Any) -> np.ndarray:
    """Correlation of tokens and difficulty over the responses of the last evaluation, []; see `spending`."""
    record = Record.load(run.path / "records" / f"step_{run.evaluations[-1]['step']:09d}")
    return np.array(spending(record)["correlation"])


def _difficulty(kind: str) -> int:
    return int(kind.rpartition("-")[2])


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.agents.recipes import arm_of, recipe

    recorded = recipe(HBPO.Config, "reasoning", "published" if full else "cpu")
    sides = {name: arm_of(dataclasses.replace(recorded, **changes), name) for name, changes in ARMS.items()}
    source = "arXiv 2507.15844; on sums, with a small model"

    def claim(name: str, text: str, method: Score, test: Test, baseline: Score | None = None) -> Claim:
        return Claim(id=name, text=text, method=method, baseline=baseline, test=test, source=source)

    hbpo, accuracy, cosine = (sides[name] for name in ("hbpo", "accuracy", "cosine"))
    first = functools.partial(hardest, at=0)
    return (
        claim(
            "fewer-tokens",
            "HBPO answers with 25 % fewer tokens than GRPO with rewards of 0 and 1, or fewer still.",
            Score(hbpo, brevity), Above(28.77), Score(accuracy, brevity),
        ),
        claim(
            "as-accurate",
            "HBPO is right as often as GRPO with rewards of 0 and 1, up to 2 points.",
            Score(hbpo, right), NotWorse(2), Score(accuracy, right),
        ),
        claim(
            "follows-difficulty",
            "HBPO's tokens follow the difficulty of the question more closely than those of GRPO with rewards of 0 "
            "and 1.",
            Score(hbpo, correlation), Above(0), Score(accuracy, correlation),
        ),
        claim(
            "cosine-shrinks",
            "Paid by the cosine of the length alone, responses lose 75 % of the warm start's tokens, or more.",
            Score(cosine, cut), AtLeast(75),
        ),
        claim(
            "cosine-fails",
            "Paid by the cosine of the length alone, the model gets worse at the hardest questions, by 10 points or "
            "more.",
            Score(cosine, first), Above(10), Score(cosine, hardest),
        ),
        claim(
            "keeps-length",
            "HBPO keeps 25 % of the warm start's tokens or more.",
            Score(hbpo, kept), AtLeast(25),
        ),
        claim(
            "keeps-hardest",
            "With HBPO the model gets worse at the hardest questions by less than 10 points, if at all.",
            Score(hbpo, hardest), NotWorse(10), Score(hbpo, first),
        ),
    )  # fmt: skip
