"""Warm starts by adapters, in bfloat16, until actions are valid; and runs that go on from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import small, tiny_language

pytest.importorskip("peft")

from echelon.errors import UsageError
from echelon.language.models import load_model
from echelon.systems import launch
from echelon.systems.agents.grpo import GRPO
from echelon.training import checkpoint
from echelon.training.language import warm
from echelon.training.language.loop import LanguageRun
from echelon.training.language.warm import WarmStart, warm_start
from echelon.training.runtime import choose

LOOKS: dict[str, Any] = {"warm_valid": 0.6, "warm_check": 4, "warm_check_episodes": 4}
NARROW: dict[str, Any] = {"dtype": "bfloat16", "lora": 2, "warm_lora": 4, "lr": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny world, and an empty folder for warm starts."""
    folder = tmp_path_factory.mktemp("models")
    with tiny_language(folder):
        yield folder


def made(**changes: Any) -> tuple[WarmStart, list[str]]:
    """A warm start, and what was said."""
    said: list[str] = []
    return warm_start(GRPO, small(GRPO, **changes), said.append), said


def open_run(directory: Path, **changes: Any) -> LanguageRun:
    config = small(GRPO, **changes)
    inputs = LanguageRun.inputs(GRPO, config, lambda line: None)
    found = LanguageRun.build(GRPO, config, directory, choose("cpu", "float32", 1), inputs)
    found.step = 1
    return found


def test_an_imitation_ends_when_actions_are_valid() -> None:
    found, said = made(**LOOKS, warm_epochs=40)
    steps, valid, success = zip(*found.facts["looks"], strict=True)
    assert steps == tuple(range(0, steps[-1] + 1, 4)) and steps[-1] < 40 * 6
    assert valid[-1] >= 0.6 > max(valid[:-1]) and all(0 <= x <= 1 for x in success)
    for name in ("before", "after"):
        assert "world: say" in (found.path / f"{name}.txt").read_text()
    assert sum("% of the actions valid" in line for line in said) == len(steps)
    assert not any("less than" in line for line in said)


def test_one_that_does_not_get_there_says_so() -> None:
    found, said = made(**LOOKS, warm_lr=1e-9, warm_epochs=1)
    assert [look[0] for look in found.facts["looks"]] == [0, 4, 6]
    assert any("less than the 60.0 % of warm_valid" in line for line in said)


def test_looking_changes_no_weight() -> None:
    plain, _ = made()
    assert "looks" not in plain.facts
    looked, _ = made(warm_valid=0.999, warm_check=5, warm_check_episodes=2)
    assert looked.facts["hash"] == plain.facts["hash"] and looked.path != plain.path


def test_older_warm_starts_are_found_as_before() -> None:
    about = warm._place(GRPO, small(GRPO))[1]
    assert not set(about) & set(warm.LATER)
    assert warm._place(GRPO, small(GRPO, **NARROW))[1]["warm_lora"] == 4
    bare = {**NARROW, "warm_episodes": 0, "warm_lora": 0}
    assert not set(warm._place(GRPO, small(GRPO, **bare))[1]) & set(warm.LATER)


def test_adapters_become_part_of_the_weights() -> None:
    found, _ = made(**NARROW)
    plain, _ = made(**NARROW, warm_seed=0, warm_lr=1e-9)
    a, b = (dict(load_model(one.path).model.named_parameters()) for one in (found, plain))
    assert a.keys() == b.keys() and not any("lora" in name for name in a)
    moved = {name for name in a if not torch.allclose(a[name], b[name], atol=1e-5)}
    assert moved == {name for name in a if "_proj" in name}
    assert {p.dtype for p in a.values()} == {torch.float32}


def test_a_run_in_bfloat16_trains_adapters_in_float32(tmp_path: Path) -> None:
    found = open_run(tmp_path / "run", **NARROW)
    kinds = {p.dtype for p in found.language.model.parameters() if not p.requires_grad}
    assert kinds == {torch.bfloat16} and {p.dtype for p in found.parameters} == {torch.float32}
    for found.step in (1, 2):
        values = {name: float(value) for name, value in found.iterate().items()}
    assert all(math.isfinite(value) for value in values.values()) and values["kl"] != 0 and 0 <= values["invalid"] <= 1
    found.save()
    saved = checkpoint.latest(tmp_path / "run")
    other = open_run(tmp_path / "other", **NARROW)
    assert saved is not None
    other.restore(saved)
    for both in (found, other):
        both.step = 3
        both.iterate()
    assert all(a.equal(b) for a, b in zip(found.parameters, other.parameters, strict=True))


def test_the_policy_that_sampled_in_bfloat16_is_scored_anew(tmp_path: Path) -> None:
    found = open_run(tmp_path / "run", **NARROW)
    seen: list[int] = []
    real = found._score
    found._score = lambda *given: seen.append(1) or real(*given)  # type: ignore[method-assign, func-returns-value]
    found.iterate()
    assert len(seen) == 2  # once with its adapters, and once without: the reference


def test_recomputed_layers_give_the_same_numbers(tmp_path: Path) -> None:
    kept, again = (open_run(tmp_path / str(r), lora=2, lr=1e-2, recompute=r) for r in (False, True))
    for one in (kept, again):
        one.iterate()
    assert all(a.equal(b) for a, b in zip(kept.parameters, again.parameters, strict=True))
    assert again.language.model.get_base_model().is_gradient_checkpointing


def test_configurations_that_would_lose_small_steps_are_refused() -> None:
    for changes in ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "lora": 4}):
        with pytest.raises(UsageError, match=r"dtype must be float32, unless adapters alone are trained"):
            small(GRPO, **changes)
    with pytest.raises(UsageError, match="warm_valid"):
        small(GRPO, warm_valid=1.0)


def test_the_recipe_of_the_pretrained_model() -> None:
    for system in ("grpo", "gigpo"):
        config = launch.recipe(system, "textcraft", "smollm2")
        assert (config.model, config.dtype) == ("smollm2", "bfloat16")
        assert config.lora and config.warm_lora and config.warm_valid >= 0.8 and config.kl > 0
        assert json.loads(json.dumps(config.world)) == {"limit": 10}
