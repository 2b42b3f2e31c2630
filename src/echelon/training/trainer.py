"""What one family of systems does in a run: where its inputs come from, what trains, what a checkpoint brings back.

`training.run` owns a run's directory, identity and end; a `Trainer` owns everything between, and its loop is the same
for all: updates, metrics, evaluations, checkpoints; resumable at any step. A system names its trainer by `trainer()`,
so that code of one family is not part of another's.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from echelon.training.checkpoint import Checkpoint
from echelon.training.config import RunConfig
from echelon.training.interrupt import Interrupt
from echelon.training.metrics import JsonLines, MetricsWriter, as_floats, check_finite
from echelon.training.progress import Progress
from echelon.training.runtime import Runtime

Say = Callable[[str], None]
Numbers = Mapping[str, float | Tensor]


class Trainable:
    """A system that can be trained: a class with a configuration and a trainer."""

    Config: ClassVar[type[Any]]

    @classmethod
    def trainer(cls) -> type[Trainer]:
        """The trainer of the system's family."""
        raise NotImplementedError(f"{cls.__name__} names no trainer")


class Examined(NamedTuple):
    """An evaluation: `row` is its line of evaluations.jsonl, `numbers` go to the metrics, `text` to people."""

    row: dict[str, Any]
    numbers: Mapping[str, float]
    text: str


class Trainer(ABC):
    """The state of one run in training. `train` moves it, checkpoints hold it."""

    REPLAYED: ClassVar[int] = 32
    """First updates of a run that show whether changed code still gives the same numbers."""
    PACKAGES: ClassVar[tuple[str, ...]] = ()
    """What its numbers depend on beside the packages of every run."""
    FILES: ClassVar[tuple[str, ...]] = ("evaluations",)
    """Names of its JSON-lines files beside the metrics."""
    SHOWN: ClassVar[str]
    """Regular expression: names of the metrics that are shown beside the progress."""
    UNIT: ClassVar[str] = "updates"
    """What a step is, in the plural."""

    directory: Path
    config: RunConfig
    step: int
    train_s: float
    """Seconds that `iterate` took in all steps so far."""
    evaluations: list[dict[str, Any]]

    # open while it trains
    metrics: MetricsWriter
    files: dict[str, JsonLines]
    progress: Progress

    # ---- where a run comes from

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

    # ---- what is trained

    @abstractmethod
    def iterate(self) -> Numbers:
        """Do step number `step` (from 1), and add its seconds to `train_s`; what is to be said of it."""

    @abstractmethod
    def examine(self) -> Examined:
        """Evaluate the agent as it is, and save what happened."""

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint of the current step."""

    @abstractmethod
    def restore(self, found: Checkpoint) -> None:
        """Continue from a checkpoint, bit for bit."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """The score of the finished run and what it cost, for result.json."""

    # ---- the loop

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.step >= self.config.updates

    def due(self, every: int) -> bool:
        """Whether what is done at every `every`-th step, and at the last, is to be done now."""
        return self.step % every == 0 or self.finished

    def train(self, tensorboard: bool = False) -> bool:
        """Train to the end of the budget; False if a signal asked to stop (the state is saved then)."""
        c = self.config
        label = f"{c.system} on {c.env}, seed {c.seed}"
        with (
            contextlib.ExitStack() as opened,
            Interrupt() as interrupt,
            MetricsWriter(self.directory, tensorboard) as self.metrics,
            Progress(c.updates, label, start=self.step, unit=self.UNIT) as self.progress,
        ):
            self.files = {n: opened.enter_context(JsonLines(self.directory / f"{n}.jsonl")) for n in self.FILES}
            self.begin()
            while not self.finished:
                self.step += 1
                values = self.iterate()
                if self.due(c.log_every):
                    written = self.metrics.write(self.step, "train", values)
                    self.progress.update(self.step, {n: x for n, x in written.items() if re.fullmatch(self.SHOWN, n)})
                if self.due(c.eval_every):
                    check_finite(self.step, as_floats(values))
                    self.write_evaluation()
                stop = interrupt.requested  # asked once: a signal from here on comes after the next step
                if self.due(c.checkpoint_every) or stop:
                    check_finite(self.step, as_floats(values))
                    self.metrics.flush()
                    for file in self.files.values():
                        file.flush()
                    self.save()
                self.progress.update(self.step)
                if stop:
                    break
        return self.finished

    def begin(self) -> None:
        """Forget what was written of steps after the checkpoint that the run goes on from."""
        held = self.step or -1  # before the first checkpoint, an evaluation of step 0 is done again too
        self.metrics.truncate_after(held)
        rows = {name: file.truncate_after(held) for name, file in self.files.items()}
        self.evaluations = rows["evaluations"]

    def write_evaluation(self) -> None:
        """Evaluate the agent as it is, and write down what comes of it."""
        self.progress.note("evaluating")
        found = self.examine()
        self.files["evaluations"].append(found.row)
        self.evaluations.append(found.row)
        self.metrics.write(self.step, "eval", found.numbers)
        self.progress.print(f"step {self.step}: {found.text}")
        self.progress.note("")
