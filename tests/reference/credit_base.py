"""Naive references of the basic credit rules: returns, lambda-returns, V-trace, and the critic-free group rules.

Plain floats and lists, index by index, written from the published formulas; nothing derives from code under test.

Turn rules take a forest `groups[group][episode]`, an episode being a dict of equally long lists and scalars:
    reward, value [T]     value[t] is the estimate at the state before step t
    elapsed [T]           optional: time steps that step t lasts (default 1 each); its discount is gamma**elapsed[t]
    terminated            True: nothing follows. False: cut off, so `final_value` (default 0) stands for what follows.
Group rules take `rewards[group][completion]`; a reward of None excludes that member: advantage 0, no part in baselines.
`lengths[group][completion]` are numbers of generated tokens. `CASES[rule]` is hand-derived.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from .credit_base_cases import CASES as CASES

Episode = dict[str, Any]
Forest = list[list[Episode]]
Rows = list[list[float]]
Nested = list[list[list[float]]]


def _forest(groups: Forest, rule: Callable[[Episode], list[float]]) -> Nested:
    return [[rule(episode) for episode in group] for group in groups]


def _bootstrap(episode: Episode) -> float:
    """What follows the last step: 0 after a termination, the final value after a cut."""
    return 0.0 if episode.get("terminated", True) else float(episode.get("final_value", 0.0))


def _steps(episode: Episode) -> int:
    return len(episode["reward"])


def _discount(episode: Episode, gamma: float, start: int, stop: int) -> float:
    """Product of gamma**elapsed[t] over start <= t < stop."""
    product = 1.0
    for t in range(start, stop):
        product *= gamma ** (episode["elapsed"][t] if "elapsed" in episode else 1)
    return product


def _value(episode: Episode, t: int) -> float:
    """V(s_t); at the end of the episode what follows it."""
    return float(episode["value"][t]) if t < _steps(episode) else _bootstrap(episode)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _std(values: Sequence[float], ddof: int) -> float:
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - ddof))


# --- returns of one stream --------------------------------------------------------------------------------------------


def discounted_return(groups: Forest, gamma: float = 0.99) -> Nested:
    """G_t = sum_{j>=t} D(t,j) r_j + D(t,T) bootstrap, D(t,j) the product of the discounts of steps t..j-1."""

    def rule(e: Episode) -> list[float]:
        out = []
        for t in range(_steps(e)):
            total = sum(_discount(e, gamma, t, j) * e["reward"][j] for j in range(t, _steps(e)))
            out.append(total + _discount(e, gamma, t, _steps(e)) * _bootstrap(e))
        return out

    return _forest(groups, rule)


def _n_step(e: Episode, gamma: float, n: int, t: int) -> float:
    end = min(t + n, _steps(e))
    total = sum(_discount(e, gamma, t, j) * e["reward"][j] for j in range(t, end))
    return total + _discount(e, gamma, t, end) * _value(e, end)


def n_step_return(groups: Forest, n: int, gamma: float = 0.99) -> Nested:
    """G_t = sum of min(n, T-t) discounted rewards + D(t,t+n) V(s_{t+n}); the last value is what follows the episode."""
    return _forest(groups, lambda e: [_n_step(e, gamma, n, t) for t in range(_steps(e))])


def gae(groups: Forest, gamma: float = 0.99, lam: float = 0.95) -> dict[str, Nested]:
    """A_t = sum_{j>=t} D(t,j) lam^(j-t) (r_j + d_j V_{j+1} - V_j); target A_t + V_t (arXiv 1506.02438).

    lam is raised to the number of recorded steps, not to their elapsed time.
    """

    def rule(e: Episode) -> list[float]:
        out = []
        for t in range(_steps(e)):
            total = 0.0
            for j in range(t, _steps(e)):
                delta = e["reward"][j] + _discount(e, gamma, j, j + 1) * _value(e, j + 1) - e["value"][j]
                total += _discount(e, gamma, t, j) * lam ** (j - t) * delta
            out.append(total)
        return out

    advantage = _forest(groups, rule)
    target = [
        [[a + v for a, v in zip(row, e["value"], strict=True)] for row, e in zip(rows, group, strict=True)]
        for rows, group in zip(advantage, groups, strict=True)
    ]
    return {"advantage": advantage, "target": target}


def lambda_return(groups: Forest, gamma: float = 0.99, lam: float = 0.95) -> Nested:
    """G_t = (1-lam) sum_{n=1}^{T-t-1} lam^(n-1) G_t^(n) + lam^(T-t-1) G_t^(T-t), a mixture of n-step returns."""

    def rule(e: Episode) -> list[float]:
        out = []
        for t in range(_steps(e)):
            left = _steps(e) - t
            total = lam ** (left - 1) * _n_step(e, gamma, left, t)
            for n in range(1, left):
                total += (1 - lam) * lam ** (n - 1) * _n_step(e, gamma, n, t)
            out.append(total)
        return out

    return _forest(groups, rule)


def gae_tokens(
    rewards: Rows, values: Rows, mask: list[list[int]], gamma: float = 1.0, lam: float = 1.0, whiten: bool = True
) -> dict[str, Rows]:
    """GAE over the tokens with mask 1 as if the others were absent; then whitened: (A-mean) / sqrt(var + 1e-8).

    Returns are A + V before whitening. The variance is unbiased over all generated tokens of the batch. On a token with
    mask 0 the next value and the next advantage are carried through, so it gets the advantage of the next kept token;
    published code keeps those entries in the tensor, here they are 0 (they never reach a loss).
    """
    advantage = [[0.0] * len(row) for row in rewards]
    target = [[0.0] * len(row) for row in rewards]
    for i in range(len(rewards)):
        kept = [t for t in range(len(rewards[i])) if mask[i][t]]
        for a in range(len(kept)):
            total = 0.0
            for b in range(a, len(kept)):
                following = values[i][kept[b + 1]] if b + 1 < len(kept) else 0.0
                total += (gamma * lam) ** (b - a) * (rewards[i][kept[b]] + gamma * following - values[i][kept[b]])
            advantage[i][kept[a]] = total
            target[i][kept[a]] = total + values[i][kept[a]]
    if whiten:
        flat = [advantage[i][t] for i in range(len(rewards)) for t in range(len(rewards[i])) if mask[i][t]]
        scale = math.sqrt(_std(flat, 1) ** 2 + 1e-8)
        for i in range(len(rewards)):
            for t in range(len(rewards[i])):
                if mask[i][t]:
                    advantage[i][t] = (advantage[i][t] - _mean(flat)) / scale
    return {"advantage": advantage, "target": target}


# --- spans (options) --------------------------------------------------------------------------------------------------


def _spans(switch: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, stop) of every span; a span starts at step 0 and wherever switch is set."""
    starts = [t for t in range(len(switch)) if t == 0 or switch[t]]
    return [(s, starts[k + 1] if k + 1 < len(starts) else len(switch)) for k, s in enumerate(starts)]


