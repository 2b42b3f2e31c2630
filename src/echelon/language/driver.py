"""Runs the programs of many episodes side by side and serves what they ask in batches; makes a record of it all.

A round: every episode runs until it waits for the language model (worlds are asked meanwhile), then all that is waited
for is served, in the sequence (group, episode, stream, order), at most `Settings.batch` requests at once. No clock and
no batch size has a say in what happens, so that the record is the same for all of them, as far as the engine's logits
agree between batches.

A fault closes its episode and no other: the program raises or its prompt does not fit (ERROR), its world raises
(ERROR), hangs (TIMEOUT) or dies (KILLED), the engine raises on its request (ERROR). What the episode had done stays in
the record, marked by `episodes.fault`; `kept` gives its tokens weight 0. An engine that is down stops them all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from echelon.errors import EchelonError, UsageError
from echelon.language._fibres import Fibre, Fibres
from echelon.language._journal import (
    Journal,
    digest_of,
    fault_from_plain,
    fault_to_plain,
    sample_from_plain,
    sample_to_plain,
    scores_from_plain,
    scores_to_plain,
)
from echelon.language._measure import TextScorer
from echelon.language._play import Act, Emit, Episode, Measure, Operation, Settings, Start
from echelon.language._pool import WorldPool
from echelon.language._worlds import Fault, LocalWorlds, Make, WorldCall, Worlds
from echelon.language.engine import End, Engine, EngineDown, Request, Sample, Source
from echelon.language.program import LevelSpec, Lm, Log, Program, Scorer, Scores, WorldHandle
from echelon.language.record import Record, RecordBuilder
from echelon.language.words import Tokenizer
from echelon.language.worlds.world import Task
from echelon.language.worlds.world import make as make_world

__all__ = ["Driver", "EpisodeFault", "FaultLimit", "Phase", "Progress", "Settings", "Start", "TextScorer", "kept"]

Pending = tuple["_Running", Fibre, Any]
"""An episode, one of its fibres, and the operation which that waits for."""
T = TypeVar("T")


class FaultLimit(EchelonError):
    """More episodes were closed by faults than `Settings.tolerate` allows."""


@dataclasses.dataclass(frozen=True)
class EpisodeFault:
    """An episode that a fault has closed."""

    uid: int
    end: End
    message: str


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a rollout has come."""

    rounds: int
    """Of serving the language model."""
    done: int
    """Episodes that have ended."""
    total: int
    """Episodes in all."""
    calls: int
    """Texts emitted, those read back included."""
    replayed: int
    """Answers read back from the journal: texts, scores and faults of the engine."""
    tokens: int
    """Emitted by all calls."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a rollout has brought."""

    record: Record
    results: dict[int, Any]
    """uid → what its program returned, for episodes without a fault."""
    faults: tuple[EpisodeFault, ...]
    progress: Progress


