"""What an episode of a language agent sees: a program is a plain coroutine, and the driver answers what it awaits.

>>> async def episode(task, world, lm, log):
...     seen = await world.reset(task)
...     while not seen.done:
...         log.state(seen.state)
...         reply = await lm([{"role": "user", "content": seen.text}], max_tokens=40)
...         seen = await world.step(reply.text)
...         log.turn(seen)

A program may await `lm(...)`, `lm.score(...)`, the methods of `world`, `gather(...)`, and coroutines that await these;
it must depend on nothing but its arguments and their answers. What it returns is kept by the driver. Nothing it does
can disturb another episode: an error closes this one.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol

import numpy as np

from echelon.errors import UsageError, unknown
from echelon.language._fibres import Together, Wait
from echelon.language._play import (
    Act,
    Call,
    Channel,
    ContextTooLong,
    Emit,
    Episode,
    Ids,
    Measure,
    Messages,
    ScoreRequest,
    call_seed,
    to_ids,
)
from echelon.language._tables import Use
from echelon.language._worlds import check_arguments
from echelon.language.engine import End, Request, Sample
from echelon.language.words import Tokenizer
from echelon.language.worlds.world import Observation, Task

__all__ = [
    "Channel",
    "ContextTooLong",
    "LevelSpec",
    "Lm",
    "Log",
    "Program",
    "Reply",
    "ScoreRequest",
    "Scorer",
    "Scores",
    "WorldHandle",
    "gather",
]

Prompt = Sequence[int] | Messages | str
"""Token ids; or messages {"role", "content"}, rendered by the chat template; or a text, encoded as it is."""
Tokens = Sequence[int] | str
Purpose = Literal["acted", "proposed", "probe", "target"]
Scores = Mapping[str, np.ndarray]
"""What was wanted → [T, ...], one row a token of the target."""
Program = Callable[[Any, "WorldHandle", "Lm", "Log"], Coroutine[Any, Any, Any]]


class Scorer(Protocol):
    """Computes log-probs and the like of given texts."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """Answer the requests in one batch, in the same order."""


@dataclass(frozen=True)
class LevelSpec:
    """A level of the hierarchy, as data: for the viewer, the metrics and the owner masks of the credit."""

    name: str
    agent: str = "policy"
    """Whose calls it is decided in."""
    span: Literal["episode", "stream", "call", "begin", "label"] = "call"
    """How long a decision holds: "begin": from one `log.begin(name)` to the next; "label": one run of its labels."""
    owns: tuple[str, ...] = ()
    """Labels whose tokens are its decisions; (): all tokens of its agent."""


@dataclass(frozen=True)
class Reply:
    """The answer to one call."""

    ids: Ids
    text: str
    logp: tuple[float, ...]
    """As sampled; NaN where forced."""
    end: End
    labels: Mapping[str, Ids]
    """Channel → one code a token."""
    call: int
    """Number of the call in its episode: what `of=` and `parent=` mean."""


class Lm:
    """A handle on the language model: the streams of one context. `lm.stream(agent)` gives an isolated one."""

    def __init__(self, episode: Episode, agent: str = "policy", parent_call: int = -1, learner: bool = True):
        self._episode, self.agent, self._learner = episode, agent, learner
        self._parent_call = parent_call
        self._streams: dict[str, int] = {}
        self._closed = False

    async def __call__(
        self,
        prompt: Prompt,
        agent: str | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[int | str] | int | str = (),
        forced: Tokens = (),
        labels: Sequence[Channel] | None = None,
        use: Purpose = "acted",
        temperature: float | None = None,
        scored: Prompt | None = None,
        parent: Reply | None = None,
    ) -> Reply:
        """Sample a text after `prompt`.

        agent: another agent than the handle's; it gets a stream of its own here.
        stop: token ids that end the text, or texts that are one token each.
        forced: what the text begins with, not sampled.
        labels: channels that label its tokens.
        scored: the prompt under which the text will be trained, where that is not the one it is sampled under.
        parent: the reply that this one retries, expands or answers.

        Raises ContextTooLong if prompt and answer do not fit into the model's context.
        """
        episode = self._episode
        given, written = episode.ids(prompt), self._tokens(forced, "forced")
        most = episode.room(given, max_tokens, len(written))
        heat = episode.settings.temperature if temperature is None else temperature
        if not 0 <= heat < math.inf:
            raise UsageError(f"temperature is {heat}; it is finite and not negative (0: greedy)")
        ends = tuple(self._stop(one) for one in ([stop] if isinstance(stop, int | str) else stop))
        call = self._call(agent, given if scored is None else episode.ids(scored), given, use, labels, parent)
        stream, call.temperature = episode.streams[call.stream], heat
        call.seed = call_seed(episode.settings.run, episode.start.uid, call.stream, stream.sampled)
        stream.sampled += 1
        weights = episode.settings.weights.get(stream.agent, stream.agent)
        request = Request(given, most, call.seed, heat, ends, written, weights)
        ready = Sample(written, (math.nan,) * most, End.LENGTH) if len(written) == most else None
        return await self._emit(request, call, ready)

    async def tell(
        self,
        prompt: Prompt,
        text: Tokens,
        agent: str | None = None,
        *,
        labels: Sequence[Channel] | None = None,
        use: Purpose = "target",
        parent: Reply | None = None,
    ) -> Reply:
        """Record `text` as if the model had answered it: a demonstration. No engine is asked.

        `text` holds its end token, if it is to have one.
        """
        given, written = self._episode.ids(prompt), self._tokens(text, "the text")
        call = self._call(agent, given, given, use, labels, parent)
        request = Request(given, len(written), 0, forced=written)
        return await self._emit(request, call, Sample(written, (math.nan,) * len(written), End.EOS))

    async def score(
        self,
        prompt: Prompt,
        target: Tokens,
        want: Sequence[str] = ("logp",),
        agent: str | None = None,
        *,
        use: Purpose | None = "probe",
        labels: Sequence[Channel] | None = None,
        parent: Reply | None = None,
    ) -> Scores:
        """What the model thinks of `target` after `prompt`: one array [T, ...] for each thing wanted.

        use: the row it gets in the record; None: it leaves no trace.
        """
        episode = self._episode
        given, tokens = episode.ids(prompt), self._tokens(target, "the target")
        episode.room(given, len(tokens), len(tokens))
        call = None if use is None else self._call(agent, given, given, use, labels, parent)
        name = agent or self.agent
        request = ScoreRequest(given, tokens, tuple(want), episode.settings.weights.get(name, name))
        number, (stream, order) = episode.number(), self._turn(agent)
        return await Wait(Measure(number=number, stream=stream, order=order, request=request, call=call))

    def stream(self, agent: str, *, learner: bool = True, of: Reply | None = None) -> ChildStream:
        """`async with lm.stream("executor") as child`: a time line of its own, with a context of its own.

        learner: False for a frozen partner, whose tokens are not trained.
        of: the reply that opens it; by default the last one of this handle's agent.
        """
        own = self._streams.get(self.agent)
        last = -1 if own is None else self._episode.streams[own].last
        opener = of.call if of is not None else last if last >= 0 else self._parent_call
        return ChildStream(Lm(self._episode, agent, opener, learner))

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        return len(self._episode.ids(prompt))

    @property
    def tokenizer(self) -> Tokenizer:
        """What renders messages: for programs that build their ids themselves."""
        return self._episode.tokenizer

    @property
    def uid(self) -> int:
        """The episode's number: for programs in which the members of a group differ by design."""
        return self._episode.start.uid

    @property
    def context(self) -> int | None:
        """Tokens that the model takes, answer included; None: no limit."""
        return self._episode.settings.context

    def generator(self) -> np.random.Generator:
        """Random numbers of the program's own, the same in every run: a fresh generator, seeded like the calls."""
        stream = self._stream(None)
        return np.random.default_rng(call_seed(self._episode.settings.run, self._episode.start.uid, stream, -1))

    def close(self) -> None:
        """No calls from here on."""
        self._closed = True

    def _stream(self, agent: str | None) -> int:
        if self._closed:
            raise UsageError(f"this stream of '{self.agent}' is closed: its `async with` block has ended")
        name = agent or self.agent
        if name not in self._streams:
            self._streams[name] = self._episode.open_stream(name, self._parent_call, self._learner)
        return self._streams[name]

    def _turn(self, agent: str | None) -> tuple[int, int]:
        """The stream and the place in it of the next operation."""
        number = self._stream(agent)
        stream = self._episode.streams[number]
        stream.asked += 1
        return number, stream.asked - 1

    def _call(
        self,
        agent: str | None,
        context: Ids,
        given: Ids,
        use: Purpose,
        labels: Sequence[Channel] | None,
        parent: Reply | None,
    ) -> Call:
        if use.upper() not in Use.__members__:
            raise unknown("use", use, [member.name.lower() for member in Use])
        call = Call(
            stream=self._stream(agent),
            context=context,
            given=given,
            seed=0,
            temperature=1.0,
            use=Use[use.upper()],
            parent=-1 if parent is None else parent.call,
            obs_text="",
            channels=tuple(labels or ()),
        )
        self._episode.mark(call)
        return call

    async def _emit(self, request: Request, call: Call, ready: Sample | None) -> Reply:
        number, stream = self._episode.number(), self._episode.streams[call.stream]
        stream.asked += 1
        emit = Emit(number=number, stream=call.stream, order=stream.asked - 1, request=request, call=call, ready=ready)
        done = await Wait(emit)
        sample = call.sample
        assert sample is not None
        return Reply(sample.ids, call.out_text, sample.logp, sample.end, call.labels, done)

    def _tokens(self, tokens: Tokens, what: str) -> Ids:
        ids = self._episode.tokenizer.encode(tokens) if isinstance(tokens, str) else tokens
        return to_ids(ids, what)

    def _stop(self, token: int | str) -> int:
        ids = self._tokens(token if isinstance(token, str) else (token,), "stop")
        if len(ids) != 1:
            raise UsageError(f"stop {token!r} is {len(ids)} tokens here; a stop is one token")
        return ids[0]


