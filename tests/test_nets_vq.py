"""Quantisation over scales: a worked example, a derivation, gradients, moving averages, dead codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import vq as reference
from torch import Tensor

from echelon.nets.vq import ScaleVQ, coarse, fine


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(lengths: list[int], size: int = 6, channels: int = 2, **changes) -> ScaleVQ:
    torch.manual_seed(2)
    return ScaleVQ(lengths, size, channels, **changes).double()


def example() -> tuple[ScaleVQ, Tensor]:
    """Scalar codes -2, …, 3 over 1, 2 and 4 places; f = (1, 3, 2, 6)."""
    vq = build([1, 2, 4], 6, 1)
    vq.codebook.copy_(torch.arange(-2.0, 4)[:, None])
    return vq, torch.tensor([1.0, 3, 2, 6], dtype=torch.float64)[None, :, None]


def test_the_worked_example():
    vq, f = example()
    found = vq.encode(f)
    assert [codes[0].tolist() for codes in found.codes] == [[5], [1, 3], [1, 3, 0, 4]]
    assert found.sums[:, 0, :, 0].tolist() == [[3, 3, 3, 3], [2, 2, 4, 4], [1, 3, 2, 6]]
    assert (f - found.sums).square().sum((1, 2, 3)).tolist() == [14, 10, 0]
    assert found.vectors[:, 0].tolist() == [3, -1, 1, -1, 1, -2, 2]
    assert found.taken.tolist() == [5, 1, 3, 1, 3, 0, 4]
    assert float(vq.commitment(f, found)) == pytest.approx((14 + 10 + 0) / 12)
    assert vq.decode(found.codes[:2], 4)[0, :, 0].tolist() == [2, 2, 4, 4]
    # before the second scale the first sum over two places, before the third the second over four
    assert vq.sketches(found.codes[:2], 4)[0, :, 0].tolist() == [3, 3, 2, 2, 4, 4]
    assert torch.equal(vq.sketches(found.codes, 4), vq.sketches(found.codes[:2], 4))
    assert vq.usage(found.codes).tolist() == pytest.approx([1 / 6, 2 / 6, 4 / 6])


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True).map(sorted)


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.integers(0, 4), st.integers(0, 1000))
def test_codes_and_sums_equal_the_reference(lengths, more, seed):
    vq, f = build(lengths), draw(seed, 3, lengths[-1] + more, 2)
    found, codebook = vq.encode(f), vq.codebook.numpy()
    for b in range(3):
        codes, sums, pairs = reference.quantise(f[b].numpy(), codebook, lengths)
        assert [c[b].tolist() for c in found.codes] == codes
        np.testing.assert_allclose(found.sums[:, b].numpy(), np.stack(sums), atol=1e-12)
        starts = np.cumsum([0, *(3 * length for length in lengths)])
        mine = [found.vectors[s + b * n : s + (b + 1) * n] for s, n in zip(starts, lengths, strict=False)]
        np.testing.assert_allclose(torch.cat(mine).numpy(), np.stack([v for v, _ in pairs]), atol=1e-12)
    torch.testing.assert_close(vq.decode(found.codes, f.shape[1]), found.sums[-1])
    for k in range(1, len(lengths)):
        torch.testing.assert_close(vq.decode(found.codes[:k], f.shape[1]), found.sums[k - 1])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100))
def test_averages_and_spreading_equal_the_reference(places, other, seed):
    x = draw(seed, 2, max(places, other), 3)
    for b in range(2):
        np.testing.assert_allclose(coarse(x, places)[b].numpy(), reference.averages(x[b].numpy(), places), atol=1e-12)
        short = x[:, : min(places, other)]
        np.testing.assert_allclose(fine(short, max(places, other))[b].numpy(),
                                   reference.spread(short[b].numpy(), max(places, other)))  # fmt: skip


def test_with_as_many_places_as_the_sequence_nothing_is_averaged():
    x = draw(0, 2, 5, 3)
    assert torch.equal(coarse(x, 5), x) and torch.equal(fine(x, 5), x)


def test_gradients_pass_straight_through_and_commit():
    vq, f = build([1, 3]), draw(0, 2, 3, 2).requires_grad_()
    found = vq.encode(f.detach())
    out, weight = vq.straight_through(f, found), draw(1, 2, 3, 2)
    torch.testing.assert_close(out.detach(), found.sums[-1])
    (out * weight).sum().backward()
    assert torch.equal(f.grad, weight)
    f.grad = None
    vq.commitment(f, found).backward()
    expected = 2 * (2 * f.detach() - found.sums.sum(0)) / found.sums.numel()
    torch.testing.assert_close(f.grad, expected)
    assert list(vq.parameters()) == []


def test_finer_scales_leave_less():
    """Where codes are the data's own values, which they become by learning."""
    vq, f = build([1, 2, 4, 8], 64), draw(3, 256, 8, 2).cumsum(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        vq.learn(vq.encode(f), generator)
    errors = (f - vq.encode(f).sums).square().mean((1, 2, 3))
    assert bool((errors[1:] < 0.7 * errors[:-1]).all())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 0.99]))
