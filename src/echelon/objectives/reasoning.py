"""Rewards that pay reasoning by its length or its exploration: HBPO's token budgets, ARES's entropy triggers.

Items are completions. Legend: N completions; difficulty buckets 0 easy, 1 medium, 2 hard.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from echelon.errors import unknown

# ---- HBPO: a completion announces its budget and is paid by the tokens it used


def budget_ceiling(budget: Tensor, *, beta: float = 4.0, max_length: int = 4096, pi: float = math.pi) -> Tensor:
    """f₂(b) = β · cos(π · b / (2 · L_max)), [N]: what a right answer within its budget earns. arXiv 2507.15844."""
    return beta * torch.cos(pi * budget / (2 * max_length))


def budget_reward(
    *,
    length: Tensor,
    budget: Tensor,
    correct: Tensor,
    well_formed: Tensor | None = None,
    form: Literal["paper", "code"] = "paper",
    beta: float = 4.0,
    alpha: float = 1 / 4096,
    max_length: int = 4096,
    pi: float = math.pi,
) -> Tensor:
    """HBPO's reward, 0 for wrong or too long answers, [N]:

        paper: f₂(b) if n ≤ b, else f₁(n, b) = β · cos(π · n / (2 · L_max)) - α · |n - b|
        code:  min(f₁, f₂), which costs a very short answer a little; -1 if not well-formed

    Shapes: length n, tokens with the announcing prefix; budget b, tokens, as the sampler set it, NaN for a completion
    without one, which is paid f₂(n) to two decimals; correct, well_formed, bool [N].
    Source: arXiv 2507.15844; its code writes π as 3.1416.
    """
    if form not in ("paper", "code"):
        raise unknown("form", form, ("paper", "code"))
    length = length.to(budget.dtype) if budget.is_floating_point() else length.to(torch.get_default_dtype())
    within = budget_ceiling(budget, beta=beta, max_length=max_length, pi=pi)
    free = budget_ceiling(length, beta=beta, max_length=max_length, pi=pi)
    beyond = free - alpha * (length - budget).abs()
    paid = torch.minimum(beyond, within) if form == "code" else torch.where(length > budget, beyond, within)
    paid = torch.where(budget.isnan(), free.round(decimals=2), paid)
    paid = torch.where(correct.bool() & (length <= max_length), paid, 0)
    if form == "code" and well_formed is not None:
        paid = torch.where(well_formed, paid, -1)
    return paid


# ---- ARES: easy prompts are taxed for exploring, hard ones are paid for it

_MARGIN = (0.15, 0.25, 0.35)  # f, of the due number of triggers
_KNEE = (2.0, 3.0, 4.0)  # κ, where the tax turns from quadratic to linear
_SLOPE = (2.0, 2.5, 3.0)  # τ, of the bonus
_CAP = (1.0, 1.0, 1.2)  # times α
_CONSOLATION = (0.6, 0.8, 1.0)  # of the bonus of a wrong answer


def exploration_reward(*, count: Tensor, correct: Tensor, difficulty: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    """ARES's entropy term E, to be added to the accuracy, [N]. D = triggers - due, M = max(1, f · due):

        right, easy or medium: -cap · min(1, Huber(x - M) / (M + κ)),    x = D if easy, |D| if medium
        right, hard: cap · σ((D + M) / τ) if D ≥ -M, else -cap · min(1, .5 · Huber(-D - M) / (M + κ))
        wrong: share · cap · σ(max(D - M, 0) / τ)

    Shapes: count, valid triggers of each completion, correct (bool), difficulty (int, of its prompt), [N]; target, due
    triggers, and alpha, [3], of each bucket (`credit.tokens` computes these columns). cap = α, 1.2 · α if hard.
    A wrong answer earns at least half of its share of the cap, and on hard prompts a long wrong one can outrank a short
    right one: at α = .5 from 40 due triggers on, at α > .83 always. Source: arXiv 2510.08457's code.
    """
    margin_factor, knee, slope, cap, share = (
        torch.tensor(row, dtype=alpha.dtype, device=alpha.device)[difficulty]
        for row in (_MARGIN, _KNEE, _SLOPE, _CAP, _CONSOLATION)
    )
    cap, due = cap * alpha[difficulty], target[difficulty].to(alpha.dtype)
    margin = (margin_factor * due).clamp(min=1)
    excess = count - due

    def taxed(x: Tensor, factor: float = 1.0) -> Tensor:
        return -cap * (factor * _huber(x.clamp(min=0), knee) / (margin + knee)).clamp(max=1)

    easy_or_medium = taxed(torch.where(difficulty == 1, excess.abs(), excess) - margin)
    hard = torch.where(excess >= -margin, cap * ((excess + margin) / slope).sigmoid(), taxed(-excess - margin, 0.5))
    wrong = share * cap * ((excess - margin).clamp(min=0) / slope).sigmoid()
    return torch.where(correct.bool(), torch.where(difficulty == 2, hard, easy_or_medium), wrong)


def _huber(x: Tensor, knee: Tensor) -> Tensor:
    """x² / (2κ) up to κ, x - κ/2 beyond; x ≥ 0."""
    return torch.where(x <= knee, x * x / (2 * knee), x - knee / 2)
