"""The keys and values of the rows of one batch, preallocated, and the attention that reads them.

Every row ends in the same column, so that a decoding step writes one column; what precedes a shorter text is masked.
Keys lie with tokens last ([layers, rows, heads, size, columns]): with one query a row, attention is then two products
of matrices in the layout that they are stored in, several times faster on a CPU than the fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from echelon.errors import UsageError
from echelon.language._prefixes import Node

ATTENTION = "echelon_rows"
"""Name of `attend` among the attention functions of transformers."""
_SCORES = 1 << 21  # attention scores that are computed at once; beyond, the fused kernel is faster


class Rows:
    """Stands in for a cache of transformers: a layer hands over new keys and values, and gets all of its rows'."""

    is_compileable = False

    def __init__(self, layers: int, heads: int, size: int, dtype: torch.dtype, device: torch.device):
        self.layers, self.heads, self.size = layers, heads, size
        self._flat = torch.empty(0, dtype=dtype, device=device)
        self.column = 0
        """Where the next token is written."""
        self.rows = 0
        """Rows in use."""

    @property
    def bytes_per_token(self) -> int:
        """Memory of one column of one row."""
        return 2 * self.layers * self.heads * self.size * self._flat.element_size()

    @property
    def columns(self) -> int:
        """Columns that each row has; those beyond `column` are zero or masked."""
        return self.key.shape[-1]

    def reserve(self, rows: int, columns: int, most: int) -> None:
        """Make room for rows that may grow to `most` columns, reusing the memory of the previous batch."""
        self._half = self.layers * rows * self.heads * self.size * most
        if self._flat.numel() < 2 * self._half:
            self._flat = torch.empty(0, dtype=self._flat.dtype, device=self._flat.device)  # free it first
            self._flat = self._flat.new_empty(2 * self._half)
        self.rows, self.column = rows, 0
        self.key, self.value = self._views(rows, columns)

    def grow(self, columns: int) -> None:
        """Widen all rows to `columns`; they stay where they are in memory, only further apart."""
        key, value = self.key, self.value
        self.key, self.value = self._views(key.shape[1], columns)
        width = value.shape[3]
        for layer in reversed(range(self.layers)):  # backwards: what moves overwrites only what has moved
            old_key, old_value = key[layer, : self.rows].clone(), value[layer, : self.rows].clone()
            self.key[layer, : self.rows, :, :, :width] = old_key
            self.key[layer, : self.rows, :, :, width:] = 0
            self.value[layer, : self.rows, :, :width] = old_value
            self.value[layer, : self.rows, :, width:] = 0

    def _views(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        count = self.layers * rows * self.heads * self.size * columns
        key = self._flat[:count].view(self.layers, rows, self.heads, self.size, columns)
        value = self._flat[self._half : self._half + count].view(self.layers, rows, self.heads, columns, self.size)
        return key, value

    def put(self, row: int, end: Node, length: int, column: int) -> None:
        """Copy the first `length` tokens of the text that ends at or below `end` to the columns before `column`.

        All other columns are emptied: masked or not, they must not hold infinities.
        """
        first = column - length
        for empty in (slice(0, first), slice(column, None)):
            self.key[:, row, :, :, empty] = 0
            self.value[:, row, :, empty] = 0
        for node in end.path():
            stop = min(node.stop, length)
            if node.start < stop:
                assert node.key is not None and node.value is not None
                taken = stop - node.start
                place = slice(first + node.start, first + stop)
                self.key[:, row, :, :, place] = node.key[..., :taken]
                self.value[:, row, :, place] = node.value[..., :taken, :]

    def take(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copies of a row's keys [layers, heads, size, tokens] and values [layers, heads, tokens, size]."""
        return self.key[:, row, :, :, start:stop].clone(), self.value[:, row, :, start:stop].clone()

    def drop(self, row: int) -> None:
        """Put the last row in the place of `row`."""
        self.rows -= 1
        if row < self.rows:
            self.key[:, row, :, :, : self.column] = self.key[:, self.rows, :, :, : self.column]
            self.value[:, row, :, : self.column] = self.value[:, self.rows, :, : self.column]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by layer `layer_idx` with the new tokens' keys and values, [rows, heads, tokens, size] each.

        Returns those of all columns, also the empty ones: only whole rows can be multiplied without copying them.
        """
        keys, values = self.key[layer_idx, : self.rows], self.value[layer_idx, : self.rows]
        stop = self.column + key.shape[2]
        keys[..., self.column : stop] = key.transpose(2, 3)
        values[:, :, self.column : stop] = value
        return keys.transpose(2, 3), values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the new tokens."""
        return self.column


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of query [B, heads, N, size] over key, value [B, key heads, T, size]: ([B, N, heads, size], None).

    attention_mask [B or 1, 1, N, T] is added to the scores; None: everything is seen. UsageError for what changes
    attention otherwise: soft caps, sinks, position biases, windows shorter than the text.
    """
    window = options.get("sliding_window")
    changed = [name for name in ("softcap", "s_aux", "position_bias", "sinks") if options.get(name) is not None]
    if changed or (window is not None and window < key.shape[2]):
        raise UsageError(f"this model's attention has {changed[0] if changed else 'a window'}, which is not supported")
    rows, heads, count, size = query.shape
    length, groups = key.shape[2], heads // key.shape[1]
    scaling = size**-0.5 if scaling is None else scaling
    if count == 1 or rows * heads * count * length <= _SCORES:
        packed = (query * scaling).reshape(rows, heads // groups, groups * count, size)
        scores = packed @ key.transpose(2, 3)
        if attention_mask is not None:
            scores = (scores.view(rows, -1, groups, count, length) + attention_mask[:, :, None]).view_as(scores)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
        mixed = (weights @ value).view(rows, heads, count, value.shape[-1])
    else:
        key = key.contiguous()
        grouped = groups > 1 and query.device.type == "cpu"
        if groups > 1 and not grouped:  # other devices have no fast kernel for groups with a mask
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mixed = scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=grouped)
    return mixed.transpose(1, 2).contiguous(), None


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """Within the context, `model` is in evaluation mode, records no gradients, and attends by `attend`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, training = base.config._attn_implementation, [module for module in model.modules() if module.training]
    base.set_attn_implementation(ATTENTION)
    if base.config._attn_implementation != ATTENTION:
        raise UsageError(f"{type(base).__name__} does not let its attention be replaced, which sampling needs")
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        base.set_attn_implementation(before)
        for module in training:
            module.training = True
