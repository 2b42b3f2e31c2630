"""Independent NumPy float64 reference of HECRL (arXiv 2602.02722), from the published formulas only.

Parameters are flat dicts {"path.of.the.parameter": array}; a prefix picks a network. An observation is one entity
after another, `kinds` = (count, size) of each kind. Loops run over rows, entities and heads on purpose.
Hyper: kinds, heads, discount, expectile, alpha, high_alpha, steps, dim (of a token).
"""

import math
from typing import Any

import numpy as np

from .offline_gc import Array, layer_norm

Weights = dict[str, Array]
_erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    """x times the standard normal's distribution function."""
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def under(w: Weights, prefix: str) -> Weights:
    """The weights below `prefix`."""
    return {k[len(prefix) + 1 :]: x for k, x in w.items() if k.startswith(prefix + ".")}


def linear(w: Weights, x: Array) -> Array:
    return x @ w["weight"].T + w["bias"]


def mlp(w: Weights, x: Array, bare_last: bool = True) -> Array:
    """Dense, GELU and (where there are weights of it) layer norm; the last layer may be bare."""
    count = sum(k.startswith("layers.") and k.endswith("weight") for k in w)
    for k in range(count):
        x = linear(under(w, f"layers.{k}"), x)
        if k < count - bare_last:
            x = gelu(x)
            if f"norms.{k}.weight" in w:
                x = layer_norm(x, w[f"norms.{k}.weight"], w[f"norms.{k}.bias"])
    return x


def embed(w: Weights, kinds: Any, x: Array) -> Array:
    """[O] -> [M, E]."""
    tokens, at = [], 0
    for kind, (count, size) in enumerate(kinds):
        for _ in range(count):
            tokens.append(linear(under(w, f"maps.{kind}"), x[at : at + size]))
            at += size
    return np.array(tokens) + w.get("tags", 0.0)


def attention(w: Weights, heads: int, x: Array, context: Array) -> Array:
    """Tokens [M, E] attend to [K, E] and to nothing."""
    width = x.shape[1] // heads
    both = np.vstack([linear(under(w, "key_value"), context), w["nothing"]])
    query, key, value = linear(under(w, "query"), x), both[:, : x.shape[1]], both[:, x.shape[1] :]
    columns = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        score = query[:, part] @ key[:, part].T / math.sqrt(width)
        share = np.exp(score - score.max(1, keepdims=True))
        columns.append(share / share.sum(1, keepdims=True) @ value[:, part])
    return linear(under(w, "out"), np.hstack(columns))


def norm(w: Weights, x: Array, condition: Array | None) -> Array:
    """Layer norm, with scale 1 + a(c) and shift b(c) where there is a condition."""
    if "modulate.weight" not in w:
        return layer_norm(x, w["norm.weight"], w["norm.bias"])
    scale, shift = np.split(linear(under(w, "modulate"), condition), 2)
    return layer_norm(x) * (1 + scale) + shift


def block(w: Weights, heads: int, x: Array, context: Array | None = None, condition: Array | None = None) -> Array:
    y = norm(under(w, "before"), x, condition)
    x = x + attention(under(w, "attention"), heads, y, y if context is None else context)
    return x + mlp(under(w, "feed"), norm(under(w, "between"), x, condition))


def entity_function(w: Weights, hyper: Any, s: Array, g: Array, a: Array | None = None) -> Array:
    """Rows [B, O], [B, O], maybe [B, A] -> [B, out]."""
    rows = []
    for row in range(len(s)):
        c = None if a is None else mlp(under(w, "act"), a[row], bare_last=False)
        x, aim = (embed(under(w, "embed"), hyper["kinds"], y[row]) for y in (s, g))
        x = block(under(w, "near"), hyper["heads"], x, None, c)
        x = block(under(w, "far"), hyper["heads"], x, aim, c)
        x = block(under(w, "again"), hyper["heads"], x, None, c)
        token = block(under(w, "gather"), hyper["heads"], w["token"], x, c)
        rows.append(mlp(under(w, "head"), norm(under(w, "norm"), token, None)[0]))
    return np.array(rows)


