"""The memory that a run of a language agent takes, part by part, before anything is made or loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from echelon.errors import UsageError
from echelon.language import footprint
from echelon.language.models import DTYPES, TINY_ATTENTION
from echelon.training.language.agent import LanguageAgent
from echelon.training.language.config import LanguageConfig
from echelon.training.language.warm import HEAD, stored_tokenizer

WORDS = 2_048
"""Words of a tiny model whose vocabulary is not made yet."""
GIB = 1 << 30
KEPT, ROWS = GIB, 2 * GIB
"""Most bytes of keys and values that sampling keeps between calls, and that the rows of a batch take."""


@dataclass(frozen=True)
class Part:
    """A line of the plan."""

    name: str
    bytes: dict[str, int]
    """Type of the weights → bytes."""
    note: str = ""


def plan(system: type[LanguageAgent], config: LanguageConfig, length: int) -> list[Part]:
    """What a run of `config` holds at its worst moment, with the weights in float32 and in bfloat16.

    length: tokens of the longest texts, which are those of whole episodes where contexts grow. Micro-batches have
    `config.token_budget` tokens, and one text at least; sampling has `config.batch` texts at once.
    """
    if length < 2:
        raise UsageError(f"--memory {length}: tokens of a text, 2 or more")
    columns = {dtype: _columns(system, config, length, dtype) for dtype in DTYPES}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    parts = [
        Part(name, {d: column[name][0] for d, column in columns.items()}, columns[config.dtype][name][1])
        for name in names
    ]
    for name, without in (("all at once", "activations, recomputed"), ("all, recomputed", "activations")):
        parts.append(Part(name, {d: sum(p.bytes[d] for p in parts[: len(names)] if p.name != without) for d in DTYPES}))
    return parts


def _columns(
    system: type[LanguageAgent], config: LanguageConfig, length: int, dtype: str
) -> dict[str, tuple[int, str]]:
    """Name of a part → (bytes, note)."""
    model = _model(system, config, dtype)
    plain = footprint.held(model)
    if config.lora:
        model = footprint.with_adapters(model, config.lora)
    held, rows = footprint.held(model), max(1, config.token_budget // length)
    scored = rows * length
    trained = f"{held.trained_parameters:,} numbers" + (f", adapters of rank {config.lora}" if config.lora else "")
    found = {
        "weights, frozen": (held.frozen, f"{held.parameters - held.trained_parameters:,} numbers"),
        "weights, trained": (held.trained, trained),
        "gradients": (held.gradients, ""),
        "AdamW": (held.adam, "two numbers a trained weight"),
    }
    if config.kl and not config.lora:
        found["reference"] = (4 * plain.parameters, "a second copy, in float32; adapters need none")
    if system.heads:
        found["critic"] = (16 * plain.parameters, "weights, gradients and AdamW in float32")
    micro = f"micro-batch of {rows} x {length} tokens"
    for name, recompute in (("activations", False), ("activations, recomputed", True)):
        found[name] = (footprint.activations(model, rows, length, scored, recompute), micro)
    token = footprint.cache_bytes_per_token(model)
    wanted = config.batch * length * token
    found["keys and values of a batch"] = (
        max(length * token, min(ROWS, wanted)),
        f"{config.batch} x {length} tokens of {token / 1024:.1f} KiB, in parts of at most {ROWS / GIB:g} GiB",
    )
    found["keys and values kept"] = (min(KEPT, wanted), f"of earlier calls, at most {KEPT / GIB:g} GiB")
    found["packed weights"] = (footprint.packed_bytes(model), "of sampling on a CPU; none on a GPU")
    return found


def _model(system: type[LanguageAgent], config: LanguageConfig, dtype: str) -> Any:
    """The configured model without weights."""
    if config.model != "tiny":
        return footprint.meta_model(config.model, dtype)
    stored = stored_tokenizer(system, config)
    words = WORDS if stored is None else stored.size
    heads = config.width // HEAD
    numbers = {
        "vocab_size": words,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": True,
        "attn_implementation": TINY_ATTENTION,
    }
    return footprint.meta_model("tiny", dtype, numbers)
