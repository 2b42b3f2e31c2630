"""Household tasks in text: the ALFWorld engine on synthetic scenes.

The rules and the sentences are those of the package alfworld (arXiv 2010.03768): "go to fridge 1", "take apple 1 from
fridge 1", "heat apple 1 with microwave 1". The scenes are drawn here, because the package brings none (see
`_alfworld_scenes`): results must be labelled `LABEL`, they do not compare with published ones on ALFWorld.
Splits: `train` and `valid` are played in the 96 floor plans that the package keeps for training, `test` in the 24
unseen ones. Whether goals are held out as well is a choice of kinds: `SEEN_KINDS` to train on, `HELD_OUT_KINDS` to test
on, the same as in RLVMR (arXiv 2507.22844).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from echelon.errors import UsageError
from echelon.language.worlds._alfworld_engine import Play, Room, game
from echelon.language.worlds._alfworld_expert import Expert
from echelon.language.worlds._alfworld_scenes import GOALS, ROOMS, Difficulty, shuts
from echelon.language.worlds.world import BaseWorld, Observation, Task

LABEL = "ALFWorld engine, synthetic scenes"
SEEN_KINDS = ("place", "heat", "clean")
HELD_OUT_KINDS = ("cool", "two")

_BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"


class AlfWorld(BaseWorld):
    """ALFWorld engine, synthetic scenes: find an object, perhaps heat, cool or clean it, and put it somewhere.

    Reward 1 when the goal is reached. An action that is not possible is answered by "Nothing happens." `admissible` are
    all possible actions but "help". `state` is what the player could see and feel now: where it stands, whether that is
    open, what lies there, what is in the hand, and what has been done to these things; not the sentence, which depends
    on the last action. `info` has the `task` in words, the `phase` that the expert sees in it ("find apple",
    "heat apple", "put apple"), the `room` (a key of the whole room's state, unseen things included) and `won`.
    """

    name = "alfworld"
    kinds = tuple(GOALS)

    def __init__(
        self,
        limit: int = 30,
        receptacles: int = 12,
        distractors: int = 10,
        closed: float = 0.5,
        rooms: Sequence[str] = tuple(ROOMS),
    ):
        """What makes it harder: more receptacles, more objects that are not asked for, a larger share of closed places.

        `limit`: steps; `receptacles`: at most so many in a room; `distractors`: objects of other types; `closed`:
        probability that the object lies in something closed; `rooms`: some of kitchen, livingroom, bedroom, bathroom.
        """
        super().__init__(limit)
        self.difficulty = Difficulty(receptacles, distractors, closed, tuple(rooms))
        self._play: Play | None = None
        self._expert: Expert | None = None

    def expert(self) -> str | None:
        """The next action of a hand-written player that knows what has been seen so far."""
        return None if self._expert is None or self._seen.done else self._expert.advice[1]

    def _start(self, task: Task) -> Observation:
        self._play, self._expert = Play(game(task.kind, task.seed, task.split != "test", self.difficulty)), None
        return self._observe(self._play, self._play.start().removeprefix(_BANNER), valid=True)

    def _act(self, action: str) -> Observation:
        if self._play is None:
            raise UsageError(f"world '{self.name}' has not been reset")
        command = action.strip()
        valid = command in self._play.commands
        return self._observe(self._play, self._play.act(command), valid)

    def _observe(self, play: Play, text: str, valid: bool) -> Observation:
        scene, room = play.game.scene, play.room()
        shut = bool(room.at) and shuts(scene.receptacles[room.at]) and room.at not in room.opened
        looked_into = self._expert.seen if self._expert else frozenset()
        self._expert = Expert(scene, room, looked_into | {room.at} if room.at and not shut else looked_into)
        info = {
            "task": scene.sentence,
            "phase": "done" if play.won else self._expert.advice[0],
            "room": _whole(room),
            "won": play.won,
        }
        admissible = tuple(command for command in play.commands if command != "help")
        return Observation(text, admissible, _visible(room, shut), float(play.won), play.won, False, valid, info)


def _visible(room: Room, shut: bool) -> str:
    """The situation as the player sees and feels it, in a fixed order of words."""
    there = "closed" if shut else _listed(room, room.inside.get(room.at, ()))
    return f"at {room.at or 'the middle'}: {there}; holding {_listed(room, [room.holding] if room.holding else [])}"


def _whole(room: Room) -> str:
    """A short key of everything in the room, seen or not."""
    inside = [f"{name}: {_listed(room, objects)}" for name, objects in room.inside.items()]
    everything = (room.at, _listed(room, [room.holding]), inside, sorted(room.opened))
    return hashlib.blake2b(repr(everything).encode(), digest_size=8).hexdigest()


def _listed(room: Room, objects: Sequence[str]) -> str:
    """Objects with what has been done to them."""
    return ", ".join(" ".join((name, *room.marks.get(name, ()))) for name in objects) or "nothing"
