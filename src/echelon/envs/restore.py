"""The state of gymnasium environments as plain data, to go on from in the middle of an episode.

Known: MuJoCo worlds of gymnasium (the whole integration state of the simulator), the mazes, the Fetch tasks and the
kitchen of gymnasium-robotics, MiniGrid, classic control, worlds that tell their state themselves, wrappers that count
steps. What is not known cannot be restored, and `state_of` says so by None: a run then goes on at an episode's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import gymnasium
import numpy as np
import torch

from echelon.envs.minigrid import is_level, level_state, set_level
from echelon.errors import DataError

CLASSIC = {
    "CartPoleEnv": ("state", "steps_beyond_terminated"),
    "MountainCarEnv": ("state",),
    "Continuous_MountainCarEnv": ("state",),
    "AcrobotEnv": ("state",),
    "PendulumEnv": ("state", "last_u"),
}
"""Class of gymnasium's classic control -> what it remembers."""
COUNTERS = ("_elapsed_steps", "_has_reset")
"""What wrappers remember. Checkers of spaces have flags that change no number."""
STATELESS = ("PassiveEnvChecker", "OrderEnforcing", "TimeLimit", "Symbolic", "Joined")
ROBOTICS = {
    "PointMazeEnv": ("goal", "reset_pos"),
    "AntMazeEnv": ("goal", "reset_pos"),
    "KitchenEnv": ("tasks_to_complete", "step_task_completions", "episode_task_completions"),
    "MujocoFetchReachEnv": ("goal",),
    "MujocoFetchPushEnv": ("goal",),
    "MujocoFetchSlideEnv": ("goal",),
    "MujocoFetchPickAndPlaceEnv": ("goal",),
}
"""Class of gymnasium-robotics -> what it remembers beside its simulator."""
BODIES = {
    "PointMazeEnv": ("point_env", ()),
    "AntMazeEnv": ("ant_env", ()),
    "KitchenEnv": ("robot_env", ("_last_robot_qpos",)),
}
"""Class of gymnasium-robotics -> the environment inside that moves its body, and what that remembers."""


def state_of(env: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """Where `env` stands: plain data and tensors; None if its class is not known here."""
    base = env.unwrapped
    inner = _inner(base)
    if inner is None or any(type(wrapper).__name__ not in STATELESS for wrapper in _wrappers(env)):
        return None
    counters = [{name: getattr(w, name) for name in COUNTERS if hasattr(w, name)} for w in _wrappers(env)]
    random = base.np_random.bit_generator.state
    return {"class": type(base).__name__, "inner": inner, "counters": counters, "random": _plain(random)}


def set_state(env: gymnasium.Env[Any, Any], state: dict[str, Any]) -> None:
    """Bring `env`, made as the one whose state it was, to that state."""
    base = env.unwrapped
    if type(base).__name__ != state["class"]:
        raise DataError(f"the state is one of {state['class']}, the environment a {type(base).__name__}")
    if _tells(base):
        base.load_state_dict(state["inner"])
    elif _is_robotics(base):
        _set_robot(base, state["inner"])
    elif _is_mujoco(base):
        set_simulator_state(base, state["inner"])
    elif is_level(base):
        set_level(base, state["inner"])
    else:
        for name, value in state["inner"].items():
            setattr(base, name, value.numpy().copy() if isinstance(value, torch.Tensor) else value)
    for wrapper, counters in zip(_wrappers(env), state["counters"], strict=True):
        for name, value in counters.items():
            setattr(wrapper, name, value)
    base.np_random.bit_generator.state = state["random"]


def _wrappers(env: gymnasium.Env[Any, Any]) -> Iterator[gymnasium.Env[Any, Any]]:
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


def _inner(base: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """What is inside of all wrappers."""
    if _tells(base):
        return base.state_dict()
    if _is_robotics(base):
        return _robot(base)
    if _is_mujoco(base):
        return simulator_state(base)
    return level_state(base) if is_level(base) else _remembered(base)


def _remembered(base: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    names = CLASSIC.get(type(base).__name__)
    if names is None or not type(base).__module__.startswith("gymnasium."):
        return None
    return {name: _kept(getattr(base, name)) for name in names if hasattr(base, name)}


def _kept(value: Any) -> Any:
    """Arrays as tensors of their own type, names as lists, numbers as they are."""
    if isinstance(value, np.ndarray | tuple):
        return torch.from_numpy(np.array(value))
    if isinstance(value, set | list):
        return sorted(value) if isinstance(value, set) else list(value)
    return value.item() if isinstance(value, np.generic) else value


def _tells(base: gymnasium.Env[Any, Any]) -> TypeGuard[Any]:
    return hasattr(base, "state_dict") and hasattr(base, "load_state_dict")


def _is_mujoco(base: gymnasium.Env[Any, Any]) -> bool:
    return type(base).__module__.startswith("gymnasium.envs.mujoco") and hasattr(base, "data")


def _is_robotics(base: gymnasium.Env[Any, Any]) -> bool:
    return type(base).__module__.startswith("gymnasium_robotics.") and type(base).__name__ in ROBOTICS


def _robot(base: Any) -> dict[str, Any]:
    """What a goal-directed task remembers, its simulator, and the body inside, where there is one."""
    name = type(base).__name__
    inside, remembers = BODIES.get(name, ("", ()))
    body = getattr(base, inside, None)
    return {
        "simulator": simulator_state(base),
        "remembered": {name: _kept(getattr(base, name)) for name in ROBOTICS[name]},
        "body": {name: _kept(getattr(body, name)) for name in remembers},
        "random": None if body is None else _plain(body.np_random.bit_generator.state),
    }


def _set_robot(base: Any, state: dict[str, Any]) -> None:
    body = getattr(base, BODIES.get(type(base).__name__, ("", ()))[0], None)
    for owner, kept in ((base, state["remembered"]), (body, state.get("body", {}))):
        for name, value in kept.items():
            array = isinstance(value, torch.Tensor)
            setattr(owner, name, value.numpy().copy() if array else type(getattr(owner, name))(value))
    set_simulator_state(base, state["simulator"])
    if body is not None:
        body.np_random.bit_generator.state = state["random"]
    if hasattr(base, "update_target_site_pos"):
        base.update_target_site_pos()  # what a picture shows


def simulator_state(base: Any) -> dict[str, Any]:
    """Where a MuJoCo world stands: its integration state, and what observations and rewards read of the step before."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    full = np.empty(mujoco.mj_stateSize(base.model, kind))
    mujoco.mj_getState(base.model, base.data, full, kind)
    # velocities of bodies and contact forces are read by some observations and rewards, and belong to the step before
    return {"integration": torch.from_numpy(full), **{name: torch.from_numpy(np.array(getattr(base.data, name)))
            for name in ("xpos", "xmat", "xipos", "cvel", "cfrc_ext", "cinert", "qfrc_actuator", "subtree_com",
                         "site_xpos", "geom_xpos", "geom_xmat", "ximat", "xquat")}}  # fmt: skip


def set_simulator_state(base: Any, state: dict[str, Any]) -> None:
    """Bring a MuJoCo world to what `simulator_state` told."""
    import mujoco

    full = state["integration"].numpy().copy()
    mujoco.mj_setState(base.model, base.data, full, mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, value in state.items():
        if name != "integration":
            getattr(base.data, name)[:] = value.numpy()


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in state.items()}
