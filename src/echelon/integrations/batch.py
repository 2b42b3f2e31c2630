"""One batch of completions, packed: what a rule of credit is given by `integrations.trl` and `integrations.verl`.

Legend: N completions, n turns, M tokens; tokens are packed completion after completion, turn after turn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from echelon.credit.credit import Credit, finite
from echelon.errors import DataError
from echelon.spans import Spans, SpanTree

Level = Literal["completion", "turn", "token"]


@dataclass(frozen=True)
class Batch:
    """The completions that were generated together, those of every process.

    groups: the N completions by prompt.    tokens: the M tokens by completion, padding left out.
    reward: [N], the weighted sum over the reward functions; NaN where none of them gave one.
    rewards: reward function → [N], NaN where it gave none.    reward_weights: reward function → its weight in the sum.
    emitted: bool [M], the policy wrote the token; tools and environments wrote the others.
    trained: bool [M], the token enters the loss: emitted, and not in a completion that the trainer masks.
    fields: for each completion whatever else is known of it by name: columns of the data set and what the rollout
        returned beside tokens (states, values, rewards of turns). Read them with `column` and `key`.

    `turns` are the M tokens by turn. A turn ends with the last token that answers it, so that it holds what the policy
    wrote and then what the environment did. The field `turn_lengths` (tokens of each turn) says where turns end;
    without it a turn begins where the policy writes again.
    """

    groups: Spans
    tokens: Spans
    reward: Tensor
    rewards: Mapping[str, Tensor]
    reward_weights: Mapping[str, float]
    emitted: Tensor
    trained: Tensor
    fields: Sequence[Mapping[str, Any]]

    @property
    def scored(self) -> Tensor:
        """bool [N]: some reward function gave the completion a reward; `where` of the rules of groups."""
        return ~torch.isnan(self.reward)

    @cached_property
    def turns(self) -> Spans:
        """The M tokens by turn."""
        if any("turn_lengths" in row for row in self.fields):
            return Spans.from_lengths(torch.cat([self._turn_lengths(i) for i in range(self.tokens.n)]))
        before = self.tokens.shift(self.emitted, -1, fill=False)
        wrote = self.tokens.scan(before.float(), reverse=False) > 0  # a turn is no turn before the policy wrote in it
        return Spans.from_starts((self.tokens.position == 0) | (self.emitted & ~before & wrote))

    @cached_property
    def episodes(self) -> Spans:
        """The n turns by completion."""
        return self.turns.within(self.tokens)

    def tree(self, segments: Spans | None = None) -> SpanTree:
        """The n turns as items: group > episode (a completion) > segment, where `segments` of the turns are given."""
        names: dict[str, Spans | tuple[Spans, str | None]] = {
            "group": Spans.by_key(self.groups.ids[self.episodes.ids]),
            "episode": (self.episodes, "group"),
        }
        if segments is not None:
            names["segment"] = (segments, "episode")
        return SpanTree(names)

    def column(
        self, name: str, level: Level = "completion", dtype: torch.dtype | None = None, cut: bool = False
    ) -> Tensor:
        """A field as numbers: [N], one a completion, or [n] or [M] from a list for each completion.

        dtype: that of the rewards, unless given. cut: leave out entries beyond the last turn or token, such as the
        state that nobody saw because the trainer dropped a tool's answer as too long. Raises DataError where the field
        is missing, is of another length or does not consist of numbers.
        """
        dtype, parts = dtype or self.reward.dtype, []
        for i, entries in enumerate(self._entries(name, level, cut)):
            try:
                parts.append(torch.as_tensor(entries, dtype=dtype))
            except (TypeError, ValueError, RuntimeError) as error:
                raise DataError(f"field '{name}' of completion {i} does not consist of numbers: {error}") from error
        return torch.cat(parts).to(self.reward.device)

    def key(self, name: str, level: Level = "turn", cut: bool = False) -> Tensor:
        """A field of any hashable entries as int64 keys, equal where the entries are: strings of states, labels."""
        numbers: dict[Hashable, int] = {}
        rows = (row.tolist() if hasattr(row, "tolist") else row for row in self._entries(name, level, cut))
        keys = [numbers.setdefault(entry, len(numbers)) for row in rows for entry in row]
        return torch.tensor(keys, dtype=torch.int64, device=self.reward.device)

    def level(self, column: Tensor) -> Level:
        """What the entries of a column belong to, told by their number. Where two levels agree they are the same."""
        if column.shape == (self.tokens.n,):
            return "completion"
        if column.shape == (self.tokens.size,):
            return "token"
        if column.shape == (self.turns.n,):
            return "turn"
        raise DataError(
            f"the credit has shape {tuple(column.shape)}; it must have one entry for each of the batch's "
            f"{self.tokens.n} completions, {self.turns.n} turns or {self.tokens.size} tokens"
        )

    def check(self, credit: Credit | Tensor) -> Credit:
        """A rule's answer as Credit over completions, turns or tokens; DataError where it is of no level or NaN."""
        if isinstance(credit, Tensor):
            credit = Credit(credit)
        if not isinstance(credit, Credit):
            raise DataError(
                f"a rule must return Credit or a tensor, got {type(credit).__name__}; credits of several levels are "
                "joined over tokens by echelon.credit.spread"
            )
        level = self.level(credit.advantage)
        spans = {"completion": None, "turn": self.episodes, "token": self.tokens}[level]
        finite("completion", spans, advantage=credit.advantage, weight=credit.weight)
        return credit

    def over_tokens(self, column: Tensor) -> Tensor:
        """A column of completions, turns or tokens as one of tokens, [M]."""
        level = self.level(column)
        return column if level == "token" else (self.tokens if level == "completion" else self.turns).expand(column)

    def _value(self, i: int, name: str) -> Any:
        if name not in self.fields[i]:
            raise DataError(
                f"completion {i} has no field '{name}': the rollout must return it as a list with an entry for each "
                f"completion, or the data set have it as a column; there are {', '.join(self.fields[i]) or 'none'}"
            )
        return self.fields[i][name]

    def _entries(self, name: str, level: Level, cut: bool) -> list[Sequence[Any]]:
        """The entries of a field, completion by completion, checked for their number."""
        values = [self._value(i, name) for i in range(self.tokens.n)]
        if level == "completion":
            return [[value] for value in values]
        counts = (self.episodes if level == "turn" else self.tokens).lengths.tolist()
        for i, (value, count) in enumerate(zip(values, counts, strict=True)):
            a_list = hasattr(value, "__len__") and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
            if a_list and cut:
                values[i] = value = value[:count]
            if not a_list or len(value) != count:
                given = f"{len(value)} entries" if a_list else f"the single value {value!r}"
                raise DataError(f"field '{name}' of completion {i} has {given}; the completion has {count} {level}s")
        return values

    def _turn_lengths(self, i: int) -> Tensor:
        lengths = torch.as_tensor(self._value(i, "turn_lengths"), device=self.reward.device)
        size = int(self.tokens.lengths[i])
        if lengths.ndim != 1 or lengths.is_floating_point() or int(lengths.sum()) != size or int(lengths.min()) < 1:
            raise DataError(
                f"turn_lengths of completion {i} are {lengths.tolist()}; they must be positive whole numbers that sum "
                f"to its {size} tokens"
            )
        return lengths


Rule = Callable[[Batch], Credit | Tensor]
