"""Live progress of long work: rate, elapsed time and time left, on a terminal or in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

_WINDOW_S = 30.0  # the rate is that of the last half minute, so that it follows a change of load,
_WINDOW_POINTS = 8  # or of the last eight changes, where they are rarer


class Progress:
    """Context manager that shows how far work has come.

    On a terminal it draws one live bar; elsewhere it prints a plain line at most every `every_s` seconds. It draws from
    inside `update` and starts no thread. One may be open at a time; use `note` for what happens in between.

    Args:
        total: steps in the whole work.
        label: what is being done ("hiql on pointmaze").
        start: steps done already, when a run is resumed.
        unit: what a step is, in the plural.
    """

    def __init__(
        self,
        total: int,
        label: str,
        start: int = 0,
        unit: str = "updates",
        stream: TextIO | None = None,
        every_s: float = 10.0,
    ):
        self.total, self.label, self.unit = total, label, unit
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._every = 0.25 if self._live else every_s
        self._step: float = start
        self._start, self._note, self._metrics = start, "", ""
        self._began = self._shown = time.monotonic()
        self._history: deque[tuple[float, float]] = deque([(self._began, start)])
        self._bar = self._make_bar() if self._live else None
        self._task = self._bar.add_task(label, total=total, completed=start, details="") if self._bar else None

    def __enter__(self) -> Progress:
        self._began = self._shown = time.monotonic()
        self._history = deque([(self._began, self._step)])
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: float, metrics: Mapping[str, float] | None = None) -> None:
        """Say that `step` steps of the whole are done, with the newest values of a few metrics to show beside them.

        Cheap enough for every step of a fast loop: it draws at most four times a second.
        """
        self._step = step
        if metrics is not None:
            self._metrics = format_numbers(metrics)
        if time.monotonic() - self._shown >= self._every:
            self._show()

    def note(self, text: str) -> None:
        """Show what is being done between two steps ("evaluating"); an empty text ends it."""
        self._note = text
        if self._live:
            self._show()

    def print(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def details(self) -> str:
        """Rate, elapsed time, time left, note and metrics, as one line."""
        now = time.monotonic()
        elapsed, done = now - self._began, self._step - self._start
        # Time left is by the average since the start, which includes pauses such as evaluations.
        left = format_seconds((self.total - self._step) * elapsed / done) if done > 0 else "?"
        parts = [format_rate(self._rate(now), self.unit), f"{format_seconds(elapsed)} elapsed", f"{left} left"]
        return "  ".join(part for part in (*parts, self._note, self._metrics) if part)

    def _rate(self, now: float) -> float:
        if self._step != self._history[-1][1]:
            self._history.append((now, self._step))
        while len(self._history) > _WINDOW_POINTS and now - self._history[0][0] > _WINDOW_S:
            self._history.popleft()
        then, before = self._history[0]
        return (self._step - before) / (now - then) if now > then else 0.0

    def _show(self) -> None:
        self._shown = time.monotonic()
        details = self.details()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._step, details=details)
            self._bar.refresh()
        else:
            percent = 100 * self._step / max(self.total, 1)
            count = f"{math.floor(self._step)}/{self.total} ({percent:.0f} %)"
            print(f"{self.label}: {count}  {details}", file=self._stream, flush=True)

    def _make_bar(self) -> RichProgress:
        return RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[details]}", markup=False),
            console=Console(file=self._stream),
            auto_refresh=False,
        )


def format_numbers(numbers: Mapping[str, float], form: str = ".4g") -> str:
    """Named numbers for people: "return 212.5  length 98"."""
    return "  ".join(f"{name} {value:{form}}" for name, value in numbers.items())


def format_rate(per_second: float, unit: str) -> str:
    """A rate for people, in the time unit that makes it readable: "52 updates/s", "3 runs/h"."""
    for scale, name in ((1, "s"), (60, "min"), (3600, "h")):
        if per_second * scale >= 1:
            return f"{per_second * scale:.3g} {unit}/{name}"
    return "" if per_second <= 0 else f"{per_second * 86400:.3g} {unit}/d"


def format_seconds(seconds: float) -> str:
    """A duration for people: "42 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
