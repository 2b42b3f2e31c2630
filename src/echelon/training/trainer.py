"""What one family of systems does in a run: where its inputs come from, what trains, what a checkpoint brings back.

`training.run` owns a run's directory, identity and end; a `Trainer` owns everything between. A system names its
trainer by `trainer()`, so that code of one family is not part of another's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from echelon.training.checkpoint import Checkpoint
from echelon.training.runtime import Runtime

Say = Callable[[str], None]


class Trainable:
    """A system that can be trained: a class with a configuration and a trainer."""

    Config: ClassVar[type[Any]]

    @classmethod
    def trainer(cls) -> type[Trainer]:
        """The trainer of the system's family."""
        raise NotImplementedError(f"{cls.__name__} names no trainer")


class Trainer(ABC):
    """The state of one run in training. `train` moves it, checkpoints hold it."""

    REPLAYED: ClassVar[int]
    """First updates of a run that show whether changed code still gives the same numbers."""
    PACKAGES: ClassVar[tuple[str, ...]] = ()
    """What its numbers depend on beside the packages of every run."""

    directory: Path
    step: int
    train_s: float
    evaluations: list[dict[str, Any]]

    @classmethod
    @abstractmethod
    def inputs(cls, system: type[Any], config: Any, say: Say) -> Any:
        """Open or make what the run learns from (data, models, worlds), before anything is written."""

    @classmethod
    @abstractmethod
    def facts(cls, inputs: Any) -> dict[str, dict[str, Any]]:
        """{"spec": what networks are built from, "data": what the inputs are}, for the run's identity; plain JSON."""

    @classmethod
    @abstractmethod
    def material(cls, system: type[Any], config: Any) -> tuple[str, dict[str, Any]]:
        """A short name of what a configuration learns from, and all that tells it from others; plain JSON."""

    @classmethod
    @abstractmethod
    def check(cls, directory: Path, recorded: Mapping[str, Any], inputs: Any) -> None:
        """Raise DataError unless the inputs are those that the run of this recorded identity began with."""

    @classmethod
    @abstractmethod
    def build(cls, system: type[Any], config: Any, directory: Path, runtime: Runtime, inputs: Any) -> Trainer:
        """A run at step 0."""

    @classmethod
    @abstractmethod
    def load(cls, system: type[Any], config: Any, spec: Mapping[str, Any], found: Checkpoint) -> Any:
        """The agent as a checkpoint holds it, on the CPU, for acting and looking."""

    @classmethod
    @abstractmethod
    def evaluate(cls, agent: Any, config: Any, step: int, episodes: int, seed: int) -> dict[str, Any]:
        """One row of evaluations.jsonl with `episodes` episodes a task."""

    @abstractmethod
    def restore(self, found: Checkpoint) -> None:
        """Continue from a checkpoint, bit for bit."""

    @abstractmethod
    def train(self, tensorboard: bool = False) -> bool:
        """Train to the end of the budget; False if a signal asked to stop (the state is saved then)."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """The score of the finished run and what it cost, for result.json."""
