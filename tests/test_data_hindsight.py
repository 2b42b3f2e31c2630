"""Mixtures of transitions with goals in hindsight: indices, shares, what enters a goal, fallbacks, resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import offline_smore as reference

from echelon.data.goals import GoalSpec
from echelon.data.hindsight import UNIFORMS, HindsightSpec, Mixture, by_source, goal_dim, place_ahead
from echelon.data.source import OfflineSource
from echelon.data.store import Store, write_store
from echelon.errors import DataError
from echelon.spans import Spans

LENGTHS = [6, 2, 9]
BOTH = {"offline": HindsightSpec(), "entering": HindsightSpec(entering=True)}
NEAR = {(0, 0), (0, 4), (1, 0), (2, 3), (2, 9)}
"""(episode, place) where the goal that was asked for is reached: first states and a last observation among them."""


def columns(lengths: list[int] = LENGTHS, near: set = NEAR, apart: bool = True) -> dict[str, np.ndarray]:
    """Observations tell (episode, place, 1), reached goals (episode, place), goals asked for lie 5 to the right."""
    rows = [(e, t) for e, length in enumerate(lengths) for t in range(length + 1)]
    place = np.array(rows, np.float32)
    found = {
        "observations": np.concatenate([place, np.ones_like(place[:, :1])], 1),
        "actions": np.stack([place[:, 1] / 10, -place[:, 1] / 10], 1),
        "terminals": np.array([t == lengths[e] for e, t in rows]),
    }
    if apart:
        shift = np.array([0.04 if row in near else 5 for row in rows], np.float32)
        found |= {"achieved_goals": place, "desired_goals": place + np.stack([shift, 0 * shift], 1)}
    return found


def store_of(folder: Path, **changes) -> Store:
    made = columns(**changes)
    return Store.open(write_store(folder / "set", [made], len(made["terminals"]), {"name": "set"}, "by hand"))


def mixture(specs, lengths=LENGTHS, **changes) -> Mixture:
    made, episodes = columns(lengths, **changes), Spans.from_lengths(lengths)
    row = torch.arange(episodes.size) + episodes.ids
    return Mixture(specs, made, torch.as_tensor(made["observations"]), row, episodes)


def uniforms(specs: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((UNIFORMS * specs, count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_places_ahead_of_the_worked_example():
    t, length = torch.tensor([0, 48, 48, 47, 46]), torch.tensor(50)
    u = torch.tensor([0.999, 0.0, 0.999, 0.999, 0.999], dtype=torch.float64)
    assert place_ahead(t, length, u).tolist() == [47, 49, 49, 48, 47]


@given(length=st.integers(2, 60), u=st.floats(0, 1, exclude_max=True), data=st.data())
def test_places_ahead_are_ahead_and_inside(length, u, data):
    t = data.draw(st.integers(0, length - 2))
    found = int(place_ahead(torch.tensor(t), torch.tensor(length), torch.tensor(u, dtype=torch.float64)))
    assert found == reference.ahead(length, t, u) and t < found <= length - 1


@pytest.mark.parametrize("future", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("near", [NEAR, set()])
def test_draws_equal_the_reference(future, apart, near):
    specs = [HindsightSpec(future=future), HindsightSpec(future=future, entering=True)]
    made = mixture(specs, near=near, apart=apart)
    u = uniforms(2, 400)
    entries = [4, 11] if near and apart else []  # by transition; first states and the last observation are not there
    for part, drawn, known in zip(u.split(UNIFORMS), made.draw(u), (None, entries), strict=True):
        expected = [reference.draw(LENGTHS, row, future, known, apart) for row in part.T.numpy()]
        assert list(zip(*(x.tolist() for x in drawn), strict=True)) == expected


def test_rows_of_a_batch_are_transitions_of_the_data(tmp_path):
    batch = OfflineSource(store_of(tmp_path), BOTH, 4000, 0, block=1).next()
    assert {name: tuple(x.shape) for name, x in batch.items()} == {
        "observations": (8000, 3), "next_observations": (8000, 3), "actions": (8000, 2), "goals": (8000, 2),
        "source": (8000,), "entered": (8000,),
    }  # fmt: skip
    offline, entering = by_source(batch, 2)
    assert offline["source"].unique().tolist() == [0] and entering["source"].unique().tolist() == [1]
    s, after = batch["observations"], batch["next_observations"]
    assert torch.equal(after - s, torch.tensor([0.0, 1, 0]).expand_as(s))  # never across an episode's end
    torch.testing.assert_close(batch["actions"][:, 0], s[:, 1] / 10)
    asked = offline["goals"][:, 0] % 1 > 0.01
    asked |= offline["goals"][:, 0] >= 5
    assert float(asked.double().mean()) == pytest.approx(0.2, abs=0.02)
    reached = offline["goals"][~asked]
    assert torch.equal(reached[:, 0], offline["observations"][~asked][:, 0])
    assert bool((reached[:, 1] > offline["observations"][~asked][:, 1]).all())
    assert torch.equal(offline["goals"][asked][:, 1], offline["observations"][asked][:, 1])
    own = entering["goals"][:, 0] % 1 > 0.01
    assert float(own.double().mean()) == pytest.approx(0.2, abs=0.02)
    assert torch.equal(entering["goals"][~own], entering["next_observations"][~own][:, :2])
    ends = {tuple(row) for row in entering["next_observations"][own][:, :2].int().tolist()}
    assert ends == {(0, 4), (2, 3)}
    assert bool(entering["entered"].all())
    ahead = offline["goals"][:, 1] - offline["observations"][:, 1]
    assert torch.equal(offline["entered"], ~asked & (ahead == 1)) and 0 < offline["entered"].sum() < 4000


def test_each_source_has_a_radius_of_its_own(tmp_path):
    """Within 1.5 places a goal two steps ahead is entered as well, and one asked for 0.04 beside the last state."""
    sources = {"far": HindsightSpec(radius=1.5), "near": HindsightSpec()}
    far, near = by_source(OfflineSource(store_of(tmp_path), sources, 4000, 0, block=1).next(), 2)
    for part, steps in ((far, 2), (near, 1)):
        ahead = part["goals"][:, 1] - part["observations"][:, 1]
        beside = (part["goals"][:, 0] - part["observations"][:, 0]).abs() < 1
        assert torch.equal(part["entered"], beside & (ahead <= steps) & (ahead > 1 - steps))


def test_a_first_state_has_no_predecessor():
    """Were index 0's predecessor -1, it would be the last row of the data."""
    made = mixture([HindsightSpec(entering=True)], near={(0, 0), (1, 0), (2, 0)})
    assert made.entries[0].tolist() == []
    made = mixture([HindsightSpec(entering=True)], near={(0, 0), (0, 1), (2, 0)})
    assert made.entries[0].tolist() == [0]


