"""Two processes of one thread each beside one process of two threads: what small networks make of two cores.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.processes

Spawned workers train one system each at CPU sizes, sampling included. Both arrangements take turns and do as many
updates; a cell is the median over rounds of the whole machine's updates a second, by the wall clock. It is what
`--jobs` of `echelon train` and `reproduce` rests on. The time that the processes take to start is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from benchmarks.steps import SIZES, synthetic_store
from benchmarks.update import SYSTEMS, build
from echelon.training.runtime import choose

TARGET = 150
"""Updates a second of both cores together that HIQL at CPU sizes should reach."""


def work(connection: Connection, size_name: str, system: str, precision: str, threads: int) -> None:
    """Train as many steps as each received number says and answer when done; end at zero."""
    size, runtime = SIZES[size_name], choose("cpu", precision, threads)
    with runtime.active():
        _, learner, source = build(size, system, runtime, synthetic_store(size))
        updates = 5
        while updates:
            for _ in range(updates):
                learner.step(1, source.next())
            connection.send("done")
            updates = connection.recv()


def timed(workers: Sequence[Connection], updates: int) -> float:
    """Updates a second of `workers` that share `updates` and start together."""
    start = time.perf_counter()
    for worker in workers:
        worker.send(updates // len(workers))
    for worker in workers:
        worker.recv()
    return updates / (time.perf_counter() - start)


def measure(size_name: str, system: str, precision: str, updates: int, rounds: int) -> list[float]:
    """Updates a second of two processes, of one, and the median of their ratios."""
    spawn = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for threads in (1, 1, 2):
        mine, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=work, args=(theirs, size_name, system, precision, threads), daemon=True))
        processes[-1].start()
        theirs.close()  # a worker that dies then ends our waiting with an EOFError
        ends.append(mine)
    for end in ends:
        end.recv()
    laps = [(timed(ends[:2], updates), timed(ends[2:], updates)) for _ in range(rounds)]
    for end, process in zip(ends, processes, strict=True):
        end.send(0)
        process.join()
    return [*map(statistics.median, zip(*laps, strict=True)), statistics.median(two / one for two, one in laps)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=60, help="updates of one timed stretch")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    chosen = parser.parse_args(arguments)
    print(f"{SIZES[chosen.size].words}; updates a second of the whole machine ({os.cpu_count()} cores)")
    print(
        f"{'system':>6}{'precision':>10}{'2 x 1 thread':>14}{'1 x 2 threads':>15}{'ratio':>7}{'target':>8}{'load':>7}"
    )
    for system in chosen.systems:
        for precision in chosen.precisions:
            two, one, ratio = measure(chosen.size, system, precision, chosen.updates, chosen.rounds)
            target = TARGET if (chosen.size, system) == ("cpu", "hiql") else "-"
            load = os.getloadavg()[0]
            print(f"{system:>6}{precision:>10}{two:14.1f}{one:15.1f}{ratio:7.2f}{target:>8}{load:7.1f}", flush=True)


if __name__ == "__main__":
    main()
