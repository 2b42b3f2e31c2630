"""Spans against a naive reference that walks Python lists, on random partitions."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.spans import SpanError, Spans, SpanTree

# ---- the reference: a partition is a list of lists of items; a column is a list


def ref_reduce(parts, x, how):
    fold = {"sum": sum, "max": max, "min": min, "mean": statistics.fmean, "count": len}
    fold |= {"first": lambda v: v[0], "last": lambda v: v[-1]}
    return [fold[how]([x[i] for i in part]) for part in parts]


def ref_shift(parts, x, by, fill):
    out = [None] * len(x)
    for s, part in enumerate(parts):
        for k, i in enumerate(part):
            out[i] = x[part[k + by]] if 0 <= k + by < len(part) else fill[s]
    return out


def ref_scan(parts, x, decay, reverse, limit):
    out = [None] * len(x)
    for part in parts:
        for k, i in enumerate(part):
            total, factor = 0.0, 1.0
            for j in range(limit):
                m = k + j if reverse else k - j
                if not 0 <= m < len(part):
                    break
                if j:
                    factor *= decay[part[m - 1] if reverse else part[m]]
                total += factor * x[part[m]]
            out[i] = total
    return out


def ref_siblings(parts, y, stat, use, weight, ddof, singleton):
    out = [None] * len(y)
    for part in parts:
        for i in part:
            inside = [j for j in part if use[j]]
            others = [j for j in inside if j != i]
            seen = others if stat == "loo_mean" else inside
            mass = sum(weight[j] for j in seen)
            if stat == "rank":
                out[i] = sum((y[j], part.index(j)) < (y[i], part.index(i)) for j in inside) if use[i] else -1
            elif not others:
                out[i] = 1.0 if stat == "std" else y[i] if singleton == "zero" else 0.0
            elif stat == "max":
                out[i] = max(y[j] for j in inside)
            elif stat == "quantile":
                out[i] = torch.tensor([y[j] for j in inside], dtype=torch.float64).quantile(0.3).item()
            else:
                mean = sum(weight[j] * y[j] for j in seen) / mass
                square = sum(weight[j] * (y[j] - mean) ** 2 for j in seen)
                spread = math.sqrt(square / (mass - ddof)) if mass > ddof else 1.0
                out[i] = spread if stat == "std" else mean
    return out


# ---- random partitions

HOW = ["sum", "mean", "max", "min", "first", "last", "count"]


@st.composite
def partitions(draw, least=0):
    """(Spans, list of lists): contiguous or in any order, possibly empty."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=least, max_size=7))
    size = sum(lengths)
    order = draw(st.one_of(st.none(), st.permutations(range(size))))
    spans = Spans([sum(lengths[:k]) for k in range(len(lengths) + 1)], order)
    order = list(range(size)) if order is None else order
    return spans, [order[sum(lengths[:k]) : sum(lengths[: k + 1])] for k in range(len(lengths))]


