"""What credit of two levels estimates, and what it needs for that: every episode of a small task is listed.

A policy with three tables: keep or switch the subgoal, name a new one, act (and stop). Each level's
E[Σ_t ∇ log π_level · A_level] is compared with its part of ∇J, in float64 to 1e-10; parameters that levels share get
the sum. γ = 1, all episodes terminate. GAE is unbiased for any critic at λ = 1. HAE is not, since segments end in
V_high. Unbiased is

    level                    at any λ, if exact are    at λ = 1, if exact is
    action                   V_low, V_high             V_high
    subgoal                  V_high                    nothing
    switch, by return                                  V_high  (its λ is always 1)
    switch, by difference    V_low, V_high

"Exact" as a function of turn index, state and, for V_low, subgoal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import off_course

from echelon.credit.options import arrival_probability, dac, ppoc
from echelon.credit.returns import gae
from echelon.credit.segments import hae, switch_difference

sys.path.insert(0, str(Path(__file__).parents[2]))  # pytest does not add the repository's root

from benchmarks.two_level import Turns, TwoLevel, pack

STATES, OPTIONS, ACTIONS, HORIZON = 3, 2, 3, 4


def episodes_from(state: int, held: int | None, left: int) -> Iterator[list[tuple[int, ...]]]:
    """Every way to go on: rows of state, subgoal held, switch, subgoal, action."""
    for option in range(OPTIONS):
        for switch in (True, False):
            if not switch and option != held:
                continue  # a kept subgoal is the held one, and at first there is none
            for action in range(ACTIONS):
                row = (state, held or 0, int(switch), option, action)
                if action == 0 or left == 1:
                    yield [row]
                else:
                    yield from ([row, *rest] for rest in episodes_from((state + action) % STATES, option, left - 1))


@dataclass(frozen=True)
class Listed:
    """The task with all its episodes, exact values, and the same values with errors."""

    task: TwoLevel
    turns: Turns

    @classmethod
    def build(cls, seed: int = 0) -> Listed:
        generator = torch.Generator().manual_seed(seed)

        def table(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        move = (torch.arange(STATES)[:, None] + torch.arange(ACTIONS)) % STATES
        switch, high, low = table(STATES, OPTIONS), table(STATES, OPTIONS), table(STATES, OPTIONS, ACTIONS)
        reward = table(HORIZON, STATES, ACTIONS)
        task = TwoLevel(reward, move, switch.requires_grad_(), high.requires_grad_(), low.requires_grad_())
        listed = list(episodes_from(0, None, HORIZON))
        columns = torch.tensor([row for episode in listed for row in episode])
        return cls(task, pack(columns, torch.tensor([len(episode) for episode in listed]), reward))

    @cached_property
    def chance(self) -> Tensor:
        """[n], differentiable."""
        return (
            self.turns.tree["episode"].reduce(torch.stack(list(self.task.log_probs(self.turns).values())).sum(0)).exp()
        )

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        """[N]: V_low of the subgoal in force, V_high, V_term on arrival, V_low of the subgoal held on arrival."""
        low, high = (values.detach() for values in self.task.values)
        turn, state, held = self.turns.turn, self.turns.state, self.turns.held
        leave = torch.where(turn > 0, self.task.switch.detach().sigmoid()[state, held], 1)
        term = leave * high[turn, state] + (1 - leave) * low[turn, state, held]
        return {
            "low": low[turn, state, self.turns.option],
            "high": high[turn, state],
            "term": term,
            "held": low[turn, state, held],
        }

    @cached_property
    def wrong(self) -> dict[str, Tensor]:
        """[N]: values with errors, functions of what the exact ones are functions of."""
        generator = torch.Generator().manual_seed(9)
        error = torch.randn(4, HORIZON, STATES, OPTIONS, generator=generator, dtype=torch.float64)
        turn, state, held, option = self.turns.turn, self.turns.state, self.turns.held, self.turns.option
        index = {"low": option, "high": 0, "term": torch.where(turn > 0, held, 0), "held": held}
        return {
            name: self.exact[name] + table[turn, state, index[name]] for name, table in zip(index, error, strict=True)
        }

    def estimate(self, level: str, factor: Tensor, score: Tensor | None = None) -> Tensor:
        """E[Σ_t ∇ score_t · factor_t] in the logits of a level; the score is its log-probability if not given."""
        score = self.task.log_probs(self.turns)[level] if score is None else score
        weighed = self.turns.tree["episode"].expand(self.chance.detach()) * factor * score
        return torch.autograd.grad(weighed.sum(), self.task.levels[level], retain_graph=True)[0]

    def hae(self, values: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        """The factor of each level's log-probability: advantage times weight."""
        credits = hae(
            self.turns.tree, reward=self.turns.reward, low_value=values["low"], high_value=values["high"],
            term_value=values["term"], **options,
        )  # fmt: skip
        return {level: credit.advantage * credit.weight for level, credit in credits.items()}

    def difference(self, values: dict[str, Tensor]) -> Tensor:
        """The factor of the switch decisions by the paper's form."""
        probability = self.task.switch.detach().sigmoid()[self.turns.state, self.turns.held]
        credit = switch_difference(
            self.turns.tree["episode"], switch=self.turns.switch, probability=probability,
            high_value=values["high"], low_value=values["held"],
        )  # fmt: skip
        return credit.advantage * credit.weight


