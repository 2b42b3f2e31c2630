"""The forest of contexts: texts share every prefix that was recorded before, and nothing has to be declared.

A node holds tokens and hangs from a place: (node, tokens of it that are kept). Nodes are never split: what leaves a
node half-way hangs inside it. Contexts are merged with what exists; outputs always get a node of their own, and a
context that goes on from a text of its own episode goes through that text's output, even if another episode said the
same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from echelon.language._layout import common_prefix

Place = tuple[int, int]
ROOT: Place = (0, 0)  # node 0 is empty and above everything; outside, nodes count from it: node 1 is row 0


class Trie:
    """Grows by one call after the other; the result depends on their sequence."""

    def __init__(self) -> None:
        self.parent, self.cut, self.start, self.length = [-1], [0], [0], [0]
        self.pool: list[np.ndarray] = []  # distinct node texts
        self._pooled: dict[bytes, int] = {}  # where each of them starts
        self._size = 0
        self._tokens: list[np.ndarray] = [np.empty(0, dtype=np.int32)]
        self._hanging: list[dict[int, dict[int, list[int]]]] = [{}]  # of a node: by cut and first token, children

    def context(self, text: np.ndarray, own: OwnTexts | None = None, stream: int = -1) -> Place:
        """The place where `text`, int32, ends; what is not there yet is added as one node.

        own: the texts of its episode so far. The longest of the same stream that `text` goes on from is followed, else
        the longest of the episode, else the longest match anywhere; of equally long ones the newest.
        """
        place, known = own.resume(text, stream) if own is not None else (ROOT, 0)
        place, known = self._longest(text, place, known)
        return place if known == len(text) else self._add(place, text[known:])

    def output(self, place: Place, text: np.ndarray) -> Place:
        """The end of a new node for `text`, int32, after `place`."""
        return self._add(place, text)

    def _longest(self, text: np.ndarray, place: Place, known: int) -> tuple[Place, int]:
        """The place below `place`, which ends text[:known], that matches most of `text`, and how much that is."""
        best, best_node, best_cut = known, *place
        open_places = [(*place, known)]
        while open_places:
            node, cut, done = open_places.pop()
            same = common_prefix(self._tokens[node][cut:], text[done:])
            if (done + same, node) > (best, best_node):
                best, best_node, best_cut = done + same, node, cut + same
            for at, children in self._between(node, cut, cut + same):
                reached = done + at - cut
                if reached < len(text):
                    open_places += [(child, 0, reached) for child in children.get(int(text[reached]), ())]
        return (best_node, best_cut), best

    def _between(self, node: int, low: int, high: int) -> Iterator[tuple[int, dict[int, list[int]]]]:
        hanging = self._hanging[node]
        if len(hanging) <= 1 + high - low:
            return ((at, children) for at, children in hanging.items() if low <= at <= high)
        return ((at, hanging[at]) for at in range(low, high + 1) if at in hanging)

    def _add(self, place: Place, text: np.ndarray) -> Place:
        parent, cut = place
        node = len(self.parent)
        raw = text.tobytes()
        start = self._pooled.get(raw)
        if start is None:
            start = self._pooled[raw] = self._size
            self.pool.append(text)
            self._size += len(text)
        self.parent.append(parent)
        self.cut.append(cut)
        self.start.append(start)
        self.length.append(len(text))
        self._tokens.append(text)
        self._hanging.append({})
        if len(text):
            self._hanging[parent].setdefault(cut, {}).setdefault(int(text[0]), []).append(node)
        return node, len(text)


class OwnTexts:
    """The texts (context and output) of one episode's calls so far, and where each ends."""

    def __init__(self) -> None:
        self._all: list[tuple[bytes, Place]] = []
        self._of_stream: dict[int, list[tuple[bytes, Place]]] = {}

    def add(self, stream: int, text: np.ndarray, place: Place) -> None:
        entry = (text.tobytes(), place)
        self._all.append(entry)
        self._of_stream.setdefault(stream, []).append(entry)

    def resume(self, text: np.ndarray, stream: int) -> tuple[Place, int]:
        """The end of the longest (then newest) text that `text` begins with, and its length; ROOT and 0 without any."""
        raw = text.tobytes()
        for entries in (self._of_stream.get(stream, []), self._all):
            longest, found = 0, ROOT
            for known, place in reversed(entries):
                if longest < len(known) and raw.startswith(known):
                    longest, found = len(known), place
            if longest:
                return found, longest // text.itemsize
        return ROOT, 0
