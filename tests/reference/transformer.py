"""Independent NumPy float64 reference of a pre-norm transformer: attention token by token and head by head.

Parameters: {name: array} as a state dict names them, weights [out, in].
    place.weight, norm.{weight,bias}
    blocks.K.{before,between}.{weight,bias}, blocks.K.attention.{query,key_value,out}.{weight,bias}
    blocks.K.feed.layers.{0,1}.{weight,bias}; with a context also blocks.K.{aside,across}
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .offline_gc import layer_norm

Array = NDArray[np.float64]
Params = dict[str, Array]


def linear(params: Params, name: str, x: Array) -> Array:
    """A linear layer."""
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def gelu(x: Array) -> Array:
    """x Phi(x)."""
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


def norm(params: Params, name: str, x: Array) -> Array:
    """A layer norm."""
    return layer_norm(x, params[f"{name}.weight"], params[f"{name}.bias"])


def attention(params: Params, name: str, heads: int, x: Array, context: Array, mask: Array) -> Array:
    """x [T, D] attends to context [K, C] where mask bool[T, K] allows it."""
    query = linear(params, f"{name}.query", x)
    key, value = np.split(linear(params, f"{name}.key_value", context), 2, axis=-1)
    size, out = x.shape[-1] // heads, np.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            weights = {j: math.exp(query[i, part] @ key[j, part] / math.sqrt(size)) for j in np.flatnonzero(mask[i])}
            out[i, part] = sum(w * value[j, part] for j, w in weights.items()) / sum(weights.values())
    return linear(params, f"{name}.out", out)


def transformer(
    params: Params, heads: int, x: Array, place: Any, mask: Array, contexts: list[Array] | None = None
) -> Array:
    """Tokens x [T, D] of one row at `place` [T]; `contexts`: what each block attends to beside."""
    return norm(params, "norm", layers(params, heads, x, place, mask, contexts)[-1])


def layers(
    params: Params, heads: int, x: Array, place: Any, mask: Array, contexts: list[Array] | None = None
) -> list[Array]:
    """What enters the first block and what each block gives, [T, D] each."""
    x = x + params["place.weight"][np.asarray(place)]
    found = [x]
    for k in range(sum(name.endswith(".before.weight") for name in params)):
        block = f"blocks.{k}"
        y = norm(params, f"{block}.before", x)
        x = x + attention(params, f"{block}.attention", heads, y, y, mask)
        if contexts is not None:
            y, every = norm(params, f"{block}.aside", x), np.ones((len(x), len(contexts[k])), bool)
            x = x + attention(params, f"{block}.across", heads, y, contexts[k], every)
        hidden = gelu(linear(params, f"{block}.feed.layers.0", norm(params, f"{block}.between", x)))
        x = x + linear(params, f"{block}.feed.layers.1", hidden)
        found.append(x)
    return found
