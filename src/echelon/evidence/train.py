"""Train a set of configurations as child processes, once each: finished runs of the same code are used again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from echelon.errors import DataError, EchelonError
from echelon.evidence import codehash
from echelon.evidence.run import Run
from echelon.systems import index
from echelon.training.config import RunConfig, to_json
from echelon.training.launch import Task, run_many

C = TypeVar("C", bound=RunConfig)
Command = Callable[[Path, Path], Sequence[str]]
"""(configuration file, run directory) -> the command that trains it there, or goes on with an unfinished run."""


def echelon_train(config: Path, directory: Path) -> Sequence[str]:
    """The command line that trains `config` in `directory`."""
    return (sys.executable, "-m", "echelon", "train", "--config", str(config), "--out", str(directory))


def directory_of(config: RunConfig, root: Path | str, code: str) -> Path:
    """Place of the run of `config` by the code with hash `code`: root/<system>-<env>-<hash of both>/seed-<seed>.

    Runs that differ by the seed only are siblings. Changed code means another directory, so an unfinished run never
    goes on with other code than it began with, and the runs of earlier code stay.
    """
    document = to_json(config)
    document["config"].pop("seed")
    content = json.dumps([document, code], sort_keys=True)
    name = f"{config.system}-{config.env}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Path(root) / name / f"seed-{config.seed}"


def train_all(
    configs: Iterable[RunConfig], root: Path | str, jobs: int = 2, command: Command = echelon_train
) -> dict[RunConfig, Run]:
    """Train the configurations whose run below `root` is not finished, `jobs` at a time; returns the run of each.

    Data sets and warm starts are made first, once. Raises EchelonError with the end of the log when a training fails;
    what had finished by then is kept.
    """
    configs = list(dict.fromkeys(configs))
    code = {system: codehash.of_run(system) for system in {config.system for config in configs}}
    runs = {config: Run(directory_of(config, root, code[config.system])) for config in configs}
    missing = {config: run for config, run in runs.items() if not run.finished}
    prepare(missing)
    if missing:
        run_many([task(run.path, config, command) for config, run in missing.items()], jobs, label="trainings")
    for config, run in runs.items():
        _check(run, config, code[config.system])
    return runs


def prepare(configs: Iterable[RunConfig]) -> None:
    """Make the data sets and warm starts that are not there, so that parallel trainings do not all make them."""
    for config in dict.fromkeys(dataclasses.replace(config, seed=0) for config in configs):
        system = index.load(config.system)
        system.trainer().inputs(system, config, print)


def progress(directory: Path, updates: int) -> float:
    """Share of its `updates` that the run in `directory` has done, from the last lines of its metrics."""
    file = directory / "metrics.jsonl"
    if not file.exists():
        return 0.0
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 8192))
        lines = stream.read().decode(errors="replace").splitlines()
    whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
    return json.loads(whole[-1])["step"] / updates if whole else 0.0


def one_per_seed(config: C, seeds: Iterable[int]) -> list[C]:
    """`config` with each of the seeds."""
    return [dataclasses.replace(config, seed=seed) for seed in seeds]


def task(directory: Path, config: RunConfig, command: Command) -> Task:
    """The child process that trains `config` in `directory`; its configuration and log lie beside the directory."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    file = directory.with_suffix(".json")
    file.write_text(json.dumps(to_json(config), indent=1) + "\n")
    name = f"{directory.parent.name}/{directory.name}"
    done = partial(progress, directory, config.updates)
    return Task(name, command(file, directory), directory.with_suffix(".log"), done)


def _check(run: Run, config: RunConfig, code: str) -> None:
    """Refuse a run that is not what was asked for."""
    if not run.finished:
        raise EchelonError(f"{run.path} stopped before its end; start the same command again to go on")
    if {"system": run.system, "config": run.config} != to_json(config):
        raise DataError(f"{run.path} holds a run of another configuration; move it away")
    trained_by = run.identity.get("code_hash")
    if trained_by != code:
        raise DataError(
            f"{run.path} was trained by other code ({trained_by}, not {code}): the code changed meanwhile; start again"
        )
