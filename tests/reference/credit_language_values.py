"""Naive reference of the language agents' credit rules built on turn-level value estimates: HAE and SPA.

Plain Python on nested lists, index by index, from the published formulas only. A forest is `groups[group][episode]`; an
episode is a dict of equally long lists, one entry a turn (`reward`, `switch`, `v_low`, ...), plus scalars such as
`terminated`. A turn rule returns `[group][episode][turn]`, or a dict of such lists; token rules go one level deeper.

HiPER (HAE): arXiv 2602.16165. SPA-RL: arXiv 2505.20732.
`CASES[rule]` lists invented inputs (keyword arguments of the function `rule`) with their expected outputs.
"""

import math
from typing import Any

from . import credit_language_cases

CASES = credit_language_cases.VALUES_CASES

Episode = dict[str, Any]
Forest = list[list[Episode]]
Turns = list[list[list[float]]]
Tokens = list[list[list[list[float]]]]

# --- HAE (HiPER, arXiv 2602.16165) ------------------------------------------------------------------------------------


def segments(switch: list[int]) -> list[list[int]]:
    """Turns of every segment: turn 0 (even if it says KEEP) and each turn with switch = 1 begin one."""
    out: list[list[int]] = []
    for t in range(len(switch)):
        if t == 0 or switch[t] == 1:
            out.append([])
        out[-1].append(t)
    return out


def hae_rewards(
    groups: Forest,
    keep_penalty: float = 0.0,
    keep_mode: str = "normalized",
    consistency_penalty: float = -0.3,
    invalid_penalty: float = 0.1,
) -> Turns:
    """r + keep (fixed: c on a KEEP turn; normalized: c (n_K/T)/n_K) - 0.1 [invalid] + c' [KEEP and subgoal changed].

    Optional lists: `valid` (default all valid) and `subgoal` (token lists or text; the consistency rule needs it).
    Single-turn episodes skip the normalized keep penalty only. The first turn has no previous subgoal to differ from.
    """
    out: Turns = []
    for group in groups:
        rows = []
        for episode in group:
            r, switch = list(episode["reward"]), episode["switch"]
            length, keeps = len(r), sum(1 for q in switch if q == 0)
            for t in range(length):
                if switch[t] == 0 and keep_mode == "fixed":
                    r[t] += keep_penalty
                if switch[t] == 0 and keep_mode == "normalized" and length > 1:
                    r[t] += keep_penalty * (keeps / length) / keeps
                if "valid" in episode and not episode["valid"][t]:
                    r[t] -= invalid_penalty
                if "subgoal" in episode and t > 0 and switch[t] == 0:
                    now, before = episode["subgoal"][t], episode["subgoal"][t - 1]
                    if len(now) > 0 and len(before) > 0 and now != before:
                        r[t] += consistency_penalty
            rows.append(r)
        out.append(rows)
    return out


def hae_low_target(episode: Episode, t: int, gamma: float, bootstrap_truncated: bool) -> float:
    """r_t + gamma V_next(t): V_low(t+1) inside a segment, V_high(b_{k+1}) at its end; no next one: 0 or V_low(t)."""
    parts = segments(episode["switch"])
    for k in range(len(parts)):
        if t not in parts[k]:
            continue
        if t != parts[k][-1]:
            return episode["reward"][t] + gamma * episode["v_low"][t + 1]
        if k + 1 < len(parts):
            return episode["reward"][t] + gamma * episode["v_high"][parts[k + 1][0]]
        if not episode["terminated"] and bootstrap_truncated:
            return episode["reward"][t] + gamma * episode["v_low"][t]
    return episode["reward"][t]


