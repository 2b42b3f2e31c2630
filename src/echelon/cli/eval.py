"""`echelon eval`: evaluate the newest checkpoint of a run again, or a model behind an endpoint."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from echelon.cli import runs, show
from echelon.cli.arguments import parse
from echelon.errors import UsageError

if TYPE_CHECKING:
    from echelon.training.language.config import LanguageConfig


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model behind an OpenAI-compatible endpoint, in place of a run's weights."""

    endpoint: str | None = None
    """Its URL, such as http://localhost:8000/v1; RUN may then be the name of a language agent, too."""
    endpoint_model: str = ""
    """The server's name of the model."""
    endpoint_key: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, if one is needed."""
    endpoint_api: Literal["chat", "completions"] = "chat"
    """How it is asked; completions for models without a chat format."""
    endpoint_fields: str = "{}"
    """Further fields of its requests as JSON, such as '{"top_p": 0.9}'; null removes one that echelon sets."""
    at_once: int = 8
    """Requests that are open at the same time."""
    timeout: float = 120.0
    """Seconds that one answer may take."""
    attempts: int = 6
    """Attempts for each answer."""
    instructions: str = ""
    """System message before every conversation, such as what an answer looks like."""
    max_tokens: int = 64
    """Tokens that the model may emit in a turn."""
    env: str | None = None
    """Text world, where RUN names an agent."""
    size: str = "cpu"
    """Recipe, where RUN names an agent: which tasks, how many steps."""
    out: Path | None = None
    """Directory for the record of the episodes, and for what an interrupted evaluation goes on from."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Server):
    """Evaluate the newest checkpoint of a run on its test tasks, acting as in its own evaluations.

    With --endpoint, a model behind a server speaks in the program of the run, or of an agent:

      echelon eval grpo --env textcraft --endpoint http://localhost:8000/v1 --endpoint-model NAME
    """

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Directory of the run."""
    episodes: int = 50
    """Episodes of each task."""
    seed: int = 0
    """Seed of what is drawn: start and goal noise, or the texts of a language agent."""
    json: bool = False
    """Print JSON."""


def run(args: list[str]) -> int:
    """Evaluate and print success by task, or returns where no success is told."""
    options = parse(Evaluate, args, "eval")
    if options.episodes < 1:
        raise UsageError(f"--episodes {options.episodes}: at least one is needed")
    row = _of_checkpoint(options) if options.endpoint is None else _of_endpoint(options)
    if options.json:
        show.as_json({"run": str(options.run), **row})
        return 0
    if row["success"] is None:
        found = [(name, str(len(x)), show.number(sum(x) / len(x))) for name, x in row["returns"].items()]
        print(show.table(("task", "episodes", "return"), found))
    else:
        cells = [(name, f"{sum(x)}/{len(x)}", show.number(100 * sum(x) / len(x))) for name, x in row["tasks"].items()]
        cells.append(("all", "", show.number(100 * row["success"])))
        print(show.table(("task", "episodes", "success %"), cells))
    print(_spent(row))
    return 0


def _of_checkpoint(options: Evaluate) -> dict[str, Any]:
    """The newest checkpoint's score."""
    plain = {field.name: field.default for field in dataclasses.fields(Server)}
    for name, value in plain.items():
        if getattr(options, name) != value:
            raise UsageError(f"--{name.replace('_', '-')} is of a model behind a server: give --endpoint URL, too")
    runs.config_of(options.run)
    from echelon.systems import launch

    return launch.evaluate(options.run, options.episodes, options.seed)


def _of_endpoint(options: Evaluate) -> dict[str, Any]:
    """The score of an endpoint's model."""
    config = _config(options)
    from echelon.language.endpoint import Endpoint, EndpointEngine
    from echelon.systems import launch

    endpoint = Endpoint(
        str(options.endpoint),
        options.endpoint_model,
        options.endpoint_key,
        options.at_once,
        options.timeout,
        options.attempts,
        fields=_fields(options.endpoint_fields),
    )
    if options.max_tokens < 1:
        raise UsageError(f"--max-tokens {options.max_tokens}: a turn needs at least one")
    launch.check(config)
    engine = EndpointEngine(endpoint, options.endpoint_api, options.instructions)
    engine.check()
    return launch.serve(config, engine, options.episodes, options.seed, options.max_tokens, options.out)


def _config(options: Evaluate) -> LanguageConfig:
    """That of the run, or the recipe of the agent."""
    from echelon.systems import launch
    from echelon.training.language.config import LanguageConfig

    if (options.run / runs.CONFIG).is_file() or len(options.run.parts) > 1:
        config = runs.config_of(options.run)
    else:
        config = launch.recipe(str(options.run), options.env, options.size)
    if not isinstance(config, LanguageConfig):
        raise UsageError(f"'{config.system}' is no language agent: no endpoint can act in it")
    return config


def _fields(text: str) -> dict[str, Any]:
    """The object that a flag holds as JSON."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--endpoint-fields {text}: no JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UsageError(f"--endpoint-fields {text}: an object is needed, such as '{{\"top_p\": 0.9}}'")
    return fields


def _spent(row: dict[str, Any]) -> str:
    """What was evaluated, and what it cost."""
    if "endpoint" not in row:
        return f"checkpoint of step {row['step']}, {row['seconds']:.1f} s"
    asked, faults = row["asked"], f", {row['faults']} episodes closed by faults" if row["faults"] else ""
    return (
        f"{row['endpoint']['model']} at {row['endpoint']['url']}: {asked['answers']} answers ({asked['retries']} asked "
        f"for again), {asked['read']} tokens read, {asked['written']} written; {100 * (1 - row['invalid']):.1f} % of "
        f"the actions valid{faults}, {row['seconds']:.1f} s"
    )
