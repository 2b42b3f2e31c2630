"""`echelon data`: list, make, fetch, import, describe and verify data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from echelon.cli import show
from echelon.cli.arguments import parse, subverb
from echelon.data.store import MANIFEST, Store, cache_dir, exists, locate
from echelon.errors import UsageError

Name = Positional[Annotated[str, arg(metavar="NAME")]]

USAGE = """\
usage: echelon data ACTION [arguments]      echelon data ACTION --help explains one action

  list          all data sets, whether they are here, and how to get them
  make NAME     collect one by simulation (resumable)
  fetch NAME    download the published one; minari:NAME downloads a Minari set
  import FILE   convert a published .npz file, a folder with a Minari set, or minari:NAME, one of those here
  info NAME     what a stored one holds and where it came from
  verify NAME   recompute its checksums and check its contents

Data sets live in $ECHELON_DATA, else in ~/.cache/echelon/data."""


@dataclass(frozen=True)
class List:
    """List the data sets that echelon knows."""

    here: bool = False
    """Only those that are stored on this machine."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Make:
    """Collect a data set by simulation: always the same bytes, however many processes; stopped, it resumes."""

    name: Name
    """Data set, such as pointmaze-large-stitch-v0."""
    episodes: int | None = None
    """Only the first episodes of the set, stored as NAME@EPISODES."""
    jobs: int = 2
    """Processes that collect."""
    seed: int = 0
    """Seed of the collection; 0 makes the set of record."""
    experts: float | None = None
    """Share of the episodes by the scripted expert, 0 to 1 (fetchreach and fetchpush; 0.1 in the mixed sets)."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Import:
    """Convert a published .npz file, with the -val file beside it if there is one, or a local Minari set."""

    file: Positional[Annotated[str, arg(metavar="FILE")]]
    """The file, such as antmaze-large-navigate-v0.npz; or a Minari set: its folder, or minari:D4RL/door/human-v2."""
    name: str | None = None
    """Name of the data set (default: the file's)."""
    rescale_actions: bool = False
    """Map the bounds of a Minari set's actions to -1 and 1."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Named:
    """The data set that is meant."""

    name: Name
    """Data set, by name or folder."""
    json: bool = False
    """Print JSON."""


def run(args: list[str]) -> int:
    """Run one action."""
    actions = {
        "list": list_sets,
        "make": make_set,
        "fetch": fetch_set,
        "import": import_set,
        "info": info_of_set,
        "verify": verify_set,
    }
    action, rest = subverb("data", args, actions, USAGE)
    action(rest)
    return 0


def list_sets(args: list[str]) -> None:
    """Print every known data set, then those stored under other names."""
    from echelon.envs.catalog import DATASETS

    options = parse(List, args, "data list")
    stored = sorted(path.parent.name for path in cache_dir().glob(f"*/{MANIFEST}"))
    rows: list[dict[str, Any]] = [
        {
            "name": info.name,
            "env": info.env.name,
            "episodes": info.episodes,
            "transitions": info.transitions,
            "here": info.name in stored,
            "get": "make" if info.regenerable else "fetch",
        }
        for info in DATASETS.values()
    ]
    rows += [describe(name) for name in stored if name not in DATASETS]
    rows = [row for row in rows if row["here"] or not options.here]
    if options.json:
        show.as_json(rows)
        return
    cells = [(r["name"], r["episodes"], f"{r['transitions']:,}", "yes" if r["here"] else "", r["get"]) for r in rows]
    print(show.table(("data set", "episodes", "transitions", "here", "get it by: echelon data"), cells))
    print(f"\n{len(stored)} stored in {cache_dir()}")


def describe(name: str) -> dict[str, Any]:
    """The row of a stored set that is not in the catalogue: a smaller one, a validation set, or one's own."""
    store = Store.open(name)
    env = store.manifest.get("env", "")
    return {
        "name": name,
        "env": env,
        "episodes": store.episodes,
        "transitions": store.transitions,
        "here": True,
        "get": "",
    }


def make_set(args: list[str]) -> None:
    """Collect a data set."""
    from echelon.envs.catalog import with_experts
    from echelon.envs.collect import make

    options = parse(Make, args, "data make")
    name = options.name if options.experts is None else with_experts(options.name, options.experts)
    path = make(name, jobs=options.jobs, episodes=options.episodes, seed=options.seed, progress=not options.json)
    report(Store.open(path), options.json)


def fetch_set(args: list[str]) -> None:
    """Download a published data set."""
    from echelon.data import minari
    from echelon.envs.ensure import fetch

    options = parse(Named, args, "data fetch")
    path = minari.fetch(options.name) if options.name.startswith(minari.PREFIX) else fetch(options.name)
    report(Store.open(path), options.json)


def import_set(args: list[str]) -> None:
    """Convert a published file or a Minari set."""
    from echelon.data import minari
    from echelon.data.ogbench import import_npz

    options = parse(Import, args, "data import")
    file = Path(options.file)
    if options.file.startswith(minari.PREFIX) or file.is_dir():
        path = minari.import_minari(options.file, options.name, rescale_actions=options.rescale_actions)
    elif options.rescale_actions:
        raise UsageError("--rescale-actions is for Minari sets; the actions of published files are in [-1, 1]")
    elif not file.is_file():
        raise UsageError(f"no file {file}; published sets are .npz files named like their data set")
    else:
        path = import_npz(file, options.name)
    report(Store.open(path), options.json)


def info_of_set(args: list[str]) -> None:
    """Print the manifest of a stored data set."""
    options = parse(Named, args, "data info")
    report(open_named(options.name), options.json)


def open_named(name: str) -> Store:
    """Open a stored data set; a name that is neither stored nor known is answered with the nearest known names."""
    from echelon.envs.catalog import parse as catalogued

    if not exists(name) and locate(name).parent == cache_dir():
        catalogued(name)
    return Store.open(name)


def report(store: Store, as_json: bool) -> None:
    """Print what a data set holds and where it came from."""
    if as_json:
        show.as_json({"path": str(store.path), **store.manifest})
        return
    print(f"{store.name}: {store.episodes:,} episodes, {store.transitions:,} transitions, {store.rows:,} rows")
    for name, column in store.columns.items():
        print(f"  {name:<14} {column.dtype.name}{list(column.shape[1:]) or ''}  {column.nbytes / 1e6:.1f} MB")
    for key in ("source", "recipe", "seed", "created"):
        if key in store.manifest:
            print(f"  {key:<14} {store.manifest[key]}")
    print(f"in {store.path}")


def verify_set(args: list[str]) -> None:
    """Check a stored data set file by file."""
    options = parse(Named, args, "data verify")
    store = open_named(options.name)
    store.verify()
    if options.json:
        show.as_json({"name": store.name, "path": str(store.path), "verified": True})
    else:
        print(f"{store.name}: checksums, sizes and contents are right ({store.episodes:,} episodes in {store.path})")
