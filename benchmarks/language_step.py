"""A GRPO step of echelon beside TRL's GRPOTrainer: the same numbers, then time and memory; and views beside rows.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.language_step [--models tiny smollm2]

equal   On one batch of ragged completions, two optimiser steps with a KL penalty; the second has ratios other than 1.
        Largest differences of log-prob and entropy, of the loss, and the relative one of the clipped gradient. In
        bfloat16: the cosines of both gradients with the float32 one.
steps   Whole steps: 2 prompts of some 60 tokens, 4 completions of 48 tokens each, sampling included; 8 rows a
        micro-batch and gradient checkpointing for TRL (its default), the latter for echelon too. Each contestant has a
        process of its own; they take turns. Of all weights, and of adapters (LoRA of rank 8). MB: the peak above
        imports, weights, gradients and AdamW's moments.
views   Emitted tokens a second of an update over multi-turn episodes.

With one thread seconds are CPU seconds. A cell is the median over rounds, a ratio the median of ratios within rounds.
Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import language_peer as peer
from benchmarks.language_equal import LONGEST, ROWS, alignment, compare, terms_of
from benchmarks.language_views import Clock, measure_views
from echelon.credit.groups import grpo
from echelon.language.engine import Request
from echelon.language.models import LanguageModel, add_lora, language_model, load_model, save_model, tiny
from echelon.language.record import Record, RecordBuilder
from echelon.language.sampling import TransformersEngine
from echelon.language.scorer import Scorer
from echelon.language.update import policy_step
from echelon.language.views import cheapest
from echelon.language.words import HFTokenizer
from echelon.training.runtime import choose, cpu_class

TARGETS = {"time": 1.5, "memory": 0.5}


@dataclass(frozen=True)
class Case:
    """One row of the table of steps."""

    model: str  # its name
    path: str
    adapters: bool
    precision: str
    matmul: str
    threads: int


def take_steps(case: Case, steps: int, begin: Callable[[], None], end: Callable[[float], None], clock: Clock) -> None:
    """Whole steps of echelon: sample, reward, credit, one optimiser step. `peer.take_steps` is TRL's."""
    language = load_model(case.path, template="plain")
    if case.adapters:
        language = add_lora(language)
    model = language.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = TransformersEngine({"policy": endless(language)}, packed=False)
    scorer = Scorer(model, autocast=torch.bfloat16 if case.precision == "bfloat16" else None)
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-6, weight_decay=0.0, fused=True
    )
    contexts = [tuple(language.tokenizer.encode(prompt)) for prompt in peer.prompts(ROWS // peer.COMPLETIONS)]
    for number in range(steps):
        begin()
        begun = clock()
        record = sample(engine, contexts, number)
        rewards = torch.tensor([peer.reward(ids.tolist()) for ids in record.outputs(torch.arange(ROWS))])
        generated = clock() - begun
        credit = grpo(record.tree().within("episode", "group"), reward=rewards, eps=1e-4)
        given = {"advantage": credit.expand(record.tree()["episode"]).advantage}
        engine.forget()
        model.train()
        policy_step(scorer, cheapest(record)[1], terms_of(record, 0.0), optimiser, given=given)
        model.eval()
        end(generated)


def endless(language: LanguageModel) -> LanguageModel:
    """The model with a tokenizer that knows no end of text, so that all completions are equally long."""
    tokenizer = copy.copy(language.tokenizer)
    tokenizer.eos = -1  # type: ignore[misc]
    return replace(language, tokenizer=tokenizer)


def sample(engine: TransformersEngine, contexts: Sequence[tuple[int, ...]], number: int) -> Record:
    """Completions of every context, as a record."""
    requests = [
        Request(context, LONGEST, seed=1000 * number + k)
        for k, context in enumerate(context for context in contexts for _ in range(peer.COMPLETIONS))
    ]
    builder = RecordBuilder()
    for uid, (request, answer) in enumerate(zip(requests, engine.generate(requests), strict=True)):
        episode = builder.episode(uid=uid, group=uid // peer.COMPLETIONS, task="prompt", kind="made up", seed=uid)
        episode.call(episode.stream("policy"), request.context, answer.ids, answer.logp, end=answer.end)
        episode.done(terminated=True)
    return builder.build()


def contestant(name: str, case: Case, steps: int) -> None:
    """In a process of its own: take a step for every line of the input, and write what it took."""
    if name == "trl":
        import datasets  # noqa: F401
        import peft
        import trl  # noqa: F401
    import transformers

    transformers.LlamaForCausalLM, transformers.AutoTokenizer  # loaded now, not with the model  # noqa: B018
    imports = resident("VmRSS")
    clock: Clock = time.process_time if case.threads == 1 else time.perf_counter
    begun = [0.0]

    def begin() -> None:
        print("## {}", flush=True)
        sys.stdin.readline()
        if not begun[0]:
            with contextlib.suppress(OSError):  # the peak so far is that of loading
                Path("/proc/self/clear_refs").write_text("5")
        begun[0] = clock()

    def end(generate: float) -> None:
        facts = {"step": clock() - begun[0], "generate": generate, "imports": imports, "peak": resident("VmHWM")}
        print(f"## {json.dumps(facts)}", flush=True)

    torch.set_num_threads(case.threads)
    torch.set_float32_matmul_precision(case.matmul)
    if name == "echelon":
        take_steps(case, steps, begin, end, clock)
        return
    adapters = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    with tempfile.TemporaryDirectory() as folder:
        peer.take_steps(
            case.path, Path(folder), steps, begin, end, clock,
            bf16=case.precision == "bfloat16",
            per_device_train_batch_size=ROWS,
            learning_rate=1e-6,
            peft_config=adapters if case.adapters else None,
        )  # fmt: skip


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1000


class Process:
    """A contestant, ready for its next step."""

    def __init__(self, name: str, case: Case, steps: int):
        self.name = name
        options = [f"--{key}={value}" for key, value in vars(case).items() if key != "model"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.language_step", "--contestant", name, f"--rounds={steps}", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answer()

    def step(self, last: bool) -> dict[str, float]:
        """What one step took."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        facts = self._answer()
        if not last:
            self._answer()
        return facts

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("## "):
                return json.loads(line[3:])
        raise RuntimeError(f"the process of {self.name} has ended with code {self.process.wait()}")


def floor(case: Case) -> float:
    """MB of weights, gradients and AdamW's moments in float32; nothing of the kind for frozen weights."""
    language = load_model(case.path, template="plain")
    model = (add_lora(language) if case.adapters else language).model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 4e-6 * (sum(p.numel() for p in model.parameters()) + 3 * trained)


COLUMNS = (
    *(("model", 9), ("weights", 8), ("precision", 10), ("matmul", 8), ("sample", 8), ("update", 8), ("step", 8)),
    *(("TRL: sample", 13), ("update", 8), ("step", 8), ("ratio", 7), ("of updates", 12)),
    *(("MB", 8), ("TRL", 7), ("ratio", 7), ("load", 6)),
)
"""Headings and widths."""


def measure(case: Case, rounds: int) -> list[str]:
    """The cells of one row; the first step of each contestant is not counted."""
    base = floor(case)
    field = [Process(name, case, rounds + 1) for name in ("echelon", "trl")]
    laps: dict[str, list[dict[str, float]]] = {process.name: [] for process in field}
    for turn in range(rounds + 1):
        for process in field if turn % 2 else field[::-1]:
            laps[process.name].append(process.step(last=turn == rounds))
    middle = {
        (name, key): statistics.median(lap[key] for lap in laps[name][1:])
        for name in laps
        for key in ("step", "generate")
    }

    def ratio(part: Callable[[dict[str, float]], float]) -> float:
        pairs = zip(laps["trl"][1:], laps["echelon"][1:], strict=True)
        return statistics.median(part(theirs) / part(ours) for theirs, ours in pairs)

    above = {name: laps[name][-1]["peak"] - laps[name][-1]["imports"] - base for name in laps}
    seconds = [
        f"{value:.2f}"
        for name in ("echelon", "trl")
        for value in (middle[name, "generate"], middle[name, "step"] - middle[name, "generate"], middle[name, "step"])
    ]
    return [
        *(case.model, "lora" if case.adapters else "all", case.precision, case.matmul, *seconds),
        *(f"{ratio(lambda lap: lap['step']):.2f}", f"{ratio(lambda lap: lap['step'] - lap['generate']):.2f}"),
        *(f"{above['echelon']:.0f}", f"{above['trl']:.0f}", f"{above['echelon'] / above['trl']:.2f}"),
        f"{os.getloadavg()[0]:.1f}",
    ]


@contextlib.contextmanager
def model_directory(name: str) -> Iterator[str]:
    """Where the model lies, written there first if it is the tiny one."""
    if name != "tiny":
        yield load_model(name).model.name_or_path
        return
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(folder)
        yield folder


def save_tiny(folder: str | Path, **sizes: int) -> None:
    """Write a model that reads bytes."""
    tokenizer = HFTokenizer(peer.byte_tokenizer(), "plain")
    save_model(language_model(tiny(tokenizer.size, **sizes), tokenizer), folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default: 3 of the small model and the views, 1 of SmolLM2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=["tiny", "smollm2"])
    parser.add_argument("--parts", nargs="+", choices=("equal", "steps", "views"), default=["equal", "steps", "views"])
    for name in ("contestant", "path", "precision", "matmul", "adapters"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.contestant:
        case = Case("", chosen.path, chosen.adapters == "True", chosen.precision, chosen.matmul, chosen.threads)
        contestant(chosen.contestant, case, chosen.rounds or 1)
        return
    unit = "CPU seconds" if chosen.threads == 1 else "seconds"
    print(f"{cpu_class()}; {os.cpu_count()} cores, {chosen.threads} in use; torch {torch.__version__}; {unit}")
    torch.set_num_threads(chosen.threads)
    for name in chosen.models:
        with model_directory(name) as path:
            if "equal" in chosen.parts:
                report_equal(name, path)
            if "steps" in chosen.parts:
                report_steps(name, path, chosen.rounds or (3 if name == "tiny" else 1), chosen.threads)
    if "views" in chosen.parts:
        measure_views(chosen.rounds or 3, chosen.threads)


def report_equal(name: str, path: str) -> None:
    """Print how far the numbers are apart."""
    words, lr = (250, 1e-3) if name == "tiny" else (40_000, 1e-5)
    for view in ("rows", "forest"):
        with tempfile.TemporaryDirectory() as folder:
            for number, found in enumerate(compare(path, Path(folder), view, words=words, lr=lr), 1):
                print(
                    f"{name}, {view}, step {number}, log-ratios up to {found.change:.1e}: "
                    f"log-prob {found.logp:.1e} (target 1e-4), "
                    f"entropy {found.entropy:.1e}, loss {found.loss:.1e}, gradient {found.gradient:.1e} (target 1e-5)",
                    flush=True,
                )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = alignment(path, Path(folder), words)
    print(f"{name}, bfloat16: cosine with the float32 gradient {ours:.5f}, TRL {theirs:.5f}", flush=True)


def report_steps(name: str, path: str, rounds: int, threads: int) -> None:
    """Print the table of steps."""
    medium = choose("cpu", "float32", threads).matmul
    modes = [("float32", mode) for mode in dict.fromkeys(("highest", medium))] + [("bfloat16", "highest")]
    print(f"\ntargets: ratio of steps {TARGETS['time']}, of memory above the floor {TARGETS['memory']}")
    print("".join(f"{heading:>{width}}" for heading, width in COLUMNS), flush=True)
    for adapters in (False, True):
        for precision, matmul in modes:
            cells = measure(Case(name, path, adapters, precision, matmul, threads), rounds)
            print("".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)), flush=True)


if __name__ == "__main__":
    main()
