"""Independent NumPy float64 reference of five offline goal-conditioned agents: GCBC, GCIVL, GCIQL, HIQL and OTA.

Sources: OTA, arXiv 2505.12737 (option-aware value); HIQL, arXiv 2307.11949; OGBench, arXiv 2410.20092, whose public
agents fix the constants (GELU in its tanh form, LayerNorm epsilon 1e-6, AWR weight clip 100, Q normaliser 1e-6).
Nothing here was derived from the implementation under test.

Batch: arrays of B rows, d = observation size, a = action size; each loss needs only the keys it reads.
    observations, next_observations [B, d]     actions [B, a]
    value_goals [B, d], rewards, masks [B]     one-step value goals; reward, mask = -1, 1, or 0, 0 at the goal index
    actor_goals [B, d]                         goals of the flat policies (GCBC, GCIVL, GCIQL)
    low_goals [B, d]                           state at min(i + k, f)
    high_goals, high_targets [B, d]            goal of the high policy, and the state it should aim for
    option_goals, option_next_observations [B, d], option_rewards, option_masks [B]     OTA's V_h: goal, s_O, r_h, m_h

Parameters: nested dicts and lists of arrays.
    layers  = [{"weight": [out, in], "bias": [out], optional "norm_weight": [out], "norm_bias": [out]}, ...]
    actor   = {"layers": layers, optional "log_std": [a]}        hidden layers, then the mean layer
    value   = {"heads": [layers, ...], optional "phi": layers}   scalar output; an own phi replaces the shared one
    GCBC: actor. GCIVL: actor, value, target_value. GCIQL: actor, value (one head), critic, target_critic.
    HIQL: phi, value, target_value, low_actor, high_actor.
    OTA: phi, low_value, target_low_value, high_value, target_high_value, low_actor, high_actor.

A loss function takes (params, batch, hyper, frozen=None) and returns {"total": float, terms: float, details: array}.
`frozen` holds the parameters wherever no gradient flows (default: params themselves), so that finite differences of
`total` over `params` with `frozen` fixed are exactly the gradients an implementation must produce.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Layers = list[dict[str, Array]]
Params = dict[str, Any]
Batch = dict[str, Array]
Hyper = dict[str, Any]
Result = dict[str, Any]

# Published defaults (OGBench's agents; OTA as HIQL, arXiv 2505.12737). Goals: (current, same trajectory, random).
_COMMON = {"lr": 3e-4, "batch_size": 1024, "discount": 0.99, "hidden": (512, 512, 512), "actor_goals": (0.0, 1.0, 0.0)}
_VALUE = {**_COMMON, "target_rate": 0.005, "value_goals": (0.2, 0.5, 0.3), "value_layer_norm": True}
_HIQL = {**_VALUE, "expectile": 0.7, "low_alpha": 3.0, "high_alpha": 3.0, "subgoal_steps": 25, "rep_dim": 10}
PUBLISHED: dict[str, Hyper] = {
    "gcbc": _COMMON,
    "gcivl": {**_VALUE, "expectile": 0.9, "alpha": 10.0},
    "gciql": {**_VALUE, "expectile": 0.9, "alpha": 0.3, "actor_loss": "ddpgbc"},
    "hiql": _HIQL,
    "ota": {**_HIQL, "abstraction_factor": 5},
}

# --- networks ---------------------------------------------------------------------------------------------------------


def gelu(x: Array) -> Array:
    """Tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); the default of the published agents' library."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x: Array, weight: Array | float = 1.0, bias: Array | float = 0.0, eps: float = 1e-6) -> Array:
    """Normalise the last axis with the biased variance, then scale and shift."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def mlp_forward(layers: Layers, x: Array, activate_final: bool, norm: bool) -> Array:
    """Dense -> GELU -> LayerNorm (if `norm`) per layer; the last layer is bare unless `activate_final`."""
    x = np.asarray(x, np.float64)
    for position, layer in enumerate(layers):
        x = x @ np.asarray(layer["weight"], np.float64).T + np.asarray(layer["bias"], np.float64)
        if position + 1 < len(layers) or activate_final:
            x = gelu(x)
            if norm:
                x = layer_norm(x, layer.get("norm_weight", 1.0), layer.get("norm_bias", 0.0))
    return x


def length_normalise(x: Array) -> Array:
    """x / ||x|| * sqrt(dim): every representation has norm sqrt(dim)."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True) * math.sqrt(x.shape[-1])


