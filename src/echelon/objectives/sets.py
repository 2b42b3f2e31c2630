"""Set functions of what an episode has visited, with diminishing returns: F of every prefix at once.

Visited are the state at which an episode starts and the state after each of its actions:

    f = coverage(episodes, start=start, state=state, cells=cells, weight=weight)
    subpo(episodes, value=f.value, initial=f.initial)

Source of all: SubRL, arXiv 2307.13372. Legend: N actions, n episodes, V = N + n visits, S states, C cells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.spans import Spans


class Prefixes(NamedTuple):
    """value: [N], F of the visits up to the effect of each action; initial: [n], F of the start alone."""

    value: Tensor
    initial: Tensor


def coverage(episodes: Spans, *, start: Tensor, state: Tensor, cells: Tensor, weight: Tensor) -> Prefixes:
    """F = Σ of the weights of the cells covered so far, each counted once. Monotone and submodular for weights ≥ 0.

    Shapes: start, int [n]; state, int [N], after each action; cells, int [S, K], what each state covers, filled up with
    -1; weight, [C]. A revisit gains exactly 0.
    """
    visits = _Visits(episodes, start, state)
    visit, cell = _covered(visits, cells)
    same = Spans.by_key(visits.spans.ids[visit], cell)
    first = same.starts  # pairs stand in the order of time
    gain = weight.new_zeros(visits.spans.size).index_add_(0, visit[first], weight[cell[first]])
    return visits.prefixes(visits.spans.scan(gain, reverse=False))


def additive_coverage(episodes: Spans, *, start: Tensor, state: Tensor, cells: Tensor, weight: Tensor) -> Prefixes:
    """`coverage` with multiplicity, a cell counting at every visit: the additive reward to compare with."""
    visits = _Visits(episodes, start, state)
    visit, cell = _covered(visits, cells)
    gain = weight.new_zeros(visits.spans.size).index_add_(0, visit, weight[cell])
    return visits.prefixes(visits.spans.scan(gain, reverse=False))


def capped_counts(episodes: Spans, *, start: Tensor, state: Tensor, member: Tensor, cap: Tensor) -> Prefixes:
    """F = Σ_k min(distinct visited states of item group k, cap_k): collect so many of each kind (Steiner covering).

    Shapes: member, bool [S, K]; cap, [K], in the same order; the dtype of cap is that of F if it is floating.
    """
    visits = _Visits(episodes, start, state)
    cap = cap if cap.is_floating_point() else cap.to(torch.get_default_dtype())
    new = torch.zeros(visits.spans.size, 1, dtype=cap.dtype, device=cap.device)
    new[Spans.by_key(visits.spans.ids, visits.state).starts] = 1
    counts = visits.spans.scan(new * member[visits.state], reverse=False)
    return visits.prefixes(torch.minimum(counts, cap).sum(-1))


def log_det(
    episodes: Spans,
    *,
    start: Tensor,
    state: Tensor,
    kernel: Tensor,
    noise: float = 1e-6,
    constant: float = -math.log2(1e-3),
) -> Prefixes:
    """F = ½ · ln det(K_AA + noise · I) + constant · |A|, A the visits with repeats: the entropy of noisy observations.

    kernel: [S, S], positive semi-definite. The released constant, a logarithm to base 2, pays a revisit 3.4; with
    ½ · ln(1 / noise) F is the information ½ · ln det(I + K / noise), and a revisit gains ½ · ln 2 at most.
    The leading minors of K are the squared products of the diagonal of its Cholesky factor, so that one factorisation
    an episode gives all prefixes. In float64 inside; memory n · longest².
    """
    visits = _Visits(episodes, start, state)
    spans, longest = visits.spans, visits.spans.longest
    padded = torch.zeros(spans.n, longest, dtype=torch.long, device=kernel.device)
    filled = torch.zeros(spans.n, longest, dtype=torch.bool, device=kernel.device)
    padded[spans.ids, spans.position], filled[spans.ids, spans.position] = visits.state, True
    gram = kernel.double()[padded[:, :, None], padded[:, None, :]]
    gram = torch.where(filled[:, :, None] & filled[:, None, :], gram, 0)
    gram.diagonal(dim1=-2, dim2=-1).add_(torch.where(filled, noise, torch.ones_like(filled, dtype=gram.dtype)))
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool((info > 0).any()):
        episode = int((info > 0).nonzero()[0])
        raise DataError(f"the kernel of episode {episode}'s states is not positive definite; raise noise (now {noise})")
    gain = factor.diagonal(dim1=-2, dim2=-1).log()[spans.ids, spans.position] + constant
    return visits.prefixes(spans.scan(gain, reverse=False).to(kernel.dtype))


class _Visits:
    """The visits of each episode in the order of time: its start, then the states after its actions."""

    def __init__(self, episodes: Spans, start: Tensor, state: Tensor):
        packed, self.items = episodes.take(torch.arange(episodes.n, device=episodes.device))
        if len(start) != episodes.n or len(state) != episodes.size:
            raise DataError(
                f"{episodes.n} start states and {episodes.size} states expected, got {len(start)} and {len(state)}"
            )
        self.spans = Spans.from_lengths(packed.lengths + 1)
        self.after = torch.arange(packed.size, device=packed.device) + packed.ids + 1
        self.state = start.new_empty(self.spans.size)
        self.state[self.spans.starts], self.state[self.after] = start, state[self.items]

    def prefixes(self, value: Tensor) -> Prefixes:
        """F of every visit, [V], taken apart."""
        after = torch.empty_like(value[self.after]).index_copy_(0, self.items, value[self.after])
        return Prefixes(after, value[self.spans.starts])


def _covered(visits: _Visits, cells: Tensor) -> tuple[Tensor, Tensor]:
    """(visit, cell) of all pairs, in the order of time."""
    rows = cells[visits.state]
    visit, place = (rows >= 0).nonzero(as_tuple=True)
    return visit, rows[visit, place]
