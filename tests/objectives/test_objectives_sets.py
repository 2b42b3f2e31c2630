"""Set functions of visits, against published numbers, independent references and exhaustive expectations."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_turns import Turns, assert_close, doubles, integers, turns
from reference import credit_channels as ref
from torch import Tensor

from echelon.credit.sets import marginal_gains, subpo
from echelon.errors import DataError
from echelon.objectives.sets import Prefixes, additive_coverage, capped_counts, coverage, log_det
from echelon.spans import Spans

LINE = torch.tensor([[s, s + 1] for s in range(6)])


def visits(*states: int) -> dict[str, Any]:
    """One episode that visits these states."""
    return {
        "episodes": Spans.from_lengths([len(states) - 1]),
        "start": torch.tensor(states[:1]),
        "state": torch.tensor(states[1:]),
    }


def prefixes(f: Prefixes) -> list[float]:
    """F of all prefixes of a single episode."""
    return [*f.initial.tolist(), *f.value.tolist()]


# ---- published numbers


def test_coverage_of_a_line__paper() -> None:
    path = visits(0, 1, 1, 3)
    f = coverage(**path, cells=LINE, weight=torch.ones(7).double())
    assert prefixes(f) == [2, 3, 3, 5]
    assert marginal_gains(path["episodes"], value=f.value, initial=f.initial).tolist() == [1, 0, 2]
    assert subpo(path["episodes"], value=f.value, initial=f.initial).advantage.tolist() == [3, 2, 2]
    assert additive_coverage(**path, cells=LINE, weight=torch.ones(7)).value[-1] == 8


def test_capped_counts__code() -> None:
    member = torch.tensor([[1, 0], [1, 0], [0, 0], [0, 1], [0, 1], [0, 1]]).bool()
    assert prefixes(capped_counts(**visits(0, 1, 3, 4, 5), member=member, cap=torch.tensor([1, 2]))) == [1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("draws", "expected", "gradient"),
    [
        (2, 1.653478988, (0.006033631, 0.04823324, -0.054266871)),
        (3, 2.084651889, (0.007718543, 0.098430398, -0.106148941)),
    ],
)
def test_expected_number_of_distinct_draws__paper(draws: int, expected: float, gradient: tuple[float, ...]) -> None:
    """All trajectories at once; a first state 3 that covers nothing stands before the draws."""
    logits = doubles(0.2, -0.1, 0.4).requires_grad_()
    paths = torch.tensor(list(itertools.product(range(3), repeat=draws)))
    episodes = Spans.from_lengths([draws] * len(paths))
    log_prob = logits.log_softmax(0)[paths]
    f = coverage(
        episodes,
        start=torch.full((len(paths),), 3),
        state=paths.flatten(),
        cells=torch.tensor([[0], [1], [2], [-1]]),
        weight=torch.ones(3).double(),
    )
    probability = log_prob.sum(-1).exp()
    objective = (probability * f.value.view(-1, draws)[:, -1]).sum()
    assert_close(objective.detach(), expected, 5e-10)
    assert_close(torch.autograd.grad(objective, logits, retain_graph=True)[0], list(gradient), 5e-9)
    credit = subpo(episodes, value=f.value, initial=f.initial).advantage.view(-1, draws)
    surrogate = (probability.detach() * (log_prob * credit).sum(-1)).sum()
    assert_close(torch.autograd.grad(surrogate, logits)[0], list(gradient), 5e-9)


def test_log_det__paper() -> None:
    kernel = doubles([1, 0.5], [0.5, 1])
    assert_close(log_det(**visits(0, 1), kernel=kernel, constant=0.0).value, [-0.14383970], 5e-9)
    assert_close(log_det(**visits(0, 1), kernel=kernel, constant=0.0, noise=0.0).value, [-0.14384104], 5e-9)
    assert_close(doubles(*prefixes(log_det(**visits(0, 1), kernel=kernel))), [9.96578450, 19.78772830], 5e-8)
    again = log_det(**visits(0, 0), kernel=kernel)
    assert_close(again.value, [13.37038656], 5e-8)
    assert_close(again.value - again.initial, [3.40460206], 5e-8)
    information = log_det(**visits(0, 0, 0, 0), kernel=kernel, constant=0.5 * math.log(1e6))
    assert bool((information.value.diff(prepend=information.initial) <= 0.5 * math.log(2)).all())


def test_curvature_of_the_line__paper() -> None:
    def f(*states: int) -> float:
        return float(coverage(**visits(*states), cells=LINE, weight=torch.ones(7)).value[-1])

    everything = tuple(range(6))
    ratios = [(f(*everything) - f(*(s for s in everything if s != v))) / f(v, v) for v in everything]
    assert 1 - min(ratios) == 1


# ---- references


def column(rows: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """F of all prefixes, a list an episode → (F of the starts, the rest)."""
    return [row[0] for row in rows], [row[1:] for row in rows]


def check(packed: Turns, f: Prefixes, rows: list[list[float]], atol: float = 1e-9) -> None:
    initial, value = column(rows)
    assert f.initial.tolist() == pytest.approx(initial, abs=atol)
    assert packed.nest(f.value) == [pytest.approx(row, abs=atol) for row in value]


def walks(packed: Turns, data: st.DataObject, states: int) -> tuple[dict[str, Any], list[list[int]]]:
    """(arguments of a set function, the visits of each episode)."""
    start = integers(data.draw, packed.episodes.n, 0, states - 1)
    state = integers(data.draw, packed.episodes.size, 0, states - 1)
    rows = [[s, *row] for s, row in zip(start.tolist(), packed.nest(state), strict=True)]
    return {"episodes": packed.episodes, "start": start, "state": state}, rows


@given(turns(), st.data())
def test_coverage_equals_its_naive_reference(packed: Turns, data: st.DataObject) -> None:
    cells = integers(data.draw, 12, -1, 4).view(4, 3)
    weight = integers(data.draw, 5, 0, 6).double() / 2
    arguments, rows = walks(packed, data, 4)
    cover = [[cell for cell in row if cell >= 0] for row in cells.tolist()]
    for rule, additive in ((coverage, False), (additive_coverage, True)):
        expected = [ref.coverage_values(row, cover, weight.tolist(), additive) for row in rows]
        check(packed, rule(**arguments, cells=cells, weight=weight), expected)


@given(turns(), st.data())
def test_capped_counts_equal_their_naive_reference(packed: Turns, data: st.DataObject) -> None:
    member, cap = integers(data.draw, 10, 0, 1).bool().view(5, 2), integers(data.draw, 2, 0, 3)
    arguments, rows = walks(packed, data, 5)
    groups = [member[:, k].nonzero()[:, 0].tolist() for k in range(2)]
    expected = [ref.capped_count_values(row, groups, cap.tolist()) for row in rows]
    check(packed, capped_counts(**arguments, member=member, cap=cap), expected)


@given(turns(), st.data())
def test_log_det_equals_its_naive_reference(packed: Turns, data: st.DataObject) -> None:
    root = integers(data.draw, 12, -2, 2).double().view(4, 3)
    kernel = root @ root.T
    arguments, rows = walks(packed, data, 4)
    expected = [ref.entropy_values(row, kernel.tolist(), noise=0.1, constant=2.0) for row in rows]
    check(packed, log_det(**arguments, kernel=kernel, noise=0.1, constant=2.0), expected)


@given(turns(), st.data())
def test_gains_of_coverage_diminish(packed: Turns, data: st.DataObject) -> None:
    arguments, _ = walks(packed, data, 6)
    f = coverage(**arguments, cells=LINE, weight=torch.rand(7, generator=torch.Generator().manual_seed(0)).double())
    gain = marginal_gains(packed.episodes, value=f.value, initial=f.initial)
    alone = additive_coverage(**arguments, cells=LINE, weight=torch.ones(7).double())
    assert bool((gain >= 0).all())
    assert bool((f.value <= alone.value).all())


# ---- types and errors


def test_dtypes_and_columns() -> None:
    path: dict[str, Any] = visits(0, 1, 2)
    assert coverage(**path, cells=LINE, weight=torch.ones(7)).value.dtype == torch.float32
    assert log_det(**path, kernel=torch.eye(6)).value.dtype == torch.float32
    assert capped_counts(**path, member=torch.ones(6, 1).bool(), cap=doubles(2)).value.dtype == torch.float64
    empty = {
        "episodes": Spans([0]),
        "start": torch.zeros(0, dtype=torch.long),
        "state": torch.zeros(0, dtype=torch.long),
    }
    assert coverage(**empty, cells=LINE, weight=torch.ones(7)).value.shape == (0,)
    with pytest.raises(DataError, match="1 start states and 2 states expected, got 1 and 3"):
        coverage(**(path | {"state": torch.tensor([1, 2, 3])}), cells=LINE, weight=torch.ones(7))
    singular: Tensor = torch.ones(2, 2)
    with pytest.raises(DataError, match=r"episode 0's states is not positive definite; raise noise \(now 0.0\)"):
        log_det(**visits(0, 1), kernel=singular, noise=0.0)
