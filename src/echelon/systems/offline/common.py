"""What the offline goal-conditioned systems share: configuration blocks and the flat acting level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from echelon.data.goals import GoalSpec
from echelon.hierarchy.level import Decision, Level
from echelon.training.config import Config


@dataclass(frozen=True, kw_only=True)
class ActorConfig(Config):
    """Policies: sizes and goals. Defaults: OGBench."""

    actor_hidden: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of each policy."""
    constant_std: bool = True
    """Standard deviation 1; else a learned vector."""
    actor_p_random: float = 0.0
    """Share of policy goals from other trajectories; the rest lie uniformly in the future."""

    def __post_init__(self) -> None:
        self.require("actor_hidden", all(size >= 1 for size in self.actor_hidden), "sizes of at least 1")
        self.require("actor_p_random", 0 <= self.actor_p_random <= 1, "between 0 and 1")
        super().__post_init__()

    def actor_goals(self, steps: int = 0) -> GoalSpec:
        """Policy goals, with the state `steps` ahead on the way to them."""
        return GoalSpec(future=1 - self.actor_p_random, random=self.actor_p_random, law="uniform", steps=steps)


@dataclass(frozen=True, kw_only=True)
class GoalConfig(ActorConfig):
    """Policies and values. Defaults: OGBench."""

    value_hidden: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of each value and representation."""
    discount: float = 0.99
    """gamma."""
    target_rate: float = 0.005
    """Share of the online weights that the target takes at each update."""
    value_p_current: float = 0.2
    """Share of value goals equal to the current state."""
    value_p_future: float = 0.5
    """Share of value goals ahead on the trajectory, geometrically distributed; the rest are random states."""

    def __post_init__(self) -> None:
        # they are normalised, and the norm of a single unit is constant
        self.require("value_hidden", all(size >= 2 for size in self.value_hidden), "sizes of at least 2")
        self.require("discount", 0 < self.discount < 1, "between 0 and 1")
        self.require("target_rate", 0 <= self.target_rate <= 1, "between 0 and 1")
        self.require("value_p_current", 0 <= self.value_p_current <= 1, "between 0 and 1")
        current, future = self.value_p_current, self.value_p_future
        self.require(
            "value_p_future", 0 <= future <= 1 - current + 1e-9, f"between 0 and 1 - value_p_current ({current})"
        )
        super().__post_init__()

    def value_goals(self, steps: int = 0) -> GoalSpec:
        """Value goals for transitions, or for options that last `steps`."""
        current, future = self.value_p_current, self.value_p_future
        return GoalSpec(
            current=current,
            future=future,
            random=max(0.0, 1 - current - future),  # 1 - 0.9 - 0.1 is below 0
            discount=self.discount,
            steps=steps,
        )


class GoalLevel(Level):
    """A flat goal-conditioned policy: the mean action, clipped to [-1, 1], at every step."""

    name = "policy"

    def __init__(self, actor: Callable[[Tensor, Tensor], Tensor]):
        self.actor = actor

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        action = self.actor(features["observation"], features["goal"])
        return Decision(action.clamp(-1, 1))