class ChildStream:
    """Opens and closes a handle."""

    def __init__(self, lm: Lm):
        self._lm = lm

    async def __aenter__(self) -> Lm:
        return self._lm

    async def __aexit__(self, *error: object) -> None:
        self._lm.close()


class WorldHandle:
    """The episode's world; its methods are those of `World`, awaited."""

    def __init__(self, episode: Episode):
        self._episode = episode

    async def reset(self, task: Task | None = None) -> Observation:
        """Begin a task, by default the episode's."""
        return self._saw(await self._act("reset", self._episode.start.task if task is None else task))

    async def step(self, action: str) -> Observation:
        """Carry out one action, whatever the text is."""
        return self._saw(await self._act("step", action))

    async def snapshot(self) -> tuple[str, ...]:
        """What `restore` needs beside the task."""
        return await self._act("snapshot")

    async def restore(self, task: Task, actions: Sequence[str]) -> Observation:
        """Go to the situation of a snapshot."""
        return self._saw(await self._act("restore", task, tuple(actions)))

    async def expert(self) -> str | None:
        """The scripted expert's next action from here, None where it has none."""
        return await self._act("expert")

    async def _act(self, method: str, *arguments: Any) -> Any:
        check_arguments(method, arguments)
        return await Wait(Act(number=self._episode.number(), method=method, arguments=arguments))

    def _saw(self, seen: Observation) -> Observation:
        self._episode.seen, self._episode.obs_text = seen, seen.text
        return seen


