"""When a decision ends: `Every(k)`, `Until(predicate)`, `Learned(head)` and `Never`, closed under `&` and `|`.

A termination is asked on every tick about the decisions that are running and answers with one code a stream: 0 for
"goes on", else why it ends (`End.OPTION`, `End.TIMEOUT` or `End.INTERRUPTED`).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.errors import UsageError
from echelon.rollout import End

Codes = np.ndarray  # uint8[S]: 0 goes on, else an `End`; where two conditions fire together the smaller one is kept
_REASONS = (End.OPTION, End.TIMEOUT, End.INTERRUPTED)


class Running:
    """The decisions of one level that are running when a tick begins, one row a stream (S streams).

    `action`: Tensor[S, ...], as it stands now (moved by `Level.advance`). Rows of streams without a running decision
    (an episode's first tick, idle slots) hold old values: what a termination says about them is ignored.
    """

    def __init__(self, streams: int, device: torch.device | str = "cpu"):
        self.action: Tensor | None = None
        self._ticks, self._behind = np.zeros(streams, dtype=np.int64), 0
        self.was_overridden = np.zeros(streams, dtype=bool)
        self.device = torch.device(device)

    @property
    def ticks(self) -> np.ndarray:
        """int64[S]: as `age`, in numpy and not a copy."""
        if self._behind:
            self._ticks += self._behind
            self._behind = 0
        return self._ticks

    def pass_tick(self) -> None:
        """Every decision is a tick older (entered when somebody asks)."""
        self._behind += 1

    @property
    def age(self) -> Tensor:
        """int64[S]: ticks for which the decision has been held."""
        return torch.from_numpy(self.ticks.copy()).to(self.device)

    @property
    def overridden(self) -> Tensor:
        """bool[S]: whether a guard changed the stream's action on the previous tick."""
        return torch.from_numpy(self.was_overridden.copy()).to(self.device)


class Termination(ABC):
    """A condition that ends decisions; combine two of them with `&` and `|`."""

    @abstractmethod
    def __call__(self, features: Any, running: Running, below: Tensor | None) -> Codes:
        """Return uint8[S], 0 where the decision goes on.

        `below` is bool[S] (or bool[S, m] over m members): whether the decision of the level below has just ended.
        """

    def silent(self, oldest: int) -> int:
        """For how many ticks it surely ends nothing, where the oldest running decision was held for `oldest` ticks.

        It need not be asked for so long. Learned conditions are asked on every tick.
        """
        return 0

    def learned(self) -> tuple[Learned, ...]:
        """The learned conditions inside, in the order written; their probabilities are recorded on every tick."""
        return ()

    def __and__(self, other: Termination) -> Termination:
        return Both(self, other)

    def __or__(self, other: Termination) -> Termination:
        return Either(self, other)


class Every(Termination):
    """Ends after `k` ticks (reason: timeout). `Every(1)` decides anew on every tick."""

    def __init__(self, k: int):
        if k < 1:
            raise UsageError(f"Every(k) holds a decision for k >= 1 ticks, not {k}")
        self.k = k

    def __call__(self, features: Any, running: Running, below: Tensor | None) -> Codes:
        return (running.ticks >= self.k) * np.uint8(End.TIMEOUT)

    def silent(self, oldest: int) -> int:
        return max(0, self.k - 1 - oldest)

    def __repr__(self) -> str:
        return f"Every({self.k})"


class Never(Termination):
    """Holds until the parent's decision or the episode ends."""

    def __call__(self, features: Any, running: Running, below: Tensor | None) -> Codes:
        return np.zeros(len(running.ticks), dtype=np.uint8)

    def silent(self, oldest: int) -> int:
        return sys.maxsize

    def __repr__(self) -> str:
        return "Never()"


class Until(Termination):
    """Ends where `predicate(features, running) -> bool[S]` holds.

    `reason`: `End.OPTION` when the decision's own condition is met, `End.INTERRUPTED` when something else comes first.
    """

    def __init__(self, predicate: Callable[[Any, Running], Tensor | np.ndarray], reason: End = End.OPTION):
        if reason not in _REASONS:
            raise UsageError(f"Until ends a decision by option, timeout or interrupted, not {reason!r}")
        self.predicate, self.reason = predicate, reason

    def __call__(self, features: Any, running: Running, below: Tensor | None) -> Codes:
        return as_codes(self.predicate(features, running), len(running.ticks), self.reason)

    def __repr__(self) -> str:
        return f"Until({getattr(self.predicate, '__name__', self.predicate)!s})"


class Learned(Termination):
    """Ends with the probability that `head(features, action) -> float[S]` in [0, 1] gives, sampled anew every tick.

    With a `threshold` it ends exactly where the probability exceeds it. `probability` keeps the last answer, which the
    runner records on every tick, whatever the other conditions said.
    """

    def __init__(self, head: Callable[[Any, Tensor], Tensor], threshold: float | None = None):
        self.head, self.threshold = head, threshold
        self.generator: torch.Generator | None = None
        self.probability: Tensor | None = None

    def __call__(self, features: Any, running: Running, below: Tensor | None) -> Codes:
        assert running.action is not None
        probability = self.head(features, running.action)
        streams = len(running.ticks)
        if probability.shape != (streams,):
            raise UsageError(f"a learned termination gives float[{streams}], not {tuple(probability.shape)}")
        self.probability = probability
        if self.threshold is None:
            draw = torch.rand(streams, generator=self.generator, device=probability.device)
            return as_codes(draw < probability, streams, End.OPTION)
        return as_codes(probability > self.threshold, streams, End.OPTION)

    def learned(self) -> tuple[Learned, ...]:
        return (self,)

    def __repr__(self) -> str:
        return "Learned()" if self.threshold is None else f"Learned(threshold={self.threshold})"


class Both(Termination):
    """`first & second`: ends where both do."""

    def __init__(self, first: Termination, second: Termination):
        self.first, self.second = first, second

    def __call__(self, features: Any, running: Running, below: Tensor | None) -> Codes:
        return np.minimum(self.first(features, running, below), self.second(features, running, below))

    def silent(self, oldest: int) -> int:
        return 0 if self.learned() else max(self.first.silent(oldest), self.second.silent(oldest))

    def learned(self) -> tuple[Learned, ...]:
        return self.first.learned() + self.second.learned()

    def __repr__(self) -> str:
        return f"({self.first!r} & {self.second!r})"


class Either(Both):
    """`first | second`: ends where one of them does."""

    def __call__(self, features: Any, running: Running, below: Tensor | None) -> Codes:
        first, second = self.first(features, running, below), self.second(features, running, below)
        return np.minimum(first - np.uint8(1), second - np.uint8(1)) + np.uint8(1)  # 0 wraps to 255: the larger

    def silent(self, oldest: int) -> int:
        return min(self.first.silent(oldest), self.second.silent(oldest))

    def __repr__(self) -> str:
        return f"({self.first!r} | {self.second!r})"


def as_codes(answer: Tensor | np.ndarray, streams: int, reason: End = End.OPTION) -> Codes:
    """Turn an answer of `ends` (bool[S], or uint8[S] codes as a termination gives them) into codes."""
    values = answer.cpu().numpy() if isinstance(answer, Tensor) else np.asarray(answer)
    if values.shape != (streams,):
        raise UsageError(f"a termination gives one answer a stream, [{streams}], not {list(values.shape)}")
    if values.dtype == np.uint8:
        return values.copy()
    if values.dtype != bool:
        raise UsageError(f"a termination gives bool, not {values.dtype}")
    return values.astype(np.uint8) * np.uint8(reason)
