"""HAC: a tower of goal-reaching levels that learn side by side, each as if the one below were already perfect.

Idea: a level's action is a place that the level below has a few attempts to reach. What it reached instead is stored as
the action (hindsight action), places reached serve as goals (hindsight goals), and now and then a place is tested: the
levels below act without noise, and a place that is then missed costs as much as a level can lose at all.
Source: arXiv 1712.00948; numbers of the released code where the paper has none.
Levels: k ("action" lowest, then "goal", "goal2", …); a decision holds until its place is reached, or for H decisions of
the level below. Each has a deterministic actor and a critic bounded to [-H, 0], learning from its own replay.
Shares with HIRO and TD3 the learner, with SAC with hindsight the rows of whole episodes.
Deviations: places lie in what the environment calls achieved, without velocities. From the released
code: each decision draws anew whether it is tested (there all that follow it towards the same goal are tested too);
what was reached is not stored as its own goal a second time; tests that the end of the episode or of the decision above
cut short cost nothing. The environment's reward is not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from echelon.claims import Above, Claim, Score
from echelon.credit.relabel import hac_transitions, hindsight_draws
from echelon.data.replay import LEFT, Replay, WholeEpisodes
from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Running, Termination, Until, as_codes
from echelon.hierarchy.transitions import Columns, Transitions
from echelon.rollout import End, Rollout
from echelon.spans import Spans
from echelon.systems.online.common import Reader
from echelon.systems.online.diagnostics import DecisionTally
from echelon.systems.online.goals import ACHIEVED, DESIRED, NEXT_ACHIEVED, finished, goal_dim, speed, state_names
from echelon.systems.online.recipes import ANT, UMAZE, arm_of, recipe
from echelon.systems.online.sac import ReplayAgent, ReplayConfig
from echelon.systems.online.sac_her import HindsightSAC
from echelon.systems.online.td3 import TwinDelayed, TwinLevel
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.agent import Keeper


class Attempts(Termination):
    """Ends after `limit` decisions of the level below, as a timeout."""

    def __init__(self, limit: int):
        self.limit = limit
        self.count: Tensor | None = None

    def __call__(self, features: Any, running: Running, below: Tensor | None) -> np.ndarray:
        assert below is not None
        before = 0 if self.count is None else self.count
        self.count = torch.where(running.age == 1, 0, before) + below
        return as_codes(self.count >= self.limit, len(below), End.TIMEOUT)

    def state_dict(self) -> dict[str, Any]:
        """The decisions counted so far, int64 [S]."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.count = state["count"]


