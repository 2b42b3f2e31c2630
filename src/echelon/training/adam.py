"""Adam whose step is little more than its kernel: for small networks torch's own wrappers take as long as the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """torch's Adam over one group of parameters, with the fused kernel if `fused`, and the same state.

    `clear` and `move` are what `zero_grad` and `step` are, bit for bit, without what those do beside: hooks, records
    for profilers, the search for what to move.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float, fused: bool):
        super().__init__(list(params), lr=lr, betas=betas, eps=eps, fused=fused, foreach=None if fused else True)
        self._params: list[Tensor] = self.param_groups[0]["params"]
        self._moments: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None  # filled when all have moved

    def clear(self) -> None:
        """Forget all gradients."""
        for p in self._params:
            p.grad = None

    @torch.no_grad()
    def move(self, clip_norm: float | None = None) -> None:
        """One step; gradients that together are longer than `clip_norm` are scaled down to it before."""
        grads = [p.grad for p in self._params if p.grad is not None]
        if clip_norm is not None and grads:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
        group = self.param_groups[0]
        if self._moments is None or len(grads) < len(self._params) or not group["fused"]:
            self.step()
            self._moments = self._found() if len(self.state) == len(self._params) else None
            return
        averages, squares, steps = self._moments
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            self._params,
            grads,
            averages,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(dict(state_dict))
        self._params, self._moments = self.param_groups[0]["params"], None

    def _found(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        states = [self.state[p] for p in self._params]
        return ([s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [s["step"] for s in states])
