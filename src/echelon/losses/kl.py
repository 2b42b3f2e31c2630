"""Divergence from a reference policy, and entropy: estimates from samples, exact values from logits, controllers.

For y sampled from π with d = log π(y) - log π_ref(y), three estimates of the reverse KL(π || π_ref), and what their
gradients estimate (E under π):

    k1 = d                  unbiased              E[∇k1] = 0: no use in a loss; right as a reward
    k2 = d² / 2             biased                E[∇k2] = ∇KL(π || π_ref): right in a loss
    k3 = exp(-d) + d - 1    unbiased and ≥ 0      E[∇k3] = ∇KL(π_ref || π): pulls towards another divergence
    r k3, r = π / π_old     unbiased              E[∇(r k3)] = ∇KL(π || π_ref): right, also for samples of π_old

Legend: N items, V words; columns are [N], logits [N, V].
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from echelon.errors import unknown
from echelon.losses._checks import mask, require, same_items
from echelon.spans import Spans

Estimator = Literal["k1", "k2", "k3"]
Gradient = Literal["own", "k2", "ratio"]


def kl_estimate(
    log_prob: Tensor,
    ref_log_prob: Tensor,
    *,
    estimator: Estimator = "k3",
    gradient: Gradient = "own",
    log_ratio: Tensor | None = None,
    bound: float | None = None,
    limit: float | None = None,
) -> Tensor:
    """One estimate an item of KL(π || π_ref), [N] → [N], with a choice of gradient; the module says which is which.

    gradient: "own", of the estimator as it stands (verl's low_var_kl, the GRPO paper's k3); "k2", the value of
        `estimator` with the gradient of k2 (verl's "+"); "ratio", the estimator times r = exp(log_ratio), which is not
        detached and corrects for samples of an older policy (TRL's default with k3).
    bound: clamps d to [-bound, bound] before anything else, without gradient beyond. verl's k3: 20.
    limit: clamps the value to [-limit, limit], without gradient beyond. verl's k3: 10. The gradient "k2" of verl
        ignores both clamps, and so does this one. TRL clamps nothing.
    """
    if gradient not in get_args(Gradient):
        raise unknown("gradient", gradient, get_args(Gradient))
    same_items("log_prob", log_prob, "ref_log_prob", ref_log_prob)
    given = "nothing" if log_ratio is None else "a tensor"
    require(
        (given == "a tensor") == (gradient == "ratio"), "log_ratio", given, "given for gradient 'ratio', and only then"
    )
    difference = log_prob - ref_log_prob.detach()
    value = _estimate(difference, estimator, bound, limit)
    if gradient == "k2":
        backward = difference.square() / 2
        return value.detach() + (backward - backward.detach())
    if log_ratio is not None:
        same_items("log_ratio", log_ratio, "log_prob", log_prob)
        return value * log_ratio.exp()
    return value


def kl_reward(
    log_prob: Tensor,
    ref_log_prob: Tensor,
    *,
    beta: float,
    estimator: Estimator = "k1",
    bound: float | None = None,
    limit: float | None = None,
) -> Tensor:
    """-beta · k, [N] → [N], detached: the penalty as a term of each item's reward, inside the advantage.

    With k1 (InstructGPT, verl, TRL's RLOO) the policy gradient of the penalised return is the gradient of the true KL.
    `sequences.reduce(...)` is the penalty of an outcome reward.
    """
    require(beta >= 0, "beta", beta, "0 or more")
    same_items("log_prob", log_prob, "ref_log_prob", ref_log_prob)
    return -beta * _estimate((log_prob - ref_log_prob).detach(), estimator, bound, limit)


def categorical_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(ref_logits)), [..., V] → [...], exact; infinite where π_ref forbids what π allows.

    Words of logit -inf have probability 0 and add nothing. The reference carries no gradient.
    """
    same_items("logits", logits, "ref_logits", ref_logits)
    log_p, log_q = F.log_softmax(logits, -1), F.log_softmax(ref_logits.detach(), -1)
    return (log_p.exp() * torch.where(log_p == -torch.inf, 0, log_p - log_q)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """-Σ p log p of p = softmax(logits) in nats, [..., V] → [...]; words of logit -inf add nothing.

    Divide the logits by the sampling temperature first: what is wanted is the entropy of the policy that acts.
    """
    log_p = F.log_softmax(logits, -1)
    return -(log_p.exp() * torch.where(log_p == -torch.inf, 0, log_p)).sum(-1)


def top_entropy(spans: Spans, entropy: Tensor, fraction: float, *, where: Tensor | None = None) -> Tensor:
    """bool [N]: the items with the highest entropy of each span, about `fraction` of them; [N] → [N].

    An item is in if its entropy is at least the (1 - fraction) quantile, interpolated linearly, of its span; ties may
    let more in. One span over the whole batch is the paper's rule (arXiv 2506.01939) and TRL's. As a `weight` of
    `loss_weights` it leaves the counts alone, as in TRL; as its `where` it does not.
    where: bool [N], the items to choose from.
    """
    require(0 < fraction <= 1, "fraction", fraction, "in (0, 1]")
    use, entropy = mask("where", where, entropy), entropy.detach()
    return use & (entropy >= spans.siblings(entropy, "quantile", where=use, q=1 - fraction))


def adapt_beta(beta: float, kl: float, *, n: int, target: float = 0.1, horizon: int = 10_000) -> float:
    """The next coefficient of a KL penalty: beta · (1 + clip(kl / target - 1, ±0.2) · n / horizon).

    kl: the mean of the batch, in nats, in the unit of the target; n: samples of the batch. With horizon samples at the
    clip beta changes by about a fifth. Source: arXiv 1909.08593; defaults of verl.
    """
    require(target > 0, "target", target, "positive")
    require(0 < n <= horizon, "n", n, f"between 1 and the horizon, {horizon}")
    require(math.isfinite(kl), "kl", kl, "finite")
    return beta * (1 + min(max(kl / target - 1, -0.2), 0.2) * n / horizon)


def adapt_rate(rate: float, kl: float, *, target: float, low: float = 1e-5, high: float = 1e-2) -> float:
    """The next learning rate: a step that moved the policy by more than 2 · target was too long, by less than half too
    short; the rate is divided or multiplied by 1.5, within [low, high].

    kl: the mean KL divergence of the policy from the one that acted, in nats. Source: the adaptive schedule of rsl_rl
    (arXiv 2109.11978), whose bounds these are.
    """
    require(target > 0, "target", target, "positive")
    require(0 < low <= high, "low", low, f"positive, and not above {high}")
    require(math.isfinite(kl), "kl", kl, "finite")
    if kl > 2 * target:
        return max(low, rate / 1.5)
    return min(high, rate * 1.5) if 0 < kl < target / 2 else rate


def adapt_entropy_bonus(
    coefficient: float,
    entropy: float,
    *,
    target: float = 0.2,
    step: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[float, float]:
    """(the next coefficient, the one to apply) of an entropy bonus that keeps the mean entropy at the target or above.

    The coefficient moves by `step`, up while entropy ≤ target and down above, within [low, high]; the bonus acts only
    while entropy ≤ target. Source: arXiv 2505.22312; defaults of TRL.
    """
    below = entropy <= target
    coefficient = min(max(coefficient + (step if below else -step), low), high)
    return coefficient, coefficient if below else 0.0


def _estimate(d: Tensor, estimator: str, bound: float | None, limit: float | None) -> Tensor:
    """k1, k2 or k3 of d = log π - log π_ref, elementwise."""
    if estimator not in get_args(Estimator):
        raise unknown("KL estimator", estimator, get_args(Estimator))
    require(bound is None or bound > 0, "bound", bound, "positive")
    require(limit is None or limit > 0, "limit", limit, "positive")
    d = d if bound is None else d.clamp(-bound, bound)
    value = {"k1": lambda: d, "k2": lambda: d.square() / 2, "k3": lambda: torch.expm1(-d) + d}[estimator]()
    return value if limit is None else value.clamp(-limit, limit)
