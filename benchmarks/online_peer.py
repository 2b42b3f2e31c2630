"""PPO and SAC beside Stable-Baselines3: the same environments, networks, epochs and minibatches, in one process.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.online_peer [--returns]

Needs the extra `peers`. Both take turns; everything is at Stable-Baselines3's defaults: PPO of 2,048 steps of each of
eight CartPole-v1, ten epochs, minibatches of 64, two layers of 64; SAC on HalfCheetah-v5, a gradient step of 256 rows
an environment step, two layers of 256. The peer runs in torch's default mode of products, and again in the one that
echelon chose. A figure is the median over turns, a ratio the median of the ratios within turns. `--returns` trains both
with five seeds and compares greedy episodes in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from echelon.errors import EchelonError, MissingExtra
from echelon.hierarchy.runner import Runner
from echelon.systems.online.flat_ppo import FlatPPO
from echelon.systems.online.sac import SAC
from echelon.training.metrics import JsonLines
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig
from echelon.training.online.loop import OnlineRun
from echelon.training.online.worlds import make_world
from echelon.training.runtime import Runtime, choose
from echelon.training.seeding import seed_everything

TARGET = 2.0
SLOTS = 8
START = 100
"""Steps of SAC before it learns, Stable-Baselines3's default."""


def peers() -> Any:
    """The package. MissingExtra where it is not installed."""
    try:
        import stable_baselines3
    except ImportError:
        raise MissingExtra("stable-baselines3", "peers") from None
    return stable_baselines3


@contextlib.contextmanager
def ours(config: OnlineConfig, runtime: Runtime) -> Iterator[OnlineRun]:
    """A run whose `iterate` may be called, with its lines of episodes written to a folder that is removed."""
    systems: dict[str, type[OnlineAgent]] = {"flat-ppo": FlatPPO, "sac": SAC}
    system = systems[config.system]
    seed_everything(config.seed)
    with tempfile.TemporaryDirectory() as folder, runtime.active():
        run = OnlineRun.build(system, config, Path(folder), runtime, OnlineRun.inputs(system, config, print))
        with JsonLines(run.directory / "episodes.jsonl") as episodes:
            run.files = {"episodes": episodes}
            yield run


def iterate(run: OnlineRun, times: int) -> None:
    """So many iterations."""
    with run.runtime.active():
        for _ in range(times):
            run.step += 1
            run.iterate()


def ppo_of(seed: int) -> tuple[OnlineConfig, Any]:
    """Our configuration and their agent, PPO."""
    from stable_baselines3.common.env_util import make_vec_env

    config = FlatPPO.Config(env="CartPole-v1", slots=SLOTS, seed=seed)
    worlds = make_vec_env("CartPole-v1", SLOTS, seed=seed)
    return config, peers().PPO("MlpPolicy", worlds, seed=seed, device="cpu")


def sac_of(seed: int) -> tuple[OnlineConfig, Any]:
    """Our configuration and their agent, SAC."""
    config = SAC.Config(env="HalfCheetah-v5", random_steps=START, seed=seed)
    return config, peers().SAC("MlpPolicy", "HalfCheetah-v5", learning_starts=START, seed=seed, device="cpu")


@contextlib.contextmanager
def products(mode: str) -> Iterator[None]:
    """Within it, float32 products in this mode of torch; "highest" is its default."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(mode)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def turn(work: Callable[[], Any], steps: int) -> tuple[float, float]:
    """Steps a second of CPU time and of wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return steps / (time.process_time() - cpu), steps / (time.perf_counter() - wall)