def phi(layers: Layers, observations: Array, goals: Array) -> Array:
    """Subgoal representation phi([s; g]) [B, r]: an MLP with LayerNorm, then length normalisation (HIQL)."""
    return length_normalise(mlp_forward(layers, np.concatenate([observations, goals], -1), False, True))


def values(params: Params, name: str, observations: Array, goals: Array, actions: Array | None = None) -> Array:
    """Ensemble outputs [H, B] of network `name`: V(s, g), V(s, phi([s; g])) when a phi exists, or Q(s, g, a)."""
    network = params[name]
    representation = network.get("phi", params.get("phi"))
    goals = goals if representation is None else phi(representation, observations, goals)
    inputs = np.concatenate([observations, goals] + ([] if actions is None else [actions]), -1)
    return np.stack([mlp_forward(head, inputs, False, True)[..., 0] for head in network["heads"]])


def actor(network: Params, *inputs: Array) -> tuple[Array, Array]:
    """Mean [B, a] and log-std [a] of a Gaussian policy without LayerNorm; log-std 0 unless learnt, clipped to [-5, 2].

    All published agents default to the constant 0; a learnt, state-independent vector is their other setting.
    """
    mean = mlp_forward(network["layers"], np.concatenate(inputs, -1), False, False)
    log_std = np.asarray(network.get("log_std", np.zeros(mean.shape[-1])), np.float64)
    return mean, np.clip(log_std, -5.0, 2.0)


def gaussian_log_prob(x: Array, mean: Array, log_std: Array | float = 0.0) -> Array:
    """Diagonal Gaussian log-density [B]; sum over the last axis of -(z^2)/2 - log_std - log(2 pi)/2."""
    z = (x - mean) / np.exp(log_std)
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


# --- loss formulas on plain numbers -----------------------------------------------------------------------------------


def expectile_weight(advantage: Array, expectile: float) -> Array:
    """tau where A >= 0, else 1 - tau (zero counts as positive)."""
    return np.where(advantage >= 0, expectile, 1.0 - expectile)


def twin_value_loss(
    next_target: Array, target: Array, online: Array, reward: Array, mask: Array, discount: float, expectile: float
) -> Result:
    """Action-free expectile value loss of HIQL and GCIVL; heads on axis 0, [2, B].

    The weight's advantage uses the minimum over target heads at s' against their mean at s; each online head regresses
    on its own target head.
    """
    q = reward + discount * mask * next_target.min(0)
    advantage = q - target.mean(0)
    weight = expectile_weight(advantage, expectile)
    per_head = reward + discount * mask * next_target
    loss = (weight * (per_head - online) ** 2).sum(0)
    return {"loss": float(loss.mean()), "q": q, "advantage": advantage, "weight": weight, "targets": per_head}


def awr_weight(advantage: Array, alpha: float, clip: float = 100.0) -> Array:
    """min(exp(alpha A), clip)."""
    return np.minimum(np.exp(alpha * advantage), clip)


def awr_loss(advantage: Array, log_prob: Array, alpha: float) -> Result:
    """-mean(min(exp(alpha A), 100) log pi)."""
    weight = awr_weight(advantage, alpha)
    loss = -float((weight * log_prob).mean())
    return {"loss": loss, "advantage": advantage, "weight": weight, "log_prob": log_prob}


def _collect(**terms: Result) -> Result:
    """{"total", "<term>", "<term>/<detail>"}: the total is the plain sum of the terms."""
    out: Result = {"total": sum(term["loss"] for term in terms.values())}
    for name, term in terms.items():
        out[name] = term["loss"]
        out.update({f"{name}/{key}": value for key, value in term.items() if key != "loss"})
    return out


# --- flat agents ------------------------------------------------------------------------------------------------------


def gcbc_loss(params: Params, batch: Batch, hyper: Hyper | None = None, frozen: Params | None = None) -> Result:
    """Goal-conditioned behaviour cloning: -mean log pi(a | s, g); nothing is frozen. Terms: actor."""
    log_prob = gaussian_log_prob(batch["actions"], *actor(params["actor"], batch["observations"], batch["actor_goals"]))
    return _collect(actor={"loss": -float(log_prob.mean()), "log_prob": log_prob})


