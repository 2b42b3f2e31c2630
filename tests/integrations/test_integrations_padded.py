"""Padded rows to packed items and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import DataError
from echelon.integrations import padded


def test_prefix_marks_the_first_positions() -> None:
    mask = padded.prefix(torch.tensor([1, 3, 0]), 3)
    assert mask.tolist() == [[True, False, False], [True, True, True], [False, False, False]]


def test_gaps_and_either_side_of_padding() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]]).bool()
    x = torch.arange(8.0).view(2, 4)
    packed = padded.pack(x, mask)
    assert packed.tolist() == [1, 2, 4, 7]
    assert padded.rows(mask).lengths.tolist() == [2, 2]
    assert padded.pad(packed, mask, fill=-1).tolist() == [[-1, 1, 2, -1], [4, -1, -1, 7]]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_pad_inverts_pack(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    x = torch.randn(*mask.shape, 2)
    assert torch.equal(padded.pad(padded.pack(x, mask), mask), x * mask[..., None])
    packed = torch.randn(int(mask.sum()), dtype=torch.float64)
    assert torch.equal(padded.pack(padded.pad(packed, mask), mask), packed)


def test_gradients_pass_through() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    x = torch.randn(2, 2, requires_grad=True)
    (padded.pad(padded.pack(x, mask), mask) * torch.tensor([[1.0, 2], [3, 4]])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1, 0], [3, 4]]


def test_what_does_not_fit_is_named() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(DataError, match="row 1 of the mask"):
        padded.rows(mask)
    with pytest.raises(DataError, match="3 items for a mask that counts 2"):
        padded.pad(torch.zeros(3), mask)
    with pytest.raises(DataError, match=r"shape \(2, 2\), what is to be packed \(2, 3\)"):
        padded.pack(torch.zeros(2, 3), mask)
