"""The flat program that the turn-level baselines share: the world speaks, the agent answers with an action.

The context only grows: every turn appends the observation and the action, so that a training pass reads each episode
once. Reward: what the world pays, less a penalty for a turn that it does not understand.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from echelon.language.program import LevelSpec, Lm, Log, WorldHandle
from echelon.training.language.agent import LanguageAgent, Turns


class React(LanguageAgent):
    """Base of agents that answer every observation with one action."""

    levels: ClassVar[tuple[LevelSpec, ...]] = (LevelSpec("episode", span="episode"), LevelSpec("turn"))
    form: ClassVar[str] = "react"

    async def episode(self, task: Any, world: WorldHandle, lm: Lm, log: Log) -> None:
        """Act until the world ends the episode."""
        speak = self.voice.begin(lm, world)
        seen = await world.reset(task)
        log.state(seen.state)
        context = list(self.tokenizer.render([{"role": "user", "content": seen.text}]))
        while not seen.done:
            reply = await speak(seen, context, str)
            seen = await world.step(reply.text)
            log.turn(seen)
            context += [*reply.ids, *self.tokenizer.follow([{"role": "user", "content": seen.text}])]

    def rewards(self, turns: Turns) -> Tensor:
        """[C]: what the world paid for each turn, less the penalty of an invalid one."""
        return turns.reward - self.config.invalid_penalty * (~turns.valid).to(turns.reward.dtype)
