"""What every online system promises; it is under test as soon as the index names it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hierarchy_scripts import Script, obey
from small_runs import TinyWorld, synthetic_store, tiny_world

from echelon.data.store import Store, write_store
from echelon.errors import EchelonError, UsageError
from echelon.hierarchy.diagnostics import flattened
from echelon.hierarchy.frozen_stack import Command, FrozenStack
from echelon.hierarchy.level import Level
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.termination import Every, Never
from echelon.hierarchy.world import GymWorld, Reset, from_gym
from echelon.rollout import Rollout
from echelon.systems import index, launch
from echelon.systems.online.recipes import SIZES
from echelon.systems.online.sac import SAC
from echelon.training import run
from echelon.training.agent import Learner
from echelon.training.config import from_json, to_json
from echelon.training.metrics import read_jsonl
from echelon.training.online.agent import Keeper, OnlineAgent
from echelon.training.online.conformance import CONTINUED, ConformanceError, Resumed, check_resume, forget_after
from echelon.training.online.loop import build_agent
from echelon.training.online.play import Evaluator
from echelon.training.online.worlds import make_world, world_spaces

SYSTEMS = [name for name in index.names() if issubclass(index.load(name), OnlineAgent)]
PENDULUM, MAZE = "Pendulum-v1", "PointMaze_UMaze-v3"
WORLDS = {
    **dict.fromkeys(("sac", "td3", "diayn", "diayn-manager", "dads", "ppo-scratch", "mocapact-transfer"), PENDULUM),
    **dict.fromkeys(("sac-her", "hiro", "hac"), MAZE),
}
"""Where they are small; elsewhere that of their defaults."""
SMALL: dict[str, Any] = {
    "slots": 2, "ticks": 7, "updates": 5, "limit": 20, "hidden": (6,), "batch_size": 6, "capacity": 60,
    "random_steps": 14, "gradient_ratio": 0.2, "minibatch": 8, "epochs": 1, "eval_every": 5, "eval_episodes": 2,
    "log_every": 1, "horizon": 3, "size": 4, "embedding": 3, "skills": 3, "skill_updates": 3, "skill_hidden": (6,),
    "skill_batch": 6, "skill_random_steps": 14, "skill_capacity": 60, "meta_capacity": 30, "depth": 3, "near": (0.2,),
    "latent": 3, "encoder_hidden": (6,), "decoder_hidden": (6,), "distil_updates": 3, "distil_batch": 4,
    "low": (-1.5, -1.5), "high": (1.5, 1.5), "hold": 4, "period": 3, "reach": (1.0,), "others": 4, "samples": 6,
}  # fmt: skip
"""Sizes of a run of a moment, as far as a system has them."""
EXCEPT: dict[str, dict[str, Any]] = {"feudal": {"hidden": 6}, "hiro": {"near": 0.2}}


def small(cls: type[OnlineAgent], **changes: Any) -> Any:
    """The system's default configuration with tiny layers and a tiny budget."""
    config = cls.Config()
    wanted = SMALL | {"env": WORLDS.get(config.system, config.env)} | EXCEPT.get(config.system, {}) | changes
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in wanted.items() if name in names})


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No write waits for the disk; stages that learn from data have random pushes, and a line as a world."""
    folder = tmp_path_factory.mktemp("data")
    walks = synthetic_store(folder / "walks")
    pushes = {**walks.columns, "actions": walks.columns["actions"][:, :1]}
    data = Store.open(write_store(folder / "pushes", [pushes], walks.rows, {"name": "pushes"}, "random pushes"))
    with tiny_world(data), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TinyWorld, "action_space", gymnasium.spaces.Box(-1, 1, (1,)))
        yield


@pytest.fixture(scope="module", params=SYSTEMS)
def cls(request: pytest.FixtureRequest) -> type[OnlineAgent]:
    """Every such system in turn."""
    return typing.cast(type[OnlineAgent], index.load(request.param))


@pytest.fixture(scope="module")
def checked(cls: type[OnlineAgent], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Resumed]:
    """A finished run of the system, and how it went on from its middle."""
    folder = tmp_path_factory.mktemp(cls.__name__)
    return folder / CONTINUED, check_resume(cls, small(cls), folder)


# --- building and configuration


def test_it_builds_from_its_defaults(cls: type[OnlineAgent]) -> None:
    config = cls.Config(env=small(cls).env)
    agent = build_agent(cls, config, world_spaces(config.env))
    assert all(
        bool(torch.isfinite(tensor).all()) for tensor in agent.state_dict().values() if tensor.is_floating_point()
    )
    updates = agent.updates()
    assert len({update.name for update in updates}) == len(updates)
    owned = {id(p) for update in updates for module in update.modules for p in module.parameters() if p.requires_grad}
    assert owned == {id(p) for p in agent.parameters() if p.requires_grad}, (
        "updates move what is trainable, and all of it"
    )
    for explore in (True, False):
        levels = agent.levels(explore)
        assert all(isinstance(level, Level) for level in levels)
        assert len({level.name for level in levels}) == len(levels) > 0


def test_its_configuration_survives_json(cls: type[OnlineAgent]) -> None:
    env = small(cls).env
    for config in [cls.Config(), *(launch.recipe(cls.Config.system, env, size) for size in SIZES), small(cls, seed=7)]:
        document = json.loads(json.dumps(to_json(config)))
        assert document["system"] == cls.Config.system
        assert from_json(cls.Config, document["config"]) == config
    with pytest.raises(UsageError, match="slotz"):
        from_json(cls.Config, {**document["config"], "slotz": 3})


def test_its_configuration_refuses_senseless_values_by_name(cls: type[OnlineAgent]) -> None:
    for name, value in {"slots": 0, "ticks": 0, "updates": 0, "limit": 0, "lr": -1.0, "eval_every": -1}.items():
        with pytest.raises(UsageError, match=rf"{cls.Config.system}: .*{name}"):
            dataclasses.replace(cls.Config(), **{name: value})


# --- going on


def test_it_goes_on_bit_for_bit_in_the_middle_of_its_spans(
    cls: type[OnlineAgent], checked: tuple[Path, Resumed]
) -> None:
    folder, found = checked
    assert found.exact, "all worlds of this suite can be brought back"
    levels = build_agent(cls, small(cls), world_spaces(small(cls).env)).levels(True)
    if any(repr(level.termination) != "Every(1)" for level in levels):
        assert found.inside, "no decision was running where the run was stopped, so that nothing was tested"
    assert not (folder.parent / "restored").exists()


class Nothing:
    """What no world is."""


def test_where_its_world_cannot_be_brought_back_it_says_so_and_begins_new_episodes(
    cls: type[OnlineAgent], checked: tuple[Path, Resumed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(checked[0], folder)
    forget_after(folder, 3)
    monkeypatch.setattr("echelon.training.online.loop.Restorable", Nothing)
    said: list[str] = []
    assert run.train(cls, run.load_config(cls, folder), folder, device="cpu", threads=1, say=said.append) == folder
    assert "resumed at step 3" in said
    assert [r["step"] for r in read_jsonl(folder / "metrics.jsonl") if r["kind"] == "resumed"] == [3]
    numbers = [row["episode"] for row in read_jsonl(folder / "episodes.jsonl")]
    assert len(set(numbers)) == len(numbers)


def test_lines_of_metrics_are_numbers_under_stable_names(checked: tuple[Path, Resumed]) -> None:
    rows = [row for row in read_jsonl(checked[0] / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for name, value in ((n, v) for row in rows for n, v in row.items() if n != "kind"):
        assert re.fullmatch(r"[a-z][a-z0-9_]*(/[a-z0-9_]+)*", name), name
        assert value is None or type(value) in (int, float), name


def test_a_finished_run_opens_again_and_acts_the_same(cls: type[OnlineAgent], checked: tuple[Path, Resumed]) -> None:
    folder = checked[0]
    agent, step = run.load_agent(cls, folder)
    assert step == 5 and not agent.training
    row = Evaluator(run.load_config(cls, folder)).run(agent, step).row
    last = read_jsonl(folder / "evaluations.jsonl")[-1]
    assert row["returns"] == last["returns"] and row["lengths"] == last["lengths"]


def test_the_record_of_an_evaluation_tells_of_every_level(
    cls: type[OnlineAgent], checked: tuple[Path, Resumed]
) -> None:
    rollout = Rollout.load(checked[0] / "rollouts" / "step_000000005")
    found = rollout.meta["diagnostics"]
    assert list(found) == list(rollout.levels)
    for level in rollout.levels[:-1]:
        numbers = found[level]
        assert numbers["length"] >= 1 and 0 <= numbers["reached"] <= 1
        assert sum(x for name, x in numbers.items() if name.startswith("end_")) == pytest.approx(1)
        if not rollout.decisions[level].action.is_floating_point():
            assert 0 <= numbers["entropy"] <= 1 and 0 < numbers["coverage"] <= 1
        if "value" in rollout.decisions[level].values:
            assert abs(numbers["value_bias"]) <= numbers["value_error"]
    row = next(row for row in read_jsonl(checked[0] / "metrics.jsonl") if row["kind"] == "eval")
    assert row.items() >= flattened(found).items()


def test_other_seeds_begin_otherwise(cls: type[OnlineAgent]) -> None:
    env = small(cls).env
    spaces = world_spaces(env)
    worlds = [
        Runner(_agent(cls, spaces, seed).levels(True), make_world(env, 2), generator=_draws(seed)) for seed in (0, 1)
    ]
    one, other = (runner.collect(8) for runner in worlds)
    seen = [torch.cat([column.double().flatten() for column in each.observation.values()]) for each in (one, other)]
    assert not torch.equal(*seen) or not torch.equal(one.proposed, other.proposed)


def _agent(cls: type[OnlineAgent], spaces: Any, seed: int) -> OnlineAgent:
    return build_agent(cls, small(cls, seed=seed, random_steps=0), spaces)


def _draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- a check that fails where it should


LOOK = SAC.Config(**{name: SMALL[name] for name in SMALL if hasattr(SAC.Config, name)}, env=PENDULUM)


class Forgetful(SAC):
    """Keeps no replay."""

    def kept(self) -> Mapping[str, Keeper]:
        return {"moves": self.moves}


class Overlooked(SAC):
    """Learns from a number that is in no checkpoint."""

    rounds = 0

    def draw(self) -> Any:
        self.rounds += 1
        batch = super().draw()
        return batch | {"reward": batch["reward"] + 0.1 * self.rounds}


def test_a_world_that_cannot_be_brought_back_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echelon.hierarchy.world.state_of", lambda env: None)
    assert check_resume(SAC, LOOK, tmp_path) == Resumed(False, ())
    rows = [row for row in read_jsonl(tmp_path / "resumed" / "metrics.jsonl") if row["kind"] == "resumed"]
    assert [row["step"] for row in rows] == [3]


def test_a_silent_restart_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world says that it was brought back, and has begun new episodes."""

    def begin(world: GymWorld, state: Mapping[str, Any]) -> None:
        world._rows, world._plain = {}, state["plain"]
        world.reset(np.arange(world.slots), [Reset(seed=slot) for slot in range(world.slots)])

    def restart(runner: Runner, state: Mapping[str, Any]) -> None:
        runner.skip_episodes(state)

    with monkeypatch.context() as patch:
        patch.setattr(GymWorld, "load_state_dict", begin)
        with pytest.raises(
            ConformanceError, match=r"SAC, resumed after update 3, collected something else in update 4"
        ):
            check_resume(SAC, LOOK, tmp_path / "world")
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "load_state_dict", restart)
        patch.setattr(SAC, "learn", _forgiving(SAC.learn))
        with pytest.raises(
            ConformanceError, match=r"SAC was restarted silently: after update 3 its episodes began anew"
        ):
            check_resume(SAC, LOOK, tmp_path / "runner")


