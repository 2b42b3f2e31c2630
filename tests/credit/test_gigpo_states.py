"""State keys of observation texts against first-fit clusters and the definition of the longest common subsequence."""

from __future__ import annotations

from difflib import SequenceMatcher
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import credit_language as ref
from turn_trees import flat, tree_of

from echelon.credit.turns import gigpo, step_groups
from echelon.errors import DataError, UsageError
from echelon.spans import Spans
from echelon.systems.agents.gigpo_states import exact_keys, similar_keys


def clusters(keys: torch.Tensor) -> list[list[int]]:
    spans = Spans.by_key(keys)
    items = torch.arange(len(keys)) if spans.order is None else spans.order
    return [part.tolist() for part in items.split(spans.lengths.tolist())]


def lcs_ratio(a: str, b: str) -> float:
    @cache
    def common(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return common(i + 1, j + 1) + 1 if a[i] == b[j] else max(common(i + 1, j), common(i, j + 1))

    return 2 * common(0, 0) / (len(a) + len(b)) if a or b else 1.0


TEXTS = st.lists(st.text("abc", max_size=6), min_size=1, max_size=8)


def test_exact_keys_count_by_first_appearance() -> None:
    assert exact_keys(["hall", "desk", "hall", "bed"]).tolist() == [0, 1, 0, 2]
    assert exact_keys([b"\x00", b"\x01", b"\x00"]).tolist() == [0, 1, 0]
    assert exact_keys([]).dtype == torch.int64


@given(texts=TEXTS, threshold=st.sampled_from([0.3, 0.6, 0.95]))
def test_similar_keys_are_first_fit_of_difflib__code(texts: list[str], threshold: float) -> None:
    keys = similar_keys(texts, Spans.from_lengths([len(texts)]), threshold=threshold)
    assert clusters(keys) == ref.gigpo_clusters(texts, threshold)


@given(texts=TEXTS, threshold=st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_similar_keys_by_common_subsequence_are_first_fit__paper(texts: list[str], threshold: float) -> None:
    keys = similar_keys(texts, Spans.from_lengths([len(texts)]), threshold=threshold, similarity="lcs")
    expected: list[list[int]] = []
    for n, text in enumerate(texts):
        home = next((c for c in expected if lcs_ratio(text, texts[c[0]]) >= threshold), None)
        expected.append([n]) if home is None else home.append(n)
    assert clusters(keys) == expected


def test_similar_keys_stay_inside_groups_and_follow_their_order() -> None:
    texts = ["red door", "red doors", "red door", "blue", "red doors"]
    groups = Spans.by_key(torch.tensor([0, 1, 1, 0, 0]))
    assert similar_keys(texts, groups, threshold=0.9).tolist() == [0, 2, 2, 1, 0]


def test_a_text_is_compared_with_the_founder_not_the_founder_with_it__code() -> None:
    one = Spans.from_lengths([2])
    assert SequenceMatcher(None, "diet", "tide").ratio() == 0.5
    assert SequenceMatcher(None, "tide", "diet").ratio() == 0.25
    assert similar_keys(["tide", "diet"], one, threshold=0.5).tolist() == [0, 0]
    assert similar_keys(["diet", "tide"], one, threshold=0.5).tolist() == [0, 1]


def test_difflib_ignores_frequent_characters_of_long_texts__code() -> None:
    room = "You are in a room. There is a drawer 1 and a cabinet 2. " * 5
    texts, one = [room, "!" + room], Spans.from_lengths([2])
    assert similar_keys(texts, one, threshold=0.9).tolist() == [0, 1]
    assert similar_keys(texts, one, threshold=0.9, similarity="lcs").tolist() == [0, 0]


def test_gigpo_of_similar_states__paper() -> None:
    case = ref.CASES["gigpo"][4]
    groups = case["inputs"]["groups"]
    tree = tree_of(*[[len(e["reward"]) for e in group] for group in groups])
    texts = [state for group in groups for e in group for state in e["state"]]
    keys = similar_keys(texts, tree["group"], threshold=case["inputs"]["similarity"])
    credit = gigpo(tree, reward=flat([[e["reward"] for e in g] for g in groups]), state=keys, gamma=0.5, eps=None)
    torch.testing.assert_close(credit.advantage, flat(case["expected"]["total"]))


def test_step_groups_of_texts() -> None:
    tree = tree_of([2], [2])
    assert step_groups(tree, state=exact_keys(["a", "a", "a", "b"])).ids.tolist() == [0, 0, 1, 2]


def test_what_does_not_fit_is_refused() -> None:
    two = Spans.from_lengths([2])
    with pytest.raises(DataError, match="1 texts for 2 turns"):
        similar_keys(["a"], two)
    with pytest.raises(DataError, match=r"threshold must lie in \(0, 1\], got 0"):
        similar_keys(["a", "b"], two, threshold=0)
    with pytest.raises(UsageError, match="unknown similarity 'cosine'"):
        similar_keys(["a", "b"], two, similarity="cosine")  # type: ignore[arg-type]
