"""TRL's trainer with echelon's advantages: the same numbers where the rule is TRL's, any other rule where it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trl import PROMPTS, generate, outcome, record, rollout
from torch import Tensor

from echelon.credit.credit import Credit
from echelon.credit.groups import batch_std, dr_grpo, gdpo, grpo, rloo
from echelon.errors import DataError, MissingExtra, UsageError
from echelon.integrations import trl as integration
from echelon.integrations.batch import Batch

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

from echelon.integrations.trl import CreditGRPOTrainer, CreditMixin  # noqa: E402

Build = Callable[..., Any]


def remainder(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """A reward of the tokens, unknown for some completions; in eighths, so that float32 has nothing to round in it."""
    return [None if ids[0] % 5 == 0 else sum(ids) % 17 / 8 for ids in completion_ids]


def sometimes(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if ids[0] % 5 < 2 else ids[-1] % 7 / 4 for ids in completion_ids]


def trl_grpo(batch: Batch) -> Any:
    return grpo(batch.groups, reward=batch.reward, where=batch.scored, ddof=1, eps=1e-4)


def test_advantages_and_losses_are_trls_own(build: Build) -> None:
    options = {"num_iterations": 2, "beta": 0.04, "max_steps": 6}
    theirs, expected = record(build(trl.GRPOTrainer, options, reward_funcs=remainder))
    trainer = build(CreditGRPOTrainer, options, reward_funcs=remainder, credit=trl_grpo)
    ours, advantages = record(trainer)
    assert len(ours) == 6 and ours[2:4] != ours[:2]  # the second pass over one generation is off policy
    for mine, yours in zip(advantages, expected, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-6, rtol=0)
    assert sum(int((a == 0).sum()) for a in advantages) > 0  # unknown rewards
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-5, rtol=0)
    logged = [entry for entry in trainer.state.log_history if "credit/group" in entry]
    assert logged and any(entry["kl"] > 1e-4 for entry in logged)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"scale_rewards": "none"}, lambda b: dr_grpo(b.groups, reward=b.reward, where=b.scored)),
        ({"scale_rewards": "batch"}, lambda b: batch_std(b.groups, reward=b.reward, where=b.scored)),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.5]},
            lambda b: gdpo(
                b.groups,
                rewards=b.rewards,
                weights=b.reward_weights,
                where={name: ~column.isnan() for name, column in b.rewards.items()},
            ),
        ),
    ],
    ids=["none", "batch", "decoupled"],
)
def test_other_scalings_of_trl(
    build: Build, options: dict[str, Any], rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one generation batch, in which at least one function scores every completion."""
    theirs: list[Tensor] = []
    own = trl.GRPOTrainer._generate_and_score_completions

    def spied(self: Any, rows: Any) -> Any:
        output = own(self, rows)
        theirs.append(output["advantages"].clone())
        return output

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_and_score_completions", spied)
    funcs = [lambda completion_ids, **_: [sum(ids) % 11 / 8 for ids in completion_ids], sometimes]
    trainer = build(CreditGRPOTrainer, options, reward_funcs=funcs, credit=rule)
    ours = generate(trainer)["advantages"]
    torch.testing.assert_close(ours, theirs[0], atol=1e-6, rtol=0)
    assert ours.abs().max() > 0.1
    assert list(trainer._logs["advantages"]) == pytest.approx(ours.tolist())


def test_turns_and_fields_of_a_rollout_reach_the_rule(build: Build) -> None:
    seen: list[Batch] = []

    def rule(batch: Batch) -> Tensor:
        seen.append(batch)
        return batch.column("turn_reward", "turn")

    trainer = build(CreditGRPOTrainer, credit=rule, rollout_func=rollout, reward_funcs=outcome)
    losses, advantages = record(trainer)
    assert len(seen) == 2 and len(losses) == 3  # two generations, the first for two steps
    batch = seen[0]
    assert batch.groups.lengths.tolist() == [4, 4] and batch.tokens.lengths.tolist() == [9, 12, 2, 5] * 2
    assert batch.turns.lengths.tolist() == [5, 4, 5, 5, 2, 2, 4, 1] * 2
    assert batch.key("task", "completion").tolist() == [0] * 4 + [1] * 4
    assert batch.column("completion_ids", "token", torch.int64)[:3].tolist() == [0, 3, 6]
    assert batch.reward.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and batch.scored.all()
    assert list(batch.rewards) == ["outcome"] and torch.equal(batch.emitted, batch.trained)
    assert all(a.shape == (4, 12) for a in advantages)
    assert trainer._logs["advantages"][1] == pytest.approx(2 / 9)


def test_rows_stay_with_their_completions_when_trl_shuffles_and_splits(build: Build) -> None:
    """The advantage of a token is its id, so that every row can be checked wherever it ends up."""
    trainer = build(
        CreditGRPOTrainer,
        {"pad_to_multiple_of": 8},
        credit=lambda batch: batch.column("completion_ids", "token"),
        rollout_func=rollout,
        reward_funcs=outcome,
    )
    inputs = trainer._prepare_inputs([dict(row) for row in PROMPTS[:2] for _ in range(4)])
    assert len(trainer._buffered_inputs) == 2 and inputs["advantages"].shape == (4, 16)
    for part in trainer._buffered_inputs:
        torch.testing.assert_close(part["advantages"], (part["completion_ids"] * part["completion_mask"]).float())


