"""Independent NumPy float64 reference of HILP (arXiv 2402.15567), from its equations; layouts as in `offline_gc.py`.

Parameters: "phi" and "target_phi" are {"heads": [layers, layers]} with vector outputs; "skill_value" (one head),
"skill_critic", "target_skill_critic" (two) are values; "skill_actor" is an actor. Batch keys as in `offline_gc.py`, and
"skills" [B, D], the directions z. Nothing here was derived from the implementation under test.
"""

from __future__ import annotations

import math

import numpy as np

from . import offline_gc as gc
from .offline_gc import Array, Batch, Hyper, Params, Result


def embed(network: Params, states: Array) -> Array:
    """phi_i(s) [H, B, D] of each head."""
    return np.stack([gc.mlp_forward(head, states, False, True) for head in network["heads"]])


def value(phi_s: Array, phi_g: Array) -> Array:
    """V = -sqrt(max(||phi_s - phi_g||^2, 1e-6)), over the last axis."""
    return -np.sqrt(np.maximum(((phi_s - phi_g) ** 2).sum(-1), 1e-6))


def hilp_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """Terms: value (of the embedding), skill_value, skill_critic, skill_actor.

    Hyper: discount, expectile, skill_discount, skill_expectile, skill_temperature. In each term only the network that
    the term is named after carries a gradient; everything else is read from `frozen`.
    """
    frozen = frozen or params
    s, s_next, g, z, a = (batch[k] for k in ("observations", "next_observations", "value_goals", "skills", "actions"))
    old = frozen["target_phi"]
    embedding = gc.twin_value_loss(
        value(embed(old, s_next), embed(old, g)),
        value(embed(old, s), embed(old, g)),
        value(embed(params["phi"], s), embed(params["phi"], g)),
        batch["rewards"],
        batch["masks"],
        hyper["discount"],
        hyper["expectile"],
    )
    step = embed(frozen["phi"], s_next)[0] - embed(frozen["phi"], s)[0]
    reward = np.einsum("bd,bd->b", step, z)
    best = gc.values(without_phi(frozen), "target_skill_critic", s, z, a).min(0)

    error = best - gc.values(without_phi(params), "skill_value", s, z)[0]
    skill_value = float((gc.expectile_weight(error, hyper["skill_expectile"]) * error**2).mean())

    following = gc.values(without_phi(frozen), "skill_value", s_next, z)[0]
    target = reward + hyper["skill_discount"] * following  # the return never ends
    errors = gc.values(without_phi(params), "skill_critic", s, z, a) - target
    skill_critic = float((errors[0] ** 2 + errors[1] ** 2).mean())

    advantage = best - gc.values(without_phi(frozen), "skill_value", s, z)[0]
    log_prob = gc.gaussian_log_prob(a, *gc.actor(params["skill_actor"], s, z))
    skill_actor = gc.awr_loss(advantage, log_prob, hyper["skill_temperature"])
    terms = {"value": embedding["loss"], "skill_value": skill_value, "skill_critic": skill_critic}
    terms["skill_actor"] = skill_actor["loss"]
    return terms | {"total": sum(terms.values()), "reward": reward, "advantage": advantage}


def without_phi(params: Params) -> Params:
    """The parameters of the plain values: `offline_gc.values` would put the goal through a shared "phi"."""
    return {name: network for name, network in params.items() if name != "phi"}


def action(params: Params, observations: Array, goals: Array) -> Array:
    """Greedy action: the mean in the direction from phi_1(s) to phi_1(g), clipped to [-1, 1]."""
    way = embed(params["phi"], goals)[0] - embed(params["phi"], observations)[0]
    z = way / np.sqrt((way**2).sum(-1, keepdims=True))
    return np.clip(gc.actor(params["skill_actor"], observations, z)[0], -1.0, 1.0)


def midpoint(here: Array, goal: Array, examples: Array, neighbours: int, rounds: int) -> Array:
    """The aim [D] for one row: the mean of the examples with the smallest larger distance to both ends, repeated."""
    aim = goal
    for _ in range(rounds):
        scores = [max(math.dist(w, here), math.dist(w, aim)) for w in examples]
        best = sorted(range(len(examples)), key=scores.__getitem__)[:neighbours]
        aim = np.mean([examples[i] for i in best], axis=0)
    return aim


def least_squares(steps: Array, reward: Array) -> Array:
    """argmin_z sum (steps z - r)^2, the shortest one, scaled to length 1."""
    z = np.linalg.lstsq(steps, reward, rcond=None)[0]
    return z / np.linalg.norm(z)
