"""What a world shows and takes, as sizes that networks are built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor

from echelon.errors import UsageError


@dataclass(frozen=True)
class Spaces:
    """Observations by name and their shapes; a number of actions, or the bounds of a vector.

    `discrete`: observations that are one of so many states, by name; their shape is ().
    """

    observation: Mapping[str, tuple[int, ...]]
    discrete: Mapping[str, int]
    actions: int | None = None
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def action_dim(self) -> int:
        """Numbers of a continuous action. UsageError for discrete ones."""
        if self.actions is not None:
            raise UsageError(f"this system acts with vectors of numbers; the environment has {self.actions} actions")
        return len(self.low)

    @property
    def choices(self) -> int:
        """How many actions there are. UsageError for continuous ones."""
        if self.actions is None:
            raise UsageError(f"this system chooses among actions; the environment takes {len(self.low)} numbers")
        return self.actions

    def size(self, *names: str) -> int:
        """Numbers of the observations of these names together, as a network reads them."""
        missing = [name for name in names if name not in self.observation]
        if missing:
            raise UsageError(f"the environment shows {', '.join(self.observation)}, and no {', '.join(missing)}")
        return sum(self.discrete.get(name) or int(np.prod(self.observation[name], dtype=int)) for name in names)

    def bounds(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Lowest and highest action, [A] each."""
        return torch.tensor(self.low, device=device), torch.tensor(self.high, device=device)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Spaces:
        """What `to_json` gave."""
        shapes = {name: tuple(shape) for name, shape in values["observation"].items()}
        low, high = tuple(values["low"]), tuple(values["high"])
        return cls(shapes, dict(values["discrete"]), values["actions"], low, high)


def spaces_of(observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> Spaces:
    """The spaces of a gymnasium environment. UsageError for those that no network here reads or writes."""
    parts = dict(observation.spaces) if isinstance(observation, Dict) else {"observation": observation}
    shapes: dict[str, tuple[int, ...]] = {}
    discrete: dict[str, int] = {}
    for name, part in parts.items():
        if isinstance(part, Discrete):
            discrete[name] = int(part.n)
        elif not isinstance(part, Box):
            raise UsageError(f"observation '{name}' is a {type(part).__name__}; numbers (Box) or Discrete can be read")
        shapes[name] = tuple(part.shape or ())
    if isinstance(action, Discrete):
        return Spaces(shapes, discrete, actions=int(action.n))
    if not isinstance(action, Box) or len(action.shape) != 1:
        raise UsageError(f"actions are {action}; a Discrete or a Box of one dimension can be given")
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise UsageError(f"the action space {action} has no finite bounds")
    return Spaces(shapes, discrete, None, _floats(action.low), _floats(action.high))


def _floats(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
