"""Plain references of shaped rewards: HRPO, HBPO, ARES, THOR, DeepTravel, WorldRFT.

Floats, lists, dicts and loops only; where a paper leaves a choice open, a comment says what was chosen.
"""

import math
from fractions import Fraction
from typing import Any

from .credit_shaped_cases import REWARD_CASES

CASES = REWARD_CASES
Episode = dict[str, Any]


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def normalised(values: list[float], eps: float = 1e-6) -> list[float]:
    """(R - mean) / (sample std + eps); zeros for equal values."""
    if all(x == values[0] for x in values):
        return [0.0 for _ in values]
    centre = mean(values)
    std = math.sqrt(math.fsum((x - centre) ** 2 for x in values) / (len(values) - 1))
    return [(x - centre) / (std + eps) for x in values]


# --- HRPO -------------------------------------------------------------------------------------------------------------


def hrpo_step_rewards(
    episode: Episode,
    t_ex: int = 3,
    mu: float = 0.1,
    nu: float = 0.1,
    kappa: float = 0.1,
    exemption: str = "steps",
    exempts: str = "everything",
    n_ex: int = 3,
    e_ex: int = 0,
    update: int = 0,
    part: str = "total",
) -> list[float]:
    """Action rewards of one construction (reconstruction of MasHost's HRPO, arXiv 2506.08507).

    Episode: `kind` (add, delete, exit), `duplicate`, `isolated`, `just_added` (lists), `correct` (scalar).
    ADD -mu; duplicate ADD, isolated ADD, DELETE of an agent just added -nu each; EXIT correct +kappa, EXIT empty -1.
    """
    # Exemption "steps": t <= t_ex pays 0 (exempts="everything"), or only -mu is waived (exempts="additions"); "agents":
    # the first n_ex additions pay no mu; "training": no mu in the first e_ex updates (from 0). Penalties add up.
    # part: "edge" is the isolation penalty, "node" the rest (ours: the split of the rewards is not published).
    rewards, size, additions = [], 0, 0
    for t in range(1, len(episode["kind"]) + 1):
        kind = episode["kind"][t - 1]
        node, edge = 0.0, 0.0
        if kind == "add":
            additions += 1
            free = {"steps": t <= t_ex, "agents": additions <= n_ex, "training": update < e_ex}[exemption]
            node -= 0.0 if free else mu
            node -= nu if episode["duplicate"][t - 1] else 0.0
            edge -= nu if episode["isolated"][t - 1] else 0.0
            size += 1
        elif kind == "delete":
            node -= nu if episode["just_added"][t - 1] else 0.0
            size -= 1
        elif size == 0:
            node -= 1.0
        elif episode["correct"]:
            node += kappa
        if exemption == "steps" and exempts == "everything" and t <= t_ex:
            node, edge = 0.0, 0.0
        rewards.append({"node": node, "edge": edge, "total": node + edge}[part])
    return rewards


# --- HBPO -------------------------------------------------------------------------------------------------------------


def hbpo_ceiling(b: float, beta: float = 4.0, l_max: int = 4096, pi: float = math.pi) -> float:
    """f2(b) = beta cos(pi b / (2 L_max)) (arXiv 2507.15844)."""
    return beta * math.cos(pi * b / (2 * l_max))


def hbpo_reward(
    n: int,
    b: int | None,
    correct: bool,
    form: str = "paper",
    well_formed: bool = True,
    beta: float = 4.0,
    alpha: float = 1 / 4096,
    l_max: int = 4096,
    pi: float = math.pi,
) -> float:
    """f1 = beta cos(pi n / (2 L_max)) - alpha |n - b| beyond the budget, f2(b) within it, 0 if wrong or too long.

    form="code": min(f1, f2); a malformed answer -1; without a budget round(beta cos(pi n / (2 L_max)), 2).
    """
    # The released code writes pi as 3.1416: pass pi=3.1416. Which length enters the rounded form is our reading (with
    # b = L_max inside the cosine it would be 0 always). arXiv 2507.15844.
    if form == "code" and not well_formed:
        return -1.0
    if not correct or n > l_max:
        return 0.0
    cosine = beta * math.cos(pi * n / (2 * l_max))
    if b is None:
        return round(cosine, 2)
    beyond = cosine - alpha * abs(n - b)
    if form == "code":
        return min(beyond, hbpo_ceiling(b, beta, l_max, pi))
    return beyond if n > b else hbpo_ceiling(b, beta, l_max, pi)


