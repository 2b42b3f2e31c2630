"""One run from configuration to result: the run directory, its identity, training, resuming, loading, evaluating."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from echelon.errors import CheckpointError, UsageError
from echelon.training import checkpoint
from echelon.training.codehash import code_hash
from echelon.training.config import RunConfig, from_json, read_json, to_json
from echelon.training.runtime import Runtime, choose
from echelon.training.seeding import seed_everything
from echelon.training.trainer import Say, Trainable, Trainer

LEFT_BY_A_KILLED_START = {".lock", "config.json.tmp"}


def train(
    cls: type[Trainable],
    config: RunConfig,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
    say: Say = print,
) -> Path | None:
    """Train `cls` as `config` says in the directory `out`, or go on with the unfinished run of `config` there.

    Returns the run's directory; None if a signal stopped it (its state is saved). Raises UsageError if `out` holds a
    run of another configuration.
    """
    directory = Path(out) if out is not None else default_directory(config)
    check_directory(directory, config)
    trainer = cls.trainer()
    inputs = trainer.inputs(cls, config, say)
    with checkpoint.RunLock(directory):
        check_directory(directory, config)  # again: another process may have begun its run meanwhile
        if (directory / "result.json").exists():
            say(f"{directory} is finished already")
            return directory
        found = checkpoint.latest(directory)
        for refused in found.refused if found else ():
            say(f"refused: {refused}; using {found.path.name if found else ''}")
        recorded = _recorded(directory) if found else None
        if recorded is not None:
            trainer.check(directory, recorded, inputs)
            device = recorded["device"] if device == "auto" else device
        runtime = choose(device, precision, threads, recorded)
        with runtime.active():
            say(f"{config.system} on {config.env}, seed {config.seed}: {runtime.describe()}")
            seed_everything(config.seed)
            run = trainer.build(cls, config, directory, runtime, inputs)
            if found:
                run.restore(found)
                say(f"resumed at step {run.step}")
            else:
                _begin(directory, config, runtime, trainer.facts(inputs))
            finished = run.train(tensorboard)
        if finished:
            _finish(run)
            return directory
    say(f"stopped at step {run.step}; continue with: echelon resume {directory}")
    return None


def evaluate(cls: type[Trainable], directory: Path | str, episodes: int, seed: int = 0) -> dict[str, Any]:
    """Evaluate a run's newest checkpoint with `episodes` episodes a task; returns success by task. Writes nothing."""
    directory = Path(directory)
    agent, step = load_agent(cls, directory)
    with choose("cpu", "float32").active():
        return cls.trainer().evaluate(agent, load_config(cls, directory), step, episodes, seed)


def load_config(cls: type[Trainable], directory: Path | str) -> Any:
    """The configuration that a run was started with."""
    document = read_json(Path(directory) / "config.json")
    if document["system"] != cls.Config.system:
        raise UsageError(f"{directory} is a run of '{document['system']}', not of '{cls.Config.system}'")
    return from_json(cls.Config, document["config"])


def load_agent(cls: type[Trainable], directory: Path | str) -> tuple[Any, int]:
    """A run's agent with the weights of its newest checkpoint, on the CPU, and the step of that checkpoint."""
    found = checkpoint.latest(directory)
    if found is None:
        raise CheckpointError(f"{directory} has no checkpoint yet; train it first: echelon resume {directory}")
    spec = _recorded(Path(directory))["spec"]
    return cls.trainer().load(cls, load_config(cls, directory), spec, found), found.step


def default_directory(config: RunConfig) -> Path:
    """Where a run goes when nothing else is said."""
    return Path("runs") / f"{config.system}-{config.env}" / f"seed-{config.seed}"


def check_directory(directory: Path, config: RunConfig) -> None:
    """Refuse a directory that holds something else than a run of this configuration."""
    file = directory / "config.json"
    if not file.exists():
        if directory.exists() and {p.name for p in directory.iterdir()} - LEFT_BY_A_KILLED_START:
            raise UsageError(f"{directory} is not empty and holds no run; choose another directory with --out")
        return
    here, there = to_json(config), read_json(file)
    if here != there:
        fields = here["config"].keys() | there["config"].keys()
        differ = sorted(k for k in fields if here["config"].get(k) != there["config"].get(k)) or ["system"]
        raise UsageError(
            f"{directory} holds a run of another configuration (different: {', '.join(differ)}); "
            f"choose another directory with --out, or continue that run: echelon resume {directory}"
        )


def _begin(directory: Path, config: RunConfig, runtime: Runtime, facts: dict[str, dict[str, Any]]) -> None:
    identity = {
        "commit": _commit(),
        "code_hash": code_hash(type(config).__module__),
        "seed": config.seed,
        **runtime.identity(),
        **facts,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # the configuration first: a directory that holds one can always be resumed
    checkpoint.write_json(directory / "config.json", to_json(config))
    checkpoint.write_json(directory / "identity.json", identity)


def _finish(run: Trainer) -> None:
    result = {
        **run.result(),
        "train_s": round(run.train_s, 1),
        "load": round(os.getloadavg()[0], 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    checkpoint.write_json(run.directory / "result.json", result)


def _recorded(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "identity.json").read_text())


def _commit() -> str | None:
    """The git commit of the code, with "+" if files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno", "."], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