def column(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(result, expected, **tolerance):
    torch.testing.assert_close(result, torch.as_tensor(expected, dtype=result.dtype).reshape(result.shape), **tolerance)


seeds = st.integers(0, 10**6)


@given(partitions(), seeds, st.sampled_from(HOW))
def test_reduce(case, seed, how):
    spans, parts = case
    x = column(seed, spans.size)
    same(spans.reduce(x, how), ref_reduce(parts, x.tolist(), how))
    whole = (x * 3).long()
    expected = ref_reduce(parts, whole.tolist(), how)
    same(spans.reduce(whole, how).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    flags = x > 0
    if how in ("max", "min"):
        assert spans.reduce(flags, how).tolist() == [bool(v) for v in ref_reduce(parts, flags.tolist(), how)]


@given(partitions(), seeds)
def test_expand_and_facts(case, seed):
    spans, parts = case
    y = column(seed, spans.n, 2)
    owner = {i: s for s, part in enumerate(parts) for i in part}
    ids = [owner[i] for i in range(spans.size)]
    assert spans.ids.tolist() == ids
    same(spans.expand(y), y[ids] if ids else y[:0])
    assert spans.starts.tolist() == [part[0] for part in parts]
    assert spans.ends.tolist() == [part[-1] for part in parts]
    assert spans.position.tolist() == [parts[owner[i]].index(i) for i in range(spans.size)]
    assert spans.longest == max(map(len, parts), default=0)


@given(partitions(), seeds, st.integers(-4, 4))
def test_shift(case, seed, by):
    spans, parts = case
    x, fill = column(seed, spans.size), column(seed + 1, spans.n)
    same(spans.shift(x, by, fill), ref_shift(parts, x.tolist(), by, fill.tolist()))
    same(spans.shift(x, by, 7.0), ref_shift(parts, x.tolist(), by, [7.0] * spans.n))
    flags = spans.shift(x > 0, by, True)
    assert flags.dtype == torch.bool and flags.tolist() == ref_shift(parts, (x > 0).tolist(), by, [True] * spans.n)


@settings(max_examples=200)
@given(partitions(), seeds, st.booleans(), st.one_of(st.none(), st.integers(1, 12)), st.booleans())
def test_scan(case, seed, reverse, limit, single):
    spans, parts = case
    dtype, tolerance = (torch.float32, 2e-5) if single else (torch.float64, 1e-12)
    x, decay = column(seed, spans.size, dtype=dtype), column(seed + 1, spans.size, dtype=dtype).sigmoid()
    decay = torch.where(column(seed + 2, spans.size) > 1, 0, decay)
    out = spans.scan(x, decay, reverse, limit)
    assert out.dtype == dtype
    expected = ref_scan(parts, x.tolist(), decay.tolist(), reverse, limit or spans.size)
    same(out, expected, rtol=tolerance, atol=tolerance)
    expected = ref_scan(parts, x.tolist(), [0.9] * spans.size, reverse, limit or spans.size)
    same(spans.scan(x, 0.9, reverse, limit), expected, rtol=tolerance, atol=tolerance)


@given(partitions(), seeds, st.booleans(), st.sampled_from([None, 3]))
def test_scan_of_features_is_the_scan_of_each(case, seed, reverse, limit):
    spans, _ = case
    x, decay, each = column(seed, spans.size, 2, 3), column(seed, spans.size).sigmoid(), column(seed, spans.size, 2, 3)
    shared, own = spans.scan(x, decay, reverse, limit), spans.scan(x, each, reverse, limit)
    for a in range(2):
        for b in range(3):
            same(shared[:, a, b], spans.scan(x[:, a, b], decay, reverse, limit))
            same(own[:, a, b], spans.scan(x[:, a, b], each[:, a, b], reverse, limit))


STATS = ["mean", "std", "loo_mean", "rank", "quantile", "max"]


@settings(max_examples=300)
@given(partitions(), seeds, st.sampled_from(STATS), st.booleans(), st.booleans(), st.integers(0, 1), st.booleans())
def test_siblings(case, seed, stat, masked, weighted, ddof, raw):
    spans, parts = case
    y = column(seed, spans.size).mul(2).round() / 2  # with ties
    use = column(seed + 1, spans.size) > -0.3 if masked else None
    weight = column(seed + 2, spans.size).exp().ceil() if weighted and stat in ("mean", "std", "loo_mean") else None
    kept = [True] * spans.size if use is None else use.tolist()
    weights = [1.0] * spans.size if weight is None else weight.tolist()
    singleton = "raw" if raw else "zero"
    expected = ref_siblings(parts, y.tolist(), stat, kept, weights, ddof, singleton)
    out = spans.siblings(y, stat, where=use, weight=weight, ddof=ddof, singleton=singleton, q=0.3)
    same(out, expected)
    if stat == "std":
        same(spans.siblings(y, stat, where=use, weight=weight, ddof=ddof, eps=0.5), [v + 0.5 for v in expected])


@given(partitions(), seeds, st.data())
def test_take(case, seed, data):
    spans, parts = case
    ids = data.draw(st.lists(st.integers(0, spans.n - 1), max_size=6)) if spans.n else []
    taken, items = spans.take(ids)
    assert taken.order is None
    assert items.tolist() == [i for s in ids for i in parts[s]]
    assert taken.lengths.tolist() == [len(parts[s]) for s in ids]


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), max_size=25))
def test_by_key(keys):
    first, second = (torch.tensor([key[k] for key in keys], dtype=torch.int64) for k in range(2))
    groups: dict[tuple[int, int], list[int]] = {}
    for item, key in enumerate(keys):
        groups.setdefault(key, []).append(item)
    spans = Spans.by_key(first, second)
    assert [items.tolist() for items in _lists(spans)] == list(groups.values())
    assert (spans.order is None) == ([i for items in groups.values() for i in items] == list(range(len(keys))))


