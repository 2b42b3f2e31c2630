"""Results of record: `results/<system>/<claim>.json`, a growing list of entries that no one edits.

An entry is a result, or a fact about an earlier one (`kind`: "replay"). Each carries a checksum over itself and the
entry before it, so an entry that was altered, removed or slipped in later is noticed when the file is read. Beside the
numbers a result says how they came about: machine, load, versions, git commit, and the hash of every module that they
depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from echelon.errors import DataError, EchelonError

Entry = dict[str, Any]
CHAIN = "chain"
REPLAY = "replay"
"""The `kind` of an entry that is no result but a fact about one; see `echelon.evidence.replay`."""
PACKAGES = ("echelon", "torch", "numpy", "gymnasium", "ogbench", "mujoco")
LINE = 118


def path_of(out: Path | str, system: str, claim: str) -> Path:
    """File of one claim's results."""
    return Path(out) / system / f"{claim}.json"


def read(path: Path) -> list[Entry]:
    """Entries of a result file, oldest first; none if there is no such file.

    Raises DataError when the file cannot be parsed or an entry's checksum is not the one recorded.
    """
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        recorded = [entry[CHAIN] for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a result file: {error!r}") from error
    previous = ""
    for number, (entry, link) in enumerate(zip(entries, recorded, strict=True)):
        if _link(previous, entry) != link:
            raise DataError(f"{path}: entry {number} is not the one that was recorded; restore the file from git")
        previous = link
    return entries


def newest_of_record(entries: Sequence[Entry], seeds: Sequence[int]) -> Entry | None:
    """The newest result that covers `seeds` at the size of record; None if there is none."""
    found = [e for e in entries if e.get("kind") != REPLAY and set(seeds) <= set(e["seeds"]) and not e["full"]]
    return found[-1] if found else None


def append(path: Path, entry: Mapping[str, Any]) -> Entry:
    """Add an entry to a result file, atomically and one process at a time; returns it as written.

    Raises DataError when the file has been altered, EchelonError when it cannot be written.
    """
    plain = json.loads(json.dumps(dict(entry), allow_nan=False))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(path.parent):
            entries = read(path)
            plain[CHAIN] = _link(entries[-1][CHAIN] if entries else "", plain)
            aside = path.with_name(path.name + ".tmp")
            with aside.open("w", encoding="utf-8") as stream:
                stream.write(_document(path, [*entries, plain]))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, path)
    except OSError as error:
        raise EchelonError(f"cannot write {path}: {error.strerror}") from error
    return plain


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Machine, load and versions at this moment: {"machine": …, "load": …, "versions": …, "git": …}.

    `packages`: those whose versions matter beside the ones that always do.
    """
    known = versions((*PACKAGES, *packages))
    return {"machine": machine(), "load": list(os.getloadavg()), "versions": known, "git": git()}


def machine() -> dict[str, Any]:
    """CPU model, cores usable by this process, memory in GiB and operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": _cpu_model(), "cores": cores, "memory_gib": round(memory, 1), "system": platform.platform()}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed, because numbers may depend on them."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git() -> dict[str, Any] | None:
    """Commit of the package's checkout and whether its sources differ from it; None outside a checkout."""
    package = Path(__file__).parents[1]
    try:
        head, status = (
            subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": head, "dirty": bool(status)}


def pretty(value: Any, indent: int = 0) -> str:
    """JSON with one line for what fits on a line and for every list of plain numbers: readable, and short in a diff."""
    flat = json.dumps(value, ensure_ascii=False)
    numbers = isinstance(value, list) and not any(isinstance(item, dict | list | str) for item in value)
    if len(flat) + indent <= LINE or numbers or not isinstance(value, dict | list):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, list):
        parts = [pad + pretty(item, indent + 1) for item in value]
        return "[\n" + ",\n".join(parts) + "\n" + " " * indent + "]"
    parts = [f"{pad}{json.dumps(key, ensure_ascii=False)}: {pretty(item, indent + 1)}" for key, item in value.items()]
    return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"


def _document(path: Path, entries: Sequence[Entry]) -> str:
    """The file's text: a longer history begins with the text of the shorter one, up to its closing brackets."""
    head = f'{{\n "system": {json.dumps(path.parent.name)},\n "claim": {json.dumps(path.stem)},\n "entries": [\n'
    return head + ",\n".join(f"  {pretty(entry, 2)}" for entry in entries) + "\n ]\n}\n"


def _link(previous: str, entry: Mapping[str, Any]) -> str:
    content = json.dumps({key: value for key, value in entry.items() if key != CHAIN}, sort_keys=True)
    return hashlib.sha256((previous + content).encode()).hexdigest()[:16]


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the directory itself as a lock, so that no lock file is left among the results."""
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
