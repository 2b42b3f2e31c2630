"""Whether a result is stale: which modules stand behind it, and which of them changed since it was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from echelon.systems import index
from echelon.training.codehash import PACKAGE, TRAINER, Hashes, code_hash, code_hashes, digest, module_hash

__all__ = ["Hashes", "changes", "digest", "of_result", "of_run"]
ESTIMATOR = "evidence/statistics.py"


def of_run(system: str) -> str:
    """Hash of the code that training and evaluating `system` runs, as a run's identity records it."""
    return code_hash(_module(system))


def of_result(systems: Iterable[str], statistics: Iterable[str]) -> Hashes:
    """Hashes of the code behind a comparison of `systems` (slugs) by `statistics` (dotted names of their modules)."""
    measured = [name for name in statistics if name.split(".")[0] == PACKAGE.name]
    followed = code_hashes([*map(_module, systems), TRAINER, *measured])
    return followed | {ESTIMATOR: module_hash(PACKAGE / ESTIMATOR)}


def changes(recorded: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """What became of the modules since `recorded`: sentences such as "data/goals.py changed", sorted by path."""
    sentences = []
    for name in sorted({*recorded, *current}):
        if name not in current:
            sentences.append(f"{name} is no longer used")
        elif name not in recorded:
            sentences.append(f"{name} is used now")
        elif recorded[name] != current[name]:
            sentences.append(f"{name} changed")
    return sentences


def _module(system: str) -> str:
    return str(index.find(system).module)
