"""The warm start: a model that imitates the world's scripted expert, slips included, before reinforcement.

Made once for everything that it depends on, and kept: all arms and seeds of a comparison begin with the same weights,
named by their hash. A tiny model's vocabulary is built from the same episodes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from echelon.language.driver import Driver, Settings, Start
from echelon.language.engine import ScriptedEngine
from echelon.language.models import (
    DTYPES,
    LanguageModel,
    add_lora,
    cache_dir,
    language_model,
    load_model,
    load_tokenizer,
    merge_adapters,
    save_model,
    tiny,
)
from echelon.language.record import Record, Use
from echelon.language.sampling import TransformersEngine
from echelon.language.scorer import Scorer
from echelon.language.update import Term, policy_step
from echelon.language.views import paths
from echelon.language.words import Tokenizer, WordTokenizer
from echelon.language.worlds.world import expert_episode, make, tasks
from echelon.training.checkpoint import write_json
from echelon.training.language import play
from echelon.training.language.agent import Expert, LanguageAgent, Model
from echelon.training.language.config import LanguageConfig
from echelon.training.language.play import kinds
from echelon.training.progress import Progress
from echelon.training.trainer import Say

FORMAT = 1
HEAD = 32
"""Numbers a head of a tiny model."""
WORD_EPISODES = 500
"""Episodes from which the vocabulary of a tiny model is taken, at most."""
FIELDS = ("env", "kinds", "limit", "options", "model", "layers", "width", "context", "warm_episodes", "warm_slips",
          "warm_epochs", "warm_lr", "warm_batch", "warm_reading", "warm_seed")  # fmt: skip
LATER = ("dtype", "warm_lora", "warm_valid", "warm_check", "warm_check_episodes")
"""Further fields that it depends on, named where they are not as by default: older warm starts are found as before."""


@dataclass(frozen=True)
class WarmStart:
    """A directory that `load_model` reads, and what is known of it."""

    path: Path
    facts: dict[str, Any]

    def load(self, dtype: str = "float32") -> LanguageModel:
        """The model and its tokenizer."""
        return load_model(self.path, dtype)


def warm_start(system: type[LanguageAgent], config: LanguageConfig, say: Say) -> WarmStart:
    """The warm start of a configuration, made if it is not there."""
    place, about = _place(system, config)
    with _alone(place):
        if not (place / "warm.json").is_file():
            _make(system, config, place, about, say)
    facts = json.loads((place / "warm.json").read_text())
    say(f"warm start {facts['hash'][:12]}: loss {facts['loss']:.3f} a token after {facts['episodes']} episodes")
    return WarmStart(place, facts)


def stored_tokenizer(system: type[LanguageAgent], config: LanguageConfig) -> Tokenizer | None:
    """The tokenizer of a configuration's warm start, None where that was not made on this machine."""
    place, _ = _place(system, config)
    return load_tokenizer(place) if (place / "warm.json").is_file() else None


def _place(system: type[LanguageAgent], config: LanguageConfig) -> tuple[Path, dict[str, Any]]:
    """Where the warm start of a configuration is kept, and everything that it depends on."""
    plain = {field.name: field.default for field in dataclasses.fields(LanguageConfig)}
    chosen = [name for name in LATER if getattr(config, name) != plain[name]] if config.warm_episodes else []
    given = {name: getattr(config, name) for name in (*FIELDS, *chosen)}
    about = {"format": FORMAT, "form": system.form, "tags": list(system.tags), **json.loads(json.dumps(given))}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    place = cache_dir() / f"warm-{config.env}-{system.form}-{key}"
    return place, about


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait until no other process makes the same warm start."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(system: type[LanguageAgent], config: LanguageConfig, place: Path, about: dict[str, Any], say: Say) -> None:
    started = time.monotonic()
    if config.model == "tiny":
        tokenizer: Tokenizer = vocabulary(system, config)
        heads = config.width // HEAD
        model = tiny(tokenizer.size, config.layers, config.width, heads, context=config.context, seed=config.warm_seed)
        language = language_model(model, tokenizer)
    else:
        language = load_model(config.model)
    loss, looks = float("nan"), list[Look]()
    if config.warm_episodes:
        say(f"making the warm start of {config.env} ({system.form}): {config.warm_episodes} episodes of the expert")
        record = demonstrations(system, config, language)
        if config.warm_lora:
            language.model.to(DTYPES[config.dtype])
            language = add_lora(language, config.warm_lora, 2 * config.warm_lora, seed=config.warm_seed)
        loss = imitate(language, record, config, partial(_look, system, config, language, looks, say))
        if config.warm_lora:
            language = merge_adapters(language)
    save_model(language, place)
    facts = {
        **about,
        "hash": load_model(place).hash,
        "parameters": sum(p.numel() for p in language.model.parameters()),
        "words": language.tokenizer.size,
        "episodes": config.warm_episodes,
        "loss": loss,
        "seconds": round(time.monotonic() - started, 1),
    }
    if looks:
        facts["looks"] = [[look.step, look.valid, look.success] for look in looks]
        for name, look in (("before", looks[0]), ("after", looks[-1])):
            (place / f"{name}.txt").write_text(look.transcript)
        if looks[-1].valid < config.warm_valid:
            say(
                f"the imitation ends with {100 * looks[-1].valid:.1f} % valid actions, less than the "
                f"{100 * config.warm_valid:.1f} % of warm_valid: give it more warm_episodes or warm_epochs"
            )
    write_json(place / "warm.json", facts)


