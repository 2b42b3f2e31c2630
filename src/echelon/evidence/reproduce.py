"""`echelon reproduce SYSTEM`: train the arms of a system's claims, measure and judge them, and record the verdicts."""

from __future__ import annotations

import importlib
import inspect
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from echelon.claims import Arm, AtLeast, Claim, Guard, Score, Statistic, Verdict, statistic_name
from echelon.errors import DataError, UsageError
from echelon.evidence import codehash, results, statistics
from echelon.evidence.run import Run
from echelon.evidence.statistics import Estimate
from echelon.evidence.train import Command, echelon_train, train_all
from echelon.systems import index
from echelon.training.config import RunConfig, to_json

RUNS = "runs/reproduce"


@dataclass(frozen=True)
class Outcome:
    """A judged claim, and the entry of its result file."""

    claim: Claim
    verdict: Verdict
    estimate: Estimate
    file: Path
    entry: results.Entry


def reproduce(
    system: str,
    seeds: Sequence[int] | None = None,
    jobs: int = 2,
    full: bool = False,
    out: Path | str = "results",
    runs: Path | str = RUNS,
    command: Command = echelon_train,
) -> list[Outcome]:
    """Train what the claims of `system` need and is not there yet, and append one entry a claim below `out`.

    `seeds` replaces those of record (the entries say so), `full` takes the published sizes. Arms with the same
    configuration are trained once, `jobs` at a time, below `runs`; a second call goes on where an earlier one stopped.
    Everything is supported when `all(o.verdict == "supported" for o in outcomes)`.
    """
    claims = claims_of(system, full)
    if not claims:
        raise UsageError(f"{system} claims nothing that could be reproduced; see it beside others: echelon compare")
    chosen = {claim.id: tuple(seeds) if seeds is not None else claim.seeds for claim in claims}
    modules = {claim.id: hashes_of(claim) for claim in claims}
    configs = [c for claim in claims for score in claim.measured for c in configs_of(score.arm, chosen[claim.id])]
    trained = train_all(configs, runs, jobs, command)
    asked = ["echelon", "reproduce", system, *(["--full"] if full else [])]
    if seeds is not None:
        asked += ["--seeds", ",".join(map(str, seeds))]
    facts = {"command": shlex.join(asked), "full": full, **results.provenance(index.load(system).trainer().PACKAGES)}
    outcomes = []
    for claim in claims:
        evidence = {**facts, "code_hash": codehash.digest(modules[claim.id]), "modules": modules[claim.id]}
        verdict, estimate, entry = _examined(claim, chosen[claim.id], trained, evidence)
        file = results.path_of(out, system, claim.id)
        outcomes.append(Outcome(claim, verdict, estimate, file, results.append(file, entry)))
    return outcomes


def claims_of(system: str, full: bool = False) -> tuple[Claim, ...]:
    """The claims that a system's module makes, none if it has no `claims`; `full`: those of the published size."""
    module = importlib.import_module(str(index.find(system).module))
    function = getattr(module, "claims", None)
    if function is None:
        return ()
    if full and "full" not in inspect.signature(function).parameters:
        raise UsageError(f"{system} has no claims of full size; leave out --full")
    claims = function(full=True) if full else function()
    ids = [claim.id for claim in claims]
    if len(set(ids)) != len(ids):
        raise DataError(f"{system}: two claims with the same id among {', '.join(ids)}")
    return claims


def configs_of(arm: Arm, seeds: Sequence[int]) -> list[RunConfig]:
    """The arm's configuration for every seed; UsageError unless they differ by the seed alone."""
    configs = [arm.config(seed) for seed in seeds]
    settings = [_settings(config) for config in configs]
    if [config.seed for config in configs] != list(seeds) or any(s != settings[0] for s in settings):
        raise UsageError(f"arm '{arm.name}': config(seed) must carry that seed and change nothing else")
    return configs


def specification(claim: Claim) -> dict[str, Any]:
    """What is claimed, as JSON data: if it differs from a result's, that result speaks of something else.

    What is recorded without a verdict is no part of it.
    """
    claimed: dict[str, Any] = {
        "test": {"kind": type(claim.test).__name__, **asdict(claim.test)},
        "arms": [_specified(score, claim.seeds[0]) for score in claim.scores],
    }
    if claim.unless is not None:
        claimed["unless"] = {"statistic": statistic_name(claim.unless.statistic), "above": claim.unless.bound}
    return claimed


