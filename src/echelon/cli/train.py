"""`echelon train`: a system on a data set, from a recipe or a configuration file, for one seed or several."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes

from echelon.cli import runs
from echelon.cli.arguments import parse, parse_known
from echelon.errors import UsageError

if TYPE_CHECKING:
    from echelon.training.agent import Agent
    from echelon.training.config import Config
    from echelon.training.launch import Task

USAGE = """\
usage: echelon train SYSTEM [--env NAME] [--size SIZE] [--out DIR] [flags]
       echelon train --config FILE [--out DIR] [flags]

Trains a system, with checkpoints, metrics and evaluations in DIR (default: runs/SYSTEM-ENV/seed-SEED).
Started again, it goes on with an unfinished run of the same configuration, bit for bit.
Every field of the configuration is a flag.

  echelon train ota --env pointmaze-large-stitch-v0 --size cpu
  echelon train hiql --size cpu --updates 30000 --seeds 0-7 --jobs 2

systems: {systems}
All flags of a system: echelon train SYSTEM --help"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the configuration starts from, before single flags change it."""

    config: Path | None = None
    """Configuration file, as config.json of a run; instead of SYSTEM."""
    env: str = "pointmaze-medium-navigate-v0"
    """Environment and data set."""
    size: str = "published"
    """Recipe: published (the paper's), cpu (two cores, under an hour), demo (minutes)."""


@dataclass(frozen=True, kw_only=True)
class Run(runs.Machine):
    """How and where to run."""

    config: Path | None = None
    """Configuration file, as config.json of a run; instead of SYSTEM."""
    size: str = "published"
    """Recipe: published (the paper's), cpu (two cores, under an hour), demo (minutes)."""
    out: Path | None = None
    """Directory of the run; with --seeds, of the runs seed-0, seed-1, …"""
    seeds: str | None = None
    """Several seeds, such as 0-7 or 0,2,5: one process of one thread each."""
    jobs: int = 1
    """Processes at a time, with --seeds."""


def run(args: list[str]) -> int:
    """Train; exit code 130 when a signal stopped it."""
    cls, default, rest = starting_point(args)
    options, config = read_flags(cls, default, rest)
    if options.seeds is not None:
        return train_seeds(config, options)
    from echelon.training.run import train

    say = runs.speaker(options.json)
    directory = train(
        cls,
        config,
        options.out,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        tensorboard=options.tensorboard,
        say=say,
    )
    if directory is None:
        return 130
    runs.show_results([runs.result_of(directory)], options.json)
    return 0


def starting_point(args: list[str]) -> tuple[type[Agent], Config, list[str]]:
    """The agent class and configuration that SYSTEM, --env and --size or --config name, and the flags that follow."""
    from echelon.systems import index

    slug, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else (None, args)
    if slug is None and (not rest or rest[0] in ("-h", "--help")):
        print(USAGE.format(systems=", ".join(index.names())))
        raise SystemExit(0)
    flags = [word for word in rest if word not in ("-h", "--help")]
    start, _ = parse_known(Recipe, flags, f"train {slug or ''}".strip())
    if start.config is not None:
        return *from_file(start.config, slug), rest
    if slug is None:
        raise UsageError(f"which system? echelon train SYSTEM, one of {', '.join(index.names())}; or --config FILE")
    from echelon.systems.offline.recipes import recipe

    cls = index.load(slug)
    return cls, recipe(cls.Config, start.env, start.size), rest


def from_file(file: Path, slug: str | None) -> tuple[type[Agent], Config]:
    """The agent class and configuration that a JSON file holds."""
    from echelon.training.config import from_json, read_json

    document = read_json(file)
    if slug not in (None, document["system"]):
        raise UsageError(f"{file} configures '{document['system']}', not '{slug}'; leave out one of the two")
    cls = runs.agent_class(document["system"])
    return cls, from_json(cls.Config, document["config"])


def read_flags(cls: type[Agent], default: Config, args: list[str]) -> tuple[Run, Config]:
    """Read all flags: those of the run, and those that change single fields of the configuration."""
    schema: Any = dataclasses.make_dataclass(
        "Train",
        [("run", OmitArgPrefixes[Run]), ("config", OmitArgPrefixes[type(default)])],  # type: ignore[misc]
        frozen=True,
    )
    schema.__doc__ = f"Train {cls.Config.system}. Defaults of the configuration are those of the recipe that was named."
    found = parse(schema, args, f"train {cls.Config.system}", schema(Run(), default))
    return found.run, found.config


def train_seeds(config: Config, options: Run) -> int:
    """Train several seeds as child processes and print all their results."""
    from echelon.envs.ensure import ensure
    from echelon.training.launch import parse_seeds, run_many
    from echelon.training.run import default_directory

    say = runs.speaker(options.json)
    root = options.out or default_directory(config).parent
    configs = {
        root / f"seed-{seed}": dataclasses.replace(config, seed=seed) for seed in parse_seeds(str(options.seeds))
    }
    tasks = [task(directory, one, options) for directory, one in configs.items()]
    ensure(config.env, config.transitions, say=say)
    run_many(tasks, options.jobs, label=f"{config.system} on {config.env}")
    runs.show_results([runs.result_of(directory) for directory in configs], options.json)
    return 0


def task(directory: Path, config: Config, options: Run) -> Task:
    """Prepare `directory` and return the command that trains `config` there."""
    from echelon.training.checkpoint import write_json
    from echelon.training.config import to_json
    from echelon.training.launch import Task
    from echelon.training.run import check_directory

    check_directory(directory, config)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / runs.CONFIG, to_json(config))
    words = [sys.executable, "-m", "echelon", "resume", str(directory)]
    words += ["--device", options.device, "--precision", options.precision, "--threads", str(options.threads or 1)]
    words += ["--tensorboard"] if options.tensorboard else []
    return Task(str(directory), words, directory / "output.log", lambda: progress(directory, config.updates))


def progress(directory: Path, updates: int) -> float:
    """Share of its updates that a run has done, from the last line of its metrics."""
    import json

    file = directory / "metrics.jsonl"
    if not file.exists():
        return 0.0
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4096))
        lines = stream.read().decode(errors="replace").splitlines()
    steps = [json.loads(line)["step"] for line in lines if line.startswith("{") and line.endswith("}")]
    return max(steps, default=0) / updates
