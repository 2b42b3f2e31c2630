"""Options: temporally extended actions that are given, and what is learned of choosing among them.

Idea: an option is a way to act and a condition to stop; beside primitive actions it is one more thing to choose. What
choosing it is worth can be learned from what became of it, or from every single step, for all options that would have
acted likewise. Who stops an option as soon as another is worth more does at least as well.
Source: Sutton, Precup & Singh 1999, Artificial Intelligence 112: semi-Markov Q-learning, intra-option value learning,
interruption; four rooms and their hallway options. (Not on arXiv.)
Levels: `option` chooses, the option's own policy (`action`) acts until it stops.
Shares with MAXQ and h-DQN: tables that follow their targets; with the option-critic: the targets of `credit.options`.
Deviations: step sizes fall with the visits of an entry (paper: constants, tuned); the values are those of the options
alone, without models of them; in training options run to their end, greedy episodes interrupt them. Where other options
are left out, "the optimum" is what can be had with these.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from echelon.claims import Above, AtLeast, Claim, Score
from echelon.credit.options import continuation_value, intra_option_target, option_value
from echelon.envs import exact, grids
from echelon.envs.grids import named_model
from echelon.envs.spaces import Spaces
from echelon.envs.tables import Model
from echelon.errors import UsageError
from echelon.hierarchy.diagnostics import VALUE
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Running, Until
from echelon.hierarchy.transitions import Transitions
from echelon.rollout import Begin, End, Rollout
from echelon.systems.online.tables import Table, sampled, states_of
from echelon.training.agent import Batch, Update
from echelon.training.online.agent import Keeper, OnlineAgent
from echelon.training.online.config import OnlineConfig

BARRED = torch.finfo(torch.float64).min
"""Value of an option where it cannot begin: finite, so that 0 · BARRED is 0."""


class Given(NamedTuple):
    """Options in a world of N states: policy int64[O, N]; where they stop and may begin, bool[O, N]."""

    policy: Tensor
    stops: Tensor
    starts: Tensor


def primitive(states: int, actions: int) -> Given:
    """The actions as options of one step."""
    everywhere = torch.ones(actions, states, dtype=torch.bool)
    return Given(torch.arange(actions)[:, None].repeat(1, states), everywhere, everywhere)


@functools.cache
def hallway_options() -> Given:
    """Of each of the four rooms, two options: to go to one of its hallways on the shortest way, inside the room.

    An option begins in the room and in its other hallway, and stops where it leaves them.
    """
    policies, starts = [], []
    for room in _rooms():
        doors = {hall for hall in grids.HALLWAYS if any(_adjacent(hall, cell) for cell in room)}
        for target in sorted(doors):
            inside = torch.tensor([cell in room or cell in doors - {target} for cell in grids.CELLS])
            choices = exact.steps(grids.four_rooms(target), 0.9)
            q = exact.optimal(choices, inside[None].expand_as(choices.reward))
            policies.append(q.argmax(0))
            starts.append(inside)
    begin = torch.stack(starts)
    return Given(torch.stack(policies), ~begin, begin)


def _rooms() -> list[set[grids.Cell]]:
    left, rooms = set(grids.CELLS) - set(grids.HALLWAYS), []
    while left:
        room, frontier = set(), {min(left)}
        while frontier:
            room |= frontier
            frontier = {cell for cell in left - room if any(_adjacent(cell, other) for other in frontier)}
        rooms.append(room)
        left -= room
    return rooms


def _adjacent(a: grids.Cell, b: grids.Cell) -> bool:
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1


GIVEN = {"four-rooms": hallway_options, "four-rooms-far": hallway_options}
"""World -> the options that are given in it."""


def given(env: str, states: int, actions: int, primitives: bool) -> Given:
    """The options for a world, with the primitive actions behind them if asked for. UsageError if there are none."""
    world = env.partition("@")[0]
    if world not in GIVEN:
        raise UsageError(f"options: none are given for '{env}'; there are for {', '.join(GIVEN)}")
    options = GIVEN[world]()
    if not primitives:
        return options
    return Given(*(torch.cat(parts) for parts in zip(options, primitive(states, actions), strict=True)))


class Options(OnlineAgent):
    """A table of what options are worth."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OnlineConfig):
        """Hyper-parameters of learning to choose among options."""

        system: ClassVar[str] = "options"
        env: str = "four-rooms"
        """Environment: a world of this library for which options are given."""
        slots: int = 64
        """Episodes side by side."""
        ticks: int = 16
        """Environment steps of each slot before the table learns."""
        updates: int = 4000
        """Iterations; slots x ticks environment steps each."""
        primitives: bool = True
        """Whether the primitive actions are options too (paper: both ways)."""
        intra: bool = True
        """Whether every step teaches all options that would have acted likewise, or an option's end it alone."""
        interrupt: bool = True
        """Whether greedy episodes leave an option as soon as another is worth more."""
        gamma: float = 0.9
        """Discount of an environment step (paper: 0.9)."""
        epsilon: float = 0.3
        """Probability of choosing any option; both ways of learning are off-policy."""
        power: float = 0.75
        """The n-th target of a value moves it by n^-power of the way."""
        eval_every: int = 500
        """Iterations between evaluations; the reported score is the mean over the last three."""
        checkpoint_every: int = 500
        """Iterations between checkpoints."""
        log_every: int = 50
        """Iterations between lines of metrics."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("gamma", "epsilon"):
                self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
            self.require("power", 0.5 < self.power <= 1, "above 0.5, at most 1")

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        states, actions = states_of(spaces, config.system), spaces.choices
        self.given = given(config.env, states, actions, config.primitives)
        self.table = Table((states, len(self.given.policy)), config.power)
        self.moves = Transitions("action" if config.intra else "option", config.gamma)

    def q(self, state: Tensor) -> Tensor:
        """Q(s, .) [B, O], BARRED where an option cannot begin."""
        return torch.where(self.given.starts.T[state], self.table.values[state], BARRED)

    # ---- acting

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return Choose(self, explore), Follow(self)

    # ---- learning

    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """Move the table; nothing has a gradient."""
        rows = self.moves.add(rollout)
        if self.config.intra:
            self.learn_from_steps(rows)
        else:
            self.learn_from_options(rows)
        yield from ()

    def learn_from_steps(self, rows: Mapping[str, Tensor]) -> None:
        """Intra-option: each step teaches every option that would have taken its action there."""
        state, after = rows["observation"], rows["next_observation"]
        target = intra_option_target(
            reward=rows["reward"].double(),
            terminated=rows["end"] == End.TERMINATED,
            next_q=self.q(after),
            next_termination=self.given.stops.T[after].double(),
            gamma=self.config.gamma,
        )
        likewise = (self.given.policy.T[state] == rows["action"][:, None]) & self.given.starts.T[state]
        step, option = likewise.nonzero().unbind(1)
        self.table.learn((state[step], option), target[step, option])

    def learn_from_options(self, rows: Mapping[str, Tensor]) -> None:
        """Semi-Markov Q-learning: R + γ^k · max Q(s', .); an option that the end of an episode cut goes on in s'."""
        after, option = rows["next_observation"], rows["action"]
        arrived = continuation_value(self.q(after), self.given.stops.T[after].double())
        next_value = arrived.gather(1, option[:, None])[:, 0]
        target = rows["reward"].double() + torch.where(rows["discount"] > 0, rows["discount"].double() * next_value, 0)
        self.table.learn((rows["observation"], option), target)

    def updates(self) -> tuple[Update, ...]:
        return ()

    def kept(self) -> Mapping[str, Keeper]:
        return {"moves": self.moves}

    def abandon(self) -> None:
        self.moves.open = {}

    def facts(self, rollout: Rollout) -> Mapping[str, float]:
        """How long an option holds."""
        begun = int((rollout.decisions["option"].begin == Begin.DECIDED).sum())
        return {"option/duration": rollout.size / max(begun, 1)}


class Choose(Level):
    """Chooses an option, most often the best; greedily it also leaves one that is no longer the best."""

    name = "option"

    def __init__(self, agent: Options, explore: bool):
        self.agent, self.epsilon = agent, agent.config.epsilon if explore else 0.0
        self.choices, self.termination = len(agent.given.policy), Until(self.stops)
        if not explore and agent.config.interrupt:
            self.termination = self.termination | Until(self.worse, End.INTERRUPTED)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        q = self.agent.q(features["observation"])
        option = sampled(torch.where(q > BARRED, q, -torch.inf), self.epsilon, self.generator)
        return Decision(option, values={VALUE: q.gather(1, option[:, None])[:, 0]})

    def stops(self, features: Any, running: Running) -> Tensor:
        """Where the option's own condition holds."""
        return self.agent.given.stops[running.action, features["observation"]]

    def worse(self, features: Any, running: Running) -> Tensor:
        """Where another option is worth more."""
        assert running.action is not None
        q = self.agent.q(features["observation"])
        return q.gather(1, running.action[:, None])[:, 0] < option_value(q)


class Follow(Level):
    """Acts as the option does."""

    name = "action"

    def __init__(self, agent: Options):
        self.agent = agent

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(self.agent.given.policy[parent, features["observation"]])


# ---- what it is worth, exactly


def worth(model: Model, options: Given, q: Tensor, gamma: float, interrupt: bool) -> Tensor:
    """The value [N] of choosing greedily by q [N, O], where options that cannot begin are BARRED."""
    stops = options.stops | model.terminal
    if interrupt:
        stops = stops | (q < option_value(q)[:, None]).T
    held = exact.until(exact.followed(exact.steps(model, gamma), options.policy), stops)
    return exact.value(exact.followed(held, q.argmax(-1)))[0]


def optimum(model: Model, options: Given, gamma: float) -> Tensor:
    """The value [N] of the best that can be had by choosing among the options, each held until it stops."""
    held = exact.until(exact.followed(exact.steps(model, gamma), options.policy), options.stops | model.terminal)
    return exact.optimal(held, options.starts | model.terminal).amax(0)


def lost(run: Any) -> np.ndarray:
    """The greedy policy's value less the optimum of its options, over starts, []; more than 0 if interruption helps."""
    model, agent = named_model(run.config["env"]), run.agent()
    c, q = agent.config, agent.q(torch.arange(model.states))
    found = worth(model, agent.given, q, c.gamma, c.interrupt)
    return np.array(float(model.start @ (found - optimum(model, agent.given, c.gamma))))


def gained(run: Any) -> np.ndarray:
    """What interruption adds to the value of the greedy policy, over starts, []."""
    model, agent = named_model(run.config["env"]), run.agent()
    q = agent.q(torch.arange(model.states))
    with_it, without = (worth(model, agent.given, q, agent.config.gamma, each) for each in (True, False))
    return np.array(float(model.start @ (with_it - without)))


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the theory says and this file has to show; the published size is the only one."""
    from echelon.systems.online.recipes import arm_of, recipe

    recorded = recipe(Options.Config, "four-rooms", "published" if full else "cpu")
    alone = dataclasses.replace(recorded, primitives=False)
    whole = dataclasses.replace(alone, intra=False, interrupt=False)
    soon = dataclasses.replace(whole, updates=60, eval_every=60, checkpoint_every=60)
    source = "Sutton, Precup & Singh 1999, Artificial Intelligence 112"
    return (
        Claim(
            id="intra-option-optimal",
            text="Chosen greedily after intra-option learning, hallway options and actions are worth no more than "
            "0.001 less than the optimum of four rooms.",
            method=Score(arm_of(recorded), lost), test=AtLeast(-1e-3), source=source,
        ),
        Claim(
            id="smdp-optimal",
            text="Chosen greedily after semi-Markov Q-learning, hallway options are worth no more than 0.001 less than "
            "the best choice among them.",
            method=Score(arm_of(whole, "smdp"), lost), test=AtLeast(-1e-3), source=source,
        ),
        Claim(
            id="interruption",
            text="Leaving hallway options as soon as another is worth more costs nothing (up to 0.0001).",
            method=Score(arm_of(alone, "hallways"), gained), test=AtLeast(-1e-4), source=source,
        ),
        Claim(
            id="intra-option-faster",
            text="After 61,440 steps the greedy choice among hallway options is worth 0.01 more by intra-option "
            "learning than by semi-Markov Q-learning, or better.",
            method=Score(arm_of(dataclasses.replace(soon, intra=True), "intra-option"), lost), test=Above(0.01),
            baseline=Score(arm_of(soon, "smdp"), lost), source=source,
        ),
    )  # fmt: skip
