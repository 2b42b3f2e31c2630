"""UVD: milestones found in demonstrations by their distances, goals of an imitated policy one after the other.

Idea: goals far away say little about what to do now, and nothing about the order of things. The milestones of a
demonstration (`data/milestones`) are near goals, found without labels or learning; new orders of old parts are within
reach of a policy that works towards one of them at a time.
Source: arXiv 2310.08581, its appendix and released code (github.com/zcczhang/UVD).
Levels: `milestone` holds a milestone of a demonstration until the distance to it, as a share of what it was at first,
is below eps and about as many steps have passed as in the demonstration; then the next one. `policy` (s, milestone) ->
action, every step, by cloning what leads to the first milestone at or after each state.
Shares with GCBC: the policy. Where the world shows no `order`, the only milestone is the world's goal.
Baselines are other values of `milestones`: "final" is cloning with the last state of a demonstration as goal.
In scene-orders a test shows the validation demonstration of the order that is asked for, never trained on; with
`hold_out` the episodes of a third of the orders are left out, another third for each seed modulo 3. The last state of a
demonstration does not tell its order there: a policy that sees it alone has to guess, in orders that it knows, too.
Options: `form`, see `decompose`; `switch`: "released" forbids a change `delta` steps too early and forces it as late,
"appendix" asks for both conditions (and holds on for good once the time has passed), "distance" has no budgets.
Deviations: no encoder, the embedding is numbers of the state (`embedding`); plain layers without batch
normalisation; squared errors; Adam at a constant rate, the last weights and not the best. The reward for reinforcement
learning is `credit.uvd_reward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from echelon.claims import Above, Claim, NotWorse, Score
from echelon.data.milestones import (
    ORDER,
    Form,
    Method,
    MilestoneSpec,
    demonstrations,
    equally_spaced,
    matched,
    milestones_of,
    oracle,
)
from echelon.envs.catalog import environment
from echelon.envs.ensure import ensure
from echelon.envs.orders import PARTITIONS, unseen
from echelon.errors import DataError
from echelon.hierarchy.level import Decision, Features, Level
from echelon.hierarchy.termination import Running
from echelon.nets.goal import GaussianPolicy
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Update
from echelon.training.config import Config, from_json

Switch = Literal["released", "appendix", "distance"]
Embedding = Literal["whole", "scene"]
EMBEDDINGS: dict[str, tuple[int, ...]] = {
    "whole": (),
    "scene": (12, 13, 14, 28, 29, 30, 32, 33, 34, 36, 38),
}
"""Which numbers of an observation: all, or in OGBench's scene the gripper's place, and buttons, drawer and window
without their velocities."""
TINY = 1e-6
"""Least distance by which others are divided: a milestone may be where it is made the goal."""


def released(near: Tensor, held: Tensor, budget: Tensor, delta: int) -> Tensor:
    """Change when near, not more than `delta` steps early, and `delta` steps late in any case."""
    return (near & (held >= budget - delta)) | (held > budget + delta)


def appendix(near: Tensor, held: Tensor, budget: Tensor, delta: int) -> Tensor:
    """Change when near and fewer than `delta` steps early or late."""
    return near & ((held - budget).abs() < delta)


def distance(near: Tensor, held: Tensor, budget: Tensor, delta: int) -> Tensor:
    """Change when near."""
    return near


SWITCHES: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "released": released,
    "appendix": appendix,
    "distance": distance,
}
"""Whether to go on to the next milestone, bool[S]: `near` bool[S], steps `held` and their `budget` int64[S]."""


@dataclass(frozen=True, kw_only=True)
class UVDConfig(Config):
    """Defaults: the appendix, for the MLP policy in FrankaKitchen."""

    system: ClassVar[str] = "uvd"
    updates: int = 150_000
    """Gradient steps."""
    batch_size: int = 512
    """Transitions a batch."""
    actor_hidden: tuple[int, ...] = (1024, 512, 256)
    """Hidden layers of the policy."""
    milestones: Method = "uvd"
    """How they are found: uvd, final, uniform, random, oracle."""
    embedding: Embedding = "whole"
    """What of an observation distances are taken of, and the policy sees of a goal."""
    min_interval: int = 18
    """Frames that milestones lie apart, and the first from the start, at least."""
    kernel: float = 0.08
    """gamma: how fast weights fall when distances are smoothed; 0: they are not."""
    form: Form = "released"
    """Where the search goes on: at the maximum, or in the frame before it ("appendix")."""
    least: int = 3
    """Fewest milestones of "uniform" and "random"."""
    most: int = 6
    """Most of them."""
    near: float = 0.2
    """eps: share of the distance at which a milestone is taken up, below which it counts as reached."""
    delta: int = 3
    """Steps by which a milestone may be left early or late (appendix 2)."""
    switch: Switch = "released"
    """How distance and steps together decide."""
    hold_out: bool = False
    """Leave out the episodes of the orders that the seed keeps for testing."""

    def __post_init__(self) -> None:
        self.require("actor_hidden", all(size >= 1 for size in self.actor_hidden), "sizes of at least 1")
        self.require("min_interval", self.min_interval >= 0, "at least 0")
        self.require("near", 0 < self.near < math.inf, "positive")
        self.require("delta", self.delta >= 0, "at least 0")
        possible = not self.hold_out or environment(self.env).family == "orders"
        self.require("hold_out", possible, f"False in '{self.env}', which has no orders")
        for name, options in (
            ("milestones", Method), ("form", Form), ("switch", Switch), ("embedding", Embedding)
        ):  # fmt: skip
            known = get_args(options)
            self.require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        super().__post_init__()

    def unseen(self) -> tuple[int, ...]:
        """Orders that are kept for testing."""
        return unseen(self.seed % PARTITIONS) if self.hold_out else ()

    def goals(self) -> dict[str, MilestoneSpec]:
        """Transitions with the milestone that they work towards."""
        spec = MilestoneSpec(
            method=self.milestones, embedding=EMBEDDINGS[self.embedding], interval=self.min_interval,
            kernel=self.kernel, form=self.form, least=self.least, most=self.most, seed=self.seed,
            left_out=self.unseen(),
        )  # fmt: skip
        return {"milestone": spec}


class Plans(NamedTuple):
    """Milestones of K demonstrations, `sizes` int64[K] of them: `states` [K, M, O] and their `budgets` int64[K, M]."""

    states: Tensor
    budgets: Tensor
    sizes: Tensor


def plans(config: UVDConfig) -> Plans:
    """The milestones of the validation demonstration of each order. DataError where there is none for one of them."""
    store = ensure(config.env).validation()
    orders = len(environment(config.env).tasks)
    if store is None or ORDER not in store.columns:
        raise DataError(f"{config.env} has no validation demonstrations of orders to follow in tests")
    (spec,) = config.goals().values()
    found: dict[int, tuple[np.ndarray, list[int]]] = {}
    for demo in demonstrations(store.columns, store.lengths, spec.embedding):
        rows = store.episode(demo.number)
        found[int(rows[ORDER][0])] = (rows["observations"], milestones_of(demo, spec))
    if lacking := [k for k in range(orders) if k not in found]:
        raise DataError(f"{store.name}: no demonstration of order {lacking[0]}; make the whole set: {config.env}")
    most = max(len(at) for _, at in found.values())
    states, budgets = [], []
    for k in range(orders):
        seen, at = found[k]
        steps = [b - a for a, b in zip([0, *at], at, strict=False)]
        left = most - len(at)
        states.append(torch.as_tensor(np.array(seen[[*at, *at[-1:] * left]])))
        budgets.append(torch.tensor([*steps, *[0] * left]))
    return Plans(torch.stack(states), torch.stack(budgets), torch.tensor([len(found[k][1]) for k in range(orders)]))


class MilestoneLevel(Level):
    """The demonstration of the order that is asked for -> its milestones [O], one after the other.

    Its memory float64[S, 4]: has the episode begun, which milestone, for how many steps, at what distance it began.
    """

    name = "milestone"

    def __init__(self, agent: UVD, plans: Plans | None):
        self.agent, self.plans = agent, plans

    def start(self, streams: int) -> Tensor:
        return torch.zeros(streams, 4, dtype=torch.float64, device=self.agent.device)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Features, Tensor | None]:
        assert memory is not None
        state = obs["observation"]
        begun, place, held = memory[:, 0] > 0, memory[:, 1].long(), memory[:, 2].long() + 1
        order = self._order(obs)
        states, budgets, sizes = self._plans(obs)
        gap = self._gap(state, states[order, place])
        near = gap / memory[:, 3].clamp(min=TINY) < self.agent.config.near
        rule = SWITCHES[self.agent.config.switch]
        left = begun & (place + 1 < sizes[order]) & rule(near, held, budgets[order, place], self.agent.config.delta)
        place = place + left
        aim = states[order, place]
        fresh = left | ~begun
        first = torch.where(fresh, self._gap(state, aim), memory[:, 3])
        memory = torch.stack([torch.ones_like(first), place.double(), torch.where(fresh, 0, held).double(), first], 1)
        return {"aim": aim, "left": left}, memory

    def ends(self, features: Features, running: Running, below: Tensor | None) -> Tensor:
        return features["left"]

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(features["aim"])

    def _order(self, obs: dict[str, Tensor]) -> Tensor:
        """Which plan each stream follows, int64[S]."""
        if self.plans is None:
            return torch.arange(len(obs["goal"]), device=obs["goal"].device)
        return obs["order"].argmax(1)

    def _plans(self, obs: dict[str, Tensor]) -> Plans:
        """What can be followed; each stream's own goal where nothing is shown."""
        if self.plans is not None:
            return self.plans
        goal = obs["goal"]
        ones = torch.ones(len(goal), dtype=torch.int64, device=goal.device)
        return Plans(goal[:, None], 0 * ones[:, None], ones)

    def _gap(self, state: Tensor, aim: Tensor) -> Tensor:
        """Distance of embeddings, float64[S]."""
        return (self.agent.embed(state) - self.agent.embed(aim)).double().norm(dim=1)


