"""A tabular task for two levels, and its policy: what `tests/credit` sums exactly and `benchmarks.credit` samples.

At every turn of at most T the policy keeps its subgoal or switches (at the first turn it has none), names a subgoal
where it switched, and acts: action 0 stops, the others lead to state `move[s, a]`. Turns are paid by turn index, state
and action, so that a subgoal matters only through the actions it leads to. All is float64.

Legend: S states, O subgoals, A actions, N turns, n episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from echelon.credit.segments import boundaries
from echelon.spans import Spans, SpanTree


class Turns(NamedTuple):
    """N turns, packed. held: the subgoal on arrival, meaningless where an episode starts; there `switch` is true."""

    tree: SpanTree  # `episode` > `segment`
    state: Tensor
    held: Tensor
    switch: Tensor  # bool
    option: Tensor
    action: Tensor
    reward: Tensor

    @property
    def turn(self) -> Tensor:
        """int64 [N]: the index in its episode."""
        return self.tree["episode"].position


class Values(NamedTuple):
    """What is still to come, by turn index: [T, S, O] with a subgoal chosen, [T, S] before choosing one."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class TwoLevel:
    """The task and the three tables of logits: switch [S, O], that of SWITCH; high [S, O]; low [S, O, A].

    reward: [T, S, A].    move: int64 [S, A].    noise: the standard deviation of what is added to a sampled reward.
    """

    reward: Tensor
    move: Tensor
    switch: Tensor
    high: Tensor
    low: Tensor
    noise: float = 0.0

    @property
    def levels(self) -> dict[str, Tensor]:
        """The parameters of each level."""
        return {"switch": self.switch, "high": self.high, "low": self.low}

    @cached_property
    def values(self) -> Values:
        """Exact, by backward induction; differentiable in the logits."""
        act, choose, leave = self.low.softmax(-1), self.high.softmax(-1), self.switch.sigmoid()
        goes_on = torch.arange(self.move.shape[1])[:, None] > 0
        low, high = [torch.zeros_like(self.high)], [torch.zeros_like(self.high[:, 0])]
        for paid in self.reward.flip(0):
            arrival = leave * high[-1][:, None] + (1 - leave) * low[-1]
            after = torch.where(goes_on, arrival[self.move], 0)  # [S, A, O]
            low.append((act * (paid[:, :, None] + after).transpose(1, 2)).sum(-1))
            high.append((choose * low[-1]).sum(-1))
        return Values(torch.stack(low[:0:-1]), torch.stack(high[:0:-1]))

    @cached_property
    def gradient(self) -> dict[str, Tensor]:
        """Of the expected return from state 0, in each level's logits."""
        start = self.values.high[0, 0]
        return dict(zip(self.levels, torch.autograd.grad(start, list(self.levels.values())), strict=True))

    def log_probs(self, turns: Turns) -> dict[str, Tensor]:
        """[N] of each level, differentiable; 0 where it did not decide."""
        where = (turns.state, turns.held)
        switch = torch.where(turns.switch, F.logsigmoid(self.switch)[where], F.logsigmoid(-self.switch)[where])
        return {
            "switch": torch.where(turns.turn > 0, switch, 0),
            "high": torch.where(turns.switch, self.high.log_softmax(-1)[turns.state, turns.option], 0),
            "low": self.low.log_softmax(-1)[turns.state, turns.option, turns.action],
        }

    def scores(self, turns: Turns) -> dict[str, tuple[Tensor, Tensor]]:
        """∇ log π of each level by turn: (row of its logits as a matrix, int64 [N]; gradient in that row [N, ·])."""
        options, p = self.high.shape[1], self.switch.detach().sigmoid()[turns.state, turns.held]
        later = (turns.turn > 0).double()
        high = F.one_hot(turns.option, options) - self.high.detach().softmax(-1)[turns.state]
        low = self.low.detach().softmax(-1)[turns.state, turns.option]
        return {
            "switch": (turns.state * options + turns.held, (later * (turns.switch.double() - p))[:, None]),
            "high": (turns.state, turns.switch.double()[:, None] * high),
            "low": (turns.state * options + turns.option, F.one_hot(turns.action, low.shape[-1]) - low),
        }

    def sample(self, count: int, generator: torch.Generator) -> Turns:
        """Episodes of the policy, all from state 0."""

        def draw(probabilities: Tensor) -> Tensor:
            return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

        act, choose = self.low.detach().softmax(-1), self.high.detach().softmax(-1)
        leave = self.switch.detach().sigmoid()
        state, held = torch.zeros(2, count, dtype=torch.int64)
        alive, rows = torch.ones(count, dtype=torch.bool), []
        for t in range(len(self.reward)):
            switch = torch.rand(count, generator=generator, dtype=torch.float64) < leave[state, held]
            switch = switch | (t == 0)
            option = torch.where(switch, draw(choose[state]), held)
            action = draw(act[state, option])
            rows.append(torch.stack((state, held, switch.long(), option, action, alive.long()), -1))
            alive, state, held = alive & (action > 0), self.move[state, action], option
        columns = torch.stack(rows, 1).flatten(0, 1)  # episode after episode
        turns = pack(columns[columns[:, -1] > 0, :-1], torch.stack(rows, 1)[..., -1].sum(1), self.reward)
        if not self.noise:
            return turns
        noise = torch.randn(len(turns.reward), generator=generator, dtype=torch.float64)
        return turns._replace(reward=turns.reward + self.noise * noise)


def pack(columns: Tensor, lengths: Tensor, reward: Tensor) -> Turns:
    """Turns from int64 [N, 5] columns state, held, switch, option, action; lengths: [n]; reward: [T, S, A]."""
    state, held, switch, option, action = columns.unbind(-1)
    episode = Spans.from_lengths(lengths)
    tree = SpanTree({"episode": episode, "segment": (boundaries(switch > 0, episode), "episode")})
    return Turns(tree, state, held, switch > 0, option, action, reward[episode.position, state, action])
