"""OGBench's published data files: reading, writing, and downloading them (arXiv 2410.20092, package 1.2.2).

A file is an `.npz` of rows: observations, actions, terminals (True on the last row of an episode), and mostly qpos,
qvel and button_states. Each set has a second file with `-val` in its name. Rows are kept as they are; which of them
count as transitions is said in `echelon.data.store`.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from echelon.data.check import REQUIRED
from echelon.data.store import Store, cache_dir, exists, write_store
from echelon.errors import DataError, MissingExtra, UsageError

RECIPE = {"name": "ogbench-release", "version": 1}
OPTIONAL = ("qpos", "qvel", "button_states")
TIMEOUT_S = 30.0
BLOCK = 1 << 20


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a published file: float32 (integers and pixels as they are), `terminals` bool.

    Raises DataError naming the file if it is missing, truncated, or lacks a column.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in REQUIRED if name not in file.files]
            if missing:
                raise DataError(f"{path}: no column '{missing[0]}'; it has {', '.join(sorted(file.files))}")
            columns = {name: file[name] for name in (*REQUIRED, *OPTIONAL) if name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}); remove it and get it again") from None
    columns["terminals"] = columns["terminals"].astype(bool)
    return {
        name: column.astype(np.float32, copy=False) if np.issubdtype(column.dtype, np.floating) else column
        for name, column in columns.items()
    }


def write_npz(store: Store, path: str | Path) -> None:
    """Write a store in the published form, so that OGBench's own loader reads it."""
    with Path(path).open("wb") as stream:
        columns = {name: np.asarray(column) for name, column in store.columns.items()}
        np.savez_compressed(stream, allow_pickle=False, **columns)


def import_npz(path: str | Path, name: str | None = None, root: str | Path | None = None, source: str = "") -> Path:
    """Convert a published file, and the `-val` file beside it if there is one, to stores; returns the folder.

    `name` defaults to the file's name, `root` to the cache, `source` (for the manifest) to the path. Raises DataError,
    naming the episode, when the contents are not those of a data set.
    """
    path = Path(path)
    root = Path(root) if root is not None else cache_dir()
    target = root / (name or path.stem)
    beside = path.with_name(f"{path.stem}-val.npz")
    pairs = [(beside, root / f"{target.name}-val", "val")] if beside.exists() else []
    for file, folder, split in [*pairs, (path, target, "train")]:
        columns = read_npz(file)
        facts = {
            "name": folder.name,
            "env": _env_of(target.name),
            "recipe": RECIPE,
            "regenerated": False,
            "source": source or str(file),
            "seed": None,
            "split": split,
        }
        if not exists(folder):
            write_store(folder, [columns], len(columns["terminals"]), facts, str(file))
    return target


def fetch(name: str, root: str | Path | None = None, progress: bool = True) -> Path:
    """The published data set `name` as a store: from `~/.ogbench/data` if its files are there, else downloaded to it.

    A store of that name that is there already is left as it is, unless it was regenerated: then UsageError, as the two
    are not the same data. DataError when the download fails.
    """
    target = (Path(root) if root is not None else cache_dir()) / name
    if exists(target):
        if Store.open(target).manifest.get("regenerated"):
            raise UsageError(f"{target} holds a regenerated set of that name; remove it to have the published one")
        return target
    folder = Path.home() / ".ogbench" / "data"
    url = ""
    for file in (f"{name}-val.npz", f"{name}.npz"):
        if not (folder / file).exists():
            url = f"{_base_url()}/{name}.npz"
            _download(f"{_base_url()}/{file}", folder / file, progress)
    return import_npz(folder / f"{name}.npz", root=target.parent, source=url)


def _base_url() -> str:
    try:
        from ogbench.utils import DATASET_URL
    except ImportError:
        raise MissingExtra("ogbench", "control") from None
    return str(DATASET_URL)


def _download(url: str, path: Path, progress: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, draft.open("wb") as stream:
            size = int(response.headers.get("Content-Length") or 0)
            with _bar(path.name, size, progress) as advance:
                while block := response.read(BLOCK):
                    stream.write(block)
                    advance(len(block))
        if size and draft.stat().st_size != size:
            raise DataError(f"{url}: {draft.stat().st_size} of {size} bytes came; try again")
        draft.rename(path)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DataError(f"{url}: download failed ({error}); is there internet?") from None
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _bar(name: str, size: int, shown: bool) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("getting {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=size or None)
        yield lambda count: progress.advance(task, count)


def _env_of(name: str) -> str:
    parts = name.split("-")
    return "-".join([*parts[:-2], parts[-1]]) if len(parts) > 2 else name
