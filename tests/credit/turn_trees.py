"""Small trees of turns and columns of numbers, as the cases of turn-level rules are written."""

from __future__ import annotations

from typing import Any

from checks import doubles
from torch import Tensor

from echelon.spans import Spans, SpanTree


def flat(nested: Any) -> Tensor:
    """group → episode → turn, or less deep, packed."""
    while nested and isinstance(nested[0], list):
        nested = [x for inner in nested for x in inner]
    return doubles(*[float(x) for x in nested])


def tree_of(*groups: list[int]) -> SpanTree:
    """Groups of episodes of these lengths."""
    episode = Spans.from_lengths([length for group in groups for length in group])
    return SpanTree({"group": Spans.from_lengths([sum(group) for group in groups]), "episode": (episode, "group")})