def _lists(spans):
    order = torch.arange(spans.size) if spans.order is None else spans.order
    return order.split(spans.lengths.tolist()) if spans.n else []


@given(partitions(least=1), st.data())
def test_meet(case, data):
    spans, _ = case
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=spans.size, max_size=spans.size))
    starts = torch.zeros(spans.size, dtype=torch.bool)
    starts[[0, *[sum(lengths[:k]) for k in range(len(lengths)) if sum(lengths[:k]) < spans.size]]] = True
    other = Spans.from_starts(starts)
    both = spans.meet(other)
    pairs = list(zip(spans.ids.tolist(), other.ids.tolist(), strict=True))
    for i in range(spans.size):
        for j in range(i):
            assert (both.ids[i] == both.ids[j]) == (pairs[i] == pairs[j])
    assert both.within(spans).order is None and len(both.within(other).lengths) == other.n
    order = [i for items in _lists(both) for i in items.tolist()]
    for part in _lists(spans):  # numbered and ordered as in `spans`
        assert sorted(order.index(i) for i in part.tolist()) == list(
            range(order.index(part[0]), order.index(part[0]) + len(part))
        )


def test_meet_of_two_clocks_is_the_union_of_their_starts():
    fast, slow = Spans.from_lengths([2, 2, 2, 2]), Spans.from_lengths([3, 5])
    assert fast.meet(slow).offsets.tolist() == [0, 2, 3, 4, 6, 8]
    assert slow.meet(fast, Spans.from_lengths([7, 1])).offsets.tolist() == [0, 2, 3, 4, 6, 7, 8]


@given(partitions(), st.data())
def test_within_of_random_forests(case, data):
    outer, parts = case
    child = torch.zeros(outer.size, dtype=torch.int64)
    for part in parts:
        for i in part:
            child[i] = data.draw(st.integers(0, 2))
    inner = outer.meet(Spans.by_key(child))
    nested = inner.within(outer)
    assert (nested.size, nested.n) == (inner.n, outer.n)
    x = column(1, outer.size)
    same(nested.reduce(inner.reduce(x)), outer.reduce(x))
    assert nested.ids.tolist() == [int(outer.ids[i]) for i in inner.starts]
    tree = SpanTree({"outer": outer, "inner": (inner, "outer")})
    same(tree.within("inner", "outer").lengths, nested.lengths)


@given(partitions(), st.data())
def test_moving_inside_spans(case, data):
    spans, parts = case
    home = {i: part for part in parts for i in part}
    items = torch.arange(spans.size)
    steps = torch.tensor(
        data.draw(st.lists(st.integers(-9, 9), min_size=spans.size, max_size=spans.size)), dtype=torch.int64
    )
    assert spans.end_of(items).tolist() == [home[i][-1] for i in range(spans.size)]
    assert spans.start_of(items).tolist() == [home[i][0] for i in range(spans.size)]
    moved = [home[i][min(max(home[i].index(i) + int(k), 0), len(home[i]) - 1)] for i, k in enumerate(steps)]
    assert spans.clip(items, items + steps).tolist() == moved
    length, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    windows = [part[k : k + length] for part in parts for k in range(0, len(part) - length + 1, stride)]
    assert spans.windows(length, stride).tolist() == windows


