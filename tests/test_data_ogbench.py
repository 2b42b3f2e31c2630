"""The published file format: OGBench's own loader reads what we write, we read what it reads, bad files are refused."""

import urllib.error
import urllib.request

import numpy as np
import pytest

from echelon.data.ogbench import import_npz, read_npz, write_npz
from echelon.data.store import Store
from echelon.envs.ensure import fetch
from echelon.errors import DataError, UsageError

STATES = np.array([[10], [11], [12], [20], [21], [22], [23], [30], [31]], np.float32)
TERMINALS = np.array([0, 0, 1, 0, 0, 0, 1, 0, 1], bool)
ACTIONS = np.linspace(-1, 1, 18).reshape(9, 2).astype(np.float32)


def hand_made(path, **changes):
    columns = {"observations": STATES, "actions": ACTIONS, "terminals": TERMINALS, "qpos": STATES + 0.5}
    np.savez_compressed(path, **{**columns, **changes})
    return path


def test_loading_convention_by_hand(tmp_path):
    store = Store.open(import_npz(hand_made(tmp_path / "toy-play-v0.npz"), root=tmp_path))
    assert store.lengths.tolist() == [2, 3, 1]
    regular = store.regular()
    assert regular["observations"].ravel().tolist() == [10, 11, 20, 21, 22, 30]
    assert regular["next_observations"].ravel().tolist() == [11, 12, 21, 22, 23, 31]
    assert regular["terminals"].tolist() == [0, 1, 0, 0, 1, 1]
    assert regular["qpos"].ravel().tolist() == [10.5, 11.5, 20.5, 21.5, 22.5, 30.5]
    assert (regular["actions"] == ACTIONS[[0, 1, 3, 4, 5, 7]]).all()
    last = store.starts + store.lengths - 1  # the last transition of each episode: its latest goal
    assert STATES[store.row_of(last)].ravel().tolist() == [11, 22, 30]
    assert store.manifest["env"] == "toy-v0" and store.manifest["regenerated"] is False


def test_same_arrays_as_the_package_loads(tmp_path):
    from ogbench.utils import load_dataset

    file = hand_made(tmp_path / "toy-play-v0.npz")
    store = Store.open(import_npz(file, root=tmp_path))
    theirs = load_dataset(str(file), add_info=True)
    ours = store.regular()
    assert set(theirs) == set(ours)
    for name, column in theirs.items():
        assert np.array_equal(column, ours[name]) and column.dtype == ours[name].dtype, name
    compact = load_dataset(str(file), compact_dataset=True)
    assert np.array_equal(compact["observations"], store.columns["observations"])
    assert np.array_equal(np.flatnonzero(compact["valids"]), store.row_of(np.arange(store.transitions)))


def test_round_trip(tmp_path):
    first = Store.open(import_npz(hand_made(tmp_path / "toy-play-v0.npz"), root=tmp_path / "a"))
    write_npz(first, tmp_path / "again.npz")
    second = Store.open(import_npz(tmp_path / "again.npz", name="toy-play-v0", root=tmp_path / "b"))
    assert first.manifest["columns"] == second.manifest["columns"]  # checksums too


def test_types_are_those_of_the_loader(tmp_path):
    file = hand_made(
        tmp_path / "toy.npz",
        observations=STATES.astype(np.float64),
        terminals=TERMINALS.astype(np.float32),
        button_states=np.arange(9)[:, None],
    )
    columns = read_npz(file)
    assert columns["observations"].dtype == np.float32 and columns["terminals"].dtype == bool
    assert columns["button_states"].dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.where(ACTIONS > 0.9, 2.0, ACTIONS)}, "episode 2: an action outside"),
        ({"observations": np.where(STATES == 22, np.inf, STATES)}, "episode 1: a value in 'observations'"),
        ({"terminals": np.array([0, 0, 1, 1, 0, 0, 1, 0, 1], bool)}, "episode 1 has no transition"),
        ({"terminals": np.zeros(9, bool)}, "unfinished"),
        ({"qpos": STATES[:3]}, "'qpos' has 3 rows"),
    ],
)
def test_bad_data_is_refused_with_the_episode(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        import_npz(hand_made(tmp_path / "toy.npz", **changes), root=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_bad_files_are_refused(tmp_path):
    np.savez(tmp_path / "few.npz", observations=STATES, terminals=TERMINALS)
    with pytest.raises(DataError, match="no column 'actions'; it has observations, terminals"):
        read_npz(tmp_path / "few.npz")
    whole = hand_made(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.npz: not a readable .npz file"):
        read_npz(tmp_path / "cut.npz")
    with pytest.raises(DataError, match=r"absent.npz"):
        read_npz(tmp_path / "absent.npz")


def test_fetch_uses_files_that_are_there_and_says_what_to_do_without_internet(tmp_path, monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path / "cache"))
    with pytest.raises(
        DataError, match=r"pointmaze-large-stitch-v0.*download failed.*data make pointmaze-large-stitch"
    ):
        fetch("pointmaze-large-stitch-v0", progress=False)
    with pytest.raises(DataError, match=r"antmaze-large-stitch-v0.*cannot be made here"):
        fetch("antmaze-large-stitch-v0", progress=False)
    with pytest.raises(UsageError, match="published sets are whole"):
        fetch("pointmaze-large-stitch-v0@5")
    folder = tmp_path / ".ogbench" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    hand_made(folder / "antmaze-large-stitch-v0.npz")
    hand_made(folder / "antmaze-large-stitch-v0-val.npz")
    store = Store.open(fetch("antmaze-large-stitch-v0", progress=False))
    assert store.manifest["env"] == "antmaze-large-v0" and store.validation().manifest["split"] == "val"
    assert fetch("antmaze-large-stitch-v0", progress=False) == store.path


def test_a_download_is_whole_or_absent(tmp_path, monkeypatch):
    whole = hand_made(tmp_path / "x.npz").read_bytes()

    class Response:
        def __init__(self, body):
            self.body, self.headers = body, {"Content-Length": str(len(whole))}

        def read(self, size):
            block, self.body = self.body[:100], self.body[100:]
            return block

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(whole[:-7]))
    with pytest.raises(DataError, match="bytes came"):
        fetch("scene-play-v0", progress=False)
    assert not list((tmp_path / ".ogbench" / "data").iterdir())
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(whole))
    store = Store.open(fetch("scene-play-v0", progress=False))
    assert store.transitions == 6 and store.manifest["source"].endswith("/scene-play-v0.npz")
