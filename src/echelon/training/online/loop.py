"""The online loop: collect with every slot, learn from what was collected, evaluate greedily; resumable.

A checkpoint holds weights, optimisers, generators, what the agent keeps (replay, open transitions), the runner in the
middle of its spans and, where the environment's state can be told, the episodes themselves. Where it cannot, a resumed
run begins new episodes, and says so: on the terminal, and in metrics.jsonl as a line of the kind "resumed".
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from echelon.envs.spaces import Spaces
from echelon.errors import DataError
from echelon.hierarchy.diagnostics import flattened
from echelon.hierarchy.runner import Runner
from echelon.hierarchy.world import Restorable
from echelon.rollout import Rollout
from echelon.training import checkpoint
from echelon.training.agent import Batch, Learner, Metrics, build_agent, load_weights
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.config import OnlineConfig
from echelon.training.online.play import SUCCESS, Evaluator, episode_rows, score
from echelon.training.online.recording import Recording
from echelon.training.online.worlds import make_world, world_spaces
from echelon.training.progress import format_numbers
from echelon.training.runtime import Runtime
from echelon.training.seeding import random_states, restore_random_states
from echelon.training.trainer import Examined, Numbers, Say, Trainer


@dataclass
class OnlineRun(Trainer):
    """One run of a system in an environment."""

    FILES: ClassVar[tuple[str, ...]] = ("evaluations", "episodes")
    SHOWN: ClassVar[str] = "return|length|steps_per_s"

    directory: Path
    config: OnlineConfig
    agent: OnlineAgent
    runtime: Runtime
    runner: Runner
    evaluator: Evaluator
    learner: Learner = field(init=False)
    recording: Recording = field(init=False)
    step: int = 0
    gradient_steps: int = 0
    train_s: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    abandoned: bool = False
    """Whether the run was resumed with new episodes, since the environment's state could not be kept."""

    def __post_init__(self) -> None:
        self.learner = Learner(self.agent, self.runtime)
        self.recording = Recording(self.directory / "rollouts", self.config.slots)

    @classmethod
    def inputs(cls, system: type[OnlineAgent], config: OnlineConfig, say: Say) -> Spaces:
        """What the environment shows and takes."""
        return world_spaces(config.env)

    @classmethod
    def facts(cls, inputs: Spaces) -> dict[str, dict[str, Any]]:
        """The spaces, from which networks are built."""
        return {"spec": inputs.to_json(), "data": {}}

    @classmethod
    def material(cls, system: type[OnlineAgent], config: OnlineConfig) -> tuple[str, dict[str, Any]]:
        """The environment, and what it shows and takes."""
        return config.env, world_spaces(config.env).to_json()

    @classmethod
    def check(cls, directory: Path, recorded: Mapping[str, Any], inputs: Spaces) -> None:
        """Refuse an environment with other spaces than those that the run began with."""
        if Spaces.from_json(recorded["spec"]) != inputs:
            raise DataError(f"{directory} was begun in an environment with other spaces; start another run")

    @classmethod
    def build(
        cls, system: type[OnlineAgent], config: OnlineConfig, directory: Path, runtime: Runtime, inputs: Spaces
    ) -> OnlineRun:
        """A run at step 0."""
        agent = build_agent(system, config, inputs).to(runtime.device)
        generator = torch.Generator(runtime.device).manual_seed(config.seed)
        runner = Runner(
            agent.levels(explore=True),
            make_world(config.env, config.slots, config.limit),
            generator=generator,
            device=runtime.device,
            info_labels=SUCCESS,
        )
        return cls(directory, config, agent, runtime, runner, Evaluator(config))

    @classmethod
    def load(
        cls, system: type[OnlineAgent], config: OnlineConfig, spec: Mapping[str, Any], found: checkpoint.Checkpoint
    ) -> OnlineAgent:
        """The agent with a checkpoint's weights."""
        agent = build_agent(system, config, Spaces.from_json(spec))
        load_weights(agent, found)
        return agent.eval()

    @classmethod
    def evaluate(cls, agent: OnlineAgent, config: OnlineConfig, step: int, episodes: int, seed: int) -> dict[str, Any]:
        """Returns, and successes where the environment tells them."""
        return Evaluator(config, episodes, seed).run(agent, step).row

    def result(self) -> dict[str, Any]:
        """The mean over the last evaluations."""
        done = {"updates": self.step, "environment_steps": self.step * self.config.steps}
        return {**score(self.evaluations), **done, "gradient_steps": self.gradient_steps}

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        world = self.runner.world
        states = {
            "optimizer": self.learner.state_dict(),
            "random": random_states(),
            "kept": {name: part.state_dict() for name, part in self.agent.kept().items()},
            "runner": self.runner.state_dict(),
            "world": world.state_dict() if isinstance(world, Restorable) else None,
        }
        tensors = {f"agent.{k}": v for k, v in self.agent.state_dict().items()}
        state: dict[str, Any] = {"train_s": self.train_s, "gradient_steps": self.gradient_steps}
        state["recording"] = self.recording.save(self.step)
        for name, part in states.items():
            found, state[name] = checkpoint.flatten(part, name)
            tensors |= found
        checkpoint.save(self.directory, self.step, tensors, state)
        self.recording.prune(self.directory / "checkpoints")

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: bit for bit, or with new episodes where the environment cannot be restored."""
        load_weights(self.agent, found)

        def part(name: str) -> Any:
            return checkpoint.unflatten(found.tensors, found.state[name])

        self.learner.load_state_dict(part("optimizer"))
        kept = part("kept")
        for name, keeper in self.agent.kept().items():
            keeper.load_state_dict(kept[name])
        self.step, self.train_s = found.step, found.state["train_s"]
        self.gradient_steps = found.state["gradient_steps"]
        self.recording.load(found.step, found.state.get("recording"))
        world, state = self.runner.world, part("world")
        if isinstance(world, Restorable) and state is not None:
            world.load_state_dict(state)
            with self.runtime.fitting(self.agent):  # levels look at the latest observation again
                self.runner.load_state_dict(part("runner"))
        else:
            self.abandoned = True
            self.runner.skip_episodes(part("runner"))
            self.agent.abandon()
            self.recording.leave()
        restore_random_states(part("random"))

    # ---- training

    def begin(self) -> None:
        """As in any run; say so where it goes on with new episodes."""
        super().begin()
        if self.abandoned:
            self.progress.print(
                "the environment's state cannot be kept: running episodes were abandoned, new ones begin"
            )
            self.metrics.write(self.step, "resumed", {"abandoned": 1.0})

    def iterate(self) -> Numbers:
        """Collect with every slot, and learn from what was collected."""
        c = self.config
        started = time.perf_counter()
        with self.runtime.fitting(self.agent):
            rollout = self.runner.collect(c.ticks)
            with torch.no_grad():
                self.recording.add(self.agent, rollout, last=self.due(c.eval_every))
            collected = time.perf_counter()
            values = self._learn(rollout)
            self.runner.refresh()
        spent = {"collect_s": collected - started, "learn_s": time.perf_counter() - collected}
        self.train_s += sum(spent.values())
        for row in episode_rows(rollout, self.step, self.step * c.steps):
            self.files["episodes"].append(row)
        if not self.due(c.log_every):
            return values
        return {**self._counts(rollout), **values, **spent, **self.agent.facts(rollout)}

    def _learn(self, rollout: Rollout) -> Metrics:
        """The gradient steps that follow on a rollout; the metrics of the last."""
        values: Metrics = {}
        for batch in _without_grad(self.agent.learn(rollout)):
            self.gradient_steps += 1
            values = self.learner.step(self.gradient_steps, batch)
        return values

    def _counts(self, rollout: Rollout) -> dict[str, float]:
        steps = self.step * self.config.steps
        counts = {
            "environment_steps": steps,
            "gradient_steps": self.gradient_steps,
            "steps_per_s": steps / self.train_s,
        }
        streams = rollout.streams
        ended = streams.terminated | streams.truncated
        if bool(ended.any()):
            counts |= {
                name: float(torch.as_tensor(streams.labels[name])[ended].double().mean())
                for name in ("return", "length")
            }
        return counts

    def examine(self) -> Examined:
        """Returns, and successes where the environment tells them, of greedy episodes."""
        self.recording.write(self.step)
        row, rollout = self.evaluator.run(self.agent, self.step)
        rollout.save(self.directory / "rollouts" / f"step_{self.step:09d}")
        found = {name: row[name] for name in ("return", "length", "success") if row[name] is not None}
        return Examined(row, found | flattened(rollout.meta["diagnostics"]), format_numbers(found))


def _without_grad(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of an agent, made without gradients; what is done with them is not touched."""
    while True:
        with torch.no_grad():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