def _one_step_value(
    params: Params, batch: Batch, name: str, discount: float, expectile: float, frozen: Params
) -> Result:
    state, following, goal = batch["observations"], batch["next_observations"], batch["value_goals"]
    return twin_value_loss(
        values(frozen, f"target_{name}", following, goal),
        values(frozen, f"target_{name}", state, goal),
        values(params, name, state, goal),
        batch["rewards"],
        batch["masks"],
        discount,
        expectile,
    )


def _gain(params: Params, name: str, state: Array, reached: Array, goal: Array) -> Array:
    """Mean over online heads of V(reached, g) - V(state, g)."""
    return values(params, name, reached, goal).mean(0) - values(params, name, state, goal).mean(0)


def gcivl_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """GCIVL: action-free expectile V, and AWR on V(s', g) - V(s, g). Terms: value, actor.

    Hyper: discount (0.99), expectile (0.9), alpha (10); published defaults in brackets.
    """
    frozen = frozen or params
    value = _one_step_value(params, batch, "value", hyper["discount"], hyper["expectile"], frozen)
    state, goal = batch["observations"], batch["actor_goals"]
    advantage = _gain(frozen, "value", state, batch["next_observations"], goal)
    log_prob = gaussian_log_prob(batch["actions"], *actor(params["actor"], state, goal))
    return _collect(value=value, actor=awr_loss(advantage, log_prob, hyper["alpha"]))


def _gciql_actor(params: Params, batch: Batch, hyper: Hyper, frozen: Params) -> Result:
    state, goal, actions = batch["observations"], batch["actor_goals"], batch["actions"]
    mean, log_std = actor(params["actor"], state, goal)
    log_prob = gaussian_log_prob(actions, mean, log_std)
    if hyper["actor_loss"] == "awr":
        q = values(frozen, "critic", state, goal, actions).min(0)
        return awr_loss(q - values(frozen, "value", state, goal)[0], log_prob, hyper["alpha"])
    # DDPG+BC: Q at the clipped mean action, divided by a constant mean |Q|, plus alpha times the cloning loss.
    q = values(frozen, "critic", state, goal, np.clip(mean, -1.0, 1.0)).min(0)
    frozen_mean = actor(frozen["actor"], state, goal)[0]
    frozen_q = values(frozen, "critic", state, goal, np.clip(frozen_mean, -1.0, 1.0)).min(0)
    q_loss = -float(q.mean() / (np.abs(frozen_q).mean() + 1e-6))
    bc_loss = -hyper["alpha"] * float(log_prob.mean())
    return {"loss": q_loss + bc_loss, "q_loss": q_loss, "bc_loss": bc_loss, "q": q, "log_prob": log_prob}


def gciql_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """GCIQL: expectile V against the target critic, twin critic on online V(s'), policy. Terms: value, critic, actor.

    Hyper: discount (0.99), expectile (0.9), actor_loss ("ddpgbc" or "awr"), alpha (0.3). V is a single head; the
    expectile weight uses the differentiated residual's own sign; the critic's squared errors are summed over heads.
    Q's input order is observation, goal, action. DDPG+BC acts with the mean: the published constant-std case.
    """
    frozen = frozen or params
    state, goal, actions = batch["observations"], batch["value_goals"], batch["actions"]
    advantage = values(frozen, "target_critic", state, goal, actions).min(0) - values(params, "value", state, goal)[0]
    weight = expectile_weight(advantage, hyper["expectile"])
    value = {"loss": float((weight * advantage**2).mean()), "advantage": advantage, "weight": weight}

    next_value = values(frozen, "value", batch["next_observations"], goal)[0]
    target = batch["rewards"] + hyper["discount"] * batch["masks"] * next_value
    online = values(params, "critic", state, goal, actions)
    critic = {"loss": float(((online - target) ** 2).sum(0).mean()), "target": target}
    return _collect(value=value, critic=critic, actor=_gciql_actor(params, batch, hyper, frozen))


# --- hierarchical agents ----------------------------------------------------------------------------------------------


def _low_actor(params: Params, batch: Batch, hyper: Hyper, frozen: Params, value: str) -> Result:
    """AWR towards the subgoal w: A = V(s', w) - V(s, w); phi's gradient stops unless `low_actor_rep_grad` (pixels)."""
    state, goal = batch["observations"], batch["low_goals"]
    advantage = _gain(frozen, value, state, batch["next_observations"], goal)
    source = params if hyper.get("low_actor_rep_grad", False) else frozen
    mean, log_std = actor(params["low_actor"], state, phi(source["phi"], state, goal))
    return awr_loss(advantage, gaussian_log_prob(batch["actions"], mean, log_std), hyper["low_alpha"])


