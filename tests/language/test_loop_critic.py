"""The critic in the loop: its loss, where it reads, what it learns from, and runs that are stopped and go on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chores import WORDS, Said, chores, open_run, plan, record_of, small
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from echelon.errors import CheckpointError, UsageError
from echelon.language.models import Critic, tiny
from echelon.language.record import Record
from echelon.language.views import forest, paths, rows
from echelon.systems.agents.grpo import GRPO
from echelon.systems.agents.hiper import HiPER
from echelon.systems.agents.ppo import PPO
from echelon.training import checkpoint, run
from echelon.training.language.agent import Turns
from echelon.training.language.critic import ValueLearner, explained_variance, value_loss
from echelon.training.language.loop import LanguageRun
from echelon.training.metrics import read_jsonl

TIMES = {"time_s", "collect_s", "learn_s", "seconds", "load"}
numbers = st.floats(-5, 5, width=32)


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny world, and an empty folder for warm starts."""
    folder = tmp_path_factory.mktemp("models")
    with chores(folder):
        yield folder


# ---- the loss


def test_value_loss_exactly() -> None:
    value = torch.tensor([1.0, 1.0, 1.0, -2.0], requires_grad=True)
    loss = value_loss(value, torch.tensor([0.8, 0.0, 0.0, 0.0]), torch.tensor([3.0, 3.0, -1.0, 0.0]), 0.5)
    # inside the clip; beyond it towards the target: flat; beyond it away from the target: not flat, twice
    assert loss.tolist() == [2.0, 3.125, 2.0, 2.0]
    loss.sum().backward()
    assert value.grad is not None and value.grad.tolist() == [-2.0, 0.0, 2.0, -2.0]


@given(numbers, numbers, numbers, st.floats(0.0625, 4, width=32))
def test_value_loss_is_never_below_the_squared_error(value: float, old: float, target: float, clip: float) -> None:
    v, o, g = (torch.tensor(x) for x in (value, old, target))
    plain = 0.5 * (v - g).square()
    loss = value_loss(v, o, g, clip)
    assert loss >= plain
    if abs(value - old) <= clip:
        torch.testing.assert_close(loss, plain, atol=1e-4, rtol=1e-4)


def test_explained_variance() -> None:
    target = torch.tensor([1.0, 2.0, math.nan, 3.0])
    assert float(explained_variance(target, target)) == 1.0
    assert float(explained_variance(torch.tensor([2.0, 2.0, 7.0, 2.0]), target)) == 0.0
    assert float(explained_variance(torch.tensor([1.5, 2.0, 7.0, 2.5]), target)) == 0.75
    assert float(explained_variance(target, torch.full((4,), 2.0))) == 0.0
    assert float(explained_variance(target, torch.full((4,), math.nan))) == 0.0


# ---- where it reads, and what it learns from


def learner(heads: tuple[str, ...] = ("low", "high"), **changes: Any) -> ValueLearner:
    """A critic whose heads tell every hidden state apart."""
    made = ValueLearner(Critic(tiny(WORDS.size, 1, 32, 1, context=256), heads), small(HiPER, **changes))
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.critic.head.weight.copy_(torch.randn(len(heads), 32, generator=drawn))
    return made


def told() -> Record:
    """Two groups of an episode each."""
    return record_of([[Said(plan(True)), Said(plan(False)), Said("take red")], [Said(plan(True)), Said(plan(True))]])


@pytest.mark.parametrize("make", [rows, paths, forest])
def test_a_value_is_read_from_the_token_before_its_item(make: Any) -> None:
    critic, record = learner(), told()
    found = critic.values(make(record), record.size)
    for call in range(len(record.calls.out)):
        context, output = record.context_ids(call), record.output_ids(call)
        with torch.no_grad():
            whole = critic.critic(torch.cat([context, output])[None])[0]
        expected = whole[len(context) - 1 : len(context) + len(output) - 1]
        for column, head in enumerate(("low", "high")):
            torch.testing.assert_close(found[head][record.item_slice(call)], expected[:, column], atol=2e-5, rtol=1e-4)


def test_values_of_some_calls_alone() -> None:
    critic, record = learner(), told()
    some = critic.values(paths(record, [1, 4]), record.size)["low"]
    assert torch.equal(some.isfinite(), torch.isin(record.call, torch.tensor([1, 4])))


def targets_of(turns: Turns) -> dict[str, Tensor]:
    """low: at every third item; high: at first items."""
    place = torch.arange(turns.tokens.size)
    low = torch.where(place % 3 == 0, place / 10, math.nan)
    return {"low": low, "high": torch.where(turns.tokens.position == 0, 1.0, math.nan)}


def test_each_head_learns_at_its_own_items() -> None:
    critic, record = learner(), told()
    turns, view = Turns.of(record), paths(record)
    values, targets = critic.values(view, record.size), targets_of(turns)
    where = turns.tokens.ids < 3  # the first episode
    step = critic.optimise(view, turns, where, values, targets)
    assert step is not None and step.items == int(
        (where & (targets["low"].isfinite() | targets["high"].isfinite())).sum()
    )
    for head, target in targets.items():
        own = where & target.isfinite()
        expected = 0.5 * (values[head] - target)[own].square().mean()
        assert step.terms[f"value/{head}"] == pytest.approx(float(expected), rel=1e-4)


def test_the_targets_are_learned_within_the_clip() -> None:
    critic, record = learner(("low",), critic_lr=3e-3, value_clip=10.0), told()
    turns, view = Turns.of(record), paths(record)
    values, targets = critic.values(view, record.size), targets_of(turns)
    own = targets["low"].isfinite()

    def error(found: dict[str, Tensor]) -> float:
        return float((found["low"] - targets["low"])[own].square().mean())

    before = error(values)
    for _ in range(60):
        critic.optimise(view, turns, torch.ones_like(own), values, targets)
    assert error(critic.values(view, record.size)) < before / 20


