"""HIRO: a manager asks for changes of state, a worker brings them about, and the manager's past is read anew.

Idea: every c steps the manager gives the worker a goal, a wished change of what is achieved; the worker is paid for how
near it comes. Since the worker changes, a stored goal would not lead to what followed it any more: it is replaced by
the one under which today's worker would most likely have done what was done.
Source: arXiv 1805.08296.
Levels: manager "goal", every c steps; worker "action", every step. Two TD3.
Shares with TD3 the learner of each level; with HAC and SAC with hindsight the rows of whole episodes.
Deviations: goals are changes of what the environment calls achieved (a place), not of the whole robot. A
decision is recorded as the place that it asks for, which stays the same while it holds; the worker reads what is left
to it, which is h(s, g, s') = s + g - s'. Noise is Gaussian at both levels. Networks start from Glorot's draw. The
manager learns at every c-th step of the worker, its actor at every second of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from echelon.claims import Above, Claim, Score
from echelon.credit.relabel import goal_transition, hiro_candidates, hiro_relabel
from echelon.data.replay import Replay, WholeEpisodes
from echelon.envs.spaces import Spaces
from echelon.hierarchy.diagnostics import missed
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Every
from echelon.hierarchy.transitions import Columns, Transitions, transitions
from echelon.rollout import Begin, End, Rollout
from echelon.spans import Spans
from echelon.systems.online.common import Reader
from echelon.systems.online.goals import ACHIEVED, NEXT_ACHIEVED, finished, goal_dim, seen_names, speed, state_names
from echelon.systems.online.recipes import ANT_DENSE, UMAZE_DENSE, arm_of, recipe
from echelon.systems.online.sac import ReplayAgent, ReplayConfig
from echelon.systems.online.sac_her import HindsightSAC
from echelon.systems.online.td3 import TwinDelayed, TwinLevel
from echelon.training.agent import Batch, Metrics, Update
from echelon.training.online.agent import Keeper

MANAGER, WORKER = "manager/", "worker/"


class HIRO(ReplayAgent):
    """A manager and a worker."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReplayConfig):
        """Hyper-parameters of HIRO; those of the released code of HRAC (arXiv 2006.11485) where the paper has none."""

        system: ClassVar[str] = "hiro"
        env: str = "AntMaze_UMaze-v5"
        """Environment with goals: a gymnasium name."""
        period: int = 10
        """c: steps for which a goal holds (paper: 10)."""
        reach: tuple[float, ...] = (10.0,)
        """Largest change that a goal may ask for, in each number or one for all (paper: 10 for places of the ant)."""
        batch_size: int = 100
        """Rows of a gradient step, of each level (paper: 100)."""
        capacity: int = 200_000
        """Environment steps that the replays hold (paper: 200 000)."""
        hidden: tuple[int, ...] = (300, 300)
        """Hidden layers of all networks, ReLU (paper: 300, 300)."""
        lr: float = 1e-3
        """Adam's learning rate of the critics (paper: 1e-3)."""
        actor_lr: float = 1e-4
        """Adam's learning rate of the actors (paper: 1e-4)."""
        gamma: float = 0.95
        """Discount of the worker (HRAC's code: 0.95)."""
        manager_gamma: float = 0.99
        """Discount of one decision of the manager (paper: 0.99)."""
        reward_scale: float = 0.1
        """Factor of the manager's rewards (paper: 0.1)."""
        candidates: int = 8
        """Goals drawn for the correction, beside the stored one and the change that came about (paper: 8)."""
        noise: float = 0.2
        """Standard deviation of the worker's acting noise, in units of half an action's range."""
        manager_noise: float = 0.2
        """Standard deviation of the manager's, in units of `reach`."""
        near: float = 0.25
        """Distance at which a goal is counted as reached in the metrics."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("period", "candidates"):
                self.require(name, getattr(self, name) >= 1, "at least 1")
            self.require("reach", bool(self.reach) and all(0 < x < math.inf for x in self.reach), "positive numbers")
            for name in ("actor_lr", "near", "reward_scale"):
                self.require(name, 0 < getattr(self, name) < math.inf, "positive")
            self.require("manager_gamma", 0 <= self.manager_gamma <= 1, "in [0, 1]")
            for name in ("noise", "manager_noise"):
                self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")

    config: Config

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        size = goal_dim(spaces)
        config.require("reach", len(config.reach) in (1, size), f"1 or {size} numbers")
        self.reach: Tensor
        self.register_buffer("reach", torch.tensor(config.reach).expand(size).clone())
        self.state = Reader(spaces, state_names(spaces))
        self.manager = TwinDelayed(self.read.size, size, config.hidden, rate=config.rate)
        self.worker = TwinDelayed(self.state.size + size, spaces.action_dim, config.hidden, rate=config.rate)
        self.asked = Transitions("goal", 1.0)
        self.decisions = Replay(-(-config.capacity // config.period))
        self.episodes = {name: WholeEpisodes() for name in ("action", "goal")}
        self.drawn: Tensor
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    # ---- acting

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return Manager(self, explore), Worker(self, explore)

    # ---- what is kept

    def kept(self) -> Mapping[str, Keeper]:
        waiting = {f"episodes.{name}": episodes for name, episodes in self.episodes.items()}
        return {**super().kept(), **waiting, "asked": self.asked, "decisions": self.decisions}

    def abandon(self) -> None:
        super().abandon()
        self.asked.open = {}
        self.episodes = {name: WholeEpisodes() for name in self.episodes}

    def keep(self, rollout: Rollout) -> Columns:
        """Put the steps and decisions of episodes that are over into their replays."""
        rows, seen = self.moves.add(rollout), seen_names(self.spaces)
        steps = finished(self.episodes["action"], rows, (*seen, *self.columns, "command"))
        asked = finished(self.episodes["goal"], self.asked.add(rollout), (*seen, *self.columns, "duration"))
        self.replay.add(steps)
        self.decisions.add(asked | self.paths(steps, asked["duration"].long()))
        return rows

    def paths(self, steps: Columns, duration: Tensor) -> Columns:
        """What happened under each of n decisions that follow on each other, [n, c, ...]; `duration` rows count."""
        first = duration.cumsum(0) - duration
        at = first[:, None] + torch.arange(self.config.period, device=first.device).minimum(duration[:, None] - 1)
        found = {"state": self.state(steps), "achieved": steps[ACHIEVED], "action": self.unit(steps["action"])}
        return {f"path_{name}": column[at] for name, column in found.items()}

    # ---- what is learned from

    def draw(self) -> Batch:
        """Rows of the worker; every `period` steps rows of the manager too."""
        self.drawn += 1
        c = self.config
        batch = {WORKER + name: column for name, column in self.steps(self.replay.sample(c.batch_size)).items()}
        if int(self.drawn) % c.period:
            return batch
        choices = self.choices(self.decisions.sample(c.batch_size))
        return batch | {MANAGER + name: column for name, column in choices.items()}

    def steps(self, rows: Columns) -> Batch:
        """The worker's: paid minus the distance that is left, -||s + g - s'||."""
        now, after = rows[ACHIEVED], rows[NEXT_ACHIEVED]
        goal = rows["command"] - now
        left = goal_transition(goal, now, after)
        return {
            "features": torch.cat([self.state(rows), goal], -1),
            "next_features": torch.cat([self.state(rows, "next_"), left], -1),
            "action": self.unit(rows["action"]),
            "reward": -left.norm(dim=-1),
            "discount": rows["discount"],
        }

    def choices(self, rows: Columns) -> Batch:
        """The manager's: corrected goals, paid what the environment paid while they held."""
        c = self.config
        return {
            "features": self.read(rows),
            "next_features": self.read(rows, "next_"),
            "action": self.corrected(rows) / self.reach,
            "reward": c.reward_scale * rows["reward"],
            "discount": c.manager_gamma * rows["discount"],
        }

    def corrected(self, rows: Columns) -> Tensor:
        """[n, d]: for each decision the goal under which the worker of today would most likely have acted as it did."""
        duration = rows["duration"].long()
        counts = torch.arange(self.config.period, device=duration.device) < duration[:, None]
        state, features, action = (rows[f"path_{name}"][counts] for name in ("achieved", "state", "action"))
        spans = Spans.from_lengths(duration)
        candidates = hiro_candidates(
            spans,
            state=state,
            next_state=state.roll(-1, 0).index_copy(0, spans.ends, rows[NEXT_ACHIEVED]),
            goal=rows["action"] - rows[ACHIEVED],
            scale=self.reach,
            low=-self.reach,
            high=self.reach,
            count=self.config.candidates,
        )

        def worker(states: Tensor, goals: Tensor) -> Tensor:
            return self.worker.act(torch.cat([features.expand(len(goals), -1, -1), goals], -1))

        return hiro_relabel(spans, state=state, action=action, candidates=candidates, policy=worker)[0]

    # ---- updates

    def updates(self) -> tuple[Update, ...]:
        c = self.config
        worker = self.worker.updates(c.lr, c.actor_lr, prefix=WORKER)
        return (*worker, *self.manager.updates(c.lr, c.actor_lr, prefix=MANAGER, every=c.period))

    def commit(self, aux: Metrics) -> None:
        self.worker.follow(aux, WORKER)
        self.manager.follow(aux, MANAGER)

    def facts(self, rollout: Rollout) -> Mapping[str, float]:
        """How often a goal's place was reached, how far it was asked to go and how far from it one ended."""
        far = missed(rollout, "goal", ACHIEVED)
        if not len(far):
            return {}
        facts = {"goal/reached": float((far <= self.config.near).float().mean()), "goal/missed": float(far.mean())}
        rows = transitions(rollout, "goal", 1.0)
        whole = (rows["end"] != End.OPEN) & (rows["begin"] == Begin.DECIDED)
        asked = (rows["action"] - rows[ACHIEVED])[whole].norm(dim=-1)
        return facts | ({"goal/asked": float(asked.mean())} if len(asked) else {})


