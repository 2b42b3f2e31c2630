"""Naive reference of the language agents' rules that train critics off-policy or offline: ArCHer and VSC-RL.

Plain Python on nested lists, index by index, from the published formulas only. A forest is `groups[group][episode]`; an
episode is a dict of equally long lists, one entry a turn. Token rules return one level more.

ArCHer: arXiv 2402.19446 (and its offline variant). VSC-RL: arXiv 2502.07949.
`CASES[rule]` lists invented inputs (keyword arguments of the function `rule`) with their expected outputs.
"""

import math
from typing import Any

from . import credit_language_cases

CASES = credit_language_cases.CRITICS_CASES

Episode = dict[str, Any]
Forest = list[list[Episode]]
Turns = list[list[list[float]]]
Tokens = list[list[list[list[float]]]]

# --- ArCHer (arXiv 2402.19446) ----------------------------------------------------------------------------------------


def archer_q_targets(groups: Forest, gamma: float = 0.95) -> dict[str, Turns]:
    """y_i = r + gamma (1 - done) V_i^-(o'), i = 1, 2, no minimum; lists `reward`, `done`, `next_v1`, `next_v2`."""
    out: dict[str, Turns] = {"q1": [], "q2": []}
    for head, name in (("q1", "next_v1"), ("q2", "next_v2")):
        for group in groups:
            rows = []
            for e in group:
                row = []
                for t in range(len(e["reward"])):
                    row.append(e["reward"][t] + gamma * (1 - e["done"][t]) * e[name][t])
                rows.append(row)
            out[head].append(rows)
    return out


def archer_critic_loss(
    q: list[list[float]], y_q: list[list[float]], v: list[list[float]], y_v: list[list[float]]
) -> float:
    """Sum over both heads of mean (Q_i - y_Q,i)^2 + mean (V_i - y_V,i)^2, y_V,i = Q_i^-(o, a~); lists [head][row]."""
    total = 0.0
    for i in range(2):
        n = len(q[i])
        for j in range(n):
            total += (q[i][j] - y_q[i][j]) ** 2 / n + (v[i][j] - y_v[i][j]) ** 2 / n
    return total


def archer_mc_returns(groups: Forest, gamma: float = 0.95) -> Turns:
    """mc_t = sum_k gamma^k r_{t+k}."""
    out: Turns = []
    for group in groups:
        rows = []
        for episode in group:
            r = episode["reward"]
            rows.append([sum(gamma ** (u - t) * r[u] for u in range(t, len(r))) for t in range(len(r))])
        out.append(rows)
    return out


def archer_advantages(groups: Forest) -> Turns:
    """A = min(Q1, Q2)(o, a) - min(V1, V2)(o), not normalised; lists `q1`, `q2`, `v1`, `v2`."""
    out: Turns = []
    for group in groups:
        rows = []
        for e in group:
            rows.append([min(e["q1"][t], e["q2"][t]) - min(e["v1"][t], e["v2"][t]) for t in range(len(e["q1"]))])
        out.append(rows)
    return out


def archer_token_advantages(groups: Forest) -> Tokens:
    """Plain: A on every token of the utterance; with a baseline (`token_value`): A - v_t. `token_mask` 0 gives 0.

    `token_mask` (or `token_value`) is a list of token lists, one a turn.
    """
    advantage = archer_advantages(groups)
    out: Tokens = []
    for g in range(len(groups)):
        rows = []
        for i in range(len(groups[g])):
            episode, turns = groups[g][i], []
            for t in range(len(episode["q1"])):
                count = len(episode["token_mask"][t] if "token_mask" in episode else episode["token_value"][t])
                turn = []
                for j in range(count):
                    kept = episode["token_mask"][t][j] if "token_mask" in episode else 1
                    base = episode["token_value"][t][j] if "token_value" in episode else 0.0
                    turn.append(kept * (advantage[g][i][t] - base))
                turns.append(turn)
            rows.append(turns)
        out.append(rows)
    return out


def archer_actor_loss(advantage: list[float], log_prob: list[list[float]]) -> float:
    """-mean over utterances of A sum_t log pi(a_t)."""
    return -sum(advantage[b] * sum(log_prob[b]) for b in range(len(advantage))) / len(advantage)


def archer_baseline_losses(
    advantage: list[float], token_value: list[list[float]], log_prob: list[list[float]]
) -> dict[str, float]:
    """Policy -mean_b sum_t (A - v_t) log pi_t and value mean over tokens of (A - v_t)^2."""
    # The value term's mean runs over the tokens of the batch; with a padded batch the published code's mean also counts
    # padded positions as zeros. Here lists are not padded.
    policy, value, count = 0.0, 0.0, 0
    for b in range(len(advantage)):
        for t in range(len(token_value[b])):
            policy -= (advantage[b] - token_value[b][t]) * log_prob[b][t] / len(advantage)
            value += (advantage[b] - token_value[b][t]) ** 2
            count += 1
    return {"policy": policy, "value": value / count}


def archer_polyak(target: list[float], online: list[float], tau: float = 0.1) -> list[float]:
    """tau online + (1 - tau) target."""
    return [tau * online[i] + (1 - tau) * target[i] for i in range(len(target))]


def archer_offline_value_loss(target_q: list[float], v: list[float], xi: float = 0.9) -> float:
    """mean |xi - 1[u <= 0]| u^2, u = Q^-(o, a_data) - V(o); one head."""
    total = 0.0
    for i in range(len(v)):
        u = target_q[i] - v[i]
        total += abs(xi - (1 if u <= 0 else 0)) * u * u
    return total / len(v)


