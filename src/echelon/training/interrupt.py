"""Ctrl-C and a scheduler's SIGTERM as a flag that a loop polls between two updates."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Context manager: the first SIGINT or SIGTERM sets `requested`, a second one raises KeyboardInterrupt.

    Outside the main thread, where Python cannot handle signals, it does nothing. Earlier handlers come back at the end.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the loop should save and stop."""
        return self.signal is not None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        # A direct write: the handler may run inside a print, whose buffer must not be entered twice.
        os.write(2, f"\n{self.signal.name}: saving, then stopping; press again to stop at once\n".encode())
