"""Minari sets: what a reader of the format expects row by row, refusals by episode, no internet, missing extras."""

import json
import subprocess
import sys

import numpy as np
import pytest

from echelon.cli import main
from echelon.data import minari
from echelon.data.goals import GoalSpec
from echelon.data.source import OfflineSource
from echelon.data.store import Store
from echelon.errors import DataError, MissingExtra, UsageError

STEPS = (3, 1, 4)
BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-2.0, 0.0], "high": [2.0, 4.0]}


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("ECHELON_DATA", str(tmp_path / "cache"))
    return tmp_path


def episodes_of(goals=False, seed=0):
    rng = np.random.default_rng(seed)
    for e, steps in enumerate(STEPS):
        seen = rng.normal(size=(steps + 1, 5))
        observed = {
            "observation": seen,
            "achieved_goal": seen[:, :3],
            "desired_goal": np.full((steps + 1, 3), float(e)),
        }
        yield {
            "observations": observed if goals else seen,
            "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            "rewards": np.arange(steps, dtype=float),
            "terminations": np.arange(steps) == (steps - 1 if e == 1 else -1),
            "truncations": np.arange(steps) == (steps - 1 if e != 1 else -1),
        }


def write(h5py, home, name="toy/reach-v0", goals=False, change=None, metadata=None):
    folder = home / "minari" / name / "data"
    folder.mkdir(parents=True)
    facts = {"dataset_id": name, "data_format": "hdf5", "env_spec": json.dumps({"id": "Toy-v0"})}
    (folder / "metadata.json").write_text(json.dumps({**facts, "action_space": json.dumps(BOX), **(metadata or {})}))
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for e, episode in enumerate(episodes_of(goals)):
            if change is not None:
                change(e, episode)
            put(file.create_group(f"episode_{e}"), episode)
    return folder


def put(group, tree):
    for name, value in tree.items():
        if isinstance(value, dict):
            put(group.create_group(name), value)
        else:
            group.create_dataset(name, data=value)


def test_rows_of_plain_observations(h5py, home):
    folder = write(h5py, home)
    store = Store.open(minari.import_minari("minari:toy/reach-v0"))
    assert store.path == home / "cache" / "toy-reach-v0" and store.lengths.tolist() == list(STEPS)
    assert sorted(store.columns) == ["actions", "observations", "rewards", "terminals", "terminations"]
    for e, expected in enumerate(episodes_of()):
        rows = store.episode(e)
        steps = STEPS[e]
        assert np.array_equal(rows["observations"], expected["observations"].astype(np.float32))
        assert np.array_equal(rows["actions"][:-1], expected["actions"]) and (rows["actions"][-1] == 0).all()
        assert rows["rewards"].tolist() == [*range(steps), 0]
        assert rows["terminations"].tolist() == [*expected["terminations"].tolist(), False]
        assert rows["terminals"].tolist() == [False] * steps + [True]
    facts = {key: store.manifest[key] for key in ("env", "regenerated", "source", "recipe")}
    assert facts == {
        "env": "Toy-v0",
        "regenerated": False,
        "source": "minari:toy/reach-v0",
        "recipe": {"name": "minari", "version": 1, "dataset": "toy/reach-v0", "rescaled": False},
    }
    store.verify()
    batch = OfflineSource(store, {"value": GoalSpec(random=1)}, 16, 0).next()
    assert batch["value_goals"].shape == (16, 5) and batch["actions"].shape == (16, 2)
    for place in (folder, folder.parent):  # by folder, from anywhere
        again = Store.open(minari.import_minari(place, name=f"again-{place.name}"))
        assert again.manifest["columns"] == store.manifest["columns"]
    with pytest.raises(UsageError, match="toy-reach-v0 exists already; remove it to import"):
        minari.import_minari("minari:toy/reach-v0")


def test_goals_become_columns(h5py, home):
    write(h5py, home, goals=True)
    store = Store.open(minari.import_minari("minari:toy/reach-v0", name="mine"))
    assert store.name == "mine" and store.columns["observations"].shape == (11, 5)
    assert np.array_equal(store.columns["achieved_goals"], store.columns["observations"][:, :3])
    assert store.columns["desired_goals"][:, 0].tolist() == [0] * 4 + [1] * 2 + [2] * 5


def test_nested_goals_lie_side_by_side(h5py, home):
    def nest(e, episode):
        goal = episode["observations"]["desired_goal"]
        episode["observations"]["desired_goal"] = {"kettle": goal[:, :2], "burner": goal[:, 2:] + 10}

    write(h5py, home, goals=True, change=nest)
    store = Store.open(minari.import_minari("minari:toy/reach-v0"))
    assert store.columns["desired_goals"][0].tolist() == [10, 0, 0]  # burner before kettle


def test_actions_are_rescaled_when_asked(h5py, home):
    def wide(e, episode):
        episode["actions"][:, 0] *= 2
        episode["actions"][:, 1] += 2

    write(h5py, home, change=wide)
    with pytest.raises(DataError, match=r"episode 0: an action outside \[-1, 1\]"):
        minari.import_minari("minari:toy/reach-v0")
    assert not (home / "cache" / "toy-reach-v0").exists()
    store = Store.open(minari.import_minari("minari:toy/reach-v0", rescale_actions=True))
    original = next(episodes_of())["actions"]
    expected = np.stack([original[:, 0], original[:, 1] / 2], 1)
    assert np.allclose(store.episode(0)["actions"][:-1], expected, atol=1e-6)
    assert store.manifest["recipe"]["rescaled"] is True