def archer_awr(advantage: list[float], log_prob: list[float], inv_temp: float = 1.0) -> dict[str, Any]:
    """Offline actor: weight exp(inv_temp A), not clipped; loss -mean weight * log pi(a_data|o)."""
    weight = [math.exp(inv_temp * a) for a in advantage]
    return {"weight": weight, "loss": -sum(weight[i] * log_prob[i] for i in range(len(weight))) / len(weight)}


def archer_iql_kl_loss(advantage: list[float], log_prob: list[float], log_ref: list[float], c: float) -> float:
    """(1 - c) (-A log pi) + c (sg(log pi - log pi_ref) + 1) log pi, mean over utterances (its value; sg = detached)."""
    total = 0.0
    for i in range(len(advantage)):
        total += -(1 - c) * advantage[i] * log_prob[i] + c * (log_prob[i] - log_ref[i] + 1) * log_prob[i]
    return total / len(advantage)


# --- VSC-RL (arXiv 2502.07949) ----------------------------------------------------------------------------------------


def vsc_segments(reward: list[float]) -> list[list[int]]:
    """Cut after every step with r != 0; the trailing unfinished segment is the last one (absent if nothing is left)."""
    out: list[list[int]] = [[]]
    for t in range(len(reward)):
        out[-1].append(t)
        if reward[t] != 0 and t + 1 < len(reward):
            out.append([])
    return out


def vsc_mc_returns(groups: Forest, discount: float = 0.5) -> Turns:
    """Finished segment of length L: discount^(L-1-j) at its step j (r = 1 at its end); unfinished segment: 0."""
    out: Turns = []
    for group in groups:
        rows = []
        for episode in group:
            row = [0.0] * len(episode["reward"])
            for part in vsc_segments(episode["reward"]):
                if episode["reward"][part[-1]] != 0:
                    for j in range(len(part)):
                        row[part[j]] = discount ** (len(part) - 1 - j)
            rows.append(row)
        out.append(rows)
    return out


def vsc_segment_rewards(groups: Forest) -> Turns:
    """Trajectory reward per segment: 1 if its last step has r != 0, else 0; [group][episode][segment]."""
    out: Turns = []
    for group in groups:
        rows = []
        for e in group:
            rows.append([1.0 if e["reward"][part[-1]] != 0 else 0.0 for part in vsc_segments(e["reward"])])
        out.append(rows)
    return out


def linear_quantile(values: list[float], q: float) -> float:
    """Quantile by linear interpolation between order statistics at position q (n - 1)."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def vsc_filter(reward: list[float], baseline: list[float], quantile: float = 0.9) -> dict[str, Any]:
    """f = trajectory reward - V_instr(first observation); keep f >= its quantile (a tie keeps everything)."""
    score = [reward[i] - baseline[i] for i in range(len(reward))]
    bound = linear_quantile(score, quantile)
    return {"score": score, "threshold": bound, "kept": [i for i in range(len(score)) if score[i] >= bound]}


def vsc_bc_filter(reward: list[float], quantile: float = 0.9) -> list[int]:
    """Behaviour-cloning buffer: indices with reward >= its quantile."""
    return [i for i in range(len(reward)) if reward[i] >= linear_quantile(reward, quantile)]


def vsc_advantages(
    groups: Forest, discount: float = 0.5, margin: float = 0.05, clip: bool = True, binary: bool = True
) -> Turns:
    """min(nv1, nv2) - min(v1, v2) - margin + r + mc_return; clipped to [0, 1]; then 1 if positive else 0."""
    mc = vsc_mc_returns(groups, discount)
    out: Turns = []
    for g in range(len(groups)):
        rows = []
        for i in range(len(groups[g])):
            e, row = groups[g][i], []
            for t in range(len(e["reward"])):
                a = min(e["nv1"][t], e["nv2"][t]) - min(e["v1"][t], e["v2"][t]) - margin + e["reward"][t] + mc[g][i][t]
                if clip:
                    a = min(max(a, 0.0), 1.0)
                if binary:
                    a = 1.0 if a > 0 else 0.0
                row.append(a)
            rows.append(row)
        out.append(rows)
    return out


def vsc_rl(
    groups: Forest,
    discount: float = 0.5,
    margin: float = 0.05,
    quantile: float = 0.9,
    clip: bool = True,
    binary: bool = True,
) -> Turns:
    """Step weights: `vsc_advantages` on kept segments, 0 elsewhere; segments of all groups share one quantile.

    `v_instr` is read at the first turn of each segment.
    """
    advantage = vsc_advantages(groups, discount, margin, clip, binary)
    rewards, baselines, places = [], [], []
    final = vsc_segment_rewards(groups)
    for g in range(len(groups)):
        for i in range(len(groups[g])):
            parts = vsc_segments(groups[g][i]["reward"])
            for k in range(len(parts)):
                rewards.append(final[g][i][k])
                baselines.append(groups[g][i]["v_instr"][parts[k][0]])
                places.append((g, i, parts[k]))
    kept = vsc_filter(rewards, baselines, quantile)["kept"]
    out = [[[0.0 for _ in row] for row in rows] for rows in advantage]
    for n in kept:
        g, i, part = places[n]
        for t in part:
            out[g][i][t] = advantage[g][i][t]
    return out


def vsc_actor_loss(weight: list[float], log_prob: list[float], low: float = 0.001, high: float = 0.99) -> float:
    """-mean weight * log p, with log p clamped to [log low, log high]; the mean is over all given steps."""
    total = 0.0
    for i in range(len(weight)):
        total += weight[i] * min(max(log_prob[i], math.log(low)), math.log(high))
    return -total / len(weight)
