"""Rewards of single turns that a program can check: tags that keep their promise, subgoals that are kept, edits of a
team of agents. Columns are packed; the first argument is the partition into episodes. Legend: N turns, n episodes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from echelon.errors import unknown
from echelon.spans import Spans

# ---- RLVMR: did the turn do what its tag promises?

PLANNING, EXPLORE, REFLECTION, NONE = 0, 1, 2, 3


class MetaReward(NamedTuple):
    """tag: int64 [N], NONE for invalid turns and unknown tags; reward: [N], 0 or 1."""

    tag: Tensor
    reward: Tensor


def rlvmr_meta(
    episodes: Spans, *, tag: Tensor, valid: Tensor, action: Tensor, admissible: Tensor, success: Tensor
) -> MetaReward:
    """Verifiable meta-reasoning rewards:

        planning: the episode succeeds;    explore: no earlier valid turn of the episode issued this action;
        reflection: the turn before was invalid or inadmissible, or there is none, and the action differs from its

    Shapes: tag (PLANNING, EXPLORE, REFLECTION; anything else earns nothing), action, int [N], equal for equal actions;
    valid (well-formed), admissible (in the environment's list), bool [N]; success, bool [n].
    Source: arXiv 2507.22844's code; the paper wants a new object or location of explore.
    """
    tag = torch.where(valid & (tag >= PLANNING) & (tag < NONE), tag, NONE)
    same = Spans.by_key(episodes.ids, action)
    issued = same.reduce(torch.where(valid, episodes.position, episodes.longest), "min")
    new = episodes.position <= same.expand(issued)
    failed = episodes.shift(~valid | ~admissible, -1, True)
    differs = (episodes.position == 0) | (action != episodes.shift(action, -1))
    earned = (tag == PLANNING) & episodes.expand(success)
    earned |= (tag == EXPLORE) & new
    earned |= (tag == REFLECTION) & failed & differs
    return MetaReward(tag, earned.to(torch.get_default_dtype()))


def rlvmr_score(
    episodes: Spans, *, success: Tensor, valid: Tensor, reward: float = 10.0, penalty: float = 0.1
) -> Tensor:
    """[N]: the episode's outcome at each of its turns, `reward` for success (bool [n]), less a penalty if invalid."""
    return reward * episodes.expand(success).to(torch.get_default_dtype()) - penalty * (~valid)


# ---- HiPER: a subgoal costs if kept, more if it is not copied faithfully


def hiper_reward(
    episodes: Spans,
    *,
    reward: Tensor,
    switch: Tensor,
    subgoal: Tensor,
    valid: Tensor,
    keep: float = -0.3,
    scale: Literal["fixed", "normalized"] = "normalized",
    inconsistent: float = -0.3,
    invalid: float = 0.1,
) -> Tensor:
    """The environment's reward with HiPER's three penalties, [N]: a KEEP, a KEEP with another subgoal, an invalid turn.

    Shapes: reward, switch (bool), valid (bool), subgoal (int, equal for equal texts, negative for none): [N].
    keep -0.3 is ALFWorld's, WebShop has -3.5. Source: arXiv 2602.16165's code; see `keep_penalty`, `copy_penalty`.
    """
    reward = keep_penalty(episodes, reward=reward, switch=switch, penalty=keep, scale=scale)
    reward = copy_penalty(episodes, reward=reward, switch=switch, subgoal=subgoal, penalty=inconsistent)
    return reward - invalid * (~valid).to(reward.dtype)


def keep_penalty(
    episodes: Spans,
    *,
    reward: Tensor,
    switch: Tensor,
    penalty: float = -0.3,
    scale: Literal["fixed", "normalized"] = "normalized",
) -> Tensor:
    """The rewards, [N], with a penalty on every turn that keeps its subgoal, against never switching.

    reward, switch (bool): [N]. "fixed": the penalty at each KEEP; "normalized": penalty / T in an episode of T turns,
    which so loses penalty · (share of KEEPs), and nothing if it has one turn. Source: the released code of arXiv
    2602.16165, which also charges a first turn that says KEEP.
    """
    keep = (~switch).to(reward.dtype)
    if scale == "normalized":
        length = episodes.expand(episodes.lengths)
        keep = torch.where(length > 1, keep / length, 0)
    return reward + penalty * keep


def copy_penalty(episodes: Spans, *, reward: Tensor, switch: Tensor, subgoal: Tensor, penalty: float = -0.3) -> Tensor:
    """The rewards, [N], with a penalty on every turn that says KEEP but words another subgoal than the turn before.

    reward, switch (bool): [N]; subgoal: int [N], equal for equal texts, negative where there is none, which is never
    charged. Source: the released code of arXiv 2602.16165.
    """
    before = episodes.shift(subgoal, -1, -1)
    changed = ~switch & (subgoal != before) & (subgoal >= 0) & (before >= 0)
    return reward + penalty * changed.to(reward.dtype)


# ---- MasHost: edits of a team of agents

ADD, DELETE, EXIT = 0, 1, 2
Exemption = Literal["steps", "early_additions", "agents", "training"]
EXEMPTIONS: tuple[Exemption, ...] = ("steps", "early_additions", "agents", "training")


class EditReward(NamedTuple):
    """node: [N], of the choice of agent; edge: [N], of its connections. Their sum is the reward of the edit."""

    node: Tensor
    edge: Tensor


def mashost_edits(
    episodes: Spans,
    *,
    kind: Tensor,
    duplicate: Tensor,
    isolated: Tensor,
    just_added: Tensor,
    correct: Tensor,
    exemption: Exemption = "steps",
    limit: int = 3,
    update: int = 0,
    size_cost: float = 0.1,
    flaw_cost: float = 0.1,
    exit_bonus: float = 0.1,
    empty_cost: float = 1.0,
) -> EditReward:
    """Rewards of the edits by which a system of agents is built: ADD -µ; a duplicate role, an isolated agent, the
    DELETE of an agent just added -ν each; EXIT of a correct system +κ, of an empty one -1.

    Shapes: kind (ADD, DELETE, EXIT), int [N]; duplicate, isolated (of an ADD), just_added (of a DELETE), bool [N];
    correct, bool [n]. Exempt are, by `limit`: "steps", the first edits, from everything; "early_additions", the same
    from µ alone; "agents", the first additions, from µ; "training", all edits before that `update` (from 0), from µ.
    Source: that actions are rewarded and exempt for a time is published (arXiv 2506.08507); all else is reconstructed.
    """
    if exemption not in EXEMPTIONS:
        raise unknown("exemption", exemption, EXEMPTIONS)
    add, delete, leave = kind == ADD, kind == DELETE, kind == EXIT
    early = episodes.position < limit
    free = {
        "steps": early,
        "early_additions": early,
        "agents": episodes.scan(add.long(), reverse=False) <= limit,
        "training": torch.full_like(early, update < limit),
    }[exemption]
    size = episodes.scan(add.long() - delete.long(), reverse=False)  # an EXIT changes nothing, so this is before it
    node = -size_cost * (add & ~free) - flaw_cost * (add & duplicate) - flaw_cost * (delete & just_added)
    node = node + exit_bonus * (leave & (size != 0) & episodes.expand(correct)) - empty_cost * (leave & (size == 0))
    edge = -flaw_cost * (add & isolated)
    if exemption == "steps":
        node, edge = torch.where(early, 0, node), torch.where(early, 0, edge)
    return EditReward(node, edge)
