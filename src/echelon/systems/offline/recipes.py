"""Configurations of record for the offline goal-conditioned systems: published size, CPU size and demo, side by side.

A recipe is a function of (system, environment). What depends on the environment follows OGBench's hyper-parameter list
(arXiv 2410.20092) and, for OTA and SAW, their released command lines (arXiv 2505.12737, 2505.14975).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from echelon.claims import Arm
from echelon.envs.catalog import environment
from echelon.errors import unknown
from echelon.training.config import Config

SIZES: dict[str, dict[str, Any]] = {
    # 3 x 512 networks, 1 M updates: 2-5 hours on one A5000 in the reference implementation
    "published": {},
    # what two CPU cores finish in minutes; both the method and its baseline always get the same
    "cpu": {
        "updates": 30_000,
        "batch_size": 256,
        "transitions": 500_000,
        "planning_states": 5_000,
        "planning_neighbours": 5,  # a thousandth of the states, as published
        "hidden": (256, 256),
        "diffuser_hidden": (256, 256, 256, 256),
        "samples": 64,
        "eval_every": 5_000,
        "eval_episodes": 20,
        "log_every": 500,
        "checkpoint_every": 5_000,
    },
    "demo": {
        "updates": 20_000,
        "batch_size": 256,
        "transitions": 250_000,
        "planning_states": 5_000,
        "planning_neighbours": 5,  # a thousandth of the states, as published
        "hidden": (256, 256),
        "diffuser_hidden": (256, 256, 256, 256),
        "samples": 64,
        "eval_every": 2_500,
        "eval_episodes": 10,
        "log_every": 250,
        "checkpoint_every": 2_500,
    },
}

CLONING: dict[str, dict[str, float]] = {
    "gciql": {"pointmaze": 0.003, "antmaze": 0.3, "humanoidmaze": 0.1, "antsoccer": 0.1, "explore": 0.01}
    | {"play": 1.0, "noisy": 0.03},
    "crl": {"pointmaze": 0.03, "antmaze": 0.1, "humanoidmaze": 0.1, "antsoccer": 0.3, "explore": 0.003}
    | {"play": 3.0, "noisy": 0.1},
    "qrl": {"pointmaze": 0.0003, "antmaze": 0.003, "humanoidmaze": 0.001, "antsoccer": 0.003, "explore": 0.001}
    | {"play": 0.3, "noisy": 0.03},
}
"""OGBench's weight of the cloning term in DDPG+BC, by world, or by the kind of the data."""

SHORT: dict[str, dict[str, Any]] = {
    # a distance of n steps is learned after some n / target_rate updates: 60,000 for an episode, at the published rate
    "hilp": {"target_rate": 0.03},
    # in Fetch goals are centimetres apart, experts few and episodes 50 steps long
    "smore": {"normalize": True, "discount": 0.97, "target_rate": 0.05, "lr": 1e-3, "future": 0.2}
    | {"step_reward": -1.0, "expectile": 0.9},
    # a transformer over a window: fewer updates of a narrower one; the rate falls by as much in all
    "beso": {"updates": 15_000, "transitions": 200_000, "embed_dim": 64, "heads": 4, "lr": 1e-3, "lr_every": 50}
    | {"dropout": 0.0, "attention_dropout": 0.0, "denoiser_hidden": (256, 256, 256), "goal_within": 100},
    # frames of 20 steps and 8 sparse ones, by narrower and fewer blocks
    "act2goal": {"updates": 12_000, "joint_updates": 8_000, "batch_size": 64, "proximal": 20, "frame_stride": 5}
    | {"distal": 8, "play": 10, "flow_steps": 5, "lr": 1e-3, "world_dim": 64, "world_hidden": (128,) * 3}
    | {"expert_dim": 32, "expert_hidden": (64,) * 3, "eval_every": 3_000, "checkpoint_every": 3_000},
    # half the window, narrower layers
    "decision-transformer": {"updates": 15_000, "batch_size": 64, "lr": 1e-3, "window": 10, "embed_dim": 64}
    | {"heads": 4, "transformer_hidden": (128,) * 3, "dropout": 0.0},
    # 240 short demonstrations; one evaluation, of 24 tasks
    "uvd": {"updates": 15_000, "lr": 1e-3, "eval_every": 15_000, "eval_episodes": 4},
    # as far a horizon in half the places, four scales
    "mage": {"updates": 12_000, "batch_size": 64, "horizon": 32, "stride": 8, "scales": (1, 4, 16, 32), "codes": 128}
    | {"code_dim": 32, "autoencoder_hidden": (64,), "embed_dim": 64, "transformer_hidden": (128, 128)}
    | {"lr": 1e-3, "goal_within": 256, "eval_every": 4_000, "checkpoint_every": 4_000},
    # 200 episodes; the generator stays small, so that it has something to be corrected
    "ghil-glue": {"updates": 15_000, "warmup": 500, "transitions": 100_000, "lr": 1e-3, "generator_hidden": (128, 128)}
    | {"eval_every": 15_000, "eval_episodes": 15},
    # narrow networks and short batches, for a set of 29,000 steps; of 4 numbers an action, not 56, a weaker prior
    "mocapact": {"updates": 5_000, "batch_size": 32, "lr": 1e-3, "latent": 8, "encoder_hidden": (128, 128)}
    | {"decoder_hidden": (128, 128, 128), "beta": 0.01, "eval_every": 5_000, "checkpoint_every": 2_500},
}
"""What a system needs where updates are few; at the published size there are enough of them."""


