"""Networks on sets of entities: transformers in which an observation is a set of tokens, one for each entity.

An observation [..., O] holds its entities one after another, kind by kind: `kinds` = (count, size) of each. Entities
of one kind share all weights. What tells them apart, if anything, is a learned tag for each place; without tags
every network here is equivariant (or, where one vector comes out, invariant) to permutations within a kind, with tags
it is so when the tags are permuted too.
Attention may also attend to nothing (a learned key and value), so that a set of one entity is a set like others.
Source: entity interaction transformer (arXiv 2404.01220) as HECRL uses it (arXiv 2602.02722).

Legend: M entities of all kinds, E dimensions of a token, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from echelon.nets.mlp import MLP, NORM_EPS
from echelon.nets.transformer import attend_fused

Kinds = Sequence[tuple[int, int]]


class EntityNorm(nn.Module):
    """(x - mean) / std, clipped, with running moments that all entities of a kind share."""

    mean: Tensor
    variance: Tensor
    count: Tensor
    slot: Tensor

    def __init__(self, kinds: Kinds, clip: float = 5.0, least_std: float = 1e-2):
        super().__init__()
        self.clip, self.least_std = clip, least_std
        ends = [sum(size for _, size in kinds[: k + 1]) for k in range(len(kinds))]
        slots = [torch.arange(end - size, end).repeat(count) for (count, size), end in zip(kinds, ends, strict=True)]
        self.register_buffer("slot", torch.cat(slots), persistent=False)
        self.register_buffer("mean", torch.zeros(ends[-1], dtype=torch.float64))
        self.register_buffer("variance", torch.ones(ends[-1], dtype=torch.float64))
        self.register_buffer("count", torch.zeros(ends[-1], dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add the observations x [B, O] to the moments."""
        rows = self._checked(x).double()
        spread = lambda y: torch.zeros_like(self.mean).index_add(0, self.slot, y)  # noqa: E731
        number = spread(torch.full_like(rows[0], len(rows)))
        mean = spread(rows.sum(0)) / number
        squares = spread((rows - mean[self.slot]).square().sum(0))
        total, gap = self.count + number, mean - self.mean
        squares = squares + self.variance * self.count + gap.square() * self.count * number / total
        self.mean.add_(gap * number / total)
        self.variance.copy_(squares / total)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., O]."""
        mean, std = self._moments(x)
        return ((self._checked(x) - mean) / std).clamp(-self.clip, self.clip)

    def inverse(self, x: Tensor) -> Tensor:
        """The observation [..., O] that `forward` maps to x, where it does not clip."""
        mean, std = self._moments(x)
        return x * std + mean

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        std = self.variance.sqrt().clamp(min=self.least_std)
        return self.mean[self.slot].to(x.dtype), std[self.slot].to(x.dtype)

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.slot):
            raise ValueError(f"sizes differ: observations have {x.shape[-1]} numbers, the entities {len(self.slot)}")
        return x


class EntityEmbedding(nn.Module):
    """An observation as tokens: a linear map for each kind, plus a tag for each entity if `tagged`."""

    def __init__(self, kinds: Kinds, dim: int, tagged: bool):
        super().__init__()
        self.kinds = tuple(kinds)
        self.maps = nn.ModuleList(nn.Linear(size, dim) for _, size in kinds)
        self.tags = nn.Parameter(torch.randn(sum(count for count, _ in kinds), dim)) if tagged else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., O] to [..., M, E]."""
        blocks = x.split([count * size for count, size in self.kinds], -1)
        parts = zip(self.maps, blocks, self.kinds, strict=True)
        tokens = torch.cat([layer(block.unflatten(-1, kind)) for layer, block, kind in parts], -2)
        return tokens if self.tags is None else tokens + self.tags


class EntityDecoder(nn.Module):
    """Tokens as an observation: an MLP for each kind."""

    def __init__(self, kinds: Kinds, dim: int, width: int):
        super().__init__()
        self.counts = [count for count, _ in kinds]
        self.maps = nn.ModuleList(MLP([dim, width, size]) for _, size in kinds)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., M, E] to [..., O]."""
        blocks = zip(self.maps, tokens.split(self.counts, -2), strict=True)
        return torch.cat([layer(block).flatten(-2) for layer, block in blocks], -1)


class Attention(nn.Module):
    """Multi-head attention of tokens to other tokens, or to nothing."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.nothing = nn.Parameter(torch.zeros(1, 2 * dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Tokens x [..., M, E] attend to `context` [..., K, E]; returns [..., M, E]."""
        nothing = self.nothing.expand(*context.shape[:-2], -1, -1)
        key, value = torch.cat([self.key_value(context), nothing], -2).chunk(2, -1)
        return self.out(attend_fused(self.query(x), key, value, self.heads))