class HAC(ReplayAgent):
    """Levels of goal-conditioned actors with bounded critics; number 0 is the lowest."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReplayConfig):
        """Hyper-parameters of HAC."""

        system: ClassVar[str] = "hac"
        env: str = "AntMaze_UMaze-v5"
        """Environment with goals: a gymnasium name."""
        depth: int = 2
        """k: levels (paper: 2 and 3)."""
        horizon: int = 10
        """H: attempts that a level has at its goal (released code: 10)."""
        low: tuple[float, ...] = (-6.0, -6.0)
        """Lowest place that may be asked for, a number for each of a goal's."""
        high: tuple[float, ...] = (6.0, 6.0)
        """Highest place that may be asked for."""
        near: tuple[float, ...] = (0.4,)
        """How near a place counts as reached, in each number or one for all (released code, ant: 0.4)."""
        tested: float = 0.3
        """Share of decisions whose place is tested (paper: 0.3)."""
        goals: int = 3
        """Hindsight goals of an attempt, the last place among them (released code: 3)."""
        random: float = 0.2
        """Share of uniform actions among those that are not tested (released code: 0.2)."""
        noise: float = 0.1
        """Standard deviation of the noise of the others, in units of half an action's range (released code: 0.1)."""
        gamma: float = 0.98
        """Discount of one decision (released code: 0.98)."""
        lr: float = 1e-3
        """Adam's learning rate (released code: 1e-3)."""
        hidden: tuple[int, ...] = (64, 64, 64)
        """Hidden layers of all networks, ReLU (released code: 64, 64, 64)."""
        batch_size: int = 1024
        """Rows of a gradient step, of each level (released code: 1024)."""
        rate: float = 1.0
        """Share of the online networks that the targets take after each step; 1: no lag (released code)."""
        random_steps: int = 0
        """Environment steps of random actions at the start."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("depth", self.depth >= 2, "at least 2")
            self.require("horizon", self.horizon >= 2, "at least 2")
            self.require("goals", self.goals >= 1, "at least 1")
            ordered = len(self.low) == len(self.high) and all(a < b for a, b in zip(self.low, self.high, strict=True))
            self.require("low", ordered, f"below high {self.high} in each number")
            self.require("near", bool(self.near) and all(0 < x < math.inf for x in self.near), "positive numbers")
            for name in ("tested", "random"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
            self.require("noise", 0 <= self.noise < math.inf, "0 or more")

    config: Config

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        self.size = goal_dim(spaces)
        config.require("low", len(config.low) == self.size, f"{self.size} numbers")
        config.require("near", len(config.near) in (1, self.size), f"1 or {self.size} numbers")
        self.place_low: Tensor
        self.place_high: Tensor
        self.near: Tensor
        for name, values in (("place_low", config.low), ("place_high", config.high), ("near", config.near)):
            self.register_buffer(name, torch.tensor(values).expand(self.size).clone())
        self.state = Reader(spaces, state_names(spaces))
        self.names = ("action", "goal", *(f"goal{i}" for i in range(2, config.depth)))
        self.tiers = tuple(
            TwinDelayed(
                self.state.size + self.size,
                self.size if i else spaces.action_dim,
                config.hidden,
                rate=config.rate,
                noise=0.0,
                delay=1,
                critics=1,
                horizon=config.horizon,
            )
            for i in range(config.depth)
        )
        self.parts = nn.ModuleList(self.tiers)
        self.attempts = tuple(Attempts(config.horizon) for _ in self.names[1:])
        self.over = {"action": self.moves, **{name: Transitions(name, config.gamma) for name in self.names[1:]}}
        self.replays = {"action": self.replay, **{name: Replay(config.capacity) for name in self.names[1:]}}
        self.episodes = {name: WholeEpisodes() for name in self.names}
        self.tally = DecisionTally("goal")

    # ---- acting

    def levels(self, explore: bool) -> tuple[Level, ...]:
        fresh = tuple(Attempts(self.config.horizon) for _ in self.attempts)
        counts = self.attempts if explore else fresh
        places = [Place(self, i, explore, count) for i, count in enumerate(counts, start=1)]
        return (*reversed(places), Tier(self, 0, explore))

    # ---- what is kept

    def kept(self) -> Mapping[str, Keeper]:
        parts: dict[str, Keeper] = {f"attempts.{i}": attempts for i, attempts in enumerate(self.attempts)}
        for name in self.names:
            parts |= {f"over.{name}": self.over[name], f"episodes.{name}": self.episodes[name]}
            parts[f"replays.{name}"] = self.replays[name]
        return parts

    def abandon(self) -> None:
        for attempts in self.attempts:
            attempts.count = None
        for name in self.names:
            self.over[name].open = {}
            self.episodes[name] = WholeEpisodes()

    def keep(self, rollout: Rollout) -> Columns:
        """Put what the decisions of whole episodes teach into each level's replay."""
        self.tally.add(rollout)
        whole: dict[str, Columns] = {}
        seen = (*(f"{when}{name}" for when in ("", "next_") for name in self.state.names), DESIRED)
        names = (*seen, "action", "duration", "end")
        for i, name in enumerate(self.names):
            command = () if i == self.config.depth - 1 else ("command",)
            whole[name] = finished(self.episodes[name], self.over[name].add(rollout), (*names, *command))
        for i, name in enumerate(self.names):
            if len(whole[name][LEFT]):
                above = whole[self.names[i + 1]]["duration"] if i + 1 < self.config.depth else None
                self.replays[name].add(self.lessons(i, whole[name], by_goal(whole[name], above)))
        return whole["action"]

    def lessons(self, level: int, rows: Columns, attempts: Spans) -> Columns:
        """Hindsight actions, hindsight goals and penalties from the decisions of a level, [M, ...] rows of its replay.

        `attempts` partitions the decisions by the goal that they were made for.
        """
        c, achieved = self.config, rows[NEXT_ACHIEVED]
        goal = rows["command"][:, : self.size] if "command" in rows else rows[DESIRED]
        place, tested = achieved, torch.zeros(len(achieved), dtype=torch.bool, device=achieved.device)
        if level:
            place = rows["action"][:, : self.size]
            tested = (rows["action"][:, self.size] > 0) & (rows["end"] == End.TIMEOUT)
        found = hac_transitions(
            proposed=place,
            achieved=achieved,
            goal=goal,
            tested=tested,
            hindsight=hindsight_draws(attempts, replays=c.goals),
            threshold=self.near,
            horizon=c.horizon,
            gamma=c.gamma,
        )
        action = self.unit(rows["action"][found.source]) if level == 0 else self.unit_place(found.action)
        return {
            "features": torch.cat([self.state(rows)[found.source], found.goal], -1),
            "next_features": torch.cat([self.state(rows, "next_")[found.source], found.goal], -1),
            "action": action,
            "reward": found.reward,
            "discount": found.discount,
        }

    def unit_place(self, place: Tensor) -> Tensor:
        """Places between the bounds as vectors in [-1, 1]; reached ones may lie outside."""
        return (2 * (place - self.place_low) / (self.place_high - self.place_low) - 1).clamp(-1, 1)

    # ---- what is learned from

    def draw(self) -> Batch:
        """Rows of every level, named "<level>/<column>"."""
        batch: Batch = {}
        for name, replay in self.replays.items():
            rows = replay.sample(self.config.batch_size)
            batch |= {f"{name}/{column}": values for column, values in rows.items()}
        return batch

    def updates(self) -> tuple[Update, ...]:
        pairs = zip(self.names, self.tiers, strict=True)
        return tuple(update for name, parts in pairs for update in parts.updates(self.config.lr, prefix=f"{name}/"))

    def commit(self, aux: Metrics) -> None:
        for name, parts in zip(self.names, self.tiers, strict=True):
            parts.follow(aux, f"{name}/")

    def facts(self, rollout: Rollout) -> Mapping[str, float]:
        """Of the level above the actions: how long places hold, and how often they are reached."""
        return self.tally.facts()


