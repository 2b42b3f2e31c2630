"""A record's texts laid out for a model, three ways with equal log-probabilities and gradients: rows, paths, forest.

A text is a call's context and output. What is predicted are the items of the chosen calls, each exactly once. What two
texts share is found by comparing tokens, so that what different episodes happen to share counts as well.
Legend: L packed tokens, M predictions, R rows, T tokens of one row, c chosen calls.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from echelon.errors import DataError, unknown
from echelon.language._layout import owners, trees
from echelon.language.record import Record
from echelon.spans import Spans

Chosen = Tensor | Sequence[int] | None
"""Which calls: all (None), a bool mask over them, or rows of the table. Calls that emitted nothing are passed over."""

VIEWS = ("rows", "paths", "forest")


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """Tokens for a model, and which of its predictions are the record's items."""

    ids: Tensor  # int64 [L], tokens of all rows, packed
    position: Tensor  # int64 [L], position ids
    rows: Spans  # L tokens → rows; in a forest, → trees
    parent: Tensor  # int64 [L], index in L of the token before it in its text, -1 at a text's start
    item: Tensor  # int64 [M], record item of each prediction
    at: Tensor  # int64 [M], index in L of the token whose logits predict it: its predecessor; ascending, may repeat
    here: Tensor  # int64 [M], index in L of the item itself
    target: Tensor  # int64 [M], the token predicted


def rows(record: Record, calls: Chosen = None) -> View:
    """One row a call. DataError names a call whose first item has no token before it."""
    texts = _Texts.of(record, calls)
    return _lines(texts, np.arange(len(texts.tokens)))


def paths(record: Record, calls: Chosen = None) -> View:
    """Rows, without those that another one begins with: the turns of an append-only episode are a single row."""
    texts = _Texts.of(record, calls)
    return _lines(texts, owners(texts.tokens))


def forest(record: Record, calls: Chosen = None, budget: int = 1500, width: int = 576) -> View:
    """Trees in which texts that begin alike share their beginning; a token attends to itself and its ancestors.

    budget: tokens of a tree, exceeded only by a text that is longer alone. width: of the model's hidden states; texts
    that share too little to be worth a tree stay apart. Position ids are depths.
    """
    texts = _Texts.of(record, calls)
    owner = owners(texts.tokens)
    return _branched(texts, owner, _packed(texts, owner, budget, width))


def ancestor_mask(view: View, row: int) -> Tensor:
    """bool [T, T] of one row: whether a token (first) attends to another (last): to itself and its ancestors."""
    if not 0 <= row < view.rows.n:
        raise DataError(f"the view has {view.rows.n} rows, there is no row {row}")
    start, stop = view.rows.offsets[row : row + 2].tolist()
    size = stop - start
    above = view.parent[start:stop].numpy()
    local = np.where(above < 0, -1, above - start)
    begins = np.flatnonzero((above < 0) | (local != np.arange(size) - 1))  # of runs of tokens that follow each other
    mask = np.tri(size, dtype=bool)
    for begin, end in zip(begins, [*begins[1:], size], strict=True):
        mask[begin:end, :begin] = mask[local[begin], :begin] if local[begin] >= 0 else False
    return torch.from_numpy(mask)


def cost(view: View, width: int = 576, batch: int = 4096) -> float:
    """Predicted work of a pass over the view, in tokens: padded tokens + attended pairs / (6 · width).

    A layer of a transformer multiplies about 24 · width² times a token and 4 · width times a pair of tokens; on a CPU
    the measured ratio is the same. Rows that branch compute all pairs, rows that do not, half of them.
    width: of the model's hidden states. batch: padded tokens of a micro-batch; rows of similar length share one.
    """
    index = torch.arange(len(view.ids))
    first = index == view.rows.expand(view.rows.starts)
    branches = view.rows.reduce((view.parent != index - 1) & ~first, "max")
    return _work(view.rows.lengths.numpy(), branches.numpy(), width, batch)


def cheapest(
    record: Record,
    calls: Chosen = None,
    *,
    budgets: Sequence[int] = (1500, 4096),
    width: int = 576,
    batch: int = 4096,
    among: Collection[str] = VIEWS,
) -> tuple[str, View, dict[str, float]]:
    """(name, view, cost of each) of the view that is predicted to cost least; of equal ones the first of `among`.

    budgets: of the forest's trees, the best of them counts. width, batch: see `cost`. among: leave "forest" out where a
    model takes no mask.
    """
    for name in among:
        if name not in VIEWS:
            raise unknown("view", name, VIEWS)
    texts = _Texts.of(record, calls)
    owner = owners(texts.tokens)
    sizes = np.array([len(tokens) for tokens in texts.tokens], dtype=np.int64)
    lines = {"rows": np.arange(len(sizes)), "paths": owner}
    costs, made = {}, {}
    for name in among:
        if name in lines:
            kept = np.unique(lines[name])
            costs[name] = _work(sizes[kept], np.zeros(len(kept), dtype=bool), width, batch)
        else:
            packings = [_packed(texts, owner, budget, width) for budget in budgets]
            works = [_work_of_trees(sizes, packing, width, batch) for packing in packings]
            costs[name], made[name] = min(works), packings[works.index(min(works))]
    name = min(costs, key=costs.__getitem__)
    view = _lines(texts, lines[name]) if name in lines else _branched(texts, owner, made[name])
    return name, view, costs


