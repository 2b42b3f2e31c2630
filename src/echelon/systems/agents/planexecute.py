"""The plan-execute program: every turn keeps or switches the subgoal, words it, and acts.

    <switch>KEEP or SWITCH</switch><subgoal>find apple</subgoal><action>go to fridge 1</action>

The context only grows; what the world says is followed by the subgoal that is held. A segment runs from one SWITCH to
the next. Whatever subgoal was written last is held, on KEEP too, as in the released code of HiPER (arXiv 2602.16165).
The scripted expert holds the phase of the task that the world tells ("find apple", "craft stick"), and switches when it
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from echelon.credit.segments import boundaries
from echelon.language.labels import Format, Slot, TagChannel
from echelon.language.program import LevelSpec, Lm, Log, WorldHandle
from echelon.language.worlds.world import Observation, Turn
from echelon.spans import SpanTree
from echelon.systems.agents.react import React
from echelon.training.language.agent import Turns
from echelon.training.language.config import LanguageConfig

SWITCH, SUBGOAL, ACTION = range(3)
"""Labels of the channel `block`."""
FORMAT = Format((Slot(("switch",), values=("KEEP", "SWITCH")), Slot(("subgoal",)), Slot(("action",))))
TAIL = 30
"""Last characters of a text without an action that are taken for one (published: 30)."""


@dataclass(frozen=True)
class Said:
    """What a turn means."""

    switch: bool
    subgoal: str
    action: str
    valid: bool
    """Whether switch, subgoal and action are there and legible; with `strict`, whether the format is kept exactly."""


def read(text: str, strict: bool = False) -> Said:
    """The fields of a turn: what is there or, with `strict`, nothing unless the text keeps to the format.

    Without a switch the subgoal is kept; any switch but KEEP switches. Without an action there is no subgoal either,
    and the last `TAIL` characters are the action.
    """
    parsed = FORMAT.parse(text, strict)
    word, subgoal = parsed.get("switch").upper(), parsed.get("subgoal")
    switch = word not in ("", "KEEP")
    if parsed.first("action") is None:
        return Said(switch, "", text[-TAIL:], False)
    valid = parsed.valid if strict else word in ("KEEP", "SWITCH") and subgoal != ""
    return Said(switch, subgoal, parsed.get("action"), valid)


def write(held: str, subgoal: str, action: str) -> str:
    """The turn of one who holds `held`, wants `subgoal` and does `action`."""
    switch = "KEEP" if held == subgoal else "SWITCH"
    return f"<switch>{switch}</switch><subgoal>{subgoal}</subgoal><action>{action}</action>"


def show(text: str, held: str) -> str:
    """What the world says, and the subgoal held."""
    return f"{text}\nSubgoal: {held or 'None'}"


def phase(seen: Observation) -> str:
    """The expert's subgoal; a world that tells no phases has one for all of the task."""
    return str(seen.info.get("phase", "do the task"))


@dataclass(frozen=True, kw_only=True)
class PlanConfig(LanguageConfig):
    """What runs of the plan-execute program have."""

    plan_tokens: int = 32
    """Tokens that a turn may emit for switch, subgoal and tags, beside the `max_tokens` of its action."""
    strict: bool = False
    """Whether a turn that departs from the format in any way is not understood at all; else what is there counts."""

    @property
    def turn_tokens(self) -> int:
        """Tokens of a whole turn."""
        return self.max_tokens + self.plan_tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("plan_tokens", self.plan_tokens >= 0, "0 or more")


