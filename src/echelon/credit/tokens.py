"""What tokens are worth beyond their completion's advantage: planning tokens, and words after which entropy rises.

Items are tokens of the policy's own, one a row. Legend: N tokens, n completions, G groups (prompts).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite
from echelon.credit.groups import Singleton, grpo
from echelon.spans import Spans, SpanTree

# ---- HICRA: planning tokens over execution tokens


def amplify(credit: Credit, tokens: Tensor, alpha: float) -> Credit:
    """A + alpha · |A| on the chosen tokens, bool [N]: success counts more there, failure less. Term "amplified"."""
    extra = torch.where(tokens, alpha * credit.advantage.abs(), 0)
    return Credit(credit.advantage + extra, credit.target, credit.weight, {**credit.terms, "amplified": extra})


def hicra(
    tree: SpanTree,
    *,
    reward: Tensor,
    planning: Tensor,
    alpha: float = 0.2,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Credit:
    """HICRA: the GRPO advantage, amplified on planning tokens.

        A_it = A_i + alpha · |A_i| if t plans, else A_i:  (1 + alpha) · A_i where right, (1 - alpha) · A_i where wrong

    Shapes: reward [n] completions, planning bool [N] tokens (`systems.reasoning.hicra_grams` finds them). Needs groups,
    `group` > `episode`. alpha 0 is GRPO. Biased: the mean advantage of planning tokens is positive, so that plans are
    tried more cheaply, and writing planning phrases pays; watch their share. Source: arXiv 2509.03646.
    """
    episodes = tree["episode"]
    base = grpo(tree.within("episode", "group"), reward=reward, ddof=ddof, eps=eps, singleton=singleton)
    return amplify(base.expand(episodes), planning, alpha)


def hicra_code(
    tree: SpanTree,
    *,
    reward: Tensor,
    entropy: Tensor,
    planning: Tensor | None = None,
    alpha: float = 0.2,
    top: float = 0.3,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Credit:
    """HICRA as its authors train: amplified on uncertain tokens of long right answers, and on planning tokens if given.

    Long: more tokens than the mean of the group; right: A_i > 0; uncertain: `high_entropy`. Shapes: reward [n],
    entropy [N], planning bool [N]. Needs groups. Source: a port of the training code of arXiv 2509.03646; in that port
    the amplification is lost in a copy and does nothing.
    """
    episodes, groups = tree["episode"], tree.within("episode", "group")
    finite("completion", episodes, entropy=entropy)
    base = grpo(groups, reward=reward, ddof=ddof, eps=eps, singleton=singleton)
    total, members = groups.expand(groups.reduce(episodes.lengths)), groups.expand(groups.lengths)
    long = episodes.lengths * members > total
    tokens = episodes.expand((base.advantage > 0) & long) & high_entropy(episodes, entropy, top=top)
    return amplify(base.expand(episodes), tokens if planning is None else tokens | planning, alpha)


def high_entropy(completions: Spans, entropy: Tensor, *, top: float = 0.3) -> Tensor:
    """bool [N]: above the completion's entropy at index ⌊(1 - top) · length⌋ of the ascending order, strictly."""
    index = ((1 - top) * completions.lengths.double() + 1e-9).floor().clamp(max=completions.lengths - 1)
    at = completions.siblings(entropy, "rank") == completions.expand(index)
    return entropy > completions.expand(completions.reduce(torch.where(at, entropy, 0)))


def semantic_entropy(counts: Tensor) -> Tensor:
    """-Σ p_k · ln p_k in nats, 0-d, of the frequencies of planning phrases (or their clusters); 0 without any.

    counts: [K], how often each occurs in the batch. Source: arXiv 2509.03646, the diagnostic of strategic exploration.
    """
    total = counts.sum()
    return torch.special.entr(counts / torch.where(total > 0, total, 1)).sum()


# ---- ARES: entropy windows, and difficulty buckets that decide how much exploration is due

EASY, MEDIUM, HARD = 0, 1, 2


def partial_entropy(log_prob: Tensor, *, rest: Literal["one", "none"] = "one") -> Tensor:
    """Entropy in nats from the k largest log-probabilities of each token, [N, k] → [N].

    rest: what the others weigh, q = 1 - Σ p: as much as "one" token of probability q, -q · ln q, or "none". A lower
    bound of the entropy in both cases. Source: ARES, arXiv 2510.08457; its threshold uses "none", its counts "one".
    """
    p = log_prob.exp()
    kept = torch.special.entr(p).sum(-1)
    q = (1 - p.sum(-1)).clamp(min=0)
    return kept - q * q.clamp(min=1e-12).log() if rest == "one" else kept


def following_mean(completions: Spans, entropy: Tensor, *, width: int = 4) -> tuple[Tensor, Tensor]:
    """(mean of the next `width` tokens' entropies, bool: whether the completion has as many), both [N]."""
    finite("completion", completions, entropy=entropy)
    total = completions.shift(completions.scan(entropy, limit=width), 1)
    return total / width, completions.position + width < completions.expand(completions.lengths)


