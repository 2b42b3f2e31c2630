"""Naive reference of the critic-free credit rules of language agents: group statistics, gates and tags.

Plain Python on nested lists, index by index, from the published formulas only. A group rule takes `rewards[group][i]`;
a turn rule takes a forest `groups[group][episode]`, an episode being a dict of equally long lists, one entry a turn,
plus scalars, and returns `[group][episode][turn]`, or a dict of such lists; token rules go one level deeper.

GiGPO: arXiv 2505.10978. HiMAC: arXiv 2603.00977. CoDA (PECO): arXiv 2512.12716. IGPO: arXiv 2510.14967.
RLVMR: arXiv 2507.22844. Hi-Agent: arXiv 2510.14388. ChatShopBuddy (HRM, DCPO): arXiv 2603.06065.
`CASES[rule]` lists invented inputs (keyword arguments of the function `rule`) with their expected outputs.
"""

import math
from difflib import SequenceMatcher
from typing import Any

from . import credit_language_cases

CASES = credit_language_cases.CASES

Episode = dict[str, Any]
Forest = list[list[Episode]]
Rows = list[list[float]]
Turns = list[list[list[float]]]
Tokens = list[list[list[list[float]]]]

# --- the statistics all of them share ---------------------------------------------------------------------------------


def mean_and_std(pool: list[float], ddof: int = 1, legacy_singleton: bool = False) -> tuple[float, float]:
    """Mean and std (ddof 1: unbiased). One member: (itself, 0), or (0, 1) with `legacy_singleton`."""
    if len(pool) == 1:
        return (0.0, 1.0) if legacy_singleton else (pool[0], 0.0)
    if all(x == pool[0] for x in pool):
        return pool[0], 0.0
    mean = sum(pool) / len(pool)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in pool) / (len(pool) - ddof))


def standardise(x: float, mean: float, std: float, mode: str = "mean_std_norm", eps: float = 1e-6) -> float:
    """(x - mean)/(std + eps) for mode mean_std_norm, x - mean for mean_norm; exactly 0 at the mean."""
    if x == mean:
        return 0.0
    return (x - mean) / (std + eps) if mode == "mean_std_norm" else x - mean


def normalise(
    pool: list[float], mode: str = "mean_std_norm", eps: float = 1e-6, ddof: int = 1, legacy_singleton: bool = False
) -> list[float]:
    """Every member against the pool's own mean and std."""
    mean, std = mean_and_std(pool, ddof, legacy_singleton)
    return [standardise(x, mean, std, mode, eps) for x in pool]


# --- GiGPO (arXiv 2505.10978) -----------------------------------------------------------------------------------------


def gigpo_step_returns(groups: Forest, gamma: float = 0.95) -> Turns:
    """R_t = sum_{k>=t} gamma^(k-t) r_k over the active turns (`active`, default all; inactive turns hold 0)."""
    out: Turns = []
    for group in groups:
        rows = []
        for episode in group:
            r = episode["reward"]
            turns = [t for t in range(len(r)) if "active" not in episode or episode["active"][t]]
            row = [0.0] * len(r)
            for a in range(len(turns)):
                for b in range(a, len(turns)):
                    row[turns[a]] += gamma ** (b - a) * r[turns[b]]
            rows.append(row)
        out.append(rows)
    return out


def gigpo_clusters(states: list[Any], similarity: float | None = None) -> list[list[int]]:
    """Positions of equal states, in order of first appearance; with a threshold, first fit to a cluster's first member.

    Similar: difflib ratio(row, first member of the cluster) >= threshold; difflib's ratio is not symmetric.
    """
    clusters: list[list[int]] = []
    for n in range(len(states)):
        for cluster in clusters:
            first = states[cluster[0]]
            if similarity is None:
                same = states[n] == first
            else:
                same = SequenceMatcher(None, states[n], first).ratio() >= similarity
            if same:
                cluster.append(n)
                break
        else:
            clusters.append([n])
    return clusters