def test_without_an_entry_all_goals_of_entering_transitions_are_reached_later(tmp_path):
    source = OfflineSource(store_of(tmp_path, near=set()), BOTH, 500, 0)
    offline, entering = by_source(source.next(), 2)
    assert torch.equal(entering["goals"], entering["next_observations"][:, :2])
    assert bool((offline["goals"][:, 0] >= 5).any())


def test_goals_are_observations_where_the_data_have_no_others(tmp_path):
    offline, entering = by_source(OfflineSource(store_of(tmp_path, apart=False), BOTH, 500, 0).next(), 2)
    assert offline["goals"].shape == (500, 3)
    assert bool((offline["goals"][:, 1] > offline["observations"][:, 1]).all())
    assert torch.equal(entering["goals"], entering["next_observations"])


def test_the_released_stride_reads_later_episodes_too_early():
    """Arrays hold T rows an episode; counting T - 1 leaves the k-th episode k places early, across ends."""
    lengths = [5, 5, 5, 5]
    u = uniforms(2, 1000)
    specs = [HindsightSpec(stride=stride, future=1, entering=e) for stride in ("episode", "released") for e in (0, 1)]
    right, wrong = (mixture(specs[k : k + 2], lengths).draw(u) for k in (0, 2))
    for k in range(2):
        episode = (u[UNIFORMS * k] * 4).long()
        assert torch.equal(right[k].taken - wrong[k].taken, episode) and episode.unique().tolist() == [0, 1, 2, 3]
        assert torch.equal(right[k].goal - wrong[k].goal, episode)
        assert bool((wrong[k].taken >= 0).all())
    leaks = wrong[0].taken // 5 != wrong[0].goal // 5
    assert bool(leaks.any()) and not bool((right[0].taken // 5 != right[0].goal // 5).any())


def test_streams_are_seeded_and_resumable(tmp_path):
    store = store_of(tmp_path)
    one, two, other = (OfflineSource(store, BOTH, 7, seed) for seed in (0, 0, 1))
    before = [one.next() for _ in range(20)]
    two.load_state_dict(one.state_dict())
    after = one.next()
    assert all(torch.equal(after[name], x) for name, x in two.next().items())
    assert not torch.equal(other.next()["observations"], before[0]["observations"])


def test_episodes_of_one_transition_are_left_out():
    made = mixture([HindsightSpec(), HindsightSpec(entering=True)], [1, 3, 1])
    for drawn in made.draw(uniforms(2, 200)):
        assert drawn.taken.min() >= 1 and drawn.taken.max() <= 3
    with pytest.raises(DataError, match="two transitions"):
        mixture([HindsightSpec()], [1, 1])


def test_wrong_settings_are_refused(tmp_path):
    for change in ({"future": 1.2}, {"future": float("nan")}, {"radius": 0.0}, {"stride": "none"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            HindsightSpec(**change)
    with pytest.raises(ValueError, match="value: goals for drawn rows"):
        OfflineSource(store_of(tmp_path), {"value": GoalSpec(random=1), **BOTH}, 4, 0)


def test_the_size_of_goals_apart():
    shapes = {"observations": [9, 3], "achieved_goals": [9, 2]}
    assert goal_dim(shapes) is None and goal_dim(shapes | {"desired_goals": [9, 2]}) == 2
