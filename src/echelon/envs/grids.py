"""Small worlds of the literature, each with its exact model: four rooms, a chain, a taxi.

Four rooms: Sutton, Precup, Singh (1999), Artificial Intelligence 112, figure 2. A move goes where it should with chance
2/3 and in each of the three other directions with 1/9; who bumps into a wall stays. Reaching the goal pays 1 and ends
the episode, which begins anywhere else with equal chance.
Chain: the stochastic decision process of h-DQN (arXiv 1604.06057, section 4.1). Places 1 to 6, begun in 2 and over in
1. Left goes left; right goes right half of the time, else left; from 6 everything goes left. The end pays 1 to who was
in 6, else 0.01. The state says where one is and whether one was in 6.
Taxi: Dietterich (2000), Journal of Artificial Intelligence Research 13. Five by five cells with four landmarks; fetch
the passenger from one and deliver at another. A step costs 1, a delivery pays 20, a pickup or putdown where it does
nothing costs 10 (paper: 20 beside the cost of the step). Numbers of states and actions and the rules are those of
gymnasium's Taxi-v3, except that a passenger leaves at the destination alone, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from gymnasium.envs.registration import EnvSpec

from echelon.envs.tables import Model, Outcomes, TableWorld, model_of
from echelon.errors import UsageError

Cell = tuple[int, int]

# ---- four rooms

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


# ---- chain

PLACES = 6
"""Places of the chain."""


@lru_cache(maxsize=1)
def chain() -> Model:
    """The exact model of the chain; state (place - 1) + 6 · (6 was visited). It shows `place` (from 0) too."""

    def rule(state: int, action: int) -> Outcomes:
        visited, place = divmod(state, PLACES)
        right = 0.5 if action == 1 and place < PLACES - 1 else 0.0
        for chance, after in ((1 - right, place - 1), (right, place + 1)):
            if chance:
                been = visited or after == PLACES - 1
                paid = 0.0 if after > 0 else 1.0 if been else 0.01
                yield chance, after + PLACES * been, paid

    ends = [state % PLACES == 0 for state in range(2 * PLACES)]
    place = torch.arange(2 * PLACES) % PLACES
    return model_of(2, rule, ends, [1], {"place": place})


def chain_world(slots: int, limit: int | None = None, changes_after: int | None = None) -> TableWorld:
    """The chain; its episodes end by themselves."""
    _refuse_change("chain", changes_after)
    return TableWorld(chain(), slots, limit)


# ---- taxi

BETWEEN = (":|::", ":|::", "::::", "|:|:", "|:|:")
"""Between neighbouring cells of a row: a wall (|) or none (:)."""
LANDMARKS: tuple[Cell, ...] = ((0, 0), (0, 4), (4, 0), (4, 3))
IN_TAXI = len(LANDMARKS)
"""Where the passenger is, after the landmarks."""
SOUTH, NORTH, EASTWARD, WESTWARD, PICKUP, PUTDOWN = range(6)
TAXI_LIMIT = 200


def taxi_state(row: int, column: int, passenger: int, destination: int) -> int:
    """The number of a state of the taxi."""
    return ((row * 5 + column) * 5 + passenger) * 4 + destination


def taxi_parts(state: int) -> tuple[Cell, int, int]:
    """Cell, passenger and destination of a state of the taxi."""
    return divmod(state // 20, 5), state // 4 % 5, state % 4


@lru_cache(maxsize=1)
def taxi() -> Model:
    """The exact model of the taxi, 500 states; it shows `row`, `column`, `passenger` and `destination` too."""

    def rule(state: int, action: int) -> Outcomes:
        (i, j), passenger, destination = taxi_parts(state)
        here = LANDMARKS.index((i, j)) if (i, j) in LANDMARKS else None
        if action < PICKUP:
            yield 1.0, taxi_state(*_driven(i, j, action), passenger, destination), -1.0
        elif action == PICKUP and passenger == here:
            yield 1.0, taxi_state(i, j, IN_TAXI, destination), -1.0
        elif action == PUTDOWN and passenger == IN_TAXI and here == destination:
            yield 1.0, taxi_state(i, j, destination, destination), 20.0
        else:
            yield 1.0, state, -10.0

    parts = [taxi_parts(state) for state in range(500)]
    delivered = [passenger == destination for _, passenger, destination in parts]
    starts = [s for s, (_, passenger, _) in enumerate(parts) if passenger != IN_TAXI and not delivered[s]]
    columns = torch.tensor([(*cell, passenger, destination) for cell, passenger, destination in parts])
    views = dict(zip(("row", "column", "passenger", "destination"), columns.unbind(1), strict=True))
    return model_of(6, rule, delivered, starts, views)


def _driven(i: int, j: int, action: int) -> Cell:
    """Where a move of the taxi leads."""
    if action in (SOUTH, NORTH):
        return min(max(i + (1 if action == SOUTH else -1), 0), 4), j
    after = j + (1 if action == EASTWARD else -1)
    return i, after if 0 <= after <= 4 and BETWEEN[i][min(j, after)] == ":" else j


def taxi_world(slots: int, limit: int | None = None, changes_after: int | None = None) -> TableWorld:
    """The taxi."""
    _refuse_change("taxi", changes_after)
    return TableWorld(taxi(), slots, limit or TAXI_LIMIT)


# ---- by name


def _refuse_change(name: str, changes_after: int | None) -> None:
    if changes_after is not None:
        raise UsageError(f"the rules of {name} do not change; leave out @{changes_after}")


WORLDS: dict[str, Callable[[int, int | None, int | None], TableWorld]] = {
    "four-rooms": four_rooms_world,
    "four-rooms-far": four_rooms_far_world,
    "chain": chain_world,
    "taxi": taxi_world,
}
"""Name -> the world with so many slots, episodes cut off after so many steps, rules that change after so many."""


def named_world(name: str, slots: int, limit: int | None = None) -> TableWorld | None:
    """The world called `name`, or None. "name@steps": its rules change once each slot has made so many steps."""
    base, at, steps = name.partition("@")
    if base not in WORLDS:
        return None
    if at and not steps.isdecimal():
        raise UsageError(f"environment '{name}': a number of steps follows on @, not '{steps}'")
    world = WORLDS[base](slots, limit, int(steps) if at else None)
    world.spec = EnvSpec(base)  # its name in messages
    return world


def named_model(name: str) -> Model:
    """The exact model of the world called `name`, as it begins. UsageError for a world without one."""
    world = named_world(name, 1)
    if world is None:
        raise UsageError(f"environment '{name}' has no exact model; there are {', '.join(WORLDS)}")
    return world.models[0]
