"""MoCapAct's transfer: PPO learns a task over the latents of a decoder that was distilled from other tasks' experts.

Idea: a decoder that turns any plausible latent into plausible motion explores better than noise on actions does. So it
is frozen, and a new task's policy says latents in its place.
Source: arXiv 2208.07363 and its released code (github.com/microsoft/MoCapAct), the transfer tasks.
Levels: `latent`, PPO's policy: what the world shows -> latent, every step > `action`, MoCapAct's decoder, frozen:
(state, latent) -> action, every step.
Shares with `mocapact`: the distillation, a stage of its own; with `ppo-scratch`: how the policy learns.
Options: `initial_std` 2.5 and `latent_bound` 3 are the released ones.
Deviations: tasks of metaworld, on which its scripts were not distilled; PPO stops no epoch early by the divergence
(released: a target of .3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from echelon.claims import Above, Claim, Score, success
from echelon.envs.spaces import Spaces
from echelon.errors import DataError, UsageError
from echelon.systems.offline.mocapact import MoCapAct, MoCapActConfig
from echelon.systems.online.latent_ppo import LatentPPO, LatentPPOConfig
from echelon.systems.online.scratch_ppo import ScratchPPO
from echelon.training import run
from echelon.training.agent import DataSpec
from echelon.training.metrics import read_jsonl
from echelon.training.stages import Plan, Stage, StageResult

READ = "observation"
"""The observation that the decoder reads: states as the data have them."""


class MoCapActTransfer(LatentPPO):
    """A policy of latents, its value, and the decoder."""

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(LatentPPOConfig):
        """Hyper-parameters of PPO, and of the distillation's stage (its defaults: those of `mocapact`)."""

        system: ClassVar[str] = "mocapact-transfer"
        env: str = "metaworld-door-lock-v3"
        """Environment; what it shows as "observation" are states like those of the data."""
        data: str = "metaworld-experts-v0"
        """Data set from which the decoder is distilled."""
        transitions: int | None = None
        """Distil from the first episodes that hold this many transitions; all when absent."""
        distil_updates: int = 100_000
        """Gradient steps of the distillation (released: 100 k)."""
        distil_batch: int = 256
        """Sequences a batch (released: 256)."""
        distil_lr: float = 5e-4
        """Adam's learning rate for the distillation (released: 5e-4)."""
        distil_beta: float = 0.1
        """Weight of the divergence from the prior (released: .1)."""
        encoder_hidden: tuple[int, ...] = (1024, 1024)
        """Hidden layers of the encoder (released: 1024, 1024)."""
        decoder_hidden: tuple[int, ...] = (1024, 1024, 1024)
        """Hidden layers of the decoder (released: 1024 three times)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.distil_stage()

        def distil_stage(self) -> MoCapActConfig:
            """The configuration of the distillation's stage."""
            every = max(1, self.distil_updates // 4)
            return MoCapActConfig(
                env=self.data,
                seed=self.seed,
                transitions=self.transitions,
                updates=self.distil_updates,
                batch_size=self.distil_batch,
                lr=self.distil_lr,
                beta=self.distil_beta,
                latent=self.latent,
                encoder_hidden=self.encoder_hidden,
                decoder_hidden=self.decoder_hidden,
                eval_every=self.distil_updates,
                eval_episodes=1,
                log_every=max(1, every // 25),
                checkpoint_every=every,
            )

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        spec = DataSpec(spaces.size(READ), len(spaces.low))
        self.decoder = MoCapAct(config.distil_stage(), spec).decoder.requires_grad_(False)

    @classmethod
    def stages(cls, config: Config) -> Plan:
        """The distillation."""
        yield Stage("distil", lambda: MoCapAct, config.distil_stage, config.distil_updates)

    def build_on(self, results: Sequence[StageResult]) -> None:
        learned, _ = run.load_agent(MoCapAct, results[0].path)
        sizes = [tuple(decoder.norm.mean.shape) for decoder in (learned.decoder, self.decoder)]
        if sizes[0] != sizes[1]:
            found = f"states of {self.config.data} have {sizes[0][0]} numbers, those of {self.config.env} {sizes[1][0]}"
            raise UsageError(f"{found}; choose a world and data with the same states")
        self.decoder.load_state_dict(learned.decoder.state_dict())

    def decode(self, observation: Tensor, latent: Tensor) -> Tensor:
        return self.decoder(observation, latent)


def steps_to_half(run: Any, window: int = 40) -> np.ndarray:
    """Statistic of a claim: thousands of steps, less than zero, until half of `window` training episodes in a row
    succeeded, [].

    Those of the whole training where that never came. DataError where episodes tell no success.
    """
    rows = read_jsonl(run.path / "episodes.jsonl")
    if not rows or any(row["success"] is None for row in rows):
        raise DataError(f"{run.path}: no training episodes that tell whether they succeeded")
    done = np.array([row["success"] for row in rows], float)
    seen = np.convolve(done, np.ones(window), "valid") if len(done) >= window else np.zeros(0)
    found = np.flatnonzero(seen >= window / 2)
    end = rows[int(found[0]) + window - 1] if len(found) else rows[-1]
    return np.array(-end["environment_steps"] / 1000)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.online.recipes import NEW_TASK, arm_of, recipe

    size = "published" if full else "cpu"
    over = arm_of(recipe(MoCapActTransfer.Config, NEW_TASK, size))
    scratch = arm_of(recipe(ScratchPPO.Config, NEW_TASK, size))
    return (
        Claim(
            id="half-sooner-than-from-scratch",
            text="On a task of metaworld that no expert in the data has done, half of the episodes succeed 20 000 "
            "steps sooner with PPO over the latents of a frozen decoder than with PPO over actions, of as many steps.",
            method=Score(over, steps_to_half),
            baseline=Score(scratch, steps_to_half),
            test=Above(20),
            source="arXiv 2208.07363",
            also=(Score(over, success), Score(scratch, success)),
        ),
    )
