"""What the driver keeps of one episode while its program runs: streams, finished calls, marks for the next call."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from echelon.errors import EchelonError, UsageError, unknown
from echelon.language._tables import Use
from echelon.language.engine import SEED_BITS, End, Request, Sample, Source
from echelon.language.words import Message, Tokenizer
from echelon.language.worlds.world import Observation

Ids = tuple[int, ...]
Messages = Sequence[Message]


class ContextTooLong(EchelonError):
    """A prompt leaves no room for an answer within the model's context."""


class Channel(Protocol):
    """Labels of tokens: a pure function of the ids of one call."""

    @property
    def name(self) -> str:
        """The record's `label.<name>`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the codes 0, 1, … mean; -1 is no label."""

    def __call__(self, ids: Ids) -> Sequence[int]:
        """One code a token."""


@dataclass(frozen=True)
class Start:
    """One episode to be run."""

    uid: int
    """Unique in everything that is ever joined; the seeds of its calls come from it."""
    group: int = 0
    """Episodes to be compared share it."""
    task: Any = None
    """Given to the program; a `Task` where there is a world."""
    kind: str = ""
    """Kind of task, for tables and curricula; by default that of the `Task`."""
    seed: int = 0
    """Of the task, kept in the record; 0: that of the `Task`."""
    origin: tuple[int, int, int] = (-1, -1, -1)
    """Restart from: (uid of the episode, call counted inside it, items of that call that are kept)."""


@dataclass(frozen=True)
class Settings:
    """How episodes are run; what a call does not say itself is taken from here."""

    run: int = 0
    """Identity of the run: one of the four keys of every call's seed."""
    batch: int = 32
    """Requests given to the engine at once, at most."""
    at_once: int | None = None
    """Episodes open at the same time, at most; None: all of them."""
    max_tokens: int = 256
    """Emitted by one call, at most."""
    temperature: float = 1.0
    context: int | None = None
    """Tokens that the model takes, answer included; None: no limit."""
    awaits: int = 100_000
    """Operations of one episode after which its program counts as endless."""
    tolerate: float = 0.5
    """Share of episodes that may be closed by faults; above it the rollout raises."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Agent → the engine's name of its weights, where these differ (roles that share one model)."""


@dataclass(eq=False)
class Stream:
    """One decision maker's time line."""

    agent: str
    parent_call: int
    learner: bool
    sampled: int = 0
    """Calls made so far that have a seed."""
    asked: int = 0
    """Operations so far."""
    last: int = -1
    """Number of its last served call."""


@dataclass(eq=False)
class Call:
    """One call: `sample` is None until it is served."""

    stream: int
    context: Ids
    """What its output is scored under."""
    given: Ids
    """What it is sampled under."""
    seed: int
    temperature: float
    use: Use
    parent: int
    obs_text: str
    channels: tuple[Channel, ...]
    sample: Sample | None = None
    source: tuple[Source, ...] = ()
    out_text: str = ""
    labels: dict[str, Ids] = field(default_factory=dict)
    call_labels: dict[str, int] = field(default_factory=dict)
    state: str | None = None
    valid: bool = True
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    begin: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class ScoreRequest:
    """One text to be scored, not sampled."""

    context: Ids
    target: Ids
    want: tuple[str, ...] = ("logp",)
    """What to compute of each token of `target`: logp, entropy, argmax, value, …: what the scorer knows."""
    agent: str = "policy"


@dataclass(eq=False, kw_only=True)
class Operation:
    """What a fibre of the program waits for."""

    number: int
    """Counted inside the episode, in the order in which the program asks: the same in every run."""


@dataclass(eq=False, kw_only=True)
class Emit(Operation):
    """A call. `ready`: its sample where the program dictates all of it and there is nothing to sample."""

    stream: int
    order: int
    request: Request
    call: Call
    ready: Sample | None = None


@dataclass(eq=False, kw_only=True)
class Measure(Operation):
    """A text to be scored; `call` is its row in the record, None if it leaves none."""

    stream: int
    order: int
    request: ScoreRequest
    call: Call | None


@dataclass(eq=False, kw_only=True)
class Act(Operation):
    """A method of the episode's world."""

    method: str
    arguments: tuple[Any, ...]


