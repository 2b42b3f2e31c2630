"""Plans longer and shorter than their spans, with spans of fixed and of changing length."""

from __future__ import annotations

import pytest
import torch
from hierarchy_scripts import Clock, Script, lengths, table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.level import Decision
from echelon.hierarchy.plans import PlanLevel, PlayLevel
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Never, Termination, Until
from echelon.rollout import Begin, End


class Counting(PlanLevel):
    """Plans of `rows` rows: (tick at which it was decided, number of the row)."""

    name = "plan"

    def __init__(self, rows: int, termination: Termination, after: str = "repeat"):
        self.rows, self.termination, self.after = rows, termination, after

    def decide(self, features, parent, due) -> Decision:
        now = features["observation"][:, 1]
        row = torch.arange(self.rows, dtype=torch.float32).expand(len(now), -1)
        return Decision(torch.stack([now[:, None].expand_as(row), row], -1))


def played(rows: int, termination: Termination, *episodes: int, after: str = "repeat") -> list[list[float]]:
    levels = [Counting(rows, termination, after), PlayLevel()]
    return Runner(levels, Clock(2)).episodes(lengths(*episodes)).executed.tolist()


def test_a_plan_longer_than_its_span_is_cut():
    assert played(5, Every(3), 7) == [[0, 0], [0, 1], [0, 2], [3, 0], [3, 1], [3, 2], [6, 0]]


def test_a_plan_shorter_than_its_span_repeats_its_last_row_or_rests():
    assert played(2, Every(4), 6) == [[0, 0], [0, 1], [0, 1], [0, 1], [4, 0], [4, 1]]
    assert played(2, Every(4), 6, after="zero") == [[0, 0], [0, 1], [0, 0], [0, 0], [4, 0], [4, 1]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_ticks_play_the_row_of_the_plan_s_age(rows, span, episodes):
    expected = [[t - t % span, min(t % span, rows - 1)] for length in episodes for t in range(length)]
    assert played(rows, Every(span), *episodes) == expected


def test_spans_may_end_at_any_time_and_each_stream_s_by_itself():
    """One stream plans anew after ticks 1 and 4, the other never."""

    def over(features: dict[str, Tensor], running) -> Tensor:
        seed, tick = features["observation"][:, 0], features["observation"][:, 1]
        return (seed == 0) & ((tick == 2) | (tick == 5))

    levels = [Counting(4, Until(over)), PlayLevel()]
    rollout = Runner(levels, Clock(2)).episodes(lengths(6, 6))
    first = [[0, 0], [0, 1], [2, 0], [2, 1], [2, 2], [5, 0]]
    assert rollout.executed.tolist() == first + [[0, k] for k in (0, 1, 2, 3, 3, 3)]
    assert table(rollout, "plan", "stream", "start", "stop") == [(0, 0, 2), (0, 2, 5), (0, 5, 6), (1, 6, 12)]


def test_the_record_keeps_plans_as_they_were_decided():
    rollout = Runner([Counting(3, Every(2)), PlayLevel()], Clock(1)).episodes(lengths(4))
    plans = rollout.decisions["plan"]
    assert plans.action[:, :, 1].tolist() == [[0, 1, 2]] * 2 and plans.action[:, 0, 0].tolist() == [0, 2]
    assert table(rollout, "plan", "begin", "end") == [
        (int(Begin.DECIDED), int(End.TIMEOUT)),
        (int(Begin.DECIDED), int(End.TERMINATED)),
    ]
    assert rollout.decisions["play"].parent.tolist() == [0, 0, 1, 1]


def test_a_plan_goes_on_in_the_next_batch():
    runner = Runner([Counting(5, Never()), PlayLevel()], Clock(1), resets=lambda n: lengths(6)[0])
    found = torch.cat([runner.collect(ticks).executed for ticks in (2, 3, 1)])
    assert found.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 4]]


def test_what_is_no_plan_cannot_be_played():
    with pytest.raises((UsageError, EchelonError), match=r"plays plans .* gave actions of shape \[1, 2\]"):
        Runner([Script("plan"), PlayLevel()], Clock(1)).episodes(lengths(2))
    with pytest.raises((UsageError, EchelonError), match="gave nothing"):
        Runner([PlayLevel()], Clock(1)).episodes(lengths(2))
