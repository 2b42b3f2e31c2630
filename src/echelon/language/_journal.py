"""The journal of a rollout phase: what has been answered so far, so that an interrupted phase goes on where it was.

One line a batch: a checksum, a space, JSON. A line that a killed process left half-written is dropped, so that a batch
is there entirely or not at all, and what is missing is sampled in the same batches as without the interruption.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echelon.errors import DataError
from echelon.language._worlds import Fault
from echelon.language.engine import End, Sample, Source

_FORMAT = "echelon.journal"
_SUM = 16  # hexadecimal digits of a line's checksum
Key = tuple[int, int]
"""(uid of the episode, number of the operation in it)."""


class Journal:
    """Answers by (episode, operation), read back and appended to. Lines reach the system at once, not the disk."""

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]):
        """Open or create `path`.

        identity: what the answers depend on beside the requests, JSON-able. DataError if the file has another one, or
        is damaged anywhere but in its last line.
        """
        self.path = Path(path)
        self.known: dict[Key, tuple[str, dict[str, Any]]] = {}
        """Key → (digest of the request, answer)."""
        header = {"format": _FORMAT, "version": 1, "identity": json.loads(json.dumps(identity))}
        good = self._read(header) if self.path.exists() else 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(good)
        if good == 0:
            self._write(header)

    def find(self, key: Key, digest: str) -> dict[str, Any] | None:
        """The answer to this request, None if there is none yet. DataError if the key's request was another one."""
        if key not in self.known:
            return None
        asked, answer = self.known[key]
        if asked != digest:
            raise DataError(
                f"{self.path}: operation {key[1]} of episode {key[0]} was another request than now; the program, its "
                "tasks or its world have changed since. Remove the journal to run the phase anew"
            )
        return answer

    def append(self, entries: Sequence[tuple[Key, str, dict[str, Any]]]) -> None:
        """Keep the answers of one batch."""
        if entries:
            self._write([[*key, digest, answer] for key, digest, answer in entries])

    def close(self) -> None:
        """Force it to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, body: Any) -> None:
        text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        self._file.write(_sum(text) + b" " + text + b"\n")
        self._file.flush()

    def _read(self, header: dict[str, Any]) -> int:
        """Fill `known`; return the length of the part that is whole."""
        raw = self.path.read_bytes()
        lines = raw.split(b"\n")
        good = 0
        for number, line in enumerate(lines[:-1]):
            text = line[_SUM + 1 :]
            if line[: _SUM + 1] != _sum(text) + b" ":
                if any(lines[number + 1 :]):
                    raise DataError(f"{self.path}: line {number + 1} is damaged; remove it to run the phase anew")
                break
            self._take(json.loads(text), header, number)
            good += len(line) + 1
        return good

    def _take(self, body: Any, header: dict[str, Any], number: int) -> None:
        if number == 0:
            if body != header:
                raise DataError(
                    f"{self.path}: the journal of another rollout phase: {body} instead of {header}. Remove it, or "
                    "choose another path"
                )
            return
        for uid, operation, digest, answer in body:
            self.known[(uid, operation)] = (digest, answer)


def digest_of(request: Any) -> str:
    """Digest of a request: a frozen dataclass of plain values."""
    return hashlib.blake2b(repr(request).encode(), digest_size=8).hexdigest()


def sample_to_plain(sample: Sample) -> dict[str, Any]:
    """A sample as JSON; NaN, which JSON does not have, becomes null."""
    logp = [None if math.isnan(value) else value for value in sample.logp]
    plain = {"ids": list(sample.ids), "logp": logp, "end": int(sample.end)}
    return plain if sample.source is Source.SAMPLED else {**plain, "source": int(sample.source)}


def sample_from_plain(plain: Mapping[str, Any]) -> Sample:
    """The inverse of `sample_to_plain`."""
    logp = (math.nan if value is None else value for value in plain["logp"])
    return Sample(tuple(plain["ids"]), tuple(logp), End(plain["end"]), Source(plain.get("source", Source.SAMPLED)))


def scores_to_plain(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Scores as JSON: the bytes of each array, in hexadecimal digits."""
    arrays = {name: np.ascontiguousarray(array) for name, array in scores.items()}
    return {
        "scores": {name: [array.dtype.str, list(array.shape), array.tobytes().hex()] for name, array in arrays.items()}
    }


def scores_from_plain(plain: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `scores_to_plain`."""
    return {
        name: np.frombuffer(bytearray.fromhex(data), dtype=dtype).reshape(shape)
        for name, (dtype, shape, data) in plain["scores"].items()
    }


def fault_to_plain(fault: Fault) -> dict[str, Any]:
    """A fault as JSON."""
    return {"fault": [int(fault.end), fault.message]}


def fault_from_plain(plain: Mapping[str, Any]) -> Fault | None:
    """The fault that an answer is, None if it is none."""
    if "fault" not in plain:
        return None
    end, message = plain["fault"]
    return Fault(End(end), message)


def _sum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_SUM].encode()
