"""Adam's bare step: bit for bit what torch's own step and clipping do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from echelon.training.adam import Adam


def trained(net: nn.Module, adam: torch.optim.Optimizer, clip_norm: float | None, steps: int = 6) -> list[torch.Tensor]:
    """The weights after steps on random data, the last layer being idle in the second one."""
    draw = torch.Generator().manual_seed(3)
    for step in range(steps):
        x = torch.randn(8, 5, generator=draw)
        own = isinstance(adam, Adam)
        adam.clear() if own else adam.zero_grad()
        hidden = net[0](x)
        (hidden.square().sum() if step == 1 else net[1](hidden).square().sum()).backward()
        if own:
            adam.move(clip_norm)
            continue
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        adam.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_a_move_is_a_clipped_step(clip_norm):
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    twin = copy.deepcopy(net)
    ours = trained(net, Adam(net.parameters(), 1e-2, (0.9, 0.999), 1e-8, True), clip_norm)
    theirs = trained(twin, torch.optim.Adam(twin.parameters(), lr=1e-2, fused=True), clip_norm)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_it_goes_on_from_its_state():
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    first = Adam(net.parameters(), 1e-2, (0.9, 0.999), 1e-8, True)
    trained(net, first, None)
    twin = copy.deepcopy(net)
    second = Adam(twin.parameters(), 1e-2, (0.9, 0.999), 1e-8, True)
    trained(copy.deepcopy(net), second, None, 0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for own, adam in ((net, first), (twin, second)):
        trained(own, adam, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
