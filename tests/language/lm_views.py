"""A small causal language model built here, and views of texts made token by token, without the record's code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from echelon.language.views import View
from echelon.spans import Spans

Text = tuple[Sequence[int], Sequence[int]]
"""Context, output."""


class Norm(nn.Module):
    """Root-mean-square norm in its input's precision; transformers' own computes in float32."""

    def __init__(self, other: Any):
        super().__init__()
        self.weight, self.eps = other.weight, other.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def tiny_lm(words: int = 50, dtype: torch.dtype = torch.float32, *, seed: int = 0, layers: int = 2, width: int = 32):
    """A Llama of tied embeddings, with random weights large enough for uneven distributions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child).__name__ == "LlamaRMSNorm":
                    setattr(module, name, Norm(child))
    return model


def rows_of(texts: Sequence[Text]) -> View:
    """One row a text; items are numbered through the outputs."""
    return _view([[*context, *output] for context, output in texts], texts)


def _view(rows: Sequence[Sequence[int]], texts: Sequence[Text]) -> View:
    ids, position, parent, here, start = [], [], [], [], 0
    for row, (context, _) in zip(rows, texts, strict=True):
        ids += row
        position += range(len(row))
        parent += [-1, *range(start, start + len(row) - 1)]
        here += range(start + len(context), start + len(row))
        start += len(row)
    return build(ids, position, Spans.from_lengths([len(row) for row in rows]), parent, here)


def tree_of(texts: Sequence[Text], sizes: Sequence[int] | None = None) -> View:
    """Texts sharing prefixes of contexts, never outputs, packed in trees of `sizes` texts each (default: one)."""
    ids: list[int] = []
    position: list[int] = []
    parent: list[int] = []
    here: list[int] = []
    lengths: list[int] = []
    done = 0
    for size in sizes or [len(texts)]:
        begin, known = len(ids), {}
        for context, output in texts[done : done + size]:
            at = -1
            for depth, token in enumerate([*context, *output]):
                key = (at, token)
                if depth < len(context) and key in known:
                    at = known[key]
                    continue
                ids.append(token)
                position.append(depth)
                parent.append(at)
                at = len(ids) - 1
                if depth < len(context):
                    known[key] = at
                else:
                    here.append(at)
        lengths.append(len(ids) - begin)
        done += size
    return build(ids, position, Spans.from_lengths(lengths), parent, here)


def build(ids: list[int], position: list[int], rows: Spans, parent: list[int], here: list[int]) -> View:
    """A view whose items are the tokens `here`, in this sequence."""
    ids_, parent_, here_ = (torch.tensor(column, dtype=torch.int64) for column in (ids, parent, here))
    at = parent_[here_]
    order = at.argsort(stable=True)
    return View(
        ids=ids_,
        position=torch.tensor(position),
        rows=rows,
        parent=parent_,
        item=torch.arange(len(here))[order],
        at=at[order],
        here=here_[order],
        target=ids_[here_][order],
    )


def texts_of(count: int, words: int, *, seed: int = 0, shared: int = 5, own: int = 4, longest: int = 6) -> list[Text]:
    """Texts with a common prefix, contexts and outputs of ragged lengths."""
    draw = torch.Generator().manual_seed(seed)

    def some(n: int) -> list[int]:
        return torch.randint(words, (n,), generator=draw).tolist()

    prefix = some(shared)
    lengths = torch.randint(1, longest + 1, (count, 2), generator=draw).tolist()
    return [(prefix + some(min(a, own)), some(b)) for a, b in lengths]
