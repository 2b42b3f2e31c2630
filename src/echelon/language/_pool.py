"""Worlds in worker processes, with a time limit a call. A world that raises, hangs or dies costs its own episode only.

The pool keeps what was done in every world. When a worker has to be replaced, the worlds of the innocent episodes that
lived in it are made again and their actions repeated, before the next call that needs them; their answers are compared
with the first ones. Workers are plain child interpreters that speak JSON; each makes its worlds by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from echelon.errors import EchelonError, UsageError
from echelon.language._worlds import Fault, Make, WorldCall, answer_from_plain, to_plain
from echelon.language.engine import End

GRACE_S = 3.0  # a worker ends a call that takes too long by itself and says where it was; after this it is killed
START_S = 300.0  # for imports on a busy machine
DEATHS = 2  # of its worker in one episode's calls: the first may be another's fault (a machine out of memory)
_TAIL = 1500  # characters of what a worker said that are told


class WorkerError(EchelonError):
    """Worker processes cannot be started."""


@dataclass(eq=False)
class Job:
    """A call to be made; `place` is where its answer belongs, None for a repetition after a restart."""

    call: WorldCall
    place: int | None
    expected: bytes = b""


@dataclass(eq=False)
class Life:
    """What is known of one episode's world."""

    worker: int
    history: list[tuple[WorldCall, bytes]] = field(default_factory=list)
    """Calls since the last reset or restore that changed it, with the digests of their answers."""
    deaths: int = 0
    fault: Fault | None = None


class Worker:
    """One child process and what it is to do."""

    def __init__(self, command: Sequence[str], options: str):
        self.command, self.options = command, options
        self.queue: deque[Job] = deque()
        self.alive: set[int] = set()
        """Episodes whose worlds live in the process."""
        self.released: list[tuple[int, bool]] = []
        self.job: Job | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.since = 0.0
        self._buffer = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker

    def start(self) -> None:
        """Start the process; it says when it is ready."""
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self.ready, self._buffer, self.since = False, b"", time.monotonic()
        self.send(self.options)

    def send(self, line: str) -> None:
        """Write one line. A process that is gone is noticed when it is listened to."""
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return

    def listen(self) -> tuple[list[bytes], bool]:
        """(complete lines that have come, whether the process has closed its side)."""
        assert self.process is not None and self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 1 << 20)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        return lines, chunk == b""

    def stop(self) -> str:
        """End the process; what it said last, and how it ended."""
        if self.process is None:
            return ""
        os.killpg(self.process.pid, signal.SIGKILL)  # with what its worlds have started
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # unsent bytes of the last line
        self.process, self.ready, self.released = None, False, []
        self.alive.clear()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()[-_TAIL:]
        self._log.seek(0)
        self._log.truncate()
        return f"exit code {code}" + (f"; it said:\n{said}" if said else "")

    def close(self) -> None:
        """End the process for good."""
        self.stop()
        self._log.close()


