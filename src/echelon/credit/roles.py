"""Credit of language agents that play two roles: one that plans and one that carries out. No critic.

Which tokens a role emitted is told by masks, through `spread`: each token takes the credit of the role that owns it.

Legend: N rows (one episode, or one role's share of it), n episodes, G groups of episodes of the same task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite, sum_of
from echelon.credit.groups import Singleton, grpo
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree


def select_blueprint(groups: Spans, *, reward: Tensor) -> Tensor:
    """The best of each group, the first of equals: reward [N] → items, int64 [G].

    The best of noisy returns is optimistic: it favours lucky blueprints. Source: HiMAC, arXiv 2603.00977.
    """
    finite("episode", None, reward=reward)
    best = reward == groups.siblings(reward, "max", singleton="zero")
    first = groups.reduce(torch.where(best, groups.position, groups.longest), "min")
    return groups.clip(groups.starts, groups.starts + first)


def himac(
    groups: Spans,
    *,
    reward: Tensor,
    chosen: Tensor,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> dict[str, Credit]:
    """HiMAC: {"macro": GRPO over the candidate blueprints, "micro": GRPO over the rollouts of the chosen one}.

    Items are episodes: reward [N]; chosen, bool [N], the episodes that carry out the chosen blueprint, the others being
    those that try a candidate each. Episodes of the other phase have advantage and weight 0, so that batches may hold
    either phase or both. `spread(credits, episodes, {"macro": blueprint tokens, "micro": action tokens})` keeps each
    role's gradient to its own tokens.

    Needs groups of at least two in a phase. Biased as `grpo`, and "macro" towards blueprints that suit the present
    micro policy. Source: arXiv 2603.00977; no code is released, ddof and eps are reconstructed.
    """
    return {
        "macro": grpo(groups, reward=reward, where=~chosen, ddof=ddof, eps=eps, singleton=singleton),
        "micro": grpo(groups, reward=reward, where=chosen, ddof=ddof, eps=eps, singleton=singleton),
    }


def peco(
    tree: SpanTree,
    *,
    reward: Tensor,
    planner: Tensor,
    task_reward: Tensor | None = None,
    verified: Tensor | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "raw",
) -> Credit:
    """PECO (CoDA): every row of a trajectory, planner's and executors', gets the planner's advantage in its group.

        A = (R_i - mean) / (std + eps) over the planners of the same question; executors enter no statistics

    Items are rows, `episode` a planner's trajectory with the executors it called, `group` a question. reward: [N], read
    at planner rows only (several of one trajectory: their mean); planner: bool [N], at least one a trajectory, else its
    planner_reward is NaN. Executors whose sub-task can be checked may keep their own credit: task_reward [N], compared
    among the rows `verified`, bool [N], of the group, replaces theirs; a lone one gets 0.

    Needs groups. Biased as `grpo`; good executors of a failed planner are punished with it. Source: arXiv 2512.12716
    and its code, where one planner alone passes its reward through ("raw").
    """
    episode = tree["episode"]
    planned = episode.reduce(torch.where(planner, reward, 0)) / episode.reduce(planner)
    finite("episode", None, planner_reward=planned)
    shared = grpo(tree.within("episode", "group"), reward=planned, ddof=ddof, eps=eps, singleton=singleton)
    terms = {"planner": episode.expand(shared.advantage)}
    if (task_reward is None) != (verified is None):
        raise DataError("`task_reward` and `verified` come together")
    if task_reward is not None and verified is not None:
        verified = verified & ~planner
        own = grpo(tree["group"], reward=task_reward, where=verified, ddof=ddof, eps=eps)
        terms = {"planner": torch.where(verified, 0, terms["planner"]), "own": own.advantage}
    return Credit(sum_of(terms), terms=terms)
