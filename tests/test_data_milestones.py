"""Milestones: the published numbers, against one number at a time, labels with frames that belong to none, sampling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import offline_uvd as reference

from echelon.data.milestones import (
    METHODS,
    UNOWNED,
    Demonstration,
    Milestones,
    MilestoneSpec,
    decompose,
    equally_spaced,
    label,
    matched,
    milestones_of,
    smooth,
    strict_maxima,
)
from echelon.data.source import OfflineSource
from echelon.data.store import Store, write_store
from echelon.errors import DataError
from echelon.spans import Spans


def path(*corners, steps):
    """Frames [T + 1, D] of straight legs between `corners`, `steps` each."""
    legs = [np.linspace(a, b, steps + 1)[1:] for a, b in pairwise(corners)]
    return np.concatenate([np.array(corners[:1], float), *legs])


ROUND = path((0, 0), (3, 0), (3, 2), (0, 2), steps=40)
ZIGZAG = path((0,), (1,), (0,), (1,), steps=30)


def test_published_examples():
    assert len(ROUND) == 121 and decompose(ROUND) == [41, 120] and decompose(ROUND, kernel=0) == [40, 120]
    assert decompose(ZIGZAG) == decompose(ZIGZAG, kernel=0) == [30, 60, 90]
    assert decompose(np.arange(15.0)[:, None]) == [14]
    assert decompose(np.full((60, 3), 0.7)) == [59]


def test_the_round_by_hand():
    # from (0, 2) the corner (3, 0), frame 40, is farthest; from there everything before gets nearer to it
    far = np.linalg.norm(ROUND - [0, 2], axis=1)
    assert strict_maxima(far).tolist() == [40] and far[40] == pytest.approx(13**0.5)
    assert not len(strict_maxima(np.linalg.norm(ROUND[:41] - [3, 0], axis=1)))


def test_the_kernel_spreads_an_impulse():
    impulse = np.eye(11)[5]
    expected = [0.037249, 0.061027, 0.092177, 0.126037, 0.153352, 0.163967]
    assert smooth(impulse) == pytest.approx([*expected, *expected[-2::-1]], abs=1e-6)
    assert smooth(np.full(40, 3.0)) == pytest.approx(np.full(40, 3.0)) and np.array_equal(smooth(impulse, 0), impulse)


def test_forms_differ_in_where_the_search_goes_on():
    # one turn 10 frames after the start: too near to it for the released form
    late = path((0.0,), (1.0,), steps=10)
    late = np.concatenate([late, path((1.0,), (-2.0,), steps=40)[1:]])
    assert decompose(late, kernel=0) == [50] and decompose(late, kernel=0, form="appendix") == [9, 50]
    assert decompose(ZIGZAG, kernel=0, form="appendix") == [29, 59, 90]


WALK = st.tuples(st.integers(2, 90), st.integers(1, 3), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(WALK, st.integers(0, 20), st.sampled_from([0.0, 0.02, 0.08, 1.0]), st.sampled_from(["released", "appendix"]))
def test_decomposition_equals_the_reference(walk, interval, kernel, form):
    frames, size, seed = walk
    draw = np.random.default_rng(seed)
    steps = draw.standard_normal((frames, size)).cumsum(0)
    found = decompose(steps, interval, kernel, form)
    assert found == reference.milestones(steps.tolist(), interval, kernel, form)
    assert found[-1] == frames - 1 and all(b - a > interval for a, b in pairwise(found))
    assert decompose(3 * steps + 1, interval, kernel, form) == found  # of shifted and scaled embeddings
    assert smooth(steps[:, 0], kernel) == pytest.approx(
        reference.smoothed(steps[:, 0].tolist(), kernel) if kernel else steps[:, 0], rel=1e-9, abs=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 30), max_size=6), st.integers(1, 31))
def test_labels_equal_the_reference(marks, frames):
    found = label(sorted(marks), frames)
    assert found.tolist() == reference.labels(sorted(marks), frames)
    assert (found == UNOWNED).sum() == max(frames - 1 - max(marks, default=-1), 0)


def test_labels_of_two_milestones():
    assert label([2, 5], 8).tolist() == [2, 2, 2, 5, 5, 5, UNOWNED, UNOWNED]


PURSUED = np.array([0, 0, 0, -1, -1, 2, 2, 2, 2, -1, -1])


def test_ends_of_what_is_pursued_and_equal_distances():
    demo = Demonstration(np.zeros((11, 1)), PURSUED)
    spec = MilestoneSpec(method="oracle")
    assert milestones_of(demo, spec) == [2, 8]
    assert label([2, 8], 11).tolist() == [2, 2, 2, 8, 8, 8, 8, 8, 8, UNOWNED, UNOWNED]
    with pytest.raises(DataError, match="no column 'instructions'"):
        milestones_of(Demonstration(np.zeros((4, 1))), spec)
    assert equally_spaced(100, 4) == [25, 50, 75, 100] and equally_spaced(2, 6) == [1, 2]
    assert milestones_of(demo, MilestoneSpec(method="final")) == [10]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(METHODS)), st.integers(1, 60), st.integers(0, 1000))
def test_every_method_gives_ascending_frames(method, last, seed):
    draw = np.random.default_rng(seed)
    demo = Demonstration(draw.standard_normal((last + 1, 2)).cumsum(0), draw.integers(0, 2, last + 1), seed)
    found = milestones_of(demo, MilestoneSpec(method=method, interval=3, seed=seed))
    assert found == sorted(set(found)) == milestones_of(demo, MilestoneSpec(method=method, interval=3, seed=seed))
    assert found[-1] == last and found[0] >= 0
    assert method not in ("uniform", "random") or len(found) <= 6


def test_boundaries_are_matched_once():
    assert matched([10, 20, 30], [11, 33], 3) == pytest.approx(2 * 2 / 5)
    assert matched([10, 11], [10], 3) == pytest.approx(2 / 3)
    assert matched([], [], 3) == 1 and matched([5], [], 3) == 0 and matched([5], [9], 3) == 0


def columns():
    """Two episodes of 10 transitions; observations tell (episode, frame)."""
    rows = np.array([(e, t) for e in range(2) for t in range(11)], np.float32)
    return {
        "observations": rows,
        "actions": rows / 100,
        "terminals": rows[:, 1] == 10,
        "instructions": np.tile(PURSUED, 2),
        "orders": rows[:, 0].astype(np.int64),
    }


def test_only_transitions_that_work_towards_a_milestone_are_drawn(tmp_path):
    made, episodes = columns(), Spans.from_lengths([10, 10])
    rows = torch.arange(20) + episodes.ids
    found = Milestones(MilestoneSpec(method="oracle"), made, rows, episodes)
    expected = [2] * 3 + [8] * 6 + [UNOWNED] + [13] * 3 + [19] * 6 + [UNOWNED]
    assert found.goal.tolist() == expected
    assert 9 not in found.owned and 19 not in found.owned and len(found.owned) == 18
    one = Milestones(MilestoneSpec(method="final", left_out=(1,)), made, rows, episodes)
    assert one.owned.tolist() == list(range(10)) and set(one.goal[:10].tolist()) == {10}
    with pytest.raises(DataError, match="no transition works towards a milestone"):
        Milestones(MilestoneSpec(left_out=(0, 1)), made, rows, episodes)
    del made["orders"]
    with pytest.raises(DataError, match="no column 'orders'"):
        Milestones(MilestoneSpec(left_out=(1,)), made, rows, episodes)
    store = Store.open(write_store(tmp_path / "set", [columns()], 22, {"name": "set"}, "two walks"))
    source = OfflineSource(store, {"milestone": MilestoneSpec(method="oracle")}, 400, 0)
    batch = source.next()
    place, goal = batch["observations"][:, 1], batch["goals"]
    assert torch.equal(batch["observations"][:, 0], goal[:, 0])
    assert torch.equal(goal[:, 1], torch.where(place <= 2, 2.0, 8.0)) and place.max() == 8
    assert torch.equal(batch["next_observations"][:, 1], place + 1)
    assert torch.equal(batch["actions"], batch["observations"] / 100)
    counts = torch.bincount((batch["observations"][:, 0] * 9 + place).long(), minlength=18)
    assert counts.min() > 5  # each of the 18


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"method": "best"}, "method must be uvd, final, uniform, random, oracle, got 'best'"),
        ({"form": "new"}, "form must be released, appendix, got 'new'"),
        ({"interval": -1}, "interval must be at least 0, got -1"),
        ({"kernel": -0.1}, "kernel must be at least 0"),
        ({"least": 4, "most": 3}, "1 <= least <= most, got 4 and 3"),
    ],
)
def test_senseless_specifications_are_refused(change, what):
    with pytest.raises(ValueError, match=what):
        MilestoneSpec(**change)
