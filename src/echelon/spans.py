"""Spans: N packed items partitioned at several time-scales, and the operations that credit is made of.

Items are environment steps or emitted tokens, one a row. A partition groups them: episodes, options, turns, roles,
equal states. Operations are vectorised, keep autograd, work alike on CPU and CUDA and never wait for the device.
Constructors, and methods that construct (`take`, `within`, `meet`, `windows`), validate what they build and so do wait.

Legend: N items, n spans; a column of items is a tensor [N, ...], a column of spans [n, ...].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from echelon import _siblings
from echelon._lazy import lazy
from echelon._recurrence import recurrence, window_sums
from echelon._sorting import stable_argsort
from echelon.errors import EchelonError

Reduction = Literal["sum", "mean", "max", "min", "first", "last", "count"]
Statistic = Literal["mean", "std", "loo_mean", "rank", "quantile", "max"]


class SpanError(EchelonError, ValueError):
    """A partition is malformed, or an operation got a column, a name or an option that does not fit it."""


class Spans:
    """A partition of N items into n non-empty spans; immutable.

    Span s holds the items `order[offsets[s]:offsets[s + 1]]`, in that sequence. `order` is None where every span is a
    slice of memory and the spans follow each other there (an identity given as `order` becomes None).

    offsets: int [n + 1], from 0 to N, strictly increasing.    order: int [N], a permutation of 0..N-1.
    Sizes are Python ints: `n` spans, `size` items, `longest` items in the longest span.
    """

    def __init__(self, offsets: Tensor | Sequence[int], order: Tensor | Sequence[int] | None = None):
        self.offsets = _integers(offsets, "offsets")
        if len(self.offsets) == 0:
            raise SpanError("offsets must hold at least the leading 0")
        self.lengths = self.offsets.diff()  # int64 [n], the items of each span
        self.n = len(self.lengths)
        first, self.size, shortest, self.longest = self._extremes()
        if first != 0:
            raise SpanError(f"offsets must start at 0, got {first}")
        if self.n and shortest < 1:
            span = int((self.lengths < 1).nonzero()[0])
            raise SpanError(f"span {span} has {int(self.lengths[span])} items; every span needs at least one")
        self.order = None if order is None else self._permutation(_integers(order, "order"))

    def _extremes(self) -> list[int]:
        """First and last offset, shortest and longest span; read at once, so that a device is waited for once."""
        if self.offsets.is_cpu and self.n:  # numpy's calls are cheaper, which counts for the many small partitions
            edges, sizes = self.offsets.numpy(), self.lengths.numpy()
            return [int(edges[0]), int(edges[-1]), int(sizes.min()), int(sizes.max())]
        return torch.stack(
            [*self.offsets[[0, -1]], *(self.lengths.aminmax() if self.n else self.offsets[[0, 0]])]
        ).tolist()

    # ---- construction

    @classmethod
    def from_lengths(cls, lengths: Tensor | Sequence[int]) -> Spans:
        """Contiguous spans of these lengths: int [n], each at least 1."""
        return cls(F.pad(_integers(lengths, "lengths").cumsum(0), (1, 0)))

    @classmethod
    def from_starts(cls, starts: Tensor) -> Spans:
        """Contiguous spans that begin wherever `starts`, bool [N], is true; item 0 must begin one."""
        if starts.dtype != torch.bool or starts.ndim != 1:
            raise SpanError(f"starts must be a bool vector, got {starts.dtype} of shape {tuple(starts.shape)}")
        if len(starts) and not starts[0]:
            raise SpanError("item 0 must start a span")
        return cls(F.pad(starts.nonzero()[:, 0], (0, 1), value=len(starts)))

    @classmethod
    def by_key(cls, *keys: Tensor) -> Spans:
        """Items with equal keys, int [N] each, share a span; numbered by first appearance, items in their old order."""
        keys = tuple(_integers(key, "key") for key in keys)
        if not keys or any(len(key) != len(keys[0]) for key in keys):
            raise SpanError(f"by_key needs keys of one length, got lengths {[len(key) for key in keys]}")
        order = stable_argsort(*keys)
        groups = cls.from_starts(_changes(*[key[order] for key in keys]))
        groups, slots = groups.take(torch.argsort(order[groups.offsets[:-1]]))  # in the sequence of their first items
        order, keyed = order[slots], cls(groups.offsets)
        keyed.order = None if torch.equal(order, torch.arange(len(order), device=order.device)) else order
        return keyed

    def meet(self, *others: Spans) -> Spans:
        """The coarsest common refinement: items share a span iff they do in every partition.

        Numbered and ordered as in mine. Of contiguous partitions this is the union of the starts: the joint decision
        times of agents with different clocks.
        """
        partitions = (self, *others)
        for other in others:
            self._check(other.ids)
        if all(spans.order is None for spans in partitions):
            return Spans.from_starts(_changes(*[spans.ids for spans in partitions]))
        met = Spans.by_key(*[self._pack(spans.ids) for spans in partitions])
        return Spans(met.offsets, self._item(met._item(torch.arange(self.size, device=self.device))))

    def take(self, ids: Tensor | Sequence[int]) -> tuple[Spans, Tensor]:
        """Ragged gather of whole spans: (the partition of the gathered items, their old item indexes [M]).

        `ids`, int [m], may repeat and come in any order; `column[items]` is then packed span after span.
        """
        ids = _integers(ids, "ids", self.device)
        low, high = torch.stack(ids.aminmax()).tolist() if len(ids) else (0, -1)
        if low < 0 or high >= self.n:
            raise SpanError(f"span ids must lie in 0..{self.n - 1}, got {low}..{high}")
        taken = Spans.from_lengths(self.lengths[ids])
        return taken, self._item(taken.expand(self.offsets[ids]) + taken.position)

    def within(self, outer: Spans) -> Spans:
        """My n spans as items, partitioned by `outer`, which I must refine; span j of the result is span j of `outer`.

        Inside it my spans stand in the sequence in which `outer` meets them.
        """
        return _nest(self, outer, "the inner partition", "the outer one")

    def to(self, device: torch.device | str) -> Spans:
        """The same partition on another device."""
        if self.offsets.device == torch.device(device):
            return self
        return Spans(self.offsets.to(device), None if self.order is None else self.order.to(device))

    # ---- facts

    @property
    def device(self) -> torch.device:
        return self.offsets.device

    @lazy
    def starts(self) -> Tensor:
        """int64 [n]: the first item of each span."""
        return self._item(self.offsets[:-1])

    @lazy
    def ends(self) -> Tensor:
        """int64 [n]: the last item of each span (inclusive)."""
        return self._item(self.offsets[1:] - 1)

    @lazy
    def ids(self) -> Tensor:
        """int64 [N]: the span of each item."""
        return self._unpack(self._span_of_slot)

    @lazy
    def position(self) -> Tensor:
        """int64 [N]: how many items of its span stand before each item."""
        return self._unpack(torch.arange(self.size, device=self.device) - self.offsets[self._span_of_slot])

    # ---- operations

    def reduce(self, x: Tensor, how: Reduction = "sum") -> Tensor:
        """Items [N, ...] → spans [n, ...]. Of bools sum counts, max is any and min is all; count looks at no value."""
        self._check(x)
        if how == "count":
            return self.lengths
        if how in ("first", "last"):
            return x[self.starts if how == "first" else self.ends]
        if how not in ("sum", "mean", "max", "min"):
            raise SpanError(f"unknown reduction '{how}'; valid: sum, mean, max, min, first, last, count")
        if how == "mean" and not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        if x.is_floating_point():  # unlike atomic adds, deterministic on CUDA too
            return torch.segment_reduce(self._pack(x), how, offsets=self.offsets, axis=0)
        whole = torch.zeros((self.n, *x.shape[1:]), dtype=torch.int64, device=x.device)
        index = _align(self.ids, x).expand_as(x)
        whole.scatter_reduce_(0, index, x.long(), "sum" if how == "sum" else f"a{how}", include_self=False)
        return whole if how == "sum" else whole.to(x.dtype)

    def expand(self, y: Tensor) -> Tensor:
        """Spans [n, ...] → items [N, ...]: every item gets the value of its span."""
        self._check(y, self.n, "spans")
        return y.index_select(0, self.ids)

    def shift(self, x: Tensor, by: int = 1, fill: float | Tensor = 0.0) -> Tensor:
        """The value `by` items later in the same span (earlier where negative); beyond the edge of the span, `fill`.

        fill: a number, or one row a span, [n] or [n, ...]: bootstrap values enter here.
        """
        self._check(x)
        fill = fill if isinstance(fill, Tensor) and fill.ndim else _scalar(fill, x.dtype, x.device).expand(self.n)
        fill = self._check(fill, self.n, "spans", like=x).to(x.dtype).expand(self.n, *x.shape[1:])
        moved = self._pack(x).roll(-by, 0)
        if by in (1, -1):  # only what came over the edge of its span is replaced
            return self._unpack(moved.index_copy_(0, self.offsets[1:] - 1 if by == 1 else self.offsets[:-1], fill))
        span = self._span_of_slot
        inside = span == span.roll(-by)
        inside[slice(-by, None) if by > 0 else slice(-by)] = False  # what came round the end of memory
        return self._unpack(torch.where(_align(inside, x), moved, fill[span]))

    def scan(self, x: Tensor, decay: float | Tensor = 1, reverse: bool = True, limit: int | None = None) -> Tensor:
        """The discounted running sum inside each span: O(N) work for any span lengths, and no division.

        With i + 1 the item after i in its span, and decay[i] the discount of the interval from i to i + 1,
            reverse (returns, advantages):   out[i] = x[i] + decay[i] · out[i + 1]
            forward (traces, clocks):        out[i + 1] = x[i + 1] + decay[i] · out[i]
        so that one column, say γ^elapsed, serves both; the decay of a span's last item is never used. `limit` keeps
        what lies fewer than `limit` items away, exactly: out[i] = Σ_{k < limit} (Π_{j < k} decay[i + j]) · x[i + k].

        decay: a number, a 0-d tensor, or a column that broadcasts over trailing dimensions of x. Nothing crosses the
        edge of a span, not even NaN. Products of decays in a span must stay finite. Differentiable in x and decay.
        """
        self._check(x)
        if limit is not None and limit < 1:
            raise SpanError(f"limit must be at least 1, got {limit}")
        if isinstance(decay, Tensor) and decay.ndim:
            decay = self._check(decay, like=x)
            dtype = torch.promote_types(x.dtype, decay.dtype)
        else:
            dtype = (x.new_empty(0) * decay).dtype
        if self.longest == 1 and not (isinstance(decay, Tensor) and decay.requires_grad):
            return x.to(dtype, copy=True)  # nothing to add up
        if not (isinstance(decay, Tensor) and decay.ndim):
            decay = _scalar(decay, dtype, x.device).expand(self.size)
        x, decay = self._pack(x).to(dtype), self._pack(decay)
        link = _align(self._has_next, x)
        decay = torch.where(link, _align(decay, x).to(dtype), 0)
        if not reverse:
            x, decay, link = x.flip(0), decay.roll(1, 0).flip(0), link.roll(1, 0).flip(0)
        if limit is None or limit >= self.longest:
            out = recurrence(x, decay, link, self.longest)
        else:
            out = window_sums(x, decay, link, limit)
        return self._unpack(out if reverse else out.flip(0))

    def siblings(
        self,
        y: Tensor,
        stat: Statistic,
        *,
        where: Tensor | None = None,
        weight: Tensor | None = None,
        ddof: int = 0,
        eps: float = 0.0,
        singleton: Literal["zero", "raw"] = "zero",
        q: float = 0.5,
    ) -> Tensor:
        """A statistic of `y` among the items of each span, given to each of them: [N, ...] → [N, ...].

        mean; loo_mean, the mean of the others; max; quantile at `q`, interpolated linearly; std, the root of
        Σ w (y - mean)² / (Σ w - ddof), plus eps; rank, int64: how many siblings precede it in ascending order, ties by
        order, -1 where excluded (`rank >= count - k` selects the k largest). rank and quantile take [N] only.

        where: bool [N], the items that enter the statistics; the others still receive them.
        weight: [N], counts an item that many times, in mean, loo_mean and std.
        singleton: an item with no included sibling beside itself is its own baseline ("zero": y - mean = 0) or has the
            baseline 0 ("raw": y - mean = y), for mean, loo_mean, max and quantile; its std is 1 + eps.
        """
        self._check(y)
        if stat not in ("mean", "std", "loo_mean", "rank", "quantile", "max"):
            raise SpanError(f"unknown statistic '{stat}'; valid: mean, std, loo_mean, rank, quantile, max")
        if singleton not in ("zero", "raw"):
            raise SpanError(f"unknown singleton rule '{singleton}'; valid: zero, raw")
        if weight is not None and stat not in ("mean", "std", "loo_mean"):
            raise SpanError(f"{stat} takes no weight")
        if stat in ("rank", "quantile") and y.ndim > 1:
            raise SpanError(f"{stat} takes a column without features, got shape {tuple(y.shape)}")
        use = torch.ones(self.size, dtype=torch.bool, device=y.device) if where is None else self._check(where)
        if stat == "rank":
            return torch.where(use, _siblings.rank(self, y, use), -1)
        y = y if y.is_floating_point() else y.to(torch.get_default_dtype())
        w = torch.where(use, 1 if weight is None else self._check(weight), 0).to(y.dtype)
        alone, use, w = (_align(t, y) for t in (_siblings.alone(self, w), use, w))
        known = torch.where(use, y, 0)
        if stat == "std":
            return torch.where(alone, 1, _siblings.deviation(self, known, w, ddof)) + eps
        if stat == "mean":
            baseline = _siblings.mean(self, known, w)
        elif stat == "loo_mean":
            baseline = _siblings.mean_of_others(self, known, w)
        elif stat == "max":
            baseline = self.expand(self.reduce(torch.where(use, y, -torch.inf), "max"))
        else:
            baseline = _siblings.quantile(self, y, use, q)
        return torch.where(alone, y if singleton == "zero" else 0, baseline)

    # ---- moving about inside spans (offline data)

    def start_of(self, items: Tensor) -> Tensor:
        """The first item of the span of each of `items` (int, any shape)."""
        return self.starts[self.ids[items]]

    def end_of(self, items: Tensor) -> Tensor:
        """The last item of the span of each of `items` (int, any shape)."""
        return self.ends[self.ids[items]]

    def clip(self, items: Tensor, targets: Tensor) -> Tensor:
        """From each item, `targets - items` steps along its span, stopping at its edges; the two broadcast.

        Where spans are contiguous that is `targets` clamped to the span: `clip(i, i + k)`, or a padded window
        `clip(i[:, None], i[:, None] + torch.arange(k))`.
        """
        span = self.ids[items]
        slot = self._slot_of_item[items] + (targets - items)
        return self._item(slot.clamp(self.offsets[span], self.offsets[span + 1] - 1))

    def windows(self, length: int, stride: int = 1) -> Tensor:
        """Items [W, length] of every complete window inside a span, at every `stride`-th item from the span's start."""
        if length < 1 or stride < 1:
            raise SpanError(f"length and stride must be at least 1, got {length} and {stride}")
        count = ((self.lengths - length).div(stride, rounding_mode="floor") + 1).clamp(min=0)
        kept = count.nonzero()[:, 0]
        windows = Spans.from_lengths(count[kept])
        first = windows.expand(self.offsets[kept]) + windows.position * stride
        return self._item(first[:, None] + torch.arange(length, device=self.device))

    def sample(self, span_ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One item drawn uniformly from each of the given spans (int, any shape)."""
        u = torch.rand(span_ids.shape, generator=generator, dtype=torch.float64, device=self.device)
        length = self.lengths[span_ids]
        return self._item(self.offsets[span_ids] + torch.minimum((u * length).long(), length - 1))

    def __repr__(self) -> str:
        layout = "contiguous" if self.order is None else "ordered"
        return f"Spans(n={self.n}, size={self.size}, longest={self.longest}, {layout})"

    # ---- slots: where items stand once packed span after span

    def _item(self, slots: Tensor) -> Tensor:
        return slots if self.order is None else self.order[slots]

    def _pack(self, x: Tensor) -> Tensor:
        return x if self.order is None else x[self.order]

    def _unpack(self, x: Tensor) -> Tensor:
        return x if self.order is None else x[self._slot_of_item]

    @lazy
    def _slot_of_item(self) -> Tensor:
        slots = torch.arange(self.size, device=self.device)
        return slots if self.order is None else torch.empty_like(slots).index_copy_(0, self.order, slots)

    @lazy
    def _span_of_slot(self) -> Tensor:
        spans = torch.arange(self.n, device=self.device)
        return torch.repeat_interleave(spans, self.lengths, output_size=self.size)

    @lazy
    def _has_next(self) -> Tensor:
        """bool [N], by slot: whether another item follows in the same span."""
        last = self.offsets[1:] - 1
        return torch.ones(self.size, dtype=torch.bool, device=self.device).index_fill_(0, last, False)

    def _permutation(self, order: Tensor) -> Tensor | None:
        identity = torch.arange(self.size, device=self.device)
        if len(order) != self.size:
            raise SpanError(f"order has {len(order)} entries for {self.size} items")
        if torch.equal(order, identity):
            return None
        if not torch.equal(order.sort().values, identity):
            raise SpanError(f"order must hold each of 0..{self.size - 1} once")
        return order

    def _check(
        self, column: Tensor, rows: int | None = None, unit: str = "items", like: Tensor | None = None
    ) -> Tensor:
        """The column if it has as many rows as there are items, with trailing dimensions to match `like`."""
        rows = self.size if rows is None else rows
        if column.ndim == 0 or len(column) != rows:
            raise SpanError(f"a column of {rows} {unit} expected, got shape {tuple(column.shape)}")
        if like is None:
            return column
        if column.ndim > like.ndim:
            raise SpanError(f"shape {tuple(column.shape)} has more dimensions than the column's {tuple(like.shape)}")
        return _align(column, like)


class SpanTree:
    """A forest of named partitions of the same items: name → Spans, or (Spans, name of the parent or None).

    A partition must refine its declared parent, and only that: siblings, such as the segments of two agents, need not
    refine each other. Unless `checked`, that is looked at only where the two are first asked for together.
    """

    def __init__(self, partitions: Mapping[str, Spans | tuple[Spans, str | None]], checked: bool = True):
        entries = {name: value if isinstance(value, tuple) else (value, None) for name, value in partitions.items()}
        self._spans = {name: spans for name, (spans, _) in entries.items()}
        self._parents = {name: parent for name, (_, parent) in entries.items()}
        self._nested: dict[tuple[str, str], Spans] = {}
        self.size = next(iter(self._spans.values())).size if entries else 0
        for name, (spans, parent) in entries.items():
            if spans.size != self.size:
                raise SpanError(f"partition '{name}' has {spans.size} items, the others have {self.size}")
            if parent is not None:
                if parent not in entries:
                    raise SpanError(f"partition '{name}' names the parent '{parent}'; there are {', '.join(entries)}")
                if name in self.ancestors(name):
                    raise SpanError(f"partition '{name}' is its own ancestor")
                if checked:
                    self.within(name, parent)

    def __getitem__(self, name: str) -> Spans:
        if name not in self._spans:
            raise SpanError(f"no partition '{name}'; there are {', '.join(self._spans)}")
        return self._spans[name]

    def __contains__(self, name: object) -> bool:
        return name in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def parent(self, name: str) -> str | None:
        """The declared parent of a partition, or None."""
        self[name]
        return self._parents[name]

    def ancestors(self, name: str) -> list[str]:
        """Parent, grandparent and so on, up to the root."""
        found: list[str] = []
        while (up := self.parent(found[-1] if found else name)) is not None and up not in found:
            found.append(up)
        return found

    def within(self, child: str, parent: str) -> Spans:
        """The spans of `child` as items of the spans of `parent`, any partition that it refines."""
        if (child, parent) not in self._nested:
            self._nested[child, parent] = _nest(self[child], self[parent], f"partition '{child}'", f"'{parent}'")
        return self._nested[child, parent]

    def take(self, name: str, ids: Tensor | Sequence[int]) -> tuple[SpanTree, Tensor]:
        """Ragged gather of whole spans of `name`: (the tree over the gathered items, their old item indexes).

        The other partitions are restricted to what is left. Of a span taken twice, both copies stay apart in `name` and
        below it, and lie together in the spans above.
        """
        taken, items = self[name].take(ids)
        entries: dict[str, tuple[Spans, str | None]] = {}
        for other, spans in self._spans.items():
            keys = (taken.ids, spans.ids[items]) if name in self.ancestors(other) else (spans.ids[items],)
            entries[other] = (taken if other == name else Spans.by_key(*keys), self._parents[other])
        return SpanTree(entries), items

    def to(self, device: torch.device | str) -> SpanTree:
        """The same tree on another device."""
        return SpanTree({name: (spans.to(device), self._parents[name]) for name, spans in self._spans.items()})

    def __repr__(self) -> str:
        above = {name: f" < {parent}" if parent else "" for name, parent in self._parents.items()}
        return (
            f"SpanTree({', '.join(f'{name}[{s.n}]{above[name]}' for name, s in self._spans.items())}; size={self.size})"
        )


def _nest(inner: Spans, outer: Spans, inner_name: str, outer_name: str) -> Spans:
    """The spans of `inner` as items partitioned by `outer`; the names are for the error."""
    if inner.size != outer.size:
        raise SpanError(f"{inner_name} has {inner.size} items but {outer_name} has {outer.size}")
    parent = outer.ids[inner.starts]
    stray = (outer.ids != inner.expand(parent)).nonzero()[:, 0]
    if len(stray):
        span = int(inner.ids[stray].min())
        item = int(stray[inner.ids[stray] == span][0])
        raise SpanError(
            f"{inner_name} does not refine {outer_name}: its span {span} holds item {int(inner.starts[span])} of span "
            f"{int(parent[span])} and item {item} of span {int(outer.ids[item])} of {outer_name}"
        )
    contiguous = inner.order is None and outer.order is None  # then the inner spans lie in order already
    order = None if contiguous else torch.argsort(inner.reduce(outer._slot_of_item, "min"))
    return Spans(F.pad(torch.bincount(parent, minlength=outer.n).cumsum(0), (1, 0)), order)


def _align(t: Tensor, like: Tensor) -> Tensor:
    """t with trailing dimensions of size 1, as many as `like` has more."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def _scalar(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0-d; a number is filled in on the device, since a copy to it would wait."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)


def _changes(*columns: Tensor) -> Tensor:
    """bool [N]: where any of the columns differs from the item before; true at item 0."""
    new = torch.ones(len(columns[0]), dtype=torch.bool, device=columns[0].device)
    new[1:] = torch.stack([column[1:] != column[:-1] for column in columns]).any(0)
    return new


def _integers(values: Tensor | Sequence[int], name: str, device: torch.device | None = None) -> Tensor:
    tensor = torch.as_tensor(values, device=device)
    if tensor.ndim != 1 or (len(tensor) and (tensor.is_floating_point() or tensor.dtype == torch.bool)):
        raise SpanError(f"{name} must be a vector of integers, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor.long()
