"""One scorer for everything that a language model says about given texts: old and reference log-probabilities, probes,
candidates, perplexity, values, and the differentiable columns of a training step.

It reads a `View`: rows, paths or forest, whichever is cheapest; the results are the same. Only positions that predict
an item go through the head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from echelon.errors import DataError, UsageError, unknown
from echelon.language._batches import Batch, batches
from echelon.language._head import HEAD_WANTS, score_tokens, wide

if TYPE_CHECKING:
    from echelon.language.views import View

Columns = dict[str, Tensor]


class Scorer:
    """Scores the predictions of views under one causal language model.

    model: a transformers causal language model, with adapters of peft or without; or a backbone without a head, for
        hidden states and values.
    heads: name → module that maps hidden states [m, H] to [m] or [m, 1], read where the prediction is made: values.
    autocast: torch.bfloat16 for products in bfloat16 over float32 weights.
    chunk: tokens that meet the whole vocabulary at once, above `plain_words` words.
    keep_bytes: log-probabilities of all words, of one micro-batch, that may be kept for the backward pass; beyond, they
        are computed once more.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        heads: Mapping[str, nn.Module] | None = None,
        autocast: torch.dtype | None = None,
        chunk: int = 512,
        plain_words: int = 16_384,
        keep_bytes: int = 2**27,
    ):
        self.model, self.heads, self.autocast = model, dict(heads or {}), autocast
        self.chunk, self.plain_words, self.keep_bytes = chunk, plain_words, keep_bytes
        if clash := sorted(set(self.heads) & set(HEAD_WANTS)):
            raise UsageError(f"a head cannot be called '{clash[0]}'")
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise UsageError("prompt-learning adapters add tokens that a view does not have; use LoRA")
        self.decoder: Callable[..., Any] = model.get_decoder()  # type: ignore[operator]
        self.head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
        self.words = 0 if self.head is None else self._check_head(self.head)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def score(
        self,
        view: View,
        want: Collection[str] = ("logp",),
        *,
        temperature: float | Tensor = 1.0,
        grad: bool = False,
        budget: int = 4096,
        size: int | None = None,
    ) -> Columns:
        """name → column [M], one row a prediction of the view, sorted by the record's items.

        want: "logp" of the item; "entropy" of its distribution, in nats; "argmax", the likeliest token; "hidden:<k>",
            [M, H], layer k's output where the prediction is made (0 the embeddings, -1 the last, normalised); the name
            of a head. Floating columns are float32, or float64 of a float64 model; hidden states are as they come.
        temperature: divides the logits; positive: a number, or a column over the record's items.
        grad: whether the columns are differentiable; then all micro-batches' activations are alive together. Without,
            the model is put into evaluation mode, so that dropout does not act.
        budget: padded tokens of a micro-batch.
        size: the number N of the record's items: columns are [N] then, NaN (-1 of integers) where the view has none.
        """
        parts = self.split(view, budget)
        if not parts:
            raise DataError("the view has no predictions")
        with contextlib.nullcontext() if grad else _evaluating(self.model):
            scored = [self.forward(part, want, temperature=temperature) for part in parts]
        items = torch.cat([part.item for part in parts])
        place = items if size is not None else items.argsort().argsort()
        return {
            name: _laid_out(
                torch.cat([columns[name] for columns in scored]), place, len(items) if size is None else size
            )
            for name in dict.fromkeys(want)
        }

    def split(self, view: View, budget: int, keep: Tensor | None = None) -> list[Batch]:
        """The predictions `keep`, bool [M], of the view in micro-batches of at most `budget` padded tokens."""
        return batches(view, budget, keep)

    def forward(self, batch: Batch, want: Collection[str] = ("logp",), *, temperature: float | Tensor = 1.0) -> Columns:
        """`score` of one micro-batch, differentiable: name → column [m], in the sequence of `batch.item`."""
        layers = self._check(want, temperature)
        device, at = self.device, batch.at.to(self.device)
        heat = temperature[batch.item].to(device) if isinstance(temperature, Tensor) else temperature
        with self._precision():
            out = self.decoder(
                input_ids=batch.ids.to(device),
                position_ids=batch.position.to(device),
                attention_mask=self._additive(batch.mask),
                use_cache=False,
                output_hidden_states=bool(layers),
                return_dict=True,
            )
            hidden = out.last_hidden_state.flatten(0, 1).index_select(0, at)
            columns: Columns = {name: out.hidden_states[k].flatten(0, 1)[at] for name, k in layers.items()}
            if wanted := set(want) & set(HEAD_WANTS):
                columns |= score_tokens(
                    self._output(),
                    hidden,
                    batch.target.to(device),
                    heat,
                    wanted,
                    words=self.words,
                    chunk=self.chunk,
                    plain_words=self.plain_words,
                    keep_bytes=self.keep_bytes,
                )
            columns |= {n: wide(self.heads[n](hidden)).reshape(len(at)) for n in set(want) & self.heads.keys()}
        return columns

    def _check(self, want: Collection[str], temperature: float | Tensor) -> dict[str, int]:
        """The hidden layers that are wanted, by name."""
        coldest = temperature.min() if isinstance(temperature, Tensor) and len(temperature) else temperature
        if not coldest > 0:
            raise UsageError(f"temperature must be positive, got {float(coldest)}; greedy texts are scored at 1")
        layers = {}
        for name in want:
            kind, _, layer = name.partition(":")
            if kind == "hidden" and layer.lstrip("-").isdigit():
                layers[name] = int(layer)
            elif name not in HEAD_WANTS and name not in self.heads:
                raise unknown("column", name, [*HEAD_WANTS, "hidden:<layer>", *self.heads])
        return layers

    def _output(self) -> nn.Module:
        if self.head is None:
            raise UsageError(f"{type(self.model).__name__} has no language-model head, so it gives no probabilities")
        return self.head

    def _additive(self, mask: Tensor | None) -> Tensor | None:
        """0 where a token may look, very negative elsewhere, [B, 1, T, T], in the precision of the queries."""
        if mask is None:
            return None
        dtype = self.autocast or next(self.model.parameters()).dtype
        barred = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        return torch.where(mask, torch.zeros((), dtype=dtype), barred)[:, None].to(self.device)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _check_head(self, head: nn.Module) -> int:
        """The number of words, after a look whether the model's logits are its head's, unscaled and uncapped."""
        ids = torch.arange(min(16, self.model.get_input_embeddings().num_embeddings), device=self.device)[None]  # type: ignore[operator]
        with _evaluating(self.model):
            mine = head(self.decoder(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state)
            theirs = self.model(input_ids=ids, use_cache=False, return_dict=True).logits
        if mine.shape != theirs.shape or not torch.allclose(mine.float(), theirs.float(), rtol=1e-6, atol=1e-6):
            raise UsageError(f"{type(self.model).__name__} changes its logits after the head, which is not supported")
        return mine.shape[-1]


def score(
    model: nn.Module,
    view: View,
    want: Collection[str] = ("logp",),
    *,
    temperature: float | Tensor = 1.0,
    grad: bool = False,
    budget: int = 4096,
    size: int | None = None,
) -> Columns:
    """`Scorer(model).score(view, want, ...)`."""
    return Scorer(model).score(view, want, temperature=temperature, grad=grad, budget=budget, size=size)


def _laid_out(column: Tensor, place: Tensor, size: int) -> Tensor:
    """Rows of a column at these places among `size`; NaN, or -1, elsewhere."""
    whole = column.new_full((size, *column.shape[1:]), torch.nan if column.is_floating_point() else -1)
    return whole.index_copy(0, place.to(column.device), column)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout; every module is put back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
