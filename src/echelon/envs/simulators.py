"""Building OGBench's simulators so that a seeded reset alone decides what follows.

As packaged, the manipulation environments draw their settling steps from a new unseeded generator at every reset, and
the scene keeps the damping of a locked drawer or window from one episode to the next. Both are undone here.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from echelon.envs.catalog import EnvInfo


def build(info: EnvInfo, collecting: bool = False) -> Any:
    """The bare simulator of an environment, without wrappers or time limit; it never ends an episode when `collecting`.

    Mazes draw the noise on start and goal and their teleports from NumPy's global generator.
    """
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="glfw")  # it warns of a missing display, and nothing is drawn here
        import ogbench  # noqa: F401  (registers the environments)

        spec = gymnasium.spec(info.simulator or info.name)
        create: Any = load_env_creator(str(spec.entry_point))
    settings = {**spec.kwargs, "terminate_at_goal": not collecting}
    if isinstance(create, type):
        mode = "data_collection" if collecting else "task"
        return _repeatable(create)(mode=mode, **settings)
    env = create(**settings)
    Path(env.fullpath).unlink(missing_ok=True)  # the model, written to a temporary file and loaded by now
    return env


@lru_cache
def _repeatable(base: Any) -> Any:
    """`base`, a manipulation environment, with resets that depend on their seed alone."""
    from gymnasium.spaces import Box

    class Repeatable(base):
        _box: Box | None = None
        _damping: np.ndarray | None = None

        @property
        def action_space(self) -> Box:
            if self._box is None:
                self._box = Box(-1.0, 1.0, (5,), np.float32)
            return self._box

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            if seed is not None:
                self.action_space.seed(seed)
            if self._damping is not None:
                self.model.dof_damping[:] = self._damping
            observation, info = super().reset(options=options, seed=seed)
            return observation, info

        def post_compilation(self) -> None:
            self._damping = self.model.dof_damping.copy()
            super().post_compilation()

    return Repeatable
