"""Dilated LSTM: numbers by hand, and a loop that keeps r states apart and begins anew where an episode does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from echelon.nets.recurrent import DilatedLSTM, Memoryless
from echelon.spans import Spans


def naive(core: DilatedLSTM, x: Tensor, done: Tensor) -> Tensor:
    """Outputs [T, S, H] of x [T, S, I]; done bool[T, S]: an episode of the stream ends behind that item."""
    cell = nn.LSTMCell(x.shape[-1], core.hidden, dtype=x.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in core.lstm.state_dict().items()})
    outputs = []
    for stream in range(x.shape[1]):
        states, time = [(torch.zeros(core.hidden, dtype=x.dtype),) * 2 for _ in range(core.radius)], 0
        for t in range(len(x)):
            states[time % core.radius] = cell(x[t, stream], states[time % core.radius])
            outputs.append(torch.stack([hidden for hidden, _ in states]).sum(0))
            time += 1
            if done[t, stream]:
                states, time = [(torch.zeros(core.hidden, dtype=x.dtype),) * 2 for _ in range(core.radius)], 0
    return torch.stack(outputs).reshape(x.shape[1], len(x), core.hidden).transpose(0, 1)


def stepped(core: DilatedLSTM, x: Tensor, done: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The same with `step`, from a memory [S, M]; the memory after it too."""
    outputs = []
    for now, over in zip(x, done, strict=True):
        out, memory = core.step(now, memory)
        memory = torch.where(over[:, None], 0, memory)
        outputs.append(out)
    return torch.stack(outputs), memory


def episodes_of(done: Tensor) -> Spans:
    """Items stream after stream, cut where episodes end."""
    starts = torch.roll(done.T, 1, 1)
    starts[:, 0] = True
    return Spans.from_starts(starts.reshape(-1))


@pytest.mark.parametrize("radius", [1, 2, 3, 10])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_as_a_loop_over_separate_states(radius: int, length: int) -> None:
    torch.manual_seed(radius + length)
    core = DilatedLSTM(3, 4, radius).double()
    x = torch.randn(length, 5, 3, dtype=torch.float64)
    done = torch.rand(length, 5) < 0.2
    expected = naive(core, x, done)
    memory = torch.zeros(5, core.memory_size, dtype=torch.float64)
    assert torch.allclose(stepped(core, x, done, memory)[0], expected, atol=1e-12)
    episodes = episodes_of(done)
    packed = x.transpose(0, 1).reshape(-1, 3)
    out = core(packed, episodes, memory.new_zeros(episodes.n, core.memory_size))
    assert torch.allclose(out.reshape(5, length, 4), expected.transpose(0, 1), atol=1e-12)
    through = torch.autograd.grad(out.square().sum(), core.lstm.weight_hh_l0)[0]
    assert torch.allclose(through, gradient(core, x, done), atol=1e-10)


def gradient(core: DilatedLSTM, x: Tensor, done: Tensor) -> Tensor:
    """The gradient of the recurrent weights through the loop of steps."""
    memory = torch.zeros(x.shape[1], core.memory_size, dtype=x.dtype)
    out = stepped(core, x, done, memory)[0]
    return torch.autograd.grad(out.square().sum(), core.lstm.weight_hh_l0)[0]


@pytest.mark.parametrize("cut", [1, 2, 5, 9])
def test_a_record_goes_on_from_a_memory(cut: int) -> None:
    """Wherever a record is cut, and whatever turn the states are at then."""
    torch.manual_seed(cut)
    core = DilatedLSTM(2, 3, 4).double()
    x = torch.randn(12, 2, 2, dtype=torch.float64)
    done = torch.zeros(12, 2, dtype=torch.bool)
    zero = torch.zeros(2, core.memory_size, dtype=torch.float64)
    whole, _ = stepped(core, x, done, zero)
    _, memory = stepped(core, x[:cut], done[:cut], zero)
    rest = core(x[cut:].transpose(0, 1).reshape(-1, 2), episodes_of(done[cut:]), memory)
    assert torch.allclose(rest.reshape(2, 12 - cut, 3), whole[cut:].transpose(0, 1), atol=1e-12)


def test_numbers_by_hand() -> None:
    """All weights 1 and biases 0, one unit, two states: each sees every other item."""
    core = DilatedLSTM(1, 1, 2).double()
    for name, weight in core.lstm.named_parameters():
        nn.init.constant_(weight, float("bias" not in name))

    def cell(x: float, hidden: float, kept: float) -> tuple[float, float]:
        gate = 1 / (1 + math.exp(-(x + hidden)))
        kept = gate * kept + gate * math.tanh(x + hidden)
        return gate * math.tanh(kept), kept

    one, two = cell(0.5, 0, 0), cell(-1.0, 0, 0)
    three = cell(2.0, *one)
    out = core(torch.tensor([[0.5], [-1.0], [2.0]]).double(), Spans([0, 3]), torch.zeros(1, 4).double())
    assert out[:, 0].tolist() == pytest.approx([one[0], one[0] + two[0], three[0] + two[0]], abs=1e-12)
    assert one[0] == pytest.approx(0.174270, abs=1e-6)


def test_precision_and_what_remembers_nothing() -> None:
    core, x = DilatedLSTM(2, 3), torch.ones(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = core(x.bfloat16(), Spans([0, 4]), torch.zeros(1, 6))
    assert out.dtype == torch.float32 and torch.equal(out, core(x, Spans([0, 4]), torch.zeros(1, 6)))
    nothing = Memoryless()
    assert nothing(x, Spans([0, 4]), torch.zeros(1, 0)) is x and nothing.step(x, None) == (x, None)
