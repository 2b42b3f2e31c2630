"""Which collector makes which data set; the collectors and their simulators are imported when one is built."""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

import numpy as np

from echelon.envs.catalog import DataInfo
from echelon.errors import MissingExtra, UsageError


class Collector(Protocol):
    """Collects the episodes of one data set, each a function of (seed, episode number) alone."""

    def episode(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """All rows of one episode, by column; `terminals` is True in the last row alone."""

    def close(self) -> None:
        """Release the simulator."""


def require_control() -> None:
    """Raise MissingExtra when the simulators are not installed."""
    for package in ("mujoco", "ogbench"):
        try:
            found = importlib.util.find_spec(package)
        except ImportError:
            found = None
        if found is None:
            raise MissingExtra(package, "control")


def recipe(info: DataInfo) -> dict[str, Any]:
    """Name and version of the recipe that `collector(info)` follows."""
    if info.env.family == "pointmaze":
        from echelon.envs.pointmaze import RECIPE

        return dict(RECIPE)
    if info.env.family == "fetch":
        from echelon.envs.fetch import RECIPE as FETCH

        return {**FETCH, "experts": info.experts}
    if info.env.family == "told":
        from echelon.envs.told import RECIPE as TOLD

        return dict(TOLD)
    if info.env.family == "orders":
        from echelon.envs.orders import RECIPE as ORDERS

        return dict(ORDERS)
    if info.env.family == "metaworld":
        from echelon.envs.metaworld import RECIPE as METAWORLD

        return {**METAWORLD, "experts": info.experts}
    from echelon.envs.manipulation import RECIPE as MANIPULATION

    return dict(MANIPULATION)


def collector(info: DataInfo) -> Collector:
    """Build the collector of a regenerable data set."""
    if not info.regenerable:
        raise UsageError(f"'{info.name}' needs a trained expert; there is no collector for it")
    require_control()
    if info.env.family == "pointmaze":
        from echelon.envs.pointmaze import PointMazeCollector

        return PointMazeCollector(info)
    if info.env.family == "fetch":
        from echelon.envs.fetch import FetchCollector

        return FetchCollector(info)
    if info.env.family == "told":
        from echelon.envs.told import ToldCollector

        return ToldCollector(info)
    if info.env.family == "orders":
        from echelon.envs.orders import OrdersCollector

        return OrdersCollector(info)
    if info.env.family == "metaworld":
        from echelon.envs.metaworld import ClipCollector

        return ClipCollector(info)
    from echelon.envs.manipulation import ManipulationCollector

    return ManipulationCollector(info)
