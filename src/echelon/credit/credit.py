"""Credit: what every rule of this room returns, and how it travels from one time-scale to a finer one.

An item is the finest thing that a rule tells apart: a completion for group baselines, a turn for turn-level rules, a
token or an environment step for GAE. Legend: N items, n spans; a column of items is a tensor [N].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echelon.errors import DataError
from echelon.spans import Spans


@dataclass(frozen=True)
class Credit:
    """What a rule says about N items. Everything is detached: credit is a constant of the losses that use it.

    advantage: [N], the factor of each item's log-probability gradient.
    target: value head → [N], what that head should predict; NaN where it has no target.
    weight: [N], the item's weight in the loss: selections, masks, unknown rewards. Default: ones.
    terms: name → [N], the parts that sum to the advantage. Default: the advantage itself.
    """

    advantage: Tensor
    target: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor = None  # type: ignore[assignment]  # always a tensor once built
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        advantage = self.advantage.detach()
        weight = torch.ones_like(advantage) if self.weight is None else self.weight.detach().to(advantage.dtype)
        terms = self.terms or {"advantage": advantage}
        for name, column in (*self.target.items(), ("weight", weight), *terms.items()):
            if column.shape != advantage.shape:
                raise DataError(f"'{name}' has shape {tuple(column.shape)}, the advantage {tuple(advantage.shape)}")
        object.__setattr__(self, "advantage", advantage)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "target", {name: column.detach() for name, column in self.target.items()})
        object.__setattr__(self, "terms", {name: column.detach() for name, column in terms.items()})

    def expand(self, spans: Spans) -> Credit:
        """The credit of finer items: each gets that of its span, which is one of my items (turns → tokens)."""
        return Credit(
            spans.expand(self.advantage),
            {head: spans.expand(column) for head, column in self.target.items()},
            spans.expand(self.weight),
            {name: spans.expand(column) for name, column in self.terms.items()},
        )


def spread(credits: Mapping[str, Credit], spans: Spans, owned: Mapping[str, Tensor]) -> Credit:
    """One credit over finer items from those of several levels: an item takes the credit of the level that owns it.

    credits: level → its credit over the `spans.n` spans (turns).    owned: level → bool [spans.size], the items
    (tokens) that it emitted; an item has at most one owner. Items of nobody get advantage 0 and weight 0. The terms
    become "level.term", a target is NaN at the items of other levels.
    """
    if missing := sorted(set(credits) ^ set(owned)):
        raise DataError(f"credits and owned must name the same levels; only one of them has {', '.join(missing)}")
    first = {level: k * spans.n for k, level in enumerate(credits)}  # of each level's part in a column of all levels
    nobody = len(credits) * spans.n
    place = torch.full_like(spans.ids, nobody)
    for level, mine in owned.items():
        place = torch.where(mine, spans.ids + first[level], place)

    def lay(columns: Mapping[str, Tensor], rest: float = 0.0) -> Tensor:
        together = next(iter(columns.values())).new_full((nobody + 1,), rest)
        for level, column in columns.items():
            together[first[level] : first[level] + spans.n] = column
        return together.index_select(0, place)

    heads = dict.fromkeys(head for credit in credits.values() for head in credit.target)
    return Credit(
        lay({level: credit.advantage for level, credit in credits.items()}),
        {head: lay({le: c.target[head] for le, c in credits.items() if head in c.target}, torch.nan) for head in heads},
        lay({level: credit.weight for level, credit in credits.items()}),
        {f"{level}.{name}": lay({level: term}) for level, c in credits.items() for name, term in c.terms.items()},
    )


def sum_of(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of columns [N] of one shape."""
    return torch.stack(tuple(terms.values())).sum(0)


def known(name: str, column: Tensor, unit: str, spans: Spans | None, where: Tensor | None) -> Tensor:
    """The column [N] as real numbers, 0 where it is unknown (`where` false), checked by `finite`."""
    column = column if where is None else torch.where(where, column, 0)
    finite(unit, spans, **{name: column})
    return column if column.is_floating_point() else column.to(torch.get_default_dtype())


def total(terms: Mapping[str, Tensor], where: Tensor | None = None) -> Credit:
    """The credit that these terms sum to; advantage and weight are 0 outside `where`, bool [N]."""
    if where is not None:
        terms = {name: torch.where(where, column, 0) for name, column in terms.items()}
    advantage = sum_of(terms)
    return Credit(advantage, weight=torch.ones_like(advantage) if where is None else where, terms=terms)


def finite(unit: str, spans: Spans | None, **columns: Tensor) -> None:
    """Raise a DataError at the first NaN or infinite entry of a column [N, ...], naming its unit: its span, or itself.

    >>> finite("episode", episodes, reward=reward, value=value)
    """
    for name, column in columns.items():
        # a sum is one cheap pass; it is finite only if every entry is, and overflows rarely
        if torch.isfinite(column.detach().sum()) or torch.isfinite(column).all():
            continue
        item = int((~torch.isfinite(column)).nonzero()[0, 0])
        place = f"{unit} {item}" if spans is None else f"{unit} {int(spans.ids[item])} (item {item})"
        remedy = "drop it, or, where the rule takes `where`, mark it as unknown"
        raise DataError(f"{name} of {place} is {column[item].tolist()}; {remedy}")
