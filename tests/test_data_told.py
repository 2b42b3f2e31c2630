"""Pairs and steps on the way to a sentence: against one sample at a time, never out of a run, refusals, resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import told as reference

from echelon.data.source import OfflineSource
from echelon.data.store import Store, write_store
from echelon.data.told import Told, ToldSpec, run_ends
from echelon.data.windows import Windows, WindowSpec
from echelon.errors import DataError
from echelon.spans import Spans

RUNS = [[(0, 5), (2, 3)], [(1, 1)], [(2, 4), (0, 2), (1, 6)]]
"""(sentence, transitions) of each run of three episodes."""


def sentences(runs=RUNS) -> list[list[int]]:
    return [[word for word, count in episode for _ in range(count)] for episode in runs]


def columns(told: list[list[int]]) -> dict[str, np.ndarray]:
    """Observations tell (episode, place, 1); the last row of an episode belongs to its last sentence."""
    rows = np.array([(e, t) for e, words in enumerate(told) for t in range(len(words) + 1)], np.float32)
    return {
        "observations": np.concatenate([rows, np.ones_like(rows[:, :1])], 1),
        "actions": np.stack([rows[:, 1] / 100, -rows[:, 1] / 100], 1),
        "terminals": np.array([t == len(told[int(e)]) for e, t in rows]),
        "instructions": np.array([word for words in told for word in [*words, words[-1]]], np.int64),
    }


def batch_of(told: list[list[int]], spec: ToldSpec, u: torch.Tensor) -> dict[str, torch.Tensor]:
    made, episodes = columns(told), Spans.from_lengths([len(words) for words in told])
    drawn = Told(spec, made, 3, torch.arange(episodes.size) + episodes.ids, episodes)
    states, actions = (torch.as_tensor(made[name]) for name in ("observations", "actions"))
    return drawn.batches(u[: drawn.uniforms], states, actions)(slice(None))


def uniforms(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((6, count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(x: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(e), int(t)) for e, t, _ in x.tolist()]


TOLD = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(TOLD, st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_pairs_and_steps_equal_the_reference(told, near, width, ahead, seed):
    spec, u = ToldSpec(near=near, far=near + width, ahead=ahead), uniforms(25, seed)
    if all(len(run) <= near for run in reference.runs(told)):
        with pytest.raises(DataError, match=f"pairs of states {near} steps apart: the longest run"):
            batch_of(told, spec, u)
        return
    batch = batch_of(told, spec, u)
    for b in range(25):
        *_, which, far, where = u[:, b].tolist()
        first, later = reference.pair(told, (which, far), near, near + width)
        assert (places(batch["pair_states"])[b], places(batch["pair_later"])[b]) == (first, later)
        assert int(batch["pair_instructions"][b]) == told[first[0]][first[1]] == told[later[0]][later[1]]
        here, target = reference.step(told, where, ahead)
        assert (places(batch["step_states"])[b], places(batch["step_targets"])[b]) == (here, target)
        assert int(batch["step_instructions"][b]) == told[here[0]][here[1]]


def test_windows_are_those_of_windows_alone():
    told, u = sentences(), uniforms(40)
    window = WindowSpec(steps=3, anchor="first", ahead=0, within=4)
    made, episodes = columns(told), Spans.from_lengths([len(words) for words in told])
    states, actions = (torch.as_tensor(made[name]) for name in ("observations", "actions"))
    alone = Windows(window, 3, torch.arange(episodes.size) + episodes.ids, episodes).batches(u[:3], states, actions)
    batch = batch_of(told, ToldSpec(window=window, near=1, far=3), u)
    assert all(torch.equal(batch[name], x) for name, x in alone(slice(None)).items())


def test_pairs_are_spread_evenly_over_first_states_and_distances():
    batch = batch_of(sentences(), ToldSpec(near=2, far=4), uniforms(9000))
    first, later = batch["pair_states"], batch["pair_later"]
    possible = [run[k] for run in reference.runs(sentences()) for k in range(len(run) - 2)]
    found = places(first)
    counts = [found.count(place) for place in possible]
    assert sum(counts) == 9000 and min(counts) > 800 and max(counts) < 1000
    apart = (later - first)[:, 1]
    last = torch.tensor([place in [run[-3] for run in reference.runs(sentences()) if len(run) > 2] for place in found])
    assert apart[last].unique().tolist() == [2], "less far where the run ends before"
    assert float((apart[~last] == 3).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_run_ends_with_its_sentence_or_its_episode():
    told = torch.tensor([0, 0, 1, 1, 1, 0])
    assert run_ends(told, Spans.from_lengths([4, 2])).tolist() == [1, 1, 3, 3, 4, 5]


@pytest.mark.parametrize("change", [{"near": 0}, {"far": 16}, {"ahead": 0}])
def test_senseless_specifications_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ToldSpec(**change)


def test_a_source_of_pairs_is_resumable_and_needs_sentences(tmp_path):
    made = columns(sentences())
    rows = len(made["terminals"])
    store = Store.open(write_store(tmp_path / "told", [made], rows, {"name": "told"}, "by hand"))
    goals = {"told": ToldSpec(window=WindowSpec(steps=2, anchor="first"), near=1, far=3)}
    one, two = (OfflineSource(store, goals, 7, 0) for _ in range(2))
    for _ in range(20):
        shapes = {name: tuple(x.shape) for name, x in one.next().items()}
    assert shapes["pair_states"] == shapes["step_targets"] == (7, 3) and shapes["pair_instructions"] == (7,)
    two.load_state_dict(one.state_dict())
    after = one.next()
    assert all(torch.equal(after[name], x) for name, x in two.next().items())
    with pytest.raises(ValueError, match="told, window: windows are drawn by one specification"):
        OfflineSource(store, goals | {"window": WindowSpec()}, 7, 0)
    untold = {name: column for name, column in made.items() if name != "instructions"}
    store = Store.open(write_store(tmp_path / "untold", [untold], rows, {"name": "untold"}, "by hand"))
    with pytest.raises(DataError, match=r"no column 'instructions'.*scene-told-v0"):
        OfflineSource(store, goals, 7, 0)
