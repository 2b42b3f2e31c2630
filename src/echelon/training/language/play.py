"""Episodes of a language agent in a text world: which tasks, run by the driver, as a record; and what they came to."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echelon.language._layout import common_prefix
from echelon.language.driver import Driver, Phase, Settings, Start
from echelon.language.engine import Engine
from echelon.language.record import Record, Use
from echelon.language.words import Tokenizer
from echelon.language.worlds.world import Task, make, tasks
from echelon.training.language.agent import LanguageAgent
from echelon.training.language.config import LanguageConfig

EVALUATION = 1 << 31
"""Added to the seed of a run for its evaluations, so that they share no random number with its training."""


def driver(
    engine: Engine, tokenizer: Tokenizer, config: LanguageConfig, context: int | None, run: int, temperature: float
) -> Driver:
    """A driver for episodes of the run's world."""
    settings = Settings(
        run=run, batch=config.batch, max_tokens=config.max_tokens, temperature=temperature, context=context
    )
    return Driver(engine, tokenizer, settings, options={config.env: config.world}, workers=config.workers)


def kinds(config: LanguageConfig) -> Sequence[str] | None:
    """The kinds of tasks, None for all of the world's."""
    return config.kinds or None


def training_starts(config: LanguageConfig, step: int) -> list[Start]:
    """The episodes of iteration `step` (from 1): `config.group` of each of `config.tasks` new tasks."""
    drawn = tasks(config.env, "train", step * config.tasks, config.seed, kinds(config))[-config.tasks :]
    first = (step - 1) * config.tasks
    return [
        Start(uid=(first + i) * config.group + k, group=first + i, task=task)
        for i, task in enumerate(drawn)
        for k in range(config.group)
    ]


def test_tasks(config: LanguageConfig, episodes: int) -> list[Task]:
    """`episodes` tasks of each kind of the evaluation, that no training meets; the same for all seeds."""
    chosen = config.eval_kinds or tuple(kinds(config) or make(config.env).kinds)
    return tasks(config.env, "test", episodes * len(chosen), 0, chosen)


def evaluate(
    agent: LanguageAgent,
    engine: Engine,
    context: int | None,
    config: LanguageConfig,
    step: int,
    episodes: int,
    seed: int,
    journal: Path | None = None,
    meta: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Phase]:
    """(row of evaluations.jsonl, what happened): an episode of each test task, at the evaluation temperature.

    journal, meta: as of `Driver.rollout`.
    """
    started = time.monotonic()
    games = test_tasks(config, episodes)
    starts = [Start(uid=step * len(games) + i, group=i, task=task) for i, task in enumerate(games)]
    with driver(engine, agent.tokenizer, config, context, seed + EVALUATION, config.eval_temperature) as driven:
        phase = driven.rollout(agent.episode, starts, levels=agent.levels, journal=journal, meta=meta)
    won, spent, record = success(phase.record), tokens(phase.record), phase.record
    outcomes: dict[str, list[int]] = {}
    lengths: dict[str, list[int]] = {}
    for episode in record.episodes.uid.argsort().tolist():
        kind = record.kinds[int(record.episodes.kind[episode])]
        outcomes.setdefault(kind, []).append(int(won[episode]))
        lengths.setdefault(kind, []).append(int(spent[episode]))
    row = {
        "step": step,
        "success": round(float(won.double().mean()), 6),
        "tasks": outcomes,
        "lengths": {kind: round(sum(n) / len(n), 4) for kind, n in lengths.items()},
        **{name: round(float(value), 4) for name, value in facts(record).items()},
        "faults": len(phase.faults),
        "seconds": round(time.monotonic() - started, 2),
        "load": round(os.getloadavg()[0], 2),
    }
    return row, phase


def returns(record: Record) -> Tensor:
    """[E]: what the world paid in each episode."""
    total = torch.zeros(len(record.episodes.uid))
    return total.index_add(0, record.episode, record.calls.reward)


def success(record: Record) -> Tensor:
    """bool [E]: episodes that ended by themselves, with a positive return."""
    return record.episodes.terminated & (returns(record) > 0)


def tokens(record: Record) -> Tensor:
    """int64 [E]: what the agents emitted in each episode."""
    return torch.zeros(len(record.episodes.uid), dtype=torch.int64).index_add(0, record.episode, record.length)


def read(record: Record) -> Tensor:
    """int64 [E]: what the agents read and emitted in each episode; of a context that goes on, only what is new."""
    acted = record.choose(record.calls.use == Use.ACTED)
    new, before = [], (-1, np.empty(0, dtype=np.int32))
    for stream, *parts in zip(
        record.calls.stream[acted].tolist(), record.contexts(acted), record.outputs(acted), strict=True
    ):
        text = np.concatenate(parts)
        new.append(len(text) - (common_prefix(before[1], text) if stream == before[0] else 0))
        before = stream, text
    total = torch.zeros(len(record.episodes.uid), dtype=torch.int64)
    return total.index_add(0, record.episode[acted], torch.tensor(new, dtype=torch.int64))


def facts(record: Record) -> Mapping[str, Tensor]:
    """Turns of an episode, tokens emitted, tokens read or emitted; share of turns that no world understood."""
    episodes, calls = len(record.episodes.uid), len(record.calls.out)
    return {
        "turns": torch.tensor(calls / max(episodes, 1)),
        "tokens": torch.tensor(record.size / max(episodes, 1)),
        "read": read(record).sum() / max(episodes, 1),
        "invalid": (~record.calls.valid).float().mean() if calls else torch.tensor(0.0),
        "truncated": record.episodes.truncated.float().mean(),
    }


def transcript(record: Record, episode: int) -> str:
    """What the world and the agent said in one episode, for people."""
    lines = [f"# {record.kinds[int(record.episodes.kind[episode])]}, return {float(returns(record)[episode]):g}"]
    for call in (record.episode == episode).nonzero()[:, 0].tolist():
        agent = record.agents[int(record.streams.agent[record.calls.stream[call]])]
        for column, who in ((record.calls.obs_text, "world"), (record.calls.out_text, agent)):
            text = int(column[call])
            if text >= 0:
                lines.append(f"{who}: {record.texts[text]}")
    return "\n".join(lines) + "\n"
