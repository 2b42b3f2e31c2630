"""First-order linear recurrences along linked items: the kernels behind `Spans.scan`.

x: [N, ...] values; a: factors, broadcasting over x; link: bool, broadcasting over a: link[i] says that item i + 1 is of
the same span, so it is false at the last item. Nothing crosses a missing link, not even NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def recurrence(x: Tensor, a: Tensor, link: Tensor, longest: int) -> Tensor:
    """out[i] = x[i] + a[i] · out[i + 1], in O(N) work; `longest` bounds the number of items linked in a row."""
    return _Recurrence.apply(x, a, link, max(longest - 1, 0).bit_length())


def window_sums(x: Tensor, a: Tensor, link: Tensor, limit: int) -> Tensor:
    """out[i] = Σ_{k < limit} (Π_{j < k} a[i + j]) · x[i + k], over linked items, in O(N log limit) work.

    Windows of 1, 2, 4, … items (x: their sums, a: their factors, link: whether more follows) are joined by the binary
    digits of `limit`.
    """
    out, size = torch.zeros_like(x), 1
    while True:
        if limit & size:
            out = x + a * _later(out, size, link)
        if 2 * size > limit:
            return out
        x, a, link = x + a * _later(x, size, link), a * _later(a, size, link), link & link.roll(-size, 0)
        size *= 2


class _Recurrence(torch.autograd.Function):
    """Its adjoint is the same recurrence run the other way, so that backward needs no more memory than forward."""

    @staticmethod
    def forward(x: Tensor, a: Tensor, link: Tensor, depth: int) -> Tensor:
        return _solve(x, a, link, depth) if depth else x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        _, a, link, ctx.depth = inputs
        ctx.save_for_backward(a, link, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        a, link, out = ctx.saved_tensors
        a_back, link_back = (t.roll(1, 0).flip(0) for t in (a, link))
        grad = _Recurrence.apply(grad.flip(0), a_back, link_back, ctx.depth).flip(0)
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None
        return grad, (grad * _later(out, 1, link)).sum_to_size(a.shape), None, None


def _solve(x: Tensor, a: Tensor, link: Tensor, depth: int) -> Tensor:
    """Odd-even reduction: merge neighbours, solve half the size, fill in the odd places.

    A merged item is linked onward only if both halves are, so that none is once blocks are as long as the longest span:
    after `depth` = ⌈log2 longest⌉ halvings nothing is left to solve.
    """
    if depth == 0:
        return x
    n = len(x)
    if n % 2:
        x, a, link = (torch.cat([t, torch.zeros_like(t[:1])]) for t in (x, a, link))
    whole = x
    (x, x_odd), (a, a_odd), (link, link_odd) = ((t[0::2], t[1::2]) for t in (x, a, link))
    even = _solve(_join(x, a, link, x_odd), a * a_odd, link & link_odd, depth - 1)
    out = torch.empty_like(whole)
    out[0::2], out[1::2] = even, _join(x_odd, a_odd, link_odd, even.roll(-1, 0))
    return out[:n]


def _join(x: Tensor, a: Tensor, link: Tensor, following: Tensor) -> Tensor:
    return torch.where(link, torch.addcmul(x, a, following), x)


def _later(t: Tensor, by: int, link: Tensor) -> Tensor:
    return torch.where(link, t.roll(-by, 0), 0)
