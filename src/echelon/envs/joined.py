"""Observations that are dicts within a dict, as one vector each: the kitchen's goals, one for each of its tasks."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from echelon.errors import UsageError


class Joined(gymnasium.ObservationWrapper[dict[str, np.ndarray], Any, Any]):
    """An environment whose inner dicts of vectors are joined, their parts in the order of the space (by name)."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        space: Any = env.observation_space
        self._parts = {name: list(part.spaces) for name, part in space.spaces.items() if isinstance(part, Dict)}
        flat = {name: _joined(name, part) if isinstance(part, Dict) else part for name, part in space.spaces.items()}
        joined: Any = Dict(flat)
        self.observation_space = joined

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        """What is seen, with inner dicts as vectors."""
        joined = {name: np.concatenate([observation[name][k] for k in parts]) for name, parts in self._parts.items()}
        return {**observation, **joined}


def has_inner_dicts(space: gymnasium.Space[Any]) -> bool:
    """Whether a dict of observations contains dicts."""
    return isinstance(space, Dict) and any(isinstance(part, Dict) for part in space.spaces.values())


def _joined(name: str, space: Dict) -> Box:
    boxes = [part for part in space.spaces.values() if isinstance(part, Box) and len(part.shape) == 1]
    if len(boxes) < len(space.spaces):
        raise UsageError(f"observation '{name}' is {space}; a dict within a dict can be read if it holds vectors alone")
    low, high = (np.concatenate([getattr(box, side) for box in boxes]) for side in ("low", "high"))
    return Box(low, high, dtype=low.dtype.type)
