"""Text worlds: what a language agent acts in, by name, with tasks, splits, step limits, restarts and scripted experts.

A world is built once by `make` and plays one `Task` after another. It answers any string: an action that it does not
understand is a step too (`Observation.valid` is False). A new world subclasses `BaseWorld`, gives `name`, `kinds`,
`_start`, `_act` and, where it has one, `expert`, and gets one line in `_WORLDS`.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar, Protocol

import numpy as np

from echelon.errors import UsageError, unknown

SPLITS = ("train", "valid", "test")

_WORLDS = {
    "alfworld": "echelon.language.worlds.alfworld:AlfWorld",
    "babyai": "echelon.language.worlds.babyai:BabyAI",
    "mastermind": "echelon.language.worlds.mastermind:Mastermind",
    "reasoning": "echelon.language.worlds.reasoning:Reasoning",
    "scienceworld": "echelon.language.worlds.scienceworld:ScienceWorld",
    "textcraft": "echelon.language.worlds.textcraft:TextCraft",
    "textworld": "echelon.language.worlds.textworld:TextWorld",
}


@dataclass(frozen=True)
class Task:
    """One game: with the options of its world, everything that is needed to make it again."""

    world: str
    kind: str
    """Group of tasks for curricula and result tables, one of the world's `kinds`."""
    index: int
    """Place in the list it was drawn into."""
    seed: int
    """Seed of the game itself, below 2^48; those of two splits never coincide (see `split_seed`)."""
    split: str


@dataclass(frozen=True)
class Observation:
    """What a world shows after a reset or a step."""

    text: str
    admissible: tuple[str, ...] = ()
    """Actions that the world would accept now; empty where they cannot be listed."""
    state: str = ""
    """Key that is equal when the situation is (to group the same state of several episodes)."""
    reward: float = 0.0
    """Of this step; 0 at a reset."""
    terminated: bool = False
    """The game itself is over: won, lost or answered."""
    truncated: bool = False
    """Only the step limit was reached."""
    valid: bool = True
    """Whether the world understood and carried out the action."""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the episode ends here."""
        return self.terminated or self.truncated


class World(Protocol):
    """What a program of a language agent may ask of a world."""

    def reset(self, task: Task) -> Observation:
        """Begin `task`; the text says what is to be done."""
        ...

    def step(self, action: str) -> Observation:
        """Carry out one action, whatever the text is."""
        ...

    def snapshot(self) -> tuple[str, ...]:
        """What `restore` needs beside the task: by default the actions so far."""
        ...

    def restore(self, task: Task, actions: tuple[str, ...]) -> Observation:
        """Go to the situation of a snapshot; returns the observation that was last seen there."""
        ...

    def expert(self) -> str | None:
        """The scripted expert's next action from here, None where it has none."""
        ...


class BaseWorld(ABC):
    """What all worlds share: checks, the step limit, snapshots by replay of the actions, and lists of tasks.

    Raises `UsageError` for a task of another world, an unknown kind, and a step before a reset or after the end.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    variants: ClassVar[tuple[str, ...]] = ()
    """Further kinds, played only where they are asked for by name."""

    def __init__(self, limit: int):
        """`limit`: steps after which an unfinished episode is truncated."""
        if limit < 1:
            raise UsageError(f"limit is {limit}; a world needs at least one step")
        self.limit = limit
        self._task: Task | None = None
        self._actions: list[str] = []
        self._seen = Observation("", truncated=True)

    def reset(self, task: Task) -> Observation:
        """Begin `task`."""
        if task.world != self.name:
            raise UsageError(f"task of world '{task.world}' given to world '{self.name}'")
        check_kinds(self.name, [task.kind], self.kinds + self.variants)
        self._task, self._actions = task, []
        self._seen = self._start(task)
        return self._seen

    def step(self, action: str) -> Observation:
        """Carry out one action; at the limit an unfinished episode is truncated."""
        if self._task is None:
            raise UsageError(f"step of world '{self.name}' before its first reset")
        if self._seen.done:
            raise UsageError(f"step of world '{self.name}' after the end of its episode; reset it first")
        self._actions.append(action)
        seen = self._act(action)
        if len(self._actions) >= self.limit and not seen.terminated:
            seen = replace(seen, truncated=True)
        self._seen = seen
        return seen

    def snapshot(self) -> tuple[str, ...]:
        """The actions since the reset."""
        return tuple(self._actions)

    def restore(self, task: Task, actions: tuple[str, ...]) -> Observation:
        """Begin `task` and play `actions` again."""
        seen = self.reset(task)
        for action in actions:
            seen = self.step(action)
        return seen

    def expert(self) -> str | None:
        """No expert unless a world writes one."""
        return None

    def corrupt(self, action: str, rng: np.random.Generator) -> str:
        """A slip in place of the expert's `action`: another admissible action at random, or the same if none is."""
        others = [other for other in self._seen.admissible if other != action]
        return others[int(rng.integers(len(others)))] if others else action

    @classmethod
    def tasks(cls, split: str, count: int, seed: int, kinds: Sequence[str]) -> list[Task]:
        """`count` tasks, the kinds in turn; each game made from its own seed."""
        return [
            Task(cls.name, kind, index, split_seed(split, cls.name, kind, seed, index), split)
            for index, kind in ((i, kinds[i % len(kinds)]) for i in range(count))
        ]

    @abstractmethod
    def _start(self, task: Task) -> Observation:
        """First observation of a game."""

    @abstractmethod
    def _act(self, action: str) -> Observation:
        """Observation after one action; the step limit is looked after by `step`."""


