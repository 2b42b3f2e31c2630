"""CoDA: one model plans and carries out, in contexts that do not see each other (arXiv 2512.12716).

Idea: what a tool returns drowns an agent in its own context. Here a planner sees the goal and pairs of (task, result)
alone; every task is carried out by an executor that begins with an empty context, sees the documents, and hands back a
short answer. PECO trains both: an executor's tokens share the advantage of the planner that called it, which is that of
its reward among the planners of the same goal.
Source: arXiv 2512.12716 and its released code: reward 6 · success - 3 + formats, unbiased std, eps 1e-6, token means.
Levels: planner (a task holds until its executor returns), executor (a stream of its own; turns), tokens.
Shares with GRPO: the loss, and the world, whose recipes and distractors GRPO's flat agent reads in its one context.
Deviations: the tools are a text world, TextCraft, in the place of a search engine. Its recipes are the documents, shown
at once instead of searched for, and its success is the reward instead of F1. There is no evidence to quote and so no
bonus for quoting it. The world itself ends a game that is won, and that is a complete format for both roles. A turn
that is not understood costs a share of a success, as it does in the flat baseline. A thought is allowed and not asked
for, since the scripted experts of the warm start have none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from echelon.claims import Above, Claim, Evaluated, Score, Statistic
from echelon.credit.credit import Credit
from echelon.credit.roles import peco
from echelon.errors import DataError
from echelon.language.labels import Format, Slot
from echelon.language.program import LevelSpec, Lm, Log, WorldHandle
from echelon.language.worlds.world import Observation, Turn
from echelon.spans import Spans, SpanTree
from echelon.systems.agents.coda_script import MOST, NEED, UNFINISHED, amount_of, assign, carry_out, first_task, write
from echelon.training.language.agent import LanguageAgent, Turns
from echelon.training.language.config import LanguageConfig

PLANNER, EXECUTOR = range(2)
"""Labels of the channel `role`."""
COUNTS, PROBE = (0, 10, 30), 100
"""Numbers of distractors that are trained and compared, and one that is looked at only."""
THOUGHT = Slot(("think",), least=0, empty=True)
PLANNED = Format((THOUGHT, Slot(("task", "answer"))))
EXECUTED = Format((THOUGHT, Slot(("action", "answer"))))


@dataclass(frozen=True)
class Role:
    """Labels every token of a call with the role that speaks."""

    code: int
    name: str = "role"
    labels: tuple[str, ...] = ("planner", "executor")

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """One code a token."""
        return [self.code] * len(ids)


class CoDA(LanguageAgent):
    """A planner and its executors, of one model."""

    levels: ClassVar[tuple[LevelSpec, ...]] = (
        LevelSpec("episode", span="episode"),
        LevelSpec("planner", owns=("planner",)),
        LevelSpec("executor", span="stream", owns=("executor",)),
    )
    form: ClassVar[str] = "roles"
    tags: ClassVar[tuple[str, ...]] = tuple(
        f"<{end}{tag}>" for tag in dict.fromkeys((*PLANNED.tags, *EXECUTED.tags)) for end in ("", "/")
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageConfig):
        """Hyper-parameters of CoDA."""

        system: ClassVar[str] = "coda"
        env: str = "textcraft"
        """Text world; the last line of what it says first is the goal, the rest are the documents."""
        planner_turns: int = 10
        """Turns of a planner (code: 6, of searches that need no further ones)."""
        executor_turns: int = 12
        """Turns of an executor (code: 5)."""
        tag_tokens: int = 8
        """Tokens that a turn may emit for tags and thoughts, beside the `max_tokens` of its task or action."""
        success_weight: float = 6.0
        """What a success adds to the reward of a failure, -3 (code: 6)."""
        format_weight: float = 1.0
        """What the planner's format, and the mean of the executors', are worth (code: 1 each)."""
        planner_weight: float = 1.0
        """Weight of the planner's tokens in the loss."""
        executor_weight: float = 1.0
        """Weight of the executors' tokens in the loss; 0 trains the planner alone."""
        balanced: bool = False
        """Whether both roles' tokens weigh the same in sum; as released they count alike, and executors have more."""
        verify: bool = False
        """Whether executors whose task can be checked are compared with each other by whether it was done."""
        kl: float = 0.001
        """Weight of the KL divergence from the warm start (code: .001)."""
        entropy: float = 0.0
        """Weight of the entropy bonus (code: none)."""

        @property
        def turn_tokens(self) -> int:
            """Tokens of a whole turn."""
            return self.max_tokens + self.tag_tokens

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("planner_turns", "executor_turns"):
                self.require(name, getattr(self, name) >= 1, "at least 1")
            for name in ("tag_tokens", "success_weight", "format_weight", "planner_weight", "executor_weight"):
                self.require(name, getattr(self, name) >= 0, "0 or more")

    # ---- the program

    async def episode(self, task: Any, world: WorldHandle, lm: Lm, log: Log) -> None:
        """Plan until the world ends the game, or the planner answers."""
        speak = self.voice.begin(lm, world, [Role(PLANNER)])
        seen = await world.reset(task)
        documents, _, goal = seen.text.rstrip().rpartition("\n")
        first, history = first_task(seen, goal), list[tuple[str, str]]()
        context = self._begin(f"Role: planner\n{goal}")
        formed = answered = False
        for turn in range(self.config.planner_turns):
            reply = await speak(seen, context, partial(assign, first, tuple(history)))
            said = PLANNED.parse(reply.text)
            formed = said.valid and (formed or turn == 0)
            log.valid(said.valid, of=reply)
            wanted, result = said.get("task"), UNFINISHED
            answered = not wanted and said.first("answer") is not None
            if answered:
                break
            if wanted:
                seen, result = await self._execute(world, lm, log, seen, documents.strip(), wanted)
            if seen.done:
                break
            history.append((wanted, result))
            context += [*reply.ids, *self._follow(f"Result: {result}")]
        log.reward(float(formed and (answered or seen.terminated)), part="format", of=reply)
        log.done(answered or seen.terminated)

    async def _execute(
        self, world: WorldHandle, lm: Lm, log: Log, seen: Observation, documents: str, task: str
    ) -> tuple[Observation, str]:
        """Carry out a task in a context of its own: what is seen then, and the result."""
        async with lm.stream(lm.agent) as child:
            speak = self.voice.begin(child, world, [Role(EXECUTOR)])
            context = self._begin(f"Role: executor\n{documents}\n{situation(seen)}\nTask: {task}")
            formed, ended, result = True, False, UNFINISHED
            for _ in range(self.config.executor_turns):
                reply = await speak(seen, context, partial(carry_out, task, seen))
                said = EXECUTED.parse(reply.text)
                action, formed = said.first("action"), formed and said.valid
                if action is None:
                    log.valid(said.valid, of=reply)
                    ended, result = said.first("answer") is not None, said.get("answer") or UNFINISHED
                    break
                seen = await world.step(action.text)
                log.turn(seen, of=reply)
                log.valid(seen.valid and said.valid, of=reply)
                if seen.done:
                    ended = seen.terminated
                    break
                context += [*reply.ids, *self._follow(seen.text)]
            log.reward(float(formed and ended), part="format", of=reply)
            wanted = amount_of(task)
            if wanted is not None and "inventory" in seen.info and not result.startswith(NEED):
                log.reward(float(seen.info["inventory"].get(wanted[1], 0) >= wanted[0]), part="task", of=reply)
        return seen, result

    def _begin(self, text: str) -> list[int]:
        return list(self.tokenizer.render([{"role": "user", "content": text}]))

    def _follow(self, text: str) -> list[int]:
        return self.tokenizer.follow([{"role": "user", "content": text}])

    # ---- its credit

    def rewards(self, turns: Turns) -> Tensor:
        """[episodes]: success, the planner's format, the mean of its executors' (0 without any), less the penalties."""
        c, episodes, planner = self.config, turns.tree["episode"], roles(turns) == PLANNER
        formats = part(turns, "format")

        def formed(mine: Tensor) -> Tensor:
            known = mine & formats.isfinite()
            return episodes.reduce(torch.where(known, formats, 0)) / episodes.reduce(known).clamp(min=1)

        won = (turns.terminated & (episodes.reduce(turns.reward) > 0)).to(formats.dtype)
        invalid = episodes.reduce((~turns.valid).to(formats.dtype))
        earned = won - 0.5 - c.invalid_penalty * invalid
        return c.success_weight * earned + c.format_weight * (formed(planner) + formed(~planner))

    def credit(self, turns: Turns, values: Mapping[str, Tensor]) -> Credit:
        """The planner's advantage on all tokens of an episode, or executors' own."""
        streams = Spans.by_key(turns.record.calls.stream[turns.calls])
        group, episode = (streams.reduce(turns.tree[level].ids, "max") for level in ("group", "episode"))
        rows = SpanTree({"group": Spans.by_key(group), "episode": (Spans.by_key(episode), "group")})
        planner = streams.reduce(roles(turns), "max") == PLANNER
        done = part(turns, "task")
        known = streams.reduce(done.isfinite()) > 0
        credit = peco(
            rows,
            reward=rows["episode"].expand(self.rewards(turns)),
            planner=planner,
            task_reward=streams.reduce(done.nan_to_num(0.0)) if self.config.verify else None,
            verified=known if self.config.verify else None,
        )
        spread = credit.expand(streams).expand(turns.tokens)
        return Credit(spread.advantage, weight=self._weights(turns), terms=spread.terms)

    def _weights(self, turns: Turns) -> Tensor:
        """[M]: the weights of the roles' tokens."""
        c, role = self.config, turns.tokens.expand(roles(turns))
        weight = torch.zeros(turns.tokens.size)
        for code, given in ((PLANNER, c.planner_weight), (EXECUTOR, c.executor_weight)):
            mine = role == code
            share = len(role) / (2 * int(mine.sum())) if c.balanced and bool(mine.any()) else 1.0
            weight = torch.where(mine, given * share, weight)
        return weight

    def facts(self, turns: Turns) -> Mapping[str, Tensor]:
        """Executors and planner turns of an episode, formats that were kept, tasks that were done, planner's tokens."""
        planner, formats, tasks = roles(turns) == PLANNER, part(turns, "format"), part(turns, "task")
        episodes = turns.tree["episode"].n
        streams = turns.record.calls.stream[turns.calls][~planner].unique()
        return {
            "reward": self.rewards(turns).mean(),
            "planner/turns": planner.sum() / episodes,
            "planner/format": _mean(formats[planner]),
            "planner/tokens": turns.tokens.lengths[planner].sum() / episodes,
            "executor/count": torch.tensor(len(streams) / episodes),
            "executor/format": _mean(formats[~planner]),
            "executor/done": _mean(tasks[~planner]),
        }

    @classmethod
    def wording(cls, turn: Turn) -> Sequence[str]:
        """Role prompts, tasks, results and amounts."""
        goal = turn.before.text.rpartition("\n")[2]
        numbers = " ".join(map(str, range(1, MOST + 1)))
        prompts = ("Role: planner", f"Role: executor\n{situation(turn.before)}\nTask: craft 1 stick", "Result: done")
        answers = (write("answer", f"{NEED}1 stick"), write("answer", "not needed"), UNFINISHED)
        return *prompts, *answers, numbers, write("task", first_task(turn.before, goal)), write("action", turn.action)


