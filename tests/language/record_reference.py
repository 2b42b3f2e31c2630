"""Random language episodes as plain Python, a naive record made of them by loops, and how to build the real one."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from echelon.language.engine import End, Source
from echelon.language.record import EpisodeBuilder, Record, RecordBuilder, Use

NAN = math.nan


@dataclass
class Stream:
    agent: str
    parent_call: int
    learner: bool
    order: tuple[int, ...]


@dataclass
class Call:
    stream: int
    context: list[int]
    output: list[int]
    source: list[int]
    logp: list[float]
    more: dict[str, Any] = field(default_factory=dict)  # keyword arguments of EpisodeBuilder.call
    given: list[int] | None = None
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Episode:
    uid: int
    group: int
    task: str
    kind: str
    log: list[Stream | Call] = field(default_factory=list)
    terminated: bool = False
    origin: tuple[int, int, int] = (-1, -1, -1)

    @property
    def streams(self) -> list[Stream]:
        return [entry for entry in self.log if isinstance(entry, Stream)]

    @property
    def calls(self) -> list[Call]:
        return [entry for entry in self.log if isinstance(entry, Call)]


def episodes(seed: int, count: int = 5, words: int = 3) -> list[Episode]:
    """Few words, so that texts coincide: appended, rewritten, isolated, restarted and repeated contexts."""
    draw = random.Random(seed)
    made: list[Episode] = []
    for uid in draw.sample(range(50), draw.randint(1, count)):
        episode = Episode(uid, draw.randint(0, 1), f"task {uid % 2}", draw.choice("ab"))
        for number in range(draw.randint(1, 3)):
            opener = draw.randrange(len(episode.calls)) if episode.calls else -1
            episode.log.append(Stream(draw.choice(["planner", "worker"]), opener, draw.random() < 0.7, (-number,)))
            for _ in range(draw.randint(0, 4)):
                episode.log.append(call(draw, episode, made, words))
        episode.terminated = draw.random() < 0.5
        if made and draw.random() < 0.3 and made[-1].calls:
            episode.origin = (made[-1].uid, draw.randrange(len(made[-1].calls)), draw.randint(0, 2))
        made.append(episode)
    return made


def call(draw: random.Random, episode: Episode, before: list[Episode], words: int) -> Call:
    """The next call of a random stream of the episode."""

    def some(low: int, high: int) -> list[int]:
        return [draw.randrange(words) for _ in range(draw.randint(low, high))]

    stream = draw.randrange(len(episode.streams))
    mine = [other for other in episode.calls if other.stream == stream]
    anyone = [other for one in [*before, episode] for other in one.calls]
    how = draw.choice(["fresh", "append", "append", "rewrite", "restart", "again"])
    if how == "append" and mine:
        context = mine[-1].context + mine[-1].output + some(0, 3)
    elif how == "rewrite" and mine:
        context = mine[-1].context[: draw.randint(1, 4)] + some(1, 4)
    elif how == "restart" and anyone:
        origin = draw.choice(anyone)
        context = origin.context + origin.output[: draw.randint(0, 3)]
    elif how == "again" and anyone:
        context = draw.choice(anyone).context
    else:
        context = some(1, 6)
    output = some(0, 5)
    source = [draw.choice(list(Source)) for _ in output]
    logp = [-draw.random() if kind == Source.SAMPLED else NAN for kind in source]
    more: dict[str, Any] = {
        "end": draw.choice(list(End)),
        "use": draw.choice(list(Use)),
        "parent": draw.randrange(len(episode.calls)) if episode.calls and draw.random() < 0.3 else -1,
        "policy": draw.randrange(3),
        "valid": draw.random() < 0.8,
        "seed": draw.randrange(2**62),
        "temperature": draw.choice([0.5, 1.0]),
    }
    if draw.random() < 0.5:
        more["begin"] = {"segment": draw.random() < 0.5}
    if draw.random() < 0.5:
        more["labels"] = {"block": [draw.randrange(2) for _ in output], "role": draw.randrange(3)}
    if draw.random() < 0.5:
        more |= {"state": f"room {draw.randrange(3)}", "obs_text": "öbs", "out_text": f"out {draw.randrange(2)}"}
    if draw.random() < 0.3:
        more["values"] = {"critic": draw.random()}
    given = some(1, 4) if draw.random() < 0.2 else None
    parts = {"f1": draw.random()} if draw.random() < 0.5 else {}
    return Call(stream, context, output, source, logp, more, given, draw.randrange(3), parts)


def write(into: EpisodeBuilder, entry: Stream | Call) -> None:
    """What a driver would tell the builder."""
    if isinstance(entry, Stream):
        into.stream(entry.agent, entry.parent_call, entry.learner, entry.order)
        return
    number = into.call(
        entry.stream, entry.context, entry.output, entry.logp, entry.source, given=entry.given, **entry.more
    )
    into.reward(entry.reward, number)
    for name, value in entry.parts.items():
        into.part(name, value, number)


def build(script: list[Episode], draw: random.Random | None = None) -> Record:
    """The record; with `draw`, the episodes run side by side, in a random sequence of steps."""
    builder = RecordBuilder({"tokenizer": "none"})
    open_logs = []
    for one in draw.sample(script, len(script)) if draw else script:
        into = builder.episode(one.uid, one.group, one.task, one.kind, 7, one.origin)
        into.done(terminated=one.terminated)
        open_logs.append((into, list(one.log)))
    while any(log for _, log in open_logs):
        waiting = [(into, log) for into, log in open_logs if log]
        into, log = draw.choice(waiting) if draw else waiting[0]
        write(into, log.pop(0))
    return builder.build()


@dataclass
class Naive:
    """The sorted record as lists."""

    episodes: list[Episode]
    streams: list[tuple[int, Stream]]  # (episode row, stream)
    calls: list[tuple[int, Call]]  # (stream row, call)
    row: dict[int, list[int]]  # by uid: the row of each call as the episode numbers it

    @property
    def items(self) -> list[tuple[int, int]]:
        """(call row, token) of every item."""
        return [(row, token) for row, (_, one) in enumerate(self.calls) for token in range(len(one.output))]


def naive(script: list[Episode]) -> Naive:
    """Sorted by (group, uid), order of the stream, sequence of the calls."""
    sorted_episodes = sorted(script, key=lambda one: (one.group, one.uid))
    streams: list[tuple[int, Stream]] = []
    calls: list[tuple[int, Call]] = []
    row: dict[int, list[int]] = {}
    for place, one in enumerate(sorted_episodes):
        row[one.uid] = [-1] * len(one.calls)
        for stream in sorted(one.streams, key=lambda stream: stream.order):
            for number, made in enumerate(one.calls):
                if one.streams[made.stream] is stream:
                    row[one.uid][number] = len(calls)
                    calls.append((len(streams), made))
            streams.append((place, stream))
    return Naive(sorted_episodes, streams, calls, row)
