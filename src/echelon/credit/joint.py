"""Targets of a team whose members decide at times of their own.

Items are the team's ticks; each member's decisions partition the same ticks. A joint decision lasts until at least one
member's ends, so the joint decisions are the coarsest common refinement of the members'. Their value target is
`smdp_target(joint, reward=team reward, next_value=mixer(continuing_max(...)), terminated=..., gamma=...)`.

Legend: N ticks, n joint decisions, A members, O options a member.    Source: arXiv 2408.11416 (goal mixing); the
handling of members that continue is reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echelon.spans import Spans


def joint_decisions(members: Sequence[Spans]) -> tuple[Spans, Tensor]:
    """(the n joint decisions, due bool [n, A]: which members begin a decision of their own with it)."""
    joint = members[0].meet(*members[1:])
    return joint, torch.stack([member.position[joint.starts] == 0 for member in members], -1)


def continuing_max(q: Tensor, *, held: Tensor, due: Tensor) -> Tensor:
    """What each member's next option is worth: the best where it is due, else the value of the one that it holds.

    Shapes: q [n, A, O], the members' values of their options in the state where a joint decision ended; held int64
    [n, A], the option in force until then; due bool [n, A], whether the member chooses anew in that state. → [n, A],
    the input of a monotone mixer.
    """
    return torch.where(due, q.amax(-1), q.gather(-1, held[..., None])[..., 0])
