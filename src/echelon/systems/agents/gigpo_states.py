"""Which turns of language agents stand in the same state: int keys from observation texts, for GiGPO's step groups.

A state's text must hold neither history, nor turn counters, nor an echo of the action, else no two are ever equal and
GiGPO is GRPO. Source: arXiv 2505.10978 and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from echelon.errors import DataError, unknown
from echelon.spans import Spans

Similarity = Literal["difflib", "lcs"]
Similar = Callable[[str], bool]


def exact_keys(states: Iterable[Hashable]) -> Tensor:
    """Equal states have equal keys, numbered by first appearance: int64 [N]. Texts, or bytes of an image."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(state, len(numbers)) for state in states], dtype=torch.int64)


def similar_keys(
    texts: Sequence[str], groups: Spans, *, threshold: float = 0.95, similarity: Similarity = "difflib"
) -> Tensor:
    """Similar texts of a group share a key: first fit, in the order of the group's items. int64 [N].

    A text joins the first cluster whose first member it resembles by at least `threshold`, in (0, 1], or founds one.
    similarity: difflib's ratio (released code, .95), or "lcs", 2 · |longest common subsequence| / (|a| + |b|) (paper,
    .9). Beware of difflib: where the founder has 200 characters or more it ignores frequent ones, so that a single
    letter put in front can bring the ratio of two observations from near 1 to near 0.

    Costs one comparison for each distinct text of a group and cluster before it.
    """
    if similarity not in get_args(Similarity):
        raise unknown("similarity", similarity, get_args(Similarity))
    if not 0 < threshold <= 1:
        raise DataError(f"threshold must lie in (0, 1], got {threshold}")
    if len(texts) != groups.size:
        raise DataError(f"{len(texts)} texts for {groups.size} turns")
    compare = _difflib if similarity == "difflib" else _lcs
    order = range(groups.size) if groups.order is None else groups.order.tolist()
    bounds = groups.offsets.tolist()
    keys, founded = [0] * groups.size, 0
    for first, end in pairwise(bounds):
        clusters: list[tuple[int, Similar]] = []
        seen: dict[str, int] = {}  # a text met again fits where it fitted before
        for item in (order[slot] for slot in range(first, end)):
            text = texts[item]
            if text not in seen:
                key = next((key for key, resembles in clusters if resembles(text)), None)
                if key is None:
                    key, founded = founded, founded + 1
                    clusters.append((key, compare(text, threshold)))
                seen[text] = key
            keys[item] = seen[text]
    return torch.tensor(keys, dtype=torch.int64)


def _difflib(founder: str, threshold: float) -> Similar:
    """Whether difflib's ratio(text, founder) reaches the threshold; it is not symmetric, and what it knows of the
    second text serves all comparisons."""
    matcher = SequenceMatcher(None, "", founder)

    def resembles(text: str) -> bool:
        matcher.set_seq1(text)
        return all(ratio() >= threshold for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))

    return resembles


def _lcs(founder: str, threshold: float) -> Similar:
    """Whether 2 · LCS / (|text| + |founder|) reaches the threshold.

    A row of the dynamic programme is one integer, a bit for each character of the founder, 0 where the longest common
    subsequence grows (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, character in enumerate(founder):
        places[character] = places.get(character, 0) | 1 << place
    full = (1 << len(founder)) - 1

    def resembles(text: str) -> bool:
        total = len(text) + len(founder)
        if 2 * min(len(text), len(founder)) < threshold * total:
            return False
        row = full
        for character in text:
            match = row & places.get(character, 0)
            row = ((row + match) | (row - match)) & full
        common = len(founder) - row.bit_count()
        return total == 0 or 2 * common >= threshold * total

    return resembles
