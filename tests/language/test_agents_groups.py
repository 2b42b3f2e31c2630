"""GRPO and GiGPO credit what happened in episodes as references do that know nothing of records, spans or tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from reference import credit_base, credit_language
from small_language import small, tiny_language
from torch import Tensor

from echelon.language.record import Record
from echelon.systems.agents.gigpo import GiGPO
from echelon.systems.agents.grpo import GRPO
from echelon.training.language.agent import Turns
from echelon.training.language.loop import LanguageRun
from echelon.training.runtime import choose

Groups = list[list[dict[str, list[Any]]]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LanguageRun, Record]]:
    """A run, and the episodes of its first iteration: three groups of five, won and lost, understood and not."""
    folder = tmp_path_factory.mktemp("groups")
    with tiny_language(folder):
        config = small(GiGPO, tasks=3, group=5)
        found = LanguageRun.build(
            GiGPO, config, folder, choose("cpu", "float32", 1), GiGPO.trainer().inputs(GiGPO, config, lambda line: None)
        )
        found.step = 1
        yield found, found.collect().record


def nested(record: Record) -> Groups:
    """The acted turns of each episode of each group, in order, as lists."""
    groups: dict[int, dict[int, dict[str, list[Any]]]] = {}
    for call in range(len(record.calls.out)):
        episode = int(record.episode[call])
        turns = groups.setdefault(int(record.episodes.group[episode]), {})
        told = turns.setdefault(episode, {"reward": [], "state": [], "valid": [], "tokens": []})
        told["reward"].append(float(record.calls.reward[call]))
        told["state"].append(int(record.calls.state[call]))
        told["valid"].append(bool(record.calls.valid[call]))
        told["tokens"].append(int(record.length[call]))
    return [list(episodes.values()) for episodes in groups.values()]


def on_tokens(groups: Groups, advantages: list[list[list[float]]]) -> Tensor:
    """The advantage of each turn on each of its tokens, in a row."""
    return torch.tensor([
        a for group, rows in zip(groups, advantages, strict=True) for told, row in zip(group, rows, strict=True)
        for a, count in zip(row, told["tokens"], strict=True) for _ in range(count)
    ])  # fmt: skip


def test_the_episodes_have_what_the_comparison_needs(played: tuple[LanguageRun, Record]) -> None:
    groups = nested(played[1])
    assert [len(group) for group in groups] == [5, 5, 5]
    told = [turns for group in groups for turns in group]
    assert {sum(turns["reward"]) for turns in told} == {0.0, 1.0}
    assert {valid for turns in told for valid in turns["valid"]} == {False, True}
    assert any(len(set(turns["state"])) < len(turns["state"]) for turns in told), "a state that is met again"


def test_gigpo_is_its_reference(played: tuple[LanguageRun, Record]) -> None:
    found, record = played
    groups = nested(record)
    for omega, gamma, scale in ((1.0, 0.95, True), (0.5, 0.8, True), (1.0, 0.95, False), (0.0, 1.0, True)):
        config = dataclasses.replace(found.config, omega=omega, gamma=gamma, scale=scale, invalid_penalty=0.1)
        credit = GiGPO(config, found.agent.tokenizer, found.agent.voice).credit(Turns.of(record), {})
        expected = credit_language.gigpo(
            groups, gamma=gamma, omega=omega, mode="mean_std_norm" if scale else "mean_norm", invalid_penalty=0.1
        )
        torch.testing.assert_close(credit.advantage, on_tokens(groups, expected["total"]), rtol=1e-4, atol=2e-5)


def test_grpo_is_its_reference(played: tuple[LanguageRun, Record]) -> None:
    found, record = played
    groups = nested(record)
    config = GRPO.Config(env="colours", invalid_penalty=0.2)
    credit = GRPO(config, found.agent.tokenizer, found.agent.voice).credit(Turns.of(record), {})
    returns = [[sum(told["reward"]) - 0.2 * told["valid"].count(False) for told in group] for group in groups]
    rows = credit_base.grpo(returns, eps=1e-6)  # type: ignore[arg-type]
    spread = [
        [[a] * len(told["tokens"]) for a, told in zip(row, group, strict=True)]
        for row, group in zip(rows, groups, strict=True)
    ]
    torch.testing.assert_close(credit.advantage, on_tokens(groups, spread), rtol=1e-4, atol=2e-5)
