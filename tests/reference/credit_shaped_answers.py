"""Plain references of text rewards: Shop-R1 (self-certainty, ROUGE-L, actions) and HierSearch (F1, tools, refiner)."""

import json
import math
import string
from collections import Counter
from typing import Any

from .credit_shaped_cases import Cases, case

# --- Shop-R1 ----------------------------------------------------------------------------------------------------------


def self_certainty(rows: list[list[float]], normaliser: str = "printed") -> float:
    """(1 / (N |V|)) sum_j sum_i p_ij ln(p_ij / U_i), U = 1/|V| (arXiv 2507.17842); "mean": without the 1/|V|."""
    if not rows:
        return 0.0
    size = len(rows[0])
    total = 0.0
    for row in rows:
        for p in row:
            if p > 0:
                total += p * math.log(p * size)
    return total / (len(rows) * size) if normaliser == "printed" else total / len(rows)


def longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by its recursive definition."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def rouge_l(prediction: str, target: str) -> float:
    """ROUGE-L F1 on lower-cased words split at white space (the paper does not say how words are cut)."""
    a, b = prediction.lower().split(), target.lower().split()
    common = longest_common(a, b)
    return 2 * (common / len(a)) * (common / len(b)) / (common / len(a) + common / len(b)) if common else 0.0


def shop_r1_action(
    action: dict[str, str],
    target: dict[str, str],
    dars: float = 1000.0,
    threshold: float = 0.75,
    attribute: str = "present",
) -> float:
    """Type 0.3, attribute bonuses, thresholded ROUGE-L with difficulty-aware scaling; wrong type 0 (arXiv 2507.17842).

    attribute: the bonus wants the field "present" (not empty) or "correct" (equal to the target's).
    """

    def bonus(field: str) -> float:
        value = action.get(field, "")
        return float(value == target[field] if attribute == "correct" else bool(value))

    def text(field: str) -> float:
        score = rouge_l(action.get(field, ""), target[field])
        return score if score > threshold else 0.0

    if action.get("type") != target["type"]:
        return 0.0
    if target["type"] == "click":
        return 0.3 + 0.2 * bonus("name") + dars * text("name")
    if target["type"] == "type_and_submit":
        return 0.3 + 0.1 * bonus("name") + 0.1 * bonus("text") + 0.1 * text("name") + dars * text("text")
    return 0.3


def shop_r1_reward(
    output: str,
    target: dict[str, str],
    certainty: float = 0.0,
    alpha: float = 0.005,
    dars: float = 1000.0,
    threshold: float = 0.75,
    attribute: str = "present",
) -> float:
    """R = 0.5 [parses with both keys] + v(action) + alpha s(rationale); nothing at all for an unreadable output."""
    try:
        parsed = json.loads(output)
    except json.JSONDecodeError:
        return 0.0
    if not isinstance(parsed, dict) or "rationale" not in parsed or "action" not in parsed:
        return 0.0
    action = parsed["action"] if isinstance(parsed["action"], dict) else {}
    return 0.5 + shop_r1_action(action, target, dars, threshold, attribute) + alpha * certainty


# --- HierSearch -------------------------------------------------------------------------------------------------------


def answer_words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the word multisets; yes and no must match exactly (arXiv 2508.08088)."""
    a, b = answer_words(prediction), answer_words(gold)
    if a != b and (" ".join(a) in ("yes", "no") or " ".join(b) in ("yes", "no")):
        return 0.0
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if same else 0.0


def hiersearch_penalty(calls: list[str]) -> float:
    """The flat baseline's web-call penalty; calls in order, "L" local and "W" web (arXiv 2508.08088, code)."""
    if "W" in calls[:3]:
        return -1.0
    if "W" in calls[3:6]:
        return -0.05 * (4 - calls[3:6].index("W"))
    if "W" in calls[6:8]:
        return -0.015 * (3 - calls[6:8].index("W"))
    return -0.01 if "W" in calls else 0.0


def hiersearch_reward(
    f1: float,
    used: list[str],
    valid: list[str],
    format_ok: bool = True,
    cut_off: bool = False,
    penalty: float = 0.0,
    combine: str = "code",
) -> float:
    """f1 + penalty if positive, else 0.1 |used & valid| / |valid| (0.1 without valid tools); 0 if malformed or cut off.

    combine="max": max(f1 + penalty, bonus), ours, which is monotone in f1. arXiv 2508.08088.
    """
    if not format_ok or cut_off:
        return 0.0
    bonus = 0.1 * len(set(used) & set(valid)) / len(set(valid)) if valid else 0.1
    score = f1 + penalty
    if combine == "max":
        return max(score, bonus)
    return score if score > 0 else bonus


def min_max(scores: list[float]) -> list[float]:
    """(s - min) / (max - min); unchanged when all are equal or there are none."""
    if not scores or max(scores) == min(scores):
        return list(scores)
    return [(s - min(scores)) / (max(scores) - min(scores)) for s in scores]


def keep_count(n: int, ratio: float) -> int:
    """max(1, int(n ratio)); 0 of nothing."""
    return max(1, int(n * ratio)) if n else 0


