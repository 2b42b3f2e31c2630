"""Windows and the goals that follow them: against one sample at a time, shares, what is left out, resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.windows import window

from echelon.data.goals import GoalSpec
from echelon.data.hindsight import HindsightSpec
from echelon.data.source import OfflineSource
from echelon.data.store import Store, write_store
from echelon.data.windows import Windows, WindowSpec
from echelon.spans import Spans

LENGTHS = [6, 1, 9, 3]


def columns(lengths: list[int]) -> dict[str, np.ndarray]:
    """Observations tell (episode, place, 1), actions (place / 10, -place / 10)."""
    rows = np.array([(e, t) for e, length in enumerate(lengths) for t in range(length + 1)], np.float32)
    return {
        "observations": np.concatenate([rows, np.ones_like(rows[:, :1])], 1),
        "actions": np.stack([rows[:, 1] / 10, -rows[:, 1] / 10], 1),
        "terminals": np.array([t == lengths[int(e)] for e, t in rows]),
    }


def store_of(folder: Path, lengths: list[int] = LENGTHS) -> Store:
    made = columns(lengths)
    return Store.open(write_store(folder / "set", [made], len(made["terminals"]), {"name": "set"}, "by hand"))


def batch_of(lengths: list[int], spec: WindowSpec, u: torch.Tensor) -> dict[str, torch.Tensor]:
    made, episodes = columns(lengths), Spans.from_lengths(lengths)
    windows = Windows(spec, 3, torch.arange(episodes.size) + episodes.ids, episodes)
    states, actions = (torch.as_tensor(made[name]) for name in ("observations", "actions"))
    return windows.batches(u[: windows.uniforms], states, actions)(slice(None))


def uniforms(count: int, kinds: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.rand((kinds, count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SPECS = st.builds(
    WindowSpec,
    steps=st.integers(1, 6),
    anchor=st.sampled_from(["last", "first"]),
    frames=st.integers(1, 4),
    ahead=st.integers(0, 3),
    stride=st.integers(1, 3),
    within=st.sampled_from([None, 3, 4, 20]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), SPECS, st.integers(0, 1000))
def test_windows_equal_the_reference(lengths, spec, seed):
    u = uniforms(25, seed=seed)
    batch = batch_of(lengths, spec, u)
    assert batch["observations"].shape == (25, spec.steps, 3) and batch["goals"].shape == (25, spec.frames, 3)
    for b in range(25):
        asked = (spec.steps, spec.anchor, spec.frames, spec.ahead, spec.stride, spec.within)
        steps, goal = window(lengths, u[:2, b].tolist(), *asked)
        shown = [tuple(x) for x in batch["observations"][b, :, :2].int().tolist()]
        assert shown == steps + [steps[-1]] * (spec.steps - len(steps))
        assert batch["real"][b].tolist() == [k < len(steps) for k in range(spec.steps)]
        assert [tuple(x) for x in batch["goals"][b, :, :2].int().tolist()] == goal
        drawn = steps[-1] if spec.anchor == "last" else steps[0]
        assert int(batch["until"][b]) == goal[0][1] - drawn[1]
    torch.testing.assert_close(batch["actions"][..., 0], batch["observations"][..., 1] / 10)


def test_every_transition_is_as_likely_to_be_the_last_step():
    u = uniforms(19 * 400, kinds=3)
    last = batch_of(LENGTHS, WindowSpec(steps=4), u)
    place = torch.gather(last["observations"][..., :2], 1, (last["real"].sum(1) - 1)[:, None, None].expand(-1, 1, 2))
    _, counts = torch.unique(place[:, 0], dim=0, return_counts=True)
    assert len(counts) == 19 and int(counts.min()) > 300 and int(counts.max()) < 500
    assert last["real"].sum(1).unique().tolist() == [1, 2, 3, 4]


def test_goals_lie_evenly_in_what_follows():
    """Of an episode of 9: after step 3 at places 4 to 7 for two frames."""
    u = uniforms(4000, kinds=3)
    u[0] = (6 + 1 + 3.5) / 19
    batch = batch_of(LENGTHS, WindowSpec(steps=2, frames=2), u)
    places, counts = torch.unique(batch["goals"][:, 0, 1], return_counts=True)
    assert places.tolist() == [4, 5, 6, 7] and int(counts.min()) > 900 and int(counts.max()) < 1100
    assert torch.equal(batch["goals"][:, 1, 1], batch["goals"][:, 0, 1] + 1)
    zero = batch_of(LENGTHS, WindowSpec(ahead=0), u)["goals"][:, 0, 1]
    assert zero.unique().tolist() == [3, 4, 5, 6, 7, 8], "the last observation, place 9, is never a goal"


@pytest.mark.parametrize("mask", ["sample", "element"])
def test_goals_are_left_out_with_the_probability_asked_for(mask):
    u = uniforms(4000, kinds=2 + 6)
    spec = WindowSpec(frames=2, drop=0.3, mask=mask)
    kept = batch_of(LENGTHS, spec, u)["kept"]
    assert kept.shape == ((4000, 1, 1) if mask == "sample" else (4000, 2, 3))
    assert float(kept.double().mean()) == pytest.approx(0.7, abs=0.02)
    whole = float((~kept).flatten(1).all(1).double().mean())
    assert whole == pytest.approx(0.3 if mask == "sample" else 0.3**6, abs=0.02)
    if mask == "element":
        assert torch.equal(kept.flatten(1), u[2:].T >= 0.3)
    assert bool(batch_of(LENGTHS, WindowSpec(mask=mask), u)["kept"].all())
    assert not bool(batch_of(LENGTHS, WindowSpec(mask=mask, drop=1.0), u)["kept"].any())


def test_a_source_of_windows_is_seeded_and_resumable(tmp_path):
    store, goals = store_of(tmp_path), {"window": WindowSpec(steps=4, frames=2, drop=0.5)}
    one, two, other = (OfflineSource(store, goals, 7, seed) for seed in (0, 0, 1))
    first, *_ = (one.next() for _ in range(20))
    assert {name: tuple(x.shape) for name, x in first.items()} == {
        "observations": (7, 4, 3), "actions": (7, 4, 2), "real": (7, 4), "goals": (7, 2, 3), "kept": (7, 1, 1),
        "until": (7,),
    }  # fmt: skip
    two.load_state_dict(one.state_dict())
    after = one.next()
    assert all(torch.equal(after[name], x) for name, x in two.next().items())
    assert not torch.equal(other.next()["observations"], first["observations"])


def test_windows_of_other_kinds_are_refused(tmp_path):
    store = store_of(tmp_path)
    with pytest.raises(ValueError, match="value: goals for drawn rows"):
        OfflineSource(store, {"value": GoalSpec(random=1), "window": WindowSpec()}, 4, 0)
    for other in (HindsightSpec(), WindowSpec()):
        with pytest.raises(ValueError, match="window, other: windows are drawn by one specification"):
            OfflineSource(store, {"window": WindowSpec(), "other": other}, 4, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"frames": 0},
        {"ahead": -1},
        {"within": -1},
        {"drop": 1.5},
        {"drop": float("nan")},
        {"anchor": "mid"},
        {"mask": "x"},
    ],
)
def test_senseless_settings_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} .*{next(iter(change.values()))}"):
        WindowSpec(**change)


def test_windows_may_have_their_steps_at_any_offsets():
    """Against the windows of consecutive steps: the same where the episode goes on, else its last transition."""
    u, offsets = uniforms(60), (0, 1, 4, 7)
    batch = batch_of(LENGTHS, WindowSpec(offsets=offsets, anchor="first"), u)
    every = batch_of(LENGTHS, WindowSpec(steps=8, anchor="first"), u)
    for name in ("observations", "actions", "real"):
        assert torch.equal(batch[name], every[name][:, list(offsets)])
    assert torch.equal(batch["goals"], every["goals"]) and torch.equal(batch["until"], every["until"])
    assert not bool(batch["real"].all()) and bool(batch["real"].all(1).any())


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"offsets": (0, 2)}, "for the anchor 'first', without steps and stride"),
        ({"offsets": (0, 2), "anchor": "first", "stride": 2}, "without steps and stride"),
        ({"offsets": (1, 2), "anchor": "first"}, r"must rise from 0, got \(1, 2\)"),
        ({"offsets": (0, 2, 2), "anchor": "first"}, r"must rise from 0, got \(0, 2, 2\)"),
    ],
)
def test_offsets_that_make_no_window_are_refused(spec, what):
    with pytest.raises(ValueError, match=what):
        WindowSpec(**spec)
