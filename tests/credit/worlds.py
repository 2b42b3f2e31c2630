"""A small world whose every episode is listed, so that what an estimator expects is a sum and no simulation.

At most T turns. In state s the policy stops (action 0) or goes on (1 or 2, to state (s + a) mod 3, so that states come
again); every turn is paid by its turn index, state and action. The policy is a softmax of a table of logits [S, A], so
that the length of an episode is learnt as everything else is. All is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from echelon.spans import Spans, SpanTree

STATES = ACTIONS = 3


def plans(horizon: int) -> list[tuple[int, ...]]:
    """Every sequence of actions: going on until stopping, or `horizon` actions in all."""
    if horizon == 1:
        return [(action,) for action in range(ACTIONS)]
    return [(0,), *((action, *rest) for action in range(1, ACTIONS) for rest in plans(horizon - 1))]


@dataclass(frozen=True)
class World:
    """Its n episodes, M turns in all, packed.

    episodes: Spans(n, M).    state, action: int64 [M].    reward: [M].    luck: [n], what the episode's chance is
    multiplied with beside the policy's probabilities.    prefix: int64 [M], equal where all that came before is.
    logits: [S, A].    value: [M], the exact value of every turn's state at its turn; wrong: [M], another table.
    """

    episodes: Spans
    state: Tensor
    action: Tensor
    reward: Tensor
    luck: Tensor
    prefix: Tensor
    logits: Tensor
    value: Tensor
    wrong: Tensor

    @classmethod
    def build(cls, horizon: int, seed: int = 0) -> World:
        generator = torch.Generator().manual_seed(seed)
        table, wrong = torch.randn(2, horizon, STATES, ACTIONS, generator=generator, dtype=torch.float64)
        logits = torch.randn(STATES, ACTIONS, generator=generator, dtype=torch.float64)
        known: dict[tuple[int, ...], int] = {}
        sequences = plans(horizon)
        before = [sequence[:t] for sequence in sequences for t in range(len(sequence))]
        episodes = Spans.from_lengths([len(sequence) for sequence in sequences])
        turn, state = episodes.position, torch.tensor([sum(prefix) % STATES for prefix in before])
        action = torch.tensor([action for sequence in sequences for action in sequence])
        return cls(
            episodes,
            state,
            action,
            reward=table[turn, state, action],
            luck=torch.ones(episodes.n, dtype=torch.float64),
            prefix=torch.tensor([known.setdefault(prefix, len(known)) for prefix in before]),
            logits=logits.requires_grad_(),
            value=state_values(table, logits)[turn, state],
            wrong=wrong[turn, state, 0],
        )

    @cached_property
    def log_prob(self) -> Tensor:
        """[M], differentiable."""
        return self.logits.log_softmax(-1)[self.state, self.action]

    @cached_property
    def chance(self) -> Tensor:
        """[n], differentiable: how likely each episode is."""
        return self.episodes.reduce(self.log_prob).exp() * self.luck

    @cached_property
    def returns(self) -> Tensor:
        """[n]: the sum of rewards of each episode."""
        return self.episodes.reduce(self.reward)

    @cached_property
    def gradient(self) -> Tensor:
        """[S, A]: that of the expected return J = Σ p(episode) · R(episode)."""
        return self.derivative((self.chance * self.returns).sum())

    def derivative(self, objective: Tensor) -> Tensor:
        """[S, A]: the gradient of a scalar in the logits."""
        return torch.autograd.grad(objective, self.logits, retain_graph=True)[0]

    def expected(self, factor: Tensor) -> Tensor:
        """E[Σ_t ∇ log π(a_t|s_t) · factor_t] over single episodes; factor: [M]."""
        chance = self.episodes.expand(self.chance.detach())
        return self.derivative((chance * factor * self.log_prob).sum())

    def reach(self, turns: int) -> Tensor:
        """[turns], differentiable: q_t, the chance that an episode has a turn t."""
        return torch.stack([self.chance[self.episodes.lengths > t].sum() for t in range(turns)])


def state_values(table: Tensor, logits: Tensor) -> Tensor:
    """[T, S]: the expected reward to come in state s at turn t, by backward induction; table: [T, S, A]."""
    policy, values = logits.detach().softmax(-1), torch.zeros(len(table) + 1, STATES, dtype=torch.float64)
    states, actions = torch.arange(STATES)[:, None], torch.arange(ACTIONS)
    for t in reversed(range(len(table))):
        after = torch.where(actions > 0, values[t + 1][(states + actions) % STATES], 0)
        values[t] = (policy * (table[t] + after)).sum(-1)
    return values[:-1]


@dataclass(frozen=True)
class Samples:
    """All groups of `size` independent episodes of a world, each with its chance, on one tree `group` > `episode`.

    item: int64 [N], the turn of the world that each turn of the tree is a copy of. chance: [groups].
    """

    world: World
    size: int
    tree: SpanTree
    item: Tensor
    chance: Tensor

    @classmethod
    def all(cls, world: World, size: int) -> Samples:
        members = torch.cartesian_prod(*[torch.arange(world.episodes.n)] * size).reshape(-1, size)
        episode, item = world.episodes.take(members.flatten())
        group = Spans.from_lengths(world.episodes.lengths[members].sum(-1))
        tree = SpanTree({"group": group, "episode": (episode, "group")})
        return cls(world, size, tree, item, world.chance.detach()[members].prod(-1))

    @property
    def groups(self) -> Spans:
        """The episodes as items, one span a group."""
        return self.tree.within("episode", "group")

    @cached_property
    def reward(self) -> Tensor:
        """[N]: of every turn."""
        return self.world.reward[self.item]

    @cached_property
    def outcome(self) -> Tensor:
        """[groups · size]: the sum of rewards of every episode."""
        return self.tree["episode"].reduce(self.reward)

    def factor(self, advantage: Tensor) -> Tensor:
        """[M]: the mean over all groups of what the advantage gives to each turn of the world, times its chance."""
        share = self.tree["group"].expand(self.chance) * advantage / self.size
        return torch.zeros_like(self.world.reward).index_add_(0, self.item, share)

    def estimate(self, advantage: Tensor) -> Tensor:
        """[S, A]: E[Σ_i Σ_t ∇ log π(a_it|s_it) · A_it] / G over all groups; advantage: [N]."""
        return self.world.derivative((self.factor(advantage) * self.world.log_prob).sum())


def off_course(estimate: Tensor, gradient: Tensor) -> float:
    """The sine of the angle between two gradients: what of the first no learning rate turns into the second."""
    unit = gradient / gradient.norm()
    return float((estimate - (estimate * unit).sum() * unit).norm() / estimate.norm())
