"""Replay facts: evidence that the code behind a result changed, and its numbers did not.

A result goes stale when a module that it depends on changes, whatever the change. Training anew is one answer. Another
is to run the first updates of every arm again and to compare, bit for bit, with what the recorded code did there:

1. `record` trains each arm for some updates (`Trainer.REPLAYED`) with its real configuration on its real data (first
   seed, CPU, float32, one thread), evaluates it with one episode a task, and takes a digest of the final checkpoint's
   tensors (but for random generators), the outcomes, the executed actions, every level's decisions, and the claim's
   statistic. It also judges the recorded scores again. All of it is appended to the result's file as a fact, with the
   hashes of the code and the `identity` of machine, versions and data: digests are a function of these two alone.
2. `answer` compares the facts about one result: those of the code that made the result with those of the present code.

What a replay cannot see: code that the first updates do not reach, such as a schedule that acts later, or a statistic
of what happened later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from echelon.claims import Claim, Statistic
from echelon.errors import DataError, UsageError
from echelon.evidence import codehash, results
from echelon.evidence.reproduce import claims_of, hashes_of, judge, speaks_of
from echelon.evidence.run import Run
from echelon.evidence.train import Command, echelon_train, train_all
from echelon.systems import index
from echelon.training.config import RunConfig

FORMAT = 1
"""Counts up when digests come to cover other things: facts of different formats are not compared."""
GENERATORS = ("random.", "source.generator")
"""What of a checkpoint does not count, by the beginning of its name: where generators stand shows in what they drew."""
CLOCKS = {"call/started", "call/finished"}
"""What of a language agent's record does not count: when its calls were made."""
FLAGS = ("--device", "cpu", "--precision", "float32", "--threads", "1")
MACHINE = ("cpu", "device", "gpu", "matmul", "precision", "threads", "torch")
"""What a run's identity says of the kernels that computed it."""
JUDGED = ("value", "low", "high", "verdict")


class Answer(StrEnum):
    """What the replays say of a result whose code changed."""

    AGREES = "replayed"
    DIFFERS = "a replay gives other numbers"
    UNRECORDED = "the recorded code was never replayed"
    MISSING = "the present code was not replayed yet"
    ELSEWHERE = "replayed on different machines, versions or data"


class Replay(NamedTuple):
    """What the first updates of a claim's arms come to: a digest by role, and what it depends on beside the code."""

    digests: dict[str, str]
    identity: dict[str, Any]


def record(
    system: str,
    out: Path | str = "results",
    jobs: int = 2,
    command: Command = echelon_train,
    since: Mapping[str, codehash.Hashes] | None = None,
) -> list[results.Entry]:
    """Replay the arms of a system's claims with the present code and append a fact to each result file; returns them.

    Each arm is trained once, `jobs` at a time. A claim without a result of record, or whose configuration or test
    changed since, is passed over. `since`: the hashes, by claim, that this process began with. Raises UsageError when
    no claim has a result of record, DataError when the code changes meanwhile or a result keeps no scores to judge.
    """
    claims = claims_of(system)
    newest = {c.id: results.newest_of_record(results.read(results.path_of(out, system, c.id)), c.seeds) for c in claims}
    if not any(newest.values()):
        raise UsageError(f"{out} holds no result of record of {system} to replay; make one: echelon reproduce {system}")
    pairs = [(claim, newest[claim.id]) for claim in claims]
    subjects = [(c, entry) for c, entry in pairs if entry is not None and speaks_of(entry, c)]
    if not subjects:
        return []
    modules = {claim.id: hashes_of(claim) for claim, _ in subjects}
    if since is not None:
        _check_unchanged(since, modules)
    judged = {claim.id: judged_again(claim, entry) for claim, entry in subjects}
    replays = replayed([claim for claim, _ in subjects], jobs, command)
    _check_unchanged(modules, {claim.id: hashes_of(claim) for claim, _ in subjects})
    return [
        results.append(
            results.path_of(out, system, claim.id),
            {
                "kind": results.REPLAY,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": _commit(),
                "of": entry[results.CHAIN],
                "judged": judged[claim.id],
                "digests": replays[claim.id].digests,
                "identity": replays[claim.id].identity,
                "code_hash": codehash.digest(modules[claim.id]),
                "modules": modules[claim.id],
            },
        )
        for claim, entry in subjects
    ]