def speed(contest: Callable[[int], tuple[OnlineConfig, Any]], iterations: int, turns: int) -> list[float]:
    """Steps a second of CPU time: [ours, theirs, ratio, theirs in our mode of products, ratio]; last, the first ratio
    by the wall clock."""
    config, theirs = contest(0)
    steps, warm = iterations * config.steps, max(1, 2 * START // config.steps)
    rows: list[tuple[float, ...]] = []
    with ours(config, choose("cpu", "float32", 1)) as run:
        iterate(run, warm)
        theirs.learn(warm * config.steps)
        for _ in range(turns):
            mine = turn(lambda: iterate(run, iterations), steps)
            plain, tuned = (peer_turn(theirs, steps, mode) for mode in ("highest", run.runtime.matmul))
            rows.append((mine[0], plain[0], mine[0] / plain[0], tuned[0], mine[0] / tuned[0], mine[1] / plain[1]))
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def peer_turn(theirs: Any, steps: int, mode: str) -> tuple[float, float]:
    """A turn of the peer with products in this mode."""
    with products(mode):
        return turn(lambda: theirs.learn(steps, reset_num_timesteps=False), steps)


def returns(contest: Callable[[int], tuple[OnlineConfig, Any]], steps: int, seeds: int) -> tuple[list[float], ...]:
    """Mean return of 20 greedy episodes after `steps` environment steps, of each seed: ours, theirs."""
    from stable_baselines3.common.evaluation import evaluate_policy

    found: tuple[list[float], list[float]] = ([], [])
    for seed in range(seeds):
        config, theirs = contest(seed)
        with ours(config, choose("cpu", "float32", 1)) as run:
            iterate(run, -(-steps // config.steps))
            found[0].append(float(run.evaluator.run(run.agent, run.step).row["return"]))
        with products("highest"):
            theirs.learn(steps)
        mean, _ = evaluate_policy(theirs, theirs.get_env(), 20, warn=False)
        found[1].append(cast(float, mean))
    return found


def batched(turns: int, ticks: int = 200, slots: int = 1024) -> list[float]:
    """Steps a second of PPO's policy in many four-rooms side by side: CPU time, wall time."""
    config = FlatPPO.Config(env="four-rooms", slots=slots)
    with ours(config, choose("cpu", "float32", 1)) as run, run.runtime.fitting(run.agent):
        runner = Runner(run.agent.levels(True), make_world(config.env, slots), generator=torch.Generator())
        runner.collect(ticks)
        rows = [turn(lambda: runner.collect(ticks), ticks * slots) for _ in range(turns)]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="0: no speeds")
    parser.add_argument("--returns", action="store_true", help="compare final returns too, which takes half an hour")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs=2, default=(98_304, 10_000), help="of PPO and SAC with --returns")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        version = peers().__version__
    except EchelonError as error:
        raise SystemExit(f"online_peer: {error}") from None
    cases = (("PPO, CartPole-v1 x8, steps/s", ppo_of, 1), ("SAC, HalfCheetah-v5, updates/s", sac_of, 200))
    print(f"{'':32}{'echelon':>10}{'SB3':>10}{'ratio':>7}{'our mode':>10}{'ratio':>7}{'wall ratio':>12}{'target':>8}")
    for name, contest, iterations in cases if chosen.turns else ():
        mine, plain, ratio, tuned, harder, wall = speed(contest, iterations, chosen.turns)
        print(f"{name:32}{mine:10.0f}{plain:10.0f}{ratio:7.2f}{tuned:10.0f}{harder:7.2f}{wall:12.2f}", end="")
        print(f"{TARGET:8.1f}", flush=True)
    if chosen.turns:
        cpu, wall_clock = batched(chosen.turns)
        print(f"{'PPO acting, four-rooms x1024':32}{cpu:10.0f}   by the wall clock {wall_clock:.0f}", flush=True)
    for (name, contest, _), steps in zip(cases, chosen.steps if chosen.returns else (), strict=False):
        mine_all, theirs_all = returns(contest, steps, chosen.seeds)
        print(f"{name.rsplit(',', 1)[0]}, return after {steps} steps, {chosen.seeds} seeds")
        for who, values in (("echelon", mine_all), ("SB3", theirs_all)):
            print(f"  {who:8} mean {statistics.mean(values):9.1f}  " + " ".join(f"{x:.1f}" for x in values), flush=True)
    print(f"1 thread, torch {torch.__version__}, stable-baselines3 {version}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