def frame_transformer(w: Weights, hyper: Any, frames: Array, condition: Array | None = None) -> Array:
    """Rows [B, F, O], maybe a condition [B, E] -> [B, F, O]."""
    layers = len({k.split(".")[1] for k in w if k.startswith("blocks.")})
    result = []
    for row, sets in enumerate(frames):
        c = None if condition is None else condition[row]
        x = np.vstack([embed(under(w, "embed"), hyper["kinds"], y) + f for y, f in zip(sets, w["frame"], strict=True)])
        x = x if c is None else x + c
        for k in range(layers):
            x = block(under(w, f"blocks.{k}"), hyper["heads"], x, None, c)
        x = norm(under(w, "norm"), x, c)
        decoded, at = [], 0
        for _ in sets:
            for kind, (count, _size) in enumerate(hyper["kinds"]):
                for _ in range(count):
                    decoded.append(mlp(under(w, f"decode.maps.{kind}"), x[at]))
                    at += 1
        result.append(np.concatenate(decoded).reshape(sets.shape))
    return np.array(result)


def betas(steps: int) -> list[float]:
    """Cosine levels by their definition."""
    f = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
    return [min(1 - f[k + 1] / f[k], 0.999) for k in range(steps)]


def cumulative(steps: int) -> list[float]:
    product, found = 1.0, []
    for beta in betas(steps):
        product *= 1 - beta
        found.append(product)
    return found


def step_condition(t: Array, dim: int) -> Array:
    half = dim // 2
    rates = [10_000.0 ** (-k / (half - 1)) for k in range(half)]
    return np.array([[math.sin(x * r) for r in rates] + [math.cos(x * r) for r in rates] for x in t])


def losses(w: Weights, batch: dict[str, Array], hyper: Any, frozen: Weights | None = None) -> dict[str, float]:
    """Terms value, critic, actor and subgoal (diffusion, or regression where the batch has no noise); `frozen` holds
    the parameters wherever no gradient flows. States are normalised."""
    frozen = frozen or w
    s, following, a = (batch[k] for k in ("observations", "next_observations", "actions"))
    goal, near, far = (batch[k] for k in ("value_goals", "actor_targets", "actor_goals"))

    def v(net: Weights, x: Array, g: Array) -> Array:
        return entity_function(under(net, "value"), hyper, x, g)[:, 0]

    def q(net: Weights, name: str, x: Array, act: Array, g: Array) -> Array:
        return entity_function(under(net, name), hyper, x, g, act)[:, 0]

    d = np.minimum(*(q(frozen, f"target_critic.{k}", s, a, goal) for k in (0, 1))) - v(w, s, goal)
    value = (np.abs(hyper["expectile"] - (d < 0)) * d**2).mean()

    target = batch["rewards"] + hyper["discount"] * v(frozen, following, goal)
    target = np.maximum(np.minimum(target, 0.0), -1 / (1 - hyper["discount"]))
    critic = sum(((q(w, f"critic.{k}", s, a, goal) - target) ** 2).mean() for k in (0, 1))

    def pi(net: Weights) -> Array:
        return np.tanh(entity_function(under(net, "actor"), hyper, s, far))

    climbed = q(frozen, "critic.0", s, pi(w), far)
    size = np.abs(q(frozen, "critic.0", s, pi(frozen), far)).mean() + 1e-6
    actor = -climbed.mean() / size + hyper["alpha"] * ((pi(w) - a) ** 2).mean()

    net = under(w, "high.network")
    if "noise" in batch:
        level = np.array(cumulative(hyper["steps"]))[batch["steps"]][:, None]
        noisy = np.sqrt(level) * near + np.sqrt(1 - level) * batch["noise"]
        condition = step_condition(batch["steps"], hyper["dim"])
        guess = frame_transformer(net, hyper, np.stack([s, noisy, far], 1), condition)[:, 1]
        subgoal = np.abs(guess - batch["noise"]).mean()
    else:
        gain = v(frozen, near, far) - v(frozen, s, far)
        weight = np.minimum(np.exp(hyper["high_alpha"] * gain), 100.0)
        guess = frame_transformer(net, hyper, np.stack([s, far], 1))[:, 0]
        subgoal = (weight * ((guess - near) ** 2).mean(1)).mean()
    return {"value": float(value), "critic": float(critic), "actor": float(actor), "subgoal": float(subgoal)}
