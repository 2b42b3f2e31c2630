"""Rewards are data: an ordered tuple of terms, and some are asked only where an earlier one came out well enough.

    terms = (Term("correct", check), Term("style", judge, weight=0.5, gate=("correct", 1.0)))
    result = evaluate(terms, episodes)
    grpo(groups, reward=result.reward, where=result.known)

An item is whatever the scores are about: an episode, an answer, a turn. A score is a number, or None where it cannot be
known (the judge refused, its reply did not parse): unknown is not zero, so the item has no reward at all, and leaves
the statistics of its group. Legend: N items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from echelon.errors import DataError, UsageError, unknown

Scorer = Callable[[list[Any]], Iterable[float | None]]
Side = Literal[">=", ">", "<=", "<"]
Reduction = Literal["min", "mean", "sum"]

_SIDES: dict[str, Callable[[Tensor, float], Tensor]] = {">=": torch.ge, ">": torch.gt, "<=": torch.le, "<": torch.lt}


class Gate(NamedTuple):
    """A term is asked about the items whose score of an earlier `term` stands on this `side` of the threshold.

    An item on which that term is unknown, or was not asked itself, does not pass.
    """

    term: str
    threshold: float
    side: Side = ">="


@dataclass(frozen=True)
class Each:
    """A scope finer than the item: the score is asked about every `part` of it (turns, executors), then reduced.

    reduce: "min" (of binary verdicts, their product), "mean" or "sum".    empty: the score of an item without parts.
    stop_below: given, parts are asked one after the other, of all items together, and no further in an item once a
    verdict is below this or unknown. Of binary verdicts the minimum is the same, with fewer questions.
    """

    part: str
    reduce: Reduction
    empty: float
    stop_below: float | None = None

    def __post_init__(self) -> None:
        if self.reduce not in get_args(Reduction):
            raise unknown("reduction", self.reduce, get_args(Reduction))
        if self.stop_below is not None and self.reduce != "min":
            raise UsageError(
                f"stop_below needs reduce='min', got '{self.reduce}': the parts not asked would be missing"
            )

    def of(self, verdicts: list[float]) -> float:
        """The score of an item with these verdicts, NaN = unknown."""
        if any(map(math.isnan, verdicts)):
            return math.nan
        if not verdicts:
            return self.empty
        if self.reduce == "min":
            return min(verdicts)
        return fmean(verdicts) if self.reduce == "mean" else math.fsum(verdicts)


@dataclass(frozen=True)
class Term:
    """One part of a reward.

    fn: list of items → as many scores, None = unknown. It gets all items at once, so that a judge can batch;
        `each` makes one of a function of a single item.
    weight: its factor in the reward; 0 for a term that is only a gate.
    gate: where it is asked, `Gate` or (earlier term, threshold); elsewhere it is NaN, adds nothing and costs nothing.
    times: earlier terms whose scores multiply it.
    credit_to: labels of the tokens that it pays; none: all tokens.
    """

    name: str
    fn: Scorer
    scope: Literal["item"] | Each = "item"
    weight: float = 1.0
    gate: Gate | tuple[str, float] | None = None
    times: tuple[str, ...] = ()
    credit_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    parts: term → [N], its score, unweighted; NaN where it was not asked, or is unknown.
    unknown: bool [N], where a term that was asked did not know.
    calls: term → how many items, or parts of items, it was asked about.
    """

    terms: tuple[Term, ...]
    parts: dict[str, Tensor]
    unknown: Tensor
    calls: dict[str, int]

    @property
    def known(self) -> Tensor:
        """bool [N]: the `where` of group statistics."""
        return ~self.unknown

    @cached_property
    def shares(self) -> dict[str, Tensor]:
        """term → [N], what it adds: weight · score · scores of `times`, 0 where not asked or unknown."""
        shares = {}
        for term in self.terms:
            factors = [self.parts[name] for name in (term.name, *term.times)]
            shares[term.name] = term.weight * torch.stack(factors).prod(0).nan_to_num(nan=0.0)
        return shares

    @cached_property
    def reward(self) -> Tensor:
        """[N]: the sum of the shares; NaN where something is unknown, so that no statistic takes it for a number."""
        return self._sum(list(self.shares.values()))

    def reward_of(self, label: str) -> Tensor:
        """[N]: the sum of the shares that tokens with this label are paid; NaN where something is unknown."""
        return self._sum([self.shares[t.name] for t in self.terms if not t.credit_to or label in t.credit_to])

    def _sum(self, shares: list[Tensor]) -> Tensor:
        nothing = torch.zeros_like(next(iter(self.parts.values())))
        return torch.where(self.unknown, torch.nan, torch.stack([nothing, *shares]).sum(0))


def each(score: Callable[[Any], float | None]) -> Scorer:
    """The score of a list from the score of one item."""
    return partial(map, score)


