"""The scorer against one forward pass a text: any view, split, head, temperature and adapter."""

import pytest
import torch
from lm_views import Norm, build, rows_of, texts_of, tiny_lm, tree_of
from torch import nn

from echelon.errors import DataError, UsageError
from echelon.language._batches import ancestors
from echelon.language.record import RecordBuilder
from echelon.language.scorer import Scorer, score
from echelon.language.views import ancestor_mask, cheapest, forest, paths, rows
from echelon.spans import Spans

pytest.importorskip("transformers")

WORDS = 50
TEXTS = texts_of(9, WORDS)
VIEWS = {"rows": rows_of(TEXTS), "tree": tree_of(TEXTS), "trees": tree_of(TEXTS, [3, 1, 5])}
HEADS = {"plain": {}, "kept": {"plain_words": 0, "chunk": 7}, "again": {"plain_words": 0, "chunk": 7, "keep_bytes": 0}}


@pytest.fixture(scope="module")
def model():
    return tiny_lm(WORDS, torch.float64)


def naive(model, texts, temperature=1.0):
    """logp, entropy, argmax and last hidden states, a text at a time."""
    found = {"logp": [], "entropy": [], "argmax": [], "hidden:-1": []}
    for context, output in texts:
        out = model(torch.tensor([[*context, *output]]), output_hidden_states=True)
        log_p = (out.logits[0] / temperature).log_softmax(-1)[len(context) - 1 : -1]
        found["logp"].append(log_p[torch.arange(len(output)), torch.tensor(output)])
        found["entropy"].append(-(log_p.exp() * log_p).sum(-1))
        found["argmax"].append(log_p.argmax(-1))
        found["hidden:-1"].append(out.hidden_states[-1][0, len(context) - 1 : -1])
    return {name: torch.cat(columns) for name, columns in found.items()}


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def close(a, b, atol=1e-12):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("view", VIEWS)
def test_columns_are_those_of_single_texts(model, view, head):
    expected = naive(model, TEXTS)
    for budget in (1, 40, 4096):
        close(Scorer(model, **HEADS[head]).score(VIEWS[view], tuple(expected), budget=budget), expected)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("view", VIEWS)
def test_gradients_are_those_of_single_texts(model, view, head):
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randn(len(VIEWS["rows"].item), generator=draw, dtype=torch.float64) for _ in range(2))
    expected = naive(model, TEXTS, 0.7)
    (a * expected["logp"] + b * expected["entropy"] ** 2).sum().backward()
    right = gradients(model)
    scored = Scorer(model, **HEADS[head]).score(VIEWS[view], ("logp", "entropy"), temperature=0.7, grad=True, budget=40)
    (a * scored["logp"] + b * scored["entropy"] ** 2).sum().backward()
    close(gradients(model), right)


@pytest.mark.parametrize("head", HEADS)
def test_each_item_may_have_its_temperature(model, head):
    heat = torch.linspace(0.5, 2, len(VIEWS["rows"].item), dtype=torch.float64)
    cold, hot = naive(model, TEXTS, 0.5), naive(model, TEXTS, 2.0)
    scored = Scorer(model, **HEADS[head]).score(VIEWS["trees"], ("logp",), temperature=heat, budget=40)["logp"]
    torch.testing.assert_close(scored[[0, -1]], torch.stack([cold["logp"][0], hot["logp"][-1]]))
    assert not torch.isclose(scored[5], cold["logp"][5])


def test_a_part_of_the_items_in_any_sequence(model):
    view = rows_of(TEXTS[3:6])
    numbers = torch.tensor([40, 7, 21, 3, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73])[: len(view.item)]
    shuffled = build(
        view.ids.tolist(),
        view.position.tolist(),
        view.rows,
        view.parent.tolist(),
        view.here[view.item.argsort()].tolist(),
    )
    object.__setattr__(shuffled, "item", numbers[shuffled.item])
    expected = naive(model, TEXTS[3:6])
    sorted_ = score(model, shuffled, ("logp", "argmax"))
    close(sorted_, {name: expected[name][numbers.argsort()] for name in ("logp", "argmax")})
    whole = score(model, shuffled, ("logp", "argmax"), size=80)
    close({name: column[numbers] for name, column in whole.items()}, {n: expected[n] for n in ("logp", "argmax")})
    assert int(whole["logp"].isnan().sum()) == int((whole["argmax"] == -1).sum()) == 80 - len(numbers)


def test_views_of_a_record_agree(model):
    builder = RecordBuilder()
    draw = torch.Generator().manual_seed(2)
    for uid in range(3):
        episode = builder.episode(uid=uid, group=0, task="t", kind="k", seed=uid)
        stream, text = episode.stream("policy"), [1, 2, 3, 4]
        for _ in range(3):
            output = torch.randint(WORDS, (4,), generator=draw).tolist()
            episode.call(stream, text, output, logp=[-1.0] * 4, source=[0] * 4, end=0)
            text = [*text, *output, 5]
        episode.done(terminated=True)
    record = builder.build()
    scorer = Scorer(model)
    expected = scorer.score(rows(record), ("logp", "entropy"))
    assert len(expected["logp"]) == record.size
    for view in (paths(record), forest(record, budget=40, width=10_000), cheapest(record)[1]):
        close(scorer.score(view, ("logp", "entropy"), budget=64), expected)


