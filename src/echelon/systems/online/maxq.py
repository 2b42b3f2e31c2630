"""MAXQ: the value of a task is the value of the child that it calls, and of completing itself afterwards.

Idea: V(i, s) = V(a, s) + C(i, s, a), down to the expected reward of a primitive action; so each task learns but its
completions C, of which it need not tell apart states that differ in what does not matter to it. Pseudo-rewards of ends
that a task should avoid steer its own choices, and are kept out of what its caller is told.
Source: Dietterich 2000, Journal of Artificial Intelligence Research 13, 227-303 (arXiv cs/9905014); MAXQ-Q, which is
MAXQ-0 where there are no pseudo-rewards, as on the taxi.
Levels: one for each depth of the graph of tasks; the last one is `action`.
Shares with options and h-DQN: tables; with the library: `credit.options.maxq_target`.
Deviations: explores by epsilon-greedy choices (paper: Boltzmann, cooled); step sizes fall with the visits of an entry
to a floor (paper: constants for each task); V of a task with pseudo-rewards is that of what it would choose, not the
maximum over its children; a call that the end of an episode cut teaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from echelon.claims import AtLeast, Claim, Score
from echelon.credit.options import maxq_target
from echelon.envs.grids import named_model
from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Running, Until
from echelon.hierarchy.transitions import Columns, Transitions, select
from echelon.rollout import Rollout
from echelon.systems.online.tables import Table, sampled, states_of
from echelon.systems.online.taskgraph import GRAPHS, Graph, recursion
from echelon.training.agent import Batch, Update
from echelon.training.online.agent import Keeper, OnlineAgent
from echelon.training.online.config import OnlineConfig


class Decomposition(NamedTuple):
    """What the tables say. value V(i, s) [J, N]; completion C(i, s, a) and guide C~(i, s, a) + V(a, s): [J, J, N], both
    -inf where i does not call a; policy int64 [J, N]: the child that the guide picks."""

    value: Tensor
    completion: Tensor
    guide: Tensor
    policy: Tensor


class MAXQ(OnlineAgent):
    """Tables of expected rewards and completions, with and without pseudo-rewards."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OnlineConfig):
        """Hyper-parameters of MAXQ."""

        system: ClassVar[str] = "maxq"
        env: str = "taxi"
        """Environment: a world of this library that has a graph of tasks."""
        slots: int = 32
        """Episodes side by side."""
        ticks: int = 8
        """Environment steps of each slot before the tables learn."""
        updates: int = 600
        """Iterations; slots x ticks environment steps each."""
        gamma: float = 0.99
        """Discount of an environment step."""
        epsilon: float = 0.2
        """Probability that a task calls any of its children; it falls to 0 over the run."""
        power: float = 0.6
        """The n-th target of a value moves it by n^-power of the way,"""
        floor: float = 0.2
        """or by this much if that is more (paper: 0.25 to 1 on the taxi)."""
        eval_every: int = 200
        """Iterations between evaluations; the reported score is the mean over the last three."""
        checkpoint_every: int = 200
        """Iterations between checkpoints."""
        log_every: int = 50
        """Iterations between lines of metrics."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("gamma", "epsilon", "floor"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
            self.require("power", 0.5 < self.power <= 1, "above 0.5, at most 1")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        if config.env not in GRAPHS:
            raise UsageError(f"maxq: '{config.env}' has no graph of tasks; there is one for {', '.join(GRAPHS)}")
        self.tasks: Graph = GRAPHS[config.env]()
        states, nodes = states_of(spaces, config.system), len(self.tasks.names)
        self.rewards = Table((self.tasks.actions, states), config.power, config.floor)
        self.completions = Table((nodes, nodes, states), config.power, config.floor)
        self.pseudo = Table((nodes, nodes, states), config.power, config.floor)
        self.iterations: Tensor
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))
        self.calls = [Transitions(name, config.gamma) for name in self.level_names]
        self._decomposition: Decomposition | None = None

    @property
    def level_names(self) -> list[str]:
        """Names of the levels, top first."""
        return [*(f"depth{d}" for d in range(1, self.tasks.depth)), "action"]

    # ---- values

    def decomposition(self) -> Decomposition:
        """The values of all tasks, from the tables as they are."""
        if self._decomposition is None:
            self._decomposition = decompose(
                self.tasks, *(t.values for t in (self.rewards, self.completions, self.pseudo))
            )
        return self._decomposition

    # ---- acting

    @property
    def epsilon(self) -> float:
        """Exploration now. It has to vanish: what completing a task is worth depends on how its children end."""
        return self.config.epsilon * max(0.0, 1 - int(self.iterations) / self.config.updates)

    def levels(self, explore: bool) -> tuple[Level, ...]:
        self._decomposition = None
        return tuple(Call(self, name, explore) for name in self.level_names)

    # ---- learning

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Teach all tables by the calls that ended; nothing has a gradient."""
        self.iterations += 1
        ended = [calls.add(rollout) for calls in self.calls]
        moves = ended[-1]
        action, state = moves["action"], moves["observation"]
        self.rewards.learn((action, self.tasks.reward_alike[action, state]), moves["reward"])
        self._decomposition = None
        self.decomposition()
        for rows in reversed(ended):
            caller = rows.get("command", torch.full_like(rows["action"], self.tasks.root))
            self.teach({**rows, "caller": caller})
        self._decomposition = None
        yield from ()

    def teach(self, rows: Columns) -> None:
        """Completions of the calls that came to their end, or to that of the caller."""
        tasks, after = self.tasks, rows["next_observation"]
        over = tasks.done[rows["caller"], after]
        whole = (rows["caller"] >= tasks.actions) & (tasks.done[rows["action"], after] | over)
        rows = select({**rows, "over": over}, whole)
        caller, child, state, after = (rows[n] for n in ("caller", "action", "observation", "next_observation"))
        if not len(caller):
            return
        found = self.decomposition()
        value = found.value[:, after].T
        target = maxq_target(
            duration=rows["duration"],
            next_value=value,
            next_completion=found.completion[caller, :, after],
            next_pseudo=found.guide[caller, :, after] - value,
            pseudo_reward=torch.where(rows["over"], tasks.pseudo[caller, after], 0),
            terminated=rows["over"],
            gamma=self.config.gamma,
        )
        at = (caller, child, tasks.alike[caller, child, state])
        self.completions.learn(at, target.completion)
        self.pseudo.learn(at, target.pseudo)

    def updates(self) -> tuple[Update, ...]:
        return ()

    def kept(self) -> Mapping[str, Keeper]:
        return {calls.level: calls for calls in self.calls}

    def abandon(self) -> None:
        for calls in self.calls:
            calls.open = {}

    def facts(self, rollout: Rollout) -> Mapping[str, float]:
        """How long a call of the top level takes."""
        return {"call/duration": rollout.size / max(len(rollout.decisions[self.level_names[0]].start), 1)}


