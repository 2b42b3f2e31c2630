"""Steps a second of the worlds with exact rules, many episodes side by side, alone and below the hierarchy runner.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks worlds

"alone" is the world's `step` with actions drawn before, "reset" the same with the episodes that ended begun anew,
"runner" a level that chooses at random and the record of everything. Per second of CPU time, one thread, medians over
the repetitions. The target, a million symbolic steps a second with 1,024 slots, is for "alone".
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from echelon.envs.grids import WORLDS
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import from_vector

TARGET = 1e6


class Random(Level):
    """Any action, each as likely."""

    name = "action"

    def __init__(self, actions: int):
        self.actions = actions

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(torch.randint(self.actions, (len(features["observation"]),)))


def rate(play: Callable[[int], object], ticks: int, slots: int, repeats: int) -> float:
    """Steps of all slots in a second of CPU time, the median over repetitions; a first one warms up."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        play(ticks)
        found.append(ticks * slots / (time.process_time() - start))
    return statistics.median(found[1:])


def rates(name: str, slots: int, ticks: int, repeats: int) -> tuple[float, float, float]:
    """Steps a second of a world alone, with resets, and below the runner."""
    world = WORLDS[name](slots, None, None)
    actions = torch.randint(world.models[0].actions, (ticks, slots))
    world.reset(seed=0)

    def alone(number: int) -> None:
        for t in range(number):
            world.step(actions[t])

    def resetting(number: int) -> None:
        for t in range(number):
            _, _, terminated, truncated, _ = world.step(actions[t])
            ended = terminated | truncated
            if bool(ended.any()):
                world.reset(seed=[t] * slots, options={"reset_mask": ended})

    runner = Runner([Random(world.models[0].actions)], from_vector(WORLDS[name](slots, None, None)))
    found = [rate(play, ticks, slots, repeats) for play in (alone, resetting, runner.collect)]
    return found[0], found[1], found[2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--ticks", type=int, default=100, help="steps of each slot in one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'world':16}{'alone':>12}{'reset':>12}{'runner':>12}{'target':>12}    steps/s")
    for name in WORLDS:
        found = rates(name, options.slots, options.ticks, options.repeats)
        print(f"{name:16}" + "".join(f"{x:12,.0f}" for x in (*found, TARGET)), flush=True)
    load = " ".join(f"{x:.2f}" for x in os.getloadavg())
    print(f"{options.slots} slots, {options.repeats} repetitions, 1 thread, torch {torch.__version__}, load {load}")


if __name__ == "__main__":
    main()