# --- ARES -------------------------------------------------------------------------------------------------------------

FACTOR = {"easy": 0.15, "medium": 0.25, "hard": 0.35}
KAPPA = {"easy": 2.0, "medium": 3.0, "hard": 4.0}
TAU = {"easy": 2.0, "medium": 2.5, "hard": 3.0}
CAP = {"easy": 1.0, "medium": 1.0, "hard": 1.2}


def tail_entropy(probs: list[float], tail: bool = True) -> float:
    """-sum p ln p - q ln max(q, 1e-12), q = max(0, 1 - sum p); tail=False drops the second term (arXiv 2510.08457)."""
    q = max(0.0, 1.0 - math.fsum(probs))
    kept = -math.fsum(p * math.log(p) for p in probs if p > 0)
    return kept - q * math.log(max(q, 1e-12)) if tail else kept


def ares_windows(entropies: list[float], w: int = 4) -> list[float]:
    """W_i = mean(H[i+1..i+w]); near the end the mean of the earlier full windows (arXiv 2510.08457)."""
    # A rollout without one full window has none at all (empty list): our choice.
    full = [mean(entropies[i + 1 : i + 1 + w]) for i in range(len(entropies) - w)]
    return full + [mean(full) for _ in range(len(entropies) - len(full))] if full else []


def percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between the sorted values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def ares_threshold(
    rollouts: list[list[float]], previous: float | None = None, w: int = 4, percent: float = 95.0, decay: float = 0.99
) -> float | None:
    """Median over rollouts of the 95th percentile of their windows; theta <- 0.99 theta + 0.01 statistic."""
    marks = [percentile(windows, percent) for windows in (ares_windows(row, w) for row in rollouts) if windows]
    if not marks:
        return previous
    statistic = percentile(marks, 50.0)
    return statistic if previous is None else decay * previous + (1 - decay) * statistic


def ares_triggers(
    tokens: list[str], entropies: list[float], threshold: float, words: list[str], w: int = 4
) -> dict[str, float]:
    """Trigger words with w tokens after them: W_i >= theta counts, W_i < theta is invalid; cost sum of W_i - theta."""
    count, invalid, cost = 0, 0, 0.0
    for i in range(len(tokens) - w):
        if tokens[i].lstrip("Ġ▁ ").lower() in words:
            window = mean(entropies[i + 1 : i + 1 + w])
            count += window >= threshold
            invalid += window < threshold
            cost += max(0.0, window - threshold)
    return {"count": count, "invalid": invalid, "soft_cost": cost}


def ares_bucket(correct: list[int]) -> str:
    """Accuracy of the group: >= 2/3 easy, >= 1/3 medium, else hard (arXiv 2510.08457)."""
    rate = Fraction(sum(correct), len(correct))
    return "easy" if rate >= Fraction(2, 3) else "medium" if rate >= Fraction(1, 3) else "hard"


def ares_targets(counts: list[list[int]], buckets: list[str]) -> dict[str, int]:
    """N*_d = round(mean over the prompts of bucket d of the prompt's mean count); halves to even (Python's round)."""
    result = {}
    for name in ("easy", "medium", "hard"):
        means = [mean(row) for row, bucket in zip(counts, buckets, strict=True) if bucket == name]
        if means:
            result[name] = round(mean(means))
    return result


def ares_alpha(alpha: float, mean_count: float, target: float, bucket: str, rate: float = 0.05) -> float:
    """clip(alpha + 0.05 (mean N - N*), 0, 2); the sign is reversed for hard (arXiv 2510.08457)."""
    step = rate * (mean_count - target)
    return min(2.0, max(0.0, alpha - step if bucket == "hard" else alpha + step))


