"""Texts that share beginnings: a radix tree of token ids that holds the keys and values of attention, each once.

A node without keys is pending: its tokens have still to be read by the model. `plan` turns the pending nodes below some
texts into pieces that can be read together, a piece after those that it continues.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Ids = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Node:
    """Consecutive tokens that all texts below share."""

    tokens: Ids
    start: int
    """Tokens before this node."""
    parent: Node | None
    key: Tensor | None = None
    """[layers, heads, size, tokens]; None while pending."""
    value: Tensor | None = None
    """[layers, heads, tokens, size]"""
    children: dict[int, Node] = field(default_factory=dict)
    """First token → child."""

    @property
    def stop(self) -> int:
        """Tokens up to the end of this node."""
        return self.start + len(self.tokens)

    @property
    def pending(self) -> bool:
        """Whether its keys and values have still to be computed."""
        return self.key is None and bool(self.tokens)

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.tokens:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixTree:
    """All texts whose keys and values are held; those unused for longest are dropped beyond `limit` bytes."""

    def __init__(self, limit: int):
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        self.root = Node((), 0, None)
        self.bytes = 0
        self._recent: dict[
            Node, None
        ] = {}  # every node but the root, least recently used first, children before parents

    def insert(self, ids: Ids, below: Node | None = None) -> Node:
        """The node at which the text `ids` (following the text of `below`) ends; what is new is pending.

        Nodes are split where texts diverge or end. A node that was returned keeps its end.
        """
        node, done = below or self.root, 0
        while done < len(ids):
            child = node.children.get(ids[done])
            if child is None:
                child = node.children[ids[done]] = Node(ids[done:], node.stop, node)
            else:
                shared = _common(child.tokens, ids[done : done + len(child.tokens)])
                if shared < len(child.tokens):
                    child = self._split(child, shared)
            node, done = child, done + len(child.tokens)
        self._touch(node)
        return node

    def fill(self, node: Node, key: Tensor, value: Tensor) -> None:
        """Give a pending node its keys and values."""
        node.key, node.value = key, value
        self.bytes += key.nbytes + value.nbytes

    def evict(self) -> int:
        """Drop the leaves unused for longest until the limit is kept; returns how many tokens were dropped."""
        dropped = 0
        while self.bytes > self.limit:
            node = next(iter(self._recent))  # touched before its ancestors, and its children are gone: a leaf
            del self._recent[node]
            assert node.parent is not None
            del node.parent.children[node.tokens[0]]
            if node.key is not None and node.value is not None:
                self.bytes -= node.key.nbytes + node.value.nbytes
                dropped += len(node.tokens)
        return dropped

    def _touch(self, node: Node | None) -> None:
        while node is not None and node.tokens:
            self._recent.pop(node, None)
            self._recent[node] = None
            node = node.parent

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node` after `at` tokens; it becomes the lower part, the upper part is returned, to be touched."""
        assert node.parent is not None
        upper = Node(node.tokens[:at], node.start, node.parent)
        node.parent.children[node.tokens[0]] = upper
        upper.children[node.tokens[at]] = node
        node.tokens, node.start, node.parent = node.tokens[at:], node.start + at, upper
        if node.key is not None and node.value is not None:  # copies, so that either can be freed
            upper.key, upper.value = node.key[..., :at].clone(), node.value[..., :at, :].clone()
            node.key, node.value = node.key[..., at:].clone(), node.value[..., at:, :].clone()
        return upper


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens that the model reads in one row, given the keys and values of what precedes them."""

    above: Node
    """Where the preceding text ends, or one of its nodes."""
    past: int
    """Tokens of the preceding text."""
    nodes: tuple[Node, ...]
    """The pending nodes that are read, one below the other; (): one token is read once more."""
    tokens: Ids


def plan(ends: Iterable[Node], worth: int) -> tuple[list[list[Piece]], dict[Node, tuple[Piece, int]]]:
    """What to read so that the model has seen every text that ends at one of `ends`, and its last token just now.

    Returns waves of pieces, where a piece continues at most those of earlier waves; and for each end the piece that
    contains its last token, and the place of that token in it. Tokens that several texts share are read once if that
    saves at least `worth` tokens, else together with each continuation: a wave costs something, too.
    """
    ends = list(dict.fromkeys(ends))
    below: defaultdict[Node, list[Node]] = defaultdict(list)  # pending children that are wanted
    tops: dict[Node, None] = {}
    for end in ends:
        node = end
        while node.pending and node not in tops:
            assert node.parent is not None
            if not node.parent.pending:
                tops[node] = None
            elif node in below[node.parent]:
                break
            else:
                below[node.parent].append(node)
            node = node.parent
    waves: list[list[Piece]] = []
    read: dict[Node, tuple[Piece, int]] = {}
    open_ends: list[tuple[tuple[Node, ...], int]] = [((top,), 0) for top in reversed(tops)]
    while open_ends:
        chain, wave = open_ends.pop()
        further = below[chain[-1]]
        saved = (len(further) - 1) * (chain[-1].stop - chain[0].start)
        if further and saved < worth:
            open_ends += [((*chain, child), wave) for child in reversed(further)]
            continue
        _add(waves, wave, _piece(chain), read)
        open_ends += [((child,), wave + 1) for child in reversed(further)]
    for end in ends:
        if end not in read:  # all keys are known, but not what follows the last token
            _add(waves, 0, Piece(end, end.stop - 1, (), end.tokens[-1:]), read, end)
    return waves, read


def _piece(chain: Sequence[Node]) -> Piece:
    assert chain[0].parent is not None
    return Piece(chain[0].parent, chain[0].start, tuple(chain), tuple(t for node in chain for t in node.tokens))


def _add(
    waves: list[list[Piece]],
    wave: int,
    piece: Piece,
    read: dict[Node, tuple[Piece, int]],
    end: Node | None = None,
) -> None:
    while len(waves) <= wave:
        waves.append([])
    waves[wave].append(piece)
    if end is not None:
        read[end] = piece, 0
    for node in piece.nodes:
        read.setdefault(node, (piece, node.stop - piece.past - 1))


def _common(a: Ids, b: Ids) -> int:
    """How many tokens `a` and `b` begin with in common."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # a[:low] == b[:low], and a[:high + 1] != b[:high + 1]
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
