"""One gradient step of HIQL and OTA, sampling included, beside plain PyTorch ports of the same losses.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.update

All contestants of a row take turns in one process; a cell is the median over rounds, a ratio the median of the ratios
within rounds. Before timing, the losses of echelon and of its peers are compared on the same weights and batch. What
the columns mean is in `benchmarks/README.md`. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.ports import PlainSampler, port
from benchmarks.steps import (
    SIZES,
    Batch,
    Contestant,
    Size,
    flops,
    product_rate,
    ready,
    sized,
    synthetic_store,
    table_row,
)
from echelon.data.source import OfflineSource
from echelon.data.store import Store
from echelon.systems.offline.hiql import HIQL, HIQLConfig
from echelon.systems.offline.ota import OTA, OTAConfig
from echelon.training.agent import Learner
from echelon.training.runtime import Runtime, choose, cpu_class

LOSS_TOLERANCE = 1e-4


SYSTEMS: dict[str, tuple[Any, Any]] = {"hiql": (HIQL, HIQLConfig), "ota": (OTA, OTAConfig)}
COLUMNS = {
    **{"system": 6, "precision": 10, "threads": 8, "GFLOP": 7, "updates/s": 10, "target": 7, "bound": 6, "GFLOP/s": 8},
    **{"plain": 8, "medium": 8, "tanh": 8, "GFLOP'": 8, "ratio": 6, "draw": 6, "load": 6},
}
"""Headings and widths."""
TARGETS = {("default", "hiql", "float32", 2): 7.0, ("default", "hiql", "bfloat16", 2): 12.0}
"""Updates a second that two free cores should reach."""


def build(size: Size, system: str, runtime: Runtime, store: Store) -> tuple[HIQL | OTA, Learner, OfflineSource]:
    """A system at its published settings and the given size, ready to train."""
    cls, config_cls = SYSTEMS[system]
    agent, learner, source = ready(cls, sized(config_cls(), size), size, runtime, store)
    assert isinstance(agent, HIQL | OTA)
    return agent, learner, source


def contestants(size: Size, system: str, runtime: Runtime, store: Store, tanh: bool) -> dict[str, Contestant]:
    """Echelon and its peers with equal weights, after checking that they compute the same loss."""
    agent, learner, source = build(size, system, runtime, store)
    sampler = PlainSampler(store, source.goals, size.batch, seed=0)

    def plain(matmul: str, gelu: str = "none") -> Contestant:
        peer = port(agent, size.observation, size.action, gelu)
        if gelu == "none":
            same_loss(learner, peer.loss, source.next())
        return Contestant(sampler.next, partial(peer.update, autocast=runtime.autocast), matmul)

    found = {"echelon": Contestant(source.next, partial(learner.step, 1), runtime.matmul), "plain": plain("highest")}
    if runtime.precision == "float32":
        found["medium"] = plain("medium")
    if tanh:
        found["tanh"] = plain("highest", "tanh")
    return found


def same_loss(learner: Learner, peer: Callable[[Batch], Tensor], batch: Batch) -> None:
    """Raise RuntimeError unless both compute the same float32 loss on the same weights, to a relative 1e-4."""
    torch.set_float32_matmul_precision("highest")
    ours, theirs = learner.updates[0].loss(batch)[0].item(), peer(batch).item()
    if abs(ours - theirs) > LOSS_TOLERANCE * abs(theirs):
        raise RuntimeError(f"the peer's loss is another one: {theirs} beside {ours}")


def measure(size: Size, system: str, precision: str, threads: int, store: Store, rounds: int) -> list[str]:
    """The cells of one row."""
    runtime = choose("cpu", precision, threads)
    # on one thread CPU seconds, which other processes hardly disturb; on several only the wall tells the truth
    clock = time.process_time if threads == 1 else time.perf_counter
    with runtime.active():
        field = contestants(size, system, runtime, store, tanh=precision == "float32" and threads == 1)
        work = {name: flops(field[name]) / 1e9 for name in ("echelon", "plain")}
        laps: dict[str, list[tuple[float, float]]] = {name: [] for name in field}
        bound = 0.0
        for turn in range(rounds):
            for name in list(field) if turn % 2 else list(field)[::-1]:
                laps[name].append(field[name].seconds(size.stretch, clock))
            bound = max(bound, product_rate(size, precision, clock))
    steps = {name: [draw + update for draw, update in lap] for name, lap in laps.items()}
    rate = {name: 1 / statistics.median(step) for name, step in steps.items()}
    best = max(("plain", "medium"), key=lambda name: rate.get(name, 0.0))
    ratio = statistics.median(theirs / ours for theirs, ours in zip(steps[best], steps["echelon"], strict=True))
    share = statistics.median(draw / (draw + update) for draw, update in laps["echelon"])
    target = TARGETS.get((size.name, system, precision, threads))
    return [
        *(system, precision, str(threads), f"{work['echelon']:.2f}", f"{rate['echelon']:.2f}"),
        *(f"{target:.0f}" if target else "", f"{100 * rate['echelon'] * work['echelon'] / bound:.0f}%", f"{bound:.0f}"),
        *(f"{rate[name]:.2f}" if name in rate else "" for name in ("plain", "medium", "tanh")),
        *(f"{work['plain']:.2f}", f"{ratio:.2f}", f"{100 * share:.1f}%", f"{os.getloadavg()[0]:.1f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    chosen = parser.parse_args(arguments)
    print(f"{cpu_class()}; {os.cpu_count()} cores; torch {torch.__version__}; {choose('cpu', 'float32', 1).describe()}")
    print(
        f"one thread: updates a CPU second; more: updates a second. Losses of all but 'tanh' equal to {LOSS_TOLERANCE}."
    )
    for size in (SIZES[name] for name in chosen.sizes):
        store = synthetic_store(size)
        print(f"\n{size.words}\n{table_row(list(COLUMNS), COLUMNS)}", flush=True)
        for threads in chosen.threads:
            for precision in chosen.precisions:
                for system in chosen.systems:
                    cells = measure(size, system, precision, threads, store, chosen.rounds)
                    print(table_row(cells, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
