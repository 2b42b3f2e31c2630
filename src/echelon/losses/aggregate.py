"""Aggregation as weights: loss = Σ_i W[i] · l[i], and nothing is divided later.

W [N] is computed once for everything that enters one optimiser step. Its items may then be cut into micro-batches in
any way, their losses summed and their gradients summed over ranks: the gradient is the same. Where gradients are
averaged over ranks instead (DistributedDataParallel), multiply the loss by their number.

Masks, selections, roles and the items' own weights are factors of W, so that several losses of one step, each with its
own W, add up. W is a constant: it carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from echelon.credit.credit import finite
from echelon.errors import unknown
from echelon.losses._checks import mask, require, same_items
from echelon.spans import Spans

Mode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum"]
Empty = Literal["excluded", "counted"]


class Counts(NamedTuple):
    """What one whole optimiser step holds, over all micro-batches and ranks."""

    tokens: int  # items that are not masked
    sequences: int  # those that count; completions without a single token, which no `Spans` can hold, may be added


def loss_weights(
    sequences: Spans,
    mode: Mode,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    empty: Empty = "excluded",
    length: float | None = None,
    total: Callable[[Tensor], Tensor] | Counts | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """W [N] for an aggregation mode; m = `where`, n_i = the unmasked tokens of sequence i, B sequences, M tokens.

        token-mean               m / M            every token counts alike; long sequences weigh more (DAPO)
        seq-mean-token-mean      m / (n_i B)      every sequence counts alike (GRPO, GSPO, SAPO)
        seq-mean-token-sum       m / B            the likelihood of whole sequences: unbiased policy gradient
        seq-mean-token-sum-norm  m / (length B)   the same with a constant scale (Dr. GRPO, arXiv 2503.20783)
        token-sum                m

    The modes differ even in the sign of the loss. `sequences` may be any unit that shall count alike: turns, groups.

    where: bool [N], the tokens of this loss; others get weight 0 and leave the counts.
    weight: [N], multiplies W and leaves the counts alone: `Credit.weight`, selections, importance and role weights.
    empty: whether sequences that are masked wholly count in B: "excluded" (verl) or "counted" (TRL).
    length: the constant of seq-mean-token-sum-norm. TRL: the completion limit. verl divides by it alone, without B.
    total: counts of the whole step if `sequences` are a part of it: a function that sums an integer tensor over ranks,
        such as `over_ranks`, or the `Counts`. Counts below 1 are taken as 1, as in TRL.
    dtype: of W; default: torch's default, or that of `weight` if it is wider.
    """
    _check_options(mode, empty, length)
    use = mask("where", where, sequences.ids)
    tokens = sequences.reduce(use, "sum")
    counted = tokens > 0 if empty == "excluded" else torch.ones_like(tokens, dtype=torch.bool)
    all_tokens, all_sequences = _totals(torch.stack([tokens.sum(), counted.sum()]), total)
    divisors: dict[str, Tensor | float] = {
        "token-sum": 1.0,
        "token-mean": all_tokens,
        "seq-mean-token-mean": all_sequences * sequences.expand(tokens.clamp(min=1)),
        "seq-mean-token-sum": all_sequences,
        "seq-mean-token-sum-norm": all_sequences * (1.0 if length is None else length),
    }
    if dtype is None:
        dtype = torch.promote_types(torch.get_default_dtype(), torch.bool if weight is None else weight.dtype)
    share = use.to(dtype) / divisors[mode]
    if weight is None:
        return share
    same_items("weight", weight, "sequences.ids", sequences.ids)
    weight = torch.where(use, weight.detach(), 0)  # a masked item may hold NaN
    finite("sequence", sequences, weight=weight)
    return (share * weight).to(dtype)


def over_ranks(counts: Tensor) -> Tensor:
    """The sum of a tensor over the ranks of torch.distributed's default group; a `total` of `loss_weights`."""
    counts = counts.clone()
    torch.distributed.all_reduce(counts)
    return counts


def _totals(local: Tensor, total: Callable[[Tensor], Tensor] | Counts | None) -> tuple[Tensor, Tensor]:
    """Tokens and sequences of the whole step from the local ones, int64 [2]; each at least 1."""
    if isinstance(total, Counts):
        tokens, sequences = (torch.full((), count, dtype=torch.int64, device=local.device) for count in total)
    else:
        tokens, sequences = local if total is None else total(local)
    return tokens.clamp(min=1), sequences.clamp(min=1)


def _check_options(mode: str, empty: str, length: float | None) -> None:
    if mode not in get_args(Mode):
        raise unknown("aggregation mode", mode, get_args(Mode))
    if empty not in get_args(Empty):
        raise unknown("rule for empty sequences", empty, get_args(Empty))
    if mode == "seq-mean-token-sum-norm":
        require(
            length is not None and length > 0, "length", length, "a positive number in mode seq-mean-token-sum-norm"
        )
    else:
        require(length is None, "length", length, f"left out in mode {mode}, which does not divide by it")