class WorldPool:
    """Worlds of all episodes in `workers` processes."""

    def __init__(self, make: Make, options: Mapping[str, Mapping[str, Any]], workers: int, limit_s: float):
        """`limit_s`: of one call, the making of its world included."""
        if workers < 1 or not 0 < limit_s < 1e6:
            raise UsageError(f"workers is {workers} and limit_s is {limit_s}; both are positive")
        command = (sys.executable, "-m", "echelon.language._world_child", named(make))
        self.limit_s = limit_s
        self._workers = [Worker(command, json.dumps(options)) for _ in range(workers)]
        self._lives: dict[int, Life] = {}
        self._opened = 0
        self._answers: list[Any] = []
        self._left = 0

    def serve(self, calls: Sequence[WorldCall]) -> list[Any]:
        """Make the calls, those of different workers at the same time."""
        self._answers, self._left = [None] * len(calls), len(calls)
        for place, call in enumerate(calls):
            if call.uid not in self._lives:
                self._lives[call.uid] = Life(self._opened % len(self._workers))
                self._opened += 1
            self._workers[self._lives[call.uid].worker].queue.append(Job(call, place))
        while self._left:
            for worker in self._workers:
                self._next(worker)
            self._wait()
        return self._answers

    def release(self, uid: int, broken: bool) -> None:
        """Forget an episode; its world may play another one unless it is broken."""
        life = self._lives.pop(uid, None)
        if life is not None and uid in self._workers[life.worker].alive:
            self._workers[life.worker].alive.discard(uid)
            self._workers[life.worker].released.append((uid, broken))

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()

    def _next(self, worker: Worker) -> None:
        """Let an idle worker begin its next job."""
        while worker.job is None and worker.queue:
            life = self._lives[worker.queue[0].call.uid]
            if life.fault is not None:
                self._done(worker.queue.popleft(), life.fault)
                continue
            if worker.process is None:
                worker.start()
            if not worker.ready:
                return
            job = worker.queue[0]
            if job.call.uid not in worker.alive and life.history and job.place is not None:
                repeated = [Job(call, None, digest) for call, digest in life.history]
                worker.queue.extendleft(reversed(repeated))
                job = worker.queue[0]
            worker.alive.add(job.call.uid)
            worker.job = worker.queue.popleft()
            worker.since = time.monotonic()
            worker.send(self._line(worker, job.call))

    def _line(self, worker: Worker, call: WorldCall) -> str:
        released, worker.released = worker.released, []
        plain = {
            "uid": call.uid,
            "world": call.world,
            "method": call.method,
            "arguments": [to_plain(argument) for argument in call.arguments],
            "release": released,
            "limit_s": self.limit_s,
        }
        return json.dumps(plain)

    def _wait(self) -> None:
        """Until something happens, or somebody's time is up."""
        busy = [worker for worker in self._workers if worker.process is not None and (worker.job or not worker.ready)]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process is not None and worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            first = min(self._deadline(worker) for worker in busy)
            events = selector.select(max(0.0, first - time.monotonic()))
        for key, _ in events:
            self._hear(key.data)
        now = time.monotonic()
        for worker in busy:
            if worker.process is not None and (worker.job or not worker.ready) and now > self._deadline(worker):
                self._lost(worker)

    def _deadline(self, worker: Worker) -> float:
        return worker.since + (self.limit_s + GRACE_S if worker.ready else START_S)

    def _hear(self, worker: Worker) -> None:
        lines, closed = worker.listen()
        for line in lines:
            if not worker.ready:
                worker.ready = True
            elif worker.job is not None:
                job, worker.job = worker.job, None
                self._answered(job, line)
        if closed:
            self._lost(worker)

    def _answered(self, job: Job, line: bytes) -> None:
        life, digest = self._lives[job.call.uid], hashlib.blake2b(line, digest_size=8).digest()
        if job.place is None:
            if digest != job.expected:
                life.fault = Fault(End.ERROR, _unlike(job.call))
            return
        answer = json.loads(line)
        if "error" in answer:
            life.fault = Fault(End.ERROR, answer["error"])
            self._done(job, life.fault)
            return
        if job.call.method in ("reset", "restore"):
            life.history.clear()
        if job.call.method in ("reset", "restore", "step"):
            life.history.append((job.call, digest))
        self._done(job, answer_from_plain(job.call.method, answer["value"]))

    def _lost(self, worker: Worker) -> None:
        """A worker is gone, or has to go: it hangs. Its job is to blame; the others' worlds are made again later."""
        job, worker.job, started = worker.job, None, worker.ready
        waited = time.monotonic() - worker.since
        said = worker.stop()
        if not started:
            raise WorkerError(f"a worker process for worlds ended before it was ready ({said})")
        worker.queue = deque(waiting for waiting in worker.queue if waiting.place is not None)
        if job is None:
            return
        life, place = self._lives[job.call.uid], f"{job.call.method} of world '{job.call.world}'"
        if waited >= self.limit_s:
            life.fault = Fault(End.TIMEOUT, f"{place} took longer than {self.limit_s:g} s ({said})")
        else:
            life.deaths += 1
            if life.deaths >= DEATHS:
                life.fault = Fault(End.KILLED, f"{place} ended its process twice ({said})")
        if job.place is not None:
            worker.queue.appendleft(job)

    def _done(self, job: Job, answer: Any) -> None:
        if job.place is not None:
            self._answers[job.place] = answer
            self._left -= 1


def named(make: Make) -> str:
    """'module:function', under which a worker finds `make` again. `UsageError` if it would not."""
    module, name = getattr(make, "__module__", ""), getattr(make, "__qualname__", "")
    if not name.isidentifier() or module == "__main__" or getattr(import_module(module), name, None) is not make:
        raise UsageError(f"worker processes cannot find {make!r} by name; give a function of an importable module")
    return f"{module}:{name}"


def _unlike(call: WorldCall) -> str:
    return (
        f"world '{call.world}' gave another answer to the same {call.method} when it was made again in another "
        "process; it depends on more than its task and its actions"
    )
