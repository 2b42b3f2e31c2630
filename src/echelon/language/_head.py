"""From hidden states to log-probabilities: a plain head for small vocabularies, one in chunks of tokens for large ones.

The large head never holds the logits of all tokens in several copies: it works through chunks of tokens by the whole
vocabulary, in buffers that it uses again. The backward pass needs the log-probabilities of all words; they are kept
where they are small enough, otherwise computed once more. Values and gradients are exact either way.
Legend: n tokens, H hidden units, V words.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Columns = dict[str, Tensor]
HEAD_WANTS = ("logp", "entropy", "argmax")


def score_tokens(
    head: nn.Module,
    hidden: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    want: set[str],
    *,
    words: int,
    chunk: int,
    plain_words: int,
    keep_bytes: int,
) -> Columns:
    """What is wanted of the next-token distribution softmax(head(hidden) / temperature) at n tokens, each [n].

    hidden: [n, H].    target: int64 [n].    temperature: positive, a number or [n].
    want: of "logp" (of the target), "entropy" (nats), "argmax" (int64, the likeliest word).
    words: V.    plain_words: up to so many words all tokens are scored at once, by plain log-softmax.
    chunk: tokens of one piece otherwise.    keep_bytes: how much of it may be kept for the backward pass.
    """
    if words <= plain_words:
        return _plain(head, hidden, target, temperature, want)
    if type(head) is nn.Linear:
        return _chunked(head, hidden, target, temperature, want, chunk, keep_bytes)
    parts = []  # heads with adapters and the like: any module, piece by piece, computed again for the gradient
    for start in range(0, len(target), chunk):
        piece = slice(start, start + chunk)
        heat = temperature[piece] if isinstance(temperature, Tensor) else temperature
        parts.append(checkpoint(_plain, head, hidden[piece], target[piece], heat, want, use_reentrant=False))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _plain(head: nn.Module, hidden: Tensor, target: Tensor, temperature: float | Tensor, want: set[str]) -> Columns:
    logits = wide(head(hidden)) / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)
    columns: Columns = {}
    if "argmax" in want:
        columns["argmax"] = logits.detach().argmax(-1)
    if want & {"logp", "entropy"}:
        log_p = F.log_softmax(logits, -1)
        if "logp" in want:
            columns["logp"] = log_p.gather(-1, target[:, None])[:, 0]
        if "entropy" in want:
            columns["entropy"] = -(log_p.exp() * log_p).sum(-1)
    return columns


def _chunked(
    head: nn.Linear,
    hidden: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    want: set[str],
    chunk: int,
    keep_bytes: int,
) -> Columns:
    narrow = hidden.dtype  # of the products
    if torch.is_autocast_enabled(hidden.device.type):
        narrow = torch.get_autocast_dtype(hidden.device.type)
    if not torch.is_grad_enabled():
        keep_bytes = 0
    result = _Head.apply(hidden, head.weight, head.bias, target, temperature, narrow, want, chunk, keep_bytes)
    return {name: column for name, column in zip(HEAD_WANTS, result, strict=True) if name in want}


def wide(x: Tensor) -> Tensor:
    """x in float32, if it is narrower."""
    return x if x.dtype == torch.float64 else x.float()


class _Head(torch.autograd.Function):
    """(logp, entropy, argmax) [n] of softmax((hidden Wᵀ + b) / T); what is not wanted is empty.

    With p the distribution, y the target, H its entropy, g and h the incoming gradients of logp and entropy,
        d loss / d logits = (g (1[y] - p) - h p (log p + H)) / T.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        temperature: float | Tensor,
        narrow: torch.dtype,
        want: set[str],
        chunk: int,
        keep_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, words = len(target), weight.shape[0]
        dtype = torch.float64 if narrow == torch.float64 else torch.float32
        kept = any(ctx.needs_input_grad) and n * words * dtype.itemsize <= keep_bytes
        logp, entropy = hidden.new_empty(n, dtype=dtype), hidden.new_empty(n, dtype=dtype)
        best = target.new_empty(n)
        with _no_autocast(hidden):
            h, w = hidden.to(narrow), weight.to(narrow)
            pieces = _Pieces(h, w, bias, temperature, chunk, dtype)
            log_p = hidden.new_empty((n if kept else min(chunk, n), words), dtype=dtype)
            for start in range(0, n, chunk):
                piece = slice(start, min(start + chunk, n))
                rows = pieces.log_softmax(piece, log_p[piece] if kept else log_p[: piece.stop - start])
                logp[piece] = rows.gather(-1, target[piece, None])[:, 0]
                if "entropy" in want:
                    entropy[piece] = pieces.entropy(rows)
                if "argmax" in want:
                    best[piece] = rows.argmax(-1)
        ctx.options = (temperature, narrow, chunk)
        entropy_or_none, log_p_or_none = entropy if "entropy" in want else None, log_p if kept else None
        ctx.save_for_backward(hidden, weight, bias, target, entropy_or_none, log_p_or_none)
        ctx.mark_non_differentiable(best)
        ctx.set_materialize_grads(False)
        return logp, entropy, best

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor | None, g_entropy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, entropy, kept_log_p = ctx.saved_tensors
        temperature, narrow, chunk = ctx.options
        n, dtype = len(target), torch.float64 if narrow == torch.float64 else torch.float32
        g = hidden.new_zeros(n, dtype=dtype) if g is None else g
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if to_hidden else None
        d_weight = d_bias = None
        with _no_autocast(hidden):
            h, w = hidden.to(narrow), weight.to(narrow)
            pieces = _Pieces(h, w, bias, temperature, chunk, dtype)
            buffer = None if kept_log_p is not None else hidden.new_empty((min(chunk, n), len(weight)), dtype=dtype)
            for start in range(0, n, chunk):
                piece = slice(start, min(start + chunk, n))
                log_p = kept_log_p[piece] if buffer is None else pieces.log_softmax(piece, buffer[: piece.stop - start])
                d = pieces.d_logits(piece, log_p, target, g, g_entropy, entropy)
                if to_bias:
                    d_bias = d.sum(0) if d_bias is None else d_bias.add_(d.sum(0))
                d = d.to(narrow)
                if d_hidden is not None:
                    d_hidden[piece] = d @ w
                if to_weight:
                    d_weight = _plus_product(d_weight, d.t(), h[piece], dtype)
        d_weight = d_weight if d_weight is None else d_weight.to(weight.dtype)
        d_bias = d_bias if d_bias is None else d_bias.to(bias.dtype)
        return (d_hidden, d_weight, d_bias, *(None,) * 6)


