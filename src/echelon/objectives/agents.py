"""Rewards of language agents that use tools, as published: tuples of terms, checked from the cheap to the costly.

The judges are arguments: functions of lists, or of one item through `each`. What an item is, they decide.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from echelon.errors import unknown
from echelon.objectives.terms import Each, Gate, Scorer, Term, each
from echelon.objectives.text import token_f1

# ---- ChatShopBuddy: correct first, persuasive second, efficient third


def chatshopbuddy(
    correct: Scorer,
    structure: Scorer,
    efficiency: Scorer,
    *,
    weights: tuple[float, float, float] = (1.0, 0.5, 0.2),
    threshold: float = 0.5,
    gate: Literal["hard", "soft", "none"] = "hard",
) -> tuple[Term, ...]:
    """Hierarchical reward modelling: R = w_c · c + p · (w_s · s + 1[s ≥ threshold] · w_e · e), scores in [0, 1].

    gate: "hard", p = 1[c = 1]; "soft", p = c, for weak policies whose c would always close the gate; "none", the plain
    sum of all three, the baseline that is hacked through s and e.
    Source: arXiv 2603.06065 publishes the order of the three; form and constants are reconstructed.
    """
    if gate not in ("hard", "soft", "none"):
        raise unknown("gate", gate, ("hard", "soft", "none"))
    first = {"hard": Gate("correct", 1.0), "soft": Gate("correct", 0.0, ">"), "none": None}[gate]
    second = None if gate == "none" else Gate("structure", threshold)
    times = ("correct",) if gate == "soft" else ()
    return (
        Term("correct", correct, weight=weights[0]),
        Term("structure", structure, weight=weights[1], gate=first, times=times),
        Term("efficiency", efficiency, weight=weights[2], gate=second, times=times),
    )


def tool_efficiency(calls: int, most: int) -> float:
    """1 - min(1, calls / most): what ChatShopBuddy's third level rewards (reconstructed)."""
    return 1 - min(1.0, calls / most)


# ---- DeepTravel: a verdict on the itinerary, then on every turn


def deeptravel(
    trajectory: Scorer,
    turn: Scorer,
    *,
    form: Scorer | None = None,
    combine: Literal["product", "mean"] = "product",
    ask: Literal["all", "until_failure"] = "all",
) -> tuple[Term, ...]:
    """R = v_trajectory · Π_t v_turn (or mean_t), verdicts in {0, 1}; turns, `parts["turn"]`, are judged only if the
    trajectory passed, and none of the two if `form` failed.

    ask: "until_failure" stops at an episode's first failed turn, and then may miss a later turn that is unknown. The
    product makes long episodes strictly harder; "mean" does not. Source: arXiv 2509.21842, the form reconstructed.
    """
    scope = Each("turn", "min" if combine == "product" else "mean", 1.0, 1.0 if ask == "until_failure" else None)
    front = () if form is None else (Term("form", form, weight=0.0),)
    return (
        *front,
        Term("trajectory", trajectory, weight=0.0, gate=Gate("form", 1.0) if front else None),
        Term("turns", turn, scope, gate=Gate("trajectory", 1.0)),
    )


# ---- CoDA: one reward for a planner and the executors that it called


def peco(
    f1: Scorer,
    planner_format: Scorer,
    executor_format: Scorer,
    evidence: Scorer,
    *,
    weights: tuple[float, float, float, float] = (6.0, 1.0, 1.0, 0.5),
) -> tuple[Term, ...]:
    """R = (6 · F1 - 3) + planner's format + mean of the executors' formats + 0.5 · evidence, from -3 to 5.5.

    Items are planner trajectories; executor_format is asked about `parts["executor"]`, and a planner without executors
    gets 0 for it. evidence: whether an executor's notes contain the gold answer (`text.contains_answer`).
    Source: arXiv 2512.12716 and its code. `credit.roles.peco` shares the advantage with the executors' rows.
    """

    def centred(items: list[Any]) -> list[float | None]:
        return [None if score is None else 2 * score - 1 for score in f1(items)]

    return (
        Term("answer", centred, weight=weights[0] / 2),
        Term("planner_format", planner_format, weight=weights[1]),
        Term("executor_format", executor_format, Each("executor", "mean", 0.0), weight=weights[2]),
        Term("evidence", evidence, weight=weights[3]),
    )


# ---- HierSearch: token F1, or a small bonus for having used many tools


@dataclass(frozen=True)
class SearchAnswer:
    """A finished search. tools_used, tools: of this trajectory, and all that its prompt offers; web_calls: for each
    tool call, whether it went to the web; complete: well-formed, and not cut off by the length limit."""

    answer: str
    gold: str
    tools_used: Collection[str] = ()
    tools: Collection[str] = ()
    complete: bool = True
    web_calls: Sequence[bool] = field(default=())


def hiersearch(
    *,
    bonus: float = 0.1,
    penalty: Literal["none", "early_web"] = "none",
    combine: Literal["code", "max"] = "code",
) -> tuple[Term, ...]:
    """Of each `SearchAnswer`: F1 if positive, else bonus · |tools used| / |tools offered|; 0 if incomplete.

    As released ("code") F1 = .05 earns less than a wrong answer that used all tools; "max" takes the larger of the two.
    penalty: "early_web", for the flat baseline, is added to F1 before it is compared with 0, so that a right answer may
    be paid the bonus instead. Source: arXiv 2508.08088 and its code; "max" is ours.
    """
    if penalty not in ("none", "early_web"):
        raise unknown("penalty", penalty, ("none", "early_web"))
    if combine not in ("code", "max"):
        raise unknown("way to combine", combine, ("code", "max"))

    def paid(item: SearchAnswer) -> float:
        fine = web_penalty(item.web_calls) if penalty == "early_web" else 0.0
        return max(0.0, token_f1(item.answer, item.gold) + fine)

    def coverage(item: SearchAnswer) -> float:
        offered = set(item.tools)
        return bonus * len(offered & set(item.tools_used)) / len(offered) if offered else bonus

    complete = Term("complete", each(lambda item: item.complete), weight=0.0)
    answer = Term("answer", each(paid), gate=Gate("complete", 1.0))
    if combine == "max":
        missing = each(lambda item: max(0.0, coverage(item) - paid(item)))
        return complete, answer, Term("tools", missing, gate=Gate("complete", 1.0))
    return complete, answer, Term("tools", each(coverage), gate=Gate("answer", 0.0, "<="))


def opened_tags(text: str, tags: Collection[str]) -> set[str]:
    """The tags of which `text` holds an opening <tag>: HierSearch's tools used (response) and offered (prompt)."""
    return {tag for tag in tags if f"<{tag}>" in text}


def web_penalty(web_calls: Sequence[bool]) -> float:
    """Of the first web call, by its place: 1-3: -1; 4-6: -.20, -.15, -.10; 7-8: -.045, -.03; later: -.01; none: 0."""
    if True not in web_calls:
        return 0.0
    table = (-1.0, -1.0, -1.0, -0.2, -0.15, -0.1, -0.045, -0.03)
    first = list(web_calls).index(True)
    return table[first] if first < len(table) else -0.01
