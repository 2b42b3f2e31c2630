"""BabyAI in words: the levels of the package `minigrid`, told as what the player sees (arXiv 1810.08272).

The player reads its mission once and then, at every step, the things in its field of view with their distances, as in
BabyAI-Text (arXiv 2302.02662): "a red ball 2 steps forward and 1 step left". The sentences are our own. Actions: `turn
left`, `turn right`, `go forward`, `pick up`, `drop`, `toggle` (open, close or unlock what is in front).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

from echelon.errors import MissingExtra, UsageError
from echelon.language.worlds.world import BaseWorld, Observation, Task, split_seed

ACTIONS = {"turn left": 0, "turn right": 1, "go forward": 2, "pick up": 3, "drop": 4, "toggle": 5}
"""Words to the package's numbers."""
MAX_DRAWS = 500
MOST_SUBGOALS = 500
"""Of the bot's, in one step: on some games it would go on for ever."""

_SHARES = ("train", "train", "train", "valid", "test")
_NAMES = """
    GoToRedBallGrey GoToRedBall GoToRedBallNoDists GoToObj GoToObjS4 GoToObjS6 GoToLocal GoToLocalS5N2 GoToLocalS6N2
    GoToLocalS6N3 GoToLocalS6N4 GoToLocalS7N4 GoToLocalS7N5 GoToLocalS8N2 GoToLocalS8N3 GoToLocalS8N4 GoToLocalS8N5
    GoToLocalS8N6 GoToLocalS8N7 GoTo GoToOpen GoToObjMaze GoToObjMazeOpen GoToObjMazeS4R2 GoToObjMazeS4
    GoToObjMazeS5 GoToObjMazeS6 GoToObjMazeS7 GoToImpUnlock GoToSeq GoToSeqS5R2 GoToRedBlueBall GoToDoor GoToObjDoor
    Open OpenRedDoor OpenDoor OpenDoorColor OpenDoorLoc OpenTwoDoors OpenRedBlueDoors OpenDoorsOrderN2
    OpenDoorsOrderN4 Pickup UnblockPickup PickupLoc PickupDist PickupAbove PutNextLocal PutNextLocalS5N3
    PutNextLocalS6N4 PutNextS4N1 PutNextS5N2 PutNextS5N1 PutNextS6N3 PutNextS7N4 Unlock UnlockLocal UnlockLocalDist
    UnlockPickup UnlockPickupDist BlockedUnlockPickup UnlockToUnlock ActionObjDoor FindObjS5 FindObjS6 FindObjS7
    KeyCorridor KeyCorridorS3R1 KeyCorridorS3R2 KeyCorridorS3R3 KeyCorridorS4R3 KeyCorridorS5R3 KeyCorridorS6R3
    OneRoomS8 OneRoomS12 OneRoomS16 OneRoomS20 MoveTwoAcrossS5N2 MoveTwoAcrossS8N9 Synth SynthS5R2 SynthLoc SynthSeq
    MiniBossLevel BossLevel BossLevelNoUnlock
"""


class _Lost(Exception):
    """The bot plans without end."""