class Triggers(NamedTuple):
    """Trigger words of each completion, [n] each."""

    valid: Tensor  # followed by a window of high entropy
    invalid: Tensor  # followed by one of low entropy
    cost: Tensor  # Σ max(0, window - threshold)


def trigger_counts(
    completions: Spans, *, entropy: Tensor, trigger: Tensor, threshold: float | Tensor, width: int = 4
) -> Triggers:
    """How many trigger words lead into high entropy: windows of the next `width` tokens with a mean >= threshold.

    Shapes: entropy [N], trigger bool [N], the tokens that are in the word list. Triggers too near the end do not count.
    Source: ARES, arXiv 2510.08457; its code looks the likeliest token up in the list, not the sampled one.
    """
    window, complete = following_mean(completions, entropy, width=width)
    trigger = trigger & complete
    high = window >= threshold
    cost = torch.where(trigger, (window - threshold).clamp(min=0), 0)
    return Triggers(completions.reduce(trigger & high), completions.reduce(trigger & ~high), completions.reduce(cost))


def entropy_threshold(
    completions: Spans,
    *,
    entropy: Tensor,
    previous: Tensor | None = None,
    width: int = 4,
    q: float = 0.95,
    decay: float = 0.99,
) -> Tensor:
    """θ ← decay · θ + (1 - decay) · median over completions of the q-quantile of their windows, 0-d.

    entropy: [N]; near the end a completion's mean window stands in. previous: θ, 0-d; the first batch sets it.
    Completions without a complete window are left out, where the released code takes their first token's entropy;
    without any other, θ stays (NaN at first). Source: ARES, arXiv 2510.08457; quantiles interpolate linearly.
    """
    window, complete = following_mean(completions, entropy, width=width)
    count = completions.reduce(complete)
    mean = completions.reduce(torch.where(complete, window, 0)) / count.clamp(min=1)
    filled = torch.where(complete, window, completions.expand(mean))
    quantile = completions.reduce(completions.siblings(filled, "quantile", q=q), "first")
    batch = Spans([0, completions.n]).to(entropy.device)
    median = batch.siblings(quantile, "quantile", where=count > 0, q=0.5)[0]
    theta = torch.full_like(median, torch.nan) if previous is None else previous
    moved = median if previous is None else decay * theta + (1 - decay) * median
    return torch.where((count > 0).any(), moved, theta)


def difficulty(groups: Spans, *, correct: Tensor) -> Tensor:
    """int64 [G]: EASY from an accuracy of 2/3, MEDIUM from 1/3, else HARD; correct: bool [N]. Source: 2510.08457."""
    thrice = 3 * groups.reduce(correct.bool())
    return (thrice < 2 * groups.lengths).long() + (thrice < groups.lengths).long()


def bucket_mean(groups: Spans, *, count: Tensor, difficulty: Tensor) -> Tensor:
    """[3]: the mean over the prompts of a bucket of the prompt's mean count [N]; NaN for an empty bucket."""
    prompt = groups.reduce(count if count.is_floating_point() else count.to(torch.get_default_dtype()), "mean")
    member = difficulty[:, None] == torch.arange(3, device=count.device)
    return torch.where(member, prompt[:, None], 0).sum(0) / member.sum(0)


def bucket_target(mean: Tensor, *, previous: Tensor) -> Tensor:
    """[3]: how many triggers are due, round(mean) (halves to even); empty buckets keep `previous`. 2510.08457."""
    return torch.where(mean.isnan(), previous, mean.round())


def bucket_alpha(alpha: Tensor, *, mean: Tensor, target: Tensor, rate: float = 0.05, largest: float = 2.0) -> Tensor:
    """[3]: the strength of the exploration reward; it rises where easy or medium prompts explore more than due, or
    hard ones less.

        alpha ← clip(alpha ± rate · (mean - target), 0, largest),  + for easy and medium, - for hard

    Source: ARES, arXiv 2510.08457. Its code sets the target from the same mean just before, which leaves alpha only the
    rounding error to follow; give the target of the batch before to have it move. Empty buckets (NaN) keep theirs.
    """
    sign = torch.ones_like(alpha).index_fill_(0, torch.tensor([HARD], device=alpha.device), -1)
    return torch.where(mean.isnan(), alpha, (alpha + rate * sign * (mean - target)).clamp(0, largest))


def aepo(
    groups: Spans, *, reward: Tensor, low: float = 0.01, high: float = 0.99, ddof: int = 1, eps: float = 1e-6
) -> Credit:
    """AEPO: GRPO on the groups whose mean reward lies strictly between `low` and `high`; the others weigh 0.

    reward: [N] completions, accuracy plus the exploration term of the bucket. The bounds are meant for accuracies; on
    this reward they also drop mixed groups whose mean exceeds `high`. Needs groups; biased as `grpo`.
    Source: ARES, arXiv 2510.08457. How much exploration is due is told by `difficulty`, `trigger_counts`, `bucket_*`.
    """
    finite("completion", None, reward=reward)
    mean = groups.siblings(reward, "mean")
    return grpo(groups, reward=reward, where=(mean > low) & (mean < high), ddof=ddof, eps=eps)
