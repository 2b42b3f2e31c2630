"""Loading a stranger's files runs nothing: no pickle, no evaluated text, no import that a file asks for."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from small_runs import small, synthetic_store, tiny_world

from echelon.data.store import Store
from echelon.errors import CheckpointError, DataError, UsageError
from echelon.rollout import Rollout
from echelon.systems import index, launch
from echelon.training import checkpoint, run
from echelon.training.metrics import read_jsonl

SOURCE = Path(__file__).parents[1] / "src" / "echelon"
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("os", "system"),
    ("runpy", "run_path"),
}
FORBIDDEN_EVENTS = (
    "pickle.",
    "exec",
    "marshal.",
    "ctypes.dlopen",
    "import",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.",
    "socket.",
)


class Marker:
    """Unpickling it writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set and a run on it."""
    folder = tmp_path_factory.mktemp("made")
    with tiny_world(synthetic_store(folder / "walks")):
        cls = index.load("hiql")
        assert run.train(cls, small(cls, updates=4), folder / "run", device="cpu", threads=1, say=lambda text: None)
        yield folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return shutil.copytree(made, tmp_path / "copy")


def load_everything(folder: Path) -> None:
    """Read every kind of file that echelon writes."""
    saved = checkpoint.latest(folder / "run")
    assert saved is not None
    assert checkpoint.load(saved.path).step == 4
    assert Rollout.load(folder / "run" / "rollouts" / "step_000000004").reward
    assert launch.load_agent(folder / "run") is not None
    assert len(read_jsonl(folder / "run" / "metrics.jsonl")) > 0
    store = Store.open(folder / "walks")
    store.verify()
    assert all(np.asarray(column).size for column in store.columns.values())


def test_loading_unpickles_executes_imports_and_writes_nothing(made: Path) -> None:
    def body() -> None:
        load_everything(made)  # what echelon itself imports late is there from now on

        def forbid(event: str, arguments: tuple[object, ...]) -> None:
            if event == "exec" and called_from(typing.__file__):
                return  # echelon's own annotations, from its source
            if event.startswith(FORBIDDEN_EVENTS) and not (event == "import" and arguments[0] in sys.modules):
                raise RuntimeError(f"loading caused {event} {arguments}")
            if event == "open" and str(arguments[1] or "r").strip("bt") not in ("r", ""):
                raise RuntimeError(f"loading opened {arguments[0]} to write")

        sys.addaudithook(forbid)
        load_everything(made)

    assert run_forked(body) == 0


def called_from(file: str) -> bool:
    """Whether a function of this file is being executed."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename != file and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename == file


def test_the_hook_would_have_seen_a_pickle() -> None:
    """The test above rests on Python announcing what pickle looks up."""

    def body() -> None:
        seen = []
        sys.addaudithook(lambda event, arguments: seen.append(event))
        pickle.loads(pickle.dumps(Path("x")))
        assert "pickle.find_class" in seen

    assert run_forked(body) == 0


def resign_checkpoint(directory: Path) -> None:
    """Make the manifest agree with the files, as who forges a checkpoint would."""
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    for name, entry in manifest["files"].items():
        data = (directory / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["sha256"] = checkpoint._digest_of(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize("writer", [pickle.dumps, lambda value: saved_by_torch(value)], ids=["pickle", "torch"])
def test_a_pickle_for_weights_is_refused_unread(
    folder: Path, tmp_path: Path, writer: Callable[[object], bytes]
) -> None:
    mark = tmp_path / "mark"
    directory = folder / "run" / "checkpoints" / "step_000000004"
    (directory / "state.safetensors").write_bytes(writer({"agent.w": Marker(mark)}))
    resign_checkpoint(directory)
    with pytest.raises(CheckpointError, match="step_000000004"):
        checkpoint.load(directory)
    with pytest.raises(CheckpointError, match="step_000000004"):
        launch.load_agent(folder / "run")
    assert not mark.exists()


def saved_by_torch(value: object) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["observations", "actions", "terminals", "lengths"])
def test_a_pickled_column_is_refused_unread(folder: Path, tmp_path: Path, name: str) -> None:
    mark, file = tmp_path / "mark", folder / "walks" / f"{name}.npy"
    np.save(file, np.array([Marker(mark)], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / "walks" / "manifest.json").read_text())
    entry = manifest["lengths"] if name == "lengths" else manifest["columns"][name]
    entry |= {"dtype": "object", "shape": [1], "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (folder / "walks" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"{name}\.npy"):
        Store.open(folder / "walks")
    assert not mark.exists()


def test_a_pickle_for_a_rollout_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    mark, base = tmp_path / "mark", folder / "run" / "rollouts" / "step_000000004"
    tensors, header = base.with_suffix(".safetensors"), base.with_suffix(".json")
    tensors.write_bytes(pickle.dumps(Marker(mark)))
    document = json.loads(header.read_text())
    del document["sha256"]
    document["tensors_sha256"] = hashlib.sha256(tensors.read_bytes()).hexdigest()
    signed = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    header.write_text(json.dumps({**document, "sha256": signed}))
    with pytest.raises(DataError, match=r"step_000000004\.safetensors"):
        Rollout.load(base)
    assert not mark.exists()


def test_a_configuration_names_systems_and_never_code(folder: Path) -> None:
    file = folder / "run" / "config.json"
    document = json.loads(file.read_text())
    for system in ("os:system", "echelon.systems.offline.hiql:HIQL", "../hiql", "__main__"):
        file.write_text(json.dumps({**document, "system": system}))
        with pytest.raises(UsageError, match="unknown system"):
            launch.config_of(file)
    file.write_text(json.dumps({**document, "config": {**document["config"], "_target_": "os.system"}}))
    with pytest.raises(UsageError, match="'_target_'"):
        launch.config_of(file)


def test_the_source_neither_unpickles_nor_evaluates() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 50
    assert {str(file.relative_to(SOURCE)): found for file in files if (found := forbidden(file.read_text()))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(x, weights_only=True)",
        "np.load(x)",
        "eval(x)",
        "exec(x)",
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert forbidden(text)
    assert not forbidden("model.eval(); np.load(x, allow_pickle=False); safetensors.torch.load_file(x)")


def forbidden(text: str) -> list[str]:
    """What a module's source does that could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            found += forbidden_calls(node)
    return found


def forbidden_calls(call: ast.Call) -> list[str]:
    """What is wrong with a call."""
    function, found = call.func, []
    if isinstance(function, ast.Name) and function.id in FORBIDDEN_CALLS:
        found.append(function.id)
    if isinstance(function, ast.Attribute):
        owner = ast.unparse(function.value)
        if (owner, function.attr) in FORBIDDEN_ATTRIBUTES:
            found.append(f"{owner}.{function.attr}")
        refusing = any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in call.keywords)
        if (owner, function.attr) == ("np", "load") and not refusing:
            found.append("np.load without allow_pickle=False")
    for keyword in call.keywords:
        if keyword.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(keyword.value) != "False":
            found.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
        if keyword.arg == "weights_only":
            found.append("weights_only: no torch pickle at all")
        if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
            found.append("shell=True")
    return found