class PlanExecute(React):
    """Base of agents that write a switch, a subgoal and an action every turn."""

    levels: ClassVar[tuple[LevelSpec, ...]] = (
        LevelSpec("episode", span="episode"),
        LevelSpec("segment", span="begin", owns=("subgoal",)),
        LevelSpec("turn", owns=("switch", "action")),
    )
    form: ClassVar[str] = "plan-execute"
    tags: ClassVar[tuple[str, ...]] = tuple(f"<{end}{tag}>" for tag in FORMAT.tags for end in ("", "/"))

    @cached_property
    def channel(self) -> TagChannel:
        """The block of each token; the end token belongs to the last."""
        return FORMAT.channel("block", self.tokenizer, tail=True)

    async def episode(self, task: Any, world: WorldHandle, lm: Lm, log: Log) -> None:
        """Act until the world ends the episode."""
        speak = self.voice.begin(lm, world, [self.channel])
        seen, held, met = await world.reset(task), "", {"": -1}
        log.state(seen.state)
        context = list(self.tokenizer.render([{"role": "user", "content": show(seen.text, held)}]))
        while not seen.done:
            reply = await speak(seen, context, partial(write, held, phase(seen)))
            said = read(reply.text, self.config.strict)
            seen = await world.step(said.action)
            log.turn(seen)
            log.valid(seen.valid and said.valid)
            log.label("subgoal", met.setdefault(said.subgoal, len(met) - 1))
            if said.switch:
                log.begin("segment", of=reply)
            held = said.subgoal
            context += [
                *reply.ids,
                *self.tokenizer.follow([{"role": "user", "content": show(seen.text, held)}]),
            ]

    @classmethod
    def wording(cls, turn: Turn) -> Sequence[str]:
        """Both switches, the subgoal, and the line that shows it."""
        subgoal = phase(turn.before)
        return show("", ""), show("", subgoal), write(subgoal, subgoal, ""), write("", subgoal, "")

    def facts(self, turns: Turns) -> Mapping[str, Tensor]:
        """How many turns a segment lasts, the share of turns that switch, of kept subgoals that are worded anew."""
        switch, subgoal = switches(turns), subgoals(turns)
        before = turns.tree["episode"].shift(subgoal, -1, -1)
        kept = ~switch & (subgoal >= 0) & (before >= 0)
        return {
            "segments/turns": segments(turns)["segment"].lengths.float().mean(),
            "segments/switch": switch.float().mean(),
            "segments/changed": (kept & (subgoal != before)).sum() / kept.sum().clamp(min=1),
        }


def switches(turns: Turns) -> Tensor:
    """bool [C]: whether each turn said SWITCH."""
    begin = turns.record.calls.begin.get("segment")
    return torch.zeros_like(turns.valid) if begin is None else begin[turns.calls]


def subgoals(turns: Turns) -> Tensor:
    """int64 [C]: equal for equal subgoals of an episode, -1 for none."""
    return turns.record.calls.label["subgoal"][turns.calls]


def segments(turns: Turns) -> SpanTree:
    """`episode` > `segment` over the C turns."""
    episodes = turns.tree["episode"]
    return SpanTree({"episode": episodes, "segment": (boundaries(switches(turns), episodes), "episode")})


def blocks(turns: Turns) -> Tensor:
    """int64 [M]: SWITCH, SUBGOAL or ACTION, the block of each token; -1: none."""
    return turns.record.items.label["block"][turns.items]


def owners(turns: Turns) -> Tensor:
    """int64 [M]: whose decision each token is: that of its block; the action's, in turns without one."""
    code = blocks(turns)
    acts = turns.tokens.reduce(code == ACTION, "sum") > 0
    return torch.where(turns.tokens.expand(acts), code, ACTION)


def decided(turns: Turns) -> tuple[Tensor, Tensor]:
    """(int64 [C], bool [C]): of each turn the first of the M tokens after the subgoal's block; whether there is one.

    A turn without it, or without an action, is given its first token.
    """
    code, tokens = blocks(turns), turns.tokens
    follows = (tokens.shift(code, -1, -1) == SUBGOAL) & (code != SUBGOAL)
    place = tokens.reduce(torch.where(follows, torch.arange(tokens.size), tokens.size), "min")
    there = (place < tokens.size) & (tokens.reduce(code == ACTION, "sum") > 0)
    return torch.where(there, place, tokens.starts), there
