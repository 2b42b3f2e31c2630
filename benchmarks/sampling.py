"""Sampling from language models: echelon's engine beside transformers' `generate`, on the same weights.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.sampling

Contestants take turns; a cell is the median over rounds, a ratio the median of the ratios within rounds. Before timing,
the greedy texts of both are compared. What the parts are is in `benchmarks/README.md`. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from echelon.errors import UsageError
from echelon.language.engine import Request
from echelon.language.models import LanguageModel, language_model, load_model, tiny
from echelon.language.sampling import TransformersEngine
from echelon.language.words import WordTokenizer

BATCH, PROMPT, NEW = 8, 128, 32  # texts, tokens
MEMBERS = 8  # texts that answer the same prompt
TURNS, OBSERVATION, REPLY = 8, 40, 12

Texts = list[list[int]]


class Endless(WordTokenizer):
    """A vocabulary without an end of texts, so that all contestants make as many tokens."""

    def __init__(self, words: Sequence[str]):
        super().__init__(words)
        self.eos = -1


def vocabulary(size: int) -> Endless:
    """Words of three letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return Endless([letters[k // 676] + letters[k // 26 % 26] + letters[k % 26] for k in range(size)])


def models(names: Sequence[str]) -> list[tuple[str, LanguageModel]]:
    """The contestants' models; SmolLM2 is left out if its package is missing."""
    words, found = vocabulary(2000), []
    for dtype in ("float32", "bfloat16"):
        if "tiny" in names:
            small = tiny(words.size).to(getattr(torch, dtype)).eval()
            found.append((f"tiny {dtype}", language_model(small, words)))
        if "smollm2" in names:
            try:
                found.append((f"smollm2 {dtype}", replace(load_model("smollm2", dtype), tokenizer=words)))
            except UsageError as error:
                print(f"without SmolLM2: {error}")
    for _, language in found:
        language.model.generation_config.eos_token_id = None
        language.model.generation_config.pad_token_id = 0
    return found


def generate(model: Any, prompts: Texts, new: int, sample: bool = True) -> Texts:
    """Texts by transformers: prompts padded on the left, every token of the vocabulary may be sampled."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    kinds = {"do_sample": True, "top_k": 0, "temperature": 1.0} if sample else {"do_sample": False}
    with torch.inference_mode():
        return model.generate(ids, attention_mask=mask, max_new_tokens=new, **kinds)[:, width:].tolist()


def ours(engine: TransformersEngine, prompts: Texts, new: int, temperature: float = 1.0) -> Texts:
    """Texts by echelon's engine."""
    requests = [Request(tuple(prompt), new, seed=k, temperature=temperature) for k, prompt in enumerate(prompts)]
    return [list(sample.ids) for sample in engine.generate(requests)]


def talk(answer: Callable[[Texts], Texts], count: int, vocabulary_size: int) -> None:
    """Conversations of several turns, each of which appends an observation of varying length and an answer."""
    source = random.Random(0)
    texts: Texts = [[] for _ in range(count)]
    for _ in range(TURNS):
        for text in texts:
            text += _random_ids(source, source.randrange(OBSERVATION // 2, OBSERVATION * 3 // 2), vocabulary_size)
        for text, reply in zip(texts, answer(texts), strict=True):
            text += reply


def same_texts(language: LanguageModel) -> None:
    """Stop unless both make the same greedy texts of a float32 model."""
    prompts = _prompts(3, 24, language)
    mine = ours(TransformersEngine({"policy": language}), prompts, 12, temperature=0.0)
    if mine != generate(language.model, prompts, 12, sample=False):
        raise RuntimeError(f"{language.name}: the greedy texts differ, so the times mean nothing")


def parts(language: LanguageModel, scale: int) -> dict[str, tuple[int, Callable[[], object], Callable[[], object]]]:
    """Name → (tokens that a contestant is paid for, generate, echelon); the last parts have 2 · `scale` prompts."""
    model, size = language.model, language.tokenizer.size
    engine = TransformersEngine({"policy": language})
    talks = 2 * scale

    def fresh(prompts: Texts, new: int) -> Texts:
        engine.forget()
        return ours(engine, prompts, new)

    def turns(cached: bool) -> None:
        engine.forget()
        talk(lambda texts: ours(engine, texts, REPLY) if cached else fresh(texts, REPLY), talks, size)

    def their_turns() -> None:
        talk(lambda texts: generate(model, texts, REPLY), talks, size)

    long, short = _prompts(BATCH, PROMPT, language), _prompts(BATCH, 16, language)
    group = [prompt for prompt in _prompts(scale, PROMPT, language) for _ in range(MEMBERS)]
    replies = talks * TURNS * REPLY
    return {
        "read": (sum(map(len, long)), lambda: generate(model, long, 1), lambda: fresh(long, 1)),
        "write": (BATCH * NEW, lambda: generate(model, short, NEW), lambda: fresh(short, NEW)),
        "both": (BATCH * NEW, lambda: generate(model, long, NEW), lambda: fresh(long, NEW)),
        "groups": (len(group) * NEW, lambda: generate(model, group, NEW), lambda: fresh(group, NEW)),
        "turns": (replies, their_turns, lambda: turns(True)),
        "turns, forgetful": (replies, their_turns, lambda: turns(False)),
    }


def measure(theirs: Callable[[], object], mine: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Seconds of each, medians, and the median of the ratios theirs / mine."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # the former disregards other load
    times: dict[Callable[[], object], list[float]] = {theirs: [], mine: []}
    for k in range(rounds):
        for run in (theirs, mine) if k % 2 else (mine, theirs):
            begun = clock()
            run()
            times[run].append(clock() - begun)
    a, b = times[theirs], times[mine]
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in zip(a, b, strict=True))


def _prompts(count: int, length: int, language: LanguageModel) -> Texts:
    source = random.Random(count)
    return [
        _random_ids(source, source.randrange(length * 3 // 4, length + 1), language.tokenizer.size)
        for _ in range(count)
    ]


def _random_ids(source: random.Random, count: int, size: int) -> list[int]:
    return [source.randrange(20, size) for _ in range(count)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default: 5 of the small model, 1 of SmolLM2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=["tiny", "smollm2"])
    parser.add_argument("--parts", nargs="*")
    parser.add_argument("--matmul", default="medium", help="torch's precision of float32 products")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.matmul)
    print(f"{'model':18}{'part':17}{'tokens':>7}{'generate/s':>12}{'echelon/s':>12}{'ratio':>8}")
    for name, language in models(arguments.models):
        small = name.startswith("tiny")
        if name.endswith("float32"):
            same_texts(language)
        for part, (tokens, theirs, mine) in parts(language, scale=4 if small else 2).items():
            if arguments.parts and part not in arguments.parts:
                continue
            a, b, ratio = measure(theirs, mine, arguments.rounds or (5 if small else 1))
            print(f"{name:18}{part:17}{tokens:7}{tokens / a:12.0f}{tokens / b:12.0f}{ratio:8.2f}", flush=True)
    load = " ".join(f"{x:.2f}" for x in os.getloadavg())
    how = f"{arguments.threads} threads, {arguments.matmul}"
    print(f"{how}, torch {torch.__version__}, load {load}")


if __name__ == "__main__":
    main()
