"""What a language model takes of memory in training and in sampling, counted on the meta device: no weight is made.

Weights, gradients and the optimiser's numbers are counted exactly. Activations are what a forward and a backward pass
of the model's own class holds at its worst moment, operation by operation, without the scratch memory inside them;
attention is counted as a fused kernel, which keeps no scores.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from echelon.errors import UsageError
from echelon.language.models import (
    DTYPES,
    LanguageModel,
    add_lora,
    recompute_layers,
    smollm2_directory,
    transformers_library,
    trunk_of,
)
from echelon.language.utf8 import Utf8Tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "vocab_size": 32_000,
        "hidden_size": 4_096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4_096,
        "tie_word_embeddings": False,
    },
}
"""Models given by their numbers alone (Touvron et al., arXiv 2302.13971): their memory can be planned, no more."""
_FUSED, _PLAIN = "echelon_planned", "echelon_planned_plain"  # names of attention functions for transformers
_PLAIN_WORDS, _CHUNK, _KEPT = 16_384, 512, 1 << 27  # how the scorer's head works by default


@dataclass(frozen=True)
class Held:
    """Bytes that a model in training holds between its steps, and how many numbers that are."""

    frozen: int
    trained: int
    """Weights that are trained."""
    gradients: int
    adam: int
    """Two numbers a trained weight, and a counter a tensor."""
    parameters: int
    trained_parameters: int


def meta_model(spec: str | os.PathLike[str], dtype: str = "float32", numbers: Mapping[str, Any] | None = None) -> Any:
    """The causal model `spec` without weights: a name in `SHAPES`, "smollm2", a model's directory or its config.json.

    numbers: of a Llama's configuration, in place of `spec`. Only the configuration is read.
    """
    transformers = transformers_library()
    if numbers is not None or os.fspath(spec) in SHAPES:
        config = transformers.LlamaConfig(**(numbers if numbers is not None else SHAPES[os.fspath(spec)]))
    else:
        place = smollm2_directory() if os.fspath(spec) == "smollm2" else Path(spec)
        if not (place if place.suffix == ".json" else place / "config.json").is_file():
            raise UsageError(
                f"no model '{spec}' to plan for: give 'smollm2', {', '.join(SHAPES)}, the directory of a Hugging Face "
                "model, or its config.json"
            )
        config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])


def with_adapters(model: Any, rank: int) -> Any:
    """The same with adapters of `rank`, as `models.add_lora` adds them: in float32."""
    return add_lora(LanguageModel(model, Utf8Tokenizer(), 0, "planned", ""), rank).model


def held(model: nn.Module) -> Held:
    """What weights, gradients and AdamW's states take."""
    weights = list(model.parameters())
    trained = [p for p in weights if p.requires_grad]
    total, moved = _bytes(weights), _bytes(trained)
    counters = 4 * len(trained)  # a float32 each
    return Held(
        total - moved, moved, moved, 2 * moved + counters, sum(p.numel() for p in weights),
        sum(p.numel() for p in trained),
    )  # fmt: skip


def activations(model: Any, rows: int, length: int, scored: int | None = None, recompute: bool = False) -> int:
    """Bytes beside weights and gradients at the worst moment of a micro-batch of `rows` texts of `length` tokens.

    model: on the meta device; it keeps to `recompute`, once that was true. scored: tokens whose log-probs are wanted;
    all by default. recompute: layers keep their inputs alone (gradient checkpointing).
    """
    scored = rows * length if scored is None else scored
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.train()
    if recompute:
        recompute_layers(base)
    with _attending(base), _Live(model) as live:
        ids = torch.zeros(rows, length, dtype=torch.int64, device="meta")
        hidden = trunk_of(model)(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
        kept = live.now
        hidden.backward(torch.empty_like(hidden))
    for p in model.parameters():
        p.grad = None
    return max(live.worst, kept + head_bytes(base.config, scored, hidden.dtype))


def head_bytes(config: Any, scored: int, dtype: torch.dtype) -> int:
    """What log-probs of `scored` tokens over all words take, at most, with their gradient."""
    words, width, size = config.get_text_config().vocab_size, config.get_text_config().hidden_size, dtype.itemsize
    hidden = 2 * scored * width * size
    if words <= _PLAIN_WORDS:
        return hidden + 4 * scored * words * 4
    chunk = min(_CHUNK, scored)
    kept = scored * words * 4
    narrow = 0 if size == 4 else 2 * chunk * words * size
    return hidden + (kept if kept <= _KEPT else chunk * words * 4) + chunk * words * 4 + narrow


def cache_bytes_per_token(model: Any) -> int:
    """Keys and values of one token, in all layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * base.dtype.itemsize


def packed_bytes(model: nn.Module) -> int:
    """The copy of all linear layers' weights that sampling on a CPU multiplies by."""
    return _bytes([m.weight for m in model.modules() if type(m) is nn.Linear])


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class _Live(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make, while they are alive; gradients of weights apart."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._to_gradients) for p in model.parameters() if p.requires_grad
        ]
        self.now = self.worst = 0

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, list | tuple) else (out,):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._known or place in self._sizes:
            return
        self._sizes[place] = storage.nbytes()
        self.now += storage.nbytes()
        self.worst = max(self.worst, self.now)
        weakref.finalize(storage, self._gone, place)

    def _gone(self, place: int) -> None:
        self.now -= self._sizes.pop(place, 0)

    def _to_gradients(self, weight: Tensor) -> None:
        if weight.grad is not None:
            self._gone(weight.grad.untyped_storage()._cdata)


@contextmanager
def _attending(base: Any) -> Iterator[None]:
    """Within it, `base` attends by `_fused`, or by `_plain` where its attention is written out."""
    from transformers import AttentionInterface

    AttentionInterface.register(_FUSED, _fused)
    AttentionInterface.register(_PLAIN, _plain)
    before = base.config._attn_implementation
    base.set_attn_implementation(_PLAIN if before == "eager" else _FUSED)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def _fused(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention of query [B, heads, T, size] by one kernel: ([B, T, heads, size], None)."""
    key, value = _repeated(query, key), _repeated(query, value)
    mixed, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
    return mixed.transpose(1, 2).contiguous(), None


def _plain(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The same with its scores, [B, heads, T, T], which are kept."""
    scores = query @ _repeated(query, key).transpose(2, 3) * query.shape[-1] ** -0.5
    mixed = torch.softmax(scores + torch.empty_like(scores[:1, :1]), -1) @ _repeated(query, value)
    return mixed.transpose(1, 2).contiguous(), None


def _repeated(query: Tensor, shared: Tensor) -> Tensor:
    groups = query.shape[1] // shared.shape[1]
    return shared.repeat_interleave(groups, 1) if groups > 1 else shared