LISTED = Listed.build(seed=5)  # where every bias is clear: those of random tasks can be small by chance
TASK = LISTED.task


def unbiased(level: str, factor: Tensor) -> None:
    torch.testing.assert_close(LISTED.estimate(level, factor), TASK.gradient[level], rtol=0, atol=1e-10)


def biased(level: str, factor: Tensor) -> None:
    assert off_course(LISTED.estimate(level, factor), TASK.gradient[level]) > 0.1


def test_task() -> None:
    """The list is complete and the backward induction right: chances sum to 1, both ways give the same gradients."""
    expected = (LISTED.chance * LISTED.turns.tree["episode"].reduce(LISTED.turns.reward)).sum()
    torch.testing.assert_close(LISTED.chance.sum(), torch.tensor(1.0, dtype=torch.float64))
    gradients = torch.autograd.grad(expected, list(TASK.levels.values()), retain_graph=True)
    torch.testing.assert_close(dict(zip(TASK.levels, gradients, strict=True)), TASK.gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_hae_with_exact_values_is_unbiased_at_any_lambda(lam: float) -> None:
    """Each level's estimate is its part of ∇J; so is that of the paper's form of the switch advantage."""
    factors = LISTED.hae(LISTED.exact, lam_turn=lam, lam_seg=lam)
    for level, factor in factors.items():
        unbiased(level, factor)
    unbiased("switch", LISTED.difference(LISTED.exact))


def test_hae_at_lambda_1_needs_an_exact_high_value_alone() -> None:
    """V_low and V_term are baselines then, V_high is where segments end: low and switch follow its errors.

    The difference form of the switch has no returns at all, so that an error of either value stays in it.
    """
    exact_high = {**LISTED.wrong, "high": LISTED.exact["high"]}
    factors = LISTED.hae(exact_high, lam_turn=1.0, lam_seg=0.5)
    for level, factor in factors.items():
        unbiased(level, factor)
    biased("switch", LISTED.difference(exact_high))
    biased("low", LISTED.hae(exact_high, lam_turn=0.5)["low"])


def test_hae_with_a_wrong_high_value() -> None:
    """λ = 1 is enough for subgoals, whose returns run to the end of the episode, and for nobody else.

    An untrained V_high = 0 leaves actions and switches with the rewards of their own segment.
    """
    wrong_high = {**LISTED.exact, "high": LISTED.wrong["high"]}
    factors = LISTED.hae(wrong_high, lam_turn=1.0, lam_seg=1.0)
    unbiased("high", factors["high"])
    biased("low", factors["low"])
    biased("switch", factors["switch"])
    biased("high", LISTED.hae(wrong_high, lam_seg=0.5)["high"])
    nothing = dict.fromkeys(LISTED.exact, torch.zeros_like(LISTED.turns.reward))
    biased("low", LISTED.hae(nothing, lam_turn=1.0)["low"])


@pytest.mark.parametrize(("values", "lam"), [("exact", 0.7), ("wrong", 1.0)])
def test_one_advantage_a_turn_for_all_levels(values: str, lam: float) -> None:
    """Flat GAE over turns, V_term its baseline, is an estimate for every level; at λ = 1 with any values."""
    value = LISTED.exact["term"] if values == "exact" else LISTED.wrong["term"]
    flat = gae(LISTED.turns.tree["episode"], reward=LISTED.turns.reward, value=value, lam=lam).advantage
    for level in TASK.levels:
        unbiased(level, flat)


def tables() -> tuple[Tensor, Tensor, Tensor]:
    """V_low of every subgoal, π_high, both [N, O], and β of the subgoal held on arrival, [N], differentiable."""
    low = TASK.values.low.detach()[LISTED.turns.turn, LISTED.turns.state]
    leave = TASK.switch.sigmoid()[LISTED.turns.state, LISTED.turns.held]
    return low, TASK.high.softmax(-1)[LISTED.turns.state], torch.where(LISTED.turns.turn > 0, leave, 1)


@pytest.mark.parametrize(("error", "lam"), [(0.0, 0.7), (1.0, 1.0)])
def test_dac_sees_the_same_gradient_as_two_processes(error: float, lam: float) -> None:
    """log p(o_t | o_{t-1}, s_t) carries switch and subgoal in one: exact values, or λ = 1 with any."""
    low, policy, leave = tables()
    low = low + error * torch.sin(torch.arange(OPTIONS) + LISTED.turns.state[:, None])
    arrival = arrival_probability(termination=leave, policy=policy, previous=LISTED.turns.held)
    credits = dac(
        LISTED.turns.tree["episode"], reward=LISTED.turns.reward, value=low, option=LISTED.turns.option,
        arrival=arrival.detach(), lam=lam, gamma=1.0,
    )  # fmt: skip
    unbiased("low", credits["action"].advantage)
    chosen = arrival.gather(-1, LISTED.turns.option[:, None])[:, 0].log()
    for level in ("switch", "high"):
        estimate = LISTED.estimate(level, credits["option"].advantage, chosen)
        torch.testing.assert_close(estimate, TASK.gradient[level], rtol=0, atol=1e-10)


def test_ppoc_with_exact_values() -> None:
    """Its termination credit is the factor of β itself; its option policy learns at the turns that chose.

    Released: option credit without its own baseline, whose mean given the subgoal is 0: no gradient is left in it.
    """
    low, policy, leave = tables()
    episode, turns = LISTED.turns.tree["episode"], LISTED.turns
    ended = episode.shift(turns.switch, 1, False)
    credit = partial(
        ppoc, episode, reward=turns.reward, value=low, option=turns.option, policy=policy.detach(), ended=ended,
        lam=0.7, gamma=1.0,
    )  # fmt: skip
    factors = {name: part.advantage * part.weight for name, part in credit().items()}
    unbiased("low", factors["action"])
    unbiased("high", factors["option"])
    estimate = LISTED.estimate("switch", factors["termination"], leave)
    torch.testing.assert_close(estimate, TASK.gradient["switch"], rtol=0, atol=1e-10)
    released = credit(baseline="option")["option"]
    none = LISTED.estimate("high", released.advantage * released.weight)
    torch.testing.assert_close(none, torch.zeros_like(none), rtol=0, atol=1e-10)
