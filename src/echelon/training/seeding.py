"""The process-wide random generators: seeded once a run, and part of its checkpoints.

Batches and environments have generators of their own; what a loss or a network draws (skills, dropout) comes from here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the process-wide generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The states of the process-wide generators of python, numpy and torch, in a form that `flatten` takes."""
    legacy = np.random.get_state(legacy=False)
    keys = legacy["state"]["key"]
    version, words, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (torch.tensor(keys.astype(np.int64)), legacy["state"]["pos"], legacy["has_gauss"], legacy["gauss"]),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set the process-wide generators to what `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
