"""What a sampling engine does: token ids in, token ids out; and an engine that reads a script, for tests.

An engine draws one uniform a token and inverts the cumulative distribution: the same request gives the same text in any
batch, as far as the logits agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from echelon.errors import EchelonError

if TYPE_CHECKING:  # worker processes of worlds start faster without torch
    from torch import Tensor

SEED_BITS = 63
"""Seeds of calls are in [0, 2^63): they fit the int64 column of the record."""
_PER_BLOCK = 4  # 64-bit words that Philox makes for one value of its counter


class End(IntEnum):
    """Why a text ended; ERROR, TIMEOUT and KILLED belong to episodes that a fault has closed."""

    EOS = 0
    STOP = 1
    LENGTH = 2
    GRAMMAR = 3
    ERROR = 4
    TIMEOUT = 5
    KILLED = 6


class Source(IntEnum):
    """Where an emitted token comes from: the model, the program, or a text from elsewhere that was only scored."""

    SAMPLED = 0
    FORCED = 1
    SCORED = 2


@dataclass(frozen=True)
class Request:
    """One text to be sampled."""

    context: tuple[int, ...]
    """Token ids that the text is conditioned on."""
    max_tokens: int
    """Emitted at most, forced ones included."""
    seed: int
    """Of this call: token t uses uniforms(seed)[t]."""
    temperature: float = 1.0
    """0: greedy."""
    stop: tuple[int, ...] = ()
    """A token id that ends the text when it is sampled; it is emitted and kept."""
    forced: tuple[int, ...] = ()
    """Emitted first, not sampled."""
    agent: str = "policy"
    """Which weights."""


@dataclass(frozen=True)
class Sample:
    """One sampled text."""

    ids: tuple[int, ...]
    """Emitted: forced, then sampled, the stop token included."""
    logp: tuple[float, ...]
    """Of the temperature-scaled distribution; NaN where forced."""
    end: End
    source: Source = Source.SAMPLED
    """Of the tokens that are not forced. SCORED: of a text from elsewhere, whose log-probs are NaN."""


class EngineDown(EchelonError):
    """An engine that can answer nobody now. A rollout stops, and goes on from its journal once the engine is back.

    answered: place among the requests → the answers that it has given before.
    """

    def __init__(self, message: str, answered: Mapping[int, Any] | None = None):
        super().__init__(message)
        self.answered = dict(answered or {})


class Engine(Protocol):
    """Samples texts with the weights of one or several agents."""

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Answer the requests in one batch, in the same order.

        What it raises costs the episodes whose requests are to blame; `EngineDown` stops the rollout.
        """

    def load(self, agent: str, weights: Mapping[str, Tensor]) -> None:
        """Sample with newer weights from now on."""


def uniforms(seed: int, start: int, count: int) -> np.ndarray:
    """Uniforms `start` to `start + count` of a call: float64 [count] in [0, 1); value t depends on (seed, t) only.

    Counter-based: Philox-4x64-10 (Salmon et al. 2011) with the seed as its key, the upper 53 bits of each word.
    """
    block, skipped = divmod(start, _PER_BLOCK)
    words = np.random.Philox(key=seed, counter=block).random_raw(skipped + count)
    return (words[skipped:] >> np.uint64(11)) * 2.0**-53


class ScriptedEngine:
    """An engine without a model: `write(request)` is the text that follows the forced ids.

    It obeys `forced`, `stop` and `max_tokens`. A text that is not cut short ends with `eos`, if that is given, and its
    end is EOS. The log-prob of the sampled token t is log(1 - uniforms(seed)[t]): made up, but telling seeds apart.
    """

    def __init__(self, write: Callable[[Request], Sequence[int]], eos: int | None = None):
        self.write, self.eos = write, eos
        self.batches: list[int] = []
        """Size of each batch so far."""
        self.versions: dict[str, int] = {}
        """How often each agent's weights were loaded."""

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Answer every request from the script."""
        self.batches.append(len(requests))
        return [self._sample(request) for request in requests]

    def load(self, agent: str, weights: Mapping[str, Tensor]) -> None:
        """Count the loading; a script has no weights."""
        self.versions[agent] = self.versions.get(agent, 0) + 1

    def _sample(self, request: Request) -> Sample:
        written = [int(token) for token in self.write(request)]
        if self.eos is not None:
            written.append(self.eos)
        end = End.EOS
        for t, token in enumerate(written):
            if token in request.stop or token == self.eos:
                end = End.STOP if token in request.stop else End.EOS
                written = written[: t + 1]
                break
        ids = (*request.forced, *written)
        if len(ids) > request.max_tokens:
            ids, end = ids[: request.max_tokens], End.LENGTH
        drawn = uniforms(request.seed, 0, len(ids))
        forced = len(request.forced)
        logp = (math.nan if t < forced else math.log1p(-u) for t, u in enumerate(drawn.tolist()))
        return Sample(ids, tuple(logp), end)
