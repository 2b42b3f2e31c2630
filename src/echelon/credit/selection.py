"""Which samples and which tokens enter the update: selections are weights, and advantages are those of the source.

A selection by outcome biases the gradient: what is kept is no longer a fair sample of the policy. Legend: N items,
n completions, G groups of K completions. A count beyond what there is means all.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite
from echelon.credit.groups import Singleton, grpo
from echelon.spans import Spans, SpanTree

SLACK = 1e-9  # so that 0.2 · 35 = 7.000000000000001 counts as 7


def dcpo(
    groups: Spans,
    *,
    reward: Tensor,
    length: Tensor,
    share: float = 0.5,
    statistics: Literal["kept", "all"] = "kept",
    where: Tensor | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
) -> Credit:
    """DCPO: of each group only its two ends, best and short against worst and long; GRPO on what is kept.

    In the order of falling reward, then rising length, then index, the first and the last share/2 · K are kept, at
    least one each; the two ends never meet. A group whose kept rewards are all equal is dropped.
    A_i = (R_i - mean) / (std + eps) with the statistics of the "kept", or of "all" K; 0 with weight 0 for the others.

    Shapes: reward, length (tokens of reasoning) [N]. `where` as in `grpo`. Needs groups of at least two. Length has no
    term of its own: of equally rewarded samples it only decides which are seen, short right and long wrong ones.
    Biased by the selection. Source: ChatShopBuddy, arXiv 2603.06065: that half is kept by reward and length is
    published, the rule is reconstructed.
    """
    known = torch.ones(groups.size, dtype=torch.bool, device=reward.device) if where is None else where
    reward = torch.where(known, reward, 0)
    finite("completion", None, reward=reward, length=length)
    place = _ascending(groups, length).siblings(-reward, "rank", where=known)  # the best first
    count = groups.reduce(known)
    side = torch.minimum((count.double() * share / 2 + SLACK).floor().long().clamp(min=1), count // 2)
    first, last = groups.expand(side), groups.expand(count - side)
    kept = known & ((place < first) | (place >= last))
    kept = kept & groups.expand(_vary(groups, reward, kept))
    source = kept if statistics == "kept" else known
    advantage = grpo(groups, reward=reward, where=source, ddof=ddof, eps=eps).advantage
    return Credit(torch.where(kept, advantage, 0), weight=kept)


def d3s(
    tree: SpanTree,
    *,
    reward: Tensor,
    entropy: Tensor,
    keep: float,
    share: float,
    sample_scope: Literal["batch", "group"] = "batch",
    token_scope: Literal["batch", "answer"] = "batch",
    ddof: int = 0,
    eps: float = 1e-6,
) -> Credit:
    """D3S: GRPO advantages of all samples; the loss sees those of largest spread, and in them the uncertain tokens.

    Items are tokens: the weight is 1 where `d3s_samples` keeps the completion and `d3s_tokens` the token of it, and the
    advantage is normalised before, never again. Shapes: reward [n] completions, entropy [N] tokens; keep and share as
    there, relaxed over training by `d3s_budget`. Needs `group` > `episode`. Biased by the selection, most at the start.
    Source: arXiv 2509.22115; that the loss divides by the number of kept tokens is reconstructed.
    """
    completions, groups = tree["episode"], tree.within("episode", "group")
    credit = grpo(groups, reward=reward, ddof=ddof, eps=eps)
    kept = d3s_samples(groups, advantage=credit.advantage, keep=keep, scope=sample_scope)
    credit = credit.expand(completions)
    tokens = d3s_tokens(
        completions,
        advantage=credit.advantage,
        entropy=entropy,
        share=share,
        scope=token_scope,
        where=completions.expand(kept),
    )
    return Credit(credit.advantage, weight=tokens, terms=credit.terms)


def d3s_samples(groups: Spans, *, advantage: Tensor, keep: float, scope: Literal["batch", "group"] = "batch") -> Tensor:
    """bool [N]: the subset of completions whose advantages have the largest variance, exactly.

        argmax_{|S| = M} Var(A_S): the M - t smallest and the t largest, with the best of all t

    advantage: [N]. keep: how many a group on average: M = keep · G over the whole "batch", or M = keep in each "group".
    Ties go to the lowest index, and to the fewest large ones. Where the kept are all equal none is kept (every
    advantage 0, or M = 1). O(N log N). Source: arXiv 2509.22115; the search of the split is reconstructed.
    """
    finite("completion", None, advantage=advantage)
    spans = groups if scope == "group" else _batch(advantage)
    size = spans.lengths.clamp(max=max(1, round(keep if scope == "group" else keep * groups.n)))
    x = advantage.double()
    small = _small_ones(spans, x, size)
    large = spans.siblings(-x, "rank") < spans.expand(size - small)
    kept = large | (~large & (spans.siblings(x, "rank", where=~large) < spans.expand(small)))
    return kept & spans.expand(_vary(spans, x, kept))


def _small_ones(spans: Spans, x: Tensor, size: Tensor) -> Tensor:
    """int64 [n]: how many of the subset of largest variance, `size` of each span, are its smallest items."""
    ascending = _ascending(spans, x)
    place = spans.siblings(x, "rank")
    of, gap = spans.expand(size), spans.expand(spans.lengths - size)
    x = x - spans.siblings(x, "mean")
    moments = torch.stack((x, x**2), -1)
    # a split at an item: those before it are the small ones, those from `gap` items later on are the large ones
    before = ascending.shift(ascending.scan(moments, reverse=False), -1)
    item = torch.arange(spans.size, device=x.device)
    after = ascending.scan(moments)[ascending.clip(item, item + gap)]
    mean, square = ((before + torch.where((place < of)[:, None], after, 0)) / of[:, None]).unbind(-1)
    variance = torch.where(place <= of, square - mean**2, -1)
    best = spans.expand(spans.reduce(variance, "max"))
    return spans.reduce(torch.where(variance >= best * (1 - SLACK), place, 0), "max").clamp(max=size)


def d3s_tokens(
    completions: Spans,
    *,
    advantage: Tensor,
    entropy: Tensor,
    share: float,
    scope: Literal["batch", "answer"] = "batch",
    where: Tensor | None = None,
) -> Tensor:
    """bool [N]: the tokens in the top `share` of |A_t| · H_t, ceil(share · count) of the batch or of each answer.

    Shapes: advantage, entropy H, both [N] tokens of the policy's own; where: bool [N], the tokens that take part. Under
    outcome rewards |A| is one number a completion, so that it matters in the "batch" alone; there long completions can
    take most places. Ties go to the lowest index. Source: arXiv 2509.22115; "batch" is reconstructed.
    """
    finite("completion", completions, advantage=advantage, entropy=entropy)
    use = torch.ones_like(advantage, dtype=torch.bool) if where is None else where
    spans = completions if scope == "answer" else _batch(advantage)
    quota = (share * spans.reduce(use).double() - SLACK).ceil()
    place = spans.siblings(-(advantage.abs() * entropy), "rank", where=use)
    return use & (place < spans.expand(quota))


def d3s_budget(progress: float, *, first: tuple[float, float], last: tuple[float, float]) -> tuple[float, float]:
    """(keep, share) of `d3s` at `progress` in [0, 1], on the straight line from `first` to `last`, all of the data.

    Source: arXiv 2509.22115; its numbers were not found: a quarter of the group and 0.2 are a reasonable start.
    """
    keep, share = ((1 - progress) * a + progress * b for a, b in zip(first, last, strict=True))
    return keep, share


def thor(
    groups: Spans,
    *,
    reward: Tensor,
    valid: Tensor,
    step: Tensor,
    trajectory_share: float = 0.5,
    step_share: float = 0.0,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Credit:
    """THOR: whole trajectories and regenerated steps in one batch, each in its own groups, GRPO on the valid samples.

    A group with fewer valid members than its share is dropped, then a group whose valid rewards are all equal: weight
    0 and advantage 0. The statistics are those of the valid members.

    Shapes, all [N] samples: reward, the answer's correctness, or of a step whether its code ran; valid, bool: for a
    trajectory all code passed, more than 150 tokens, an answer at the end; for a step that it holds code; step, bool:
    which level, the same throughout a group. singleton "raw" keeps a lone survivor with its raw reward. Terms: the two
    levels. Biased as `grpo`, and towards prompts whose code runs. Source: arXiv 2509.13761. Released code: step_share
    0.5 as well, "raw", and an execution rate cut to an integer. Tool output and `after_prefix` mask the tokens.
    """
    share = torch.where(step[groups.starts], step_share, trajectory_share).double()
    kept = valid & groups.expand(groups.reduce(valid) >= share * groups.lengths - SLACK)
    alone = groups.expand(groups.reduce(kept)) == 1
    varied = groups.expand(_vary(groups, reward, kept))
    kept = kept & (varied | alone if singleton == "raw" else varied)
    advantage = grpo(groups, reward=reward, where=kept, ddof=ddof, eps=eps, singleton=singleton).advantage
    terms = {"trajectory": torch.where(step, 0, advantage), "step": torch.where(step, advantage, 0)}
    return Credit(advantage, weight=kept, terms=terms)


def after_prefix(completions: Spans, *, prefix: Tensor) -> Tensor:
    """bool [N] tokens: those after the first `prefix`, int [n], of their completion, which were forced, not sampled."""
    return completions.position >= completions.expand(prefix)


def positive_nll_weight(*, advantage: Tensor, mask: Tensor, alpha: float = 0.01, least: float = 1e-7) -> Tensor:
    """w [N] with which -Σ w_t · log π_t is alpha times the mean negative log-likelihood of the tokens with A > 0.

    Shapes: advantage, mask (bool, the policy's own tokens) [N]. Without such a token all 0. It imitates what worked
    beside the policy gradient, whose clipping stops pulling. Source: THOR, arXiv 2509.13761: alpha and least of its
    released code, which takes the mean over each micro-batch.
    """
    chosen = (mask.bool() & (advantage > least)).to(advantage.dtype)
    return alpha * chosen / chosen.sum().clamp(min=1)


def _vary(spans: Spans, x: Tensor, where: Tensor) -> Tensor:
    """bool [n]: whether the items of `where` have unequal x; no where there are none."""
    x = x.double()
    low, high = torch.where(where, x, torch.inf), torch.where(where, x, -torch.inf)
    return spans.reduce(high, "max") > spans.reduce(low, "min")


def _ascending(spans: Spans, x: Tensor) -> Spans:
    """The same spans with their items in ascending order of x, ties as they were."""
    slot = spans.offsets[spans.ids] + spans.siblings(x, "rank")
    return Spans(spans.offsets, torch.empty_like(slot).index_copy_(0, slot, torch.arange(spans.size, device=x.device)))


def _batch(x: Tensor) -> Spans:
    """One span of all items."""
    return Spans([0, len(x)] if len(x) else [0]).to(x.device)
