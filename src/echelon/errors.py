"""Errors that a person can act on: each message names the value that was wrong and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EchelonError(Exception):
    """Base of every error that echelon raises on purpose; its message is complete in itself."""


class UsageError(EchelonError):
    """A name, flag or value given by the user is wrong. The command line prints it and exits with code 2."""


class DataError(EchelonError):
    """A data set is damaged or does not have the form that its reader expects."""


class CheckpointError(EchelonError):
    """A checkpoint is truncated, altered or belongs to another run."""


class MissingExtra(EchelonError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f'{package} is not installed; it comes with: pip install "echelon[{extra}]"')


def unknown(kind: str, name: str, options: Iterable[str]) -> UsageError:
    """Build the error for an unknown `name`, naming the nearest valid `options`."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(options[:12])}"
    return UsageError(f"unknown {kind} '{name}'; {hint}")
