"""ALFWorld's rules and sentences at play, byte for byte as TextWorld's PDDL environment shows them, but fast.

TextWorld translates the problem twice at every reset and makes the name of each command anew at every step. Here a game
is translated once and then kept, names of commands are looked up, and sentences come from `_alfworld_grammar`. Facts,
the matching of queries, and the library that carries out actions are TextWorld's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from echelon.errors import MissingExtra
from echelon.language.worlds._alfworld_grammar import Named, Scope, grammar
from echelon.language.worlds._alfworld_scenes import Difficulty, Scene, draw, identifier, library, problem

if TYPE_CHECKING:
    from textworld.logic import Placeholder, Proposition, State, Variable

KEPT = 128
"""Games that a process keeps translated, about 0.3 MB each."""
NOTHING = "Nothing happens."
_GOAL = "UNKNOWN GOAL"

_SIGNATURES = {
    "atlocation": ("agent", "location"),
    "receptacleatlocation": ("receptacle", "location"),
    "inreceptacle": ("object", "receptacle"),
    "holds": ("agent", "object"),
    "opened": ("receptacle",),
    "isclean": ("object",),
    "iscool": ("object",),
    "ishot": ("object",),
    "issliced": ("object",),
    "istoggled": ("object",),
}
_MARKS = {
    "isclean": "clean",
    "iscool": "cool",
    "ishot": "hot",
    "issliced": "sliced",
    "istoggled": "switched",
}
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Operation:
    """A rule of the game with all its parameters, for instance taking mug 1 from shelf 2."""

    command: str
    feedback: str
    """Pattern of the sentence that tells what it did."""
    mapping: Mapping[Placeholder, Variable]


class Game:
    """A scene translated for the simulator; several plays may share it."""

    def __init__(self, scene: Scene):
        """Translate `scene`; about 50 ms."""
        import fast_downward
        from textworld.logic import GameLogic, Signature, State, Type

        arguments, self.scene = sys.argv, scene
        try:  # the translator writes its own command line there
            task, sas = fast_downward.pddl2sas(library().domain, problem(scene))
        finally:
            sys.argv = arguments
        self.sas: bytes = sas.encode()
        self.types: dict[str, str] = {thing.name: thing.type_name for thing in task.objects}
        shown = {identifier(name): name for name in (*scene.receptacles, *scene.objects)}
        self.names = {name: Named(name, shown.get(name, name)) for name in self.types}
        self._parameters = {
            action.name: [(p.name.strip("?"), p.type_name) for p in action.parameters[: action.num_external_parameters]]
            for action in task.actions
        }
        logic = GameLogic()
        for its in task.types:  # "object" is there twice: the root of all types and one of the domain
            if its.name not in {known.name for known in logic.types}:
                logic.types.add(Type(its.name, its.supertype_names))
        facts = [self._fact(fact.predicate, fact.args) for fact in task.init if hasattr(fact, "predicate")]
        self.signatures = {name: Signature(name, types) for name, types in _SIGNATURES.items()}
        start = [fact for fact in facts if fact.name != "="]
        self._operations: dict[str, Operation] = {}
        self._effects: dict[str, Proposition] = {}
        self._start = State(logic, start)

    def facts(self) -> State:
        """The facts at the start, to be changed at will."""
        return self._start.copy()

    def operation(self, operator: str, facts: State) -> Operation:
        """What an operator of the library is called and says; `facts` give the names of places."""
        from textworld.logic import Placeholder, Variable

        if operator not in self._operations:
            name, *arguments = operator.split()
            mapping = {
                Placeholder(parameter, its): Variable(argument, its)
                for (parameter, its), argument in zip(self._parameters[name], arguments, strict=True)
            }
            rule = grammar().actions[name]
            command = grammar().text(rule.template, Scope(facts, self.names, mapping))
            self._operations[operator] = Operation(command, rule.feedback_rule, mapping)
        return self._operations[operator]

    def effect(self, atom: str) -> Proposition:
        """The fact of an effect, written as `Atom p(a, b)` or `NegatedAtom p(a, b)`."""
        if atom not in self._effects:
            sign, _, rest = atom.partition(" ")
            name, _, arguments = rest.removesuffix(")").partition("(")
            self._effects[atom] = self._fact(
                f"not_{name}" if sign == "NegatedAtom" else name, [each for each in arguments.split(", ") if each]
            )
        return self._effects[atom]

    def _fact(self, name: str, arguments: list[str]) -> Proposition:
        from textworld.logic import Proposition, Variable

        return Proposition(name, [Variable(argument, self.types[argument]) for argument in arguments])


@dataclass(frozen=True)
class Room:
    """The facts of a play that matter, under the names that the player reads."""

    at: str
    """The receptacle where the player stands; empty in the middle of the room."""
    holding: str
    """The object in the player's hand, or empty."""
    inside: Mapping[str, tuple[str, ...]]
    """Receptacle to its objects, in order of name."""
    opened: frozenset[str]
    marks: Mapping[str, tuple[str, ...]]
    """Object to what was done to it: clean, cool, hot, sliced, switched."""


