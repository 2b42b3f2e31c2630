"""What a verb prints: JSON when asked, else plain aligned columns that a pipe and a narrow terminal both bear."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any


def as_json(value: Any) -> None:
    """Print `value` as one JSON document on stdout (NaN and infinities become null)."""
    print(json.dumps(finite(value), indent=2, ensure_ascii=False))


def finite(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by None, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay `rows` out under `header` in aligned columns; on a terminal the last column is cut at its width."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return "\n".join(line if limit is None or len(line) <= limit else line[: limit - 1] + "…" for line in lines)


def number(value: float | None, digits: int = 1) -> str:
    """Format a number for a table: a dash when there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
