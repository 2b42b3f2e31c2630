"""Independent NumPy float64 reference of QRL (arXiv 2304.01203, 2211.15120; agent of arXiv 2410.20092).

Parameters: phi = layers on s; mix, log_multiplier = scalars; dynamics = layers on [z; a];
actor = {"layers", optional "log_std"}. Batch: observations, next_observations, value_goals, actor_goals [B, d];
actions [B, a]. Hyper: group, eps, reach, softness, alpha.
"""

import math
from itertools import pairwise

import numpy as np

from .offline_gc import Array, Batch, Hyper, Params, Result, actor, gaussian_log_prob, mlp_forward


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of a union of intervals (empty ones have end <= start): cut the line at every end and test each piece."""
    cuts = sorted({end for interval in intervals for end in interval})
    length = 0.0
    for left, right in pairwise(cuts):
        middle = (left + right) / 2
        length += (right - left) * any(a < middle < b for a, b in intervals)
    return length


def distance(x: Array, y: Array, mix: float, group: int) -> Array:
    """IQE with max-mean reduction: x, y [B, D] -> [B]."""
    share, found = 1 / (1 + math.exp(-mix)), []
    for row_x, row_y in zip(x, y, strict=True):
        pairs = list(zip(row_x.tolist(), row_y.tolist(), strict=True))
        parts = [covered(pairs[k : k + group]) for k in range(0, len(pairs), group)]
        found.append(share * sum(parts) / len(parts) + (1 - share) * max(parts))
    return np.array(found)


def qrl_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """Terms: apart, excess, multiplier (its own loss), dynamics, actor; `frozen` stands wherever no gradient flows."""
    frozen = frozen or params
    s, following, far, g = (batch[k] for k in ("observations", "next_observations", "value_goals", "actor_goals"))
    actions = batch["actions"]

    def phi(network: Params, state: Array) -> Array:
        return mlp_forward(network["phi"], state, False, True)

    def d(network: Params, x: Array, y: Array) -> Array:
        return distance(x, y, network["mix"], hyper["group"])

    def step(network: Params, z: Array, a: Array) -> Array:
        return z + mlp_forward(network["dynamics"], np.concatenate([z, a], -1), False, True)

    def over(network: Params) -> float:
        return float((np.maximum(d(network, phi(network, s), phi(network, following)) - 1, 0) ** 2).mean())

    spread = d(params, phi(params, s), phi(params, far))
    soft = hyper["softness"]
    apart = float((soft * np.log1p(np.exp((hyper["reach"] - spread) / soft))).mean())
    held = math.exp(frozen["log_multiplier"]) * over(params)
    multiplier = math.exp(params["log_multiplier"]) * (hyper["eps"] - over(frozen))

    guess, truth = step(params, phi(params, s), actions), phi(params, following)
    dynamics = float((d(params, truth, guess) + d(params, guess, truth)).mean() / 2)

    def q(network: Params) -> Array:
        mean = actor(network, s, g)[0]
        return -d(frozen, step(frozen, phi(frozen, s), np.clip(mean, -1, 1)), phi(frozen, g))

    log_prob = gaussian_log_prob(actions, *actor(params["actor"], s, g))
    size = np.abs(q(frozen["actor"])).mean() + 1e-6
    policy = float(-q(params["actor"]).mean() / size - hyper["alpha"] * log_prob.mean())
    total = apart + held + multiplier + dynamics + policy
    return {"total": total, "apart": apart, "excess": over(params), "dynamics": dynamics, "actor": policy}