def hae_low(
    groups: Forest, gamma: float = 1.0, lam_turn: float = 1.0, bootstrap_truncated: bool = True
) -> dict[str, Turns]:
    """A_low_t = sum_l (gamma lam_turn)^l delta_{t+l} up to the segment's end; returns R_low = A_low + V_low.

    `target` is the one-step value target of the paper's text, r + gamma V_next.
    """
    out: dict[str, Turns] = {"advantage": [], "return": [], "target": []}
    for group in groups:
        advantages, returns, targets = [], [], []
        for episode in group:
            v, length = episode["v_low"], len(episode["reward"])
            target = [hae_low_target(episode, t, gamma, bootstrap_truncated) for t in range(length)]
            advantage = [0.0] * length
            for part in segments(episode["switch"]):
                for t in part:
                    for u in part:
                        if u >= t:
                            advantage[t] += (gamma * lam_turn) ** (u - t) * (target[u] - v[u])
            advantages.append(advantage)
            returns.append([advantage[t] + v[t] for t in range(length)])
            targets.append(target)
        out["advantage"].append(advantages)
        out["return"].append(returns)
        out["target"].append(targets)
    return out


def hae_high(
    groups: Forest, gamma: float = 1.0, lam_seg: float = 0.95, bootstrap_truncated: bool = True
) -> dict[str, Turns]:
    """A_high_k = sum_m gamma^(b_m - b_k) lam_seg^(m-k) delta_m, delta = R_seg + gamma^d V_high(next) - V_high(b).

    Written at boundary turns, 0 at the others. A truncated last segment bootstraps with its own V_high(b_k), or with 0.
    """
    out: dict[str, Turns] = {"advantage": [], "return": [], "target": []}
    for group in groups:
        advantages, returns, targets = [], [], []
        for episode in group:
            r, v, length = episode["reward"], episode["v_high"], len(episode["reward"])
            parts = segments(episode["switch"])
            goal = []
            for k in range(len(parts)):
                total = 0.0
                for j in range(len(parts[k])):
                    total += gamma**j * r[parts[k][j]]
                if k + 1 < len(parts):
                    total += gamma ** len(parts[k]) * v[parts[k + 1][0]]
                elif not episode["terminated"] and bootstrap_truncated:
                    total += gamma ** len(parts[k]) * v[parts[k][0]]
                goal.append(total)
            advantage, back, target = [0.0] * length, [0.0] * length, [0.0] * length
            for k in range(len(parts)):
                b = parts[k][0]
                for m in range(k, len(parts)):
                    start = parts[m][0]
                    advantage[b] += gamma ** (start - b) * lam_seg ** (m - k) * (goal[m] - v[start])
                back[b] = advantage[b] + v[b]
                target[b] = goal[k]
            advantages.append(advantage)
            returns.append(back)
            targets.append(target)
        out["advantage"].append(advantages)
        out["return"].append(returns)
        out["target"].append(targets)
    return out


def hae_switch_value_head(groups: Forest, gamma: float = 1.0, bootstrap_truncated: bool = True) -> dict[str, Turns]:
    """Code's form: G_t - V_term(t), G_t = discounted rewards to the segment's end + gamma^n V_high(next boundary).

    A truncated last segment bootstraps with V_high of its own boundary (or 0), as the high level does.
    """
    out: dict[str, Turns] = {"advantage": [], "return": []}
    for group in groups:
        advantages, returns = [], []
        for episode in group:
            parts = segments(episode["switch"])
            back = [0.0] * len(episode["reward"])
            for k in range(len(parts)):
                boot = 0.0
                if k + 1 < len(parts):
                    boot = episode["v_high"][parts[k + 1][0]]
                elif not episode["terminated"] and bootstrap_truncated:
                    boot = episode["v_high"][parts[k][0]]
                end = parts[k][-1]
                for t in parts[k]:
                    for u in range(t, end + 1):
                        back[t] += gamma ** (u - t) * episode["reward"][u]
                    back[t] += gamma ** (end + 1 - t) * boot
            advantages.append([back[t] - episode["v_term"][t] for t in range(len(back))])
            returns.append(back)
        out["advantage"].append(advantages)
        out["return"].append(returns)
    return out