def test_padded_windows_by_clip():
    spans = Spans.from_lengths([3, 2])
    items = torch.arange(5)
    assert spans.clip(items[:, None], items[:, None] + torch.arange(3)).tolist() == [
        [0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]  # fmt: skip


def test_sampling_is_uniform_inside_the_span_and_reproducible():
    spans = Spans([0, 3, 4], [3, 1, 2, 0])
    chosen = torch.zeros(30_000, dtype=torch.int64)
    drawn = spans.sample(chosen, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=4)
    assert counts[0] == 0 and (counts[1:] - 10_000).abs().max() < 400
    assert torch.equal(drawn, spans.sample(chosen, torch.Generator().manual_seed(0)))
    assert spans.sample(torch.tensor([[1], [1]])).tolist() == [[0], [0]]


# ---- single cases


def test_one_item_and_no_item():
    one, none = Spans.from_lengths([1]), Spans([0])
    x = torch.tensor([3.0])
    assert one.scan(x, 0.5).tolist() == one.scan(x, 0.5, limit=4).tolist() == [3.0]
    assert one.shift(x, 1, 9.0).tolist() == [9.0]
    assert (none.n, none.size, none.longest) == (0, 0, 0)
    empty = torch.zeros(0, 2)
    for result in (
        none.scan(empty, 0.9),
        none.scan(empty, 0.9, limit=3),
        none.shift(empty),
        none.siblings(empty, "std"),
    ):
        assert result.shape == (0, 2)
    for how in HOW[:-1]:
        assert none.reduce(empty, how).shape == (0, 2)
    for built in (Spans.by_key(torch.zeros(0, dtype=torch.int64)), Spans.from_starts(torch.zeros(0, dtype=torch.bool)),
                  Spans.from_lengths([]), none.meet(none), none.within(none), none.take([])[0]):  # fmt: skip
        assert (built.n, built.size) == (0, 0)
    assert none.windows(3).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_huge_span_among_short_ones(dtype):
    lengths = [1, 3] * 500 + [1_000_000] + [2, 5] * 500
    spans = Spans.from_lengths(lengths)
    ones = torch.ones(spans.size, dtype=dtype)
    gamma = 0.999
    left = (spans.lengths[spans.ids] - spans.position).double()
    tolerance = {"rtol": 1e-4 if dtype == torch.float32 else 1e-9, "atol": 0.0}
    torch.testing.assert_close(spans.scan(ones, gamma).double(), (1 - gamma**left) / (1 - gamma), **tolerance)
    torch.testing.assert_close(spans.scan(ones).double(), left, rtol=1e-7, atol=0)
    window = left.clamp(max=77)
    torch.testing.assert_close(
        spans.scan(ones, gamma, limit=77).double(), (1 - gamma**window) / (1 - gamma), **tolerance
    )
    assert torch.equal(spans.reduce(ones), spans.lengths.to(dtype))


def test_a_shuffled_huge_span_gives_what_the_sorted_one_gives():
    order = torch.randperm(100_000, generator=torch.Generator().manual_seed(0))
    spans, shuffled = Spans([0, 10, 99_000, 100_000]), Spans([0, 10, 99_000, 100_000], order)
    x = column(0, 100_000)
    torch.testing.assert_close(shuffled.scan(x, 0.99)[order], spans.scan(x[order], 0.99), rtol=0, atol=0)


def test_small_decays_neither_underflow_nor_divide():
    spans = Spans.from_lengths([5000])
    out = spans.scan(torch.ones(5000), 0.1)
    torch.testing.assert_close(out[:-9], torch.full((4991,), 1 / 0.9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_nothing_crosses_the_edge_of_a_span(bad):
    spans = Spans.from_lengths([3, 4, 2])
    x = torch.ones(9)
    spoilt, decay = x.clone(), torch.full((9,), 0.5)
    spoilt[3:7] = bad
    decay[[2, 6]] = bad  # the decay of a last item is never used
    clean = torch.tensor([0, 1, 2, 7, 8])
    for reverse in (True, False):
        for limit in (None, 2):
            assert torch.equal(
                spans.scan(spoilt, decay, reverse, limit)[clean], spans.scan(x, 0.5, reverse, limit)[clean]
            )
    for stat in STATS:
        assert torch.equal(spans.siblings(spoilt, stat)[clean], spans.siblings(x, stat)[clean])


def test_leave_one_out_keeps_its_digits_beside_an_outlier():
    y = torch.tensor([1.0, 2.0, 1e9])
    assert Spans([0, 3]).siblings(y, "loo_mean")[2] == 1.5


def test_statistics_of_unknown_rows_leave_them_out():
    spans, y = Spans([0, 3, 5]), torch.tensor([1.0, math.nan, 3.0, math.nan, 2.0])
    mean = spans.siblings(y, "mean", where=~y.isnan())
    assert mean[:3].tolist() == [2, 2, 2] and mean[4] == 2
    assert spans.siblings(y, "rank", where=~y.isnan()).tolist() == [0, -1, 1, -1, 0]


def test_group_advantages_of_a_worked_example():
    """Step groups A {9.025, 0}, B {9.5, 0, 0}, C {10}; weights stand for trajectories of 2 and 4 rows."""
    returns = torch.tensor([9.025, 9.5, 10.0, 0.0, 0.0, 0.0])
    anchors = Spans.by_key(torch.tensor([0, 1, 2, 0, 1, 1]))
    centred = returns - anchors.siblings(returns, "mean")
    torch.testing.assert_close(centred, torch.tensor([4.5125, 6.333333, 0, -4.5125, -3.166667, -3.166667]))
    scaled = centred / anchors.siblings(returns, "std", ddof=1)
    torch.testing.assert_close(scaled, torch.tensor([0.707107, 1.154700, 0, -0.707107, -0.577350, -0.577350]))
    scores, rows = torch.tensor([10.0, 0.0]), torch.tensor([2, 4])
    group = Spans([0, 2])
    torch.testing.assert_close(
        scores - group.siblings(scores, "mean", weight=rows), torch.tensor([6.666667, -3.333333])
    )


def test_elapsed_zero_and_macro_steps_discount_by_time():
    spans = Spans.from_lengths([4])
    elapsed = torch.tensor([0.0, 0.0, 3.0, 1.0])
    decay = 0.5**elapsed
    assert spans.scan(torch.tensor([0.0, 0.0, 0.0, 8.0]), decay).tolist() == [1, 1, 1, 8]
    clock = spans.shift(spans.scan(elapsed, reverse=False), -1)
    assert clock.tolist() == [0, 0, 0, 3]
    assert spans.scan(torch.tensor([8.0, 0, 0, 0]), decay, reverse=False).tolist() == [8, 8, 8, 1]


def test_generalised_advantage_of_two_truncated_and_terminated_spans():
    spans, gamma, lam = Spans.from_lengths([2, 2]), 0.9, 0.8
    reward, value = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.5, 0.6, 0.7, 0.8])
    delta = reward + gamma * spans.shift(value, 1, torch.tensor([10.0, 0.0])) - value
    expected = [1.0 + 0.9 * 0.6 - 0.5 + 0.72 * (2 + 9 - 0.6), 2 + 9 - 0.6, 3 + 0.72 - 0.7 + 0.72 * (4 - 0.8), 4 - 0.8]
    same(spans.scan(delta, gamma * lam), expected)


def test_integer_columns_stay_integers():
    spans, x = Spans.from_lengths([3, 2]), torch.tensor([1, 2, 3, 4, 5])
    assert spans.scan(x, reverse=False).tolist() == [1, 3, 6, 4, 9]
    assert spans.shift(x, 1, -1).tolist() == [2, 3, -1, 5, -1]
    assert spans.siblings(x, "mean").tolist() == [2, 2, 2, 4.5, 4.5]


# ---- construction and its errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Spans([]), "leading 0"),
        (lambda: Spans([1, 2]), "start at 0, got 1"),
        (lambda: Spans([0, 2, 2]), "span 1 has 0 items"),
        (lambda: Spans([0, 3, 2, 4]), "span 1 has -1 items"),
        (lambda: Spans.from_lengths([2, 0]), "span 1 has 0 items"),
        (lambda: Spans([0.0, 2.0]), "vector of integers"),
        (lambda: Spans([0, 3], [0, 1]), "2 entries for 3 items"),
        (lambda: Spans([0, 3], [0, 1, 1]), "each of 0..2 once"),
        (lambda: Spans([0, 3], [0, 1, 3]), "each of 0..2 once"),
        (lambda: Spans.from_starts(torch.tensor([False, True])), "item 0 must start a span"),
        (lambda: Spans.from_starts(torch.tensor([1, 0])), "bool vector"),
        (lambda: Spans.by_key(torch.zeros(2).long(), torch.zeros(3).long()), r"lengths \[2, 3\]"),
        (lambda: Spans.by_key(), "keys of one length"),
        (lambda: Spans([0, 2]).meet(Spans([0, 3])), "2 items expected"),
        (lambda: Spans([0, 2]).take([1]), r"0\.\.0, got 1\.\.1"),
        (lambda: Spans([0, 2]).within(Spans([0, 1, 2])), "does not refine"),
        (lambda: Spans([0, 2]).windows(0), "at least 1"),
        (lambda: Spans([0, 2]).scan(torch.ones(2), 1, limit=0), "at least 1, got 0"),
        (lambda: Spans([0, 2]).scan(torch.ones(3)), r"2 items expected, got shape \(3,\)"),
        (lambda: Spans([0, 2]).scan(torch.ones(2), torch.ones(2, 2)), "more dimensions"),
        (lambda: Spans([0, 2]).expand(torch.ones(2)), "1 spans expected"),
        (lambda: Spans([0, 2]).shift(torch.ones(2), 1, torch.ones(2)), "1 spans expected"),
        (lambda: Spans([0, 2]).reduce(torch.ones(2), "median"), "unknown reduction 'median'"),
        (lambda: Spans([0, 2]).siblings(torch.ones(2), "mode"), "unknown statistic 'mode'"),
        (lambda: Spans([0, 2]).siblings(torch.ones(2), "mean", singleton="none"), "singleton rule 'none'"),
        (lambda: Spans([0, 2]).siblings(torch.ones(2), "max", weight=torch.ones(2)), "max takes no weight"),
        (lambda: Spans([0, 2]).siblings(torch.ones(2), "mean", where=torch.ones(3).bool()), "2 items expected"),
    ],
)
def test_errors_say_what_was_wrong(build, message):
    with pytest.raises(SpanError, match=message):
        build()


