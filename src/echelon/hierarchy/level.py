"""What a level of a hierarchy is: it observes, decides, holds what it decided and may guard what is executed.

A level is a network, a script or a planner; its tensors are batched over streams (S of them: one a decision maker and
slot of the world). A stateless level needs a name and `decide`:

    class Reach(Level):
        name = "reach"
        termination = Every(10)

        def decide(self, features, parent, due):
            return Decision(self.net(features["observation"]))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from echelon.hierarchy.termination import Every, Running, Termination

Features = Any  # a Tensor[S, ...], or a dict or tuple of them
NO_VALUES: Mapping[str, Tensor] = MappingProxyType({})


class Decision(NamedTuple):
    """What a level decided for B streams.

    `action` Tensor[B, ...]; `log_prob` float[B]; `values` name → float[B], recorded with the decision ("value": the
    discounted sum of the environment's rewards that is expected). `empty` bool[B] marks decisions that take no time (a
    plan step already fulfilled): they are recorded with start == stop and the level is asked again at once.
    """

    action: Tensor
    log_prob: Tensor | None = None
    values: Mapping[str, Tensor] = NO_VALUES
    empty: Tensor | None = None

    def take(self, rows: Tensor) -> Decision:
        """A copy of some rows, without `empty`."""
        log_prob = None if self.log_prob is None else self.log_prob[rows]
        return Decision(self.action[rows], log_prob, {name: value[rows] for name, value in self.values.items()})


class Level(ABC):
    """One level of a hierarchy. Every method but `decide` has a default that fits a stateless level.

    Class or instance attributes:
        name: unique in the stack; decisions are recorded under it.
        termination: when decisions end, used by the default `ends`.
        parent_of: of each of my streams in one slot, the stream of the level above that commands it: `(0, 0, 0)` puts
            three agents under one team decision. None: one to one. The teams of a level have equal sizes.
        per_member: my action is [S, m, ...] and each of my m members is commanded by its own row.
        generator: set by the runner, for levels that sample.
        within: lowest and highest action, numbers or [A] each, where goals come from a script, a planner or a person;
            one outside of them is an error. None: not checked.
        choices: how many actions there are to choose among, for what is told of their use; None for vectors.
        place: (observation, distance) of a level whose actions are values of that observation to be brought about;
            within the distance they count as reached, in what is told of them.
    """

    name: str
    termination: Termination = Every(1)
    parent_of: Sequence[int] | None = None
    per_member: bool = False
    generator: torch.Generator | None = None
    within: tuple[Tensor | float, Tensor | float] | None = None
    choices: int | None = None
    place: tuple[str, float] | None = None

    def start(self, streams: int) -> Tensor | None:
        """The memory Tensor[streams, ...] with which an episode begins; None for a level without memory."""
        return None

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Features, Tensor | None]:
        """Turn what the world shows into features; called on every tick with every stream.

        A level that commands m members sees their observations stacked: [S, m, ...].
        """
        return obs, memory

    def ends(self, features: Features, running: Running, below: Tensor | None) -> Tensor | np.ndarray:
        """Say which running decisions end before this tick: bool[S], or codes of `Termination`."""
        return self.termination(features, running, below)

    @abstractmethod
    def decide(self, features: Features, parent: Tensor | None, due: Tensor) -> Decision:
        """Decide for the streams that are due.

        `features` and `parent` (the action of the level above, None at the top) hold the rows of the due streams only:
        B rows, where `due` is bool[S] with B true entries. The decision has B rows.
        """

    def advance(self, action: Tensor, obs: dict[str, Tensor], previous: dict[str, Tensor]) -> Tensor:
        """Move the decisions that were held over a tick as the world moved (a relative goal, say).

        `action` [S, ...] are the running ones; `obs` and `previous` what the level saw after and before the tick. It is
        called before `ends`; decisions that end now, or whose episode did, are replaced whatever is returned for them.
        """
        return action

    def guard(self, features: Features, proposed: Tensor, running: Running) -> Tensor:
        """Return the actions to execute instead of the bottom level's `proposed` [S, ...] (a reflex, a shield).

        An override does not end the decision; a termination may look at `running.overridden` to do so.
        """
        return proposed
