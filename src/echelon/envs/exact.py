"""Exact planning in small worlds, in double precision: values of actions, options and whole policies.

A `Choices` says what each of K choices is worth and where it leads, whether it holds for a step (`steps`) or until
something stops it (`until`); everything else takes either. Terminal states are worth 0 and lead nowhere.
Legend: N states, K choices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from echelon.envs.tables import Model
from echelon.errors import UsageError


class Choices(NamedTuple):
    """reward float64[K, N]: expected discounted reward while the choice holds; arrival float64[K, N, N]: the chance
    that it ends in s', discounted by the time until then, Σ_k γ^k · P(s', k | s)."""

    reward: Tensor
    arrival: Tensor


def steps(model: Model, gamma: float) -> Choices:
    """The actions of a model as choices that hold for a step."""
    going = (~model.terminal).double()[:, None]
    arrival = gamma * model.transition * going[:, :, None]
    return Choices((model.expected_reward * going).T.clone(), arrival.transpose(0, 1).contiguous())


def followed(choices: Choices, policy: Tensor) -> Choices:
    """What it comes to for one choice to make those of `policy`: int64 [N], or one row a policy [K', N]."""
    chosen, states = torch.atleast_2d(policy), torch.arange(choices.reward.shape[1])
    return Choices(choices.reward[chosen, states], choices.arrival[chosen, states])


def until(once: Choices, stops: Tensor) -> Choices:
    """Each choice made again and again until it arrives where it stops, bool [K, N]; at least once.

    R = r + X_go R and A = X_stop + X_go A, where X_go and X_stop are the arrivals in states where it goes on and stops.
    """
    stop = torch.atleast_2d(stops).double()[:, None, :]
    again = once.arrival * (1 - stop)
    _refuse_endless(again, (once.arrival - again).sum(-1))
    system = torch.eye(again.shape[-1], dtype=torch.float64) - again
    solved = torch.linalg.solve(system, torch.cat([once.reward[:, :, None], once.arrival * stop], 2))
    return Choices(solved[:, :, 0], solved[:, :, 1:])


def value(once: Choices) -> Tensor:
    """The value [K, N] of making each choice for ever. UsageError where undiscounted rewards never end."""
    _refuse_endless(once.arrival, torch.zeros_like(once.reward))
    system = torch.eye(once.arrival.shape[-1], dtype=torch.float64) - once.arrival
    return torch.linalg.solve(system, once.reward[:, :, None])[:, :, 0]


def optimal(
    choices: Choices, allowed: Tensor | None = None, final: Tensor | None = None, tolerance: float = 1e-12
) -> Tensor:
    """Q [K, N] of choosing best ever after, by value iteration; -inf where a choice is not `allowed`, bool [K, N].

    States without an allowed choice are worth `final`, float64[N], 0 if absent: where a task ends.
    """
    barred = torch.zeros_like(choices.reward, dtype=torch.bool) if allowed is None else ~allowed
    nothing = barred.all(0)
    after = torch.zeros_like(choices.reward[0]) if final is None else final
    best = torch.where(nothing, after, 0)
    for _ in range(30_000):
        q = torch.where(barred, -torch.inf, choices.reward + choices.arrival @ best)
        better = torch.where(nothing, after, q.amax(0))
        change, best = float((better - best).abs().max()), better
        if change <= tolerance:
            return q
    raise UsageError("value iteration does not settle: undiscounted rewards may be collected for ever")


def _refuse_endless(again: Tensor, leaves: Tensor) -> None:
    """A choice that goes on for ever without discount has no value. again [K, N, N], leaves [K, N]."""
    ends = ((again.sum(-1) + leaves) < 1 - 1e-12) | (leaves > 0)
    for _ in range(again.shape[-1]):
        more = ends | (again @ ends.double()[:, :, None])[:, :, 0].gt(0)
        if torch.equal(more, ends):
            break
        ends = more
    if not bool(ends.all()):
        choice, state = (~ends).nonzero()[0].tolist()
        raise UsageError(f"choice {choice} never ends once begun in state {state}; its value needs a discount below 1")
