"""Get hold of a data set by name: open it, make it, or fetch it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from echelon.data.store import Store, cache_dir, exists
from echelon.envs.catalog import DataInfo, cannot_make, parse, sized
from echelon.envs.collect import make
from echelon.errors import DataError, UsageError


def ensure(
    name: str,
    transitions: int | None = None,
    jobs: int = 2,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Store:
    """Open data set `name`, making it first if that is possible; with `transitions`, only as many as asked for.

    `name` may also be the path of a store. With `transitions`, the result is the head of the full set if that is
    stored, else of the smallest stored set of this recipe that is large enough, else of a new set of enough episodes.
    Raises UsageError naming the remedy when the set is neither there nor can be made.
    """
    if not exists(name):
        info = parse(name)
        if transitions is not None:
            needed = min(info.episodes, -(-transitions // info.length))
            info = sized(info, _smallest_stored(info, needed) or needed)
        if not exists(info.name):
            if not info.regenerable:
                raise UsageError(f"nothing in {cache_dir()}: {cannot_make(info)}")
            if progress:
                say(f"data set {info.name} is not there yet: making {info.transitions:,} transitions")
            make(info.name, jobs=jobs, progress=progress)
        name = info.name
    store = Store.open(name)
    return store if transitions is None else store.head(transitions)


def fetch(name: str, progress: bool = True) -> Path:
    """Download the published data set `name` and return its folder in the cache.

    Raises UsageError for a name that OGBench does not publish, DataError when the download fails: then the message says
    whether the set can be made instead.
    """
    from echelon.data import ogbench

    info = parse(name)
    if info.episodes != info.full_episodes:
        raise UsageError(f"'{name}': published sets are whole; fetch {info.name.partition('@')[0]}")
    if not info.published:
        raise UsageError(f"'{name}' is not published, it is made here: echelon data make {name}")
    try:
        return ogbench.fetch(name, progress=progress)
    except DataError as error:
        remedy = f"it can be made instead: echelon data make {name}" if info.regenerable else "it cannot be made here"
        raise DataError(f"{error}; {remedy}") from None


def _smallest_stored(info: DataInfo, needed: int) -> int | None:
    base = info.name.partition("@")[0]
    sizes = [path.name.partition("@")[2] for path in cache_dir().glob(f"{base}@*") if exists(path)]
    return min((int(size) for size in sizes if size.isdecimal() and int(size) >= needed), default=None)