def hiersearch_refine(
    calls: list[dict[str, Any]],
    conclusion: dict[str, float],
    other: dict[str, float] | None = None,
    ratio1: float = 0.3,
    ratio2: float = 0.3,
) -> dict[str, Any]:
    """Knowledge refiner: per call the results nearest the hypothesis, then of the rest those nearest the conclusion.

    calls: {"texts": [...], "scores": similarities to the turn's hypothesis or None}; conclusion, other: similarity of
    each text to the own and the other agent's conclusion (added). Ties keep their order. arXiv 2508.08088.
    """
    survivors: dict[str, float] = {}
    for call in calls:
        texts, count = call["texts"], keep_count(len(call["texts"]), ratio1)
        scores = [0.0 for _ in texts] if call["scores"] is None else min_max(call["scores"])
        for i in sorted(range(len(texts)), key=lambda i: -scores[i])[:count]:
            survivors[texts[i]] = max(scores[i], survivors.get(texts[i], -math.inf))
    rest: list[str] = []
    for call in calls:
        for text in call["texts"]:
            if text not in survivors and text not in rest:
                rest.append(text)
    rest.sort(key=lambda text: -(conclusion[text] + (other[text] if other is not None else 0.0)))
    return {"survivors": survivors, "recovered": rest[: keep_count(len(rest), ratio2)]}


# --- cases ------------------------------------------------------------------------------------------------------------

_CLICK = {"type": "click", "name": "red warm wool hat"}
_SEARCH = {"type": "type_and_submit", "name": "search box", "text": "red warm wool hat"}

CASES: Cases = {
    "self_certainty": [
        case(0.0866433976, rows=[[0.5, 0.25, 0.25, 0.0]]),
        case(0.8664339757, rows=[[0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]], normaliser="mean"),
    ],
    "longest_common": [case(3, a=["a", "b", "c", "b"], b=["b", "a", "c", "b"])],
    "rouge_l": [
        case(0.8571428571, prediction="red Wool hat", target="Red warm wool hat"),
        case(0.5, prediction="hat red", target="red hat"),
        case(0.0, prediction="", target="red hat"),
    ],
    "shop_r1_action": [
        case(86.2142857143, action={"type": "click", "name": "red wool hat"}, target=_CLICK, dars=100.0),
        case(
            86.0142857143,
            action={"type": "click", "name": "red wool hat"},
            target=_CLICK,
            dars=100.0,
            attribute="correct",
        ),
        case(0.3, action={"type": "click"}, target=_CLICK),
        case(86.3142857143, action={**_SEARCH, "text": "red wool hat"}, target=_SEARCH, dars=100.0),
        case(
            86.2142857143, action={**_SEARCH, "text": "red wool hat"}, target=_SEARCH, dars=100.0, attribute="correct"
        ),
        case(0.5, action={**_SEARCH, "name": "box", "text": "hat"}, target=_SEARCH, dars=100.0),
        case(0.58, action={**_SEARCH, "name": "search big box", "text": "hat"}, target=_SEARCH),
        case(0.0, action={"type": "terminate"}, target=_CLICK),
    ],
    "shop_r1_reward": [
        case(
            0.9,
            output='{"rationale": "r", "action": {"type": "terminate"}}',
            target={"type": "terminate"},
            certainty=20.0,
        ),
        case(0.0, output='{"action": {"type": "terminate"}}', target={"type": "terminate"}, certainty=20.0),
        case(0.5, output='{"rationale": "r", "action": "terminate"}', target={"type": "terminate"}),
    ],
    "token_f1": [
        case(0.5714285714, prediction="A big, big dog", gold="the dog was big today"),
        case(0.0, prediction="yes it is", gold="yes"),
        case(1.0, prediction="Yes.", gold="yes"),
        case(0.0, prediction="", gold="x"),
    ],
    "hiersearch_penalty": [
        case(-0.15, calls=list("LLLLWW")),
        case(-0.03, calls=list("LLLLLLLW")),
        case(-1.0, calls=list("LLW")),
        case(0.0, calls=[]),
    ],
    "hiersearch_reward": [
        case(0.3, f1=0.4, used=[], valid=["x"], penalty=-0.1),
        case(0.05, f1=0.04, used=["x", "z"], valid=["x", "y"], penalty=-0.1),
        case(0.04, f1=0.04, used=["x", "y"], valid=["x", "y"]),
        case(0.1, f1=0.04, used=["x", "y"], valid=["x", "y"], combine="max"),
        case(0.1, f1=0.0, used=[], valid=[]),
        case(0.0, f1=1.0, used=[], valid=[], cut_off=True),
        case(0.0, f1=1.0, used=[], valid=[], format_ok=False),
    ],
    "min_max": [case([1.0, 0.0, 0.25], scores=[0.9, 0.1, 0.3]), case([], scores=[])],
    "keep_count": [case(2, n=5, ratio=0.5), case(0, n=0, ratio=0.5)],
    "hiersearch_refine": [
        case(
            {"survivors": {"b": 1.0, "d": 0.0}, "recovered": ["c"]},
            calls=[{"texts": ["a", "b", "c"], "scores": [0.1, 0.9, 0.5]}, {"texts": ["d", "b", "a"], "scores": None}],
            conclusion={"a": 0.2, "b": 0.9, "c": 0.6, "d": 0.1},
        ),
        case(
            {"survivors": {"b": 1.0}, "recovered": ["a"]},
            calls=[{"texts": ["a", "b", "c"], "scores": [0.1, 0.9, 0.5]}, {"texts": [], "scores": []}],
            conclusion={"a": 0.2, "b": 0.9, "c": 0.6},
            other={"a": 0.7, "b": 0.0, "c": 0.1},
        ),
    ],
}