def answer(history: Iterable[results.Entry], entry: results.Entry, modules: codehash.Hashes) -> Answer:
    """Whether replays show that code with the hashes `modules` gives the numbers of the result `entry`.

    `history` are the entries of its file. Two facts about `entry` are compared when their identities are equal, one's
    modules are those of the result, and the other's are `modules`. They agree when their digests are equal and both
    judge as the result does. It needs one such pair, and no pair that disagrees.
    """
    facts = [fact for fact in history if fact.get("kind") == results.REPLAY and fact["of"] == entry[results.CHAIN]]
    then = [fact for fact in facts if fact["modules"] == entry["modules"]]
    now = [fact for fact in facts if fact["modules"] == modules]
    pairs = [(old, new) for old in then for new in now if old["identity"] == new["identity"]]
    if any(not _agree(old, new, entry) for old, new in pairs):
        return Answer.DIFFERS
    if pairs:
        return Answer.AGREES
    if not then:
        return Answer.UNRECORDED
    return Answer.ELSEWHERE if now else Answer.MISSING


def judged_again(claim: Claim, entry: results.Entry) -> dict[str, Any]:
    """Verdict and estimate that the present code gives for the scores that a result keeps."""
    try:
        scores = [np.array([run["scores"] for run in arm["runs"]], dtype=float) for arm in entry["arms"]]
    except KeyError as error:
        raise DataError(
            f"the result of {claim.id} keeps no scores of single episodes, so it cannot be judged again; record it "
            "anew with echelon reproduce, which takes finished runs of the same code as they are"
        ) from error
    guarded = entry["unless"]["value"] if claim.unless is not None else None
    verdict, estimate = judge(claim, len(entry["seeds"]), scores[0], scores[1] if len(scores) > 1 else None, guarded)
    return {**dataclasses.asdict(estimate), "verdict": str(verdict)}


def shortened(config: RunConfig) -> RunConfig:
    """The same configuration for the first updates alone, with one small evaluation at their end."""
    updates = index.load(config.system).trainer().REPLAYED
    return dataclasses.replace(
        config, updates=updates, eval_every=updates, log_every=updates, checkpoint_every=updates, eval_episodes=1
    )


def replayed(claims: Sequence[Claim], jobs: int, command: Command = echelon_train) -> dict[str, Replay]:
    """Replay the arms of the claims, each distinct one once; claim id -> replay."""

    def short(config: Path, directory: Path) -> Sequence[str]:
        return (*command(config, directory), *FLAGS)

    arms = {c.id: [shortened(score.arm.config(c.seeds[0])) for score in c.measured] for c in claims}
    configs = list(dict.fromkeys(config for members in arms.values() for config in members))
    print(f"replaying the first {max(config.updates for config in configs)} updates of {len(configs)} arms")
    with tempfile.TemporaryDirectory(prefix="echelon-replay-") as folder:
        runs = train_all(configs, folder, jobs, short)
        traces = {config: run_digest(run) for config, run in runs.items()}
        return {
            claim.id: Replay(
                {
                    role: statistic_digest(traces[config], runs[config], statistic)
                    for role, config, statistic in roles(claim, arms[claim.id])
                },
                identity_of([(config, runs[config]) for config in arms[claim.id]]),
            )
            for claim in claims
        }


def roles(claim: Claim, arms: Sequence[RunConfig]) -> list[tuple[str, RunConfig, Statistic]]:
    """Name, arm and statistic of all that is measured for a claim: "method", "baseline", "also 1", …, "unless"."""
    names = ["method", "baseline"][: len(claim.scores)] + [f"also {k + 1}" for k in range(len(claim.also))]
    found = [(n, config, score.statistic) for n, config, score in zip(names, arms, claim.measured, strict=True)]
    return found if claim.unless is None else [*found, ("unless", arms[0], claim.unless.statistic)]