def evaluate(
    terms: Iterable[Term],
    items: Sequence[Any],
    parts: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Ask the terms about the items, in order, each only about those that pass its gate.

    parts: for every `Each.part` the parts of every item, such as {"turn": [[first, second], ...]}.
    dtype: of the columns; gates compare in float64. An exception of a score passes with a note on where it happened.
    """
    terms = tuple(terms)
    _check(terms, parts or {}, len(items))
    columns: dict[str, Tensor] = {}
    missing = torch.zeros(len(items), dtype=torch.bool)
    calls = {}
    for term in terms:
        asked = _passing(term.gate, columns, len(items))
        if isinstance(term.scope, Each):
            rows = [list((parts or {})[term.scope.part][i]) for i in asked]
            scores, calls[term.name] = _ask_parts(term, term.scope, rows, asked)
        else:
            scores, calls[term.name] = _ask(term, [items[i] for i in asked], asked), len(asked)
        index, found = torch.tensor(asked, dtype=torch.long), torch.tensor(scores, dtype=torch.float64)
        columns[term.name] = torch.full((len(items),), torch.nan, dtype=torch.float64).index_copy_(0, index, found)
        missing[index] |= found.isnan()
    dtype = dtype or torch.get_default_dtype()
    return Evaluation(terms, {name: column.to(dtype) for name, column in columns.items()}, missing, calls)


def _check(terms: tuple[Term, ...], parts: Mapping[str, Sequence[Sequence[Any]]], count: int) -> None:
    """Raise, unless names are unique, gates and factors name earlier terms, and every item has its parts."""
    if not terms:
        raise UsageError("a reward needs at least one term")
    earlier: list[str] = []
    for term in terms:
        gate = None if term.gate is None else Gate(*term.gate)
        if term.name in earlier:
            raise UsageError(f"two reward terms are called '{term.name}'; names must differ")
        for name in term.times if gate is None else (gate.term, *term.times):
            if name not in earlier:
                raise UsageError(
                    f"reward term '{term.name}' refers to '{name}'; earlier terms: {', '.join(earlier) or '-'}"
                )
        if gate is not None and gate.side not in _SIDES:
            raise unknown("side of a gate", gate.side, _SIDES)
        if not math.isfinite(term.weight):
            raise UsageError(f"the weight of reward term '{term.name}' is {term.weight}")
        if not isinstance(term.scope, Each) and term.scope != "item":
            raise UsageError(
                f"scope '{term.scope}' of '{term.name}' needs a reduction: Each('{term.scope}', 'min', 1.0)"
            )
        if isinstance(term.scope, Each) and len(parts.get(term.scope.part, ())) != count:
            raise DataError(
                f"reward term '{term.name}' needs parts['{term.scope.part}'] of {count} items, got "
                f"{len(parts.get(term.scope.part, ()))}; given: {', '.join(parts) or '-'}"
            )
        earlier.append(term.name)


def _passing(gate: Gate | tuple[str, float] | None, columns: Mapping[str, Tensor], count: int) -> list[int]:
    """The items that pass; comparisons with NaN are false."""
    if gate is None:
        return list(range(count))
    name, threshold, side = Gate(*gate)
    return _SIDES[side](columns[name], threshold).nonzero()[:, 0].tolist()


def _ask(term: Term, things: list[Any], owners: Sequence[int]) -> list[float]:
    """The verdicts on `things`, NaN = unknown. owners: the item of each, for messages."""
    verdicts: list[float] = []
    try:
        for verdict in term.fn(things) if things else ():
            verdicts.append(math.nan if verdict is None else float(verdict))
    except Exception as error:
        asked = ", ".join(map(str, owners[:8])) + (", ..." if len(owners) > 8 else "")
        place = owners[min(len(verdicts), len(owners) - 1)]
        error.add_note(
            f"reward term '{term.name}', asked about items {asked}: the next verdict was that of item {place}"
        )
        raise
    if len(verdicts) != len(things):
        raise DataError(f"reward term '{term.name}' gave {len(verdicts)} verdicts on {len(things)} items")
    for owner, verdict in zip(owners, verdicts, strict=True):
        if math.isinf(verdict):
            raise DataError(f"reward term '{term.name}' scored item {owner} {verdict}; say None if it is unknown")
    return verdicts


def _ask_parts(term: Term, scope: Each, rows: list[list[Any]], owners: list[int]) -> tuple[list[float], int]:
    """(the reduced score of every item, how many parts were asked); `rows` are the parts of each item."""
    verdicts: list[list[float]] = [[] for _ in rows]
    longest = max(map(len, rows), default=0)
    enough, width = (-math.inf, longest) if scope.stop_below is None else (scope.stop_below, 1)
    for first in range(0, longest, max(width, 1)):
        running = [k for k, row in enumerate(verdicts) if all(verdict >= enough for verdict in row)]
        wave = [(k, part) for k in running for part in rows[k][first : first + width]]
        found = _ask(term, [part for _, part in wave], [owners[k] for k, _ in wave])
        for (k, _), verdict in zip(wave, found, strict=True):
            verdicts[k].append(verdict)
    return [scope.of(row) for row in verdicts], sum(map(len, verdicts))
