"""A view's rows as padded micro-batches under a budget of tokens, without what no wanted prediction needs.

A row that is one unbranched text needs no attention mask: padding stands at its end, where causal attention never
looks. Every other row, such as a tree of a forest, gets the mask of its tokens' ancestors.
Legend: L tokens and M predictions of the view; B rows of T tokens in a micro-batch, m predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echelon.errors import DataError

if TYPE_CHECKING:
    from echelon.language.views import View


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one forward pass."""

    ids: Tensor  # int64 [B, T], 0 where padded
    position: Tensor  # int64 [B, T]
    mask: Tensor | None  # bool [B, T, T], which tokens (last) a token attends to; None: causal
    at: Tensor  # int64 [m], index in the B · T tokens whose hidden state predicts
    target: Tensor  # int64 [m]
    item: Tensor  # int64 [m], the record's items
    tokens: int  # without padding


def batches(view: View, budget: int, keep: Tensor | None = None) -> list[Batch]:
    """The view's predictions, those of `keep` (bool [M]) only, as micro-batches of at most `budget` padded tokens.

    Rows are sorted by length, longest first, so that little is padded; a row longer than the budget is alone. Tokens
    that no kept prediction depends on are left out.
    """
    predictions = torch.arange(len(view.at)) if keep is None else keep.nonzero()[:, 0]
    at = view.at[predictions]
    if len(at) and int(at.min()) < 0:
        item = int(view.item[predictions[at.argmin()]])
        raise DataError(f"item {item} is emitted with no token before it; give its context a beginning-of-text token")
    needed = _needed(view.parent, at)
    tokens = needed.nonzero()[:, 0]
    renumbered = needed.cumsum(0) - 1
    parent = view.parent[tokens]
    parent = torch.where(parent < 0, -1, renumbered[parent])
    rows, lengths = torch.unique_consecutive(view.rows.ids[tokens], return_counts=True)
    packed = _Packed(
        ids=view.ids[tokens],
        position=view.position[tokens],
        parent=parent,
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
        row=torch.repeat_interleave(torch.arange(len(rows)), lengths),
    )
    at = renumbered[at]
    branched = packed.branched()
    found = []
    for kind in (False, True):
        for group in _groups(packed.lengths, (branched == kind).nonzero()[:, 0], budget):
            found.append(packed.batch(group, kind, at, view.target[predictions], view.item[predictions]))
    return found


@dataclass(frozen=True, eq=False)
class _Packed:
    """Contiguous rows, renumbered."""

    ids: Tensor  # int64 [L]
    position: Tensor  # int64 [L]
    parent: Tensor  # int64 [L]
    starts: Tensor  # int64 [n], of the rows
    lengths: Tensor  # int64 [n]
    row: Tensor  # int64 [L], of each token

    def branched(self) -> Tensor:
        """bool [n]: rows that are not one text from its start."""
        index = torch.arange(len(self.ids))
        first = index == self.starts[self.row]
        follows = (self.parent == index - 1) & (self.position == self.position.roll(1) + 1)
        odd = torch.where(first, self.parent >= 0, ~follows)
        return torch.zeros(len(self.lengths), dtype=torch.bool).index_put_((self.row[odd],), torch.tensor(True))

    def batch(self, group: Tensor, branched: bool, at: Tensor, target: Tensor, item: Tensor) -> Batch:
        """The rows `group`, padded to the first, which is the longest; at, target, item: of all kept predictions."""
        starts, lengths = self.starts[group, None], self.lengths[group, None]
        width = int(lengths[0])
        offset = torch.arange(width)[None]
        real = offset < lengths
        index = starts + torch.where(real, offset, 0)
        place = torch.full((len(self.lengths),), -1).index_put_((group,), torch.arange(len(group)))
        here = place[self.row[at]]
        mine = (here >= 0).nonzero()[:, 0]
        mask = None
        if branched:
            parent = torch.where(real & (self.parent[index] >= 0), self.parent[index] - starts, -1)
            mask = ancestors(parent)
        return Batch(
            ids=torch.where(real, self.ids[index], 0),
            position=torch.where(real, self.position[index], self.position[starts] + offset),
            mask=mask,
            at=here[mine] * width + at[mine] - self.starts[self.row[at[mine]]],
            target=target[mine],
            item=item[mine],
            tokens=int(real.sum()),
        )


def ancestors(parent: Tensor) -> Tensor:
    """What a token (row) attends to, itself and its ancestors: parent int64 [B, T], -1 at a root → bool [B, T, T]."""
    rows, width = parent.shape
    mask = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)
    jump = parent
    while bool((jump >= 0).any()):  # the ancestors within 1, 2, 4, … steps
        far = jump.clamp(min=0)
        mask |= mask.gather(1, far[..., None].expand_as(mask)) & (jump >= 0)[..., None]
        jump = torch.where(jump >= 0, jump.gather(1, far), -1)
    return mask


def _needed(parent: Tensor, at: Tensor) -> Tensor:
    """bool [L]: the tokens `at` and all before them in their texts; parent int64 [L]."""
    needed = torch.zeros(len(parent), dtype=torch.bool)
    needed[at] = True
    jump = parent
    while True:
        use = needed & (jump >= 0)
        if not bool(use.any()):
            return needed
        needed[jump[use]] = True
        jump = torch.where(jump >= 0, jump[jump.clamp(min=0)], -1)


def _groups(lengths: Tensor, rows: Tensor, budget: int) -> Iterator[Tensor]:
    """`rows`, longest first, in groups of at most `budget` padded tokens."""
    rows = rows[lengths[rows].argsort(descending=True, stable=True)]
    start = 0
    while start < len(rows):
        count = max(1, budget // int(lengths[rows[start]]))
        yield rows[start : start + count]
        start += count
