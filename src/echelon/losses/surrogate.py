"""Policy-gradient surrogates: the loss of every item before aggregation, differentiable in its log-probability.

Items are emitted tokens or environment steps, packed without padding: columns are [N], and an advantage may have
channels, [N, C]. Every function returns the loss to minimise, item by item; the training loss is
`(weight * loss).sum()` with the weights of `echelon.losses.aggregate`, which also carry masks and selections.

The ratio r = π / π_old enters as its logarithm, from `log_ratio`, or from `sequence_log_ratio` for a whole sequence.
With r = 1, the first step on fresh samples, no clip acts and all of them have the gradient of `reinforce`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.credit.credit import finite
from echelon.losses._checks import align, mask, require, same_items
from echelon.spans import Spans


def log_ratio(
    log_prob: Tensor, old_log_prob: Tensor, *, where: Tensor | None = None, bound: float | None = None
) -> Tensor:
    """log r = log_prob - old_log_prob, [N] → [N]; the old one carries no gradient.

    where: bool [N]; other items (forced tokens, whose old log-probability is NaN) get r = 1 and no gradient.
    bound: clamps to [-bound, bound], so that r cannot overflow; no gradient beyond. verl: 20. TRL and papers: none.
    """
    same_items("log_prob", log_prob, "old_log_prob", old_log_prob)
    require(bound is None or bound > 0, "bound", bound, "positive")
    if where is not None:
        where = mask("where", where, log_prob)
        log_prob, old_log_prob = (torch.where(where, column, 0) for column in (log_prob, old_log_prob))
    difference = log_prob - old_log_prob.detach()
    return difference if bound is None else difference.clamp(-bound, bound)


def sequence_log_ratio(
    sequences: Spans, log_ratio: Tensor, *, where: Tensor | None = None, limit: float | None = 10.0
) -> Tensor:
    """log s = the mean of log r over the sequence, given to each of its tokens, [N] → [N].

    Its gradient is that of the token's own log r, not of the mean: under "seq-mean-token-mean" the n_i tokens then add
    up to the gradient of one s_i, exactly, and it stays right when the tokens have their own advantages or weights.
    `where`, bool [N]: the tokens that count. `limit` is verl's clamp from above. Source: GSPO-token, arXiv 2507.18071.

    For a ratio of whole sequences without the 1 / n_i (TRL's RLOO), pass `sequences.reduce(log_ratio)` [n] and
    advantages [n] to `ppo_clip`; the items of the loss are then the sequences.
    """
    use = mask("where", where, log_ratio)
    own = torch.where(use, log_ratio, 0)
    mean = sequences.reduce(own.detach()) / sequences.reduce(use, "sum").clamp(min=1)
    log_s = sequences.expand(mean) + (own - own.detach())
    return log_s if limit is None else log_s.clamp(max=limit)


def reinforce(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-A · log π, elementwise: log_prob [N], advantage [N] or [N, C]; unbiased on fresh samples (Williams 1992)."""
    return -advantage.detach() * align("log_prob", log_prob, advantage)


def ppo_clip(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A), elementwise: log_ratio [N], advantage [N] or [N, C].

    The pessimistic choice: an item whose ratio has moved far enough in the direction of its advantage has no gradient.
    Clip-higher (DAPO, arXiv 2503.14476) is high = 0.28. Of an advantage with channels each channel is clipped by
    itself, which is not the clip of their sum.

    dual: where A < 0 the loss is at most -dual · A, since r has no bound there; above 1, verl: 3 (arXiv 1912.09729).
    delta: instead clamps r to at most delta before the unclipped product; above 1, TRL's option (arXiv 2505.07291).
    Both leave no gradient beyond their bound. Source: PPO, arXiv 1707.06347; low = high = 0.2 in all of them.
    """
    _check_clip(low, high)
    require(dual is None or dual > 1, "dual", dual, "above 1")
    require(delta is None or delta > 1, "delta", delta, "above 1")
    ratio, advantage = align("log_ratio", log_ratio, advantage).exp(), advantage.detach()
    unclipped = ratio if delta is None else ratio.clamp(max=delta)
    loss = -torch.minimum(unclipped * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def gspo(
    sequences: Spans,
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    low: float = 3e-4,
    high: float = 4e-4,
    where: Tensor | None = None,
    limit: float | None = 10.0,
) -> Tensor:
    """`ppo_clip` of the sequence ratio s_i = exp(mean_t log r_it), for every token: log_ratio, advantage [N] → [N].

    For "seq-mean-token-mean" weights. One ratio a sequence, of its length-normalised likelihood: it varies far less
    than a token's, hence the paper's small clip range. `where`, `limit`: see `sequence_log_ratio`. A NaN advantage
    raises DataError with its sequence. Source: arXiv 2507.18071; verl has this token form, TRL differentiates s_i.
    """
    finite("sequence", sequences, advantage=advantage)
    log_s = sequence_log_ratio(sequences, log_ratio, where=where, limit=limit)
    return ppo_clip(log_s, advantage, low=low, high=high)


def cispo(
    log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, *, low: float | None = None, high: float = 4.0
) -> Tensor:
    """-sg(clip(r, 1 - low, 1 + high)) · A · log π, elementwise: log_prob and log_ratio [N], advantage [N] or [N, C].

    A truncated importance weight on REINFORCE: unlike PPO's clip it silences no item. low None: no lower bound, as in
    TRL, whose epsilon_high = 5 is the bound itself, 1 + high here; verl clips on both sides. Source: arXiv 2506.13585.
    """
    _check_clip(0.0 if low is None else low, high)
    ratio = align("log_ratio", log_ratio.detach(), advantage).exp()
    return reinforce(log_prob, advantage) * ratio.clamp(None if low is None else 1 - low, 1 + high)


def sapo(log_ratio: Tensor, advantage: Tensor, *, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Tensor:
    """-A · (4/τ) σ(τ (r - 1)), elementwise: log_ratio [N], advantage [N] or [N, C]; τ by the sign of A.

    A soft gate instead of a clip: the gradient at r = 1 is REINFORCE's and fades smoothly on either side, faster for
    A ≤ 0. For "seq-mean-token-mean" weights. Source: arXiv 2511.20347, as in TRL and verl.
    """
    require(tau_positive > 0, "tau_positive", tau_positive, "positive")
    require(tau_negative > 0, "tau_negative", tau_negative, "positive")
    ratio, advantage = align("log_ratio", log_ratio, advantage).exp(), advantage.detach()
    tau = torch.where(advantage > 0, torch.full_like(advantage, tau_positive), tau_negative)
    return -advantage * torch.sigmoid(tau * (ratio - 1)) * 4 / tau


def clip_fractions(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    where: Tensor | None = None,
) -> dict[str, Tensor]:
    """For logging, 0-d: the share of items that `ppo_clip` leaves without gradient, and how far the policy has moved.

    clip_low: r < 1 - low and A < 0; clip_high: r > 1 + high and A > 0; clip_dual: r > dual and A < 0;
    old_kl: the mean of r - 1 - log r, an estimate of KL(π_old || π) without negative values.
    where: bool [N], the items to look at, say those of one role; advantage is [N].
    """
    _check_clip(low, high)
    same_items("log_ratio", log_ratio, "the advantage", advantage)
    log_r, use = log_ratio.detach(), mask("where", where, log_ratio)
    ratio = log_r.exp()
    columns = {
        "clip_low": (ratio < 1 - low) & (advantage < 0),
        "clip_high": (ratio > 1 + high) & (advantage > 0),
        "old_kl": ratio - 1 - log_r,
    }
    if dual is not None:
        columns["clip_dual"] = (ratio > dual) & (advantage < 0)
    count = use.sum().clamp(min=1)
    return {name: torch.where(use, column, 0).sum() / count for name, column in columns.items()}


def _check_clip(low: float, high: float) -> None:
    require(0 <= low <= 1, "low", low, "in [0, 1]: the ratio is clipped at 1 - low")
    require(high >= 0, "high", high, "0 or more: the ratio is clipped at 1 + high")
