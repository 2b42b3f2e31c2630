"""Windows with more than observations and actions: further columns of a data set, at the same steps.

Columns are those of the set, or made of it, such as weights of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from echelon.data.source import OfflineSource
from echelon.data.store import Store
from echelon.data.windows import DrawnWindows, Windows, WindowSpec


class ColumnWindows(Windows):
    """`Windows` that gathers further `columns`, one row a row of the data set, under their names."""

    def __init__(self, drawing: Windows, columns: Mapping[str, Tensor]):
        super().__init__(drawing.spec, drawing.goal_shape[1], drawing.row, drawing.episodes)
        self.columns = dict(columns)

    def gather(self, drawn: DrawnWindows, observations: Tensor, actions: Tensor, b: slice) -> dict[str, Tensor]:
        """As `Windows.gather`; beside, each column [B, W, ...] at the steps of the windows."""
        first, last = drawn.first[b], drawn.last[b]
        place = first[:, None] + torch.tensor(self.spec.places(), device=first.device)
        step = self.row[torch.minimum(place, last[:, None])]
        found = super().gather(drawn, observations, actions, b)
        return found | {name: column[step] for name, column in self.columns.items()}


class ClipSource(OfflineSource):
    """An `OfflineSource` of windows with further `columns` [rows, ...] of the set or made of it."""

    def __init__(
        self,
        store: Store,
        spec: WindowSpec,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        columns: Mapping[str, Tensor],
    ):
        super().__init__(store, {"clip": spec}, batch_size, seed, device)
        assert isinstance(self.rows, Windows)
        self.rows = ColumnWindows(self.rows, {name: column.to(device) for name, column in columns.items()})
