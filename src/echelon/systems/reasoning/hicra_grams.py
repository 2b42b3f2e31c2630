"""Strategic grams of HICRA: the phrases by which a solution plans, mined from a corpus and found again in completions.

A gram is a string of 3 to 5 lower-case words with single spaces. Mining runs once, offline, on correct solutions; the
result depends on the domain, and its token ids on the tokenizer: keep both with the run. Source: arXiv 2509.03646.

>>> grams = mine(solutions, lambda grams: kmeans(encoder(grams)).tolist())
>>> planning = match_words([tokenizer.decode([i]) for i in completion], grams)
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from echelon.spans import Spans

WORD = re.compile(r"[\w']+")


def words(text: str) -> list[str]:
    """The lower-case words of a text; letters, digits, _ and ' make words, all else separates them."""
    return [word.lower() for word in WORD.findall(text)]


def mine(
    solutions: Sequence[str],
    cluster: Callable[[list[str]], Sequence[Hashable]] | None = None,
    *,
    sizes: Sequence[int] = (3, 4, 5),
    top: float = 0.2,
    max_repetition: float | None = 2.0,
) -> list[str]:
    """The grams of the clusters that most solutions contain, sorted.

    cluster: the cluster of each distinct gram (given in sorted order), by meaning: `kmeans` of sentence embeddings.
        None: every gram is its own cluster.
    top: the share of clusters that is kept, rounded up, by how many solutions hold at least one of their grams; ties go
        to the cluster of the first gram.
    max_repetition: of those, clusters that occur more often than this in a solution that has them are calculation, not
        planning. The criterion is published, the number is reconstructed; None: no such test.
    """
    found: dict[str, list[int]] = defaultdict(list)  # gram → the solution of each occurrence
    for index, solution in enumerate(solutions):
        text = words(solution)
        for size in sizes:
            for start in range(len(text) - size + 1):
                found[" ".join(text[start : start + size])].append(index)
    grams = sorted(found)
    members: dict[Hashable, list[str]] = defaultdict(list)
    for gram, name in zip(grams, grams if cluster is None else cluster(grams), strict=True):
        members[name].append(gram)
    places = {name: [index for gram in own for index in found[gram]] for name, own in members.items()}
    frequent = sorted(places, key=lambda name: -len(set(places[name])))  # stable: ties as the grams are sorted
    kept = [
        name
        for name in frequent[: math.ceil(top * len(frequent) - 1e-9)]
        if max_repetition is None or len(places[name]) <= max_repetition * len(set(places[name]))
    ]
    return sorted(gram for name in kept for gram in members[name])


def kmeans(
    points: Tensor, clusters: int = 100, *, rounds: int = 30, generator: torch.Generator | None = None
) -> Tensor:
    """The cluster of each of n points, [n, d] → int64 [n]: Lloyd's rounds from centres drawn far apart (k-means++)."""
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    clusters = min(clusters, len(points))
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype, device=points.device)
    for _ in range(clusters - 1):
        nearest = torch.minimum(nearest, (points - centres[-1]).square().sum(-1))
        if not nearest.any():
            break  # fewer distinct points than clusters
        centres = torch.cat([centres, points[torch.multinomial(nearest, 1, generator=generator)]])
    label = torch.cdist(points, centres).argmin(-1)
    for _ in range(rounds):
        total = torch.zeros_like(centres).index_add_(0, label, points)
        count = torch.bincount(label, minlength=len(centres))[:, None]
        centres = torch.where(count > 0, total / count.clamp(min=1), centres)
        before, label = label, torch.cdist(points, centres).argmin(-1)
        if torch.equal(before, label):
            break
    return label


def match_words(tokens: Sequence[str], grams: Sequence[str]) -> Tensor:
    """bool [N]: which tokens of one completion, given as their texts, touch an occurrence of a gram in the joined text.

    Capitals, punctuation and leading spaces do not matter, nor how words are cut into tokens.
    """
    found = [(match.group().lower(), match.start(), match.end()) for match in WORD.finditer("".join(tokens))]
    by_size: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for gram in grams:
        by_size[len(gram.split())].add(tuple(gram.lower().split()))
    ends = torch.tensor([len(token) for token in tokens], dtype=torch.int64).cumsum(0).tolist()
    planning = torch.zeros(len(tokens), dtype=torch.bool)
    for size, wanted in by_size.items():
        for start in range(len(found) - size + 1):
            if tuple(word for word, _, _ in found[start : start + size]) in wanted:
                first, last = found[start][1], found[start + size - 1][2] - 1  # characters
                planning[bisect_right(ends, first) : bisect_right(ends, last) + 1] = True
    return planning


def match_ids(completions: Spans, ids: Tensor, grams: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(bool [N]: tokens inside an occurrence of a gram; int64 [K]: how often each gram occurs, for its entropy).

    ids: int64 [N], the emitted tokens.    grams: the token ids of K distinct grams. Exact ids only: a variant with a
    leading space or a capital is another gram. Occurrences may overlap and do not cross the end of a completion.
    """
    planning = torch.zeros(completions.size, dtype=torch.bool, device=ids.device)
    counts = torch.zeros(len(grams), dtype=torch.int64, device=ids.device)
    for size in sorted({len(gram) for gram in grams} - {0}):
        which = torch.tensor([k for k, gram in enumerate(grams) if len(gram) == size], device=ids.device)
        wanted = torch.tensor([list(grams[k]) for k in which.tolist()], dtype=ids.dtype, device=ids.device)
        windows = completions.windows(size)
        for column in range(size):  # most windows fall out at once
            windows = windows[torch.isin(ids[windows[:, column]], wanted[:, column])]
        code = torch.cat([wanted, ids[windows]]).unique(dim=0, return_inverse=True)[1]
        gram_of = torch.full((len(code),), -1, device=ids.device).index_copy_(0, code[: len(which)], which)
        gram = gram_of[code[len(which) :]]
        planning[windows[gram >= 0].flatten()] = True
        counts += torch.bincount(gram[gram >= 0], minlength=len(grams))
    return planning, counts
