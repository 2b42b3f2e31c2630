"""HIQL and OTA the obvious way: the peers that `benchmarks/update.py` times echelon against.

Plain eager PyTorch: `nn.Linear`, `nn.GELU` and `nn.LayerNorm` in `nn.Sequential`, one forward pass (with its own pass
through phi) for every value that a loss needs, `torch.optim.Adam` as it comes, a loop over parameters for the targets,
and numpy batches by fancy indexing. Losses, goal draws and batches are those of the systems they are compared with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from echelon.data.goals import GoalSpec
from echelon.data.store import Store
from echelon.nets.mlp import MLP, EnsembleMLP
from echelon.systems.offline.hiql import HIQL, HIQLConfig
from echelon.systems.offline.ota import OTA

Batch = dict[str, Tensor]


def mlp(sizes: Sequence[int], gelu: str, norm: bool) -> nn.Sequential:
    """Dense, GELU (`gelu`: "none" is exact, "tanh" the published approximation), LayerNorm; the last layer is bare."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), nn.GELU(approximate=gelu)]
        layers += [nn.LayerNorm(b, eps=1e-6)] if norm else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Port(nn.Module):
    """What both systems share: networks, losses, and one update; all standard deviations are 1."""

    def __init__(self, config: HIQLConfig, observation: int, action: int, gelu: str):
        super().__init__()
        self.config, o, z = config, observation, config.representation_dim
        self.phi = mlp([2 * o, *config.value_hidden, z], gelu, norm=True)
        self.low_actor = mlp([o + z, *config.actor_hidden, action], gelu, norm=False)
        self.high_actor = mlp([2 * o, *config.actor_hidden, z], gelu, norm=False)
        self.values = nn.ModuleDict()
        for name in self.value_names():
            heads = [mlp([o + z, *config.value_hidden, 1], gelu, norm=True) for _ in range(2)]
            self.values[name] = nn.ModuleList(heads)
        self.targets = copy.deepcopy(self.values).requires_grad_(False)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.lr)

    def value_names(self) -> tuple[str, ...]:
        """The values that are learnt."""
        return ("value",)

    def loss(self, batch: Batch) -> Tensor:
        """The sum of all losses."""
        value = self.value_loss("value", batch, "next_observations", "value")
        return value + self.low_loss("value", batch) + self.high_loss("value", batch)

    def represent(self, s: Tensor, g: Tensor) -> Tensor:
        """phi([s; g]) of length sqrt(dim)."""
        z = self.phi(torch.cat([s, g], -1))
        return z / z.norm(dim=-1, keepdim=True) * math.sqrt(z.shape[-1])

    def v(self, heads: nn.Module, s: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Both heads' V(s, g) [B]."""
        assert isinstance(heads, nn.ModuleList)
        x = torch.cat([s, self.represent(s, g)], -1)
        return heads[0](x).squeeze(-1), heads[1](x).squeeze(-1)

    def value_loss(self, name: str, batch: Batch, after: str, goals: str) -> Tensor:
        """Expectile regression of both heads, each towards its own target head."""
        s, s_next, g, success = (batch[k] for k in ("observations", after, f"{goals}_goals", f"{goals}_success"))
        reward, mask = success - 1, 1 - success
        with torch.no_grad():
            next1, next2 = self.v(self.targets[name], s_next, g)
            now1, now2 = self.v(self.targets[name], s, g)
            q1 = reward + self.config.discount * mask * next1
            q2 = reward + self.config.discount * mask * next2
            q = reward + self.config.discount * mask * torch.minimum(next1, next2)
            advantage = q - (now1 + now2) / 2
            weight = torch.where(advantage >= 0, self.config.expectile, 1 - self.config.expectile)
        v1, v2 = self.v(self.values[name], s, g)
        return (weight * (q1 - v1) ** 2).mean() + (weight * (q2 - v2) ** 2).mean()

    def advantage(self, name: str, s: Tensor, later: Tensor, g: Tensor) -> Tensor:
        """V(later, g) - V(s, g), mean of the heads."""
        with torch.no_grad():
            now1, now2 = self.v(self.values[name], s, g)
            later1, later2 = self.v(self.values[name], later, g)
            return (later1 + later2) / 2 - (now1 + now2) / 2

    def awr(self, advantage: Tensor, mean: Tensor, target: Tensor, alpha: float) -> Tensor:
        """Advantage-weighted regression with a unit Gaussian."""
        log_prob = (-0.5 * (target - mean) ** 2 - 0.5 * math.log(2 * math.pi)).sum(-1)
        return -(torch.clamp(torch.exp(alpha * advantage), max=100.0) * log_prob).mean()

    def low_loss(self, name: str, batch: Batch) -> Tensor:
        """The low policy's loss."""
        s, g = batch["observations"], batch["low_goals"]
        advantage = self.advantage(name, s, batch["next_observations"], g)
        with torch.no_grad():
            z = self.represent(s, g)
        mean = self.low_actor(torch.cat([s, z], -1))
        return self.awr(advantage, mean, batch["actions"], self.config.low_alpha)

    def high_loss(self, name: str, batch: Batch) -> Tensor:
        """The high policy's loss."""
        s, g, w = batch["observations"], batch["high_goals"], batch["high_targets"]
        advantage = self.advantage(name, s, w, g)
        with torch.no_grad():
            z = self.represent(s, w)
        mean = self.high_actor(torch.cat([s, g], -1))
        return self.awr(advantage, mean, z, self.config.high_alpha)

    def update(self, batch: Batch, autocast: Callable[[], AbstractContextManager[object]] = nullcontext) -> Tensor:
        """One gradient step, the forward passes within `autocast()`; returns the loss."""
        with autocast():
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        rate = self.config.target_rate
        for p, target in zip(self.values.parameters(), self.targets.parameters(), strict=True):
            target.data.copy_(rate * p.data + (1 - rate) * target.data)
        self.optimizer.step()
        return loss.detach()


class OTAPort(Port):
    """OTA: a second value whose backup spans an option, for the high policy."""

    def value_names(self) -> tuple[str, ...]:
        return ("low", "high")

    def loss(self, batch: Batch) -> Tensor:
        low = self.value_loss("low", batch, "next_observations", "value")
        high = self.value_loss("high", batch, "option_targets", "option")
        return low + high + self.low_loss("low", batch) + self.high_loss("high", batch)


def port(agent: HIQL | OTA, observation: int, action: int, gelu: str = "none") -> Port:
    """The plain port of a system with `agent`'s weights."""
    cls = OTAPort if isinstance(agent, OTA) else Port
    plain = cls(agent.config, observation, action, gelu)
    _copy(plain.phi, agent.phi.mlp)
    _copy(plain.low_actor, agent.low_actor.mlp)
    _copy(plain.high_actor, agent.high_actor.mlp)
    if isinstance(agent, OTA):
        pairs = {"low": (agent.low_value, agent.target_low_value), "high": (agent.high_value, agent.target_high_value)}
    else:
        pairs = {"value": (agent.value, agent.target_value)}
    for name, (online, target) in pairs.items():
        _copy_heads(plain.values[name], online.heads)
        _copy_heads(plain.targets[name], target.heads)
    return plain


class PlainSampler:
    """Batches as the reference agents draw them: numpy, a search for trajectory ends, fancy indexing of every array."""

    def __init__(self, store: Store, goals: dict[str, GoalSpec], batch_size: int, seed: int):
        self.data, self.goals, self.batch_size = store.regular(), goals, batch_size
        self.ends = np.flatnonzero(self.data["terminals"])
        self.random = np.random.default_rng(seed)

    def next(self) -> Batch:
        """The next batch, with the keys of `OfflineSource`."""
        i = self.random.integers(len(self.data["observations"]), size=self.batch_size)
        batch = {k: self.data[k][i] for k in ("observations", "next_observations", "actions")}
        for name, spec in self.goals.items():
            goal, target = self._draw(spec, i)
            batch[f"{name}_goals"] = self.data["observations"][goal]
            batch[f"{name}_success"] = (goal == target).astype(np.float32)
            if spec.steps:
                batch[f"{name}_targets"] = self.data["observations"][target]
        return {k: torch.from_numpy(v) for k, v in batch.items()}

    def _draw(self, spec: GoalSpec, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        b, final = len(i), self.ends[np.searchsorted(self.ends, i)]
        if spec.law == "geometric":
            ahead = np.minimum(i + self.random.geometric(1 - spec.discount, size=b), final)
        else:
            u = self.random.random(b)
            ahead = np.round(np.minimum(i + 1, final) * u + final * (1 - u)).astype(np.int64)
        within = self.random.random(b) < spec.future / (1 - spec.current + 1e-6)
        goal = np.where(within, ahead, self.random.integers(len(self.data["observations"]), size=b))
        target = np.minimum(i + spec.steps, np.where(within, ahead, final)) if spec.steps else i
        return np.where(self.random.random(b) < spec.current, target, goal), target


def _linears(net: nn.Module) -> list[nn.Linear]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def _norms(net: nn.Module) -> list[nn.LayerNorm]:
    return [layer for layer in net.modules() if isinstance(layer, nn.LayerNorm)]


@torch.no_grad()
def _copy(net: nn.Sequential, source: MLP) -> None:
    for mine, theirs in zip([*_linears(net), *_norms(net)], [*_linears(source), *_norms(source)], strict=True):
        mine.load_state_dict(theirs.state_dict())


@torch.no_grad()
def _copy_heads(heads: nn.Module, source: EnsembleMLP) -> None:
    for m, net in enumerate(heads.children()):
        for i, linear in enumerate(_linears(net)):
            linear.weight.copy_(source.weights[i][m])
            linear.bias.copy_(source.biases[i][m])
        for i, norm in enumerate(_norms(net)):
            norm.weight.copy_(source.norm_weights[i][m])
            norm.bias.copy_(source.norm_biases[i][m])
