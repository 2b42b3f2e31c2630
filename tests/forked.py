"""Forked children that die on purpose: the fault tests run them and look at what they left on the disk."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}


def run_forked(body: Callable[[], object], limit_s: int = 30) -> int:
    """Run `body` in a forked child; return its exit code (0 done, 70 raised, negative: killed by that signal)."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit_s)
        code = 70
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(count: int) -> None:
    """In a forked child: SIGKILL this process just before its `count`-th file operation or fsync from now on."""
    state = {"left": count}

    def tick() -> None:
        state["left"] -= 1
        if state["left"] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _FILE_EVENTS:
            tick()

    real = os.fsync

    def fsync(descriptor: int) -> None:
        tick()
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)
