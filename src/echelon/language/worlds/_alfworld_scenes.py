"""Rooms, objects and goals for the ALFWorld engine, drawn from seeds: the package brings the rules, not the games.

What the package knows about household scenes is used as it is: which object fits into which receptacle, what can be
heated, cooled, cleaned or sliced, and which types of things stand in each of 120 floor plans, 96 of them for training.
Places and goals are our own, so results are of the "ALFWorld engine, synthetic scenes", never of ALFWorld.
Source: alfworld 0.4.2 (arXiv 2010.03768), files `gen/constants.py`, `gen/goal_library.py`, `gen/layouts`.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from echelon.errors import MissingExtra, UsageError, unknown

ROOMS = {"kitchen": "Kitchen", "livingroom": "LivingRoom", "bedroom": "Bedroom", "bathroom": "Bathroom"}
"""Names of the rooms here and in the package."""
GOALS = {
    "place": "pick_and_place_simple",
    "heat": "pick_heat_then_place_in_recep",
    "clean": "pick_clean_then_place_in_recep",
    "look": "look_at_obj_in_light",
    "cool": "pick_cool_then_place_in_recep",
    "two": "pick_two_obj_and_place",
}
"""Kinds of goals here and in the package."""
CHANGES = {
    "heat": ("Microwave", "Heatable", "hot"),
    "cool": ("Fridge", "Coolable", "cool"),
    "clean": ("SinkBasin", "Cleanable", "clean"),
}
"""Kinds that change the object: the appliance, the package's table of objects that it changes, and the new state."""
LAMP = "DeskLamp"
FEWEST_RECEPTACLES = 6

