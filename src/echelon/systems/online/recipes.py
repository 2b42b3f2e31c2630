"""Configurations of record for online systems: published size, CPU size and demo, side by side."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from echelon.claims import Arm
from echelon.errors import unknown
from echelon.training.online.config import OnlineConfig
from echelon.training.online.worlds import world_spaces

C = TypeVar("C", bound=OnlineConfig)

SIZES: dict[str, dict[str, Any]] = {"published": {}, "cpu": {}, "demo": {}}
SYSTEMS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    # eight environments side by side, as the peers' tuned settings have it
    ("flat-ppo", "CartPole-v1"): {
        size: {
            "slots": 8,
            "ticks": 32,
            "updates": 400,
            "minibatch": 256,
            "epochs": 20,
            "gamma": 0.98,
            "lam": 0.8,
            "lr": 1e-3,
            "decay": True,
            "eval_every": 50,
            "checkpoint_every": 50,
        }
        for size in SIZES
    },
}
"""(system, environment) -> size -> what this system gets there instead of its defaults."""


def recipe(cls: type[C], env: str, size: str = "published") -> C:
    """The configuration of record of the system that `cls` configures, for an environment and a size."""
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    return cls(env=env, **{**SIZES[size], **SYSTEMS.get((cls.system, env), {}).get(size, {})})


def arm_of(config: OnlineConfig, name: str = "") -> Arm:
    """One side of a claim: `config` with each seed, called like its system unless there is a better name."""
    return Arm(name or config.system, lambda seed: dataclasses.replace(config, seed=seed))


def check(config: OnlineConfig) -> None:
    """Refuse an environment that does not exist."""
    world_spaces(config.env)