class BabyAI(BaseWorld):
    """Kinds are the package's levels by name, all but those that its bot cannot play.

    The reward is 1 when the mission is done; doing what spoils it ends the game with 0. `admissible` are the actions
    that change something. `info` has the `mission`, what is in the hand (`carrying`), `grid`, a key of everything there
    is, seen or not, `score`, the package's own reward that falls with the steps, and `won`. A game belongs to exactly
    one split, by its grid and mission.
    """

    name: ClassVar[str] = "babyai"
    kinds: ClassVar[tuple[str, ...]] = ("GoToLocal", "PickupLoc", "OpenDoor", "PutNextLocal", "UnlockPickup")
    variants: ClassVar[tuple[str, ...]] = tuple(_NAMES.split())

    def __init__(self, limit: int = 64):
        """`limit`: steps; the package's own limit, which depends on the level, only enters into `score`."""
        super().__init__(limit)
        _package()
        self._envs: dict[str, Any] = {}
        self._env: Any = None
        self._seed = 0
        self._longest = 1
        self._score = 0.0
        self._adviser: _Adviser | None = None

    def expert(self) -> str | None:
        """What the package's bot would do, which knows what it has seen since the start."""
        if self._task is None or self._seen.done:
            return None
        if self._adviser is None:
            self._adviser = _Adviser(self._task.kind, self._seed)
        return self._adviser.advice([ACTIONS[action] for action in map(_word, self._actions) if action in ACTIONS])

    def _start(self, task: Task) -> Observation:
        if task.kind not in self._envs:
            self._envs[task.kind] = _environment(task.kind)
        self._env, self._adviser, self._score = self._envs[task.kind], None, 0.0
        for draw in range(MAX_DRAWS):
            self._seed = split_seed(task.split, task.seed, draw)
            longest = _reset(self._env, self._seed)
            digest = hashlib.blake2b(repr((self._grid(), self._env.mission)).encode(), digest_size=8).digest()
            if _SHARES[digest[0] % len(_SHARES)] == task.split:
                self._longest = longest
                return self._observe(f"Your mission: {self._env.mission}.\n{self._view()}")
        raise UsageError(f"{task.kind} has no game for the split '{task.split}'; choose another of the kinds")

    def _act(self, action: str) -> Observation:
        word = _word(action)
        if word not in ACTIONS:
            said = f"'{' '.join(action.split())[:40]}' is not an action. Actions: {', '.join(ACTIONS)}."
            return self._observe(f"{said}\n{self._view()}", valid=False)
        valid = word in self._possible()
        _, reward, over, _, _ = self._env.step(ACTIONS[word])
        won = bool(over and reward > 0)
        if won:
            self._score = 1 - 0.9 * self._env.step_count / self._longest
        said = "" if valid else "Nothing happens.\n"
        if over:
            said += "The mission is done.\n" if won else "The mission has failed.\n"
        return self._observe(said + self._view(), float(won), bool(over), valid)

    def _observe(self, text: str, reward: float = 0.0, over: bool = False, valid: bool = True) -> Observation:
        carrying = self._env.carrying
        info = {
            "mission": self._env.mission,
            "carrying": _thing(carrying) if carrying else "",
            "grid": hashlib.blake2b(repr(self._grid()).encode(), digest_size=8).hexdigest(),
            "score": self._score,
            "won": reward > 0,
        }
        admissible = () if over else self._possible()
        return Observation(text, admissible, self._view(), reward, over, valid=valid, info=info)

    def _possible(self) -> tuple[str, ...]:
        """The actions that would change something."""
        env = self._env
        front = env.grid.get(*env.front_pos)
        moves = ["go forward"] if front is None or front.can_overlap() else []
        hands = ["pick up"] if front is not None and front.can_pickup() and env.carrying is None else []
        hands += ["drop"] if front is None and env.carrying is not None else []
        if front is not None and front.type in ("door", "box"):
            key = env.carrying is not None and (env.carrying.type, env.carrying.color) == ("key", front.color)
            hands += ["toggle"] if front.type == "box" or not front.is_locked or key else []
        return ("turn left", "turn right", *moves, *hands)

    def _view(self) -> str:
        """What the player sees: walls straight ahead and beside it, then things from near to far."""
        grid, seen = self._env.gen_obs_grid()
        middle, last = grid.width // 2, grid.height - 1
        found: list[tuple[int, int, str]] = []
        for column, row in ((i, j) for i in range(grid.width) for j in range(grid.height) if seen[i, j]):
            cell, right, forward = grid.get(column, row), column - middle, last - row
            if cell is None or (right, forward) == (0, 0) or (cell.type == "wall" and right and forward):
                continue
            nearer = _between(right, forward)
            if cell.type == "wall" and any(_is_wall(grid.get(middle + r, last - f)) for r, f in nearer):
                continue
            found.append((forward, right, f"{_indefinite(_thing(cell))} {_where(right, forward)}"))
        order = sorted(found, key=lambda one: ("wall" not in one[2], abs(one[0]) + abs(one[1]), one[:2]))
        lines = [f"You see {text}." for _, _, text in order]
        if self._env.carrying:
            lines.append(f"You carry {_indefinite(_thing(self._env.carrying))}.")
        return "\n".join(lines) or "You see nothing."

    def _grid(self) -> tuple[bytes, tuple[int, ...], str]:
        env = self._env
        place = (int(env.agent_pos[0]), int(env.agent_pos[1]), int(env.agent_dir))
        return env.grid.encode().tobytes(), place, _thing(env.carrying) if env.carrying else ""


