"""Rectified ensembles: a case by hand, and the same bits as the ensemble that takes a node an operator."""

import pytest
import torch
import torch.nn.functional as F

from echelon.nets.frozen import frozen
from echelon.nets.mlp import EnsembleMLP
from echelon.nets.rectified import RectifiedEnsemble


def pair(sizes, members=2):
    torch.manual_seed(0)
    mine, plain = RectifiedEnsemble(members, sizes), EnsembleMLP(members, sizes, activation=F.relu)
    for bias in mine.biases:
        torch.nn.init.normal_(bias)
    plain.load_state_dict(mine.state_dict())
    return mine, plain


def test_two_networks_by_hand():
    net = RectifiedEnsemble(2, [1, 2, 1])
    weights = ([[[1.0], [-1.0]], [[2.0], [3.0]]], [[[1.0, 5.0]], [[-1.0, 0.5]]])
    for parameter, values in zip(net.weights, weights, strict=True):
        parameter.data = torch.tensor(values)
    x = torch.tensor([[2.0], [-4.0]], requires_grad=True)
    out = net(x)
    assert out.tolist() == [[[2.0], [20.0]], [[-1.0], [0.0]]]
    out.sum().backward()
    assert x.grad.tolist() == [[1.0 - 0.5], [-5.0]]
    assert net.weights[0].grad.tolist() == [[[2.0], [-20.0]], [[-2.0], [1.0]]]
    assert net.weights[1].grad.tolist() == [[[2.0, 4.0]], [[4.0, 6.0]]]
    assert net.biases[0].grad.tolist() == [[1.0, 5.0], [-1.0, 0.5]] and net.biases[1].grad.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("sizes", [[5, 16, 1], [3, 40, 40, 1], [4, 8, 12, 3], [6, 2]])
@pytest.mark.parametrize("held", [False, True])
def test_the_same_bits_as_an_operator_at_a_time(sizes, held):
    found = []
    for net in pair(sizes):
        torch.manual_seed(1)
        x = torch.randn(33, sizes[0], requires_grad=True)
        if held:
            with frozen(net):
                out = net(x)
        else:
            out = net(x)
        out.amin(0).square().mean().backward()
        with torch.no_grad():
            assert torch.equal(net(x), out)
        found.append([out, x.grad, *[p.grad for p in net.parameters()]])
    for place, (one, other) in enumerate(zip(*found, strict=True)):
        assert one is other is None if held and place > 1 else torch.equal(one, other)


def test_other_shapes_and_precisions_go_the_plain_way():
    mine, plain = pair([3, 8, 1])
    x = torch.randn(4, 5, 3)
    assert torch.equal(mine(x), plain(x)) and mine(x).shape == (2, 4, 5, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mine(x[0]), plain(x[0]))
