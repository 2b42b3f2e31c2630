"""Worlds by name: as many episodes side by side as a run wants, and the spaces that its networks are built for."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from typing import Any

import gymnasium

from echelon.envs.grids import named_world
from echelon.envs.spaces import Spaces, spaces_of
from echelon.errors import MissingExtra, UsageError
from echelon.hierarchy.world import World, from_gym, from_vector

ROBOTICS = ("PointMaze_", "AntMaze_", "Fetch", "HandReach", "HandManipulate", "AdroitHand", "FrankaKitchen")
"""How names of environments from gymnasium-robotics begin: goal-directed tasks, seen as dicts with two goals."""


def make_world(name: str, slots: int, limit: int | None = None) -> World:
    """`slots` episodes of the environment `name`, cut off after `limit` steps. UsageError if there is none such."""
    own = named_world(name, slots, limit)
    if own is not None:
        return from_vector(own)
    return from_gym([make_env(name, limit) for _ in range(slots)])


def make_env(name: str, limit: int | None = None) -> gymnasium.Env[Any, Any]:
    """One gymnasium environment, or one of gymnasium-robotics."""
    if name.startswith(ROBOTICS):
        _register_robotics(name)
    try:
        return gymnasium.make(name, max_episode_steps=limit)
    except gymnasium.error.Error as error:
        raise UsageError(f"environment '{name}': {error}") from error


def world_spaces(name: str) -> Spaces:
    """What the environment `name` shows and takes."""
    own = named_world(name, 1)
    if own is not None:
        return spaces_of(own.single_observation_space, own.single_action_space)
    env = make_env(name)
    try:
        return spaces_of(env.observation_space, env.action_space)
    finally:
        env.close()


def _register_robotics(name: str) -> None:
    """Make the names of gymnasium-robotics known. MissingExtra without that package."""
    if name in gymnasium.registry:
        return
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # it tells of a missing display
            import gymnasium_robotics
    except ImportError:
        raise MissingExtra("gymnasium-robotics", "control") from None
    gymnasium.register_envs(gymnasium_robotics)
