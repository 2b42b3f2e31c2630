"""What every system that learns from data sets promises; it is under test as soon as the index names it."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import signal
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SPEC, act, assert_same, open_run, outcome, small, synthetic_store, tiny_world
from torch import Tensor, nn

from echelon.data.store import Store
from echelon.envs.catalog import environment
from echelon.errors import CheckpointError, DataError, EchelonError, UsageError
from echelon.hierarchy.level import Level
from echelon.hierarchy.plans import PlanLevel
from echelon.systems import index, launch
from echelon.systems.offline.recipes import SIZES
from echelon.training import checkpoint, run
from echelon.training.agent import Agent, Batch, Learner, build_agent, load_weights
from echelon.training.config import Config, from_json, to_json
from echelon.training.offline import OfflineRun

SYSTEMS = [name for name in index.names() if issubclass(index.load(name), Agent)]
ENVIRONMENTS = (
    "pointmaze-large-stitch-v0",
    "antmaze-medium-explore-v0",
    "humanoidmaze-giant-navigate-v0",
    "cube-single-noisy-v0",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The synthetic data set, in a world where nothing else exists."""
    found = synthetic_store(tmp_path_factory.mktemp("data") / "walks")
    with tiny_world(found):
        yield found


@pytest.fixture(params=SYSTEMS)
def cls(request: pytest.FixtureRequest) -> type[Agent]:
    """Every such system in turn."""
    return typing.cast(type[Agent], index.load(request.param))


def batches(
    cls: type[Agent], store: Store, tmp_path: Path, count: int, **changes: Any
) -> tuple[OfflineRun, list[Batch]]:
    """A run at its beginning, and its first batches."""
    found = open_run(cls, small(cls, **changes), store, tmp_path)
    return found, [found.source.next() for _ in range(count)]


