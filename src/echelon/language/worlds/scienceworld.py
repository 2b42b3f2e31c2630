"""ScienceWorld: experiments of primary school in a text simulator (arXiv 2203.07540). It runs on Java, 8 or newer.

Rules, sentences and gold action sequences are those of the package `scienceworld`; here its simulator is spoken to
directly, because the package's own step asks for five more things that cost far more than the step. One Java machine
serves all worlds of a process. What the simulator draws at random (how animals wander, what a book says) is seeded
before each step, and the order of its sets is fixed, so that a game does not depend on others.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from echelon.errors import EchelonError, MissingExtra, UsageError
from echelon.language.worlds.world import BaseWorld, Observation, Task, split_seed

LOOKS = ("look around", "inventory", "task")
"""Actions that only tell something; the slips of the expert."""

_NOT_DONE = ("No known action", "Unknown action", "Ambiguous request", "It's not clear")
# The simulator tells and moves things in the order of sets whose objects have no hash of their own. Java's depends on
# all that was done before; one hash for all objects leaves the order in which they were put there.
_JAVA_OPTIONS = ("-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
_PLACES = {"train": "getVariationsTrain", "valid": "getVariationsDev", "test": "getVariationsTest"}
_KINDS = """
    boil change-the-state-of-matter-of chemistry-mix chemistry-mix-paint-secondary-color
    chemistry-mix-paint-tertiary-color find-animal find-living-thing find-non-living-thing find-plant freeze grow-fruit
    grow-plant identify-life-stages-1 identify-life-stages-2 inclined-plane-determine-angle
    inclined-plane-friction-named-surfaces inclined-plane-friction-unnamed-surfaces lifespan-longest-lived
    lifespan-longest-lived-then-shortest-lived lifespan-shortest-lived measure-melting-point-known-substance
    measure-melting-point-unknown-substance melt mendelian-genetics-known-plant mendelian-genetics-unknown-plant
    power-component power-component-renewable-vs-nonrenewable-energy test-conductivity
    test-conductivity-of-unknown-substances use-thermometer
