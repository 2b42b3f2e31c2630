"""`lm.score` served by the scorers of models: the texts of a batch become a record, and share what they begin with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from echelon.errors import unknown
from echelon.language._play import ScoreRequest
from echelon.language._tables import Use
from echelon.language.engine import Source
from echelon.language.record import RecordBuilder
from echelon.language.views import VIEWS, View, cheapest


class ViewScorer(Protocol):
    """What `echelon.language.scorer.Scorer` does here."""

    def score(self, view: View, want: Collection[str]) -> dict[str, Tensor]:
        """name → column [M], one row a prediction of the view, sorted by the record's items."""


class TextScorer:
    """A `Scorer` for the driver, over one scorer of views an agent."""

    def __init__(self, scorers: Mapping[str, ViewScorer], among: Collection[str] = VIEWS):
        """among: the views to choose from; without "forest" for models that take no mask."""
        self.scorers, self.among = dict(scorers), tuple(among)

    def score(self, requests: Sequence[ScoreRequest]) -> list[dict[str, np.ndarray]]:
        """Answer the requests, those of one agent that want the same in one pass; in the same order."""
        alike: defaultdict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if request.agent not in self.scorers:
                raise unknown("agent", request.agent, self.scorers)
            alike[request.agent, request.want].append(number)
        answers: dict[int, dict[str, np.ndarray]] = {}
        for (agent, want), numbers in alike.items():
            columns = self._columns(agent, want, [requests[number] for number in numbers])
            answers |= zip(numbers, columns, strict=True)
        return [answers[number] for number in range(len(requests))]

    def _columns(
        self, agent: str, want: tuple[str, ...], requests: Sequence[ScoreRequest]
    ) -> list[dict[str, np.ndarray]]:
        builder = RecordBuilder()
        episode = builder.episode(0)
        stream = episode.stream(agent)
        for request in requests:
            episode.call(stream, request.context, request.target, source=Source.SCORED, use=Use.PROBE)
        _, view, _ = cheapest(builder.build(), among=self.among)
        scored = self.scorers[agent].score(view, want)
        columns = {name: _array(column) for name, column in scored.items()}
        edges = np.cumsum([len(request.target) for request in requests])[:-1]
        pieces = {name: np.split(column, edges) for name, column in columns.items()}
        return [{name: pieces[name][number] for name in columns} for number in range(len(requests))]


def _array(column: Tensor) -> np.ndarray:
    return (column.float() if column.dtype in (torch.bfloat16, torch.float16) else column).cpu().numpy()
