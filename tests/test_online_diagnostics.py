"""What a record shows of a hierarchy: lengths, reasons, use and entropy, by hand and against loops over steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_online import Act, Counting, Option
from torch import Tensor

from echelon.errors import UsageError
from echelon.hierarchy.diagnostics import (
    diagnose,
    ended,
    entropy_share,
    held,
    mean_length,
    missed,
    reached_rate,
    reason_counts,
    usage,
    value_errors,
)
from echelon.hierarchy.level import Decision
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Until
from echelon.hierarchy.world import from_gym
from echelon.rollout import End, Rollout
from echelon.systems.online.diagnostics import DecisionTally


class Seeking(Option):
    """Sets 0, 1, 2, 0, … as its goal; it counts as reached when three steps were made, else time is up after four."""

    def __init__(self) -> None:
        super().__init__(1)
        self.termination = Until(lambda seen, running: seen["observation"][:, 0] == 3) | Every(4)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        return Decision(super().decide(features, parent, due).action % 3)


def record(ticks: list[int]) -> list[Rollout]:
    runner = Runner([Seeking(), Act()], from_gym([Counting(), Counting(9)]))
    return [runner.collect(number) for number in ticks]


def test_reasons_and_lengths_by_hand() -> None:
    """Episodes of seven and nine steps: goals end at 3 (reached), 7 (time or the end) and 9 (the end)."""
    (rollout,) = record([9])
    reasons = reason_counts(rollout, "option")
    # the first slot: reached at 3, over at 7, and two steps into its next episode; the second: 3, 7 by time, 9
    assert reasons.tolist() == [1, 2, 1, 0, 0, 2, 0]
    assert mean_length(18, reasons) == pytest.approx(18 / 5)
    assert reached_rate(reasons) == pytest.approx(2 / 5)
    assert int(ended(rollout, "option").sum()) == 2
    stops = rollout.observation["observation"][ended(rollout, "option"), 0]
    assert stops.tolist() == [2, 2]


def test_columns_of_decisions_lie_where_they_hold() -> None:
    for rollout in record([2, 5, 4]):
        d = rollout.decisions["option"]
        expected = torch.full((rollout.size,), -1)
        for row in range(len(d)):
            for item in range(int(d.start[row]), int(d.stop[row])):
                expected[item] = d.action[row]
        assert torch.equal(held(rollout, "option", d.action), expected)
        assert usage(rollout, "option", 3).tolist() == [int((expected == choice).sum()) for choice in range(3)]
        wide = torch.stack([d.action, -d.action], -1)
        assert torch.equal(held(rollout, "option", wide), torch.stack([expected, -expected], -1))


@pytest.mark.parametrize("ticks", [[1] * 11, [2, 5, 4], [11]])
def test_a_tally_does_not_depend_on_how_records_are_cut(ticks: list[int]) -> None:
    whole, parts = DecisionTally("option", 3), DecisionTally("option", 3)
    whole.add(record([11])[0])
    for rollout in record(ticks):
        parts.add(rollout)
    # an open decision is counted as one in each record, and as no end in any
    found = parts.facts()
    assert found == whole.facts()
    assert found["option/length"] == pytest.approx(22 / 6)
    assert found["option/termination"] == pytest.approx(3 / 22)
    assert sum(found[f"option/end_{name}"] for name in ("option", "timeout", "terminated")) == pytest.approx(1)


def test_a_tally_begins_anew_after_its_facts_and_goes_into_checkpoints() -> None:
    first, second = record([6, 5])
    tally, other = DecisionTally("option", 3), DecisionTally("option", 3)
    tally.add(first)
    other.load_state_dict(tally.state_dict())
    for each in (tally, other):
        each.add(second)
    assert tally.facts() == other.facts()
    tally.add(second)
    alone = DecisionTally("option", 3)
    alone.add(second)
    assert tally.facts() == alone.facts()
    assert "option/entropy" not in DecisionTally("option").facts()


def test_entropy_as_a_share() -> None:
    assert entropy_share(torch.tensor([5, 5, 5, 5])) == pytest.approx(1)
    assert entropy_share(torch.tensor([7, 0])) == 0
    p = [0.5, 0.25, 0.25]
    expected = -sum(x * math.log(x) for x in p) / math.log(3)
    assert entropy_share(torch.tensor([2, 1, 1])) == pytest.approx(expected)
    assert entropy_share(torch.tensor([0, 0])) == 0
    with pytest.raises(UsageError, match="single choice"):
        entropy_share(torch.tensor([3]))
    assert mean_length(10, torch.tensor([2, 0, 0, 0, 0, 0, 0])) == 10 and int(End.OPEN) == 0


# ---- values


class Guess(Act):
    """Expects as much as the number of the step, plus a tenth of it for each decision so far."""

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        seen = features["observation"][:, 0]
        return Decision(super().decide(features, parent, due).action, values={"value": 1 + 0.1 * seen})


class Holds(Guess):
    """The same, at the top and for three steps."""

    name = "option"

    def __init__(self) -> None:
        self.termination = Every(3)


def test_errors_of_values_by_hand() -> None:
    """Rewards 1, 2, …, 7 and a terminal state; gamma .5; options in steps 0, 3 and 6 expect 1, 1.3, 1.6."""
    rollout = Runner([Holds(), Act()], from_gym([Counting()])).collect(7)
    came = [sum(0.5**t * (t + 1 + start) for t in range(7 - start)) for start in (0, 3, 6)]
    expected = [a - b for a, b in zip(came, (1, 1.3, 1.6), strict=True)]
    assert value_errors(rollout, "option", 0.5).tolist() == pytest.approx(expected)
    found = diagnose(rollout, 0.5, {"action": 2})
    assert found["option"]["value_error"] == pytest.approx(sum(map(abs, expected)) / 3)
    assert found["option"]["value_bias"] == pytest.approx(-sum(expected) / 3)
    assert found["action"] == {"entropy": 0, "coverage": 0.5}
    assert found["option"]["length"] == pytest.approx(7 / 3) and "entropy" not in found["option"]
    # cut after five steps, the option of step 3 stands for all that would come, and is not judged itself
    cut = Runner([Holds(), Act()], from_gym([Counting()])).collect(5)
    assert value_errors(cut, "option", 0.5).tolist() == pytest.approx([1 + 1 + 3 / 4 + 1.3 / 8 - 1])


@pytest.mark.parametrize("ticks", [1, 4, 9, 25])
def test_errors_of_values_against_a_loop(ticks: int) -> None:
    rollout = Runner([Holds(), Guess()], from_gym([Counting(), Counting(5), Counting(2)])).collect(ticks)
    for level in ("option", "action"):
        d, expected = rollout.decisions[level], {}
        for stream in range(len(rollout.streams)):
            rows = sorted((d.stream == stream).nonzero()[:, 0].tolist(), key=lambda row: int(d.start[row]))
            last, over = rows[-1], bool(rollout.streams.terminated[stream])
            stop = int(d.stop[last]) if over else int(d.start[last])
            for row in rows if over else rows[:-1]:
                start = int(d.start[row])
                came = sum(0.9 ** (i - start) * float(rollout.reward_sum()[i]) for i in range(start, stop))
                came += 0 if over else 0.9 ** (stop - start) * float(d.values["value"][last])
                expected[start] = came - float(d.values["value"][row])
        found = value_errors(rollout, level, 0.9).tolist()
        assert found == pytest.approx([expected[start] for start in sorted(expected)])


class Asks(Act):
    """Asks for a place half a step beyond where it will be in three steps, with a mark behind it."""

    name, termination = "goal", Every(3)

    def decide(self, features: Any, parent: Tensor | None, due: Tensor) -> Decision:
        place = features["observation"] + 3.5
        return Decision(torch.cat([place, torch.ones_like(place)], -1))


def test_how_far_goals_are_missed() -> None:
    """Steps 0-3 and 3-6 end half a step short of 3.5 and 6.5; the episode ends at 7, two and a half short of 9.5."""
    rollout = Runner([Asks(), Act()], from_gym([Counting()])).collect(8)
    assert missed(rollout, "goal", "observation").tolist() == pytest.approx([0.5, 0.5, 2.5])
    found = diagnose(rollout, 1.0, {}, {"goal": ("observation", 0.5)})["goal"]
    assert found["reached"] == pytest.approx(2 / 3) and found["missed"] == pytest.approx(3.5 / 3)
    assert found["end_timeout"] == pytest.approx(2 / 3)


def test_every_choice_that_was_made_counts_as_covered() -> None:
    (rollout,) = record([9])
    assert diagnose(rollout, 1.0, {"option": 4})["option"]["coverage"] == pytest.approx(3 / 4)
    assert "value_error" not in diagnose(rollout, 1.0, {})["option"]