def test_processes_gather_the_batch_and_keep_their_rows(tmp_path: Path) -> None:
    script = Path(__file__).with_name("tiny_trl.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, script, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows carry their own advantages") == 2


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_every_loss_of_trl_takes_advantages_of_tokens(build: Build, level: str) -> None:
    trainer = build(
        CreditGRPOTrainer,
        {"importance_sampling_level": level, "off_policy_mask_threshold": 0.5},
        credit=lambda batch: rloo(batch.groups, reward=batch.reward),
        rollout_func=rollout,
        reward_funcs=outcome,
    )
    batch = trainer._prepare_inputs([dict(row) for row in PROMPTS[:2] for _ in range(4)])
    batch["old_per_token_logps"] = torch.full(batch["completion_ids"].shape, -5.0)
    trainer.current_gradient_accumulation_steps = 1
    wide = batch | {"advantages": batch["advantages"][:, None].expand_as(batch["completion_ids"])}
    for trainer.loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"):
        narrow_loss, wide_loss = (trainer._compute_loss(trainer.model, inputs) for inputs in (batch, wide))
        torch.testing.assert_close(narrow_loss, wide_loss)


def test_completions_that_trl_masks_keep_their_turns(build: Build) -> None:
    seen: list[Batch] = []
    trainer = build(
        CreditGRPOTrainer,
        {"mask_truncated_completions": True},
        credit=lambda batch: seen.append(batch) or batch.column("value", "turn"),
        rollout_func=rollout,
        reward_funcs=outcome,
    )
    generate(trainer)
    assert not seen[0].trained.any() and seen[0].turns.n == 16  # no completion ends with <eos>


def test_weights_multiply_advantages(build: Build) -> None:
    def rule(batch: Batch) -> Credit:
        return Credit(batch.reward + 1, weight=batch.column("value", "turn")[batch.episodes.starts])

    trainer = build(CreditGRPOTrainer, credit=rule, rollout_func=rollout, reward_funcs=outcome)
    advantages = generate(trainer)["advantages"]
    torch.testing.assert_close(advantages, torch.tensor([0, 0.2, 0.6, 0.3, 0.8, 1.5, 0.6, 1.4]))


def test_evaluation_uses_the_rule_too(build: Build) -> None:
    groups: list[list[int]] = []
    trainer = build(
        CreditGRPOTrainer,
        {"num_generations_eval": 2, "per_device_eval_batch_size": 4},
        credit=lambda batch: groups.append(batch.groups.lengths.tolist()) or trl_grpo(batch),
        reward_funcs=remainder,
        eval_dataset=Dataset.from_list(PROMPTS[:2]),
    )
    metrics = trainer.evaluate()
    assert groups == [[2, 2]] and metrics["eval_credit/group"] >= 0
    assert len(trainer._logs["advantages"]) == len(trainer._logs["prompt"]) == 4


def test_reward_functions_of_one_name_stay_apart(build: Build) -> None:
    seen: list[Batch] = []
    trainer = build(
        CreditGRPOTrainer,
        {"reward_weights": [1.0, 10.0]},
        reward_funcs=[lambda completions, **_: [1.0] * len(completions), lambda completions, **_: [2.0, None] * 4],
        credit=lambda batch: seen.append(batch) or batch.reward,
    )
    generate(trainer)
    assert seen[0].reward_weights == {"<lambda>#0": 1.0, "<lambda>#1": 10.0}
    assert seen[0].reward.tolist() == [21, 1] * 4


def test_the_mixin_serves_other_trainers(build: Build) -> None:
    class Louder(trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return super()._generate_and_score_completions(inputs) | {"louder": torch.ones(len(inputs))}

    class Mine(CreditMixin, Louder):
        pass

    output = generate(build(Mine, credit=lambda batch: batch.reward, rollout_func=rollout, reward_funcs=outcome))
    assert output["louder"].sum() == 8 and output["advantages"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


# ---- errors


def test_errors_name_what_is_wrong(build: Build) -> None:
    trainer = build(CreditGRPOTrainer, credit=trl_grpo, rollout_func=rollout, reward_funcs=outcome)
    trainer.credit = lambda batch: batch.reward[:-1]
    with pytest.raises(DataError, match=r"shape \(7,\).*8 completions, 16 turns or 56 tokens"):
        generate(trainer)
    trainer.credit = lambda batch: batch.reward / 0
    with pytest.raises(DataError, match="advantage of completion 0 is nan"):
        generate(trainer)
    trainer.credit = lambda batch: batch.column("anchor", "turn")
    with pytest.raises(DataError, match=r"completion 0 has no field 'anchor'.*task, state, turn_reward, value"):
        generate(trainer)
    trainer.rollout_func = lambda prompts, self: rollout(prompts, self) | {"state": [["a"]] * 5}
    with pytest.raises(DataError, match="returned 5 'state' for 8 completions"):
        generate(trainer)
    with pytest.raises(UsageError, match="need an environment_factory"):
        build(CreditGRPOTrainer, credit=trl_grpo, reward_funcs=outcome, environment_fields=("state",))
    with pytest.raises(TypeError, match="credit"):
        build(CreditGRPOTrainer, reward_funcs=outcome)


def test_unknown_rewards_need_a_word_from_the_rule(build: Build) -> None:
    trainer = build(
        CreditGRPOTrainer,
        reward_funcs=lambda completions, **_: [1.0, None] * 4,
        credit=lambda batch: grpo(batch.groups, reward=batch.reward),
    )
    with pytest.raises(DataError, match=r"reward of completion 1 is nan.*`where`"):
        generate(trainer)


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "_trainer", integration._trainer.__wrapped__)  # not the class made before
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtra, match=r"trl is not installed.*echelon\[trl\]"):
        _ = integration.CreditGRPOTrainer
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainer'"):
        _ = integration.PPOTrainer  # type: ignore[attr-defined]
