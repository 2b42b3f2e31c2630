"""Real training steps of TRL with credit of turns and of levels, checked against published numbers; the page's code."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trl import PROMPTS, arguments, generate, outcome, record, tokens_of
from torch import Tensor

from echelon.credit.credit import Credit, spread
from echelon.credit.segments import boundaries, hae
from echelon.credit.turns import gigpo
from echelon.errors import DataError
from echelon.integrations.batch import Batch

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

from echelon.integrations.trl import CreditGRPOTrainer  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs/integrations.md"
BASIC, ENVIRONMENT, LEVELS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[:3]
Build = Callable[..., Any]


def weights(trainer: Any) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def trains(trainer: Any) -> None:
    """Three steps change the weights, by finite losses that are not all zero."""
    before = weights(trainer)
    losses, advantages = record(trainer)
    assert len(losses) == 3 and all(map(torch.isfinite, map(torch.tensor, losses)))
    assert any(a.abs().max() > 0.1 for a in advantages)
    after = weights(trainer)
    assert after.isfinite().all() and (after - before).abs().max() > 1e-4


# ---- GiGPO: two episodes of one task, which meet states A and B again


def two_episodes(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    shapes = [[2, 1, 3, 2, 1], [1, 2, 2, 1, 4]] * (len(prompts) // 2)  # three turns with answers between them
    known = {"state": [["A", "B", "C"], ["A", "B", "B"]], "turn_reward": [[0.0, 0.0, 10.0], [0.0, 0.0, 0.0]]}
    return tokens_of(prompts, trainer, shapes) | {name: rows * (len(prompts) // 2) for name, rows in known.items()}


def gigpo_rule(batch: Batch) -> Credit:
    return gigpo(batch.tree(), reward=batch.column("turn_reward", "turn"), state=batch.key("state"), gamma=0.95)


def test_gigpo_in_trl__code(build: Build) -> None:
    """Totals with row statistics, arXiv 2505.10978."""
    trainer = build(
        CreditGRPOTrainer, {"num_generations": 2}, rollout_func=two_episodes, reward_funcs=outcome, credit=gigpo_rule
    )
    output = generate(trainer, rows=2)
    turns = torch.tensor([[1.619977, 2.067571, 0.912871], [-1.619977, -1.490221, -1.490221]])
    tokens = [[0] * 3 + [1] * 5 + [2] * 1, [0] * 3 + [1] * 3 + [2] * 4]  # a turn ends with what answers it
    for i in range(4):
        expected = turns[i % 2][tokens[i % 2]]
        torch.testing.assert_close(output["advantages"][i, : len(expected)], expected, atol=1e-5, rtol=0)
    assert (output["advantages"] * (1 - output["completion_mask"]) == 0).all()
    assert output["tool_mask"][0].tolist() == [1, 1, 0, 1, 1, 1, 0, 0, 1, 1]
    trains(trainer)


def test_without_the_field_it_is_named(build: Build) -> None:
    def forgetful(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        made = two_episodes(prompts, trainer)
        del made["state"]
        return made

    trainer = build(
        CreditGRPOTrainer, {"num_generations": 2}, rollout_func=forgetful, reward_funcs=outcome, credit=gigpo_rule
    )
    with pytest.raises(DataError, match="no field 'state'"):
        trainer.train()


# ---- HAE: five turns, SWITCH at the first and the third; a subgoal token, two action tokens, an answer

KNOWN = {
    "switch": [1, 0, 1, 0, 0],
    "turn_reward": [0.0, 0.0, 0.0, 0.0, 1.0],
    "low_value": [0.2, 0.3, 0.4, 0.5, 0.7],
    "high_value": [0.25, 0.35, 0.45, 0.55, 0.65],
    "subgoal": [1, 0, 0, 0] * 4 + [1, 0, 0],
}


def five_turns(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    made = tokens_of(prompts, trainer, [[3, 1] * 4 + [3]] * len(prompts))
    return made | {name: [values] * len(prompts) for name, values in KNOWN.items()}


def test_hae_in_trl__code(build: Build) -> None:
    """γ = 0.9, both λ = 0.95, of the released code of arXiv 2602.16165."""

    def rule(batch: Batch) -> Credit:
        segments = boundaries(batch.column("switch", "turn", torch.bool), batch.episodes)
        reward, low, high = (batch.column(n, "turn") for n in ("turn_reward", "low_value", "high_value"))
        credits = hae(
            batch.tree(segments), reward=reward, low_value=low, high_value=high, gamma=0.9, lam_turn=0.95, lam_seg=0.95
        )
        subgoal = batch.column("subgoal", "token", torch.bool)
        return spread(credits, batch.turns, {"high": subgoal, "low": batch.emitted & ~subgoal})

    trainer = build(CreditGRPOTrainer, rollout_func=five_turns, reward_funcs=outcome, credit=rule)
    low = [0.159775, 0.105, 0.380458, 0.3865, 0.3]
    high = [0.39152, 0, 0.36, 0, 0]  # a kept subgoal was not decided: weight 0
    expected = torch.tensor([x for a, b in zip(high, low, strict=True) for x in (a, b, b, 0)][:-1])
    advantages = generate(trainer)["advantages"]
    torch.testing.assert_close(advantages, expected.expand(8, -1), atol=1e-5, rtol=0)
    trains(trainer)


# ---- the page


def scope(model: str, tokenizer: Any, folder: Path, **options: Any) -> dict[str, Any]:
    """What is the reader's own in the code of the page."""
    return {
        "model": model,
        "tokenizer": tokenizer,
        "args": arguments(folder, **options),
        "dataset": Dataset.from_list(PROMPTS),
        "reward": lambda completion_ids, **_: [sum(ids) / 1000 for ids in completion_ids],
    }