class _Adviser:
    """The package's bot in a copy of the game, which follows what the player does only when it is asked."""

    def __init__(self, kind: str, seed: int):
        self._env = _environment(kind)
        _reset(self._env, seed)
        self._done: list[int] = []
        self._bot = _bot(self._env)
        self._asked: int | None = self._replan(None)

    def advice(self, actions: list[int]) -> str | None:
        """The next action after `actions`, which continue those of the last call; None where the bot has none."""
        for action in actions[len(self._done) :]:
            self._env.step(action)
            self._done.append(action)
            self._asked = self._replan(action)
        return next((word for word, number in ACTIONS.items() if number == self._asked), None)

    def _replan(self, action: int | None) -> int | None:
        """Ask the bot; where it has lost its way ask one that begins here."""
        for after in (action, None):
            try:
                self._bot.stack.left = MOST_SUBGOALS
                asked = int(self._bot.replan(after))
            except (
                Exception
            ):  # the bot's assertions about what it expected, on games and slips that it was not made for
                asked = -1
            if asked in ACTIONS.values():
                return asked
            self._bot = _bot(self._env)
        return None


class _Stack(list[Any]):
    """The bot's subgoals. It plans until an action is found, and every round adds some or takes some away."""

    left = MOST_SUBGOALS

    def append(self, item: Any) -> None:
        """Add one; raises `_Lost` after too many."""
        self.left -= 1
        if self.left < 0:
            raise _Lost
        super().append(item)


def _bot(env: Any) -> Any:
    from minigrid.utils.baby_ai_bot import BabyAIBot

    bot = BabyAIBot(env)
    bot.stack = _Stack(bot.stack)
    return bot


def _word(action: str) -> str:
    return " ".join(action.lower().split())


def _thing(cell: Any) -> str:
    """A thing in words: "red ball", "locked blue door", "wall"."""
    if cell.type == "wall":
        return "wall"
    state = ""
    if cell.type == "door":
        state = "open " if cell.is_open else "locked " if cell.is_locked else "closed "
    return f"{state}{cell.color} {cell.type}"


def _indefinite(thing: str) -> str:
    return f"an {thing}" if thing.startswith("o") else f"a {thing}"


def _where(right: int, forward: int) -> str:
    """A place relative to the player, such as "2 steps forward and 1 step left"."""
    ways = [(forward, "forward"), (abs(right), "right" if right > 0 else "left")]
    return " and ".join(f"{count} step{'s' * (count > 1)} {way}" for count, way in ways if count)


def _between(right: int, forward: int) -> Iterable[tuple[int, int]]:
    """Places between the player and one straight ahead or beside it."""
    for step in range(1, max(abs(right), forward)):
        yield (0, step) if forward else (step if right > 0 else -step, 0)


def _is_wall(cell: Any) -> bool:
    return cell is not None and cell.type == "wall"


def _environment(kind: str) -> Any:
    gymnasium = _package()
    version = max(name for name in gymnasium.registry if name.startswith(f"BabyAI-{kind}-v"))
    with contextlib.redirect_stdout(io.StringIO()):
        return gymnasium.make(version, disable_env_checker=True).unwrapped


def _reset(env: Any, seed: int) -> int:
    """Begin the game of a seed, without the package's own step limit; returns that limit."""
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints what it rejects while drawing
        env.reset(seed=seed)
    limit, env.max_steps = env.max_steps, 10**9
    return int(limit)


@cache
def _package() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import gymnasium
        import minigrid  # noqa: F401  registers its levels
    except ImportError as error:
        raise MissingExtra("minigrid", "text") from error
    return gymnasium
