"""What episodes ask of their worlds, answered in this process; `_pool.py` answers in worker processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from echelon.errors import UsageError
from echelon.language.engine import End
from echelon.language.worlds.world import Observation, Task, World

Make = Callable[..., World]
"""make(name, **options) → a world."""


@dataclass(frozen=True)
class WorldCall:
    """One method of one episode's world."""

    uid: int
    """Of the episode."""
    world: str
    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Why an episode has to be closed."""

    end: End
    message: str


class Worlds(Protocol):
    """Serves the worlds of all episodes."""

    def serve(self, calls: Sequence[WorldCall]) -> list[Any]:
        """Answers in the same order, a `Fault` where there is none; the calls of one episode are made in order."""

    def release(self, uid: int, broken: bool) -> None:
        """The episode is over; a world that is not `broken` may play another one."""

    def close(self) -> None:
        """Give everything back."""


class Shelf:
    """The worlds of one process, by episode. A world that is free plays the next episode of its name."""

    def __init__(self, make: Make, options: Mapping[str, Mapping[str, Any]]):
        self.make, self.options = make, options
        self.used: dict[int, tuple[str, World]] = {}
        self.free: dict[str, list[World]] = {}

    def perform(self, call: WorldCall) -> Any:
        """Answer, or raise what the world raises."""
        if call.uid not in self.used or self.used[call.uid][0] != call.world:
            self.release(call.uid, broken=False)
            spare = self.free.get(call.world)
            made = spare.pop() if spare else self.make(call.world, **self.options.get(call.world, {}))
            self.used[call.uid] = (call.world, made)
        return getattr(self.used[call.uid][1], call.method)(*call.arguments)

    def release(self, uid: int, broken: bool) -> None:
        """Take the world of an episode back."""
        name, world = self.used.pop(uid, ("", None))
        if world is not None and not broken:
            self.free.setdefault(name, []).append(world)


class LocalWorlds:
    """All worlds in this process: a world that hangs or dies takes the run with it."""

    def __init__(self, make: Make, options: Mapping[str, Mapping[str, Any]]):
        self._shelf = Shelf(make, options)

    def serve(self, calls: Sequence[WorldCall]) -> list[Any]:
        """Make the calls, one after the other."""
        return [self._answer(call) for call in calls]

    def release(self, uid: int, broken: bool) -> None:
        """Take the world of an episode back."""
        self._shelf.release(uid, broken)

    def close(self) -> None:
        """Nothing is held beyond this object."""

    def _answer(self, call: WorldCall) -> Any:
        try:
            answer = self._shelf.perform(call)
        except Exception as error:  # a world may raise anything: it ends its episode and no other
            return Fault(End.ERROR, raised(call, error))
        return checked(call, answer)


def raised(call: WorldCall, error: Exception) -> str:
    """The message of a fault."""
    return f"{call.method} of world '{call.world}' raised {type(error).__name__}: {error}"


def checked(call: WorldCall, answer: Any) -> Any:
    """`answer`, or a Fault if the world may not answer so."""
    place = f"{call.method} of world '{call.world}'"
    if call.method == "snapshot":
        good = isinstance(answer, tuple) and all(isinstance(action, str) for action in answer)
        return answer if good else Fault(End.ERROR, f"{place} gave {answer!r}; a snapshot is a tuple of texts")
    if call.method == "expert":
        good = answer is None or isinstance(answer, str)
        return answer if good else Fault(End.ERROR, f"{place} gave {answer!r}; an action is a text, or None")
    if not isinstance(answer, Observation):
        return Fault(End.ERROR, f"{place} gave a {type(answer).__name__}, not an Observation")
    if not isinstance(answer.reward, Real) or not math.isfinite(answer.reward):
        return Fault(End.ERROR, f"{place} gave the reward {answer.reward!r}; a reward is a finite number")
    if not isinstance(answer.text, str) or not isinstance(answer.state, str):
        return Fault(End.ERROR, f"{place} gave a text or state that is no string")
    return dataclasses.replace(
        answer,
        reward=float(answer.reward),
        admissible=tuple(answer.admissible),
        terminated=bool(answer.terminated),
        truncated=bool(answer.truncated),
        valid=bool(answer.valid),
    )


def to_plain(value: Any) -> Any:
    """An argument or an answer as JSON."""
    if isinstance(value, Task | Observation):
        plain = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: dict(entry) if isinstance(entry, Mapping) else entry for name, entry in plain.items()}
    return value


def arguments_from_plain(method: str, plain: Sequence[Any]) -> tuple[Any, ...]:
    """What `to_plain` made of a call's arguments."""
    if method == "reset":
        return (Task(**plain[0]),)
    if method == "restore":
        return Task(**plain[0]), tuple(plain[1])
    return tuple(plain)


def answer_from_plain(method: str, plain: Any) -> Any:
    """What `to_plain` made of an answer."""
    if method == "snapshot":
        return tuple(plain)
    if method == "expert":
        return plain
    return Observation(**{**plain, "admissible": tuple(plain["admissible"])})


def check_arguments(method: str, arguments: tuple[Any, ...]) -> None:
    """`UsageError` for arguments that no world takes."""
    kinds: dict[str, tuple[type, ...]] = {"reset": (Task,), "step": (str,), "restore": (Task, tuple)}
    for argument, kind in zip(arguments, kinds.get(method, ()), strict=True):
        if not isinstance(argument, kind):
            raise UsageError(f"world.{method} takes a {kind.__name__}, not {argument!r}")
