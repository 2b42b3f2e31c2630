"""CoDA: contexts that do not see each other, the shared advantage, formats, scripted roles that solve their games."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echelon.errors import DataError, UsageError
from echelon.language.driver import Driver, Phase, Settings, Start
from echelon.language.engine import End, Request, ScriptedEngine, Source
from echelon.language.models import language_model, tiny
from echelon.language.program import LevelSpec
from echelon.language.record import EpisodeBuilder, Record, RecordBuilder, Use
from echelon.language.words import WordTokenizer
from echelon.language.worlds.world import Observation, make, tasks
from echelon.systems.agents.coda import (
    COUNTS,
    EXECUTOR,
    PLANNER,
    CoDA,
    claims,
    part,
    roles,
    situation,
    slope,
    success_at,
    tokens_read,
)
from echelon.systems.agents.coda_script import amount_of, assign, carry_out
from echelon.training.language import play, warm
from echelon.training.language.agent import Expert, Model, Turns
from echelon.training.language.loop import LanguageRun
from echelon.training.runtime import choose

SMALL: dict[str, Any] = {
    "kinds": ("depth1", "depth2"),
    "limit": 12,
    "options": ("distractors=3",),
    "layers": 1,
    "width": 32,
    "context": 512,
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Vocabularies of few episodes; an empty folder for warm starts."""
    monkeypatch.setattr(warm, "WORD_EPISODES", 24)
    monkeypatch.setenv("ECHELON_MODELS", str(tmp_path / "models"))
    yield


def config(**changes: Any) -> CoDA.Config:
    """A small configuration."""
    return CoDA.Config(**{**SMALL, **changes})


def words(given: CoDA.Config) -> WordTokenizer:
    """The vocabulary of a few games."""
    return warm.vocabulary(CoDA, given)


def demonstrated(given: CoDA.Config, slips: float, games: int = 24) -> tuple[WordTokenizer, Phase]:
    """Games of the scripted roles."""
    tokenizer = words(given)
    agent = CoDA(given, tokenizer, Expert(tokenizer, slips, reading=False))
    drawn = tasks("textcraft", "train", games, 0, given.kinds)
    starts = [Start(uid=i, group=i, task=task) for i, task in enumerate(drawn)]
    with Driver(ScriptedEngine(lambda r: ()), tokenizer, Settings(), options={"textcraft": given.world}) as driven:
        phase = driven.rollout(agent.episode, starts, levels=agent.levels)
    assert not phase.faults, phase.faults
    return tokenizer, phase


def by_role(record: Record) -> torch.Tensor:
    """int64 [C]."""
    return record.items.label["role"][record.first]


# --- the scripted roles


def test_the_planner_keeps_a_stack() -> None:
    history: list[tuple[str, str]] = []
    for said, result in (
        ("craft 1 axe", "need 2 stick"),
        ("craft 2 stick", "need 2 oak planks"),
        ("craft 2 oak planks", "unfinished"),
        ("craft 2 oak planks", "done"),
        ("craft 2 stick", "done"),
        ("craft 1 axe", "done"),
        ("craft 1 axe", ""),
    ):
        assert assign("craft 1 axe", history) == f"<task>{said}</task>"
        history.append((said, result))


def test_the_executor_gets_reports_crafts_and_answers() -> None:
    plan = (
        "get 1 logs",
        "craft 4 planks using 1 logs",
        "craft 4 stick using 2 planks",
        "craft 1 axe using 2 stick, 3 flint",
    )

    def turn(task: str, **held: int) -> str:
        return carry_out(task, Observation("", info={"plan": plan, "inventory": held}), plan[0])

    assert turn("craft 1 axe") == "<answer>need 2 stick</answer>"
    assert turn("craft 1 axe", stick=2, flint=1) == "<action>get 2 flint</action>"
    assert turn("craft 1 axe", stick=2, flint=3) == "<action>craft 1 axe using 2 stick, 3 flint</action>"
    assert turn("craft 1 axe", axe=1) == "<answer>done</answer>"
    assert turn("craft 9 planks") == "<action>get 3 logs</action>"
    assert turn("craft 9 planks", planks=5, logs=1) == "<action>craft 4 planks using 1 logs</action>"
    assert turn("craft 2 wool") == "<answer>not needed</answer>"
    seen = Observation("", info={"plan": plan, "inventory": {}})
    assert carry_out("craft 1 axe", seen, "get 9 flint") == "<action>get 9 flint</action>", "a slip is carried out"
    assert carry_out("say red", Observation("say red"), "red") == "<action>red</action>"
    assert amount_of("craft 12 oak planks") == (12, "oak planks") and amount_of("craft planks") is None