def test_an_identity_order_is_dropped():
    assert Spans([0, 1, 3], [0, 1, 2]).order is None
    assert Spans([0, 1, 3], [0, 2, 1]).order.tolist() == [0, 2, 1]


# ---- trees


def _tree():
    """Two groups of episodes of turns; chunks cut the same items at other places."""
    return SpanTree(
        {
            "group": Spans.from_lengths([5, 3]),
            "episode": (Spans.from_lengths([2, 3, 3]), "group"),
            "turn": (Spans.from_lengths([1, 1, 2, 1, 3]), "episode"),
            "chunk": Spans.from_lengths([3, 5]),
        }
    )


def test_tree_names_parents_and_nesting():
    tree = _tree()
    assert list(tree) == ["group", "episode", "turn", "chunk"] and tree.size == 8 and "turn" in tree
    assert tree.parent("turn") == "episode" and tree.parent("group") is None
    assert tree.ancestors("turn") == ["episode", "group"]
    assert tree.within("turn", "group").lengths.tolist() == [4, 1]
    assert tree.to("cpu")["turn"].n == 5
    assert repr(tree) == "SpanTree(group[2], episode[3] < group, turn[5] < episode, chunk[2]; size=8)"


def test_tree_errors_name_both_partitions_and_the_first_offending_span():
    outer, inner = Spans.from_lengths([2, 2, 4]), Spans.from_lengths([1, 1, 3, 3])
    message = "partition 'turn' does not refine 'episode': its span 2 holds item 2 of span 1 and item 4 of span 2 of"
    with pytest.raises(SpanError, match=message):
        SpanTree({"episode": outer, "turn": (inner, "episode")})
    with pytest.raises(SpanError, match="'a' has 2 items, the others have 3"):
        SpanTree({"b": Spans([0, 3]), "a": Spans([0, 2])})
    with pytest.raises(SpanError, match="names the parent 'c'"):
        SpanTree({"a": (Spans([0, 3]), "c")})
    with pytest.raises(SpanError, match="its own ancestor"):
        SpanTree({"a": (Spans([0, 3]), "b"), "b": (Spans([0, 3]), "a")})
    with pytest.raises(SpanError, match="no partition 'token'"):
        _tree()["token"]