def test_codes_move_to_the_averages_of_their_vectors(seed, decay):
    vq, f = build([1, 2, 4], decay=decay, least=0.0), draw(seed, 3, 4, 2)
    before, counts, totals = (x.numpy().copy() for x in (vq.codebook, vq.counts, vq.totals))
    found = vq.encode(f)
    began = vq.learn(found, torch.Generator().manual_seed(0))
    pairs = list(zip(found.vectors.numpy(), found.taken.tolist(), strict=True))
    counts, totals = reference.moved(counts, totals, pairs, decay)
    np.testing.assert_allclose(vq.counts.numpy(), counts, atol=1e-12)
    expected = [m / n if n else v for m, n, v in zip(totals, counts, before, strict=True)]
    np.testing.assert_allclose(vq.codebook.numpy(), expected)
    assert int(began) == 0


def test_codes_by_hand():
    """decay .5, two codes at 0 and 10 that stood for one vector each; now 2, 4 and 6 go to the first."""
    vq = build([3], 2, 1, decay=0.5, least=0.0)
    for buffer in (vq.codebook, vq.totals):
        buffer.copy_(torch.tensor([[0.0], [10.0]]))
    vq.learn(vq.encode(torch.tensor([[[2.0], [4.0], [4.5]]], dtype=torch.float64)))
    assert vq.counts.tolist() == [0.5 + 1.5, 0.5]
    assert vq.codebook[:, 0].tolist() == pytest.approx([(0 + 5.25) / 2, 10])


def test_dead_codes_begin_anew_at_vectors_of_the_batch():
    vq = build([2], 5, 1, decay=0.9, least=0.5)
    for buffer in (vq.codebook, vq.totals):
        buffer.copy_(torch.tensor([[0.0], [100], [200], [300], [400]]))
    vq.counts.fill_(0.5)
    f = torch.tensor([[[-1.0], [1.0]], [[2.0], [3.0]]], dtype=torch.float64)
    before = vq.encode(f)
    began = vq.learn(before, torch.Generator().manual_seed(0))
    assert int(began) == 4 and vq.counts.tolist() == pytest.approx([0.9 * 0.5 + 0.1 * 4, 1, 1, 1, 1])
    assert {float(v) for v in vq.codebook[1:]} <= {-1.0, 1, 2, 3}
    again = build([2], 5, 1, decay=0.9, least=0.5)
    again.load_state_dict({"codebook": torch.tensor([[0.0], [100], [200], [300], [400]]),
                           "totals": torch.tensor([[0.0], [100], [200], [300], [400]]),
                           "counts": torch.full((5,), 0.5)})  # fmt: skip
    again.learn(again.encode(f), torch.Generator().manual_seed(0))
    assert torch.equal(again.codebook, vq.codebook), "what begins anew depends on the generator alone"


def test_learning_makes_use_of_the_codes():
    vq, f = build([4], 16, 2), 5 + 0.1 * draw(0, 64, 4, 2)
    assert float(vq.usage(vq.encode(f).codes)[0]) < 0.5
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        vq.learn(vq.encode(f), generator)
    found = vq.encode(f)
    assert float(vq.usage(found.codes)[0]) == 1
    assert float((f - found.sums[-1]).square().mean()) < 0.1**2 / 4


def test_senseless_scales_are_refused():
    for lengths in ([], [0, 1], [2, 2], [4, 2]):
        with pytest.raises(ValueError, match="growing numbers of places"):
            ScaleVQ(lengths, 4, 2)
    with pytest.raises(ValueError, match="a codebook needs codes"):
        ScaleVQ([1], 0, 2)
    with pytest.raises(ValueError, match="finest scale has 4 places, the sequence 3"):
        build([1, 4]).encode(draw(0, 1, 3, 2))