@dataclass(frozen=True)
class Look:
    """What the model does in mid-imitation."""

    step: int
    valid: float
    """Share of its actions that the world understood."""
    success: float
    transcript: str
    """A few of its episodes."""


def _look(
    system: type[LanguageAgent],
    config: LanguageConfig,
    language: LanguageModel,
    looks: list[Look],
    say: Say,
    step: int,
) -> bool:
    """Let the model act in games that are neither trained nor tested; whether it does so validly enough."""
    if not config.warm_valid:
        return False
    games = tasks(config.env, "valid", config.warm_check_episodes, config.warm_seed, kinds(config))
    starts = [Start(uid=i, group=i, task=task) for i, task in enumerate(games)]
    agent = system(config, language.tokenizer, Model(config.turn_tokens))
    engine = TransformersEngine({"policy": language})
    with play.driver(engine, language.tokenizer, config, language.context, config.warm_seed, config.temperature) as d:
        record = d.rollout(agent.episode, starts, levels=agent.levels).record
    valid, won = 1 - float(play.facts(record)["invalid"]), float(play.success(record).float().mean())
    told = "\n".join(play.transcript(record, episode) for episode in range(min(4, len(games))))
    looks.append(Look(step, round(valid, 4), round(won, 4), told))
    say(f"imitation step {step}: {100 * valid:.1f} % of the actions valid, {100 * won:.1f} % of the episodes solved")
    return valid >= config.warm_valid


def vocabulary(system: type[LanguageAgent], config: LanguageConfig) -> WordTokenizer:
    """All words that the world and its expert say in some hundred episodes."""
    world = make(config.env, **config.world)
    texts = []
    for task in tasks(config.env, "train", WORD_EPISODES, config.warm_seed, kinds(config)):
        for turn in expert_episode(world, task, corruption=0.5).turns:
            texts += [turn.before.text, turn.action, turn.after.text, *turn.before.admissible, *system.wording(turn)]
    return WordTokenizer.build(texts, tags=system.tags)


def demonstrations(system: type[LanguageAgent], config: LanguageConfig, language: LanguageModel) -> Record:
    """Episodes of the expert with slips, in the system's own format."""
    agent = system(
        config, language.tokenizer, Expert(language.tokenizer, config.warm_slips, reading=config.model == "tiny")
    )
    games = tasks(config.env, "train", config.warm_episodes, config.warm_seed, kinds(config))
    starts = [Start(uid=i, group=i, task=task) for i, task in enumerate(games)]
    settings = Settings(run=config.warm_seed, batch=256, at_once=256, context=language.context)
    with Driver(
        ScriptedEngine(lambda request: ()), language.tokenizer, settings, options={config.env: config.world}
    ) as driven:
        phase = driven.rollout(agent.episode, starts, levels=agent.levels)
    return phase.record


def imitate(
    language: LanguageModel, record: Record, config: LanguageConfig, enough: Callable[[int], bool] = lambda step: False
) -> float:
    """Train on the demonstrations; the mean loss of a token of the agent's own, over the last tenth of the steps.

    enough: asked after every `config.warm_check` steps and at both ends; what it says ends the imitation.
    """
    scorer = Scorer(language.model)
    target = (record.calls.use == Use.TARGET) & (record.length > 0)
    episodes = record.episode
    count = len(record.episodes.uid)
    generator = torch.Generator().manual_seed(config.warm_seed)
    steps = config.warm_epochs * -(-count // config.warm_batch)
    weights = [p for p in language.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=config.warm_lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: min(1.0, 20 * (k + 1) / steps) * (1 - k / steps))
    own = record.streams.agent[record.calls.stream] == record.agents.index("policy")
    spoken = own[record.call]  # items of the agent itself, not of the world that it reads
    shares = torch.where(spoken, 1.0, config.warm_reading)
    batches = (
        chosen
        for _ in range(config.warm_epochs)
        for chosen in torch.randperm(count, generator=generator).split(config.warm_batch)
    )
    losses: list[float] = []
    enough(0)
    with Progress(steps, "imitation") as progress:
        for chosen in batches:
            calls = record.choose(target & torch.isin(episodes, chosen))
            items = record.items_of(calls)
            weight = torch.zeros(record.size)
            weight[items] = shares[items] / shares[items].sum()
            terms = {"imitation": Term(lambda c: -c["logp"], weight)}
            language.model.train()
            step = policy_step(scorer, paths(record, calls), terms, optimiser, budget=config.token_budget)
            schedule.step()
            logp = step.columns["logp"]
            losses.append(-float(logp[spoken & logp.isfinite()].mean()))
            progress.update(len(losses), {"loss": losses[-1]})
            language.model.eval()
            if (len(losses) % config.warm_check == 0 or len(losses) == steps) and enough(len(losses)):
                break
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)