CASES = {
    "nan": (lambda e, x: x["observations"].__setitem__((0, 0), np.nan if e == 2 else 0), "episode 2: a value in 'obs"),
    "short": (lambda e, x: x.update(observations=x["observations"][:-1]), "episode 0: 3 observations and 3 actions"),
    "no steps": (
        lambda e, x: e != 1 or x.update(observations=x["observations"][:1], actions=np.zeros((0, 2)),
                                        rewards=np.zeros(0), terminations=np.zeros(0, bool)),
        "episode 1 has no transition",
    ),
    "sizes": (lambda e, x: e == 2 and x.update(actions=np.zeros((4, 3), np.float32)), "from episode 2 on, 'actions'"),
    "discrete": (lambda e, x: x.update(actions=np.zeros(STEPS[e], int)), "episode 0: actions are single numbers"),
    "dictionary": (lambda e, x: x.update(actions={"left": x["actions"]}), "episode 0: actions are a dictionary of l"),
    "no goal": (lambda e, x: x.update(observations={"joints": x["observations"]}), "episode 0: observations are jo"),
    "text": (lambda e, x: x.update(observations=[b"go"] * (STEPS[e] + 1)), "episode 0: observations hold object"),
    "rewards": (lambda e, x: e == 1 and x.update(rewards=np.zeros(3)), r"episode 1: rewards of shape \(3,\) for 1 act"),
    "missing": (lambda e, x: e == 1 and x.pop("terminations"), "episode 1: no 'terminations'; it has actions, observ"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_bad_sets_are_refused_by_episode(h5py, home, case):
    change, message = CASES[case]
    write(h5py, home, change=change)
    with pytest.raises(DataError, match=message):
        minari.import_minari("minari:toy/reach-v0")
    assert not list((home / "cache").glob("*"))


def test_bad_files_are_refused(h5py, home):
    folder = write(h5py, home)
    whole = (folder / "main_data.hdf5").read_bytes()
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    with pytest.raises(DataError, match="no group 'episode_1'; expected episode_0, episode_1"):
        minari.import_minari(folder)
    (folder / "main_data.hdf5").write_bytes(whole[:200])
    with pytest.raises(DataError, match=r"main_data.hdf5: not a whole HDF5 file"):
        minari.import_minari(folder)
    (folder / "metadata.json").write_text(json.dumps({"action_space": json.dumps({"type": "Discrete", "n": 3})}))
    with pytest.raises(DataError, match="the action space is Discrete; only a Box"):
        minari.import_minari(folder, rescale_actions=True)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata.json: not readable as JSON"):
        minari.import_minari(folder)


def test_the_command_line(h5py, home, capsys):
    folder = write(h5py, home)
    assert main(["data", "import", "minari:toy/reach-v0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transitions"] == sum(STEPS)
    assert main(["data", "import", str(folder.parent), "--name", "other", "--rescale-actions"]) == 1  # -0.x is below 0
    assert "episode 0: an action outside" in capsys.readouterr().err
    assert main(["data", "fetch", "minari:toy/reach-v0"]) == 2  # it is here, and imported already
    assert "exists already" in capsys.readouterr().err
    assert main(["data", "import", "absent.npz", "--rescale-actions"]) == 2
    assert "for Minari sets" in capsys.readouterr().err
    assert main(["data", "import", "minari:toy/absent-v0"]) == 2
    said = capsys.readouterr().err
    assert "it holds toy/reach-v0" in said and "with internet: echelon data fetch minari:toy/absent-v0" in said


def test_missing_packages_and_other_formats_are_named(home, monkeypatch):
    folder = home / "minari" / "toy-v0" / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(DataError, match=r"no main_data.hdf5; of Minari's formats, only HDF5 is read"):
        minari.import_minari("minari:toy-v0")
    (folder / "main_data.hdf5").write_bytes(b"")
    monkeypatch.setattr(minari.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'h5py is not installed; it comes with: pip install "echelon\[minari\]"'):
        minari.import_minari("minari:toy-v0")
    with pytest.raises(MissingExtra, match="minari is not installed"):
        minari.fetch("minari:other-v0")


def test_downloads(h5py, home, monkeypatch):
    monkeypatch.setattr(minari.util, "find_spec", lambda name: object())
    asked = []

    def download(argv, **options):
        asked.append(argv)
        if argv[-1] == "toy/reach-v0":
            write(h5py, home)
        code = int(argv[-1] != "toy/reach-v0")
        return subprocess.CompletedProcess(argv, code, stderr="Traceback\nOSError: no route\n")

    monkeypatch.setattr(minari.subprocess, "run", download)
    assert Store.open(minari.fetch("minari:toy/reach-v0")).transitions == sum(STEPS)
    assert asked[0][0] == sys.executable and "minari.download_dataset" in asked[0][2]
    with pytest.raises(
        DataError, match=r"minari:toy/none-v0: download failed \(OSError: no route\); is there internet"
    ):
        minari.fetch("minari:toy/none-v0")


@pytest.mark.filterwarnings("ignore")
def test_what_the_package_writes_is_read(h5py, home):
    package = pytest.importorskip("minari")
    from gymnasium.spaces import Box, Dict
    from minari.data_collector import EpisodeBuffer

    place = {
        name: Box(-9, 9, (size,)) for name, size in (("observation", 5), ("achieved_goal", 3), ("desired_goal", 3))
    }
    buffers = [EpisodeBuffer(id=e, **episode) for e, episode in enumerate(episodes_of(goals=True))]
    package.create_dataset_from_buffers(
        "toy/written-v0", buffers, observation_space=Dict(place), action_space=Box(-1, 1, (2,))
    )
    store = Store.open(minari.import_minari("minari:toy/written-v0"))
    assert store.lengths.tolist() == list(STEPS) and store.columns["desired_goals"].shape == (11, 3)
    assert np.array_equal(store.episode(2)["actions"][:-1], list(episodes_of())[2]["actions"])
