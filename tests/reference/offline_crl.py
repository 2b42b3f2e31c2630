"""Independent NumPy float64 reference of CRL (arXiv 2206.07568; agent of arXiv 2410.20092), from the formulas only.

Parameters: critic = {"phi": [layers, layers], "psi": [layers, layers]}, a pair of ensembles on [s; a] and on g;
actor = {"layers", optional "log_std"}. Batch: observations, value_goals, actor_goals [B, d]; actions [B, a].
Hyper: alpha.
"""

import math

import numpy as np

from .offline_gc import Array, Batch, Hyper, Params, Result, actor, gaussian_log_prob, mlp_forward


def critics(params: Params, state: Array, action: Array, goal: Array) -> Array:
    """f_m(s_i, a_i, g_j) for all i and j, [2, B, B], by sums over the representations' dimensions."""
    tables = []
    for phi, psi in zip(params["phi"], params["psi"], strict=True):
        x = mlp_forward(phi, np.concatenate([state, action], -1), False, True)
        y = mlp_forward(psi, goal, False, True)
        rows = [[sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(len(a)) for b in y] for a in x]
        tables.append(np.array(rows))
    return np.stack(tables)


def nce(logits: Array) -> float:
    """-mean over members and pairs of log sigma(f) on the diagonal and log(1 - sigma(f)) off it."""
    chance = 1.0 / (1.0 + np.exp(-logits))
    own = np.eye(logits.shape[-1], dtype=bool)
    return float(-np.where(own, np.log(chance), np.log1p(-chance)).mean())


def crl_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """Terms: critic, actor; `frozen` stands wherever no gradient flows."""
    frozen = frozen or params
    s, g = batch["observations"], batch["actor_goals"]
    critic = nce(critics(params["critic"], s, batch["actions"], batch["value_goals"]))

    def q(network: Params) -> Array:
        mean = actor(network, s, g)[0]
        return critics(frozen["critic"], s, np.clip(mean, -1, 1), g).min(0).diagonal()

    log_prob = gaussian_log_prob(batch["actions"], *actor(params["actor"], s, g))
    size = np.abs(q(frozen["actor"])).mean() + 1e-6
    policy = float(-q(params["actor"]).mean() / size - hyper["alpha"] * log_prob.mean())
    return {"total": critic + policy, "critic": critic, "actor": policy}
