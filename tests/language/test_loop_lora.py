"""Training adapters: the weights stay, the reference is the model without them, checkpoints hold them alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import outcome, small, tiny_language
from small_runs import assert_same

from echelon.errors import CheckpointError, UsageError
from echelon.language.models import adapters_off
from echelon.language.views import paths
from echelon.systems import launch
from echelon.systems.agents.grpo import GRPO
from echelon.systems.agents.ppo import PPO
from echelon.training import checkpoint, run
from echelon.training.language.agent import LanguageAgent, Turns
from echelon.training.language.loop import LanguageRun, load_weights
from echelon.training.runtime import choose

pytest.importorskip("peft")


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny world, and an empty folder for warm starts."""
    folder = tmp_path_factory.mktemp("models")
    with tiny_language(folder):
        yield folder


def open_run(directory: Path, cls: type[LanguageAgent] = GRPO, **changes: Any) -> LanguageRun:
    """A run before its first iteration."""
    config = small(cls, **{"lora": 2, "lr": 1e-2} | changes)
    found = LanguageRun.build(
        cls, config, directory, choose("cpu", "float32", 1), LanguageRun.inputs(cls, config, lambda line: None)
    )
    found.step = 1
    return found


def weights(found: LanguageRun) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in found.language.model.named_parameters()}


def test_adapters_begin_as_nothing_and_alone_are_trained(tmp_path: Path) -> None:
    found, full = open_run(tmp_path), open_run(tmp_path, lora=0)
    phase = found.collect()
    assert phase.record.token.equal(full.collect().record.token)  # the same policy at first
    before = weights(found)
    for found.step in (1, 2):
        values = {name: float(value) for name, value in found.iterate().items()}
    after = weights(found)
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {name for name in before if "lora_" in name} != set()
    assert sum(p.numel() for p in found.parameters) < sum(p.numel() for p in full.parameters) / 4
    assert values["kl"] != 0


def test_the_reference_is_the_model_with_its_adapters_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, full = open_run(tmp_path), open_run(tmp_path, lora=0)
    assert found.reference is not None and found.reference.model is found.language.model  # no second copy
    found.iterate()
    record = found.collect().record
    view = paths(record, Turns.of(record).calls)
    with adapters_off(found.language):
        said = found._score(found.reference, view, record.size)
    assert full.reference is not None
    torch.testing.assert_close(said, full._score(full.reference, view, record.size), equal_nan=True)
    assert not said.equal(found._score(found.scorer, view, record.size))
    seen: list[torch.Tensor] = []
    real = LanguageRun._score

    def watched(*given: Any) -> torch.Tensor:
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(LanguageRun, "_score", watched)
    found.learn(record)
    torch.testing.assert_close(seen[-1], said, equal_nan=True)


@pytest.mark.parametrize("cls", [GRPO, PPO], ids=lambda cls: cls.Config.system)
def test_checkpoints_hold_adapters_and_go_on_bit_for_bit(cls: type[LanguageAgent], tmp_path: Path) -> None:
    found = open_run(tmp_path / "run", cls)
    found.iterate()
    found.save()
    saved = checkpoint.latest(tmp_path / "run")
    assert saved is not None
    policy = [name for name in saved.tensors if name.startswith("policy.")]
    assert policy and all("lora_" in name for name in policy)
    other = open_run(tmp_path / "other", cls)
    other.restore(saved)
    for both in (found, other):
        both.step = 2
        both.iterate()
    assert all(a.equal(b) for a, b in zip(weights(found).values(), weights(other).values(), strict=True))
    with pytest.raises(CheckpointError, match="not those of this configuration"):
        load_weights(open_run(tmp_path / "full", cls, lora=0).language.model, saved)


def test_a_run_with_adapters_is_trained_resumed_and_opened(tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "say": lambda line: None}
    config = small(GRPO, lora=2, checkpoint_every=1)
    run.train(GRPO, config, tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        real, calls = LanguageRun.collect, []

        def stumbles(self: LanguageRun) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise UsageError("a stone")
            return real(self)

        patch.setattr(LanguageRun, "collect", stumbles)
        with pytest.raises(UsageError, match="a stone"):
            run.train(GRPO, config, tmp_path / "again", **options)
    run.train(GRPO, config, tmp_path / "again", **options)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "again"))
    actor = launch.load_agent(tmp_path / "whole")
    found = checkpoint.latest(tmp_path / "whole")
    assert found is not None
    own = dict(actor.language.model.named_parameters())
    policy = {k.removeprefix("policy."): v for k, v in found.tensors.items() if k.startswith("policy.")}
    assert all(own[name].equal(value) for name, value in policy.items())
    row = run.evaluate(GRPO, tmp_path / "whole", episodes=2)
    assert row["tasks"].keys() == {"one", "two"}
