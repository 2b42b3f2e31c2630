"""The same credit as one writes it first: loops over items, one pass where one is enough.

Each returns the advantage by item, flat. `lengths` are those of the spans, episode after episode. Columns are lists of
Python floats, or tensors, whose elements then are tensors of their own, as in much released code.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

Floats = Any  # list[float], or a tensor [N]


def returns(lengths: list[int], reward: Floats, gamma: float) -> list[float]:
    """Discounted return to go."""
    out, end = [0.0] * len(reward), len(reward)
    for length in reversed(lengths):
        running = 0.0
        for i in range(end - 1, end - length - 1, -1):
            running = out[i] = reward[i] + gamma * running
        end -= length
    return out


def gae(lengths: list[int], reward: Floats, value: Floats, gamma: float, lam: float) -> list[float]:
    """Generalised advantage estimation of episodes that terminate."""
    out, end = [0.0] * len(reward), len(reward)
    for length in reversed(lengths):
        running = following = 0.0
        for i in range(end - 1, end - length - 1, -1):
            running = out[i] = reward[i] + gamma * following - value[i] + gamma * lam * running
            following = value[i]
        end -= length
    return out


def grpo(size: int, reward: Floats, eps: float = 1e-6) -> list[float]:
    """In groups of `size`."""
    out = []
    for start in range(0, len(reward), size):
        members = reward[start : start + size]
        mean, scale = moments(members, eps)
        out += [(x - mean) / scale for x in members]
    return out


def rloo(size: int, reward: Floats) -> list[float]:
    """In groups of `size`."""
    out = []
    for start in range(0, len(reward), size):
        members = reward[start : start + size]
        total = sum(members)
        out += [x - (total - x) / (size - 1) for x in members]
    return out


def expand(lengths: list[int], advantage: Floats) -> list[float]:
    """One value a span, given to each of its items."""
    out = []
    for length, x in zip(lengths, advantage, strict=True):
        out += [x] * length
    return out


def rloo_to_go(size: int, lengths: list[int], reward: Floats) -> list[float]:
    """Groups of `size` episodes."""
    to_go, out = returns(lengths, reward, 1.0), [0.0] * len(reward)
    starts = offsets(lengths)
    for first in range(0, len(lengths), size):
        total: dict[int, float] = defaultdict(float)
        count: dict[int, int] = defaultdict(int)
        for e in range(first, first + size):
            for t in range(lengths[e]):
                total[t] += to_go[starts[e] + t]
                count[t] += 1
        for e in range(first, first + size):
            for t in range(lengths[e]):
                x = to_go[starts[e] + t]
                out[starts[e] + t] = x - (total[t] - x) / (count[t] - 1) if count[t] > 1 else x
    return out


def gigpo(
    size: int, lengths: list[int], reward: Floats, state: list[int], gamma: float = 0.95, eps: float = 1e-6
) -> list[float]:
    """Row statistics, as released; groups of `size` episodes."""
    to_go, out = returns(lengths, reward, gamma), []
    starts = offsets(lengths)
    for first in range(0, len(lengths), size):
        begin, end = starts[first], starts[first + size]
        score = []
        for start, stop in pairwise(starts[first : first + size + 1]):
            score += [float(sum(reward[start:stop]))] * (stop - start)
        mean, scale = moments(score, eps)
        visits: dict[int, list[float]] = defaultdict(list)
        for i in range(begin, end):
            visits[state[i]].append(to_go[i])
        at = {key: moments(x, eps) for key, x in visits.items()}
        for i in range(begin, end):
            step_mean, step_scale = at[state[i]]
            out.append((score[i - begin] - mean) / scale + (to_go[i] - step_mean) / step_scale)
    return out


def hae(
    lengths: list[int], switch: list[bool], reward: Floats, low: Floats, high: Floats, lam_seg: float = 0.95
) -> list[float]:
    """HAE with γ = λ_turn = 1: the action level, then the subgoal level, which is 0 where no segment starts."""
    actions, subgoals, end = [0.0] * len(reward), [0.0] * len(reward), len(reward)
    for length in reversed(lengths):
        running = following = earned = after = later = 0.0
        for i in range(end - 1, end - length - 1, -1):
            running = actions[i] = reward[i] + following - low[i] + running
            following = low[i]
            earned += reward[i]
            if switch[i] or i == end - length:  # a segment starts here: the one before ends in V_high
                later = subgoals[i] = earned + after - high[i] + lam_seg * later
                after = following = high[i]
                running = earned = 0.0
        end -= length
    return actions + subgoals


def moments(x: Floats, eps: float) -> tuple[float, float]:
    """Mean, and standard deviation of a sample plus eps; 1 of a single one."""
    mean = sum(x) / len(x)
    return mean, (sum((y - mean) ** 2 for y in x) / (len(x) - 1)) ** 0.5 + eps if len(x) > 1 else 1.0


def whiten(x: Floats) -> list[float]:
    """Over the whole batch."""
    mean, scale = moments(x, 0.0)
    return [(y - mean) / scale for y in x]


def hicra(size: int, lengths: list[int], reward: Floats, planning: list[bool], alpha: float = 0.2) -> list[float]:
    """GRPO on tokens, amplified where they plan."""
    advantage = expand(lengths, grpo(size, reward))
    return [a + alpha * abs(a) if plans else a for a, plans in zip(advantage, planning, strict=True)]


def offsets(lengths: list[int]) -> list[int]:
    """Where each span starts, and the end."""
    out = [0]
    for length in lengths:
        out.append(out[-1] + length)
    return out