def situation(seen: Observation) -> str:
    """What an executor is told of how things stand: the inventory, or what the world said last."""
    if "inventory" not in seen.info:
        return seen.text
    held = ", ".join(f"{count} {item}" for item, count in sorted(seen.info["inventory"].items()))
    return f"Inventory: {held or 'nothing'}"


def roles(turns: Turns) -> Tensor:
    """int64 [C]: PLANNER or EXECUTOR."""
    return turns.record.items.label["role"][turns.items][turns.tokens.starts]


def part(turns: Turns, name: str) -> Tensor:
    """[C]: a part of the reward, NaN where it was not evaluated."""
    column = turns.record.calls.part.get(name)
    return torch.full_like(turns.reward, torch.nan) if column is None else column[turns.calls]


def slope(run: Evaluated, counts: Sequence[int] = COUNTS) -> np.ndarray:
    """Points of success for each unit of ln(1 + distractors), over kinds with these numbers of them, [kind, episode].

    It is the slope of the least-squares line. This is linear in the successes: each is weighted so that the mean of all
    is the slope.
    """
    scores, found = _scores(run, counts)
    x = np.log1p(found)
    x = x - x.mean()
    return scores * (len(x) * x / (x @ x))[:, None]


def success_at(run: Evaluated, count: int) -> np.ndarray:
    """Success in points with this number of distractors, [kind, episode]."""
    return _scores(run, (count,))[0]


