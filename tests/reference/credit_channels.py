"""Naive references of credit with several reward channels, set-function rewards, asynchronous teams and shaped rewards.

Plain floats and lists, index by index, written from the published formulas; nothing derives from code under test.
An episode with channels has `reward[t][k]` and `value[t][k]`, `terminated`, and `final_value[k]` where it was cut off.
`CASES[rule]` is hand-derived.
"""

import math
from collections.abc import Sequence
from typing import Any

from .credit_channels_cases import CASES as CASES

Vector = Sequence[float]
Matrix = Sequence[Vector]
Forest = list[list[dict[str, Any]]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float], ddof: int) -> float:
    mean = _mean(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - ddof)


# --- several channels -------------------------------------------------------------------------------------------------


def channel_gae(groups: Forest, gamma: float = 0.99, lam: float = 0.95) -> list[list[list[list[float]]]]:
    """A^k_t = sum_{j>=t} (gamma lam)^(j-t) (r^k_j + gamma V^k_{j+1} - V^k_j), every channel by itself.

    After the last step: 0 for every channel if terminated, else final_value[k].
    """
    out = []
    for group in groups:
        episodes = []
        for e in group:
            steps, count = len(e["reward"]), len(e["reward"][0])
            end = [0.0] * count if e.get("terminated", True) else e["final_value"]
            values = [*e["value"], end]
            rows = []
            for t in range(steps):
                row = []
                for k in range(count):
                    total = 0.0
                    for j in range(t, steps):
                        delta = e["reward"][j][k] + gamma * values[j + 1][k] - values[j][k]
                        total += (gamma * lam) ** (j - t) * delta
                    row.append(total)
                rows.append(row)
            episodes.append(rows)
        out.append(episodes)
    return out


def slim_advantage(
    groups: Forest,
    gamma: float = 0.99,
    lam: float = 0.95,
    weights: Vector | None = None,
    ddof: int = 0,
    eps: float = 1e-8,
    floor: float = 1e-6,
) -> dict[str, Any]:
    """A_t = sum_k w_k (A^k_t - mean) / (std + eps) over the whole batch, not normalised again (arXiv 2402.00823).

    A channel whose std is below `floor` counts 0. Population std, as in the worked numbers.
    """
    raw = channel_gae(groups, gamma, lam)
    flat = [row for group in raw for episode in group for row in episode]
    weights = weights or [1.0] * len(flat[0])

    def scaled(a: float, k: int) -> float:
        values = [row[k] for row in flat]
        std = math.sqrt(_variance(values, ddof))
        return 0.0 if std < floor else (a - _mean(values)) / (std + eps)

    channels = [[[[scaled(a, k) for k, a in enumerate(row)] for row in e] for e in group] for group in raw]
    mixed = [
        [[sum(w * a for w, a in zip(weights, row, strict=True)) for row in e] for e in group] for group in channels
    ]
    return {"channels": channels, "advantage": mixed}


def hamnet_normalise(advantage: Matrix) -> list[list[float]]:
    """(A_k - mean_k) / sqrt(sum_k Var_k), unbiased variances: one common scale (arXiv 2502.20843).

    advantage[sample][channel]. Without any spread, or with one sample, everything is 0.
    """
    count = len(advantage[0])
    columns = [[row[k] for row in advantage] for k in range(count)]
    total = sum(_variance(c, 1) for c in columns) if len(advantage) > 1 else 0.0
    scale = math.sqrt(total)
    return [[(row[k] - _mean(columns[k])) / scale if scale > 0 else 0.0 for k in range(count)] for row in advantage]


def hamnet_policy_loss(
    advantage: Matrix, ratio: Vector, clip: float = 0.3, per_channel: bool = True, normalise: bool = True
) -> float:
    """-mean over samples and channels of A + min((rho-1) A, clip(rho-1, -c, c) A) (arXiv 2502.20843).

    per_channel=False clips the sum of the channels instead, and divides by their number.
    """
    rows = hamnet_normalise(advantage) if normalise else [list(row) for row in advantage]
    count = len(rows[0])
    total = 0.0
    for row, rho in zip(rows, ratio, strict=True):
        for a in row if per_channel else [sum(row)]:
            total += a + min((rho - 1) * a, min(max(rho - 1, -clip), clip) * a)
    return -total / (len(rows) * count)


