"""The agents with critics: what they read of a turn, and their credit against the formulas on numbers set by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from chores import WORDS, Said, chores, open_run, plan, record_of, small
from torch import Tensor

from echelon.credit.returns import gae
from echelon.credit.segments import hae, normalise_levels
from echelon.errors import UsageError
from echelon.language.driver import Driver, Settings, Start
from echelon.language.engine import ScriptedEngine
from echelon.language.record import Record
from echelon.language.worlds.world import Observation, tasks
from echelon.spans import Spans, SpanTree
from echelon.systems.agents.hiper import HiPER, PPOPlan, switch_probability
from echelon.systems.agents.planexecute import ACTION, SUBGOAL, SWITCH, blocks, decided, owners, phase, read, write
from echelon.systems.agents.ppo import PPO
from echelon.training.language.agent import Expert, Model, Turns
from echelon.training.language.loop import LanguageRun

SWITCHES = (True, False, True, False, False)
LOW = (0.2, 0.3, 0.4, 0.5, 0.7)
HIGH = (0.25, 0.35, 0.45, 0.55, 0.65)
FREE: dict[str, Any] = {"keep": 0.0, "inconsistent": 0.0, "invalid_penalty": 0.0, "normalise": False}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny world, and an empty folder for warm starts."""
    folder = tmp_path_factory.mktemp("models")
    with chores(folder):
        yield folder


def agent(cls: type[Any], **changes: Any) -> Any:
    """An agent without a run."""
    return cls(small(cls, **changes), WORDS, Model(8))


def five(terminated: bool = True) -> Record:
    """The card's episode: five turns, the last of which pays 1."""
    said = [Said(plan(switch), reward=float(k == 4)) for k, switch in enumerate(SWITCHES)]
    return record_of([said], [terminated])


def values(turns: Turns, **placed: tuple[Tensor, tuple[float, ...]]) -> dict[str, Tensor]:
    """Head → [M]: the numbers at these items, NaN at all others, so that reading them elsewhere fails."""
    nothing = torch.full((turns.tokens.size,), math.nan)
    return {head: nothing.index_copy(0, at, torch.tensor(numbers)) for head, (at, numbers) in placed.items()}


def at_turns(column: Tensor, turns: Turns, code: int) -> list[float]:
    """The one number at the tokens of each turn's block."""
    mine, found = blocks(turns) == code, []
    for k in range(turns.tokens.n):
        numbers = column[mine & (turns.tokens.ids == k)]
        assert len(numbers) and bool((numbers == numbers[0]).all())
        found.append(float(numbers[0]))
    return found


def close(numbers: Any) -> Any:
    """Equal up to rounding of float32, and of the expected numbers."""
    return pytest.approx(list(numbers), abs=1e-5)


# ---- the format


@pytest.mark.parametrize(
    ("text", "switch", "subgoal", "action", "lenient", "strict"),
    [
        (plan(True), True, "find red", "take red", True, True),
        (plan(False), False, "find red", "take red", True, True),
        (plan(True).replace("SWITCH", " switch "), True, "find red", "take red", True, True),
        ("well " + plan(True), True, "find red", "take red", True, False),
        (plan(True).removesuffix("</action>"), True, "find red", "take red", True, False),
        (plan(True).replace("SWITCH", "MAYBE"), True, "find red", "take red", False, False),
        (plan(True).replace("SWITCH", ""), False, "find red", "take red", False, False),
        ("<action>take red</action>", False, "", "take red", False, False),
        ("<switch>SWITCH</switch><subgoal>x</subgoal>" + 40 * "a", True, "", 30 * "a", False, False),
        ("", False, "", "", False, False),
    ],
)  # fmt: skip
def test_read(text: str, switch: bool, subgoal: str, action: str, lenient: bool, strict: bool) -> None:
    said = read(text)
    assert (said.switch, said.subgoal, said.action, said.valid) == (switch, subgoal, action, lenient)
    exact = read(text, strict=True)
    assert exact.valid == strict
    assert exact == said if strict else (exact.switch, exact.subgoal, exact.action) == (False, "", text[-30:])


