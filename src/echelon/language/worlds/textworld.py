"""TextWorld: text games of three challenges, generated and compiled here (Côté et al., arXiv 1806.11532).

Rules and sentences are those of the package `textworld` and of its interpreter. `coin-L`: find the coin of level L of
the coin collector (arXiv 1806.11525); `simple-R`: fetch food in a house, with R = dense, balanced or sparse points;
`cooking-S`: read the cookbook, prepare the meal and eat it, with the skills S as the package names them.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

from echelon.errors import UsageError
from echelon.language.worlds._textworld_games import LEVELS, REWARDS, SKILLS, compiled, package, recipe
from echelon.language.worlds.world import BaseWorld, Observation, Task, split_seed

MOST_LETTERS = 150
"""Longer commands are cut off; the interpreter's own limit is 198 bytes."""

_STATUS = re.compile(r"\n>\s*(-=.*=-\S*\s*)?$")  # the prompt, and the bar with the room, the score and the moves
_BANNER = re.compile(r"[\s_|$\\/<>]*")
_ASIDE = re.compile(r"\n+Would you like to RESTART.*", re.DOTALL)
_BOOK = "examine cookbook"
# Commands to the interpreter, not to the game: they would end, repeat or take back what is counted here.
_OUTSIDE = re.compile(
    r"\b(restart|restore|save|quit|q|undo|again|g|oops|script|transcript|unscript|noscript|verify|version|brief|"
    r"superbrief|short|verbose|long|normal|notify|pronouns|nouns|tw-\S*)\b",
    re.IGNORECASE,
)
_UNKNOWN = "tw-unknown"


class TextWorld(BaseWorld):
    """One of TextWorld's games; the reward is 1 when it is won.

    What is not understood gets the game's own answer. `info` has what the package says: `objective`, `score`, `gained`
    (the score of this step alone), `max_score`, `inventory`, `won`, `lost`, and `plan`, its commands to win from here,
    empty after what cannot be made good. `state` is what the player sees in the room and carries.
    """

    name: ClassVar[str] = "textworld"
    kinds: ClassVar[tuple[str, ...]] = (
        "coin-5",
        "coin-110",
        "simple-dense",
        "cooking-recipe1+take1+cut",
        "cooking-recipe1+take1+cook+cut",
        "cooking-recipe2+take2+go6+open+cook+cut",
    )
    variants: ClassVar[tuple[str, ...]] = (
        *(f"coin-{level}" for level in LEVELS),
        *(f"simple-{rewards}" for rewards in REWARDS),
        *(f"cooking-{skills}" for skills in SKILLS),
    )

    def __init__(self, limit: int = 50, games: int = 100, detailed: int = 0, points: int = 0):
        """Options of the games and of the reward.

        `games`: so many of each kind in each split exist, for each takes seconds to make; 0 for one a task.
        `detailed`: 1 tells the way in the objective of coin and simple games, step by step.
        `points`: 1 pays the share of the maximal score that a step gains, and takes it all back when the game is lost.
        """
        super().__init__(limit)
        if games < 0:
            raise UsageError(f"games is {games}; it is a count, 0 for one game a task")
        for option, value in (("detailed", detailed), ("points", points)):
            if value not in (0, 1):
                raise UsageError(f"{option} is {value}; it is 0 or 1")
        self.games, self.detailed, self.points = games, bool(detailed), bool(points)
        self._file: Path | None = None
        self._env: Any = None
        self._state: Any = None
        self._read = False

    def expert(self) -> str | None:
        """The package's next command to win from here; the cookbook is read where it lies, for a player has to."""
        if self._state is None or self._seen.done or not self._state.policy_commands:
            return None
        unread = not self._read and _BOOK in self._seen.admissible
        return _BOOK if unread else str(self._state.policy_commands[0])

    def _start(self, task: Task) -> Observation:
        seed = split_seed(task.split, self.name, task.kind, task.seed % self.games) if self.games else task.seed
        file = compiled(recipe(task.kind, seed, task.split, self.detailed))
        if file != self._file:
            self._env, self._file = self._loaded(file), file
        self._state, self._read = self._env.reset(), False
        return self._observe(self._state.score, valid=True)

    def _act(self, action: str) -> Observation:
        before = self._state
        command = playable(action)
        self._state, _, _ = self._env.step(command)
        self._read = self._read or command == _BOOK
        listed = command.lower() in {each.lower() for each in self._seen.admissible}
        valid = listed or self._state.moves > before.moves
        return self._observe(self._state.score - before.score, valid)

    def _observe(self, gained: int, valid: bool) -> Observation:
        state = self._state
        over = bool(state.won or state.lost)
        reward = float(state.won)
        if self.points:
            reward = (gained - (state.score if state.lost else 0)) / state.max_score
        inventory = plain(state.inventory)
        info = {
            "objective": plain(state.objective),
            "score": state.score,
            "gained": gained,
            "max_score": state.max_score,
            "inventory": inventory,
            "won": bool(state.won),
            "lost": bool(state.lost),
            "plan": () if over else tuple(state.policy_commands),
        }
        admissible = () if over else tuple(state.admissible_commands)
        situation = f"{plain(state.description)} | {inventory}"
        return Observation(plain(state.feedback), admissible, situation, reward, over, valid=valid, info=info)

    def _loaded(self, file: Path) -> Any:
        """The interpreter with a game; the one before is given back."""
        textworld = package("textworld")
        wanted = ("admissible_commands", "policy_commands", "score", "max_score", "won", "lost", "moves", "objective")
        infos = textworld.EnvInfos(description=True, inventory=True, **dict.fromkeys(wanted, True))
        if self._env is not None:
            self._env.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the interpreter does not know the game: TextWorld counts itself
            env = textworld.start(str(file), infos)
        env.seed(1)  # of the interpreter; no sentence of these games is drawn
        return env


def playable(action: str) -> str:
    """What of an action the interpreter is told: one line of ASCII; an unknown word for commands to itself."""
    command = " ".join(action.encode("ascii", "replace").decode().split())[:MOST_LETTERS].strip()
    return _UNKNOWN if _OUTSIDE.search(command) else command


def plain(text: str) -> str:
    """A text without the banner, the status bar and the question at the end; at most one empty line in a row."""
    text = _ASIDE.sub("", _STATUS.sub("", text))
    lines = [line.strip() for line in text.split("\n")]
    while lines and _BANNER.fullmatch(lines[0]):
        lines.pop(0)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
