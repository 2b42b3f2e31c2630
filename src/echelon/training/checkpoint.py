"""Checkpoints that are whole or absent, and are never trusted before their checksums agree.

`save` writes `checkpoints/step_000015000.tmp/`, flushes it to the disk, renames it and only then points `latest` at
it, so a process killed at any instant leaves the previous checkpoint in place. `latest` returns the newest directory
whose manifest verifies. Tensors are stored as safetensors, all else as JSON: loading runs no code from the files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from echelon.errors import CheckpointError, UsageError

FORMAT = 1
TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "manifest.json"
_DIRECTORY = re.compile(r"step_(\d{9,})(\.old)?")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; `refused` names the newer ones that did not verify, each with the reason."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    refused: tuple[str, ...] = ()


def save(run_dir: Path | str, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of `step` and keep the newest `keep`.

    Args:
        run_dir: the run; the files go to `<run_dir>/checkpoints/step_<step>/`.
        tensors: name -> tensor of any shape, device and layout; tensors that share memory are stored apart.
        state: plain JSON with string keys (see `flatten` for nested states that hold tensors or tuples).

    Raises:
        CheckpointError: the disk is full or read-only, or `state` is not plain JSON. Older checkpoints stay intact.
    """
    if keep < 1:
        raise UsageError(f"keep = {keep}: at least one checkpoint must be kept")
    root = Path(run_dir) / "checkpoints"
    final = root / f"step_{step:09d}"
    staging = root / f"{final.name}.tmp"
    text = _dump_state(state)
    arrays = _independent(tensors)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob("*.tmp"):
            _remove(stale)
        _stage(staging, step, arrays, text)
        _publish(staging, final)
        _write_atomically(root / "latest", final.name + "\n")
        _prune(root, final, keep)
    except (OSError, SafetensorError) as error:
        _remove(staging)
        needed = sum(t.numel() * t.element_size() for t in arrays.values())
        raise CheckpointError(_write_failure(root, final.name, error, needed)) from error
    return final


def load(path: Path | str) -> Checkpoint:
    """Read one checkpoint directory after checking every byte of it.

    Raises:
        CheckpointError: a file is missing, truncated or altered; the message names it.
    """
    path = Path(path)
    manifest = _verify(path)
    try:
        # Cloned: a mapped file is not aligned as fresh tensors are, which may change the last bit of a sum.
        tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE}: the state must be an object, not {type(state).__name__}")
    return Checkpoint(path, manifest["step"], tensors, state)