def test_what_the_expert_writes_is_read_back() -> None:
    assert read(write("", "find red", "take red"), strict=True) == read(plan(True))
    assert read(write("find red", "find red", "take red"), strict=True) == read(plan(False))


def test_the_expert_switches_when_the_phase_changes() -> None:
    config = small(PPOPlan)
    voice = Expert(WORDS, slips=0.0, reading=False)
    settings = Settings(run=0, context=256)
    games = [Start(k, k, task) for k, task in enumerate(tasks("chores", "train", 4, 0, ["two"]))]
    with Driver(ScriptedEngine(lambda request: ()), WORDS, settings) as driver:
        phase_ = driver.rollout(PPOPlan(config, WORDS, voice).episode, games, levels=PPOPlan.levels)
    record = phase_.record
    assert not phase_.faults and bool(record.episodes.terminated.all())
    texts = [record.texts[k] for k in record.calls.out_text.tolist()]
    assert len(texts) == 16 and all(read(text, strict=True).valid for text in texts)
    for first in range(0, 16, 4):  # find, bring, find, bring
        assert [read(text).subgoal.split()[0] for text in texts[first : first + 4]] == 2 * ["find", "bring"]
        assert [read(text).switch for text in texts[first : first + 4]] == 4 * [True]
    assert bool(record.calls.begin["segment"].all())
    shown = [WORDS.decode(record.context_ids(call).tolist(), control=False) for call in (0, 1)]
    assert shown[0].endswith("Subgoal: None") and shown[1].endswith(f"Subgoal: {read(texts[0]).subgoal}")


def test_a_world_without_phases_has_one_subgoal() -> None:
    assert phase(Observation("x")) == phase(Observation("y"))


# ---- where values are read


def test_the_low_value_is_read_once_the_subgoal_is_known() -> None:
    record = record_of([[
        Said(plan(True)),
        Said("<switch>KEEP</switch><action>take red</action>"),
        Said("<subgoal>find red</subgoal><action>take red</action>"),
        Said("take red"),
        Said("<switch>KEEP</switch><subgoal>find red"),
        Said("<switch>KEEP</switch><subgoal>find red</subgoal>take red"),
    ]])  # fmt: skip
    turns = Turns.of(record)
    place, planned = decided(turns)
    words = [WORDS.vocabulary[token] for token in record.token[turns.items][place].tolist()]
    assert words == ["<action>", "<switch>", "<action>", "take", "<switch>", "<switch>"]
    assert (place - turns.tokens.starts).tolist() == [7, 0, 4, 0, 0, 0]
    assert planned.tolist() == [True, False, True, False, False, False]


# ---- HiPER's credit


