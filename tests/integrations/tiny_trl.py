"""A tiny model, tokenizer and trainer, all built here: nothing is fetched, nothing is reported.

Run as a script under torch.distributed.run, it checks on each process that the rows of its batches carry their own
advantages: `python -m torch.distributed.run --standalone --nproc_per_node 2 tiny_trl.py FOLDER`.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPTS = [{"prompt": f"count to {n}:", "task": f"count {n}"} for n in (3, 5, 7, 9)]
SEGMENTS = [[3, 2, 4], [4, 1, 3, 2, 2], [2], [1, 3, 1]]  # tokens of policy, environment, policy, ... by completion


def make_tokenizer() -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def save_model(path: Path, tokenizer: Any) -> str:
    """A Llama of two layers, 32 wide, untrained; saved, since TRL loads its reference model from a path."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def arguments(folder: Path, **options: Any) -> Any:
    """Batches of two prompts with four completions each, generated at once and split over two steps."""
    from trl import GRPOConfig

    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 3,
    }
    return GRPOConfig(**defaults | options)


def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    """Made-up episodes: one to three turns, the environment's answers between them, and what is known of every turn."""
    shapes = list(itertools.islice(itertools.cycle(SEGMENTS), len(prompts)))
    turns = [(len(shape) + 1) // 2 for shape in shapes]
    return tokens_of(prompts, trainer, shapes) | {
        "state": [[f"room {(i // 4 + k) % 3}" for k in range(n)] for i, n in enumerate(turns)],
        "turn_reward": [[0.0] * (n - 1) + [float(i % 3)] for i, n in enumerate(turns)],
        "value": [[0.1 * i + 0.2 * k for k in range(n)] for i, n in enumerate(turns)],
    }


def tokens_of(prompts: Sequence[Any], trainer: Any, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What TRL requires of a rollout, for completions of these lengths by policy, environment, policy, ..."""
    return {
        "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": [[(7 * i + 3 * t) % 250 for t in range(sum(shape))] for i, shape in enumerate(shapes)],
        "logprobs": None,
        "env_mask": [[1 - s % 2 for s, k in enumerate(shape) for _ in range(k)] for shape in shapes],
    }


def outcome(turn_reward: list[list[float]], **_: Any) -> list[float]:
    """The reward function: the sum of the turns' rewards, a field of the rollout."""
    return [sum(rewards) for rewards in turn_reward]


def record(trainer: Any) -> tuple[list[float], list[Tensor]]:
    """Train; the loss of every step, and the advantages that it used."""
    losses: list[float] = []
    advantages: list[Tensor] = []
    compute = trainer._compute_loss

    def watched(model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = compute(model, inputs)
        losses.append(loss.item())
        advantages.append(inputs["advantages"].clone())
        return loss

    trainer._compute_loss = watched
    trainer.train()
    return losses, advantages


def generate(trainer: Any, rows: int = 4) -> dict[str, Any]:
    """One generation batch of two prompts, before TRL shuffles and splits it."""
    return trainer._generate_and_score_completions([dict(row) for row in PROMPTS[:2] for _ in range(rows)])


def main() -> None:
    from datasets import Dataset

    from echelon.integrations.trl import CreditGRPOTrainer

    folder = Path(sys.argv[1]) / os.environ["RANK"]
    tokenizer = make_tokenizer()
    counts: list[tuple[int, float]] = []

    def own_rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        made = rollout(prompts, trainer)
        rank = trainer.accelerator.process_index
        return made | {"completion_ids": [[(x + 100 * rank) % 250 for x in ids] for ids in made["completion_ids"]]}

    trainer = CreditGRPOTrainer(
        model=save_model(folder, tokenizer),
        args=arguments(folder, per_device_train_batch_size=2),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(PROMPTS),
        reward_funcs=outcome,
        rollout_func=own_rollout,
        credit=lambda batch: (
            counts.append((batch.tokens.n, batch.reward.sum().item())) or batch.column("completion_ids", "token")
        ),
    )
    assert trainer.accelerator.num_processes == 2
    trainer.model.train()
    trainer._prepare_inputs([dict(PROMPTS[trainer.accelerator.process_index]) for _ in range(4)])
    for part in trainer._buffered_inputs:
        torch.testing.assert_close(part["advantages"], (part["completion_ids"] * part["completion_mask"]).float())
    assert counts == [(8, 6.0)], counts  # each process saw both prompts' completions
    print("rows carry their own advantages")


if __name__ == "__main__":
    main()
