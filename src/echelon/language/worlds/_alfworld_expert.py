"""A hand-written player of the household games: looks where the object may be, takes it, changes it, puts it away.

It knows what the player knows: the receptacles it has looked into, as they are now (only the player moves things). It
does not plan and does not mind how it got where it is, so that it corrects slips: a wrong object in the hand is put
down, an object that was cooled after heating is heated again.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property

from echelon.language.worlds._alfworld_engine import Room
from echelon.language.worlds._alfworld_scenes import CHANGES, LAMP, Scene, fits, shuts


@dataclass(frozen=True)
class Expert:
    """Advice for one situation."""

    scene: Scene
    room: Room
    seen: Set[str]
    """Receptacles that the player has looked into."""

    @cached_property
    def advice(self) -> tuple[str, str | None]:
        """The phase of the task in words, such as "heat apple", and the next action; None when all was searched."""
        kind, name = self.scene.kind, self.scene.target.lower()
        count = "second " if self._delivered and kind == "two" else ""
        if self._type(self.room.holding) != self.scene.target:
            phase = f"find {count}{name}"
            return phase, self._put_down(self.room.holding) if self.room.holding else self._fetch()
        if kind == "look":
            lamps = self._known(LAMP)
            if not lamps:
                return f"find {LAMP.lower()}", self._search(LAMP)
            return f"use {LAMP.lower()}", self._at(lamps[0][1], f"use {lamps[0][0]}")
        if kind in CHANGES and CHANGES[kind][2] not in self.room.marks.get(self.room.holding, ()):
            appliance = self.scene.of_type(CHANGES[kind][0])[0]
            change = f"{kind} {self.room.holding} with {appliance}"
            return f"{kind} {name}", change if self.room.at == appliance else f"go to {appliance}"
        return f"put {count}{name}", self._into(self._destination, f"move {self.room.holding} to {self._destination}")

    @cached_property
    def _delivered(self) -> str:
        """Of two objects the receptacle where the first one already is, or empty."""
        if self.scene.kind != "two":
            return ""
        there = [place for _, place in self._known(self.scene.target) if self._type(place) == self.scene.place]
        return max(there, key=there.count, default="")

    @property
    def _destination(self) -> str:
        options = self.scene.of_type(self.scene.place)
        here = [name for name in options if name == self.room.at] or [name for name in options if not self._shut(name)]
        return self._delivered or (here or options)[0]

    def _fetch(self) -> str | None:
        """Take an object of the wanted type if one is known, else look for one."""
        for name, place in self._known(self.scene.target):
            if place != self._delivered:
                return self._into(place, f"take {name} from {place}")
        return self._search(self.scene.target)

    def _search(self, its: str) -> str | None:
        """Look into the next receptacle where a thing of this type may be: here first, then those that stand open.

        Nothing is wanted where it already is.
        """
        others = [name for name, r in self.scene.receptacles.items() if r != self.scene.place and fits(its, r)]
        unseen = [name for name in others if name not in self.seen]
        unseen.sort(key=lambda name: (name != self.room.at, self._shut(name)))
        if not unseen:
            return None
        return f"open {unseen[0]}" if unseen[0] == self.room.at else f"go to {unseen[0]}"

    def _put_down(self, name: str) -> str:
        """Get rid of a wrong object: here if it fits, else in the next place that stands open."""
        places = [place for place, r in self.scene.receptacles.items() if fits(self._type(name), r)]
        place = min(places, key=lambda place: (place != self.room.at, self._shut(place)))
        return self._into(place, f"move {name} to {place}")

    def _into(self, place: str, action: str) -> str:
        """Go to a receptacle and open it where that is needed, then `action`."""
        return self._at(place, f"open {place}" if self._shut(place) else action)

    def _at(self, place: str, action: str) -> str:
        return action if self.room.at == place else f"go to {place}"

    def _known(self, its: str) -> list[tuple[str, str]]:
        """Objects of a type that were seen, with their places; those at hand come first."""
        places = sorted(self.seen, key=lambda place: (place != self.room.at, place))
        return [(name, place) for place in places for name in self.room.inside[place] if self._type(name) == its]

    def _shut(self, place: str) -> bool:
        return shuts(self._type(place)) and place not in self.room.opened

    def _type(self, name: str) -> str:
        return self.scene.objects.get(name) or self.scene.receptacles.get(name, "")
