"""OTA: option-aware temporally abstracted value for offline goal-conditioned RL.

Idea: HIQL's low policy is fine; its high policy fails because over hundreds of steps the sign of V(s_{t+k}, g) -
V(s_t, g) is noise. Learn a second value whose one backup spans an n-step option, so that its horizon is n times
shorter, and use it for the high policy only.
Source: arXiv 2505.12737 and its released code as described there; base system HIQL.
Levels: as HIQL: `high` proposes a subgoal representation, `low` acts; both decide at every step.
Shares with HIQL: networks, value loss, both policy losses, levels. What is new: V_h, its goal draws, its targets.
Conventions: the reward is -1 an OPTION and gamma applies once an option (not gamma^n), so every state within n steps of
the goal has V_h = 0, and n must stay well below k.
As in the released code, one phi serves V_l, V_h, their targets and both policies; both value losses train it.
Deviations: state observations only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from echelon.claims import Above, Claim, NotWorse, Score, success
from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Level
from echelon.nets.goal import GaussianPolicy, GoalRepresentation, GoalValue
from echelon.systems.offline.hiql import (
    HighLevel,
    HIQLConfig,
    LowLevel,
    high_actor_loss,
    low_actor_loss,
    nearest_subgoal,
    value_loss,
)
from echelon.training.agent import Agent, Batch, DataSpec, Metrics, Polyak, Update


@dataclass(frozen=True, kw_only=True)
class OTAConfig(HIQLConfig):
    """Defaults: the released code; HIQL's where it keeps them."""

    system: ClassVar[str] = "ota"
    option_steps: int = 5
    """n: steps that one backup of V_h spans ("abstraction factor")."""

    def __post_init__(self) -> None:
        self.require("option_steps", self.option_steps >= 1, "at least 1")
        super().__post_init__()

    def goals(self) -> dict[str, GoalSpec]:
        """HIQL's draws, and `option`: goals and ends of n-step options."""
        return super().goals() | {"option": self.value_goals(steps=self.option_steps)}


class OTA(Agent):
    """Two values at two time-scales, two policies."""

    Config = OTAConfig

    def __init__(self, config: OTAConfig, spec: DataSpec):
        super().__init__()
        self.config = config
        o, dim = spec.observation_dim, config.representation_dim
        self.phi = GoalRepresentation(o, config.value_hidden, dim)
        self.low_value = GoalValue(o + dim, config.value_hidden)
        self.high_value = GoalValue(o + dim, config.value_hidden)
        self.target_low_value = copy.deepcopy(self.low_value).requires_grad_(False)
        self.target_high_value = copy.deepcopy(self.high_value).requires_grad_(False)
        self.high_actor = GaussianPolicy(2 * o, config.actor_hidden, dim, constant_std=config.constant_std)
        self.low_actor = GaussianPolicy(o + dim, config.actor_hidden, spec.action_dim, constant_std=config.constant_std)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of both values' and both policies' losses."""
        c, s = self.config, batch["observations"]
        low_value = value_loss(
            self.phi, self.low_value, self.target_low_value, s, batch["next_observations"],
            batch["value_goals"], batch["value_success"], c.discount, c.expectile,
        )  # fmt: skip
        # the same loss one time-scale up: s' is the state at the option's end, reward and discount count options
        high_value = value_loss(
            self.phi, self.high_value, self.target_high_value, s, batch["option_targets"],
            batch["option_goals"], batch["option_success"], c.discount, c.expectile,
        )  # fmt: skip
        low, low_metrics = low_actor_loss(self.phi, self.low_value, self.low_actor, batch, c.low_alpha)
        high, high_metrics = high_actor_loss(self.phi, self.high_value, self.high_actor, batch, c.high_alpha)
        metrics = {"value/low_loss": low_value.detach(), "value/high_loss": high_value.detach()}
        return low_value + high_value + low + high, metrics | low_metrics | high_metrics

    def updates(self) -> tuple[Update, ...]:
        modules = (self.phi, self.low_value, self.high_value, self.high_actor, self.low_actor)
        targets = (
            Polyak(self.low_value, self.target_low_value, self.config.target_rate),
            Polyak(self.high_value, self.target_high_value, self.config.target_rate),
        )
        return (Update("ota", self.loss, modules, self.config.lr, targets=targets),)

    def levels(self) -> tuple[Level, ...]:
        return (HighLevel(self.high_actor), LowLevel(self.low_actor))

    def value_functions(self, observation: Tensor, goal: Tensor) -> dict[str, Tensor]:
        z = self.phi(observation, goal)
        return {"V_h": self.high_value(observation, z).mean(0), "V_l": self.low_value(observation, z).mean(0)}

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor:
        return nearest_subgoal(self.high_actor, self.phi, observation, goal, candidates)


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.offline.order import order_points
    from echelon.systems.offline.recipes import arm

    size = "published" if full else "cpu"
    stitch, navigate = "pointmaze-large-stitch-v0", "pointmaze-medium-navigate-v0"
    ota, hiql = arm(OTAConfig, stitch, size), arm(HIQLConfig, stitch, size)
    source = "arXiv 2505.12737"
    last = ota.config(0).option_steps
    return (
        Claim(
            id="stitch-success",
            text="On pointmaze-large-stitch OTA succeeds more often than HIQL, by 15 points or more "
            "(published: 66 to 13).",
            method=Score(ota, success),
            baseline=Score(hiql, success),
            test=Above(15),
            source=source,
        ),
        *(
            Claim(
                id=f"order-{other}" + (f"-without-last-{drop}" if drop else ""),
                text=f"Along shortest paths V_h ranks states k steps apart better than {name}"
                + (f", also without the last {drop} steps." if drop else "."),
                method=Score(ota, partial(order_points, value="V_h", drop_last=drop)),
                baseline=Score(baseline, partial(order_points, value=value, drop_last=drop)),
                test=Above(0),
                source=source,
            )
            for other, name, baseline, value in (
                ("low-value", "V_l", ota, "V_l"),
                ("hiql", "HIQL's V", hiql, "V"),
            )
            for drop in (0, last)
        ),
        Claim(
            id="navigate-control",
            text="Where HIQL already works (pointmaze-medium-navigate) OTA is not worse by 10 points.",
            method=Score(arm(OTAConfig, navigate, size), success),
            baseline=Score(arm(HIQLConfig, navigate, size), success),
            test=NotWorse(10),
            source=source,
        ),
    )