class PolicyLevel(Level):
    """(s, milestone) -> action in [-1, 1]."""

    name = "policy"

    def __init__(self, agent: UVD):
        self.agent = agent

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        aim = features["goal"] if parent is None else parent
        return Decision(self.agent.act(features["observation"], aim).clamp(-1, 1))


class UVD(Agent):
    """pi(a | s, phi(g)) by squared errors, and milestones g to follow."""

    Config = UVDConfig

    def __init__(self, config: UVDConfig, spec: DataSpec):
        super().__init__()
        places = EMBEDDINGS[config.embedding]
        fits = all(k < spec.observation_dim for k in places)
        config.require("embedding", fits, f"one of observations of {spec.observation_dim} numbers")
        self.config = config
        self.places = list(places) or list(range(spec.observation_dim))
        self.observation_dim = spec.observation_dim
        self.actor = GaussianPolicy(spec.observation_dim + len(self.places), config.actor_hidden, spec.action_dim)
        self._plans: Plans | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def embed(self, observation: Tensor) -> Tensor:
        """phi [..., D] of observations [..., O]."""
        if observation.shape[-1] != self.observation_dim:
            seen = observation.shape[-1]
            raise ValueError(f"sizes differ: observations have {seen} numbers, the policy's {self.observation_dim}")
        return observation[..., self.places]

    def act(self, observation: Tensor, goal: Tensor) -> Tensor:
        """The mean action [B, A] at observations [B, O] towards goals [B, O]."""
        return self.actor(observation, self.embed(goal))

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """|pi(s, phi(g)) - a|^2, the mean over the batch."""
        error = (self.act(batch["observations"], batch["goals"]) - batch["actions"]).square().sum(-1).mean()
        return error, {"actor/error": error.detach()}

    def updates(self) -> tuple[Update, ...]:
        return (Update("actor", self.loss, (self.actor,), self.config.lr),)

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor:
        """The candidates nearest to the goals, which are the only milestones where no demonstration is shown."""
        return candidates[torch.cdist(self.embed(goal), self.embed(candidates)).argmin(1)]

    def levels(self) -> tuple[Level, ...]:
        if self._plans is None and environment(self.config.env).family == "orders":
            self._plans = Plans(*(part.to(self.device) for part in plans(self.config)))
        return (MilestoneLevel(self, self._plans), PolicyLevel(self))