class _Pieces:
    """Logits, log-probabilities and gradients of one chunk of tokens after the other, in buffers used again."""

    def __init__(
        self, h: Tensor, w: Tensor, bias: Tensor | None, temperature: float | Tensor, chunk: int, dtype: torch.dtype
    ):
        self.h, self.w, self.temperature, self.dtype = h, w, temperature, dtype
        self.bias = None if bias is None else bias.to(dtype)
        self.size = (min(chunk, len(h)), len(w))
        self.spare: Tensor | None = None  # in the output's precision
        self.product: Tensor | None = None  # in the product's precision, if that is another

    def log_softmax(self, piece: slice, out: Tensor) -> Tensor:
        """log p of the tokens of a piece, written into `out` [k, V]."""
        h = self.h[piece]
        if h.dtype == self.dtype:
            torch.mm(h, self.w.t(), out=out)
        else:
            if self.product is None:
                self.product = self.h.new_empty(self.size)
            out.copy_(torch.mm(h, self.w.t(), out=self.product[: len(h)]))
        if self.bias is not None:
            out += self.bias
        out /= self._heat(piece)
        return torch.log_softmax(out, -1, out=out)

    def entropy(self, log_p: Tensor) -> Tensor:
        """-Σ p log p, [k, V] → [k]."""
        p = torch.exp(log_p, out=self._spare(len(log_p)))
        return p.mul_(log_p).sum(-1).neg_()

    def d_logits(
        self, piece: slice, log_p: Tensor, target: Tensor, g: Tensor, g_entropy: Tensor | None, entropy: Tensor | None
    ) -> Tensor:
        """The gradient of the loss in the logits before the temperature, [k, V]; see `_Head`."""
        heat = self._heat(piece)
        g_piece = g[piece, None] / heat
        d = torch.exp(log_p, out=self._spare(len(log_p)))
        if g_entropy is None or entropy is None:
            d *= -g_piece
        else:
            h_piece = g_entropy[piece, None] / heat
            d *= log_p.mul(h_piece).add_(g_piece + h_piece * entropy[piece, None]).neg_()
        return d.scatter_add_(-1, target[piece, None], g_piece.to(d.dtype))

    def _heat(self, piece: slice) -> float | Tensor:
        return self.temperature[piece, None] if isinstance(self.temperature, Tensor) else self.temperature

    def _spare(self, rows: int) -> Tensor:
        if self.spare is None:
            self.spare = self.h.new_empty(self.size, dtype=self.dtype)
        return self.spare[:rows]


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """total + a @ b, in place; the sum over chunks is in `dtype`, each product in that of its factors."""
    if total is None:
        return (a @ b).to(dtype)
    return total.addmm_(a, b) if a.dtype == dtype else total.add_(a @ b)


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(x.device.type, enabled=False)
