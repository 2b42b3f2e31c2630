"""What is written down while an episode runs; `RecordBuilder` makes a record of several."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from echelon.errors import DataError
from echelon.language._checks import FAULTS, SLACK
from echelon.language._tables import Use
from echelon.language.engine import End, Source

Ids = Sequence[int] | np.ndarray | Tensor
Labels = Mapping[str, int | Sequence[int] | np.ndarray | Tensor]
Values = Mapping[str, float | Sequence[float] | np.ndarray | Tensor]


@dataclass
class StreamRow:
    """One stream; calls are named by their number in the episode."""

    order: tuple[int, ...]
    agent: str
    parent_call: int
    learner: bool
    made: int = 0  # calls so far


@dataclass
class CallRow:
    """One call."""

    stream: int
    order: tuple[int, ...]
    context: np.ndarray  # int32
    output: np.ndarray  # int32
    given: np.ndarray | None  # int32; None: the context
    source: np.ndarray  # int64, one a token
    logp: np.ndarray  # float32, one a token
    plain: dict[str, Any]  # further columns of `Calls`
    state: int = -1
    reward: float = 0.0
    begin: dict[str, bool] = field(default_factory=dict)
    label: dict[str, int] = field(default_factory=dict)
    value: dict[str, float] = field(default_factory=dict)
    part: dict[str, float] = field(default_factory=dict)
    token_label: dict[str, np.ndarray] = field(default_factory=dict)
    token_value: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # by column: obs_text, out_text, state_text


class EpisodeBuilder:
    """One episode. Streams and calls are named by the numbers that `stream` and `call` return.

    An error names the episode and the call, and leaves the episode as it was.
    """

    def __init__(self, uid: int, group: int, task: str | None, kind: str, seed: int, origin: tuple[int, int, int]):
        self.uid, self.group, self.task, self.kind, self.seed, self.origin = uid, group, task, kind, seed, origin
        self.streams: list[StreamRow] = []
        self.calls: list[CallRow] = []
        self.terminated = self.truncated = False
        self.fault = -1

    def stream(
        self, agent: str = "policy", parent_call: int = -1, learner: bool = True, order: Sequence[int] | None = None
    ) -> int:
        """Open a time line of `agent`, for the sake of a call of this episode or, -1, of the episode.

        order: sorts the streams of the episode, lexicographically; by default the sequence of opening. A program whose
        streams are opened concurrently names it, so that the record does not depend on who came first.
        """
        self._check_call("parent_call", parent_call, none=True)
        key = (len(self.streams),) if order is None else tuple(order)
        if any(key == other.order for other in self.streams):
            raise DataError(f"{self}: a stream with the order {key} exists already")
        self.streams.append(StreamRow(key, agent, parent_call, learner))
        return len(self.streams) - 1

    def call(
        self,
        stream: int,
        context_ids: Ids,
        output_ids: Ids,
        logp: Sequence[float] | np.ndarray | Tensor | None = None,
        source: Source | Sequence[int] | np.ndarray | Tensor = Source.SAMPLED,
        end: End = End.EOS,
        *,
        given: Ids | None = None,
        use: Use = Use.ACTED,
        order: Sequence[int] | None = None,
        parent: int = -1,
        policy: int = 0,
        valid: bool = True,
        state: str | None = None,
        begin: Mapping[str, bool] | None = None,
        labels: Labels | None = None,
        values: Values | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        started: float = math.nan,
        finished: float = math.nan,
        obs_text: str | None = None,
        out_text: str | None = None,
    ) -> int:
        """Write down a text that an agent emitted under a context; returns the call's number.

        context_ids: what the text is scored under. given: what it was sampled under, if that was something else.
        logp: one a token, of the temperature-scaled distribution, NaN unless sampled; None: NaN throughout.
        source: `Source`, one for all tokens or one a token.
        order: sorts the calls of the stream, by default the sequence of writing them down; see `stream`.
        parent: the call that this one retries, expands or answers.
        state: what identifies the state the call was made in; kept, with a hash of it as the key.
        begin: levels of which a span begins with this call.
        labels, values: by channel or head; a number belongs to the call, a vector to its tokens.
        started, finished: seconds.
        """
        where = f"{self}, call {len(self.calls)}"
        if not 0 <= stream < len(self.streams):
            raise DataError(f"{where}: there is no stream {stream}; {len(self.streams)} are open")
        self._check_call("parent", parent, none=True)
        output = token_ids(output_ids, f"{where}: output")
        made = {"policy": policy, "parent": parent, "use": Use(use), "end": End(end), "valid": valid}
        drawn = {"temperature": temperature, "seed": seed, "started": started, "finished": finished}
        row = CallRow(
            stream=stream,
            order=(self.streams[stream].made,) if order is None else tuple(order),
            context=token_ids(context_ids, f"{where}: context"),
            output=output,
            given=None if given is None else token_ids(given, f"{where}: given"),
            source=_vector(source, len(output), np.int64, f"{where}: source"),
            logp=_vector(math.nan if logp is None else logp, len(output), np.float32, f"{where}: logp"),
            plain=made | drawn,
        )
        if row.given is not None and np.array_equal(row.given, row.context):
            row.given = None
        _check_tokens(row, where)
        _describe(row, where, labels, values)
        _mark(row, state, begin, obs_text, out_text)
        self.calls.append(row)
        self.streams[stream].made += 1
        return len(self.calls) - 1

    def note(
        self,
        call: int,
        *,
        valid: bool | None = None,
        state: str | None = None,
        begin: Mapping[str, bool] | None = None,
        labels: Labels | None = None,
        values: Values | None = None,
        obs_text: str | None = None,
        out_text: str | None = None,
    ) -> None:
        """Add what became known after the call; the arguments are those of `call`."""
        row = self.calls[self._check_call("call", call)]
        _describe(row, f"{self}, call {call}", labels, values)
        _mark(row, state, begin, obs_text, out_text)
        if valid is not None:
            row.plain["valid"] = valid

    def reward(self, value: float, call: int | None = None) -> None:
        """Add what the world paid, to `call` or else to the latest one that acted."""
        if not math.isfinite(value):
            raise DataError(f"{self}: a reward must be finite, got {value}")
        self._paid(call).reward += float(value)

    def part(self, name: str, value: float, call: int | None = None) -> None:
        """Set the reward term `name`, NaN if it could not be told, of `call` or else of the latest one that acted."""
        self._paid(call).part[name] = float(value)

    def done(self, *, terminated: bool = False, truncated: bool = False) -> None:
        """How the episode ended; neither: it is still open."""
        if terminated and truncated:
            raise DataError(f"{self}: both terminated and truncated; a terminal state is only the former")
        self.terminated, self.truncated = terminated, truncated

    def fail(self, end: End) -> None:
        """A fault has closed the episode: ERROR, TIMEOUT or KILLED."""
        if end not in FAULTS:
            raise DataError(f"{self}: a fault is one of {', '.join(fault.name for fault in FAULTS)}, not {end!r}")
        self.fault = int(end)

    def __repr__(self) -> str:
        return f"episode {self.uid}"

    def _check_call(self, what: str, call: int, none: bool = False) -> int:
        if not (0 <= call < len(self.calls) or (none and call == -1)):
            raise DataError(f"{self}: {what} {call} does not exist; there are {len(self.calls)} calls so far")
        return call

    def _paid(self, call: int | None) -> CallRow:
        if call is not None:
            return self.calls[self._check_call("call", call)]
        for row in reversed(self.calls):
            if row.plain["use"] == Use.ACTED:
                return row
        raise DataError(f"{self}: a reward before any call acted; name the call that it belongs to")


def state_key(state: str) -> int:
    """The key of an anchor state: 63 bits of BLAKE2b of its text, the same in every process."""
    digest = hashlib.blake2b(state.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def token_ids(ids: Ids, what: str) -> np.ndarray:
    """int32 vector of tokens; DataError where it is none."""
    if isinstance(ids, Tensor):
        ids = ids.numpy()
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(f"{what} must be a vector of token ids, got {ids.dtype} of shape {ids.shape}")
        tokens, outside = ids.astype(np.int32), ids.size > 0 and int(ids.max()) >= 2**31
    else:
        try:
            tokens, outside = np.frombuffer(array("i", ids), dtype=np.int32), False
        except (TypeError, OverflowError) as error:
            raise DataError(f"{what} must be a vector of token ids: {error}") from error
    if outside or (tokens.size and int(tokens.min()) < 0):
        raise DataError(f"{what} must hold token ids, 0 to 2^31 - 1")
    return tokens


def _vector(values: Any, size: int, dtype: type, what: str) -> np.ndarray:
    """One entry a token; a single number stands for all."""
    column = values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if dtype is np.int64 and column.size and column.dtype.kind not in "iu":
        raise DataError(f"{what} must hold integers, got {column.dtype}")
    if column.ndim == 0:
        return np.full(size, column, dtype=dtype)
    if column.shape != (size,):
        raise DataError(f"{what} has the shape {column.shape} for {size} tokens")
    return column.astype(dtype)


def _check_tokens(row: CallRow, where: str) -> None:
    for bad, what in (
        ((row.source < 0) | (row.source >= len(Source)), "has an unknown source"),
        (
            (row.source == Source.SAMPLED) & ~(np.isfinite(row.logp) & (row.logp <= SLACK)),
            "is sampled, its log-prob must be finite and <= 0",
        ),
        ((row.source != Source.SAMPLED) & ~np.isnan(row.logp), "was not sampled, its log-prob must be NaN"),
    ):
        if bad.any():
            token = int(bad.argmax())
            raise DataError(f"{where}: token {token} (log-prob {row.logp[token]}) {what}")


def _describe(row: CallRow, where: str, labels: Labels | None, values: Values | None) -> None:
    size = len(row.output)
    token_label = {
        channel: _vector(label, size, np.int64, f"{where}: label '{channel}'")
        for channel, label in (labels or {}).items()
        if not isinstance(label, int | np.integer)
    }
    token_value = {
        head: _vector(value, size, np.float32, f"{where}: value '{head}'")
        for head, value in (values or {}).items()
        if not isinstance(value, float | int | np.number)
    }
    row.label.update({name: label for name, label in (labels or {}).items() if isinstance(label, int | np.integer)})
    row.value.update(
        {name: value for name, value in (values or {}).items() if isinstance(value, float | int | np.number)}
    )
    row.token_label.update(token_label)
    row.token_value.update(token_value)


def _mark(
    row: CallRow, state: str | None, begin: Mapping[str, bool] | None, obs_text: str | None, out_text: str | None
) -> None:
    row.begin.update(begin or {})
    if state is not None:
        row.state = state_key(state)
    texts = {"obs_text": obs_text, "out_text": out_text, "state_text": state}
    row.texts.update({column: text for column, text in texts.items() if text is not None})