class Call(Level):
    """One depth of the graph: calls a child of the task above and waits for its end; below a primitive, repeats it."""

    def __init__(self, agent: MAXQ, name: str, explore: bool):
        self.agent, self.name, self.explore, self.choices = agent, name, explore, len(agent.tasks.done)
        if name != "action":
            self.termination = Until(self.over)

    def over(self, features: Any, running: Running) -> Tensor:
        """Where the task that was called is over."""
        return self.agent.tasks.done[running.action, features["observation"]]

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        state = features["observation"]
        caller = torch.full_like(state, self.agent.tasks.root) if parent is None else parent
        guide = self.agent.decomposition().guide[caller, :, state]
        return Decision(sampled(guide, self.agent.epsilon if self.explore else 0.0, self.generator))


def decompose(tasks: Graph, rewards: Tensor, completions: Tensor, pseudo: Tensor) -> Decomposition:
    """Values of all tasks from tables of expected rewards [A, N], completions and their twins [J, J, N].

    V(a, s) of a primitive is its reward; V(i, s) = V(a*, s) + C(i, s, a*), a* = argmax C~(i, s, a) + V(a, s); 0 where i
    is over.
    """
    nodes, states = tasks.done.shape
    value = torch.zeros(nodes, states, dtype=torch.float64)
    value[: tasks.actions] = rewards.gather(1, tasks.reward_alike)
    policy = torch.arange(nodes)[:, None].repeat(1, states)
    completion = torch.where(tasks.may, completions.gather(2, tasks.alike), -torch.inf)
    guide = torch.where(tasks.may, pseudo.gather(2, tasks.alike), -torch.inf)
    for i in tasks.composites:
        guide[i] += value
        policy[i] = guide[i].argmax(0)
        best = (completion[i] + value).gather(0, policy[i][None])[0]
        value[i] = torch.where(tasks.done[i], 0, best)
    return Decomposition(value, completion, guide, policy)


# ---- what it is worth, exactly


def lost(run: Any) -> np.ndarray:
    """The greedy hierarchy's value less the recursive optimum, over starts, []: 0 at best."""
    model, agent = named_model(run.config["env"]), run.agent()
    gamma, tasks = agent.config.gamma, agent.tasks
    found = recursion(model, tasks, gamma, agent.decomposition().policy)
    return np.array(float(model.start @ (found - recursion(model, tasks, gamma))))


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper proves and this file has to show."""
    from echelon.systems.online.recipes import arm_of, recipe

    recorded = recipe(MAXQ.Config, "taxi", "published" if full else "cpu")
    return (
        Claim(
            id="recursively-optimal",
            text="On the taxi MAXQ's greedy hierarchy is worth no more than 0.001 less than the recursive optimum.",
            method=Score(arm_of(recorded), lost),
            test=AtLeast(-1e-3),
            source="Dietterich 2000, arXiv cs/9905014",
        ),
    )
