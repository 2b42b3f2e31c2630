"""Counter-based uniforms and the scripted engine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.language.engine import End, Request, ScriptedEngine, uniforms

EOS, STOP = 1, 2


def request(**changes: object) -> Request:
    return replace(Request(context=(5,), max_tokens=10, seed=7), **changes)


@given(st.integers(0, 2**63 - 1), st.integers(0, 50), st.integers(0, 50))
def test_a_uniform_depends_on_its_seed_and_place_only(seed: int, start: int, count: int) -> None:
    whole = uniforms(seed, 0, 100)
    np.testing.assert_array_equal(uniforms(seed, start, count), whole[start : start + count])
    assert whole.dtype == np.float64 and whole.min() >= 0 and whole.max() < 1


def philox(counter: int, key: int) -> list[int]:
    """Philox-4x64-10 (Salmon et al. 2011, section 4.3): the four words of one counter value, in plain integers."""
    full = 2**64
    x, k = [(counter >> 64 * j) % full for j in range(4)], [key % full, key >> 64]
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * x[0], full)
        high1, low1 = divmod(0xCA5A826395121157 * x[2], full)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) % full, (k[1] + 0xBB67AE8584CAA73B) % full]
    return x


@given(st.integers(0, 2**63 - 1))
def test_uniforms_are_the_documented_ones(seed: int) -> None:
    words = philox(1, seed) + philox(2, seed)  # numpy counts before it draws
    np.testing.assert_array_equal(uniforms(seed, 0, 8), [(word >> 11) * 2.0**-53 for word in words])


def test_the_reference_agrees_with_the_published_vector() -> None:
    """Known answer of the Random123 distribution: philox4x64-10, counter and key zero."""
    assert philox(0, 0) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


def test_uniforms_are_uniform_and_seeds_are_unrelated() -> None:
    draws = np.stack([uniforms(seed, 0, 1000) for seed in range(40)])
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.var() - 1 / 12) < 0.002
    off_diagonal = np.corrcoef(draws)[~np.eye(40, dtype=bool)]
    assert abs(off_diagonal).max() < 0.15


@pytest.mark.parametrize(
    ("changes", "ids", "end"),
    [
        ({}, (10, 11, 12, EOS), End.EOS),
        ({"stop": (11,)}, (10, 11), End.STOP),
        ({"stop": (99,)}, (10, 11, 12, EOS), End.EOS),
        ({"max_tokens": 2}, (10, 11), End.LENGTH),
        ({"max_tokens": 3}, (10, 11, 12), End.LENGTH),
        ({"max_tokens": 4}, (10, 11, 12, EOS), End.EOS),
        ({"forced": (8, 9)}, (8, 9, 10, 11, 12, EOS), End.EOS),
        ({"forced": (8, 9), "max_tokens": 3}, (8, 9, 10), End.LENGTH),
        ({"forced": (8, 9), "max_tokens": 1}, (8,), End.LENGTH),
        ({"forced": (11, 9), "stop": (11,)}, (11, 9, 10, 11), End.STOP),  # a forced stop token ends nothing
    ],
)
def test_the_script_obeys_the_request(changes: dict[str, object], ids: tuple[int, ...], end: End) -> None:
    (sample,) = ScriptedEngine(lambda request: [10, 11, 12], eos=EOS).generate([request(**changes)])
    assert (sample.ids, sample.end) == (ids, end)
    forced = min(len(request(**changes).forced), len(ids))
    assert [math.isnan(value) for value in sample.logp] == [True] * forced + [False] * (len(ids) - forced)
    expected = np.log1p(-uniforms(7, 0, len(ids)))[forced:]
    np.testing.assert_array_equal(np.array(sample.logp)[forced:], expected)


def test_without_an_end_token_the_script_just_ends() -> None:
    (sample,) = ScriptedEngine(lambda request: [10, 11]).generate([request(max_tokens=2)])
    assert (sample.ids, sample.end) == ((10, 11), End.EOS)


def test_batches_and_loadings_are_counted() -> None:
    engine = ScriptedEngine(lambda request: [request.seed])
    assert [sample.ids for sample in engine.generate([request(seed=4), request(seed=3)])] == [(4,), (3,)]
    engine.load("policy", {})
    engine.load("policy", {})
    assert engine.batches == [2] and engine.versions == {"policy": 2}
