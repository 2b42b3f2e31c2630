"""Order consistency: the published example, a naive reference on random ragged paths, ties and trimming."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import offline_gc as reference

from echelon.spans import Spans
from echelon.systems.offline.order import order_consistency


def test_worked_example_code():
    v = torch.tensor([-6.0, -4, -7, -5, -4, -2, -3, 0], dtype=torch.float64)
    paths = Spans.from_lengths([8])
    assert order_consistency(v, paths, k=2, window=3).tolist() == pytest.approx([5 / 6])
    assert order_consistency(v, paths, k=2, window=1).tolist() == pytest.approx([4 / 6])


def test_ties_count_as_not_greater():
    assert order_consistency(torch.zeros(6), Spans.from_lengths([6]), k=1, window=2).tolist() == [0.0]


def test_a_path_shorter_than_k_has_no_share():
    share = order_consistency(torch.arange(7.0), Spans.from_lengths([2, 5]), k=2, window=1)
    assert math.isnan(share[0]) and share[1] == 1


@given(st.lists(st.lists(st.integers(-50, 50), min_size=5, max_size=40), min_size=1, max_size=4), st.integers(1, 4),
       st.integers(1, 12))  # fmt: skip
def test_equals_the_reference_path_by_path(paths, k, window):
    # quarters: sums are exact, so that a tie is a tie in either order of summation
    values = torch.tensor([x / 4 for path in paths for x in path], dtype=torch.float64)
    got = order_consistency(values, Spans.from_lengths([len(p) for p in paths]), k, window)
    expected = [reference.order_consistency([x / 4 for x in path], window, k)[0] for path in paths]
    assert got.tolist() == pytest.approx(expected)
