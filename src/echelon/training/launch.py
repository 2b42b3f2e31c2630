"""Several runs as child processes of one thread each, with one overall progress line.

A small network uses one core well and two badly: many seeds go one process a core, not one process with many threads.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from echelon.errors import EchelonError, UsageError
from echelon.training.interrupt import Interrupt
from echelon.training.progress import Progress, format_seconds

_POLL_S = 0.2
_MAX_SEEDS = 10_000
_TAIL_LINES = 15


@dataclass(frozen=True)
class Task:
    """A command to run: `fraction()` may tell how much of it is done (0 to 1), for the progress line."""

    name: str
    command: Sequence[str]
    log: Path
    fraction: Callable[[], float] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a task ended: its exit code (negative: the signal that ended it) and its wall time in seconds."""

    task: Task
    code: int
    seconds: float


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "7", "0-7" or "0,2,5-6": in the order written, without repeats.

    Raises:
        UsageError: anything else.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if match is None:
            raise UsageError(f"seeds '{text}': '{part.strip()}' is neither a number nor a range; write 0-7 or 0,2,5-6")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise UsageError(f"seeds '{text}': the range {part.strip()} runs backwards; write {last}-{first}")
        if last - first >= _MAX_SEEDS:
            raise UsageError(f"seeds '{text}': the range {part.strip()} has more than {_MAX_SEEDS} seeds")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return tuple(seeds)


def run_many(tasks: Sequence[Task], jobs: int, label: str = "runs") -> list[Outcome]:
    """Run every task as a child process, `jobs` at a time; output goes to each task's log.

    A failed task is reported at once and the others go on, since their work is worth keeping. Ctrl-C (or SIGTERM) is
    passed on to the children, which then save and stop; a second one kills them.

    Returns:
        the outcomes, in the order of the tasks.

    Raises:
        EchelonError: at the end, if a task failed; with the first failure's last lines.
        KeyboardInterrupt: after an interrupt, when every child has ended.
    """
    if jobs < 1:
        raise UsageError(f"jobs = {jobs}: at least one process is needed")
    pool = _Pool(tasks, jobs)
    with Interrupt() as interrupt, Progress(len(tasks), label, unit=label) as progress:
        try:
            while pool.advance(may_start=not interrupt.requested):
                if interrupt.signal is not None:
                    pool.forward(interrupt.signal)
                for line in pool.take_reports():
                    progress.print(line)
                progress.note(pool.summary())
                progress.update(pool.done())
                time.sleep(_POLL_S)
            for line in pool.take_reports():
                progress.print(line)
            progress.note("")
            progress.update(pool.done())
        finally:
            pool.kill()
    if interrupt.requested:
        raise KeyboardInterrupt
    outcomes = [pool.finished[task.name] for task in tasks]
    failed = [outcome for outcome in outcomes if outcome.code != 0]
    if failed:
        names = ", ".join(outcome.task.name for outcome in failed)
        raise EchelonError(f"{len(failed)} of {len(tasks)} {label} failed: {names}. {_explain(failed[0])}")
    return outcomes


@dataclass
class _Child:
    task: Task
    process: subprocess.Popen[bytes]
    started: float
    told: bool = False


class _Pool:
    """The tasks waiting, running and finished."""

    def __init__(self, tasks: Sequence[Task], jobs: int):
        if len({task.name for task in tasks}) != len(tasks):
            raise UsageError(f"two tasks have the same name: {', '.join(task.name for task in tasks)}")
        self.finished: dict[str, Outcome] = {}
        self._waiting = list(tasks)
        self._running: list[_Child] = []
        self._reports: list[str] = []
        self._jobs = jobs

    def advance(self, may_start: bool) -> bool:
        """Take in the children that ended and start new ones; False when nothing is left to do."""
        for child in list(self._running):
            code = child.process.poll()
            if code is not None:
                self._running.remove(child)
                self._finish(Outcome(child.task, code, time.monotonic() - child.started))
        while may_start and self._waiting and len(self._running) < self._jobs:
            self._start(self._waiting.pop(0))
        return bool(self._running or (may_start and self._waiting))

    def forward(self, number: signal.Signals) -> None:
        """Pass a signal on, once, to every child."""
        for child in self._running:
            if not child.told:
                child.told = True
                child.process.send_signal(number)

    def kill(self) -> None:
        """End what still runs, with all that it started."""
        for child in self._running:
            os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()

    def done(self) -> float:
        """Tasks done, those that are running counted by their fraction."""
        return len(self.finished) + sum(_fraction(child.task) for child in self._running)

    def summary(self) -> str:
        """Who is running and how far, and how many wait."""
        running = ", ".join(f"{child.task.name} {100 * _fraction(child.task):.0f} %" for child in self._running)
        return f"[{running}]" + (f" {len(self._waiting)} waiting" if self._waiting else "")

    def take_reports(self) -> list[str]:
        """Lines about the tasks that ended since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def _start(self, task: Task) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        if self._jobs > 1:
            environment["OMP_NUM_THREADS"] = "1"
        with _open_log(task.log) as log:
            try:
                # Its own process group: the terminal's Ctrl-C must reach a child once, through `forward`, not twice.
                process = subprocess.Popen(
                    list(task.command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    process_group=0,
                )
            except OSError as error:
                log.write(f"cannot start {task.command[0]}: {error.strerror}\n".encode())
                process = None
        if process is None:
            self._finish(Outcome(task, 127, 0.0))
        else:
            self._running.append(_Child(task, process, time.monotonic()))

    def _finish(self, outcome: Outcome) -> None:
        first = all(earlier.code == 0 for earlier in self.finished.values())
        self.finished[outcome.task.name] = outcome
        took = format_seconds(outcome.seconds)
        if outcome.code == 0:
            self._reports.append(f"{outcome.task.name}: done in {took}")
        elif first:
            self._reports.append(f"{outcome.task.name}: failed after {took}. {_explain(outcome)}")
        else:
            self._reports.append(f"{outcome.task.name}: failed after {took}; see {outcome.task.log}")


def _open_log(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")  # a resumed run goes on in the log that tells why it had stopped
    except OSError as error:
        raise EchelonError(f"cannot write the log {path}: {error.strerror}") from error


def _fraction(task: Task) -> float:
    return 0.0 if task.fraction is None else min(1.0, max(0.0, task.fraction()))


def _explain(outcome: Outcome) -> str:
    """Why a task failed, with the end of its log."""
    code = outcome.code
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = outcome.task.log.read_bytes()[-8192:].decode("utf-8", "replace").strip().splitlines()[-_TAIL_LINES:]
    tail = "\n".join(f"  | {line}" for line in lines) or "  | (empty)"
    return f"{outcome.task.name} ended with {how}; the end of {outcome.task.log}:\n{tail}"
