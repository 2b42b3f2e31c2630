"""h-DQN: a meta-controller picks goals, a controller is paid for reaching them; here with tables in place of networks.

Idea: where a reward is far away, an intrinsic one for reaching intermediate goals is near. The meta-controller is
taught by what the environment paid while its goal was pursued, the controller by whether it got there; each replays its
own transitions, and how much the controller explores falls with how often it has reached the goal.
Source: arXiv 1604.06057; the chain is its first experiment.
Levels: `goal`, held until the goal is reached, and `action`.
Shares with options and MAXQ: tables; with all systems with replay: the replay; targets are those of `credit.options`.
Deviations: tables (paper, first experiment: a table too; its networks are for pixels), whose step sizes fall with the
visits of an entry; both levels are taught after every iteration by batches of their replays, without target networks.
The exploration of a goal is 1 less its recent rate of success (paper: "annealed by the success rate", rule not given).
The state says whether 6 was visited; in the paper it does not, and the reward depends on the past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from echelon.claims import AtLeast, Claim, Score
from echelon.credit.options import hdqn_target
from echelon.data.replay import Replay
from echelon.envs import exact
from echelon.envs.grids import named_model
from echelon.envs.spaces import Spaces
from echelon.envs.tables import Model
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Running, Until
from echelon.hierarchy.transitions import Columns, Transitions, select
from echelon.rollout import End, Rollout
from echelon.spans import Spans
from echelon.systems.online.tables import Table, sampled, states_of
from echelon.training.agent import Batch, Update
from echelon.training.online.agent import Keeper, OnlineAgent
from echelon.training.online.config import OnlineConfig

COLUMNS = ("action", "reward", "terminated", "state", "next_state")


class HDQN(OnlineAgent):
    """Tables of what goals are worth and, for each goal, actions."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OnlineConfig):
        """Hyper-parameters of h-DQN."""

        system: ClassVar[str] = "h-dqn"
        env: str = "chain"
        """Environment: a world of this library."""
        goal: str = "place"
        """Observation whose values are the goals."""
        slots: int = 32
        """Episodes side by side."""
        ticks: int = 8
        """Environment steps of each slot before the tables learn."""
        updates: int = 1500
        """Iterations; slots x ticks environment steps each."""
        batch_size: int = 256
        """Rows that each level replays after an iteration."""
        capacity: int = 1_000_000
        """Transitions of the controller that are kept (paper: 1 M)."""
        meta_capacity: int = 50_000
        """Transitions of the meta-controller that are kept (paper: 50,000)."""
        gamma: float = 1.0
        """Discount of the meta-controller, once a goal (the optimum of the chain is reported undiscounted)."""
        controller_gamma: float = 0.975
        """Discount of the controller (paper: 0.975)."""
        epsilon: float = 0.1
        """Exploration of both levels in the end (paper: 0.1)."""
        epsilon_steps: int = 50_000
        """Environment steps in which the meta-controller's exploration falls from 1 to that (paper: 50,000)."""
        recent: float = 0.01
        """Weight of the latest attempt in a goal's rate of success."""
        power: float = 0.7
        """The n-th target of a value moves it by n^-power of the way."""
        eval_every: int = 500
        """Iterations between evaluations; the reported score is the mean over the last three."""
        checkpoint_every: int = 500
        """Iterations between checkpoints."""
        log_every: int = 50
        """Iterations between lines of metrics."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("batch_size", "capacity", "meta_capacity", "epsilon_steps"):
                self.require(name, getattr(self, name) >= 1, "at least 1")
            for name in ("gamma", "controller_gamma", "epsilon"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
            self.require("recent", 0 < self.recent <= 1, "above 0, at most 1")
            self.require("power", 0.5 < self.power <= 1, "above 0.5, at most 1")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        states, goals = states_of(spaces, config.system), states_of(spaces, config.system, config.goal)
        self.meta = Table((states, goals), config.power)
        self.controller = Table((goals, states, spaces.choices), config.power)
        self.success: Tensor
        self.register_buffer("success", torch.zeros(goals, dtype=torch.float64))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.pursuits, self.moves = Transitions("goal", 1.0), Transitions("action", 1.0)
        self.pursued, self.moved = Replay(config.meta_capacity), Replay(config.capacity)

    # ---- acting

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return Pick(self, explore), Reach(self, explore)

    @property
    def meta_epsilon(self) -> float:
        """Exploration of the meta-controller."""
        floor = self.config.epsilon
        return max(floor, 1 - (1 - floor) * int(self.seen) / self.config.epsilon_steps)

    @property
    def controller_epsilon(self) -> Tensor:
        """Exploration of the controller, for each goal."""
        return (1 - self.success).clamp(min=self.config.epsilon)

    # ---- learning

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Keep what ended, then teach both levels from what they have kept; nothing has a gradient."""
        self.seen += rollout.size
        self.keep(self.pursuits.add(rollout), self.moves.add(rollout))
        if len(self.moved):
            self.teach_controller(self.moved.sample(self.config.batch_size))
        if len(self.pursued):
            self.teach_meta(self.pursued.sample(self.config.batch_size))
        yield from ()

    def keep(self, pursuits: Columns, moves: Columns) -> None:
        """Fill the replays and follow each goal's rate of success. Pursuits that a time limit cut are left out."""
        moves = _outcome(moves)
        reached = moves[f"next_{self.config.goal}"] == moves["command"]
        moves["reward"] = reached.double()
        moves["terminated"] |= reached
        self.moved.add({name: moves[name] for name in (*COLUMNS, "command")})
        pursuits = select(pursuits, pursuits["end"] != End.TRUNCATED)
        if not len(pursuits["action"]):
            return
        pursuits = _outcome(pursuits)
        self.pursued.add({name: pursuits[name] for name in COLUMNS})
        there = pursuits[f"next_{self.config.goal}"] == pursuits["action"]
        rates = self.success.tolist()
        for goal, success in zip(pursuits["action"].tolist(), there.tolist(), strict=True):
            rates[goal] += self.config.recent * (success - rates[goal])
        self.success.copy_(torch.tensor(rates, dtype=torch.float64))

    def teach_controller(self, rows: Columns) -> None:
        """Q(s, a; g) towards 1 where the goal is reached, else γ · max Q(s', .; g)."""
        goal, after = rows["command"], self.controller.values[rows["command"], rows["next_state"]].amax(-1)
        following = torch.where(rows["terminated"], 0, self.config.controller_gamma * after)
        self.controller.learn((goal, rows["state"], rows["action"]), rows["reward"] + following)

    def teach_meta(self, rows: Columns) -> None:
        """Q(s, g) towards what was paid until g was reached, and γ · max Q(s', .)."""
        each = Spans.from_lengths(torch.ones_like(rows["action"]))
        target = hdqn_target(
            each,
            reward=rows["reward"].double(),
            next_q=self.meta.values[rows["next_state"]],
            terminated=rows["terminated"],
            gamma=self.config.gamma,
        )
        self.meta.learn((rows["state"], rows["action"]), target)

    def updates(self) -> tuple[Update, ...]:
        return ()

    def kept(self) -> Mapping[str, Keeper]:
        return {"pursuits": self.pursuits, "moves": self.moves, "pursued": self.pursued, "moved": self.moved}

    def abandon(self) -> None:
        self.pursuits.open = {}
        self.moves.open = {}

    def facts(self, rollout: Rollout) -> Mapping[str, float]:
        """How often goals are reached, and how much is explored."""
        return {"goal/success": float(self.success.mean()), "goal/epsilon": self.meta_epsilon}