def _forgiving(learn: Any) -> Any:
    """Learning that takes what goes on from nowhere as if it began there."""

    def learned(agent: SAC, rollout: Any) -> Any:
        if bool((rollout.streams.start_tick == 0).all()):
            agent.abandon()
        return learn(agent, rollout)

    return learned


@pytest.mark.parametrize("broken", [Forgetful, Overlooked])
def test_a_system_that_forgets_fails(broken: type[SAC], tmp_path: Path) -> None:
    with pytest.raises(ConformanceError, match=rf"{broken.__name__}, resumed"):
        check_resume(broken, LOOK, tmp_path)


def test_a_lost_optimiser_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the episodes go on."""
    monkeypatch.setattr(Learner, "load_state_dict", lambda learner, state: None)
    with pytest.raises(ConformanceError, match="SAC, resumed"):
        check_resume(SAC, LOOK, tmp_path / "exact")
    monkeypatch.setattr("echelon.hierarchy.world.state_of", lambda env: None)
    with pytest.raises(ConformanceError, match=r"lost more than its episodes: 'optimizer\."):
        check_resume(SAC, LOOK, tmp_path / "declared")


def test_a_declared_restart_that_gives_old_numbers_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echelon.hierarchy.world.state_of", lambda env: None)
    monkeypatch.setattr(Runner, "skip_episodes", lambda runner, state: None)
    with pytest.raises(ConformanceError, match="gave episodes numbers that were taken"):
        check_resume(SAC, dataclasses.replace(LOOK, limit=6), tmp_path)


def test_a_stop_that_leaves_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 updates is stopped at half of them or later, not at 2"):
        check_resume(SAC, LOOK, tmp_path, stop=2)


# --- what is wrong is said once, with level, environment and step


class Endless(gymnasium.Env[np.ndarray, np.ndarray]):
    """Counts its steps and never ends; what goes wrong goes wrong in its third step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, wrong: str = ""):
        self.wrong, self.steps = wrong, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        if self.wrong == "raises" and self.steps == 3:
            raise ZeroDivisionError("the floor is gone")
        seen = np.full(2, np.nan if self.wrong == "nan" and self.steps == 3 else self.steps)
        return seen, 0.0, False, False, {}


