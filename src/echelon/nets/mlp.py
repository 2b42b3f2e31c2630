"""Multi-layer perceptrons and ensembles of them.

A block is Dense -> activation -> LayerNorm: the norm comes after the activation and the last layer is bare, as in the
OGBench reference agents (LayerNorm epsilon 1e-6). The activation is GELU unless another is given, the exact one: their
default is its tanh form, which differs by less than 5e-4 and takes four times as long on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
Activation = Callable[[Tensor], Tensor]


def init_(weight: Tensor, scale: float = 1.0) -> None:
    """Fill `weight` [..., out, in] in place by variance scaling: fan_avg, uniform, variance `scale` / fan_avg."""
    fan_out, fan_in = weight.shape[-2:]
    bound = math.sqrt(6.0 * scale / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


def output_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A bare last layer in the weights' precision: in bfloat16, values near 60 would come in steps of 0.25."""
    if x.dtype == weight.dtype:
        return F.linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype), weight, bias)


class MLP(nn.Module):
    """Dense layers of the given `sizes` (input first).

    `layer_norm` normalises after each activation; `activate_final` treats the last layer as a hidden one;
    `final_scale` is the variance scale of the last layer's initial weights.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        layer_norm: bool = False,
        activate_final: bool = False,
        final_scale: float = 1.0,
        activation: Activation = F.gelu,
    ):
        super().__init__()
        self.activation = activation
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        hidden = len(layers) if activate_final else len(layers) - 1
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(n, NORM_EPS) for n in sizes[1 : hidden + 1] if layer_norm)
        self.hidden = hidden
        for i, layer in enumerate(layers):
            init_(layer.weight, final_scale if i == len(layers) - 1 else 1.0)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., sizes[0]] to [..., sizes[-1]]."""
        activation, norms = self.activation, list(self.norms)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            weight, bias = layer.weight, layer.bias
            if i == self.hidden:
                return output_layer(x, weight, bias)
            x = activation(F.linear(x, weight, bias))  # not layer(x): a module's call takes as long as a small product
            if norms:
                x = norms[i](x)
        return x


class EnsembleMLP(nn.Module):
    """`members` MLPs with the same sizes on the same input; output [members, ..., sizes[-1]].

    Parameters are stacked along the first axis. On a CPU the members run one after the other, which measures faster
    than batched products there; on a GPU they run as one batched product.
    """

    def __init__(
        self, members: int, sizes: Sequence[int], *, layer_norm: bool = False, activation: Activation = F.gelu
    ):
        super().__init__()
        self.activation = activation
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, b, a)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, b)) for _, b in pairs)
        widths = list(sizes[1:-1]) if layer_norm else []
        self.norm_weights = nn.ParameterList(nn.Parameter(torch.ones(members, n)) for n in widths)
        self.norm_biases = nn.ParameterList(nn.Parameter(torch.zeros(members, n)) for n in widths)
        for weight in self.weights:
            init_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., sizes[0]] to [members, ..., sizes[-1]]."""
        if x.is_cuda:
            return self._stacked(x)
        # unbind, not indexing: its backward writes each member's gradient into place in one pass
        stacks = (self.weights, self.biases, self.norm_weights, self.norm_biases)
        parts = [[p.unbind(0) for p in stack] for stack in stacks]
        members = range(len(self.weights[0]))
        return torch.stack([self._member(x, *([p[m] for p in part] for part in parts)) for m in members])

    def _member(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        norm_weights: list[Tensor],
        norm_biases: list[Tensor],
    ) -> Tensor:
        for i, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
            x = self.activation(F.linear(x, weight, bias))
            if norm_weights:
                x = F.layer_norm(x, x.shape[-1:], norm_weights[i], norm_biases[i], NORM_EPS)
        return output_layer(x, weights[-1], biases[-1])

    def _stacked(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1]).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            if i < last:
                x = self.activation(x)
                if self.norm_weights:
                    x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
                    x = torch.addcmul(self.norm_biases[i].unsqueeze(1), x, self.norm_weights[i].unsqueeze(1))
        return x.reshape(len(self.weights[0]), *lead, x.shape[-1])