def test_demonstrations_are_solved_and_keep_the_formats() -> None:
    given = config(limit=40)
    tokenizer, phase = demonstrated(given, slips=0.0)
    record = phase.record
    assert bool(play.success(record).all())
    assert bool((record.calls.use == Use.TARGET).all()) and bool(record.calls.valid.all())
    formats = record.calls.part["format"]
    assert bool((formats[formats.isfinite()] == 1).all())
    role, starts = by_role(record), record.streams.parent_call
    assert torch.equal(role == EXECUTOR, starts[record.calls.stream] >= 0)
    assert int((role == PLANNER).sum()) > len(record.episodes.uid), "some goals need sub-tasks"
    assert not tokenizer.unknown
    _, slipping = demonstrated(given, slips=0.2)
    assert play.success(slipping.record).float().mean() > 0.8


# --- isolation


def test_contexts_are_isolated() -> None:
    """No recipe reaches the planner, no result and no other task's tokens an executor; all of them are labelled."""
    given = config(limit=40)
    tokenizer, phase = demonstrated(given, slips=0.0)
    record = phase.record
    role = by_role(record)
    for call in range(len(record.calls.out)):
        text = tokenizer.decode(record.context_ids(call).tolist())
        if role[call] == PLANNER:
            assert text.count("using") == 0 and "Crafting commands" not in text and "Inventory" not in text
            assert "Role: planner" in text and "Role: executor" not in text
        else:
            assert "Crafting commands" in text and text.count("Task:") == 1
            assert "Result" not in text and "Goal:" not in text and "Role: planner" not in text
    for stream in record.calls.stream.unique().tolist():
        own = (record.calls.stream == stream).nonzero()[:, 0].tolist()
        first = record.context_ids(own[0])
        for call in own:
            assert torch.equal(record.context_ids(call)[: len(first)], first), "a context only grows"
    label = record.items.label["role"]
    assert torch.equal(label, role[record.call]), "every token belongs to the role that speaks"
    assert CoDA.levels[1:] == (
        LevelSpec("planner", owns=("planner",)),
        LevelSpec("executor", span="stream", owns=("executor",)),
    )


# --- what a model's words lead to


class Script:
    """Writes one text after the other."""

    def __init__(self, tokenizer: WordTokenizer, texts: Sequence[str]):
        self.tokenizer, self.texts = tokenizer, list(texts)

    def __call__(self, request: Request) -> list[int]:
        return self.tokenizer.encode(self.texts.pop(0))


def said(texts: Sequence[str], **changes: Any) -> tuple[WordTokenizer, Phase]:
    """One game of depth 1 in which the model says these texts; "GOAL" is the goal, "GET" and "CRAFT" its expert's."""
    given = config(kinds=("depth1",), **changes)
    tokenizer = words(given)
    task = tasks("textcraft", "train", 1, 0, given.kinds)[0]
    seen = make("textcraft", **given.world).reset(task)
    put = {"GOAL": seen.info["goal"], "GET": seen.info["plan"][0], "CRAFT": seen.info["plan"][-1]}
    assert len(seen.info["plan"]) == 2
    written = []
    for text in texts:
        for name, value in put.items():
            text = text.replace(name, value)
        written.append(text)
    agent = CoDA(given, tokenizer, Model(40))
    engine = ScriptedEngine(Script(tokenizer, written), eos=tokenizer.eos)
    with Driver(engine, tokenizer, Settings(), options={"textcraft": given.world}) as driven:
        phase = driven.rollout(agent.episode, [Start(uid=0, group=0, task=task)], levels=agent.levels)
    assert not phase.faults, phase.faults
    return tokenizer, phase