def test_an_option_that_never_ends_is_named() -> None:
    """Where nothing else ends the episode, as a level and as the command of a frozen stack."""
    option = Script("option", Never(), lambda features, parent: features["observation"])
    with pytest.raises(
        EchelonError,
        match=r"does not end: level 'option' has held its decision for \d+ ticks in stream 0: slot 0, episode 0, tick "
        r"\d+ of Endless; give the environment a time limit",
    ):
        Runner([option, obey()], from_gym([Endless()]), longest=100).episodes([Reset()])
    stack = FrozenStack(from_gym([Endless()]), [obey()], Command(Never(), "skill"), limit=50)
    with pytest.raises(
        EchelonError,
        match=r"level 'manager' in stream 0: slot 0, episode 0, tick 0 of the stack in Endless: EchelonError: the "
        r"command of level 'skill' has not ended after 50 ticks in Endless; let it end by Never\(\) \| Every\(k\)",
    ):
        Runner([Script("manager")], stack).collect(1)


def test_a_goal_outside_its_space_is_named() -> None:
    goals = Script("goal", Every(2), lambda features, parent: 2 * features["observation"])
    goals.within = (torch.tensor([-3.0, -3.0]), torch.tensor([3.0, 5.0]))
    with pytest.raises(
        EchelonError,
        match=r"level 'goal' gave \[4.0, 4.0\], outside of its space from \[-3.0, -3.0\] to \[3.0, 5.0\], in stream 0: "
        "slot 0, episode 0, tick 2 of Endless",
    ):
        Runner([goals, obey()], from_gym([Endless()])).collect(5)
    choice = Script("option", Every(2), lambda features, parent: features["observation"][:, :1].long())
    choice.within = (0, 3)
    with pytest.raises(
        EchelonError, match=r"level 'option' gave \[4\], outside of its space from 0 to 3, in .* tick 4 of"
    ):
        Runner([choice, Script("low")], from_gym([Endless()])).collect(5)