_STANDS = ("Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "Shelf")  # where a lamp may stand
_MOST_OF_A_TYPE = 3
_NAMED_BY_THE_RULES = {"rtype": ("Microwave", "Fridge", "SinkBasin"), "otype": ("Knife", "ButterKnife")}


@dataclass(frozen=True)
class Difficulty:
    """What makes a scene harder."""

    receptacles: int = 12
    """At most so many; small rooms have fewer."""
    distractors: int = 10
    """Objects of other types than the goal's."""
    closed: float = 0.5
    """Probability that the first object to be found lies in a closed receptacle, where its type allows both."""
    rooms: tuple[str, ...] = tuple(ROOMS)

    def __post_init__(self) -> None:
        if self.receptacles < FEWEST_RECEPTACLES:
            raise UsageError(f"receptacles is {self.receptacles}; a scene needs at least {FEWEST_RECEPTACLES}")
        if self.distractors < 0:
            raise UsageError(f"distractors is {self.distractors}; it is a count")
        if not 0.0 <= self.closed <= 1.0:
            raise UsageError(f"closed is {self.closed}; it is a probability")
        if not self.rooms:
            raise UsageError(f"no rooms were chosen; valid: {', '.join(ROOMS)}")
        for room in self.rooms:
            if room not in ROOMS:
                raise unknown("room", room, ROOMS)


@dataclass(frozen=True)
class Scene:
    """One game before it is translated. Things are named as the player reads them, such as "mug 1"."""

    kind: str
    plan: int
    """Number of the floor plan that gave the room."""
    sentence: str
    """The task in words, such as "put a hot apple in countertop"."""
    target: str
    """Type of the object to be found."""
    place: str
    """Type of the receptacle it is for; for the kind `look`, the type of the lamp."""
    receptacles: Mapping[str, str]
    """Name to type, in the room's order."""
    objects: Mapping[str, str]
    """Name to type."""
    where: Mapping[str, str]
    """Object to the receptacle in which it starts; every receptacle that can be opened is closed."""

    def of_type(self, kind: str) -> list[str]:
        """Names of the receptacles and objects of one type."""
        return [name for name, its in (*self.receptacles.items(), *self.objects.items()) if its == kind]


def draw(kind: str, seed: int, training: bool, difficulty: Difficulty) -> Scene:
    """The scene of a seed; `training` chooses among the floor plans for training or among the unseen ones.

    A floor plan always has the same receptacles; objects, their places and the goal depend on the seed.
    Raises `UsageError` if the chosen rooms have no goal of this kind.
    """
    rng = random.Random(seed)
    choices = _choices(kind, training, difficulty)
    if not choices:
        raise UsageError(f"no goal of kind '{kind}' exists in the rooms {', '.join(difficulty.rooms)}")
    plan = rng.choice(list(choices))
    target = rng.choice(list(choices[plan]))
    place = rng.choice(choices[plan][target])
    room = _room(plan, difficulty.receptacles)
    rooms = _numbered(room)
    lamps = [LAMP] if kind == "look" else []
    pairs = [(target, place)] * (2 if kind == "two" else 1) + [(lamp, "") for lamp in lamps]
    pairs += [(other, "") for other in _distractors(plan, target, room, difficulty.distractors, rng)]
    objects = _numbered([name for name, _ in pairs])
    where = {}
    for order, ((name, its), (_, but)) in enumerate(zip(objects.items(), pairs, strict=True)):
        closed = rng.random() < difficulty.closed if order == 0 else None
        where[name] = _somewhere(its, rooms, but, closed, rng)
    sentence = rng.choice(library().goals[GOALS[kind]]["templates"])
    sentence = sentence.format(obj=target.lower(), recep=place.lower(), toggle=LAMP.lower(), mrecep="")
    return Scene(kind, plan, sentence, target, place, rooms, objects, where)


def problem(scene: Scene) -> str:
    """The scene as a PDDL problem of the package's domain."""
    tables = library()
    rtypes, otypes = set(scene.receptacles.values()), set(scene.objects.values())
    things = ["agent_1 - agent", "loc_0 - location"]
    facts = ["(atlocation agent_1 loc_0)", "(= (total-cost) 0)"]
    location = {name: f"loc_{number}" for number, name in enumerate(scene.receptacles, 1)}
    for name, its in scene.receptacles.items():
        entity = identifier(name)
        things += [f"{entity} - receptacle", f"{location[name]} - location"]
        facts += [f"(receptacletype {entity} {its}Type)", f"(receptacleatlocation {entity} {location[name]})"]
        facts += [f"(openable {entity})"] if shuts(its) else []
    for name, its in scene.objects.items():
        entity, start = identifier(name), scene.where[name]
        things.append(f"{entity} - object")
        facts += [f"(objecttype {entity} {its}Type)", f"(inreceptacle {entity} {identifier(start)})"]
        facts += [f"(objectatlocation {entity} {location[start]})"]
        facts += [f"(pickupable {entity})"] if its != LAMP else []
        facts += [f"({can.lower()} {entity})" for can, types in tables.can.items() if its in types]
    facts += [f"(cancontain {r}Type {o}Type)" for r in sorted(rtypes) for o in sorted(otypes) if o in tables.holds[r]]
    things += [f"{its}Type - rtype" for its in sorted({*rtypes, *_NAMED_BY_THE_RULES["rtype"]})]
    things += [f"{its}Type - otype" for its in sorted({*otypes, *_NAMED_BY_THE_RULES["otype"]})]
    goal = tables.goals[GOALS[scene.kind]]["pddl"].replace("#", "-")
    goal = goal.format(obj=scene.target, recep=scene.place, toggle=LAMP, mrecep="")
    known = "\n".join(("(:objects", *things, ")", "(:init", *facts, ")"))
    return f"(define (problem scene) (:domain alfred)\n{known}\n{goal}"


def fits(its: str, receptacle: str) -> bool:
    """Whether an object may be in or on a receptacle, both given by type. Lamps stand; nothing moves them."""
    return receptacle in _STANDS if its == LAMP else its in library().holds[receptacle]


def shuts(receptacle: str) -> bool:
    """Whether a type of receptacle can be opened and closed."""
    return receptacle in library().openable


def identifier(name: str) -> str:
    """What the rules call a thing: "mug 1" is `mug_01`, so that lists in alphabetical order are in order of number."""
    word, number = name.split()
    return f"{word}_{int(number):02d}"


@dataclass(frozen=True)
class Library:
    """What is read from the package."""

    domain: str
    grammar: str
    goals: Mapping[str, Mapping[str, Any]]
    holds: Mapping[str, frozenset[str]]
    """Type of receptacle to the types of objects that it can contain."""
    can: Mapping[str, frozenset[str]]
    """Heatable, Coolable, Cleanable, Toggleable and Sliceable to types of objects."""
    openable: frozenset[str]
    receptacles: frozenset[str]
    """Types that stand in a room and contain things."""
    plans: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Room to the numbers of its floor plans: for training, unseen."""
    rooms_of: Mapping[str, frozenset[str]]
    """Kind of goal to the rooms where the package allows it."""
    root: Path


@cache
def library() -> Library:
    """Read the package's files. Its modules are loaded one by one: importing the package makes a folder at home."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("alfworld", "text")
    root = Path(spec.submodule_search_locations[0])
    tables = _module(root / "gen" / "constants.py")
    holds = {its: frozenset(types) for its, types in tables.VAL_RECEPTACLE_OBJECTS.items()}
    names = {package: name for name, package in ROOMS.items()}
    training = set(tables.TRAIN_SCENE_NUMBERS)
    plans = {
        names[room]: (tuple(n for n in numbers if n in training), tuple(n for n in numbers if n not in training))
        for room, numbers in tables.SCENE_TYPE.items()
    }
    return Library(
        (root / "data" / "alfred.pddl").read_text(),
        (root / "data" / "alfred.twl2").read_text(),
        _module(root / "gen" / "goal_library.py").gdict,
        holds,
        {can: frozenset(types) for can, types in tables.VAL_ACTION_OBJECTS.items()},
        frozenset(tables.OPENABLE_CLASS_LIST),
        (frozenset(tables.RECEPTACLES) - frozenset(tables.MOVABLE_RECEPTACLES)) & frozenset(holds),
        plans,
        {kind: frozenset(names[room] for room in tables.GOALS_VALID[goal]) for kind, goal in GOALS.items()},
        root,
    )


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_alfworld_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise MissingExtra("alfworld", "text")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _plan(number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Types of the objects, and types of the receptacles with repetitions, of a floor plan, both sorted."""
    tables = library()
    folder = tables.root / "gen" / "layouts"
    found = json.loads((folder / f"FloorPlan{number}-objects.json").read_text())
    counted = Counter(
        key.split("|")[0] for key in json.loads((folder / f"FloorPlan{number}-openable.json").read_text())
    )
    placeable = frozenset[str]().union(*tables.holds.values()) | {LAMP}
    objects = tuple(sorted(its for its in found if its in placeable and its not in tables.receptacles))
    standing = sorted(its for its in found if its in tables.receptacles)
    return objects, tuple(its for its in standing for _ in range(counted.get(its, 1)))


@cache
def _room(number: int, most: int) -> tuple[str, ...]:
    """At most `most` receptacles of a floor plan, always the same ones, the appliances among them."""
    every = _plan(number)[1]
    if len(every) <= most:
        return every
    needed = [appliance for appliance, _, _ in CHANGES.values() if appliance in every]
    others = list((Counter(every) - Counter(needed)).elements())
    return tuple(sorted(needed + random.Random(number).sample(others, most - len(needed))))


@lru_cache(maxsize=64)
def _choices(kind: str, training: bool, difficulty: Difficulty) -> dict[int, dict[str, list[str]]]:
    """Floor plan to object type to types of receptacles: the goals of one kind that have a solution."""
    tables = library()
    rooms = [room for room in difficulty.rooms if room in tables.rooms_of[kind]]
    plans = [number for room in rooms for number in tables.plans[room][0 if training else 1]]
    found = {number: _goals(kind, number, _room(number, difficulty.receptacles)) for number in plans}
    return {number: goals for number, goals in found.items() if goals}


def _goals(kind: str, number: int, room: Sequence[str]) -> dict[str, list[str]]:
    tables = library()
    objects = [its for its in _plan(number)[0] if its != LAMP]
    appliance = ""
    if kind == "look":
        lamp = LAMP in _plan(number)[0] and any(fits(LAMP, r) for r in room)
        return {its: [LAMP] for its in objects if lamp and any(fits(its, r) for r in room)}
    if kind in CHANGES:
        appliance, table, _ = CHANGES[kind]
        objects = [its for its in objects if its in tables.can[table] and appliance in room]
    goals = {}
    for its in objects:
        places = sorted({r for r in room if fits(its, r)})
        if len(places) > 1:  # it can start elsewhere than where it is to go
            goals[its] = [r for r in places if r != appliance]
    return {its: places for its, places in goals.items() if places}


def _distractors(number: int, target: str, room: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Types of objects that are not asked for, at most three of each, as far as the floor plan has them."""
    types = [its for its in _plan(number)[0] if its not in (target, LAMP) and any(fits(its, r) for r in room)]
    every = types * _MOST_OF_A_TYPE
    return rng.sample(every, min(count, len(every)))


def _numbered(types: Sequence[str]) -> dict[str, str]:
    """Names for things of the given types: "mug 1", "mug 2", ..."""
    seen: Counter[str] = Counter()
    names = {}
    for its in types:
        seen[its] += 1
        names[f"{its.lower()} {seen[its]}"] = its
    return names


def _somewhere(its: str, rooms: Mapping[str, str], but: str, closed: bool | None, rng: random.Random) -> str:
    """A receptacle for an object: not of type `but`, closed or open as asked if there is a choice."""
    options = [name for name, r in rooms.items() if r != but and fits(its, r)]
    wanted = [name for name in options if shuts(rooms[name]) == closed]
    return rng.choice(wanted if wanted and closed is not None else options)
