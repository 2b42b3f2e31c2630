"""Comparison of nested results, for the tests of the references."""

from typing import Any

import pytest


def close(got: Any, want: Any, tol: float = 1e-9) -> None:
    """Nested lists and dicts of numbers agree, shape included."""
    if isinstance(want, dict):
        assert set(got) == set(want)
        for key in want:
            close(got[key], want[key], tol)
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            close(g, w, tol)
    else:
        assert got == pytest.approx(want, abs=tol)