def formats(phase: Phase) -> tuple[list[float], list[float]]:
    """Of the planner, and of the executors."""
    column, role = phase.record.calls.part["format"], by_role(phase.record)
    known = column.isfinite()
    return column[known & (role == PLANNER)].tolist(), column[known & (role == EXECUTOR)].tolist()


def test_a_game_is_won_by_two_tasks() -> None:
    tokenizer, phase = said(
        ["<think>so</think><task>GET</task>", "<action>GET</action>", "<answer>done</answer>",
         "<task>craft 1 GOAL</task>", "<action>CRAFT</action>"]
    )  # fmt: skip
    record = phase.record
    assert bool(play.success(record)) and formats(phase) == ([1.0], [1.0, 1.0])
    contexts = [tokenizer.decode(record.context_ids(call).tolist()) for call in range(5)]
    assert by_role(record).tolist() == [PLANNER, PLANNER, EXECUTOR, EXECUTOR, EXECUTOR]
    assert contexts[1].endswith("<eos><user>Result: done<eos><assistant>")
    tasks_done = part(Turns.of(record), "task")
    assert tasks_done.isfinite().tolist() == [False, False, False, False, True] and tasks_done[4] == 1
    assert CoDA(config(), tokenizer, Model(9)).rewards(Turns.of(record)).tolist() == [5.0]
    longest = {0: 0, 1: 0, 2: 0}  # of the planner and two executors, whose contexts only grow
    for call, stream in enumerate(record.calls.stream.tolist()):
        longest[stream] = max(longest[stream], len(record.context_ids(call)) + len(record.output_ids(call)))
    assert play.read(record).tolist() == [sum(longest.values())]


def test_a_planner_may_give_up_and_a_bad_turn_spoils_its_format() -> None:
    tokenizer, phase = said(["<answer>no</answer>"])
    assert formats(phase) == ([1.0], [])
    assert bool(phase.record.episodes.terminated) and not bool(play.success(phase.record))
    assert CoDA(config(), tokenizer, Model(9)).rewards(Turns.of(phase.record)).tolist() == [-2.0]
    _, phase = said(["<think>", "<answer>no</answer>"])
    assert formats(phase) == ([0.0], []) and phase.record.calls.valid.tolist() == [False, True]
    _, phase = said(["<task>GET</task>", "get", "<task>GET</task>", "<action>GET</action>", "<answer>done</answer>"],
                    planner_turns=2)  # fmt: skip
    assert formats(phase) == ([0.0], [0.0, 1.0]), "out of turns; an executor that does not answer"
    assert bool(phase.record.episodes.truncated)
    _, phase = said(["<task>GET</task>", "<action>GET</action>", "<action>GET</action>"],
                    planner_turns=1, executor_turns=2)  # fmt: skip
    assert formats(phase) == ([0.0], [0.0])


# --- credit


def built(episodes: Sequence[dict[str, Any]]) -> Record:
    """Episodes of one goal: success, the planner's format, its executors' formats, whether their tasks were done."""
    builder = RecordBuilder({"labels": {"role": ["planner", "executor"]}})
    for uid, given in enumerate(episodes):
        episode = builder.episode(uid, 0)
        planner = episode.stream("policy")
        opener = emit(episode, planner, PLANNER, 2)
        for k, formed in enumerate(given["formats"]):
            executor = episode.stream("policy", opener)
            emit(episode, executor, EXECUTOR, 3)
            done = given.get("done", ())
            emit(episode, executor, EXECUTOR, 1, format=formed, **({"task": done[k]} if k < len(done) else {}))
        emit(episode, planner, PLANNER, 1, format=given["format"])
        episode.reward(given["success"])
        episode.done(terminated=bool(given["success"]), truncated=not given["success"])
    return builder.build()


def emit(episode: EpisodeBuilder, stream: int, role: int, length: int, **parts: float) -> int:
    """A call of so many tokens."""
    labels = {"role": [role] * length}
    logp = [-1.0] * length
    made = episode.call(stream, [1, role], [7] * length, logp, Source.SAMPLED, End.EOS, labels=labels)
    for name, value in parts.items():
        episode.part(name, value)
    return made


GROUP: tuple[dict[str, Any], ...] = (
    {"success": 1.0, "format": 1.0, "formats": (1.0, 0.0)},
    {"success": 0.0, "format": 1.0, "formats": (1.0,)},
    {"success": 0.0, "format": 0.0, "formats": ()},
    {"success": 0.0, "format": 1.0, "formats": (1.0, 1.0, 0.0, 0.0)},
)


