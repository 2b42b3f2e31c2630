"""What a trainable language agent is: a program, levels, credit and loss terms; and how its turns are laid out.

A system's file adds what its paper adds. `episode` is the program that acts; in imitation the very same program runs
with the scripted expert's voice, so that warm start and reinforcement see one format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.errors import UsageError
from echelon.language.engine import Source
from echelon.language.program import Channel, LevelSpec, Lm, Log, Reply, WorldHandle
from echelon.language.record import Record, Use
from echelon.language.words import Tokenizer
from echelon.language.worlds.world import Observation, Turn
from echelon.spans import Spans, SpanTree
from echelon.training.language.config import LanguageConfig
from echelon.training.trainer import Trainable, Trainer

Compose = Callable[[str], str]


class Speak(Protocol):
    """One turn of the agent."""

    def __call__(
        self, seen: Observation, context: Sequence[int], compose: Compose, forced: Sequence[int] = ()
    ) -> Awaitable[Reply]:
        """seen: what is answered. context: its ids. compose: how the program words an expert's action.

        forced: ids that the turn begins with, not of the voice's choice; a demonstration has them in its context.
        """


class Voice(Protocol):
    """Where the texts of an episode come from."""

    def begin(self, lm: Lm, world: WorldHandle, labels: Sequence[Channel] = ()) -> Speak:
        """The voice of one episode; `labels`: channels that label the tokens of its turns."""


@dataclass(frozen=True)
class Model:
    """The language model speaks."""

    max_tokens: int

    def begin(self, lm: Lm, world: WorldHandle, labels: Sequence[Channel] = ()) -> Speak:
        """Sample every turn."""

        async def speak(
            seen: Observation, context: Sequence[int], compose: Compose, forced: Sequence[int] = ()
        ) -> Reply:
            return await lm(context, max_tokens=self.max_tokens, forced=forced, labels=labels)

        return speak


@dataclass(frozen=True)
class Expert:
    """The world's scripted expert speaks, with slips: now and then another admissible action, at random."""

    tokenizer: Tokenizer
    slips: float
    reading: bool
    """Whether the world's text is a target too: how a model without any language learns to read."""

    def begin(self, lm: Lm, world: WorldHandle, labels: Sequence[Channel] = ()) -> Speak:
        """Record every turn as a demonstration."""
        rng, read = lm.generator(), 1

        async def speak(
            seen: Observation, context: Sequence[int], compose: Compose, forced: Sequence[int] = ()
        ) -> Reply:
            nonlocal read
            if self.reading:
                await lm.tell(context[:read], context[read:], "world")
            action = await world.expert()
            others = [other for other in seen.admissible if other != action]
            if others and (action is None or rng.random() < self.slips):
                action = others[int(rng.integers(len(others)))]
            if action is None:
                raise UsageError("the expert is at a loss, and the world lists no admissible action")
            text = [*self.tokenizer.encode(compose(action)), self.tokenizer.eos]
            given = [*context, *forced]
            read = len(given) + len(text)
            return await lm.tell(given, text, labels=labels)

        return speak


@dataclass(frozen=True)
class Turns:
    """The turns of a record that are trained: calls that learners made for their episodes, in order. C turns, M items.

    tree: `group` > `episode` over the C turns. tokens: the M items as turns. items: int64 [M], their place in the
    record. calls: int64 [C]. reward, valid, state: [C]. record: what they are the turns of.
    """

    record: Record
    calls: Tensor
    tree: SpanTree
    tokens: Spans
    items: Tensor
    reward: Tensor
    valid: Tensor
    state: Tensor

    @classmethod
    def of(cls, record: Record) -> Turns:
        """Calls of faulty episodes and empty ones are left out."""
        calls, episodes = record.calls, record.episode
        use = (calls.use == Use.ACTED) & record.streams.learner[calls.stream] & (record.length > 0)
        chosen = record.choose(use & (record.episodes.fault[episodes] < 0))
        episode = episodes[chosen]
        tree = SpanTree(
            {"group": Spans.by_key(record.episodes.group[episode]), "episode": (Spans.by_key(episode), "group")}
        )
        return cls(
            record=record,
            calls=chosen,
            tree=tree,
            tokens=Spans.from_lengths(record.length[chosen]),
            items=record.items_of(chosen),
            reward=calls.reward[chosen],
            valid=calls.valid[chosen],
            state=calls.state[chosen],
        )

    @property
    def terminated(self) -> Tensor:
        """bool, one an episode of the tree: whether it ended by itself; the others were cut off."""
        last = self.calls[self.tree["episode"].ends]
        return self.record.episodes.terminated[self.record.episode[last]]


class LanguageAgent(Trainable, ABC):
    """Base of language agents. It holds no weights: those are the run's."""

    Config: ClassVar[type[LanguageConfig]]
    levels: ClassVar[tuple[LevelSpec, ...]]
    """The hierarchy, top level first."""
    form: ClassVar[str]
    """Name of the format of its texts; agents of one form share a warm start."""
    tags: ClassVar[tuple[str, ...]] = ()
    """Marks in its texts that are one token each in a vocabulary of words."""
    heads: tuple[str, ...] = ()
    """Columns of its critic; none for agents without one."""

    def __init__(self, config: Any, tokenizer: Tokenizer, voice: Voice):
        self.config, self.tokenizer, self.voice = config, tokenizer, voice

    @classmethod
    def trainer(cls) -> type[Trainer]:
        """The loop of language agents."""
        from echelon.training.language.loop import LanguageRun

        return LanguageRun

    @abstractmethod
    async def episode(self, task: Any, world: WorldHandle, lm: Lm, log: Log) -> None:
        """The program of one episode."""

    @abstractmethod
    def credit(self, turns: Turns, values: Mapping[str, Tensor]) -> Credit:
        """The credit of the turns' items, [M]. values: head → [M], what the critic said just before each item.

        Targets of a head are finite at the items before which it is to be trained, NaN at the others.
        """

    def trained(self, turns: Turns, credit: Credit) -> Tensor:
        """bool [M]: the items of the policy's loss, over which it is averaged; forced ones are never among them."""
        return sampled(turns.record, turns)

    def facts(self, turns: Turns) -> Mapping[str, Tensor]:
        """Further metrics of an iteration."""
        return {}

    @classmethod
    def wording(cls, turn: Turn) -> Sequence[str]:
        """What its texts say around an expert's turn beside the world's own words, for the vocabulary."""
        return ()


def over_items(turns: Turns, column: Tensor, size: int, rest: float = 0.0) -> Tensor:
    """A column of the turns' items [M] on all `size` items of the record; `rest` elsewhere."""
    return torch.full((size,), rest, dtype=column.dtype).index_copy_(0, turns.items, column)


def at_items(turns: Turns, column: Tensor, places: Tensor) -> Tensor:
    """A column of the turns [C] at one of the M items of each, `places` int64 [C]; NaN at the other items, [M]."""
    return column.new_full((turns.tokens.size,), torch.nan).index_copy_(0, places, column)


def sampled(record: Record, turns: Turns) -> Tensor:
    """bool [M]: items that the model chose; forced ones are not trained."""
    return record.items.source[turns.items] == Source.SAMPLED
