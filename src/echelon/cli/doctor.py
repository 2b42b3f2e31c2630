"""`echelon doctor`: check this machine and installation; every line that is not ok says what to do about it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from echelon.cli import show
from echelon.cli.arguments import parse

Status = Literal["ok", "warn", "fail"]
IMPORT_NAMES = {"gymnasium-robotics": "gymnasium_robotics"}
GIB = 1 << 30


@dataclass(frozen=True)
class Doctor:
    """Check Python, torch and its fast path, threads and load, optional packages, the data cache and rendering."""

    json: bool = False
    """Print the checks as JSON."""


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it is, and what would make it better."""

    name: str
    status: Status
    finding: str
    remedy: str = ""


def run(args: list[str]) -> int:
    """Print all checks; exit code 1 when one of them failed."""
    options = parse(Doctor, args, "doctor")
    checks: list[Check] = []
    for examine in (
        check_python,
        check_torch,
        check_threads,
        check_extras,
        check_cache,
        check_games,
        check_java,
        check_rendering,
    ):
        for check in examine():
            checks.append(check)
            if not options.json:
                remedy = f"\n{'':25}-> {check.remedy}" if check.remedy else ""
                print(f"{check.status:<5} {check.name:<18} {check.finding}{remedy}", flush=True)
    if options.json:
        show.as_json([asdict(check) for check in checks])
    return int(any(check.status == "fail" for check in checks))


def check_python() -> Iterator[Check]:
    """The interpreter and where echelon comes from."""
    import echelon

    yield Check("python", "ok", f"{platform.python_version()} in {sys.prefix}")
    yield Check("echelon", "ok", f"{echelon.__version__} from {Path(echelon.__file__).parent}")


def check_torch() -> Iterator[Check]:
    """Torch, its devices, and the number formats that the start-up probe chooses."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "fail", f"does not import: {error}", "pip install --force-reinstall torch")
        return
    from echelon.training import runtime

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    yield Check("torch", "ok", f"{torch.__version__}, {device}")
    yield Check("fast path", "ok", runtime.choose().describe())


def check_threads() -> Iterator[Check]:
    """Processors that this process may use, and how busy they are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    found = f"{cores} cores, load {load:.1f} over the last minute"
    if load > cores + 0.5:
        yield Check("load", "warn", found, "other work slows this machine down: timings will not be comparable")
    else:
        yield Check("load", "ok", found)
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        yield Check("threads", "ok", "OMP_WAIT_POLICY=PASSIVE: idle threads sleep")
    else:
        remedy = "export OMP_WAIT_POLICY=PASSIVE, or several runs at once take each other's time"
        yield Check("threads", "warn", f"OMP_WAIT_POLICY={policy or 'unset'}: idle threads spin", remedy)


def check_extras() -> Iterator[Check]:
    """The optional packages, by extra, against the versions that echelon declares."""
    wanted: dict[str, dict[str, str]] = {}
    for requirement in metadata.requires("echelon") or []:
        match = re.match(r"([\w.-]+)\s*([<>=!~].*?)?\s*;\s*extra\s*==\s*['\"](\w+)['\"]", requirement)
        if match and match[3] != "dev":
            wanted.setdefault(match[3], {})[match[1]] = match[2] or ""
    for extra, packages in wanted.items():
        versions = {name: installed(name) for name in packages}
        absent = [name for name, version in versions.items() if version is None]
        if absent:
            status: Status = "warn" if extra == "control" else "ok"
            yield Check(extra, status, f"without {', '.join(absent)}", f'optional: pip install "echelon[{extra}]"')
        for name, version in versions.items():
            if version is not None:
                yield check_package(name, version, packages[name], extra)


def check_package(name: str, version: str, spec: str, extra: str) -> Check:
    """Whether an installed package has the declared version and imports."""
    remedy = f'pip install "echelon[{extra}]"'
    if not satisfies(version, spec):
        return Check(name, "fail", f"{version}, but echelon needs {spec}", remedy)
    module = IMPORT_NAMES.get(name, name.replace("-", "_"))
    probe = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        return Check(
            name, "fail", f"{version} does not import: {reason}", f"pip install --force-reinstall {name}=={version}"
        )
    return Check(name, "ok", version)


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def satisfies(version: str, spec: str) -> bool:
    """Whether `version` meets a specifier of the forms `==x` and `>=x`, joined by commas."""

    def parts(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0]))

    compare: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
        "==": lambda a, b: a == b,
        ">=": lambda a, b: a >= b,
    }
    return all(compare[item.strip()[:2]](parts(version), parts(item)) for item in spec.split(",") if item.strip())


def check_cache() -> Iterator[Check]:
    """The folder of the data sets: whether it can be written, what it holds, and the room left."""
    from echelon.data.store import cache_dir

    folder = cache_dir()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    sets = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    found = f"{folder}: {len(sets)} data sets, {free / GIB:.1f} GiB free"
    if not os.access(there, os.W_OK):
        yield Check("data cache", "fail", f"{folder} cannot be written", "export ECHELON_DATA=/a/folder/of/yours")
    elif free < 4 * GIB:
        yield Check("data cache", "warn", found, "the largest regenerated data sets take 1 GiB each: free some room")
    else:
        yield Check("data cache", "ok", found)


def check_games() -> Iterator[Check]:
    """The folder of TextWorld's compiled games, where the package is installed."""
    if installed("textworld") is None:
        return
    from echelon.language.worlds._textworld_games import FILE, games_dir

    folder = games_dir()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    count = sum(1 for _ in folder.glob(f"*/{FILE}"))
    if not os.access(there, os.W_OK):
        yield Check("compiled games", "fail", f"{folder} cannot be written", "export ECHELON_GAMES=/a/folder/of/yours")
    else:
        yield Check("compiled games", "ok", f"{folder}: {count} games of TextWorld")


def check_java() -> Iterator[Check]:
    """Whether there is a Java for ScienceWorld, where that package is installed."""
    if installed("scienceworld") is None:
        return
    from echelon.language.worlds.scienceworld import find_java

    remedy = "only the world scienceworld needs it, 8 or newer: apt install default-jre-headless, or export JAVA_HOME"
    java = find_java()
    if java is None:
        yield Check("java", "warn", "none in JAVA_HOME or on the path", remedy)
        return
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check("java", "warn", f"{java} does not run: {error}", remedy)
        return
    version = re.search(r'version "(?:1\.)?(\d+)[^"]*"', said)
    if version is None or int(version[1]) < 8:
        yield Check("java", "warn", f"{java}: {(said.splitlines() or ['says nothing'])[0]}", remedy)
    else:
        yield Check("java", "ok", f"{java}, version {version[1]}")


def check_rendering() -> Iterator[Check]:
    """Whether MuJoCo can draw a frame without a display (only pictures of robots need it)."""
    if installed("mujoco") is None:
        return
    chosen = os.environ.get("MUJOCO_GL")
    for backend in [chosen] if chosen else ["egl", "osmesa"]:
        probe = "import mujoco; context = mujoco.GLContext(8, 8); context.make_current(); context.free()"
        environment = {**os.environ, "MUJOCO_GL": backend}
        try:
            done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, timeout=60)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            yield Check("rendering", "ok", f"MUJOCO_GL={backend} draws")
            return
    found = f"MUJOCO_GL={chosen} does not draw" if chosen else "neither EGL nor OSMesa draws"
    yield Check(
        "rendering", "warn", found, "only pictures of robots need it: install libegl1 or libosmesa6, export MUJOCO_GL"
    )
