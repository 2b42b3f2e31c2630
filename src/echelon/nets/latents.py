"""Sequences of latents: a recurrent Gaussian encoder, an autoregressive prior, and a decoder to be used again.

q(z_t | x_t, z_{t-1}) is an MLP with ELU of what is seen at t and the latent before; a draw is z_t = mean + std * noise.
The prior is N(rho z_{t-1}, (1 - rho^2) I), which leaves N(0, I) where it is. Source: neural probabilistic motor
primitives (arXiv 1811.11711) as MoCapAct has them (arXiv 2208.07363).

Legend: T steps, B sequences, I numbers that the encoder sees, D of a latent, O of an observation, A of an action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from echelon.nets.entities import EntityNorm
from echelon.nets.mlp import MLP, init_

LOG_STD = (-5.0, 2.0)
"""Bounds of the logarithm of the encoder's standard deviation."""


class Latents(NamedTuple):
    """Of each step [T, B, D]: mean and standard deviation of q, the draw, and the draw of the step before."""

    mean: Tensor
    std: Tensor
    z: Tensor
    before: Tensor


class LatentEncoder(nn.Module):
    """q(z_t | x_t, z_{t-1}), step by step or along whole sequences."""

    def __init__(self, inputs: int, hidden: Sequence[int], size: int):
        super().__init__()
        if not hidden:
            raise ValueError("an encoder needs one hidden layer or more")
        self.size = size
        self.look, self.recall = nn.Linear(inputs, hidden[0]), nn.Linear(size, hidden[0], bias=False)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([*hidden, 2 * size]))
        init_(self.look.weight)
        init_(self.recall.weight)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            init_(layer.weight, 0.1 if layer is self.layers[-1] else 1.0)
        for linear in (self.look, *self.layers):
            nn.init.zeros_(linear.bias)

    def step(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, D] for x [B, I] after the latents `before` [B, D]."""
        h = F.elu(self.look(x) + self.recall(before))
        for layer in self.layers[:-1]:
            h = F.elu(layer(h))
        mean, log_std = self.layers[-1](h).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD).exp()

    def forward(self, x: Tensor, start: Tensor, noise: Tensor) -> Latents:
        """Along sequences x [T, B, I] that begin after the latents `start` [B, D]; one draw a step, noise [T, B, D].

        Gradients pass through the draws, from each step to all before it.
        """
        rest = [p for layer in self.layers for p in (layer.weight, layer.bias)]
        with torch.autocast(x.device.type, enabled=False):
            seen = F.linear(x.to(start.dtype), self.look.weight, self.look.bias)
            mean, std, z = _Recurrence.apply(seen, start, noise, self.recall.weight, *rest)
        return Latents(mean, std, z, torch.cat([start[None], z[:-1]]))


class _Recurrence(torch.autograd.Function):
    """The steps of an encoder whose first product with what is seen is made: one pass forth, one back.

    What the weights get is summed in one product over all steps, and not step by step as by autograd.
    """

    @staticmethod
    def forward(ctx: Any, seen: Tensor, start: Tensor, noise: Tensor, recall: Tensor, *rest: Tensor) -> Any:
        weights, biases = rest[0::2], rest[1::2]
        steps, batch, size = noise.shape
        hidden = [seen.new_empty(steps, batch, w.shape[1]) for w in weights]
        out, z = seen.new_empty(steps, batch, 2 * size), seen.new_empty(steps + 1, batch, size)
        z[0] = start
        std = seen.new_empty(steps, batch, size)
        for t in range(steps):
            F.elu_(torch.addmm(seen[t], z[t], recall.T, out=hidden[0][t]))
            for k in range(len(weights) - 1):
                F.elu_(torch.addmm(biases[k], hidden[k][t], weights[k].T, out=hidden[k + 1][t]))
            torch.addmm(biases[-1], hidden[-1][t], weights[-1].T, out=out[t])
            torch.exp(out[t, :, size:].clamp(*LOG_STD), out=std[t])
            torch.addcmul(out[t, :, :size], std[t], noise[t], out=z[t + 1])
        ctx.save_for_backward(noise, recall, z, std, out, *weights, *hidden)
        return out[:, :, :size].clone(), std, z[1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor, d_std: Tensor, d_z: Tensor) -> Any:
        noise, recall, z, std, out, *saved = ctx.saved_tensors
        weights, hidden = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        steps, _, size = noise.shape
        raw = out[:, :, size:]
        scale = torch.where((raw > LOG_STD[0]) & (raw < LOG_STD[1]), std, 0)  # d std / d log std
        slopes = [h.clamp(max=0).add_(1) for h in hidden]  # of ELU, from its value
        d_out, d_hidden = torch.empty_like(out), [torch.empty_like(h) for h in hidden]
        d_before = torch.zeros_like(d_z[0])
        for t in range(steps - 1, -1, -1):
            d_now = d_z[t] + d_before
            torch.add(d_mean[t], d_now, out=d_out[t, :, :size])
            torch.mul(torch.addcmul(d_std[t], d_now, noise[t]), scale[t], out=d_out[t, :, size:])
            above = d_out[t]
            for k in range(len(weights) - 1, -1, -1):
                above = torch.mm(above, weights[k], out=d_hidden[k][t]).mul_(slopes[k][t])
            d_before = above @ recall
        rest = []
        for above, below in zip([*d_hidden[1:], d_out], hidden, strict=True):
            rest += [above.flatten(0, 1).T @ below.flatten(0, 1), above.sum((0, 1))]
        d_recall = d_hidden[0].flatten(0, 1).T @ z[:-1].flatten(0, 1)
        return d_hidden[0], d_before, None, d_recall, *rest


def prior_kl(mean: Tensor, std: Tensor, before: Tensor, rho: float) -> Tensor:
    """KL(N(mean, std^2) || N(rho z, (1 - rho^2) I)) [...] in nats, for mean, std and the latent before, z [..., D].

    With rho = 0 the prior is N(0, I): its deviation is that of the rho in use, also where the encoder is not recurrent.
    (The released code keeps the deviation of its argument there, .312 for .95.) Gradients pass to z.
    """
    spread = math.sqrt(1 - rho**2)
    gap = (mean - rho * before) / spread if rho else mean
    ratio = std / spread
    return (0.5 * (ratio.square() + gap.square() - 1) - ratio.log()).sum(-1)


class LatentDecoder(nn.Module):
    """The mean action for an observation and a latent; layers of ELU with layer norms."""

    def __init__(self, observation: int, latent: int, hidden: Sequence[int], action: int):
        super().__init__()
        self.norm = EntityNorm([(1, observation)])
        self.mlp = MLP([observation + latent, *hidden, action], layer_norm=True, activation=F.elu)

    def forward(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Map observations [..., O] and latents [..., D] to actions [..., A], which may leave the bounds."""
        return self.mlp(torch.cat([self.norm(observation), latent], -1))
