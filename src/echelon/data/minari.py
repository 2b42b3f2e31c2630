"""Minari data sets as stores: read from the local folder, without internet; downloaded where there is one.

A set is a folder with `main_data.hdf5` and `metadata.json`, by default `~/.minari/datasets/NAME/data` (other roots:
$MINARI_DATASETS_PATH). The HDF5 file has a group `episode_0`, `episode_1`, … for each episode of T steps: T + 1
observations, T actions, rewards, terminations and truncations (the format of Minari 0.5). Observations may be a
dictionary; of one with `observation`, `achieved_goal` and `desired_goal`, all three are kept as columns.
Only h5py is needed to read; the package minari only to download.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from echelon.data.store import cache_dir, exists, write_store
from echelon.errors import DataError, MissingExtra, UsageError

PREFIX = "minari:"
RECIPE = {"name": "minari", "version": 1}
MAIN, METADATA = "main_data.hdf5", "metadata.json"
GOALS = {"observation": "observations", "achieved_goal": "achieved_goals", "desired_goal": "desired_goals"}
ENTRIES = ("actions", "rewards", "terminations")
_EPISODE = re.compile(r"episode_(\d+)")


def import_minari(
    what: str | Path, name: str | None = None, root: str | Path | None = None, rescale_actions: bool = False
) -> Path:
    """Convert a local Minari set, `minari:NAME` or its folder, to a store; returns the store's folder.

    `name` defaults to the set's own with - for /, `root` to the cache. Columns: observations, actions (zeros in an
    episode's last row, where none was taken), terminals (the last row), rewards, terminations (which of the steps ended
    in a terminal state), and achieved_goals and desired_goals where there are. Floats become float32. With
    `rescale_actions` the bounds of the set's action space become -1 and 1.
    Raises UsageError when there is no such set, DataError naming the episode when its contents are not fit, and
    MissingExtra without h5py.
    """
    folder = find(what)
    metadata = _metadata(folder)
    identity = str(metadata.get("dataset_id") or _named(what, folder))
    target = (Path(root) if root is not None else cache_dir()) / (name or identity.replace("/", "-"))
    if exists(target):
        raise UsageError(f"{target} exists already; remove it to import {identity} again, or choose another --name")
    scale = _bounds(metadata, folder) if rescale_actions else None
    facts = {
        "name": target.name,
        "env": _environment(metadata),
        "recipe": {**RECIPE, "dataset": identity, "rescaled": rescale_actions},
        "regenerated": False,
        "source": f"{PREFIX}{identity}",
        "seed": None,
        "split": "train",
    }
    if util.find_spec("h5py") is None:
        raise MissingExtra("h5py", "minari")
    import h5py

    try:
        file = h5py.File(folder / MAIN, "r")
    except OSError as error:
        raise DataError(f"{folder / MAIN}: not a whole HDF5 file ({error}); get it again") from None
    with file:
        groups = _episodes(file, folder)
        rows = sum(_steps(group, f"{folder / MAIN}: episode {e}") + 1 for e, group in enumerate(groups))
        pieces = (_columns(group, f"{folder / MAIN}: episode {e}", scale) for e, group in enumerate(groups))
        return write_store(target, pieces, rows, facts, str(folder / MAIN))


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Download the Minari set `minari:NAME`, unless its folder is there, and convert it; needs the package minari.

    Raises MissingExtra without the package, DataError with what it said when the download fails.
    """
    identity = name.removeprefix(PREFIX)
    if not (_root() / identity / "data" / MAIN).is_file():
        if util.find_spec("minari") is None:
            raise MissingExtra("minari", "minari")
        code = "import sys, minari; minari.download_dataset(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, identity], stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"{PREFIX}{identity}: download failed ({said}); is there internet, and is the name right?")
    return import_minari(f"{PREFIX}{identity}", root=root)


def find(what: str | Path) -> Path:
    """Folder of the HDF5 file of `minari:NAME`, of a set's folder or of its `data` folder. UsageError without one."""
    named = str(what).startswith(PREFIX)
    folder = _root() / str(what).removeprefix(PREFIX) if named else Path(what).expanduser()
    for place in (folder / "data", folder):
        if (place / MAIN).is_file():
            return place
    if (folder / "data" / METADATA).is_file() or (folder / METADATA).is_file():
        raise DataError(f"{folder}: no {MAIN}; of Minari's formats, only HDF5 is read")
    there = sorted(str(path.parents[1].relative_to(_root())) for path in _root().glob(f"**/data/{MAIN}"))
    held = f" (it holds {', '.join(there[:8])})" if there else ""
    remedy = f"with internet: echelon data fetch {what}" if named else "name the folder that has it, or minari:NAME"
    raise UsageError(f"no Minari set in {folder}{held if named else ''}; {remedy}")