class Manager(TwinLevel):
    """Asks for a place within reach, every `period` steps."""

    def __init__(self, agent: HIRO, explore: bool):
        bounds = (-agent.reach, agent.reach)
        super().__init__(agent, agent.manager, agent.read, explore, bounds, agent.config.manager_noise, "goal")
        self.termination, self.place = Every(agent.config.period), (ACHIEVED, agent.config.near)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """The place: where one is, and the change that is wished for."""
        return Decision(features[ACHIEVED] + super().decide(features, parent, due).action)


class Worker(TwinLevel):
    """Acts, seeing what is left to the place that is asked for."""

    def __init__(self, agent: HIRO, explore: bool):
        super().__init__(agent, agent.worker, agent.state, explore, agent.spaces.bounds(), agent.config.noise)

    def features(self, seen: Any, parent: Tensor | None) -> Tensor:
        assert parent is not None
        return super().features(seen, parent - seen[ACHIEVED])


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the evidence is about; `full` with an ant, at the published size."""
    env, size = (ANT_DENSE, "published") if full else (UMAZE_DENSE, "cpu")
    hiro = recipe(HIRO.Config, env, size)
    return (
        Claim(
            id="hiro-sooner-than-flat",
            text=(
                f"On {env} HIRO, paid by how near the goal is, needs fewer environment steps than SAC with hindsight "
                "to 80 % success, with as many gradient steps of the policy that acts"
            ),
            method=Score(arm_of(hiro), speed),
            baseline=Score(arm_of(recipe(HindsightSAC.Config, env, size)), speed),
            test=Above(0.0),
            source="arXiv 1805.08296, section 5: more sample-efficient than flat methods in mazes",
        ),
    )
