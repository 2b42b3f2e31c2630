"""Configurations of record for online systems: published size, CPU size and demo, side by side."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from echelon.claims import Arm
from echelon.errors import unknown
from echelon.training.online.config import OnlineConfig
from echelon.training.online.worlds import world_spaces

C = TypeVar("C", bound=OnlineConfig)

UMAZE, UMAZE_DENSE = "PointMaze_UMaze-v3", "PointMaze_UMazeDense-v3"
ANT, ANT_DENSE = "AntMaze_UMaze-v5", "AntMaze_UMazeDense-v5"
UMAZE_CPU: dict[str, Any] = {
    "slots": 4,
    "ticks": 50,
    "updates": 400,
    "limit": 200,
    "random_steps": 2_000,
    "hidden": (64, 64),
    "batch_size": 128,
    "capacity": 100_000,
    "lr": 1e-3,
    "eval_every": 10,
    "log_every": 10,
    "checkpoint_every": 100,
}
"""What goal-directed systems have in common there: 80 000 steps, a gradient step each, 20 episodes every 2 000."""
UMAZE_OF: dict[str, dict[str, Any]] = {
    "sac-her": {},
    "hiro": {"reach": (0.5,)},
    "hac": {"low": (-1.5, -1.5), "high": (1.5, 1.5), "near": (0.45,), "horizon": 15},
}
"""What each gets there at every size: places are within the walls, a step moves 5 cm at most."""
DENSE_OF: dict[str, dict[str, Any]] = {"sac-her": {**UMAZE_OF["sac-her"], "threshold": 0.45}, "hiro": UMAZE_OF["hiro"]}
"""The same where rewards tell how near the goal is; hindsight does without: reached or not."""
UMAZE_OF_CPU: dict[str, dict[str, Any]] = {
    "sac-her": {},
    "hiro": {"manager_gamma": 0.95, "actor_lr": 1e-3},
    "hac": {"batch_size": 256, "rate": 0.02, "random": 0.3, "noise": 0.2},
}
"""What each gets in both at the CPU size beside `UMAZE_CPU`."""

MOVING = "four-rooms@8000"
"""Four rooms; after 8 000 steps of each slot the goal is in another place."""
ROOMS: dict[str, Any] = {"slots": 16, "limit": 500, "hidden": (), "checkpoint_every": 630}
"""What all have in common there: tables, and 40 320 steps of each slot, enough for a thousand episodes that all fail
after the goal has moved."""
ROOMS_REPLAYED: dict[str, Any] = {
    **ROOMS,
    "ticks": 8,
    "updates": 5_040,
    "random_steps": 1_024,
    "capacity": 20_000,
    "batch_size": 128,
    "gradient_ratio": 1 / 32,
    "epsilon_steps": 20_000,
    "copy_every": 4,
    "log_every": 100,
    "eval_every": 1_000,
}
ROOMS_ON_POLICY: dict[str, Any] = {
    **ROOMS,
    "ticks": 64,
    "updates": 630,
    "minibatch": 256,
    "epochs": 4,
    "entropy": 0.03,
    "log_every": 10,
    "eval_every": 125,
}
REPLAYED_CPU: dict[str, Any] = {
    "ticks": 16,
    "updates": 1_600,
    "eval_every": 160,
    "log_every": 20,
    "checkpoint_every": 400,
}
"""About 100 000 steps of CartPole for who learns from replay."""
ROOMS_OF: dict[str, dict[str, Any]] = {
    "dqn": {**ROOMS_REPLAYED, "lr": 1e-3},
    "option-critic": {
        **ROOMS_REPLAYED,
        "lr": 2e-3,
        "policy_lr": 0.05,
        "termination_lr": 1.25e-4,
        "deliberation_cost": 0.01,
        "epsilon_end": 0.1,
    },
    "flat-ppo": {**ROOMS_ON_POLICY, "lr": 0.005},
    "ppoc": {
        **ROOMS_ON_POLICY,
        "lr": 0.03,
        "options": 4,
        "termination_lr": 3.75e-4,
        "option_entropy": 0.3,
        "deliberation_cost": 0.01,
    },
}
"""What each gets in four rooms, at every size."""

MOUNTAIN = "MountainCarContinuous-v0"
SKILLS: dict[str, Any] = {"cell": (0.1, 0.01), "window": 8_000, "limit": 200}
"""What systems that learn skills have in common on the hill, at every size: cells of place and velocity."""
SKILLS_CPU: dict[str, Any] = {
    "slots": 8,
    "ticks": 50,
    "updates": 400,
    "limit": 200,
    "random_steps": 4_000,
    "hidden": (32, 32),
    "batch_size": 128,
    "capacity": 8_000,
    "gradient_ratio": 0.125,
    "gamma": 0.98,
    "rate": 0.02,
    "lr": 2e-3,
    "eval_every": 200,
    "eval_episodes": 8,
    "log_every": 10,
    "checkpoint_every": 100,
}
"""160 000 steps, a gradient step for each eight; in a long replay the states of earlier skills would hide those of the
present ones, and the discriminator stay near chance."""
DADS_CPU: dict[str, Any] = {**SKILLS_CPU, "others": 16, "gradient_ratio": 0.128}
MANAGER_CPU: dict[str, Any] = {
    **{name: SKILLS_CPU[name] for name in ("slots", "ticks", "random_steps", "gradient_ratio")},
    "limit": 400,
    "hidden": (64, 64),
    "skills": 10,
    "sees": (1,),
    "hold": 20,
    "gamma": 0.99,
    "updates": 200,
    "capacity": 50_000,
    "lr": 1e-3,
    "epsilon_steps": 40_000,
    "copy_every": 100,
    "skill_updates": 400,
    "skill_random_steps": 4_000,
    "skill_hidden": (32, 32),
    "skill_lr": 2e-3,
    "skill_gamma": 0.98,
    "skill_capacity": 8_000,
    "skill_rate": 0.02,
    "eval_every": 20,
    "log_every": 10,
    "checkpoint_every": 50,
}
"""The skills' 160 000 steps, and half as many of the manager's; told apart by velocity, skills swing."""
NEW_TASK = "metaworld-door-lock-v3"
"""A task whose expert is in none of the data."""
NEW_TASK_PUBLISHED: dict[str, Any] = {"slots": 8, "ticks": 2_048, "updates": 6_104, "minibatch": 1_024, "lr": 5e-5}
"""MoCapAct's transfer: 100 M steps, 16 384 an iteration."""
NEW_TASK_CPU: dict[str, Any] = {
    "slots": 8,
    "ticks": 200,
    "updates": 75,
    "minibatch": 200,
    "lr": 1e-3,
    "eval_every": 25,
    "eval_episodes": 20,
    "log_every": 5,
    "checkpoint_every": 25,
}
"""120 000 steps, 600 episodes."""
DISTIL_CPU: dict[str, Any] = {
    "latent": 8,
    "encoder_hidden": (128, 128),
    "decoder_hidden": (128, 128, 128),
    "distil_updates": 5_000,
    "distil_batch": 32,
    "distil_lr": 1e-3,
    "distil_beta": 0.01,
    "initial_std": 1.0,
}
"""What the transfer gets beside, as `mocapact` has it; latents vary as far as their prior does."""
FEUDAL_CPU: dict[str, Any] = {
    "slots": 8,
    "ticks": 64,
    "updates": 400,
    "core": "mlp",
    "size": 32,
    "embedding": 8,
    "hidden": 64,
    "lr": 2e-3,
    "eval_every": 50,
    "log_every": 10,
    "checkpoint_every": 50,
}
"""A smoke test without LSTMs: 204 800 steps, a gradient step for each 512."""
PLANS: dict[str, Any] = {"sees": (0, 1), "cell": (0.25,), "window": 8_000, "hold": 20, "plan": 3, "limit": 200}
"""Plans over skills in the maze, at every size: places are seen, and goals are places."""

