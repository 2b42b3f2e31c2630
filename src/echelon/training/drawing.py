"""Offline systems that draw random numbers of their own while they learn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from echelon.training.agent import Agent


class DrawingAgent(Agent):
    """Base of offline systems whose losses draw from `generator`, which they make; checkpoints keep where it stands."""

    generator: torch.Generator

    def get_extra_state(self) -> Tensor:
        """Where the draws stand, for checkpoints."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue the draws where `get_extra_state` was taken."""
        self.generator.set_state(state.cpu())


@contextlib.contextmanager
def drawing_from(seed: int | None, device: torch.device) -> Iterator[None]:
    """Within it, dropout on `device` draws from `seed` and leaves the process-wide generators as they were.

    None: nothing draws there, and nothing is done.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