class Log:
    """What the program says about the episode; `of` is the reply meant, by default the last call that acted."""

    def __init__(self, episode: Episode):
        self._episode = episode

    def begin(self, level: str, of: Reply | None = None) -> None:
        """A span of `level` begins with the next call of the level's agent, or with the reply `of`."""
        name = self._episode.level(level)
        if of is None:
            self._episode.begin.add(name)
        else:
            self._last(of).begin.add(name)

    def state(self, key: str, of: Reply | None = None) -> None:
        """The next call, or the reply `of`, is made in the state `key` (equal keys: the same state)."""
        if not isinstance(key, str):
            raise UsageError(f"the state's key is {key!r}; it is a string")
        if of is None:
            self._episode.state = key
        else:
            self._last(of).state = key

    def reward(self, value: float, part: str | None = None, of: Reply | None = None) -> None:
        """Add `value` to what the world has paid for the call; with `part`, set that part of its reward instead.

        `UsageError` unless it is a finite number. A part that is not known is not logged.
        """
        amount, call = to_reward(value), self._last(of)
        if part is None:
            call.reward += amount
        else:
            call.parts[part] = amount

    def valid(self, valid: bool, of: Reply | None = None) -> None:
        """Whether the world could take the call's text."""
        self._last(of).valid = bool(valid)

    def label(self, channel: str, code: int, of: Reply | None = None) -> None:
        """Label the call itself: `code` from 0, its meaning is the program's; -1: none."""
        if isinstance(code, bool) or not isinstance(code, int) or code < -1:
            raise UsageError(f"the label '{channel}' of a call is {code!r}; it is an integer from -1")
        self._last(of).call_labels[channel] = code

    def done(self, terminated: bool) -> None:
        """The episode ends in a terminal state, or (False) it is cut off.

        Without this: as the world's last observation says, cut off if that was no end; terminated without a world.
        """
        self._episode.terminated = bool(terminated)

    def turn(self, seen: Observation, of: Reply | None = None) -> None:
        """All that an observation says: reward and validity of the call, state of the next one, end of the episode."""
        self.reward(seen.reward, of=of)
        self.valid(seen.valid, of)
        if seen.state and not seen.done:
            self.state(seen.state)
        if seen.done:
            self.done(seen.terminated)

    def _last(self, of: Reply | None) -> Call:
        calls = self._episode.calls
        if of is not None:
            return calls[of.call]
        for call in reversed(calls):
            if call.use in (Use.ACTED, Use.TARGET):
                return call
        raise UsageError("no call has acted yet of which this could be said")


async def gather(*parts: Awaitable[Any]) -> list[Any]:
    """Run calls, streams or other coroutines of one episode in parallel; their results in the order given.

    The first error ends the others and is raised here.
    """
    return await Wait(Together(parts))


def to_reward(value: Any) -> float:
    """A finite number as a float. `UsageError` for anything else."""
    if not isinstance(value, Real | np.floating | np.integer | np.bool_) or not math.isfinite(value):
        raise UsageError(f"a reward is {value!r} ({type(value).__name__}); it is a finite number")
    return float(value)
