"""Views of random records: every item exactly once, and in each the text that a call has by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from record_reference import Naive, build, episodes, naive

from echelon.errors import DataError
from echelon.language.record import Record
from echelon.language.views import View, ancestor_mask, cost, forest, paths, rows

SEEDS = st.integers(0, 10_000)


def texts(view: View) -> list[list[int]]:
    """Of each token of the view: the text that ends with it."""
    ids, parents = view.ids.tolist(), view.parent.tolist()
    found: list[list[int]] = []
    for token, parent in zip(ids, parents, strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
    return found


def chosen_of(record: Record, expected: Naive, seed: int) -> tuple[torch.Tensor, list[int]]:
    """A random mask of calls that can be predicted, and which these are."""
    draw = torch.rand(len(expected.calls), generator=torch.Generator().manual_seed(seed))
    predicted = [bool(one.context) or not one.output for _, one in expected.calls]
    mask = torch.tensor(predicted, dtype=torch.bool) & (draw < 0.8)
    return mask, mask.nonzero()[:, 0].tolist()


@settings(max_examples=80)
@given(SEEDS, st.integers(1, 40))
def test_every_view_predicts_every_item_once(seed: int, budget: int) -> None:
    script = episodes(seed)
    record, expected = build(script), naive(script)
    mask, chosen = chosen_of(record, expected, seed)
    want = {}  # by item: what it is predicted from, and what it is
    for item, (row, token) in enumerate(expected.items):
        call = expected.calls[row][1]
        if row in chosen:
            want[item] = (call.context + call.output[:token], call.output[token])
    for view in (
        rows(record, mask),
        paths(record, mask),
        forest(record, mask, budget),
        forest(record, mask, budget, 10**9),
    ):
        ends = texts(view)
        assert sorted(view.item.tolist()) == list(want)
        for item, at, here, target in zip(
            *(c.tolist() for c in (view.item, view.at, view.here, view.target)), strict=True
        ):
            assert (ends[at], target) == want[item]
            assert ends[here] == [*ends[at], target]
        assert view.position.tolist() == [len(text) - 1 for text in ends]
        assert view.at.tolist() == sorted(view.at.tolist())
        row = view.rows.ids
        inside = view.parent >= 0
        assert torch.equal(row[view.parent[inside]], row[inside]) and bool((view.parent < torch.arange(len(row))).all())


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 40))
def test_what_is_merged(seed: int, budget: int) -> None:
    script = episodes(seed)
    record, expected = build(script), naive(script)
    mask, chosen = chosen_of(record, expected, seed)
    full = [tuple(call.context + call.output) for call in (expected.calls[row][1] for row in chosen) if call.output]
    leaves = [text for text in set(full) if not any(text != other and other[: len(text)] == text for other in full)]

    lines = rows(record, mask)
    assert sorted(tuple(texts(lines)[end]) for end in lines.rows.ends.tolist()) == sorted(full)
    merged = paths(record, mask)
    assert sorted(tuple(texts(merged)[end]) for end in merged.rows.ends.tolist()) == sorted(leaves)

    packed = forest(record, mask, budget, 10**9)
    longest = max(map(len, full), default=0)
    assert packed.rows.longest <= max(budget, longest)
    for tree in range(packed.rows.n):
        start, stop = packed.rows.offsets[tree : tree + 2].tolist()
        inside = [tuple(text) for text in texts(packed)[start:stop]]
        assert len(set(inside)) == len(inside)  # what is shared is there once
        mask_of = ancestor_mask(packed, tree)
        for token, text in enumerate(inside):
            assert {inside[k] for k in mask_of[token].nonzero()[:, 0].tolist()} == {
                text[: n + 1] for n in range(len(text))
            }
    assert len(packed.ids) <= len(merged.ids) <= len(lines.ids)
    assert cost(merged) <= cost(lines) + 1e-9


def test_a_row_that_is_not_there() -> None:
    record = build(episodes(3))
    with pytest.raises(DataError, match="there is no row 99"):
        ancestor_mask(paths(record), 99)
