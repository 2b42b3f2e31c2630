"""Start, continue and reopen runs of the indexed systems by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from echelon.systems import index
from echelon.systems.offline import recipes
from echelon.training import run
from echelon.training.agent import Agent
from echelon.training.config import Config, from_json, read_json


def recipe(system: str, env: str, size: str = "published") -> Config:
    """The configuration of record of `system` on `env`; `size` is "published", "cpu" or "demo"."""
    return recipes.recipe(index.load(system).Config, env, size)


def train(
    config: Config,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
) -> Path | None:
    """Train the system that `config` configures; see `echelon.training.run.train`."""
    return run.train(
        index.load(config.system),
        config,
        out,
        device=device,
        precision=precision,
        threads=threads,
        tensorboard=tensorboard,
    )


def resume(directory: Path | str, *, device: str = "auto", tensorboard: bool = False) -> Path | None:
    """Go on with the run in `directory` from its newest checkpoint that verifies."""
    config = config_of(Path(directory) / "config.json")
    return train(config, directory, device=device, tensorboard=tensorboard)


def evaluate(directory: Path | str, episodes: int, seed: int = 0) -> dict[str, Any]:
    """Success by task of a run's newest checkpoint, with `episodes` episodes a task."""
    return run.evaluate(_system(directory), directory, episodes, seed)


def load_agent(directory: Path | str) -> Agent:
    """The trained agent of a run, on the CPU."""
    agent, _ = run.load_agent(_system(directory), directory)
    return agent


def config_of(file: Path) -> Config:
    """Read a run's configuration file."""
    document = read_json(file)
    return from_json(index.load(document["system"]).Config, document["config"])


def _system(directory: Path | str) -> type[Agent]:
    return index.load(read_json(Path(directory) / "config.json")["system"])