def of_orders(run: Any, measure: str, known: bool) -> np.ndarray:
    """Statistic of a claim: `measure` (tasks for success) in points of a run's last evaluation, [order, episode].

    Of the orders that it was trained on if `known`, else of those that its seed kept for testing.
    """
    config = run.config
    kept = unseen(config["seed"] % PARTITIONS)
    row = run.evaluations[-1]
    chosen = [values for k, values in enumerate(row[measure].values()) if (k in kept) != known]
    return 100.0 * np.array(chosen, dtype=float)


def boundaries(run: Any, evenly: bool, within: int = 12) -> np.ndarray:
    """Statistic of a claim: F1 in points of milestones in a run's data against where parts end, [episode].

    Those that its own way finds or, `evenly`, as many at equal distances; matched if they lie `within` so many frames.
    The last frame is left out.
    """
    config = from_json(UVDConfig, run.config)
    (spec,), store = config.goals().values(), ensure(config.env)
    found = []
    for demo in demonstrations(store.columns, store.lengths, spec.embedding):
        own, rng = milestones_of(demo, spec), np.random.default_rng(0)
        taken = equally_spaced(demo.last, len(own)) if evenly else own
        found.append(100.0 * matched(taken[:-1], oracle(demo, spec, rng)[:-1], within))
    return np.array(found)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.offline.recipes import arm

    env, size, source = "scene-orders-v0", "published" if full else "cpu", "arXiv 2310.08581"
    uvd = arm(UVDConfig, env, size)
    final = arm(UVDConfig, env, size, "final goals", milestones="final")
    uniform, ends = (arm(UVDConfig, env, size, name, milestones=name) for name in ("uniform", "oracle"))
    new = partial(of_orders, measure="completion", known=False)
    old = partial(of_orders, measure="completion", known=True)
    return (
        Claim(
            id="new-orders",
            text="On orders of four subtasks that it was not trained on, a policy that follows milestones found by UVD "
            "completes more of the four than one that is shown a demonstration's last state.",
            method=Score(uvd, new),
            baseline=Score(final, new),
            test=Above(10),
            source=source,
            also=(Score(uniform, new), Score(ends, new), Score(uvd, partial(of_orders, measure="tasks", known=False))),
        ),
        Claim(
            id="known-orders-not-worse",
            text="On the orders that it was trained on it completes as much as with the last state as its goal, or "
            "more (which does not tell the order here: the policy has to guess).",
            method=Score(uvd, old),
            baseline=Score(final, old),
            test=NotWorse(5),
            source=source,
        ),
        Claim(
            id="boundaries-no-better",
            text="A negative finding: where the subtasks end is found by equally spaced frames, as many as UVD has "
            "found, as well as by UVD from raw states, but for 5 points of F1 at most (within 12 frames).",
            method=Score(uvd, partial(boundaries, evenly=True)),
            baseline=Score(uvd, partial(boundaries, evenly=False)),
            test=NotWorse(5),
            source="none: measured before on other demonstrations in the scene",
        ),
    )
