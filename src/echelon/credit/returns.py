"""Returns, temporal differences and targets of values, at any time-scale.

`gamma` is a number, or a column [N] with the discount of the interval that follows each item (γ^elapsed; 1 between the
tokens of a turn). What follows a span's last item is told by two facts, both [n]: `terminated`, bool, and
`final_value`, the value of the observation after the last item, which counts only where the span was truncated. Without
either, every span terminates. Functions that return tensors keep autograd; `Credit` is detached.

Legend: N items (steps or tokens, one a row), n spans (episodes), T a span's last item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite
from echelon.errors import DataError
from echelon.spans import Spans


def discounted_return(
    episodes: Spans,
    *,
    reward: Tensor,
    gamma: float | Tensor = 1.0,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """G_t = r_t + γ_t · G_{t+1}, with G_{T+1} = final_value where truncated, else 0: reward [N] → [N].

    Also the targets of a Monte-Carlo critic. Unbiased, and of the highest variance of all returns here.
    """
    finite("episode", episodes, reward=reward)
    after = _after(episodes, reward, terminated, final_value)
    last = gamma[episodes.ends] if isinstance(gamma, Tensor) and gamma.ndim else gamma
    return episodes.scan(reward.index_add(0, episodes.ends, (last * after).to(reward.dtype)), gamma)


def td_error(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    gamma: float | Tensor = 1.0,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """δ_t = r_t + γ_t · V_{t+1} - V_t, with V_{T+1} = final_value where truncated, else 0: reward, value [N] → [N]."""
    finite("episode", episodes, reward=reward, value=value)
    return reward + gamma * episodes.shift(value, 1, _after(episodes, value, terminated, final_value)) - value


def n_step_return(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    n: int,
    gamma: float | Tensor = 1.0,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """Σ_{k<n} Γ_k · r_{t+k} + Γ_n · V_{t+n}, Γ_k the product of k discounts: reward, value [N] → [N].

    Windows that reach the end of the span stop there, as `discounted_return` does. n = 1 is the TD(0) target.
    """
    delta = td_error(episodes, reward=reward, value=value, gamma=gamma, terminated=terminated, final_value=final_value)
    return value + episodes.scan(delta, gamma, limit=n)  # the differences telescope


def lambda_return(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    gamma: float | Tensor = 1.0,
    lam: float | Tensor = 0.95,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """G_t = r_t + γ_t · ((1 - λ_t) · V_{t+1} + λ_t · G_{t+1}): reward, value [N] → [N]. Source: Sutton 1988, TD(λ).

    Keeps autograd, for policies that learn through a world model. λ = 0 is the TD(0) target, λ = 1 the return.
    """
    delta = td_error(episodes, reward=reward, value=value, gamma=gamma, terminated=terminated, final_value=final_value)
    return value + episodes.scan(delta, gamma * lam)


def gae(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    gamma: float | Tensor = 1.0,
    lam: float | Tensor = 0.95,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Credit:
    """Generalised advantage estimation, A_t = δ_t + γ_t · λ_t · A_{t+1}, with the target A + V of the head "value".

    Across decisions of different lengths (options, segments) it is the same function: the spans are
    `segments.within(episodes)`, the reward and gamma those of `smdp_return`.

    Shapes: reward, value [N]; δ is `td_error`. Needs values; biased unless λ = 1 or V is exact, and the variance falls
    with λ. Terms: "td_error" δ, and "later", what the differences after it add. Source: arXiv 1506.02438. verl whitens
    the advantage over the batch afterwards and carries V and A through masked tokens, which have no item here.
    """
    delta = td_error(episodes, reward=reward, value=value, gamma=gamma, terminated=terminated, final_value=final_value)
    advantage = episodes.scan(delta, gamma * lam)
    return Credit(advantage, {"value": advantage + value}, terms={"td_error": delta, "later": advantage - delta})


def vtrace(
    episodes: Spans,
    *,
    reward: Tensor,
    value: Tensor,
    log_ratio: Tensor,
    gamma: float | Tensor = 1.0,
    lam: float = 1.0,
    rho_max: float = 1.0,
    c_max: float = 1.0,
    terminated: Tensor | None = None,
    final_value: Tensor | None = None,
) -> Credit:
    """V-trace: targets and advantages of samples from an older policy μ.

        ρ_t = min(rho_max, π/μ), c_t = λ · min(c_max, π/μ)
        v_t - V_t = ρ_t · δ_t + γ_t · c_t · (v_{t+1} - V_{t+1})
        A_t = ρ_t · (r_t + γ_t · v_{t+1} - V_t),  v_{T+1} = final_value where truncated, else 0

    Shapes: reward, value, log_ratio = log π(a|s) - log μ(a|s), all [N]. Target: v, head "value". Biased towards μ where
    ratios are cut at `rho_max`; on policy with λ = 1 v is the return. Source: IMPALA, arXiv 1802.01561.
    """
    finite("episode", episodes, log_ratio=log_ratio)
    delta = td_error(episodes, reward=reward, value=value, gamma=gamma, terminated=terminated, final_value=final_value)
    ratio = log_ratio.exp()
    rho = ratio.clamp(max=rho_max)
    correction = episodes.scan(rho * delta, gamma * lam * ratio.clamp(max=c_max))
    later = rho * gamma * episodes.shift(correction)
    return Credit(rho * delta + later, {"value": value + correction}, terms={"td_error": rho * delta, "later": later})


def smdp_return(decisions: Spans, *, reward: Tensor, gamma: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """What a decision earned while it held, and the discount after it: (Σ_{i<k} Γ_i · r_i, Γ_k), both [n].

    decisions: the n spans, k items long each.    reward: [N].    Γ_i: the product of the span's first i discounts, γ^i
    for a number. Source: Sutton, Precup & Singh 1999 (options).
    """
    finite("decision", decisions, reward=reward)
    if isinstance(gamma, Tensor) and gamma.ndim:
        after = 1 - decisions.scan(1 - gamma, gamma)[decisions.starts]  # Σ Γ_i · (1 - γ_i) telescopes to 1 - Γ_k
    else:
        after = gamma ** decisions.lengths.to(reward.dtype)
    return decisions.scan(reward, gamma)[decisions.starts], after


def smdp_target(
    decisions: Spans, *, reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float | Tensor = 1.0
) -> Tensor:
    """Semi-MDP target of a decision's value, Σ_{i<k} Γ_i · r_i + Γ_k · (1 - terminated) · next_value: [n].

    next_value: [n], the value of the state in which the decision ended, e.g. max_w Q(s', w). terminated: bool [n],
    the episode ended there for good; a decision cut off by a time limit bootstraps. Q-learning over options when
    regressed on: biased by the values, not by the lengths. Source: Sutton, Precup & Singh 1999.
    """
    earned, discount = smdp_return(decisions, reward=reward, gamma=gamma)
    return earned + discount * _after(decisions, earned, terminated, next_value)


def _after(spans: Spans, like: Tensor, terminated: Tensor | None, final_value: Tensor | None) -> Tensor:
    """[n]: the value of what follows each span."""
    if final_value is None:
        if terminated is not None and not terminated.all():
            raise DataError(
                f"episode {int((~terminated).nonzero()[0])} was truncated: give `final_value`, the value of the "
                "observation after its last item, or mark it as terminated"
            )
        return like.new_zeros(spans.n)
    after = final_value if terminated is None else torch.where(terminated, 0, final_value)
    finite("episode", None, final_value=after)
    return after
