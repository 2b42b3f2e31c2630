"""A small transformer: pre-norm blocks over tokens that others have embedded, told by a mask who sees whom.

Masks are bool, true where the token of a row may see that of a column: `causal_mask` for one token after the other,
`block_causal_mask` for spans whose tokens come all at once. Without one everybody sees everybody. What comes in spans
can also go through span by span: `extend` keeps the keys and values of what it has seen.
Sources: arXiv 1706.03762; norms before, as in GPT-2 (weights normal with standard deviation .02, biases 0).

Legend: B rows, T tokens, K tokens of a context, D dimensions of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.nets.mlp import MLP, NORM_EPS

LANES = 16
"""Numbers that a CPU computes at once: torch's softmax over fewer, along the last dimension, takes them one by one."""
Context = Tensor | Sequence[Tensor] | None
"""Tokens [B, K, C] that all blocks attend to, or those of each block; None where they attend to no others."""


def causal_mask(tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """bool[T, T]: a token sees itself and those before it."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def block_causal_mask(span_ids: Tensor) -> Tensor:
    """bool[..., T, T] from the number of each token's span, int64[..., T]: a token sees its own span and lower ones."""
    return span_ids.unsqueeze(-2) <= span_ids.unsqueeze(-1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention in `heads` parts of D: query [..., T, D], key and value [..., K, D] -> [..., T, D].

    `mask`: bool[T, K], or one of each row. On a CPU by plain products: where those of float32 are in mode "medium",
    torch's fused kernel sets up a kernel for each of its many small ones, which takes 10 to 20 times as long.
    """
    if query.is_cuda:
        return attend_fused(query, key, value, heads, mask, dropout)
    q, k, v = (_by_head(y, heads) for y in (query, key, value))
    hidden = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    q = q * q.shape[-1] ** -0.5
    if k.shape[-2] < LANES:
        scores = k @ q.transpose(-2, -1)
        weights = (scores if hidden is None else scores + hidden.mT.unsqueeze(-3)).softmax(-2).transpose(-2, -1)
    else:
        scores = q @ k.transpose(-2, -1)
        weights = (scores if hidden is None else scores + hidden.unsqueeze(-3)).softmax(-1)
    return (F.dropout(weights, dropout, dropout > 0) @ v).transpose(-3, -2).flatten(-2)


def attend_fused(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """What `attend` computes, by torch's own kernel; on a CPU for a few tokens alone."""
    q, k, v = (_by_head(y, heads) for y in (query, key, value))
    mask = None if mask is None else mask.unsqueeze(-3)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return found.transpose(-3, -2).flatten(-2)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """x [..., T, D] as [..., heads, T, D / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


class CrossAttention(nn.Module):
    """Tokens of D dimensions attend to tokens of C."""

    def __init__(self, dim: int, heads: int, context_dim: int, dropout: float):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide tokens of {dim} dimensions")
        self.heads, self.dropout = heads, dropout
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim, 2 * dim)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, D] attends to what `key_value` made of its context, `seen` [B, K, 2 D]."""
        key, value = seen.chunk(2, -1)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(self.query(x), key, value, self.heads, mask, dropout))


class Block(nn.Module):
    """Residual attention among the tokens, to a context if there is one, and a feed-forward layer of `width` units."""

    def __init__(
        self, dim: int, heads: int, width: int, context_dim: int | None, dropout: float, attention_dropout: float
    ):
        super().__init__()
        self.before, self.attention = _norm(dim), CrossAttention(dim, heads, dim, attention_dropout)
        self.aside, self.across = None, None
        if context_dim is not None:
            self.aside, self.across = _norm(dim), CrossAttention(dim, heads, context_dim, attention_dropout)
        self.between, self.feed = _norm(dim), MLP([dim, width, dim])
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, context: Tensor | None, past: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, D], and the keys and values of all tokens so far [B, P + T, 2 D], `past` [B, P, 2 D] first."""
        y = self.before(x)
        seen = self.attention.key_value(y)
        seen = seen if past is None else torch.cat([past, seen], 1)
        x = x + self.drop(self.attention(y, seen, mask))
        if self.aside is not None and self.across is not None:
            if context is None:
                raise ValueError("these blocks attend to a context too; none was given")
            x = x + self.drop(self.across(self.aside(x), self.across.key_value(context), None))
        return x + self.drop(self.feed(self.between(x))), seen


class Transformer(nn.Module):
    """Blocks over tokens [B, T, D], whose places are told by learned vectors; a norm after the last.

    hidden: units of the feed-forward layer of each block, one number a block.
    places: how many different places there are; tokens may share one.
    context_dim: of the tokens that every block attends to beside; None: no such attention.
    dropout, attention_dropout: of what each block adds; of attention's weights.
    """

    def __init__(
        self, dim: int, heads: int, hidden: Sequence[int], places: int, *,
        context_dim: int | None = None, dropout: float = 0.0, attention_dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.place = nn.Embedding(places, dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, width, context_dim, dropout, attention_dropout) for width in hidden
        )
        self.norm = _norm(dim)
        self.apply(init_normal_)

    def forward(self, tokens: Tensor, place: Tensor, mask: Tensor | None = None, context: Context = None) -> Tensor:
        """Map tokens [B, T, D] at `place` int64[T] to as many; `mask` bool[T, T] or [B, T, T]."""
        return self.norm(self.layers(tokens, place, mask, context)[-1])

    def layers(
        self, tokens: Tensor, place: Tensor, mask: Tensor | None = None, context: Context = None
    ) -> list[Tensor]:
        """What enters the first block and what each block gives, [B, T, D] each, before the last norm."""
        found = [tokens + self.place(place)]
        for block, beside in zip(self.blocks, self._contexts(context), strict=True):
            found.append(block(found[-1], mask, beside, None)[0])
        return found

    def extend(
        self, tokens: Tensor, place: Tensor, past: Sequence[Tensor] | None = None, context: Context = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As `forward` with a block-causal mask, for the tokens of the next span alone.

        They see each other and all that is in `past`. Returns [B, T, D] and the past of the span after it.
        """
        x, now = tokens + self.place(place), []
        before = [None] * len(self.blocks) if past is None else past
        for block, kept, beside in zip(self.blocks, before, self._contexts(context), strict=True):
            x, seen = block(x, None, beside, kept)
            now.append(seen)
        return self.norm(x), now

    def _contexts(self, context: Context) -> Sequence[Tensor | None]:
        return [context] * len(self.blocks) if context is None or isinstance(context, Tensor) else context


def init_normal_(module: nn.Module, std: float = 0.02) -> None:
    """Weights of a linear layer or an embedding normal with standard deviation `std`, biases 0; by `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, NORM_EPS)
