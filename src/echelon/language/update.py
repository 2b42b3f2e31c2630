"""One optimiser step of a language model: loss = Σ_k Σ_i W_k[i] · l_k[i] over a record's items.

Every weight column W_k is computed before the step, for all of it (`echelon.losses.aggregate.loss_weights`), and
nothing is divided here. A term l_k looks at one item at a time, so that the gradient does not depend on how the view is
cut into micro-batches, nor on how it is shared out over processes that sum their gradients.
Legend: N items of the record, m items of a micro-batch that a term sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echelon.errors import DataError, UsageError
from echelon.language._batches import Batch
from echelon.language.scorer import Columns, Scorer

if TYPE_CHECKING:
    from echelon.language.views import View
    from echelon.spans import Spans


@dataclass(frozen=True, eq=False)
class Term:
    """One loss: `loss` maps the columns of m items, all [m], to their losses [m]; `weight` is W [N].

    The columns: what `want` names, differentiable, as in `Scorer.score`; "old_logp", detached; "item", int64, the
    record's items; and whatever `policy_step` was given. Items of weight 0 are never shown.

    >>> Term(lambda c: ppo_clip(c["logp"] - c["old_logp"], c["advantage"]), loss_weights(sequences, "token-mean"))
    """

    loss: Callable[[Columns], Tensor]
    weight: Tensor
    want: tuple[str, ...] = ("logp",)


@dataclass(frozen=True)
class Step:
    """What an optimiser step did."""

    loss: float
    terms: dict[str, float]
    """Name → its share of the loss."""
    grad_norm: float
    """Before clipping; 0 if no item had a weight."""
    items: int
    """Scored: those that some term weighs."""
    tokens: int
    """Computed, without padding."""
    padded: int
    """Computed, with padding."""
    batches: int
    columns: Columns = field(repr=False)
    """The terms' columns, detached, [N] on the CPU, as they were before the step; NaN where not scored."""


def policy_step(
    scorer: Scorer,
    view: View,
    terms: Mapping[str, Term],
    optimiser: torch.optim.Optimizer,
    *,
    given: Mapping[str, Tensor] | None = None,
    temperature: float | Tensor = 1.0,
    budget: int = 512,
    max_norm: float | None = 1.0,
    calls: Spans | None = None,
    total: Callable[[list[Tensor]], None] | None = None,
) -> Step:
    """Score the view, add up the terms, and move the optimiser's parameters once; their gradients stay for inspection.

    Items without weight in any term are not scored, nor are tokens that only they depend on; W is what it was, so the
    gradient is too. If no item has a weight at all, nothing moves.

    view: covers every item that has a weight.
    given: columns [N] that the terms use, such as the advantage; constants. "old_logp" among them is the behaviour's
        log-probability, from an earlier `Scorer.score`; without it, it is the current one, detached: ratio 1, right
        for the first step on fresh samples. For a ratio of whole sequences (GSPO), give its logarithm as it stands
        before the step; its token form is that plus `logp - logp.detach()`.
    temperature: as in `Scorer.score`; a column is [N].
    budget: padded tokens of a micro-batch; the activations of one micro-batch are alive at a time.
    max_norm: of the gradient as a whole; a larger one is scaled down to it. None: it is taken as it is.
    calls: the items' calls, for the errors.
    total: adds up gradients over processes, in place: `over_processes`. Every process must take the step then, with its
        part of the record and the weights W of the whole.

    Raises:
        DataError: a weight, a loss or the gradient is not finite. No parameter has moved; the gradients are gone.
        UsageError: a column of another length, a weight outside the view, an unknown column.
    """
    work = _Work(scorer, view, terms, dict(given or {}), calls)
    params = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    optimiser.zero_grad(set_to_none=True)
    norm = 0.0
    try:
        for part in scorer.split(view, budget, work.weighs[view.item]):
            work.backward(part, temperature)
        if work.batches or total:
            norm = _gather(params, max_norm, total)
    except DataError:
        optimiser.zero_grad(set_to_none=True)
        raise
    if work.batches or total:
        optimiser.step()
    return work.step(norm)


def over_processes(gradients: list[Tensor]) -> None:
    """Replace each gradient by its sum over the processes of torch.distributed's default group."""
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)