def make(name: str, **options: Any) -> BaseWorld:
    """Build the world `name`; `options` are its constructor's keywords.

    Raises `UsageError` for an unknown name or option and `MissingExtra` if the world's package is not installed.
    """
    world = _world_class(name)
    for option in options:
        known = inspect.signature(world).parameters
        if option not in known:
            raise unknown(f"option of world '{name}'", option, known)
    return world(**options)


def tasks(name: str, split: str, count: int, seed: int, kinds: Sequence[str] | None = None) -> list[Task]:
    """`count` tasks of the world `name` for one split.

    The list depends on the arguments alone, and a shorter one is a prefix of a longer one. No game of one split occurs
    in another. `kinds` defaults to all kinds of the world, which take turns.
    """
    world = _world_class(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    chosen = tuple(world.kinds if kinds is None else kinds)
    check_kinds(name, chosen, world.kinds + world.variants)
    return world.tasks(split, count, seed, chosen)


def split_seed(split: str, *keys: str | int) -> int:
    """A seed below 2^48 from `keys`; its remainder modulo 3 tells the split, so that splits never share one."""
    digest = hashlib.blake2b(repr((split, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**48 // 3) * 3 + SPLITS.index(split)


def check_kinds(world: str, kinds: Sequence[str], known: Sequence[str]) -> None:
    """Raise `UsageError` unless `kinds` is a non-empty choice of `known`."""
    if not kinds:
        raise UsageError(f"no kinds of world '{world}' were chosen; valid: {', '.join(known)}")
    for kind in kinds:
        if kind not in known:
            raise unknown(f"kind of world '{world}'", kind, known)


@dataclass(frozen=True)
class Turn:
    """One step of a demonstration."""

    before: Observation
    action: str
    after: Observation
    slip: bool
    """Whether the action replaces the expert's."""


@dataclass(frozen=True)
class Demonstration:
    """An episode played by a world's scripted expert, perhaps with slips."""

    task: Task
    turns: tuple[Turn, ...]

    @property
    def reward(self) -> float:
        """Sum of the rewards."""
        return sum(turn.after.reward for turn in self.turns)

    @property
    def solved(self) -> bool:
        """Whether the game ended by itself with a positive reward."""
        return bool(self.turns) and self.turns[-1].after.terminated and self.reward > 0


def expert_episode(
    world: BaseWorld, task: Task, corruption: float = 0.0, rng: np.random.Generator | None = None
) -> Demonstration:
    """Play `task` with the world's expert; each step becomes a slip with probability `corruption`.

    The expert goes on from wherever a slip led, so that demonstrations contain recoveries. The episode ends early where
    the expert has no action. The random numbers come from `rng`, by default from the task's seed.
    """
    if not 0.0 <= corruption <= 1.0:
        raise UsageError(f"corruption is {corruption}; it is a probability")
    rng = np.random.default_rng(task.seed) if rng is None else rng
    before = world.reset(task)
    turns: list[Turn] = []
    while not before.done:
        action = world.expert()
        if action is None:
            break
        slip = bool(rng.random() < corruption)
        if slip:
            slipped = world.corrupt(action, rng)
            slip, action = slipped != action, slipped
        after = world.step(action)
        turns.append(Turn(before, action, after, slip))
        before = after
    return Demonstration(task, tuple(turns))


def _world_class(name: str) -> type[BaseWorld]:
    if name not in _WORLDS:
        raise unknown("world", name, _WORLDS)
    module, _, attribute = _WORLDS[name].partition(":")
    return getattr(import_module(module), attribute)