class Simulator:
    """Fast Downward's library: says what can be done, carries it out, checks the goal.

    It holds one state and takes 33 MB of disk while it is loaded, so all plays of a process share it: a play that finds
    another one's state there loads its game (0.4 ms) and carries out its actions again.
    """

    def __init__(self) -> None:
        import fast_downward

        self._library = fast_downward.load_lib()
        self._types = fast_downward.Operator, fast_downward.Atom
        self._holds: Play | None = None

    def hold(self, play: Play, fresh: bool = False) -> None:
        """Go to where `play` is, or to its start."""
        if self._holds is not play or fresh:
            self._holds = play
            self._library.load_sas(play.game.sas)
            for operator in play.done:
                self.apply(operator)

    def apply(self, operator: tuple[int, int]) -> list[str]:
        """Carry out an operator, given by its number and how many effects it has; returns the effects."""
        number, count = operator
        effects = (self._types[1] * count)()
        self._library.apply_operator(number, effects)
        return [effect.name for effect in effects]

    def operators(self) -> list[tuple[str, tuple[int, int]]]:
        """Names of the operators that can be applied now, with their numbers and how many effects they have."""
        found = (self._types[0] * self._library.get_applicable_operators_count())()
        self._library.get_applicable_operators(found)
        return [(operator.name, (operator.id, operator.nb_effect_atoms)) for operator in found]

    def solved(self) -> bool:
        """Whether the goal holds."""
        return bool(self._library.check_goal())


class Play:
    """One run of a game."""

    def __init__(self, game: Game):
        self.game = game
        self.done: list[tuple[int, int]] = []
        """Operators so far: number and how many effects."""
        self.won = False
        self.commands: tuple[str, ...] = ()
        """What can be done now, in alphabetical order."""
        self._facts = game.facts()
        self._operators: dict[str, tuple[str, tuple[int, int]]] = {}

    def start(self) -> str:
        """Begin again; returns the room and the task in words."""
        self.done, self._facts = [], self.game.facts()
        with _ONE_AT_A_TIME:
            simulator().hold(self, fresh=True)
            self._look_around()
        text = grammar().text("#intro#", Scope(self._facts, self.game.names, {}))
        return text.replace(_GOAL, self.game.scene.sentence)

    def act(self, command: str) -> str:
        """Carry out one of `commands` and tell what happened; anything else does nothing."""
        if command not in self._operators:
            return NOTHING
        name, operator = self._operators[command]
        with _ONE_AT_A_TIME:
            simulator().hold(self)
            for atom in simulator().apply(operator):
                effect = self.game.effect(atom)
                self._facts.remove_fact(effect.negate())
                self._facts.add_fact(effect)
            self.done.append(operator)
            self._look_around()
        operation = self.game.operation(name, self._facts)
        return grammar().text(operation.feedback, Scope(self._facts, self.game.names, operation.mapping))

    def room(self) -> Room:
        """The facts that matter."""
        place = {fact.arguments[1].name: self._name(fact, 0) for fact in self._all("receptacleatlocation")}
        inside: dict[str, list[str]] = {name: [] for name in self.game.scene.receptacles}
        for fact in self._all("inreceptacle"):
            inside[self._name(fact, 1)].append(self._name(fact, 0))
        marks: dict[str, list[str]] = {name: [] for name in self.game.scene.objects}
        for predicate, mark in _MARKS.items():
            for fact in self._all(predicate):
                marks[self._name(fact, 0)].append(mark)
        return Room(
            "".join(place.get(fact.arguments[1].name, "") for fact in self._all("atlocation")),
            "".join(self._name(fact, 1) for fact in self._all("holds")),
            {name: tuple(sorted(objects, key=identifier)) for name, objects in inside.items()},
            frozenset(self._name(fact, 0) for fact in self._all("opened")),
            {name: tuple(found) for name, found in marks.items() if found},
        )

    def _all(self, predicate: str) -> set[Proposition]:
        return self._facts.facts_with_signature(self.game.signatures[predicate])

    def _name(self, fact: Proposition, place: int) -> str:
        return self.game.names[fact.arguments[place].name].name

    def _look_around(self) -> None:
        """Ask the library what can be done; of two operators with the same command the first counts."""
        self.won, self._operators = simulator().solved(), {}
        for name, operator in simulator().operators():
            self._operators.setdefault(self.game.operation(name, self._facts).command, (name, operator))
        self.commands = tuple(sorted(self._operators))


@cache
def simulator() -> Simulator:
    """The library, loaded once a process."""
    return Simulator()


@lru_cache(maxsize=KEPT)
def game(kind: str, seed: int, training: bool, difficulty: Difficulty) -> Game:
    """The translated scene of a seed; a process keeps the latest ones.

    Raises `MissingExtra` if a package is absent.
    """
    with _ONE_AT_A_TIME:
        _import_quietly()
        return Game(draw(kind, seed, training, difficulty))


@cache
def _import_quietly() -> None:
    """Load the packages without their warnings."""
    for package in ("alfworld", "textworld", "fast_downward"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("textworld.envs.pddl")