class Driver:
    """Runs programs on one engine. A context manager, because worlds may live in worker processes."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        settings: Settings | None = None,
        *,
        scorer: Scorer | None = None,
        make: Make = make_world,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        workers: int = 0,
        limit_s: float = 30.0,
    ):
        """
        scorer: serves `lm.score`: `TextScorer` does.
        make: `make(name, **options[name])` builds a world; with workers, a function of an importable module.
        workers: processes for the worlds; 0: this one, where no time limit can be kept.
        limit_s: seconds that one call of a world may take in a worker.
        """
        self.engine, self.tokenizer, self.scorer = engine, tokenizer, scorer
        self.settings = Settings() if settings is None else settings
        if min(self.settings.batch, 1 if self.settings.at_once is None else self.settings.at_once) < 1:
            raise UsageError(f"batch is {self.settings.batch} and at_once {self.settings.at_once}; both are at least 1")
        self._worlds: Worlds = (
            WorldPool(make, options or {}, workers, limit_s) if workers else LocalWorlds(make, options or {})
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self._worlds.close()

    def rollout(
        self,
        program: Program,
        starts: Iterable[Start],
        *,
        levels: Sequence[LevelSpec] = (),
        versions: Mapping[str, int] | None = None,
        journal: str | os.PathLike[str] | None = None,
        meta: Mapping[str, Any] | None = None,
        report: Callable[[Progress], None] | None = None,
    ) -> Phase:
        """Run `program` once for each of `starts`.

        levels: what `log.begin` knows; kept in the record's meta, like the names of all labels.
        versions: of the weights, by the engine's name of them, for the record.
        journal: file in which finished calls are kept, and from which an interrupted rollout goes on: same arguments,
            same record, bit for bit if the engine's answers depend on the batches alone (not on what it has kept from
            earlier ones). Whoever calls removes it when the record is safe.
        meta: JSON-able facts for the record: run, tokenizer. They identify the journal, too.
        report: told about the progress after every round.

        Raises FaultLimit if too many episodes fail, and DataError for a journal of something else.
        """
        ordered = sorted(starts, key=lambda start: (start.group, start.uid))
        about = {**(meta or {}), "run": self.settings.run, "levels": [dataclasses.asdict(level) for level in levels]}
        book = None
        if journal is not None:
            digests = hashlib.sha256("".join(map(digest_of, ordered)).encode()).hexdigest()
            book = Journal(journal, {**about, "starts": digests, "versions": dict(versions or {})})
        phase = _Phase(self, program, ordered, levels, book)
        try:
            phase.run(report)
            return phase.close(versions or {}, about)
        finally:
            phase.stop()
            if book is not None:
                book.close()

    def _generate(self, requests: Sequence[Request]) -> list[Sample | Fault]:
        """Ask the engine."""
        served = _served(self.engine.generate, requests, "engine")
        return [
            one if isinstance(one, Fault) else _checked(request, one)
            for request, one in zip(requests, served, strict=True)
        ]

    def _score(self, requests: Sequence[Any]) -> list[Scores | Fault]:
        """Ask the scorer."""
        if self.scorer is None:
            return [Fault(End.ERROR, "lm.score needs a scorer: Driver(…, scorer=…)")] * len(requests)
        return _served(self.scorer.score, requests, "scorer")


def _served(serve: Callable[[Sequence[Any]], Sequence[Any]], requests: Sequence[Any], who: str) -> list[Any]:
    """Answers; where `serve` raises, ask for the halves, until the requests to blame are found: faults."""
    try:
        answers = list(serve(requests))
    except EngineDown:
        raise
    except Exception as error:  # whatever an engine raises costs the episodes whose requests it cannot serve
        if len(requests) == 1:
            return [Fault(End.ERROR, f"the {who} raised {type(error).__name__}: {error}")]
        half = len(requests) // 2
        first = _served(serve, requests[:half], who)
        try:
            return first + _served(serve, requests[half:], who)
        except EngineDown as down:
            before = {k: one for k, one in enumerate(first) if not isinstance(one, Fault)}
            raise EngineDown(str(down), before | {half + k: one for k, one in down.answered.items()}) from down
    if len(answers) != len(requests):
        raise UsageError(f"the {who} gave {len(answers)} answers to {len(requests)} requests")
    return answers


def kept(record: Record) -> Tensor:
    """float32 [N]: 0 at the items of episodes that a fault has closed, else 1: a factor of every loss's weights."""
    return (record.episodes.fault[record.episode[record.call]] < 0).float()


class _Running:
    """One open episode."""

    def __init__(self, start: Start, program: Program, driver: Driver, levels: Mapping[str, str]):
        self.episode = Episode(start, driver.settings, driver.tokenizer, levels)
        self.world = start.task.world if isinstance(start.task, Task) else ""
        coroutine = program(start.task, WorldHandle(self.episode), Lm(self.episode), Log(self.episode))
        self.fibres = Fibres(coroutine, (Emit, Measure, Act))

    @property
    def uid(self) -> int:
        return self.episode.start.uid

    def waiting(self, *kinds: type[Operation]) -> list[Pending]:
        """What it waits for."""
        return [(self, fibre, asked) for fibre, asked in self.fibres.waiting if isinstance(asked, kinds)]

    def fail(self, fault: Fault) -> None:
        """Close the episode."""
        if not self.fibres.done:
            self.episode.close(fault.end, fault.message)
            self.fibres.close()

    def world_call(self, act: Act) -> WorldCall:
        """What the worlds understand."""
        if act.method in ("reset", "restore"):
            self.world = act.arguments[0].world
        return WorldCall(self.uid, self.world, act.method, act.arguments)


