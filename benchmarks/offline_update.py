"""One gradient step of every offline system, beside the same matrix products alone.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.offline_update

A step and its products take turns in one process; a cell is the median over rounds, a share the median of the shares
within rounds. Under the table stands where the time of slow systems goes. What the columns mean is in
`benchmarks/README.md`. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.steps import SIZES, Contestant, Size, product_rate, ready, sized, synthetic_store, table_row
from echelon.data.store import Store
from echelon.systems.index import CLASSES
from echelon.systems.offline.recipes import recipe
from echelon.training.agent import Agent
from echelon.training.config import Config
from echelon.training.runtime import choose, cpu_class

SYSTEMS = ("gcbc", "gcivl", "gciql", "crl", "qrl", "hiql", "ota", "saw", "hilp", "smore", "hecrl")
GENERATIVE = {
    **dict.fromkeys(("gcbc-chunks", "decision-transformer", "mage", "act2goal"), "pointmaze-large-navigate-v0"),
    "beso": "cube-single-play-v0",
}
"""Systems that learn from windows of steps, at the sizes of their recipes for an environment."""
UNTIMED: tuple[str, ...] = ("ghil-glue", "mocapact", "uvd")
"""Offline systems whose steps are not timed here."""
RECIPES = {"default": "published", "cpu": "cpu"}
"""Size of the recipe that is timed in each place."""
DATA = {"pointmaze": (2, 2), "cube": (28, 5)}
"""Numbers of an observation and of an action in these worlds."""
ENTITIES = "cube-triple-noisy-v0"
ENTITY_SIZES = {
    "default": Size("hecrl", 512, (256, 256, 256), 46, 5, 100_000, 1),
    "cpu": Size("hecrl", 256, (256, 256), 46, 5, 100_000, 1),
}
"""HECRL is a transformer over entities: its recipes' sizes instead, and no bound."""
COLUMNS = {
    **{"system": 20, "updates/s": 11, "drawn": 8, "GFLOP": 8, "GFLOP/s": 9, "bound": 7, "share": 7},
    **{"layer": 7, "share'": 8, "load": 6},
}
"""Headings and widths."""
TARGET, GENERATIVE_TARGET = 0.6, 0.5
"""The share of the bound that systems of perceptrons and others should reach; below it their profile is printed."""
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Products(TorchDispatchMode):
    """Takes down the matrix products that are computed while it is active, to compute the same ones alone later.

    Operands have the same shapes, strides and precision, and random entries; those that are alike are one tensor.
    `flops` counts their floating-point operations as torch's FlopCounterMode does, which fails on a module whose input
    is a view of a parameter, made without gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Tensor], list[Any], dict[str, Any]]] = []
        self.operands: dict[Layout, Tensor] = {}
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func.overloadpacket in PRODUCTS:
            self.calls.append((func, [self._operand(x) if isinstance(x, Tensor) else x for x in args], named))
        out = func(*args, **named)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **named, out_val=out)
        return out

    def _operand(self, x: Tensor) -> Tensor:
        layout = (x.shape, x.stride(), x.dtype)
        if layout not in self.operands:
            extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
            self.operands[layout] = torch.randn(extent).to(x.dtype).as_strided(x.shape, x.stride())
        return self.operands[layout]

    @torch.no_grad()
    def again(self) -> None:
        """Compute the products, in their order."""
        for product, operands, named in self.calls:
            product(*operands, **named)

    def seconds(self, times: int, clock: Callable[[], float], matmul: str) -> float:
        """Seconds of the products of one step, averaged over a stretch."""
        torch.set_float32_matmul_precision(matmul)
        start = clock()
        for _ in range(times):
            self.again()
        return (clock() - start) / times


def products_of(contestant: Contestant) -> Products:
    """The matrix products of one update, forward and backward."""
    batch = contestant.draw()
    with Products() as products:
        contestant.update(batch)
    return products


def profiled(contestant: Contestant, updates: int = 5, top: int = 6) -> str:
    """The operators in which most of an update's time is spent themselves, in percent; medians over a few updates."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler writes to stderr when it starts and stops
    torch.set_float32_matmul_precision(contestant.matmul)
    spent: dict[str, list[float]] = {}
    for _ in range(updates):
        batch = contestant.draw()
        with profile(activities=[ProfilerActivity.CPU]) as record:
            contestant.update(batch)
        for event in record.key_averages():
            spent.setdefault(event.key.removeprefix("aten::"), []).append(event.self_cpu_time_total)
    typical = {name: statistics.median(laps) for name, laps in spent.items()}
    first = sorted(typical, key=lambda name: -typical[name])[:top]
    return ", ".join(f"{name} {100 * typical[name] / sum(typical.values()):.0f}" for name in first)