def clipped_value_loss(value: Matrix, old_value: Matrix, target: Matrix, clip: float = 0.2) -> float:
    """0.5 mean max((v-R)^2, (v_old + clip(v-v_old, -c, c) - R)^2) over samples and channels."""
    terms = []
    for i in range(len(value)):
        for k in range(len(value[i])):
            near = old_value[i][k] + min(max(value[i][k] - old_value[i][k], -clip), clip)
            terms.append(max((value[i][k] - target[i][k]) ** 2, (near - target[i][k]) ** 2))
    return 0.5 * _mean(terms)


# --- set functions (arXiv 2307.13372) ---------------------------------------------------------------------------------


def coverage_values(
    trajectory: Sequence[int], cover: Sequence[Sequence[int]], weight: Vector, additive: bool = False
) -> list[float]:
    """F of every prefix: the weight of the union of cover[s]; additive=True counts a cell at every visit."""
    out = []
    for stop in range(1, len(trajectory) + 1):
        cells = [v for s in trajectory[:stop] for v in cover[s]]
        out.append(float(sum(weight[v] for v in (cells if additive else set(cells)))))
    return out


def capped_count_values(trajectory: Sequence[int], items: Sequence[Sequence[int]], cap: Sequence[int]) -> list[float]:
    """F of every prefix: sum_k min(number of distinct visited states of group k, cap_k)."""
    out = []
    for stop in range(1, len(trajectory) + 1):
        seen = set(trajectory[:stop])
        out.append(float(sum(min(len(seen & set(g)), d) for g, d in zip(items, cap, strict=True))))
    return out


def entropy_values(
    trajectory: Sequence[int], kernel: Matrix, noise: float = 1e-6, constant: float = -math.log2(1e-3)
) -> list[float]:
    """F of every prefix: 0.5 log det(K + noise I) + constant * length, K over the visited states with repeats."""
    out = []
    for stop in range(1, len(trajectory) + 1):
        n = stop
        m = [[kernel[trajectory[i]][trajectory[j]] + noise * (i == j) for j in range(n)] for i in range(n)]
        logdet = 0.0
        for p in range(n):  # plain elimination; positive definite, so no pivoting
            logdet += math.log(m[p][p])
            for i in range(p + 1, n):
                factor = m[i][p] / m[p][p]
                for j in range(p, n):
                    m[i][j] -= factor * m[p][j]
        out.append(0.5 * logdet + constant * n)
    return out


def set_gains(prefix_values: Vector) -> list[float]:
    """D_j = F(prefix up to s_{j+1}) - F(prefix up to s_j), one for every action; F of the start is in none."""
    return [prefix_values[j + 1] - prefix_values[j] for j in range(len(prefix_values) - 1)]


def set_weights(
    prefix_values: Sequence[Vector], estimator: str = "togo", scale: float = 1.0, baseline: bool = False
) -> list[list[float]]:
    """Weight of action i in every trajectory: togo sum_{j>=i} D_j, greedy D_i, prefix F(prefix up to s_{i+1}).

    All times `scale`. baseline=True subtracts the mean over the trajectories that have an action i.
    """
    rows = []
    for values in prefix_values:
        gains = set_gains(values)
        if estimator == "togo":
            row = [sum(gains[i:]) for i in range(len(gains))]
        elif estimator == "greedy":
            row = list(gains)
        else:
            row = [values[i + 1] for i in range(len(gains))]
        rows.append([scale * w for w in row])
    if baseline:
        longest = max(len(row) for row in rows)
        means = [_mean([row[i] for row in rows if i < len(row)]) for i in range(longest)]
        rows = [[w - means[i] for i, w in enumerate(row)] for row in rows]
    return rows


# --- asynchronous teams (arXiv 2408.11416) ----------------------------------------------------------------------------


def joint_decision_times(switch: Sequence[Sequence[bool]]) -> list[int]:
    """Steps at which at least one agent starts a new span, step 0 included; switch[t][agent]."""
    return [t for t in range(len(switch)) if t == 0 or any(switch[t])]