class _Phase:
    """One rollout."""

    def __init__(
        self,
        driver: Driver,
        program: Program,
        starts: Sequence[Start],
        levels: Sequence[LevelSpec],
        journal: Journal | None,
    ):
        self.driver, self.program, self.journal, self.settings = driver, program, journal, driver.settings
        self.starts, self.levels, self.worlds = deque(starts), levels, driver._worlds
        self.total = len(starts)
        self.begins = {level.name: level.agent for level in levels if level.span == "begin"}
        self.open: list[_Running] = []
        self.ended: list[_Running] = []
        self.faulty: list[Episode] = []
        self.rounds = self.calls = self.replayed = self.tokens = 0

    def run(self, report: Callable[[Progress], None] | None) -> None:
        """Until no episode is left."""
        most = self.settings.at_once or self.total
        while self.starts or self.open:
            while self.starts and len(self.open) < most:
                self.open.append(_Running(self.starts.popleft(), self.program, self.driver, self.begins))
            self._settle()
            if not self._retire() or not self.starts:
                self._serve()
            if report is not None:
                report(self.progress())

    def progress(self) -> Progress:
        """How far it has come."""
        return Progress(self.rounds, len(self.ended), self.total, self.calls, self.replayed, self.tokens)

    def close(self, versions: Mapping[str, int], meta: dict[str, Any]) -> Phase:
        """The record and the rest."""
        episodes = sorted((done.episode for done in self.ended), key=lambda e: (e.start.group, e.start.uid))
        channels = {c.name: list(c.labels) for e in episodes for call in e.calls for c in call.channels}
        builder = RecordBuilder({**meta, "labels": dict(sorted(channels.items()))})
        for episode in episodes:
            _write(builder, episode, self.begins, versions)
        faults = [EpisodeFault(e.start.uid, e.fault, e.message) for e in episodes if e.fault is not None]
        results = {e.start.uid: e.result for e in episodes if e.fault is None}
        return Phase(builder.build(), results, tuple(faults), self.progress())

    def stop(self) -> None:
        """End the programs that still run."""
        for running in self.open:
            running.fibres.close()
            self.worlds.release(running.uid, broken=True)
        self.open.clear()

    def _settle(self) -> None:
        """Run all episodes, and ask their worlds, until every one waits for the language model or has ended."""
        while True:
            for running in self.open:
                running.fibres.run()
            acts = [pending for running in self.open for pending in running.waiting(Act)]
            if not acts:
                return
            for (running, fibre, _), answer in zip(acts, self._ask_worlds(acts), strict=True):
                if isinstance(answer, Fault):
                    running.fail(answer)
                elif not running.fibres.done:
                    running.fibres.answer(fibre, answer)

    def _retire(self) -> bool:
        """Take the episodes out that have ended; whether there were any."""
        ended = [running for running in self.open if running.fibres.done]
        self.open = [running for running in self.open if not running.fibres.done]
        for running in ended:
            episode = running.episode
            if running.fibres.failure is not None:
                episode.close(End.ERROR, running.fibres.failure)
            episode.result = running.fibres.result
            self.worlds.release(running.uid, broken=episode.fault is not None)
        self.ended += ended
        self.faulty += [running.episode for running in ended if running.episode.fault is not None]
        if len(self.faulty) > self.settings.tolerate * self.total:
            raise FaultLimit(
                f"{len(self.faulty)} of {self.total} episodes failed, more than the share {self.settings.tolerate:g} "
                f"that Settings.tolerate allows; the first, {self.faulty[0].start.uid}: {self.faulty[0].message}"
                + (" (the journal keeps faults, too: remove it to try again)" if self.journal else "")
            )
        return bool(ended)

    def _serve(self) -> None:
        """Answer everything that is waited for."""
        asked = [pending for running in self.open for pending in _in_order(running.waiting(Emit, Measure))]
        if not asked:
            return
        self.rounds += 1
        emits = [p for p in asked if isinstance(p[2], Emit) and p[2].ready is None]
        measures = [p for p in asked if isinstance(p[2], Measure)]
        answers: dict[int, Any] = {id(p[2]): p[2].ready for p in asked if isinstance(p[2], Emit)}
        for batch in _chunks(emits, self.settings.batch):
            answers |= self._ask(batch, self.driver._generate, sample_to_plain, sample_from_plain)
        for batch in _chunks(measures, self.settings.batch):
            answers |= self._ask(batch, self.driver._score, scores_to_plain, scores_from_plain)
        for running, fibre, operation in asked:
            answer = answers[id(operation)]
            if isinstance(answer, Fault):
                running.fail(answer)
            elif not running.fibres.done:
                self._deliver(running, fibre, operation, answer)

    def _deliver(self, running: _Running, fibre: Fibre, operation: Emit | Measure, answer: Any) -> None:
        """Write the call down and let the fibre go on with it."""
        episode = running.episode
        try:
            if isinstance(operation, Measure):
                if operation.call is not None:
                    target = operation.request.target
                    given = Sample(target, (math.nan,) * len(target), End.EOS, Source.SCORED)
                    episode.finish(operation.call, given)
            else:
                self.calls, self.tokens = self.calls + 1, self.tokens + len(answer.ids)
                answer = episode.finish(operation.call, answer, len(operation.request.forced))
        except Exception as error:  # from the program's own labels or tokenizer: raised where it waits
            running.fibres.answer(fibre, None, error)
        else:
            running.fibres.answer(fibre, answer)

    def _ask(
        self,
        batch: Sequence[Pending],
        serve: Callable[[Sequence[Any]], list[Any]],
        to_plain: Callable[[Any], dict[str, Any]],
        from_plain: Callable[[dict[str, Any]], Any],
    ) -> dict[int, Any]:
        """Answers by the operation's id: read back from the journal, or asked for and kept."""
        if self.journal is None:
            served = serve([asked.request for _, _, asked in batch])
            return {id(asked): answer for (_, _, asked), answer in zip(batch, served, strict=True)}
        answers: dict[int, Any] = {}
        missing = []
        for running, _, asked in batch:
            key = (running.uid, asked.number), digest_of(asked.request)
            known = self.journal.find(*key)
            if known is None:
                missing.append((asked, key))
            else:
                self.replayed += 1
                answers[id(asked)] = fault_from_plain(known) or from_plain(known)
        try:
            served = serve([asked.request for asked, _ in missing]) if missing else []
        except EngineDown as down:
            self.journal.append([(*missing[k][1], to_plain(answer)) for k, answer in sorted(down.answered.items())])
            raise
        plain = [fault_to_plain(answer) if isinstance(answer, Fault) else to_plain(answer) for answer in served]
        self.journal.append([(*key, entry) for (_, key), entry in zip(missing, plain, strict=True)])
        return answers | {id(asked): answer for (asked, _), answer in zip(missing, served, strict=True)}

    def _ask_worlds(self, acts: Sequence[Pending]) -> list[Any]:
        """Answers; worlds are asked again when a rollout goes on, only their faults are read back."""
        calls = [running.world_call(asked) for running, _, asked in acts]
        if self.journal is None:
            return self.worlds.serve(calls)
        keys = [((call.uid, act.number), digest_of(call)) for call, (_, _, act) in zip(calls, acts, strict=True)]
        known = [self.journal.find(*key) for key in keys]
        asked = iter(self.worlds.serve([call for call, fault in zip(calls, known, strict=True) if fault is None]))
        answers = [next(asked) if plain is None else fault_from_plain(plain) for plain in known]
        self.journal.append(
            [
                (*key, fault_to_plain(answer))
                for key, plain, answer in zip(keys, known, answers, strict=True)
                if plain is None and isinstance(answer, Fault)
            ]
        )
        return answers


