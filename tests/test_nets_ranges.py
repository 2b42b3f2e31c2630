"""Ranges: by hand, against all that was seen, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.nets.ranges import Range


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    scale = Range(2)
    x = torch.tensor([[2.0, 5.0], [6.0, 5.0]])
    assert torch.equal(scale(x), x), "nothing was seen yet"
    scale.update(x)
    assert scale(x).tolist() == [[-1, 0], [1, 0]] and scale(torch.tensor([7.0, 5.5])).tolist() == [1.5, 0.5]
    assert scale.inverse(torch.tensor([0.5, 0.0])).tolist() == [5, 5]
    scale.update(torch.tensor([[4.0, 9.0]]))
    assert scale.low.tolist() == [2, 5] and scale.high.tolist() == [6, 9]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 1000))
def test_what_was_seen_fills_the_range_whatever_the_batches(sizes, seed):
    scale, parts = Range(3).double(), [3 + draw(seed + k, n, 2, 3) for k, n in enumerate(sizes)]
    for part in parts:
        scale.update(part)
    rows = torch.cat([part.flatten(0, 1) for part in parts])
    found = scale(rows)
    torch.testing.assert_close(found.amin(0), -torch.ones(3).double())
    torch.testing.assert_close(found.amax(0), torch.ones(3).double())
    torch.testing.assert_close(scale.inverse(found), rows)
    low, high = rows.amin(0), rows.amax(0)
    torch.testing.assert_close(found, 2 * (rows - low) / (high - low) - 1)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes differ: vectors have 4 numbers, the range 3"):
        Range(3)(torch.zeros(2, 4))


def test_generated_actions_are_cut_off_a_little_beyond_the_data_and_at_1():
    seen = Range(2)
    seen.update(torch.tensor([[0.0, -1.0], [0.5, 1.0]]))
    found = seen.action(torch.tensor([[3.0, 3.0], [-3.0, 0.5], [1.05, -1.05]]))
    expected = torch.tensor([[0.525, 1.0], [-0.025, 0.5], [0.5125, -1.0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