def hae_switch_difference(groups: Forest) -> Turns:
    """Paper's form: (q_t - beta_t) (V_high(s_t) - V_low(s_t, o_{t-1})); `switch_prob` = P(SWITCH), `v_low_previous`."""
    out: Turns = []
    for group in groups:
        rows = []
        for e in group:
            row = []
            for t in range(len(e["switch"])):
                row.append((e["switch"][t] - e["switch_prob"][t]) * (e["v_high"][t] - e["v_low_previous"][t]))
            rows.append(row)
        out.append(rows)
    return out


def hae_normalise(advantage: Turns, owner: list[list[list[int]]], eps: float = 1e-8) -> Turns:
    """(A - mean)/(population std + eps) over the turns of the whole batch with owner = 1; 0 at the other turns."""
    pool = []
    for g in range(len(advantage)):
        for i in range(len(advantage[g])):
            for t in range(len(advantage[g][i])):
                if owner[g][i][t]:
                    pool.append(advantage[g][i][t])
    if not pool:
        return [[[0.0 for _ in row] for row in rows] for rows in advantage]
    mean = sum(pool) / len(pool)
    std = math.sqrt(sum((x - mean) ** 2 for x in pool) / len(pool))
    out: Turns = []
    for g in range(len(advantage)):
        rows = []
        for i in range(len(advantage[g])):
            row = []
            for t in range(len(advantage[g][i])):
                row.append((advantage[g][i][t] - mean) / (std + eps) if owner[g][i][t] else 0.0)
            rows.append(row)
        out.append(rows)
    return out


def hae(
    groups: Forest,
    gamma: float = 1.0,
    lam_turn: float = 1.0,
    lam_seg: float = 0.95,
    bootstrap_truncated: bool = True,
    norm_adv: bool = True,
    switch_form: str = "code",
) -> dict[str, Turns]:
    """The three advantages {low, high, switch}, each normalised over the turns owning tokens of its level.

    Owners: every turn for low (without an action block all tokens count as action) and switch, boundary turns for high;
    optional lists `has_switch`, `has_subgoal` take a turn without such a block out of its level.
    """
    low = hae_low(groups, gamma, lam_turn, bootstrap_truncated)["advantage"]
    high = hae_high(groups, gamma, lam_seg, bootstrap_truncated)["advantage"]
    if switch_form == "paper":
        switch = hae_switch_difference(groups)
    else:
        switch = hae_switch_value_head(groups, gamma, bootstrap_truncated)["advantage"]
    owns_low, owns_high, owns_switch = [], [], []
    for group in groups:
        a, b, c = [], [], []
        for episode in group:
            length = len(episode["reward"])
            starts = [part[0] for part in segments(episode["switch"])]
            a.append([1] * length)
            has_subgoal = episode.get("has_subgoal", [1] * length)
            b.append([1 if t in starts and has_subgoal[t] else 0 for t in range(length)])
            c.append(list(episode.get("has_switch", [1] * length)))
        owns_low.append(a)
        owns_high.append(b)
        owns_switch.append(c)
    if not norm_adv:
        return {"low": low, "high": high, "switch": switch}
    return {
        "low": hae_normalise(low, owns_low),
        "high": hae_normalise(high, owns_high),
        "switch": hae_normalise(switch, owns_switch),
    }


# --- SPA-RL (arXiv 2505.20732) ----------------------------------------------------------------------------------------


def spa_estimator_loss(contribution: list[list[float]], outcome: list[float]) -> float:
    """mean over episodes of (sum_t c_t - R)^2."""
    total = 0.0
    for i in range(len(outcome)):
        total += (sum(contribution[i]) - outcome[i]) ** 2
    return total / len(outcome)


