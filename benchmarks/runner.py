"""Time of the runner over that of a hand-written flat loop with the same networks, worlds, forwards and records.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/runner.py

Both run alternately in one process on one thread. Times are CPU microseconds of a tick, medians over the repetitions;
"ratio" is the median of the ratios of neighbouring runs, "best" that of the fastest runs of each, which other load on
the machine disturbs least. Targets: 1.10 on eight MuJoCo environments, 1.05 on a batched world. The last line is the
runner with two levels over the runner with one level that does the same work in its networks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every
from echelon.hierarchy.world import Reset, Step, from_gym

GOAL, HOLD = 8, 10


class Net(nn.Module):
    """A Gaussian actor and a critic, two hidden layers of `width` each."""

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        self.actor, self.critic = self._mlp(inputs, outputs, width), self._mlp(inputs, 1, width)

    def _mlp(self, inputs: int, outputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
        )

    def act(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled action [B, d], its log-probability (up to a constant) [B] and the value [B]."""
        noise = torch.randn(len(x), self.actor[-1].out_features)
        return self.actor(x) + 0.1 * noise, -0.5 * noise.square().sum(-1), self.critic(x)[:, 0]


class High(Level):
    name = "high"
    termination = Every(HOLD)

    def __init__(self, net: Net):
        self.net = net

    def decide(self, features, parent, due):
        action, log_prob, value = self.net.act(features["observation"])
        return Decision(action, log_prob, {"value": value})


class Low(Level):
    name = "low"

    def __init__(self, net: Net):
        self.net = net

    def decide(self, features, parent, due):
        x = features["observation"]
        x = x if parent is None else torch.cat([x, parent], -1)
        action, log_prob, value = self.net.act(x)
        return Decision(action, log_prob, {"value": value})


class Both(Level):
    """One level that does the work of two: a goal every `HOLD` ticks, which its other network reads."""

    name = "both"

    def __init__(self, high: Net, low: Net):
        self.high, self.low, self.tick = high, low, 0
        self.goal: tuple[Tensor, ...] = ()

    def decide(self, features, parent, due):
        x = features["observation"]
        if self.tick % HOLD == 0:
            self.goal = self.high.act(x)
        self.tick += 1
        action, log_prob, value = self.low.act(torch.cat([x, self.goal[0]], -1))
        return Decision(action, log_prob, {"value": value})


class PointWorld:
    """Many points pushed around a plane in numpy, episodes of 200 steps."""

    agents, roles, explicit = 1, ("agent",), True

    def __init__(self, slots: int):
        self.slots = slots
        self.bounds = (-torch.ones(6), torch.ones(6))
        self.state = np.zeros((slots, 17), dtype=np.float32)
        self.time = np.zeros(slots, dtype=np.int64)

    def reset(self, slots: np.ndarray, resets: Sequence[Reset]) -> np.ndarray:
        state = self.state.copy()
        state[slots] = np.random.default_rng(resets[0].seed).normal(size=(len(slots), 17)).astype(np.float32)
        self.time[slots] = 0
        self.state = state
        return state

    def step(self, actions: Tensor, active: np.ndarray) -> Step:
        state = self.state * np.float32(0.95)
        state[:, :6] += 0.1 * actions.numpy()
        self.state = state
        self.time += 1
        reward = -np.square(state[:, :2]).sum(1)
        return Step(state, reward, np.zeros(self.slots, dtype=bool), self.time >= 200)


class Storage:
    """Preallocated columns of the flat loop."""

    def __init__(self, ticks: int, streams: int, obs: int, act: int):
        self.obs, self.final = torch.zeros(ticks, streams, obs), torch.zeros(ticks, streams, obs)
        self.action = torch.zeros(ticks, streams, act)
        self.log_prob, self.value, self.reward = (torch.zeros(ticks, streams) for _ in range(3))
        self.terminated, self.truncated = (torch.zeros(ticks, streams, dtype=torch.bool) for _ in range(2))
        decisions = ticks // HOLD + 1
        self.goal = torch.zeros(decisions, streams, GOAL)
        self.goal_log_prob, self.goal_value = torch.zeros(decisions, streams), torch.zeros(decisions, streams)


class FlatGym:
    """The loop that one writes by hand for a list of environments."""

    def __init__(self, envs: list[gymnasium.Env], low: Net, high: Net | None):
        self.envs, self.low, self.high = envs, low, high
        self.space = envs[0].action_space
        self.obs = np.stack([env.reset(seed=i)[0] for i, env in enumerate(envs)]).astype(np.float32)

    def __call__(self, ticks: int) -> Storage:
        store = Storage(ticks, len(self.envs), self.obs.shape[1], self.space.shape[0])
        reward = np.zeros(len(self.envs), dtype=np.float32)
        terminated, truncated = np.zeros(len(self.envs), dtype=bool), np.zeros(len(self.envs), dtype=bool)
        with torch.inference_mode():
            for t in range(ticks):
                action = _flat_act(store, t, torch.from_numpy(self.obs), self.low, self.high)
                command = np.clip(action.numpy(), self.space.low, self.space.high)
                obs = np.empty_like(self.obs)
                for i, env in enumerate(self.envs):
                    obs[i], reward[i], terminated[i], truncated[i], _ = env.step(command[i])
                    if terminated[i] or truncated[i]:
                        store.final[t, i] = torch.from_numpy(obs[i])
                        obs[i], _ = env.reset()
                _flat_record(store, t, reward, terminated, truncated)
                self.obs = obs
        return store


