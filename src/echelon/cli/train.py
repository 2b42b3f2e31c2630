"""`echelon train`: a system on a data set or in a text world, from a recipe or a file, for one seed or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes

from echelon.cli import runs, show
from echelon.cli.arguments import parse, parse_known
from echelon.errors import UsageError

if TYPE_CHECKING:
    from echelon.training.config import RunConfig

USAGE = """\
usage: echelon train SYSTEM [--env NAME] [--size SIZE] [--out DIR] [flags]
       echelon train --config FILE [--out DIR] [flags]

Trains a system, with checkpoints, metrics and evaluations in DIR (default: runs/SYSTEM-ENV/seed-SEED).
Started again, it goes on with an unfinished run of the same configuration, bit for bit.
Every field of the configuration is a flag.

  echelon train ota --env pointmaze-large-stitch-v0 --size cpu
  echelon train hiql --size cpu --updates 30000 --seeds 0-7 --jobs 2
  echelon train gigpo --env textcraft --size cpu

systems: {systems}
All flags of a system: echelon train SYSTEM --help"""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the configuration starts from, before single flags change it."""

    config: Path | None = None
    """Configuration file, as config.json of a run; instead of SYSTEM."""
    size: str = "published"
    """Recipe: published (the paper's budget), cpu (two cores, minutes), demo (fewer minutes); of language agents also
    smollm2 (a pretrained model of 135 M, about an hour of two cores)."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Start):
    """`Start`, and the environment that the recipe is for."""

    env: str | None = None
    """Environment and data set, or text world (default: that of the system)."""


@dataclass(frozen=True, kw_only=True)
class Run(runs.Machine, Start):
    """How and where to run."""

    out: Path | None = None
    """Directory of the run; with --seeds, of the runs seed-0, seed-1, …"""
    seeds: str | None = None
    """Several seeds, such as 0-7 or 0,2,5: one process of one thread each."""
    jobs: int = 1
    """Processes at a time, with --seeds."""
    memory: int | None = None
    """Of a language agent: do not train, but tell the memory that it takes with texts of so many tokens. --model may
    be llama-7b, or the config.json of a model, too."""


def run(args: list[str]) -> int:
    """Train; exit code 130 when a signal stopped it."""
    default, rest = starting_point(args)
    options, config = read_flags(default, rest)
    if options.memory is not None:
        return show_memory(config, options.memory, options.json)
    return runs.train(config, options.out, options) if options.seeds is None else train_seeds(config, options)


def starting_point(args: list[str]) -> tuple[RunConfig, list[str]]:
    """The configuration that SYSTEM, --env and --size or --config name, and the flags that follow."""
    from echelon.systems import index

    slug, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else (None, args)
    if slug is None and (not rest or rest[0] in ("-h", "--help")):
        print(USAGE.format(systems=", ".join(index.names())))
        raise SystemExit(0)
    if slug is not None:
        index.find(slug)
    flags = [word for word in rest if word not in ("-h", "--help")]
    start, _ = parse_known(Recipe, flags, f"train {slug or ''}".strip())
    if start.config is None and slug is None:
        raise UsageError(f"which system? echelon train SYSTEM, one of {', '.join(index.names())}; or --config FILE")
    from echelon.systems import launch

    if start.config is None:
        return launch.recipe(str(slug), start.env, start.size), rest
    config = launch.config_of(start.config)
    if slug not in (None, config.system):
        raise UsageError(f"{start.config} configures '{config.system}', not '{slug}'; leave out one of the two")
    return config, rest


def read_flags(default: RunConfig, args: list[str]) -> tuple[Run, RunConfig]:
    """Read all flags: those of the run, and those that change single fields of the configuration."""
    parts: list[Any] = [("run", OmitArgPrefixes[Run]), ("config", OmitArgPrefixes[type(default)])]  # type: ignore[misc]
    schema: Any = dataclasses.make_dataclass("Train", parts, frozen=True)
    schema.__doc__ = f"Train {default.system}. Defaults of the configuration are those of the recipe."
    found = parse(schema, args, f"train {default.system}", schema(Run(), default))
    return found.run, found.config


def show_memory(config: RunConfig, length: int, as_json: bool) -> int:
    """Print what a run of a language agent takes of memory, in GiB."""
    from echelon.systems import launch
    from echelon.training.language.config import LanguageConfig

    if not isinstance(config, LanguageConfig):
        raise UsageError(f"--memory is of language agents, whose models are large; '{config.system}' is none")
    launch.check(config)
    parts = launch.plan(config, length)
    if as_json:
        show.as_json([dataclasses.asdict(part) for part in parts])
        return 0
    rows = [(p.name, *(f"{size / 2**30:.3f}" for size in p.bytes.values()), p.note) for p in parts]
    print(show.table(("GiB", *parts[0].bytes, ""), rows))
    print(
        f"\nconfigured: {config.model}, {config.dtype}{', layers recomputed' if config.recompute else ''}. Activations "
        "are without scratch memory: allow half as much again for them, and 0.5 GiB for the program itself."
    )
    return 0


def train_seeds(config: RunConfig, options: Run) -> int:
    """Train several seeds as child processes and print all their results."""
    from echelon.evidence.train import echelon_train, one_per_seed, prepare, task
    from echelon.training.launch import parse_seeds, run_many
    from echelon.training.run import check_directory, default_directory

    def command(file: Path, directory: Path) -> Sequence[str]:
        flags = ["--device", options.device, "--precision", options.precision, "--threads", str(options.threads or 1)]
        return [*echelon_train(file, directory), *flags, *(["--tensorboard"] if options.tensorboard else [])]

    root = options.out or default_directory(config).parent
    configs = {root / f"seed-{c.seed}": c for c in one_per_seed(config, parse_seeds(str(options.seeds)))}
    runs.check(config, options)
    for directory, one in configs.items():
        check_directory(directory, one)
    with runs.messages(options.json):
        prepare(configs.values())
        tasks = [task(directory, one, command) for directory, one in configs.items()]
        run_many(tasks, options.jobs, label="trainings")
    runs.show_results(list(configs), options.json)
    return 0