class AdaptiveNorm(nn.Module):
    """Layer norm; with a condition of that size, its scale and shift are linear functions of the condition."""

    def __init__(self, dim: int, condition: int | None = None):
        super().__init__()
        self.norm = nn.LayerNorm(dim, NORM_EPS, elementwise_affine=condition is None)
        self.modulate = None if condition is None else nn.Linear(condition, 2 * dim)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [..., M, E], condition [..., C]."""
        x = self.norm(x)
        if self.modulate is None:
            return x
        scale, shift = self.modulate(condition).unsqueeze(-2).chunk(2, -1)
        return x * (1 + scale) + shift


class AttentionBlock(nn.Module):
    """Residual attention, then a residual feed-forward layer of `width`, each behind an (adaptive) layer norm."""

    def __init__(self, dim: int, heads: int, width: int, condition: int | None = None):
        super().__init__()
        self.before, self.attention = AdaptiveNorm(dim, condition), Attention(dim, heads)
        self.between, self.feed = AdaptiveNorm(dim, condition), MLP([dim, width, dim])

    def forward(self, x: Tensor, context: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Tokens x [..., M, E] attend to `context` [..., K, E], or to each other; `condition` [..., C]."""
        y = self.before(x, condition)
        x = x + self.attention(y, y if context is None else context)
        return x + self.feed(self.between(x, condition))


class EntityFunction(nn.Module):
    """A vector from two entity sets s and g, and optionally from an action.

    Entities of s attend to each other, to those of g, and to each other again; one learned token gathers them, and an
    MLP of `hidden` layers maps it to `out` numbers. The action enters by adaptive layer norms.
    """

    def __init__(
        self, kinds: Kinds, dim: int, heads: int, width: int, hidden: Sequence[int], out: int, *,
        tagged: bool, action_dim: int | None = None, final_scale: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.embed = EntityEmbedding(kinds, dim, tagged)
        self.act = None if action_dim is None else MLP([action_dim, dim], activate_final=True)
        condition = None if action_dim is None else dim
        self.near, self.far, self.again, self.gather = (AttentionBlock(dim, heads, width, condition) for _ in range(4))
        self.token = nn.Parameter(torch.randn(1, dim))
        self.norm = AdaptiveNorm(dim)
        self.head = MLP([dim, *hidden, out], layer_norm=True, final_scale=final_scale)

    def forward(self, observation: Tensor, goal: Tensor, action: Tensor | None = None) -> Tensor:
        """Map s and g [..., O] (and an action [..., A]) to [..., out]."""
        condition = None if self.act is None or action is None else self.act(action)
        x, aim = self.embed(observation), self.embed(goal)
        x = self.near(x, condition=condition)
        x = self.far(x, aim, condition)
        x = self.again(x, condition=condition)
        token = self.token.expand(*x.shape[:-2], -1, -1)
        return self.head(self.norm(self.gather(token, x, condition)).squeeze(-2))


class FrameTransformer(nn.Module):
    """Maps frames of entity sets to as many: every entity of every frame attends to all of them.

    A frame's entities share one learned vector; `hidden` has the width of each layer's feed-forward part. A condition
    of `condition` = E numbers is added to all tokens and enters by adaptive layer norms.
    """

    def __init__(
        self, kinds: Kinds, frames: int, dim: int, heads: int, hidden: Sequence[int], *,
        tagged: bool, condition: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.embed = EntityEmbedding(kinds, dim, tagged)
        self.frame = nn.Parameter(torch.randn(frames, 1, dim))
        self.blocks = nn.ModuleList(AttentionBlock(dim, heads, width, condition) for width in hidden)
        self.norm = AdaptiveNorm(dim, condition)
        self.decode = EntityDecoder(kinds, dim, hidden[-1])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map frames [..., F, O], given a condition [..., E], to [..., F, O]."""
        tokens = self.embed(x) + self.frame
        if condition is not None:
            tokens = tokens + condition[..., None, None, :]
        shape, tokens = tokens.shape[-3:-1], tokens.flatten(-3, -2)
        for block in self.blocks:
            tokens = block(tokens, condition=condition)
        return self.decode(self.norm(tokens, condition).unflatten(-2, shape))