def train(cls: type[Agent], directory: Path, stop_at: int | None = None, **changes: Any) -> list[str]:
    """Train, or go on, in `directory`; SIGINT arrives in update `stop_at`. Returns what was said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if stop_at is not None:
            step = Learner.step

            def interrupted(learner: Learner, number: int, batch: Batch) -> dict[str, Tensor]:
                if number == stop_at:
                    signal.raise_signal(signal.SIGINT)
                return step(learner, number, batch)

            patch.setattr(Learner, "step", interrupted)
        done = run.train(cls, small(cls, **changes), directory, device="cpu", threads=1, say=said.append)
    assert (done is None) == (stop_at is not None)
    return said


def states(count: int, seed: int = 0) -> Tensor:
    """Some observations or goals [count, O]."""
    return torch.randn(count, SPEC.observation_dim, generator=torch.Generator().manual_seed(seed))


def weights(agent: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in agent.state_dict().items()}


# --- building and configuration


def test_it_builds_from_its_defaults(cls: type[Agent]) -> None:
    agent = build_agent(cls, cls.Config(), SPEC)
    assert isinstance(agent, Agent)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in agent.state_dict().values())
    updates = agent.updates()
    assert len({update.name for update in updates}) == len(updates) > 0
    owned = [id(p) for update in updates for module in update.modules for p in module.parameters()]
    trainable = {id(p) for p in agent.parameters() if p.requires_grad}
    assert set(owned) == trainable, "an update moves a frozen parameter, or none moves a trainable one"


def test_its_configuration_survives_json(cls: type[Agent]) -> None:
    recipes = [launch.recipe(cls.Config.system, env, size) for env in ENVIRONMENTS for size in SIZES]
    for config in [cls.Config(), *recipes, small(cls, seed=7, transitions=100)]:
        document = json.loads(json.dumps(to_json(config)))
        assert document["system"] == cls.Config.system
        assert from_json(cls.Config, document["config"]) == config
        assert config.goals() == from_json(cls.Config, document["config"]).goals()


def test_its_configuration_refuses_unknown_fields(cls: type[Agent]) -> None:
    values = to_json(cls.Config())["config"]
    with pytest.raises(UsageError, match=r"unknown field of .*'batchsize'; did you mean batch_size"):
        from_json(cls.Config, {**values, "batchsize": 8})
    with pytest.raises(UsageError, match="__class__"):
        from_json(cls.Config, {**values, "__class__": "os.system"})


def test_its_configuration_refuses_wrong_types_by_name(cls: type[Agent]) -> None:
    values, hints = to_json(cls.Config())["config"], typing.get_type_hints(cls.Config)
    wrong: dict[Any, list[Any]] = {
        int: [1.5, "1", True, None, [1]],
        float: ["0.1", True, None, [0.1]],
        str: [3, None, ["a"]],
        bool: [1, "yes", None],
    }
    for field in dataclasses.fields(cls.Config):
        for value in [{"a": 1}, *wrong.get(hints[field.name], [])]:
            with pytest.raises(UsageError, match=rf"{cls.Config.system}: field {field.name} must be"):
                from_json(cls.Config, {**values, field.name: value})


@pytest.mark.parametrize(
    "change", [{"updates": 0}, {"batch_size": 0}, {"eval_every": -1}, {"lr": 0.0}, {"lr": float("nan")}]
)
def test_its_configuration_refuses_senseless_values_by_name(cls: type[Agent], change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        cls.Config(**change)


def test_every_value_of_every_field_trains_or_is_refused_by_name(
    cls: type[Agent], store: Store, tmp_path: Path
) -> None:
    values: dict[Any, list[Any]] = {
        int: [-1, 0, 1, 3],
        float: [-1.0, 0.0, 1e-3, 0.5, 1.0, 3.0, float("nan"), float("inf")],
        tuple[int, ...]: [(), (0,), (-1,), (3,), (1, 2, 1)],
        bool: [False, True],
    }
    hints, refused = typing.get_type_hints(cls.Config), 0
    for name, value in ((f.name, v) for f in dataclasses.fields(cls.Config) for v in values.get(hints[f.name], [])):
        try:
            config = small(cls, **{"batch_size": 4, name: value})
        except UsageError as error:
            assert name in str(error) and str(value) in str(error)
            refused += 1
            continue
        found = open_run(cls, config, store, tmp_path)
        metrics = found.learner.step(1, found.source.next())
        assert all(bool(torch.isfinite(x)) for k, x in metrics.items() if "loss" in k), (name, value)
    assert refused > 10


@pytest.mark.parametrize(("current", "future"), [(0.9, 0.1), (0.2, 0.8), (0.7, 0.3), (1.0, 0.0), (0.0, 1.0)])
def test_shares_that_sum_to_one_but_for_rounding_are_accepted(current: float, future: float) -> None:
    goal = index.load("hiql").Config(value_p_current=current, value_p_future=future).goals()["value"]
    assert goal.random == pytest.approx(0, abs=1e-9)


def test_a_configuration_is_frozen_and_names_its_system(cls: type[Agent]) -> None:
    assert issubclass(cls.Config, Config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls.Config().lr = 1.0  # type: ignore[misc]
    assert cls.Config.system in index.names()


# --- updates


def test_three_updates_are_finite_and_move_every_parameter(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, drawn = batches(cls, store, tmp_path, 3)
    before = weights(found.agent)
    for step, batch in enumerate(drawn, 1):
        metrics = found.learner.step(step, batch)
        assert all(bool(torch.isfinite(value)) for value in metrics.values()), metrics
    after = weights(found.agent)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    still = [name for name, p in found.agent.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert not still, f"three updates left these as they were: {still}"


def test_metrics_are_single_numbers_under_stable_names(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, drawn = batches(cls, store, tmp_path, 3)
    every = max(update.every for update in found.learner.updates)
    rows = [found.learner.step(every * step, batch) for step, batch in enumerate(drawn, 1)]
    assert len({tuple(row) for row in rows}) == 1
    assert {f"loss/{update.name}" for update in found.learner.updates} <= set(rows[0])
    for name, value in rows[0].items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*(/[a-z0-9_]+)*", name), name
        assert isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad, name


def test_targets_get_no_gradient_and_follow_slowly(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, (batch, other) = batches(cls, store, tmp_path, 2)
    found.learner.step(1, batch)  # the online networks leave their targets
    for update in found.learner.updates:
        owned = {id(p) for module in update.modules for p in module.parameters()}
        for polyak in update.targets:
            online, before = list(polyak.online.parameters()), [p.clone() for p in polyak.target.parameters()]
            sources = [p.detach().clone() for p in online]
            found.learner.step(2, other)
            for source, old, new in zip(sources, before, polyak.target.parameters(), strict=True):
                assert not new.requires_grad and new.grad is None and id(new) not in owned
                torch.testing.assert_close(new, old + polyak.rate * (source - old), rtol=0, atol=1e-6)


def test_a_batch_of_one_works(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, drawn = batches(cls, store, tmp_path, 3, batch_size=1)
    for step, batch in enumerate(drawn, 1):
        metrics = found.learner.step(step, batch)
        assert all(bool(torch.isfinite(value)) for value in metrics.values())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(found.agent).values())


def test_wrong_sizes_are_refused_with_both_sizes(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, (batch,) = batches(cls, store, tmp_path, 1)
    wide = {name: torch.cat([x, x], -1) if x.dim() == 2 else x for name, x in batch.items()}
    with pytest.raises((RuntimeError, ValueError), match=r"shapes|sizes"):
        found.learner.step(1, wide)
    with pytest.raises((RuntimeError, ValueError), match=r"shapes|sizes"):
        act(found.agent, states(4)[:, :2], states(4)[:, :2])


# --- determinism and resuming


def test_the_same_seed_twice_is_bit_equal(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    train(cls, tmp_path / "a")
    for disturb in (random.seed, np.random.seed, torch.manual_seed):
        disturb(12345)  # nothing may depend on the process-wide generators
    train(cls, tmp_path / "b")
    assert_same(outcome(tmp_path / "a"), outcome(tmp_path / "b"))


def test_different_seeds_differ(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    one, (first,) = batches(cls, store, tmp_path, 1)
    two, (second,) = batches(cls, store, tmp_path, 1, seed=1)
    assert not torch.equal(first["observations"], second["observations"])
    mine, other = weights(one.agent), weights(two.agent)
    assert any(not torch.equal(mine[name], other[name]) for name in mine)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    """SIGINT at the first update, inside and at the ends of a sampler's block of 16, at an evaluation, near the end."""
    train(cls, tmp_path / "whole")
    for stops in ((1, 7, 16, 17, 39), (15, 32)):
        directory = tmp_path / f"stopped-{stops[0]}"
        for stop in stops:
            said = train(cls, directory, stop_at=stop)
            assert said[-1] == f"stopped at step {stop}; continue with: echelon resume {directory}"
            assert (found := checkpoint.latest(directory)) and found.step == stop
        assert f"resumed at step {stops[-1]}" in train(cls, directory)
        assert_same(outcome(tmp_path / "whole"), outcome(directory))


