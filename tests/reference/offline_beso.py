"""Independent NumPy float64 reference of BESO (arXiv 2304.02532): the loss of a batch of windows and one action.

Parameters: {name: array} of the network as a state dict names them: level, state, action, head (linear), body
(tests/reference/transformer.py). Hyper: heads, data_std, and for acting levels (falling, the last 0), guidance,
sampler, past. Everything is already scaled; a window is as long as its real steps: nothing is padded.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .transformer import linear, transformer

Array = NDArray[np.float64]
Params = dict[str, Array]


def network(params: Params, heads: int, actions: Array, level: float, states: Array, goals: Array) -> Array:
    """F [n, A] for noisy actions [n, A] at log(sigma) / 4 = level, states [n, O], goals [G, O]."""
    tokens = [linear(params, "level", np.array([level]))]
    places = [0]
    for k, goal in enumerate(goals):
        tokens.append(linear(params, "state", goal))
        places.append(1 + k)
    for k, (state, action) in enumerate(zip(states, actions, strict=True)):
        tokens += [linear(params, "state", state), linear(params, "action", action)]
        places += [1 + len(goals) + k] * 2
    body = {name.removeprefix("body."): value for name, value in params.items() if name.startswith("body.")}
    mask = np.array([[j <= i for j in range(len(tokens))] for i in range(len(tokens))])
    seen = transformer(body, heads, np.stack(tokens), places, mask)
    read = [1 + len(goals) + 2 * k + 1 for k in range(len(actions))]
    return linear(params, "head", seen[read])


def loss(params: Params, hyper: dict[str, Any], windows: list[dict[str, Any]]) -> float:
    """Mean over all entries of all real steps; windows: states, actions, goals, noise, sigma of each."""
    errors: list[float] = []
    for w in windows:
        s, std = w["sigma"], hyper["data_std"]
        skip, out = std**2 / (s**2 + std**2), s * std / math.sqrt(s**2 + std**2)
        noisy = w["actions"] + s * w["noise"]
        found = network(
            params, hyper["heads"], noisy / math.sqrt(s**2 + std**2), math.log(s) / 4, w["states"], w["goals"]
        )
        errors += ((found - (w["actions"] - skip * noisy) / out) ** 2).ravel().tolist()
    return sum(errors) / len(errors)


def denoised(params: Params, hyper: dict[str, Any], x: Array, s: float, states: Array, goals: Array) -> Array:
    """Guided D(x, s) [n, A]."""
    std, found = hyper["data_std"], []
    for g in (np.zeros_like(goals), goals):
        scaled = x / math.sqrt(s**2 + std**2)
        raw = network(params, hyper["heads"], scaled, math.log(s) / 4, states, g)
        found.append(std**2 / (s**2 + std**2) * x + s * std / math.sqrt(s**2 + std**2) * raw)
    return found[0] + hyper["guidance"] * (found[1] - found[0])


def action(params: Params, hyper: dict[str, Any], states: Array, past: Array, goals: Array, noises: list) -> Array:
    """The newest of n actions [A] after states [n, O] and the n - 1 actions between them; noises [n, A], one a draw."""
    left = iter(noises)
    levels = hyper["levels"]
    x = np.concatenate([past, levels[0] * next(left)[-1:]])
    for s, after in pairwise(levels):
        d = denoised(params, hyper, x, s, states, goals)
        if hyper["sampler"] == "ancestral":
            up = after / s * math.sqrt(s**2 - after**2)
            x = x + (x - d) / s * (math.sqrt(after**2 - up**2) - s)
            if up > 0:
                x = x + up * next(left)
        elif hyper["sampler"] == "heun" and after > 0:
            slope = (x - d) / s
            guess = x + (after - s) * slope
            if hyper["past"] == "kept":
                guess[:-1] = past
            x = x + (after - s) / 2 * (slope + (guess - denoised(params, hyper, guess, after, states, goals)) / after)
        else:
            x = x + (after - s) * (x - d) / s
        if hyper["past"] == "kept":
            x[:-1] = past
    return x[-1]