def smdp_return(groups: Forest, gamma: float = 0.99) -> Nested:
    """R = sum_{i<k} gamma^i r_{t+i} of every span of k steps, one number a span; `switch` starts a span."""

    def rule(e: Episode) -> list[float]:
        return [
            sum(_discount(e, gamma, start, j) * e["reward"][j] for j in range(start, stop))
            for start, stop in _spans(e["switch"])
        ]

    return _forest(groups, rule)


def smdp_target(groups: Forest, gamma: float = 0.99) -> Nested:
    """y = R + gamma^k * (value at the state where the span ended), one number a span; k is the true length.

    `value[t]` is what the next decision is worth at step t (a maximum, or the value of a policy over options). The last
    span's bootstrap is 0 if the episode terminated, else `final_value`.
    """

    def rule(e: Episode) -> list[float]:
        rewards = smdp_return([[e]], gamma)[0][0]
        return [
            rewards[k] + _discount(e, gamma, start, stop) * _value(e, stop)
            for k, (start, stop) in enumerate(_spans(e["switch"]))
        ]

    return _forest(groups, rule)


# --- off-policy -------------------------------------------------------------------------------------------------------


def v_trace(
    groups: Forest, gamma: float = 0.99, lam: float = 1.0, rho_bar: float = 1.0, c_bar: float = 1.0
) -> dict[str, Nested]:
    """v_s = V_s + sum_{t>=s} D(s,t) (prod_{s<=i<t} c_i) rho_t (r_t + d_t V_{t+1} - V_t); c_i = lam min(c_bar, ratio_i).

    rho_t = min(rho_bar, ratio_t); advantage rho_s (r_s + d_s v_{s+1} - V_s), v_T what follows the episode
    (arXiv 1802.01561). Episodes carry `logp` (learner) and `logp_behaviour` (actor).
    """

    def targets(e: Episode) -> list[float]:
        ratio = [math.exp(a - b) for a, b in zip(e["logp"], e["logp_behaviour"], strict=True)]
        out = []
        for s in range(_steps(e)):
            total = e["value"][s]
            for t in range(s, _steps(e)):
                trace = 1.0
                for i in range(s, t):
                    trace *= lam * min(c_bar, ratio[i])
                delta = e["reward"][t] + _discount(e, gamma, t, t + 1) * _value(e, t + 1) - e["value"][t]
                total += _discount(e, gamma, s, t) * trace * min(rho_bar, ratio[t]) * delta
            out.append(total)
        return out

    def advantages(e: Episode) -> list[float]:
        v = [*targets(e), _bootstrap(e)]
        out = []
        for s in range(_steps(e)):
            rho = min(rho_bar, math.exp(e["logp"][s] - e["logp_behaviour"][s]))
            out.append(rho * (e["reward"][s] + _discount(e, gamma, s, s + 1) * v[s + 1] - e["value"][s]))
        return out

    return {"target": _forest(groups, targets), "advantage": _forest(groups, advantages)}


