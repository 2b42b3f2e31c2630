"""Train a set of configurations as child processes, once each: finished runs of the same code are used again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from echelon.errors import DataError, EchelonError
from echelon.evidence import codehash
from echelon.evidence.run import Run
from echelon.training.config import Config, to_json
from echelon.training.launch import Task, run_many

Command = Callable[[Path, Path], Sequence[str]]
"""(configuration file, run directory) -> the command that trains it there, or goes on with an unfinished run."""


def echelon_train(config: Path, directory: Path) -> Sequence[str]:
    """The command line that trains `config` in `directory`."""
    return (sys.executable, "-m", "echelon", "train", "--config", str(config), "--out", str(directory))


def directory_of(config: Config, root: Path | str) -> Path:
    """Place of the run of `config` below `root`: <system>-<env>-<hash of configuration and code>/seed-<seed>.

    Runs that differ by the seed only are siblings. Changed code means another directory, so an unfinished run never
    goes on with other code than it began with, and the runs of earlier code stay.
    """
    document = to_json(config)
    document["config"].pop("seed")
    content = json.dumps([document, codehash.of_run(config.system)], sort_keys=True)
    name = f"{config.system}-{config.env}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Path(root) / name / f"seed-{config.seed}"


def train_all(
    configs: Iterable[Config], root: Path | str, jobs: int = 2, command: Command = echelon_train
) -> dict[Path, Run]:
    """Train the configurations whose run below `root` is not finished, `jobs` at a time; returns all runs by directory.

    Data sets are made first, once. Raises EchelonError with the end of the log when a training fails; what had finished
    by then is kept.
    """
    wanted = {directory_of(config, root): config for config in configs}
    missing = {directory: config for directory, config in wanted.items() if not Run(directory).finished}
    for env, transitions in sorted({(c.env, c.transitions or 0) for c in missing.values()}):
        prepare_data(env, transitions or None, jobs)
    if missing:
        run_many([task(directory, config, command) for directory, config in missing.items()], jobs, label="trainings")
    runs = {directory: Run(directory) for directory in wanted}
    for directory, run in runs.items():
        _check(run, wanted[directory])
    return runs


def prepare_data(env: str, transitions: int | None, jobs: int) -> None:
    """Make the data set of `env` if it is not there, so that parallel trainings do not all make it."""
    from echelon.envs.ensure import ensure

    ensure(env, transitions, jobs)


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


def one_per_seed(config: Config, seeds: Iterable[int]) -> list[Config]:
    """`config` with each of the seeds."""
    return [dataclasses.replace(config, seed=seed) for seed in seeds]


def task(directory: Path, config: Config, command: Command) -> Task:
    """The child process that trains `config` in `directory`; its configuration and log lie beside the directory."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    file = directory.with_suffix(".json")
    file.write_text(json.dumps(to_json(config), indent=1) + "\n")
    name = f"{directory.parent.name}/{directory.name}"
    done = partial(progress, directory, config.updates)
    return Task(name, command(file, directory), directory.with_suffix(".log"), done)


def _check(run: Run, config: Config) -> None:
    """Refuse a run that is not what was asked for."""
    if not run.finished:
        raise EchelonError(f"{run.path} stopped before its end; start the same command again to go on")
    if {"system": run.system, "config": run.config} != to_json(config):
        raise DataError(f"{run.path} holds a run of another configuration; move it away")
    trained_by, now = run.identity.get("code_hash"), codehash.of_run(config.system)
    if trained_by != now:
        raise DataError(
            f"{run.path} was trained by other code ({trained_by}, now {now}); move it away to train it anew"
        )
