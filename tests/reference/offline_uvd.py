"""UVD's decomposition, labels and reward, one number at a time in float64, from the formulas of arXiv 2310.08581."""

from __future__ import annotations

import math


def smoothed(x: list[float], gamma: float) -> list[float]:
    """sum_u K(s, u) x_u / sum_u K(s, u) with K(s, u) = exp(-gamma (s - u)^2)."""
    found = []
    for s in range(len(x)):
        weights = [math.exp(-gamma * (s - u) ** 2) for u in range(len(x))]
        found.append(sum(w * y for w, y in zip(weights, x, strict=True)) / sum(weights))
    return found


def milestones(frames: list[list[float]], interval: int, gamma: float, form: str, rounding: float = 1e-10) -> list[int]:
    """Milestones, ascending; `gamma` 0 smooths nothing."""
    now = len(frames) - 1
    found = [now]
    while now > interval:
        gaps = [math.dist(frames[s], frames[now]) for s in range(now + 1)]
        gaps = smoothed(gaps, gamma) if gamma else gaps
        least = rounding * max(gaps)
        chosen = None
        for e in range(1, now):
            higher = gaps[e] - gaps[e - 1] > least and gaps[e] - gaps[e + 1] > least
            allowed = now - e > interval and (form == "appendix" or e > interval)
            if higher and allowed:
                chosen = e
        if chosen is None:
            return found
        now = chosen - 1 if form == "appendix" else chosen
        found = [now, *found]
    return found


def labels(marks: list[int], frames: int) -> list[int]:
    """The first milestone at or after each frame, -1 where there is none."""
    return [next((m for m in marks if m >= t), -1) for t in range(frames)]


def reward(before: float, now: float, final: float, alpha: float, beta: float, gamma: float, eps: float) -> float:
    """One step's reward from distances as shares of those between milestones."""
    nearer = min(max(alpha * (before - now), -alpha), alpha)
    return nearer + (beta if now < eps else 0.0) + (gamma if final < eps else 0.0)


def schedule(gaps: list[list[float]], budgets: list[int], near: float, delta: int, rule: str) -> list[int]:
    """Which milestone is pursued at each tick, from the distance [tick][milestone] to each of them."""
    place, held, first, found = 0, 0, gaps[0][0], []
    for t, gap in enumerate(gaps):
        if t:
            held += 1
        close = gap[place] / max(first, 1e-6) < near
        early, late = held < budgets[place] - delta, held > budgets[place] + delta
        go = {"released": (close and not early) or late, "appendix": close and abs(held - budgets[place]) < delta}
        if t and place + 1 < len(budgets) and (close if rule == "distance" else go[rule]):
            place, held, first = place + 1, 0, gap[place + 1]
        found.append(place)
    return found
