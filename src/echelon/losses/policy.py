"""Policy-extraction losses: pure functions of advantages, values and log-densities."""

from __future__ import annotations

import torch
from torch import Tensor


def awr_weight(advantage: Tensor, alpha: float, clip: float = 100.0) -> Tensor:
    """Exponentiated advantage min(exp(alpha * A), clip), without gradient. Source: AWR (arXiv 1910.00177)."""
    return torch.exp(alpha * advantage.detach()).clamp(max=clip)


def awr_loss(advantage: Tensor, log_prob: Tensor, alpha: float) -> Tensor:
    """Advantage-weighted regression, -mean(min(exp(alpha * A), 100) * log pi); `advantage`, `log_prob` [B]."""
    return -(awr_weight(advantage, alpha) * log_prob).mean()


def ddpgbc_loss(q: Tensor, log_prob: Tensor, alpha: float) -> Tensor:
    """DDPG with behaviour cloning: -mean(Q) / mean|Q| - alpha * mean(log pi); `q` = Q(s, pi(s)) and `log_prob` [B].

    Dividing by the mean absolute Q (without gradient) makes alpha independent of the reward's scale.
    Source: TD3+BC (arXiv 2106.06860) as used by OGBench (arXiv 2410.20092).
    """
    return -q.mean() / (q.abs().mean().detach() + 1e-6) - alpha * log_prob.mean()