def test_a_crashed_run_repeats_what_no_checkpoint_holds(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    """The crash comes after lines of metrics and an evaluation that the newest checkpoint knows nothing of."""
    train(cls, tmp_path / "whole", checkpoint_every=12)
    step = Learner.step

    def crash(learner: Learner, number: int, batch: Batch) -> dict[str, Tensor]:
        if number == 23:
            raise ZeroDivisionError
        return step(learner, number, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Learner, "step", crash)
        train(cls, tmp_path / "crashed", checkpoint_every=12)
    assert "resumed at step 12" in train(cls, tmp_path / "crashed", checkpoint_every=12)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "crashed"))


def test_what_a_loss_draws_from_the_process_wide_generators_is_resumed_too(
    cls: type[Agent], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def noisy(learner: Learner, number: int, batch: Batch) -> dict[str, Tensor]:
        noise = torch.rand(()) + random.random() + np.random.rand()
        return step(learner, number, batch | {"observations": batch["observations"] + noise})

    monkeypatch.setattr(Learner, "step", noisy)
    train(cls, tmp_path / "whole", updates=12)
    train(cls, tmp_path / "stopped", updates=12, stop_at=5)
    random.random(), np.random.rand(), torch.rand(3)
    train(cls, tmp_path / "stopped", updates=12)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))


