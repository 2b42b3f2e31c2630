"""Levels of MiniGrid: what is seen as one flat vector, and where an episode stands as plain data.

Source: arXiv 2306.13831, package minigrid 3. The agent sees the cells before it, 7 x 7 as the levels come, as symbols.
Each cell becomes 20 numbers: one of 11 objects, one of 6 colours, one of 3 states of a door (open, closed, locked; for
what is no door: the first). Behind the cells, row after row, stand one of 4 directions, and for each blank that the
level's mission leaves open (the colour of a key, say) one of the words that may fill it; a mission that never changes
takes no number. All numbers are 0 or 1, uint8. The actions are MiniGrid's seven: turn left, turn right, go on, pick up,
drop, toggle, done (levels with moving obstacles: the first three). `success` is told: an episode succeeds when it ends
with a positive reward. The package's BabyAI levels have missions without such blanks and are not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from echelon.errors import EchelonError, UsageError

KINDS = (11, 6, 3)
"""Objects, colours and states of a door."""
DIRECTIONS = 4
FIXED = ("actions", "action_space", "observation_space", "spec", "_np_random", "obstacle_type", "window", "clock")
"""What a level has from the start, and what only a picture needs."""


class Symbolic(gymnasium.Wrapper[np.ndarray, int, Any, int]):
    """A MiniGrid level that shows vectors uint8[20 · cells + 4 + mission] and tells its successes."""

    def __init__(self, env: gymnasium.Env[Any, int]):
        super().__init__(env)
        seen: Any = env.observation_space
        cells = int(np.prod(seen["image"].shape[:2]))
        self._missions = missions(seen["mission"])
        self._cells = (np.arange(cells)[:, None] * sum(KINDS) + np.array([0, KINDS[0], KINDS[0] + KINDS[1]])).ravel()
        self._heading = cells * sum(KINDS)
        self._size = self._heading + DIRECTIONS + len(next(iter(self._missions.values())))
        self.observation_space = Box(0, 1, (self._size,), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        seen, info = self.env.reset(seed=seed, options=options)
        return self._vector(seen), info

    def step(self, action: int) -> Any:
        """Act."""
        seen, reward, terminated, truncated, info = self.env.step(action)
        return self._vector(seen), reward, terminated, truncated, {**info, "success": terminated and float(reward) > 0}

    def _vector(self, seen: Any) -> np.ndarray:
        words = self._missions.get(seen["mission"])
        if words is None:
            raise EchelonError(f"the level's mission space does not contain its mission '{seen['mission']}'")
        vector = np.zeros(self._size, np.uint8)
        vector[self._cells + seen["image"].ravel()] = 1
        vector[self._heading + int(seen["direction"])] = 1
        vector[self._heading + DIRECTIONS :] = words
        return vector


def missions(space: Any) -> dict[str, np.ndarray]:
    """Every mission of a level, and which words fill its blanks, one of n for each blank with n > 1: uint8[M].

    UsageError for another kind of missions, as BabyAI has them.
    """
    from minigrid.core.mission import MissionSpace

    if type(space) is not MissionSpace:
        raise UsageError(f"missions of the kind {type(space).__name__} are sentences that no network here reads")
    blanks = space.ordered_placeholders or []
    found: dict[str, np.ndarray] = {}
    for chosen in itertools.product(*(range(len(words)) for words in blanks)):
        text = space.mission_func(*(words[i] for words, i in zip(blanks, chosen, strict=True)))
        parts = [np.eye(len(words), dtype=np.uint8)[i] for words, i in zip(blanks, chosen, strict=True)]
        open_parts = [part for part in parts if len(part) > 1]
        found.setdefault(text, np.concatenate([np.zeros(0, np.uint8), *open_parts]))
    return found


# ---- where an episode stands


def is_level(base: gymnasium.Env[Any, Any]) -> bool:
    """Whether `base` is a level of MiniGrid."""
    return type(base).__module__.startswith("minigrid.envs.")


def level_state(base: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """All that a level remembers: plain data, tensors and the table of its objects; None if it has unknown ones.

    Objects are written once and named by number wherever they occur: a ball that is carried, one of the obstacles and
    what a room contains may be the same ball.
    """
    writer = _Writer()
    try:
        kept = {name: writer.plain(value) for name, value in vars(base).items() if name not in FIXED}
    except TypeError:
        return None
    return {"kept": kept, "objects": writer.objects}


def set_level(base: gymnasium.Env[Any, Any], state: Mapping[str, Any]) -> None:
    """Bring a level to the state that `level_state` gave."""
    classes = _classes()
    objects: list[Any] = [object.__new__(classes[name]) for name, _ in state["objects"]]

    def value(kept: Any) -> Any:
        if isinstance(kept, dict):
            return objects[kept["object"]]
        if isinstance(kept, torch.Tensor):
            return kept.numpy().copy()
        return type(kept)(map(value, kept)) if isinstance(kept, list | tuple) else kept

    for item, (_, attributes) in zip(objects, state["objects"], strict=True):
        vars(item).update({name: value(kept) for name, kept in attributes.items()})
    vars(base).update({name: value(kept) for name, kept in state["kept"].items()})


class _Writer:
    """Turns values into plain data, and objects into numbers of rows of `objects`: [class, attributes]."""

    def __init__(self) -> None:
        self.objects: list[list[Any]] = []
        self._numbers: dict[int, int] = {}
        self._classes = _classes()

    def plain(self, value: Any) -> Any:
        """`value` as plain data or a tensor. TypeError if it is, or holds, an object of an unknown class."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
        if isinstance(value, list | tuple):
            return type(value)(map(self.plain, value))
        return {"object": self._number(value)}

    def _number(self, item: Any) -> int:
        name = type(item).__name__
        if self._classes.get(name) is not type(item):
            raise TypeError(name)
        if id(item) not in self._numbers:
            self._numbers[id(item)] = len(self.objects)
            row: list[Any] = [name, {}]
            self.objects.append(row)
            row[1] = {attribute: self.plain(value) for attribute, value in vars(item).items()}
        return self._numbers[id(item)]


def _classes() -> dict[str, type]:
    """The classes of what levels are made of, by name."""
    from minigrid.core.grid import Grid
    from minigrid.core.roomgrid import Room
    from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall
    from minigrid.envs.lockedroom import LockedRoom
    from minigrid.envs.multiroom import MultiRoom

    made_of = (Grid, Room, LockedRoom, MultiRoom, Ball, Box, Door, Floor, Goal, Key, Lava, Wall)
    return {kind.__name__: kind for kind in made_of}
