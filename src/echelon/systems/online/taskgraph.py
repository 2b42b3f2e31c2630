"""Graphs of tasks, as MAXQ has them: what a task may call, where it is over, and which states it need not tell apart.

Legend: N states, J nodes; the first of them are the primitive actions, the others composite tasks, children first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from echelon.envs import exact, grids
from echelon.envs.exact import Choices
from echelon.envs.tables import Model
from echelon.errors import UsageError


class Child(NamedTuple):
    """A task that another may call: its name; where it may be called, bool[N] (None: wherever it is not over); and a
    representative of the states that its completion need not tell apart, int64[N] (None: all are different)."""

    name: str
    where: Tensor | None = None
    alike: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A composite task: over in the states `done`, bool[N], which pay `pseudo`, float64[N], for its own choices alone.

    What it calls runs to its own end: a task should not be over while its child is not.
    """

    name: str
    done: Tensor
    children: Sequence[Child]
    pseudo: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """done bool[J, N]; may bool[J, J, N]: whether a task calls another in a state (a primitive "calls" itself);
    alike int64[J, J, N]: representatives of states; reward_alike int64[A, N]; pseudo float64[J, N]."""

    names: tuple[str, ...]
    actions: int
    done: Tensor
    may: Tensor
    alike: Tensor
    reward_alike: Tensor
    pseudo: Tensor
    depth: int = field(default=0)

    @property
    def root(self) -> int:
        """The task that is the whole."""
        return len(self.names) - 1

    @property
    def composites(self) -> range:
        """The composite tasks, children first."""
        return range(self.actions, len(self.names))

    def numbers(self) -> int:
        """How many numbers a table of it holds: of expected rewards, and of completions where they matter."""
        found = sum(len(row.unique()) for row in self.reward_alike)
        for i in self.composites:
            going = ~self.done[i]
            found += sum(len(self.alike[i, a][self.may[i, a] & going].unique()) for a in range(len(self.names)))
        return found


def alike(*columns: Tensor) -> Tensor:
    """int64[N]: of each state the first that has the same values in all columns [N]."""
    _, group = torch.stack([column.long() for column in columns], 1).unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce_(
        0, group, torch.arange(len(group)), "amin", include_self=True
    )
    return first[group]


def graph(model: Model, actions: Sequence[str], tasks: Sequence[Task], rewards: Mapping[str, Tensor]) -> Graph:
    """The graph of `tasks`, children before those that call them and the whole task last.

    actions: names of the model's. rewards: representatives, int64[N], of the states in which an action pays alike.
    """
    names = (*actions, *(task.name for task in tasks))
    place = {name: number for number, name in enumerate(names)}
    size, states = len(names), model.states
    if len(actions) != model.actions or len(place) != size:
        raise UsageError(f"task graph: {model.actions} actions and tasks need a name each, all different; got {names}")
    every = torch.arange(states)
    done = torch.ones(size, states, dtype=torch.bool)
    may = torch.zeros(size, size, states, dtype=torch.bool)
    same, pseudo = every.repeat(size, size, 1), torch.zeros(size, states, dtype=torch.float64)
    may[range(len(actions)), range(len(actions))] = True
    depth = [0] * size
    for number, task in enumerate(tasks, len(actions)):
        done[number] = task.done | model.terminal
        pseudo[number] = 0 if task.pseudo is None else task.pseudo
        for child in task.children:
            called = place.get(child.name, size)
            if called >= number:
                raise UsageError(f"task graph: {task.name} calls {child.name}, which does not come before it")
            open_to = ~done[called] if called >= len(actions) else torch.ones_like(model.terminal)
            may[number, called] = open_to if child.where is None else open_to & child.where
            same[number, called] = every if child.alike is None else child.alike
            depth[number] = max(depth[number], depth[called] + 1)
    stuck = ~done[len(actions) :] & ~may[len(actions) :].any(1)
    if bool(stuck.any()):
        task, state = stuck.nonzero()[0].tolist()
        raise UsageError(f"task graph: {tasks[task].name} has nothing to call in state {state}")
    paid = torch.stack([rewards.get(name, every) for name in actions])
    return Graph(names, len(actions), done, may, same, paid, pseudo, depth[-1])


# ---- what a graph is worth, exactly


def recursion(model: Model, tasks: Graph, gamma: float, policy: Tensor | None = None) -> Tensor:
    """The value [N] of the whole task, where each task chooses by `policy`, int64[J, N].

    Without it each chooses what is best for itself, its own pseudo-reward included, its children being what they are:
    the recursive optimum.
    """
    primitive = exact.steps(model, gamma)
    held = [Choices(primitive.reward[a], primitive.arrival[a]) for a in range(tasks.actions)]
    for i in tasks.composites:
        children = Choices(torch.stack([c.reward for c in held]), torch.stack([c.arrival for c in held]))
        if policy is None:
            allowed = tasks.may[i, : len(held)] & ~tasks.done[i]
            chosen = exact.optimal(children, allowed, tasks.pseudo[i]).argmax(0)
        else:
            chosen = policy[i]
        whole = exact.until(exact.followed(children, chosen), tasks.done[i])
        held.append(Choices(whole.reward[0], whole.arrival[0]))
    return held[tasks.root].reward


# ---- the taxi's


def taxi_tasks() -> Graph:
    """Root gets and puts; both navigate, to where the passenger is and wants to be, and pick up or put down."""
    model = grids.taxi()
    row, column, passenger, wanted = (model.views[n] for n in ("row", "column", "passenger", "destination"))
    aboard, cell = passenger == grids.IN_TAXI, row * 5 + column
    marks = [i * 5 + j for i, j in grids.LANDMARKS]
    nothing = torch.zeros_like(cell)
    moves = ("south", "north", "east", "west")
    navigate = [
        Task(f"navigate {t}", cell == mark, [Child(move, alike=alike(cell)) for move in moves])
        for t, mark in enumerate(marks)
    ]
    get = [Child("pickup", alike=alike(cell, passenger))]
    put = [Child("putdown", alike=alike(cell, wanted))]
    for t in range(len(marks)):
        get.append(Child(f"navigate {t}", passenger == t, alike(nothing)))
        put.append(Child(f"navigate {t}", wanted == t, alike(nothing)))
    root = [Child("get", alike=alike(passenger, wanted)), Child("put", alike=alike(nothing))]
    tasks = [*navigate, Task("get", aboard, get), Task("put", ~aboard, put), Task("root", model.terminal, root)]
    paid = model.expected_reward
    rewards = {move: alike(nothing) for move in moves}
    rewards |= {"pickup": alike(paid[:, grids.PICKUP]), "putdown": alike(paid[:, grids.PUTDOWN])}
    return graph(model, (*moves, "pickup", "putdown"), tasks, rewards)


GRAPHS: dict[str, Callable[[], Graph]] = {"taxi": taxi_tasks}
"""World -> its graph of tasks."""