def speaks_of(entry: results.Entry, claim: Claim) -> bool:
    """Whether a result is of what is claimed. Settings that it does not know count as the same at their defaults."""
    then, now = entry["specification"], specification(claim)
    configs = [configs_of(score.arm, claim.seeds[:1])[0] for score in claim.scores]
    arms = [
        {**arm, "config": _later(config, arm["config"]) | arm["config"]}
        for arm, config in zip(then["arms"], configs, strict=False)
    ]
    return {**then, "arms": arms} == now


def hashes_of(claim: Claim) -> codehash.Hashes:
    """Hashes of the modules behind a claim's result."""
    systems = {score.arm.config(claim.seeds[0]).system for score in claim.measured}
    return codehash.of_result(sorted(systems), sorted({_defined_in(statistic) for statistic in claim.statistics}))


def measure(statistic: Statistic, runs: Sequence[Run]) -> np.ndarray:
    """Scores [seed, task, episode] of several runs. DataError for values that are not finite or of different shapes."""
    arrays = []
    for run in runs:
        values = np.asarray(statistic(run), dtype=float)
        if values.ndim > 2 or values.size == 0 or not np.isfinite(values).all():
            raise DataError(
                f"{run.path}: {statistic_name(statistic)} must give finite numbers [task, episode]; got {values}"
            )
        arrays.append(values.reshape(1, -1) if values.ndim < 2 else values)
    shapes = {array.shape: run.path for array, run in zip(arrays, runs, strict=True)}
    if len(shapes) > 1:
        found = ", ".join(f"{shape} in {path}" for shape, path in shapes.items())
        raise DataError(f"runs of different tasks or numbers of episodes: {found}")
    return np.stack(arrays)


def judge(
    claim: Claim, seeds: int, method: np.ndarray, baseline: np.ndarray | None, guarded: float | None = None
) -> tuple[Verdict, Estimate]:
    """Verdict on scores [seed, task, episode], and what it rests on: the difference of means, or the method's mean.

    One seed cannot show how much seeds differ: unless the claim itself is about one, nothing follows from it. Nor does
    anything if the mean of the guard's statistic, `guarded`, is above its bound or unknown.
    """
    if baseline is None:
        estimate = statistics.estimate([method])
    else:
        estimate = statistics.difference(method, baseline, paired=_paired(claim))
    undecided = claim.unless is not None and (guarded is None or claim.unless.exceeded(guarded))
    if undecided or (seeds == 1 and len(claim.seeds) > 1):
        return Verdict.INCONCLUSIVE, estimate
    return claim.test.judge(estimate.value, estimate.low, estimate.high), estimate


def guarded(unless: Mapping[str, Any]) -> str:
    """What a result's guard found, for a person."""
    found = f"{_short(unless['statistic'])} {unless['value']:.3g}"
    if unless["exceeded"]:
        return f"{found} is above {unless['above']:g}: {unless['reason']}"
    return f"{found} is not above {unless['above']:g}, so the test decides"


def begun_from(entry: Mapping[str, Any]) -> str:
    """The warm starts that a result's runs began from, by their hashes, for a person; "" if they had none."""
    runs = [run for arm in (*entry["arms"], *entry.get("also", ())) for run in arm["runs"]]
    hashes = sorted({run["identity"].get("spec", {}).get("hash", "")[:12] for run in runs} - {""})
    return f"warm start {', '.join(hashes)}" if hashes else ""


def beyond(also: Mapping[str, Any]) -> str:
    """A result's score without a verdict, for a person: whose, of what, and its mean with the interval."""
    return f"{also['name']}, {_short(also['statistic'])}: {Estimate(**also['estimate'])}"


def _short(statistic: str) -> str:
    return statistic.partition(":")[2]


