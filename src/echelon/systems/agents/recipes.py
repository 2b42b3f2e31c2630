"""Configurations of record for language agents: published size, CPU size, demo and a real small model, side by side.

The published numbers of an iteration (150 of them, 16 tasks of 8 episodes, arXiv 2505.10978) are the defaults of
`LanguageConfig`. The paper's model is an instruct model of 1.5 B or more, given by `--model PATH`, together with
`--warm-episodes 0 --lr 1e-6 --max-tokens 512`; here the model is small and imitates the world's expert first.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from echelon.claims import Arm
from echelon.errors import unknown
from echelon.language.worlds.world import check_kinds, make
from echelon.training.language.config import LanguageConfig

C = TypeVar("C", bound=LanguageConfig)

SIZES: dict[str, dict[str, Any]] = {
    "published": {},
    # what two CPU cores finish in some ten minutes; both the method and its baseline always get the same
    "cpu": {
        "layers": 4,
        "width": 128,
        "tasks": 8,
        "group": 8,
        "updates": 40,
        "eval_every": 5,
        "eval_episodes": 32,
        "checkpoint_every": 5,
    },
    "demo": {
        "layers": 2,
        "width": 64,
        "warm_episodes": 500,
        "tasks": 4,
        "group": 4,
        "updates": 10,
        "eval_every": 5,
        "eval_episodes": 8,
        "checkpoint_every": 5,
    },
    # A pretrained model (SmolLM2-135M-Instruct): about an hour of two cores with bfloat16 instructions.
    "smollm2": {
        "model": "smollm2",
        "dtype": "bfloat16",
        "warm_lora": 16,
        "warm_episodes": 400,
        "warm_epochs": 2,
        "warm_batch": 4,
        "warm_lr": 5e-4,
        "warm_reading": 0.0,
        "warm_valid": 0.85,  # of some hundred actions: 80 % and more of all, but for one look in ten
        "lora": 16,
        "lr": 5e-5,
        "tasks": 4,
        "group": 8,
        "updates": 40,
        "eval_every": 10,
        "eval_episodes": 16,
        "checkpoint_every": 5,
    },
}

_HOUSEHOLD: dict[str, Any] = {
    "limit": 15,
    "max_tokens": 12,
    "kinds": ("heat", "cool"),
    "options": ("receptacles=7", "distractors=3"),
}
_ITEMS: dict[str, Any] = {"limit": 12, "max_tokens": 24, "kinds": ("depth1", "depth2")}
_QUESTION: dict[str, Any] = {"limit": 1, "max_tokens": 24}
WORLDS: dict[str, dict[str, dict[str, Any]]] = {
    "alfworld": {
        "published": {"limit": 50},
        # All actions are well-formed here, for nothing is written around them; where those that the world does not
        # understand were penalised (seed 100), the model soon did nothing but what is always possible, such as to look.
        "cpu": {
            **_HOUSEHOLD,
            "warm_episodes": 4_000,
            "warm_lr": 3e-3,
            "lr": 1.5e-4,
            "invalid_penalty": 0.0,
            "updates": 60,
            "eval_every": 10,
            "eval_episodes": 75,
            "eval_temperature": 1.0,
            "checkpoint_every": 10,
        },
        "demo": _HOUSEHOLD,
        "smollm2": {**_HOUSEHOLD, "max_tokens": 24},
    },
    "textcraft": {"published": {"limit": 40}, "cpu": _ITEMS, "demo": _ITEMS, "smollm2": {**_ITEMS, "limit": 10}},
    "reasoning": {"published": {"limit": 1}, "cpu": _QUESTION, "demo": _QUESTION, "smollm2": _QUESTION},
}
"""World -> size -> what every system gets there."""
_SUMS: dict[str, Any] = {
    "kinds": tuple(f"chain_sum-{terms}" for terms in range(2, 6)),
    "options": ("redundancy=2", "hurry=0.15"),
    "context": 224,
    "warm_reading": 0.0,
    "group": 16,
}
_CRAFTS: dict[str, Any] = {
    "kinds": tuple(f"depth{depth}-{count}" for depth in (1, 2) for count in (0, 10, 30)),
    "eval_kinds": tuple(f"depth{depth}-{count}" for depth in (1, 2) for count in (0, 10, 30, 100)),
    "context": 2048,
}
# No groups are compared here, so that more tasks are better than more episodes of each.
_PLANS: dict[str, dict[str, Any]] = {
    "cpu": {
        "kinds": ("heat", "cool", "two"),
        "limit": 18,
        "tasks": 15,
        "group": 4,
        "updates": 40,
        "eval_every": 10,
        "eval_episodes": 50,
    },
}
SYSTEMS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("hiper", "alfworld"): _PLANS,
    ("ppo-plan", "alfworld"): _PLANS,
    ("coda", "textcraft"): {
        "published": {"kinds": _CRAFTS["kinds"], "eval_kinds": _CRAFTS["eval_kinds"], "context": 2048},
        "cpu": {
            **_CRAFTS,
            "layers": 3,
            "width": 96,
            "warm_episodes": 2_400,
            "warm_batch": 4,  # goals that are not trained must be read: more and smaller steps teach that sooner
            "warm_lr": 2e-3,
            "warm_reading": 0.3,
            "tasks": 12,
            "tokens": 1_600_000,
            "lr": 1e-4,
            "invalid_penalty": 0.0,
            "updates": 200,
            "eval_every": 200,
            "eval_episodes": 96,
            "eval_temperature": 1.0,
        },
        "demo": {**_CRAFTS, "tasks": 6, "eval_episodes": 2},
    },
    ("hbpo", "reasoning"): {
        "published": {**_SUMS, "tasks": 64, "minibatches": 4, "updates": 629, "eval_episodes": 800},
        "cpu": {
            **_SUMS,
            "layers": 3,
            "width": 96,
            "warm_episodes": 5_000,
            "warm_epochs": 12,
            "warm_lr": 3e-3,
            "warm_batch": 16,
            "budgets": (24, 40, 72, 88),  # the published ones over 32, and 8 for the announcement itself
            "lr": 1e-4,
            "updates": 80,
            "eval_every": 40,
            "eval_episodes": 800,  # more than 2,000 distinct questions: there are few of two terms
            "checkpoint_every": 10,
        },
        "demo": {**_SUMS, "group": 8},
    },
}
"""(system, world) -> size -> what this system gets there instead."""


def recipe(cls: type[C], env: str, size: str = "published") -> C:
    """The configuration of record of the system that `cls` configures, for a text world and a size."""
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    world = WORLDS.get(env, {}).get(size, {})
    own = SYSTEMS.get((cls.system, env), {}).get(size, {})
    return cls(env=env, **{**SIZES[size], **world, **own})


def arm_of(config: LanguageConfig, name: str = "") -> Arm:
    """One side of a claim: `config` with each seed, called like its system unless there is a better name."""
    return Arm(name or config.system, lambda seed: dataclasses.replace(config, seed=seed))


def check(config: LanguageConfig) -> None:
    """Refuse a world or kinds of tasks that do not exist, and a world whose package is not installed."""
    world = make(config.env, limit=config.limit)
    check_kinds(config.env, config.kinds or world.kinds, world.kinds + world.variants)
    check_kinds(config.env, config.eval_kinds or world.kinds, world.kinds + world.variants)
