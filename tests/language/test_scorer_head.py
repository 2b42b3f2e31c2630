"""The head in chunks of tokens against plain log-softmax."""

import pytest
import torch
from torch import nn

from echelon.language._head import HEAD_WANTS, score_tokens

N, WIDTH, WORDS = 7, 4, 11


def inputs(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, WORDS, bias=bias, dtype=dtype)
    hidden = torch.randn(N, WIDTH, dtype=dtype, requires_grad=True)
    return head, hidden, torch.randint(WORDS, (N,))


def run(head, hidden, target, temperature=1.0, want=HEAD_WANTS, chunk=3, plain_words=0, keep_bytes=2**20):
    return score_tokens(
        head, hidden, target, temperature, set(want),
        words=WORDS, chunk=chunk, plain_words=plain_words, keep_bytes=keep_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep_bytes", [0, 2**20])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_gradients_by_finite_differences(bias, keep_bytes, chunk):
    head, hidden, target = inputs(bias=bias)

    def columns(hidden, *parameters):
        own = nn.Linear(WIDTH, WORDS, bias=bias, dtype=torch.float64)
        for name, value in zip(("weight", "bias"), parameters, strict=False):
            delattr(own, name)
            setattr(own, name, value)
        scored = run(own, hidden, target, 0.6, chunk=chunk, keep_bytes=keep_bytes)
        return scored["logp"], scored["entropy"]

    assert torch.autograd.gradcheck(columns, (hidden, *head.parameters()))


@pytest.mark.parametrize("temperature", [1.0, 0.3, torch.linspace(0.2, 3, N, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("want", [("logp",), ("entropy",), ("argmax",), HEAD_WANTS], ids=str)
def test_values_are_those_of_the_plain_head(want, temperature):
    head, hidden, target = inputs()
    plain = run(head, hidden, target, temperature, want, plain_words=WORDS)
    chunked = run(head, hidden, target, temperature, want)
    assert plain.keys() == chunked.keys() == set(want)
    for name in want:
        torch.testing.assert_close(chunked[name], plain[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("of", ["logp", "entropy"])
def test_one_column_alone_and_frozen_inputs(of):
    for frozen in ("head", "hidden", None):
        grads = []
        for plain_words in (0, WORDS):
            head, hidden, target = inputs()
            if frozen == "head":
                head.requires_grad_(False)
            elif frozen == "hidden":
                hidden.requires_grad_(False)
            run(head, hidden, target, plain_words=plain_words)[of].sum().backward()
            grads.append([hidden.grad, head.weight.grad, head.bias.grad])
        for ours, right in zip(*grads, strict=True):
            assert (ours is None) == (right is None)
            if right is not None:
                torch.testing.assert_close(ours, right, rtol=0, atol=1e-14)


def test_a_second_pass_through_the_same_graph():
    head, hidden, target = inputs()
    loss = run(head, hidden, target)["logp"].sum()
    first = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, hidden)[0], first)


def test_without_gradients_nothing_is_kept():
    head, hidden, target = inputs()
    with torch.no_grad():
        assert not run(head, hidden, target)["logp"].requires_grad
    assert run(head, hidden, target, want=("argmax",))["argmax"].dtype == torch.int64


def test_half_precision_sums_in_float32():
    head, hidden, target = inputs(torch.float32)
    exact = run(head, hidden, target, plain_words=WORDS)
    half_head, half = nn.Linear(WIDTH, WORDS).bfloat16(), hidden.detach().bfloat16().requires_grad_()
    half_head.load_state_dict(head.state_dict())
    scored = run(half_head, half, target)
    assert scored["logp"].dtype == scored["entropy"].dtype == torch.float32
    torch.testing.assert_close(scored["logp"], exact["logp"], rtol=0, atol=0.05)
    scored["logp"].sum().backward()
    exact["logp"].sum().backward()
    assert half.grad.dtype == half_head.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), hidden.grad, rtol=0, atol=0.03)
    torch.testing.assert_close(half_head.weight.grad.float(), head.weight.grad, rtol=0, atol=0.05)