def _in_order(pending: list[Pending]) -> list[Pending]:
    return sorted(pending, key=lambda one: (one[2].stream, one[2].order))


def _chunks(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (things[start : start + size] for start in range(0, len(things), size))


def _checked(request: Request, sample: Sample) -> Sample | Fault:
    """The sample, or a Fault if it is no answer to the request."""
    logp, forced = np.array(sample.logp, dtype=np.float64), len(request.forced)
    if not sample.ids and sample.end is End.LENGTH:
        wrong = "no token: the context fills the model's window, which Settings.context should say"
    elif len(sample.logp) != len(sample.ids) or not 0 < len(sample.ids) <= request.max_tokens:
        wrong = f"{len(sample.ids)} tokens and {len(sample.logp)} log-probs; 1 to {request.max_tokens} are asked for"
    elif sample.ids[:forced] != request.forced or not np.isnan(logp[:forced]).all():
        wrong = "other tokens than the forced ones at its beginning, or log-probs of them"
    elif sample.source is not Source.SAMPLED and not np.isnan(logp).all():
        wrong = "log-probs of a text that it has not sampled"
    elif sample.source is Source.SAMPLED and not np.isfinite(logp[forced:]).all():
        wrong = "log-probs that are not finite"
    else:
        return sample
    return Fault(End.ERROR, f"the engine gave {wrong}")


def _write(builder: RecordBuilder, episode: Episode, begins: Iterable[str], versions: Mapping[str, int]) -> None:
    """One episode into the record."""
    start, weights = episode.start, episode.settings.weights
    task = start.task if isinstance(start.task, Task) else None
    text = json.dumps(dataclasses.asdict(task)) if task else start.task if isinstance(start.task, str) else None
    kind, seed = (task.kind, task.seed) if task else ("", 0)
    row = builder.episode(start.uid, start.group, text, start.kind or kind, start.seed or seed, start.origin)
    if episode.fault is None:
        terminated = episode.ended()
        row.done(terminated=terminated, truncated=not terminated)
    else:
        row.done(truncated=True)
        row.fail(episode.fault)
    agents = [stream.agent for stream in episode.streams]
    for number, call in enumerate(episode.calls):
        while len(row.streams) <= call.stream:
            stream = episode.streams[len(row.streams)]
            row.stream(stream.agent, stream.parent_call, stream.learner)
        sample, agent = call.sample, agents[call.stream]
        assert sample is not None
        row.call(
            call.stream,
            call.context,
            sample.ids,
            sample.logp,
            call.source,
            sample.end,
            given=call.given,
            use=call.use,
            parent=call.parent,
            policy=versions.get(weights.get(agent, agent), 0),
            valid=call.valid,
            state=call.state,
            begin={level: level in call.begin for level in begins},
            labels={**call.labels, **call.call_labels},
            temperature=call.temperature,
            seed=call.seed,
            obs_text=call.obs_text or None,
            out_text=call.out_text,
        )
        row.reward(call.reward, number)
        for part, value in call.parts.items():
            row.part(part, value, number)
