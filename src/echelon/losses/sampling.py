"""When the sampler is not the trainer's policy: importance weights, rejections, and completions cut at their limit.

A sampler with other kernels, precision or older weights draws from another distribution than the one that is trained.
With the gap d = log π_old - log π_sampler of each token, both without gradient,

    ratio w = exp(d), of a token; exp(`sequence_gap`(d)) of its whole sequence
    TIS  `truncated_weight(d)`   min(w, high)                   keeps every item, biased where it clips
    MIS  `masked_weight(d)`      w if low ≤ w ≤ high else 0     drops what has gone too far (IcePop, masked sampling)

Weights are detached, [N], and multiply a loss through `weight` of `loss_weights`. Legend: N tokens, n sequences.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from echelon.credit.credit import finite
from echelon.errors import unknown
from echelon.losses._checks import mask, require, same_items
from echelon.spans import Spans


def sampler_gap(old_log_prob: Tensor, sampler_log_prob: Tensor, *, where: Tensor | None = None) -> Tensor:
    """d = old_log_prob - sampler_log_prob, [N] → [N], detached; 0, hence ratio 1, where the sampler's is NaN.

    NaN is what a sampler reports for tokens that it did not draw. `where`, bool [N]: other tokens get 0 too.
    """
    same_items("old_log_prob", old_log_prob, "sampler_log_prob", sampler_log_prob)
    known = mask("where", where, old_log_prob) & ~sampler_log_prob.isnan()
    return torch.where(known, old_log_prob - sampler_log_prob, 0).detach()


def sequence_gap(
    sequences: Spans, gap: Tensor, how: Literal["sum", "mean"] = "sum", *, where: Tensor | None = None
) -> Tensor:
    """The gap of the whole sequence, given to each of its tokens, [N] → [N].

    "sum": the ratio of the sequences' likelihoods, unbiased and of high variance. "mean": its geometric mean a token,
    so that long sequences are not rejected for their length alone. `where`, bool [N]: the tokens that enter.
    """
    if how not in ("sum", "mean"):
        raise unknown("reduction of a sequence", how, ("sum", "mean"))
    use = mask("where", where, gap)
    total = sequences.reduce(torch.where(use, gap, 0))
    return sequences.expand(total if how == "sum" else total / sequences.reduce(use, "sum").clamp(min=1))


def truncated_weight(gap: Tensor, *, high: float = 2.0, low: float | None = None) -> Tensor:
    """Truncated importance sampling, clip(exp(d), low, high), [N] → [N]; no lower bound by default.

    Source: fengyao.notion.site/off-policy-rl; verl: high = 2. TRL: "token_truncate", "sequence_truncate".
    """
    _check_bounds(low, high)
    return gap.detach().exp().clamp(low, high)


def masked_weight(gap: Tensor, *, high: float = 3.0, low: float | None = None) -> Tensor:
    """Masked importance sampling: exp(d) where low ≤ exp(d) ≤ high, else 0, [N] → [N]; no lower bound by default.

    TRL's default on sequences: high = 3. IcePop (arXiv 2510.18855): on tokens, with both bounds, 0.5 and 5. A pure
    rejection, which also leaves the counts of the loss, is `where = masked_weight(gap, …) > 0`.
    """
    _check_bounds(low, high)
    weight = gap.detach().exp()
    return torch.where((weight >= (0.0 if low is None else low)) & (weight <= high), weight, 0)


def on_policy_mask(
    sequences: Spans,
    *,
    log_prob: Tensor,
    sampler_log_prob: Tensor,
    advantage: Tensor,
    threshold: float,
    where: Tensor | None = None,
) -> Tensor:
    """bool [N]: false in sequences that went off policy, mean_t(log π_sampler - log π) > threshold, where A < 0.

    All columns are [N]; `log_prob` is the current policy's. Punishing what the policy would no longer say destabilises
    it; rewarded sequences stay. NaN of the sampler counts as no gap, `where` names the tokens of the mean.
    A NaN advantage raises DataError with its sequence. Source: arXiv 2512.02556; TRL's off_policy_mask_threshold.
    """
    same_items("advantage", advantage, "log_prob", log_prob)
    finite("sequence", sequences, advantage=advantage)
    drift = -sequence_gap(sequences, sampler_gap(log_prob, sampler_log_prob), "mean", where=where)
    return (advantage >= 0) | (drift <= threshold)


def soft_overlong(length: Tensor, *, maximum: float, buffer: float, factor: float = 1.0) -> Tensor:
    """DAPO's length penalty, to be added to the reward: [n] tokens of each completion → [n], in [-factor, 0].

    0 up to maximum - buffer tokens, then linear down to -factor at the maximum. The paper keeps -factor beyond it;
    released code goes on linearly, which differs only for completions longer than the maximum. Source: arXiv
    2503.14476.
    """
    require(0 < buffer <= maximum, "buffer", buffer, f"positive and at most the maximum, {maximum}")
    require(factor >= 0, "factor", factor, "0 or more")
    return -factor * ((length - (maximum - buffer)) / buffer).clamp(0, 1)


def finished_mask(sequences: Spans, token: Tensor, stop: Tensor) -> Tensor:
    """bool [N]: true in completions whose last token, int [N], is one of the `stop` ids, int [k]; overlong filtering.

    As `where` of `loss_weights` it takes completions that were cut at their limit out of the loss. They stay in the
    statistics of their group, which were computed before. Source: DAPO, arXiv 2503.14476; TRL's
    mask_truncated_completions.
    """
    return sequences.expand(torch.isin(sequences.reduce(token, "last"), stop))


def effective_sample_size(weight: Tensor, *, where: Tensor | None = None) -> Tensor:
    """(Σ w)² / Σ w², 0-d: how many equally weighted items the weights [N] are worth; 0 if all are 0."""
    weight = torch.where(mask("where", where, weight), weight.detach(), 0)
    return weight.sum().square() / weight.square().sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _check_bounds(low: float | None, high: float) -> None:
    require(high > 0, "high", high, "positive")
    require(low is None or 0 <= low <= high, "low", low, f"between 0 and high, {high}")
