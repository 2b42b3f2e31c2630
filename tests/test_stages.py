"""A pipeline of stages that is killed anywhere ends with the bits of one that never was."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import die_at, run_forked

from echelon.errors import CheckpointError, UsageError
from echelon.training import checkpoint
from echelon.training.stages import Plan, Stage, StageResult, run_stages


@dataclass(frozen=True)
class Config:
    seed: int = 0
    steps: int = 3


class Policy(torch.nn.Module):
    """A lower layer, frozen once trained, under an upper one."""

    def __init__(self, seed: int, lower: Path | None):
        super().__init__()
        torch.manual_seed(seed)
        self.lower, self.upper = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
        if lower is not None:
            found = checkpoint.latest(lower)
            assert found is not None
            self.load_state_dict(found.tensors, strict=False)
            self.lower.requires_grad_(False)


def three_stages(config: Config) -> Plan:
    """Pre-train the lower layer, choose a learning signal from its result, train two upper layers above it."""
    lower = yield Stage("pre-train", lambda: Policy(config.seed, None), lambda: 1.0, config.steps)
    for name in ("above", "above-again"):
        below = lower
        scale = lower.metrics["loss"]
        lower = yield Stage(
            name, lambda below=below: Policy(config.seed + 1, below.path), lambda s=scale: s, config.steps
        )


def execute(stage: Stage, directory: Path) -> dict[str, Any]:
    """A small trainer with a checkpoint at every step, resuming what it finds."""
    policy, scale = stage.agent(), stage.source()
    generator = torch.Generator().manual_seed(7)
    step, loss = 0, torch.zeros(())
    found = checkpoint.latest(directory)
    if found is not None:
        step, loss = found.step, found.tensors.pop("loss")
        generator.set_state(found.tensors.pop("generator"))
        policy.load_state_dict(found.tensors)
    while step < stage.budget:
        loss = (policy.upper(policy.lower(torch.randn(5, 3, generator=generator)).tanh()) - scale).square().mean()
        loss.backward()
        with torch.no_grad():
            for weight in policy.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
                    weight.grad = None
        step += 1
        tensors = {**policy.state_dict(), "loss": loss, "generator": generator.get_state()}
        checkpoint.save(directory, step, tensors, {}, keep=1)
    return {"loss": loss.item(), "history": (1, 2)}


def final_state(run: Path) -> dict[str, torch.Tensor]:
    states = {}
    for directory in sorted((run / "stages").iterdir()):
        found = checkpoint.latest(directory)
        assert found is not None
        states |= {f"{directory.name}.{name}": tensor for name, tensor in found.tensors.items()}
    return states


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict[str, torch.Tensor], str]:
    run = tmp_path_factory.mktemp("whole")
    results = run_stages(three_stages, Config(), run, execute)
    assert [result.name for result in results] == ["pre-train", "above", "above-again"]
    assert [result.path.name for result in results] == ["00-pre-train", "01-above", "02-above-again"]
    return final_state(run), (run / "stages.json").read_text()


def check_equal(run: Path, uninterrupted: tuple[dict[str, torch.Tensor], str]) -> None:
    states, record = uninterrupted
    mine = final_state(run)
    assert mine.keys() == states.keys()
    assert all(torch.equal(mine[name], states[name]) for name in states)
    assert (run / "stages.json").read_text() == record


def test_a_pipeline_killed_over_and_over_ends_bit_equal(tmp_path, uninterrupted):
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        count = 40 + 3 * len(codes)

        def body(count: int = count) -> None:
            die_at(count)
            run_stages(three_stages, Config(), tmp_path, execute)

        codes.append(run_forked(body))
        assert codes[-1] in (0, -9)
        assert len(codes) < 40
    assert len(codes) > 5
    check_equal(tmp_path, uninterrupted)


@pytest.mark.parametrize("stage", ["pre-train", "above", "above-again"])
@pytest.mark.parametrize("when", ["start", "middle", "end", "recorded"])
def test_a_pipeline_killed_at_every_stage_ends_bit_equal(tmp_path, uninterrupted, stage, when):
    run = tmp_path

    def dying(opened: Stage, directory: Path) -> dict[str, Any]:
        if opened.name == stage and when == "start":
            die_at(1)
        if opened.name == stage and when == "middle":
            die_at(30)
        result = execute(opened, directory)
        if opened.name == stage and when in ("end", "recorded"):
            die_at(1 if when == "end" else 3)  # before and while stages.json is replaced
        return result

    assert run_forked(lambda: run_stages(three_stages, Config(), run, dying)) == -9
    opened: list[str] = []

    def watching(stage: Stage, directory: Path) -> dict[str, Any]:
        opened.append(stage.name)
        return execute(stage, directory)

    run_stages(three_stages, Config(), run, watching)
    order = ["pre-train", "above", "above-again"]
    assert opened == order[order.index(stage) :]
    check_equal(run, uninterrupted)


def test_a_finished_pipeline_is_replayed_without_making_anything(tmp_path):
    def plan(config: Config) -> Plan:
        first = yield Stage("one", make, make, 1)
        yield Stage(f"two-{first.metrics['x']}", make, make, 1)

    def make() -> None:
        raise AssertionError("a replayed stage was made")

    first = run_stages(plan, Config(), tmp_path, lambda stage, directory: {"x": 5})
    again = run_stages(plan, Config(), tmp_path, lambda stage, directory: pytest.fail("a finished stage ran"))
    assert first == again
    assert [result.name for result in again] == ["one", "two-5"]


def test_a_plan_sees_the_recorded_form_of_a_result_the_first_time_too(tmp_path):
    seen: list[StageResult] = []

    def plan(config: Config) -> Plan:
        seen.append((yield Stage("one", object, object, 1)))

    for _ in range(2):
        run_stages(plan, Config(), tmp_path, lambda stage, directory: {"pair": (1, 2), "x": 0.1 + 0.2})
    assert seen[0] == seen[1]
    assert seen[0].metrics == {"pair": [1, 2], "x": 0.1 + 0.2}


def test_a_stopped_stage_stays_open(tmp_path):
    def stop(stage: Stage, directory: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(three_stages, Config(), tmp_path, stop)
    assert not (tmp_path / "stages.json").exists()


def test_an_empty_plan_is_fine(tmp_path):
    def plan(config: Config) -> Plan:
        yield from ()

    assert run_stages(plan, Config(), tmp_path, execute) == []


def test_another_plan_is_refused(tmp_path):
    def plan(names: list[str]) -> Plan:
        for name in names:
            yield Stage(name, object, object, 1)

    def nothing(stage: Stage, directory: Path) -> dict[str, Any]:
        return {}

    run_stages(plan, ["a", "b"], tmp_path, nothing)
    with pytest.raises(CheckpointError, match="records 'b' as stage 1, but the configuration plans 'c'"):
        run_stages(plan, ["a", "c"], tmp_path, nothing)
    with pytest.raises(CheckpointError, match="records 2 stages, but the plan has 1"):
        run_stages(plan, ["a"], tmp_path, nothing)
    with pytest.raises(UsageError, match=r"stage name '\.\./x'"):
        run_stages(plan, ["../x"], tmp_path / "new", nothing)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '[{"name": "a"}]', json.dumps([{"name": 1, "metrics": {}}])])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "stages.json"))):
        run_stages(three_stages, Config(), tmp_path, execute)


def test_metrics_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="stage 'pre-train' returned metrics that are not plain JSON"):
        run_stages(three_stages, Config(), tmp_path, lambda stage, directory: {"x": torch.zeros(1)})
