"""How fast are span operations? One million items against a Python loop and against the usual batched torch loop.

    python benchmarks/spans.py

Prints milliseconds (best of three), the ratio of the better loop to `scan`, and the time of a plain copy of the items
as a share of `scan`'s: the bound set by memory. All see the same spans: the Python loop as lists, the torch loop as a
padded matrix [longest, n], padding not counted, and left out where it would take more than a gigabyte.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from echelon.spans import Spans

ITEMS = 1_000_000
GAMMA = 0.99
COLUMNS = ("scan", "limit=5", "scan+grad", "std", "shift", "Python loop", "torch loop", "loop/scan", "copy/scan")


def best_ms(run: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of a few timed runs after one to warm up, in milliseconds."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def python_loop(x: list[float], offsets: list[int]) -> list[float]:
    """Discounted sums to the end of each span, item by item."""
    out = [0.0] * len(x)
    for start, stop in pairwise(offsets):
        running = 0.0
        for i in range(stop - 1, start - 1, -1):
            running = out[i] = x[i] + GAMMA * running
    return out


def torch_loop(padded: Tensor) -> Tensor:
    """Discounted sums down the first dimension, one step for all spans at a time."""
    out, running = torch.empty_like(padded), torch.zeros(padded.shape[1])
    for t in range(len(padded) - 1, -1, -1):
        running = out[t] = padded[t] + GAMMA * running
    return out


def layouts() -> dict[str, Spans]:
    """Short turns, episodes of random length, one huge span among short ones, interleaved streams of equal length."""
    lengths = torch.randint(1, 2000, (ITEMS // 1000,), generator=torch.Generator().manual_seed(0))
    return {
        "turns of 8": Spans.from_lengths([8] * (ITEMS // 8)),
        "episodes of 1-2000": Spans.from_lengths(lengths),
        "900k among 10s": Spans.from_lengths([10] * 5_000 + [900_000] + [10] * 5_000),
        "256 interleaved": Spans.by_key(torch.arange(ITEMS) % 256),
    }


def measure(spans: Spans) -> list[float]:
    """One row of the table; NaN where a loop was left out."""
    x = torch.randn(spans.size, generator=torch.Generator().manual_seed(1))
    learnt, packed = x.clone().requires_grad_(), x if spans.order is None else x[spans.order]
    values, offsets = packed.tolist(), spans.offsets.tolist()
    scanned = spans.scan(x, GAMMA) if spans.order is None else spans.scan(x, GAMMA)[spans.order]
    torch.testing.assert_close(scanned, torch.tensor(python_loop(values, offsets)), rtol=1e-3, atol=1e-3)
    row = [
        best_ms(lambda: spans.scan(x, GAMMA)),
        best_ms(lambda: spans.scan(x, GAMMA, limit=5)),
        best_ms(lambda: spans.scan(learnt, GAMMA).sum().backward()),
        best_ms(lambda: spans.siblings(x, "std", ddof=1)),
        best_ms(lambda: spans.shift(x)),
        best_ms(lambda: python_loop(values, offsets), 1),
        float("nan"),
    ]
    if spans.longest * spans.n < 250_000_000:
        padded = torch.zeros(spans.longest, spans.n)
        padded[spans.position, spans.ids] = x
        row[6] = best_ms(lambda: torch_loop(padded))
    fastest_loop = row[5] if row[6] != row[6] else min(row[5:7])
    return [*row, fastest_loop / row[0], best_ms(x.clone) / row[0]]


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, load {os.getloadavg()[0]:.1f}, {ITEMS:,} float32 items, milliseconds")
    print(f"{'':20}" + "".join(f"{name:>12}" for name in COLUMNS))
    for name, spans in layouts().items():
        print(f"{name:20}" + "".join(f"{value:12.2f}" for value in measure(spans)))


if __name__ == "__main__":
    main()
