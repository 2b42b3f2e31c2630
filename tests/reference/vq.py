"""Independent NumPy float64 reference of residual quantisation over scales, and of one step of the codes' averages."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def averages(x: Array, places: int) -> Array:
    """x [T, C] over `places` stretches: the k-th from floor(k T / l) to ceil((k + 1) T / l)."""
    count = len(x)
    return np.stack([x[k * count // places : math.ceil((k + 1) * count / places)].mean(0) for k in range(places)])


def spread(x: Array, places: int) -> Array:
    """x [l, C] over `places`."""
    return np.stack([x[math.floor(j * len(x) / places)] for j in range(places)])


def quantise(f: Array, codebook: Array, lengths: list[int]) -> tuple[list[list[int]], list[Array], list[tuple]]:
    """Codes of each scale, the sums after each, and every (vector, code) of one sequence f [T, C]."""
    rest, total = f.copy(), np.zeros_like(f)
    codes, sums, pairs = [], [], []
    for length in lengths:
        wanted = averages(rest, length)
        taken = [min(range(len(codebook)), key=lambda v: float(np.sum((h - codebook[v]) ** 2))) for h in wanted]
        piece = spread(codebook[taken], len(f))
        rest, total = rest - piece, total + piece
        codes.append(taken)
        sums.append(total)
        pairs += list(zip(wanted, taken, strict=True))
    return codes, sums, pairs


def moved(counts: Array, totals: Array, pairs: list[tuple], decay: float) -> tuple[Array, Array]:
    """The averages of counts and sums after one batch."""
    counts, totals = decay * counts, decay * totals
    for vector, code in pairs:
        counts[code] += 1 - decay
        totals[code] += (1 - decay) * vector
    return counts, totals
