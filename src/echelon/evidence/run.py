"""A light reader of a run's directory: what a statistic, a result or a table needs, without torch until `agent()`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from echelon.errors import DataError

RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One run on disk. Files are read when first asked for; DataError names one that is missing or damaged."""

    path: Path

    @cached_property
    def system(self) -> str:
        """Slug of the system that was trained."""
        return self._document("config.json")["system"]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Resolved configuration: field -> value."""
        return self._document("config.json")["config"]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What fixes the run's numbers: commit, code hash, seed, versions, threads, precision."""
        return self._document("identity.json")

    @cached_property
    def result(self) -> dict[str, Any]:
        """The end of the run: score, wall time, load, updates."""
        return self._document(RESULT)

    @property
    def finished(self) -> bool:
        """Whether the run reached the end of its budget."""
        return (self.path / RESULT).is_file()

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """One dict an evaluation, in time order."""
        return self._lines("evaluations.jsonl")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict a line of metrics, in time order: {"step", "time_s", "kind": "train" or "eval", name: value, …}."""
        return self._lines("metrics.jsonl")

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One dict an episode of the training, in the order of their ends; online runs alone have them."""
        return self._lines("episodes.jsonl")

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Learning curve: (step, success in points 0 to 100) of every evaluation that tells of success."""
        told = [row for row in self.evaluations if row["success"] is not None]
        return [(int(row["step"]), 100.0 * float(row["success"])) for row in told]

    def agent(self) -> Any:
        """The trained agent, with the weights of the newest checkpoint that verifies."""
        from echelon.systems.launch import load_agent

        return load_agent(self.path)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        try:
            return [json.loads(line) for line in file.read_text().splitlines() if line]
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as JSON lines: {error}") from error

    def _document(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            document = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise DataError(f"{file}: not a JSON object")
        return document
