"""A data set on disk: one `.npy` file a column, memory-mapped, and a `manifest.json` that says where it came from.

Rows are compact. An episode of T transitions keeps T+1 consecutive rows: the last row holds the final observation, its
action leads nowhere and its `terminals` entry is True (the only True of the episode). With transitions numbered
0..N-1 over the whole store, transition t of episode e stands in row t + e and its next observation in the row after it.
The last index at which a transition of e stands is also the last one that may serve as a goal inside e, so the final
observation is never a goal: the loading convention of OGBench (arXiv 2410.20092).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from echelon.data.check import Columns, check_episodes
from echelon.errors import DataError, UsageError

FORMAT = 1
MANIFEST = "manifest.json"
LENGTHS = "lengths"


def cache_dir() -> Path:
    """Folder that holds the named data sets: `$ECHELON_DATA`, else `~/.cache/echelon/data`."""
    return Path(os.environ.get("ECHELON_DATA") or Path.home() / ".cache" / "echelon" / "data").expanduser()


def locate(path_or_name: str | Path) -> Path:
    """Folder that `path_or_name` means: itself when it is a folder or has a separator, else that name in the cache."""
    path = Path(path_or_name).expanduser()
    if path.is_dir() and (path / MANIFEST).exists():
        return path
    return path if len(path.parts) > 1 else cache_dir() / path


def exists(path_or_name: str | Path) -> bool:
    """Whether `Store.open` would find a manifest there."""
    return (locate(path_or_name) / MANIFEST).is_file()


@dataclass(frozen=True)
class Store:
    """A memory-mapped data set; see the module's docstring for how rows and transitions are numbered.

    `columns` maps a name to an array of R rows, `lengths` int64[E] counts the transitions of each episode, and
    `manifest` is the JSON object beside the columns.
    """

    path: Path
    manifest: dict[str, Any]
    columns: dict[str, np.ndarray]
    lengths: np.ndarray
    starts: np.ndarray = field(init=False)
    """int64[E]: number of the first transition of each episode."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", np.cumsum(self.lengths) - self.lengths)

    @staticmethod
    def open(path_or_name: str | Path) -> Store:
        """Memory-map the store in a folder, or of that name in the cache.

        Checks that every file has the form and size that the manifest states; contents are checked by `verify`.
        Raises UsageError when there is none, DataError when a file does not agree with the manifest.
        """
        path = locate(path_or_name)
        if not (path / MANIFEST).is_file():
            known = sorted(p.parent.name for p in path.parent.glob(f"[!.]*/{MANIFEST}"))
            there = f" (it holds {', '.join(known[:8])})" if known else ""
            remedy = f"make it: echelon data make {path.name}"
            raise UsageError(f"no data set '{path.name}' in {path.parent}{there}; {remedy}")
        manifest = _read_manifest(path)
        columns = {name: _map(path, name, spec) for name, spec in manifest["columns"].items()}
        lengths = np.asarray(_map(path, LENGTHS, manifest[LENGTHS]))
        rows = int(lengths.sum()) + len(lengths)
        for name, column in columns.items():
            if len(column) != rows:
                file = path / f"{name}.npy"
                raise DataError(f"{file}: {len(column)} rows, but the episodes have {rows}; {_remedy(path)}")
        return Store(path, manifest, columns, lengths)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.manifest["name"]

    @property
    def episodes(self) -> int:
        """Number of episodes E."""
        return len(self.lengths)

    @property
    def transitions(self) -> int:
        """Number of transitions N."""
        return int(self.lengths.sum())

    @property
    def rows(self) -> int:
        """Number of stored rows: N + E."""
        return self.transitions + self.episodes

    def episode_of(self, transition: np.ndarray) -> np.ndarray:
        """Episode int64[...] of each transition number int64[...]."""
        return np.searchsorted(self.starts, transition, side="right") - 1

    def row_of(self, transition: np.ndarray) -> np.ndarray:
        """Row int64[...] of each transition number int64[...]."""
        return transition + self.episode_of(transition)

    def episode(self, index: int) -> dict[str, np.ndarray]:
        """All T+1 rows of one episode, by column (views)."""
        if not -self.episodes <= index < self.episodes:
            raise UsageError(f"{self.name}: no episode {index}; it has {self.episodes}")
        index %= self.episodes
        start = int(self.starts[index]) + index
        stop = start + int(self.lengths[index]) + 1
        return {name: column[start:stop] for name, column in self.columns.items()}

    def head(self, transitions: int) -> Store:
        """The first whole episodes that hold at least `transitions` transitions (all of them if there are fewer)."""
        if transitions < 1:
            raise UsageError(f"{self.name}: a head of {transitions} transitions was asked for; ask for 1 or more")
        episodes = min(int(np.searchsorted(np.cumsum(self.lengths), transitions)) + 1, self.episodes)
        if episodes == self.episodes:
            return self
        lengths = self.lengths[:episodes]
        rows = int(lengths.sum()) + episodes
        columns = {name: column[:rows] for name, column in self.columns.items()}
        counts = {"episodes": episodes, "transitions": int(lengths.sum()), "head_of": self.episodes}
        return Store(self.path, {**self.manifest, **counts}, columns, lengths)

    def regular(self) -> dict[str, np.ndarray]:
        """Every transition as arrays of N rows in memory: the columns, plus `next_observations`; `terminals` is float32
        and 1 on the last transition of an episode. This is the form that OGBench's own loader returns.
        """
        row = self.row_of(np.arange(self.transitions))
        arrays = {name: np.asarray(column[row]) for name, column in self.columns.items() if name != "terminals"}
        arrays["next_observations"] = np.asarray(self.columns["observations"][row + 1])
        arrays["terminals"] = np.asarray(self.columns["terminals"][row + 1]).astype(np.float32)
        return arrays

    def validation(self) -> Store | None:
        """The validation episodes that belong to this set, or None when there are none."""
        sibling = self.path.with_name(f"{self.path.name}-val")
        return Store.open(sibling) if exists(sibling) else None

    def verify(self) -> None:
        """Recompute the checksums of all files and the checks on their contents; DataError names the first bad file."""
        manifest = _read_manifest(self.path)
        for name, spec in {**manifest["columns"], LENGTHS: manifest[LENGTHS]}.items():
            file = self.path / f"{name}.npy"
            if _sha256(file) != spec["sha256"]:
                raise DataError(f"{file}: its checksum is not the one in {MANIFEST}; {_remedy(self.path)}")
        whole = Store.open(self.path)
        check_episodes(whole.columns, str(self.path), lengths=whole.lengths)


