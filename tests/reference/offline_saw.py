"""Independent NumPy float64 reference of SAW (arXiv 2505.14975), from the published formulas only.

Parameters: phi, value, target_value as for HIQL in `offline_gc`; low_actor = {"layers", optional "log_std"} on [s; w];
actor = {"layers", optional "log_std", "phi": layers} on [s; phi([s; g])] with a phi of its own.
Batch: observations, next_observations, value_goals, low_goals, high_goals, high_targets [B, d]; actions [B, a];
rewards, masks [B]. Hyper: discount, expectile, low_alpha, awr_alpha, kl_alpha, one_step_weight, bootstrap_weight and
divergence ("squared", "kl", "reverse_kl").
"""

import numpy as np

from .offline_gc import (
    Array,
    Batch,
    Hyper,
    Params,
    Result,
    actor,
    awr_loss,
    awr_weight,
    gaussian_log_prob,
    phi,
    twin_value_loss,
    values,
)


def gaussian_kl(p: tuple[Array, Array], q: tuple[Array, Array]) -> Array:
    """KL(p || q) [B] of diagonal Gaussians (mean, log_std): log(sq/sp) + (sp^2 + (mp - mq)^2) / (2 sq^2) - 1/2."""
    (mean_p, log_p), (mean_q, log_q) = p, q
    var_p, var_q = np.exp(log_p) ** 2, np.exp(log_q) ** 2
    return (log_q - log_p + (var_p + (mean_p - mean_q) ** 2) / (2 * var_q) - 0.5).sum(-1)


def flat_policy(network: Params, state: Array, goal: Array) -> tuple[Array, Array]:
    """(mean, log_std) of pi(. | s, phi_actor([s; g]))."""
    return actor(network, state, phi(network["phi"], state, goal))


def saw_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """Terms: value, low_actor, one_step, bootstrap; `frozen` stands wherever no gradient flows."""
    frozen = frozen or params
    s, following, g, w = (batch[k] for k in ("observations", "next_observations", "high_goals", "high_targets"))
    near, goal = batch["low_goals"], batch["value_goals"]

    def v(state: Array, target: Array) -> Array:
        return values(frozen, "value", state, target).mean(0)

    value = twin_value_loss(
        values(frozen, "target_value", following, goal),
        values(frozen, "target_value", s, goal),
        values(params, "value", s, goal),
        batch["rewards"],
        batch["masks"],
        hyper["discount"],
        hyper["expectile"],
    )["loss"]
    log_sub = gaussian_log_prob(batch["actions"], *actor(params["low_actor"], s, near))
    low = awr_loss(v(following, near) - v(s, near), log_sub, hyper["low_alpha"])["loss"]

    policy = flat_policy(params["actor"], s, g)
    log_pi = gaussian_log_prob(batch["actions"], *policy)
    one_step = awr_loss(v(following, g) - v(s, g), log_pi, hyper["awr_alpha"])["loss"]

    sub = actor(frozen["low_actor"], s, w)
    distance = {
        "squared": lambda: ((policy[0] - sub[0]) ** 2).sum(-1),
        "kl": lambda: gaussian_kl(policy, sub),
        "reverse_kl": lambda: gaussian_kl(sub, policy),
    }[hyper["divergence"]]()
    bootstrap = float((awr_weight(v(w, g) - v(s, g), hyper["kl_alpha"]) * distance).mean())
    total = value + low + hyper["one_step_weight"] * one_step + hyper["bootstrap_weight"] * bootstrap
    return {"total": total, "value": value, "low_actor": low, "one_step": one_step, "bootstrap": bootstrap}
