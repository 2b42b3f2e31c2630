"""How many objects a subgoal moves: the statistic by which factored subgoals are told from averaged ones.

A subgoal generator that commits moves one object at a time, one that averages moves all of them a little. Objects are
matched as sets first, because a generator without identities may swap two of them.
Source: HECRL (arXiv 2602.02722), which reports 1.04 to 1.36 of 3 cubes for diffusion and 2.8 to 3 for regression.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.data.store import Store
from echelon.envs.ensure import ensure
from echelon.errors import DataError, UsageError
from echelon.systems.offline.hecrl import HECRL

LARGEST = 7
"""Objects that can be matched: all orders of them are tried."""


def moved_objects(before: Tensor, after: Tensor, metres: float = 0.04) -> Tensor:
    """int64[...]: the least number of objects further than `metres` from their partner, over all ways to pair them.

    `before` and `after` [..., n, 3] are positions in metres. Raises UsageError for more than 7 objects.
    """
    n = before.shape[-2]
    if n > LARGEST:
        raise UsageError(f"{n} objects: the orders of at most {LARGEST} can be compared")
    far = (before.unsqueeze(-2) - after.unsqueeze(-3)).norm(dim=-1) > metres
    orders = torch.tensor(list(permutations(range(n))), device=before.device).view(-1, n)
    return far[..., torch.arange(n, device=before.device), orders].sum(-1).amin(-1)


def held_out_pairs(
    store: Store, agent: HECRL, count: int, seed: int = 0, metres: float = 0.04
) -> tuple[Tensor, Tensor]:
    """(s, g) float[count, O]: states of `store` with later ones of their episode, every object elsewhere in g.

    Drawn uniformly among such pairs of distinct states, with replacement. Raises UsageError where the environment has
    no objects, or no such pair is found.
    """
    draw = np.random.default_rng(seed)
    first = draw.integers(store.transitions, size=64 * count)
    ends = store.starts[store.episode_of(first)] + store.lengths[store.episode_of(first)]
    later = first + np.floor(draw.random(len(first)) * (ends - first)).astype(np.int64)
    states = store.columns["observations"]
    s, g = (torch.as_tensor(np.asarray(states[store.row_of(x)])) for x in (first, later))
    here, there = agent.positions(s), agent.positions(g)
    if here is None or there is None:
        raise UsageError(f"no objects are declared for '{agent.config.env}': subgoals that move them cannot be counted")
    found = torch.nonzero(moved_objects(here, there, metres) == here.shape[1])[:count, 0]
    if len(found) < count:
        raise UsageError(f"{store.name}: {len(found)} pairs with every object displaced, {count} were asked for")
    return s[found], g[found]


def moved_by_subgoals(agent: HECRL, s: Tensor, g: Tensor, n: int = 16, seed: int = 0, metres: float = 0.04) -> Tensor:
    """float64[B]: objects that a subgoal proposed on the way from s to g [B, O] moves, the mean over `n` proposals."""
    proposed = agent.propose(s, g, n, torch.Generator().manual_seed(seed))
    here, there = agent.positions(s), agent.positions(proposed.flatten(0, 1))
    if here is None or there is None:
        raise UsageError(f"no objects are declared for '{agent.config.env}': subgoals that move them cannot be counted")
    moved = moved_objects(here.repeat_interleave(n, 0), there, metres)
    return moved.double().view(len(s), n).mean(1)


def objects_left(run: Any, pairs: int = 256) -> np.ndarray:
    """Statistic of a claim: how many of the n objects a proposed subgoal leaves in their place, [pairs], 0 to n.

    Means over 16 proposals of a run's final weights, between states of the validation episodes, the same for every
    run, that differ in the place of every object. DataError where the data have no validation episodes.
    """
    agent = run.agent()
    held_out = ensure(run.config["env"], run.config["transitions"]).validation()
    if held_out is None:
        raise DataError(f"{run.config['env']} has no validation episodes to take pairs of states from")
    s, g = held_out_pairs(held_out, agent, pairs)
    positions = agent.positions(s)
    return positions.shape[1] - moved_by_subgoals(agent, s, g).numpy()