def gigpo(
    groups: Forest,
    gamma: float = 0.95,
    omega: float = 1.0,
    mode: str = "mean_std_norm",
    over: str = "rows",
    eps: float = 1e-6,
    ddof: int = 1,
    legacy_singleton: bool = False,
    similarity: float | None = None,
    invalid_penalty: float = 0.1,
) -> dict[str, Turns]:
    """A = A_E + omega A_S: the trajectory's score against all rows (or trajectories) of its group, and the step return
    against the rows of the group with the same state. A group of one: 0 (legacy: A_E uses mean 0, std 1; A_S stays 0).

    Lists `reward`, `state`, optional `active`, `valid`. An invalid row loses 0.1 of its score and of its step return.
    """
    # Where the penalty enters the step level is not spelled out: here it lowers that row's return, not earlier ones.
    # With over = "trajectories" a trajectory is represented by its first active row (as the published code does).
    returns = gigpo_step_returns(groups, gamma)
    out: dict[str, Turns] = {"episode": [], "step": [], "total": []}
    for g in range(len(groups)):
        episode_level = [[0.0] * len(e["reward"]) for e in groups[g]]
        step_level = [[0.0] * len(e["reward"]) for e in groups[g]]
        places, scores, steps, states, pool = [], [], [], [], []
        for i in range(len(groups[g])):
            e = groups[g][i]
            turns = [t for t in range(len(e["reward"])) if "active" not in e or e["active"][t]]
            total = sum(e["reward"][t] for t in turns)
            for t in turns:
                penalty = invalid_penalty if "valid" in e and not e["valid"][t] else 0.0
                places.append((i, t))
                scores.append(total - penalty)
                steps.append(returns[g][i][t] - penalty)
                states.append(e["state"][t])
                if over == "rows" or t == turns[0]:
                    pool.append(total - penalty)
        if places:
            mean, std = mean_and_std(pool, ddof, legacy_singleton)
            for n in range(len(places)):
                i, t = places[n]
                episode_level[i][t] = standardise(scores[n], mean, std, mode, eps)
            for cluster in gigpo_clusters(states, similarity):
                values = normalise([steps[n] for n in cluster], mode, eps, ddof)
                for m in range(len(cluster)):
                    i, t = places[cluster[m]]
                    step_level[i][t] = values[m]
        out["episode"].append(episode_level)
        out["step"].append(step_level)
        both = []
        for i in range(len(groups[g])):
            count = len(groups[g][i]["reward"])
            both.append([episode_level[i][t] + omega * step_level[i][t] for t in range(count)])
        out["total"].append(both)
    return out


# --- HiMAC (arXiv 2603.00977) -----------------------------------------------------------------------------------------


def himac_macro(rewards: Rows, eps: float = 1e-6, ddof: int = 1) -> dict[str, Any]:
    """A_i = (R(z_i) - mean)/(std + eps) per task over its M blueprints; selected z* = argmax R (ties: the first)."""
    selected = []
    for group in rewards:
        best = 0
        for i in range(len(group)):
            if group[i] > group[best]:
                best = i
        selected.append(best)
    return {"advantage": [normalise(group, eps=eps, ddof=ddof) for group in rewards], "selected": selected}


def himac_micro(rewards: Rows, eps: float = 1e-6, ddof: int = 1) -> Rows:
    """A_j = (R_j - mean)/(std + eps) over the G trajectories executed under the selected blueprint."""
    return [normalise(group, eps=eps, ddof=ddof) for group in rewards]


def himac_tokens(advantage: float, blueprint: list[int], phase: str) -> list[float]:
    """Phase "macro": A on tokens with blueprint = 1, 0 on the others; phase "micro": the opposite."""
    return [advantage if (flag == 1) == (phase == "macro") else 0.0 for flag in blueprint]


def himac_visible_turns(sub_done: list[int]) -> list[list[int]]:
    """Turns the micro sees at turn t: those after the last earlier turn that ended with <sub_done>, up to t itself."""
    out = []
    for t in range(len(sub_done)):
        start = 0
        for u in range(t):
            if sub_done[u]:
                start = u + 1
        out.append(list(range(start, t + 1)))
    return out


# --- PECO of CoDA (arXiv 2512.12716) ----------------------------------------------------------------------------------


def peco_reward(f1: float, planner_format: float, executor_format: list[float], refine: float) -> float:
    """(6 F1 - 3) + fp + mean_j fe_j + 0.5 ref; the mean over no executors is 0."""
    executors = sum(executor_format) / len(executor_format) if executor_format else 0.0
    return (6.0 * f1 - 3.0) + planner_format + executors + 0.5 * refine


def peco(groups: Forest, eps: float = 1e-6, ddof: int = 1, legacy_singleton: bool = True) -> dict[str, Any]:
    """A_i = (R_i - mean)/(std + eps) over the planner trajectories of a question; all executor rows of i receive A_i.

    Episode scalars `f1`, `planner_format`, `refine` and the list `executor_format`, one entry an executor rollout.
    """
    out: dict[str, Any] = {"reward": [], "planner": [], "executor": []}
    for group in groups:
        rewards = [peco_reward(e["f1"], e["planner_format"], e["executor_format"], e["refine"]) for e in group]
        planner = normalise(rewards, eps=eps, ddof=ddof, legacy_singleton=legacy_singleton)
        out["reward"].append(rewards)
        out["planner"].append(planner)
        out["executor"].append([[planner[i]] * len(group[i]["executor_format"]) for i in range(len(group))])
    return out