def recipe(cls: type[Config], env: str, size: str = "published") -> Config:
    """The configuration of record of the system that `cls` configures, for an environment and a size."""
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    fields = {f.name for f in dataclasses.fields(cls)}
    settings = dict(SIZES[size])
    hidden = settings.pop("hidden", None)
    if hidden is not None:
        settings |= {name: hidden for name in ("actor_hidden", "value_hidden")}
    settings |= environment_settings(cls.system, env)
    if size != "published":
        settings |= SHORT.get(cls.system, {})
    return cls(env=env, **{name: value for name, value in settings.items() if name in fields})


def arm(cls: type[Config], env: str, size: str, name: str = "", **changes: Any) -> Arm:
    """One side of a claim: the recipe with each seed, with `changes` to its fields if it is not the system as it is."""
    config = dataclasses.replace(recipe(cls, env, size), **changes)
    return Arm(name or cls.system.upper(), lambda seed: dataclasses.replace(config, seed=seed))


def check(config: Config) -> None:
    """Refuse an environment that does not exist."""
    environment(config.env)


def environment_settings(system: str, env: str) -> dict[str, Any]:
    """What OGBench's commands of record set for an environment; `recipe` drops what a system lacks."""
    world, *_ = env.split("-")
    kind = env.rsplit("-", 2)[1] if env.count("-") >= 2 else ""
    maze = world in ("pointmaze", "antmaze", "humanoidmaze", "antsoccer")
    settings: dict[str, Any] = {
        "discount": 0.995 if world == "humanoidmaze" or "giant" in env else 0.99,
        "subgoal_steps": 100 if world == "humanoidmaze" else 25 if maze else 10,
    }
    if system not in ("gcbc", "hilp"):
        settings["actor_p_random"] = {"stitch": 0.5, "explore": 1.0}.get(kind, 0.0)
    if system in CLONING:
        known = world if maze else "noisy" if kind == "noisy" else "play"
        settings["alpha"] = CLONING[system]["explore" if kind == "explore" else known]
    if system in ("hiql", "ota") and env.startswith("antmaze") and kind == "explore":
        settings |= {"low_alpha": 10.0, "high_alpha": 10.0}
    if system == "hecrl" and world == "scene":
        settings |= {"hold_steps": 50, "num_subgoals": 16, "samples": 64, "reach": -25.0}
    if system == "uvd" and world == "scene":
        settings |= {"embedding": "scene", "hold_out": kind == "orders"}
    if system == "saw":
        single = env.startswith("cube-single")
        settings["kl_alpha"] = 3.0 if maze else 0.3 if single else 1.0
        if single:
            settings["expectile"] = 0.9
    return settings