def test_passes_are_steps_on_the_same_targets() -> None:
    record = told()
    turns, view = Turns.of(record), paths(record)
    once, thrice = learner(("low",)), learner(("low",), critic_passes=3)
    values, targets = once.values(view, record.size), targets_of(turns)
    where = torch.ones(turns.tokens.size, dtype=torch.bool)
    for _ in range(3):
        once.optimise(view, turns, where, values, targets)
    thrice.optimise(view, turns, where, values, targets)
    same = zip(once.critic.parameters(), thrice.critic.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_nothing_to_learn() -> None:
    critic, record = learner(), told()
    turns, view = Turns.of(record), paths(record)
    before = [p.detach().clone() for p in critic.critic.parameters()]
    nowhere = torch.zeros(turns.tokens.size, dtype=torch.bool)
    assert critic.optimise(view, turns, nowhere, critic.values(view, record.size), targets_of(turns)) is None
    assert all(torch.equal(a, b) for a, b in zip(before, critic.critic.parameters(), strict=True))


def test_values_under_autocast_stay_float32() -> None:
    critic, record = learner(), told()
    low = ValueLearner(critic.critic, critic.config, torch.bfloat16).values(paths(record), record.size)["low"]
    exact = critic.values(paths(record), record.size)["low"]
    assert low.dtype == torch.float32
    assert not torch.equal(low, low.bfloat16().float())
    torch.testing.assert_close(low, exact, atol=0.5, rtol=0.1)


# ---- runs


def test_the_critic_begins_as_the_warm_start_with_values_of_0(tmp_path: Path) -> None:
    begun = open_run(PPO, tmp_path)
    assert begun.critic is not None and begun.learner is not None
    policy = dict(begun.language.model.model.named_parameters())
    own = dict(begun.critic.trunk.named_parameters())
    assert policy.keys() == own.keys() and all(torch.equal(policy[name], own[name]) for name in own)
    assert all(policy[name].data_ptr() != own[name].data_ptr() for name in own)
    begun.step = 1
    record = begun.collect().record
    assert not bool(begun.learner.values(paths(record), record.size)["value"].any())


def test_the_policy_waits_for_its_critic(tmp_path: Path) -> None:
    begun = open_run(PPO, tmp_path, critic_warmup=1)
    assert begun.learner is not None

    def weights() -> list[Tensor]:
        return [p.detach().clone() for p in begun.parameters]

    before, values = weights(), [p.detach().clone() for p in begun.learner.critic.parameters()]
    begun.step = 1
    found = begun.iterate()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(), strict=True)) and "loss/policy" not in found
    assert not all(torch.equal(a, b) for a, b in zip(values, begun.learner.critic.parameters(), strict=True))
    begun.step = 2
    assert "loss/policy" in begun.iterate()
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(), strict=True))


def test_agents_without_heads_have_no_critic(tmp_path: Path) -> None:
    begun = open_run(GRPO, tmp_path)
    assert begun.critic is None and begun.learner is None
    begun.step = 1
    assert not [name for name in begun.iterate() if name.startswith(("value", "loss/value", "critic"))]
    begun.save()
    found = checkpoint.latest(tmp_path)
    assert found is not None and not [name for name in found.tensors if "critic" in name]


def test_a_critic_needs_its_configuration(tmp_path: Path) -> None:
    class Wrong(PPO):
        Config = GRPO.Config  # type: ignore[assignment,misc]

    with pytest.raises(UsageError, match="CriticConfig"):
        open_run(Wrong, tmp_path)


def left(directory: Path) -> dict[str, Any]:
    """The checkpoint and the numbers of a run, without times."""
    found = checkpoint.latest(directory)
    assert found is not None
    lines = [row for name in ("metrics", "evaluations") for row in read_jsonl(directory / f"{name}.jsonl")]
    plain = [{name: repr(value) for name, value in row.items() if name not in TIMES} for row in lines]
    return {"step": found.step, "tensors": found.tensors, "lines": plain}


def test_ppo_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = small(PPO, updates=3, eval_every=2, checkpoint_every=2)
    run.train(PPO, config, whole, device="cpu", threads=1, say=lambda line: None)

    with pytest.MonkeyPatch.context() as patch:  # dies in iteration 3, after the checkpoint of 2
        iterate = LanguageRun.iterate

        def dies(self: LanguageRun) -> Any:
            if self.step == 3:
                raise KeyboardInterrupt
            return iterate(self)

        patch.setattr(LanguageRun, "iterate", dies)
        with pytest.raises(KeyboardInterrupt):
            run.train(PPO, config, halves, device="cpu", threads=1, say=lambda line: None)
    stopped = checkpoint.latest(halves)
    assert stopped is not None and stopped.step == 2
    run.train(PPO, config, halves, device="cpu", threads=1, say=lambda line: None)
    one, two = left(whole), left(halves)
    assert one["step"] == two["step"] == 3 and one["lines"] == two["lines"]
    assert one["tensors"].keys() == two["tensors"].keys()
    assert [name for name in one["tensors"] if name.startswith("critic.")]
    assert [name for name in one["tensors"] if name.startswith("critic_optimizer.")]
    for name, tensor in one["tensors"].items():
        assert torch.equal(tensor, two["tensors"][name]), name


def test_another_critic_is_refused(tmp_path: Path) -> None:
    three = open_run(HiPER, tmp_path)
    three.step = 1
    three.save()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    with pytest.raises(CheckpointError, match="critic"):
        open_run(HiPER, tmp_path, heads="paper").restore(found)
