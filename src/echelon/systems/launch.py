"""Start, continue and reopen runs of the indexed systems by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from echelon.systems import index
from echelon.training import run
from echelon.training.config import Config, RunConfig, from_json, read_json
from echelon.training.language.config import LanguageConfig
from echelon.training.online.config import OnlineConfig
from echelon.training.trainer import Trainable


def recipe(system: str, env: str | None = None, size: str = "published") -> Any:
    """The configuration of record of `system` on `env` (default: that of its configuration).

    `size` is "published", "cpu" or "demo".
    """
    cls = index.load(system).Config
    return _recipes(cls).recipe(cls, cls.env if env is None else env, size)


def check(config: RunConfig) -> None:
    """Raise UsageError for an environment that this configuration cannot be trained in; makes and writes nothing."""
    _recipes(type(config)).check(config)


def train(
    config: RunConfig,
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


def serve(
    config: LanguageConfig, engine: Any, episodes: int, seed: int, max_tokens: int, out: Path | None
) -> dict[str, Any]:
    """Success by task of an endpoint's model in the program that `config` configures: `training.language.served`."""
    from echelon.training.language.served import evaluate as evaluate_served

    return evaluate_served(_agent(config), config, engine, episodes, seed, max_tokens, out)


def plan(config: LanguageConfig, length: int) -> list[Any]:
    """The memory that a run takes, part by part: `training.language.memory`."""
    from echelon.training.language.memory import plan as plan_memory

    return plan_memory(_agent(config), config, length)


def load_agent(directory: Path | str) -> Any:
    """The trained agent of a run, on the CPU."""
    agent, _ = run.load_agent(_system(directory), directory)
    return agent


def config_of(file: Path) -> Any:
    """Read a run's configuration file."""
    document = read_json(file)
    return from_json(index.load(document["system"]).Config, document["config"])


def _agent(config: LanguageConfig) -> Any:
    """The language agent that `config` configures."""
    return index.load(config.system)


def _recipes(cls: type[RunConfig]) -> ModuleType:
    """The module with the recipes of a configuration's kind: of runs from data, in environments, of language agents."""
    kinds = {Config: "offline", OnlineConfig: "online", LanguageConfig: "agents"}
    family = next(family for kind, family in kinds.items() if issubclass(cls, kind))
    return importlib.import_module(f"echelon.systems.{family}.recipes")


def _system(directory: Path | str) -> type[Trainable]:
    return index.load(read_json(Path(directory) / "config.json")["system"])
