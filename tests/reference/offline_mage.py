"""Independent NumPy float64 reference of MAGE (arXiv 2602.23770): its losses, and the plan that it makes in play.

Parameters: {name: array} of the agent as its state dict names them: encoder, decoder, adapter (convolutions over time
with a kernel of 5), vq.codebook, planner.{start,sketch,head,body} (tests/reference/transformer.py), inverse and aim.
Hyper: scales, heads, horizon, stride, discount, commitment_weight, condition_weight, relaxation, aim_expectile,
conditioned. A row is a dict of states [T, O] (scaled, as they were in the data), goal [O], until (environment steps to
the goal), action [A] and gumbel [sum of l, V].
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .transformer import gelu, linear, transformer
from .vq import averages, quantise, spread

Array = NDArray[np.float64]
Params = dict[str, Array]
Row = dict[str, Any]


def part(params: Params, name: str) -> Params:
    """The parameters below `name`."""
    return {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(f"{name}.")}


def convolved(params: Params, x: Array) -> Array:
    """Convolutions over time of x [T, C], one place at a time, zeros beyond the ends; GELU between them."""
    for k in range(len(params) // 2):
        x = gelu(x) if k else x
        weight, bias = params[f"layers.{k}.weight"], params[f"layers.{k}.bias"]
        reach, out = weight.shape[2] // 2, []
        for t in range(len(x)):
            inside = [j for j in range(weight.shape[2]) if 0 <= t + j - reach < len(x)]
            out.append(bias + sum(weight[:, :, j] @ x[t + j - reach] for j in inside))
        x = np.stack(out)
    return x


def dense(params: Params, x: Array) -> Array:
    """Linear layers with GELU between them."""
    for k in range(len(params) // 2):
        x = linear(params, f"layers.{k}", gelu(x) if k else x)
    return x


def trajectory(hyper: dict[str, Any], row: Row) -> Array:
    """(2 R - 1, s) of each place; the trajectory stays at its goal."""
    out = []
    for j in range(hyper["horizon"]):
        left = row["until"] - j * hyper["stride"]
        state = row["goal"] if left <= 0 else row["states"][j]
        out.append([2 * hyper["discount"] ** max(left, 0) - 1, *state])
    return np.array(out)


def autoencoder_loss(params: Params, hyper: dict[str, Any], rows: list[Row], straight: list[Array]) -> float:
    """Errors of the decoded and of the encoder. `straight` [T, C] of each row: what straight-through adds to f."""
    errors, distances = [], []
    for row, gap in zip(rows, straight, strict=True):
        tau = trajectory(hyper, row)
        f = convolved(part(params, "encoder"), tau)
        errors.append((convolved(part(params, "decoder"), f + gap) - tau) ** 2)
        distances += [(f - total) ** 2 for total in row["sums"]]
    return float(np.mean(errors) + hyper["commitment_weight"] * np.mean(distances))


def coded(params: Params, hyper: dict[str, Any], tau: Array) -> tuple[Array, list[list[int]], list[Array]]:
    """f, the codes of each scale and the sums after each."""
    f = convolved(part(params, "encoder"), tau)
    codes, sums, _ = quantise(f, params["vq.codebook"], hyper["scales"])
    return f, codes, sums


def logits(params: Params, hyper: dict[str, Any], condition: Array, sums: list[Array]) -> Array:
    """[tokens, V] of the first len(sums) + 1 scales, given the sums after all scales before them."""
    told, tokens, scale = linear(params, "planner.start", condition), [], []
    for k, length in enumerate(hyper["scales"][: len(sums) + 1]):
        sketch = averages(sums[k - 1], length) if k else None
        for j in range(length):
            token = told if sketch is None else linear(params, "planner.sketch", sketch[j])
            tokens.append(token + told if sketch is not None and hyper["conditioned"] == "all" else token)
            scale.append(k)
    mask = np.array([[scale[j] <= scale[i] for j in range(len(scale))] for i in range(len(scale))])
    body = part(params, "planner.body")
    seen = transformer(body, hyper["heads"], np.stack(tokens), list(range(len(tokens))), mask)
    return linear(params, "planner.head", seen)


def decoded(params: Params, z: Array, first: Array) -> Array:
    """D'(Z, R_0, s_0)."""
    beside = np.concatenate([z, np.tile(first, (len(z), 1))], 1)
    return convolved(part(params, "decoder"), z + convolved(part(params, "adapter"), beside))


def softmax(x: Array) -> Array:
    """Of each row."""
    return np.stack([np.exp(y - y.max()) / np.exp(y - y.max()).sum() for y in x])


def planner_loss(params: Params, hyper: dict[str, Any], rows: list[Row]) -> float:
    """Cross-entropy + weight L_cond + L_inv."""
    entropies, conditions, inverses = [], [], []
    for row in rows:
        tau = trajectory(hyper, row)
        _, codes, sums = coded(params, hyper, tau)
        found = logits(params, hyper, np.concatenate([tau[0], row["goal"]]), sums[:-1])
        flat = [code for codes_of in codes for code in codes_of]
        entropies += [-math.log(softmax(found)[i, code]) for i, code in enumerate(flat)]
        mixed = softmax((found + row["gumbel"]) / hyper["relaxation"]) @ params["vq.codebook"]
        z, first = np.zeros_like(sums[-1]), 0
        for length in hyper["scales"]:
            z = z + spread(mixed[first : first + length], len(tau))
            first += length
        conditions.append(float(np.sum((decoded(params, z, tau[0])[0] - tau[0]) ** 2)))
        inverses.append((dense(part(params, "inverse"), sums[-1].ravel()) - row["action"]) ** 2)
    weight = hyper["condition_weight"]
    return float(np.mean(entropies) + weight * np.mean(conditions) + np.mean(inverses))


def aim_loss(params: Params, hyper: dict[str, Any], rows: list[Row]) -> float:
    """Expectile regression of R_0."""
    errors = []
    for row in rows:
        tau = trajectory(hyper, row)
        error = tau[0, 0] - dense(part(params, "aim"), np.concatenate([tau[0, 1:], row["goal"]]))[0]
        share = hyper["aim_expectile"]
        errors.append((share if error >= 0 else 1 - share) * error**2)
    return float(np.mean(errors))


def action(params: Params, hyper: dict[str, Any], state: Array, goal: Array, noise: Array) -> Array:
    """The first action [A] of a plan; every scale anew from the whole of what is known. noise [sum of l, V]."""
    both = np.concatenate([state, goal])
    condition = np.concatenate([np.clip(dense(part(params, "aim"), both), -1, 1), both])
    sums: list[Array] = []
    total = np.zeros((hyper["horizon"], params["vq.codebook"].shape[1]))
    for length in hyper["scales"]:
        found = logits(params, hyper, condition, sums)
        chosen = [int(np.argmax(x)) for x in (found + noise[: len(found)])[-length:]]
        total = total + spread(params["vq.codebook"][chosen], hyper["horizon"])
        sums.append(total)
    return np.clip(dense(part(params, "inverse"), total.ravel()), -1, 1)