def tokens_read(run: Evaluated) -> np.ndarray:
    """Millions of tokens that the episodes of the training read and emitted, []."""
    return np.array(run.evaluations[-1]["trained_tokens"] / 1e6)


def _scores(run: Evaluated, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(success in points [k, episode], distractors [k]) of the kinds with one of these numbers, at the end of the run.

    Of the last evaluation alone: an arm that reads more in an iteration has fewer of them, so that its last three would
    reach further back.
    """
    tasks = run.evaluations[-1]["tasks"]
    found = {kind: int(kind.partition("-")[2]) for kind in tasks if kind.partition("-")[2] in map(str, counts)}
    if {*found.values()} != {*counts}:
        raise DataError(f"{getattr(run, 'path', 'run')}: no evaluation with each of {tuple(counts)} distractors")
    return 100.0 * np.array([tasks[kind] for kind in found], dtype=float), np.array(list(found.values()))


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.agents.recipes import arm_of, recipe

    config = recipe(CoDA.Config, "textcraft", "published" if full else "cpu")
    coda, flat = arm_of(config), arm_of(flat_of(config))
    at: dict[int, Statistic] = {count: partial(success_at, count=count) for count in (*COUNTS, PROBE)}
    source = "arXiv 2512.12716, growth of the context; on recipes in the place of passages, with a small model"
    return (
        Claim(
            id="slope-above-flat",
            text="Trained on the same mixture of 0, 10 and 30 distractor recipes and on as many tokens, CoDA loses "
            "fewer points of success than the flat agent for each unit of ln(1 + distractors), by 1 or more.",
            method=Score(coda, slope),
            baseline=Score(flat, slope),
            test=Above(1),
            source=source,
            also=tuple(Score(arm, each) for arm in (coda, flat) for each in (*at.values(), tokens_read)),
        ),
        Claim(
            id="above-flat-at-30",
            text="Among 30 distractor recipes CoDA succeeds more often than the flat agent, by 10 points or more.",
            method=Score(coda, at[30]),
            baseline=Score(flat, at[30]),
            test=Above(10),
            source=source,
        ),
    )


def flat_of(config: CoDA.Config) -> LanguageConfig:
    """The flat agent, GRPO, in the same world, with the same model and as many demonstrations and tokens."""
    from echelon.systems.agents.grpo import GRPO

    return GRPO.Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(LanguageConfig)})


def _mean(column: Tensor) -> Tensor:
    """Of what is known, 0 if nothing is."""
    known = column[column.isfinite()]
    return known.mean() if len(known) else torch.tensor(0.0)
