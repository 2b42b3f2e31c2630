"""A program and what it runs in parallel, as a tree of coroutines that are advanced by hand: no event loop, no clock.

A fibre runs until it awaits something; what it awaits is collected, answered from outside, and handed back. The order
in which fibres run depends on nothing but the program and the answers.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Awaitable, Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from echelon.errors import UsageError

T = TypeVar("T")


@dataclass(eq=False)
class Wait(Generic[T]):
    """`await Wait(operation)` gives the answer to the operation."""

    operation: T

    def __await__(self) -> Generator[T, Any, Any]:
        return (yield self.operation)


@dataclass(frozen=True, eq=False)
class Together:
    """The operation of `gather`: run these in parallel; the answer is the list of their results."""

    parts: tuple[Awaitable[Any], ...]


class Fibre:
    """One coroutine of the tree."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], parent: Fibre | None = None, place: int = 0):
        self.coroutine, self.parent, self.place = coroutine, parent, place
        self.children: list[Fibre] = []
        self.results: list[Any] = []
        self.left = 0
        self.alive = True


class Fibres:
    """Advances one program: `run` until every fibre waits, `answer` what they wait for, `run` again."""

    def __init__(self, program: Coroutine[Any, Any, Any], operations: tuple[type, ...]):
        """`operations`: the types that may be awaited beside `Together`."""
        self._main = Fibre(program)
        self._operations = operations
        self._ready: deque[tuple[Fibre, Any, Exception | None]] = deque([(self._main, None, None)])
        self.waiting: list[tuple[Fibre, Any]] = []
        """What the fibres wait for, in the order in which they asked."""
        self.done = False
        self.result: Any = None
        self.failure: str | None = None
        """Why the program failed; None if it did not."""

    def run(self) -> None:
        """Advance until every fibre waits or the program has ended."""
        while self._ready:
            fibre, value, error = self._ready.popleft()
            if not fibre.alive:
                continue
            try:
                sent = fibre.coroutine.send(value) if error is None else fibre.coroutine.throw(error)
            except StopIteration as stop:
                self._returned(fibre, stop.value)
            except Exception as raised:  # a program may raise anything: it ends this episode and no other
                self._raised(fibre, raised)
            else:
                self._awaits(fibre, sent)
        self.waiting = [(fibre, operation) for fibre, operation in self.waiting if fibre.alive]

    def answer(self, fibre: Fibre, value: Any, error: Exception | None = None) -> None:
        """Let `fibre` go on with the answer, or with an error where it awaited."""
        self.waiting = [entry for entry in self.waiting if entry[0] is not fibre]
        self._ready.append((fibre, value, error))

    def close(self) -> None:
        """End the program where it stands; its `finally` blocks run."""
        self.done = True
        _cancel(self._main)
        self._ready.clear()
        self.waiting.clear()

    def _returned(self, fibre: Fibre, value: Any) -> None:
        fibre.alive = False
        if fibre.parent is None:
            self.done, self.result = True, value
            return
        parent = fibre.parent
        parent.results[fibre.place] = value
        parent.left -= 1
        if parent.left == 0:
            self._ready.append((parent, parent.results, None))

    def _raised(self, fibre: Fibre, error: Exception) -> None:
        fibre.alive = False
        if fibre.parent is None:
            self.done, self.failure = True, describe(error)
            return
        for sibling in fibre.parent.children:
            _cancel(sibling)
        self._ready.append((fibre.parent, None, error))

    def _awaits(self, fibre: Fibre, sent: Any) -> None:
        if isinstance(sent, Together):
            fibre.children = [Fibre(_coroutine(part), fibre, place) for place, part in enumerate(sent.parts)]
            fibre.results, fibre.left = [None] * len(sent.parts), len(sent.parts)
            if fibre.left == 0:
                self._ready.append((fibre, [], None))
            self._ready.extend((child, None, None) for child in fibre.children)
        elif isinstance(sent, self._operations):
            self.waiting.append((fibre, sent))
        else:
            kind = type(sent).__name__
            message = f"an episode awaited a {kind}; it can await lm, world, gather and functions that await these"
            self._ready.append((fibre, None, UsageError(message)))


def describe(error: BaseException) -> str:
    """'ValueError: its message (file.py, line 3, in episode)': the innermost place that is not in this package."""
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if Path(frame.filename).parent != Path(__file__).parent]
    if not outside:
        return text
    last = outside[-1]
    return f"{text} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"


def _cancel(fibre: Fibre) -> None:
    for child in fibre.children:
        _cancel(child)
    if not fibre.alive:
        return
    fibre.alive = False
    try:
        fibre.coroutine.close()
    except Exception:  # from a `finally` of the program that fails or waits: it is being thrown away already
        return


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _coroutine(awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
    return awaitable if isinstance(awaitable, Coroutine) else _await(awaitable)