SIZES: dict[str, dict[str, Any]] = {"published": {}, "cpu": {}, "demo": {}}
SYSTEMS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("diayn", MOUNTAIN): {
        size: SKILLS | ({} if size == "published" else {**SKILLS_CPU, "skills": 10}) for size in SIZES
    },
    ("dads", MOUNTAIN): {size: SKILLS | ({} if size == "published" else DADS_CPU) for size in SIZES},
    ("dads", UMAZE): {
        size: PLANS | ({} if size == "published" else {**DADS_CPU, "samples": 32, "rounds": 3, "eval_episodes": 20})
        for size in SIZES
    },
    ("feudal", "CartPole-v1"): {size: {} if size == "published" else FEUDAL_CPU for size in SIZES},
    ("diayn-manager", MOUNTAIN): {size: {} if size == "published" else MANAGER_CPU for size in SIZES},
    ("ppo-scratch", NEW_TASK): {size: NEW_TASK_PUBLISHED if size == "published" else NEW_TASK_CPU for size in SIZES},
    ("mocapact-transfer", NEW_TASK): {
        size: NEW_TASK_PUBLISHED if size == "published" else {**NEW_TASK_CPU, **DISTIL_CPU} for size in SIZES
    },
    ("sac-her", ANT_DENSE): {size: {"threshold": 0.45} for size in SIZES},
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
    **{
        (system, "CartPole-v1"): {"published": {}, "cpu": REPLAYED_CPU, "demo": {**REPLAYED_CPU, "updates": 320}}
        for system in ("dqn", "option-critic")
    },
    **{(system, MOVING): dict.fromkeys(SIZES, own) for system, own in ROOMS_OF.items()},
    **{
        (system, env): {
            "published": own,
            "cpu": {**UMAZE_CPU, **own, **UMAZE_OF_CPU[system]},
            "demo": {**UMAZE_CPU, **own, **UMAZE_OF_CPU[system], "updates": 50},
        }
        for env, settings in ((UMAZE, UMAZE_OF), (UMAZE_DENSE, DENSE_OF))
        for system, own in settings.items()
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
