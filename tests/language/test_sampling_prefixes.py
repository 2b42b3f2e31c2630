"""The tree of shared beginnings, against sets of plain texts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from echelon.language._prefixes import PrefixTree, plan

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10).map(tuple), min_size=1, max_size=8)


def text(node):
    return tuple(t for above in node.path() for t in above.tokens)


def content(tokens, start):
    """Keys and values that tell token and position: [1, 1, 2, n] and [1, 1, n, 2]."""
    key = torch.tensor([[t, start + k] for k, t in enumerate(tokens)], dtype=torch.float32)
    return key.T[None, None].contiguous(), key[None, None].contiguous()


def read_all(tree, ends):
    """Fill all pending nodes as the engine does, piece by piece; returns how many tokens were read."""
    waves, read = plan(ends, worth=3)
    count = 0
    for pieces in waves:
        for piece in pieces:
            assert not any(node.pending for node in piece.above.path())
            assert piece.past <= piece.above.stop
            count += len(piece.tokens)
        for piece in pieces:
            for node in piece.nodes:
                if node.pending:
                    tree.fill(node, *content(node.tokens, node.start))
    for end in ends:
        piece, place = read[end]
        before = text(piece.above)[: piece.past]
        assert before + piece.tokens[: place + 1] == text(end)
    return count


@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(0, 400))
def test_texts_are_found_again_with_the_right_contents(batches, limit):
    tree = PrefixTree(limit)
    for texts in batches:
        ends = [tree.insert(ids) for ids in texts]
        assert [text(end) for end in ends] == texts
        count = read_all(tree, ends)
        assert count <= sum(map(len, texts)) and count >= 1
        assert not any(end.pending for end in ends)
        for end in ends:
            for node in end.path():
                key, value = content(node.tokens, node.start)
                assert torch.equal(node.key, key) and torch.equal(node.value, value)
        check_memory(tree)
        tree.evict()
        assert tree.bytes <= limit
        check_memory(tree)


def check_memory(tree):
    """Bytes are those of the nodes in the tree, every node is listed as recent after its children."""
    order = {node: k for k, node in enumerate(tree._recent)}
    stack, seen, held = [tree.root], 0, 0
    while stack:
        node = stack.pop()
        for first, child in node.children.items():
            assert first == child.tokens[0] and child.parent is node and child.start == node.stop
            assert node is tree.root or order[child] < order[node]
            stack.append(child)
            seen += 1
            held += 0 if child.key is None else child.key.nbytes + child.value.nbytes
            assert child.key is None or child.key.untyped_storage().nbytes() == child.key.nbytes
    assert (seen, held) == (len(order), tree.bytes)


def test_what_was_used_last_is_kept():
    tree = PrefixTree(limit=4 * 16)  # four tokens
    for ids in ((1, 1), (2, 2)):
        read_all(tree, [tree.insert(ids)])
    assert tree.evict() == 0
    tree.insert((1, 1))
    read_all(tree, [tree.insert((3, 3))])
    assert tree.evict() == 2
    assert not tree.insert((1, 1)).pending and not tree.insert((3, 3)).pending and tree.insert((2, 2)).pending


def test_a_split_node_keeps_its_end():
    tree = PrefixTree(1000)
    whole = tree.insert((1, 2, 3, 4))
    upper = tree.insert((1, 2))
    assert text(whole) == (1, 2, 3, 4) and whole.parent is upper and whole.tokens == (3, 4)
    below = tree.insert((3, 9), below=upper)
    assert text(below) == (1, 2, 3, 9) and whole.tokens == (4,) and text(whole) == (1, 2, 3, 4)


def test_shared_beginnings_are_read_once_if_that_saves_enough():
    tree = PrefixTree(1000)
    ends = [tree.insert((0,) * 10 + (k, k)) for k in (1, 2, 3)]
    waves, _ = plan(ends, worth=20)
    assert [[len(piece.tokens) for piece in wave] for wave in waves] == [[10], [2, 2, 2]]
    waves, _ = plan(ends, worth=21)
    assert [[len(piece.tokens) for piece in wave] for wave in waves] == [[12, 12, 12]]
    read_all(tree, ends)
    waves, read = plan([ends[0], ends[0]], worth=20)
    assert [[piece.tokens for piece in wave] for wave in waves] == [[(1,)]] and read[ends[0]][1] == 0