def _high_actor(params: Params, batch: Batch, hyper: Hyper, frozen: Params, value: str) -> Result:
    """AWR on representations: A = V(s_target, g) - V(s, g), regressed output phi([s; s_target]) without gradient."""
    state, goal, target = batch["observations"], batch["high_goals"], batch["high_targets"]
    advantage = _gain(frozen, value, state, target, goal)
    mean, log_std = actor(params["high_actor"], state, goal)
    representation = phi(frozen["phi"], state, target)
    return awr_loss(advantage, gaussian_log_prob(representation, mean, log_std), hyper["high_alpha"])


def hiql_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """HIQL: one V for both levels. Terms: value, low_actor, high_actor.

    Hyper: discount (0.99), expectile (0.7), low_alpha (3), high_alpha (3), low_actor_rep_grad (False).
    """
    frozen = frozen or params
    return _collect(
        value=_one_step_value(params, batch, "value", hyper["discount"], hyper["expectile"], frozen),
        low_actor=_low_actor(params, batch, hyper, frozen, "value"),
        high_actor=_high_actor(params, batch, hyper, frozen, "value"),
    )


def ota_losses(params: Params, batch: Batch, hyper: Hyper, frozen: Params | None = None) -> Result:
    """OTA: V_l as in HIQL for the low level, V_h with an option-long backup for the high level.

    Terms: low_value, high_value, low_actor, high_actor. Hyper as HIQL's, with optional low_discount and high_discount
    in place of the common discount. V_h's discount is applied ONCE per option.
    """
    frozen = frozen or params
    low_discount = hyper["low_discount" if "low_discount" in hyper else "discount"]
    high_discount = hyper["high_discount" if "high_discount" in hyper else "discount"]
    option = {
        "observations": batch["observations"],
        "next_observations": batch["option_next_observations"],
        "value_goals": batch["option_goals"],
        "rewards": batch["option_rewards"],
        "masks": batch["option_masks"],
    }
    return _collect(
        low_value=_one_step_value(params, batch, "low_value", low_discount, hyper["expectile"], frozen),
        high_value=_one_step_value(params, option, "high_value", high_discount, hyper["expectile"], frozen),
        low_actor=_low_actor(params, batch, hyper, frozen, "low_value"),
        high_actor=_high_actor(params, batch, hyper, frozen, "high_value"),
    )


def flat_action(params: Params, observations: Array, goals: Array) -> Array:
    """Greedy action [B, a] of GCBC, GCIVL and GCIQL: the mean, clipped to [-1, 1]."""
    return np.clip(actor(params["actor"], observations, goals)[0], -1.0, 1.0)


def hierarchical_action(params: Params, observations: Array, goals: Array) -> Array:
    """Greedy action of HIQL and OTA: high mean rescaled to norm sqrt(r), then low mean clipped; every step."""
    subgoal = length_normalise(actor(params["high_actor"], observations, goals)[0])
    return np.clip(actor(params["low_actor"], observations, subgoal)[0], -1.0, 1.0)


# --- one update -------------------------------------------------------------------------------------------------------


def tree_map(function: Any, *trees: Any) -> Any:
    """Apply `function` to matching leaves of nested dicts and lists."""
    if isinstance(trees[0], dict):
        return {key: tree_map(function, *(tree[key] for tree in trees)) for key in trees[0]}
    if isinstance(trees[0], list):
        return [tree_map(function, *items) for items in zip(*trees, strict=True)]
    return function(*(np.asarray(leaf, np.float64) for leaf in trees))


def adam_step(
    params: Any, grads: Any, first: Any, second: Any, step: int, lr: float = 3e-4, eps: float = 1e-8
) -> tuple[Any, Any, Any]:
    """Adam (arXiv 1412.6980), betas 0.9 and 0.999; `step` counts from 1. Returns params and both moments."""
    first = tree_map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = tree_map(lambda v, g: 0.999 * v + 0.001 * g**2, second, grads)

    def moved(p: Array, m: Array, v: Array) -> Array:
        return p - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + eps)

    return tree_map(moved, params, first, second), first, second