# --- group rules ------------------------------------------------------------------------------------------------------


def leave_one_out_mean(rewards: Rows) -> Rows:
    """Mean of the other members of the group; 0 for a member without others."""
    out = []
    for group in rewards:
        row = []
        for i in range(len(group)):
            others = [group[j] for j in range(len(group)) if j != i]
            row.append(_mean(others) if others else 0.0)
        out.append(row)
    return out


def reinforce_batch_mean(rewards: Rows) -> Rows:
    """A = R - mean over every completion of the batch."""
    mean = _mean([r for group in rewards for r in group])
    return [[r - mean for r in group] for group in rewards]


def rloo(rewards: Rows, singleton: str = "zero") -> Rows:
    """A_i = R_i - mean of the others (arXiv 2402.14740); a lone member gets 0, or R with singleton='raw'."""
    others = leave_one_out_mean(rewards)
    out = []
    for g, group in enumerate(rewards):
        if len(group) == 1:
            out.append([group[0] if singleton == "raw" else 0.0])
        else:
            out.append([group[i] - others[g][i] for i in range(len(group))])
    return out


def return_to_go_loo(groups: Forest, gamma: float = 1.0, ended: str = "skip", alone: str = "zero") -> Nested:
    """A_{i,t} = G_{i,t} - mean over j != i of G_{j,t}, turn index by turn index within a group.

    Sources leave open what an episode that ended before turn t counts for: 'skip' leaves it out of the mean, 'zero'
    counts a return-to-go of 0. A turn with nobody left to compare with gets 0 (alone='zero') or G (alone='raw').
    """
    returns = discounted_return(groups, gamma)
    out: Nested = []
    for group in returns:
        rows = []
        for i in range(len(group)):
            row = []
            for t in range(len(group[i])):
                others = []
                for j in range(len(group)):
                    if j != i and t < len(group[j]):
                        others.append(group[j][t])
                    elif j != i and ended == "zero":
                        others.append(0.0)
                if others:
                    row.append(group[i][t] - _mean(others))
                else:
                    row.append(group[i][t] if alone == "raw" else 0.0)
            rows.append(row)
        out.append(rows)
    return out


def grpo(
    rewards: list[list[float | None]], ddof: int = 1, eps: float = 1e-4, singleton: str = "zero", scale: bool = True
) -> Rows:
    """A_i = (R_i - mean_g) / (std_g + eps) (arXiv 2402.03300); without the division it is Dr.GRPO (arXiv 2503.20783).

    A group left with one member has no spread: advantage 0, or the reward itself with singleton='raw' (published code
    of that variant sets mean 0 and std 1, so divides by 1 + eps; the formula here says R).
    """
    out = []
    for group in rewards:
        kept = [r for r in group if r is not None]
        row = []
        for r in group:
            if r is None:
                row.append(0.0)
            elif len(kept) == 1:
                row.append(r if singleton == "raw" else 0.0)
            elif not scale:
                row.append(r - _mean(kept))
            elif max(kept) == min(kept):
                row.append(0.0)  # equal rewards: 0 / eps, also where eps is 0 or the mean is off by a rounding error
            else:
                row.append((r - _mean(kept)) / (_std(kept, ddof) + eps))
        out.append(row)
    return out


def dr_grpo(rewards: list[list[float | None]], singleton: str = "zero") -> Rows:
    """A_i = R_i - mean_g (arXiv 2503.20783)."""
    return grpo(rewards, singleton=singleton, scale=False)


