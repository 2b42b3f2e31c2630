"""How noisy are gradients from HAE and from flat GAE? Tabular tasks for two levels, the same episodes and λ for both.

    python -m benchmarks.credit --variance

Flat GAE gives one advantage a turn to switch, subgoal and action, its baseline being the value on arrival; HAE gives
each its own. Both read the same values: exact ones plus `error` times their spread over states in independent errors.
Of each level's logits: the variance of one episode's gradient (the trace of its covariance), and the squared bias of
its mean, the exact gradient being known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.two_level import Turns, TwoLevel, Values
from echelon.credit.returns import gae
from echelon.credit.segments import hae, switch_difference

LEVELS = ("switch", "high", "low")
LAMBDAS = (1.0, 0.95, 0.8, 0.5, 0.0)
TASKS = (0, 1, 2)  # seeds
BATCH = 64
STATES, OPTIONS, ACTIONS, HORIZON = 6, 3, 4, 24


def task(rewards: str, seed: int = 0) -> TwoLevel:
    """Up to 24 turns in segments of about five. rewards: "dense", every turn and noisy, or "outcome", at turn 24."""
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    low = table(STATES, OPTIONS, ACTIONS)
    low[..., 0] -= 4  # stopping early is rare
    paid = table(1, STATES, ACTIONS).expand(HORIZON, -1, -1)
    if rewards == "outcome":
        paid = torch.where(torch.arange(HORIZON)[:, None, None] == HORIZON - 1, HORIZON**0.5 * paid, 0)
    switch, high = table(STATES, OPTIONS) - 1.5, table(STATES, OPTIONS)
    return TwoLevel(
        paid,
        torch.randint(STATES, (STATES, ACTIONS), generator=generator),
        switch.requires_grad_(),
        high.requires_grad_(),
        low.requires_grad_(),
        noise=1.0 if rewards == "dense" else 0.0,
    )


def inexact(values: Values, error: float, seed: int = 1) -> Values:
    """The values plus independent errors, `error` times as large as the values vary over states."""
    generator = torch.Generator().manual_seed(seed)
    spread = error * values.high.std(1, keepdim=True)
    low, high = (torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values)
    return Values(values.low + spread[..., None] * low, values.high + spread * high)


def factors(task: TwoLevel, turns: Turns, values: Values, lam: float) -> dict[str, dict[str, Tensor]]:
    """estimator → level → what multiplies ∇ log π at every turn, [N]."""
    turn, episode = turns.turn, turns.tree["episode"]
    high, held = values.high[turn, turns.state], values.low[turn, turns.state, turns.held]
    p = task.switch.detach().sigmoid()[turns.state, turns.held]
    arrival = torch.where(turn > 0, p * high + (1 - p) * held, high)
    flat = gae(episode, reward=turns.reward, value=arrival, lam=lam).advantage
    credits = hae(
        turns.tree, reward=turns.reward, low_value=values.low[turn, turns.state, turns.option], high_value=high,
        term_value=arrival, lam_turn=lam, lam_seg=lam,
    )  # fmt: skip
    levels = {level: credits[level].advantage * credits[level].weight for level in LEVELS}
    difference = switch_difference(episode, switch=turns.switch, probability=p, high_value=high, low_value=held)
    return {
        "flat": dict.fromkeys(LEVELS, flat),
        "hae": levels,
        "hae, difference": {**levels, "switch": difference.advantage},
    }


class Moments(NamedTuple):
    """Of one episode's gradient in one level's logits."""

    variance: float
    bias2: float

    @property
    def error(self) -> float:
        """The expected squared distance of a batch's gradient to the exact one."""
        return self.bias2 + self.variance / BATCH


def moments(task: TwoLevel, turns: Turns, level: str, factor: Tensor) -> Moments:
    """The trace of the covariance, and the squared distance of the mean to the exact gradient (its noise taken off)."""
    episode, (row, score) = turns.tree["episode"], task.scores(turns)[level]
    logits = task.levels[level].detach()
    rows = logits.numel() // score.shape[-1]
    gradient = score.new_zeros(episode.n * rows, score.shape[-1])
    gradient.index_add_(0, episode.ids * rows + row, factor[:, None] * score)
    gradient = gradient.reshape(episode.n, -1)
    variance = float(gradient.var(0).sum())
    distance = (gradient.mean(0) - task.gradient[level].flatten()).square().sum()
    return Moments(variance, max(0.0, float(distance) - variance / episode.n))


Comparison = dict[str, dict[str, Moments]]  # estimator → level


def compare(task: TwoLevel, *, error: float, episodes: int = 4000, seed: int = 2) -> dict[float, Comparison]:
    """λ → estimator → level → moments, all of the same sampled episodes. error: of the values, see `inexact`."""
    turns = task.sample(episodes, torch.Generator().manual_seed(seed))
    values = inexact(Values(*(value.detach() for value in task.values)), error)
    return {
        lam: {
            name: {level: moments(task, turns, level, factor) for level, factor in by_level.items()}
            for name, by_level in factors(task, turns, values, lam).items()
        }
        for lam in LAMBDAS
    }


def total(by_level: dict[str, Moments]) -> float:
    """The variance of all levels together."""
    return sum(moments.variance for moments in by_level.values())


def main() -> None:
    """Print both tables: the same λ for both, and each level at the λ that suits it best."""
    print(f"HAE over flat GAE; {len(TASKS)} tasks of up to {HORIZON} turns, mean of their ratios")
    print("variance at the same λ ('difference': the switch by the paper's form)")
    print(f"{'':24}" + "".join(f"{name:>12}" for name in ("switch", "difference", "subgoal", "action", "all")))
    best: list[str] = []
    for rewards in ("dense", "outcome"):
        for error in (0.0, 0.5, 1.0):
            runs = [compare(task(rewards, seed), error=error) for seed in TASKS]
            for lam in LAMBDAS:
                print(f"{rewards:8} error {error:3.1f} λ {lam:4.2f}" + row([variances(run[lam]) for run in runs]))
            best.append(f"{rewards:8} error {error:3.1f}{'':7}" + row([errors(run) for run in runs]))
    print(f"bias² + variance / {BATCH}, each level of each estimator at its best λ")
    print("\n".join(best))


def variances(by_estimator: Comparison) -> list[float]:
    """HAE over flat GAE: switch, switch by difference, subgoal, action, all (with the switch by return)."""
    flat, ours, difference = (by_estimator[name] for name in ("flat", "hae", "hae, difference"))
    switch, high, low = (ours[level].variance / flat[level].variance for level in LEVELS)
    return [switch, difference["switch"].variance / flat["switch"].variance, high, low, total(ours) / total(flat)]


def errors(by_lambda: dict[float, Comparison]) -> list[float]:
    """The same of the errors at the best λ of each, and of their sums over levels."""

    def best(estimator: str, level: str) -> float:
        return min(by_estimator[estimator][level].error for by_estimator in by_lambda.values())

    flat, ours = ([best(estimator, level) for level in LEVELS] for estimator in ("flat", "hae"))
    switch, high, low = (mine / theirs for mine, theirs in zip(ours, flat, strict=True))
    return [switch, best("hae, difference", "switch") / flat[0], high, low, sum(ours) / sum(flat)]


def row(ratios: Sequence[Sequence[float]]) -> str:
    """The means over tasks, as cells."""
    return "".join(f"{sum(column) / len(column):12.2f}" for column in zip(*ratios, strict=True))


if __name__ == "__main__":
    main()