def _examined(
    claim: Claim, seeds: Sequence[int], trained: Mapping[RunConfig, Run], evidence: Mapping[str, Any]
) -> tuple[Verdict, Estimate, results.Entry]:
    """Measure and judge one claim; returns what to say and what to record of it."""
    runs = [[trained[config] for config in configs_of(score.arm, seeds)] for score in claim.measured]
    scores = [measure(score.statistic, members) for score, members in zip(claim.measured, runs, strict=True)]
    arms = [_arm(*parts) for parts in zip(claim.measured, runs, scores, strict=True)]
    more = list(zip(claim.measured, scores, arms, strict=True))[len(claim.scores) :]
    baseline = None if claim.baseline is None else scores[1]
    unless = _guarded(claim.unless, runs[0]) if claim.unless is not None else None
    verdict, estimate = judge(claim, len(seeds), scores[0], baseline, unless["value"] if unless else None)
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": str(verdict),
        "of_record": set(claim.seeds) <= set(seeds),
        "text": claim.text,
        "source": claim.source,
        "seeds": list(seeds),
        "estimate": {
            "of": "mean of the method" if baseline is None else "difference of means, method - baseline",
            **asdict(estimate),
            "level": statistics.LEVEL,
            "bootstrap": statistics.REPETITIONS,
            "paired": baseline is not None and _paired(claim),
        },
        "improvement": None if baseline is None else _improvement(scores[0], baseline),
        "specification": specification(claim),
        "arms": arms[: len(claim.scores)],
        **({"unless": unless} if unless else {}),
        **({"also": [_also(*parts) for parts in more]} if more else {}),
        **evidence,
    }
    return verdict, estimate, entry


def _guarded(guard: Guard, runs: Sequence[Run]) -> dict[str, Any]:
    """What a result keeps of a guard: the statistic's mean over the method's runs, against the bound."""
    values = measure(guard.statistic, runs)
    value = float(values.mean())
    return {
        "statistic": statistic_name(guard.statistic),
        "value": value,
        "runs": [float(x) for x in values.mean((1, 2))],
        "above": guard.bound,
        "exceeded": guard.exceeded(value),
        "reason": guard.reason,
    }


def _also(score: Score, scores: np.ndarray, arm: Mapping[str, Any]) -> dict[str, Any]:
    """What a result keeps of a score without a verdict: its mean with an interval, and the arm that it was taken of."""
    return {"estimate": asdict(statistics.estimate([scores])), **_specified(score, arm["runs"][0]["seed"]), **arm}


def _arm(score: Score, runs: Sequence[Run], scores: np.ndarray) -> dict[str, Any]:
    """What a result keeps of one arm."""
    return {
        "name": score.arm.name,
        "mean": float(scores.mean()),
        "episodes_a_task": scores.shape[2],
        "runs": [
            {
                "seed": run.config["seed"],
                "score": float(values.mean()),
                "tasks": [round(float(x), 4) for x in values.mean(1)],
                "scores": values.tolist(),  # [task][episode]: all that the estimate needs
                "curve": {"step": [s for s, _ in run.curve], "success": [round(y, 4) for _, y in run.curve]},
                "result": run.result,
                "identity": run.identity,
            }
            for run, values in zip(runs, scores, strict=True)
        ],
    }


def _improvement(method: np.ndarray, baseline: np.ndarray) -> float | None:
    """Probability that a run of the method beats one of the baseline; None when they have different tasks."""
    if method.shape[1] != baseline.shape[1]:
        return None
    return float(statistics.probability_of_improvement(method.mean(-1), baseline.mean(-1)))


def _paired(claim: Claim) -> bool:
    """Whether both scores are taken on the same runs."""
    assert claim.baseline is not None and not isinstance(claim.test, AtLeast)
    seed = claim.seeds[0]
    return to_json(claim.method.arm.config(seed)) == to_json(claim.baseline.arm.config(seed))


def _specified(score: Score, seed: int) -> dict[str, Any]:
    """The statistic, system and settings of a score."""
    return {"statistic": statistic_name(score.statistic), **_settings(configs_of(score.arm, [seed])[0])}


def _settings(config: RunConfig) -> dict[str, Any]:
    document = to_json(config)
    document["config"].pop("seed")
    return document


def _later(config: RunConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `config` that are not `known` and have their defaults."""
    defaults = {f.name for f in fields(config) if getattr(config, f.name) == f.default}
    return {name: value for name, value in _settings(config)["config"].items() if name in defaults - known.keys()}


def _defined_in(statistic: Statistic) -> str:
    return statistic_name(statistic).partition(":")[0]
