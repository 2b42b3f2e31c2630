"""GHIL-Glue: of several generated subgoals the one that is judged to be progress, for a policy that bears their faults.

Idea: two small fixes where a generator of subgoals meets a goal-conditioned policy. A classifier, taught with wrong
sentences, reversed and shuffled pairs, picks the candidate that is progress on what the sentence asks for; and the
policy learns from states and goals that are disturbed independently of each other, so that it bears what a generator
gets wrong.
Source: arXiv 2410.20018 and its released code (github.com/kyle-hatch-tri/ghil-glue, bridge_data_v2_ghil-glue).
Levels: `subgoal` (s, sentence) -> the state to reach, held for `hold_steps` steps; `chunk` (s, subgoal) -> the next
actions, held until they are played; `play` -> the action of the tick, every step. Within both upper ones denoising.
Shares the sampler that draws several candidates, `nets/diffusion`, and their selection, `hierarchy/planning/select`,
with HECRL; windows and plans with the other generative policies. Pairs on the way to a sentence: `data/told`; sentences
as vectors: `language/sentences`.
Options: `candidates=1` is the raw generator, `selection="random"` any of its candidates; `desync=False` disturbs state
and goal alike, as is common. `negatives="permuted"` is the released way to make wrong sentences and goals: any
permutation, which may leave a row as it was or give it another of the same sentence; here none does, and rows for which
the batch has no other sentence do not count. `least_logit` keeps the previous subgoal where all candidates are judged
lower.
Conventions: slices of a batch of B have int(.5 B), int(.2 B), int(.2 B) rows and the rest. The classifier always learns
from disturbed states and goals, each by itself. States are standardised by the moments of what was seen, actions scaled
by its range. All rows share their noise, so that nobody's plan depends on who else plans.
Deviations: states, no images: a disturbance is Gaussian jitter and numbers set to their mean instead of crops and
colours; the generator is a small diffusion model trained on the same data, not a pre-trained image editor, and has text
guidance alone. Networks are dense layers (released: ResNets with FiLM, residual blocks; dropout in the classifier).
Sentences are embedded by another encoder, of 384 numbers (released: 512). All three networks learn at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echelon.claims import Above, AtLeast, Claim, Equivalent, Score, success
from echelon.data.told import ToldSpec
from echelon.data.windows import WindowSpec, check_windows
from echelon.envs.catalog import SCENE_INSTRUCTIONS, environment
from echelon.errors import UsageError
from echelon.hierarchy.level import Decision, Features, Level
from echelon.hierarchy.planning.select import Judgement, select
from echelon.hierarchy.plans import PlanLevel, PlayLevel
from echelon.hierarchy.termination import Every
from echelon.language.sentences import embed
from echelon.nets.diffusion import Diffusion, sinusoids
from echelon.nets.entities import EntityNorm
from echelon.nets.mlp import MLP
from echelon.nets.ranges import BEYOND, Range
from echelon.nets.samplers import guided
from echelon.systems.offline.judged import KINDS, deranged, judged_pairs, slices
from echelon.training.agent import Batch, DataSpec, Metrics, Update, half_cosine
from echelon.training.config import Config
from echelon.training.drawing import DrawingAgent

PLAN_SEED = 0
"""Seed of the noise of plans where the runner brings no generator: acting depends on the weights alone."""
STEP_DIM = 16
"""Numbers that tell a denoiser its step."""
Words = Literal["minilm", "one-hot"]
Selection = Literal["filter", "random"]
Negatives = Literal["deranged", "permuted"]


@dataclass(frozen=True, kw_only=True)
class GHILGlueConfig(Config):
    """Defaults: the released code, for networks and sizes those of states."""

    system: ClassVar[str] = "ghil-glue"
    env: str = "scene-told-v0"
    """Environment and data set, one that asks for something in words."""
    updates: int = 100_000
    """Gradient steps."""
    batch_size: int = 256
    """Pairs, steps and windows a batch."""
    warmup: int = 2_000
    """Updates in which the learning rate rises; then it falls to 0 by a cosine."""
    words: Words = "minilm"
    """What stands for a sentence: its vector by a sentence encoder, or its number."""
    candidates: int = 4
    """M: subgoals that are generated; of one nothing is judged."""
    selection: Selection = "filter"
    """Which of them is taken: the one that is judged best, or any."""
    least_logit: float | None = None
    """Where no candidate's logit is as high, the previous subgoal is kept. None: never (released)."""
    hold_steps: int = 20
    """Steps for which a subgoal is held."""
    subgoal_ahead: int = 20
    """How far ahead the generator's subgoals lie in the data."""
    generator_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the generator's denoiser."""
    generator_steps: int = 20
    """Its denoising steps (released: 50)."""
    sentence_drop: float = 0.1
    """Probability that its sentence is left out in training, for guidance."""
    guidance: float = 1.0
    """Weight of the sentence in generating: 1 follows it, more exaggerates it (released: 7.5, of images)."""
    filter_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the classifier."""
    filter_near: int = 16
    """Its pairs are so many steps apart, or more."""
    filter_far: int = 24
    """They are fewer steps apart than this."""
    negatives: Negatives = "deranged"
    """How wrong sentences and goals are drawn: never those of the same sentence, or by any permutation (released)."""
    chunk: int = 4
    """Actions that the policy says together, and plays."""
    policy_hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of the policy's denoiser."""
    policy_steps: int = 20
    """Its denoising steps."""
    goal_within: int = 23
    """Its goals are 0 to so many steps ahead."""
    desync: bool = True
    """Whether its states and goals are disturbed independently of each other, or both alike."""
    jitter: float = 0.1
    """Standard deviation of the disturbance, in those of the data."""
    feature_drop: float = 0.1
    """Probability that a number is set to its mean."""

    def __post_init__(self) -> None:
        for name in ("candidates", "hold_steps", "generator_steps", "chunk", "policy_steps"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("generator_hidden", "filter_hidden", "policy_hidden"):
            self.require(name, all(size >= 1 for size in getattr(self, name)), "sizes of at least 1")
        self.require("warmup", self.warmup >= 0, "0 or more")
        for name in ("sentence_drop", "feature_drop"):
            self.require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("jitter", "guidance"):
            self.require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        alone = self.guidance == 1 or self.sentence_drop > 0
        self.require("guidance", alone, f"1 where no sentence is ever left out (sentence_drop {self.sentence_drop})")
        least = self.least_logit
        self.require("least_logit", least is None or math.isfinite(least), "a number")
        for name, options in (("words", Words), ("selection", Selection), ("negatives", Negatives)):
            known = get_args(options)
            self.require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        self.require("subgoal_ahead", self.subgoal_ahead >= 1, "at least 1")
        self.require("filter_near", self.filter_near >= 1, "at least 1")
        near = self.filter_near
        self.require("filter_far", self.filter_far > near, f"above filter_near ({near})")
        self.require("goal_within", self.goal_within >= 1, "at least 1")
        super().__post_init__()

    def goals(self) -> dict[str, ToldSpec]:
        """Chunks with near goals, pairs of states, and steps, the latter two on the way to one sentence."""
        window = WindowSpec(steps=self.chunk, anchor="first", ahead=0, within=self.goal_within)
        return {"told": ToldSpec(window=window, near=self.filter_near, far=self.filter_far, ahead=self.subgoal_ahead)}


# --- losses and draws


def filter_loss(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits [B] over the rows that are counted (None: all); 0 where none is."""
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return each.mean() if counted is None else (each * counted).sum() / counted.sum().clamp(min=1)


def sentences_of(env: str) -> tuple[str, ...]:
    """What the environment or data set `env` asks for. UsageError where nothing is asked for in words."""
    if environment(env).family != "told":
        raise UsageError(f"'{env}' asks for nothing in words; use scene-told-v0")
    return SCENE_INSTRUCTIONS


def disturbed(x: Tensor, noise: Tensor, kept: Tensor, jitter: float) -> Tensor:
    """x with Gaussian jitter, and the numbers that are not kept at their mean, which is 0."""
    return (x + jitter * noise) * kept


# --- networks and levels


class Denoiser(nn.Module):
    """The noise in x [B, *E] at `step` int64[B], given a condition [B, C]: an MLP."""

    def __init__(self, size: int, condition: int, hidden: Sequence[int]):
        super().__init__()
        self.body = MLP([size + condition + STEP_DIM, *hidden, size], layer_norm=True)

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Noise [B, *E]."""
        return self.body(torch.cat([x.flatten(1), condition, sinusoids(step, STEP_DIM).to(x)], -1)).view_as(x)


class SubgoalLevel(Level):
    """(s, sentence) -> the state to reach next.

    Recorded with it: the `logit` by which it was chosen, and `kept`, 1 where the previous one stays.
    """

    name = "subgoal"

    def __init__(self, agent: GHILGlue):
        self.agent, self.termination = agent, Every(agent.config.hold_steps)
        self.generator = torch.Generator().manual_seed(PLAN_SEED)
        self.held: Tensor | None = None  # [S, O], by the last decision: no part of what a level observes

    def start(self, streams: int) -> Tensor:
        """Ticks of the episode so far."""
        return torch.zeros(streams, dtype=torch.int64, device=self.agent.sentences.device)

    def observe(self, obs: dict[str, Tensor], memory: Tensor | None) -> tuple[Features, Tensor | None]:
        assert memory is not None
        if "instruction" not in obs:
            raise UsageError(f"a world that shows {', '.join(obs)} asks for nothing in words; use scene-told-v0")
        return {**obs, "tick": memory}, memory + 1

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        assert self.generator is not None
        state, told = features["observation"], features["instruction"] @ self.agent.sentences
        held = state.new_zeros(len(due), state.shape[1]) if self.held is None else self.held.clone()
        aim, values = self.agent.plan(state, told, held[due], features["tick"] > 0, self.generator)
        held[due] = aim
        self.held = held
        return Decision(aim, values=values)


class ChunkLevel(PlanLevel):
    """(s, subgoal) -> the next actions in [-1, 1]."""

    name = "chunk"

    def __init__(self, agent: GHILGlue):
        self.agent, self.termination = agent, Every(agent.config.chunk)
        self.generator = torch.Generator().manual_seed(PLAN_SEED)

    def decide(self, features: Mapping[str, Tensor], parent: Tensor | None, due: Tensor) -> Decision:
        assert parent is not None and self.generator is not None
        return Decision(self.agent.act(features["observation"], parent, self.generator))


class GHILGlue(DrawingAgent):
    """A generator of subgoals, a judge of progress and a policy; losses see standardised states and scaled actions."""

    Config = GHILGlueConfig
    sentences: Tensor
    """What stands for each sentence, [n, E]."""
    nothing: Tensor

    def __init__(self, config: GHILGlueConfig, spec: DataSpec):
        super().__init__()
        self.config, self.sizes, c = config, (spec.observation_dim, spec.action_dim), config
        told = sentences_of(c.env)
        table = torch.eye(len(told)) if c.words == "one-hot" else torch.from_numpy(embed(told))
        self.register_buffer("sentences", table)
        self.register_buffer("nothing", torch.zeros(1, dtype=torch.bool), persistent=False)
        size, words = spec.observation_dim, table.shape[1]
        self.states, self.actions = EntityNorm([(1, size)]), Range(spec.action_dim)
        self.subgoals_law, self.actions_law = Diffusion(c.generator_steps), Diffusion(c.policy_steps)
        self.proposer = Denoiser(size, size + words, c.generator_hidden)
        self.judge = MLP([2 * size + words, *c.filter_hidden, 1])
        self.policy = Denoiser(c.chunk * spec.action_dim, 2 * size, c.policy_hidden)
        self.generator = torch.Generator().manual_seed(c.seed)

    def logits(self, s: Tensor, g: Tensor, told: Tensor) -> Tensor:
        """How sure it is [...] that the way from s to g [..., O] is progress on the sentence [..., E]."""
        return self.judge(torch.cat([s, g, told], -1)).squeeze(-1)

    # --- learning

    def prepare(self, batch: Batch) -> Batch:
        """What the three losses see: standardised, scaled, disturbed, rearranged, with noise and its levels."""
        check_windows(batch)
        self.states.update(batch["observations"][:, 0])
        self.actions.update(batch["actions"])
        return batch | self._steps(batch) | self._pairs(batch) | self._chunks(batch)

    def _normal(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator).to(x)

    def _at_least(self, share: float, *shape: int) -> Tensor:
        """True with probability 1 - `share`."""
        return (torch.rand(shape, generator=self.generator) >= share).to(self.sentences.device)

    def _steps(self, batch: Batch) -> Batch:
        """Of the generator."""
        c, target = self.config, self.states(batch["step_targets"])
        kept = self._at_least(c.sentence_drop, len(target), 1)
        told = self.sentences[batch["step_instructions"]] * kept
        step = torch.randint(c.generator_steps, (len(target),), generator=self.generator).to(target.device)
        condition = torch.cat([self.states(batch["step_states"]), told], -1)
        return {
            "step_condition": condition,
            "target": target,
            "target_step": step,
            "target_noise": self._normal(target),
        }

    def _pairs(self, batch: Batch) -> Batch:
        """Of the classifier."""
        states, later = (self.states(batch[f"pair_{name}"]) for name in ("states", "later"))
        words, (_, sentence, _, goal) = batch["pair_instructions"], slices(len(states))
        counted = torch.ones(len(words), dtype=torch.bool, device=words.device)
        sources = []
        for part in (sentence, goal):
            own = words[part]
            if self.config.negatives == "permuted":
                sources.append(torch.randperm(len(own), generator=self.generator).to(words.device))
            else:
                sources.append(deranged(own, self.generator).to(words.device))
                counted[part] = own[sources[-1]] != own
        s, g, told, labels = judged_pairs(states, later, words, *sources)
        s, g = self._disturbed(s, g, together=False)
        return {
            "judged": s,
            "judged_goals": g,
            "judged_words": self.sentences[told],
            "labels": labels,
            "counted": counted,
        }

    def _chunks(self, batch: Batch) -> Batch:
        """Of the policy."""
        c, actions = self.config, self.actions(batch["actions"])
        s, g = self.states(batch["observations"][:, 0]), self.states(batch["goals"][:, 0])
        condition = torch.cat(self._disturbed(s, g, together=not c.desync), -1)
        step = torch.randint(c.policy_steps, (len(s),), generator=self.generator).to(s.device)
        made = {"chunk_condition": condition, "chunk": actions, "chunk_step": step}
        return made | {"chunk_noise": self._normal(actions), "chunk_given": ~batch["real"][..., None]}

    def _disturbed(self, s: Tensor, g: Tensor, together: bool) -> tuple[Tensor, Tensor]:
        c = self.config
        draws = [(self._normal(s), self._at_least(c.feature_drop, *s.shape)) for _ in range(1 if together else 2)]
        return disturbed(s, *draws[0], c.jitter), disturbed(g, *draws[-1], c.jitter)

    def generator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean squared error of the noise in the state ahead, given s and the sentence."""
        denoise = partial(self.proposer, condition=batch["step_condition"])
        x, step, noise = batch["target"], batch["target_step"], batch["target_noise"]
        return self.subgoals_law.loss(denoise, x, step, noise, self.nothing, "l2"), {}

    def filter_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Binary cross-entropy of progress and what is none."""
        logits = self.logits(batch["judged"], batch["judged_goals"], batch["judged_words"])
        right = ((logits > 0) == (batch["labels"] > 0.5)).float().mean()
        return filter_loss(logits, batch["labels"], batch["counted"]), {"filter/right": right}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean squared error of the noise in the chunk, given s and g; what lies behind an episode's end is given."""
        denoise = partial(self.policy, condition=batch["chunk_condition"])
        x, step, noise = batch["chunk"], batch["chunk_step"], batch["chunk_noise"]
        return self.actions_law.loss(denoise, x, step, noise, batch["chunk_given"], "l2"), {}

    def updates(self) -> tuple[Update, ...]:
        lr = self.config.lr
        return (
            Update("generator", self.generator_loss, (self.proposer,), lr, schedule=self.warmed),
            Update("filter", self.filter_loss, (self.judge,), lr, schedule=self.warmed),
            Update("policy", self.policy_loss, (self.policy,), lr, schedule=self.warmed),
        )

    def warmed(self, step: int) -> float:
        """The factor of the learning rate at `step` (from 1)."""
        return min(1.0, step / max(self.config.warmup, 1)) * half_cosine(self.config.updates)(step)

    # --- acting

    @torch.no_grad()
    def propose(self, observation: Tensor, told: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n subgoals [B, n, O], standardised, for states [B, O] and sentences [B, E] (0: none is told)."""
        s = self.states(observation)
        conditional, free = (
            partial(self.proposer, condition=torch.cat([s, words], -1).repeat_interleave(n, 0))
            for words in (told, torch.zeros_like(told))
        )
        denoise = guided(conditional, free, self.config.guidance)
        return self.subgoals_law.sample(denoise, s, self.nothing, n, generator, clip=self.states.clip)

    @torch.no_grad()
    def plan(
        self, observation: Tensor, told: Tensor, previous: Tensor, begun: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What to aim for [B, O] from `observation` [B, O] on the way to the sentences `told` [B, E].

        `previous` [B, O] is what was aimed for where the episode has `begun` bool[B]. With it the choice's logit [B]
        and whether it is the previous aim [B].
        """
        c, n = self.config, self.config.candidates
        candidates = self.propose(observation, told, n, generator)
        s = self.states(observation)[:, None].expand_as(candidates)
        logits = self.logits(s, candidates, told[:, None].expand(-1, n, -1))
        floor = torch.full_like(logits[:, 0], -torch.inf)
        scores = logits
        if n > 1 and c.selection == "random":
            scores = torch.rand(n, generator=generator).to(logits).expand_as(logits)
        elif n > 1 and c.least_logit is not None:
            floor = floor.masked_fill(begun, c.least_logit)
        choice = select(candidates, candidates[:, 0], Judgement(scores, floor))
        kept = choice.chosen[:, :1] < 0
        aim = torch.where(kept, previous, self.states.inverse(choice.aim))
        logit = logits.gather(1, choice.chosen.clamp(min=0))[:, 0]
        return aim, {"logit": logit, "kept": kept[:, 0].to(logit.dtype)}

    @torch.no_grad()
    def act(self, observation: Tensor, goal: Tensor, generator: torch.Generator) -> Tensor:
        """The next actions [B, K, A] in [-1, 1] on the way from `observation` to `goal` [B, O]."""
        denoise = partial(self.policy, condition=torch.cat([self.states(observation), self.states(goal)], -1))
        blank = observation.new_zeros(len(observation), self.config.chunk, self.sizes[1])
        found = self.actions_law.sample(denoise, blank, self.nothing, 1, generator, clip=BEYOND)
        return self.actions.action(found[:, 0])

    def levels(self) -> tuple[Level, ...]:
        return (SubgoalLevel(self), ChunkLevel(self), PlayLevel())

    def subgoals(self, observation: Tensor, goal: Tensor, candidates: Tensor) -> Tensor:
        """The candidates nearest to what is generated where no sentence is told; the goal is not asked for."""
        none = self.sentences.new_zeros(len(observation), self.sentences.shape[1])
        aim = self.propose(observation, none, 1, torch.Generator().manual_seed(PLAN_SEED))[:, 0]
        return candidates[torch.cdist(aim, self.states(candidates)).argmin(1)]


def claims(full: bool = False) -> tuple[Claim, ...]:
    """What the paper says and this file has to show; `full` at the published size."""
    from echelon.systems.offline.prompts import acting_with
    from echelon.systems.offline.recipes import arm
    from echelon.systems.offline.told_apart import real_goals, told_apart

    size, env, source = "published" if full else "cpu", "scene-told-v0", "arXiv 2410.20018"
    glue, alike = arm(GHILGlueConfig, env, size), arm(GHILGlueConfig, env, size, "disturbed alike", desync=False)
    filtered = Score(glue, partial(acting_with, field="candidates", value=4))
    return (
        Claim(
            id="tells-progress",
            text="In held-out scenes the classifier tells pairs on the way to a sentence from pairs with a wrong "
            "sentence, from reversed pairs and from wrong goals: the area under the curve is 90 points or more for "
            "each of them.",
            method=Score(glue, told_apart),
            test=AtLeast(90),
            source=source,
            also=tuple(Score(glue, partial(told_apart, kind=kind)) for kind in KINDS[1:]),
        ),
        Claim(
            id="filter-above-raw",
            text="The same weights do what is asked for more often with the best of four subgoals than with one.",
            method=filtered,
            baseline=Score(glue, partial(acting_with, field="candidates", value=1)),
            test=Above(0),
            source=source,
        ),
        Claim(
            id="filter-above-random",
            text="The same weights do what is asked for more often with the best of four subgoals than with any.",
            method=filtered,
            baseline=Score(glue, partial(acting_with, field="selection", value="random")),
            test=Above(0),
            source=source,
        ),
        Claim(
            id="desync-above-sync",
            text="With generated subgoals a policy does what is asked for more often if its states and goals were "
            "disturbed independently than if they were disturbed alike.",
            method=Score(glue, success),
            baseline=Score(alike, success),
            test=Above(0),
            source=source,
        ),
        Claim(
            id="desync-harmless-on-real-goals",
            text="With states as goals that were reached, both policies say the actions that were taken equally well, "
            "but for 5 points at most.",
            method=Score(glue, real_goals),
            baseline=Score(alike, real_goals),
            test=Equivalent(5),
            source=source,
        ),
    )
