"""Colours of pages: words stand out from what is behind them, and styles differ for colour-blind eyes."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from echelon.evidence.view.flame import DARK, DIVERGING
from echelon.evidence.view.layout import asset
from echelon.evidence.view.svg import ramp

THEMES = ("light", "dark")
WORDS = ("ink", "soft", "s0", "s1", "s2", "s3", "s4", "s5", "subgoal")
SEEN = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""What is left of linear red, green and blue: Machado, Oliveira and Fernandes 2009, severity 1."""


def variables(theme: str) -> dict[str, str]:
    """The colours of a theme by name."""
    blocks = re.findall(r"\{([^{}]*--paper:[^{}]*)\}", asset("svg.css"))
    assert len(blocks) == len(THEMES)
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[THEMES.index(theme)]))


def linear(colour: str) -> np.ndarray:
    """Linear red, green and blue of #rrggbb."""
    c = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """The ratio of WCAG 2."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, eyes: str) -> np.ndarray:
    """CIE L*a*b* (D65) of what such eyes see."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    seen = np.clip(xyz @ SEEN[eyes] @ linear(colour) / [0.9505, 1.0, 1.089], 0, None)
    x, y, z = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES)
def test_words_stand_out_from_their_ground(theme: str) -> None:
    colours = variables(theme)
    for word, ground in itertools.product(WORDS, ("paper", "floor")):
        assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)
    assert contrast(colours["ink"], colours["hair"]) >= 4.5, "a box without a colour"
    assert contrast(colours["soft"], colours["rock"]) >= 4.5, "the row that a link led to"


def test_words_stand_out_from_every_colour_of_a_scale() -> None:
    for anchor in (*DIVERGING, *DARK, *ramp()):
        assert max(contrast(anchor, "#000000"), contrast(anchor, "#ffffff")) >= 4.5, anchor


@pytest.mark.parametrize("theme", THEMES)
def test_styles_differ_for_colour_blind_eyes(theme: str) -> None:
    colours = variables(theme)
    for a, b in itertools.combinations([f"s{k}" for k in range(6)], 2):
        for eyes in SEEN:
            apart = float(np.linalg.norm(lab(colours[a], eyes) - lab(colours[b], eyes)))
            assert apart >= 10, (a, b, eyes, apart)


@pytest.mark.parametrize("scale", [DIVERGING, DARK])
def test_both_sides_of_zero_differ_for_colour_blind_eyes(scale: tuple[str, ...]) -> None:
    middle = len(scale) // 2
    for k, eyes in itertools.product(range(1, middle + 1), SEEN):
        low, zero, high = (lab(scale[place], eyes) for place in (middle - k, middle, middle + k))
        assert np.linalg.norm(low - high) >= 20 and min(np.linalg.norm(low - zero), np.linalg.norm(high - zero)) >= 10