class FlatBatched:
    """The loop that one writes by hand for a batched world."""

    def __init__(self, world: PointWorld, low: Net, high: Net | None):
        self.world, self.low, self.high = world, low, high
        self.obs = world.reset(np.arange(world.slots), [Reset(seed=0)] * world.slots)
        self.active = np.ones(world.slots, dtype=bool)

    def __call__(self, ticks: int) -> Storage:
        store = Storage(ticks, self.world.slots, 17, 6)
        with torch.inference_mode():
            for t in range(ticks):
                action = _flat_act(store, t, torch.from_numpy(self.obs), self.low, self.high)
                obs, reward, terminated, truncated, _, _ = self.world.step(action.clamp(-1, 1), self.active)
                done = terminated | truncated
                if done.any():
                    rows = np.flatnonzero(done)
                    store.final[t, rows] = torch.from_numpy(obs[rows])
                    obs = self.world.reset(rows, [Reset(seed=t)] * len(rows))
                _flat_record(store, t, reward, terminated, truncated)
                self.obs = obs
        return store


def _flat_act(store: Storage, t: int, obs: Tensor, low: Net, high: Net | None) -> Tensor:
    store.obs[t] = obs
    if high is not None:
        k = t // HOLD
        if t % HOLD == 0:
            store.goal[k], store.goal_log_prob[k], store.goal_value[k] = high.act(obs)
        obs = torch.cat([obs, store.goal[k]], -1)
    action, store.log_prob[t], store.value[t] = low.act(obs)
    store.action[t] = action
    return action


def _flat_record(store: Storage, t: int, *columns: np.ndarray) -> None:
    for target, column in zip((store.reward, store.terminated, store.truncated), columns, strict=True):
        target[t] = torch.from_numpy(column)


def compare(flat: Callable[[int], object], runner: Callable[[int], object], ticks: int, repeats: int) -> list[float]:
    """CPU microseconds of a tick of each, and the ratios runner / flat: [flat, runner, median ratio, best ratio]."""
    times: dict[Callable[[int], object], list[float]] = {flat: [], runner: []}
    for repeat in range(repeats + 1):  # the first one warms up
        for run in (flat, runner) if repeat % 2 else (runner, flat):
            start = time.process_time()
            run(ticks)
            times[run].append((time.process_time() - start) / ticks * 1e6)
    a, b = times[flat][1:], times[runner][1:]
    ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
    return [statistics.median(a), statistics.median(b), ratio, min(b) / min(a)]


def mujoco(levels: int, width: int, ticks: int, repeats: int) -> list[float]:
    """Eight HalfCheetah-v5."""
    low, high = Net(17 + GOAL * (levels == 2), 6, width), Net(17, GOAL, width) if levels == 2 else None
    flat = FlatGym([gymnasium.make("HalfCheetah-v5") for _ in range(8)], low, high)
    stack = [Low(low)] if high is None else [High(high), Low(low)]
    world = from_gym([gymnasium.make("HalfCheetah-v5") for _ in range(8)])
    return compare(flat, Runner(stack, world, generator=torch.Generator().manual_seed(0)).collect, ticks, repeats)


def batched(levels: int, width: int, ticks: int, repeats: int) -> list[float]:
    """1024 points."""
    low, high = Net(17 + GOAL * (levels == 2), 6, width), Net(17, GOAL, width) if levels == 2 else None
    flat = FlatBatched(PointWorld(1024), low, high)
    stack = [Low(low)] if high is None else [High(high), Low(low)]
    return compare(flat, Runner(stack, PointWorld(1024)).collect, ticks, repeats)


def two_over_one(width: int, ticks: int, repeats: int) -> list[float]:
    """The runner with two levels over the runner with one that does the work of both, on eight HalfCheetah-v5."""
    low, high = Net(17 + GOAL, 6, width), Net(17, GOAL, width)
    stacks = ([Both(high, low)], [High(high), Low(low)])
    worlds = [from_gym([gymnasium.make("HalfCheetah-v5") for _ in range(8)]) for _ in stacks]
    one, two = (
        Runner(stack, world, generator=torch.Generator().manual_seed(0))
        for stack, world in zip(stacks, worlds, strict=True)
    )
    return compare(one.collect, two.collect, ticks, repeats)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--width", type=int, default=256, help="hidden units of the networks")
    repeats, width = parser.parse_args().repeats, parser.parse_args().width
    torch.set_num_threads(1)
    print(f"{'world':20}{'levels':>7}{'flat us':>10}{'runner us':>11}{'ratio':>8}{'best':>8}{'target':>8}")
    for name, case, ticks, target in (("HalfCheetah-v5 x8", mujoco, 500, 1.10), ("points x1024", batched, 100, 1.05)):
        for levels in (1, 2):
            flat, runner, ratio, best = case(levels, width, ticks, repeats)
            print(f"{name:20}{levels:7}{flat:10.1f}{runner:11.1f}{ratio:8.3f}{best:8.3f}{target:8.2f}", flush=True)
    one, two, ratio, best = two_over_one(width, 500, repeats)
    print(f"{'two levels over one':27}{one:10.1f}{two:11.1f}{ratio:8.3f}{best:8.3f}{1.10:8.2f}")
    load = " ".join(f"{x:.2f}" for x in os.getloadavg())
    print(f"width {width}, {repeats} repetitions, 1 thread, torch {torch.__version__}, load {load}")


if __name__ == "__main__":
    main()
