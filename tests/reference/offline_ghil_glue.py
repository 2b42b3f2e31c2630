"""Independent NumPy float64 reference of GHIL-Glue (arXiv 2410.20018): its three losses and one proposal, row by row.

Parameters: {name: array} of the networks `proposer.body`, `judge` and `policy.body`, as a state dict names them. All
states are standardised and actions scaled already. A denoiser sees what is noisy, its condition and its step.
"""

import math
from typing import Any

import numpy as np

from .hecrl import betas, cumulative, mlp, step_condition, under
from .offline_gc import Array

Weights = dict[str, Array]
STEP_DIM = 16


def sizes(batch: int) -> list[int]:
    """Rows of progress, wrong sentences, reversed pairs and wrong goals."""
    first, second, third = int(0.5 * batch), int(0.2 * batch), int(0.2 * batch)
    return [first, second, third, batch - first - second - third]


def presented(pairs: list[tuple[Any, Any, Any]], sentence_from: list[int], goal_from: list[int]) -> list[tuple]:
    """(s, g, sentence, label) of each row of (s, s', sentence); the sources count within their slice."""
    n = sizes(len(pairs))
    found = []
    for i, (s, later, word) in enumerate(pairs):
        if i < n[0]:
            found.append((s, later, word, 1))
        elif i < n[0] + n[1]:
            found.append((s, later, pairs[n[0] + sentence_from[i - n[0]]][2], 0))
        elif i < n[0] + n[1] + n[2]:
            found.append((later, s, word, 0))
        else:
            start = n[0] + n[1] + n[2]
            found.append((s, pairs[start + goal_from[i - start]][1], word, 0))
    return found


def cross_entropy(logits: Array, labels: Array) -> float:
    """Mean, by probabilities."""
    total = 0.0
    for logit, label in zip(logits, labels, strict=True):
        p = 1 / (1 + math.exp(-logit))
        total -= math.log(p) if label else math.log(1 - p)
    return total / len(logits)


def noise_in(w: Weights, x: Array, condition: Array, step: int) -> Array:
    """One row: x of any shape."""
    row = np.concatenate([x.ravel(), condition, step_condition(np.array([step]), STEP_DIM)[0]])
    return mlp(w, row[None])[0].reshape(x.shape)


def denoising_loss(
    w: Weights, x: Array, condition: Array, step: Array, noise: Array, steps: int, given: Array | None = None
) -> float:
    """Mean squared error over all entries that are not given; these are seen as they are. `given` [B, K, 1]."""
    alpha, errors = cumulative(steps), []
    for b in range(len(x)):
        a = alpha[int(step[b])]
        noisy = math.sqrt(a) * x[b] + math.sqrt(1 - a) * noise[b]
        wanted = np.ones(x[b].shape, bool)
        if given is not None:
            wanted = np.broadcast_to(~given[b], x[b].shape)
            noisy = np.where(wanted, noisy, x[b])
        gap = noise_in(w, noisy, condition[b], int(step[b])) - noise[b]
        errors += (gap[wanted] ** 2).tolist()
    return sum(errors) / len(errors)


def losses(w: Weights, batch: dict[str, Array], hyper: Any) -> dict[str, float]:
    """Of a prepared batch; hyper: generator_steps, policy_steps."""
    seen = np.concatenate([batch["judged"], batch["judged_goals"], batch["judged_words"]], 1)
    logits = mlp(under(w, "judge"), seen)[:, 0]
    counted = batch["counted"]
    return {
        "generator": denoising_loss(
            under(w, "proposer.body"), batch["target"], batch["step_condition"], batch["target_step"],
            batch["target_noise"], hyper["generator_steps"],
        ),
        "filter": cross_entropy(logits[counted], batch["labels"][counted]),
        "policy": denoising_loss(
            under(w, "policy.body"), batch["chunk"], batch["chunk_condition"], batch["chunk_step"],
            batch["chunk_noise"], hyper["policy_steps"], batch["chunk_given"],
        ),
    }  # fmt: skip


def proposal(w: Weights, s: Array, told: Array, noise: list[Array], steps: int, guidance: float, clip: float) -> Array:
    """One subgoal for one state: `noise` is that of the beginning, then of every step but the last."""
    net, alpha, beta = under(w, "proposer.body"), cumulative(steps), betas(steps)
    x = noise[0]
    for t in range(steps - 1, -1, -1):
        free = noise_in(net, x, np.concatenate([s, np.zeros_like(told)]), t)
        found = noise_in(net, x, np.concatenate([s, told]), t)
        found = free + guidance * (found - free)
        clean = np.clip((x - math.sqrt(1 - alpha[t]) * found) / math.sqrt(alpha[t]), -clip, clip)
        before = alpha[t - 1] if t else 1.0
        kept = math.sqrt(1 - beta[t]) * (1 - before) / (1 - alpha[t])
        x = math.sqrt(before) * beta[t] / (1 - alpha[t]) * clean + kept * x
        if t:
            x = x + math.sqrt(beta[t] * (1 - before) / (1 - alpha[t])) * noise[steps - t]
    return x