def _gather(params: list[Tensor], max_norm: float | None, total: Callable[[list[Tensor]], None] | None) -> float:
    """Sum the gradients over processes, clip them; their norm before clipping."""
    if total is not None:
        for p in params:  # a process without items of some kind takes part with zeros
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        total([p.grad for p in params if p.grad is not None])
    gradients = [p.grad for p in params if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(norm):
        raise DataError(f"the gradient's norm is {norm.item()}, though every loss is finite; no weight was moved")
    if max_norm is not None and norm > max_norm:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm.item()


class _Work:
    """The micro-batches of one step, and what they have added up to."""

    def __init__(self, scorer: Scorer, view: View, terms: Mapping[str, Term], given: Columns, calls: Spans | None):
        self.scorer, self.terms, self.given, self.calls = scorer, terms, given, calls
        if not terms:
            raise UsageError("a step needs at least one term")
        self.size = len(next(iter(terms.values())).weight)
        for name, column in (
            *((f"the weight of '{name}'", term.weight) for name, term in terms.items()),
            *given.items(),
        ):
            if column.ndim == 0 or len(column) != self.size:
                raise UsageError(f"{name} has shape {tuple(column.shape)}; the step is over {self.size} items")
        for name, term in terms.items():
            if not torch.isfinite(term.weight).all():
                item = int((~torch.isfinite(term.weight)).nonzero()[0])
                raise DataError(f"the weight of term '{name}' at {self._name(item)} is {term.weight[item].item()}")
        self.weighs = torch.stack([term.weight != 0 for term in terms.values()]).any(0).cpu()  # bool [N]
        self._check_view(view)
        self.want = tuple(dict.fromkeys(name for term in terms.values() for name in term.want))
        self.sums: dict[str, Tensor | float] = dict.fromkeys(terms, 0.0)
        self.columns: Columns = {}
        self.items = self.tokens = self.padded = self.batches = 0

    def backward(self, part: Batch, temperature: float | Tensor) -> None:
        """Add the gradient of one micro-batch."""
        device, item = self.scorer.device, part.item
        scored = self.scorer.forward(part, self.want, temperature=temperature)
        columns = scored | {name: column[item.to(column.device)].to(device) for name, column in self.given.items()}
        columns["item"] = item.to(device)
        if "logp" in scored:
            columns.setdefault("old_logp", scored["logp"].detach())
        losses = []
        for name, term in self.terms.items():
            weight = term.weight[item.to(term.weight.device)].to(device)
            use = weight.nonzero()[:, 0]
            if len(use) == 0:
                continue
            shown = {key: column[use] for key, column in columns.items()}
            loss = term.loss(shown)
            if loss.shape != use.shape:
                raise UsageError(f"term '{name}' gave losses of shape {tuple(loss.shape)} for {len(use)} items")
            weighted = (weight[use].to(loss.dtype) * loss).sum()
            if not torch.isfinite(weighted):
                self._complain(name, loss, shown)
            self.sums[name] = self.sums[name] + weighted.detach()
            losses.append(weighted)
        torch.autograd.backward(losses)
        self._note(part, scored)

    def step(self, norm: float) -> Step:
        """The report."""
        sums = {name: float(value) for name, value in self.sums.items()}
        return Step(sum(sums.values()), sums, norm, self.items, self.tokens, self.padded, self.batches, self.columns)

    def _note(self, part: Batch, scored: Columns) -> None:
        for name, column in scored.items():
            if column.ndim == 1 and column.is_floating_point():
                whole = self.columns.setdefault(name, torch.full((self.size,), torch.nan, dtype=column.dtype))
                whole[part.item] = column.detach().cpu()
        self.items += len(part.item)
        self.tokens += part.tokens
        self.padded += part.ids.numel()
        self.batches += 1

    def _check_view(self, view: View) -> None:
        covered = torch.zeros(self.size, dtype=torch.bool)
        if len(view.item) and int(view.item.max()) >= self.size:
            raise UsageError(f"the view predicts item {int(view.item.max())}; the weights are of {self.size} items")
        covered[view.item] = True
        if bool((self.weighs & ~covered).any()):
            item = int((self.weighs & ~covered).nonzero()[0])
            raise UsageError(f"{self._name(item)} has a weight, but the view does not predict it; cut the weights too")

    def _complain(self, name: str, loss: Tensor, shown: Columns) -> None:
        bad = ~torch.isfinite(loss)
        k = int(bad.nonzero()[0]) if bool(bad.any()) else int(loss.abs().argmax())
        facts = ", ".join(
            f"{key} {column[k].item():g}" for key, column in shown.items() if column.ndim == 1 and key != "item"
        )
        raise DataError(
            f"the loss of term '{name}' at {self._name(int(shown['item'][k]))} is {loss[k].item()} ({facts}); "
            "no weight was moved"
        )

    def _name(self, item: int) -> str:
        return f"item {item}" if self.calls is None else f"item {item}, of call {int(self.calls.ids[item])},"
