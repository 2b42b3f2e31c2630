"""Independent NumPy float64 reference of Act2Goal (arXiv 2512.23541): offsets, the loss of a batch and one plan.

Parameters: {name: array} of each network as a state dict names them: tau, state, head and frame or action (linear),
body (tests/reference/transformer.py). Hyper: heads, horizon, proximal, frame_stride, distal, flow_steps. Everything is
already scaled; an episode is given from the drawn step on and as long as it is: nothing is padded.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .transformer import layers, linear, norm, transformer

Array = NDArray[np.float64]
Params = dict[str, Array]


def distal(horizon: int, proximal: int, count: int, law: str) -> list[int]:
    """Offsets of the sparse frames, in 30 digits so that no floor goes wrong."""
    from decimal import ROUND_FLOOR, Decimal, localcontext

    with localcontext() as context:
        context.prec, found = 30, []
        for m in range(1, count + 1):
            total, part = Decimal(count + 1).ln(), Decimal(m) / Decimal(count)
            share = {
                "printed": Decimal(m + 1).ln() / total,
                "growing": ((part * total).exp() - 1) / count,
                "even": part,
            }[law]
            far = (horizon - proximal) * share
            found.append(proximal + int((far + Decimal("1e-20")).to_integral_value(ROUND_FLOOR)))
    return found


def offsets(hyper: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Of frames, and of actions."""
    sparse = distal(hyper["horizon"], hyper["proximal"], hyper["distal"], hyper["offsets"])
    dense = [k * hyper["frame_stride"] for k in range(1, hyper["proximal"] // hyper["frame_stride"] + 1)]
    return dense + sparse, list(range(hyper["proximal"])) + sparse


def body(params: Params) -> Params:
    """The transformer's part."""
    return {name.removeprefix("body."): value for name, value in params.items() if name.startswith("body.")}


def world(params: Params, heads: int, x: Array, tau: float, s: Array, g: Array) -> tuple[Array, list[Array]]:
    """Velocity [F, O] of frames x [F, O], and the tokens that each block gives."""
    tokens = [linear(params, "tau", np.array([tau])), linear(params, "state", s), linear(params, "state", g)]
    tokens += [linear(params, "frame", frame) for frame in x]
    every = np.ones((len(tokens), len(tokens)), bool)
    seen = layers(body(params), heads, np.stack(tokens), range(len(tokens)), every)
    return linear(params, "head", norm(body(params), "norm", seen[-1])[3:]), seen[1:]


def expert(params: Params, heads: int, x: Array, tau: float, s: Array, contexts: list[Array]) -> Array:
    """Velocity [N, A] of actions x [N, A]."""
    tokens = [linear(params, "tau", np.array([tau])), linear(params, "state", s)]
    tokens += [linear(params, "action", action) for action in x]
    every = np.ones((len(tokens), len(tokens)), bool)
    return linear(
        params, "head", transformer(body(params), heads, np.stack(tokens), range(len(tokens)), every, contexts)[2:]
    )


def losses(networks: tuple[Params, Params], hyper: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[float, float]:
    """L_v and L_a; rows: states, actions from the drawn step on, goal, until, noise and tau of frames and steps."""
    at, step = offsets(hyper)
    errors: tuple[list[float], list[float]] = ([], [])
    for row in rows:
        states, actions, until = row["states"], row["actions"], row["until"]
        s, arrived = states[0], False
        noise, tau, points, wanted, counted = row["frames_noise"], row["frames_tau"], [], [], []
        for k, offset in enumerate(at):
            frame = row["goal"] if offset >= until else states[offset]
            points.append((1 - tau) * noise[k] + tau * frame)
            wanted.append(frame - noise[k])
            if not arrived:
                counted.append(k)
            arrived = arrived or offset >= until
        velocity, seen = world(networks[0], hyper["heads"], np.stack(points), tau, s, row["goal"])
        errors[0].extend(x for k in counted for x in (velocity[k] - wanted[k]) ** 2)
        noise, tau, points = row["steps_noise"], row["steps_tau"], []
        for k, offset in enumerate(step):
            action = actions[min(offset, len(actions) - 1)]
            points.append((1 - tau) * noise[k] + tau * action)
        velocity = expert(networks[1], hyper["heads"], np.stack(points), tau, s, seen)
        for k, offset in enumerate(step):
            if offset < until or offset == 0:
                errors[1].extend((velocity[k] - (actions[offset] - noise[k])) ** 2)
    return tuple(math.fsum(x) / len(x) for x in errors)  # type: ignore[return-value]


def plan(
    networks: tuple[Params, Params], hyper: dict[str, Any], s: Array, g: Array, noises: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Frames [F, O] and the actions [N, A], sparse ones included, from unit noise of both."""
    frames, actions, n = noises[0].copy(), noises[1].copy(), hyper["flow_steps"]
    seen: list[Array] = []
    for k in range(n):
        velocity, seen = world(networks[0], hyper["heads"], frames, k / n, s, g)
        frames = frames + velocity / n
    for k in range(n):
        actions = actions + expert(networks[1], hyper["heads"], actions, k / n, s, seen) / n
    return frames, actions
