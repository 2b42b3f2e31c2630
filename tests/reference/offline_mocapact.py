"""MoCapAct's distillation in NumPy float64, one number after the other, from the published formulas alone.

Weights: w_i = exp((x_i - off) / T), off = T (logsumexp(x / T) - log n). Prior: N(rho z', (1 - rho^2) I). Encoder and
decoder are given as layers {"weight": [out, in], "bias": [out]}; ELU between layers, a layer norm behind each ELU of
the decoder. Loss: mean over the real steps of -w log N(abar; decoder(s, z), std^2 I) + beta KL(q || prior), where
z = mean + std * noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Layers = list[dict[str, np.ndarray]]


def offset(scores: np.ndarray, temperature: float) -> float:
    """T (log of the sum of exp(x / T), less log n), by a plain sum."""
    total = 0.0
    for x in scores:
        total += math.exp(x / temperature)
    return temperature * math.log(total / len(scores))


def weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    """exp((x - off) / T)."""
    off = offset(scores, temperature)
    return np.array([math.exp((x - off) / temperature) for x in scores])


def kl(mean: np.ndarray, std: np.ndarray, before: np.ndarray, rho: float) -> float:
    """KL between two diagonal Gaussians, the second N(rho before, (1 - rho^2) I)."""
    total = 0.0
    for m, s, z in zip(mean, std, before, strict=True):
        p = math.sqrt(1 - rho * rho)
        total += math.log(p / s) + (s * s + (m - rho * z) ** 2) / (2 * p * p) - 0.5
    return total


def log_prob(x: np.ndarray, mean: np.ndarray, std: float) -> float:
    """log N(x; mean, std^2 I)."""
    return sum(
        -0.5 * ((a - b) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi)) for a, b in zip(x, mean, strict=True)
    )


def elu(x: np.ndarray) -> np.ndarray:
    """x where it is positive, else exp(x) - 1."""
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def mlp(layers: Layers, x: np.ndarray) -> np.ndarray:
    """Layers with ELU between them, and a layer norm behind it where one is given (`norm_weight`, `norm_bias`)."""
    for layer in layers[:-1]:
        x = elu(layer["weight"] @ x + layer["bias"])
        if "norm_weight" in layer:
            centred = x - x.mean()
            x = centred / np.sqrt((centred**2).mean() + 1e-6) * layer["norm_weight"] + layer["norm_bias"]
    return layers[-1]["weight"] @ x + layers[-1]["bias"]


def loss(params: dict[str, Any], batch: dict[str, np.ndarray], hyper: dict[str, float]) -> float:
    """The loss of sequences: states [B, T, O], seen [B, T, I] (what the encoder reads beside the latent), means
    [B, T, A], real and weights [B, T], start [B, D], noise [B, T, D]; hyper: beta, rho, std."""
    total, count = 0.0, 0
    for b in range(len(batch["states"])):
        z = batch["start"][b]
        for t in range(batch["states"].shape[1]):
            found = mlp(params["encoder"], np.concatenate([batch["seen"][b, t], z]))
            mean, std = found[: len(z)], np.exp(np.clip(found[len(z) :], -5, 2))
            before, z = z, mean + std * batch["noise"][b, t]
            if batch["real"][b, t]:
                action = mlp(params["decoder"], np.concatenate([batch["states"][b, t], z]))
                likely = log_prob(batch["means"][b, t], action, hyper["std"])
                total += -batch["weights"][b, t] * likely + hyper["beta"] * kl(mean, std, before, hyper["rho"])
                count += 1
    return total / count


def frames(clip: np.ndarray, states: np.ndarray, t: int, count: int) -> np.ndarray:
    """The clip's frames t + 1, …, t + count less the state at t, one behind the other; the last frame is repeated."""
    return np.concatenate([clip[min(t + k, len(clip) - 1)] - states[t] for k in range(1, count + 1)])


def discounted(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Returns from each step on, where the last reward goes on for ever."""
    found = []
    for t in range(len(rewards)):
        total = sum(gamma**k * r for k, r in enumerate(rewards[t:]))
        found.append(total + gamma ** (len(rewards) - t) * rewards[-1] / (1 - gamma))
    return np.array(found)