def ares_entropy_reward(count: float, target: float, correct: int, bucket: str, alpha: float = 0.5) -> float:
    """The entropy term E of one rollout: a capped tax when right, a bonus when wrong (AEPO, arXiv 2510.08457)."""
    kappa, tau, cap = KAPPA[bucket], TAU[bucket], alpha * CAP[bucket]
    margin = max(1.0, FACTOR[bucket] * max(target, 1))
    d = count - target

    def huber(x: float) -> float:
        return 0.0 if x < 0 else x * x / (2 * kappa) if x <= kappa else x - kappa / 2

    def squash(x: float) -> float:
        return 1 / (1 + math.exp(-x / tau))

    if not correct:
        return {"easy": 0.6, "medium": 0.8, "hard": 1.0}[bucket] * cap * squash(max(d - margin, 0.0))
    if bucket == "easy":
        return -min(cap, cap * huber(max(d - margin, 0.0)) / (margin + kappa))
    if bucket == "medium":
        return -min(cap, cap * huber(max(abs(d) - margin, 0.0)) / (margin + kappa))
    if d >= -margin:
        return cap * squash(d + margin)
    return -min(cap, 0.5 * cap * huber(-d - margin) / (margin + kappa))


def ares(
    correct: list[list[int]],
    counts: list[list[int]],
    alpha: dict[str, float] | None = None,
    targets: dict[str, int] | None = None,
    bounds: tuple[float, float] = (0.01, 0.99),
    eps: float = 1e-6,
) -> dict[str, Any]:
    """Rewards 0/1 + E of a batch, the groups kept (bounds on the mean reward), GRPO advantages (0 where dropped)."""
    # alpha is used as given (0.5 each by default); the paper updates it with ares_alpha just before.
    buckets = [ares_bucket(row) for row in correct]
    targets = ares_targets(counts, buckets) if targets is None else targets
    rewards, kept, advantages = [], [], []
    for right, number, bucket in zip(correct, counts, buckets, strict=True):
        strength = 0.5 if alpha is None else alpha[bucket]
        row = [
            float(c) + ares_entropy_reward(n, targets[bucket], c, bucket, strength)
            for c, n in zip(right, number, strict=True)
        ]
        keep = bounds[0] < mean(row) < bounds[1]
        rewards.append(row)
        kept.append(keep)
        advantages.append(normalised(row, eps) if keep else [0.0 for _ in row])
    return {"bucket": buckets, "reward": rewards, "keep": kept, "advantage": advantages}


# --- THOR -------------------------------------------------------------------------------------------------------------


def thor_execution_pass(blocks: list[int], mode: str = "all") -> float:
    """Mean of the block passes, cast to an integer as released ("all"), or kept ("mean"); 1 without code."""
    rate = sum(blocks) / len(blocks) if blocks else 1.0
    return float(int(rate)) if mode == "all" else rate


def thor_restarts(passes: list[list[int]], mode: str = "all") -> list[int]:
    """Rollouts with execution pass 0, from which step prefixes are cut (arXiv 2509.13761)."""
    return [i for i, blocks in enumerate(passes) if thor_execution_pass(blocks, mode) == 0]


def thor_prefix_length(kinds: list[str], cut: int = 100) -> int:
    """Start of the last code block before the last output block, minus `cut` tokens; kinds: text, code, output."""
    # The cut may land inside an earlier output block (kinds[result - 1] == "output"): callers must guard against it.
    end = max(i for i, kind in enumerate(kinds) if kind == "output")
    while end > 0 and kinds[end - 1] != "code":
        end -= 1
    while end > 0 and kinds[end - 1] == "code":
        end -= 1
    return max(0, end - cut)


def thor_mask(kinds: list[str], prefix: int = 0) -> list[int]:
    """Loss mask: 0 on the forced prefix of a step sample and on tool output, 1 on the rest (arXiv 2509.13761)."""
    return [int(i >= prefix and kind != "output") for i, kind in enumerate(kinds)]


def thor_trim(output: str, limit: int = 256, keep: int = 128) -> str:
    """Tool output of 256 or more characters becomes its first 128, "..." and its last 128 (arXiv 2509.13761)."""
    return output if len(output) < limit else output[:keep] + "..." + output[-keep:]


# --- DeepTravel -------------------------------------------------------------------------------------------------------


def deeptravel_reward(
    trajectory_ok: int | None, turn_ok: list[int | None], combine: str = "product", format_ok: bool = True
) -> float | None:
    """R = v_traj prod_t v_turn (reconstructed, arXiv 2509.21842); combine="mean": v_traj mean_t v_turn; None: unknown.

    A malformed output gets 0. Turn verdicts are read only behind v_traj = 1; no turns count as passed.
    """
    if not format_ok:
        return 0.0
    if trajectory_ok is None:
        return None
    if trajectory_ok == 0:
        return 0.0
    known = [v for v in turn_ok if v is not None]
    if len(known) < len(turn_ok):
        return None  # A failed judge makes the member unknown, even if another turn failed.
    if combine == "mean":
        return mean(known) if known else 1.0
    return float(math.prod(known))