def _root() -> Path:
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets").expanduser()


def _named(what: str | Path, folder: Path) -> str:
    if str(what).startswith(PREFIX):
        return str(what).removeprefix(PREFIX)
    return folder.resolve().parent.name if folder.name == "data" else folder.resolve().name


def _metadata(folder: Path) -> dict[str, Any]:
    file = folder / METADATA
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not readable as JSON ({error}); get it again") from None


def _embedded(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    """A JSON object that the metadata hold as text; empty where there is none."""
    return json.loads(metadata[key]) if metadata.get(key) else {}


def _environment(metadata: dict[str, Any]) -> str:
    return str(_embedded(metadata, "env_spec").get("id", ""))


def _bounds(metadata: dict[str, Any], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    space = _embedded(metadata, "action_space") or {"type": "not recorded"}
    if space["type"] != "Box":
        raise DataError(f"{folder / METADATA}: the action space is {space['type']}; only a Box has bounds to rescale")
    low, high = np.asarray(space["low"], np.float64), np.asarray(space["high"], np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise DataError(f"{folder / METADATA}: the actions have no bounds to rescale from ({low} to {high})")
    return low, high


def _episodes(file: Any, folder: Path) -> list[Any]:
    """The episodes' groups in order of their numbers, which count from 0."""
    numbers = sorted(int(match[1]) for name in file if (match := _EPISODE.fullmatch(name)))
    if not numbers or numbers != list(range(len(numbers))):
        missing = next((k for k, number in enumerate(numbers) if k != number), len(numbers))
        raise DataError(f"{folder / MAIN}: no group 'episode_{missing}'; expected episode_0, episode_1, and so on")
    return [file[f"episode_{number}"] for number in numbers]


def _steps(group: Any, where: str) -> int:
    """Number of steps of an episode whose group is complete."""
    missing = [name for name in ("observations", *ENTRIES) if name not in group]
    if missing:
        raise DataError(f"{where}: no '{missing[0]}'; it has {', '.join(group)}")
    if hasattr(group["actions"], "keys"):
        raise DataError(f"{where}: actions are a dictionary of {', '.join(group['actions'])}; expected vectors")
    return len(group["actions"])


def _columns(group: Any, where: str, scale: tuple[np.ndarray, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The T+1 rows of an episode, by column."""
    actions = _array(group["actions"], "actions", where)
    steps = len(actions)
    if scale is not None:
        low, high = scale
        actions = 2 * (actions - low) / (high - low) - 1
    columns = {**_observed(group["observations"], where), "actions": _padded(actions)}
    for name, column in columns.items():
        if column.ndim < 2:
            raise DataError(f"{where}: {name} are single numbers (of a Discrete space?); expected vectors")
        if len(column) != steps + 1:
            raise DataError(f"{where}: {len(column)} {name} and {steps} actions; expected {steps + 1} {name}")
    for name in ENTRIES[1:]:
        column = _array(group[name], name, where)
        if column.shape != (steps,):
            raise DataError(f"{where}: {name} of shape {column.shape} for {steps} actions; expected ({steps},)")
        columns[name] = _padded(column)
    return {name: _single(column) for name, column in columns.items()} | {"terminals": np.arange(steps + 1) == steps}


def _observed(node: Any, where: str) -> dict[str, np.ndarray]:
    if not hasattr(node, "keys"):
        return {"observations": _array(node, "observations", where)}
    if "observation" not in node:
        raise DataError(f"{where}: observations are {', '.join(node)}; expected arrays, or 'observation' and goals")
    return {column: _array(node[key], column, where) for key, column in GOALS.items() if key in node}


def _array(node: Any, name: str, where: str) -> np.ndarray:
    """An array, or the arrays of a dictionary side by side, in order of their names."""
    if hasattr(node, "keys"):
        return np.concatenate([_array(node[key], name, where) for key in sorted(node)], axis=-1)
    if node.dtype.kind not in "fiub":
        raise DataError(f"{where}: {name} hold {node.dtype} (compressed images or text?); expected numbers")
    try:
        return node[()]
    except OSError as error:
        raise DataError(f"{where}: {name} cannot be read ({error}); get the file again") from None


def _padded(column: np.ndarray) -> np.ndarray:
    return np.concatenate([column, np.zeros((1, *column.shape[1:]), column.dtype)])


def _single(column: np.ndarray) -> np.ndarray:
    return column.astype(np.float32) if column.dtype.kind == "f" else column
