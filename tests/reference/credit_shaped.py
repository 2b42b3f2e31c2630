"""Plain references of shaped advantages: HRPO, HBPO, HICRA, D3S, THOR, DE-GRPO, WorldRFT (floats, lists and loops).

`rewards[group][completion]`; token quantities `[group][completion][token]`; forests `groups[group][episode]` of dicts
with one list a turn or point. Equal rewards in a group always give exactly 0 (also where eps is 0).
The reward rules of the same papers are in `credit_shaped_rewards.py`, the numbers in `credit_shaped_cases.py`.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from .credit_shaped_cases import ADVANTAGE_CASES
from .credit_shaped_rewards import thor_execution_pass

Groups = list[list[float]]
Tokens = list[list[list[float]]]
Flags = list[list[list[bool]]]
Forest = list[list[dict[str, Any]]]

CASES = ADVANTAGE_CASES

# --- group statistics -------------------------------------------------------------------------------------------------


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def spread(values: list[float], ddof: int) -> float:
    """sqrt(sum (x - mean)^2 / (n - ddof)); 0 where n <= ddof."""
    if len(values) <= ddof:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in values) / (len(values) - ddof))


def grpo_group(values: list[float], ddof: int = 1, eps: float = 1e-6, single: str = "zero") -> list[float]:
    """(R - mean) / (std + eps). single="raw": a group of one has mean 0 and std 1 (verl), so R / (1 + eps)."""
    if len(values) == 1 and single == "raw":
        return [values[0] / (1.0 + eps)]
    if all(x == values[0] for x in values):
        return [0.0 for _ in values]
    centre, scale = mean(values), spread(values, ddof) + eps
    return [(x - centre) / scale for x in values]


def grpo(rewards: Groups, ddof: int = 1, eps: float = 1e-6, single: str = "zero") -> Groups:
    """The group-relative advantage of every group (arXiv 2402.03300)."""
    return [grpo_group(group, ddof, eps, single) for group in rewards]


def ceil_share(share: float, count: int) -> int:
    """ceil(share * count), safe against 0.2 * 35 = 7.000000000000001."""
    return math.ceil(round(share * count, 9))


def clipped(ratio: float, advantage: float, eps: float) -> float:
    """min(rho A, clip(rho, 1 - eps, 1 + eps) A)."""
    return min(ratio * advantage, max(1 - eps, min(1 + eps, ratio)) * advantage)


# --- HRPO -------------------------------------------------------------------------------------------------------------


def hrpo(
    groups: Forest,
    beta: float = 1.0,
    gamma: float = 1.0,
    combine: str = "sum",
    suffix: bool = True,
    ddof: int = 0,
    eps: float = 0.0,
    degenerate_beta: float | None = None,
) -> Any:
    """A_it = A^grp_i + beta sum_{k>=t} gamma^(k-t) r_ik (reconstruction of MasHost's HRPO, arXiv 2506.08507).

    Episode: `outcome` (scalar) and `reward` (list); with combine="split" the lists `node_reward` and `edge_reward`, and
    the result is {"node": ..., "edge": ...}. "gate" pays action rewards only where A^grp >= 0. suffix=False: own r_it.
    """
    # The published combination is unknown; beta of a group with equal outcomes may be replaced (0 skips its rewards).
    keys = {"node": "node_reward", "edge": "edge_reward"} if combine == "split" else {"all": "reward"}
    result: dict[str, Tokens] = {}
    for name, key in keys.items():
        result[name] = []
        for group in groups:
            outcomes = [episode["outcome"] for episode in group]
            base = grpo_group(outcomes, ddof, eps)
            weight = beta
            if degenerate_beta is not None and all(x == outcomes[0] for x in outcomes):
                weight = degenerate_beta
            rows = []
            for i, episode in enumerate(group):
                steps = episode[key]
                row = []
                for t in range(len(steps)):
                    bonus = 0.0
                    for k in range(t, len(steps) if suffix else t + 1):
                        bonus += gamma ** (k - t) * steps[k]
                    if combine == "gate" and base[i] < 0:
                        bonus = 0.0
                    row.append(base[i] + weight * bonus)
                rows.append(row)
            result[name].append(rows)
    return result if combine == "split" else result["all"]


def hrpo_joint_log_prob(role: float, edge_probabilities: list[float], edges: list[int]) -> float:
    """log pi(a_n) + sum_j log Bernoulli(a_e,j) (arXiv 2506.08507); the first agent has no edges."""
    total = math.log(role)
    for p, taken in zip(edge_probabilities, edges, strict=True):
        total += math.log(p if taken else 1 - p)
    return total


def hrpo_surrogate(
    node_ratio: float, edge_ratio: float, node_advantage: float, edge_advantage: float, eps: float, combine: str = "sum"
) -> float:
    """Clip the product of the ratios (its advantage is `node_advantage`); "split": clip and add both terms."""
    if combine == "split":
        return clipped(node_ratio, node_advantage, eps) + clipped(edge_ratio, edge_advantage, eps)
    return clipped(node_ratio * edge_ratio, node_advantage, eps)


# --- HBPO -------------------------------------------------------------------------------------------------------------


def hbpo_inter(rewards: Groups, ddof: int = 1, eps: float = 1e-6) -> Groups:
    """(R_ij - mean_all) / (std_all + eps) over the whole group (arXiv 2507.15844)."""
    return grpo(rewards, ddof, eps)


def hbpo_intra(rewards: Groups, budgets: Groups, beta: float = 4.0, l_max: int = 4096, pi: float = math.pi) -> Groups:
    """mean of the subgroup of equal budget minus its ceiling beta cos(pi b / (2 L_max)) (arXiv 2507.15844)."""
    result = []
    for group, group_budgets in zip(rewards, budgets, strict=True):
        row = []
        for b in group_budgets:
            members = [r for r, other in zip(group, group_budgets, strict=True) if other == b]
            row.append(mean(members) - beta * math.cos(pi * b / (2 * l_max)))
        result.append(row)
    return result


def hbpo(
    rewards: Groups,
    budgets: Groups,
    intra_coef: float = 1.0,
    beta: float = 4.0,
    l_max: int = 4096,
    ddof: int = 1,
    eps: float = 1e-6,
    pi: float = math.pi,
) -> Groups:
    """A = intra_coef A_intra + A_inter; intra_coef 1 is the paper, 2 the released code (arXiv 2507.15844)."""
    inter, intra = hbpo_inter(rewards, ddof, eps), hbpo_intra(rewards, budgets, beta, l_max, pi)
    return [[intra_coef * a + e for a, e in zip(*rows, strict=True)] for rows in zip(intra, inter, strict=True)]


# --- HICRA ------------------------------------------------------------------------------------------------------------


def hicra(advantages: Groups, planning: Flags, alpha: float = 0.2) -> Tokens:
    """A_t + alpha |A_t| on planning tokens, A_t elsewhere (paper form, arXiv 2509.03646)."""
    result = []
    for group, masks in zip(advantages, planning, strict=True):
        rows = []
        for a, mask in zip(group, masks, strict=True):
            rows.append([a + alpha * abs(a) if planned else a for planned in mask])
        result.append(rows)
    return result


def hicra_entropy_mask(entropies: list[float], top: float = 0.3) -> list[bool]:
    """Strictly above the ascending entropy at index floor((1 - top) n) (training code of arXiv 2509.03646)."""
    if not entropies:
        return []
    ordered = sorted(entropies)
    threshold = ordered[min(len(ordered) - 1, math.floor(round((1 - top) * len(ordered), 9)))]
    return [h > threshold for h in entropies]


def hicra_code(
    advantages: Groups, entropies: Tokens, planning: Flags | None = None, alpha: float = 0.2, top: float = 0.3
) -> Tokens:
    """Rows with A > 0 and a length above the group's mean: their high-entropy tokens times 1 + alpha.

    With planning masks: those tokens and every planning token (any row) times 1 + alpha sign(A). arXiv 2509.03646.
    """
    result = []
    for g, group in enumerate(advantages):
        average = mean([len(row) for row in entropies[g]])
        rows = []
        for i, a in enumerate(group):
            high = hicra_entropy_mask(entropies[g][i], top)
            amplified = a > 0 and len(entropies[g][i]) > average
            row = []
            for t in range(len(entropies[g][i])):
                chosen = (amplified and high[t]) or (planning is not None and planning[g][i][t])
                sign = (a > 0) - (a < 0)
                row.append(a * (1 + alpha * sign) if chosen else a)
            rows.append(row)
        result.append(rows)
    return result


def mine_grams(
    solutions: list[list[str]],
    cluster: Callable[[tuple[str, ...]], Any] | None = None,
    sizes: tuple[int, ...] = (3, 4, 5),
    top: float = 0.2,
    max_repetition: float | None = None,
) -> list[list[str]]:
    """Word n-grams of the clusters in the top share by the number of distinct solutions they occur in.

    cluster maps a gram to its cluster (default: itself). arXiv 2509.03646. Returns the sorted union of the grams.
    """
    # Ambiguous: how many are the top 20% (here ceil; ties by cluster name), what is low repetition inside a solution
    # (here: occurrences per containing solution <= max_repetition, tested after the cut; None: no test).
    documents: dict[Any, set[int]] = {}
    occurrences: dict[Any, int] = {}
    members: dict[Any, set[tuple[str, ...]]] = {}
    for index, words in enumerate(solutions):
        for n in sizes:
            for start in range(len(words) - n + 1):
                gram = tuple(words[start : start + n])
                name = cluster(gram) if cluster is not None else gram
                documents.setdefault(name, set()).add(index)
                occurrences[name] = occurrences.get(name, 0) + 1
                members.setdefault(name, set()).add(gram)
    ranked = sorted(documents, key=lambda name: (-len(documents[name]), name))
    union: set[tuple[str, ...]] = set()
    for name in ranked[: ceil_share(top, len(ranked))]:
        if max_repetition is None or occurrences[name] / len(documents[name]) <= max_repetition:
            union |= members[name]
    return [list(gram) for gram in sorted(union)]


def match_grams(tokens: list[Any], grams: list[list[Any]]) -> list[bool]:
    """A token is planning if it lies in any occurrence of any gram; overlaps are or-ed (arXiv 2509.03646)."""
    mask = [False for _ in tokens]
    for gram in grams:
        for start in range(len(tokens) - len(gram) + 1):
            if gram and tokens[start : start + len(gram)] == gram:
                for k in range(len(gram)):
                    mask[start + k] = True
    return mask


def match_words(tokens: list[str], grams: list[list[str]]) -> list[bool]:
    """Match on lower-cased words of the joined text; a token is planning if its characters meet a match's span."""
    # Ours (arXiv 2509.03646 leaves it open): words are letters, digits, _ and '; the span runs from the first letter of
    # the first word to the last of the last one.
    text = "".join(tokens)
    words = [(m.group().lower(), m.start(), m.end()) for m in re.finditer(r"[\w']+", text)]
    spans = []
    for gram in grams:
        for start in range(len(words) - len(gram) + 1):
            if gram and [w[0] for w in words[start : start + len(gram)]] == [w.lower() for w in gram]:
                spans.append((words[start][1], words[start + len(gram) - 1][2]))
    mask, at = [], 0
    for token in tokens:
        begin, at = at, at + len(token)
        mask.append(any(begin < end and at > first for first, end in spans))
    return mask


def semantic_entropy(counts: list[float]) -> float:
    """-sum p ln p of the frequencies of the grams (or clusters); 0 without occurrences (arXiv 2509.03646)."""
    total = sum(counts)
    return -math.fsum(c / total * math.log(c / total) for c in counts if c > 0) + 0.0 if total > 0 else 0.0


# --- D3S --------------------------------------------------------------------------------------------------------------


def select_extremes(values: list[float], keep: int) -> list[int]:
    """The subset of `keep` values with the largest population variance: the best split into largest and smallest."""
    # Ties: equal values by lowest index; equal variances by the fewest taken from the top. Variance 0: nothing kept.
    falling = sorted(range(len(values)), key=lambda i: (-values[i], i))
    rising = sorted(range(len(values)), key=lambda i: (values[i], i))
    best, chosen = 1e-12, []
    for top in range(keep + 1):
        picks = falling[:top] + [i for i in rising if i not in falling[:top]][: keep - top]
        variance = spread([values[i] for i in picks], 0) ** 2 if picks else 0.0
        if variance > best + 1e-12:
            best, chosen = variance, picks
    return sorted(chosen)


def d3s_samples(advantages: Groups, n_s: int, scope: str = "batch", n: int | None = None) -> list[list[bool]]:
    """Keep the completions of maximal advantage variance: N = n_s x queries of the batch, or n_s in each group.

    arXiv 2509.22115; advantages come from all completions and are not normalised again. `n` sets the batch's N itself.
    """
    if scope == "group":
        chosen = [select_extremes(group, min(n_s, len(group))) for group in advantages]
        return [[i in chosen[g] for i in range(len(group))] for g, group in enumerate(advantages)]
    places = [(g, i) for g, group in enumerate(advantages) for i in range(len(group))]
    flat = [advantages[g][i] for g, i in places]
    kept = {places[k] for k in select_extremes(flat, min(n_s * len(advantages) if n is None else n, len(flat)))}
    return [[(g, i) in kept for i in range(len(group))] for g, group in enumerate(advantages)]


def d3s_tokens(advantages: Groups, entropies: Tokens, k: float, scope: str = "batch") -> Flags:
    """Keep the top ceil(k n) tokens by |A_i| H_it, of the whole batch or of each answer (arXiv 2509.22115)."""
    mask = [[[False for _ in row] for row in group] for group in entropies]
    pools: dict[Any, list[tuple[float, int, int, int]]] = {}
    for g, group in enumerate(entropies):
        for i, row in enumerate(group):
            for t, h in enumerate(row):
                pool = pools.setdefault("batch" if scope == "batch" else (g, i), [])
                pool.append((-abs(advantages[g][i]) * h, g, i, t))
    for pool in pools.values():
        for _, g, i, t in sorted(pool)[: ceil_share(k, len(pool))]:
            mask[g][i][t] = True
    return mask


def d3s_schedule(p: float, init: list[float], final: list[float]) -> list[float]:
    """[N_s, K](p) = (1 - p) init + p final (arXiv 2509.22115)."""
    return [(1 - p) * a + p * b for a, b in zip(init, final, strict=True)]


def d3s(
    rewards: Groups,
    entropies: Tokens,
    n_s: int,
    k: float,
    scope: str = "batch",
    token_scope: str = "batch",
    ddof: int = 0,
    eps: float = 0.0,
) -> dict[str, Any]:
    """Group advantages of all, then samples, then tokens of the kept samples; 0 on the rest (arXiv 2509.22115)."""
    advantages = grpo(rewards, ddof, eps)
    samples = d3s_samples(advantages, n_s, scope)
    kept = [[row if samples[g][i] else [] for i, row in enumerate(group)] for g, group in enumerate(entropies)]
    chosen = d3s_tokens(advantages, kept, k, token_scope)
    result: list[list[list[float]]] = []
    count = 0
    for g, group in enumerate(entropies):
        result.append([])
        for i, row in enumerate(group):
            result[g].append([advantages[g][i] if samples[g][i] and chosen[g][i][t] else 0.0 for t in range(len(row))])
            count += sum(chosen[g][i])
    return {"advantage": result, "samples": samples, "normaliser": count}


# --- THOR -------------------------------------------------------------------------------------------------------------


def thor_keep(
    groups: Forest, mode: str = "all", min_pass: float = 1.0, min_length: int = 150, share: float = 0.5
) -> list[list[bool]]:
    """Trajectories: all code passed, more than 150 tokens, boxed at the end; fewer than half left drops the group."""
    result = []
    for group in groups:
        row = []
        for episode in group:
            passed = thor_execution_pass(episode["passes"], mode) >= min_pass
            row.append(bool(passed and episode["length"] > min_length and episode["boxed"]))
        result.append([False for _ in row] if sum(row) < share * len(row) else row)
    return result


def thor_group_advantages(
    rewards: Groups, keep: list[list[bool]], drop_constant: bool = True, eps: float = 1e-6
) -> dict[str, Any]:
    """GRPO (sample std) over the kept members of each group; 0 on the others (arXiv 2509.13761).

    drop_constant removes groups without reward spread; without it a group of one gives A = R / (1 + eps), as verl does.
    """
    advantage, kept = [], []
    for group, flags in zip(rewards, keep, strict=True):
        members = [r for r, flag in zip(group, flags, strict=True) if flag]
        if drop_constant and all(r == members[0] for r in members):
            flags, members = [False for _ in group], []
        values = iter(grpo_group(members, 1, eps, "raw") if members else [])
        advantage.append([next(values) if flag else 0.0 for flag in flags])
        kept.append(list(flags))
    return {"advantage": advantage, "keep": kept}


def thor(trajectories: Forest, steps: Forest, mode: str = "all", drop_constant: bool = True) -> dict[str, Any]:
    """Trajectory groups (filtered by thor_keep) and step groups (kept where `fence`) are normalised separately."""
    rewards = [[episode["reward"] for episode in group] for group in trajectories]
    passes = [[episode["reward"] for episode in group] for group in steps]
    fences = [[bool(episode["fence"]) for episode in group] for group in steps]
    return {
        "trajectory": thor_group_advantages(rewards, thor_keep(trajectories, mode), drop_constant),
        "step": thor_group_advantages(passes, fences, drop_constant),
    }


def thor_positive_nll(
    log_probs: list[float], advantages: list[float], mask: list[int], alpha: float = 0.01
) -> dict[str, float]:
    """L_pos = -sum log p / count over masked tokens with A > 0 (0 without any); the loss adds alpha L_pos."""
    chosen = [lp for lp, a, m in zip(log_probs, advantages, mask, strict=True) if a > 0 and m]
    value = -sum(chosen) / len(chosen) if chosen else 0.0
    return {"l_pos": value, "contribution": alpha * value}


# --- DE-GRPO (FaVChat) ------------------------------------------------------------------------------------------------


def pair_gaps(values: list[float]) -> list[float]:
    """|x_i - x_j| of all n (n - 1) / 2 pairs."""
    return [abs(values[i] - values[j]) for i in range(len(values)) for j in range(i + 1, len(values))]


def geometric_gap(values: list[float], ties: str = "literal", eps: float = 1e-6) -> float:
    """exp(mean ln(|x_i - x_j| + eps)); ties="skip": over pairs that differ (0 if none does). 0 without pairs."""
    gaps = [gap for gap in pair_gaps(values) if ties == "literal" or gap > 0]
    return math.exp(mean([math.log(gap + eps) for gap in gaps])) if gaps else 0.0


def degrpo(
    rewards: Groups,
    log_probs: Groups,
    smoothed: list[float | None],
    baselines: list[float],
    first_visit: str = "literal",
    ties: str = "literal",
    clamp: bool = False,
    remove: float = 0.20,
    keep: float = 0.80,
    smoothing: float = 0.80,
    decay: float = 0.50,
) -> dict[str, Any]:
    """A_i tanh(d (M - b)) with the lifecycle d of s = 0.8 s + 0.2 gap(R) gap(l) (FaVChat, arXiv 2503.09158).

    smoothed None: never visited. first_visit: "literal" s starts at 0; "utility" s = u; "discover" d = 1, s literal.
    clamp: no negative gate. Result lists have one entry a prompt; advantage has one a completion.
    """
    out: dict[str, Any] = {key: [] for key in ("advantage", "utility", "smoothed", "lifecycle", "margin", "gate")}
    for g, group in enumerate(rewards):
        gaps = pair_gaps(group)
        margin = mean(gaps) if gaps else 0.0
        utility = geometric_gap(group, ties) * geometric_gap(log_probs[g], ties)
        before = smoothed[g]
        if before is None and first_visit == "utility":
            now = utility
        else:
            now = smoothing * (before if before is not None else 0.0) + (1 - smoothing) * utility
        life = 0.0 if now < remove else decay if now > keep else 1.0
        if before is None and first_visit == "discover":
            life = 1.0
        gate = math.tanh(life * (margin - baselines[g]))
        gate = max(0.0, gate) if clamp else gate
        out["advantage"].append([a * gate for a in grpo_group(group, 1, 1e-4)])
        for key, value in zip(("utility", "smoothed", "lifecycle", "margin", "gate"),
                              (utility, now, life, margin, gate), strict=True):  # fmt: skip
            out[key].append(value)
    return out


# --- WorldRFT ---------------------------------------------------------------------------------------------------------


def worldrft(groups: Forest, ddof: int = 0, eps: float = 0.0) -> Tokens:
    """Normalise `reward` over the group at every point, then sum from the point to the end (arXiv 2512.19133)."""
    # The paper does not say which std; population by default. A point without spread gives 0.
    result = []
    for group in groups:
        points = len(group[0]["reward"])
        columns = [grpo_group([episode["reward"][j] for episode in group], ddof, eps) for j in range(points)]
        result.append(
            [[sum(columns[t][i] for t in range(j, points)) for j in range(points)] for i in range(len(group))]
        )
    return result


def worldrft_objective(ratios: Groups, advantages: Groups, eps: float = 0.2) -> float:
    """(1/G) sum_i sum_j min(rho A, clip(rho) A) of one group (arXiv 2512.19133); lists [trajectory][point]."""
    total = 0.0
    for ratio_row, row in zip(ratios, advantages, strict=True):
        total += sum(clipped(rho, a, eps) for rho, a in zip(ratio_row, row, strict=True))
    return total / len(advantages)
