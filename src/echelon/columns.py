"""Named tensors on disk: `<path>.safetensors` beside `<path>.json`, checked by SHA-256, replaced atomically.

Column names are paths, "decisions/option/start", so that nested records keep their shape; no single name contains "/".
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from echelon.errors import DataError

VERSION = 1


def save(path: str | os.PathLike[str], form: str, columns: Mapping[str, Any], header: dict[str, Any]) -> None:
    """Write nested `columns` (str → Tensor or such a mapping) and a JSON-able `header` as a record of the kind `form`.

    The JSON names the checksum of the tensors, which go last: whoever lists the tensors finds whole records, and
    whoever is killed between the two leaves a pair that `load` refuses, never one that it misreads.
    """
    tensors_path, header_path = _paths(path)
    try:
        header = json.loads(json.dumps(header))
    except (TypeError, ValueError) as error:
        raise DataError(f"{header_path}: the header is not JSON-able: {error}") from error
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in flatten(columns).items()}
    tensors_path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        save_file(tensors, temporary)
        document = {"format": form, "version": VERSION, "header": header, "tensors_sha256": _sha256(temporary)}
        text = json.dumps({**document, "sha256": _digest(document)}, indent=1)
        _replace(header_path, lambda beside: beside.write_text(text))

    _replace(tensors_path, write)


def load(path: str | os.PathLike[str], form: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save` wrote: (nested columns, header). DataError names a missing, altered or truncated file."""
    tensors_path, header_path = _paths(path)
    for file in (header_path, tensors_path):
        if not file.is_file():
            raise DataError(f"{file}: no such file")
    try:
        document = json.loads(header_path.read_text())
        digest = document.pop("sha256")
        intact = digest == _digest(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{header_path}: truncated, or not written by echelon ({error})") from error
    if not intact:
        raise DataError(f"{header_path}: altered since it was written (its checksum differs)")
    if (document["format"], document["version"]) != (form, VERSION):
        raise DataError(
            f"{header_path}: holds {document['format']} version {document['version']}, not {form} {VERSION}"
        )
    if _sha256(tensors_path) != document["tensors_sha256"]:
        raise DataError(f"{tensors_path}: altered or truncated since it was written (its checksum differs)")
    try:
        return nest(load_file(tensors_path)), document["header"]
    except SafetensorError as error:
        raise DataError(f"{tensors_path}: {error}") from error


def flatten(columns: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested mappings → one mapping whose names are paths."""
    flat: dict[str, Tensor] = {}
    for name, value in columns.items():
        if "/" in name or not name:
            raise DataError(f"the name '{name}' cannot be a column's: it is empty or contains '/'")
        flat |= {prefix + name: value} if isinstance(value, Tensor) else flatten(value, f"{prefix}{name}/")
    return flat


def nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten`; empty mappings are lost."""
    columns: dict[str, Any] = {}
    for path, tensor in flat.items():
        *above, name = path.split("/")
        place = columns
        for step in above:
            place = place.setdefault(step, {})
        place[name] = tensor
    return columns


def _paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    base = os.fspath(path)
    return Path(base + ".safetensors"), Path(base + ".json")


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, force it to the disk, and put it in the place of `target`."""
    temporary = target.with_name(f".{target.name}.tmp")  # one name: what a killed process left is overwritten
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
