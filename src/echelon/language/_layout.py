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


def trees(texts: Sequence[np.ndarray], budget: int) -> list[list[tuple[int, int]]]:
    """Texts packed in trees: (text, tokens that it shares with the one before it in its tree; 0 for the first).

    A tree holds at most `budget` tokens, unless its first text alone has more; texts that share nothing stay apart.
    """
    packed: list[list[tuple[int, int]]] = []
    size, before = 0, None
    for text in _sequence(texts):
        shared = 0 if before is None else common_prefix(texts[before], texts[text])
        if shared and size + len(texts[text]) - shared <= budget:
            packed[-1].append((text, shared))
            size += len(texts[text]) - shared
        else:
            packed.append([(text, 0)])
            size = len(texts[text])
        before = text
    return packed
