"""Whether some columns are a data set: the one place where bad data are refused, by episode and with the remedy.

What is read, collected, imported or written goes through `check_episodes` when it becomes a store, and once more before
anything is trained on it: a store's files may have been written or changed by others. A million rows of 30 floats take
a fraction of a second. Nothing is changed or copied.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from echelon.errors import DataError

REQUIRED = ("observations", "actions", "terminals")
Columns = Mapping[str, np.ndarray]


def check_episodes(
    columns: Columns,
    source: str,
    first: int = 0,
    action_bound: float = 1.0,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Check some whole episodes and return their lengths int64[E] in transitions.

    `source` and `first` (number of the first episode given here) only serve the messages; `lengths` is what the
    episodes should have, where that is recorded. Raises DataError for a missing column, columns of different length or
    without numbers, a last row that ends no episode, an episode without a transition, a value that is not finite, or an
    action outside [-action_bound, action_bound]; it names the episode and says what to do.
    """
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise DataError(f"{source}: no column '{missing[0]}'; it needs {', '.join(REQUIRED)}")
    ends = _ends(columns["terminals"], source, first)
    _check_forms(columns, ends, source, first)
    found = np.diff(ends, prepend=-1) - 1
    if found.min() < 1:
        short = f"{source}: episode {first + int(found.argmin())} has no transition (a single row)"
        raise DataError(f"{short}; leave it out: an episode of T transitions has T + 1 rows, the last observation too")
    if lengths is not None and not np.array_equal(found, lengths):
        shared = min(len(found), len(lengths))
        at = int(np.argmax(np.append(found[:shared] != lengths[:shared], True)))
        raise DataError(
            f"{source}: from episode {first + at} on, 'terminals' ends episodes elsewhere than 'lengths' says; "
            "write the set again from its origin"
        )
    for name, column in columns.items():
        _check_finite(name, column, ends, source, first)
    _check_bounds(columns["actions"], action_bound, ends, source, first)
    return found.astype(np.int64)


def _ends(terminals: np.ndarray, source: str, first: int) -> np.ndarray:
    """Last row int64[E] of each episode."""
    if terminals.ndim != 1 or len(terminals) == 0:
        raise DataError(f"{source}: 'terminals' has shape {terminals.shape}; expected one True or False for every row")
    if terminals.dtype != bool and not np.isin(terminals, (0, 1)).all():
        raise DataError(
            f"{source}: 'terminals' ({terminals.dtype}) holds more than 0 and 1; it says which row ends one"
        )
    ends = np.flatnonzero(terminals)
    if not terminals[-1]:
        after = f"{len(terminals) - 1 - (int(ends[-1]) if len(ends) else -1)} rows without an end"
        raise DataError(
            f"{source}: the last episode is unfinished: episode {first + len(ends)} has {after}; set 'terminals' to "
            "True in the last row of every episode, the last row of the data too"
        )
    return ends


def _check_forms(columns: Columns, ends: np.ndarray, source: str, first: int) -> None:
    """Refuse columns that do not give each row a vector of numbers."""
    rows = int(ends[-1]) + 1
    for name, column in columns.items():
        if len(column) != rows:
            at = first + int(np.searchsorted(ends, min(len(column), rows - 1)))
            remedy = f"every column needs all rows (episode {at} is the first without)"
            if len(column) == rows - len(ends):
                remedy = "give every episode's last row a value too, such as zeros: nothing is read from it"
            raise DataError(f"{source}: column '{name}' has {len(column)} rows, 'terminals' has {rows}; {remedy}")
        if column.dtype.kind not in "fiub":
            raise DataError(f"{source}: column '{name}' holds {column.dtype}, no numbers; convert it or leave it out")
    for name in ("observations", "actions"):
        shape = columns[name].shape
        if len(shape) < 2 or 0 in shape:
            raise DataError(
                f"{source}: column '{name}' has shape {shape}; expected rows of vectors: reshape it to [{rows}, size]"
            )


def _check_finite(name: str, column: np.ndarray, ends: np.ndarray, source: str, first: int) -> None:
    """Refuse a value that is not finite. NaN and infinity show in the extremes, which need no memory."""
    if column.size == 0 or column.dtype.kind != "f" or np.isfinite([column.min(), column.max()]).all():
        return
    bad: np.ndarray = np.asarray(~np.isfinite(column).reshape(len(column), -1).all(axis=1))
    where = _where(source, bad, ends, first)
    raise DataError(
        f"{where}: a value in '{name}' is not finite (row {int(np.argmax(bad))} of these data{_others(bad, ends)}); "
        "repair what made it, or leave such episodes out"
    )


def _check_bounds(actions: np.ndarray, bound: float, ends: np.ndarray, source: str, first: int) -> None:
    """Refuse actions outside [-bound, bound]."""
    low, high = float(actions.min()), float(actions.max())
    if -bound <= low and high <= bound:
        return
    out: np.ndarray = np.asarray(((actions < -bound) | (actions > bound)).reshape(len(actions), -1).any(axis=1))
    where = _where(source, out, ends, first)
    raise DataError(
        f"{where}: an action outside [-{bound:g}, {bound:g}] (largest size {max(-low, high):g}{_others(out, ends)}); "
        f"divide the actions by the bound that their environment has, or clip them if that is what it did"
    )


def _where(source: str, bad: np.ndarray, ends: np.ndarray, first: int) -> str:
    return f"{source}: episode {first + int(np.searchsorted(ends, int(np.argmax(bad))))}"


def _others(bad: np.ndarray, ends: np.ndarray) -> str:
    more = len(np.unique(np.searchsorted(ends, np.flatnonzero(bad)))) - 1
    return f"; also in {more} of {len(ends) - 1} other episodes" if more else ""