# --- IGPO (arXiv 2510.14967) ------------------------------------------------------------------------------------------


def igpo_gains(log_probs: list[list[float]], form: str = "log", floor: float = 0.0) -> list[float]:
    """s_t = mean_j log pi(a_j | turns up to t), from t = 0 (the question alone); gain s_t - s_{t-1} (form "log") or
    exp(s_t) - exp(s_{t-1}) (form "prob"). A positive `floor` bounds each token's probability from below.
    """
    s = []
    for tokens in log_probs:
        bounded = [max(x, math.log(floor)) if floor > 0 else x for x in tokens]
        s.append(sum(bounded) / len(bounded))
    if form == "prob":
        s = [math.exp(x) for x in s]
    return [s[t] - s[t - 1] for t in range(1, len(s))]


def igpo(groups: Forest, gamma: float = 1.0, eps: float = 1e-8, ddof: int = 1) -> dict[str, Turns]:
    """Paper: z-score all gains of the group's non-final turns in one pool and the outcomes in another; final turn
    z(O); A_t = sum_{k>=t} gamma^(k-t) r~_k. List `gain` (its last entry is never read), scalar `outcome`.
    """
    # Whether the unused gain of the final turn belongs to the pool is not said: here it does not.
    out: dict[str, Turns] = {"reward": [], "advantage": []}
    for group in groups:
        pool = []
        for e in group:
            for t in range(len(e["gain"]) - 1):
                pool.append(e["gain"][t])
        mean, std = mean_and_std(pool, ddof) if pool else (0.0, 0.0)
        outcomes = normalise([e["outcome"] for e in group], eps=eps, ddof=ddof)
        rewards, advantages = [], []
        for i in range(len(group)):
            last = len(group[i]["gain"]) - 1
            r = [standardise(group[i]["gain"][t], mean, std, eps=eps) for t in range(last)] + [outcomes[i]]
            rewards.append(r)
            advantages.append([sum(gamma ** (k - t) * r[k] for k in range(t, last + 1)) for t in range(last + 1)])
        out["reward"].append(rewards)
        out["advantage"].append(advantages)
    return out


def igpo_column_mean(groups: Forest, padded: bool = True) -> dict[str, Tokens]:
    """Code: gain on the last token of each non-final turn, outcome on the episode's last; undiscounted return-to-go per
    token minus the group's mean in the same token column. With `padded` an episode that ended earlier counts as 0.

    `mask`: token lists, one a turn, 1 = the model's token; a 0 token gets advantage 0. Scalar `gains_valid` = False
    (turn count and gain count disagree) leaves the outcome only.
    """
    # "The turn's last token" is taken as its last model token. Columns count all tokens, tool tokens too.
    out: dict[str, Tokens] = {"return": [], "advantage": []}
    for group in groups:
        flat = []
        for e in group:
            rewards: list[float] = []
            for t in range(len(e["mask"])):
                final = t == len(e["mask"]) - 1
                value = e["outcome"] if final else e["gain"][t] if e.get("gains_valid", True) else 0.0
                kept = [j for j in range(len(e["mask"][t])) if e["mask"][t][j]]
                for j in range(len(e["mask"][t])):
                    rewards.append(value if kept and j == kept[-1] else 0.0)
            flat.append([sum(rewards[n:]) for n in range(len(rewards))])
        returns, advantages = [], []
        for i in range(len(group)):
            nested_return, nested_advantage, n = [], [], 0
            for turn in group[i]["mask"]:
                row_return, row_advantage = [], []
                for flag in turn:
                    column = [row[n] for row in flat if n < len(row)]
                    mean = sum(column) / (len(flat) if padded else len(column))
                    row_return.append(flat[i][n])
                    row_advantage.append(flat[i][n] - mean if flag else 0.0)
                    n += 1
                nested_return.append(row_return)
                nested_advantage.append(row_advantage)
            returns.append(nested_return)
            advantages.append(nested_advantage)
        out["return"].append(returns)
        out["advantage"].append(advantages)
    return out


# --- RLVMR (arXiv 2507.22844) -----------------------------------------------------------------------------------------


