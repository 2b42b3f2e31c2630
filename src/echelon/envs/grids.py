"""Small worlds of the literature, each with its exact model: four rooms.

Four rooms: Sutton, Precup, Singh (1999), Artificial Intelligence 112, figure 2. A move goes where it should with chance
2/3 and in each of the three other directions with 1/9; who bumps into a wall stays. Reaching the goal pays 1 and ends
the episode, which begins anywhere else with equal chance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from echelon.envs.tables import Model, Outcomes, TableWorld, model_of
from echelon.errors import UsageError

Cell = tuple[int, int]

ROOMS = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)
CELLS: tuple[Cell, ...] = tuple((i, j) for i, row in enumerate(ROOMS) for j, mark in enumerate(row) if mark == ".")
"""Free cells (row, column), in the order of the states: 104."""
MOVES: tuple[Cell, ...] = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right: the actions of four rooms."""
HALLWAYS: tuple[Cell, ...] = ((3, 6), (6, 2), (7, 9), (10, 6))
EAST, FAR = (7, 9), (10, 10)
"""The goals: the eastern hallway, and a cell in the lower right room."""
FOUR_ROOMS_LIMIT = 1000


@lru_cache(maxsize=128)
def four_rooms(goal: Cell = EAST, slip: float = 1 / 3) -> Model:
    """The exact model of four rooms; the state of a cell is its place in `CELLS`."""
    place = {cell: state for state, cell in enumerate(CELLS)}
    if goal not in place:
        raise UsageError(f"four rooms: {goal} is not a free cell")

    def rule(state: int, action: int) -> Outcomes:
        i, j = CELLS[state]
        for move, (di, dj) in enumerate(MOVES):
            chance = 1 - slip if move == action else slip / 3
            after = place.get((i + di, j + dj), state)
            yield chance, after, float(after == place[goal])

    reached = [cell == goal for cell in CELLS]
    starts = [state for state, there in enumerate(reached) if not there]
    return model_of(len(MOVES), rule, reached, starts, success=reached)


def four_rooms_world(slots: int, limit: int | None = None, moves_after: int | None = None) -> TableWorld:
    """Four rooms, the goal in the eastern hallway; after so many steps of each slot, new episodes have it far off."""
    then = None if moves_after is None else (moves_after, four_rooms(FAR))
    return TableWorld(four_rooms(), slots, limit or FOUR_ROOMS_LIMIT, then)


def four_rooms_far_world(slots: int, limit: int | None = None, moves_after: int | None = None) -> TableWorld:
    """Four rooms with its goal in the lower right room; it may move to the eastern hallway."""
    then = None if moves_after is None else (moves_after, four_rooms())
    return TableWorld(four_rooms(FAR), slots, limit or FOUR_ROOMS_LIMIT, then)


WORLDS: dict[str, Callable[[int, int | None, int | None], TableWorld]] = {
    "four-rooms": four_rooms_world,
    "four-rooms-far": four_rooms_far_world,
}
"""Name -> the world with so many slots, episodes cut off after so many steps, rules that change after so many."""


def named_world(name: str, slots: int, limit: int | None = None) -> TableWorld | None:
    """The world called `name`, or None. "name@steps": its rules change once each slot has made so many steps."""
    base, at, steps = name.partition("@")
    if base not in WORLDS:
        return None
    if at and not steps.isdecimal():
        raise UsageError(f"environment '{name}': a number of steps follows on @, not '{steps}'")
    return WORLDS[base](slots, limit, int(steps) if at else None)
