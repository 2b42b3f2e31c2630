"""The command line in real processes without their start-up time, and with a fault at a chosen instant.

As a script, it imports everything once and forks a child for each request; with arguments, it is that command line in
a process of its own. Test episodes are cut off after 30 steps. `Server` is the side of the test: it starts children,
waits for them and reads what they printed.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from forked import die_at

EPISODE_STEPS = 30
SCRIPT = Path(__file__)
Fault = dict[str, Any]
"""{"in": "module:Class.function", "call": k, "when": …}: what happens when that function is called the k-th time.

"when" is {"operations": n} (killed before the n-th file operation from there on), {"calls": n} (killed at the n-th
Python call), {"written": share} (killed in the midst of writing the tensors), or {"signals": [names]} (sent at once).
"""


class Server:
    """Forks command lines; a context manager."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # with the children that a failed test left behind
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def start(self, *argv: str | Path, fault: Fault | None = None) -> Child:
        """Start `echelon ARGV` in a child process."""
        self.count += 1
        log = self.folder / f"child-{self.count}.log"
        answer = self._ask({"argv": [str(word) for word in argv], "log": str(log), "fault": fault})
        return Child(self, answer["pid"], log)

    def run(self, *argv: str | Path, fault: Fault | None = None) -> Child:
        """Start `echelon ARGV` and wait for its end."""
        child = self.start(*argv, fault=fault)
        child.wait()
        return child

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@dataclasses.dataclass
class Child:
    """One process; `code` is its exit code, negative for the signal that killed it."""

    server: Server
    pid: int
    log: Path
    code: int | None = None

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        if self.code is None:
            self.code = self.server._ask({"wait": self.pid})["code"]
        assert self.code is not None
        return self.code

    @property
    def out(self) -> str:
        """What it printed to stdout."""
        return self.log.read_text()

    @property
    def err(self) -> str:
        """What it printed to stderr."""
        return self.log.with_suffix(".err").read_text()


def arm(fault: Fault) -> None:
    """Prepare the fault in this process."""
    path, _, name = fault["in"].partition(":")
    holder: Any = importlib.import_module(path)
    *outer, name = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    real, state = getattr(holder, name), {"calls": 0}

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        state["calls"] += 1
        if state["calls"] == fault["call"]:
            strike(fault["when"])
        return real(*args, **kwargs)

    setattr(holder, name, wrapped)


def strike(when: dict[str, Any]) -> None:
    """Let the fault happen now, or from now on."""
    if "operations" in when:
        die_at(when["operations"])
    elif "calls" in when:
        die_at_call(when["calls"])
    elif "written" in when:
        die_while_writing(when["written"])
    else:
        for name in when["signals"]:
            os.kill(os.getpid(), signal.Signals[name])


def die_at_call(count: int) -> None:
    """SIGKILL this process at the `count`-th call of a Python or C function from now on."""
    left = count

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal left
        if event.endswith("call"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


def die_while_writing(share: float) -> None:
    """SIGKILL this process when this share of the next checkpoint's tensors is on the disk."""
    from echelon.training import checkpoint

    real = checkpoint.save_file

    def torn(tensors: Any, file: Path) -> None:
        real(tensors, file)
        os.truncate(file, int(share * file.stat().st_size))
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = torn


def prepare() -> None:
    """Import what a training needs, and shorten the episodes."""
    from echelon.envs import catalog
    from echelon.systems import index, launch
    from echelon.training.codehash import code_hash

    for name in index.names():
        code_hash(index.load(name).__module__)
    for name in (
        "echelon.cli.resume",
        "echelon.cli.train",
        "ogbench.locomaze",
        "torch._dynamo",
        "tyro",
        launch.__name__,
    ):
        importlib.import_module(name)
    short = {name: dataclasses.replace(env, limit=EPISODE_STEPS) for name, env in catalog.ENVIRONMENTS.items()}
    catalog.ENVIRONMENTS.update(short)
    for name, data in catalog.DATASETS.items():
        catalog.DATASETS[name] = dataclasses.replace(data, env=short[data.env.name])


def child(request: dict[str, Any]) -> int:
    """The child's life: what the shell's `echelon ARGV` does, printing to files."""
    from echelon.cli import main

    log = Path(request["log"])
    for number, file in ((1, log), (2, log.with_suffix(".err"))):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["fault"] is not None:
        arm(request["fault"])
    try:
        return main(request["argv"])
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve() -> None:
    """Answer requests until the other side closes."""
    prepare()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(child(request))
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        prepare()
        sys.exit(importlib.import_module("echelon.cli").main(sys.argv[1:]))
    serve()