def rlvmr_tag(tags: list[str], valid: bool) -> str:
    """The turn's group: planning > explore > reflection if several; an invalid row and <monitor> are "none"."""
    for name in ("planning", "explore", "reflection"):
        if valid and name in tags:
            return name
    return "none"


def rlvmr_meta_rewards(groups: Forest) -> dict[str, Any]:
    """planning: success; explore: no earlier valid row issued this action; reflection: the previous row failed (invalid
    or inadmissible, or there is none) and the action differs from it; "none": 0.

    Lists `tag` (one name a turn), `valid`, `action`, `admissible`; scalar `success`.
    """
    out: dict[str, Any] = {"tag": [], "meta": []}
    for group in groups:
        tag_rows, meta_rows = [], []
        for e in group:
            tags, metas = [], []
            for t in range(len(e["tag"])):
                tag, meta = rlvmr_tag([e["tag"][t]], e["valid"][t]), 0.0
                if tag == "planning" and e["success"]:
                    meta = 1.0
                if tag == "explore":
                    earlier = [e["action"][u] for u in range(t) if e["valid"][u]]
                    meta = 0.0 if e["action"][t] in earlier else 1.0
                if tag == "reflection":
                    failed = t == 0 or not e["valid"][t - 1] or not e["admissible"][t - 1]
                    differs = t == 0 or e["action"][t] != e["action"][t - 1]
                    meta = 1.0 if failed and differs else 0.0
                tags.append(tag)
                metas.append(meta)
            tag_rows.append(tags)
            meta_rows.append(metas)
        out["tag"].append(tag_rows)
        out["meta"].append(meta_rows)
    return out


def rlvmr(
    groups: Forest,
    w: float = 1.0,
    mode: str = "mean_std_norm",
    eps: float = 1e-6,
    ddof: int = 1,
    legacy_singleton: bool = True,
    invalid_penalty: float = 0.1,
    success_reward: float = 10.0,
    scope: str = "task",
    alpha: float | None = None,
) -> dict[str, Any]:
    """A = A_episode (all rows of the task) + w A_step (rows of the same task and tag); a group of one passes through.

    Paper's form: `scope` = "batch" (same tag anywhere) and `alpha`: alpha A_episode + (1 - alpha) A_step.
    """
    out = rlvmr_meta_rewards(groups)
    episode_level = [[[0.0] * len(e["tag"]) for e in group] for group in groups]
    step_level = [[[0.0] * len(e["tag"]) for e in group] for group in groups]
    tag_groups: dict[Any, list[tuple[int, int, int]]] = {}
    for g in range(len(groups)):
        places, scores = [], []
        for i in range(len(groups[g])):
            e = groups[g][i]
            for t in range(len(e["tag"])):
                score = success_reward if e["success"] else 0.0
                scores.append(score if e["valid"][t] else score - invalid_penalty)
                places.append((i, t))
                tag = out["tag"][g][i][t]
                tag_groups.setdefault((g, tag) if scope == "task" else tag, []).append((g, i, t))
        values = normalise(scores, mode, eps, ddof, legacy_singleton)
        for n in range(len(places)):
            episode_level[g][places[n][0]][places[n][1]] = values[n]
    for members in tag_groups.values():
        values = normalise([out["meta"][g][i][t] for g, i, t in members], mode, eps, ddof, legacy_singleton)
        for n in range(len(members)):
            g, i, t = members[n]
            step_level[g][i][t] = values[n]
    total: Turns = []
    for g in range(len(groups)):
        rows = []
        for i in range(len(groups[g])):
            row = []
            for t in range(len(groups[g][i]["tag"])):
                a, b = episode_level[g][i][t], step_level[g][i][t]
                row.append(a + w * b if alpha is None else alpha * a + (1.0 - alpha) * b)
            rows.append(row)
        total.append(rows)
    return {**out, "episode": episode_level, "step": step_level, "total": total}


# --- Hi-Agent (arXiv 2510.14388) --------------------------------------------------------------------------------------


def hi_agent_match(
    kind: str, oracle_kind: str, point: list[float], oracle_point: list[float], tolerance: float = 0.002
) -> float:
    """r_env = 1[same action type and Euclidean distance < tolerance] (coordinates in [0, 1])."""
    distance = math.sqrt(sum((point[d] - oracle_point[d]) ** 2 for d in range(len(point))))
    return 1.0 if kind == oracle_kind and distance < tolerance else 0.0