def case(name: str, size: Size) -> tuple[type[Agent], Config]:
    """The class of a system and its published configuration at `size`; of a generative one and HECRL the recipe's."""
    module, _, cls = CLASSES[name].partition(":")
    system: type[Agent] = getattr(import_module(module), cls)
    if name in GENERATIVE:
        return system, recipe(system.Config, GENERATIVE[name], RECIPES[size.name])
    if name == "hecrl":
        scale = "published" if size == ENTITY_SIZES["default"] else "cpu"
        return system, sized(recipe(system.Config, ENTITIES, scale), size)
    return system, sized(system.Config(), size)


def own_size(name: str, place: str) -> Size:
    """The size at which a system is timed as `place` ("default" or "cpu")."""
    if name == "hecrl":
        return ENTITY_SIZES[place]
    size = SIZES[place]
    if name not in GENERATIVE:
        return size
    observation, action = DATA[GENERATIVE[name].partition("-")[0]]
    return Size(place, case(name, size)[1].batch_size, (), observation, action, 100_000, size.stretch)


def measure(name: str, size: Size, store: Store, precision: str, threads: int, rounds: int) -> tuple[list[str], str]:
    """The cells of one row, and the profile of a system under the target or without a bound, else nothing."""
    runtime, bounded, perceptrons = choose("cpu", precision, threads), name != "hecrl", bool(size.hidden)
    # on one thread CPU seconds, which other processes hardly disturb; on several only the wall tells the truth
    clock = time.process_time if threads == 1 else time.perf_counter
    with runtime.active():
        _, learner, source = ready(*case(name, size), size, runtime, store)
        step = Contestant(source.next, partial(learner.step, 1), runtime.matmul)
        products = products_of(step)
        laps, alone, layer = [], [], 0.0
        for turn in range(rounds):
            if turn % 2:
                laps.append(step.seconds(size.stretch, clock))
            if bounded:
                alone.append(products.seconds(size.stretch, clock, runtime.matmul))
            if bounded and perceptrons:
                layer = max(layer, product_rate(size, precision, clock))
            if not turn % 2:
                laps.append(step.seconds(size.stretch, clock))
        rate = 1 / statistics.median(update for _, update in laps)
        drawn = 1 / statistics.median(draw + update for draw, update in laps)
        gflop, load = products.flops / 1e9, f"{os.getloadavg()[0]:.1f}"
        cells = [name, f"{rate:.2f}", f"{drawn:.2f}", f"{gflop:.2f}", f"{rate * gflop:.0f}"]
        if not bounded:
            return [*cells, *[""] * 4, load], profiled(step)
        share = statistics.median(bare / update for bare, (_, update) in zip(alone, laps, strict=True))
        bounds = [f"{gflop / statistics.median(alone):.0f}", f"{share:.0%}"]
        if not perceptrons:
            return [*cells, *bounds, "", "", load], profiled(step) if share < GENERATIVE_TARGET else ""
        other = rate * gflop / layer
        bounds += [f"{layer:.0f}", f"{other:.0%}"]
        return [*cells, *bounds, load], profiled(step) if min(share, other) < TARGET else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    every = [*SYSTEMS, *GENERATIVE]
    parser.add_argument("--systems", nargs="+", choices=every, default=every)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    print(f"{cpu_class()}; {os.cpu_count()} cores; torch {torch.__version__}")
    print(choose("cpu", chosen.precision, chosen.threads).describe())
    for place, size in ((place, SIZES[place]) for place in chosen.sizes):
        store, profiles = synthetic_store(size), {}
        print(f"\n{size.words}\n{table_row(list(COLUMNS), COLUMNS)}", flush=True)
        for name in chosen.systems:
            own = own_size(name, place)
            data = store if own == size else synthetic_store(own)
            cells, spent = measure(name, own, data, chosen.precision, chosen.threads, chosen.rounds)
            print(table_row(cells, COLUMNS), flush=True)
            if spent:
                profiles[name] = spent
        if "hecrl" in chosen.systems:
            print(ENTITY_SIZES[place].words)
        print("percent of a step in its first operators, of systems without a bound or under their targets:")
        for name, spent in profiles.items():
            print(f"{name:>20}  {spent}", flush=True)


if __name__ == "__main__":
    main()
