"""Strategic grams: mined where many solutions share a phrase, found again in token ids and in texts."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from echelon.spans import Spans
from echelon.systems.reasoning.hicra_grams import kmeans, match_ids, match_words, mine, words


def test_matching_ids__paper() -> None:
    planning, counts = match_ids(Spans([0, 6]), torch.tensor([7, 1, 2, 3, 4, 9]), [[1, 2, 3], [3, 4]])
    assert planning.tolist() == [False, True, True, True, True, False]
    assert counts.tolist() == [1, 1]


def test_a_gram_longer_than_the_completion_and_no_gram_match_nothing__paper() -> None:
    ids = torch.tensor([1, 2, 1, 2])
    for grams in ([[1, 2, 1]], [], [[5, 6]]):
        planning, counts = match_ids(Spans.from_lengths([2, 2]), ids, grams)  # nor across the end of a completion
        assert not planning.any()
        assert counts.tolist() == [0] * len(grams)


def naive(rows: list[list[int]], grams: list[list[int]]) -> tuple[list[bool], list[int]]:
    planning, counts = [], [0] * len(grams)
    for row in rows:
        mask = [False] * len(row)
        for (k, gram), start in itertools.product(enumerate(grams), range(len(row))):
            if row[start : start + len(gram)] == gram:
                counts[k] += 1
                mask[start : start + len(gram)] = [True] * len(gram)
        planning += mask
    return planning, counts


@given(data=st.data())
def test_ids_match_as_in_a_naive_search(data: st.DataObject) -> None:
    row = st.lists(st.integers(0, 2), min_size=1, max_size=8)
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    grams = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=4, unique_by=tuple))
    flat = torch.tensor([i for r in rows for i in r])
    order = torch.tensor(data.draw(st.permutations(range(len(flat)))))
    spans = Spans(Spans.from_lengths([len(r) for r in rows]).offsets, order)
    ids = torch.empty_like(flat).index_copy_(0, order, flat)
    planning, counts = match_ids(spans, ids, grams)
    expected, occurrences = naive(rows, grams)
    assert planning[order].tolist() == expected
    assert counts.tolist() == occurrences


def test_words_match_whatever_the_tokens() -> None:
    grams = ["let us work", "is it right"]
    for tokens, expected in (
        (["Let", " us", "  work", " on", "."], [1, 1, 1, 0, 0]),
        (["So: Le", "t us, wo", "rk", "shop"], [0, 0, 0, 0]),
        (["So: Le", "t us, wo", "rk", " now"], [1, 1, 1, 0]),
        (["", "Is it right", "?", "", "IS", " ", "it", "\n", "right"], [0, 1, 0, 0, 1, 1, 1, 1, 1]),
        ([], []),
    ):
        assert match_words(tokens, grams).long().tolist() == expected


CORPUS = [
    "Let us work backwards from the answer. 3 plus 4 is 7 and 3 plus 4 is 7 and 3 plus 4 is 7",
    "Suppose n is even, let us work backwards: 3 plus 4 is 7 and then 3 plus 4 is 7",
    "First a table. Then let us work backwards, and 3 plus 4 is 7, again 3 plus 4 is 7",
    "A long sum follows here without any plan",
]


def test_mining_keeps_what_many_solutions_say_once__paper() -> None:
    shared = ["3 plus 4", "4 is 7", "let us work", "plus 4 is", "us work backwards"]
    assert mine(CORPUS, sizes=[3], top=0.13, max_repetition=None) == shared
    assert mine(CORPUS, sizes=[3], top=0.13) == ["let us work", "us work backwards"]
    assert mine([], top=0.2) == mine(["two words"]) == []


def test_mining_counts_the_solutions_of_a_cluster__paper() -> None:
    solutions = ["try it now", "attempt it now", "go on then", "go on then go on then"]

    def synonyms(grams: list[str]) -> list[Any]:
        return ["try" if gram.split()[0] in ("try", "attempt") else gram for gram in grams]

    assert mine(solutions, synonyms, sizes=[3], top=0.25) == ["attempt it now", "go on then", "try it now"][::2]
    assert mine(solutions, synonyms, sizes=[3], top=0.3) == ["attempt it now", "go on then", "try it now"]


def test_kmeans_finds_separate_clusters_and_survives_few_points() -> None:
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randn(60, 2, generator=generator) + 20 * torch.eye(2).repeat(30, 1)
    label = kmeans(blobs, 2, generator=generator)
    assert len(set(label[::2].tolist())) == len(set(label[1::2].tolist())) == 1
    assert label[0] != label[1]
    assert sorted(set(kmeans(torch.tensor([[0.0], [1.0], [1.0]]), 100).tolist())) == [0, 1]
    assert kmeans(torch.empty(0, 3)).tolist() == []


def test_mined_grams_are_found_again() -> None:
    tokens = ["Now", " let", " us", " work", " backwards", "."]
    assert words("Now, LET us work_1's") == ["now", "let", "us", "work_1's"]
    assert match_words(tokens, mine(CORPUS, top=0.05)).tolist() == [False] + [True] * 4 + [False]
