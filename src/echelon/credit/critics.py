"""Credit from critics of whole turns that were trained off-policy or on outcomes: ArCHer and VSC-RL.

An utterance, what an agent says in one turn, is one action. Critics come as ensembles of H heads, usually two, in the
last dimension: [N, H]; where an advantage is taken, the smallest head speaks.

Legend: N items (utterances, or steps), o the text before the utterance, a the utterance, o' the text after it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite, sum_of
from echelon.credit.returns import discounted_return
from echelon.credit.segments import boundaries
from echelon.errors import DataError
from echelon.spans import Spans


class CriticTargets(NamedTuple):
    """What the heads of Q(o, a) and of V(o) should predict, [N, H] each."""

    q: Tensor
    v: Tensor


def archer_targets(
    *, reward: Tensor, terminated: Tensor, next_value: Tensor, action_q: Tensor, gamma: float = 0.95
) -> CriticTargets:
    """ArCHer's critic targets: y_Q = r + γ · (1 - terminated) · V⁻(o'), y_V = Q⁻(o, ã), each head by its own slow copy.

    Shapes: reward, terminated (bool) [N]; next_value V⁻(o'), action_q Q⁻(o, ã) [N, H]. On line ã is an utterance that
    the current policy says at o, the mean over several being less noisy; off line it is the recorded one, and the loss
    on V an expectile. No minimum over heads is taken here. A turn that ends a game of fixed length is terminated.
    Works from replay; biased by the copies. Source: arXiv 2402.19446 and its code; off line gamma is 0.99.
    """
    finite("utterance", None, reward=reward, action_q=action_q)
    after = torch.where(terminated[:, None], 0, next_value)
    finite("utterance", None, next_value=after)
    return CriticTargets((reward[:, None] + gamma * after).detach(), action_q.detach())


def archer(*, q: Tensor, value: Tensor) -> Credit:
    """ArCHer: A = min_h Q_h(o, a) - min_h V_h(o), not normalised.

    Shapes: q, value [N, H]; items are utterances, whose tokens share the credit (`expand`; or `archer_tokens`). Q is
    taken at an utterance of the current policy, so that replayed o need no importance ratio. Biased by the critics; the
    minima may be of different heads, so that the mean of A need not be 0. Critics of Monte-Carlo returns regress on
    `discounted_return`, which the released code records too. Source: arXiv 2402.19446.
    """
    finite("utterance", None, q=q, value=value)
    best, baseline = q.amin(-1), value.amin(-1)
    return Credit(best - baseline, terms={"q": best, "value": -baseline})


def archer_tokens(utterances: Spans, credit: Credit, *, token_value: Tensor) -> Credit:
    """ArCHer with a token baseline: A(o, a) - v_t, the head "token" learning A(o, a); items are tokens, [N].

    credit: that of the utterances, from `archer`. token_value: [N], v_t a head of the policy, read before token t, so
    that the gradient keeps its mean and loses variance. Source: arXiv 2402.19446's code, an option there.
    """
    finite("utterance", utterances, token_value=token_value)
    whole = credit.expand(utterances)
    terms = {**whole.terms, "baseline": -token_value}
    return Credit(whole.advantage - token_value, {"token": whole.advantage}, whole.weight, terms)


def archer_offline(*, q: Tensor, value: Tensor, inverse_temperature: float = 1.0) -> Credit:
    """ArCHer off line, advantage-weighted regression: recorded utterances imitated with factor exp(A / temperature).

    Shapes: q, value [N, H] as in `archer`, of the online critics. Not clipped, so watch the largest. Needs no samples
    of the policy; biased towards the data. Source: code of the offline variant of arXiv 2402.19446.
    """
    return Credit(torch.exp(inverse_temperature * archer(q=q, value=value).advantage))


def archer_kl(*, q: Tensor, value: Tensor, log_ratio: Tensor, coefficient: float) -> Credit:
    """ArCHer off line with fresh samples, held to a reference: (1 - c) · A - c · (log π - log π_ref + 1).

    Shapes: q, value [N, H]; log_ratio log π(a|o) - log π_ref(a|o) [N], of whole utterances from the current policy, for
    which the second term is the gradient of KL(π, π_ref), unbiased. Source: code of the offline variant of arXiv
    2402.19446; the reference is the cloned policy.
    """
    finite("utterance", None, log_ratio=log_ratio)
    advantage = archer(q=q, value=value).advantage
    terms = {"advantage": (1 - coefficient) * advantage, "reference": -coefficient * (log_ratio + 1)}
    return Credit(sum_of(terms), terms=terms)


def subgoal_segments(episodes: Spans, reward: Tensor) -> Spans:
    """Cuts every episode after each step with a reward; what is left at its end is a segment too. reward: [N]."""
    return boundaries(episodes.shift(reward != 0, -1), episodes)


def vsc_rl(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    task_value: Tensor,
    discount: float = 0.5,
    margin: float = 0.05,
    quantile: float = 0.9,
    form: Literal["binary", "clip", "raw"] = "binary",
) -> Credit:
    """VSC-RL: imitate the steps that look like progress, in the segments that succeeded more than expected.

        A_t = min_h V_h(s_{t+1}) - min_h V_h(s_t) - margin + r_t + M_t
        "clip": A in [0, 1]; "binary", as released: 1 where A > 0, else 0

    A segment ends at a reward (`subgoal_segments`); M_t = discount^(steps to its end), 0 in one that never ended. Its
    steps have weight 1 if (ended - task_value) reaches the `quantile` of all segments, else 0; ties all stay.

    Shapes: reward, task_value (read at the first step of each segment) [N]; value, next_value [N, H], probabilities.
    Targets: "value", for both values, 1 in segments that ended, else 0; "task", the same at their first steps. The
    released code's other update, imitation, is `filtered_bc` on `ended`. Biased by critics and selection: even a
    segment that failed may pass, where its values rise by more than the margin. Source: arXiv 2502.07949; figures and
    forms from the released code, which follows DigiRL (arXiv 2406.11896).
    """
    finite("episode", episodes, reward=reward, value=value, next_value=next_value)
    segments = subgoal_segments(episodes, reward)
    success = (reward != 0).to(reward.dtype)
    ended, expected = success[segments.ends], task_value[segments.starts]
    finite("episode", segments.within(episodes), task_value=expected)
    terms = {
        "next_value": next_value.amin(-1),
        "value": -value.amin(-1),
        "margin": torch.full_like(reward, -margin),
        "reward": reward,
        "return": discounted_return(segments, reward=success, gamma=discount),
    }
    advantage = raw = sum_of(terms)
    if form == "clip":
        advantage = raw.clamp(0, 1)
    elif form == "binary":
        advantage = (raw > 0).to(raw.dtype)
    elif form != "raw":
        raise DataError(f"unknown form '{form}'; valid: binary, clip, raw")
    first = torch.full_like(reward, torch.nan).index_copy(0, segments.starts, ended)
    return Credit(
        advantage,
        {"value": segments.expand(ended), "task": first},
        segments.expand(reaches_quantile(ended - expected, quantile)),
        terms if form == "raw" else {**terms, form: advantage - raw},
    )


def filtered_bc(spans: Spans, *, score: Tensor, quantile: float = 0.9) -> Credit:
    """Filtered behaviour cloning: imitate the items of the best spans, those whose score reaches the batch's quantile.

    score: [n] of `spans.n` episodes or segments, such as their returns. Advantage 1, weight 1 or 0; ties all stay, so
    that equal scores give plain cloning. Biased towards luck. Source: the baseline of arXiv 2402.19446, top 10 %.
    """
    kept = spans.expand(reaches_quantile(score, quantile).to(score.dtype))
    return Credit(torch.ones_like(kept), weight=kept)


def reaches_quantile(score: Tensor, quantile: float = 0.9) -> Tensor:
    """bool [n]: the scores at or above their quantile, interpolated linearly; score [n]."""
    finite("span", None, score=score)
    batch = Spans([0, len(score)] if len(score) else [0])
    return score >= batch.siblings(score, "quantile", q=quantile)
