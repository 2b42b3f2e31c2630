"""Vector quantisation of a sequence from coarse to fine: each scale codes what the coarser ones left over.

A sequence f [B, T, C] becomes maps of l_1 < … < l_K code numbers, all from one codebook V: scale k averages the
residual to l_k vectors, takes the nearest codes, spreads them over T again and subtracts them. The decoded sequence is
the sum over scales; summing only the first ones gives a sketch of the whole. Averages and spreading are the same in
`encode`, `decode` and `sketches`.
Sources: VQ-VAE (arXiv 1711.00937), with its moving averages; residual scales as in visual autoregression (arXiv
2404.02905) and MAGE (arXiv 2602.23770); dead codes begin anew at vectors of the batch (arXiv 2005.00341).

Legend: B rows, T places, C channels, K scales of l_k places, V codes, N vectors of all rows and scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TINY = 1e-12
"""A code that stands for less, on average, has no average: it stays where it is."""


class Quantised(NamedTuple):
    """`codes` int64[B, l_k] of each scale; `sums` [K, B, T, C], decoded with the first k; `vectors` [N, C] that were
    quantised and the `taken` int64[N] code of each, in the order of scales; nothing has gradients."""

    codes: list[Tensor]
    sums: Tensor
    vectors: Tensor
    taken: Tensor


class ScaleVQ(nn.Module):
    """A codebook [V, C] shared by scales of `lengths` places.

    The codes are moving averages of the vectors that they stand for: `learn` moves them, no gradient does. A code that
    stands for fewer than `least` vectors a batch, on average, begins anew at one of the batch.
    """

    codebook: Tensor
    counts: Tensor
    totals: Tensor

    def __init__(self, lengths: Sequence[int], size: int, channels: int, decay: float = 0.99, least: float = 0.1):
        super().__init__()
        if not lengths or lengths[0] < 1 or sorted(set(lengths)) != list(lengths):
            raise ValueError(f"scales need one or more growing numbers of places, got {list(lengths)}")
        if size < 1 or not 0 <= decay < 1 or least < 0:
            raise ValueError(f"a codebook needs codes, 0 <= decay < 1, least >= 0: got {size}, {decay}, {least}")
        self.lengths, self.decay, self.least = tuple(lengths), decay, least
        self.register_buffer("codebook", torch.randn(size, channels))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("totals", self.codebook.clone())

    # --- coding

    @torch.no_grad()
    def encode(self, f: Tensor) -> Quantised:
        """Code f [B, T, C]; the last scale must not have more than T places."""
        self._check(f.shape[1])
        codes, sums, vectors, rest, total = [], [], [], f, torch.zeros_like(f)
        for length in self.lengths:
            wanted = coarse(rest, length)
            taken = self.nearest(wanted)
            spread = fine(self.codebook[taken].to(f.dtype), f.shape[1])
            rest, total = rest - spread, total + spread
            codes.append(taken)
            vectors.append(wanted.flatten(0, 1))
            sums.append(total)
        every = torch.cat([taken.flatten() for taken in codes])
        return Quantised(codes, torch.stack(sums), torch.cat(vectors), every)

    def nearest(self, x: Tensor) -> Tensor:
        """int64[...]: the codes nearest to x [..., C]."""
        codebook = self.codebook.to(x.dtype)
        distances = torch.addmm(codebook.square().sum(1) / 2, x.flatten(0, -2), codebook.T, alpha=-1)
        return distances.argmin(-1).view(x.shape[:-1])

    def decode(self, codes: Sequence[Tensor], places: int) -> Tensor:
        """The sum [B, T, C] over the scales of `codes` (int64[B, l_k], the first ones or all), with T `places`."""
        self._check(places)
        return self._summed(codes, places)[-1]

    def sketches(self, codes: Sequence[Tensor], places: int) -> Tensor:
        """What a model that goes from scale to scale reads before each of the scales 2, …, len(codes) + 1 (at most K).

        For scale k + 1 the sum of the first k, averaged to l_(k+1) places; all of them in a row [B, sum of l, C].
        """
        sums = self._summed(codes, places)
        return torch.cat([coarse(x, length) for x, length in zip(sums, self.lengths[1:], strict=False)], 1)

    # --- learning

    def straight_through(self, f: Tensor, quantised: Quantised) -> Tensor:
        """The decoded sequence [B, T, C], with the gradient handed to f as it is."""
        return f + (quantised.sums[-1] - f).detach()

    def commitment(self, f: Tensor, quantised: Quantised) -> Tensor:
        """Mean squared distance of f to what is decoded with the first k scales, averaged over k."""
        return (f - quantised.sums).square().mean()

    @torch.no_grad()
    def learn(self, quantised: Quantised, generator: torch.Generator | None = None) -> Tensor:
        """Move the codes to the averages of their vectors; returns how many began anew. Draws from `generator`.

        n_v <- decay n_v + (1 - decay) count, m_v likewise with the sum of the vectors, V_v = m_v / n_v.
        """
        vectors, taken = quantised.vectors.to(self.codebook.dtype), quantised.taken
        count = torch.zeros_like(self.counts).index_add_(0, taken, torch.ones_like(vectors[:, 0]))
        total = torch.zeros_like(self.totals).index_add_(0, taken, vectors)
        self.counts.lerp_(count, 1 - self.decay)
        self.totals.lerp_(total, 1 - self.decay)
        place = vectors.device if generator is None else generator.device
        drawn = torch.randint(len(vectors), self.counts.shape, generator=generator, device=place)
        dead = self.counts < self.least
        self.counts.masked_fill_(dead, 1.0)
        self.totals.copy_(torch.where(dead[:, None], vectors[drawn.to(vectors.device)], self.totals))
        used = (self.counts > _TINY)[:, None]
        self.codebook.copy_(torch.where(used, self.totals / self.counts[:, None], self.codebook))
        return dead.sum()

    def usage(self, codes: Sequence[Tensor]) -> Tensor:
        """Share [K] of the codebook that each scale of `codes` used."""
        return torch.stack([self._used(taken) for taken in codes])

    def _used(self, taken: Tensor) -> Tensor:
        return torch.bincount(taken.flatten(), minlength=len(self.codebook)).gt(0).to(self.codebook.dtype).mean()

    def _summed(self, codes: Sequence[Tensor], places: int) -> Tensor:
        return torch.stack([fine(self.codebook[taken], places) for taken in codes]).cumsum(0)

    def _check(self, places: int) -> None:
        if places < self.lengths[-1]:
            raise ValueError(f"the finest scale has {self.lengths[-1]} places, the sequence {places}")


def coarse(x: Tensor, places: int) -> Tensor:
    """Averages [B, `places`, C] of x [B, T, C] over as many stretches, which overlap where T is no multiple."""
    if x.shape[1] % places:
        return F.adaptive_avg_pool1d(x.transpose(1, 2), places).transpose(1, 2)
    return x if x.shape[1] == places else x.unflatten(1, (places, -1)).mean(2)  # several times faster


def fine(x: Tensor, places: int) -> Tensor:
    """x [B, l, C] spread over T = `places`: place j shows x at floor(j l / T)."""
    at = torch.arange(places, device=x.device) * x.shape[1] // places
    return x.index_select(1, at)
