"""Random ragged forests, packed and nested: groups of episodes of segments of turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from echelon.spans import Spans, SpanTree

Nested = list[list[list[float]]]


@dataclass(frozen=True)
class Forest:
    """A tree with `group` > `episode` > `segment` over turns; item order may be shuffled.

    lengths: turns of each episode, a list a group. slots: int64 [N], the item at each place of the nested order.
    """

    tree: SpanTree
    lengths: list[list[int]]
    slots: Tensor

    @property
    def size(self) -> int:
        return self.tree.size

    def nest(self, column: Tensor) -> Nested:
        """A column of turns [N] as group → episode → turn."""
        flat = iter(column[self.slots].tolist())
        return [[[next(flat) for _ in range(length)] for length in group] for group in self.lengths]

    def nest_episodes(self, column: Tensor) -> list[list[float]]:
        """A column of episodes as group → episode."""
        flat = iter(column.tolist())
        return [[next(flat) for _ in group] for group in self.lengths]

    def pack(self, nested: Nested) -> Tensor:
        """The inverse of `nest`: float64 [N]."""
        flat = torch.tensor([x for group in nested for episode in group for x in episode], dtype=torch.float64)
        return torch.empty_like(flat).index_copy_(0, self.slots, flat)


def forest_of(groups: list[list[dict[str, Any]]], switch: str = "switch") -> Forest:
    """The forest of nested episodes, dicts of equally long lists: `switch`, where present, starts a segment."""
    lengths = [[len(episode["reward"]) for episode in group] for group in groups]
    episodes = [episode for group in groups for episode in group]
    starts = [
        t == 0 or bool(e.get(switch, [0] * len(e["reward"]))[t]) for e in episodes for t in range(len(e["reward"]))
    ]
    tree = SpanTree(
        {
            "group": Spans.from_lengths([sum(group) for group in lengths]),
            "episode": (Spans.from_lengths([len(e["reward"]) for e in episodes]), "group"),
            "segment": (Spans.from_starts(torch.tensor(starts)), "episode"),
        }
    )
    return Forest(tree, lengths, torch.arange(tree.size))


def column(groups: list[list[dict[str, Any]]], name: str, default: float = 1.0) -> Tensor:
    """A list of the episodes as a packed column, float64 [N]; `default` where an episode has none."""
    rows = [e.get(name, [default] * len(e["reward"])) for group in groups for e in group]
    return torch.tensor([float(x) for row in rows for x in row], dtype=torch.float64)


def scalars(groups: list[list[dict[str, Any]]], name: str, default: float = 0.0) -> Tensor:
    """A scalar of the episodes, float64 [n]."""
    return torch.tensor([float(e.get(name, default)) for group in groups for e in group], dtype=torch.float64)


@st.composite
def forests(draw: st.DrawFn, max_groups: int = 3, max_episodes: int = 4, max_turns: int = 5) -> Forest:
    """One-turn episodes, one-episode groups and permuted item orders included."""
    lengths = draw(
        st.lists(
            st.lists(st.integers(1, max_turns), min_size=1, max_size=max_episodes), min_size=1, max_size=max_groups
        )
    )
    flat = [length for group in lengths for length in group]
    starts: list[bool] = []
    for length in flat:
        starts += [True, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]
    episode = Spans.from_lengths(flat)
    group = Spans.from_lengths([sum(g) for g in lengths])
    segment = Spans.from_starts(torch.tensor(starts))
    slots = torch.arange(episode.size)
    if draw(st.booleans()):
        slots = slots[torch.tensor(draw(st.permutations(range(episode.size))))]
    place: Callable[[Spans], Spans] = lambda spans: Spans(spans.offsets, slots)  # noqa: E731
    tree = SpanTree(
        {"group": place(group), "episode": (place(episode), "group"), "segment": (place(segment), "episode")}
    )
    return Forest(tree, lengths, slots)


def columns(draw: st.DrawFn, size: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    """A float64 column of halves, so that ties and equal groups occur."""
    return (
        torch.tensor(
            draw(st.lists(st.integers(int(2 * low), int(2 * high)), min_size=size, max_size=size)), dtype=torch.float64
        )
        / 2
    )
