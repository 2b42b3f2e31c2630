"""Worlds by name: as many episodes side by side as a run wants, and the spaces that its networks are built for."""

from __future__ import annotations

import importlib
import io
import re
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.wrappers import TimeLimit

from echelon.envs.grids import named_world
from echelon.envs.joined import Joined, has_inner_dicts
from echelon.envs.metaworld import LIMIT, TaskEnv
from echelon.envs.minigrid import Symbolic
from echelon.envs.spaces import Spaces, spaces_of
from echelon.errors import MissingExtra, UsageError
from echelon.hierarchy.world import World, from_gym, from_vector

PACKAGES = {
    "minigrid": ("MiniGrid-",),
    "gymnasium_robotics": (
        "PointMaze_",
        "AntMaze_",
        "Fetch",
        "HandReach",
        "HandManipulate",
        "AdroitHand",
        "FrankaKitchen",
    ),
}
"""Package -> how names of its environments begin. MiniGrid is seen as vectors, robots' tasks as dicts of goals."""
METAWORLD = re.compile(r"metaworld-([a-z-]+)-v3")
"""A task of metaworld, as `envs.metaworld.TaskEnv` has it."""
EXTRA = "control"
"""The extra with which these packages come."""


def make_world(name: str, slots: int, limit: int | None = None) -> World:
    """`slots` episodes of the environment `name`, cut off after `limit` steps. UsageError if there is none such."""
    own = named_world(name, slots, limit)
    if own is not None:
        return from_vector(own)
    return from_gym([make_env(name, limit) for _ in range(slots)])


def make_env(name: str, limit: int | None = None) -> gymnasium.Env[Any, Any]:
    """One gymnasium environment, of gymnasium itself or of a package in `PACKAGES`.

    UsageError if there is none of the name or it cannot be built, MissingExtra if its package is not installed.
    """
    if task := METAWORLD.fullmatch(name):
        return TimeLimit(TaskEnv(task[1]), LIMIT if limit is None else limit)
    package = next((package for package, begins in PACKAGES.items() if name.startswith(begins)), None)
    if package is not None:
        _register(package, name)
    checked = {"disable_env_checker": True} if name.startswith("FrankaKitchen") else {}  # its goals are one object
    try:
        env = gymnasium.make(name, max_episode_steps=limit, **checked)
    except gymnasium.error.DependencyNotInstalled as error:
        if "mujoco" in str(error).lower():
            raise MissingExtra("mujoco", EXTRA) from error
        raise UsageError(f"environment '{name}': {error}") from error
    except Exception as error:  # whatever an environment raises, its name belongs in the message
        what = error if isinstance(error, gymnasium.error.Error) else f"{type(error).__name__}: {error}"
        raise UsageError(f"environment '{name}': {what}") from error
    if package == "minigrid":
        return Symbolic(env)
    model = getattr(env.unwrapped, "tmp_xml_file_path", None)
    if model is not None:
        Path(model).unlink(missing_ok=True)  # a maze's model, written to a temporary file and loaded by now
    return Joined(env) if has_inner_dicts(env.observation_space) else env


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


def _register(package: str, name: str) -> None:
    """Make the names of a package known. MissingExtra without it."""
    if name in gymnasium.registry:
        return
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # one of them tells of a missing display
            module = importlib.import_module(package)
    except ImportError:
        raise MissingExtra(package.replace("_", "-"), EXTRA) from None
    gymnasium.register_envs(module)
