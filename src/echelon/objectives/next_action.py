"""Rewards of a single next action against the recorded one: Shop-R1 on shopping pages, Hi-Agent on phone screens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from echelon.errors import unknown
from echelon.objectives.terms import Gate, Scorer, Term, each
from echelon.objectives.text import rouge_l
from echelon.spans import Spans

# ---- Shop-R1: format, certainty of the rationale, then action type → attributes → texts


@dataclass(frozen=True)
class PredictedAction:
    """An `output` that should read {"rationale": ..., "action": {"type": ..., "name": ..., "text": ...}}, the recorded
    action, and the self-certainty of the rationale's tokens."""

    output: str
    recorded: Mapping[str, str]
    certainty: float = 0.0

    @cached_property
    def parsed(self) -> Mapping[str, Any] | None:
        """The output as JSON if it has both keys, else None."""
        try:
            found = json.loads(self.output)
        except (ValueError, RecursionError):  # numbers of thousands of digits, and nesting without end, too
            return None
        return found if isinstance(found, dict) and {"rationale", "action"} <= found.keys() else None

    def value(self, key: str) -> str:
        """A field of the predicted action; empty if it has none."""
        action = self.parsed["action"] if self.parsed else None
        found = action.get(key, "") if isinstance(action, dict) else ""
        return found if isinstance(found, str) else ""


# what each type of action pays: the bonus of its fields, and the fields whose text is easy or hard to predict
_BONUS = {"click": {"name": 0.2}, "type_and_submit": {"name": 0.1, "text": 0.1}}
_EASY = {"type_and_submit": "name"}
_HARD = {"click": "name", "type_and_submit": "text"}


def shop_r1(
    *,
    dars: float = 1000.0,
    threshold: float = 0.75,
    attribute: Literal["present", "correct"] = "present",
    alpha: float = 0.005,
) -> tuple[Term, ...]:
    """Of each `PredictedAction`: R = .5 · format + α · certainty + .3 · [type right] + attribute bonuses
    + .1 · ROUGE-L of an easy field + DARS · ROUGE-L of the hard one, ROUGE-L counting only above `threshold`.

    Click: bonus .2, its name is hard. type_and_submit: bonuses .1 and .1, the name is easy, the text hard. terminate:
    nothing more. Without format nothing is paid, with a wrong type nothing of the action. attribute: the bonus wants
    the field "present" or "correct"; the paper can be read either way. dars (difficulty-aware reward scaling) decides
    by orders of magnitude who wins a group: log the parts. Source: arXiv 2507.17842; KL is a part of its loss.
    """
    if attribute not in ("present", "correct"):
        raise unknown("attribute rule", attribute, ("present", "correct"))

    def bonus(item: PredictedAction) -> float:
        fields = _BONUS.get(item.recorded["type"], {})
        earned = [
            pay
            for key, pay in fields.items()
            if (item.value(key) == item.recorded[key] if attribute == "correct" else item.value(key))
        ]
        return math.fsum(earned)

    def similar(item: PredictedAction, fields: Mapping[str, str]) -> float:
        key = fields.get(item.recorded["type"])
        found = rouge_l(item.value(key), item.recorded[key]) if key else 0.0
        return found if found > threshold else 0.0

    right = Gate("type", 1.0)
    return (
        Term("format", each(lambda item: item.parsed is not None), weight=0.5),
        Term("certainty", each(lambda item: item.certainty), weight=alpha, gate=Gate("format", 1.0)),
        Term(
            "type", each(lambda item: item.value("type") == item.recorded["type"]), weight=0.3, gate=Gate("format", 1.0)
        ),
        Term("attributes", each(bonus), gate=right),
        Term("easy_text", each(lambda item: similar(item, _EASY)), weight=0.1, gate=right),
        Term("hard_text", each(lambda item: similar(item, _HARD)), weight=dars, gate=right),
    )


def self_certainty(
    rationales: Spans, *, log_prob: Tensor, normaliser: Literal["printed", "mean"] = "printed"
) -> Tensor:
    """Mean over a rationale's tokens of KL(p ‖ uniform) in nats, [n]; "printed" also divides by the vocabulary size V.

    log_prob: [N, V], all of the vocabulary. It rewards peaked distributions: keep α tiny. Source: arXiv 2507.17842.
    """
    if normaliser not in ("printed", "mean"):
        raise unknown("normaliser", normaliser, ("printed", "mean"))
    size = log_prob.shape[-1]
    divergence = math.log(size) - torch.special.entr(log_prob.exp()).sum(-1)
    return rationales.reduce(divergence, "mean") / (size if normaliser == "printed" else 1)


# ---- Hi-Agent: a subgoal is worth what the present low level makes of it


@dataclass(frozen=True)
class ScreenAction:
    """An action on a screen; point: x, y in [0, 1]."""

    kind: str
    point: tuple[float, float] | None = None
    text: str | None = None
    direction: str | None = None


def same_action(action: ScreenAction, oracle: ScreenAction, tolerance: float = 0.002) -> float:
    """1 if the kinds are equal, the points lie nearer than `tolerance`, and text and direction agree.

    Only what the oracle's action has is compared; texts up to case and white space. Source: arXiv 2510.14388 for kind
    and point, the rest is reconstructed. The default is about two pixels of a screen: a weak policy never meets it.
    """
    if action.kind != oracle.kind or (oracle.direction is not None and action.direction != oracle.direction):
        return 0.0
    if oracle.point is not None and (action.point is None or math.dist(action.point, oracle.point) >= tolerance):
        return 0.0
    if oracle.text is not None:
        return float(action.text is not None and action.text.lower().split() == oracle.text.lower().split())
    return 1.0


def hi_agent(
    form: Scorer, execution: Scorer, judge: Scorer, *, weights: tuple[float, float, float] = (0.4, 0.3, 0.3)
) -> tuple[Term, ...]:
    """Foresight reward of a subgoal: .4 · form + .3 · execution + .3 · judge, each in {0, 1}.

    execution: `same_action` of what the low level does with the subgoal, and the oracle. It alone is the low level's
    own reward. A well-formed but useless subgoal already earns .4. Source: arXiv 2510.14388.
    """
    return (
        Term("form", form, weight=weights[0]),
        Term("execution", execution, weight=weights[1]),
        Term("judge", judge, weight=weights[2]),
    )