def spa_rewards(groups: Forest, alpha: float = 1.0, beta: float = 0.5) -> Turns:
    """Fused reward r_t = alpha c_t + beta g_t; lists `contribution` (c) and `executable` (g in {0, 1})."""
    out: Turns = []
    for group in groups:
        rows = []
        for e in group:
            rows.append([alpha * e["contribution"][t] + beta * e["executable"][t] for t in range(len(e["executable"]))])
        out.append(rows)
    return out


def spa_even_rewards(groups: Forest) -> Turns:
    """Baseline: the outcome R spread evenly, R/T at every turn; scalar `outcome`, turns counted on `executable`."""
    return [[[e["outcome"] / len(e["executable"])] * len(e["executable"]) for e in group] for group in groups]


def spa_turn_advantages(
    groups: Forest, alpha: float = 1.0, beta: float = 0.5, gamma: float = 1.0, lam: float = 0.95
) -> Turns:
    """Turn-level GAE of the fused reward: sum_l (gamma lam)^l (r + gamma V' - V); V' = `final_value` (0) at the end."""
    reward = spa_rewards(groups, alpha, beta)
    out: Turns = []
    for g in range(len(groups)):
        rows = []
        for i in range(len(groups[g])):
            v = [*groups[g][i]["value"], groups[g][i].get("final_value", 0.0)]
            r = reward[g][i]
            row = []
            for t in range(len(r)):
                row.append(sum((gamma * lam) ** (u - t) * (r[u] + gamma * v[u + 1] - v[u]) for u in range(t, len(r))))
            rows.append(row)
        out.append(rows)
    return out


def spa_token_rewards(groups: Forest, alpha: float = 1.0, beta: float = 0.5, kl_coef: float = 0.0) -> Tokens:
    """r_t on the last token of turn t, and -kl_coef KL on every token; `token_kl` holds token lists, one a turn."""
    reward = spa_rewards(groups, alpha, beta)
    out: Tokens = []
    for g in range(len(groups)):
        rows = []
        for i in range(len(groups[g])):
            turns = []
            for t in range(len(reward[g][i])):
                turn = [-kl_coef * kl for kl in groups[g][i]["token_kl"][t]]
                turn[-1] += reward[g][i][t]
                turns.append(turn)
            rows.append(turns)
        out.append(rows)
    return out


def spa_token_advantages(
    groups: Forest,
    alpha: float = 1.0,
    beta: float = 0.5,
    kl_coef: float = 0.0,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Tokens:
    """Token-level GAE over the agent's tokens of the whole episode (turn after turn); `token_value`, end 0."""
    reward = spa_token_rewards(groups, alpha, beta, kl_coef)
    out: Tokens = []
    for g in range(len(groups)):
        rows = []
        for i in range(len(groups[g])):
            r, v, place = [], [], []
            for t in range(len(reward[g][i])):
                for j in range(len(reward[g][i][t])):
                    r.append(reward[g][i][t][j])
                    v.append(groups[g][i]["token_value"][t][j])
                    place.append(t)
            v.append(0.0)
            turns: list[list[float]] = [[] for _ in reward[g][i]]
            for n in range(len(r)):
                total = 0.0
                for m in range(n, len(r)):
                    total += (gamma * lam) ** (m - n) * (r[m] + gamma * v[m + 1] - v[m])
                turns[place[n]].append(total)
            rows.append(turns)
        out.append(rows)
    return out


def spa_released_multiplier(values: list[float]) -> list[float]:
    """Released trainer only: the value of turn j times (T - j - 1)."""
    return [values[j] * (len(values) - j - 1) for j in range(len(values))]


def spa_leave_one_out(rewards: list[list[float]]) -> list[list[float]]:
    """Released data script only: R_i - mean of the task's other rollouts, the same at every turn of rollout i."""
    out = []
    for group in rewards:
        row = []
        for i in range(len(group)):
            others = [group[j] for j in range(len(group)) if j != i]
            # A rollout without siblings is not defined in the script; its baseline is taken as 0.
            row.append(group[i] - (sum(others) / len(others) if others else 0.0))
        out.append(row)
    return out
