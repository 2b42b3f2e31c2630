"""How well a classifier tells progress from what is none, and a policy follows states that were reached.

Both are measured on validation episodes, the same for every run.
Source: GHIL-Glue (arXiv 2410.20018), which reports success alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.data.source import OfflineSource
from echelon.envs.ensure import ensure
from echelon.errors import DataError, UsageError
from echelon.systems.offline.ghil_glue import PLAN_SEED, GHILGlue
from echelon.systems.offline.judged import KINDS, deranged
from echelon.training.agent import Batch

ROWS = 4096
"""Pairs or chunks that are measured."""


def auc(right: Tensor, wrong: Tensor) -> float:
    """The probability that one of `right` [n] is larger than one of `wrong` [m]; equal ones count half.

    The area under the receiver operating characteristic. UsageError where one of them is empty.
    """
    if not len(right) or not len(wrong):
        raise UsageError(f"an area under a curve needs scores of both kinds, got {len(right)} and {len(wrong)}")
    ranked, x = wrong.double().sort().values, right.double()
    below = torch.searchsorted(ranked, x) + torch.searchsorted(ranked, x, right=True)
    return float(below.double().mean() / (2 * len(wrong)))


def told_apart(run: Any, kind: str = "") -> np.ndarray:
    """Statistic of a claim: the area under the curve in points (50 is chance) of a run's final classifier, [].

    `kind` of what is no progress: "sentence" (a wrong one), "reverse" or "goal" (of another sentence); "" for the one
    that it tells apart worst.
    """
    kinds = KINDS[1:] if kind == "" else (kind,)
    if not set(kinds) <= set(KINDS[1:]):
        raise UsageError(f"no kind '{kind}' of what is no progress; there are {', '.join(KINDS[1:])}")
    agent = run.agent()
    batch = held_out(agent)
    return np.array(100 * min(auc(*judgements(agent, batch, each)) for each in kinds))


@torch.no_grad()
def judgements(agent: GHILGlue, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
    """Logits of a batch's pairs, and of the same pairs made wrong in the way `kind`, as states are."""
    s, g = (agent.states(batch[f"pair_{name}"]) for name in ("states", "later"))
    words = batch["pair_instructions"]
    told = agent.sentences[words]
    right = agent.logits(s, g, told)
    if kind == "reverse":
        return right, agent.logits(g, s, told)
    source = deranged(words, torch.Generator().manual_seed(PLAN_SEED))
    other = words[source] != words
    wrong = agent.logits(s, g, told[source]) if kind == "sentence" else agent.logits(s, g[source], told)
    return right, wrong[other]


def real_goals(run: Any) -> np.ndarray:
    """Statistic of a claim: how well a run's final policy follows states that were reached 1 step ahead or more, [].

    In points: 100 if it says the actions that were taken, 0 if it says no more of them than their mean does.
    """
    agent = run.agent()
    batch = held_out(agent)
    ahead = batch["until"] > 0
    state, goal = batch["observations"][ahead, 0], batch["goals"][ahead, 0]
    taken, real = batch["actions"][ahead], batch["real"][ahead]
    found = agent.act(state, goal, torch.Generator().manual_seed(PLAN_SEED))
    error, spread = ((taken - x).square()[real].sum(0) for x in (found, taken[real].mean(0)))
    return np.array(float(100 * (1 - error.sum() / spread.sum())))


def held_out(agent: GHILGlue) -> Batch:
    """Pairs, steps and chunks of the validation episodes of an agent's data. DataError where there are none."""
    c = agent.config
    episodes = ensure(c.env, c.transitions).validation()
    if episodes is None:
        raise DataError(f"{c.env} has no validation episodes to measure on")
    return OfflineSource(episodes, c.goals(), ROWS, seed=0, block=1).next()
