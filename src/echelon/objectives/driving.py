"""Rewards of driving plans: WorldRFT's collisions, and NAVSIM's PDM score. Source: arXiv 2512.19133."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from echelon.errors import unknown
from echelon.objectives.terms import Gate, Scorer, Term
from echelon.spans import Spans

MARKS = ("each", "first", "following")


def collision_reward(
    trajectories: Spans, *, overlap: Tensor, mark: Literal["each", "first", "following"] = "each"
) -> Tensor:
    """-1 at the points of a trajectory that collide, else 0, [N].

    overlap: bool [N], whether the ego box overlaps another agent's at that point. mark: "each" such point (the paper),
    the "first" one, or the first and all "following", since driving on does not undo a collision.
    """
    if mark not in MARKS:
        raise unknown("mark", mark, MARKS)
    hits = trajectories.scan(overlap.long(), reverse=False)
    marked = {"each": overlap, "first": overlap & (hits == 1), "following": hits > 0}[mark]
    return -marked.to(torch.get_default_dtype())


def pdm_score(
    no_collision: Scorer,
    drivable: Scorer,
    progress: Scorer,
    time_to_collision: Scorer,
    comfort: Scorer,
    *,
    weights: tuple[float, float, float] = (5.0, 5.0, 2.0),
) -> tuple[Term, ...]:
    """NC · DAC · (5 · EP + 5 · TTC + 2 · C) / 12 of a scene, scores in [0, 1]; a factor of 0 spares what follows."""
    factors, open_ = ("no_collision", "drivable"), Gate("drivable", 0.0, ">")
    total = sum(weights)
    graded = {"progress": progress, "time_to_collision": time_to_collision, "comfort": comfort}
    return (
        Term("no_collision", no_collision, weight=0.0),
        Term("drivable", drivable, weight=0.0, gate=Gate("no_collision", 0.0, ">")),
        *(
            Term(name, fn, weight=weight / total, gate=open_, times=factors)
            for (name, fn), weight in zip(graded.items(), weights, strict=True)
        ),
    )
