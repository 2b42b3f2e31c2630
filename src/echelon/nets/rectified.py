"""Small ReLU networks side by side, one node of the graph for all of them: their work is little more than its products.

Same numbers, bit for bit, as `EnsembleMLP` with ReLU has them from one node an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from echelon.nets.mlp import EnsembleMLP

_threshold_ = torch.ops.aten.threshold_backward.grad_input


class RectifiedEnsemble(EnsembleMLP):
    """An `EnsembleMLP` with ReLU and no normalisation; gradients of gradients only where inputs are not [B, F] on a CPU
    in the precision of the weights."""

    def __init__(self, members: int, sizes: Sequence[int]):
        super().__init__(members, sizes, activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., sizes[0]] to [members, ..., sizes[-1]]."""
        if not x.is_cpu or x.ndim != 2 or x.dtype != self.weights[0].dtype or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        parameters = (*self.weights, *self.biases)
        if torch.is_grad_enabled():
            return _Rectified.apply(x, *parameters)
        return _run(x, parameters)[0]


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        out, hidden = _run(x, parameters)
        ctx.save_for_backward(x, *parameters[: len(parameters) // 2], *hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        layers = (len(wanted) - 1) // 2
        x, *saved = ctx.saved_tensors
        weights, hidden = saved[:layers], saved[layers:]
        learned = any(wanted[1:])
        grads = [torch.empty_like(w) for w in weights] if learned else []
        sums = [w.new_empty(w.shape[:2]) for w in weights] if learned else []
        arrived: Tensor | None = None
        for member, g in enumerate(grad.unbind(0)):
            inputs = [x, *hidden[member * (layers - 1) : (member + 1) * (layers - 1)]]
            for layer in reversed(range(layers)):
                if learned:
                    torch.mm(g.t(), inputs[layer], out=grads[layer][member])
                    torch.sum(g, 0, out=sums[layer][member])
                if layer or wanted[0]:
                    w = weights[layer][member]
                    g = g * w if len(w) == 1 else g.mm(w)
                if layer:
                    _threshold_(g, inputs[layer], 0, grad_input=g)
            if wanted[0]:
                arrived = g if arrived is None else arrived + g
        return (arrived, *grads, *sums) if learned else (arrived, *[None] * (2 * layers))


def _run(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """[members, B, sizes[-1]], and what the hidden layers of each member gave, [B, ...] each, member after member."""
    layers = len(parameters) // 2
    weights, biases = ([p.unbind(0) for p in part] for part in (parameters[:layers], parameters[layers:]))
    members, last = len(weights[0]), layers - 1
    out, hidden = x.new_empty(members, len(x), len(weights[-1][0])), []
    for member in range(members):
        h = x
        for layer in range(last):
            h = torch.addmm(biases[layer][member], h, weights[layer][member].t()).relu_()
            hidden.append(h)
        torch.addmm(biases[last][member], h, weights[last][member].t(), out=out[member])
    return out, hidden
