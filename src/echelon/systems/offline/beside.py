"""A run beside another: what the same training comes to on other data."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from echelon.claims import success
from echelon.errors import DataError


def gained_over(run: Any, env: str) -> np.ndarray:
    """Statistic of a claim: success in points (-100 to 100) minus that of the run beside it on `env`, [task, episode].

    The other run has the same configuration and seed but for its data, so both meet the same starts and goals. A claim
    that uses this statistic names the other run's arm under `also`, so that it is there. DataError where it is not.
    """
    return success(run) - success(beside(run, env))


def beside(run: Any, env: str) -> Any:
    """The finished run of the same code, configuration and seed on `env`, among the runs around `run`."""
    wanted = {**run.config, "env": env}
    for path in sorted(run.path.parents[1].glob(f"{run.system}-{env}-*/{run.path.name}")):
        other = dataclasses.replace(run, path=path)
        same_code = other.finished and other.identity["code_hash"] == run.identity["code_hash"]
        if same_code and other.system == run.system and other.config == wanted:
            return other
    raise DataError(f"{run.path}: no finished run beside it is the same but for its data, '{env}'")