@pytest.mark.parametrize(
    ("gamma", "lam_turn", "low", "high", "returns"),
    [
        (0.9, 0.95, (0.159775, 0.105, 0.380458, 0.3865, 0.3), (0.39152, 0.36), (0.3645, 0.405, 0.81, 0.9, 1.0)),
        (1.0, 1.0, (0.25, 0.15, 0.6, 0.5, 0.3), (0.7225, 0.55), (0.45, 0.45, 1.0, 1.0, 1.0)),
    ],
)
def test_hiper_with_three_heads(gamma: float, lam_turn: float, low: Any, high: Any, returns: Any) -> None:
    turns = Turns.of(five())
    first, (after, _) = turns.tokens.starts, decided(turns)
    term = (0.1, 0.2, 0.3, 0.4, 0.5)
    given = values(turns, low=(after, LOW), high=(first, HIGH), term=(first, term))
    hiper = agent(HiPER, gamma=gamma, lam_turn=lam_turn, **FREE)
    credit = hiper.credit(turns, given)
    assert hiper.heads == ("low", "high", "term")
    assert at_turns(credit.advantage, turns, ACTION) == close(low)
    assert at_turns(credit.advantage, turns, SWITCH) == close(g - v for g, v in zip(returns, term, strict=True))
    subgoal = at_turns(credit.advantage, turns, SUBGOAL)
    assert subgoal == close([high[0], 0, high[1], 0, 0])
    # a kept subgoal is no decision: neither weight nor a place in the mean
    kept = (blocks(turns) == SUBGOAL) & torch.isin(turns.tokens.ids, torch.tensor([1, 3, 4]))
    assert torch.equal(credit.weight == 0, kept) and torch.equal(hiper.trained(turns, credit), ~kept)
    for head, at, numbers in (
        ("low", after, torch.tensor(low) + torch.tensor(LOW)),
        ("high", first[[0, 2]], torch.tensor(high) + torch.tensor(HIGH)[[0, 2]]),
        ("term", first, torch.tensor(returns)),
    ):
        target = credit.target[head]
        assert target.isfinite().nonzero()[:, 0].tolist() == sorted(at.tolist())
        torch.testing.assert_close(target[at], numbers, atol=1e-5, rtol=0)


def test_hiper_with_the_papers_two_heads() -> None:
    beta = (1.0, 0.3, 0.6, 0.2, 0.1)
    said = []
    for k, (switch, b) in enumerate(zip(SWITCHES, beta, strict=True)):
        said.append(Said(plan(switch), reward=float(k == 4), logp=math.log(b if switch else 1 - b) / 3))
    turns = Turns.of(record_of([said]))
    torch.testing.assert_close(switch_probability(turns), torch.tensor(beta))
    first, (after, _) = turns.tokens.starts, decided(turns)
    given = values(turns, low=(after, LOW), high=(first, HIGH))
    given["low"][first] = torch.tensor([0.0, 0.3, 0.32, 0.5, 0.7])  # of the subgoal held on arrival
    hiper = agent(HiPER, heads="paper", gamma=0.9, lam_turn=0.95, **FREE)
    credit = hiper.credit(turns, given)
    assert hiper.heads == ("low", "high") and set(credit.target) == {"low", "high"}
    expected = [0.0, -0.015, 0.052, -0.01, -0.1 * -0.05]
    assert at_turns(credit.advantage, turns, SWITCH) == close(expected)
    low = torch.tensor([0.159775, 0.105, 0.380458, 0.3865, 0.3]) + torch.tensor(LOW)
    torch.testing.assert_close(credit.target["low"][after], low, atol=1e-5, rtol=0)
    torch.testing.assert_close(credit.target["low"][first[[1, 3, 4]]], low[[1, 3, 4]], atol=1e-5, rtol=0)
    assert credit.target["low"][first[[0, 2]]].isnan().all()  # no subgoal was held, or it was given up
    assert not bool(credit.weight[turns.tokens.ids == 0][:3].any())  # the first switch chooses nothing


@pytest.mark.parametrize(
    ("bootstrap", "low", "high"),
    [(False, (0.159775, 0.105, -0.4), (-0.231775, -0.45)), (True, (0.159775, 0.105, -0.04), (0.0798725, -0.045))],
)
def test_hiper_of_an_episode_that_was_cut_off(bootstrap: bool, low: Any, high: Any) -> None:
    said = [Said(plan(switch)) for switch in (True, False, True)]
    turns = Turns.of(record_of([said], [False]))
    first, (after, _) = turns.tokens.starts, decided(turns)
    given = values(turns, low=(after, LOW[:3]), high=(first, HIGH[:3]), term=(first, (0.0, 0.0, 0.0)))
    credit = agent(HiPER, gamma=0.9, lam_turn=0.95, bootstrap=bootstrap, **FREE).credit(turns, given)
    assert at_turns(credit.advantage, turns, ACTION) == close(low)
    assert at_turns(credit.advantage, turns, SUBGOAL) == close([high[0], 0, high[1]])


