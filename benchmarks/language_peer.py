"""TRL's GRPOTrainer beside a step of echelon's: what it computes, captured; and its steps, taken one at a time.

Everything is made here: a tokenizer of bytes, made-up completions, rewards that count letters. Nothing is fetched.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COMPLETIONS = 4
"""Of each prompt."""


def byte_tokenizer() -> Any:
    """A tokenizer of transformers with one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def prompts(count: int) -> list[str]:
    """Texts of about 45 words."""
    order = (
        "Please count from one to {n}, slowly, and then explain in two short sentences why the sum of these numbers is "
        "what it is. Show each of the steps that you take on the way to the answer, use simple words, and keep to it."
    )
    return [order.format(n=3 + 2 * k) for k in range(count)]


def reward(ids: Sequence[int]) -> float:
    """Of a completion: how many different tokens it has, modulo 7."""
    return float(len(set(ids)) % 7)


def made_up(count: int, words: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Completions of random tokens, of ragged lengths."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest // 3, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(words, (n,), generator=draw).tolist() for n in lengths]


def build_trainer(path: str, folder: Path, rollout: Callable[..., Any] | None = None, **options: Any) -> Any:
    """GRPOTrainer on the model in `path`; `options` are those of GRPOConfig, and `peft_config`."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    for name in ("transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    adapters = options.pop("peft_config", None)
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "num_generations": COMPLETIONS,
        "max_completion_length": 48,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    arguments = GRPOConfig(**defaults | options)
    count = arguments.per_device_train_batch_size // COMPLETIONS
    return GRPOTrainer(
        model=path,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts(count)]),
        reward_funcs=_rewards,
        rollout_func=rollout,
        peft_config=adapters,
    )


def _rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [reward(ids) for ids in completion_ids]


@dataclass(frozen=True)
class Pass:
    """What TRL computed in one optimiser step over a batch of B completions of at most T tokens."""

    inputs: dict[str, Tensor]
    logp: Tensor  # [B, T]
    entropy: Tensor  # [B, T]
    loss: float
    gradient: dict[str, Tensor]  # clipped


def passes(path: str, folder: Path, steps: int, completions: list[list[int]], **options: Any) -> list[Pass]:
    """Let TRL take optimiser steps, all on one batch of these completions, and look on."""
    from transformers import TrainerCallback

    def rollout(texts: Sequence[str], trainer: Any) -> dict[str, Any]:
        ids = [trainer.processing_class(text)["input_ids"] for text in texts]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    trainer = build_trainer(
        path, folder, rollout, num_iterations=steps, max_steps=steps,
        per_device_train_batch_size=len(completions), **options,
    )  # fmt: skip
    scored: list[tuple[Tensor, Tensor]] = []
    seen: list[tuple[dict[str, Tensor], float]] = []
    found: list[Pass] = []
    compute, score = trainer._compute_loss, trainer._get_per_token_logps_and_entropies

    def watched_score(*args: Any, **kwargs: Any) -> Any:
        result = score(*args, **kwargs)
        if kwargs.get("compute_entropy"):
            scored.append((result[0].detach().clone(), result[1].detach().clone()))
        return result

    def watched(model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = compute(model, inputs)
        seen.append(({k: v.clone() for k, v in inputs.items() if isinstance(v, Tensor)}, loss.item()))
        return loss

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            (inputs, loss), (logp, entropy) = seen[-1], scored[-1]
            grads = {n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None}
            found.append(Pass(inputs, logp, entropy, loss, grads))

    trainer._compute_loss, trainer._get_per_token_logps_and_entropies = watched, watched_score
    trainer.add_callback(Gradients())
    trainer.train()
    return found


def take_steps(
    path: str,
    folder: Path,
    steps: int,
    begin: Callable[[], None],
    end: Callable[[float], None],
    clock: Callable[[], float],
    **options: Any,
) -> None:
    """Let TRL take whole steps, with `begin()` before each and `end(seconds spent on generation and rewards)` after."""
    from transformers import TrainerCallback

    trainer = build_trainer(path, folder, max_steps=steps, generation_kwargs={"min_new_tokens": 48}, **options)
    generate, spent = trainer._generate_and_score_completions, [0.0]

    def timed(rows: Any) -> Any:
        begun = clock()
        result = generate(rows)
        spent[0] = clock() - begun
        return result

    class Gate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            end(spent[0])

    trainer._generate_and_score_completions = timed
    trainer.add_callback(Gate())
    trainer.train()
