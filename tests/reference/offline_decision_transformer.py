"""Independent NumPy float64 reference of the decision transformer (arXiv 2106.01345) with goals instead of returns.

Parameters: {name: array} of the network as a state dict names them: goal, state, action, head (linear), body
(tests/reference/transformer.py). Everything is already scaled; a window is as long as its real steps, without padding.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .transformer import linear, transformer

Array = NDArray[np.float64]
Params = dict[str, Array]


def next_action(params: Params, heads: int, goal: Array, states: Array, past: Array) -> Array:
    """The action [A] after states [n, O] and the n - 1 actions between them [n - 1, A], towards goal [O]."""
    tokens, places = [], []
    for k, state in enumerate(states):
        tokens += [linear(params, "goal", goal), linear(params, "state", state)]
        places += [k, k]
        if k < len(past):
            tokens.append(linear(params, "action", past[k]))
            places.append(k)
    body = {name.removeprefix("body."): value for name, value in params.items() if name.startswith("body.")}
    mask = np.tril(np.ones((len(tokens), len(tokens)), bool))
    return np.tanh(linear(params, "head", transformer(body, heads, np.stack(tokens), places, mask)[-1]))


def loss(params: Params, heads: int, windows: list[dict[str, Any]]) -> float:
    """Mean squared error over all numbers of all real steps; windows: goal, states and actions of each."""
    errors: list[float] = []
    for w in windows:
        for n in range(1, len(w["states"]) + 1):
            found = next_action(params, heads, w["goal"], w["states"][:n], w["actions"][: n - 1])
            errors += ((found - w["actions"][n - 1]) ** 2).tolist()
    return sum(errors) / len(errors)