def run_digest(run: Run) -> hashlib._Hash:
    """SHA-256, to be continued, over what a run came to: weights, optimiser states, outcomes, actions, decisions; of a
    language agent, the records of its evaluations. Times and the states of random generators are left out."""
    from echelon.language.record import Record
    from echelon.rollout import Rollout
    from echelon.training import checkpoint

    found = checkpoint.latest(run.path)
    rollouts, records = (sorted((run.path / kind).glob("step_*.safetensors")) for kind in ("rollouts", "records"))
    if found is None or not (rollouts or records):
        raise DataError(f"{run.path} holds no checkpoint or no rollout; it cannot be compared")
    ink = hashlib.sha256()
    for name in sorted(name for name in found.tensors if not name.startswith(GENERATORS)):
        _absorb(ink, f"checkpoint {name}", found.tensors[name])
    for row in run.evaluations:
        ink.update(json.dumps([row["step"], row["tasks"]], sort_keys=True).encode())
    for file in rollouts:
        rollout = Rollout.load(file.with_suffix(""))
        _absorb(ink, f"{file.stem} executed", rollout.executed)
        for level in rollout.levels:
            table = rollout.decisions[level]
            for column in ("action", "start", "stop"):
                _absorb(ink, f"{file.stem} {level} {column}", getattr(table, column))
    for file in records:
        columns = Record.load(file.with_suffix("")).columns()
        for name in sorted(columns.keys() - CLOCKS):
            _absorb(ink, f"{file.stem} {name}", columns[name])
    return ink


def statistic_digest(trace: hashlib._Hash, run: Run, statistic: Statistic) -> str:
    """SHA-256 of a run (see `run_digest`) and of the statistic's values on it, in hexadecimal digits.

    A statistic that needs more of a run than its first updates (DataError) has no values.
    """
    from echelon.training.runtime import choose

    ink = trace.copy()
    try:
        with choose("cpu", "float32", 1, run.identity).active():
            _absorb(ink, "statistic", np.asarray(statistic(run), dtype=float))
    except DataError:
        ink.update(b"no statistic")
    return ink.hexdigest()


def identity_of(arms: Sequence[tuple[RunConfig, Run]]) -> dict[str, Any]:
    """All that digests depend on beside the code: kernels, versions, data and the kind of replay."""
    machines = [{key: run.identity.get(key) for key in MACHINE} for _, run in arms]
    if any(machine != machines[0] for machine in machines):
        raise DataError(f"the arms were computed in different ways, so a replay means nothing: {machines}")
    systems = [index.load(config.system) for config, _ in arms]
    packages = dict.fromkeys((*results.PACKAGES, *(name for cls in systems for name in cls.trainer().PACKAGES)))
    versions = {name: version for name, version in results.versions([*packages]).items() if name != "echelon"}
    data = dict(material(config) for config, _ in arms)
    kind = {"format": FORMAT, "updates": max(shortened(config).updates for config, _ in arms)}
    return {"replay": kind, **machines[0], "versions": versions, "data": data}


def material(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """What a configuration trains on: a name, and what tells it from others."""
    system = index.load(config.system)
    return system.trainer().material(system, config)


def _absorb(ink: hashlib._Hash, name: str, array: Any) -> None:
    """Add a tensor or an array to a digest: name, type, shape, bytes."""
    import torch

    tensor = torch.as_tensor(array).detach().cpu().contiguous()
    ink.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    ink.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


def _agree(old: results.Entry, new: results.Entry, entry: results.Entry) -> bool:
    recorded = {**entry["estimate"], "verdict": entry["verdict"]}
    return old["digests"] == new["digests"] and all(_equal(fact["judged"], recorded) for fact in (old, new))


def _equal(judged: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Whether two judgements say the same; the last bits of an estimate may differ, since machines sum differently."""
    near = [math.isclose(judged[key], recorded[key], rel_tol=1e-9, abs_tol=1e-9) for key in JUDGED[:-1]]
    return all(near) and judged["verdict"] == recorded["verdict"]


def _check_unchanged(before: Mapping[str, codehash.Hashes], after: Mapping[str, codehash.Hashes]) -> None:
    for claim, modules in after.items():
        changes = codehash.changes(before[claim], modules)
        if changes:
            raise DataError(f"the code changed meanwhile ({', '.join(changes)}): nothing is said of it; start again")


def _commit() -> str | None:
    """Commit of the code, with "+" if its sources differ from it."""
    git = results.git()
    return None if git is None else git["commit"] + "+" * git["dirty"]
