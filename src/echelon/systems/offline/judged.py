"""Pairs for a classifier of progress: some as they are, others made wrong in three ways.

Source: GHIL-Glue (arXiv 2410.20018); its wrong sentences and goals come from any permutation, see `deranged` for ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echelon.spans import Spans

SHARES = (0.5, 0.2, 0.2)
"""Of a batch's rows: real progress, wrong sentences, reversed pairs; the rest have wrong goals."""
KINDS = ("progress", "sentence", "reverse", "goal")


def slices(batch: int) -> tuple[slice, slice, slice, slice]:
    """Rows of a batch that are KINDS, in this order."""
    sizes = [int(share * batch) for share in SHARES]
    edges = [0, sizes[0], sizes[0] + sizes[1], sum(sizes), batch]
    return slice(*edges[0:2]), slice(*edges[1:3]), slice(*edges[2:4]), slice(*edges[3:5])


def deranged(keys: Tensor, generator: torch.Generator) -> Tensor:
    """A random permutation int64[n] of `keys` int64[n] in which as few rows as possible get an equal key; see below.

    Rows with equal keys stand side by side on a ring, which is turned by at least the largest number of equal ones: if
    no key has more than half of the rows, every row gets another key.
    """
    shuffled = torch.randperm(len(keys), generator=generator)
    if not len(keys):
        return shuffled
    groups = Spans.by_key(keys.cpu()[shuffled])
    ring = shuffled if groups.order is None else shuffled[groups.order]
    low = groups.longest
    turn = low + int(torch.randint(max(len(keys) - 2 * low, 0) + 1, (), generator=generator))
    return torch.empty_like(ring).index_put_((ring,), ring.roll(-turn))


def judged_pairs(
    states: Tensor, later: Tensor, words: Tensor, sentence_from: Tensor, goal_from: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the classifier sees: s and g [B, O], int64[B] the sentences, and labels [B], 1 for progress.

    `states`, `later` [B, O] and `words` int64[B] are pairs on the way to their sentences. By `slices`: the pairs as
    they are; with the sentences of the rows `sentence_from` of their slice; with both states exchanged; with the later
    states of the rows `goal_from` of their slice.
    """
    _, sentence, reverse, goal = slices(len(words))
    s, g, told = states.clone(), later.clone(), words.clone()
    told[sentence] = words[sentence][sentence_from]
    s[reverse], g[reverse] = later[reverse], states[reverse]
    g[goal] = later[goal][goal_from]
    labels = (torch.arange(len(words), device=words.device) < sentence.start).to(states.dtype)
    return s, g, told, labels