"""


class NoJava(EchelonError):
    """The simulator cannot be started."""


class ScienceWorld(BaseWorld):
    """Kinds are the package's 30 tasks; splits are its own lists of variations.

    The reward is 1 for the full score; a score below zero ends the game. `info` has `task` in words, `score` (up to
    100), `gained` (by this step), `inventory`, `won`, `lost`, and `plan`, what is left of the gold sequence. `state` is
    what the player sees in the room and carries.
    """

    name: ClassVar[str] = "scienceworld"
    kinds: ClassVar[tuple[str, ...]] = tuple(_KINDS.split())

    def __init__(self, limit: int = 100, easy: int = 1, listed: int = 0, points: int = 0):
        """Options of the simulator and of the reward.

        `easy`: 1 for the package's simplifications, such as open doors and teleporting. `listed`: 1 gives the
        admissible commands, hundreds of them, which takes longer than a step. `points`: 1 pays the score's hundredths.
        """
        super().__init__(limit)
        for option, value in (("easy", easy), ("listed", listed), ("points", points)):
            if value not in (0, 1):
                raise UsageError(f"{option} is {value}; it is 0 or 1")
        self.easy, self.listed, self.points = bool(easy), bool(listed), bool(points)
        self._simulator: Any = None
        self._loaded: tuple[str, int] = ("", -1)
        self._gold: tuple[str, ...] = ()
        self._followed = 0
        self._score = 0

    def expert(self) -> str | None:
        """The next action of the gold sequence that was not taken yet; it does not plan anew after a mistake."""
        if self._seen.done or self._followed >= len(self._gold):
            return None
        return self._gold[self._followed]

    def corrupt(self, action: str, rng: np.random.Generator) -> str:
        """A step wasted by an action that only tells something: from elsewhere the gold sequence would not go on."""
        others = [other for other in LOOKS if other != action]
        return others[int(rng.integers(len(others)))]

    def _start(self, task: Task) -> Observation:
        if self._simulator is None:
            self._simulator = machine().jvm.scienceworld.runtime.pythonapi.PythonInterface()
        self._load(task)
        seed(split_seed(task.split, task.seed))
        self._simulator.reset()
        self._followed, self._score = 0, 0
        return self._observe(f"{self._simulator.getTaskDescription()}\n\n{self._simulator.step('look around')}", True)

    def _act(self, action: str) -> Observation:
        assert self._task is not None
        command = " ".join(action.split())
        seed(split_seed(self._task.split, self._task.seed, len(self._actions)))
        text = str(self._simulator.step(command))
        if self._followed < len(self._gold) and command == self._gold[self._followed]:
            self._followed += 1
        return self._observe(text, valid=not text.startswith(_NOT_DONE))

    def _load(self, task: Task) -> None:
        """Have the simulator read a variation and find its gold sequence, both the same for all of its games."""
        variations = _variations(task.kind, task.split)
        place = (task.kind, variations[task.seed % len(variations)])
        if place != self._loaded:
            seed(place[1])
            self._simulator.load(*place, "easy" if self.easy else "", True)
            self._gold, self._loaded = tuple(self._simulator.getGoldActionSequence()), place

    def _observe(self, text: str, valid: bool) -> Observation:
        simulator, before = self._simulator, self._score
        self._score = round(100 * simulator.getScore())
        won, lost = self._score >= 100, self._score < 0
        over = won or lost or bool(simulator.getCompleted())
        look, inventory = str(simulator.freeActionLook()).strip(), str(simulator.freeActionInventory()).strip()
        listed = self.listed and not over
        admissible = tuple(sorted(simulator.getValidActionObjectCombinations())) if listed else ()
        reward = (self._score - before) / 100 if self.points and self._actions else float(won and not self.points)
        info = {
            "task": str(simulator.getTaskDescription()),
            "score": self._score,
            "gained": self._score - before,
            "inventory": inventory,
            "won": won,
            "lost": lost,
            "plan": () if over else self._gold[self._followed :],
        }
        return Observation(text.strip(), admissible, f"{look} | {inventory}", reward, over, valid=valid, info=info)


def find_java() -> str | None:
    """Path of the Java program: that of `$JAVA_HOME`, else the first on the path; None if there is none."""
    home = os.environ.get("JAVA_HOME")
    program = Path(home) / "bin" / "java" if home else None
    return str(program) if program is not None and program.is_file() else shutil.which("java")


@cache
def machine() -> Any:
    """The gateway to the Java machine of this process, which ends with it. Raises `NoJava` if it does not start."""
    try:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from scienceworld.constants import BASEPATH, JAR_PATH
    except ImportError as error:
        raise MissingExtra("scienceworld", "text") from error
    java = find_java()
    if java is None:
        raise NoJava("ScienceWorld needs Java, 8 or newer, and there is none: apt install default-jre-headless")
    try:
        port, process = launch_gateway(
            classpath=JAR_PATH,
            java_path=java,
            javaopts=list(_JAVA_OPTIONS),
            die_on_exit=True,
            cwd=BASEPATH,
            return_proc=True,
        )
    except Exception as error:  # py4j raises what it likes: the program is no Java, or one that is too old
        raise NoJava(f"{java} does not start ScienceWorld ({error}): apt install default-jre-headless") from error
    return JavaGateway(gateway_parameters=GatewayParameters(auto_field=True, port=port), java_process=process)


def seed(value: int) -> None:
    """Seed the random numbers that all simulators of the process share."""
    generator = getattr(machine().jvm.scala.util, "Random$")
    getattr(generator, "MODULE$").setSeed(value)


@cache
def _variations(kind: str, split: str) -> tuple[int, ...]:
    """The package's variations of a task that belong to a split."""
    simulator = machine().jvm.scienceworld.runtime.pythonapi.PythonInterface()
    simulator.load(kind, 0, "", False)
    return tuple(getattr(simulator, _PLACES[split])())
