"""echelon: hierarchical reinforcement learning, from motor control to language agents, on one shared core.

Importing echelon is cheap: torch is loaded when the first name that needs it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# OpenMP threads that spin while they wait make two busy processes slower than one thread each. The variable is read
# when libgomp loads, so it has to be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["__version__", "load_agent", "recipe", "train"]

if TYPE_CHECKING:
    from echelon.systems.launch import load_agent, recipe, train


def __getattr__(name: str) -> Any:
    if name in ("load_agent", "recipe", "train"):
        from echelon.systems import launch

        return getattr(launch, name)
    raise AttributeError(f"module 'echelon' has no attribute '{name}'")