def test_executors_share_the_planners_advantage() -> None:
    turns = Turns.of(built(GROUP))
    agent = CoDA(config(), WordTokenizer(["a"]), Model(9))
    assert agent.rewards(turns).tolist() == [4.5, -1.0, -3.0, -1.5]
    rewards = torch.tensor([4.5, -1.0, -3.0, -1.5])
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    credit = agent.credit(turns, {})
    episode = turns.tokens.expand(turns.tree["episode"].ids)
    assert torch.allclose(credit.advantage, expected[episode], atol=1e-6)
    assert bool((credit.weight == 1).all())
    record = built(GROUP[:1])
    record.calls.valid[:2] = False
    assert agent.rewards(Turns.of(record)).tolist() == pytest.approx([4.5 - 2 * 0.06]), "a hundredth of a success each"
    facts = {name: float(value) for name, value in agent.facts(turns).items()}
    assert facts["executor/count"] == 7 / 4 and facts["planner/turns"] == 2 and facts["planner/tokens"] == 3
    assert facts["executor/format"] == pytest.approx(4 / 7) and facts["planner/format"] == 0.75


def test_weights_of_the_roles() -> None:
    turns = Turns.of(built(GROUP))
    role = turns.tokens.expand(roles(turns))
    planner, executor = int((role == PLANNER).sum()), int((role == EXECUTOR).sum())
    assert (planner, executor) == (12, 28)
    alone = CoDA(config(executor_weight=0.0), WordTokenizer(["a"]), Model(9)).credit(turns, {})
    assert torch.equal(alone.weight, (role == PLANNER).float())
    balanced = CoDA(config(balanced=True), WordTokenizer(["a"]), Model(9)).credit(turns, {}).weight
    assert float(balanced[role == PLANNER].sum()) == pytest.approx(20) == float(balanced[role == EXECUTOR].sum())
    halved = CoDA(config(planner_weight=0.5), WordTokenizer(["a"]), Model(9)).credit(turns, {}).weight
    assert halved[role == PLANNER].unique().tolist() == [0.5] and halved[role == EXECUTOR].unique().tolist() == [1.0]


def test_executors_with_a_task_that_can_be_checked_may_have_their_own_credit() -> None:
    group = [dict(GROUP[0], done=(1.0, 0.0)), dict(GROUP[1], done=(1.0,)), *GROUP[2:]]
    turns = Turns.of(built(group))
    agent = CoDA(config(verify=True), WordTokenizer(["a"]), Model(9))
    credit, shared = agent.credit(turns, {}), CoDA(config(), WordTokenizer(["a"]), Model(9)).credit(turns, {})
    streams = turns.tokens.expand(turns.record.calls.stream[turns.calls])
    own = {s: float(credit.advantage[streams == s].unique()) for s in streams.unique().tolist()}
    done = torch.tensor([1.0, 0.0, 1.0])
    expected = ((done - done.mean()) / (done.std() + 1e-6)).tolist()
    assert [own[1], own[2], own[4]] == pytest.approx(expected)
    rest = ~torch.isin(streams, torch.tensor([1, 2, 4]))
    assert torch.equal(credit.advantage[rest], shared.advantage[rest])


# --- runs


@pytest.mark.parametrize("verify", [False, True])
def test_two_iterations(verify: bool, tmp_path: Path) -> None:
    given = config(kinds=("depth1",), warm_episodes=24, warm_epochs=2, warm_lr=1e-2, tasks=2, group=4, limit=4,
                   planner_turns=2, executor_turns=2, lr=1e-2, tokens=1, verify=verify)  # fmt: skip
    inputs = LanguageRun.inputs(CoDA, given, lambda line: None)
    found = LanguageRun.build(CoDA, given, tmp_path, choose("cpu", "float32", 1), inputs)
    before = [p.clone() for p in found.parameters]
    assert not found.finished, "nothing was read yet"
    for found.step in (1, 2):
        values = found.iterate()
        assert all(math.isfinite(float(value)) for value in values.values()), values
        assert values["faults"] == 0 and values["read"] > values["tokens"]
        assert found.finished and found.step < given.updates, "one token is all that may be read"
    assert any(not torch.equal(a, b) for a, b in zip(before, found.parameters, strict=True))


