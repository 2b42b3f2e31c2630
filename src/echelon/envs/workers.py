"""Collect shards of episodes in child interpreters.

A child is `python -m echelon.envs.workers`: it reads one line of JSON (data set, seed, folder, shards), writes each
finished shard as an `.npz` under its final name, and prints the number of rows after every episode. It dies with its
parent: at the latest, when it reports next. Plain children instead of `multiprocessing`, so that a script without the
`if __name__ == "__main__"` guard may ask for a data set.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from echelon.envs.catalog import DataInfo, parse
from echelon.envs.families import collector
from echelon.errors import DataError


@dataclass(frozen=True)
class Shard:
    """Episodes `start` to `stop` (exclusive) of a recipe, collected in one go; `split` is train or val."""

    split: str
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Name of the shard's file in the folder of partial work."""
        return f"{self.split}-{self.start:06d}-{self.stop:06d}.npz"


def collect(info: DataInfo, seed: int, folder: Path, shards: list[Shard], jobs: int, progress: bool) -> None:
    """Collect those of `shards` that have no file in `folder` yet, with `jobs` child processes.

    Raises DataError with the end of the child's messages when one fails; what is finished stays in `folder`.
    """
    left = [shard for shard in shards if not (folder / shard.file).exists()]
    rows = info.length + 1
    total = sum(s.stop - s.start for s in shards) * rows
    done = total - sum(s.stop - s.start for s in left) * rows
    jobs = min(jobs, len(left))
    reports: queue.Queue[tuple[int, str]] = queue.Queue()
    children = [_start(info, seed, folder, left[k::jobs], k) for k in range(jobs)]
    try:
        for k, child in enumerate(children):
            threading.Thread(target=_listen, args=(k, child, reports), daemon=True).start()
        with _bar(info.name, total, done, progress) as advance:
            running = jobs
            while running:
                k, line = reports.get()
                if line:
                    advance(int(line))
                    continue
                running -= 1
                if children[k].wait() != 0:
                    raise DataError(_failure(info.name, children[k].returncode, _log(folder, k)))
    finally:
        for child in children:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


def work(request: dict[str, Any], report: TextIO) -> None:
    """The child's side: collect the shards of one request, reporting the rows of each episode to `report`."""
    info = parse(request["name"])
    folder = Path(request["folder"])
    source = collector(info)
    for shard in (Shard(**entry) for entry in request["shards"]):
        episodes = []
        for index in range(shard.start, shard.stop):
            episodes.append(source.episode(request["seed"], index))
            print(len(episodes[-1]["terminals"]), file=report, flush=True)
        columns = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
        draft = folder / f".{shard.file}.{os.getpid()}"
        with draft.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **columns)
        draft.rename(folder / shard.file)
    source.close()


def _start(info: DataInfo, seed: int, folder: Path, shards: list[Shard], k: int) -> subprocess.Popen[str]:
    request = {"name": info.name, "seed": seed, "folder": str(folder), "shards": [asdict(shard) for shard in shards]}
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    defaults = {"MUJOCO_GL": "disable", **os.environ}  # a request to draw is the user's; collecting draws nothing
    with _log(folder, k).open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "echelon.envs.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**defaults, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
    if child.stdin is not None:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.close()
    return child


def _log(folder: Path, k: int) -> Path:
    return folder / f"worker-{k}.log"


def _failure(name: str, code: int, log: Path) -> str:
    said = "\n".join(log.read_text(errors="replace").strip().splitlines()[-12:])
    return (
        f"a process that made {name} failed (exit {code}); finished parts are kept, the same command goes on from "
        f"there. It said:\n{said}"
    )


def _listen(k: int, child: subprocess.Popen[str], reports: queue.Queue[tuple[int, str]]) -> None:
    if child.stdout is not None:
        for line in child.stdout:
            reports.put((k, line.strip()))
    reports.put((k, ""))


@contextmanager
def _bar(name: str, total: int, done: int, shown: bool) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    if not console.is_terminal:
        yield _plain_bar(name, total, done)
        return
    columns = (TextColumn("making {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(name, total=total, completed=done)
        yield lambda rows: progress.advance(task, rows)


def _plain_bar(name: str, total: int, done: int) -> Callable[[int], None]:
    state = {"done": done, "next": done}

    def advance(rows: int) -> None:
        state["done"] += rows
        if state["done"] >= state["next"]:
            state["next"] = state["done"] + total // 10
            print(f"making {name}: {100 * state['done'] // total} %", flush=True)

    return advance


def main() -> None:
    """Do the request on standard input. What else a simulator prints goes to standard error."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work(json.loads(sys.stdin.readline()), report)


if __name__ == "__main__":
    main()
