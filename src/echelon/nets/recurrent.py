"""LSTMs over episodes that lie one behind the other, and step by step with a memory that the caller keeps.

Each core maps what comes in, [N, I] over the items of `Spans` or [B, I] of one step, to features of width H. A memory
has one row a stream, all zeros where an episode begins. Legend: N items, n spans, B streams, r radius.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from echelon.spans import Spans


class DilatedLSTM(nn.Module):
    """An LSTM with r states that take turns: the t-th item of an episode moves state t mod r alone.

    The output is the sum of the latest hidden vectors of all r states; those that had no turn yet count as zero. With
    r = 1 it is an LSTM as usual. A memory [B, r · 2 · H] holds the states in the order of their next turns, of each its
    hidden vector and its cell. Source: arXiv 1703.01161, section 3.3.
    """

    def __init__(self, inputs: int, hidden: int, radius: int = 1):
        super().__init__()
        self.hidden, self.radius = hidden, radius
        self.memory_size = radius * 2 * hidden
        self.lstm = nn.LSTM(inputs, hidden)

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One item of each of B streams [B, I]: the output [B, H] and the memory after it."""
        states = memory.unflatten(-1, (self.radius, 2, self.hidden))
        _, (hidden, cell) = self._run(x[None], states[:, 0])
        moved = torch.stack([hidden[0], cell[0]], 1)[:, None]
        states = torch.cat([states[:, 1:], moved], 1)
        return states[:, :, 0].sum(1), states.flatten(1)

    def forward(self, x: Tensor, episodes: Spans, memory: Tensor) -> Tensor:
        """Outputs [N, H] along contiguous spans; memory: [n, r · 2 · H], with which each span begins."""
        states = memory.unflatten(-1, (self.radius, 2, self.hidden))
        turn = episodes.position % self.radius
        lines = Spans.by_key(episodes.ids, turn)  # what one state sees of one episode
        out = self._along(x, lines, states[episodes.ids[lines.starts], turn[lines.starts]])
        total = out
        for lag in range(1, min(self.radius, episodes.longest)):
            total = total + episodes.shift(out, -lag)
        # the states that had no turn in this record yet, as they came
        waiting = states[:, :, 0].flip(1).cumsum(1).flip(1)
        waiting = torch.cat([waiting, torch.zeros_like(waiting[:, :1])], 1)
        return total + waiting[episodes.ids, (episodes.position + 1).clamp(max=self.radius)]

    def _along(self, x: Tensor, lines: Spans, start: Tensor) -> Tensor:
        """Hidden vectors [N, H] of an LSTM along each of L lines, which begins with start [L, 2, H]."""
        longest_first = lines.lengths.argsort(descending=True, stable=True)
        place = torch.empty_like(longest_first)
        place[longest_first] = torch.arange(lines.n, device=place.device)
        order = (lines.position * lines.n + place[lines.ids]).argsort()  # all first items, all second ones, …
        packed = PackedSequence(x[order], torch.bincount(lines.position).cpu())
        out, _ = self._run(packed, start[longest_first])
        found = torch.empty_like(out.data)
        return found.index_copy(0, order, out.data)

    def _run(self, x: Any, states: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The LSTM from states [L, 2, H], in its weights' precision: a state is added to at every step."""
        weights: Any = self.lstm.weight_ih_l0
        hidden, cell = (part.contiguous()[None].to(weights.dtype) for part in states.unbind(1))
        with torch.autocast(weights.device.type, enabled=False):
            return self.lstm(x.to(weights.dtype), (hidden, cell))


class Memoryless(nn.Module):
    """In place of an LSTM: what comes in goes out, and nothing is remembered."""

    memory_size = 0

    def step(self, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """`x` and `memory`."""
        return x, memory

    def forward(self, x: Tensor, episodes: Spans, memory: Tensor) -> Tensor:
        """`x`."""
        return x
