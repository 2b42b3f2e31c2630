"""Run configuration: frozen dataclasses that go to JSON and back without ever naming code."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from echelon.data.goals import GoalSpec
from echelon.data.hindsight import HindsightSpec
from echelon.data.milestones import MilestoneSpec
from echelon.data.told import ToldSpec
from echelon.data.windows import WindowSpec
from echelon.errors import UsageError, unknown

C = TypeVar("C", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever it trains."""

    system: ClassVar[str]
    """Registry name of the system that this configures."""

    env: str = "pointmaze-medium-navigate-v0"
    """Environment and data set."""
    seed: int = 0
    """Seed of initial weights, batches and evaluation. Results report 0, 1, 2, …; tune on 100 and up."""
    updates: int = 1_000_000
    """Gradient steps (OGBench: 1 M from states)."""
    eval_every: int = 100_000
    """Updates between evaluations; the reported score is the mean over the last three."""
    eval_episodes: int = 50
    """Evaluation episodes for each of the five test tasks."""
    log_every: int = 1_000
    """Updates between lines of metrics."""
    checkpoint_every: int = 10_000
    """Updates between checkpoints."""

    def require(self, name: str, holds: bool, what: str) -> None:
        """Raise UsageError, unless `holds`: field `name` must be `what`. Subclasses check their fields with it."""
        if not holds:
            raise UsageError(f"{self.system}: {name} must be {what}, got {getattr(self, name)}")

    def __post_init__(self) -> None:
        for name in ("updates", "eval_every", "eval_episodes", "log_every", "checkpoint_every"):
            self.require(name, getattr(self, name) >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What every offline run has. Systems add their hyper-parameters; the defaults are the published ones."""

    batch_size: int = 1024
    """Transitions a batch."""
    transitions: int | None = None
    """Train on the first episodes that hold this many transitions; all when absent."""
    lr: float = 3e-4
    """Adam's learning rate."""

    def goals(self) -> Mapping[str, GoalSpec | HindsightSpec | WindowSpec | ToldSpec | MilestoneSpec]:
        """The goal draws of an offline batch, by name; none for systems without goals."""
        return {}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("batch_size", self.batch_size >= 1, "at least 1")
        self.require("transitions", self.transitions is None or self.transitions >= 1, "at least 1")
        self.require("lr", 0 < self.lr < math.inf, "positive")
        try:
            self.goals()
        except ValueError as error:
            raise UsageError(f"{type(self).system}: {error}") from error


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain JSON data: {"system": name, "config": {field: value}}."""
    return {"system": config.system, "config": json.loads(json.dumps(dataclasses.asdict(config)))}


def from_json(cls: type[C], values: dict[str, Any]) -> C:
    """Rebuild a configuration from its "config" part; unknown fields and wrong types are refused by name.

    Fields that are absent take their defaults.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    resolved: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown(f"field of {cls.system}'s configuration", name, fields)
        resolved[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(resolved[name], hints[name]):
            raise UsageError(f"{cls.system}: field {name} must be {hints[name]}, got {value!r}")
    return cls(**resolved)


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file as written next to every run."""
    try:
        document = json.loads(path.read_text())
        document["system"], document["config"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f'{path} is not a run configuration ({{"system": …, "config": {{…}}}}): {error}') from error
    return document


def _fits(value: Any, hint: Any) -> bool:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | None)) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            if value in typing.get_args(option):
                return True
        elif origin is tuple:
            if isinstance(value, tuple) and all(_fits(v, typing.get_args(option)[0]) for v in value):
                return True
        elif origin is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True
        elif origin is bool or isinstance(value, bool):
            if origin is bool and isinstance(value, bool):
                return True
        elif isinstance(value, origin):
            return True
    return False
