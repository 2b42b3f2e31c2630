"""Entity sets: permutations of entities, against the reference with weights copied in, moments, layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import hecrl as reference
from torch import Tensor, nn

from echelon.envs.catalog import ENVIRONMENTS
from echelon.envs.entities import layout_of
from echelon.errors import UsageError
from echelon.nets.entities import EntityFunction, EntityNorm, FrameTransformer

KINDS = ((1, 3), (3, 2), (2, 4))
OBS, E, HEADS = 17, 8, 2


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(net: nn.Module) -> nn.Module:
    """In float64, away from special points."""
    with torch.no_grad():
        for p in net.double().parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def function(tagged: bool, action: bool) -> EntityFunction:
    torch.manual_seed(1)
    act = 2 if action else None
    net = spread(EntityFunction(KINDS, E, HEADS, 12, (7, 5), 3, tagged=tagged, action_dim=act))
    assert isinstance(net, EntityFunction)
    return net


def frames(tagged: bool, condition: bool) -> FrameTransformer:
    torch.manual_seed(2)
    net = spread(FrameTransformer(KINDS, 3, E, HEADS, (12, 9), tagged=tagged, condition=E if condition else None))
    assert isinstance(net, FrameTransformer)
    return net


def weights(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def permuted(x: Tensor, orders: list[list[int]]) -> Tensor:
    """Entities of each kind of x [..., OBS] in another order."""
    blocks = x.split([count * size for count, size in KINDS], -1)
    parts = [
        b.unflatten(-1, kind)[..., order, :].flatten(-2) for b, kind, order in zip(blocks, KINDS, orders, strict=True)
    ]
    return torch.cat(parts, -1)


def of_entities(orders: list[list[int]]) -> list[int]:
    """The same reordering of all entities."""
    starts = [0, 1, 4]
    return [start + k for start, order in zip(starts, orders, strict=True) for k in order]


ORDERS = st.tuples(st.permutations([0, 1, 2]), st.permutations([0, 1])).map(lambda p: [[0], list(p[0]), list(p[1])])


@settings(max_examples=15, deadline=None)
@given(ORDERS, ORDERS, st.booleans())
def test_without_tags_functions_of_sets_are_invariant(mine, theirs, action):
    net, s, g, a = function(False, action), draw(0, 4, OBS), draw(1, 4, OBS), draw(2, 4, 2)
    extra = (a,) if action else ()
    torch.testing.assert_close(net(permuted(s, mine), permuted(g, theirs), *extra), net(s, g, *extra))


@settings(max_examples=15, deadline=None)
@given(ORDERS)
def test_with_tags_they_are_invariant_when_the_tags_move_too(order):
    net, s, g = function(True, False), draw(0, 4, OBS), draw(1, 4, OBS)
    before = net(s, g)
    if order != [[0], [0, 1, 2], [0, 1]]:
        assert not torch.allclose(net(permuted(s, order), permuted(g, order)), before)
    with torch.no_grad():
        assert net.embed.tags is not None
        net.embed.tags.copy_(net.embed.tags[of_entities(order)])
    torch.testing.assert_close(net(permuted(s, order), permuted(g, order)), before)


@settings(max_examples=15, deadline=None)
@given(st.lists(ORDERS, min_size=3, max_size=3), st.booleans())
def test_without_tags_frames_are_equivariant_each_by_itself(orders, condition):
    net, x, c = frames(False, condition), draw(0, 2, 3, OBS), draw(1, 2, E) if condition else None
    moved = torch.stack([permuted(x[:, k], orders[k]) for k in range(3)], 1)
    expected = net(x, c)
    expected = torch.stack([permuted(expected[:, k], orders[k]) for k in range(3)], 1)
    torch.testing.assert_close(net(moved, c), expected)


@settings(max_examples=15, deadline=None)
@given(ORDERS)
def test_with_tags_frames_are_equivariant_when_the_tags_move_too(order):
    net, x, c = frames(True, True), draw(0, 2, 3, OBS), draw(1, 2, E)
    expected = permuted(net(x, c), order)
    with torch.no_grad():
        assert net.embed.tags is not None
        net.embed.tags.copy_(net.embed.tags[of_entities(order)])
    torch.testing.assert_close(net(permuted(x, order), c), expected)


def test_frames_are_told_apart():
    net, x = frames(False, False), draw(0, 2, 3, OBS)
    assert not torch.allclose(net(x.flip(1)).flip(1), net(x))


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("conditioned", [True, False])
def test_networks_equal_the_reference(tagged, conditioned):
    s, g, a, c, x = draw(0, 3, OBS), draw(1, 3, OBS), draw(2, 3, 2), draw(3, 3, E), draw(4, 3, 3, OBS)
    hyper = {"kinds": KINDS, "heads": HEADS}
    net = function(tagged, conditioned)
    extra = (a,) if conditioned else ()
    expected = reference.entity_function(weights(net), hyper, s.numpy(), g.numpy(), *(y.numpy() for y in extra))
    np.testing.assert_allclose(net(s, g, *extra).detach().numpy(), expected, atol=1e-9)
    other = frames(tagged, conditioned)
    extra = (c,) if conditioned else ()
    expected = reference.frame_transformer(weights(other), hyper, x.numpy(), *(y.numpy() for y in extra))
    np.testing.assert_allclose(other(x, *extra).detach().numpy(), expected, atol=1e-9)


def test_sets_may_grow_without_tags():
    """Weights of three entities of a kind serve five."""
    small, large = ((1, 3), (3, 2)), ((1, 3), (5, 2))
    nets = [EntityFunction(kinds, E, HEADS, 12, (7,), 1, tagged=False) for kinds in (small, large)]
    nets[1].load_state_dict(nets[0].state_dict())
    assert nets[1](torch.zeros(2, 13), torch.zeros(2, 13)).shape == (2, 1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 1000))
def test_moments_are_those_of_all_entities_of_a_kind_seen_so_far(sizes, seed):
    norm, kinds = EntityNorm(KINDS), [slice(0, 3), slice(3, 9), slice(9, 17)]
    batches = [3 + 2 * draw(seed + k, n, OBS) for k, n in enumerate(sizes)]
    for batch in batches:
        norm.update(batch)
    rows = torch.cat(batches)
    entities = [rows[:, part].reshape(-1, size) for part, (_, size) in zip(kinds, KINDS, strict=True)]
    torch.testing.assert_close(norm.mean, torch.cat([e.mean(0) for e in entities]))
    torch.testing.assert_close(norm.variance, torch.cat([e.var(0, correction=0) for e in entities]))
    std = torch.cat(
        [e.std(0, correction=0).clamp(min=1e-2).repeat(n) for e, (n, _) in zip(entities, KINDS, strict=True)]
    )
    mean = torch.cat([e.mean(0).repeat(n) for e, (n, _) in zip(entities, KINDS, strict=True)])
    torch.testing.assert_close(norm(rows), ((rows - mean) / std).clamp(-5, 5))
    inside = norm(rows).abs() < 5
    torch.testing.assert_close(norm.inverse(norm(rows))[inside], rows[inside])


def test_before_any_data_nothing_is_scaled():
    x = draw(0, 4, OBS)
    torch.testing.assert_close(EntityNorm(KINDS)(x), x.clamp(-5, 5))


def test_observations_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match="sizes differ: observations have 16 numbers, the entities 17"):
        EntityNorm(KINDS)(draw(0, 2, 16))


# --- layouts


def test_entities_fill_the_observations_of_every_declared_environment():
    for env in ENVIRONMENTS.values():
        if env.family in ("antsoccer", "fetch", "metaworld"):
            with pytest.raises(UsageError, match=f"no entities are declared for '{env.name}'; declared: cube, scene"):
                layout_of(env.name, env.observation_dim)
        else:
            layout = layout_of(env.name, env.observation_dim)
            assert layout.dim == env.observation_dim


def test_cubes_scenes_puzzles_and_mazes():
    assert layout_of("cube-triple-noisy-v0", 46).kinds == ((1, 19), (3, 9))
    assert layout_of("cube-triple-noisy-v0", 46).entities == 4
    assert layout_of("scene-play-v0", 40).kinds == ((1, 19), (1, 9), (2, 4), (1, 2), (1, 2))
    assert layout_of("puzzle-4x4-play-v0", 83).kinds == ((1, 19), (16, 4))
    assert layout_of("antmaze-large-navigate-v0", 29).kinds == ((1, 29),)


@pytest.mark.parametrize(("env", "dim"), [("cube-double-play-v0", 38), ("cube-double-play-v0", 19), ("scene-v0", 41)])
def test_observations_that_do_not_fit_are_refused(env, dim):
    with pytest.raises(UsageError, match=f"'{env}' has observations of {dim} numbers, its entities are 1 x 19"):
        layout_of(env, dim)
