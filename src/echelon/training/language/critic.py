"""The critic of a language agent: a second transformer of the policy's shape with a linear head for each value.

It begins with the warm start's trunk, and values that are all 0. A value at an item is read from the last token before
it, so it knows all that the policy knew when it chose the item. Every head learns at its own items alone.
Legend: N items of the record, M items of the turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from echelon.errors import CheckpointError
from echelon.language.models import Critic
from echelon.language.scorer import Scorer
from echelon.language.update import Step, Term, policy_step
from echelon.language.views import View
from echelon.losses.aggregate import loss_weights
from echelon.training import checkpoint
from echelon.training.language.agent import Turns, over_items
from echelon.training.language.config import LanguageConfig


@dataclass(frozen=True, kw_only=True)
class CriticConfig(LanguageConfig):
    """What runs with a critic have beside the rest."""

    critic_lr: float = 1e-3
    """AdamW's learning rate of the critic (published, for 1.5 B and more: 1e-5, ten times the policy's)."""
    critic_passes: int = 1
    """Steps of the critic on each minibatch of an iteration (published: 1, on minibatches of 256 turns)."""
    critic_warmup: int = 0
    """Iterations at the start in which the critic alone learns (published: 0)."""
    value_clip: float = 0.5
    """How far a value may move in one iteration before its loss is flat (published: 0.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("critic_lr", "value_clip"):
            self.require(name, 0 < getattr(self, name) < math.inf, "positive")
        self.require("critic_passes", self.critic_passes >= 1, "at least 1")
        self.require("critic_warmup", self.critic_warmup >= 0, "0 or more")


class ValueLearner:
    """A critic with its optimiser."""

    def __init__(self, critic: Critic, config: CriticConfig, autocast: torch.dtype | None = None):
        self.critic, self.config = critic, config
        columns = {head: _Column(critic, k) for k, head in enumerate(critic.heads)}
        self.scorer = Scorer(critic.trunk, heads=columns, autocast=autocast)
        self.optimiser = torch.optim.AdamW(critic.parameters(), lr=config.critic_lr, weight_decay=0.0, fused=True)

    def values(self, view: View, size: int) -> dict[str, Tensor]:
        """Head → [N], the value just before each item of the view; NaN at the record's other items."""
        scored = self.scorer.score(view, self.critic.heads, budget=self.config.token_budget)
        places = view.item.sort().values
        return {head: torch.full((size,), torch.nan).index_copy_(0, places, v.cpu()) for head, v in scored.items()}

    def optimise(
        self, view: View, turns: Turns, where: Tensor, values: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> Step | None:
        """Steps towards the targets at the items `where`, bool [M], and the last of them; None without such items.

        values: head → [M], as they were at the beginning of the iteration. targets: head → [M], NaN where a head has
        none.
        """
        size = turns.record.size
        given: dict[str, Tensor] = {}
        terms: dict[str, Term] = {}
        for head in self.critic.heads:
            own = where & targets[head].isfinite()
            if not bool(own.any()):
                continue
            given |= {
                f"{head}.old": over_items(turns, values[head], size),
                f"{head}.target": over_items(turns, targets[head], size),
            }
            weight = over_items(turns, loss_weights(turns.tokens, "token-mean", where=own), size)
            terms[f"value/{head}"] = Term(_ValueLoss(head, self.config.value_clip), weight, want=(head,))
        if not terms:
            return None
        step = None
        self.critic.train()
        for _ in range(self.config.critic_passes):
            step = policy_step(
                self.scorer, view, terms, self.optimiser, given=given, budget=self.config.token_budget,
                max_norm=self.config.clip_norm,
            )  # fmt: skip
        self.critic.eval()
        return step

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain state for a checkpoint."""
        moments, description = checkpoint.flatten(self.optimiser.state_dict(), "critic_optimizer")
        weights = {f"critic.{name}": p for name, p in self.critic.named_parameters()}
        return weights | moments, {"critic_optimizer": description}

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint. Raises CheckpointError when it is that of another critic."""
        own = dict(self.critic.named_parameters())
        kept = {k.removeprefix("critic."): v for k, v in found.tensors.items() if k.startswith("critic.")}
        if own.keys() != kept.keys() or any(own[name].shape != w.shape for name, w in kept.items()):
            raise CheckpointError(f"{found.path}: the critic's weights are not those of this configuration")
        with torch.no_grad():
            for name, value in kept.items():
                own[name].copy_(value)
        self.optimiser.load_state_dict(checkpoint.unflatten(found.tensors, found.state["critic_optimizer"]))


def value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    """½ · max((v - g)², (old + clamp(v - old, ±clip) - g)²), elementwise; the pessimistic of the two, as PPO's code."""
    near = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target).square(), (near - target).square())


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 - Var(target - value) / Var(target) where the target is finite; 0 if it does not vary there. 1 is perfect."""
    known = target.isfinite()
    value, target = value[known], target[known]
    if len(target) < 2 or not float(target.var()) > 0:
        return torch.tensor(0.0)
    return 1 - (target - value).var() / target.var()


@dataclass(frozen=True)
class _ValueLoss:
    """The loss of one head, of a micro-batch's columns."""

    head: str
    clip: float

    def __call__(self, columns: Mapping[str, Tensor]) -> Tensor:
        head = self.head
        return value_loss(columns[head], columns[f"{head}.old"], columns[f"{head}.target"], self.clip)


class _Column(nn.Module):
    """One value of a critic, from the hidden states of its trunk: [m, width] → [m], in float32."""

    def __init__(self, critic: Critic, column: int):
        super().__init__()
        self._critic, self._column = (critic,), column  # not registered: its parameters are the critic's

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self._critic[0].values(hidden)[..., self._column]