Packing = list[list[tuple[int, int]]]
"""Trees of texts: (text, tokens that it shares with the one before it)."""

_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Texts:
    """The texts of c chosen calls."""

    tokens: list[np.ndarray]  # int32, context and output
    contexts: np.ndarray  # int64 [c], tokens of the context
    items: Tensor  # int64 [M], call after call
    target: Tensor  # int64 [M]

    @classmethod
    def of(cls, record: Record, calls: Chosen) -> _Texts:
        chosen = record.choose(calls)
        chosen = chosen[record.length[chosen] > 0]
        contexts, outputs = record.contexts(chosen), record.outputs(chosen)
        lengths = np.array([len(context) for context in contexts], dtype=np.int64)
        if len(lengths) and lengths.min() == 0:
            raise DataError(
                f"record: {record.name_of(int(chosen[int(lengths.argmin())]))} emits its first token with no token "
                f"before it; give its context a beginning-of-text token"
            )
        items = record.items_of(chosen)
        tokens = [np.concatenate(parts) for parts in zip(contexts, outputs, strict=True)]
        return cls(tokens, lengths, items, record.token[items])


def _packed(texts: _Texts, owner: np.ndarray, budget: int, width: int) -> Packing:
    """The texts that own a row, packed in trees."""
    if budget < 1:
        raise DataError(f"the budget of a tree must be at least 1 token, got {budget}")
    leaves = np.unique(owner).tolist()
    packed = trees([texts.tokens[leaf] for leaf in leaves], budget, width)
    return [[(leaves[row], shared) for row, shared in tree] for tree in packed]


def _work_of_trees(sizes: np.ndarray, packing: Packing, width: int, batch: int) -> float:
    tokens = np.array([sum(int(sizes[text]) - shared for text, shared in tree) for tree in packing], dtype=np.int64)
    return _work(tokens, np.array([len(tree) > 1 for tree in packing], dtype=bool), width, batch)


def _work(lengths: np.ndarray, branched: np.ndarray, width: int, batch: int) -> float:
    """See `cost`. lengths: int64 [R] of the rows; branched: bool [R]."""
    total = 0.0
    for kind, pairs in ((False, 0.5), (True, 1.0)):
        sizes = np.sort(lengths[branched == kind])[::-1].tolist()
        first = 0
        while first < len(sizes):
            longest = sizes[first]
            count = min(max(1, batch // longest), len(sizes) - first)
            total += count * longest * (1 + pairs * longest / (6 * width))
            first += count
    return total


def _branched(texts: _Texts, owner: np.ndarray, packing: Packing) -> View:
    """Trees; a text without a place of its own lies at the start of its owner."""
    ids, parent, position, sizes = [_NOTHING], [_NOTHING], [_NOTHING], []
    place: dict[int, np.ndarray] = {}  # of each owner, where its tokens are in L
    end = 0
    for tree in packing:
        start, before = end, _NOTHING
        for text, shared in tree:
            tokens = texts.tokens[text]
            fresh = np.arange(end, end + len(tokens) - shared)
            before = place[text] = np.concatenate([before[:shared], fresh])
            ids.append(tokens[shared:])
            position.append(np.arange(shared, len(tokens)))
            parent.append(np.concatenate([before[shared - 1 : shared] if shared else [-1], fresh[:-1]]))
            end += len(fresh)
        sizes.append(end - start)
    spans = list(zip(owner.tolist(), texts.contexts.tolist(), map(len, texts.tokens), strict=True))
    at = _flat([place[own][context - 1 : size - 1] for own, context, size in spans])
    here = _flat([place[own][context:size] for own, context, size in spans])
    return _view(texts, _flat(ids), _flat(position), sizes, _flat(parent), at, here)


def _lines(texts: _Texts, owner: np.ndarray) -> View:
    """Unbranched rows: every text lies at the start of its owner's row."""
    kept, row = np.unique(owner, return_inverse=True)
    lines = [texts.tokens[text] for text in kept]
    sizes = np.array([len(line) for line in lines], dtype=np.int64)
    starts = sizes.cumsum() - sizes
    index = np.arange(sizes.sum())
    position = index - np.repeat(starts, sizes)
    parent = np.where(position > 0, index - 1, -1)
    outputs = np.array([len(tokens) for tokens in texts.tokens], dtype=np.int64) - texts.contexts
    inside = np.arange(outputs.sum()) - np.repeat(outputs.cumsum() - outputs, outputs)
    here = np.repeat(starts[row] + texts.contexts, outputs) + inside
    return _view(texts, _flat([_NOTHING, *lines]), position, sizes, parent, here - 1, here)


def _view(
    texts: _Texts,
    ids: np.ndarray,
    position: np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    parent: np.ndarray,
    at: np.ndarray,
    here: np.ndarray,
) -> View:
    """The view with its predictions sorted by where they are made; at, here: call after call."""
    order = torch.from_numpy(np.argsort(at, kind="stable"))
    return View(
        ids=torch.from_numpy(ids),
        position=torch.from_numpy(position),
        rows=Spans.from_lengths(torch.as_tensor(sizes, dtype=torch.int64)),
        parent=torch.from_numpy(parent),
        item=texts.items[order],
        at=torch.from_numpy(at)[order],
        here=torch.from_numpy(here)[order],
        target=texts.target[order],
    )


def _flat(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One int64 vector."""
    return np.concatenate([_NOTHING, *parts]).astype(np.int64, copy=False)
