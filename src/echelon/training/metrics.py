"""Metrics as JSON lines, one flat object a line, that a resumed run continues without a gap or a duplicate."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from echelon.errors import DataError, EchelonError, MissingExtra


class JsonLines:
    """An append-only file of JSON objects, each with an integer "step" (metrics.jsonl, evaluations.jsonl)."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIOWrapper = self.path.open("a", buffering=1, encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line; NaN and infinity, which JSON lacks, become null."""
        self._file.write(json.dumps(_finite_or_null(row), allow_nan=False) + "\n")

    def flush(self) -> None:
        """Force the lines to the disk, as a checkpoint that refers to them needs."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def truncate_after(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines of later steps and a half-written last line; return the rows that stay."""
        self._file.close()
        rows = [row for row in read_jsonl(self.path) if row["step"] <= step]
        aside = self.path.with_name(self.path.name + ".tmp")
        with aside.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, self.path)
        self._file = self.path.open("a", buffering=1, encoding="utf-8")
        return rows

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MetricsWriter:
    """Writes `<run_dir>/metrics.jsonl`, and TensorBoard events beside it when asked; a context manager.

    A line is {"step": int, "time_s": float, "kind": str, name: number, ...}; `time_s` counts training time, so a
    resumed run goes on where its checkpoint stood.

    Raises:
        MissingExtra: `tensorboard` was asked for and is not installed.
    """

    def __init__(self, run_dir: Path | str, tensorboard: bool = False):
        self._directory = Path(run_dir)
        self._lines = JsonLines(self._directory / "metrics.jsonl")
        self._started = time.monotonic()
        self._board = _open_board(self._directory, None) if tensorboard else None

    def write(self, step: int, kind: str, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Append one line and return its values as floats; tensors must be 0-dimensional.

        Raises:
            EchelonError: a loss or gradient norm is NaN or infinite. The line is written first, for the diagnosis.
        """
        numbers = as_floats(values)
        elapsed = round(time.monotonic() - self._started, 3)
        self._lines.append({"step": step, "time_s": elapsed, "kind": kind, **numbers})
        check_finite(step, numbers)
        if self._board is not None:
            for name, number in numbers.items():
                self._board.add_scalar(f"{kind}/{name}", number, step)
        return numbers

    def flush(self) -> None:
        """Force everything to the disk; call it before a checkpoint is saved."""
        self._lines.flush()
        if self._board is not None:
            self._board.flush()

    def truncate_after(self, step: int) -> None:
        """Forget what was written after `step`: the run resumes from a checkpoint of that step."""
        rows = self._lines.truncate_after(step)
        self._started = time.monotonic() - max((row.get("time_s", 0.0) for row in rows), default=0.0)
        if self._board is not None:
            self._board.close()
            self._board = _open_board(self._directory, step + 1)

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_floats(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Convert numbers and 0-dimensional tensors to floats, keeping their order, with one transfer from the device."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.dim():
            raise EchelonError(f"the metric '{name}' must be one number, not a tensor of shape {tuple(tensor.shape)}")
    moved: list[float] = []
    if tensors:
        moved = torch.stack([tensor.detach().double() for tensor in tensors.values()]).tolist()
    known = dict(zip(tensors, moved, strict=True))
    return {name: known[name] if name in known else float(value) for name, value in values.items()}


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Stop a run whose loss or gradient norm is NaN or infinite.

    Raises:
        EchelonError: names the metric, its value and the step.
    """
    for name, value in values.items():
        if ("loss" in name or "grad_norm" in name) and not math.isfinite(value):
            raise EchelonError(
                f"'{name}' became {value} at step {step}: training stopped; the last checkpoint is intact "
                "(look at the data, lower the learning rate, or use float32)"
            )


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file in order; a half-written last line, left by a killed process, is ignored.

    Raises:
        DataError: the file is missing, or a line before the last is damaged.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is damaged: {error}") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise DataError(f'{path}, line {number} is not an object with an integer "step"')
        rows.append(row)
    return rows


def _finite_or_null(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _open_board(directory: Path, purge_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "viz") from error
    return SummaryWriter(log_dir=str(directory / "tensorboard"), purge_step=purge_step)
