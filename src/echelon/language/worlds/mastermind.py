"""Mastermind: find a hidden code by guesses, each answered by black and white pegs (TextArena, arXiv 2504.11442).

Rules and sentences are those of the package `textarena`: guesses are written `[2 1 4 5]`, a guess may not be repeated,
and a second malformed guess in a row ends the game. The codes are drawn here, by task and split.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds.world import BaseWorld, Observation, Task

Code = tuple[int, ...]

_SHARES = ("train", "train", "train", "valid", "test")
_LARGEST = 7_000  # codes of a kind: more would make the expert slow


def _kind(length: int, digits: int, repeats: bool) -> str:
    return f"code-{length}-{digits}" + "-repeats" * repeats


class Mastermind(BaseWorld):
    """Kinds are `code-LENGTH-DIGITS`, with digits from 1 on, each at most once; `-repeats` allows a digit twice.

    The reward is 1 for the code. A code belongs to one split: three fifths train, one fifth each valid and test.
    `info` has the hidden `answer`, as "2 1 4 5" (to probe how likely a policy thinks it), `candidates`, the number of
    codes that no answer so far rules out, `pegs`, black and white ones of every guess, and `score`, the package's own,
    which pays a part for codes not found. `admissible` is empty: any guess of the form is one.
    """

    name: ClassVar[str] = "mastermind"
    kinds: ClassVar[tuple[str, ...]] = ("code-3-6", "code-4-6")
    variants: ClassVar[tuple[str, ...]] = tuple(
        _kind(length, digits, repeats)
        for length in range(2, 6)
        for digits in range(4, 10)
        for repeats in (False, True)
        if repeats or (length <= digits and (length, digits) not in ((3, 6), (4, 6)))
        if (digits**length if repeats else math.perm(digits, length)) <= _LARGEST
    )

    def __init__(self, limit: int = 12, errors: int = 1):
        """`limit`: guesses, malformed ones included; `errors`: malformed ones in a row that are forgiven."""
        super().__init__(limit)
        if errors < 0:
            raise UsageError(f"errors is {errors}; it is a count")
        self.errors = errors
        self._environment = _package()
        self._env: Any = None
        self._open = np.ones(0, dtype=bool)
        self._order = np.zeros(0, dtype=int)

    def expert(self) -> str | None:
        """A code that all answers so far allow: the first one in an order drawn from the task's seed."""
        if self._task is None or self._seen.done:
            return None
        return _written(codes(self._task.kind)[self._order[self._open[self._order]][0]])

    def corrupt(self, action: str, rng: np.random.Generator) -> str:
        """Another guess that was not made yet, whether the answers allow it or not."""
        assert self._task is not None
        made = {action, *(_written(entry["guess"]) for entry in self._game["history"])}
        others = [code for code in map(_written, codes(self._task.kind)) if code not in made]
        return others[int(rng.integers(len(others)))] if others else action

    def _start(self, task: Task) -> Observation:
        length, digits, repeats = parts(task.kind)
        rng = np.random.default_rng(task.seed)
        secrets = codes(task.kind, task.split)
        secret = secrets[int(rng.integers(len(secrets)))]
        self._open = np.ones(len(codes(task.kind)), dtype=bool)
        self._order = rng.permutation(len(self._open))
        self._env = self._environment(length, digits, max_turns=self.limit, duplicate_numbers=repeats)
        before = random.getstate()
        self._env.reset(num_players=1)
        random.setstate(before)  # the package draws a code from the random numbers of the whole process
        self._env.state.error_allowance = self.errors
        self._game["secret_code"] = list(secret)
        return self._observe(valid=True)

    def _act(self, action: str) -> Observation:
        assert self._task is not None
        made = len(self._game["history"])
        self._env.step(action)
        fresh = self._game["history"][made:]
        for entry in fresh:
            black, white = answers(self._task.kind, entry["guess"])
            self._open &= (black == entry["black"]) & (white == entry["white"])
        return self._observe(valid=bool(fresh))

    @property
    def _game(self) -> dict[str, Any]:
        return self._env.state.game_state

    def _observe(self, valid: bool) -> Observation:
        state, history = self._env.state, self._game["history"]
        said = [text for sender, text, _ in self._env.get_observation()[1] if sender < 0]
        if state.done:
            said.append(state.game_info[0]["reason"])
        answer = self._game["secret_code"]
        won = bool(history) and history[-1]["guess"] == answer
        known = sorted(f"{_written(entry['guess'])} {entry['black']} black {entry['white']} white" for entry in history)
        malformed = f"{state.error_count} malformed" if state.error_count else ""
        info = {
            "answer": _written(answer)[1:-1],
            "candidates": int(self._open.sum()),
            "pegs": [[entry["black"], entry["white"]] for entry in history],
            "score": float(state.rewards[0]) if state.rewards else 0.0,
            "won": won,
        }
        ended = "over" if state.done else ""
        situation = "; ".join(filter(None, [*known, malformed, ended])) or "no guess yet"
        return Observation("\n".join(said).strip(), (), situation, float(won), state.done, valid=valid, info=info)


def answers(kind: str, guess: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(black pegs int[N], white pegs int[N]) that each code of a kind would give to a guess.

    Black are digits in their places; white are further digits of the guess that the code has elsewhere.
    """
    digits, counts = _table(kind)
    black = (digits == np.array(guess)).sum(axis=1)
    common = np.minimum(counts, np.bincount(guess, minlength=counts.shape[1])).sum(axis=1)
    return black, common - black


def parts(kind: str) -> tuple[int, int, bool]:
    """Length, number of digits, and whether digits may repeat."""
    match = re.fullmatch(r"code-(\d)-(\d)(-repeats)?", kind)
    assert match is not None
    return int(match[1]), int(match[2]), bool(match[3])


@lru_cache(maxsize=32)
def codes(kind: str, split: str | None = None) -> tuple[Code, ...]:
    """All codes of a kind, or those that belong to a split."""
    length, digits, repeats = parts(kind)
    numbers = range(1, digits + 1)
    every = itertools.product(numbers, repeat=length) if repeats else itertools.permutations(numbers, length)
    if split is None:
        return tuple(every)
    shuffled = sorted(every, key=lambda code: hashlib.blake2b(repr(code).encode(), digest_size=8).digest())
    return tuple(code for place, code in enumerate(shuffled) if _SHARES[place % len(_SHARES)] == split)


@lru_cache(maxsize=8)
def _table(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes of a kind: their digits int[N, length], and how often each has each digit int[N, 1 + digits]."""
    digits = np.array(codes(kind))
    return digits, (digits[:, :, None] == np.arange(parts(kind)[1] + 1)).sum(axis=1)


def _written(code: Sequence[int]) -> str:
    return "[" + " ".join(map(str, code)) + "]"


@cache
def _package() -> Any:
    """The game's class. Importing the package draws random numbers and changes filters of warnings: both are undone."""
    before = random.getstate()
    try:
        with warnings.catch_warnings():
            from textarena.envs.Mastermind.env import MastermindEnv
    except ImportError as error:
        raise MissingExtra("textarena", "text") from error
    finally:
        random.setstate(before)
    return MastermindEnv
