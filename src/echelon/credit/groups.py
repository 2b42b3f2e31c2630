"""Baselines from a group of samples of the same prompt or task; no critic.

Items are the samples (completions, or whole episodes), `groups` puts those of one prompt together, `reward` [N] is
their outcome. `where`, bool [N], names the samples whose reward is known: the others, which may hold NaN, get advantage
0 and weight 0 and leave the statistics. `credit.expand(completions)` spreads the result over tokens.

Statistics are explicit since sources differ: papers write ddof 0, TRL and verl divide by G - 1; eps is 1e-4 in TRL and
1e-6 in verl; a group of one has advantage 0 in TRL ("zero") and its raw reward in verl ("raw").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite, known, sum_of, total
from echelon.errors import unknown
from echelon.spans import Spans

Singleton = Literal["zero", "raw"]


def baseline(
    groups: Spans,
    x: Tensor,
    stat: Literal["mean", "loo_mean"] = "mean",
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    singleton: Singleton = "zero",
) -> Tensor:
    """The mean of each span, or that of the others, given to its items: [N, ...] → [N, ...].

    Measured from the largest member, so that x - baseline is 0 exactly where all are equal: a rounding error would
    be divided by a tiny eps later.
    """
    largest = groups.siblings(x, "max", where=where, singleton=singleton)
    return largest + groups.siblings(x - largest, stat, where=where, weight=weight, singleton=singleton)


def normalise(
    groups: Spans,
    x: Tensor,
    *,
    where: Tensor | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Tensor:
    """(x - mean) / (std + eps) among the items of each span, [N] → [N]; 0 where all are equal, and where unknown."""
    if singleton not in get_args(Singleton):
        raise unknown("singleton rule", singleton, get_args(Singleton))
    use = torch.ones_like(x, dtype=torch.bool) if where is None else where
    count = groups.reduce(use)
    largest = groups.expand(groups.reduce(torch.where(use, x, -torch.inf), "max"))
    offset = torch.where(use, x - largest, 0)  # as in `baseline`
    centred = torch.where(use, offset - groups.expand(groups.reduce(offset) / count.clamp(min=1)), 0)
    std = (groups.reduce(centred**2) / (count - ddof).clamp(min=1)).sqrt()
    scale = torch.where((count > 1) & (count > ddof), std, 1) + eps
    out = centred / groups.expand(torch.where(scale > 0, scale, 1))
    if singleton == "raw":
        out = torch.where(use & groups.expand(count == 1), x / (1 + eps), out)
    return out


def whiten(
    x: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    ddof: int = 1,
    eps: float = 0.0,
    var_eps: float = 1e-8,
) -> Tensor:
    """(x - mean) / (sqrt(var + var_eps) + eps) over the batch, [N] → [N]; 0 outside `where`. Defaults: verl.

    weight: [N], counts an item that many times.
    """
    if not len(x):
        return x
    if where is None and weight is None:
        offset = x - x[0]  # as in `baseline`
        centred = offset - offset.mean()
        scale = _root(centred.square().sum(), torch.full((), float(len(x) - ddof), device=x.device), var_eps) + eps
        return centred / torch.where(scale > 0, scale, 1)
    use = torch.ones_like(x, dtype=torch.bool) if where is None else where
    count = use.to(x.dtype) if weight is None else torch.where(use, weight, 0).to(x.dtype)
    size = count.sum()
    offset = torch.where(use, x - torch.where(use, x, -torch.inf).amax(), 0)
    centred = torch.where(use, offset - (count * offset).sum() / torch.where(size > 0, size, 1), 0)
    scale = _root((count * centred**2).sum(), size - ddof, var_eps) + eps
    return centred / torch.where(scale > 0, scale, 1)


def reinforce(*, reward: Tensor, baseline: float | Tensor = 0.0, where: Tensor | None = None) -> Credit:
    """REINFORCE with a baseline that the caller chose: A = R - b, reward and baseline [N].

    Unbiased whenever b does not depend on the item's own actions: a value, a running mean, the mean of others.
    Needs nothing. Highest variance with b = 0. Source: Williams 1992.
    """
    reward = known("reward", reward, "completion", None, where)
    return total({"reward": reward, "baseline": -torch.as_tensor(baseline).to(reward).expand_as(reward)}, where)


def rloo(groups: Spans, *, reward: Tensor, where: Tensor | None = None, singleton: Singleton = "zero") -> Credit:
    """REINFORCE leave-one-out: A_i = R_i - mean_{j≠i} R_j = G/(G-1) · (R_i - mean).

    Shapes: reward [N]. Needs groups of at least two. Unbiased. Source: arXiv 2402.14740; Kool et al. 2019. Released
    code: TRL's RLOOTrainer also folds the KL penalty into R; verl passes a single sample's raw reward ("raw").
    """
    reward = known("reward", reward, "completion", None, where)
    others = baseline(groups, reward, "loo_mean", where=where, singleton=singleton)
    return total({"reward": reward, "baseline": -others}, where)


def grpo(
    groups: Spans,
    *,
    reward: Tensor,
    where: Tensor | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Credit:
    """GRPO: A_i = (R_i - mean) / (std + eps) in the group of the prompt.

    Shapes: reward [N]. Needs groups of at least two with unequal rewards. Biased twice: the item is part of its own
    mean (a factor (G-1)/G), and the std weighs prompts by the inverse of their spread. A constant bonus to all right
    answers nearly vanishes. Source: arXiv 2402.03300 (population std). Released code: TRL ddof 1, eps 1e-4, "zero";
    verl ddof 1, eps 1e-6, "raw".
    """
    reward = known("reward", reward, "completion", None, where)
    group = normalise(groups, reward, where=where, ddof=ddof, eps=eps, singleton=singleton)
    return total({"group": group}, where)


def dr_grpo(groups: Spans, *, reward: Tensor, where: Tensor | None = None, singleton: Singleton = "zero") -> Credit:
    """Dr.GRPO: A_i = R_i - mean; GRPO without its std.

    Shapes: reward [N]. Needs groups of at least two. Unbiased up to the factor (G-1)/G, one for all groups of size G.
    Source: arXiv 2503.20783; its loss divides by a constant length as well (losses: seq-mean-token-sum-norm).
    """
    reward = known("reward", reward, "completion", None, where)
    mean = baseline(groups, reward, where=where, singleton=singleton)
    return total({"reward": reward, "baseline": -mean}, where)


def batch_std(
    groups: Spans, *, reward: Tensor, where: Tensor | None = None, ddof: int = 1, eps: float = 1e-4
) -> Credit:
    """Group mean, batch standard deviation: A_i = (R_i - mean_group) / (std_batch + eps).

    Shapes: reward [N]. Needs groups. One scale for all prompts, so that easy and hard ones keep their relative weight.
    Source: "lite PPO", arXiv 2508.08221; TRL: scale_rewards="batch", eps 1e-4.
    """
    reward = known("reward", reward, "completion", None, where)
    count = torch.ones_like(reward) if where is None else where.to(reward.dtype)
    centred = reward - (count * reward).sum() / count.sum()
    scale = _root((count * centred**2).sum(), count.sum() - ddof) + eps
    return total({"group": (reward - baseline(groups, reward, where=where)) / scale}, where)


def opo(
    groups: Spans, *, reward: Tensor, length: Tensor, where: Tensor | None = None, singleton: Singleton = "zero"
) -> Credit:
    """OPO: A_i = R_i - Σ n_j · R_j / Σ n_j, the length-weighted mean of the group.

    Shapes: reward, length = tokens of each completion [N]. Needs groups. The variance-optimal constant baseline when
    the squared gradient norm grows with length; like every mean that includes the item, scaled by less than one.
    Source: arXiv 2505.23585.
    """
    reward = known("reward", reward, "completion", None, where)
    mean = baseline(groups, reward, where=where, weight=length.to(reward.dtype), singleton=singleton)
    return total({"reward": reward, "baseline": -mean}, where)


def pass_at_k(
    groups: Spans, *, reward: Tensor, where: Tensor | None = None, ddof: int = 1, eps: float | None = 1e-6
) -> Credit:
    """Pass@k: only the best of the group has an advantage, (R_max - R_second) / (std + eps).

    Shapes: reward [N]. Needs groups of at least two; of equal bests the margin is 0. eps None leaves the std out: the
    gradient is then an unbiased one of the group's expected maximum. Source: arXiv 2503.19595; verl's grpo_passk.
    """
    reward = known("reward", reward, "completion", None, where)
    use = torch.ones_like(reward, dtype=torch.bool) if where is None else where
    best = groups.siblings(reward, "rank", where=where) == groups.expand(groups.reduce(use)) - 1
    second = groups.siblings(reward, "max", where=use & ~best, singleton="zero")
    margin = torch.where(best & use, reward - second, 0)
    if eps is not None:
        margin = margin / groups.siblings(reward, "std", where=where, ddof=ddof, eps=eps)
    return total({"margin": margin}, where)


def reinforce_pp(
    completions: Spans,
    *,
    reward: Tensor,
    gamma: float = 1.0,
    ddof: int = 1,
    var_eps: float = 1e-8,
) -> Credit:
    """REINFORCE++: the return to go of every token, whitened over all tokens of the batch.

    Items are tokens: reward [N], with the outcome (and penalties such as -β·KL) on the tokens where they fall. Needs
    no groups and no values. The batch mean is a baseline that includes the item: biased by O(1/N). Source: arXiv
    2501.03262; whitening as in verl (ddof 1, root of var + 1e-8).
    """
    finite("completion", completions, reward=reward)
    return Credit(whiten(completions.scan(reward, gamma), ddof=ddof, var_eps=var_eps))


def reinforce_pp_baseline(
    groups: Spans,
    *,
    reward: Tensor,
    length: Tensor,
    where: Tensor | None = None,
    ddof: int = 1,
    var_eps: float = 1e-8,
    singleton: Singleton = "zero",
) -> Credit:
    """REINFORCE++-baseline: R_i - mean_group, whitened over all tokens of the batch.

    Items are completions: reward, length = their tokens [N]; the mean over tokens weighs each by its length. Needs
    groups. Biased as `grpo`, with one scale for the whole batch. Source: arXiv 2501.03262; verl's
    reinforce_plus_plus_baseline ("raw").
    """
    reward = known("reward", reward, "completion", None, where)
    centred = reward - baseline(groups, reward, where=where, singleton=singleton)
    tokens = length.to(reward.dtype)
    return total({"group": whiten(centred, where=where, weight=tokens, ddof=ddof, var_eps=var_eps)}, where)


def gdpo(
    groups: Spans,
    *,
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float] | None = None,
    where: Mapping[str, Tensor] | None = None,
    length: Tensor | None = None,
    ddof: int = 1,
    eps: float = 1e-4,
    var_eps: float = 0.0,
    singleton: Singleton = "zero",
) -> Credit:
    """GDPO, decoupled rewards: normalise each reward in its group, sum them weighted, whiten the sum over the batch.

        A_i = whiten(Σ_k w_k · (R_ik - mean_k) / (std_k + eps))

    rewards: name → [N]; weights: name → number, default 1; where: name → bool [N], the samples where that reward is
    known (others count 0 in the sum; those without any leave the batch). length: [N], tokens of each completion: given,
    the batch is whitened over tokens, as verl does with eps 1e-6, var_eps 1e-8 and "raw"; else over completions, as TRL
    does with these defaults. Needs groups. Biased as `grpo`. A rare reward keeps its say beside a frequent one.
    Source: arXiv 2601.05242.
    """
    where = where or {}
    parts = {}
    for name, reward in rewards.items():
        reward = known(name, reward, "completion", None, where.get(name))
        normal = normalise(groups, reward, where=where.get(name), ddof=ddof, eps=eps, singleton=singleton)
        parts[name] = (1.0 if weights is None else weights[name]) * normal
    summed = sum_of(parts)
    scored = torch.stack([where[name] for name in rewards]).any(0) if where.keys() >= rewards.keys() else None
    tokens = None if length is None else length.to(summed.dtype)
    std_eps = eps if length is None else 0.0
    return total(
        {"group": whiten(summed, where=scored, weight=tokens, ddof=ddof, eps=std_eps, var_eps=var_eps)}, scored
    )


def _root(squares: Tensor, freedom: Tensor, var_eps: float = 0.0) -> Tensor:
    """0-d: the standard deviation from the sum of squares about the mean; 1 without a degree of freedom."""
    return torch.where(freedom > 0, (squares / freedom.clamp(min=1e-9) + var_eps).sqrt(), 1)
