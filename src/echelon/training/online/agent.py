"""What an online system is: levels that act, and what an iteration's record gives them to learn from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Level
from echelon.rollout import Rollout
from echelon.training.agent import Batch, LearningAgent, Metrics
from echelon.training.online.config import OnlineConfig
from echelon.training.trainer import Trainer


class Keeper(Protocol):
    """Something with a state of plain data and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


AFTER = "after."
"""Begins the name of a stream's label: what the level after it expected of the latest observation."""
EXPECTED = "expected"
"""Name among a decision's values: what its level expected, noted afterwards, of the world's rewards and its own."""
BONUS = "bonus"
"""Name among a decision's values: the reward of the level's own that it brought."""


class Appraisal(NamedTuple):
    """What a level expected in a record, and how its advantages are made of that: for people who look at it.

    value: before each of its decisions [D]. after: of the latest observation of each stream [S]. gamma, lam: discount
    of a step and λ of its generalised advantages. bonus: its own reward for each decision, beside the world's [D].
    """

    value: Tensor
    after: Tensor
    gamma: float
    lam: float
    bonus: Tensor | None = None


class OnlineAgent(LearningAgent):
    """Base of systems that act in an environment to learn."""

    Config: ClassVar[type[OnlineConfig]]

    def __init__(self, config: OnlineConfig, spaces: Spaces):
        super().__init__()
        self.config: Any = config
        self.spaces = spaces

    @classmethod
    def trainer(cls) -> type[Trainer]:
        """The loop that collects and learns."""
        from echelon.training.online.loop import OnlineRun

        return OnlineRun

    @abstractmethod
    def levels(self, explore: bool) -> tuple[Level, ...]:
        """The acting hierarchy, top level first: as it acts in training, or greedy."""

    @abstractmethod
    def learn(self, rollout: Rollout) -> Iterator[Batch]:
        """The batches of the gradient steps that follow on an iteration's record, in order; runs without gradient.

        It is asked for the next batch after the step with the one before. What learns without gradients (tables,
        normalisers, replay) does so here. `rollout` has the steps of all slots; spans that are open at its end go on in
        the next one.
        """

    def kept(self) -> Mapping[str, Keeper]:
        """What goes into checkpoints beside parameters and buffers, by name: replay, transitions under way."""
        return {}

    def abandon(self) -> None:
        """Forget what belongs to running episodes: a resumed run could not go on with them."""

    @property
    def gamma(self) -> float:
        """Discount of an environment step in what its levels note as "value" of their decisions."""
        return float(getattr(self.config, "gamma", 1.0))

    def appraise(self, rollout: Rollout) -> Mapping[str, Appraisal]:
        """What its levels expect in a record, by level; of those that learn from advantages. Runs without gradient."""
        return {}

    def facts(self, rollout: Rollout) -> Mapping[str, float] | Metrics:
        """What an iteration's record shows of the hierarchy, for the metrics."""
        return {}