def latest(run_dir: Path | str) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies; None when the run has none at all.

    Raises:
        CheckpointError: checkpoints exist but every one of them is damaged (each is named with its reason).
    """
    refused: list[str] = []
    for path in _candidates(Path(run_dir) / "checkpoints"):
        try:
            found = load(path)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        return Checkpoint(found.path, found.step, found.tensors, found.state, tuple(refused))
    if refused:
        listing = "\n  ".join(refused)
        raise CheckpointError(f"no checkpoint of {run_dir} can be used; start the run anew elsewhere:\n  {listing}")
    return None


class RunLock:
    """Context manager that gives one process at a time the right to write a run directory.

    Raises:
        UsageError: another process holds the run; the message names its process id.
    """

    def __init__(self, run_dir: Path | str):
        self.path = Path(run_dir) / ".lock"
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"cannot write to the run directory {self.path.parent}: {error.strerror}; choose a writable one"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise UsageError(
                f"process {holder} is writing the run {self.path.parent}; "
                "wait for it, stop it, or choose another directory"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: unlinking it would let a third process lock a new file while a second waits on the old one.
        os.close(self._descriptor)
        self._descriptor = -1


def flatten(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a nested state (dicts, lists, tuples, scalars, tensors: an optimiser's `state_dict()`) for `save`.

    Returns:
        the tensors by name, every name starting with `prefix`, and a JSON description that `unflatten` takes back.
    """
    tensors: dict[str, Tensor] = {}

    def encode(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            while path in tensors:  # {"a.b": x, "a": {"b": y}}: two tensors whose paths read alike
                path += "'"
            tensors[path] = node
            return {"$tensor": path}
        if isinstance(node, tuple):
            return {"$tuple": [encode(item, f"{path}.{i}") for i, item in enumerate(node)]}
        if isinstance(node, list):
            return [encode(item, f"{path}.{i}") for i, item in enumerate(node)]
        if isinstance(node, dict):
            plain = all(isinstance(key, str) and not key.startswith("$") for key in node)
            pairs = [(key, encode(value, f"{path}.{key}")) for key, value in node.items()]
            return dict(pairs) if plain else {"$items": [[key, value] for key, value in pairs]}
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise CheckpointError(f"cannot store {path}: {type(node).__name__} is neither a tensor nor plain data")

    return tensors, encode(tree, prefix)


def unflatten(tensors: Mapping[str, Tensor], description: Any) -> Any:
    """Rebuild what `flatten` took apart."""
    if isinstance(description, list):
        return [unflatten(tensors, item) for item in description]
    if not isinstance(description, dict):
        return description
    if "$tensor" in description:
        name = description["$tensor"]
        if name not in tensors:
            raise CheckpointError(f"the checkpoint's state names the tensor '{name}', which it does not contain")
        return tensors[name]
    if "$tuple" in description:
        return tuple(unflatten(tensors, item) for item in description["$tuple"])
    if "$items" in description:
        return {key: unflatten(tensors, value) for key, value in description["$items"]}
    return {key: unflatten(tensors, value) for key, value in description.items()}


def write_json(path: Path | str, value: Any) -> None:
    """Replace a JSON file atomically: a reader sees the old contents or the new ones, never a part.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        _write_atomically(Path(path), json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense CPU tensors of which no two share memory, as the safetensors format demands."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        dense = tensor.detach().to("cpu").contiguous()
        storage = dense.untyped_storage()
        if storage.nbytes() != dense.numel() * dense.element_size() or storage.data_ptr() in seen:
            dense = dense.clone()
            storage = dense.untyped_storage()
        seen.add(storage.data_ptr())
        result[name] = dense
    return result


def _dump_state(state: dict[str, Any]) -> str:
    def check(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if not isinstance(key, str):
                    raise CheckpointError(f"{path}: the key {key!r} is not a string and would come back as one")
                check(value, f"{path}.{key}")
        elif isinstance(node, list):
            for i, value in enumerate(node):
                check(value, f"{path}[{i}]")
        elif not (node is None or type(node) in (bool, int, float, str)):
            raise CheckpointError(f"{path}: {type(node).__name__} is not plain JSON; use flatten() or convert it")

    check(state, "state")
    return json.dumps(state)


def _stage(staging: Path, step: int, tensors: dict[str, Tensor], text: str) -> None:
    staging.mkdir()
    (staging / STATE).write_text(text, encoding="utf-8")
    save_file(tensors, staging / TENSORS)
    shutil.copymode(staging / STATE, staging / TENSORS)  # safetensors ignores the umask: only the owner could read it
    files = {
        name: {"bytes": (staging / name).stat().st_size, "sha256": _digest(staging / name)} for name in (TENSORS, STATE)
    }
    body = {"format": FORMAT, "step": step, "torch": str(torch.__version__), "files": files}
    manifest = {**body, "sha256": _digest_of(body)}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for name in (TENSORS, STATE, MANIFEST):
        _sync(staging / name)
    _sync(staging)


def _publish(staging: Path, final: Path) -> None:
    if final.exists():
        # A step saved again: the first one stays loadable under `.old` until its successor has the name.
        old = final.with_name(final.name + ".old")
        _remove(old)
        os.rename(final, old)
    os.rename(staging, final)
    _sync(final.parent)


def _prune(root: Path, newest: Path, keep: int) -> None:
    paths = _candidates(root)
    position = paths.index(newest)
    for path in paths[:position]:
        # A later step than the one just saved: damaged, or this run would have resumed from it.
        if not _is_whole(path):
            _remove(path)
    earlier = paths[position:]
    kept = [path for path in earlier if not path.name.endswith(".old")][:keep]
    for path in earlier:
        if path not in kept:
            _remove(path)


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except CheckpointError:
        return False
    return True


def _remove(path: Path) -> None:
    """Remove a checkpoint; its manifest goes first, so that a half-removed one can never be mistaken for whole."""
    if path.is_dir():
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _candidates(root: Path) -> list[Path]:
    """Checkpoint directories, newest first; a step's `.old` copy comes after the step itself."""
    found = [(match, path) for path in root.glob("step_*") if (match := _DIRECTORY.fullmatch(path.name))]
    found.sort(key=lambda pair: (-int(pair[0][1]), pair[0][2] or ""))
    return [path for _, path in found]


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no {MANIFEST}; this is not a complete checkpoint") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: unreadable ({error})") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest_of(manifest):
        raise CheckpointError(f"{file}: altered (its own checksum does not match)")
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise CheckpointError(
            f"{file}: format {found}, this echelon reads format {FORMAT}; use the release that wrote it"
        )
    files: Any = manifest.get("files")
    complete = isinstance(files, dict) and files.keys() == {TENSORS, STATE} and type(manifest.get("step")) is int
    if not complete or not all(isinstance(e, dict) and e.keys() == {"bytes", "sha256"} for e in files.values()):
        raise CheckpointError(f"{file}: it must give the step and the sizes and checksums of {TENSORS} and {STATE}")
    return manifest


def _verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest; return the manifest."""
    manifest = _read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            actual = file.stat().st_size
            digest = _digest(file)
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}") from error
        if actual != entry["bytes"]:
            raise CheckpointError(
                f"{file}: {actual} bytes instead of {entry['bytes']}; the file is truncated or altered"
            )
        if digest != entry["sha256"]:
            raise CheckpointError(f"{file}: its SHA-256 does not match the manifest; the file is altered")
    return manifest


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_atomically(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    os.replace(aside, path)
    _sync(path.parent)


def _write_failure(root: Path, name: str, error: Exception, needed: int) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    place = next((path for path in (root, *root.parents) if path.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if os.access(place, os.W_OK):
        remedy = f"about {math.ceil(needed / 2**20)} MiB are needed and {free // 2**20} MiB are free: make room"
    else:
        remedy = f"{place} is not writable: change its permissions or choose another run directory"
    return f"cannot write the checkpoint {root / name}: {reason}; {remedy}. Earlier checkpoints are intact."
