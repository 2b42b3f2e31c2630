"""Credit of the turns of multi-turn agents, from groups of episodes of the same task.

Items are turns, one row a turn; `credit.expand(turns)` spreads the result over tokens. `tree` holds two partitions of
them: `episode`, inside `group`, the episodes that share task and start. `where`, bool [N], names the active turns: the
others, which may hold NaN, get advantage 0 and weight 0, leave the statistics, and no discount falls on them.

Statistics are explicit since sources differ: `ddof`; `eps`, or None to subtract the mean only ("mean_norm" of released
code); `singleton`, what a member without siblings gets: 0 ("zero"), or its raw value over 1 + eps ("raw").

Legend: N turns, n episodes, G groups.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite, known, sum_of, total
from echelon.credit.groups import Singleton, baseline, normalise
from echelon.credit.returns import gae
from echelon.errors import DataError, unknown
from echelon.spans import Spans, SpanTree

Statistics = Literal["rows", "episodes"]
Scope = Literal["group", "batch"]
GainScale = Literal["log", "probability"]
GainStatistics = Literal["pool", "column"]
SpaForm = Literal["paper", "code"]


# ---- partitions of turns, and what ends an episode


def step_groups(tree: SpanTree, *, state: Tensor) -> Spans:
    """The turns of a group that stand in the same state: equal int keys `state` [N], in one `group`."""
    group = tree["group"]
    if state.shape != (tree.size,) or state.is_floating_point():
        raise DataError(
            f"state must be {tree.size} int keys, one a turn, got {state.dtype} of shape {tuple(state.shape)}"
        )
    return Spans.by_key(group.ids, state)


def index_groups(tree: SpanTree) -> Spans:
    """The turns of a group that have the same index in their episodes."""
    episode = tree["episode"]
    return Spans.by_key(tree["group"].ids * episode.longest + episode.position)


def at_end(spans: Spans, y: Tensor) -> Tensor:
    """[n] → [N]: the value of each span on its last item, 0 elsewhere; rewards of turns on their last tokens."""
    if y.shape != (spans.n,):
        raise DataError(f"one value a span expected, {spans.n} of them, got shape {tuple(y.shape)}")
    return y.new_zeros(spans.size).index_copy(0, spans.ends, y)


# ---- advantages


def rloo_to_go(tree: SpanTree, *, reward: Tensor, gamma: float = 1.0) -> Credit:
    """Leave-one-out return to go, against the other episodes of the group that have a turn t.

        A_it = G_it - mean_{j≠i} G_jt,  G_it = Σ_{k≥t} γ^(k-t) · r_ik;  A_it = G_it where no other episode reaches t

    Shapes: reward [N]. Needs groups of at least two.

    Unbiased (γ = 1) even where the policy decides when to stop: the baseline, and which episodes form it, depends on
    the others only, whatever i does. The mean that includes i is biased then: with m episodes left it scales A by
    (m-1)/m, and m falls from turn to turn as the policy stops them, so that late turns count too little, the last
    episode left not at all, and the sum is no multiple of the gradient. Its price is variance where m is small.
    Source: RLOO (arXiv 2402.14740) at every turn index.
    """
    episode = tree["episode"]
    reward = known("reward", reward, "episode", episode, None)
    to_go = episode.scan(reward, gamma)
    rows = index_groups(tree)
    going = rows.expand(rows.lengths)
    # G - mean of others = m/(m-1) · (G - mean of all), which costs less than running sums of the others
    advantage = (to_go - baseline(rows, to_go, singleton="raw")) * going / (going - 1).clamp(min=1)
    return Credit(advantage, terms={"return": to_go, "baseline": advantage - to_go})


def gigpo(
    tree: SpanTree,
    *,
    reward: Tensor,
    state: Tensor | Spans,
    penalty: Tensor | None = None,
    where: Tensor | None = None,
    gamma: float = 0.95,
    omega: float = 1.0,
    statistics: Statistics = "rows",
    ddof: int = 1,
    eps: float | None = 1e-6,
    singleton: Singleton = "raw",
) -> Credit:
    """GiGPO: the episode against its group, plus the return to go against other visits of the same state.

        A_it = norm_group(Σ_k r_ik - p_it) + ω · norm_step(Σ_{k≥t} γ^(k-t) · r_ik - p_it)
        norm(x) = (x - mean) / (std + eps)

    Shapes: reward [N]; state, int64 keys [N] for `step_groups`, or any partition of the turns. penalty: p [N], for
    invalid actions: lowers the turn's own score and return (released code: 0.1). statistics: an episode counts in its
    group as often as it has turns ("rows", the released default, which lets long failures dominate the mean) or once
    ("episodes", the paper), by its first active turn. singleton: of the episode level; a state visited once has step
    advantage 0.

    Needs groups and repeated states; without them it is GRPO with row statistics. Biased: both means include the turn
    itself, visits of one episode depend on each other, γ < 1, and equal states at different times left are not equal.
    Lower variance than GRPO inside an episode. Source: arXiv 2505.10978; the same numbers as its code, where eps None
    is "mean_norm".
    """
    episode = tree["episode"]
    reward = known("reward", reward, "episode", episode, where)
    decay = gamma if where is None else torch.where(where, torch.full_like(reward, gamma), 1)
    score, to_go = episode.expand(episode.reduce(reward)), episode.scan(reward, decay)
    if penalty is not None:
        penalty = known("penalty", penalty, "episode", episode, where)
        score, to_go = score - penalty, to_go - penalty
    steps = state if isinstance(state, Spans) else step_groups(tree, state=state)
    level = _group_level(tree, score, statistics, where=where, ddof=ddof, eps=eps, singleton=singleton)
    step = _centred(steps, to_go, where=where, ddof=ddof, eps=eps)
    return total({"episode": level, "step": omega * step}, where)


def rlvmr(
    tree: SpanTree,
    *,
    score: Tensor,
    meta: Tensor,
    tag: Tensor,
    where: Tensor | None = None,
    w: float = 1.0,
    scope: Scope = "group",
    ddof: int = 1,
    eps: float | None = 1e-6,
    singleton: Singleton = "raw",
) -> Credit:
    """RLVMR (GRPO-MR): the turn's score against its group, plus its meta-reasoning reward against turns of its tag.

        A = norm_group(score) + w · norm_{group, tag}(meta),    norm(x) = (x - mean) / (std + eps)

    Shapes: score [N], the episode's outcome at each of its turns, less the turn's own penalty; meta [N], the verifiable
    reward of its tag; tag [N], int. Every turn counts once, so long episodes weigh more. scope: tags are compared
    inside a group (released code) or across the batch (paper). The paper's α · A_T + (1-α) · A_MR is α times this with
    w = (1-α)/α.

    Needs groups. Biased as `grpo`; a tag whose turns are nearly all right punishes its rare failures hard, and with
    "raw", as released, a lone turn of a tag passes its reward through. Source: arXiv 2507.22844; w is 1 in its scripts
    and .5 in its defaults.
    """
    if scope not in get_args(Scope):
        raise unknown("scope", scope, get_args(Scope))
    score = known("score", score, "episode", tree["episode"], where)
    meta = known("meta", meta, "episode", tree["episode"], where)
    tags = step_groups(tree, state=tag) if scope == "group" else Spans.by_key(tag)
    level = _centred(tree["group"], score, where=where, ddof=ddof, eps=eps, singleton=singleton)
    step = _centred(tags, meta, where=where, ddof=ddof, eps=eps, singleton=singleton)
    return total({"episode": level, "meta": w * step}, where)


def information_gain(
    episodes: Spans,
    *,
    log_prob: Tensor,
    initial: Tensor,
    scale: GainScale = "log",
    floor: float | None = None,
) -> Tensor:
    """What each turn added to the policy's belief in the right answer: s_t - s_{t-1}, [N].

    log_prob: [N], log-probability of the gold answer after each turn, a mean over its tokens. initial: [n], with the
    question alone. scale: s is the log-probability (ICLR version of arXiv 2510.14967) or the probability exp(mean log)
    (its first version and its code). floor: s is at least this log-probability; without one, an impossible answer makes
    the log version raise.
    """
    if scale not in get_args(GainScale):
        raise unknown("scale", scale, get_args(GainScale))
    if floor is not None:
        log_prob, initial = log_prob.clamp(min=floor), initial.clamp(min=floor)
    if scale == "probability":
        log_prob, initial = log_prob.exp(), initial.exp()
    finite("episode", episodes, log_prob=log_prob)
    finite("episode", None, initial=initial)
    return log_prob - episodes.shift(log_prob, -1, initial)


def igpo(
    tree: SpanTree,
    *,
    gain: Tensor,
    outcome: Tensor,
    gamma: float = 1.0,
    statistics: GainStatistics = "pool",
    clip: float | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
) -> Credit:
    """IGPO: the return to go of information gains, with the outcome in place of the gain at the last turn.

        pool:    A_t = Σ_{k≥t} γ^(k-t) · r_k,    r_k = z(gain_k), at the last turn z(outcome)
        column:  A_t = R_t - Σ_j R_jt / n,       R_t = Σ_{k≥t} γ^(k-t) · r_k of the raw rewards

    Shapes: gain [N] (of last turns never read), outcome [n]. "pool" (paper): z = (x - mean) / (std + eps) over all
    gains of the group, and over its outcomes. "column" (released code): R less its mean at the same index over the n
    episodes of the group, finished ones counting 0; the code does so on tokens, which the items may be too, each gain
    on its turn's last token. clip: gains are kept in ±clip, since an over-confident policy makes extreme ones.

    Needs groups and the gold answer. Groups of equal outcomes still learn. Biased: the means include the item, gains
    change what is optimal, and centring them ("pool") is a reward or a fine for every further turn; "column" compares
    unlike turns. Source: arXiv 2510.14967.
    """
    if statistics not in get_args(GainStatistics):
        raise unknown("statistics", statistics, get_args(GainStatistics))
    group, episode, episodes = tree["group"], tree["episode"], tree.within("episode", "group")
    inner = episode.position < episode.expand(episode.lengths) - 1
    gain = known("gain", gain, "episode", episode, inner)
    finite("episode", None, outcome=outcome)
    if clip is not None:
        gain = gain.clamp(-clip, clip)
    if statistics == "pool":
        gain = torch.where(inner, normalise(group, gain, where=inner, ddof=ddof, eps=eps), 0)
        outcome = normalise(episodes, outcome, ddof=ddof, eps=eps)
    to_go = episode.scan(torch.stack((gain, at_end(episode, outcome)), -1), gamma)
    terms = {"gain": to_go[:, 0], "outcome": to_go[:, 1]}
    if statistics == "column":
        rows = index_groups(tree)
        terms["baseline"] = -rows.expand(rows.reduce(to_go.sum(-1))) / group.expand(episodes.lengths)
    return Credit(sum_of(terms), terms=terms)


# ---- SPA-RL: the outcome redistributed over turns


def even_reward(episodes: Spans, *, outcome: Tensor) -> Tensor:
    """The outcome spread evenly over the turns, R / T: outcome [n] → [N]; what attributions are compared with."""
    finite("episode", None, outcome=outcome)
    return episodes.expand(outcome / episodes.lengths)


def spa_reward(
    episodes: Spans,
    *,
    attribution: Tensor,
    grounded: Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    form: SpaForm = "paper",
) -> Tensor:
    """SPA-RL's reward of a turn, r_t = α · c_t + β · g_t: [N].

    attribution: [N], c, an estimator's shares of the outcome, which should sum to it: never add the outcome again.
    grounded: [N], g, 1 where the action could be executed; longer episodes collect more of it, failing ones too.
    form "code": the released trainer multiplies r_t by the number of turns after t, which leaves the last with 0 (and
    its example data replace c by `rloo` of the outcomes). The reward is not potential-based: it can change what is
    optimal. Source: arXiv 2505.20732.
    """
    if form not in get_args(SpaForm):
        raise unknown("form", form, get_args(SpaForm))
    finite("episode", episodes, attribution=attribution, grounded=grounded)
    reward = alpha * attribution + beta * grounded.to(attribution.dtype)
    return reward if form == "paper" else reward * (episodes.expand(episodes.lengths) - 1 - episodes.position)


def spa(
    episodes: Spans,
    *,
    attribution: Tensor,
    grounded: Tensor,
    value: Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    gamma: float = 1.0,
    lam: float = 0.95,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Credit:
    """SPA-RL: `gae` of `spa_reward`, turn by turn; target: head "value".

    Shapes: attribution, grounded, value [N]. Needs values and an estimator. The paper does it on tokens: pass
    `at_end(turns, spa_reward(...))`, less the KL penalty, to `gae`. Biased by the values and by the attributions; lower
    variance than the delayed outcome. Source: arXiv 2505.20732, which does not print γ and λ.
    """
    reward = spa_reward(episodes, attribution=attribution, grounded=grounded, alpha=alpha, beta=beta)
    return gae(
        episodes, reward=reward, value=value, gamma=gamma, lam=lam, terminated=terminated, final_value=final_value
    )


# ---- shared


def _centred(
    spans: Spans, x: Tensor, *, where: Tensor | None, ddof: int, eps: float | None, singleton: Singleton = "zero"
) -> Tensor:
    """(x - mean) / (std + eps) among the items of each span, or x - mean where eps is None."""
    if eps is None:
        return x - baseline(spans, x, where=where, singleton=singleton)
    return normalise(spans, x, where=where, ddof=ddof, eps=eps, singleton=singleton)


def _group_level(
    tree: SpanTree,
    score: Tensor,
    statistics: Statistics,
    *,
    where: Tensor | None,
    ddof: int,
    eps: float | None,
    singleton: Singleton,
) -> Tensor:
    """The score of each turn against its group, where every turn counts or every episode once."""
    if statistics not in get_args(Statistics):
        raise unknown("statistics", statistics, get_args(Statistics))
    if statistics == "rows":
        return _centred(tree["group"], score, where=where, ddof=ddof, eps=eps, singleton=singleton)
    episode, episodes = tree["episode"], tree.within("episode", "group")
    active = torch.ones_like(score) if where is None else where.to(score.dtype)
    first = torch.where(episode.scan(active, reverse=False) == 1, active, 0)  # 1 at the first active turn
    represented, heard = episode.reduce(first * score), episode.reduce(first) > 0
    centred = score - episode.expand(baseline(episodes, represented, where=heard, singleton=singleton))
    if eps is None:
        return centred
    return centred / episode.expand(episodes.siblings(represented, "std", where=heard, ddof=ddof, eps=eps))
