"""Bad data are refused before anything is written or trained, by episode and with the remedy; good data stay as is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.data.check import check_episodes
from echelon.data.goals import GoalSpec
from echelon.data.source import OfflineSource
from echelon.data.store import Store, write_store
from echelon.errors import DataError

LENGTHS = (3, 1, 4, 2)
FACTS = {"name": "toy", "recipe": {"name": "by hand", "version": 1}, "regenerated": True, "source": "test", "seed": 0}


def rows_of(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(np.asarray(lengths) + 1) - 1] = True
    return {
        "observations": rng.normal(size=(rows, 2)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "terminals": terminals,
    }


def put(name, row, value):
    def damage(columns):
        columns[name][row] = value

    return damage


def swap(**changes):
    return lambda columns: columns.update({name: change(columns) for name, change in changes.items()})


def without_last_rows(columns):
    return columns["actions"][~columns["terminals"]]


CASES = {
    "nan": (put("observations", (6, 1), np.nan), "episode 2: a value in 'observations' is not finite.*row 6.*repair"),
    "infinity": (put("actions", (12, 0), -np.inf), "episode 3: a value in 'actions' is not finite.*leave such"),
    "several": (put("observations", ([0, 1, 5, 11], 0), np.inf), "episode 0: .*also in 2 of 3 other episodes"),
    "bound": (put("actions", (9, 2), -1.5), r"episode 2: an action outside \[-1, 1\] \(largest size 1.5\); divide"),
    "one row": (put("terminals", 6, True), r"episode 2 has no transition.*T \+ 1 rows"),
    "no end": (put("terminals", -1, False), "unfinished: episode 3 has 3 rows without an end; set 'terminals' to True"),
    "never": (put("terminals", slice(None), False), "unfinished: episode 0 has 14 rows without an end"),
    "missing": (lambda columns: columns.pop("actions"), "no column 'actions'; it needs observations, actions, term"),
    "short": (
        swap(observations=lambda c: c["observations"][:7]),
        r"'observations' has 7 rows, 'terminals' has 14.*episode 2",
    ),
    "T actions": (swap(actions=without_last_rows), "'actions' has 10 rows, .*last row a value too, such as zeros"),
    "flat": (swap(actions=lambda c: c["actions"][:, 0]), r"'actions' has shape \(14,\); .*reshape it to \[14, size\]"),
    "empty": (swap(observations=lambda c: c["observations"][:, :0]), r"'observations' has shape \(14, 0\)"),
    "words": (swap(actions=lambda c: c["actions"].astype(str)), "'actions' holds <U.*, no numbers"),
    "marks": (swap(terminals=lambda c: c["terminals"][:, None]), r"'terminals' has shape \(14, 1\); expected one"),
    "counts": (swap(terminals=lambda c: np.arange(14.0)), r"'terminals' \(float64\) holds more than 0 and 1"),
    "no rows": (swap(terminals=lambda c: c["terminals"][:0]), r"'terminals' has shape \(0,\)"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_refused_by_episode_with_the_remedy(case):
    damage, message = CASES[case]
    columns = rows_of()
    damage(columns)
    with pytest.raises(DataError, match=f"some data: .*{message}"):
        check_episodes(columns, "some data")


@pytest.mark.parametrize("case", list(CASES))
def test_refused_before_training_begins(case, tmp_path):
    store = Store.open(write_store(tmp_path / "toy", [rows_of()], 14, FACTS, "toy"))
    columns = {name: np.array(column) for name, column in store.columns.items()}
    CASES[case][0](columns)
    with pytest.raises(DataError, match="data set 'toy' in "):
        OfflineSource(Store(store.path, store.manifest, columns, store.lengths), {"value": GoalSpec(random=1)}, 4, 0)


def test_recorded_lengths_that_the_ends_contradict_are_refused():
    columns = rows_of()
    assert check_episodes(columns, "x", lengths=np.array(LENGTHS)).tolist() == list(LENGTHS)
    for wrong, episode in (((3, 2, 3, 2), 1), ((3, 1, 4), 3), ((3, 1, 4, 2, 5), 4)):
        with pytest.raises(DataError, match=f"from episode {episode} on, 'terminals' ends episodes elsewhere"):
            check_episodes(columns, "x", lengths=np.array(wrong))


def test_other_bounds_and_numbering():
    columns = rows_of()
    columns["actions"] *= 5
    assert check_episodes(columns, "x", action_bound=5.0).tolist() == list(LENGTHS)
    with pytest.raises(DataError, match=r"episode 70: an action outside \[-1, 1\]"):
        check_episodes(columns, "x", first=70)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_the_episode_named_is_the_first_bad_one(lengths, data):
    columns = rows_of(lengths)
    before = {name: column.copy() for name, column in columns.items()}
    assert check_episodes(columns, "x").tolist() == lengths
    assert all(np.array_equal(columns[name], before[name]) for name in columns)
    row = data.draw(st.integers(0, len(columns["terminals"]) - 1))
    name = data.draw(st.sampled_from(("observations", "actions")))
    columns[name][row, 0] = data.draw(st.sampled_from((np.nan, np.inf, -np.inf)))
    episode = int(before["terminals"][:row].sum())
    with pytest.raises(DataError, match=f"x: episode {episode}: a value in '{name}'"):
        check_episodes(columns, "x")


def test_numbers_of_other_kinds_are_left_as_they_are():
    columns = rows_of()
    columns["observations"] = np.arange(14 * 12, dtype=np.uint8).reshape(14, 2, 2, 3)  # pixels
    columns["button_states"] = np.ones((14, 2), np.int64)
    columns["terminals"] = columns["terminals"].astype(np.float32)
    assert check_episodes(columns, "x").tolist() == list(LENGTHS)