def test_texts_and_senseless_values() -> None:
    assert situation(Observation("", info={"inventory": {"stick": 2, "flint": 1}})) == "Inventory: 1 flint, 2 stick"
    assert situation(Observation("", info={"inventory": {}})) == "Inventory: nothing"
    assert situation(Observation("say red")) == "say red"
    for change in ({"planner_turns": 0}, {"executor_turns": 0}, {"tag_tokens": -1}, {"executor_weight": -1.0}):
        with pytest.raises(UsageError, match=next(iter(change))):
            config(**change)


def test_the_worlds_text_weighs_less_in_imitation(monkeypatch: pytest.MonkeyPatch) -> None:
    given = config(warm_episodes=4, warm_batch=4, warm_epochs=1, warm_reading=0.25)
    tokenizer = words(given)
    model = language_model(tiny(tokenizer.size, 1, 32, context=512), tokenizer)
    record = warm.demonstrations(CoDA, given, model)
    step, weights = warm.policy_step, list[torch.Tensor]()

    def kept(scorer: Any, view: Any, terms: Any, *rest: Any, **more: Any) -> Any:
        weights.append(terms["imitation"].weight)
        return step(scorer, view, terms, *rest, **more)

    monkeypatch.setattr(warm, "policy_step", kept)
    warm.imitate(model, record, given)
    own = (record.streams.agent[record.calls.stream] == record.agents.index("policy"))[record.call]
    (weight,) = weights
    assert float(weight.sum()) == pytest.approx(1) and bool((~own).any())
    assert (
        weight[own].unique().tolist() == pytest.approx([4 * float(weight[~own][0])]) and len(weight[~own].unique()) == 1
    )


# --- claims


class Evaluated:
    """A run with evaluations alone."""

    def __init__(self, *tasks: dict[str, list[int]], tokens: int = 0):
        self.evaluations = [{"step": k, "tasks": row, "trained_tokens": tokens} for k, row in enumerate(tasks)]


def test_a_slope_is_the_mean_of_weighted_successes() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {f"depth{d}-{n}": rng.integers(0, 2, 8).tolist() for n in (30, 100, 0, 10) for d in (1, 2)} for _ in range(3)
    ]
    run = Evaluated(*rows)
    mean = {n: np.mean([100 * np.mean(rows[-1][f"depth{d}-{n}"]) for d in (1, 2)]) for n in (*COUNTS, 100)}
    line = np.polyfit(np.log1p(COUNTS), [mean[n] for n in COUNTS], 1)
    assert slope(run).shape == (6, 8) and slope(run).mean() == pytest.approx(line[0])
    assert slope(run, (0, 100)).mean() == pytest.approx((mean[100] - mean[0]) / math.log(101))
    for count in (*COUNTS, 100):
        assert success_at(run, count).shape == (2, 8) and success_at(run, count).mean() == pytest.approx(mean[count])
    falling = Evaluated(
        {"depth1-0": [1, 1], "depth1": [0, 0], "depth1-10": [1, 0], "depth1-30": [0, 0]}, tokens=5 * 10**5
    )
    assert slope(falling).mean() < 0 and slope(falling).shape == (3, 2)
    assert tokens_read(falling) == 0.5
    with pytest.raises(DataError, match="no evaluation with each of"):
        slope(Evaluated({"depth1-0": [1], "depth1-10": [1]}))


def test_both_arms_of_the_claims_get_the_same() -> None:
    for full in (False, True):
        for claim in claims(full):
            assert claim.baseline is not None
            mine, flat = (score.arm.config(5) for score in (claim.method, claim.baseline))
            assert (mine.system, flat.system, mine.seed, flat.seed) == ("coda", "grpo", 5, 5)
            for name in ("kinds", "eval_kinds", "limit", "context", "layers", "width", "tokens", *warm.FIELDS):
                assert getattr(mine, name) == getattr(flat, name), name
            counts = {kind.partition("-")[2] for kind in mine.kinds}
            assert counts == {str(n) for n in COUNTS} and {*mine.eval_kinds} > {*mine.kinds}
