"""Two time-scales inside an episode: hierarchical advantage estimation (HAE) of HiPER, arXiv 2602.16165.

At every turn a policy decides to KEEP or SWITCH its subgoal, names the subgoal, and acts. A segment runs from one
SWITCH to the next. Items are turns, in a tree `episode` > `segment`; `spread(credits, turns, owned)` then gives the
tokens of each turn the credit of the level that they belong to. Tokens that repeat a kept subgoal get weight 0.

Legend: N turns, n episodes, K segments, q_t = 1 for SWITCH, β_t = P(SWITCH), b_k the first turn of segment k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite
from echelon.credit.groups import whiten
from echelon.credit.returns import discounted_return, gae, smdp_return
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree

Truncation = Literal["final", "own", "zero"]


def boundaries(switch: Tensor, episodes: Spans) -> Spans:
    """The segments that begin where `switch`, bool [N], is true and at the first turn of every episode."""
    starts = switch.index_fill(0, episodes.starts, True)
    packed = starts if episodes.order is None else starts[episodes.order]
    return Spans(Spans.from_starts(packed).offsets, episodes.order)


def hae(
    tree: SpanTree,
    *,
    reward: Tensor,
    low_value: Tensor,
    high_value: Tensor,
    term_value: Tensor | None = None,
    terminated: Tensor | None = None,
    final_low_value: Tensor | None = None,
    final_high_value: Tensor | None = None,
    truncation: Truncation = "final",
    gamma: float | Tensor = 1.0,
    lam_turn: float = 1.0,
    lam_seg: float = 0.95,
) -> dict[str, Credit]:
    """HAE: GAE inside each segment for actions ("low"), GAE over the segments for subgoals ("high").

        low:   A_t = δ_t + γ · λ_turn · A_{t+1} inside the segment, δ_t = r_t + γ · V' - V_low(t), where V' is
               V_low(t + 1), or V_high(b_{k+1}) at the segment's last turn
        high:  A_k = δ_k + γ^d · λ_seg · A_{k+1}, δ_k = R_k + γ^d · V_high(b_{k+1}) - V_high(b_k), with R_k and γ^d of
               `smdp_return`; at the turns b_k, weight 0 at the others
        switch: `switch_return`, where term_value is given; or add `switch_difference`, the paper's form

    Shapes: reward, low_value, high_value (read at the b_k), term_value [N]. terminated: bool [n], default: all, or none
    where final values are given. After a truncated episode follow ("final") final_low_value V_low(s, o) and
    final_high_value V_high(s) of its last observation, [n]; ("own") V_low of its last turn and V_high of its last
    boundary, the released `bootstrap_truncated`; ("zero") nothing.

    Targets: A + V of the heads "low", "high", "term"; the paper's text has one step, V + the term "td_error". Needs
    values; biased as GAE is. With every turn a boundary, high is GAE on V_high; with none, low is GAE on V_low.
    Released code: gamma 1, and `normalise_levels` before tokens take their shares.
    """
    segments, nested = tree["segment"], tree.within("segment", "episode")
    finite("episode", tree["episode"], reward=reward, low_value=low_value)
    start_value = high_value.index_select(0, segments.starts)
    finite("episode", nested, high_value=start_value)
    low_final, high_final = _final_values(
        tree, low_value, start_value, terminated, final_low_value, final_high_value, truncation
    )
    low_edge = nested.shift(start_value, 1, low_final)
    low = gae(segments, reward=reward, value=low_value, gamma=gamma, lam=lam_turn, final_value=low_edge)
    earned, after = smdp_return(segments, reward=reward, gamma=gamma)
    high = gae(nested, reward=earned, value=start_value, gamma=after, lam=lam_seg, final_value=high_final)
    credits = {"low": Credit(low.advantage, {"low": low.target["value"]}, terms=low.terms), "high": _at(segments, high)}
    if term_value is not None:
        finite("episode", tree["episode"], term_value=term_value)
        high_edge = nested.shift(start_value, 1, high_final)
        credits["switch"] = switch_return(
            segments, reward=reward, term_value=term_value, next_value=high_edge, gamma=gamma
        )
    return credits


def switch_return(
    segments: Spans, *, reward: Tensor, term_value: Tensor, next_value: Tensor, gamma: float | Tensor = 1.0
) -> Credit:
    """Credit of every switch decision by a third value head: A_t = G_t - V_term(t), target G_t of the head "term".

        G_t = r_t + γ · G_{t+1} to the end of the segment, there γ · next_value

    Shapes: reward, term_value [N]; next_value [K], V_high of the next boundary. Source: the released code of arXiv
    2602.16165, in place of the paper's `switch_difference`. G follows the segment that the decision led into; λ = 1, so
    unbiased but for next_value, and noisy.
    """
    returns = discounted_return(segments, reward=reward, gamma=gamma, final_value=next_value)
    return Credit(returns - term_value, {"term": returns}, terms={"return": returns, "value": -term_value})


def switch_difference(
    episodes: Spans, *, switch: Tensor, probability: Tensor, high_value: Tensor, low_value: Tensor
) -> Credit:
    """Credit of every switch decision from two value heads: A_t = (q_t - β_t) · (V_high(s_t) - V_low(s_t, o_{t-1})).

    Shapes, all [N]: switch q, bool; probability β; high_value; low_value of the subgoal held on arrival, o_{t-1}. An
    episode's first turn has none: advantage and weight 0. The exact advantage over the mean of the two choices: free of
    sampling noise, and as biased as the values. Source: arXiv 2602.16165; its released code has `switch_return`.
    """
    chosen = (episodes.position > 0).to(high_value.dtype)
    gain = torch.where(chosen > 0, high_value - low_value, 0)
    finite("episode", episodes, value=gain, probability=probability)
    return Credit((switch.to(gain.dtype) - probability) * gain, weight=chosen)


def normalise_levels(
    credits: Mapping[str, Credit], owns: Mapping[str, Tensor] | None = None, eps: float = 1e-8
) -> dict[str, Credit]:
    """Each level's (A - mean) / (population std + eps), over the items with a weight; the others get 0.

    owns: level → bool [N], the items that hold anything of that level; a turn without a subgoal block, say, gets weight
    0 and leaves the statistics. Equal advantages become 0. Targets stay. Source: arXiv 2602.16165's code.
    """
    out = {}
    for level, credit in credits.items():
        use = credit.weight > 0 if owns is None or level not in owns else (credit.weight > 0) & owns[level]
        advantage = whiten(credit.advantage, where=use, ddof=0, eps=eps, var_eps=0.0)
        weight = torch.where(use, credit.weight, 0)
        out[level] = Credit(advantage, credit.target, weight)
    return out


def _final_values(
    tree: SpanTree,
    low_value: Tensor,
    start_value: Tensor,
    terminated: Tensor | None,
    final_low: Tensor | None,
    final_high: Tensor | None,
    truncation: Truncation,
) -> tuple[Tensor, Tensor]:
    """What V_low and V_high say of the state after each episode, [n] each; 0 where it terminated."""
    episodes = tree["episode"]
    nothing = start_value.new_zeros(episodes.n)
    if terminated is None:
        terminated = torch.full_like(nothing, final_low is None and final_high is None, dtype=torch.bool)
    if truncation == "own":
        final_low, final_high = low_value[episodes.ends], start_value[tree.within("segment", "episode").ends]
    elif truncation == "zero":
        final_low = final_high = nothing
    elif truncation != "final":
        raise DataError(f"unknown truncation '{truncation}'; valid: final, own, zero")
    if final_low is None or final_high is None:
        if not terminated.all():
            raise DataError(
                f"episode {int((~terminated).nonzero()[0])} was truncated: give `final_low_value` and "
                "`final_high_value`, the values of its last observation, or truncation='own' or 'zero'"
            )
        return nothing, nothing
    low, high = (torch.where(terminated, 0, value) for value in (final_low, final_high))
    finite("episode", None, final_low_value=low, final_high_value=high)
    return low, high


def _at(segments: Spans, credit: Credit) -> Credit:
    """The credit of segments at their first turns; the other turns have none, and weight 0."""

    def place(column: Tensor, fill: float = 0.0) -> Tensor:
        return column.new_full((segments.size,), fill).index_copy_(0, segments.starts, column)

    return Credit(
        place(credit.advantage),
        {"high": place(credit.target["value"], torch.nan)},
        place(credit.weight),
        {name: place(column) for name, column in credit.terms.items()},
    )
