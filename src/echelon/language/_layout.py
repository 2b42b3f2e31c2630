"""What token texts share, found by sorting them: a text that begins others stands right before one of these."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading entries two vectors share."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n


def _sequence(texts: Sequence[np.ndarray]) -> list[int]:
    """The texts, int32 each, sorted by their bytes, equal ones in the given sequence; neighbours share most."""
    raw = [text.tobytes() for text in texts]
    return sorted(range(len(raw)), key=raw.__getitem__)


def owners(texts: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [c]: for each text the last one, in sorted sequence, of a chain in which every text begins the next."""
    owner = np.arange(len(texts))
    order = _sequence(texts)
    for before, after in reversed(list(pairwise(order))):
        if len(texts[before]) <= len(texts[after]) and np.array_equal(
            texts[before], texts[after][: len(texts[before])]
        ):
            owner[before] = owner[after]
    return owner


def trees(texts: Sequence[np.ndarray], budget: int, width: int) -> list[list[tuple[int, int]]]:
    """Texts packed in trees: (text, tokens that it shares with the one before it in its tree; 0 for the first).

    A tree holds at most `budget` tokens, unless its first text alone has more. A text joins one where that is less work
    than a row of its own: the shared tokens must outweigh the pairs of tokens that a branched row computes in vain, of
    which 6 · width cost as much as a token (see `views.cost`).
    """
    packed: list[list[tuple[int, int]]] = []
    size, before = 0, None
    for text in _sequence(texts):
        length = len(texts[text])
        shared = 0 if before is None else common_prefix(texts[before], texts[text])
        grown = size + length - shared
        apart = length**2 / 2 + (size**2 if packed and len(packed[-1]) > 1 else size**2 / 2)
        if grown <= budget and shared * 6 * width > grown**2 - apart:
            packed[-1].append((text, shared))
            size = grown
        else:
            packed.append([(text, 0)])
            size = length
        before = text
    return packed
