"""Statistics among the items of each span, composed of span operations: the work behind `Spans.siblings`.

y: [N, ...], 0 at excluded items; w: weights >= 0, broadcasting over y, 0 at excluded ones; use: bool [N], the included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from echelon.spans import Spans


def alone(spans: Spans, w: Tensor) -> Tensor:
    """bool [N]: no item of positive weight but itself is in its span."""
    included = (w > 0).long()
    return spans.expand(spans.reduce(included)) == included


def mean(spans: Spans, y: Tensor, w: Tensor) -> Tensor:
    return spans.expand(_ratio(spans.reduce(w * y), spans.reduce(w)))


def mean_of_others(spans: Spans, y: Tensor, w: Tensor) -> Tensor:
    """Summed from both sides of the item, since total minus own would lose digits."""
    x = torch.stack((w * y, w.expand_as(y)), -1)
    others = spans.shift(spans.scan(x, reverse=False), -1) + spans.shift(spans.scan(x), 1)
    return _ratio(others[..., 0], others[..., 1])


def deviation(spans: Spans, y: Tensor, w: Tensor, ddof: int) -> Tensor:
    """The root of the weighted variance; 1 where the weights do not exceed ddof."""
    freedom = spans.reduce(w) - ddof
    variance = _ratio(spans.reduce(w * (y - mean(spans, y, w)) ** 2), freedom)
    spread = variance > 0  # the root has no derivative at 0
    root = torch.where(spread, torch.where(spread, variance, 1).sqrt(), 0)
    return spans.expand(torch.where(freedom > 0, root, 1))


def rank(spans: Spans, y: Tensor, use: Tensor) -> Tensor:
    """int64 [N]: the place of each item in the ascending order of its span."""
    place = torch.arange(spans.size, device=y.device) - spans.offsets[:-1].repeat_interleave(
        spans.lengths, output_size=spans.size
    )
    return torch.empty_like(place).index_copy_(0, _ascending(spans, y, use), place)


def quantile(spans: Spans, y: Tensor, use: Tensor, q: float) -> Tensor:
    order, top = _ascending(spans, y, use), (spans.reduce(use) - 1).clamp(min=0)
    place = top.to(y.dtype) * q
    below = place.floor().long()
    low, high = (y[order[spans.offsets[:-1] + k]] for k in (below, torch.minimum(below + 1, top)))
    return spans.expand(torch.lerp(low, high, (place - below).to(y.dtype)))


def _ascending(spans: Spans, y: Tensor, use: Tensor) -> Tensor:
    """An `order` in which the items of each span ascend in y, ties as they were; those not in use come last."""
    order = torch.arange(spans.size, device=y.device) if spans.order is None else spans.order
    for key in (y, ~use, spans.ids):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return a / torch.where(b > 0, b, 1)