def mixed() -> Record:
    """Two episodes of one group with turns that depart from the format."""
    return record_of(
        [
            [Said(plan(False)), Said(plan(False, "bring red")), Said("take red", valid=False), Said(plan(True), 1.0)],
            [Said(plan(True)), Said("<switch>SWITCH</switch><action>take red</action>", valid=False)],
        ],
        [True, False],
        group=2,
    )


def test_hiper_equals_the_formulas_on_turns_placed_by_hand() -> None:
    turns = Turns.of(mixed())
    config = {"keep": -0.3, "inconsistent": -0.2, "invalid_penalty": 0.1, "gamma": 0.9, "lam_turn": 0.8}
    hiper = agent(HiPER, **config)
    # KEEP, changed, no switch at all, SWITCH; SWITCH, SWITCH. -0.3 / 4 a KEEP
    reward = torch.tensor([-0.075, -0.275, -0.175, 1.0, 0.0, -0.1])
    torch.testing.assert_close(hiper.rewards(turns), reward)
    drawn = torch.Generator().manual_seed(0)
    given = {head: torch.randn(turns.tokens.size, generator=drawn) for head in hiper.heads}
    credit = hiper.credit(turns, given)
    first = torch.tensor([0, 12, 24, 27, 39, 51])
    after, planned = torch.tensor([7, 19, 24, 34, 46, 51]), torch.tensor([1, 1, 0, 1, 1, 0]) > 0
    assert torch.equal(first, turns.tokens.starts)
    assert torch.equal(after, decided(turns)[0]) and torch.equal(planned, decided(turns)[1])
    tree = SpanTree({"episode": Spans([0, 4, 6]), "segment": (Spans([0, 3, 4, 5, 6]), "episode")})
    parts = hae(
        tree,
        reward=reward,
        low_value=torch.where(planned, given["low"][after], given["high"][first]),
        high_value=given["high"][first],
        term_value=given["term"][first],
        terminated=torch.tensor([True, False]),
        truncation="zero",
        gamma=0.9,
        lam_turn=0.8,
    )
    # turn 2 has neither switch nor subgoal, turn 5 no subgoal
    has_switch, has_subgoal = torch.tensor([1, 1, 0, 1, 1, 1]) > 0, torch.tensor([1, 1, 0, 1, 1, 0]) > 0
    parts = normalise_levels(parts, {"switch": has_switch, "high": has_subgoal})
    code, ids = owners(turns), turns.tokens.ids
    for level, block in (("low", ACTION), ("high", SUBGOAL), ("switch", SWITCH)):
        mine = code == block
        torch.testing.assert_close(credit.advantage[mine], parts[level].advantage[ids[mine]])
        torch.testing.assert_close(credit.weight[mine], parts[level].weight[ids[mine]])
    assert bool((code >= 0).all())  # every token has an owner, the end tokens too
    assert credit.target["high"].isfinite().nonzero()[:, 0].tolist() == [0, 27, 39, 51]
    assert credit.target["low"].isfinite().nonzero()[:, 0].tolist() == [7, 19, 34, 46]
    facts = {name: float(value) for name, value in hiper.facts(turns).items()}
    assert facts == {"segments/turns": 1.5, "segments/switch": 0.5, "segments/changed": 1.0}


# ---- PPO's credit


@pytest.mark.parametrize("cls", [PPO, PPOPlan])
def test_ppo_by_turn(cls: type[PPO]) -> None:
    turns = Turns.of(mixed())
    first = turns.tokens.starts
    read_at = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    given = {"value": torch.full((turns.tokens.size,), math.nan).index_copy(0, first, read_at)}
    credit = agent(cls, gamma=0.9, lam=0.8, invalid_penalty=0.1, normalise=False).credit(turns, given)
    expected = gae(
        Spans([0, 4, 6]),
        reward=torch.tensor([0.0, 0.0, -0.1, 1.0, 0.0, -0.1]),
        value=read_at,
        gamma=0.9,
        lam=0.8,
        final_value=torch.zeros(2),
    )
    torch.testing.assert_close(credit.advantage, turns.tokens.expand(expected.advantage))
    assert credit.target["value"].isfinite().nonzero()[:, 0].tolist() == first.tolist()
    torch.testing.assert_close(credit.target["value"][first], expected.target["value"])


