"""Offline training: batches from a data set, evaluation on test tasks, and what a checkpoint holds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from echelon.data.hindsight import goal_dim
from echelon.data.source import OfflineSource
from echelon.data.store import Store
from echelon.envs.ensure import ensure
from echelon.errors import DataError
from echelon.training import checkpoint
from echelon.training.agent import Agent, DataSpec, Learner, build_agent, load_weights
from echelon.training.config import Config
from echelon.training.evaluation import Evaluator, means, score
from echelon.training.progress import format_numbers
from echelon.training.runtime import Runtime
from echelon.training.seeding import random_states, restore_random_states
from echelon.training.trainer import Examined, Numbers, Say, Trainer

DATA_FACTS = ("name", "recipe", "regenerated", "source", "seed", "episodes", "transitions")


@dataclass
class OfflineRun(Trainer):
    """Training from a data set, evaluation on the test tasks of its environment."""

    SHOWN: ClassVar[str] = "loss/.*"

    directory: Path
    config: Config
    agent: Agent
    source: OfflineSource
    runtime: Runtime
    evaluator: Evaluator
    learner: Learner = field(init=False)
    step: int = 0
    train_s: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.learner = Learner(self.agent, self.runtime)

    @classmethod
    def inputs(cls, system: type[Agent], config: Config, say: Say) -> Store:
        """The data set, made or fetched if need be."""
        return ensure(config.env, config.transitions, say=say)

    @classmethod
    def facts(cls, inputs: Store) -> dict[str, dict[str, Any]]:
        """Sizes of observations and actions; what the data are."""
        columns = inputs.manifest["columns"]
        shapes = {name: column["shape"] for name, column in columns.items()}
        spec = {f"{name}_dim": shapes[f"{name}s"][-1] for name in ("observation", "action")}
        if (apart := goal_dim(shapes)) is not None:
            spec["goal_dim"] = apart
        return {"spec": spec, "data": {key: inputs.manifest.get(key) for key in DATA_FACTS}}

    @classmethod
    def material(cls, system: type[Agent], config: Config) -> tuple[str, dict[str, Any]]:
        """The data set and how much of it; name, size and checksum."""
        manifest = ensure(config.env, config.transitions).manifest
        files = {name: part["sha256"] for name, part in {**manifest["columns"], "lengths": manifest["lengths"]}.items()}
        content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        facts = {**{key: manifest[key] for key in ("name", "episodes", "transitions")}, "sha256": content}
        return f"{config.env} {config.transitions or 'whole'}", facts

    @classmethod
    def check(cls, directory: Path, recorded: Mapping[str, Any], inputs: Store) -> None:
        """Refuse other data. The name may differ: a larger set of the same recipe begins with the smaller."""
        deciding = ("recipe", "regenerated", "seed", "episodes", "transitions")
        before, now = recorded["data"], inputs.manifest
        changes = [f"{k} was {before.get(k)}, is {now.get(k)}" for k in deciding if before.get(k) != now.get(k)]
        if changes:
            raise DataError(
                f"{directory} was begun on other data than are stored now ({', '.join(changes)}); start another run"
            )

    @classmethod
    def build(cls, system: type[Agent], config: Config, directory: Path, runtime: Runtime, inputs: Store) -> OfflineRun:
        """A run at step 0."""
        source = cls.batches(config, inputs, runtime)
        agent = build_agent(system, config, DataSpec(**cls.facts(inputs)["spec"]))
        evaluator = Evaluator(config.env, config.eval_episodes, config.seed, goal_dim=agent.goal_dim)
        return cls(directory, config, agent.to(runtime.device), source, runtime, evaluator)

    @classmethod
    def batches(cls, config: Any, inputs: Store, runtime: Runtime) -> OfflineSource:
        """What the run learns from."""
        return OfflineSource(inputs, config.goals(), config.batch_size, config.seed, runtime.device)

    @classmethod
    def load(cls, system: type[Agent], config: Config, spec: Mapping[str, Any], found: checkpoint.Checkpoint) -> Agent:
        """The agent with a checkpoint's weights."""
        agent = build_agent(system, config, DataSpec(**spec))
        load_weights(agent, found)
        return agent.eval()

    @classmethod
    def evaluate(cls, agent: Agent, config: Config, step: int, episodes: int, seed: int) -> dict[str, Any]:
        """Success by task."""
        return Evaluator(config.env, episodes, seed, goal_dim=agent.goal_dim).run(agent, step).row

    def result(self) -> dict[str, Any]:
        """The mean success over the last evaluations."""
        evaluation_s = sum(row["seconds"] for row in self.evaluations)
        return {**score(self.evaluations), "updates": self.step, "evaluation_s": round(evaluation_s, 1)}

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        optimizers, description = checkpoint.flatten(self.learner.state_dict(), "optimizer")
        generators, random = checkpoint.flatten(random_states(), "random")
        source = self.source.state_dict()
        weights = {f"agent.{k}": v for k, v in self.agent.state_dict().items()}
        tensors = weights | optimizers | generators | {"source.generator": source["generator"]}
        state = {"optimizer": description, "random": random, "source_position": source["position"]}
        checkpoint.save(self.directory, self.step, tensors, state | {"train_s": self.train_s})

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint, bit for bit."""
        load_weights(self.agent, found)
        self.learner.load_state_dict(checkpoint.unflatten(found.tensors, found.state["optimizer"]))
        restore_random_states(checkpoint.unflatten(found.tensors, found.state["random"]))
        self.source.load_state_dict(
            {"generator": found.tensors["source.generator"], "position": found.state["source_position"]}
        )
        self.step, self.train_s = found.step, found.state["train_s"]

    def iterate(self) -> Numbers:
        """All updates, on the next batch."""
        started = time.perf_counter()
        values = self.learner.step(self.step, self.source.next())
        self.train_s += time.perf_counter() - started
        return {"updates_per_s": self.step / max(self.train_s, 1e-9), **values}

    def examine(self) -> Examined:
        """Success on the test tasks."""
        row, rollout = self.evaluator.run(self.agent, self.step)
        rollout.save(self.directory / "rollouts" / f"step_{self.step:09d}")
        found = means(row)
        return Examined(row, found, format_numbers(found, ".2f"))
