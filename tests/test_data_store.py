"""The store on disk: numbering of rows and transitions, refusal of bad contents, damage, whole-or-absent writing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.data.store import MANIFEST, Store, cache_dir, check_episodes, exists, write_store
from echelon.errors import DataError, UsageError

FACTS = {"name": "toy", "recipe": {"name": "by hand", "version": 1}, "regenerated": True, "source": "test", "seed": 0}


def rows_of(lengths, seed=0):
    """Whole episodes of `lengths` transitions; observations count the rows, so that each is recognised."""
    rng = np.random.default_rng(seed)
    rows = int(sum(lengths)) + len(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(np.asarray(lengths) + 1) - 1] = True
    observations = np.stack([np.arange(rows), rng.normal(size=rows)], 1).astype(np.float32)
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "terminals": terminals,
    }


def written(folder: Path, lengths=(3, 1, 4)):
    columns = rows_of(lengths)
    return write_store(folder / "toy", [columns], len(columns["terminals"]), FACTS, "toy")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_numbering_against_a_naive_walk(lengths):
    columns = rows_of(lengths)
    store = Store(Path("."), {"name": "toy"}, columns, check_episodes(columns, "toy"))
    assert store.lengths.tolist() == lengths
    transition, row, expected = 0, 0, []
    for episode, length in enumerate(lengths):
        for _ in range(length):
            expected.append((transition, episode, row))
            transition, row = transition + 1, row + 1
        row += 1
    numbers, episodes, rows = (np.array(column) for column in zip(*expected, strict=True))
    assert store.transitions == len(expected)
    assert (store.episode_of(numbers) == episodes).all()
    assert (store.row_of(numbers) == rows).all()
    regular = store.regular()
    assert (regular["observations"][:, 0] == rows).all()
    assert (regular["next_observations"][:, 0] == rows + 1).all()
    last = np.append(episodes[1:] != episodes[:-1], True)
    assert (regular["terminals"] == last).all()
    for e, length in enumerate(lengths):
        assert len(store.episode(e)["actions"]) == length + 1


def test_written_store_opens_with_the_same_contents(tmp_path):
    path = written(tmp_path)
    store = Store.open(path)
    expected = rows_of((3, 1, 4))
    assert store.name == "toy" and (store.episodes, store.transitions, store.rows) == (3, 8, 11)
    for name, column in expected.items():
        assert isinstance(store.columns[name], np.memmap)
        assert store.columns[name].dtype == column.dtype and np.array_equal(store.columns[name], column)
    assert store.manifest["columns"]["observations"]["shape"] == [11, 2]
    assert store.manifest["recipe"]["name"] == "by hand" and store.manifest["versions"]["numpy"]
    store.verify()
    assert store.validation() is None
    with pytest.raises(DataError, match="exists already"):
        written(tmp_path)


def test_pieces_are_joined_in_order(tmp_path):
    whole = rows_of((2, 2, 5))
    pieces = [{k: v[:6] for k, v in whole.items()}, {k: v[6:] for k, v in whole.items()}]
    store = Store.open(write_store(tmp_path / "toy", iter(pieces), 12, FACTS, "toy"))
    assert store.lengths.tolist() == [2, 2, 5]
    assert all(np.array_equal(store.columns[k], whole[k]) for k in whole)


@pytest.mark.parametrize(("asked", "episodes"), [(1, 1), (3, 1), (4, 2), (5, 3), (8, 3), (100, 3)])
def test_head_takes_whole_episodes(tmp_path, asked, episodes):
    head = Store.open(written(tmp_path)).head(asked)
    assert head.episodes == episodes == head.manifest["episodes"]
    assert head.manifest["transitions"] == head.transitions == sum((3, 1, 4)[:episodes])
    assert all(len(column) == head.rows for column in head.columns.values())
    assert head.name == "toy"
    with pytest.raises(UsageError, match="ask for 1 or more"):
        head.head(0)


def test_names_are_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path))
    assert cache_dir() == tmp_path and not exists("toy")
    written(tmp_path)
    assert exists("toy") and Store.open("toy").path == tmp_path / "toy"
    with pytest.raises(UsageError, match=r"no data set 'tiy'.*holds toy.*echelon data make tiy"):
        Store.open("tiy")


def break_nan(columns):
    columns["observations"][6, 1] = np.nan


def break_action(columns):
    columns["actions"][9, 2] = 1.5


def break_empty(columns):
    columns["terminals"][8] = columns["terminals"][9] = True


def break_end(columns):
    columns["terminals"][-1] = False


def break_shape(columns):
    columns["actions"] = columns["actions"][:-1]


def break_missing(columns):
    del columns["actions"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_nan, "episode 2: a value in 'observations' is not finite"),
        (break_action, r"episode 2: an action outside \[-1, 1\] \(largest size 1.5\)"),
        (break_empty, "episode 3 has no transition"),
        (break_end, "the last episode is unfinished"),
        (break_shape, "'actions' has 10 rows, 'terminals' has 11"),
        (break_missing, "no column 'actions'"),
    ],
)
def test_bad_contents_are_refused_by_episode_and_leave_nothing(tmp_path, damage, message):
    columns = rows_of((3, 1, 4))
    damage(columns)
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "toy", [columns], 11, FACTS, "toy")
    assert list(tmp_path.iterdir()) == []


def test_episodes_are_counted_across_pieces(tmp_path):
    good, bad = rows_of((2, 2)), rows_of((2, 2))
    bad["actions"][4] = -7
    with pytest.raises(DataError, match="episode 3: an action outside"):
        write_store(tmp_path / "toy", [good, bad], 12, FACTS, "toy")


@pytest.mark.parametrize("rows", [10, 12])
def test_an_unannounced_number_of_rows_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match="announced"):
        write_store(tmp_path / "toy", [rows_of((3, 1, 4))], rows, FACTS, "toy")
    assert list(tmp_path.iterdir()) == []


def test_changed_columns_between_pieces_are_refused(tmp_path):
    other = rows_of((2,))
    other["observations"] = other["observations"].astype(np.float64)
    with pytest.raises(DataError, match=r"episode 1 on, 'observations' is float64\[2\], before it was float32\[2\]"):
        write_store(tmp_path / "toy", [rows_of((2,)), other], 6, FACTS, "toy")


def test_damage_on_disk_is_named_with_its_file_and_the_remedy(tmp_path):
    path = written(tmp_path)
    file = path / "actions.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"actions.npy: missing or truncated.*echelon data make toy"):
        Store.open(path)
    file.write_bytes(whole + b"tail")
    with pytest.raises(DataError, match="bytes is not the size of its"):
        Store.open(path)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    store = Store.open(path)
    with pytest.raises(DataError, match=r"actions.npy: its checksum"):
        store.verify()
    file.unlink()
    with pytest.raises(DataError, match=r"actions.npy"):
        Store.open(path)


def test_a_manifest_that_does_not_fit_is_refused(tmp_path):
    path = written(tmp_path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["columns"]["actions"]["dtype"] = "float64"
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"float32\[11, 3\], the manifest says float64"):
        Store.open(path)
    (path / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DataError, match="format 99, this version reads 1"):
        Store.open(path)
    (path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        Store.open(path)
