"""A record's texts laid out for a model, three ways with equal log-probabilities and gradients: rows, paths, forest.

A text is a call's context and output. What is predicted are the items of the chosen calls, each exactly once.
Legend: L packed tokens, M predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from echelon.spans import Spans


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """Tokens for a model, and which of its predictions are the record's items."""

    ids: Tensor  # int64 [L], tokens of all rows, packed
    position: Tensor  # int64 [L], position ids
    rows: Spans  # L tokens → rows; in a forest, → trees
    parent: Tensor  # int64 [L], index in L of the token before it in its text, -1 at a text's start
    item: Tensor  # int64 [M], record item of each prediction
    at: Tensor  # int64 [M], index in L of the token whose logits predict it: its predecessor; ascending
    here: Tensor  # int64 [M], index in L of the item itself
    target: Tensor  # int64 [M], the token predicted
