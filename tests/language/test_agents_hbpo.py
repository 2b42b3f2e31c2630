"""HBPO: announcements that are forced and not trained, budgets from metadata, rewards and credit of known numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from echelon.credit.credit import Credit
from echelon.errors import UsageError
from echelon.language._play import call_seed
from echelon.language.driver import Driver, Phase, Settings, Start
from echelon.language.engine import End, Request, ScriptedEngine, Source
from echelon.language.record import Record, RecordBuilder, Use
from echelon.language.words import WordTokenizer
from echelon.language.worlds.world import make, tasks
from echelon.systems.agents.recipes import recipe
from echelon.systems.reasoning import hbpo
from echelon.systems.reasoning.hbpo import ARMS, HBPO, READABLE, announcement, budgets, spending
from echelon.training.language import play
from echelon.training.language.agent import Expert, Model, Turns
from echelon.training.language.loop import LanguageRun
from echelon.training.language.warm import FIELDS
from echelon.training.runtime import choose

WORDS = WordTokenizer.build(
    [*(announcement(budget) for budget in READABLE), "<think> check 4 - 1 = 3 ; </think> <answer> -4 </answer>",
     "State the final answer to the following arithmetic problem: 4 - 1 + 3 =", " ".join(map(str, range(100)))],
    tags=HBPO.tags,
)  # fmt: skip
SMALL: dict[str, Any] = {"kinds": ("chain_sum-2", "chain_sum-3"), "options": ("redundancy=1",), "layers": 1,
                         "width": 32}  # fmt: skip


def config(**changes: Any) -> HBPO.Config:
    """A small configuration."""
    return HBPO.Config(**{**SMALL, **changes})


def played(config: HBPO.Config, texts: Sequence[tuple[bool, int]], split: str = "train") -> Phase:
    """One group in which member k answers rightly or not, with `n` tokens in all."""
    task = tasks("reasoning", split, 1, 0, ("chain_sum-2",))[0]
    world = make("reasoning")
    answer = int(world.reset(task).info["answer"])

    def write(request: Request) -> list[int]:
        right, length = texts[seeds.index(request.seed)]
        tail = WORDS.encode(f"</think> <answer> {answer if right else answer + 1} </answer>")
        filler = length - len(request.forced) - len(tail) - 1
        return [*WORDS.encode("check") * filler, *tail]

    starts = [Start(uid=k, group=0, task=task) for k in range(len(texts))]
    seeds = [call_seed(0, start.uid, 0, 0) for start in starts]
    engine = ScriptedEngine(write, eos=WORDS.eos)
    agent = HBPO(config, WORDS, Model(config.turn_tokens))
    with Driver(engine, WORDS, Settings(), options={"reasoning": {"redundancy": 1}}) as driven:
        phase = driven.rollout(agent.episode, starts, levels=agent.levels)
    assert not phase.faults, phase.faults
    return phase


PUBLISHED: dict[str, Any] = {"model": "a model", "think_tokens": 4072, "budgets": (512, 512, 2560, 2560),
                             "alpha": 1 / 4096, "group": 4}  # fmt: skip
FOUR = ((True, 400), (True, 1024), (True, 400), (False, 3000))


def credited(config: HBPO.Config, record: Record) -> tuple[HBPO, Turns, Credit]:
    """The agent, the turns and their credit."""
    agent, turns = HBPO(config, WORDS, Model(config.turn_tokens)), Turns.of(record)
    return agent, turns, agent.credit(turns, {})


def test_credit_of_a_published_size_group() -> None:
    record = played(config(**PUBLISHED), FOUR).record
    agent, turns, credit = credited(config(**PUBLISHED), record)
    assert turns.tokens.lengths.tolist() == [400, 1024, 400, 3000]
    assert budgets(turns).tolist() == [512, 512, 2560, 2560]
    assert agent.rewards(turns).tolist() == pytest.approx([3.923141, 3.570518, 2.222281, 0], abs=1e-5)
    first = turns.tokens.starts
    assert credit.terms["intra"][first].tolist() == pytest.approx([-0.176311, -0.176311, -1.11114, -1.11114], abs=1e-5)
    assert credit.advantage[first].tolist() == pytest.approx([0.664292, 0.465908, -1.227431, -2.477673], abs=1e-5)
    assert torch.equal(credit.advantage, turns.tokens.expand(credit.advantage[first]))
    _, _, doubled = credited(config(**PUBLISHED, intra_coef=2.0), record)
    assert doubled.advantage[first].tolist() == pytest.approx([0.487981, 0.289597, -2.338571, -3.588814], abs=1e-5)


def test_groups_that_nobody_solves_may_be_left_out() -> None:
    for right, weight in ((False, 0), (True, 1)):
        record = played(config(**PUBLISHED), ((False, 400), (right, 500))).record
        _, _, credit = credited(config(**PUBLISHED), record)
        ceiling = 4 * math.cos(math.pi * 512 / 8192)
        assert credit.weight.unique().tolist() == [1]
        assert right or credit.advantage.unique().tolist() == pytest.approx([-ceiling], abs=1e-5), "all pushed down"
        _, _, skipping = credited(config(**PUBLISHED, skip_unsolved=True), record)
        assert skipping.weight.unique().tolist() == [weight]
        assert torch.equal(skipping.advantage, credit.advantage * weight)


def test_rewards_of_the_baselines() -> None:
    changes = {**PUBLISHED, "reward": "cosine"}
    phase = played(config(**changes), FOUR)
    turns = Turns.of(phase.record)
    assert budgets(turns).tolist() == [-1] * 4
    assert not bool((phase.record.items.source == Source.FORCED).any()), "baselines announce nothing"
    cosine = [4 * math.cos(math.pi * n / 8192) for n in (400, 1024, 400)]
    agent, _, credit = credited(config(**changes), phase.record)
    assert agent.rewards(turns).tolist() == pytest.approx([*cosine, 0], abs=1e-5)
    changes["reward"] = "accuracy"
    agent, _, credit = credited(config(**changes), phase.record)
    assert agent.rewards(turns).tolist() == [1, 1, 1, 0]
    first = turns.tokens.starts
    assert credit.advantage[first].tolist() == pytest.approx([0.5, 0.5, 0.5, -1.5], abs=1e-5)


def test_the_code_form_punishes_short_and_formless_answers() -> None:
    changes = {**PUBLISHED, "budgets": (512,), "form": "code"}
    record = played(config(**changes), ((True, 60), (True, 512))).record
    agent, turns, _ = credited(config(**changes), record)
    short = 4 * math.cos(math.pi * 60 / 8192) - 452 / 4096
    assert agent.rewards(turns).tolist() == pytest.approx([short, 3.923141], abs=1e-5)
    record.calls.valid[0] = False
    assert agent.rewards(Turns.of(record))[0] == -1
    fine = HBPO(config(**changes, invalid_penalty=0.5), WORDS, Model(9))
    assert fine.rewards(Turns.of(record))[0] == -1.5


def test_announcements_are_dealt_in_turn_forced_and_not_trained() -> None:
    given = config(group=4, budgets=(16, 32, 64))
    record = played(given, ((True, 30),) * 6).record
    agent, turns, credit = credited(given, record)
    assert budgets(turns).tolist() == [16, 32, 64, 16, 16, 32]
    for call, budget in enumerate(budgets(turns).tolist()):
        ids = record.output_ids(call).tolist()
        words = WORDS.encode(announcement(budget))
        source = record.items.source[record.item_slice(call)]
        assert ids[: len(words)] == words
        assert source.tolist() == [Source.FORCED] * len(words) + [Source.SAMPLED] * (30 - len(words))
    chosen = agent.trained(turns, credit)
    assert torch.equal(chosen, record.items.source == Source.SAMPLED)
    everything = HBPO(config(train_announcement=True), WORDS, Model(9))
    assert bool(everything.trained(turns, credit).all())
    facts = {name: float(value) for name, value in agent.facts(turns).items()}
    assert facts["length/mean"] == 30 and facts["length/budget_64"] == 30 and facts["length/std"] == 0


def test_nothing_is_announced_in_evaluation() -> None:
    record = played(config(), ((True, 30),) * 3, split="test").record
    assert record.calls.label["budget"].tolist() == [-1] * 3
    assert bool((record.items.source == Source.SAMPLED).all())


def test_demonstrations_are_solved_and_announce_what_holds_them() -> None:
    given = config(kinds=tuple(f"chain_sum-{terms}" for terms in range(2, 11)), options=("redundancy=1", "hurry=0.3"))
    agent = HBPO(given, WORDS, Expert(WORDS, 0.2, reading=True))
    games = tasks("reasoning", "train", 144, 0, given.kinds)
    starts = [Start(uid=i, group=i, task=task) for i, task in enumerate(games)]
    with Driver(ScriptedEngine(lambda request: ()), WORDS, Settings(), options={"reasoning": given.world}) as driven:
        phase = driven.rollout(agent.episode, starts, levels=agent.levels)
    record = phase.record
    assert not phase.faults and bool(play.success(record).all())
    own = record.streams.agent[record.calls.stream] == record.agents.index("policy")
    budget = record.calls.label["budget"]
    announcing = set()
    assert 48 <= int((budget[own] > 0).sum()) <= 96
    for call in own.nonzero()[:, 0].tolist():
        assert record.calls.use[call] == Use.TARGET
        announced = int(budget[call])
        if announced > 0:
            announcing.add(record.kinds[int(record.episodes.kind[record.episode[call]])])
            words = WORDS.encode(announcement(announced))
            length = len(words) + int(record.length[call])
            assert record.context_ids(call).tolist()[-len(words) :] == words, "in the context, so no target"
            assert announced == min((b for b in READABLE if b >= length), default=READABLE[-1])
    assert announcing == set(given.kinds)
    told = record.calls.use == Use.TARGET
    tokens = [WORDS.decode(record.output_ids(call).tolist()) for call in (told & ~own).nonzero()[:, 0].tolist()]
    assert tokens and not any("tokens" in text for text in tokens)


def spent() -> Record:
    """Four responses: more tokens for more terms."""
    builder = RecordBuilder()
    for uid, (terms, length) in enumerate(((2, 10), (2, 14), (8, 40), (8, 36))):
        episode = builder.episode(uid, uid, f"task {uid}", f"chain_sum-{terms}", 0)
        episode.call(episode.stream("policy"), [1], [7] * length, [-1.0] * length, [Source.SAMPLED] * length, End.EOS)
        episode.done(terminated=True)
    return builder.build()


def test_spending_follows_difficulty() -> None:
    found = spending(spent())
    assert found["tokens"] == 25 and found["tokens/2"] == 12 and found["tokens/8"] == 38
    assert found["correlation"] == pytest.approx(13 / math.sqrt(173), abs=1e-6)


@dataclass(frozen=True)
class Fake:
    """A run of three evaluations, and where its last record is."""

    path: Path
    evaluations: tuple[dict[str, Any], ...] = (
        {"step": 0, "tasks": {"sum-10": [1, 1, 0, 0], "sum-9": [1, 1, 1, 1]}, "tokens": 80.0},
        {"step": 5, "tasks": {"sum-10": [1, 1, 1, 1], "sum-9": [1, 1, 1, 1]}, "tokens": 100.0},
        {"step": 9, "tasks": {"sum-10": [1, 0, 0, 0], "sum-9": [1, 1, 1, 0]}, "tokens": 60.0},
    )


def test_statistics_of_the_claims(tmp_path: Path) -> None:
    run = Fake(tmp_path)
    assert hbpo.right(run).tolist() == [[100, 0, 0, 0], [100, 100, 100, 0]], "the last evaluation alone"
    assert hbpo.right(run, at=0).mean() == 75
    assert hbpo.hardest(run).tolist() == [[100, 0, 0, 0]] and hbpo.hardest(run, at=0).tolist() == [[100, 100, 0, 0]]
    assert float(hbpo.kept(run)) == 75 and float(hbpo.cut(run)) == 25
    long = dataclasses.replace(run, evaluations=(run.evaluations[0],))
    assert float(hbpo.brevity(run) - hbpo.brevity(long)) == pytest.approx(28.768, abs=1e-3), "a quarter fewer"
    spent().save(tmp_path / "records" / "step_000000009")
    assert float(hbpo.correlation(run)) == pytest.approx(13 / math.sqrt(173), abs=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_arms_of_the_claims_differ_by_reward_alone(full: bool) -> None:
    found = hbpo.claims(full)
    sides = {score.arm.name: score.arm.config(7) for claim in found for score in claim.scores}
    base = recipe(HBPO.Config, "reasoning", "published" if full else "cpu")
    assert sides == {name: dataclasses.replace(base, seed=7, **ARMS[name]) for name in ("hbpo", "accuracy", "cosine")}
    warm = {tuple(getattr(config, name) for name in FIELDS) for config in sides.values()}
    assert len(warm) == 1, "one warm start"
    assert all(claim.seeds == (0, 1, 2) for claim in found)


def test_recipes_hold_two_thousand_questions_at_the_end() -> None:
    given = recipe(HBPO.Config, "reasoning", "cpu")
    assert given.updates % given.eval_every == 0
    questions = {make("reasoning").reset(task).text for task in play.test_tasks(given, given.eval_episodes)}
    assert len(questions) >= 2000


@pytest.mark.parametrize("arm", ARMS)
def test_two_iterations_of_each_arm(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHELON_MODELS", str(tmp_path / "models"))
    changes: dict[str, Any] = {"context": 160, "warm_episodes": 0, "tasks": 2, "group": 4, "max_tokens": 6,
                               "think_tokens": 74, "kl": 0.01, "train_announcement": arm == "hbpo"}  # fmt: skip
    given = config(**{**changes, **ARMS[arm]})
    monkeypatch.setattr("echelon.training.language.warm.WORD_EPISODES", 20)
    inputs = LanguageRun.inputs(HBPO, given, lambda line: None)
    found = LanguageRun.build(HBPO, given, tmp_path, choose("cpu", "float32", 1), inputs)
    before = [p.clone() for p in found.parameters]
    for found.step in (1, 2):
        values = found.iterate()
        assert all(math.isfinite(float(value)) for value in values.values()), values
        assert values["faults"] == 0
    moved = any(not torch.equal(a, b) for a, b in zip(before, found.parameters, strict=True))
    assert moved == (arm in ("hbpo", "single")), "where nobody is right, ceilings alone have something to say"


@pytest.mark.parametrize(
    "change",
    [{"budgets": ()}, {"budgets": (0,)}, {"budgets": (136,)}, {"budgets": (17,)}, {"reward": "length"},
     {"form": "both"}, {"beta": -1.0}, {"think_tokens": -1}],
    ids=str,
)  # fmt: skip
def test_senseless_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        config(**change)
