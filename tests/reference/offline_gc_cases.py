"""Small deterministic weights and batches for the five offline agents, without a random generator."""

import math
from itertools import pairwise
from typing import Any

import numpy as np

from . import offline_gc as ref


def wave(*shape: int, phase: float) -> np.ndarray:
    """Reproducible numbers in [-1, 1] without a random generator."""
    return np.sin(0.7 * np.arange(1, math.prod(shape) + 1) + phase).reshape(shape)


def network(sizes: tuple[int, ...], phase: float, norm: bool) -> ref.Layers:
    """Dense layers of the given sizes with non-trivial biases and LayerNorm parameters."""
    layers: ref.Layers = []
    for depth, (inputs, outputs) in enumerate(pairwise(sizes)):
        at = phase + depth
        layer = {"weight": wave(outputs, inputs, phase=at), "bias": 0.5 * wave(outputs, phase=at + 0.3)}
        if norm and depth + 2 < len(sizes):
            layer |= {"norm_weight": 1 + 0.2 * wave(outputs, phase=at + 0.5)}
            layer |= {"norm_bias": 0.1 * wave(outputs, phase=at + 0.6)}
        layers.append(layer)
    return layers


def small_case(agent: str, d: int = 4, a: int = 2, r: int = 3) -> tuple[ref.Params, ref.Batch]:
    """Small weights and a batch of 8 for one agent; every key any agent reads is in the batch."""

    def heads(inputs: int, count: int, phase: float) -> dict[str, Any]:
        return {"heads": [network((inputs, 6, 5, 1), phase + 2 * h, True) for h in range(count)]}

    def policy(inputs: int, outputs: int, phase: float) -> dict[str, Any]:
        return {"layers": network((inputs, 5, 6, outputs), phase, False)}

    params: ref.Params
    if agent in ("hiql", "ota"):
        params = {"phi": network((2 * d, 6, 5, r), 0.1, True)}
        for k, name in enumerate(["value"] if agent == "hiql" else ["low_value", "high_value"]):
            params |= {name: heads(d + r, 2, 0.2 + k), f"target_{name}": heads(d + r, 2, 0.4 + k)}
        params |= {"low_actor": policy(d + r, a, 0.5), "high_actor": policy(2 * d, r, 0.6)}
    else:
        params = {"actor": policy(2 * d, a, 0.1)}
        if agent == "gcivl":
            params |= {"value": heads(2 * d, 2, 0.2), "target_value": heads(2 * d, 2, 0.4)}
        if agent == "gciql":
            params |= {"value": heads(2 * d, 1, 0.2)}
            params |= {"critic": heads(2 * d + a, 2, 0.3), "target_critic": heads(2 * d + a, 2, 0.4)}
    states = ["observations", "next_observations", "value_goals", "actor_goals"]
    names = [*states, "low_goals", "high_goals", "high_targets"]
    batch = {name: wave(8, d, phase=1.3 * k) for k, name in enumerate(names)}
    success = np.array([1.0, 0, 0, 0, 0, 1, 0, 0])
    batch |= {"option_next_observations": wave(8, d, phase=0.2), "option_goals": wave(8, d, phase=2.2)}
    batch |= {"option_rewards": np.roll(success, 1) - 1, "option_masks": 1 - np.roll(success, 1)}
    return params, batch | {"actions": wave(8, a, phase=0.9), "rewards": success - 1, "masks": 1 - success}
