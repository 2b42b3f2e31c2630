"""TD3: a deterministic actor under two critics that are kept from flattering it.

Idea: the smaller of two target critics is believed, at the target actor's action plus clipped noise, so that an error
peak of one critic at one action is not learned from; the actor moves less often than the critics.
Source: arXiv 1802.09477.
Levels: one policy, a decision every environment step.
Shares with HIRO and HAC: `TwinDelayed`, the learner of each of their levels, and `TwinLevel`; with SAC the replay.
Deviations: what is random before `random_steps` is uniform, as in the released code; networks start from Glorot's draw.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Level
from echelon.nets.frozen import frozen
from echelon.nets.mlp import MLP, EnsembleMLP
from echelon.systems.online.common import BoundedLevel, Reader
from echelon.systems.online.sac import ReplayAgent, ReplayConfig, q_values
from echelon.training.agent import Batch, Metrics, Update

Loss = Callable[[Batch], tuple[Tensor, Metrics]]
Q_INIT = -0.067
"""Where bounded values begin, near the best: HAC's released code."""


class TwinDelayed(nn.Module):
    """Actor and critics, each with targets, learning from rows of a batch.

    A batch has features and next_features [B, F], action [B, A] in [-1, 1], reward [B] and discount [B] (0 where
    nothing follows), whatever time an action held. `noise` and its bound `clip` smooth the target actor's action, in
    units of half the action's range; `delay` is how many steps of the critics go with one of the actor. With `horizon`
    H all values lie in [-H, 0]: -H · sigmoid(x + offset), which is `Q_INIT` for x = 0. One critic, no noise and a delay
    of 1 make it DDPG (arXiv 1509.02971).
    """

    def __init__(
        self,
        features: int,
        actions: int,
        hidden: tuple[int, ...],
        *,
        rate: float,
        noise: float = 0.2,
        clip: float = 0.5,
        delay: int = 2,
        critics: int = 2,
        horizon: int | None = None,
    ):
        super().__init__()
        self.rate, self.noise, self.clip, self.delay, self.horizon = rate, noise, clip, delay, horizon
        self.offset = 0.0 if horizon is None else -math.log(-horizon / Q_INIT - 1)
        self.actor = MLP([features, *hidden, actions], activation=F.relu)
        self.critic = EnsembleMLP(critics, [features + actions, *hidden, 1], activation=F.relu)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def act(self, features: Tensor) -> Tensor:
        """[..., A] in (-1, 1): what the actor does."""
        return torch.tanh(self.actor(features))

    def values(self, critic: nn.Module, features: Tensor, action: Tensor) -> Tensor:
        """[members, B]: what `critic` says, bounded where there is a horizon."""
        q = q_values(critic, features, action)
        return q if self.horizon is None else -self.horizon * torch.sigmoid(q + self.offset)

    def target(self, batch: Batch) -> Tensor:
        """[B]: r + discount · min Q'(s', μ'(s') + clipped noise), held within the bounds of the values."""
        action = torch.tanh(self.target_actor(batch["next_features"]))
        noise = (self.noise * torch.randn_like(action)).clamp(-self.clip, self.clip)
        q = self.values(self.target_critic, batch["next_features"], (action + noise).clamp(-1, 1)).amin(0)
        found = batch["reward"] + batch["discount"] * q
        return found if self.horizon is None else found.clamp(-self.horizon, 0)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Squared error of all critics."""
        with torch.no_grad():
            target = self.target(batch)
        q = self.values(self.critic, batch["features"], batch["action"])
        loss = (q - target).square().mean(-1).sum()
        return loss, {"critic/loss": loss.detach(), "critic/value": q.detach().mean()}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-Q(s, μ(s)) by the first critic."""
        action = self.act(batch["features"])
        with frozen(self.critic):
            loss = -self.values(self.critic, batch["features"], action)[0].mean()
        return loss, {"actor/loss": loss.detach(), "actor/size": action.detach().abs().mean()}

    def updates(
        self, lr: float, actor_lr: float | None = None, *, prefix: str = "", every: int = 1
    ) -> tuple[Update, ...]:
        """Critics at every `every`-th step, the actor `delay` times less often.

        With a `prefix` they read the columns of a batch that begin with it, and their names and metrics do too.
        """
        critic, actor = prefixed(self.critic_loss, prefix), prefixed(self.actor_loss, prefix)
        slow = lr if actor_lr is None else actor_lr
        return (
            Update(f"{prefix}critic", critic, (self.critic,), lr, every=every),
            Update(f"{prefix}actor", actor, (self.actor,), slow, every=every * self.delay),
        )

    def follow(self, aux: Metrics, prefix: str = "") -> None:
        """Move the targets, after a step in which the actor moved."""
        if f"loss/{prefix}actor" not in aux:
            return
        for target, online in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
            torch._foreach_lerp_(tuple(target.parameters()), tuple(online.parameters()), self.rate)


def prefixed(loss: Loss, prefix: str) -> Loss:
    """`loss` on the columns of a batch that begin with `prefix`, in whose metrics it is put before the names."""

    def of_its_columns(batch: Batch) -> tuple[Tensor, Metrics]:
        mine = {name.removeprefix(prefix): column for name, column in batch.items() if name.startswith(prefix)}
        value, metrics = loss(mine)
        return value, {prefix + name: metric for name, metric in metrics.items()}

    return of_its_columns if prefix else loss


class TwinLevel(BoundedLevel):
    """The actor of a `TwinDelayed` as a level, with Gaussian noise if it explores; uniform until `warm`."""

    def __init__(
        self,
        agent: Any,
        parts: TwinDelayed,
        reader: Reader,
        explore: bool,
        bounds: tuple[Tensor, Tensor],
        noise: float,
        name: str = "action",
    ):
        super().__init__(agent, reader, explore, bounds, name)
        self.parts, self.noise = parts, noise

    def propose(self, read: Tensor) -> Tensor:
        action = self.parts.act(read)
        if not self.explore:
            return action
        noise = torch.empty_like(action).normal_(generator=self.generator)
        return (action + self.noise * noise).clamp(-1, 1)


class TD3(ReplayAgent):
    """A `TwinDelayed` over environment steps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReplayConfig):
        """Hyper-parameters of TD3."""

        system: ClassVar[str] = "td3"
        env: str = "HalfCheetah-v5"
        """Environment: a gymnasium name, or a world of this library; its actions are vectors."""
        noise: float = 0.1
        """Standard deviation of the acting noise, in units of half the action's range (paper: 0.1)."""
        smoothing: float = 0.2
        """Standard deviation of the noise of target actions (paper: 0.2)."""
        smoothing_clip: float = 0.5
        """Bound of that noise (paper: 0.5)."""
        delay: int = 2
        """Steps of the critics for one of the actor and the targets (paper: 2)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("delay", self.delay >= 1, "at least 1")
            for name in ("noise", "smoothing", "smoothing_clip"):
                self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")

    config: Config

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__(config, spaces)
        self.parts = TwinDelayed(
            self.read.size,
            spaces.action_dim,
            config.hidden,
            rate=config.rate,
            noise=config.smoothing,
            clip=config.smoothing_clip,
            delay=config.delay,
        )

    def levels(self, explore: bool) -> tuple[Level, ...]:
        return (TwinLevel(self, self.parts, self.read, explore, self.spaces.bounds(), self.config.noise),)

    def updates(self) -> tuple[Update, ...]:
        return self.parts.updates(self.config.lr)

    def commit(self, aux: Metrics) -> None:
        self.parts.follow(aux)