def test_ppo_by_token_discounts_turns_alone() -> None:
    turns = Turns.of(five())
    size = turns.tokens.size
    value = torch.randn(size, generator=torch.Generator().manual_seed(0))
    credit = agent(PPO, unit="token", gamma=0.9, lam=0.7, normalise=False).credit(turns, {"value": value})
    advantage, later, after = torch.zeros(size), 0.0, 0.0
    for k in reversed(range(size)):  # 12 tokens a turn
        gamma, reward = (0.9, float(k == size - 1)) if k % 12 == 11 else (1.0, 0.0)
        later = reward + gamma * after - float(value[k]) + gamma * 0.7 * later
        advantage[k], after = later, float(value[k])
    torch.testing.assert_close(credit.advantage, advantage)
    torch.testing.assert_close(credit.target["value"], advantage + value)


def test_ppo_of_an_episode_that_was_cut_off_may_end_with_nothing() -> None:
    turns = Turns.of(five(terminated=False))
    given = {"value": torch.full((turns.tokens.size,), 0.5)}
    last = [
        agent(PPO, bootstrap=bootstrap, normalise=False, invalid_penalty=0.0).credit(turns, given).target["value"][-12]
        for bootstrap in (True, False)
    ]
    assert [float(x) for x in last] == [1.5, 1.0]


def test_ppo_normalises_over_tokens() -> None:
    turns = Turns.of(mixed())
    given = {"value": torch.linspace(-1, 1, turns.tokens.size)}
    credit = agent(PPO).credit(turns, given)
    assert abs(float(credit.advantage.mean())) < 1e-6 and float(credit.advantage.std()) == pytest.approx(1)


# ---- whole runs


def iterate(run: LanguageRun) -> list[Mapping[str, Any]]:
    """All its iterations."""
    found = []
    for _ in range(run.config.updates):
        run.step += 1
        found.append(run.iterate())
    return found


@pytest.mark.parametrize(
    ("cls", "changes"), [(PPOPlan, {}), (HiPER, {}), (HiPER, {"heads": "paper"}), (HiPER, {"strict": True})]
)
def test_two_iterations(cls: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    run = open_run(cls, tmp_path, **changes)
    assert run.critic is not None and run.critic.heads == run.agent.heads
    before = [p.detach().clone() for p in (*run.language.model.parameters(), *run.critic.parameters())]
    rows = iterate(run)
    after = [*run.language.model.parameters(), *run.critic.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for row in rows:
        assert row["faults"] == 0 and row["segments/turns"] >= 1
        assert all(math.isfinite(float(value)) for value in row.values())
        assert all(f"loss/value/{head}" in row and f"value/{head}/explained" in row for head in run.agent.heads)
    assert float(rows[0]["invalid"]) < 1  # the warm start has learned the format


@pytest.mark.parametrize(
    ("cls", "changes", "said"),
    [
        (PPO, {"unit": "word"}, "turn or token"),
        (PPO, {"lam": 1.5}, "in"),
        (PPO, {"value_clip": 0.0}, "positive"),
        (HiPER, {"heads": "three"}, "code or paper"),
        (HiPER, {"keep_scale": "none"}, "normalized or fixed"),
        (HiPER, {"lam_seg": -0.1}, "in"),
        (HiPER, {"plan_tokens": -1}, "0 or more"),
    ],
)
def test_configurations_are_checked(cls: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        small(cls, **changes)