def test_the_page_trains(model_path: str, tokenizer: Any, tmp_path: Path) -> None:
    page = scope(model_path, tokenizer, tmp_path)
    exec(compile(BASIC, PAGE.name, "exec"), page)
    assert page["trainer"].state.global_step == 3
    assert any("credit/reward" in entry for entry in page["trainer"].state.log_history)


def test_the_page_trains_levels(model_path: str, tokenizer: Any, tmp_path: Path) -> None:
    page = scope(model_path, tokenizer, tmp_path) | {"rollout": five_turns, "reward": outcome}
    exec(compile(LEVELS, PAGE.name, "exec"), page)
    assert page["trainer"].state.global_step == 3
    assert {"credit/high.td_error", "credit/low.td_error"} <= page["trainer"].state.log_history[0].keys()


def test_the_page_trains_in_an_environment(
    model_path: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's own loop of tools, with a script in place of the untrained model's text: calls, then a last word."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    call = '<tool_call>\n{"name": "walk", "arguments": {"steps": %d}}\n</tool_call><|im_end|>'
    seen: list[Batch] = []

    def scripted(self: Any, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        answers = [self.processing_class.decode(ids).count("<tool_response>") for ids in prompt_ids]
        calls = [call % (1 + i % 3) if n <= i % 2 else "done<|im_end|>" for i, n in enumerate(answers)]
        return [self.processing_class(text)["input_ids"] for text in calls], None

    def watched(self: Any, output: Any, batch: Callable[..., Batch] = CreditGRPOTrainer._batch) -> Batch:
        seen.append(batch(self, output))
        return seen[-1]

    monkeypatch.setattr(CreditGRPOTrainer, "_generate_single_turn", scripted)
    monkeypatch.setattr(CreditGRPOTrainer, "_batch", watched)
    page = scope(model_path, tokenizer, tmp_path, max_completion_length=300, max_steps=2)
    page["dataset"] = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in ("go", "run")])
    exec(compile(ENVIRONMENT, PAGE.name, "exec"), page)
    batch = seen[0]
    lengths = batch.episodes.lengths.tolist()
    assert page["trainer"].state.global_step == 2 and 2 <= min(lengths) < max(lengths) <= 3
    states = [row["states"][:n] for row, n in zip(batch.fields, lengths, strict=True)]
    assert batch.key("states", cut=True).unique().numel() == len(set(itertools.chain(*states))) > 2
    rewards = batch.episodes.reduce(batch.column("rewards", "turn", cut=True))
    assert torch.equal(rewards, batch.reward) and 0 < rewards.sum() < 8
