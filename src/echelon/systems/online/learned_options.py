"""What systems with learned options share: a policy and a chance of ending for each, and the level that acts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from echelon.envs.spaces import Spaces
from echelon.hierarchy.level import Decision, Level
from echelon.hierarchy.termination import Learned
from echelon.nets.mlp import MLP
from echelon.systems.online.common import Reader, actor_of
from echelon.systems.online.dqn import taken


class OptionActors(nn.Module):
    """pi(a | s, w): one actor an option, which share no weights. B rows with features [B, F] and option int64 [B]."""

    def __init__(self, spaces: Spaces, features: int, hidden: tuple[int, ...], options: int):
        super().__init__()
        self.actors = nn.ModuleList(actor_of(spaces, features, hidden) for _ in range(options))

    def sample(self, features: Tensor, option: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """An action of each row's option, and its log-probability [B]."""
        actions, log_probs = [], []
        for actor in self._each():
            parameters = actor(features)
            actions.append(actor.sample(parameters, generator))
            log_probs.append(actor.log_prob(parameters, actions[-1]))
        return _of(actions, option), _of(log_probs, option)

    def mode(self, features: Tensor, option: Tensor) -> Tensor:
        """The most probable action of each row's option."""
        return _of([actor.mode(actor(features)) for actor in self._each()], option)

    def judged(self, features: Tensor, option: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of an action and entropy, [B] each, of each row's option."""
        log_probs, entropies = [], []
        for actor in self._each():
            parameters = actor(features)
            log_probs.append(actor.log_prob(parameters, action))
            entropies.append(actor.entropy(parameters))
        return _of(log_probs, option), _of(entropies, option)

    def _each(self) -> list[Any]:
        return list(self.actors)


class Terminations(nn.Module):
    """beta(s, w), the chance that option w ends on arrival in s: features [..., F] -> [..., options]; 1/2 at first."""

    def __init__(self, features: int, hidden: tuple[int, ...], options: int):
        super().__init__()
        self.mlp = MLP([features, *hidden, options], final_scale=1e-4, activation=torch.tanh)

    def forward(self, features: Tensor) -> Tensor:
        """Probabilities."""
        return self.mlp(features).sigmoid()

    def condition(self, reader: Reader) -> Learned:
        """The same as a level's termination: drawn anew in every state, in evaluation too."""
        return Learned(lambda seen, option: taken(self(reader(seen)), option))


class OptionActionLevel(Level):
    """The bottom level: acts by the policy of the option that the level above holds; samples, or takes the mode."""

    name = "action"

    def __init__(self, reader: Reader, actors: OptionActors, explore: bool):
        self.reader, self.actors, self.explore = reader, actors, explore

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        """An action for each stream."""
        assert parent is not None
        read = self.reader(features)
        if not self.explore:
            return Decision(self.actors.mode(read, parent))
        return Decision(*self.actors.sample(read, parent, self.generator))


def _of(parts: list[Tensor], option: Tensor) -> Tensor:
    """[B, ...] of each option, int64 [B] -> [B, ...]: each row's own."""
    return torch.stack(parts, 1)[torch.arange(len(option), device=option.device), option]