def test_an_observation_that_is_no_number_is_named() -> None:
    with pytest.raises(
        EchelonError,
        match="observation 'observation', seen by level 'low', contains NaN in stream 1: slot 1, episode 1, tick 3 of "
        "Endless",
    ):
        Runner([Script("low")], from_gym([Endless(), Endless("nan")])).collect(5)


def test_an_environment_that_raises_is_named() -> None:
    with pytest.raises(
        EchelonError,
        match="the world raised on an action of level 'low' in stream 1: slot 1, episode 1, tick 2 of Endless: "
        "ZeroDivisionError: the floor is gone",
    ):
        Runner([Script("low")], from_gym([Endless(), Endless("raises")])).collect(5)


def test_a_stack_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """Skills of a pendulum, with three numbers to see and one to act, where there are two and two."""
    skills = build_agent(index.load("diayn"), small(index.load("diayn")), world_spaces(PENDULUM)).levels(False)[1:]
    stack = FrozenStack(from_gym([Endless()]), skills, Command(Every(4), "skill"))
    manager = Script("manager", act=lambda features, parent: torch.zeros(len(features["observation"]), 3))
    with pytest.raises(
        EchelonError,
        match=r"level 'manager' in some stream of the stack in Endless: UsageError: level 'action' does not fit "
        r"Endless, which shows 'observation' \[2\]",
    ):
        Runner([manager], stack).collect(1)