def deeptravel_judge_calls(trajectory_ok: int, turn_ok: list[int], early_exit: bool = False) -> int:
    """Turn-judge calls: none behind a failed trajectory verdict; early_exit stops at the first failed turn."""
    if not trajectory_ok:
        return 0
    return turn_ok.index(0) + 1 if early_exit and 0 in turn_ok else len(turn_ok)


def deeptravel(groups: list[list[Episode]], combine: str = "product", eps: float = 1e-6) -> list[list[list[float]]]:
    """GRPO (sample std) over the known members' rewards, broadcast to turns; unknown members get 0."""
    result = []
    for group in groups:
        rewards = [deeptravel_reward(e["trajectory_ok"], e["turn_ok"], combine) for e in group]
        known = [r for r in rewards if r is not None]
        values = iter(normalised(known, eps) if known else [])
        advantages = [0.0 if r is None else next(values) for r in rewards]
        result.append([[a for _ in e["turn_ok"]] for a, e in zip(advantages, group, strict=True)])
    return result


def deeptravel_buffer(
    buffer: list[tuple[str, int]], outcomes: list[tuple[str, list[float]]], threshold: float = 0.0
) -> list[tuple[str, int]]:
    """(query, replays) in order of insertion: success rate <= threshold enters (or stays), a higher one leaves."""
    # Reconstructed. A query that is already there keeps its place and its replay count.
    result = list(buffer)
    for query, successes in outcomes:
        inside = [name for name, _ in result]
        if mean(successes) > threshold:
            result = [entry for entry in result if entry[0] != query]
        elif query not in inside:
            result.append((query, 0))
    return result


def deeptravel_batch(
    buffer: list[tuple[str, int]], batch: list[str], iteration: int, period: int = 5, share: float = 0.5, cap: int = 4
) -> dict[str, Any]:
    """Every `period` iterations (from 1) the oldest queries below the cap replace the last floor(share n) slots."""
    if iteration % period != 0:
        return {"batch": list(batch), "buffer": list(buffer)}
    drawn = [query for query, replays in buffer if replays < cap][: math.floor(share * len(batch))]
    after = [(query, replays + (query in drawn)) for query, replays in buffer]
    return {"batch": batch[: len(batch) - len(drawn)] + drawn, "buffer": after}


# --- WorldRFT ---------------------------------------------------------------------------------------------------------


def worldrft_collision(overlaps: list[bool], mark: str = "each") -> list[float]:
    """-1 where the ego box overlaps another ("each", the paper), at the "first" overlap, or from it on ("following").

    arXiv 2512.19133.
    """
    if mark == "each" or True not in overlaps:
        return [-1.0 if hit else 0.0 for hit in overlaps]
    first = overlaps.index(True)
    return [-1.0 if (j == first if mark == "first" else j >= first) else 0.0 for j in range(len(overlaps))]


def worldrft_reference_nll(mu: list[float], sigma: list[float], reference: list[float]) -> float:
    """0.5 [log |Sigma| + (mu_ref - mu)^T Sigma^-1 (mu_ref - mu) + d log 2 pi], diagonal Sigma (arXiv 2512.19133)."""
    total = len(mu) * math.log(2 * math.pi)
    for m, s, r in zip(mu, sigma, reference, strict=True):
        total += 2 * math.log(s) + ((r - m) / s) ** 2
    return total / 2


def laplace_nll(y: list[float], mu: list[float], b: list[float]) -> float:
    """sum over coordinates of log(2 b) + |y - mu| / b (arXiv 2512.19133)."""
    return sum(math.log(2 * s) + abs(v - m) / s for v, m, s in zip(y, mu, b, strict=True))


def pdm_score(nc: float, dac: float, ep: float, ttc: float, comfort: float) -> float:
    """NC DAC (5 EP + 5 TTC + 2 Comf) / 12 (arXiv 2512.19133)."""
    return nc * dac * (5 * ep + 5 * ttc + 2 * comfort) / 12