class Episode:
    """One episode's state; `lm`, `world` and `log` of its program write to it."""

    def __init__(self, start: Start, settings: Settings, tokenizer: Tokenizer, levels: Mapping[str, str]):
        """`levels`: level → agent whose next call its `begin` marks."""
        self.start, self.settings, self.tokenizer, self.levels = start, settings, tokenizer, levels
        self.streams: list[Stream] = []
        self.calls: list[Call] = []
        self.asked = 0
        self.begin: set[str] = set()
        self.state: str | None = None
        self.obs_text = ""
        self.seen: Observation | None = None
        self.terminated: bool | None = None
        self.fault: End | None = None
        self.message = ""
        self.result: Any = None

    def number(self) -> int:
        """Number of the next operation. `UsageError` for a program that seems to be endless."""
        if self.asked >= self.settings.awaits:
            raise UsageError(f"the episode awaited {self.asked} answers; is it endless? (Settings.awaits)")
        self.asked += 1
        return self.asked - 1

    def open_stream(self, agent: str, parent_call: int, learner: bool) -> int:
        """Number of a new stream."""
        self.streams.append(Stream(agent, parent_call, learner))
        return len(self.streams) - 1

    def mark(self, call: Call) -> None:
        """Hand the marks that wait for the next call to `call`; a probe takes none."""
        if call.use is Use.PROBE:
            return
        agent = self.streams[call.stream].agent
        call.begin = {level for level in self.begin if self.levels[level] == agent}
        self.begin -= call.begin
        call.state, self.state = self.state, None
        call.obs_text = call.obs_text or self.obs_text
        self.obs_text = ""

    def finish(self, call: Call, sample: Sample, forced: int = 0) -> int:
        """Keep a served call and return its number. forced: tokens at its beginning, of a text that was not sampled."""
        call.sample = sample
        if sample.source is Source.SAMPLED:
            call.source = tuple(Source.FORCED if math.isnan(value) else Source.SAMPLED for value in sample.logp)
        else:
            call.source = (Source.FORCED,) * forced + (sample.source,) * (len(sample.ids) - forced)
        call.out_text = self.tokenizer.decode(sample.ids, control=False)
        call.labels = {channel.name: codes(channel, sample.ids) for channel in call.channels}
        self.streams[call.stream].last = len(self.calls)
        self.calls.append(call)
        return len(self.calls) - 1

    def ended(self) -> bool:
        """Whether it ended in a terminal state, as the program said or else as its world did."""
        if self.terminated is not None:
            return self.terminated
        return self.seen is None or self.seen.terminated

    def close(self, fault: End, message: str) -> None:
        """Note what closed the episode."""
        self.fault, self.message = fault, message

    def ids(self, prompt: Sequence[int] | Messages | str) -> Ids:
        """Ids of a prompt: ids, messages (by the chat template), or a text (as it is)."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self.tokenizer.render(prompt)  # type: ignore[arg-type]
        else:
            ids = prompt  # type: ignore[assignment]
        if not len(ids):
            raise UsageError(
                "the prompt is empty; a text needs at least one token before it, such as the tokenizer's BOS"
            )
        return to_ids(ids, "the prompt")

    def room(self, context: Ids, max_tokens: int | None, needed: int = 1) -> int:
        """Tokens that a call may emit after `context`. ContextTooLong if not even `needed` fit."""
        wanted = self.settings.max_tokens if max_tokens is None else max_tokens
        if wanted < max(needed, 1):
            raise UsageError(f"max_tokens is {wanted}; this call emits at least {max(needed, 1)}")
        limit = self.settings.context
        if limit is None:
            return wanted
        if len(context) + max(needed, 1) > limit:
            raise ContextTooLong(
                f"the prompt has {len(context)} tokens and the answer needs at least {max(needed, 1)}, but the model "
                f"takes {limit}; shorten the history or the observation"
            )
        return min(wanted, limit - len(context))

    def level(self, name: str) -> str:
        """`name`, if it is a level. `UsageError` otherwise."""
        if name not in self.levels:
            raise unknown("level", name, self.levels)
        return name


def codes(channel: Channel, ids: Ids) -> Ids:
    """The codes of one call. `UsageError` unless there is one a token and each is a label or -1."""
    found = tuple(int(code) for code in channel(ids))
    if len(found) != len(ids) or any(not -1 <= code < len(channel.labels) for code in found):
        raise UsageError(
            f"the channel '{channel.name}' gave {len(found)} codes for {len(ids)} tokens, or one that is not in "
            f"-1..{len(channel.labels) - 1}"
        )
    return found


def to_ids(tokens: Sequence[int], what: str) -> Ids:
    """Plain ints. `UsageError` naming the first entry that is no token id."""
    ids = tuple(tokens)
    if set(map(type, ids)) <= {int} and min(ids, default=0) >= 0:
        return ids
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int | np.integer) or token < 0:
            raise UsageError(f"{what} holds {token!r}; token ids are integers from 0")
    return tuple(map(int, ids))


def call_seed(run: int, uid: int, stream: int, call: int) -> int:
    """Seed of one call, in [0, 2^63): upper 63 bits of the little-endian BLAKE2b-64 of the four int64 little-endian.

    stream, call: counted inside the episode and the stream; call -1 is the stream's own generator.
    """
    packed = struct.pack("<4q", run, uid, stream, call)
    digest = hashlib.blake2b(packed, digest_size=8, person=b"echelon.call").digest()
    return int.from_bytes(digest, "little") >> (64 - SEED_BITS)
