"""Advantages of several reward channels, each with its own critic. Two systems scale them in opposite ways, on purpose.

Inputs are the channels' advantages, name → [N], e.g. `gae(...).advantage` a channel. Legend: N items, the whole batch
of one update.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite, sum_of


def slim(
    advantages: Mapping[str, Tensor],
    *,
    weights: Mapping[str, float] | None = None,
    eps: float = 1e-8,
    least: float = 1e-6,
) -> Credit:
    """Every channel gets the same voice: A = Σ_k w_k · (A_k - mean A_k) / (std A_k + eps), population std of the batch.

    weights: name → w_k, default 1. least: a channel whose std is below it says nothing (0), since its float noise would
    be blown up. Rescaling a channel's reward changes nothing, so a rare large penalty cannot drown the others. Needs
    one value a channel; biased as every advantage divided by its own spread. Terms: the channels. Source: SLIM,
    reconstructed (no formula was published).
    """
    finite("item", None, **advantages)
    terms = {}
    for name, advantage in advantages.items():
        centred = advantage - advantage.mean()
        std = centred.square().mean().sqrt()
        scaled = torch.where(std < least, 0, centred / (std + eps))
        terms[name] = (1.0 if weights is None else weights[name]) * scaled
    return Credit(sum_of(terms), terms=terms)


def hamnet(advantages: Mapping[str, Tensor], *, eps: float = 0.0) -> dict[str, Credit]:
    """Every channel keeps its scale: A_k ← (A_k - mean A_k) / sqrt(Σ_j Var A_j), unbiased variances of the batch.

    One credit a channel, since the clipped surrogate is applied to each before they are averaged: a large ratio cuts
    the channels it would help and not those it would hurt. All zero where no channel varies. Needs one value a channel.
    Source: HAMNet's released code.
    """
    finite("item", None, **advantages)
    total = sum_of({name: a.var() for name, a in advantages.items()}).sqrt()
    scale = torch.where(total > 0, total + eps, 1)
    return {name: Credit((a - a.mean()) / scale) for name, a in advantages.items()}
