"""What online systems share: reading observations, levels around actors, minibatches, advantages of a record."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.credit.channels import slim
from echelon.credit.returns import gae
from echelon.envs.spaces import Spaces
from echelon.errors import UsageError
from echelon.hierarchy.diagnostics import VALUE
from echelon.hierarchy.level import Decision, Level
from echelon.losses.kl import adapt_rate
from echelon.nets.actors import Categorical, Gaussian
from echelon.rollout import Ragged, Rollout
from echelon.training.agent import Batch


class Reader(nn.Module):
    """Observations as features [..., size]: vectors as they are, states among n as one of n, one behind the other."""

    def __init__(self, spaces: Spaces, names: tuple[str, ...] | None = None):
        super().__init__()
        self.names = tuple(spaces.observation) if names is None else names
        self.size = spaces.size(*self.names)
        self._states = {name: spaces.discrete.get(name) for name in self.names}
        self._rank = {name: len(spaces.observation[name]) for name in self.names}

    def forward(self, seen: Mapping[str, Any], prefix: str = "") -> Tensor:
        """Features of the columns called `prefix` + name."""
        parts = []
        for name in self.names:
            column, states = seen[prefix + name], self._states[name]
            if states is not None:
                column = F.one_hot(column.to(torch.int64), states)
            elif self._rank[name] != 1:
                lead = column.shape[: column.ndim - self._rank[name]]
                column = column.reshape(*lead, -1)
            parts.append(column.to(torch.float32))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def actor_of(spaces: Spaces, features: int, hidden: tuple[int, ...]) -> Any:
    """A policy for the actions that a world takes: over choices, or a Gaussian over vectors."""
    if spaces.actions is None:
        return Gaussian(features, hidden, spaces.action_dim)
    return Categorical(features, hidden, spaces.choices)


class ActorLevel(Level):
    """The bottom level around an actor of `nets.actors`: samples or takes the mode, and notes a critic's value."""

    def __init__(
        self,
        reader: Reader,
        actor: Any,
        explore: bool,
        critic: Callable[[Tensor], Tensor] | None = None,
        name: str = "action",
        critic_reader: Reader | None = None,
        channels: tuple[str, ...] = (),
    ):
        self.name, self.reader, self.actor, self.explore, self.critic = name, reader, actor, explore, critic
        self.critic_reader, self.heads = critic_reader, tuple(map(head_of, channels)) or (VALUE,)
        self.choices = getattr(actor, "choices", None)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """An action for each stream, its log-probability if it is sampled, and `value` if there is a critic [B, 1].

        The critic reads what the actor does, or what `critic_reader` gives it. One that tells [B, C] has a value for
        each of `channels`, noted under the names of `head_of`.
        """
        read = self.reader(features)
        parameters = self.actor(read)
        seen = read if self.critic_reader is None else self.critic_reader(features)
        values = {} if self.critic is None else dict(zip(self.heads, self.critic(seen).unbind(-1), strict=True))
        if not self.explore:
            return Decision(self.actor.mode(parameters), values=values)
        action = self.actor.sample(parameters, self.generator)
        return Decision(action, self.actor.log_prob(parameters, action), values)


def readers(spaces: Spaces, private: tuple[str, ...]) -> tuple[Reader, Reader]:
    """What a policy reads, and what its value does: the same, and behind it the observations `private`.

    UsageError for those that the environment does not show, and where nothing is left for the policy.
    """
    if private:
        spaces.size(*private)
    names = tuple(name for name in spaces.observation if name not in private)
    if not names:
        raise UsageError(f"{', '.join(private)} is all that the environment shows; the policy needs something to read")
    return Reader(spaces, names), Reader(spaces, (*names, *private))


class AdaptiveRate(nn.Module):
    """A learning rate that follows how far each step moves the policy, by `losses.kl.adapt_rate`."""

    def __init__(self, lr: float, target: float):
        super().__init__()
        self.lr, self.target = lr, target
        self.rate: Tensor
        self.register_buffer("rate", torch.tensor(lr, dtype=torch.float64))

    def factor(self, step: int) -> float:
        """The rate in units of the one it began with; a `schedule` of an `Update`."""
        return float(self.rate) / self.lr

    def follow(self, kl: Tensor) -> None:
        """Adapt to the divergence [] that was found in the latest step; it counts from the next one on."""
        self.rate.fill_(adapt_rate(float(self.rate), float(kl), target=self.target))