class Tier(TwinLevel):
    """A level that acts towards the place that the level above asks for, or the environment's goal at the top."""

    def __init__(self, agent: HAC, level: int, explore: bool):
        bounds = (agent.place_low, agent.place_high) if level else agent.spaces.bounds()
        parts, noise, name = agent.tiers[level], agent.config.noise, agent.names[level]
        super().__init__(agent, parts, agent.state, explore, bounds, noise, name)
        self.size, self.random = agent.size, agent.config.random

    def features(self, seen: Any, parent: Tensor | None) -> Tensor:
        return super().features(seen, seen[DESIRED] if parent is None else parent[:, : self.size])

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """An action within the bounds: the actor's own where a place is tested, else noisy or uniform."""
        read = self.features(features, parent)
        if not self.explore:
            return Decision(self.scaled(self.propose(read)))
        share = self.random if self.agent.warm else 1.0
        chance = torch.rand(len(read), 1, generator=self.generator, device=read.device) < share
        action = torch.where(chance, self.uniform(read), self.propose(read))
        return Decision(self.scaled(torch.where(self.tested(parent, read), self.parts.act(read), action)))

    def tested(self, parent: Tensor | None, read: Tensor) -> Tensor:
        """bool [B, 1]: where the level above, or one above that, tests the place that it asked for."""
        if parent is None:
            return torch.zeros(len(read), 1, dtype=torch.bool, device=read.device)
        return parent[:, self.size :] > 0


class Place(Tier):
    """Asks the level below for a place; behind its numbers the action says whether the place is tested (0 or 1)."""

    def __init__(self, agent: HAC, level: int, explore: bool, count: Attempts):
        super().__init__(agent, level, explore)
        self.near, self.share = agent.near, agent.config.tested if explore else 0.0
        self.termination = Until(self.reached) | count

    def reached(self, features: Any, running: Running) -> Tensor:
        """bool [S]: where the place is reached in each of its numbers."""
        assert running.action is not None
        apart = (running.action[:, : self.size] - features[ACHIEVED]).abs()
        return (apart <= self.near.to(apart.device)).all(-1)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """A place for each stream, and whether it is tested."""
        place = super().decide(features, parent, due).action
        drawn = torch.rand(len(place), 1, generator=self.generator, device=place.device) < self.share
        return Decision(torch.cat([place, (drawn | self.tested(parent, place)).to(place.dtype)], -1))


def by_goal(rows: Columns, above: Tensor | None) -> Spans:
    """The decisions of whole episodes by the one above them, whose durations are `above`; by episode at the top."""
    if above is None:
        last = rows[LEFT] == 0
        owner = last.cumsum(0) - last.long()
        return Spans.from_lengths(torch.bincount(owner))
    ends, limits = rows["duration"].long().cumsum(0), above.long().cumsum(0)
    return Spans.from_lengths(torch.bincount(torch.searchsorted(limits, ends), minlength=len(above)))


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the evidence is about; `full` with an ant, at the published size."""
    env, size = (ANT, "published") if full else (UMAZE, "cpu")
    return (
        Claim(
            id="hac-sooner-than-flat",
            text=(
                f"On {env} HAC needs fewer environment steps than SAC with hindsight to 80 % success, with as many "
                "gradient steps of the policy that acts"
            ),
            method=Score(arm_of(recipe(HAC.Config, env, size)), speed),
            baseline=Score(arm_of(recipe(HindsightSAC.Config, env, size)), speed),
            test=Above(0.0),
            source="arXiv 1712.00948, section 5: two and three levels learn sooner than a flat agent with hindsight",
        ),
    )