def write_store(path: Path, parts: Iterable[Columns], rows: int, facts: Mapping[str, Any], source: str) -> Path:
    """Write a store from consecutive pieces of whole episodes and return its folder.

    All pieces have the same columns and together `rows` rows. `facts` are the manifest's entries beyond the counts,
    column descriptions, date and versions: name, recipe, regenerated, source, seed, split, and so on. The folder
    appears all at once, when everything is written and checked; DataError if it exists already or a piece is bad.
    """
    if path.exists():
        raise DataError(f"{path} exists already; remove it to write it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        lengths = _fill(draft, parts, rows, source)
        np.save(draft / f"{LENGTHS}.npy", lengths)
        files = sorted(draft.glob("*.npy"))
        specs = {file.stem: _describe(file) for file in files}
        manifest = {
            "format": FORMAT,
            **facts,
            "episodes": len(lengths),
            "transitions": int(lengths.sum()),
            LENGTHS: specs.pop(LENGTHS),
            "columns": specs,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in [*files, draft / MANIFEST, draft]:
            _sync(file)
        draft.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the contents of a data set depend on, where installed."""
    found = {"python": platform.python_version()}
    simulators = ("ogbench", "mujoco", "dm_control", "gymnasium-robotics", "metaworld")
    for package in ("echelon", "numpy", "gymnasium", *simulators):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _fill(folder: Path, parts: Iterable[Columns], rows: int, source: str) -> np.ndarray:
    files: dict[str, np.memmap] = {}
    lengths: list[np.ndarray] = []
    row, episode = 0, 0
    for part in parts:
        lengths.append(check_episodes(part, source, episode))
        if not files:
            for name, column in part.items():
                shape = (rows, *column.shape[1:])
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", column.dtype, shape)
        stop = row + len(part["terminals"])
        if set(part) != set(files) or stop > rows:
            raise DataError(f"{source}: from episode {episode} on, other columns or more rows than announced")
        for name, column in part.items():
            if column.shape[1:] != files[name].shape[1:] or column.dtype != files[name].dtype:
                now, before = (f"{a.dtype}{list(a.shape[1:])}" for a in (column, files[name]))
                raise DataError(f"{source}: from episode {episode} on, '{name}' is {now}, before it was {before}")
            files[name][row:stop] = column
        row, episode = stop, episode + len(lengths[-1])
    if row != rows:
        raise DataError(f"{source}: {row} rows, {rows} were announced")
    for file in files.values():
        file.flush()
    return np.concatenate(lengths)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path / MANIFEST}: not readable as JSON ({error}); {_remedy(path)}") from None
    lacking = [key for key in ("format", "name", "columns", LENGTHS) if key not in manifest]
    if lacking or manifest["format"] != FORMAT:
        what = f"no '{lacking[0]}'" if lacking else f"format {manifest['format']}, this version reads {FORMAT}"
        raise DataError(f"{path / MANIFEST}: {what}; {_remedy(path)}")
    return manifest


def _map(path: Path, name: str, spec: Mapping[str, Any]) -> np.ndarray:
    file = path / f"{name}.npy"
    try:
        # copy-on-write: torch wants writable memory, and a write must never reach the file
        array = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: missing or truncated ({error}); {_remedy(path)}") from None
    if array.dtype.name != spec["dtype"] or list(array.shape) != list(spec["shape"]):
        found, stated = f"{array.dtype.name}{list(array.shape)}", f"{spec['dtype']}{spec['shape']}"
        raise DataError(f"{file}: {found}, the manifest says {stated}; {_remedy(path)}")
    size = file.stat().st_size
    if size != array.offset + array.nbytes:  # offset: where the header ends
        raise DataError(f"{file}: {size} bytes is not the size of its {list(array.shape)} entries; {_remedy(path)}")
    return array


def _describe(file: Path) -> dict[str, Any]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remedy(path: Path) -> str:
    return f"remove {path} and make it again: echelon data make {path.name}"