def hi_agent_foresight(
    groups: list[list[list[float]]],
    weights: tuple[float, float, float] = (0.4, 0.3, 0.3),
    eps: float = 1e-6,
    ddof: int = 1,
) -> dict[str, Rows]:
    """High level: r_h = l1 fmt + l2 env + l3 judge per subgoal (rows [fmt, env, judge]), normalised in its group."""
    reward = []
    for group in groups:
        reward.append([weights[0] * row[0] + weights[1] * row[1] + weights[2] * row[2] for row in group])
    return {"reward": reward, "advantage": [normalise(group, eps=eps, ddof=ddof) for group in reward]}


def hi_agent_low(rewards: Rows, scope: str = "batch", eps: float = 1e-6, ddof: int = 1) -> Rows:
    """Low level: (r - mean)/(std + eps) with the statistics of the whole batch (scope "group": of each group)."""
    out: Rows = []
    for group in rewards:
        pool = [r for row in rewards for r in row] if scope == "batch" else group
        mean, std = mean_and_std(pool, ddof)
        out.append([standardise(r, mean, std, eps=eps) for r in group])
    return out


# --- ChatShopBuddy (arXiv 2603.06065; the formulas are reconstructed) -------------------------------------------------


def chatshopbuddy_reward(
    correct: float,
    structure: float,
    efficiency: float,
    weights: tuple[float, float, float] = (1.0, 0.5, 0.2),
    threshold: float = 0.5,
    gate: str = "hard",
) -> float:
    """HRM: R = w_c c + p (w_s s + 1[s >= t_s] w_e e); p = 1[c = 1] (gate "hard") or c ("soft"); "none": plain sum."""
    if gate == "none":
        return weights[0] * correct + weights[1] * structure + weights[2] * efficiency
    passed = correct if gate == "soft" else 1.0 if correct >= 1.0 else 0.0
    third = weights[2] * efficiency if structure >= threshold else 0.0
    return weights[0] * correct + passed * (weights[1] * structure + third)


def gated_reward(levels: list[tuple[float, float, float]]) -> dict[str, float]:
    """Ordered levels (score, threshold, weight): add weight * score, stop after the first score below its threshold.

    `evaluated` counts the levels looked at (later ones are neither computed nor paid).
    """
    total, evaluated = 0.0, 0
    for score, threshold, weight in levels:
        total += weight * score
        evaluated += 1
        if score < threshold:
            break
    return {"reward": total, "evaluated": evaluated}


def dcpo_select(rewards: list[float], lengths: list[float], keep: int) -> dict[str, list[int]]:
    """First keep/2 by (reward down, length up) as positives; of the rest, first keep/2 by (reward up, length down) as
    negatives; remaining ties by index. All kept rewards equal: the query is dropped (nothing kept).
    """
    # "No equal-reward pair" is read as: the two sets are disjoint; single pairs of equal reward stay allowed.
    index = list(range(len(rewards)))
    positives = sorted(index, key=lambda i: (-rewards[i], lengths[i], i))[: keep // 2]
    rest = [i for i in index if i not in positives]
    negatives = sorted(rest, key=lambda i: (rewards[i], -lengths[i], i))[: keep // 2]
    if len({rewards[i] for i in positives + negatives}) <= 1:
        return {"positives": [], "negatives": []}
    return {"positives": positives, "negatives": negatives}


def dcpo(
    rewards: Rows, lengths: Rows, keep: int | None = None, statistics: str = "kept", eps: float = 1e-6, ddof: int = 1
) -> dict[str, Any]:
    """(R - mean)/(std + eps) on the kept rows, statistics over the "kept" or over "all"; 0 on dropped rows.

    `keep` defaults to half of the group.
    """
    out: dict[str, Any] = {"kept": [], "advantage": []}
    for g in range(len(rewards)):
        chosen = dcpo_select(rewards[g], lengths[g], len(rewards[g]) // 2 if keep is None else keep)
        kept = sorted(chosen["positives"] + chosen["negatives"])
        row = [0.0] * len(rewards[g])
        if kept:
            pool = rewards[g] if statistics == "all" else [rewards[g][i] for i in kept]
            mean, std = mean_and_std(pool, ddof)
            for i in kept:
                row[i] = standardise(rewards[g][i], mean, std, eps=eps)
        out["kept"].append(kept)
        out["advantage"].append(row)
    return out


def pass_all(correct: list[int], n: int, k: int) -> float:
    """Pass^k: mean over queries of C(c, k)/C(n, k), the chance that k of the n samples are all right."""
    return sum(math.comb(c, k) / math.comb(n, k) for c in correct) / len(correct)


def average_at(correct: list[int], n: int) -> float:
    """Avg@n: mean over queries of c/n."""
    return sum(c / n for c in correct) / len(correct)
