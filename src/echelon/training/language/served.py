"""A language agent's program played by a model behind an endpoint: its score on the test tasks, and what it said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from echelon.errors import UsageError
from echelon.language.endpoint import BYTES, EndpointEngine
from echelon.training.checkpoint import write_json
from echelon.training.language import play
from echelon.training.language.agent import LanguageAgent, Model
from echelon.training.language.config import LanguageConfig

JOURNAL, RECORD, RESULT = "journal", "record", "evaluation.json"


def evaluate(
    system: type[LanguageAgent],
    config: LanguageConfig,
    engine: EndpointEngine,
    episodes: int,
    seed: int = 0,
    max_tokens: int = 64,
    out: Path | None = None,
) -> dict[str, Any]:
    """Success by task of the endpoint's model in the program of `system`, in the world of `config`.

    episodes: of each task. max_tokens: that the model may emit in a turn, as its server counts them. out: a directory
    for the record, its transcripts and the score; answers are kept there as they come, so that the same call goes on
    where an earlier one stopped. Raises EngineDown if the endpoint fails.
    """
    settled = dataclasses.replace(config, max_tokens=max_tokens * BYTES, batch=4 * engine.client.endpoint.at_once)
    meta = {"endpoint": engine.about, "env": config.env, "system": config.system}
    if out is not None:
        if (out / RESULT).exists():
            raise UsageError(f"{out} holds a finished evaluation; choose another directory with --out")
        out.mkdir(parents=True, exist_ok=True)
    agent = system(settled, engine.tokenizer, Model(settled.turn_tokens))
    row, phase = play.evaluate(
        agent, engine, None, settled, 0, episodes, seed, None if out is None else out / JOURNAL, meta
    )
    row |= {"endpoint": engine.about, "asked": dataclasses.asdict(engine.asked)}
    if out is not None:
        phase.record.save(out / RECORD)
        told = (play.transcript(phase.record, episode) for episode in range(len(phase.record.episodes.uid)))
        (out / f"{RECORD}.txt").write_text("\n".join(told))
        write_json(out / RESULT, row)
        (out / JOURNAL).unlink()
    return row
