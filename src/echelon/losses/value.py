"""Value losses: pure functions of values and targets."""

from __future__ import annotations

from torch import Tensor


def expectile_loss(advantage: Tensor, error: Tensor, expectile: float) -> Tensor:
    """Asymmetric squared error, elementwise: w * error^2 with w = expectile where advantage >= 0, else 1 - expectile.

    `advantage` decides the side and carries no gradient; it broadcasts against `error`. Source: IQL (arXiv 2110.06169).
    """
    weight = (advantage.detach() >= 0).to(error.dtype) * (2 * expectile - 1) + (1 - expectile)
    return weight * error.square()


def ivl_loss(
    value: Tensor,
    target: Tensor,
    target_next: Tensor,
    reward: Tensor,
    mask: Tensor,
    discount: float,
    expectile: float,
) -> Tensor:
    """Action-free expectile loss of a twin value, summed over heads and averaged over the batch.

    Shapes: `value`, `target`, `target_next` [2, B] = online V(s,g), target V(s,g), target V(s',g); `reward`,
    `mask` [B], mask 0 where s' is terminal. The side of the expectile comes from the minimum over the target heads,
    the regression target is each head's own: q_i = r + discount * m * t_i(s').
    Source: HIQL (arXiv 2307.11949); GCIVL of OGBench (arXiv 2410.20092).
    """
    q = reward + discount * mask * target_next
    pessimistic = reward + discount * mask * target_next.amin(0)
    advantage = pessimistic - target.mean(0)
    return expectile_loss(advantage, q.detach() - value, expectile).sum(0).mean()