def polyak(target: Any, online_before: Any, rate: float) -> Any:
    """rate * online + (1 - rate) * target, with the online parameters from BEFORE this update's Adam step."""
    return tree_map(lambda t, p: rate * p + (1.0 - rate) * t, target, online_before)


# --- sampling: indices from explicit elementary decisions -------------------------------------------------------------


def geometric_offset(u: float, discount: float) -> int:
    """Inverse distribution function at u in [0, 1): smallest t >= 1 with 1 - discount^t > u (support 1, 2, ...)."""
    offset, tail = 1, discount
    while 1.0 - tail <= u:
        offset, tail = offset + 1, tail * discount
    return offset


def future_geometric(i: int, f: int, offset: int) -> int:
    """min(i + offset, f)."""
    return min(i + offset, f)


def future_uniform(i: int, f: int, u: float) -> int:
    """round(min(i + 1, f) u + f (1 - u)), halves to even: u = 0 is the trajectory's end."""
    return round(min(i + 1, f) * u + f * (1.0 - u))


def in_trajectory(u: float, p_traj: float, p_cur: float, option: bool = False) -> bool:
    """First draw: u < p_traj / (1 - p_cur); OTA's option sampler adds 1e-6 to the denominator."""
    return u < p_traj / (1.0 - p_cur + (1e-6 if option else 0.0))


def _outcome(reached: int, goal: int) -> tuple[float, float]:
    """gc_negative reward and mask: success is equality of dataset indices."""
    return (0.0, 0.0) if reached == goal else (-1.0, 1.0)


def value_goal(i: int, traj_goal: int, random_goal: int, in_traj: bool, current: bool) -> tuple[int, float, float]:
    """HIQL's value goal: (goal, r, m); success when the goal is the CURRENT index i."""
    goal = i if current else traj_goal if in_traj else random_goal
    return goal, *_outcome(i, goal)


def ota_option(
    i: int, f: int, n: int, traj_goal: int, random_goal: int, in_traj: bool, current: bool
) -> tuple[int, int, float, float]:
    """OTA's option sample: (o, goal, r, m); the option is cut at the in-trajectory goal, success is goal = o."""
    o = min(i + n, traj_goal) if in_traj else min(i + n, f)
    goal = o if current else traj_goal if in_traj else random_goal
    return o, goal, *_outcome(o, goal)


def low_goal(i: int, f: int, k: int) -> int:
    """Subgoal of the low level: min(i + k, f)."""
    return min(i + k, f)


def high_goal_and_target(
    i: int, f: int, k: int, traj_goal: int, random_goal: int, pick_random: bool
) -> tuple[int, int]:
    """(goal, target) of the high level: the target stops at a future goal, at f for a random goal."""
    return (random_goal, min(i + k, f)) if pick_random else (traj_goal, min(i + k, traj_goal))


# --- diagnostics and fixed points -------------------------------------------------------------------------------------


def order_consistency(trajectory_values: Array, window: int, k: int) -> tuple[float, Array]:
    """(share of t with vbar_{t+k} > vbar_t, vbar): trailing moving average, shorter at the start."""
    v = np.asarray(trajectory_values, np.float64)
    smooth = np.array([v[max(0, t - window + 1) : t + 1].mean() for t in range(len(v))])
    return float((smooth[k:] > smooth[: len(v) - k]).mean()), smooth


def value_fixed_point(d: int, discount: float) -> float:
    """HIQL's V at d steps: -(1 - gamma^d) / (1 - gamma)."""
    return -(1.0 - discount**d) / (1.0 - discount)


def option_value_fixed_point(d: int, n: int, discount: float) -> float:
    """OTA's V_h at d >= 1 steps: -(1 - gamma^(ceil(d/n) - 1)) / (1 - gamma); 0 at d = 0."""
    return 0.0 if d == 0 else value_fixed_point(-(-d // n) - 1, discount)


def chain_iteration(length: int, discount: float, n: int | None = None, sweeps: int | None = None) -> Array:
    """Tabular fixed point on a chain whose state d is d steps from the goal: V (n None) or V_h with n-step options."""
    v = np.zeros(length + 1)
    for _ in range(sweeps or length + 1):
        if n is None:
            backup = [0.0] + [-1.0 + discount * v[d - 1] for d in range(1, length + 1)]
        else:
            backup = [0.0] + [0.0 if d <= n else -1.0 + discount * v[d - n] for d in range(1, length + 1)]
        v = np.array(backup)
    return v