def joint_targets(
    reward: Vector,
    switch: Sequence[Sequence[bool]],
    goal: Sequence[Sequence[int]],
    q: Sequence[Matrix],
    gamma: float = 0.9,
    terminated: bool = False,
    final_switch: Sequence[bool] | None = None,
) -> dict[str, list[Any]]:
    """y = sum_{j<tau} gamma^j r_{t+j} + gamma^tau (1-d) mix(choices at s'), one per joint decision.

    q[t][agent][goal] has one entry more than `reward`, goal[t][agent] is the one in force. At s' an agent whose span
    ended takes its best goal, the others keep theirs. `chosen` are the agents' values there, to be mixed by any
    monotone mixer; `target` adds them up. Which spans ended at a cut is not defined by the source: `final_switch`
    says so, by default none.
    """
    agents = len(goal[0])
    times = joint_decision_times(switch)
    targets, chosen, durations = [], [], []
    for k, start in enumerate(times):
        stop = times[k + 1] if k + 1 < len(times) else len(reward)
        paid = sum(gamma ** (t - start) * reward[t] for t in range(start, stop))
        row = []
        for i in range(agents):
            ended = switch[stop][i] if stop < len(reward) else final_switch is not None and final_switch[i]
            row.append(max(q[stop][i]) if ended else q[stop][i][goal[stop - 1][i]])
        if stop == len(reward) and terminated:
            row = [0.0] * agents
        chosen.append(row)
        durations.append(stop - start)
        targets.append(paid + gamma ** (stop - start) * sum(row))
    return {"time": times, "duration": durations, "chosen": chosen, "target": targets}


def monotone_mix(q: Vector, w1: Matrix, b1: Vector, w2: Vector, v: float) -> dict[str, Any]:
    """Q = |w2| . ELU(q |W1| + b1) + v with W1[agent][unit]; gradient in q (arXiv 1803.11485)."""
    pre = [sum(q[i] * abs(w1[i][u]) for i in range(len(q))) + b1[u] for u in range(len(b1))]
    hidden = [h if h > 0 else math.exp(h) - 1 for h in pre]
    total = sum(abs(w2[u]) * hidden[u] for u in range(len(b1))) + v
    slope = [1.0 if h > 0 else math.exp(h) for h in pre]
    gradient = [sum(abs(w2[u]) * slope[u] * abs(w1[i][u]) for u in range(len(b1))) for i in range(len(q))]
    return {"value": total, "gradient": gradient}


# --- shaped rewards ---------------------------------------------------------------------------------------------------


def early_success_reward(step: int, limit: int, slope: float = 0.5) -> float:
    """1 - slope * t / T_max on success (arXiv 2408.11416: 0.5; the gridworld's own reward: 0.9)."""
    return 1 - slope * step / limit


def approach_reward(agent: Sequence[int], targets: Sequence[Sequence[int]], scale: float = 0.5) -> float:
    """scale / d, d the Manhattan distance to the nearest target BEFORE the forward move; 0 on a target is undefined."""
    return scale / min(abs(agent[0] - x) + abs(agent[1] - y) for x, y in targets)


def potential_reward(
    potential: Vector, gamma: float = 1.0, scale: float = 1.0, terminated: bool = False
) -> list[float]:
    """scale (gamma phi(s_{t+1}) - phi(s_t)) per step; the potential after a termination counts 0 (gamma below 1)."""
    out = []
    for t in range(len(potential) - 1):
        last = t == len(potential) - 2
        follow = 0.0 if terminated and last else potential[t + 1]
        out.append(scale * (gamma * follow - potential[t]))
    return out


def log_distance_potential(distance: Vector, slope: float = 3.0) -> list[float]:
    """phi(d) = -log(1 + slope d) (arXiv 2502.20843)."""
    return [-math.log(1 + slope * d) for d in distance]


def progress_reward(distance: Vector) -> list[float]:
    """d_{t-1} - d_t per step (arXiv 2402.00823, reconstructed); distance has one entry more than there are steps."""
    return [distance[t] - distance[t + 1] for t in range(len(distance) - 1)]