def test_masks_are_the_views(model):
    view = VIEWS["trees"]
    for row in range(view.rows.n):
        start, stop = view.rows.offsets[row : row + 2].tolist()
        parent = view.parent[start:stop]
        own = ancestors(torch.where(parent >= 0, parent - start, -1)[None])[0]
        assert torch.equal(own, ancestor_mask(view, row))


@pytest.mark.parametrize("view", VIEWS)
def test_tokens_that_no_item_needs_are_left_out(model, view):
    found, scorer = VIEWS[view], Scorer(model)
    keep = torch.zeros(len(found.item), dtype=torch.bool)
    keep[found.item == 0] = True  # the first emitted token of the first text
    (part,) = scorer.split(found, 4096, keep)
    assert part.tokens == len(TEXTS[0][0]) and part.item.tolist() == [0]
    torch.testing.assert_close(scorer.forward(part)["logp"][0], naive(model, TEXTS)["logp"][0], rtol=0, atol=1e-12)
    assert scorer.split(found, 4096, ~keep | keep)[0].tokens < len(found.ids)  # nothing follows the last tokens
    assert scorer.split(found, 4096, keep & False) == []


def test_values_and_hidden_states_are_read_where_the_item_is_chosen(model):
    head = nn.Linear(32, 1, dtype=torch.float64)
    expected = naive(model, TEXTS)["hidden:-1"]
    for which in (model, model.get_decoder()):
        scored = Scorer(which, heads={"value": head}).score(VIEWS["tree"], ("value", "hidden:-1", "hidden:0"))
        torch.testing.assert_close(scored["value"], head(expected)[:, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(scored["hidden:-1"], expected, rtol=0, atol=1e-12)
        assert scored["hidden:0"].shape == expected.shape
    with pytest.raises(UsageError, match="no language-model head"):
        Scorer(model.get_decoder()).score(VIEWS["rows"])


def test_narrow_models_give_wide_columns():
    model, expected = tiny_lm(WORDS, torch.bfloat16), naive(tiny_lm(WORDS), TEXTS)
    for scorer in (Scorer(model), Scorer(model, plain_words=0), Scorer(tiny_lm(WORDS), autocast=torch.bfloat16)):
        for view in VIEWS.values():
            scored = scorer.score(view, ("logp", "entropy"))
            assert {column.dtype for column in scored.values()} == {torch.float32}
            torch.testing.assert_close(scored["logp"], expected["logp"], rtol=0, atol=0.5)
            assert (scored["logp"] - expected["logp"]).abs().mean() < 0.1


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_adapters_take_part(targets):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_lm(WORDS, torch.float64), config, autocast_adapter_dtype=False)
    expected = naive(model, TEXTS)
    expected["logp"].sum().backward()
    right = gradients(model)
    assert all("lora" in name for name in right)
    for options in HEADS.values():
        scored = Scorer(model, **options).score(VIEWS["tree"], ("logp", "entropy"), grad=True)
        close({k: v.detach() for k, v in scored.items()}, {k: expected[k].detach() for k in scored}, 1e-10)
        scored["logp"].sum().backward()
        close(gradients(model), right, 1e-10)
    with model.disable_adapter():
        close(score(model, VIEWS["rows"]), {"logp": naive(tiny_lm(WORDS, torch.float64), TEXTS)["logp"]})


def test_scoring_does_not_drop_out_and_leaves_the_modes_alone():
    model = tiny_lm(WORDS, torch.float64)
    model.config._attn_implementation = "eager"
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    scorer = Scorer(model)
    assert torch.equal(scorer.score(VIEWS["tree"])["logp"], scorer.score(VIEWS["tree"])["logp"])
    assert not scorer.score(VIEWS["tree"])["logp"].requires_grad
    assert [module.training for module in model.modules()] == before
    assert not torch.equal(*(scorer.score(VIEWS["tree"], grad=True)["logp"] for _ in range(2)))


def test_what_cannot_be_scored_is_refused(model):
    scorer = Scorer(model)
    with pytest.raises(UsageError, match="temperature must be positive, got 0"):
        scorer.score(VIEWS["rows"], temperature=0.0)
    with pytest.raises(UsageError, match="unknown column 'logprob'; did you mean logp"):
        scorer.score(VIEWS["rows"], ("logprob",))
    with pytest.raises(UsageError, match="cannot be called 'entropy'"):
        Scorer(model, heads={"entropy": nn.Linear(32, 1)})
    headless = build([1, 2], [0, 1], Spans.from_lengths([2]), [-1, 0], [0, 1])
    with pytest.raises(DataError, match="item 0 is emitted with no token before it"):
        scorer.score(headless)
    with pytest.raises(DataError, match="no predictions"):
        scorer.score(build([1, 2], [0, 1], Spans.from_lengths([2]), [-1, 0], []))


def test_models_that_cap_their_logits_are_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma2Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    with pytest.raises(UsageError, match="Gemma2ForCausalLM changes its logits after the head"):
        Scorer(transformers.Gemma2ForCausalLM(config))


def test_the_norm_of_these_tests_is_the_models():
    model = tiny_lm(WORDS)
    x = torch.randn(3, 32)
    torch.testing.assert_close(Norm(model.model.norm)(x), model.model.norm(x))