def batch_std(rewards: Rows, ddof: int = 1, eps: float = 1e-4) -> Rows:
    """A_i = (R_i - mean_g) / (std of all raw rewards of the batch + eps) (arXiv 2508.08221)."""
    spread = _std([r for group in rewards for r in group], ddof)
    return [[(r - _mean(group)) / (spread + eps) for r in group] for group in rewards]


def _whiten_tokens(values: Rows, counts: list[list[int]]) -> Rows:
    """(x - mean) / sqrt(var + 1e-8) where x occurs counts times; unbiased variance over all occurrences."""
    flat = [values[i][j] for i in range(len(values)) for j in range(len(values[i])) for _ in range(counts[i][j])]
    mean, scale = _mean(flat), math.sqrt(_std(flat, 1) ** 2 + 1e-8)
    return [[(v - mean) / scale for v in row] for row in values]


def reinforce_pp(rewards: Rows, mask: list[list[int]] | None = None, gamma: float = 1.0) -> dict[str, Rows]:
    """Token returns-to-go G_t = sum_{j>=t} gamma^(j-t) r_j, whitened over all tokens of the batch (arXiv 2501.03262).

    Tokens with mask 0 get 0 and do not discount. Published code restarts the sum at a masked token, which agrees only
    when the masked tokens are the padding after the end; here they are skipped.
    """
    mask = mask or [[1] * len(row) for row in rewards]
    returns = [[0.0] * len(row) for row in rewards]
    for i in range(len(rewards)):
        kept = [t for t in range(len(rewards[i])) if mask[i][t]]
        for a in range(len(kept)):
            returns[i][kept[a]] = sum(gamma ** (b - a) * rewards[i][kept[b]] for b in range(a, len(kept)))
    white = _whiten_tokens(returns, mask)
    advantage = [[w * m for w, m in zip(a, b, strict=True)] for a, b in zip(white, mask, strict=True)]
    return {"advantage": advantage, "target": returns}


def reinforce_pp_baseline(rewards: Rows, lengths: list[list[int]], singleton: str = "raw") -> Rows:
    """A_i = R_i - mean_g, then whitened over all tokens, so a completion weighs by its length (arXiv 2501.03262).

    A lone member keeps its reward (mean 0) before whitening, as in published code.
    """
    return _whiten_tokens(dr_grpo([list(g) for g in rewards], singleton), lengths)


def gdpo(
    rewards: Nested,
    weights: Sequence[float] | None = None,
    eps: float = 1e-4,
    lengths: list[list[int]] | None = None,
    whiten_eps: float = 1e-4,
) -> Rows:
    """sum_k w_k (R_ik - mean_g)/(std_g + eps), then whitened over the batch (arXiv 2601.05242).

    rewards[group][completion][component]. Without `lengths`: over completions, /(std + whiten_eps). With `lengths`:
    over tokens, /sqrt(var + 1e-8).
    """
    count = len(rewards[0][0])
    weights = weights or [1.0] * count
    total = [[0.0] * len(group) for group in rewards]
    for k in range(count):
        part = grpo([[member[k] for member in group] for group in rewards], eps=eps)
        for g in range(len(rewards)):
            for i in range(len(rewards[g])):
                total[g][i] += weights[k] * part[g][i]
    if lengths is not None:
        return _whiten_tokens(total, lengths)
    flat = [a for row in total for a in row]
    return [[(a - _mean(flat)) / (_std(flat, 1) + whiten_eps) for a in row] for row in total]


def opo(rewards: Rows, lengths: list[list[int]]) -> Rows:
    """A_i = R_i - sum(n_j R_j)/sum(n_j), the length-weighted group mean (arXiv 2505.23585)."""
    out = []
    for group, counts in zip(rewards, lengths, strict=True):
        baseline = sum(n * r for n, r in zip(counts, group, strict=True)) / sum(counts)
        out.append([r - baseline for r in group])
    return out


def pass_at_k(rewards: Rows, scale: bool = True, ddof: int = 1, eps: float = 1e-6) -> Rows:
    """Only the best of the group gets R_max - R_second, divided by (std_g + eps) if scaled (arXiv 2503.19595).

    With ties at the top everybody gets 0. A group needs two members.
    """
    out = []
    for group in rewards:
        best = group.index(max(group))
        second = max(group[j] for j in range(len(group)) if j != best)
        gain = group[best] - second
        if scale and gain > 0:
            gain /= _std(group, ddof) + eps
        out.append([gain if i == best else 0.0 for i in range(len(group))])
    return out
