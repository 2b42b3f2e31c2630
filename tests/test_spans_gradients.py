"""Gradients of the span operations against finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from echelon.spans import Spans

CASES = {
    "contiguous": Spans.from_lengths([3, 1, 5]),
    "permuted": Spans([0, 4, 5, 9], [8, 0, 3, 5, 1, 2, 7, 6, 4]),
    "one item": Spans.from_lengths([1]),
    "one span": Spans.from_lengths([6]),
}
spans_of_every_kind = pytest.mark.parametrize("spans", CASES.values(), ids=list(CASES))


def column(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@spans_of_every_kind
@pytest.mark.parametrize("limit", [None, 1, 3])
@pytest.mark.parametrize("reverse", [True, False])
def test_scan_in_values_and_decays(spans, limit, reverse):
    x, decay, each = column(spans.size, 2), column(spans.size, seed=1), column(spans.size, 2, seed=2)
    with torch.no_grad():
        decay[0] = 0.0  # a decay of 0 has a gradient too
    gamma = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    for factor in (decay, each, gamma):
        assert gradcheck(lambda x, factor: spans.scan(x, factor, reverse, limit), (x, factor))
    assert gradgradcheck(lambda x, decay: spans.scan(x, decay, reverse, limit), (x, decay))


@spans_of_every_kind
@pytest.mark.parametrize("how", ["sum", "mean", "max", "min", "first", "last"])
def test_reduce_and_expand(spans, how):
    assert gradcheck(lambda x: spans.reduce(x, how), column(spans.size, 2))
    assert gradcheck(spans.expand, column(spans.n, 2))


@spans_of_every_kind
@pytest.mark.parametrize("by", [1, -2])
def test_shift_in_values_and_fill(spans, by):
    assert gradcheck(lambda x, fill: spans.shift(x, by, fill), (column(spans.size, 2), column(spans.n, seed=1)))


@spans_of_every_kind
@pytest.mark.parametrize("stat", ["mean", "std", "loo_mean", "quantile", "max"])
def test_siblings(spans, stat):
    where = torch.arange(spans.size) % 4 != 1
    weight = torch.arange(spans.size) % 3 + 1 if stat in ("mean", "std", "loo_mean") else None
    statistic = lambda y: spans.siblings(y, stat, where=where, weight=weight, q=0.3)  # noqa: E731
    assert gradcheck(statistic, column(spans.size))


def test_equal_siblings_have_a_finite_gradient():
    y = torch.ones(4, dtype=torch.float64, requires_grad=True)
    advantage = (y - Spans([0, 3, 4]).siblings(y, "mean")) / Spans([0, 3, 4]).siblings(y, "std", ddof=1, eps=1e-6)
    advantage.sum().backward()
    assert y.grad.isfinite().all()


def test_nan_in_one_span_leaves_the_gradients_of_the_others_alone():
    spans, x = Spans.from_lengths([2, 3, 2]), torch.ones(7, dtype=torch.float64)
    x[2:5] = torch.nan
    x.requires_grad_()
    decay = torch.full((7,), 0.5, dtype=torch.float64, requires_grad=True)
    for limit in (None, 2):
        grads = torch.autograd.grad(spans.scan(x, decay, limit=limit)[[0, 1, 5, 6]].sum(), (x, decay))
        assert grads[0].tolist() == [1, 1.5, 0, 0, 0, 1, 1.5]
        assert grads[1][[0, 1, 5, 6]].tolist() == [1, 0, 1, 0]


def test_tensors_first_read_in_an_evaluation_serve_a_loss_later():
    spans, y = Spans([0, 2, 3], [2, 0, 1]), torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        spans.expand(y.detach())
    spans.expand(y * 2).sum().backward()
    assert y.grad.tolist() == [4, 2]
