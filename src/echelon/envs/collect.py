"""Make data sets by simulation: several processes, progress with time left, resumable, the same bytes always.

Every episode is a function of (seed, episode number), so neither the number of processes nor an interruption changes
the result, and the first N episodes of a full set are the set of N episodes. Finished shards of episodes are kept in
`<root>/.partial/NAME` until the whole set is assembled.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from echelon.data.store import Store, cache_dir, exists, versions, write_store
from echelon.envs.catalog import DataInfo, cannot_make, parse, sized
from echelon.envs.families import recipe, require_control
from echelon.envs.workers import Shard, collect
from echelon.errors import UsageError

SHARD_ROWS = {"pointmaze": 20_000}
SLOW_SHARD_ROWS = 4_000
RELEASED_TOO = "collected by echelon; a fresh draw from the published recipe, not the released file"


def make(
    name: str,
    jobs: int = 2,
    episodes: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Collect data set `name` and return its folder; a set that is there already is left as it is.

    `name` may be `NAME@EPISODES`, the same as `episodes`: the first episodes of the set, stored under that name. A
    tenth as many episodes (at least one) go to `<name>-val`. `jobs` is the number of processes, `root` the folder of
    data sets (default: the cache). Raises UsageError for unknown names, for sets that need a trained expert, and when a
    set made from another seed has that name already.
    """
    info = parse(name) if episodes is None else sized(parse(name), episodes)
    if not info.regenerable:
        raise UsageError(cannot_make(info))
    if jobs < 1:
        raise UsageError(f"{jobs} jobs were asked for; ask for 1 or more")
    require_control()
    root = Path(root) if root is not None else cache_dir()
    folders = {"train": root / info.name, "val": root / f"{info.name}-val"}
    with _only_one(root, info.name):
        if exists(folders["train"]):
            _check_seed(folders["train"], seed)
        if not all(exists(folder) for folder in folders.values()):
            partial = _open_partial(root, info, seed)
            shards = shards_of(info)
            collect(info, seed, partial, shards, jobs, progress)
            for split, folder in folders.items():
                if not exists(folder):
                    _assemble(folder, info, seed, split, [partial / s.file for s in shards if s.split == split])
            shutil.rmtree(partial)
    return folders["train"]


def shards_of(info: DataInfo) -> list[Shard]:
    """The pieces in which a data set is collected. Validation episodes are numbered after those of the full set."""
    size = max(1, SHARD_ROWS.get(info.env.family, SLOW_SHARD_ROWS) // (info.length + 1))
    first = info.full_episodes
    ranges = (("train", 0, info.episodes), ("val", first, first + info.validation_episodes))
    return [
        Shard(split, start, min(start + size, end)) for split, begin, end in ranges for start in range(begin, end, size)
    ]


def _check_seed(folder: Path, seed: int) -> None:
    there = Store.open(folder).manifest
    if there.get("regenerated") and there.get("seed") != seed:
        raise UsageError(f"{folder} holds the set made from seed {there.get('seed')}; remove it to make seed {seed}")


@contextmanager
def _only_one(root: Path, name: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # a second process waits here, then finds the set made
        yield


def _open_partial(root: Path, info: DataInfo, seed: int) -> Path:
    partial = root / ".partial" / info.name
    stamp = json.dumps({"recipe": recipe(info), "seed": seed, "versions": versions()}, sort_keys=True)
    file = partial / "stamp.json"
    if partial.exists() and not (file.exists() and file.read_text(encoding="utf-8") == stamp):
        shutil.rmtree(partial)  # begun by another recipe, seed or simulator: its episodes do not belong here
    partial.mkdir(parents=True, exist_ok=True)
    file.write_text(stamp, encoding="utf-8")
    return partial


def _assemble(folder: Path, info: DataInfo, seed: int, split: str, files: list[Path]) -> None:
    facts = {
        "name": folder.name,
        "env": info.env.name,
        "recipe": recipe(info),
        "regenerated": True,
        "source": RELEASED_TOO if info.published else "collected by echelon; no released file has this name",
        "seed": seed,
        "split": split,
        "full_episodes": info.full_episodes,
    }
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # a killed process's draft; the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    write_store(folder, _pieces(files), _rows(files), facts, folder.name)


def _rows(files: list[Path]) -> int:
    """Rows of all shards."""
    found = 0
    for file in files:
        with np.load(file, allow_pickle=False) as shard:
            found += len(shard["terminals"])
    return found


def _pieces(files: list[Path]) -> Iterator[dict[str, np.ndarray]]:
    for file in files:
        with np.load(file, allow_pickle=False) as shard:
            yield {name: shard[name] for name in shard.files}