def test_checkpoints_do_not_disturb_the_run(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found = open_run(cls, small(cls), store, tmp_path / "a")
    other = open_run(cls, small(cls), store, tmp_path / "b")
    for step in range(1, 20):
        for one in (found, other):
            one.step = step
            one.learner.step(step, one.source.next())
        found.save()
    mine, theirs = weights(found.agent), weights(other.agent)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_saved_and_loaded_it_acts_the_same(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, drawn = batches(cls, store, tmp_path, 3)
    for step, batch in enumerate(drawn, 1):
        found.learner.step(step, batch)
    found.step = 3
    found.save()
    loaded = build_agent(cls, small(cls, seed=5), SPEC)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    load_weights(loaded, saved)
    s, g, candidates = states(32), states(32, 1), states(10, 2)
    assert torch.equal(act(found.agent, s, g), act(loaded, s, g))
    for name, value in found.agent.value_functions(s, g).items():
        assert torch.equal(value, loaded.value_functions(s, g)[name])
    subgoals = found.agent.subgoals(s, g, candidates)
    assert subgoals is None or torch.equal(subgoals, typing.cast(Tensor, loaded.subgoals(s, g, candidates)))


def test_a_finished_run_opens_again(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    train(cls, tmp_path / "run", updates=4)
    assert train(cls, tmp_path / "run", updates=4) == [f"{tmp_path / 'run'} is finished already"]
    agent, step = run.load_agent(cls, tmp_path / "run")
    assert step == 4 and not agent.training
    assert run.load_config(cls, tmp_path / "run") == small(cls, updates=4)
    tasks = run.evaluate(cls, tmp_path / "run", episodes=2)["tasks"]
    assert [len(outcomes) for outcomes in tasks.values()] == [2] * len(environment(cls.Config().env).tasks)
    other = index.load(next(name for name in index.names() if name != cls.Config.system))
    with pytest.raises(UsageError, match=f"is a run of '{cls.Config.system}', not of '{other.Config.system}'"):
        run.load_config(other, tmp_path / "run")


def test_weights_of_other_sizes_are_refused(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, _ = batches(cls, store, tmp_path, 0)
    found.save()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    hidden = {f.name: (5,) for f in dataclasses.fields(found.config) if f.name.endswith("hidden")}
    with pytest.raises(CheckpointError, match="step_000000000"):
        load_weights(build_agent(cls, small(cls, **hidden), SPEC), saved)


def test_batches_of_another_device_are_refused(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    found, _ = batches(cls, store, tmp_path, 1)
    with pytest.raises(CheckpointError, match="not drawn on 'cpu': resume on the run's own device"):
        found.source.load_state_dict({"generator": torch.zeros(16, dtype=torch.uint8), "position": 1})


def test_a_run_is_not_resumed_on_other_data(cls: type[Agent], store: Store, tmp_path: Path) -> None:
    train(cls, tmp_path / "run", stop_at=3)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.json*")}
    other = synthetic_store(tmp_path / "other", episodes=5)
    with tiny_world(other), pytest.raises(DataError, match=r"other data .*\(episodes was 6, is 5, transitions was 120"):
        train(cls, tmp_path / "run")
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.json*")}
    assert "resumed at step 3" in train(cls, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(
    cls: type[Agent], store: Store, tmp_path: Path
) -> None:
    found = open_run(cls, small(cls, checkpoint_every=5, log_every=1000), store, tmp_path)
    step = found.learner.step

    def poisoned(number: int, batch: Batch) -> dict[str, Tensor]:
        poison = {name: x * float("nan") for name, x in batch.items() if x.is_floating_point()} if number == 13 else {}
        return step(number, batch | poison)

    found.learner.step = poisoned  # type: ignore[method-assign]
    with pytest.raises(EchelonError, match=r"'.*loss.*' became nan at step 15.*last checkpoint is intact"):
        found.train()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None and saved.step == 10
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.tensors.values())


# --- acting and looking


def test_levels_have_names_and_act_within_bounds(cls: type[Agent]) -> None:
    agent = build_agent(cls, small(cls), SPEC)
    levels = agent.levels()
    assert all(isinstance(level, Level) for level in levels)
    assert len({level.name for level in levels}) == len(levels) > 0
    with torch.no_grad():
        for p in agent.parameters():
            p.mul_(30)
    action = act(agent, 10 * states(64), states(64, 1))
    assert action.shape == (64, SPEC.action_dim)
    assert float(action.abs().max()) <= 1
    assert torch.equal(action, act(agent, 10 * states(64), states(64, 1)))


def test_one_row_acts_as_in_a_batch(cls: type[Agent]) -> None:
    agent = build_agent(cls, small(cls), SPEC)
    s, g = states(16), states(16, 1)
    alone = torch.cat([act(agent, s[i : i + 1], g[i : i + 1]) for i in range(len(s))])
    torch.testing.assert_close(alone, act(agent, s, g), rtol=0, atol=1e-5)


@torch.no_grad()
def test_values_and_subgoals_have_their_shapes(cls: type[Agent]) -> None:
    agent = build_agent(cls, small(cls), SPEC)
    s, g, candidates = states(16), states(16, 1), states(10, 2)
    values = agent.value_functions(s, g)
    for name, value in values.items():
        assert value.shape == (16,) and bool(torch.isfinite(value).all()), name
        torch.testing.assert_close(value.flip(0), agent.value_functions(s.flip(0), g.flip(0))[name])
    subgoals = agent.subgoals(s, g, candidates)
    top, *others = agent.levels()
    asks = bool(others) and not isinstance(top, PlanLevel)  # plans are actions, no states
    assert (subgoals is not None) == asks, "a hierarchy shows what its top level asks for"
    if subgoals is not None:
        assert subgoals.shape == s.shape
        assert bool((subgoals[:, None] == candidates).all(-1).any(1).all()), "a subgoal is one of the candidates"