def _outcome(rows: Columns) -> Columns:
    """Transitions with `state`, `next_state`, and `terminated`: whether the episode ended for good."""
    extra = {"state": rows["observation"], "next_state": rows["next_observation"]}
    return {**rows, **extra, "terminated": rows["end"] == End.TERMINATED}


class Pick(Level):
    """The meta-controller: picks a goal and holds it until it is reached."""

    name = "goal"

    def __init__(self, agent: HDQN, explore: bool):
        self.agent, self.explore, self.choices = agent, explore, agent.meta.values.shape[1]
        self.termination = Until(self.reached)

    def reached(self, features: Any, running: Running) -> Tensor:
        """Where the goal is reached."""
        return features[self.agent.config.goal] == running.action

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        q = self.agent.meta.values[features["observation"]]
        return Decision(sampled(q, self.agent.meta_epsilon if self.explore else 0.0, self.generator))


class Reach(Level):
    """The controller: acts for the goal."""

    name = "action"

    def __init__(self, agent: HDQN, explore: bool):
        self.agent, self.explore = agent, explore

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        assert parent is not None
        q = self.agent.controller.values[parent, features["observation"]]
        return Decision(sampled(q, self.agent.controller_epsilon[parent] if self.explore else 0.0, self.generator))


# ---- what it is worth, exactly


def worth(model: Model, goal: str, meta: Tensor, controller: Tensor) -> Tensor:
    """The undiscounted value [N] of the greedy hierarchy: meta Q [N, G], controller Q [G, N, A]."""
    goals = torch.arange(meta.shape[1])
    there = model.views[goal] == goals[:, None]
    held = exact.until(exact.followed(exact.steps(model, 1.0), controller.argmax(-1)), there | model.terminal)
    return exact.value(exact.followed(held, meta.argmax(-1)))[0]


def lost(run: Any) -> np.ndarray:
    """The greedy hierarchy's undiscounted value less the optimum, over starts, []: 0 at best."""
    model, agent = named_model(run.config["env"]), run.agent()
    found = worth(model, agent.config.goal, agent.meta.values, agent.controller.values)
    best = exact.optimal(exact.steps(model, 1.0)).amax(0)
    return np.array(float(model.start @ (found - best)))


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper's first experiment says and this file has to show."""
    from echelon.systems.online.recipes import arm_of, recipe

    recorded = recipe(HDQN.Config, "chain", "published" if full else "cpu")
    return (
        Claim(
            id="chain-optimal",
            text="On the chain h-DQN's greedy hierarchy is worth no more than 0.001 less than the optimum, 0.208.",
            method=Score(arm_of(recorded), lost),
            test=AtLeast(-1e-3),
            source="arXiv 1604.06057, section 4.1",
        ),
    )
