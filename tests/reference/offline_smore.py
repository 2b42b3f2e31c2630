"""Independent NumPy float64 reference of SMORe (arXiv 2311.02013): the losses of one step and the two sources' draws.

Parameters: value = {"heads": [layers]}, critic and target_critic = {"heads": [layers, layers]} on [s; g; a] (no layer
norm), actor = {"layers", "log_std"} with a tanh on its mean. Rows: {"observations", "goals", "actions", and for the
offline ones "next_observations" and "entered"}. Hyper: discount, step_reward, expectile, temperature, variant.
"""

import math

import numpy as np

from .offline_gc import Array, Batch, Hyper, Params, gaussian_log_prob, mlp_forward


def value(params: Params, state: Array, goal: Array) -> Array:
    """V(s, g) [B]."""
    return mlp_forward(params["value"]["heads"][0], np.concatenate([state, goal], -1), False, True)[:, 0]


def scores(params: Params, name: str, rows: Batch) -> Array:
    """S(s, a, g) [2, B] of the network `name`."""
    x = np.concatenate([rows["observations"], rows["goals"], rows["actions"]], -1)
    return np.stack([mlp_forward(head, x, False, False)[:, 0] for head in params[name]["heads"]])


def value_loss(params: Params, offline: Batch, hyper: Hyper) -> float:
    """Mean over offline rows of |beta - 1(d <= 0)| d^2, d = min target score - V."""
    d = scores(params, "target_critic", offline).min(0) - value(params, offline["observations"], offline["goals"])
    return float(np.mean([abs(hyper["expectile"] - (x <= 0)) * x * x for x in d]))


def actor_loss(params: Params, offline: Batch, hyper: Hyper) -> float:
    """-Mean over offline rows of min(exp(temperature A), 100) log pi(a | s, g)."""
    s, g = offline["observations"], offline["goals"]
    advantage = scores(params, "target_critic", offline).min(0) - value(params, s, g)
    mean = np.tanh(mlp_forward(params["actor"]["layers"], np.concatenate([s, g], -1), False, False))
    log_std = np.clip(params["actor"]["log_std"], -5.0, 2.0)
    weight = np.minimum(np.exp(hyper["temperature"] * advantage), 100.0)
    return float(-(weight * gaussian_log_prob(offline["actions"], mean, log_std)).mean())


def critic_loss(params: Params, offline: Batch, entering: Batch, hyper: Hyper, frozen: Params | None = None) -> float:
    """Sum over both heads of the variant's loss; `frozen` holds the value that carries no gradient."""
    gamma, c, total = hyper["discount"], hyper["step_reward"], 0.0
    following = value(frozen or params, offline["next_observations"], offline["goals"])
    heads = zip(scores(params, "critic", offline), scores(params, "critic", entering), strict=True)
    for first, second in heads:
        if hyper["variant"] == "smore_stable":
            total += sum((q + c / (1 - gamma)) ** 2 for q in second) / len(second)
            total += (1 - gamma) * 1e-4 * sum(q**2 for q in first) / len(first)
            total += 0.5 * sum((q - (c + gamma * v)) ** 2 for q, v in zip(first, following, strict=True)) / len(first)
        elif hyper["variant"] == "sparse":  # rewards c until the goal is entered, then -c for ever
            ends = [
                -c / (1 - gamma) if e else c + gamma * v for e, v in zip(offline["entered"], following, strict=True)
            ]
            errors = [*(q - y for q, y in zip(first, ends, strict=True)), *(q + c / (1 - gamma) for q in second)]
            total += sum(x * x for x in errors) / len(errors)
        else:
            total += -sum(second) / len(second) + 1e-4 * sum(first) / len(first)
            total += 0.5 * sum((q - gamma * v) ** 2 for q, v in zip(first, following, strict=True)) / len(first)
    return float(total)


def effective_share(advantage: Array, temperature: float) -> float:
    """Effective sample size of the weights over the number of rows."""
    w = [min(math.exp(temperature * a), 100.0) for a in advantage]
    return sum(w) ** 2 / sum(x * x for x in w) / len(w)


def ahead(length: int, t: int, u: float) -> int:
    """t' of an episode of `length` transitions."""
    return t + 1 + int((length - 3 - t) * u)


def draw(lengths: list[int], u: Array, future: float, entries: list[int] | None, asked_for: bool) -> tuple:
    """(transition, goal transition, asked) of one row; `entries` None: the offline source, else goal transitions k
    with their predecessor in the same episode, whose own goal holds there."""
    episode = int(u[0] * len(lengths))
    t = int(u[1] * (lengths[episode] - 1))
    start = sum(lengths[:episode])
    goal = start + ahead(lengths[episode], t, u[3])
    if entries is None:
        own = u[2] >= future and asked_for
        return (start + t, start + t, True) if own else (start + t, goal, False)
    if u[2] >= future and entries:
        k = entries[int(u[4] * len(entries))]
        return k - 1, k, True
    return goal - 1, goal, False