class BoundedLevel(Level):
    """A level that acts with vectors between two bounds, [A] each; uniform ones until the agent is `warm`."""

    def __init__(self, agent: Any, reader: Reader, explore: bool, bounds: tuple[Tensor, Tensor], name: str = "action"):
        self.name, self.agent, self.reader, self.explore = name, agent, reader, explore
        self.low, self.high = bounds

    @abstractmethod
    def propose(self, read: Tensor) -> Tensor:
        """Actions [B, A] in [-1, 1] for what was read [B, F]; with noise if it explores."""

    def features(self, seen: Any, parent: Tensor | None) -> Tensor:
        """What the networks read [B, F]; what the level above commands is part of it."""
        read = self.reader(seen)
        return read if parent is None else torch.cat([read, parent.to(read.dtype)], -1)

    def uniform(self, read: Tensor) -> Tensor:
        """Random actions [B, A] in [-1, 1]."""
        return 2 * torch.rand(len(read), len(self.low), generator=self.generator, device=read.device) - 1

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """An action within the bounds for each stream."""
        read = self.features(features, parent)
        return Decision(self.scaled(self.uniform(read) if self.explore and not self.agent.warm else self.propose(read)))

    def scaled(self, action: Tensor) -> Tensor:
        """Vectors [B, A] in [-1, 1] as actions between the bounds."""
        low, high = self.low.to(action.device), self.high.to(action.device)
        return low + (action + 1) / 2 * (high - low)


def observed(rollout: Rollout) -> dict[str, Tensor]:
    """Every observation that is not ragged, [N, ...]."""
    return {name: column for name, column in rollout.observation.items() if not isinstance(column, Ragged)}


def by_item(rollout: Rollout, level: str, column: Tensor) -> Tensor:
    """[N, ...]: a column of decisions, one row a decision [D, ...], at the items where they begin."""
    return torch.zeros(rollout.size, *column.shape[1:], dtype=column.dtype, device=column.device).index_copy(
        0, rollout.decisions[level].start, column
    )


def advantages(rollout: Rollout, value: Tensor, final_value: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages of environment steps and the returns that they stand for, [N] each.

    value: V before each item [N]. final_value: V of each stream's final observation [S]; it counts unless the stream
    ended in a terminal state.
    """
    after = torch.where(rollout.streams.terminated, 0, final_value)
    credit = gae(
        rollout.spans["stream"], reward=rollout.reward_sum(), value=value, gamma=gamma, lam=lam, final_value=after
    )
    return credit.advantage, credit.target["value"]


def head_of(channel: str) -> str:
    """The name under which a level notes the value of a reward channel."""
    return f"{VALUE}.{channel}"


def channel_advantages(
    rollout: Rollout, values: Tensor, final_values: Tensor, weights: Mapping[str, float], gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """One critic for each reward channel: its GAE, brought to mean 0 and deviation 1 over the rollout, then the sum.

    values: V of each channel before each item [N, C]; final_values: of each stream's final observation [S, C], which
    counts as in `advantages`. weights: channel → its weight, C of them in the order of the columns. Returns the
    weighted sum of the advantages [N], as `credit.channels.slim` has it, and the returns of each channel [N, C].
    DataError where the world does not tell one of the channels, or not all of its rewards are known.
    """
    after = torch.where(rollout.streams.terminated[:, None], 0, final_values)
    found = {
        name: gae(
            rollout.spans["stream"],
            reward=rollout.reward_sum(name),
            value=values[:, column],
            gamma=gamma,
            lam=lam,
            final_value=after[:, column],
        )
        for column, name in enumerate(weights)
    }
    credit = slim({name: one.advantage for name, one in found.items()}, weights=weights)
    return credit.advantage, torch.stack([one.target["value"] for one in found.values()], -1)


def minibatches(batch: Batch, epochs: int, size: int) -> Iterator[Batch]:
    """Every row once an epoch, in random order, `size` rows at a time; a last one of a single row is left out."""
    rows = len(next(iter(batch.values())))
    for _ in range(epochs):
        order = torch.randperm(rows)
        shuffled = {name: column[order] for name, column in batch.items()}
        for start in range(0, rows, size):
            if rows - start > 1:
                yield {name: column[start : start + size] for name, column in shuffled.items()}
