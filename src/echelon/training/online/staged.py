"""Online runs that build on earlier ones: skills first, say, and then who commands them; one directory, resumable.

The stages before the last are runs of their own below `<run>/stages`, with their checkpoints and metrics; the last one
is the run itself. A stage names a system (`agent`) and its configuration (`source`).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echelon.training import run
from echelon.training.online.agent import OnlineAgent
from echelon.training.online.loop import OnlineRun
from echelon.training.seeding import seed_everything
from echelon.training.stages import Plan, Stage, StageResult, run_stages
from echelon.training.trainer import Trainer


class StagedAgent(OnlineAgent):
    """Base of systems that learn above what earlier stages learned."""

    @classmethod
    def trainer(cls) -> type[Trainer]:
        """The loop that goes through the stages first."""
        return StagedRun

    @classmethod
    @abstractmethod
    def stages(cls, config: Any) -> Plan:
        """The stages before this one's own training; a pure function of the configuration and the results sent in."""

    @abstractmethod
    def build_on(self, results: Sequence[StageResult]) -> None:
        """Take over what the stages learned; called once, before the first step."""


class StopRequested(Exception):
    """A signal stopped a stage, whose state is saved."""


@dataclass
class StagedRun(OnlineRun):
    """The stages, then the loop."""

    def train(self, tensorboard: bool = False) -> bool:
        """Train the stages that are not finished, then to the end of the budget; False if a signal asked to stop."""
        if self.step == 0 and not self._stages_done():
            return False
        return super().train(tensorboard)

    def result(self) -> dict[str, Any]:
        """As of any online run; `stages` says what those before cost, and `environment_steps` counts theirs too."""
        found = super().result()
        files = sorted((self.directory / "stages").glob("*/result.json"))
        before = {file.parent.name: json.loads(file.read_text()) for file in files}
        steps = sum(result.get("environment_steps", 0) for result in before.values())
        return {**found, "environment_steps": found["environment_steps"] + steps, "stages": before}

    def _stages_done(self) -> bool:
        assert isinstance(self.agent, StagedAgent)
        try:
            results = run_stages(self.agent.stages, self.config, self.directory, self._execute)
        except StopRequested:
            return False
        self.agent.build_on(results)
        seed_everything(self.config.seed)  # as at the start, whatever the stages drew
        return True

    def _execute(self, stage: Stage, directory: Path) -> Mapping[str, Any]:
        runtime = self.runtime
        done = run.train(
            stage.agent(),
            stage.source(),
            directory,
            device=str(runtime.device),
            precision=runtime.precision,
            threads=runtime.threads,
        )
        if done is None:
            raise StopRequested
        return json.loads((done / "result.json").read_text())