def test_siblings_in_a_tree_need_not_refine_each_other():
    tree = _tree()
    with pytest.raises(SpanError, match="'turn' does not refine 'chunk'"):
        tree.within("turn", "chunk")


def test_tree_take_keeps_copies_apart_below_and_together_above():
    tree, items = _tree().take("episode", [1, 0, 1])
    assert items.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert tree["episode"].lengths.tolist() == [3, 2, 3]
    assert tree["turn"].lengths.tolist() == [2, 1, 1, 1, 2, 1]
    assert tree["group"].lengths.tolist() == [8]
    assert tree.parent("turn") == "episode"
    assert tree["chunk"].lengths.tolist() == [4, 4]  # items 2, 0, 1, 2 and 3, 4, 3, 4


def test_interleaved_streams_of_one_time_major_batch():
    """Time-major items of two agents: a stream is every second item, and credit flows along it."""
    stream = Spans.by_key(torch.tensor([0, 1] * 3))
    x = torch.tensor([1.0, 10, 2, 20, 3, 30])
    assert stream.scan(x).tolist() == [6, 60, 5, 50, 3, 30]
    _, items = stream.take([1])
    assert items.tolist() == [1, 3, 5]


# ---- compiling


def test_operations_compile_without_graph_breaks():
    spans = Spans([0, 3, 7], [6, 0, 1, 2, 5, 4, 3])

    def credit(x, decay):
        gae = spans.scan(spans.shift(x) - x, decay) + spans.scan(x, decay, limit=2)
        scale = spans.siblings(gae, "std", eps=1e-6)
        rank = spans.siblings(gae, "rank") + spans.siblings(gae, "quantile", where=x > 0)
        return rank + (gae - spans.siblings(gae, "loo_mean")) / scale + spans.expand(spans.reduce(x, "max"))

    compiled = torch.compile(credit, backend="eager", fullgraph=True)
    x, decay = column(0, 7), column(1, 7).sigmoid()
    torch.testing.assert_close(compiled(x, decay), credit(x, decay), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_operations_on_cuda_agree_and_never_wait_for_the_device():
    here = Spans([0, 3, 4, 9], [8, 0, 3, 5, 1, 2, 7, 6, 4])
    there, x, decay = here.to("cuda"), column(0, 9, 2), column(1, 9).sigmoid()

    def operations(spans, x, decay):
        for reverse in (True, False):
            for limit in (None, 2):
                yield spans.scan(x, decay, reverse, limit)
        yield from (spans.reduce(x, how) for how in HOW)
        yield from (spans.siblings(x[:, 0], stat, where=x[:, 1] > -1) for stat in STATS)
        yield spans.shift(x, -1, spans.reduce(x)) + spans.expand(spans.reduce(x, "max"))
        yield spans.clip(spans.ids, spans.ids + 2)

    x_there, decay_there = x.cuda(), decay.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = list(operations(there, x_there, decay_there))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for result, expected in zip(results, operations(here, x, decay), strict=True):
        torch.testing.assert_close(result.cpu(), expected)
