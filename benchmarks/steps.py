"""What the benchmarks of training steps share: sizes, random data, timed stretches, the work and rate of products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from echelon.data.source import OfflineSource
from echelon.data.store import Store
from echelon.training.agent import Agent, DataSpec, Learner
from echelon.training.config import Config
from echelon.training.runtime import Runtime

Batch = dict[str, Tensor]
DRAWS = 16
"""Batches of one timed stretch of sampling: a whole block of the source, so that its cost counts in full."""


@dataclass(frozen=True)
class Size:
    """Sizes of data and networks, and how many updates one timed stretch has."""

    name: str
    batch: int
    hidden: tuple[int, ...]
    observation: int
    action: int
    transitions: int
    stretch: int

    @property
    def words(self) -> str:
        return (
            f"{self.name}: batch {self.batch}, {len(self.hidden)} x {self.hidden[0]}, observations {self.observation}, "
            f"actions {self.action}, {self.transitions:,} transitions"
        )


SIZES = {
    "default": Size("default", 1024, (512, 512, 512), 29, 8, 1_000_000, 1),
    "cpu": Size("cpu", 256, (256, 256), 2, 2, 500_000, 10),
}


def synthetic_store(size: Size, length: int = 1000) -> Store:
    """Episodes of `length` transitions with random entries, in memory."""
    random = np.random.default_rng(0)
    episodes = max(1, size.transitions // length)
    rows = episodes * (length + 1)
    columns = {
        "observations": random.standard_normal((rows, size.observation), dtype=np.float32),
        "actions": random.uniform(-1, 1, (rows, size.action)).astype(np.float32),
        "terminals": np.arange(1, rows + 1) % (length + 1) == 0,
    }
    return Store(Path(), {"name": "synthetic"}, columns, np.full(episodes, length))


def sized(config: Config, size: Size) -> Config:
    """`config` with the batch and the hidden layers of `size`."""
    layers = {f.name for f in dataclasses.fields(config)} & {"value_hidden", "actor_hidden"}
    changes: dict[str, Any] = {"batch_size": size.batch, **dict.fromkeys(layers, size.hidden)}
    return dataclasses.replace(config, **changes)


def ready(
    cls: type[Agent], config: Config, size: Size, runtime: Runtime, store: Store
) -> tuple[Agent, Learner, OfflineSource]:
    """A system that can train on `store`, whose observations and actions are those of `size`."""
    torch.manual_seed(0)
    agent = cls(config, DataSpec(size.observation, size.action))
    return agent, Learner(agent, runtime), OfflineSource(store, config.goals(), config.batch_size, seed=0)


@dataclass(frozen=True)
class Contestant:
    """Something that draws batches and learns from them, with float32 products in mode `matmul`."""

    draw: Callable[[], Batch]
    update: Callable[[Batch], object]
    matmul: str

    def seconds(self, updates: int, clock: Callable[[], float]) -> tuple[float, float]:
        """Seconds of drawing one batch and of one update, both averaged over a stretch."""
        torch.set_float32_matmul_precision(self.matmul)
        start = clock()
        batches = [self.draw() for _ in range(DRAWS)]
        drawn = clock()
        for k in range(updates):
            self.update(batches[k % DRAWS])
        return (drawn - start) / DRAWS, (clock() - drawn) / updates


def flops(contestant: Contestant) -> float:
    """Floating-point operations of the matrix products in one update, forward and backward."""
    batch = contestant.draw()
    with FlopCounterMode(display=False) as counter:
        contestant.update(batch)
    return float(counter.get_total_flops())


def product_rate(size: Size, precision: str, clock: Callable[[], float]) -> float:
    """GFLOP/s of the fastest of 40 linear layers of the run's batch and width, in the better mode; bfloat16 inputs."""
    dtype, width, shortest = getattr(torch, precision), size.hidden[0], float("inf")
    x, w, b = (torch.randn(shape).to(dtype) for shape in ((size.batch, width), (width, width), (width,)))
    for mode in ("highest", "medium"):
        torch.set_float32_matmul_precision(mode)
        for _ in range(20):
            start = clock()
            torch.nn.functional.linear(x, w, b)
            shortest = min(shortest, clock() - start)
    return 2e-9 * size.batch * width * width / shortest


def table_row(cells: Sequence[str], columns: Mapping[str, int]) -> str:
    """Cells under the headings `columns`, which have their widths."""
    return "".join(f"{cell or '-':>{width}}" for cell, width in zip(cells, columns.values(), strict=True))
