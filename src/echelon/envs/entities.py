"""Where the entities of an environment lie in its observations: consecutive blocks of numbers, one kind after another.

Source: OGBench's manipulation environments (arXiv 2410.20092), whose observations begin with 19 numbers of the robot
and give 9 to each cube: its position in tenths of a metre, its quaternion, cosine and sine of its yaw.
"""

from __future__ import annotations

from dataclasses import dataclass

from echelon.errors import UsageError

Kinds = tuple[tuple[int, int], ...]
"""(count, size) of each kind of entity, in the observation's order: `size` numbers for each of `count` entities."""

ROBOT, CUBE, BUTTON, SLIDER = 19, 9, 4, 2
MAZES = ("pointmaze", "antmaze", "humanoidmaze")
DECLARED = ("cube", "scene", "puzzle", *MAZES)
"""Families of environments whose entities are known."""


@dataclass(frozen=True)
class EntityLayout:
    """The entities of an observation, and which of them are what a goal is about.

    `objects` is the kind (its place in `kinds`) whose positions alone decide success, None where success is judged
    otherwise; a position is an object's first three numbers, `units` of them a metre.
    """

    kinds: Kinds
    objects: int | None = None
    units: float = 1.0

    @property
    def dim(self) -> int:
        """Numbers of an observation."""
        return sum(count * size for count, size in self.kinds)

    @property
    def entities(self) -> int:
        """Entities of an observation."""
        return sum(count for count, _ in self.kinds)


def declared(env: str) -> bool:
    """Whether the entities of the environment or data set `env` are known."""
    return env.partition("-")[0] in DECLARED


def layout_of(env: str, observation_dim: int) -> EntityLayout:
    """The entities of `env` in observations of that many numbers.

    A scene has a robot, a cube, two buttons, a drawer and a window; a puzzle a robot and its buttons; in a maze there
    is one entity, the body. Raises UsageError where no entities are declared or the numbers do not fit them.
    """
    family = env.partition("-")[0]
    if family not in DECLARED:
        raise UsageError(f"no entities are declared for '{env}'; declared: {', '.join(DECLARED)}")
    if family in MAZES:
        return EntityLayout(((1, observation_dim),))
    if family == "scene":
        layout = EntityLayout(((1, ROBOT), (1, CUBE), (2, BUTTON), (1, SLIDER), (1, SLIDER)))
    elif family == "cube":
        layout = EntityLayout(((1, ROBOT), ((observation_dim - ROBOT) // CUBE, CUBE)), objects=1, units=10.0)
    else:
        layout = EntityLayout(((1, ROBOT), ((observation_dim - ROBOT) // BUTTON, BUTTON)))
    if layout.dim != observation_dim or min(count for count, _ in layout.kinds) < 1:
        blocks = " + ".join(f"{count} x {size}" for count, size in layout.kinds)
        raise UsageError(f"'{env}' has observations of {observation_dim} numbers, its entities are {blocks}")
    return layout
