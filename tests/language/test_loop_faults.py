"""Faults in training: a clear error, or the episode is counted, weighs nothing, and the others learn the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import colours
import pytest
import torch
from small_language import outcome, small, tiny_language
from small_runs import assert_same

from echelon.credit.credit import Credit
from echelon.errors import DataError, UsageError
from echelon.language.driver import Driver, FaultLimit, Phase, Start
from echelon.language.engine import End
from echelon.language.models import tiny
from echelon.language.worlds import world
from echelon.systems.agents.gigpo import GiGPO
from echelon.systems.agents.grpo import GRPO
from echelon.systems.agents.ppo import PPO
from echelon.training import checkpoint, run
from echelon.training.language import loop, play
from echelon.training.language.agent import LanguageAgent
from echelon.training.language.loop import LanguageRun
from echelon.training.runtime import choose

BAD = 4
"""Number of the episode that goes wrong: in the second group of three."""
IN_WORKERS = {"hangs": End.TIMEOUT, "dies": End.KILLED}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny world, and an empty folder for warm starts."""
    folder = tmp_path_factory.mktemp("models")
    with tiny_language(folder):
        yield folder


def open_run(cls: type[LanguageAgent], directory: Path, **changes: Any) -> LanguageRun:
    """A run before its first iteration."""
    config = small(cls, lr=1e-2, **changes)
    found = LanguageRun.build(
        cls, config, directory, choose("cpu", "float32", 1), LanguageRun.inputs(cls, config, lambda line: None)
    )
    found.step = 1
    return found


def starting(change: Callable[[list[Start]], list[Start]], patch: pytest.MonkeyPatch) -> None:
    """Every iteration begins with other episodes than it would."""
    real = play.training_starts
    patch.setattr(play, "training_starts", lambda config, step: change(real(config, step)))


def spoiled(fault: str, starts: list[Start]) -> list[Start]:
    """Episode `BAD` goes wrong."""
    task = dataclasses.replace(starts[BAD].task, index=-1 - colours.FAULTS.index(fault))
    return [*starts[:BAD], dataclasses.replace(starts[BAD], task=task), *starts[BAD + 1 :]]


def learned(found: LanguageRun) -> dict[str, torch.Tensor]:
    """The weights after an iteration, and the moments of the optimisers, which are the gradients' own."""
    tensors = {name: p.detach().clone() for name, p in found.language.model.named_parameters()}
    tensors |= checkpoint.flatten(found.optimiser.state_dict(), "optimizer")[0]
    return tensors | (found.learner.save()[0] if found.learner is not None else {})


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(
    ("fault", "cls"),
    [("raises", GRPO), ("raises", GiGPO), ("raises", PPO), ("none", GRPO), ("nan", GRPO), ("lists", GRPO),
     ("rambles", GRPO)],
    ids=lambda x: x if isinstance(x, str) else x.Config.system,
)  # fmt: skip
def test_a_faulty_episode_is_counted_and_the_others_learn_the_same_bits(
    fault: str, cls: type[LanguageAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(world._WORLDS, "colours", "colours:Faulty")
    fine = open_run(cls, tmp_path)
    fine.iterate()
    with monkeypatch.context() as patch:
        starting(partial(spoiled, fault), patch)
        faulty = open_run(cls, tmp_path)
        values = faulty.iterate()
    with monkeypatch.context() as patch:
        starting(lambda starts: [start for k, start in enumerate(starts) if k != BAD], patch)
        without = open_run(cls, tmp_path)
        assert without.iterate()["faults"] == 0
    assert values["faults"] == 1
    assert_equal(learned(faulty), learned(without))
    assert any(not torch.equal(a, learned(fine)[name]) for name, a in learned(faulty).items())  # it would have mattered


@pytest.mark.parametrize("fault", IN_WORKERS)
def test_a_world_that_hangs_or_dies_costs_its_episode_alone(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(colours.__file__).parent))
    monkeypatch.setattr(play, "Driver", partial(Driver, make=colours.make, limit_s=3.0))
    phases: list[Phase] = []
    collect = LanguageRun.collect

    def watched(self: LanguageRun) -> Phase:
        phases.append(collect(self))
        return phases[-1]

    monkeypatch.setattr(LanguageRun, "collect", watched)
    with monkeypatch.context() as patch:
        starting(partial(spoiled, fault), patch)
        faulty = open_run(GRPO, tmp_path, workers=1)
        values = faulty.iterate()
    with monkeypatch.context() as patch:
        starting(lambda starts: [start for k, start in enumerate(starts) if k != BAD], patch)
        without = open_run(GRPO, tmp_path)
        without.iterate()
    (closed,) = phases[0].faults
    assert (closed.uid, closed.end, values["faults"]) == (BAD, IN_WORKERS[fault], 1)
    assert_equal(learned(faulty), learned(without))


def test_too_many_faults_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(world._WORLDS, "colours", "colours:Faulty")
    starting(lambda starts: [dataclasses.replace(s, task=dataclasses.replace(s.task, index=-1)) for s in starts],
             monkeypatch)  # fmt: skip
    with pytest.raises(FaultLimit, match=r"of 6 episodes failed, more than the share 0\.5.*the paint is dry"):
        open_run(GRPO, tmp_path).iterate()


def test_a_loss_that_is_nan_stops_the_run_and_leaves_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "say": lambda line: None}
    run.train(GRPO, small(GRPO, checkpoint_every=1), tmp_path / "whole", **options)
    real, calls = loop.ppo_clip, []

    def broken(*columns: torch.Tensor, **bounds: Any) -> torch.Tensor:
        calls.append(1)
        return real(*columns, **bounds) * (torch.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(loop, "ppo_clip", broken)
    with pytest.raises(DataError, match=r"the loss of term 'policy' at item .* is nan .*no weight was moved"):
        run.train(GRPO, small(GRPO, checkpoint_every=1), tmp_path / "stopped", **options)
    found = checkpoint.latest(tmp_path / "stopped")
    assert found is not None and found.step == 1
    assert not (tmp_path / "stopped" / "result.json").exists()
    run.train(GRPO, small(GRPO, checkpoint_every=1), tmp_path / "stopped", **options)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:-1], "the credit is of .* numbers, the turns have .* items"),
        (lambda a: a.index_fill(0, torch.tensor([0]), torch.nan), "advantage .*nan"),
    ],
    ids=["wrong length", "nan"],
)
def test_credit_that_is_no_number_for_each_item_is_refused(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GRPO.credit
    monkeypatch.setattr(GRPO, "credit", lambda *given: Credit(change(real(*given).advantage)))
    found = open_run(GRPO, tmp_path)
    before = learned(found)
    with pytest.raises(DataError, match=message):
        found.iterate()
    assert_equal(before, learned(found))


def test_a_wrong_path_of_a_model_is_named_and_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model '/nowhere/model': it is neither 'smollm2' nor a directory"):
        run.train(GRPO, small(GRPO, model="/nowhere/model"), tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template_is_named(tmp_path: Path) -> None:
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "say": 1, "red": 2}, "</s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path / "model")
    tiny(8, layers=1, width=32, heads=1).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"model: this model has no chat template; give one"):
        run.train(GRPO, small(GRPO, model=str(tmp_path / "model")), tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()
