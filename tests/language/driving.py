"""What tests of the driver share: a tokenizer of characters, a script, programs, and what makes two records equal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from odd_worlds import make, task

from echelon.language.driver import Driver, Phase, Settings, Start
from echelon.language.engine import Request, ScriptedEngine, uniforms
from echelon.language.program import LevelSpec, ScoreRequest, gather
from echelon.language.record import Record

BOS, EOS = 2, 3
LEVELS = (LevelSpec("segment", span="begin"), LevelSpec("turn"))


class Characters:
    """A token a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int], control: bool = True) -> str:
        return "".join(chr(token) for token in ids if control or token > EOS)

    def offsets(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        return self.decode(ids), [(place, place + 1) for place in range(len(ids))]

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [BOS, *self.encode("".join(f"{message['role']}: {message['content']}\n" for message in messages))]


def babble(request: Request) -> list[int]:
    """One to five letters that depend on the seed and on the prompt."""
    drawn = uniforms(request.seed, 1000, 6)
    shift = sum(request.context) % 7
    return [97 + (int(20 * u) + shift) % 26 for u in drawn[: 1 + int(5 * drawn[5])]]


class Lengths:
    """A scorer that knows the lengths of what it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[dict[str, np.ndarray]]:
        self.batches.append(len(requests))
        return [{name: self._one(request, name) for name in request.want} for request in requests]

    def _one(self, request: ScoreRequest, name: str) -> np.ndarray:
        size = len(request.target)
        if name == "argmax":
            return np.arange(size)
        if name == "hidden:0":
            return np.full((size, 2), len(request.context), dtype=np.float32)
        return -np.arange(1.0, size + 1) / len(request.context)


async def turns(task: Any, world: Any, lm: Any, log: Any) -> int:
    """One call a step, the prompt rewritten every time."""
    seen, count = await world.reset(task), 0
    log.begin("segment")
    while not seen.done:
        log.state(seen.state)
        reply = await lm([{"role": "user", "content": seen.text}], max_tokens=6)
        seen = await world.step(reply.text)
        log.turn(seen)
        if reply.text < "f":
            log.begin("segment")
        count += 1
    return count


async def team(task: Any, world: Any, lm: Any, log: Any) -> tuple[str, ...]:
    """A planner whose executors run in parallel, each with calls of its own; probes, forced text, a frozen judge."""
    seen = await world.reset(task)
    plan = await lm(seen.text, agent="planner", forced="<p>", max_tokens=12)

    async def execute(part: str) -> str:
        async with lm.stream("executor", of=plan) as child:
            first = await child(f"do {part}", stop=["c"])
            if first.text > "m":
                await child.score(f"did {part}", first.ids, want=("logp", "hidden:0"))
            drawn = child.generator().random()
            second = await child([*child.tokenizer.encode(f"do {part}"), *first.ids, *f"{drawn:.3f}".encode()])
            return (await gather(child(second.ids), child(f"fix {second.text}", parent=second)))[1].text

    texts = await gather(*(execute(letter) for letter in plan.text[3:]), world.step(plan.text))
    *done, seen = texts
    log.turn(seen, of=plan)
    judge = await lm.score("judge", "".join(done) or "-", want=("logp", "argmax"), agent="judge")
    log.reward(float(judge["logp"].mean()), part="judge", of=plan)
    shown = await lm.tell("show", "a", use="target")
    log.valid(len(done) > 1, of=shown)
    log.done(terminated=len(done) > 2)
    return tuple(done)


def starts(count: int, kinds: Mapping[int, str] | None = None, group: int = 2) -> list[Start]:
    """Episodes of the odd world, `group` a group; those in `kinds` go wrong."""
    return [Start(i, i // group, task(i, (kinds or {}).get(i, "fine"))) for i in range(count)]


def scripted() -> ScriptedEngine:
    """Babbles."""
    return ScriptedEngine(babble, eos=EOS)


def drive(
    program: Callable[..., Any],
    begun: Sequence[Start],
    *,
    engine: Any = None,
    scorer: Any = None,
    workers: int = 0,
    limit_s: float = 30.0,
    options: Mapping[str, Any] | None = None,
    journal: Any = None,
    report: Any = None,
    versions: Mapping[str, int] | None = None,
    **settings: Any,
) -> Phase:
    """A rollout with the helpers above."""
    made = Settings(**{"run": 5, "max_tokens": 8, "tolerate": 1.0, **settings})
    with Driver(
        engine or scripted(),
        Characters(),
        made,
        scorer=scorer or Lengths(),
        make=make,
        options=options,
        workers=workers,
        limit_s=limit_s,
    ) as driver:
        return driver.rollout(program, begun, levels=LEVELS, journal=journal, report=report, versions=versions)


def saved(record: Record) -> tuple[bytes, bytes]:
    """The files that it makes."""
    with tempfile.TemporaryDirectory() as folder:
        record.save(Path(folder) / "r")
        return (Path(folder) / "r.safetensors").read_bytes(), (Path(folder) / "r.json").read_bytes()


def assert_same(left: Record, right: Record) -> None:
    """Two records, bit for bit."""
    assert repr(left) == repr(right)
    assert saved(left) == saved(right)


def without(record: Record, uids: Sequence[int]) -> Record:
    """The record of the other episodes."""
    return record.select(~torch.isin(record.episodes.uid, torch.tensor(uids)))
