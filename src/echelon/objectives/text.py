"""Scores of a text against a reference text, in [0, 1]: plain functions of two strings."""

from __future__ import annotations

import string
from collections import Counter
from typing import Literal

_MARKS = str.maketrans("", "", string.punctuation)


def answer_words(text: str) -> list[str]:
    """The words of an answer that count: lower case, without ASCII punctuation and articles (the SQuAD convention)."""
    return [word for word in text.lower().translate(_MARKS).split() if word not in ("a", "an", "the")]


def exact_match(prediction: str, gold: str) -> float:
    """1 if both have the same answer words in the same order."""
    return float(answer_words(prediction) == answer_words(gold))


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the answer words as multisets: 2 · common / (words of both).

    Yes and no are answers of their own: where one side is just that, only an exact match counts, so that "yes it is"
    scores 0 against "yes". Two empty answers score 0.
    """
    a, b = answer_words(prediction), answer_words(gold)
    if a != b and ({" ".join(a), " ".join(b)} & {"yes", "no"}):
        return 0.0
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b)) if common else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1: 2 · LCS / (words of both), LCS the longest common subsequence of lower-cased words."""
    a, b = prediction.lower().split(), reference.lower().split()
    row = [0] * (len(b) + 1)  # LCS of the words of a so far and each prefix of b
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0


def contains_answer(text: str, gold: str, match: Literal["characters", "words"] = "characters") -> float:
    """1 if the answer words of `gold` stand in `text` one after the other.

    "characters", as released with arXiv 2512.12716, also finds "5" inside "1952"; "words" does not. An empty gold
    answer stands nowhere.
    """
    inside, wanted = " ".join(answer_words(text)), " ".join(answer_words(gold))
    if match == "words":
        inside, wanted = f" {inside} ", f" {wanted} " if wanted else ""
    return float(bool(wanted) and wanted in inside)
