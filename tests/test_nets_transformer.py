"""The transformer against a derivation token by token; who sees whom, by gradients; span by span as all at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import transformer as reference
from torch import Tensor

from echelon.nets.transformer import Transformer, attend, attend_fused, block_causal_mask, causal_mask

D, HEADS, C = 8, 2, 5


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(context: bool = False, **changes) -> Transformer:
    torch.manual_seed(1)
    net = Transformer(D, HEADS, (12, 9), 10, context_dim=C if context else None, **changes).double()
    with torch.no_grad():  # away from special points
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def weights(net: Transformer) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


SPANS = st.lists(st.integers(0, 3), min_size=1, max_size=7)


def test_masks_of_a_worked_example():
    """Scales of 1, 2 and 4 tokens: rows see 1, 3, 3, 7, 7, 7, 7 tokens, 35 pairs in all."""
    mask = block_causal_mask(torch.tensor([0, 1, 1, 2, 2, 2, 2]))
    assert mask.sum(1).tolist() == [1, 3, 3, 7, 7, 7, 7] and int(mask.sum()) == 35
    assert torch.equal(causal_mask(5), block_causal_mask(torch.arange(5)))
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@given(SPANS)
def test_a_token_sees_its_own_span_and_lower_ones(ids):
    mask = block_causal_mask(torch.tensor([ids, ids[::-1]]))
    for row, order in enumerate((ids, ids[::-1])):
        assert mask[row].tolist() == [[b <= a for b in order] for a in order]


@settings(max_examples=15, deadline=None)
@given(SPANS, st.booleans(), st.integers(0, 100))
def test_it_equals_the_reference(ids, beside, seed):
    net, count = build(beside), len(ids)
    x, place = draw(seed, 2, count, D), torch.randint(10, (count,), generator=torch.Generator().manual_seed(seed))
    mask = block_causal_mask(torch.tensor(ids))
    contexts = [draw(seed + 1 + k, 2, 3 - k, C) for k in range(2)] if beside else None
    found = net(x, place, mask, contexts).detach().numpy()
    for b in range(2):
        context = None if contexts is None else [c[b].numpy() for c in contexts]
        expected = reference.transformer(weights(net), HEADS, x[b].numpy(), place, mask.numpy(), context)
        np.testing.assert_allclose(found[b], expected, atol=1e-9)


def test_without_a_mask_all_see_all_and_one_context_serves_all_blocks():
    net, x, place, context = build(True), draw(0, 2, 4, D), torch.arange(4), draw(1, 2, 3, C)
    torch.testing.assert_close(net(x, place, None, context), net(x, place, torch.ones(4, 4).bool(), [context] * 2))
    with pytest.raises(ValueError, match="attend to a context too; none was given"):
        net(x, place)


def test_each_row_may_have_its_own_mask():
    net, x, place = build(), draw(0, 2, 4, D), torch.arange(4)
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3]])
    found = net(x, place, block_causal_mask(ids))
    for b in range(2):
        torch.testing.assert_close(found[b : b + 1], net(x[b : b + 1], place, block_causal_mask(ids[b])))


@settings(max_examples=15, deadline=None)
@given(SPANS)
def test_outputs_depend_on_what_they_see_and_on_nothing_else(ids):
    """By gradients, through all blocks: zero bit for bit where the mask is false, not zero where it is true."""
    net, count = build(), len(ids)
    x, mask = draw(0, 1, count, D).requires_grad_(), block_causal_mask(torch.tensor(ids))
    out = net(x, torch.arange(count), mask)
    for i in range(count):
        (slope,) = torch.autograd.grad(out[0, i].square().sum(), x, retain_graph=True)
        assert torch.equal(slope[0].abs().sum(1) > 0, mask[i]), i


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans())
def test_span_by_span_is_as_all_at_once(lengths, beside):
    net, count = build(beside).eval(), sum(lengths)
    x, place = draw(0, 2, count, D), torch.arange(count) % 10
    context = draw(1, 2, 3, C) if beside else None
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    whole = net(x, place, block_causal_mask(ids), context)
    parts, past = [], None
    for k in range(len(lengths)):
        out, past = net.extend(x[:, ids == k], place[ids == k], past, context)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_layers_are_what_blocks_give():
    net, x, place = build(), draw(0, 2, 4, D), torch.tensor([0, 1, 1, 2])
    found = net.layers(x, place, causal_mask(4))
    assert len(found) == 3 and torch.equal(found[0], x + net.place.weight[place])
    torch.testing.assert_close(net.norm(found[-1]), net(x, place, causal_mask(4)))
    again = net.blocks[1](found[1], causal_mask(4), None, None)[0]
    torch.testing.assert_close(again, found[2])


def test_tokens_at_one_place_are_told_apart_by_what_they_are_alone():
    net, x = build(), draw(0, 1, 3, D)
    same = net(x, torch.tensor([4, 4, 4]))
    torch.testing.assert_close(net(x.flip(1), torch.tensor([4, 4, 4])).flip(1), same)
    assert not torch.allclose(net(x.flip(1), torch.arange(3)).flip(1), net(x, torch.arange(3)))


def test_dropout_is_for_training_alone():
    net, x, place = build(dropout=0.5, attention_dropout=0.5), draw(0, 2, 4, D), torch.arange(4)
    torch.manual_seed(0)
    assert not torch.equal(net(x, place), net(x, place))
    torch.testing.assert_close(net.eval()(x, place), build()(x, place))


def test_attention_by_hand():
    """One head, scores 0 and log 3 / sqrt(1): weights 1/4 and 3/4; with the second masked, the first value alone."""
    query, key = torch.tensor([[1.0]]), torch.tensor([[0.0], [float(np.log(3))]])
    value = torch.tensor([[4.0], [8.0]])
    assert float(attend(query, key, value, 1)) == pytest.approx(7)
    assert float(attend(query, key, value, 1, torch.tensor([[True, False]]))) == 4


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.booleans(), st.integers(0, 100))
def test_attention_is_what_torchs_kernel_computes(tokens, others, masked, seed):
    """Values and slopes, with a mask of each row or none, for fewer keys than a CPU computes at once and for more."""
    parts = [draw(seed + k, 3, count, D).requires_grad_() for k, count in enumerate((tokens, others, others))]
    mask = draw(seed, 3, tokens, others) > 0 if masked else None
    if mask is not None:
        mask[..., 0] = True
    found = [f(*parts, HEADS, mask) for f in (attend, attend_fused)]
    slopes = [torch.autograd.grad(out.sin().sum(), parts) for out in found]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize("keys", [8, 32])
def test_attention_drops_weights(keys):
    """Half of the weights are 0, the others twice as large: with values of 1, their mean stays that of the values."""
    torch.manual_seed(0)
    query, value = torch.zeros(64, 8, 4), torch.ones(64, keys, 4)
    found = attend(query, value, value, 1, dropout=0.5)
    assert float(found.std()) > 0.1 and float(found.mean()) == pytest.approx(1, abs=0.04)


def test_initial_weights_are_small_and_normal():
    torch.manual_seed(0)
    net = Transformer(64, 4, (256,) * 2, 20)
    for name, p in net.named_parameters():
        if "bias" in name:
            assert not p.any()
        elif p.dim() == 2:
            assert float(p.detach().std()) == pytest.approx(0.02, rel=0.1), name


def test_heads_have_to_divide_the_dimensions():
    with pytest.raises(ValueError, match="3 heads do not divide tokens of 8"):
        Transformer(8, 3, (4,), 2)
